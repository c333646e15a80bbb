//! Buckets and sliding windows of the whole fleet: one key each, one script for each decision, by the
//! store's own clock. So they are as exact as the store, whatever the nodes' clocks say.
//!
//! The arithmetic stands here twice, as the script and as the model that it is held against: both in
//! doubles, operation by operation the same. A double holds microseconds of our time, and products are
//! rounded in their sixteenth digit; a millionth of a token is allowed for that.

/// What is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Hits in each period: at least 1.
    pub requests: u32,
    /// The period, in seconds: at least 1.
    pub period_s: u32,
    /// How they count.
    pub shape: Shape,
}

/// How hits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A bucket of so many tokens, which starts full and fills smoothly.
    Bucket {
        /// Its size.
        burst: u32,
    },
    /// As many in any period, the window before taken as evenly spread.
    Sliding,
}

/// What came of hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// Whether they are admitted; all of them or none.
    pub admitted: bool,
    /// How many counted before, rounded up.
    pub before: u64,
    /// Seconds until the bucket is full or the window over, rounded up.
    pub reset_s: u32,
}

/// The time, in microseconds, by the server's clock.
pub const SERVER_TIME: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
";

/// A bucket's key holds `microseconds debt`: how long it would have taken to fill, then.
pub const BUCKET: &str = r"
local hits, requests = tonumber(ARGV[1]), tonumber(ARGV[2])
local period, burst = tonumber(ARGV[3]) * 1000000, tonumber(ARGV[4])
local debt = 0
local since, owed = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%S+)$')
if since then debt = math.max(0, tonumber(owed) - math.max(0, now - tonumber(since))) end
local cost = period / requests
local before = math.max(0, math.ceil(debt / cost - 0.000001))
local after = debt + hits * cost
local admitted = hits <= 0 or after <= burst * cost + cost * 0.000001
if admitted and hits ~= 0 then
  debt = math.max(0, after)
  redis.call('SET', KEYS[1], string.format('%.0f %.17g', now, debt), 'PX',
    string.format('%.0f', math.ceil(debt / 1000) + 1000))
end
return {admitted and 1 or 0, before, math.ceil(debt / 1000000)}
";

/// A sliding window's key holds `number current previous`.
pub const SLIDING: &str = r"
local hits, requests = tonumber(ARGV[1]), tonumber(ARGV[2])
local period = tonumber(ARGV[3]) * 1000000
local window = math.floor(now / period)
local number, current, previous = window, 0, 0
local n, c, p = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+) (%d+)$')
if n and tonumber(n) >= window then
  number, current, previous = tonumber(n), tonumber(c), tonumber(p)
elseif n and tonumber(n) == window - 1 then
  previous = tonumber(c)
end
local left = period
if number == window then left = (window + 1) * period - now end
local before = current + math.ceil(previous * left / period)
local admitted = hits < 0 or before + hits <= requests
if admitted and hits ~= 0 then
  current = math.max(0, current + hits)
  redis.call('SET', KEYS[1], string.format('%.0f %.0f %.0f', number, current, previous), 'PX',
    string.format('%.0f', math.ceil(period / 500) + 1000))
end
return {admitted and 1 or 0, before, math.ceil(left / 1000000)}
";

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    /// Of a bucket.
    Bucket {
        /// When it was written, in microseconds.
        since: f64,
        /// How long it would have taken to fill, in microseconds.
        debt: f64,
    },
    /// Of a sliding window.
    Sliding {
        /// The window's number.
        number: f64,
        /// Hits in it.
        current: f64,
        /// Hits in the one before.
        previous: f64,
    },
}

