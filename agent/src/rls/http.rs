//! The service over HTTP/1, for those who speak no gRPC, and what it shows to people on this machine.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Extension, State as Given},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};

use super::{
    answers::{Outcome, is_over},
    caller::OtherEnd,
    json,
    state::State,
};
use crate::{
    admin::Peer,
    quota::{Caller, Refused},
};

/// `/json` and `/healthcheck`.
pub(super) fn front(state: Arc<State>, message: usize) -> Router {
    Router::new()
        .route("/json", post(ask))
        .route("/healthcheck", get(health))
        .layer(DefaultBodyLimit::max(message))
        .with_state(state)
}

/// `/rlconfig` and `/stats`.
pub(super) fn debug(state: Arc<State>) -> Router {
    Router::new()
        .route("/rlconfig", get(rules))
        .route("/stats", get(stats))
        .route("/healthcheck", get(health))
        .with_state(state)
}

async fn health(Given(state): Given<Arc<State>>) -> (StatusCode, &'static str) {
    if state.is_healthy() {
        (StatusCode::OK, "OK")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "not healthy")
    }
}

async fn ask(
    Given(state): Given<Arc<State>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Response {
    let request = match json::read(&body) {
        Ok(request) => request,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let address = peer.address.map(super::caller::canonical);
    let caller = Caller { address, ..Caller::default() };
    let end = OtherEnd::new(Arc::clone(&state.workloads), caller);
    let asked = end.with(|caller| state.answers.ask(&request, caller));
    match state.answers.answer(asked, &request, &end).await {
        Ok(answer) => {
            let code =
                if is_over(&answer) { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::OK };
            let body = json::write(&answer).to_string();
            (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Err(refused) => (code(&refused), refused.to_string()).into_response(),
    }
}

/// The original says 400 to all of them; who retries has to tell them apart.
fn code(refused: &Refused) -> StatusCode {
    match Outcome::from(refused) {
        Outcome::Denied => StatusCode::FORBIDDEN,
        Outcome::Invalid => StatusCode::BAD_REQUEST,
        Outcome::Unavailable | Outcome::Ok | Outcome::OverLimit => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn rules(Given(state): Given<Arc<State>>) -> String {
    state.quotas.rules().map(|rules| rules.to_string()).unwrap_or_default()
}

/// Counters under the original's names, as its statistics write them: `name: number`.
async fn stats(Given(state): Given<Arc<State>>) -> String {
    let mut counts = state.counts();
    counts.sort();
    counts.into_iter().map(|(name, count)| format!("{name}: {count}\n")).collect()
}
