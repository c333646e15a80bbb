//! Threads that listen.
//!
//! Each has a runtime of its own and answers on the core where it was asked: a request that wakes
//! another core costs twice as much. Connections stay with the thread that accepted them.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    runtime,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::{JoinError, JoinSet},
    time::sleep,
};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{debug, error, info, warn};

use super::{
    caller::{OtherEnd, canonical},
    connection::{converse, drained},
    listen::{self, ListenError, UnixSocket},
    reflection,
    service::{HEALTH_NAME, Services},
    settings::Bounds,
    state::State,
    tls::{Certificates, TlsError},
};
use crate::quota::{Caller, Credentials};

/// Why the service does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody can come in.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// There is no thread to answer.
    #[error("cannot start a thread that answers rate limit requests")]
    Thread(#[source] io::Error),
    /// There is nothing to encrypt with.
    #[error("rate limit requests cannot be encrypted")]
    Tls(#[from] TlsError),
    /// What the program knows of its own services cannot be read.
    #[error("the descriptors of the services cannot be read: this is a bug")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A thread ended while it started.
    #[error("a thread that answers rate limit requests ended at once: this is a bug")]
    Ended,
}

/// The running service.
#[derive(Debug)]
pub struct Server {
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
    unix: Option<UnixSocket>,
    health: Health,
    certificates: Option<Arc<Certificates>>,
    drain: watch::Sender<bool>,
    /// Fails when a thread is gone.
    alive: Vec<oneshot::Receiver<()>>,
}

impl Server {
    /// Listens and answers.
    pub async fn start(state: Arc<State>) -> Result<Self, StartError> {
        let settings = state.settings().clone();
        let (health, checks) = tonic_health::server::health_reporter();
        let mut others = Routes::default().add_service(checks);
        if settings.reflection {
            others = reflection::offer(others)?;
        }
        let others = others.prepare();
        let (drain, drained) = watch::channel(false);
        let mut server = Self {
            threads: Vec::new(),
            addresses: settings.listen.clone(),
            unix: None,
            health: Health(health),
            certificates: settings.tls.map(Certificates::load).transpose()?.map(Arc::new),
            drain,
            alive: Vec::new(),
        };
        server.health.set(state.is_healthy()).await;
        if let Some(path) = &settings.socket {
            server.unix = Some(UnixSocket::bind(path, settings.socket_mode)?);
        }
        let floor = Floor {
            state,
            others,
            certificates: server.certificates.clone(),
            bounds: settings.bounds,
            places: Arc::new(Semaphore::new(settings.bounds.connections)),
            drain: drained,
        };
        for number in 0..settings.threads {
            let unix = server.unix.as_ref().map(UnixSocket::share).transpose()?;
            let (addresses, floor) = (server.addresses.clone(), floor.clone());
            let (ready, is_ready) = oneshot::channel();
            let (life, alive) = oneshot::channel();
            let thread = thread::Builder::new()
                .name(format!("rls-{number}"))
                .spawn(move || run(&addresses, unix, floor, ready, life))
                .map_err(StartError::Thread)?;
            server.threads.push(thread);
            server.alive.push(alive);
            // Where any port was asked for, the others listen on the one that the first got.
            server.addresses = is_ready.await.map_err(|_| StartError::Ended)??;
        }
        info!(tcp = ?server.addresses, unix = ?settings.socket, threads = settings.threads, "rate limit requests are answered");
        Ok(server)
    }

    /// Where it listens over TCP.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What connections are encrypted with, if they are.
    pub(super) fn certificates(&self) -> Option<Arc<Certificates>> {
        self.certificates.clone()
    }

    /// Who tells health checks.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Comes back when a thread is gone that should not be.
    pub async fn broken(&mut self) {
        let first = self.alive.iter_mut().map(|alive| Box::pin(async { _ = alive.await }));
        let first: Vec<_> = first.collect();
        if first.is_empty() {
            return std::future::pending().await;
        }
        futures_util::future::select_all(first).await;
    }

    /// Tells clients to go elsewhere, lets what they asked be answered, and ends.
    pub async fn stop(mut self) {
        if let Some(unix) = &mut self.unix {
            unix.hide();
        }
        let _ = self.drain.send(true);
        let threads = std::mem::take(&mut self.threads);
        let ended = tokio::task::spawn_blocking(move || {
            threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count()
        });
        match ended.await {
            Ok(0) => {}
            _ => error!("a thread that answers rate limit requests broke: this is a bug"),
        }
    }
}

/// Tells gRPC health checks.
#[derive(Clone, Debug)]
pub struct Health(HealthReporter);

impl Health {
    /// Sets what they are told.
    pub async fn set(&self, healthy: bool) {
        let status = if healthy { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in ["", HEALTH_NAME] {
            self.0.set_service_status(name, status).await;
        }
    }
}

/// What all threads share.
#[derive(Clone)]
struct Floor {
    state: Arc<State>,
    others: Routes,
    /// For connections over TCP.
    certificates: Option<Arc<Certificates>>,
    bounds: Bounds,
    /// One permit for each connection that may be open.
    places: Arc<Semaphore>,
    drain: watch::Receiver<bool>,
}

/// Where a thread listens, or why it does not.
type Ready = oneshot::Sender<Result<Vec<SocketAddr>, StartError>>;

fn tell(ready: Ready, what: Result<Vec<SocketAddr>, StartError>) {
    // Nobody waits any more: the agent ends.
    let _ = ready.send(what);
}

/// A thread's life. `life` ends with it.
fn run(
    addresses: &[SocketAddr],
    unix: Option<std::os::unix::net::UnixListener>,
    floor: Floor,
    ready: Ready,
    life: oneshot::Sender<()>,
) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(StartError::Thread(error)));
            return;
        }
    };
    runtime.block_on(async {
        let bound: Result<Vec<_>, _> = addresses.iter().copied().map(listen::tcp).collect();
        let unix = unix.map(UnixListener::from_std).transpose().map_err(StartError::Thread);
        let (tcp, unix) = match (bound, unix) {
            (Ok(tcp), Ok(unix)) => (tcp, unix),
            (Err(error), _) => return tell(ready, Err(error.into())),
            (_, Err(error)) => return tell(ready, Err(error)),
        };
        let bound = tcp.iter().zip(addresses);
        let bound = bound.map(|(tcp, asked)| tcp.local_addr().unwrap_or(*asked)).collect();
        tell(ready, Ok(bound));
        let mut doors = JoinSet::new();
        for listener in tcp {
            doors.spawn(open(listener, floor.clone()));
        }
        if let Some(listener) = unix {
            doors.spawn(open(listener, Floor { certificates: None, ..floor.clone() }));
        }
        while let Some(ended) = doors.join_next().await {
            if !*floor.drain.borrow() || ended.is_err() {
                error!("a listener of the rate limit service broke: this is a bug");
                return;
            }
        }
    });
    drop(life);
}

