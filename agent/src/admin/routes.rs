//! What can be asked, and in which words it is answered.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, Extension, Path, Query, Request, State as Given,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};
use tracing::{error, info};

use super::{Bounds, Inspect, Peer, trace};
use crate::{
    app::view::{
        Explanation, Failure, History, KubernetesStatus, LogLevel, Pause, Paused, Readiness,
        Recent, Status, Suggestion, Undecided,
    },
    fleet::Survey,
    metrics,
    rls::view::{Domain, Offender, Rls},
    telemetry::{LevelHandle, Levels},
};

/// Who answers; the first word of it is how clients know whom they talk to.
const SERVER: &str = concat!("weir/", env!("CARGO_PKG_VERSION"));

/// What the unix socket answers.
const ALL: &[&str] = &[
    "GET /status",
    "GET /explain/WORKLOAD",
    "GET /history/WORKLOAD",
    "GET /suggest/WORKLOAD",
    "GET /recent",
    "GET /rls",
    "GET /rls/fleet",
    "GET /rls/refused",
    "GET /rls/domains/DOMAIN",
    "GET /trace[?workload=WORKLOAD]",
    "GET /tables",
    "GET /metrics",
    "GET /healthz",
    "GET /readyz",
    "GET /log",
    "PUT /log?level=LEVEL",
    "POST /pause",
];
/// What the TCP port answers.
const HEALTH: &[&str] = &["GET /metrics", "GET /healthz", "GET /readyz"];
/// What it answers when it is told to explain.
const EXPLAINING: &[&str] =
    &["GET /metrics", "GET /healthz", "GET /readyz", "GET /explain/NAMESPACE/POD"];
/// Workloads that are named to somebody who asked for another one.
const NAMED: usize = 20;

/// What every request may need.
#[derive(Clone)]
pub(super) struct State {
    inspect: Arc<dyn Inspect>,
    level: LevelHandle,
    pub(super) bounds: Bounds,
    pub(super) drain: watch::Receiver<bool>,
    /// One permit for each stream that may be open.
    pub(super) traces: Arc<Semaphore>,
    /// Refusals that readers of the trace were too slow for.
    pub(super) skipped: Arc<AtomicU64>,
}

impl State {
    pub(super) fn new(
        inspect: Arc<dyn Inspect>,
        level: LevelHandle,
        bounds: Bounds,
        drain: watch::Receiver<bool>,
    ) -> Self {
        let traces = Arc::new(Semaphore::new(bounds.traces));
        Self { inspect, level, bounds, drain, traces, skipped: Arc::default() }
    }

    /// Asks where it may block.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Inspect) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let inspect = Arc::clone(&self.inspect);
        let answer = tokio::task::spawn_blocking(move || question(&*inspect)).await;
        answer.map_err(|problem| {
            let problem = &problem as &dyn std::error::Error;
            error!(error = problem, "a question to the agent broke: this is a bug");
            let why = "the agent failed to answer: this is a bug; its log says more";
            Refused::new(StatusCode::INTERNAL_SERVER_ERROR, why)
        })
    }

    /// An error that names the workloads there are.
    pub(super) async fn unknown_workload(&self, name: &str) -> Refused {
        let status = match self.ask(Inspect::status).await {
            Ok(status) => status,
            Err(refused) => return refused,
        };
        let names: Vec<_> =
            status.workloads.iter().map(|workload| workload.name.as_str()).collect();
        let known = match names.get(NAMED..) {
            _ if names.is_empty() => "there are none on this node".to_owned(),
            Some(more) if !more.is_empty() => {
                let named = names.get(..NAMED).unwrap_or_default().join(", ");
                format!("expected one of {named} and {} more", more.len())
            }
            _ => format!("expected one of {}", names.join(", ")),
        };
        Refused::new(StatusCode::NOT_FOUND, format!("there is no workload `{name}`; {known}"))
    }

    /// The streams that are open.
    fn open_traces(&self) -> usize {
        self.bounds.traces.saturating_sub(self.traces.available_permits())
    }
}

/// An answer that is not what was asked for.
pub(super) struct Refused {
    code: StatusCode,
    failure: Failure,
}

impl Refused {
    pub(super) fn new(code: StatusCode, error: impl Into<String>) -> Self {
        Self { code, failure: Failure { error: error.into(), routes: Vec::new() } }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.code, Json(self.failure)).into_response()
    }
}

macro_rules! refused_from {
    ($($rejection:ty),*) => {$(
        impl From<$rejection> for Refused {
            fn from(rejection: $rejection) -> Self {
                Self::new(rejection.status(), rejection.body_text())
            }
        }
    )*};
}
refused_from!(JsonRejection, PathRejection, QueryRejection);

