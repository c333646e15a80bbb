//! The service as a whole: what listens, what watches the files, and how all of it ends.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{error, info};

use super::{
    caller::Workloads,
    connection::drained,
    files::Stamp,
    http, listen,
    server::{Health, Server, StartError},
    settings::Settings,
    state::State,
    statsd,
    tls::Certificates,
    xds,
};
use crate::admin::{self, Peer, converse_with};

/// How often files are looked at. A look costs some system calls, and a file's time says enough.
const LOOK: Duration = Duration::from_millis(250);

/// The running service.
#[derive(Debug)]
pub struct Running {
    state: Arc<State>,
    server: Server,
    /// Where `/json` is answered.
    http: Option<SocketAddr>,
    /// Where `/rlconfig` is answered.
    debug: Option<SocketAddr>,
    tasks: JoinSet<()>,
    drain: watch::Sender<bool>,
}

impl Running {
    /// Reads the quotas, listens and answers. `memory` is where the last good quotas are kept.
    pub async fn start(
        settings: Settings,
        workloads: Arc<Workloads>,
        memory: PathBuf,
    ) -> Result<Self, StartError> {
        let http = settings.http.map(listen::tcp).transpose()?;
        let debug = settings.debug.map(listen::tcp).transpose()?;
        let message = settings.bounds.message;
        let state = Arc::new(State::new(settings, workloads, memory));
        let seen = state.files().stamp();
        let source = state.settings().xds.clone();
        if source.is_some() {
            load(&state, State::recall).await;
        }
        load(&state, State::load).await;
        let server = Server::start(Arc::clone(&state)).await?;
        let (drain, drained) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let place = |listener: &Option<TcpListener>| listener.as_ref()?.local_addr().ok();
        let (http_at, debug_at) = (place(&http), place(&debug));
        if let Some(listener) = http {
            info!(address = ?http_at, "rate limit requests are answered as JSON");
            tasks.spawn(serve(listener, http::front(Arc::clone(&state), message), drained.clone()));
        }
        if let Some(listener) = debug {
            tasks.spawn(serve(listener, http::debug(Arc::clone(&state)), drained.clone()));
        }
        if let Some(source) = source {
            tasks.spawn(xds::follow(Arc::clone(&state), source, server.health(), drained.clone()));
        }
        if let Some(statsd) = state.settings().statsd.clone() {
            tasks.spawn(statsd::report(Arc::clone(&state), statsd, drained.clone()));
        }
        let certificates = server.certificates();
        let watched = (server.health(), certificates);
        tasks.spawn(watch_files(Arc::clone(&state), seen, watched, drained));
        Ok(Self { state, server, http: http_at, debug: debug_at, tasks, drain })
    }

    /// Where gRPC is answered over TCP.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// Where `/json` is answered.
    pub const fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Where `/rlconfig` is answered.
    pub const fn debug(&self) -> Option<SocketAddr> {
        self.debug
    }

    /// What it answers by.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Comes back when a part of it is gone that should not be.
    pub async fn broken(&mut self) {
        tokio::select! {
            () = self.server.broken() => {}
            Some(_) = self.tasks.join_next() => {}
        }
        error!("a part of the rate limit service ended: this is a bug");
    }

    /// Tells clients to go elsewhere, lets what they asked be answered, and ends.
    pub async fn stop(mut self) {
        self.state.set_draining();
        self.server.health().set(false).await;
        sleep(self.state.settings().bounds.drain_delay).await;
        let _ = self.drain.send(true);
        self.server.stop().await;
        if let Some(fleet) = self.state.fleet() {
            fleet.stop().await;
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn load(state: &Arc<State>, load: fn(&State)) {
    let state = Arc::clone(state);
    if tokio::task::spawn_blocking(move || load(&state)).await.is_err() {
        error!("reading quotas broke: this is a bug; what held before holds");
    }
}

/// Loads whenever the files have changed, and takes in what was refused.
async fn watch_files(
    state: Arc<State>,
    mut seen: Stamp,
    (health, certificates): (Health, Option<Arc<Certificates>>),
    mut drain: watch::Receiver<bool>,
) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = drained(&mut drain) => return,
            _ = look.tick() => {}
        }
        state.collect();
        if let Some(certificates) = &certificates {
            certificates.refresh();
            state.note_certificates(certificates.problem());
        }
        let now = state.files().stamp();
        if now != seen {
            // What changes while it is read is read again.
            seen = now;
            load(&state, State::load).await;
            health.set(state.is_healthy()).await;
        }
    }
}

async fn serve(listener: TcpListener, router: axum::Router, drain: watch::Receiver<bool>) {
    let peer = |stream: &TcpStream| Peer {
        address: stream.peer_addr().ok().map(|peer| peer.ip()),
        ..Peer::default()
    };
    converse_with(listener, router, admin::Bounds::DEFAULT, None, peer, drain).await;
}
