//! What all ways in share: quotas, their configuration, and whether we are healthy.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use envoy_types::pb::google::protobuf::Any;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::{
    answers::Answers,
    caller::Workloads,
    files::{Files, Texts},
    memory,
    sent::Sent,
    settings::{Modes, Settings},
    view,
};
use crate::{
    causes::with_causes,
    clock::Clock,
    fleet::{Fleet, FleetSettings},
    policy::Problem,
    quota::{
        self, Configuration, HeaderNames, Now, Quotas, Series,
        config::{self, Overlays},
        series::Counter,
        xds,
    },
};

/// Everything but sockets.
#[derive(Debug)]
pub struct State {
    /// Rules and counts.
    pub quotas: Arc<Quotas>,
    /// Who answers by them.
    pub answers: Answers,
    /// Who has which address.
    pub workloads: Arc<Workloads>,
    fleet: Option<Arc<Fleet>>,
    settings: Settings,
    clock: Clock,
    /// Where the last good configuration is kept for the next start.
    memory: PathBuf,
    loaded: Mutex<Loaded>,
    /// With a management server: what it sends, and overlays beside it.
    sent: Mutex<Sent<Vec<Resource>, Texts>>,
    server: Mutex<Option<view::Xds>>,
    certificates: Mutex<Option<String>>,
    draining: AtomicBool,
}

/// A configuration as it came.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Given {
    Sent { resources: Vec<Resource>, overlays: Texts },
    Files(Texts),
    Resources(Vec<Resource>),
}

/// An xDS resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Resource {
    type_url: String,
    value: Vec<u8>,
}

impl From<&Any> for Resource {
    fn from(any: &Any) -> Self {
        Self { type_url: any.type_url.clone(), value: any.value.clone() }
    }
}

impl From<&Resource> for Any {
    fn from(resource: &Resource) -> Self {
        Self { type_url: resource.type_url.clone(), value: resource.value.clone() }
    }
}

/// The configuration that holds.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// When it was read, seconds since 1970; 0 before the first.
    pub at: f64,
    /// What is wrong with what was read last, if anything is; then what was read before holds. And parts
    /// of overlays that do nothing in what holds.
    pub problems: Vec<String>,
}