impl Pool {
    /// Its script, but for what says the time.
    pub const fn script(&self) -> &'static str {
        match self.shape {
            Shape::Bucket { .. } => BUCKET,
            Shape::Sliding => SLIDING,
        }
    }

    /// The size of the bucket; 0 for others.
    pub const fn burst(&self) -> u32 {
        match self.shape {
            Shape::Bucket { burst } => burst,
            Shape::Sliding => 0,
        }
    }

    /// How many there may be.
    pub const fn limit(&self) -> u32 {
        match self.shape {
            Shape::Bucket { burst } => burst,
            Shape::Sliding => self.requests,
        }
    }

    /// The key of a counter's name.
    pub fn key(&self, stem: &str) -> String {
        let kind = match self.shape {
            Shape::Bucket { .. } => "bucket",
            Shape::Sliding => "sliding",
        };
        format!("weir:{kind}:{}:{stem}", self.period_s)
    }

    /// What the script does: draws `hits`, or gives them back where they are below 0; 0 only asks. What
    /// the key is to hold, if that changes.
    pub fn draw(&self, state: Option<State>, hits: i64, now_us: u64) -> (Option<State>, Drawn) {
        let (hits, now) = (hits as f64, now_us as f64);
        let (requests, period) = (f64::from(self.requests), f64::from(self.period_s) * 1e6);
        let (changed, admitted, before, reset_us) = match self.shape {
            Shape::Bucket { burst } => {
                let debt = match state {
                    Some(State::Bucket { since, debt }) => (debt - (now - since).max(0.0)).max(0.0),
                    _ => 0.0,
                };
                let cost = period / requests;
                let before = (debt / cost - 0.000_001).ceil().max(0.0);
                let after = debt + hits * cost;
                let admitted = hits <= 0.0 || after <= f64::from(burst) * cost + cost * 0.000_001;
                let debt = if admitted { after.max(0.0) } else { debt };
                (State::Bucket { since: now, debt }, admitted, before, debt)
            }
            Shape::Sliding => {
                let window = (now / period).floor();
                let (number, current, previous) = match state {
                    Some(State::Sliding { number, current, previous }) if number >= window => {
                        (number, current, previous)
                    }
                    Some(State::Sliding { number, current, .. }) if number == window - 1.0 => {
                        (window, 0.0, current)
                    }
                    _ => (window, 0.0, 0.0),
                };
                // One that lies ahead is read as at its start.
                let left = if number == window { (window + 1.0) * period - now } else { period };
                let before = current + (previous * left / period).ceil();
                let admitted = hits < 0.0 || before + hits <= requests;
                let current = if admitted { (current + hits).max(0.0) } else { current };
                (State::Sliding { number, current, previous }, admitted, before, left)
            }
        };
        let drawn =
            Drawn { admitted, before: before as u64, reset_s: (reset_us / 1e6).ceil() as u32 };
        ((admitted && hits != 0.0).then_some(changed), drawn)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weir_common::sliding::Moment;

    use super::*;

    const BEGIN_US: u64 = 1_795_000_000_000_000;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

        /// Against a bucket in whole numbers, and against what a bucket promises: in no stretch of time
        /// more than its size and what came back meanwhile.
        #[test]
        fn a_bucket_admits_what_an_exact_one_does(
            requests in 1u32..5000,
            period_s in 1u32..4000,
            burst in 1u32..200,
            asked in prop::collection::vec((0u64..3_000_000, 1i64..20), 1..80),
        ) {
            let pool = Pool { requests, period_s, shape: Shape::Bucket { burst } };
            let (mut state, mut now_us) = (None, BEGIN_US);
            // In parts of a token: `requests` come back each microsecond, a token is a period's worth.
            let token = u128::from(period_s) * 1_000_000;
            let mut missing = 0u128;
            let mut admitted = Vec::new();
            for (wait_us, hits) in asked {
                now_us += wait_us;
                missing = missing.saturating_sub(u128::from(wait_us) * u128::from(requests));
                let wanted = missing + hits as u128 * token;
                let fits = wanted <= u128::from(burst) * token;
                let (changed, drawn) = pool.draw(state, hits, now_us);
                prop_assert_eq!(drawn.admitted, fits);
                prop_assert_eq!(u128::from(drawn.before), missing.div_ceil(token));
                state = changed.or(state);
                if fits {
                    missing = wanted;
                    admitted.push((now_us, hits as u128));
                }
            }
            for (index, (from, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for (until, hits) in &admitted[index..] {
                    sum += hits;
                    let back = u128::from(until - from) * u128::from(requests);
                    prop_assert!(sum * token <= u128::from(burst) * token + back);
                }
            }
        }

        /// Against the sliding window of a node.
        #[test]
        fn a_sliding_window_admits_what_a_nodes_does(
            requests in 1u32..500,
            period_s in 1u32..100,
            asked in prop::collection::vec((0u64..40_000_000, 0i64..40), 1..80),
        ) {
            let pool = Pool { requests, period_s, shape: Shape::Sliding };
            let (mut state, mut word, mut now_us) = (None, 0, BEGIN_US);
            for (wait_us, hits) in asked {
                now_us += wait_us;
                let moment = Moment::at(now_us * 1000, period_s.into());
                let (changed, drawn) = pool.draw(state, hits, now_us);
                prop_assert_eq!(drawn.before, moment.count(word));
                let asked = moment.step(word, hits as u64, requests.into());
                prop_assert_eq!(drawn.admitted, asked.admitted);
                state = changed.or(state);
                word = asked.word;
            }
        }
    }

    #[test]
    fn what_is_given_back_is_there_again_and_no_more() {
        for shape in [Shape::Bucket { burst: 10 }, Shape::Sliding] {
            let pool = Pool { requests: 10, period_s: 3600, shape };
            let mut state = None;
            let mut draw = |hits| {
                let (changed, drawn) = pool.draw(state, hits, BEGIN_US);
                state = changed.or(state);
                (drawn.admitted, drawn.before)
            };
            assert_eq!(draw(8), (true, 0));
            assert_eq!(draw(3), (false, 8));
            assert_eq!(draw(-2), (true, 8));
            assert_eq!(draw(3), (true, 6));
            assert_eq!(draw(-99), (true, 9));
            assert_eq!(draw(0), (true, 0));
            assert_eq!(draw(11), (false, 0));
            assert_eq!(draw(10), (true, 0));
        }
    }

    #[test]
    fn a_clock_that_is_set_back_gives_nothing() {
        for shape in [Shape::Bucket { burst: 10 }, Shape::Sliding] {
            let pool = Pool { requests: 10, period_s: 60, shape };
            let (state, _) = pool.draw(None, 10, BEGIN_US);
            let (_, drawn) = pool.draw(state, 1, BEGIN_US - 200_000_000);
            assert!(!drawn.admitted, "{shape:?}");
        }
    }
}
