//! One network namespace: made, named, entered, removed.
//!
//! It is bound at `/run/netns/NAME`, where `ip netns` looks, so people can look inside.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsFd,
    panic,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::LinkUnspec;
use tokio::{runtime, task::LocalSet};

use super::{
    error::{Doing, LabError},
    links::{self, netlink},
    process::{self, Process},
};

/// Where `ip netns` keeps its names.
pub(super) const NETNS_DIR: &str = "/run/netns";

/// Whether this process made [`NETNS_DIR`], and so removes it again when it is empty.
static DIRECTORY_IS_OURS: AtomicBool = AtomicBool::new(false);

/// A named network namespace, removed on drop.
///
/// The kernel frees it, and the interfaces in it, once no process, thread or socket is inside.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    handle: File,
}

impl Namespace {
    /// Makes a namespace with its loopback up, and IPv6 addresses usable without a wait.
    pub fn create(name: &str) -> Result<Self, LabError> {
        let path = Path::new(NETNS_DIR).join(name);
        make_mount_point(&path)?;
        let bound = bind_new_namespace(&path).and_then(|()| {
            File::open(&path).doing(|| format!("open the network namespace {}", path.display()))
        });
        let handle = match bound {
            Ok(handle) => handle,
            Err(error) => {
                remove(&path);
                return Err(error);
            }
        };
        let namespace = Self { name: name.to_owned(), path, handle };
        namespace.prepare()?;
        Ok(namespace)
    }

    /// The name, as `ip netns exec` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file it is bound at, as a node file takes it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open namespace, for calls that take one by descriptor.
    pub fn handle(&self) -> &File {
        &self.handle
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    ///
    /// A panic of `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        thread::scope(|scope| {
            let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(
                scope,
                || -> Result<T, LabError> {
                    setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)
                        .doing(|| format!("enter the network namespace {}", self.name))?;
                    Ok(work())
                },
            );
            let worker = worker.doing(|| "start a thread".to_owned())?;
            worker.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Like [`run`](Self::run), for asynchronous work: on a current-thread runtime that also
    /// takes `tokio::task::spawn_local`.
    pub fn run_async<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> Result<T, LabError> {
        self.run(|| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .doing(|| "start an asynchronous runtime".to_owned())?;
            Ok(LocalSet::new().block_on(&runtime, work()))
        })?
    }

    /// Starts a program inside. It dies with this process, whatever ends this process.
    pub fn spawn(&self, command: Command) -> Result<Process, LabError> {
        process::spawn(command, &self.handle)
    }

    /// Whether the kernel has IPv6.
    pub fn has_ipv6(&self) -> bool {
        // Not per namespace: the directory exists in all of them or in none.
        Path::new("/proc/sys/net/ipv6").is_dir()
    }

    /// Writes a network setting of this namespace, `ipv4/ip_forward` for example.
    pub fn set(&self, setting: &str, value: &str) -> Result<(), LabError> {
        self.run(|| write_setting(setting, value))?
    }

    fn prepare(&self) -> Result<(), LabError> {
        let ipv6 = self.has_ipv6();
        self.run(|| {
            if ipv6 {
                for setting in [
                    ("disable_ipv6", "0"),
                    // A new address is usable at once: nobody else is on these links.
                    ("accept_dad", "0"),
                    ("dad_transmits", "0"),
                    ("router_solicitations", "0"),
                ] {
                    for scope in ["all", "default"] {
                        write_setting(&format!("ipv6/conf/{scope}/{}", setting.0), setting.1)?;
                    }
                }
            }
            // Room for load: ephemeral ports (the kernel wants one end even and the other odd), and a
            // backlog that never drops a connection that a limit has admitted.
            write_setting("ipv4/ip_local_port_range", "10000 64999")?;
            write_setting("core/somaxconn", "4096")?;
            write_setting("ipv4/tcp_max_syn_backlog", "4096")
        })??;
        netlink(self, async |handle| {
            let up = LinkUnspec::new_with_index(links::LOOPBACK).up().build();
            handle.link().set(up).execute().await
        })
        .doing(|| format!("bring up the loopback of {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Unbinds and removes a namespace's file. What is gone already needs no removal.
pub(super) fn remove(path: &Path) {
    // Detached: a process that looks at the file cannot keep it here.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
    if DIRECTORY_IS_OURS.load(Ordering::Relaxed) {
        // Fails while other names are in it.
        let _ = fs::remove_dir(NETNS_DIR);
    }
}

fn make_mount_point(path: &Path) -> Result<(), LabError> {
    // Another lab may remove the empty directory between the two steps; then once more.
    for _ in 0..8 {
        if !Path::new(NETNS_DIR).is_dir() {
            fs::create_dir_all(NETNS_DIR).map_err(denied_or(|| format!("make {NETNS_DIR}")))?;
            DIRECTORY_IS_OURS.store(true, Ordering::Relaxed);
        }
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(denied_or(|| format!("make {}", path.display()))(error)),
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound)).doing(|| format!("make {}", path.display()))
}

/// A namespace lives while something refers to it: the thread that made it ends here, the bind
/// mount stays.
fn bind_new_namespace(path: &Path) -> Result<(), LabError> {
    let made = thread::scope(|scope| {
        let maker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let this = "/proc/thread-self/ns/net";
            mount(Some(this), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        match maker {
            Ok(maker) => {
                let made = maker.join().unwrap_or_else(|payload| panic::resume_unwind(payload));
                made.map_err(io::Error::from)
            }
            Err(error) => Err(error),
        }
    });
    made.map_err(denied_or(|| format!("make the network namespace {}", path.display())))
}

/// Whether this process may make namespaces, tried on a thread that ends at once.
pub(super) fn may_create() -> Result<(), LabError> {
    let tried = thread::scope(|scope| {
        scope.spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join().unwrap_or(Err(Errno::EAGAIN))
    });
    tried.map_err(io::Error::from).map_err(denied_or(|| "make a network namespace".to_owned()))
}

/// Tells "you may not" from "it did not work": the first has a remedy.
fn denied_or(step: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> LabError {
    move |error| {
        let denied = [Errno::EPERM as i32, Errno::EACCES as i32];
        if error.raw_os_error().is_some_and(|code| denied.contains(&code)) {
            LabError::NotPermitted(error)
        } else {
            LabError::Step { step: step(), source: error }
        }
    }
}

/// `/proc/sys/net` shows the namespace of the thread that looks.
fn write_setting(setting: &str, value: &str) -> Result<(), LabError> {
    let path = format!("/proc/sys/net/{setting}");
    fs::write(&path, value).doing(|| format!("write {value:?} to {path}"))
}
