//! A successor beside the agent that it is to replace.
//!
//! A rolling update that never leaves a node without an agent starts the new one first. It proves
//! that the kernel takes its programs, says that it is ready, and waits: the lock on the pins passes
//! to it when its predecessor ends, however that ends. Nothing is exchanged between the two but the
//! pins, so a predecessor of any version can be replaced.

use std::{io, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::info;

use super::Options;
use crate::{
    admin::{self, SocketError, Stage},
    clock::Clock,
    datapath::{Datapath, DatapathError},
};

/// How often the lock is tried. Limits hold meanwhile; what waits is a change of policy.
const TRY: Duration = Duration::from_millis(20);
/// How long a predecessor's sockets may outlive its lock: the kernel closes what a process had open
/// one after the other.
const CLOSING: Duration = Duration::from_secs(5);

/// Opens the data plane if no other agent owns it. Where one does, it is certain from here on that
/// this one can take over.
pub(super) fn open(options: &Options, clock: Clock) -> Result<Option<Datapath>> {
    match Datapath::open(&options.pin_dir, clock, options.bpf_log) {
        Err(DatapathError::Owned { .. }) => {
            Datapath::rehearse(&options.pin_dir, options.bpf_log)
                .context("this version cannot take over from the agent that runs")?;
            Ok(None)
        }
        opened => Ok(Some(opened?)),
    }
}

/// Says that this one may take over, and opens the data plane when the agent that owns it has ended.
pub(super) async fn take_over(
    options: &Options,
    clock: Clock,
    stage: &watch::Sender<Stage>,
) -> Result<Datapath> {
    info!("another agent runs; this one takes over when it ends");
    stage.send_replace(Stage::Waiting);
    loop {
        match Datapath::open(&options.pin_dir, clock, options.bpf_log) {
            Err(DatapathError::Owned { .. }) => sleep(TRY).await,
            opened => return Ok(opened?),
        }
    }
}

/// Binds the admin socket, which a predecessor may be about to close.
pub(super) async fn bind(path: &Path) -> Result<admin::Socket, SocketError> {
    patiently(|| admin::bind(path), |error| matches!(error, SocketError::Answered { .. })).await
}

/// Listens on an address that a predecessor may be about to close.
pub(super) async fn listen(address: std::net::SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    };
    patiently(bind, |error| error.kind() == io::ErrorKind::AddrInUse).await
}

async fn patiently<T, E>(
    act: impl Fn() -> Result<T, E>,
    may_pass: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let patience = Instant::now() + CLOSING;
    loop {
        match act() {
            Err(error) if may_pass(&error) && Instant::now() < patience => sleep(TRY).await,
            result => return result,
        }
    }
}
