//! Where questions come in.
//!
//! A TCP address is bound by each thread for itself, and by a successor while its predecessor still
//! serves: the kernel spreads new connections over all who listen (`SO_REUSEPORT`). A unix socket
//! has one place in the file system; whoever comes later takes it over in one step.

use std::{
    fs::{self, DirBuilder},
    io,
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process,
};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait until one is accepted.
const WAITING: u32 = 1024;

/// Why nobody can come in.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A TCP address.
    #[error("cannot listen on {address} for rate limit requests; check that no other program does")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// A unix socket.
    #[error("cannot listen on {} for rate limit requests; check that its folder can be written", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something else stands there.
    #[error("{} exists and is no socket: remove it, or give another `rls.socket`", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
}

/// Listens beside whoever of this user listens there already. Inside of a runtime only.
pub(super) fn tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        socket.listen(WAITING)
    };
    listen().map_err(|source| ListenError::Tcp { address, source })
}

/// A bound unix socket. Its file goes with it, unless it is somebody else's by then.
#[derive(Debug)]
pub(super) struct UnixSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl UnixSocket {
    /// Listens on a path, in a folder that is made if it is missing.
    pub(super) fn bind(path: &Path, mode: u32) -> Result<Self, ListenError> {
        let refused = |source| ListenError::Unix { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(ListenError::NotASocket { path: path.to_owned() });
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error)),
            _ => {}
        }
        if let Some(folder) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
            made.map_err(refused)?;
        }
        // Bound beside its place and moved there: there is no moment without a listener.
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", process::id()));
        let beside = PathBuf::from(beside);
        let _ = fs::remove_file(&beside);
        let listen = || {
            let listener = UnixListener::bind(&beside)?;
            listener.set_nonblocking(true)?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(mode))?;
            fs::rename(&beside, path)?;
            Ok(listener)
        };
        let listener = listen().map_err(|source| {
            let _ = fs::remove_file(&beside);
            refused(source)
        })?;
        Ok(Self { listener, path: path.to_owned(), identity: identity(path) })
    }

    /// Another handle to the same socket.
    pub(super) fn share(&self) -> Result<UnixListener, ListenError> {
        let shared = self.listener.try_clone();
        shared.map_err(|source| ListenError::Unix { path: self.path.clone(), source })
    }

    /// Takes it out of the file system: nobody new finds it.
    pub(super) fn hide(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity.take() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        self.hide();
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}
