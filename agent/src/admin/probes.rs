//! Health of one process on a socket of its own, from its first moment on.
//!
//! The admin socket belongs to the agent of the node, and so does its TCP port: while one agent
//! waits for another to end, both are the other's. Who wants to know how this one is asks here.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State as Given,
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::UnixStream, sync::watch};

use super::{
    Bounds, Inspect, Peer, Socket,
    connections::converse_with,
    routes::{readiness, signed},
};
use crate::app::view::Readiness;

/// How far an agent has come.
#[derive(Clone)]
pub enum Stage {
    /// It does not know yet whether it can run.
    Starting,
    /// It could run, and waits for another agent to end.
    Waiting,
    /// It is the agent of this node.
    Running(Arc<dyn Inspect>),
}

/// Answers `/healthz` and `/readyz` until `drain` becomes true.
pub async fn serve_probes(
    socket: Socket,
    stage: watch::Receiver<Stage>,
    drain: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .layer(middleware::map_response(signed))
        .with_state(stage);
    let (listener, _file) = socket.into_parts();
    let owner = |stream: &UnixStream| Peer::of(stream);
    converse_with(listener, router, Bounds::DEFAULT, None, owner, drain).await;
}

type Staged = Given<watch::Receiver<Stage>>;

/// Asks an agent that runs, as the admin socket does: no answer means that a step is stuck.
async fn healthz(Given(stage): Staged) -> Response {
    let stage = stage.borrow().clone();
    match stage {
        Stage::Starting | Stage::Waiting => "ok\n".into_response(),
        Stage::Running(inspect) => match tokio::task::spawn_blocking(move || inspect.ready()).await
        {
            Ok(_) => "ok\n".into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
    }
}

async fn readyz(Given(stage): Staged) -> Response {
    let stage = stage.borrow().clone();
    match stage {
        Stage::Starting => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(Readiness::default())).into_response()
        }
        Stage::Waiting => {
            Json(Readiness { ready: true, standby: true, ..Readiness::default() }).into_response()
        }
        Stage::Running(inspect) => {
            match tokio::task::spawn_blocking(move || readiness(&*inspect)).await {
                Ok(answer) => answer.into_response(),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }
    }
}
