//! An agent without a data plane: it answers rate limit requests, and limits nothing in the kernel.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, watch},
};
use tracing::{info, warn};

use super::{
    Options,
    requests::{Requests, Told, node_file},
    view,
};
use crate::{
    admin::{self, Inspect, Peer},
    clock::Clock,
    rls,
};

/// Why nothing is limited in the kernel.
const WHY: &str = "there is no data plane (`--no-datapath`): nothing is limited in the kernel";

/// What such an agent can be asked.
struct Bare {
    node_file: String,
    started_ns: u64,
    told: Told,
    trace: broadcast::Sender<view::Refusal>,
}

impl Inspect for Bare {
    fn status(&self) -> view::Status {
        let since = Clock.monotonic_ns().saturating_sub(self.started_ns);
        view::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: since as f64 / 1e9,
            ready: true,
            node_file: self.node_file.clone(),
            problems: std::iter::once(WHY.to_owned()).chain(self.told.problem()).collect(),
            ..view::Status::default()
        }
    }

    fn explain(&self, _: &str) -> Option<view::Explanation> {
        None
    }

    fn history(&self, _: &str) -> Option<view::History> {
        None
    }

    fn recent(&self) -> view::Recent {
        view::Recent::default()
    }

    fn suggest(&self, _: &str) -> Option<view::Suggestion> {
        None
    }

    fn pause(&self, _: &view::Pause, _: Peer) -> Result<Vec<String>, String> {
        Err(WHY.to_owned())
    }

    fn rls(&self) -> Option<Arc<rls::State>> {
        self.told.state()
    }

    fn ready(&self) -> bool {
        true
    }

    fn tables_json(&self) -> serde_json::Value {
        serde_json::Value::Object(serde_json::Map::new())
    }

    fn subscribe(&self) -> broadcast::Receiver<view::Refusal> {
        self.trace.subscribe()
    }
}

/// Runs until it is told to stop.
pub(super) async fn agent(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let state = options.socket.parent().unwrap_or(Path::new("/"));
    let memory = state.join("last-good.json");
    let file = node_file(&options.node_file, &memory)?;
    let settings = file.rls.context(
        "with --no-datapath an agent only answers rate limit requests, and the node file has no \
         `rls`",
    )?;
    warn!("{WHY}");
    let socket = admin::bind(&options.socket)?;
    let told = Told::default();
    let mut requests = Requests::start(Some(settings), state, &told).await?;
    let tcp = match options.listen.or(file.listen) {
        Some(address) => Some(
            tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address} for metrics"))?,
        ),
        None => None,
    };
    let (stop, drain) = watch::channel(false);
    let inspect: Arc<dyn Inspect> = Arc::new(Bare {
        node_file: options.node_file.display().to_string(),
        started_ns: Clock.monotonic_ns(),
        told,
        trace: broadcast::channel(1).0,
    });
    let bounds = options.bounds();
    let level = options.level.clone();
    let admin = tokio::spawn(admin::serve_within(bounds, inspect, level, socket, tcp, drain));
    info!(node_file = %options.node_file.display(), socket = %options.socket.display(), "the agent runs");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // Quota files are read again by themselves, and the settings when it starts.
            _ = hangup.recv() => match node_file(&options.node_file, &memory) {
                Ok(file) => requests.compare(file.rls.as_ref()),
                Err(problem) => warn!(%problem, "the node file was not understood"),
            },
            failed = requests.broken() => return Err(failed),
        }
    }
    info!("the agent stops");
    requests.stop().await;
    let _ = stop.send(true);
    let _ = admin.await;
    Ok(())
}