/// What connections come in by.
trait Door: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection and what is known of its other end.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Io, Caller)>> + Send;
}

impl Door for TcpListener {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Caller)> {
        let (stream, peer) = self.accept().await?;
        // Answers are small and waited for.
        stream.set_nodelay(true)?;
        let caller = Caller { address: Some(canonical(peer.ip())), ..Caller::default() };
        Ok((stream, caller))
    }
}

impl Door for UnixListener {
    type Io = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Caller)> {
        let (stream, _) = self.accept().await?;
        let credentials = stream.peer_cred()?;
        let credentials = Credentials {
            uid: credentials.uid(),
            gid: credentials.gid(),
            // Of another namespace's process nothing is known.
            pid: credentials.pid().unwrap_or_default(),
        };
        Ok((stream, Caller { credentials: Some(credentials), ..Caller::default() }))
    }
}

/// Accepts until the agent stops, then lets open connections end.
///
/// Clients are told to go only when nobody can come in here any more: who connects again at once
/// meets a successor, or nobody, but not a listener that is about to close with him in its queue.
async fn open<D: Door>(door: D, mut floor: Floor) {
    let mut drain = floor.drain.clone();
    let (tell, told) = watch::channel(false);
    floor.drain = told;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = drained(&mut drain) => break,
            Some(ended) = connections.join_next() => notice(ended),
            came = come(&door, &floor) => {
                if let Some((place, io, caller)) = came {
                    connections.spawn(serve(io, caller, floor.clone(), place));
                }
            }
        }
    }
    // Those who wait there have been let in by the kernel.
    while let Some(Some((place, io, caller))) = come(&door, &floor).now_or_never() {
        connections.spawn(serve(io, caller, floor.clone(), place));
    }
    drop(door);
    let _ = tell.send(true);
    while let Some(ended) = connections.join_next().await {
        notice(ended);
    }
}

fn notice(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(
            error = &error as &dyn std::error::Error,
            "a connection of the rate limit service broke: this is a bug"
        );
    }
}

/// A place and a connection for it.
async fn come<D: Door>(door: &D, floor: &Floor) -> Option<(OwnedSemaphorePermit, D::Io, Caller)> {
    /// What the system has run out of may come back.
    const PAUSE: Duration = Duration::from_millis(100);
    let place = Arc::clone(&floor.places).acquire_owned().await.ok()?;
    match door.accept().await {
        Ok((io, caller)) => Some((place, io, caller)),
        Err(error) => {
            warn!(error = %error, "a connection for rate limit requests was not accepted");
            sleep(PAUSE).await;
            None
        }
    }
}

async fn serve<I>(io: I, mut caller: Caller, floor: Floor, _place: OwnedSemaphorePermit)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(certificates) = &floor.certificates else {
        return converse_with(io, caller, floor).await;
    };
    match certificates.accept(io, floor.bounds.keep_alive_timeout).await {
        Ok((io, name)) => {
            caller.tls_name = name;
            converse_with(io, caller, floor).await;
        }
        Err(error) => debug!(%error, ?caller, "a client could not be agreed with on TLS"),
    }
}

async fn converse_with<I>(io: I, caller: Caller, floor: Floor)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    debug!(?caller, "a connection for rate limit requests");
    let Floor { state, others, bounds, drain, .. } = floor;
    let end = OtherEnd::new(Arc::clone(&state.workloads), caller);
    let services = Services::new(state, end, others, bounds.message);
    converse(io, services, bounds, drain).await;
}
