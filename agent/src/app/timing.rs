//! How long things took, as a histogram.

use std::time::Duration;

use super::view;

/// Upper bounds in seconds: around the 50 ms and 100 ms within which pods should be limited.
const BOUNDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Counts of durations by their length.
#[derive(Debug, Default)]
pub(super) struct Timing {
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Timing {
    pub(super) fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        // What took longer than all of them is in the count alone.
        let bound = BOUNDS.iter().position(|bound| seconds <= *bound);
        if let Some(count) = bound.and_then(|index| self.counts.get_mut(index)) {
            *count += 1;
        }
    }

    pub(super) fn view(&self) -> view::Histogram {
        let buckets = BOUNDS.into_iter().zip(self.counts);
        let buckets = buckets.map(|(at_most, count)| view::Bucket { at_most, count });
        view::Histogram { buckets: buckets.collect(), count: self.count, sum: self.sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_counted_once() {
        let mut timing = Timing::default();
        for millis in [1, 5, 6, 60_000] {
            timing.add(Duration::from_millis(millis));
        }
        let view = timing.view();
        let counts: Vec<u64> = view.buckets.iter().map(|bucket| bucket.count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((view.count, view.sum), (4, 60.012));
    }
}