/// Everything, for the unix socket.
pub(super) fn all(state: &State) -> Router {
    let routes = answers()
        .route("/status", get(status))
        .route("/explain/{workload}", get(explain))
        .route("/history/{workload}", get(history))
        .route("/suggest/{workload}", get(suggest))
        .route("/recent", get(recent))
        .route("/rls", get(rls))
        .route("/rls/fleet", get(fleet))
        .route("/rls/refused", get(refused_most))
        .route("/rls/domains/{domain}", get(domain))
        .route("/tables", get(tables))
        .route("/log", get(log).put(set_log))
        .route("/pause", post(pause));
    // A stream may last; nothing else may.
    let streams = Router::new().route("/trace", get(trace::stream));
    finish(routes, streams, state, ALL)
}

/// Health and metrics, for the TCP port, and what holds for pods where that is wanted.
pub(super) fn health(state: &State) -> Router {
    if !state.bounds.explain_over_tcp {
        return finish(answers(), Router::new(), state, HEALTH);
    }
    let answers = answers().route("/explain/{namespace}/{pod}", get(explain_pod));
    finish(answers, Router::new(), state, EXPLAINING)
}

fn answers() -> Router<State> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
}

fn finish(
    routes: Router<State>,
    streams: Router<State>,
    state: &State,
    known: &'static [&'static str],
) -> Router {
    let nowhere = move |request: Request| async move { unknown_route(&request, known) };
    routes
        .layer(middleware::from_fn_with_state(state.clone(), in_time))
        .merge(streams)
        .fallback(nowhere)
        .method_not_allowed_fallback(nowhere)
        .layer(DefaultBodyLimit::max(state.bounds.body))
        .layer(middleware::map_response(signed))
        .with_state(state.clone())
}

fn unknown_route(request: &Request, known: &'static [&'static str]) -> Refused {
    let (method, path) = (request.method(), request.uri().path());
    let is_path = |route: &&&str| {
        let route = route.split_once(' ').map_or("", |(_, route)| route);
        let end = route.find(['?', '[']).unwrap_or(route.len());
        route.get(..end) == Some(path)
    };
    // A route with another method is told by its code as well.
    let code = match known.iter().find(is_path) {
        Some(_) => StatusCode::METHOD_NOT_ALLOWED,
        None => StatusCode::NOT_FOUND,
    };
    let error =
        format!("`{method} {path}` is not known here; expected one of {}", known.join(", "));
    let mut refused = Refused::new(code, error);
    refused.failure.routes = known.iter().map(|&route| route.to_owned()).collect();
    refused
}

pub(super) async fn signed(mut response: Response) -> Response {
    response.headers_mut().insert(header::SERVER, HeaderValue::from_static(SERVER));
    response
}

async fn in_time(Given(state): Given<State>, request: Request, next: Next) -> Response {
    let bound = state.bounds.request;
    tokio::time::timeout(bound, next.run(request)).await.unwrap_or_else(|_| {
        let error =
            format!("no answer within {} s: the agent is busy or stuck", bound.as_secs_f64());
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error).into_response()
    })
}

async fn status(Given(state): Given<State>) -> Result<Json<Status>, Refused> {
    Ok(Json(state.ask(Inspect::status).await?))
}

async fn recent(Given(state): Given<State>) -> Result<Json<Recent>, Refused> {
    Ok(Json(state.ask(Inspect::recent).await?))
}

async fn rls(Given(state): Given<State>) -> Result<Json<Rls>, Refused> {
    let view = |inspect: &dyn Inspect| inspect.rls().map(|rls| rls.view());
    state.ask(view).await?.map(Json).ok_or_else(no_rls)
}

async fn fleet(Given(state): Given<State>) -> Result<Json<Survey>, Refused> {
    let rls = state.ask(|inspect: &dyn Inspect| inspect.rls()).await?.ok_or_else(no_rls)?;
    let Some(fleet) = rls.fleet() else {
        let why = "this node counts for itself: the node file has no `store` within `rls`";
        return Err(Refused::new(StatusCode::NOT_FOUND, why));
    };
    Ok(Json(fleet.survey().await))
}

async fn refused_most(Given(state): Given<State>) -> Result<Json<Vec<Offender>>, Refused> {
    let offenders = |inspect: &dyn Inspect| inspect.rls().map(|rls| rls.offenders());
    state.ask(offenders).await?.map(Json).ok_or_else(no_rls)
}

async fn domain(Given(state): Given<State>, name: Named) -> Result<Json<Domain>, Refused> {
    let Path(name) = name?;
    let asked = name.clone();
    let look = move |inspect: &dyn Inspect| {
        inspect.rls().map(|rls| rls.domain(&asked).ok_or_else(|| rls.domains()))
    };
    let found = state.ask(look).await?.ok_or_else(no_rls)?;
    found.map(Json).map_err(|mut known| {
        known.truncate(NAMED);
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let why = format!("no quotas are known for the domain `{name}`; known are: {known}");
        Refused::new(StatusCode::NOT_FOUND, why)
    })
}

fn no_rls() -> Refused {
    let why = "rate limit requests are not answered here: the node file has no `rls`";
    Refused::new(StatusCode::NOT_FOUND, why)
}

/// The path's last segment.
type Named = Result<Path<String>, PathRejection>;

async fn explain(given: Given<State>, name: Named) -> Result<Json<Explanation>, Refused> {
    about(given, name, |inspect, name| inspect.explain(name)).await
}

