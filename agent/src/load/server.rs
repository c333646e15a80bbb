//! A server on many addresses at once that counts what it accepts, at once or when it is told to.

use std::{
    io,
    net::{self, SocketAddr},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{self, Backlog};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime,
    sync::{oneshot, watch},
    task::LocalSet,
    time::sleep,
};

use super::{client::raise_file_limit, talk::Talk};

/// As many connections as may wait for `accept`; the kernel takes the lower of this and somaxconn.
const BACKLOG: u16 = 4096;
/// After a failed accept (no file descriptor left) others get time to close theirs.
const PAUSE: Duration = Duration::from_millis(10);

/// A running server; it stops on drop, at once.
#[derive(Debug)]
pub struct Server {
    ports: Vec<(SocketAddr, Arc<AtomicU64>)>,
    works: watch::Sender<bool>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How a server begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    Working,
    Idle,
    Deaf,
}

impl Server {
    /// Listens on every address before it returns; port 0 takes a free one.
    pub fn start(addresses: &[SocketAddr], talk: Talk) -> io::Result<Self> {
        Self::begin(addresses, talk, Begin::Working)
    }

    /// Listens, but accepts nobody before [`work`](Self::work): the kernel completes handshakes,
    /// and connections stay open without a word.
    pub fn idle(addresses: &[SocketAddr], talk: Talk) -> io::Result<Self> {
        Self::begin(addresses, talk, Begin::Idle)
    }

    /// Listens with a full queue, as a server that hangs: no SYN is answered before
    /// [`work`](Self::work). On each address a connection of its own fills the queue, and is
    /// counted as accepted later.
    pub fn deaf(addresses: &[SocketAddr], talk: Talk) -> io::Result<Self> {
        Self::begin(addresses, talk, Begin::Deaf)
    }

    fn begin(addresses: &[SocketAddr], talk: Talk, begin: Begin) -> io::Result<Self> {
        raise_file_limit();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (works, when) = watch::channel(begin == Begin::Working);
        let mut ports = Vec::with_capacity(addresses.len());
        let mut listeners = Vec::with_capacity(addresses.len());
        let mut own = Vec::new();
        runtime.block_on(async {
            for address in addresses {
                let listener = listen(*address, begin).map_err(|error| {
                    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
                })?;
                let address = listener.local_addr()?;
                if begin == Begin::Deaf {
                    own.push(fill(&listener, address).await?);
                }
                let accepted = Arc::new(AtomicU64::new(0));
                ports.push((address, Arc::clone(&accepted)));
                listeners.push((listener, accepted));
            }
            Ok::<_, io::Error>(())
        })?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("load-server".to_owned()).spawn(move || {
            let tasks = LocalSet::new();
            for (listener, accepted) in listeners {
                tasks.spawn_local(accept(listener, accepted, talk, when.clone()));
            }
            for mut stream in own {
                // To the end, or the server's kernel would reset what it cannot deliver.
                tasks.spawn_local(async move { talk.ask(&mut stream).await });
            }
            tasks.block_on(&runtime, async {
                // Dropping the sender stops the server too.
                let _ = stopped.await;
            });
        })?;
        Ok(Self { ports, works, stop: Some(stop), thread: Some(thread) })
    }

    /// Accepts from now on, those first who waited.
    pub fn work(&self) {
        self.works.send_replace(true);
    }

    /// Where it listens, in the order given.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.ports.iter().map(|(address, _)| *address).collect()
    }

    /// Connections accepted on one port, over all addresses.
    pub fn accepted(&self, port: u16) -> u64 {
        self.count(|address| address.port() == port)
    }

    /// Connections accepted in all.
    pub fn accepted_in_all(&self) -> u64 {
        self.count(|_| true)
    }

    fn count(&self, which: impl Fn(&SocketAddr) -> bool) -> u64 {
        let ports = self.ports.iter().filter(|(address, _)| which(address));
        ports.map(|(_, accepted)| accepted.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server was printed by its thread.
            let _ = thread.join();
        }
    }
}

fn listen(address: SocketAddr, begin: Begin) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server may start again while old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    // Linux lets one more wait than it is told.
    socket.listen(if begin == Begin::Deaf { 0 } else { BACKLOG.into() })
}

/// Takes the only place in a listener's queue.
async fn fill(listener: &TcpListener, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // The client knows of the connection a moment before the listener does.
    // The type has no part in this: any socket can be waited for, and only this one can be by name.
    let queue = net::TcpStream::from(listener.as_fd().try_clone_to_owned()?);
    TcpStream::from_std(queue)?.readable().await?;
    Ok(stream)
}

async fn accept(
    listener: TcpListener,
    accepted: Arc<AtomicU64>,
    talk: Talk,
    mut works: watch::Receiver<bool>,
) {
    if works.wait_for(|works| *works).await.is_err() {
        return;
    }
    // A queue that was kept short may be as long as others'; at worst it stays short.
    let _ = socket::listen(&listener, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN));
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                accepted.fetch_add(1, Ordering::Relaxed);
                tokio::task::spawn_local(async move {
                    // A client that goes away loses its answer; it has counted that itself.
                    let _ = talk.answer(&mut stream).await;
                });
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
