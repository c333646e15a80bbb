//! From samples to a median and how far it can be trusted.
//!
//! The speed of a machine drifts by more than what is to be seen, so nothing is compared that was
//! not measured in turns: contenders run round by round ([`in_turns`]), and what is estimated is the
//! quotient or the difference within a round. Intervals are percentile bootstraps of the median at
//! 95 %: they assume no distribution. The generator is seeded, so the same samples give the same
//! interval.

use serde::Serialize;

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;
/// What lies outside of an interval, on each side.
const TAIL: f64 = 0.025;

/// A value and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Estimate {
    /// The median, unless said otherwise.
    pub(crate) value: f64,
    /// Lower end of the interval.
    pub(crate) low: f64,
    /// Upper end of the interval.
    pub(crate) high: f64,
    /// Rounds, or for latencies attempts, behind it.
    pub(crate) samples: usize,
}

impl Estimate {
    /// What is counted, not measured.
    pub(crate) fn exact(value: f64) -> Self {
        Self { value, low: value, high: value, samples: 1 }
    }

    /// The median of these samples; `None` without any.
    pub(crate) fn median(samples: &[f64]) -> Option<Self> {
        Self::quantile(samples, 0.5)
    }

    /// A quantile of these samples.
    pub(crate) fn quantile(samples: &[f64], quantile: f64) -> Option<Self> {
        let samples: Vec<f64> = samples.iter().copied().filter(|value| value.is_finite()).collect();
        if samples.is_empty() {
            return None;
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        // Large samples need fewer resamples: each is smoother already.
        let resamples = (RESAMPLES * 200 / samples.len()).clamp(200, RESAMPLES);
        let mut resample = samples.clone();
        let mut medians: Vec<f64> = (0..resamples)
            .map(|_| {
                for slot in &mut resample {
                    *slot = samples[random.below(samples.len())];
                }
                pick(&mut resample, quantile)
            })
            .collect();
        Some(Self {
            value: pick(&mut samples.clone(), quantile),
            low: pick(&mut medians, TAIL),
            high: pick(&mut medians, 1.0 - TAIL),
            samples: samples.len(),
        })
    }

    /// The median of `one / other`, round by round.
    pub(crate) fn quotient(one: &[f64], other: &[f64]) -> Option<Self> {
        Self::median(&paired(one, other, |a, b| a / b))
    }

    /// The median of `one - other`, round by round.
    pub(crate) fn difference(one: &[f64], other: &[f64]) -> Option<Self> {
        Self::median(&paired(one, other, |a, b| a - b))
    }

    /// The sum, with the widest interval that both allow.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            value: self.value + other.value,
            low: self.low + other.low,
            high: self.high + other.high,
            samples: self.samples.min(other.samples),
        }
    }

    /// The product of non-negative values, with the widest interval that both allow.
    pub(crate) fn times(self, other: Self) -> Self {
        Self {
            value: self.value * other.value,
            low: self.low * other.low,
            high: self.high * other.high,
            samples: self.samples.min(other.samples),
        }
    }

    /// The quotient of non-negative values, with the widest interval that both allow.
    pub(crate) fn over(self, other: Self) -> Self {
        Self {
            value: self.value / other.value,
            low: self.low / other.high,
            high: self.high / other.low,
            samples: self.samples.min(other.samples),
        }
    }

    /// In another unit.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        Self {
            value: self.value * factor,
            low: self.low * factor,
            high: self.high * factor,
            samples: self.samples,
        }
    }
}

fn paired(one: &[f64], other: &[f64], join: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    one.iter().zip(other).map(|(&a, &b)| join(a, b)).collect()
}

/// The value below which this part of the values lies; of two in the middle, their mean.
pub(crate) fn pick(values: &mut [f64], quantile: f64) -> f64 {
    let place = quantile * (values.len() - 1) as f64;
    let (index, part) = (place.floor() as usize, place.fract());
    let (_, &mut at, above) = values.select_nth_unstable_by(index, f64::total_cmp);
    let next = above.iter().copied().min_by(f64::total_cmp).unwrap_or(at);
    at + (next - at) * part
}

/// Runs every contender once per round, in an order that changes, and returns each contender's
/// samples. One more round comes first and is thrown away.
pub(crate) fn in_turns<T, E>(
    rounds: usize,
    contenders: usize,
    mut sample: impl FnMut(usize) -> Result<T, E>,
) -> Result<Vec<Vec<T>>, E> {
    let mut samples: Vec<Vec<T>> = (0..contenders).map(|_| Vec::with_capacity(rounds)).collect();
    for round in 0..=rounds {
        for contender in order(round, contenders) {
            let value = sample(contender)?;
            if round > 0 {
                samples[contender].push(value);
            }
        }
    }
    Ok(samples)
}

/// Everyone is first equally often, and runs after each of the others: a drift within a round
/// favours nobody.
fn order(round: usize, contenders: usize) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..contenders).map(|place| (place + round / 2) % contenders).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// xorshift64* (Vigna 2016): good enough to pick samples.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (high as usize * bound) >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_within_its_interval() {
        let samples: Vec<f64> = (0..101).map(|n| f64::from(n * 37 % 101)).collect();
        let estimate = Estimate::median(&samples).unwrap();
        assert_eq!((estimate.value, estimate.samples), (50.0, 101));
        assert!(estimate.low < 50.0 && estimate.low > 25.0, "{estimate:?}");
        assert!(estimate.high > 50.0 && estimate.high < 75.0, "{estimate:?}");
        assert_eq!(Estimate::median(&samples), Some(estimate));
        assert_eq!(Estimate::median(&[]), None);
    }

    #[test]
    fn drift_that_both_share_vanishes_from_the_quotient() {
        let slow: Vec<f64> = (0..40).map(|round| 100.0 + f64::from(round) * 5.0).collect();
        let half: Vec<f64> = slow.iter().map(|value| value / 2.0).collect();
        let quotient = Estimate::quotient(&slow, &half).unwrap();
        assert_eq!((quotient.low, quotient.value, quotient.high), (2.0, 2.0, 2.0));
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(pick(&mut [4.0, 1.0, 3.0, 2.0], 0.5), 2.5);
        assert_eq!(pick(&mut [4.0, 1.0, 3.0, 2.0], 0.0), 1.0);
        assert_eq!(pick(&mut [4.0, 1.0, 3.0, 2.0], 1.0), 4.0);
    }

    #[test]
    fn everyone_is_first_equally_often() {
        let mut first = [0; 3];
        for round in 0..30 {
            let order = order(round, 3);
            first[order[0]] += 1;
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2]);
        }
        assert_eq!(first, [10, 10, 10]);
    }

    #[test]
    fn the_first_round_is_thrown_away() {
        let mut runs = 0;
        let samples = in_turns(4, 2, |contender| {
            runs += 1;
            Ok::<_, ()>(contender)
        });
        assert_eq!(samples, Ok(vec![vec![0; 4], vec![1; 4]]));
        assert_eq!(runs, 10);
    }
}
