//! The gRPC services of one connection.
//!
//! Rate limit requests go straight to their service. Everything else (health, reflection) goes
//! through tonic's router, which is as slow as it likes to be.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc};

use axum::http::{Request, Response};
use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse,
    rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
};
use hyper::body::Incoming;
use tonic::codegen::Service as _;
use tonic::{Status, body::Body, service::Routes};

use super::{answers::Outcome, caller::OtherEnd, state::State};
use crate::quota::Refused;

/// The name of the service, for health checks.
pub(super) const HEALTH_NAME: &str = "ratelimit";
const PREFIX: &str = "/envoy.service.ratelimit.v3.RateLimitService/";

/// Rate limit requests of one connection.
struct Asked {
    state: Arc<State>,
    end: OtherEnd,
}

#[tonic::async_trait]
impl RateLimitService for Asked {
    async fn should_rate_limit(
        &self,
        request: tonic::Request<RateLimitRequest>,
    ) -> Result<tonic::Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        let answers = &self.state.answers;
        let asked = self.end.with(|caller| answers.ask(&request, caller));
        let answer = answers.answer(asked, &request, &self.end).await;
        answer.map(tonic::Response::new).map_err(|refused| status(&refused))
    }
}

fn status(refused: &Refused) -> Status {
    let why = refused.to_string();
    match Outcome::from(refused) {
        Outcome::Denied => Status::permission_denied(why),
        Outcome::Invalid => Status::invalid_argument(why),
        Outcome::Unavailable | Outcome::Ok | Outcome::OverLimit => Status::unavailable(why),
    }
}

/// All services of one connection.
#[derive(Clone)]
pub(super) struct Services {
    asked: RateLimitServiceServer<Asked>,
    others: Routes,
}

impl Services {
    pub(super) fn new(state: Arc<State>, end: OtherEnd, others: Routes, message: usize) -> Self {
        let asked = RateLimitServiceServer::new(Asked { state, end });
        Self { asked: asked.max_decoding_message_size(message), others }
    }
}

impl hyper::service::Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        // Both are always ready, and their clones share what they are made of.
        if request.uri().path().starts_with(PREFIX) {
            self.asked.clone().call(request)
        } else {
            Box::pin(self.others.clone().call(request.map(Body::new)))
        }
    }
}
