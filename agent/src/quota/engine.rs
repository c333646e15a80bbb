//! How hits count: from a limit and a counter's word to what holds.
//!
//! Every algorithm is one word and one step, so a take is one compare-and-swap, whoever owns the word.

use weir_common::{
    gcra::{self, Params, Refill, q8},
    sliding::{self, Moment},
    window::Window,
};

use super::{Now, model::Algorithm, tariffs::Mark};

/// How hits of one limit count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Windows aligned to the epoch.
    Fixed,
    /// As many in any period.
    Sliding,
    /// A bucket of so many tokens.
    Bucket {
        /// What it admits.
        params: Params,
        /// Its size in tokens.
        burst: u32,
        /// The number of these parameters among all that held in this process; 0 before they hold.
        tariff: u32,
    },
}

/// What a limit cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// Longer than can be counted.
    #[error("this window is too long")]
    TooLong,
    /// A sliding window of too many hits.
    #[error("a sliding window counts up to {} hits", sliding::MAX_LIMIT)]
    TooManyToSlide,
    /// A bucket that takes too long to fill.
    #[error("the bucket would take more than 104 days to fill")]
    TooSlow,
    /// A bucket of nothing.
    #[error("a bucket needs a limit and a burst of 1 or more")]
    Empty,
}

/// One limit, ready to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    /// Hits in each period.
    pub requests: u32,
    /// The period in seconds.
    pub period_s: u32,
    /// How they count.
    pub engine: Engine,
}

/// What a take does to a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to store; `None` to leave the word alone.
    pub store: Option<u64>,
    /// What holds.
    pub taken: Taken,
}

/// What came of hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whether they are over the limit.
    pub over: bool,
    /// How many counted before.
    pub before: u64,
    /// How many count with them, or would count.
    pub after: u64,
    /// How many there may be: the limit, or the size of the bucket.
    pub limit: u32,
    /// Seconds until the window is over or the bucket is full, rounded up.
    pub reset_s: u32,
}

impl Taken {
    /// How many are left.
    pub fn remaining(&self) -> u32 {
        if self.over {
            return 0;
        }
        u32::try_from(u64::from(self.limit).saturating_sub(self.after)).unwrap_or(u32::MAX)
    }
}

/// What hits are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hits {
    /// Count so many; 0 only asks.
    Add(u64),
    /// Give so many back.
    GiveBack(u64),
}

impl Meter {
    /// A limit of `requests` in `period_s` seconds.
    pub fn new(
        requests: u32,
        period_s: u32,
        algorithm: Algorithm,
        burst: Option<u32>,
    ) -> Result<Self, Impossible> {
        let bucket = |burst: u32| {
            if requests == 0 || burst == 0 {
                return Err(Impossible::Empty);
            }
            let period_ns = u64::from(period_s) * 1_000_000_000;
            let params = Params::new(requests.into(), period_ns, burst.into(), Refill::Smooth)
                .ok_or(Impossible::TooSlow)?;
            Ok(Engine::Bucket { params, burst, tariff: 0 })
        };
        let engine = match algorithm {
            Algorithm::FixedWindow => Engine::Fixed,
            Algorithm::SlidingWindow if u64::from(requests) > sliding::MAX_LIMIT => {
                return Err(Impossible::TooManyToSlide);
            }
            Algorithm::SlidingWindow => Engine::Sliding,
            Algorithm::TokenBucket => bucket(burst.unwrap_or(requests))?,
            Algorithm::LeakyBucket => bucket(burst.unwrap_or(1))?,
        };
        Ok(Self { requests, period_s, engine })
    }

    /// A fixed window of a period: what a limit in a request asks for.
    pub const fn fixed(requests: u32, period_s: u32) -> Self {
        Self { requests, period_s, engine: Engine::Fixed }
    }

    /// What kind of count it keeps: limits of one kind can judge one count.
    pub const fn kind(&self) -> Kind {
        match self.engine {
            Engine::Fixed => Kind::Fixed { period_s: self.period_s },
            Engine::Sliding => Kind::Sliding { period_s: self.period_s },
            Engine::Bucket { .. } => Kind::Bucket { period_s: self.period_s },
        }
    }

    /// What stands beside a word that it writes.
    pub const fn mark(&self) -> Mark {
        let tariff = match self.engine {
            Engine::Bucket { tariff, .. } => tariff,
            Engine::Fixed | Engine::Sliding => 0,
        };
        Mark::new(self.kind(), tariff)
    }

    /// The step of hits at a time, from a word; 0 is the word of a count that is not there.
    pub fn step(&self, word: u64, hits: Hits, now: Now) -> Step {
        match self.engine {
            Engine::Fixed => self.fixed_step(word, hits, now),
            Engine::Sliding => self.sliding_step(word, hits, now),
            Engine::Bucket { params, burst, .. } => bucket_step(word, hits, now, &params, burst),
        }
    }

    fn taken(&self, over: bool, before: u64, after: u64, reset_s: u32) -> Taken {
        Taken { over, before, after, limit: self.requests, reset_s }
    }

