//! A server on many addresses at once that counts what it accepts.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket},
    runtime,
    sync::oneshot,
    task::LocalSet,
    time::sleep,
};

use super::{client::raise_file_limit, talk::Talk};

/// As many connections as may wait for `accept`; the kernel takes the lower of this and somaxconn.
const BACKLOG: u32 = 4096;
/// After a failed accept (no file descriptor left) others get time to close theirs.
const PAUSE: Duration = Duration::from_millis(10);

/// A running server; it stops on drop, at once.
#[derive(Debug)]
pub struct Server {
    ports: Vec<(SocketAddr, Arc<AtomicU64>)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on every address before it returns; port 0 takes a free one.
    pub fn start(addresses: &[SocketAddr], talk: Talk) -> io::Result<Self> {
        raise_file_limit();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let mut ports = Vec::with_capacity(addresses.len());
        let mut listeners = Vec::with_capacity(addresses.len());
        {
            let _inside = runtime.enter();
            for address in addresses {
                let listener = listen(*address).map_err(|error| {
                    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
                })?;
                let accepted = Arc::new(AtomicU64::new(0));
                ports.push((listener.local_addr()?, Arc::clone(&accepted)));
                listeners.push((listener, accepted));
            }
        }
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("load-server".to_owned()).spawn(move || {
            let tasks = LocalSet::new();
            for (listener, accepted) in listeners {
                tasks.spawn_local(accept(listener, accepted, talk));
            }
            tasks.block_on(&runtime, async {
                // Dropping the sender stops the server too.
                let _ = stopped.await;
            });
        })?;
        Ok(Self { ports, stop: Some(stop), thread: Some(thread) })
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

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server may start again while old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, accepted: Arc<AtomicU64>, talk: Talk) {
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