async fn explain_pod(
    given: Given<State>,
    names: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Explanation>, Refused> {
    let name = names.map(|Path((namespace, pod))| Path(format!("{namespace}/{pod}")));
    about(given, name, |inspect, name| inspect.explain(name)).await
}

async fn history(given: Given<State>, name: Named) -> Result<Json<History>, Refused> {
    about(given, name, |inspect, name| inspect.history(name)).await
}

async fn suggest(given: Given<State>, name: Named) -> Result<Json<Suggestion>, Refused> {
    about(given, name, |inspect, name| inspect.suggest(name)).await
}

/// What is known of one workload.
async fn about<T: Send + 'static>(
    Given(state): Given<State>,
    name: Named,
    ask: impl FnOnce(&dyn Inspect, &str) -> Option<T> + Send + 'static,
) -> Result<Json<T>, Refused> {
    let Path(name) = name?;
    let asked = name.clone();
    match state.ask(move |inspect: &dyn Inspect| ask(inspect, &asked)).await? {
        Some(answer) => Ok(Json(answer)),
        None => Err(state.unknown_workload(&name).await),
    }
}

async fn tables(Given(state): Given<State>) -> Result<Json<serde_json::Value>, Refused> {
    Ok(Json(state.ask(Inspect::tables_json).await?))
}

async fn pause(
    Given(state): Given<State>,
    Extension(peer): Extension<Peer>,
    pause: Result<Json<Pause>, JsonRejection>,
) -> Result<Json<Paused>, Refused> {
    let Json(pause) = pause?;
    let asked = pause.clone();
    let question = move |inspect: &dyn Inspect| inspect.pause(&asked, peer);
    let workloads = match state.ask(question).await? {
        Ok(workloads) => workloads,
        Err(why) => {
            let status = state.ask(Inspect::status).await?;
            return Err(match &pause.workload {
                Some(name) if !status.workloads.iter().any(|known| known.name == *name) => {
                    state.unknown_workload(name).await
                }
                _ => Refused::new(StatusCode::CONFLICT, why),
            });
        }
    };
    let (seconds, uid, pid) = (pause.seconds, peer.uid, peer.pid);
    info!(?workloads, seconds, uid, pid, "audit: a pause was asked for");
    Ok(Json(Paused { workloads }))
}

async fn log(Given(state): Given<State>) -> Result<Json<LogLevel>, Refused> {
    match state.level.get() {
        Ok(level) => Ok(Json(LogLevel { level })),
        Err(error) => Err(Refused::new(StatusCode::CONFLICT, error.to_string())),
    }
}

/// `PUT /log?level=...`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    level: String,
}

async fn set_log(
    Given(state): Given<State>,
    Extension(peer): Extension<Peer>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<LogLevel>, Refused> {
    let Query(Wanted { level }) = wanted?;
    let levels: Levels =
        level.parse().map_err(|error| Refused::new(StatusCode::BAD_REQUEST, format!("{error}")))?;
    state
        .level
        .set(&levels)
        .map_err(|error| Refused::new(StatusCode::CONFLICT, error.to_string()))?;
    info!(level = %levels, uid = peer.uid, pid = peer.pid, "audit: the level of the log was changed");
    log(Given(state)).await
}

async fn metrics(Given(state): Given<State>) -> Result<Response, Refused> {
    let (status, rls) = state
        .ask(|inspect: &dyn Inspect| (inspect.status(), inspect.rls().map(|rls| rls.view())))
        .await?;
    let traces = metrics::Traces {
        open: state.open_traces() as u64,
        skipped: state.skipped.load(Ordering::Relaxed),
    };
    let text = metrics::render(status, traces, rls).map_err(|problem| {
        error!(error = %problem, "metrics could not be written: this is a bug");
        let why = "the agent failed to write its metrics: this is a bug";
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, why)
    })?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// That anybody answers says that the process lives; that it knows something, that no step of it
/// is stuck.
async fn healthz(Given(state): Given<State>) -> Result<&'static str, Refused> {
    state.ask(Inspect::ready).await.map(|_| "ok\n")
}

async fn readyz(Given(state): Given<State>) -> Result<(StatusCode, Json<Readiness>), Refused> {
    state.ask(readiness).await
}

/// Whether every workload is decided, and those that are not or are not enforced.
pub(super) fn readiness(inspect: &dyn Inspect) -> (StatusCode, Json<Readiness>) {
    let (ready, status) = (inspect.ready(), inspect.status());
    let with = |condition: &str| -> Vec<Undecided> {
        let found = status.workloads.iter().filter(|workload| workload.condition == condition);
        let undecided = found.map(|workload| Undecided {
            workload: workload.name.clone(),
            reason: workload.detail.clone().unwrap_or_default(),
        });
        undecided.collect()
    };
    let readiness = Readiness {
        ready,
        standby: false,
        undecided: with("undecided"),
        not_enforced: with("not-enforced"),
        kubernetes: status.kubernetes.as_ref().and_then(KubernetesStatus::doubt),
    };
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(readiness))
}
