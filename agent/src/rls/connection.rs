//! One connection: how it begins, how long it may live, how it ends.

use std::{pin::pin, time::Duration};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use super::{service::Services, settings::Bounds};

/// Requests of one connection that are under way at once.
const STREAMS: u32 = 1024;

/// Serves until the client ends it, its time is over, or the agent stops.
///
/// Ending is polite: the client is told (GOAWAY) and opens another connection for what comes next,
/// while what it has asked is still answered, for as long as there is grace.
pub(super) async fn converse<I>(
    io: I,
    services: Services,
    bounds: Bounds,
    mut drain: watch::Receiver<bool>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(bounds.keep_alive)
        .keep_alive_timeout(bounds.keep_alive_timeout);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), services));
    let mut old = pin!(sleep(jittered(bounds.max_age, 0.1)));
    let (mut is_old, mut is_draining) = (false, false);
    let mut deadline: Option<Instant> = None;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    // The client's business: it went away, or spoke no HTTP/2.
                    debug!(error = &error as &dyn std::error::Error, "a connection ended early");
                }
                return;
            }
            () = &mut old, if !is_old => {
                is_old = true;
                connection.as_mut().graceful_shutdown();
                deadline = earlier(deadline, bounds.max_age_grace);
            }
            () = drained(&mut drain), if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
                deadline = earlier(deadline, bounds.drain);
            }
            () = until(deadline) => {
                debug!("a connection was cut off: its grace is over");
                return;
            }
        }
    }
}

fn earlier(deadline: Option<Instant>, grace: Duration) -> Option<Instant> {
    let end = Instant::now() + grace;
    Some(deadline.map_or(end, |deadline| deadline.min(end)))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Comes back when the agent is to stop.
pub(super) async fn drained(drain: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could say so.
    let _ = drain.wait_for(|stop| *stop).await;
}

/// Up to this share more or less, so that what began together does not end together.
pub(super) fn jittered(time: Duration, share: f64) -> Duration {
    let mut bytes = [0; 4];
    // Without randomness there is no jitter, and no harm.
    let random = match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    };
    time.mul_f64(1.0 - share + random * 2.0 * share)
}
