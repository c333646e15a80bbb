//! A histogram of durations that costs two atomic additions for each.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::view::Took;

/// Upper bounds of the buckets, in seconds. A decision takes about a microsecond; what takes five
/// milliseconds waited for a store.
pub(super) const BOUNDS: [f64; 14] = [
    500e-9, 1e-6, 2e-6, 5e-6, 10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3,
];

/// How long something took, so far.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.sum_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// What was observed so far.
    pub(super) fn snapshot(&self) -> Took {
        let bounds = BOUNDS.into_iter().map(Some).chain([None]);
        let buckets = bounds.zip(self.counts.iter().map(|count| count.load(Relaxed))).collect();
        Took { sum_seconds: self.sum_ns.load(Relaxed) as f64 / 1e9, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for nanos in [1, 500, 501, 2_000_000_000] {
            histogram.observe(Duration::from_nanos(nanos));
        }
        let seen = histogram.snapshot();
        let counts: Vec<_> = seen.buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!((counts[0], counts[1], counts[BOUNDS.len()]), (2, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 4);
        assert!((seen.sum_seconds - 2.000_001_002).abs() < 1e-9, "{seen:?}");
    }
}
