//! Questions and answers, whatever they came by: decided, counted and timed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse, rate_limit_response::Code,
};

use super::{
    caller::OtherEnd,
    denied::Ledger,
    histogram::Histogram,
    offenders::Offenders,
    view::{self, Took},
};
use crate::{
    clock::Clock,
    quota::{Caller, Decision, Now, Quotas, Refused},
};

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

impl From<&Refused> for Outcome {
    fn from(refused: &Refused) -> Self {
        match refused {
            Refused::PermissionDenied { .. } => Self::Denied,
            Refused::NothingLoaded | Refused::CannotDecide { .. } => Self::Unavailable,
            Refused::EmptyDomain
            | Refused::NoDescriptors
            | Refused::UnknownUnit { .. }
            | Refused::TooManyHits { .. } => Self::Invalid,
        }
    }
}

/// Whether an answer refuses the request.
pub(super) const fn is_over(answer: &RateLimitResponse) -> bool {
    answer.overall_code == Code::OverLimit as i32
}

/// Asks, counts and times.
#[derive(Debug)]
pub struct Answers {
    quotas: Arc<Quotas>,
    clock: Clock,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    took: Histogram,
    denied: Ledger,
    offenders: Offenders,
}

/// A question that was begun.
pub(super) struct Asked {
    started: Instant,
    decision: Result<Decision, Refused>,
}

impl Answers {
    /// Answers by these quotas.
    pub fn new(quotas: Arc<Quotas>, clock: Clock) -> Self {
        Self {
            quotas,
            clock,
            outcomes: Default::default(),
            took: Histogram::default(),
            denied: Ledger::default(),
            offenders: Offenders::default(),
        }
    }

    /// Decides, as far as that can be done at once.
    pub(super) fn ask(&self, request: &RateLimitRequest, caller: &Caller) -> Asked {
        let started = Instant::now();
        let now =
            Now { monotonic_ns: self.clock.monotonic_ns(), realtime_ns: self.clock.realtime_ns() };
        let decision = self.quotas.decide(request, caller, now);
        if let Err(Refused::PermissionDenied { domain }) = &decision {
            self.denied.count(domain, caller);
        }
        Asked { started, decision }
    }

    /// The answer to a question, or why there is none.
    pub(super) async fn answer(
        &self,
        asked: Asked,
        request: &RateLimitRequest,
        end: &OtherEnd,
    ) -> Result<RateLimitResponse, Refused> {
        let answer = match asked.decision {
            Ok(Decision::Ready(answer)) => Ok(answer),
            Ok(Decision::Waiting(waiting)) => waiting.finish(&self.quotas).await,
            Err(refused) => Err(refused),
        };
        let outcome = match &answer {
            Ok(answer) if is_over(answer) => {
                end.with(|caller| self.offenders.note(request, answer, caller));
                Outcome::OverLimit
            }
            Ok(_) => Outcome::Ok,
            Err(refused) => refused.into(),
        };
        if let Some(count) = self.outcomes.get(outcome as usize) {
            count.fetch_add(1, Relaxed);
        }
        self.took.observe(asked.started.elapsed());
        answer
    }

    /// How often each outcome was.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.into_iter().zip(self.outcomes.iter().map(|count| count.load(Relaxed)))
    }

    /// Who asked what they may not.
    pub(super) fn denied(&self) -> Vec<view::Denied> {
        self.denied.snapshot()
    }

    /// Which descriptors are refused most.
    pub(super) const fn offenders(&self) -> &Offenders {
        &self.offenders
    }

    /// How long decisions took.
    pub fn latency(&self) -> Took {
        self.took.snapshot()
    }
}