impl State {
    /// Nothing is loaded yet. `memory` is a file of this service alone.
    pub fn new(settings: Settings, workloads: Arc<Workloads>, memory: PathBuf) -> Self {
        let clock = Clock;
        let quotas = Arc::new(Quotas::default());
        let fleet = settings.store.clone().and_then(start_fleet);
        if let Some(fleet) = &fleet {
            quotas.set_store(Arc::clone(fleet) as Arc<dyn quota::store::Store>);
        }
        let server = settings
            .xds
            .as_ref()
            .map(|xds| view::Xds { server: xds.server.clone(), ..view::Xds::default() });
        Self {
            answers: Answers::new(Arc::clone(&quotas), clock),
            quotas,
            workloads,
            fleet,
            settings,
            clock,
            memory,
            loaded: Mutex::default(),
            sent: Mutex::default(),
            server: Mutex::new(server),
            certificates: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// The store of the fleet's quotas, if there is one.
    pub fn fleet(&self) -> Option<&Arc<Fleet>> {
        self.fleet.as_ref()
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether health checks are to pass.
    pub fn is_healthy(&self) -> bool {
        // The original does not even listen before its first configuration.
        if self.settings.xds.is_some() && !self.quotas.is_loaded() {
            return false;
        }
        let known = !self.settings.healthy_with_quotas
            || self.quotas.rules().is_some_and(|rules| rules.domain_names().next().is_some());
        known && !self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// What holds, and what is wrong with what does not.
    pub fn loaded(&self) -> Loaded {
        self.lock().clone()
    }

    /// Notes what is known of the management server.
    pub(super) fn note_server(&self, note: impl FnOnce(&mut view::Xds)) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.as_mut().map(note);
    }

    /// Notes what is wrong with the certificates as they are written now.
    pub(super) fn note_certificates(&self, problem: Option<String>) {
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        // It is replaced whole.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted, under the original's names.
    pub(super) fn counts(&self) -> Vec<(String, u64)> {
        let service = self.service_counts();
        let service = service.map(|(name, count)| (format!("ratelimit.service.{name}"), count));
        let asked = self.answers.outcomes().map(|(_, count)| count).sum();
        let asked = ("ratelimit_server.ShouldRateLimit.total_requests".to_owned(), asked);
        let series = self.quotas.series();
        let of = |series: &Arc<Series>| {
            let key = series.key();
            let named = move |(name, counter): (&str, &Counter)| {
                (format!("ratelimit.service.rate_limit.{key}.{name}"), counter.get())
            };
            series.counts.all().map(named)
        };
        service.into_iter().chain([asked]).chain(series.iter().flat_map(of)).collect()
    }

    fn service_counts(&self) -> [(&'static str, u64); 7] {
        let service = self.quotas.service();
        [
            ("config_load_success", &service.config_load_success),
            ("config_load_error", &service.config_load_error),
            ("global_shadow_mode", &service.global_shadow_mode),
            ("rate_limit.domain_not_found", &service.domain_not_found),
            ("call.should_rate_limit.service_error", &service.service_error),
            ("call.should_rate_limit.redis_error", &service.redis_error),
            ("call.should_rate_limit.permission_denied", &service.permission_denied),
        ]
        .map(|(name, counter)| (name, counter.get()))
    }

    /// Everything that can be told. It reads the whole table of counts: not for a decision.
    pub fn view(&self) -> view::Rls {
        let Loaded { at, problems } = self.loaded();
        let fill = self.quotas.fill(self.now());
        let series = |series: Arc<Series>| view::Series {
            domain: series.domain.to_string(),
            levels: series.levels.iter().map(ToString::to_string).collect(),
            counts: (series.counts.all().iter())
                .map(|(name, counter)| ((*name).to_owned(), counter.get()))
                .collect(),
        };
        view::Rls {
            listen: self.settings.places(),
            healthy: self.is_healthy(),
            loaded_at: at,
            problems,
            domains: self.domains(),
            outcomes: (self.answers.outcomes())
                .map(|(outcome, count)| (outcome.name().to_owned(), count))
                .collect(),
            took: self.answers.latency(),
            service: (self.service_counts().into_iter())
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
            denied: self.answers.denied(),
            series: self.quotas.series().into_iter().map(series).collect(),
            live_counts: fill.live as u64,
            live_counts_capacity: fill.ways as u64,
            certificates: self.certificates.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            xds: self.server.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            fleet: self.fleet.as_ref().map(|fleet| fleet.figures().into()),
        }
    }

    /// Which descriptors are refused most, the worst first.
    pub fn offenders(&self) -> Vec<view::Offender> {
        self.answers.offenders().all(self.clock.realtime_ns() as f64 / 1e9)
    }

    /// Takes in what was refused meanwhile.
    pub(super) fn collect(&self) {
        self.answers.offenders().collect(self.clock.realtime_ns() as f64 / 1e9);
    }

    /// What is known of a domain; `None` if no configuration knows it.
    pub fn domain(&self, name: &str) -> Option<view::Domain> {
        let rules = self.quotas.explain(name, self.now())?;
        let mut refused = self.offenders();
        refused.retain(|offender| offender.domain == name);
        let mut denied = self.answers.denied();
        denied.retain(|denied| denied.domain == name);
        Some(view::Domain { name: name.to_owned(), rules, refused, denied })
    }

    /// The names of the domains.
    pub fn domains(&self) -> Vec<String> {
        let rules = self.quotas.rules();
        let names = rules.map(|rules| rules.domain_names().map(str::to_owned).collect());
        names.unwrap_or_default()
    }

    fn now(&self) -> Now {
        Now { monotonic_ns: self.clock.monotonic_ns(), realtime_ns: self.clock.realtime_ns() }
    }

    pub(super) fn files(&self) -> Files {
        Files(self.settings.quotas.clone())
    }

    /// Makes resources hold that a management server sent; what is wrong with them, if they cannot.
    pub(super) fn take(&self, resources: &[Any]) -> Result<(), Vec<String>> {
        let mut sent = self.sent();
        sent.receive(resources.iter().map(Resource::from).collect(), &mut self.together());
        self.lock().problems = sent.problems();
        match sent.resources.is_held() {
            true => Ok(()),
            false => Err(sent.resources.problems().to_vec()),
        }
    }

    /// How often overlays have changed that stand beside what a management server sends.
    pub(super) fn overlay_changes(&self) -> u64 {
        self.sent().changes()
    }

    fn sent(&self) -> MutexGuard<'_, Sent<Vec<Resource>, Texts>> {
        // Each part is replaced whole.
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes resources and overlays hold together.
    fn together(&self) -> impl FnMut(&Vec<Resource>, &Texts) -> Result<Vec<String>, Vec<String>> {
        |resources, overlays| {
            let given = Given::sent(resources.clone(), overlays.clone());
            let idle = self.hold(&given)?;
            self.remember(&given);
            Ok(idle)
        }
    }

    /// Reads the files and makes them hold. What cannot be understood changes nothing; at the first
    /// start, what held before this process holds.
    pub(super) fn load(&self) {
        if self.settings.xds.is_some() {
            return self.load_overlays();
        }
        match self.files().read() {
            Ok(texts) => {
                let given = Given::Files(texts);
                if self.hold(&given).is_ok() {
                    self.remember(&given);
                }
            }
            Err(error) => {
                self.quotas.note_unreadable();
                self.refuse(vec![with_causes(&error)]);
            }
        }
        if !self.quotas.is_loaded() {
            self.recall();
        }
    }

    /// Reads overlays and makes them hold with what the management server sent last, or with what it
    /// will send.
    fn load_overlays(&self) {
        let read = self.files().read().map_err(|error| vec![with_causes(&error)]);
        let read = read.and_then(|texts| match Overlays::read(&texts.sources()) {
            Ok(_) => Ok(texts),
            Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
        });
        let mut sent = self.sent();
        match read {
            Ok(texts) => sent.overlay(texts, &mut self.together()),
            Err(problems) => {
                self.quotas.note_unreadable();
                self.refuse(problems.clone());
                sent.refuse_overlays(problems);
            }
        }
        self.lock().problems = sent.problems();
    }

    /// Makes a configuration hold, and says which parts of overlays do nothing; or says why not.
    fn hold(&self, given: &Given) -> Result<Vec<String>, Vec<String>> {
        let understood = self.understand(given).inspect_err(|_| self.quotas.note_unreadable());
        let applied = understood.and_then(|(configuration, idle)| {
            let settings =
                quota::Settings { store: self.fleet.is_some(), ..modes(&self.settings.modes) };
            self.quotas.exchange(&configuration, settings, self.now()).map(|()| idle)
        });
        match applied {
            Ok(idle) => {
                let at = self.clock.realtime_ns() as f64 / 1e9;
                let idle: Vec<_> = idle.iter().map(ToString::to_string).collect();
                for part in &idle {
                    warn!(part, "a part of an overlay does nothing");
                }
                *self.lock() = Loaded { at, problems: idle.clone() };
                given.say_that_it_holds();
                Ok(idle)
            }
            Err(problems) => {
                let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                self.refuse(problems.clone());
                Err(problems)
            }
        }
    }

    /// A configuration, and which parts of overlays do nothing in it.
    fn understand(&self, given: &Given) -> Result<(Configuration, Vec<Problem>), Vec<Problem>> {
        let (resources, overlays) = match given {
            Given::Files(texts) => {
                return config::read(&texts.sources()).map(|files| (files, Vec::new()));
            }
            Given::Resources(resources) => (resources, Overlays::default()),
            Given::Sent { resources, overlays } => {
                (resources, Overlays::read(&overlays.sources())?)
            }
        };
        let resources: Vec<_> = resources.iter().map(Any::from).collect();
        let scope = self.settings.xds.as_ref().map(|xds| xds.scope);
        let mut configuration = xds::read(&xds::decode(&resources)?, scope.unwrap_or_default())?;
        let idle = overlays.lay(&mut configuration);
        Ok((configuration, idle))
    }

    fn refuse(&self, problems: Vec<String>) {
        for problem in &problems {
            error!(problem, "quotas were not understood; what held before holds");
        }
        self.lock().problems = problems;
    }

    fn remember(&self, given: &Given) {
        if let Err(problem) = memory::store(&self.memory, given) {
            warn!(path = %self.memory.display(), error = %problem, "the last good quotas were not kept for the next start");
        }
    }

    /// Makes hold what held before this start.
    pub(super) fn recall(&self) {
        let problems = self.loaded().problems;
        let given = match memory::load::<Given>(&self.memory) {
            Ok(Some(given)) => given,
            Ok(None) => return,
            Err(problem) => {
                warn!(path = %self.memory.display(), error = %problem, "the last good quotas are not known");
                return;
            }
        };
        if self.hold(&given).is_ok() {
            warn!("the quotas of before this start hold");
            self.lock().problems = problems;
            if self.settings.xds.is_some()
                && let Some((resources, overlays)) = given.into_sent()
            {
                self.sent().recall(resources, overlays);
            }
        }
    }
}

impl Given {
    /// Agents before overlays beside a server know resources alone.
    fn sent(resources: Vec<Resource>, overlays: Texts) -> Self {
        match overlays.files.is_empty() {
            true => Self::Resources(resources),
            false => Self::Sent { resources, overlays },
        }
    }

    fn into_sent(self) -> Option<(Vec<Resource>, Texts)> {
        match self {
            Self::Files(_) => None,
            Self::Resources(resources) => Some((resources, Texts::default())),
            Self::Sent { resources, overlays } => Some((resources, overlays)),
        }
    }

    fn say_that_it_holds(&self) {
        let names = |texts: &Texts| texts.files.iter().map(|(name, _)| name.clone()).collect();
        match self {
            Self::Files(texts) => {
                let files: Vec<String> = names(texts);
                info!(?files, "quotas hold");
            }
            Self::Resources(resources) => {
                info!(resources = resources.len(), "quotas hold that were sent by xDS");
            }
            Self::Sent { resources, overlays } => {
                let overlays: Vec<String> = names(overlays);
                info!(
                    resources = resources.len(),
                    ?overlays,
                    "quotas hold that were sent by xDS, with overlays"
                );
            }
        }
    }
}

/// Without its thread there is no store: quotas that need one are problems then, and seen as such.
fn start_fleet(settings: FleetSettings) -> Option<Arc<Fleet>> {
    Fleet::start(settings)
        .inspect_err(|error| error!(%error, "cannot start what asks the fleet's store"))
        .ok()
        .map(Arc::new)
}

fn modes(modes: &Modes) -> quota::Settings {
    let Modes {
        merge_domains,
        shadow,
        quota,
        near_limit_percent,
        spare_others_when_over,
        headers,
        dynamic_metadata,
        nodes,
    } = modes;
    quota::Settings {
        merge_domains: *merge_domains,
        shadow_mode: *shadow,
        quota_mode: *quota,
        stop_when_over: *spare_others_when_over,
        headers: headers.as_ref().map(|headers| HeaderNames {
            limit: headers.limit.clone(),
            remaining: headers.remaining.clone(),
            reset: headers.reset.clone(),
        }),
        dynamic_metadata: *dynamic_metadata,
        near_limit_ratio: f32::from(*near_limit_percent) / 100.0,
        nodes: *nodes,
        ..quota::Settings::default()
    }
}