    /// Whole seconds until the window is over, 1 to its length.
    fn until_next(&self, now: Now) -> u32 {
        let period = u64::from(self.period_s);
        u32::try_from(period - now.realtime_s() % period).unwrap_or(u32::MAX)
    }

    fn fixed_step(&self, word: u64, hits: Hits, now: Now) -> Step {
        let window = Window::at(now.realtime_s(), self.period_s.into());
        let counted = match hits {
            Hits::Add(hits) => window.step(word, hits),
            Hits::GiveBack(hits) => window.step_back(word, hits),
        };
        let over = matches!(hits, Hits::Add(_)) && counted.after > self.requests.into();
        let store = (counted.after != counted.before).then_some(counted.word);
        let reset = self.until_next(now);
        Step { store, taken: self.taken(over, counted.before, counted.after, reset) }
    }

    fn sliding_step(&self, word: u64, hits: Hits, now: Now) -> Step {
        let moment = Moment::at(now.realtime_ns, self.period_s.into());
        let reset = self.until_next(now);
        let before = moment.count(word);
        match hits {
            Hits::Add(0) => {
                let over = before > self.requests.into();
                Step { store: None, taken: self.taken(over, before, before, reset) }
            }
            Hits::Add(hits) => {
                let asked = moment.step(word, hits, self.requests.into());
                let store = asked.admitted.then_some(asked.word);
                let after = before.saturating_add(hits);
                Step { store, taken: self.taken(!asked.admitted, before, after, reset) }
            }
            Hits::GiveBack(hits) => {
                let next = moment.step_back(word, hits);
                let after = moment.count(next);
                let store = (after != before).then_some(next);
                Step { store, taken: self.taken(false, before, after, reset) }
            }
        }
    }
}

/// Several tokens are one token that costs as much.
fn bucket_step(word: u64, hits: Hits, now: Now, params: &Params, burst: u32) -> Step {
    let clock = q8(now.monotonic_ns);
    let size = u64::from(burst);
    let used = |word| size - gcra::tokens_left(word, clock, params);
    let before = used(word);
    let (store, over, after) = match hits {
        Hits::Add(0) => (None, false, before),
        Hits::Add(hits) if hits > size => (None, true, before.saturating_add(hits)),
        Hits::Add(hits) => {
            let all = Params { cost: params.cost * hits, ..*params };
            match gcra::step(word, clock, &all) {
                gcra::Step::Admit(next) => (Some(next), false, used(next)),
                gcra::Step::Deny => (None, true, before + hits),
                gcra::Step::DenyClamped(next) => (Some(next), true, before + hits),
            }
        }
        Hits::GiveBack(hits) => {
            let spent = gcra::spent(word, clock, params);
            let back = params.cost.saturating_mul(hits).min(spent);
            let next = word.wrapping_sub(back).max(1);
            ((back > 0).then_some(next), false, used(next))
        }
    };
    let spent = gcra::spent(store.unwrap_or(word), clock, params);
    let reset_s = u32::try_from(spent.div_ceil(q8(1_000_000_000))).unwrap_or(u32::MAX);
    Step { store, taken: Taken { over, before, after, limit: burst, reset_s } }
}

/// What kind of count a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`weir_common::window`].
    Fixed {
        /// Length of the window.
        period_s: u32,
    },
    /// [`weir_common::sliding`].
    Sliding {
        /// Length of the window.
        period_s: u32,
    },
    /// [`weir_common::gcra`].
    Bucket {
        /// The time that the limit is written for. The word knows nothing of it, but limits with
        /// different ones are different limits.
        period_s: u32,
    },
}

impl Kind {
    /// As a number of 40 bits, for identities and slots. Never 0.
    pub const fn encode(self) -> u64 {
        let (tag, period) = match self {
            Self::Fixed { period_s } => (1, period_s),
            Self::Sliding { period_s } => (2, period_s),
            Self::Bucket { period_s } => (3, period_s),
        };
        (period as u64) << 8 | tag
    }

    /// The kind of a number.
    pub const fn decode(number: u64) -> Option<Self> {
        let period_s = (number >> 8) as u32;
        if period_s == 0 {
            return None;
        }
        match number & 0xff {
            1 => Some(Self::Fixed { period_s }),
            2 => Some(Self::Sliding { period_s }),
            3 => Some(Self::Bucket { period_s }),
            _ => None,
        }
    }

    /// Whether a word of this kind says no more than an absent one.
    pub fn is_over(self, word: u64, now: Now) -> bool {
        match self {
            Self::Fixed { period_s } => Window::at(now.realtime_s(), period_s.into()).is_over(word),
            Self::Sliding { period_s } => {
                Moment::at(now.realtime_ns, period_s.into()).is_over(word)
            }
            // A bucket is full when its word lies in the past.
            Self::Bucket { .. } => {
                word == 0 || (word.wrapping_sub(q8(now.monotonic_ns)) as i64) <= 0
            }
        }
    }
}
