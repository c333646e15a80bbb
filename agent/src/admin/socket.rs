//! The unix socket: reachable by root alone from its first moment, and never taken from an agent
//! that lives.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_address, connect,
            listen, socket,
        },
        stat::{Mode, fchmod},
    },
};
use tokio::net::UnixListener;

/// Connections that may wait until one is accepted.
const WAITING: i32 = 64;

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// An agent is there.
    #[error("another agent answers on {}: stop it first, or give another --socket", path.display())]
    Answered {
        /// The socket.
        path: PathBuf,
    },
    /// Something else stands there.
    #[error("{} exists and is no socket: remove it, or give another --socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path does not fit a socket's address.
    #[error("the path of the admin socket is too long: {}; expected at most 107 bytes", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {step} {}; check that its folder can be written", path.display())]
    Refused {
        /// What was being done.
        step: &'static str,
        /// To which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A bound admin socket. Its file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

impl Socket {
    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// The file of a socket, removed on drop unless it is somebody else's by then.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Binds the admin socket, in a folder that is made for root alone if it is missing. A file that
/// nobody listens on any more is replaced. Inside of a runtime only.
pub fn bind(path: &Path) -> Result<Socket, SocketError> {
    let refused = |step| {
        let path = path.to_owned();
        move |source: io::Error| SocketError::Refused { step, path, source }
    };
    let address =
        UnixAddr::new(path).map_err(|_| SocketError::TooLong { path: path.to_owned() })?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(refused("make the folder of"))?;
    }
    remove_stale(path, &address)?;
    let socket = new_socket().map_err(refused("make the socket"))?;
    // Linux gives the file the mode that the socket has when it is bound, less the umask: there is
    // no moment in which it could be opened by others (`unix_bind_bsd` in net/unix/af_unix.c).
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|errno| refused("set the mode of")(errno.into()))?;
    bind_address(socket.as_raw_fd(), &address)
        .map_err(|errno| refused("make the socket")(errno.into()))?;
    let file = SocketFile::new(path);
    let waiting = Backlog::new(WAITING).unwrap_or(Backlog::MAXCONN);
    listen(&socket, waiting).map_err(|errno| refused("listen on")(errno.into()))?;
    let listener = UnixListener::from_std(socket.into()).map_err(refused("listen on"))?;
    Ok(Socket { listener, file })
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), SocketError> {
    let refused = |step| {
        let path = path.to_owned();
        move |source: io::Error| SocketError::Refused { step, path, source }
    };
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused("look at")(error)),
    };
    if !meta.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    let probe = new_socket().map_err(refused("look at"))?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(refused("replace")),
        Err(Errno::ENOENT) => Ok(()),
        // A full queue, too, is somebody's.
        Ok(()) | Err(Errno::EAGAIN) => Err(SocketError::Answered { path: path.to_owned() }),
        Err(errno) => Err(refused("look at")(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener as StdListener, UnixStream};

    use super::*;

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("weir-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("weir.sock")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_alone_and_goes_with_the_agent() {
        let folder = Folder::new("mode");
        let path = folder.0.join("run").join("weir.sock");
        let socket = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(folder.0.join("run")).unwrap().mode() & 0o7777, 0o700);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_replaced() {
        let folder = Folder::new("stale");
        // The standard library leaves the file behind.
        drop(StdListener::bind(folder.socket()).unwrap());
        assert!(folder.socket().exists());
        let socket = bind(&folder.socket()).unwrap();
        UnixStream::connect(folder.socket()).unwrap();
        drop(socket);
    }

    #[tokio::test]
    async fn a_socket_that_an_agent_listens_on_is_left_alone() {
        let folder = Folder::new("live");
        let _agent = bind(&folder.socket()).unwrap();
        let error = bind(&folder.socket()).unwrap_err();
        assert!(error.to_string().starts_with("another agent answers on /"), "{error}");
        UnixStream::connect(folder.socket()).unwrap();
    }

    #[tokio::test]
    async fn an_agent_that_is_too_busy_to_accept_is_still_there() {
        let folder = Folder::new("busy");
        let _agent = bind(&folder.socket()).unwrap();
        let mut waiting = Vec::new();
        let address = UnixAddr::new(&folder.socket()).unwrap();
        loop {
            let client = new_socket().unwrap();
            match connect(client.as_raw_fd(), &address) {
                Ok(()) => waiting.push(client),
                Err(errno) => break assert_eq!(errno, Errno::EAGAIN),
            }
        }
        assert!(matches!(bind(&folder.socket()), Err(SocketError::Answered { .. })));
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = Folder::new("file");
        fs::write(folder.socket(), "precious").unwrap();
        let error = bind(&folder.socket()).unwrap_err();
        assert!(error.to_string().ends_with("or give another --socket"), "{error}");
        assert_eq!(fs::read_to_string(folder.socket()).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_successors_socket_is_not_removed() {
        let folder = Folder::new("successor");
        let first = bind(&folder.socket()).unwrap();
        fs::remove_file(folder.socket()).unwrap();
        let second = bind(&folder.socket()).unwrap();
        drop(first);
        UnixStream::connect(folder.socket()).unwrap();
        drop(second);
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_told_as_such() {
        let path = PathBuf::from(format!("/tmp/{}/weir.sock", "x".repeat(120)));
        assert!(matches!(bind(&path), Err(SocketError::TooLong { .. })));
    }
}
