//! A model checker's words, and threads that it runs in many hundreds of orders.
//!
//! It explores sequentially consistent orders, as a word's compare-and-swap guarantees them.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]
#![allow(dead_code, reason = "every suite uses its own part")]

use std::sync::Arc;

use shuttle::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};
use weir_common::{
    way::{LINE, Line},
    word::Word,
};

/// Explores a test's schedules: many at random, and many with few but well-placed switches,
/// which find what needs one thread to sleep for long.
pub(crate) fn explore(test: impl Fn() + Send + Sync + 'static) {
    explore_some(800, test);
}

/// As many schedules of each kind: for tests with many threads.
pub(crate) fn explore_some(schedules: usize, test: impl Fn() + Send + Sync + 'static) {
    let test = Arc::new(test);
    let again = Arc::clone(&test);
    shuttle::check_random(move || test(), schedules);
    shuttle::check_pct(move || again(), schedules, 4);
}

/// A word of the model checker.
pub(crate) struct Shared(pub(crate) AtomicU64);

impl Shared {
    pub(crate) fn new(word: u64) -> Self {
        Self(AtomicU64::new(word))
    }
}

impl Word for Shared {
    fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
    }
}

/// A line of the model checker's words.
pub(crate) struct SharedLine([Shared; LINE]);

impl SharedLine {
    pub(crate) fn new(words: [u64; LINE]) -> Self {
        Self(words.map(Shared::new))
    }
}

impl Line for SharedLine {
    type Word<'line> = &'line Shared;

    fn word(&self, index: usize) -> &Shared {
        &self.0[index]
    }
}

/// Runs one thread per item and collects what they return.
pub(crate) fn together<T, R>(
    items: impl IntoIterator<Item = T>,
    run: impl Fn(T) -> R + Send + Sync + 'static,
) -> Vec<R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let run = Arc::new(run);
    let threads: Vec<_> = items
        .into_iter()
        .map(|item| {
            let run = Arc::clone(&run);
            thread::spawn(move || run(item))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().expect("a thread of the test")).collect()
}
