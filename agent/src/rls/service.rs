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

use super::{
    answers::{Answers, Refused},
    caller::OtherEnd,
};

/// The name of the service, for health checks.
pub(super) const HEALTH_NAME: &str = "ratelimit";
const PREFIX: &str = "/envoy.service.ratelimit.v3.RateLimitService/";

/// Rate limit requests of one connection.
struct Asked {
    answers: Arc<Answers>,
    end: OtherEnd,
}

#[tonic::async_trait]
impl RateLimitService for Asked {
    async fn should_rate_limit(
        &self,
        request: tonic::Request<RateLimitRequest>,
    ) -> Result<tonic::Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        let answer = self.end.with(|caller| self.answers.answer(&request, caller));
        answer.map(tonic::Response::new).map_err(Status::from)
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid(why) => Self::invalid_argument(why),
            Refused::Denied(why) => Self::permission_denied(why),
            Refused::Unavailable(why) => Self::unavailable(why),
        }
    }
}

/// All services of one connection.
#[derive(Clone)]
pub(super) struct Services {
    asked: RateLimitServiceServer<Asked>,
    others: Routes,
}

impl Services {
    pub(super) fn new(
        answers: Arc<Answers>,
        end: OtherEnd,
        others: Routes,
        message: usize,
    ) -> Self {
        let asked = RateLimitServiceServer::new(Asked { answers, end });
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
