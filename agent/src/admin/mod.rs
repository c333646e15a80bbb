//! HTTP for people and machines that look after the agent: what it does, why, and how to stop it.
//!
//! It owns a unix socket for root, which answers everything, and perhaps a TCP port, which answers
//! health and metrics alone, unless it is told to explain workloads, too. It decides nothing about limits: whoever can be asked is an
//! [`Inspect`].

mod connections;
mod probes;
mod routes;
mod socket;
mod trace;

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, UnixStream},
    sync::{broadcast, watch},
};

pub(crate) use self::connections::converse_with;
use self::routes::State;
pub use self::{
    connections::Peer,
    probes::{Stage, serve_probes},
    socket::{Socket, SocketError, bind},
};
use crate::{
    app::view::{Explanation, History, Pause, Recent, Refusal, Status, Suggestion},
    rls,
    telemetry::LevelHandle,
};

/// Whoever can be asked. The answers may block for as long as a lock is held; they are never
/// asked for on a thread that serves connections.
pub trait Inspect: Send + Sync + 'static {
    /// Everything at a glance.
    fn status(&self) -> Status;
    /// One workload: what holds, where it comes from, what was refused.
    fn explain(&self, workload: &str) -> Option<Explanation>;
    /// What changed for a workload.
    fn history(&self, workload: &str) -> Option<History>;
    /// The last minute.
    fn recent(&self) -> Recent;
    /// What was seen of a workload, as a policy.
    fn suggest(&self, workload: &str) -> Option<Suggestion>;
    /// Pauses enforcement, or ends a pause, at somebody's word; the names it concerned, or why not.
    fn pause(&self, pause: &Pause, by: Peer) -> Result<Vec<String>, String>;
    /// The rate limit service, if it runs.
    fn rls(&self) -> Option<Arc<rls::State>> {
        None
    }
    /// Whether every workload is decided.
    fn ready(&self) -> bool;
    /// The tables as the kernel has them.
    fn tables_json(&self) -> serde_json::Value;
    /// The refusals from now on.
    fn subscribe(&self) -> broadcast::Receiver<Refusal>;
}

/// What a client may take of the agent.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once, for each listener. More wait until one ends.
    pub connections: usize,
    /// Streams of `/trace` at once.
    pub traces: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// How long a client may take to send a request's head, and stay silent between requests.
    pub head: Duration,
    /// How long a request may take, streams excepted.
    pub request: Duration,
    /// How long a connection over TCP may live, however busy.
    pub tcp_connection: Duration,
    /// Whether workloads are explained over TCP, too.
    pub explain_over_tcp: bool,
    /// How long open connections may take to end once the agent stops.
    pub drain: Duration,
}

impl Bounds {
    /// What the agent grants.
    pub const DEFAULT: Self = Self {
        connections: 64,
        traces: 16,
        body: 4096,
        head: Duration::from_secs(10),
        request: Duration::from_secs(10),
        tcp_connection: Duration::from_secs(300),
        explain_over_tcp: false,
        drain: Duration::from_secs(3),
    };
}

impl Default for Bounds {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Serves until `drain` becomes true or its sender is gone, then lets open requests end. The
/// socket's file is removed.
pub async fn serve_within(
    bounds: Bounds,
    inspect: Arc<dyn Inspect>,
    level: LevelHandle,
    socket: Socket,
    tcp: Option<TcpListener>,
    drain: watch::Receiver<bool>,
) {
    let state = State::new(inspect, level, bounds, drain.clone());
    let (listener, _file) = socket.into_parts();
    let owner = |stream: &UnixStream| Peer::of(stream);
    let all = converse_with(listener, routes::all(&state), bounds, None, owner, drain.clone());
    let some = async {
        if let Some(tcp) = tcp {
            let lifetime = Some(bounds.tcp_connection);
            let nobody = |_: &_| Peer::default();
            converse_with(tcp, routes::health(&state), bounds, lifetime, nobody, drain).await;
        }
    };
    tokio::join!(all, some);
}

/// Comes back when the agent is to stop.
async fn drained(drain: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could say so.
    let _ = drain.wait_for(|stop| *stop).await;
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
