//! Rate limit requests beside the engine, or alone.

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use tracing::warn;

use crate::{
    config::{self, NodeFile},
    quota::{self, Quotas},
    rls::{self, Running},
};

use super::memory::{self, Memory};

/// The service's settings are those of its start.
const STALE: &str = "`rls` in the node file has changed: it holds when the agent is started again";

/// Who answers rate limit requests, if anybody does, for whoever asks about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<Answering>);

#[derive(Debug, Default)]
struct Answering {
    state: OnceLock<Arc<rls::State>>,
    /// Whether the node file says something else by now.
    is_stale: AtomicBool,
}

impl Told {
    pub(super) fn state(&self) -> Option<Arc<rls::State>> {
        self.0.state.get().cloned()
    }

    /// What of the node file does not hold, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        self.0.is_stale.load(Ordering::Relaxed).then(|| STALE.to_owned())
    }
}

/// The service while it runs.
#[derive(Debug, Default)]
pub(super) struct Requests {
    settings: Option<rls::Settings>,
    running: Option<Running>,
    workloads: Arc<rls::Workloads>,
    told: Told,
}

impl Requests {
    /// Starts what the settings say. `state` is the agent's folder.
    pub(super) async fn start(
        settings: Option<rls::Settings>,
        state: &Path,
        told: &Told,
    ) -> anyhow::Result<Self> {
        let workloads = Arc::new(rls::Workloads::default());
        let running = match settings.clone() {
            None => None,
            Some(settings) => {
                let memory = state.join("last-good-quotas.json");
                let running = Running::start(settings, Arc::clone(&workloads), memory).await;
                Some(running.context("rate limit requests cannot be answered")?)
            }
        };
        if let Some(running) = &running {
            // It is started once.
            let _ = told.0.state.set(running.state());
        }
        Ok(Self { settings, running, workloads, told: told.clone() })
    }

    /// What answers them, for whoever spends from the same quotas.
    pub(super) fn quotas(&self) -> Option<Arc<Quotas>> {
        self.running.as_ref().map(|running| Arc::clone(&running.state().quotas))
    }

    /// Tells who has which address.
    pub(super) fn know(&self, workloads: impl IntoIterator<Item = (IpAddr, quota::Workload)>) {
        self.workloads.replace(workloads);
    }

    /// Says that settings hold after the next start only, when they are others now.
    pub(super) fn compare(&self, now: Option<&rls::Settings>) {
        let is_stale = self.settings.as_ref() != now;
        if !self.told.0.is_stale.swap(is_stale, Ordering::Relaxed) && is_stale {
            warn!("{STALE}");
        }
    }

    /// Comes back when the service is gone that should run.
    pub(super) async fn broken(&mut self) -> anyhow::Error {
        match &mut self.running {
            None => std::future::pending().await,
            Some(running) => running.broken().await,
        }
        anyhow::anyhow!("the rate limit service ended")
    }

    /// Lets open requests end.
    pub(super) async fn stop(self) {
        if let Some(running) = self.running {
            running.stop().await;
        }
    }
}

/// What the node file says of rate limit requests. Whoever reads the rest of it tells its problems.
pub(super) fn settings(path: &Path, memory: &Path) -> Option<rls::Settings> {
    node_file(path, memory).ok()?.rls
}

/// Reads the node file where there is no engine to do it. A file that is broken now leaves what
/// was good before.
pub(super) fn node_file(path: &Path, memory: &Path) -> anyhow::Result<NodeFile> {
    let name = path.display().to_string();
    let text = config::load(path)?;
    let reading = config::read(&text, &name, None);
    let good = reading.as_ref().is_ok_and(|reading| reading.problems.is_empty());
    if !good && let Ok(Some(Memory { file, .. })) = memory::load::<Memory>(memory) {
        let before = config::read(&file, &name, None).ok().map(|reading| reading.file);
        if let Some(before) = before {
            let reading = config::read(&text, &name, Some(&before));
            return Ok(reading.map_or(before, |reading| reading.file));
        }
    }
    match reading {
        Ok(reading) => Ok(reading.file),
        Err(problem) => Err(anyhow::anyhow!("{problem}")),
    }
}
