//! Other network namespaces: opened once, entered on threads of their own.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    panic,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// Where names of network namespaces are bound.
const NAMED: &str = "/run/netns";

/// An open network namespace. Two are equal when they are the same namespace of one boot.
#[derive(Clone, Debug)]
pub struct NetNs {
    handle: Arc<File>,
    inode: u64,
    cookie: u64,
}

impl NetNs {
    /// Opens a namespace by name (as `ip netns` has it) or path.
    pub fn open(name: &str) -> io::Result<Self> {
        let path =
            if name.contains('/') { PathBuf::from(name) } else { Path::new(NAMED).join(name) };
        let handle = File::open(path)?;
        let inode = handle.metadata()?.ino();
        let cookie = enter(&handle, cookie)??;
        Ok(Self { handle: Arc::new(handle), inode, cookie })
    }

    /// The number by which the kernel tells namespaces apart; never used again in one boot.
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The number of its file, which no other namespace has while this one is open.
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether this is the namespace that the process itself runs in.
    pub fn is_own(&self) -> bool {
        fs::metadata("/proc/self/ns/net").is_ok_and(|own| own.ino() == self.inode)
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        enter(&self.handle, work)
    }
}

/// Every namespace that has a name or a process, once.
pub fn all() -> Vec<NetNs> {
    let entries = |folder| fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries(NAMED).map(|entry| entry.path());
    let of_processes = entries("/proc").map(|entry| entry.path().join("ns/net"));
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for path in named.chain(of_processes) {
        // What is not a process, or is gone by now, is none.
        if let Ok(metadata) = fs::metadata(&path)
            && seen.insert((metadata.dev(), metadata.ino()))
        {
            found.extend(NetNs::open(&path.to_string_lossy()));
        }
    }
    found
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.cookie == other.cookie
    }
}

impl Eq for NetNs {}

impl PartialOrd for NetNs {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NetNs {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.cookie.cmp(&other.cookie)
    }
}

fn enter<T: Send>(handle: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            setns(handle.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?;
        worker.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    })
}

/// The cookie of the calling thread's namespace (`SO_NETNS_COOKIE`, since 5.14).
fn cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is a `u64` and the length says so.
    let failed = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut length,
        )
    };
    if failed == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
