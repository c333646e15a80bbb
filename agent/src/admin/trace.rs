//! `GET /trace`: refusals as they happen, one JSON object a line.
//!
//! A reader who is too slow is told how many refusals it missed, and costs nobody else anything.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State as Given, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{
    OwnedSemaphorePermit,
    broadcast::{self, error::RecvError},
};

use super::{
    Inspect, drained,
    routes::{Refused, State},
};
use crate::app::view::{Refusal, Traced};

/// Lines of JSON.
const CONTENT_TYPE: &str = "application/x-ndjson";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    workload: Option<String>,
}

/// The stream; it ends with the agent, or when the client goes.
pub(super) async fn stream(
    Given(state): Given<State>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(Wanted { workload }) = wanted?;
    if let Some(name) = &workload {
        let status = state.ask(Inspect::status).await?;
        if !status.workloads.iter().any(|known| known.name == *name) {
            return Err(state.unknown_workload(name).await);
        }
    }
    let permit = Arc::clone(&state.traces).try_acquire_owned().map_err(|_| {
        let error = format!("{} traces run already; end one of them first", state.bounds.traces);
        Refused::new(StatusCode::TOO_MANY_REQUESTS, error)
    })?;
    // Before the answer's head is sent: who has seen it misses nothing from then on.
    let refusals = state.ask(Inspect::subscribe).await?;
    let reader = Reader { refusals, workload, state, _permit: permit };
    let lines = stream::unfold(reader, |mut reader| async {
        let line = reader.next().await?;
        Some((Ok::<_, Infallible>(line), reader))
    });
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::from_stream(lines)).into_response())
}

struct Reader {
    refusals: broadcast::Receiver<Refusal>,
    workload: Option<String>,
    state: State,
    /// Free for the next one when the stream is dropped.
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// The next line; none when the agent stops.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let received = tokio::select! {
                received = self.refusals.recv() => received,
                () = drained(&mut self.state.drain) => return None,
            };
            match received {
                Ok(refusal) if self.concerns(&refusal) => {
                    return line(&Traced::Refusal(Box::new(refusal)));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => {
                    self.state.skipped.fetch_add(lost, Ordering::Relaxed);
                    return line(&Traced::Lost { lost });
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn concerns(&self, refusal: &Refusal) -> bool {
        self.workload.as_ref().is_none_or(|workload| *workload == refusal.workload)
    }
}

fn line(traced: &impl Serialize) -> Option<Bytes> {
    // These types always become JSON.
    let mut line = serde_json::to_vec(traced).ok()?;
    line.push(b'\n');
    Some(line.into())
}
