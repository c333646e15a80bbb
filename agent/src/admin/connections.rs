//! Connections: how many, for how long, and how they end.
//!
//! It has never heard of routes. A client that is slow, silent or greedy costs one of a bounded
//! number of connections for a bounded time.

use std::{fmt, net::IpAddr, pin::pin, time::Duration};

use axum::{Router, extract::Request, serve::Listener};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::UnixStream,
    sync::watch,
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tracing::{debug, error};

use super::{Bounds, drained};

/// Bytes of a request's head.
const HEAD: usize = 16 * 1024;

/// The process at the other end of a unix socket, or the address over TCP where that matters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    /// Its address.
    pub address: Option<IpAddr>,
    /// Its user.
    pub uid: Option<u32>,
    /// Its number.
    pub pid: Option<i32>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.uid, self.pid) {
            (Some(uid), Some(pid)) => write!(f, "uid {uid}, pid {pid}"),
            (Some(uid), None) => write!(f, "uid {uid}"),
            _ => f.write_str("somebody"),
        }
    }
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> Self {
        let Ok(credentials) = stream.peer_cred() else { return Self::default() };
        Self { address: None, uid: Some(credentials.uid()), pid: credentials.pid() }
    }
}

/// Accepts connections until the agent stops, then lets open ones end for as long as they may.
pub(crate) async fn converse_with<L: Listener>(
    mut listener: L,
    router: Router,
    bounds: Bounds,
    lifetime: Option<Duration>,
    peer: impl Fn(&L::Io) -> Peer + Send,
    mut drain: watch::Receiver<bool>,
) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            () = drained(&mut drain) => break,
            Some(ended) = open.join_next() => notice(ended),
            (io, _) = listener.accept(), if open.len() < bounds.connections => {
                let peer = peer(&io);
                open.spawn(converse(io, router.clone(), bounds, lifetime, peer, drain.clone()));
            }
        }
    }
    // New clients are refused from here on; what still runs after the wait is cut off.
    drop(listener);
    let ending = async {
        while let Some(ended) = open.join_next().await {
            notice(ended);
        }
    };
    let _ = timeout(bounds.drain, ending).await;
}

fn notice(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(
            error = &error as &dyn std::error::Error,
            "an admin connection broke: this is a bug"
        );
    }
}

async fn converse<I>(
    io: I,
    router: Router,
    bounds: Bounds,
    lifetime: Option<Duration>,
    peer: Peer,
    mut drain: watch::Receiver<bool>,
) where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = until_too_old(lifetime, &mut drain) => {
            connection.as_mut().graceful_shutdown();
            let Ok(ended) = timeout(bounds.drain, connection).await else { return };
            ended
        }
    };
    if let Err(error) = ended {
        // A client's business: it went away, spoke no HTTP, or took too long.
        debug!(error = &error as &dyn std::error::Error, ?peer, "an admin connection ended early");
    }
}

async fn until_too_old(lifetime: Option<Duration>, drain: &mut watch::Receiver<bool>) {
    match lifetime {
        None => drained(drain).await,
        Some(lifetime) => tokio::select! {
            () = drained(drain) => {}
            () = sleep(lifetime) => {}
        },
    }
}
