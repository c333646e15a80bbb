//! Questions and answers, whatever they came by: asked of whoever decides, counted and timed.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse, rate_limit_response::Code,
};

use super::{
    caller::Caller,
    histogram::{Histogram, Latency},
};

/// Whoever decides. It must answer at once: it is asked on a thread that serves connections.
pub trait Decide: Send + Sync + 'static {
    /// The answer to a question, or why there is none.
    fn decide(
        &self,
        request: &RateLimitRequest,
        caller: &Caller,
    ) -> Result<RateLimitResponse, Refused>;
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The question makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// This caller may not ask this.
    #[error("{0}")]
    Denied(String),
    /// We cannot decide now.
    #[error("{0}")]
    Unavailable(String),
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Within all limits.
    Ok,
    /// Over one of them.
    OverLimit,
    /// It made no sense.
    Invalid,
    /// The caller may not ask it.
    Denied,
    /// We could not decide.
    Unavailable,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Ok, Self::OverLimit, Self::Invalid, Self::Denied, Self::Unavailable];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::OverLimit => "over_limit",
            Self::Invalid => "invalid",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Asks, counts and times.
pub struct Answers {
    decide: Box<dyn Decide>,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    took: Histogram,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("outcomes", &self.outcomes).finish_non_exhaustive()
    }
}

impl Answers {
    /// Answers by whoever decides.
    pub fn new(decide: impl Decide) -> Self {
        Self { decide: Box::new(decide), outcomes: Default::default(), took: Histogram::default() }
    }

    /// The answer to a question, or why there is none.
    pub fn answer(
        &self,
        request: &RateLimitRequest,
        caller: &Caller,
    ) -> Result<RateLimitResponse, Refused> {
        let started = Instant::now();
        let answer = self.decide.decide(request, caller);
        let answer = match answer {
            // Envoy takes it for `OK`.
            Ok(answer) if answer.overall_code == Code::Unknown as i32 => {
                Err(Refused::Unavailable("the limits came to no decision".to_owned()))
            }
            answer => answer,
        };
        let outcome = match &answer {
            Ok(answer) if answer.overall_code == Code::OverLimit as i32 => Outcome::OverLimit,
            Ok(_) => Outcome::Ok,
            Err(Refused::Invalid(_)) => Outcome::Invalid,
            Err(Refused::Denied(_)) => Outcome::Denied,
            Err(Refused::Unavailable(_)) => Outcome::Unavailable,
        };
        if let Some(count) = self.outcomes.get(outcome as usize) {
            count.fetch_add(1, Relaxed);
        }
        self.took.observe(started.elapsed());
        answer
    }

    /// How often each outcome was.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.into_iter().zip(self.outcomes.iter().map(|count| count.load(Relaxed)))
    }

    /// How long decisions took.
    pub fn latency(&self) -> Latency {
        self.took.snapshot()
    }
}
