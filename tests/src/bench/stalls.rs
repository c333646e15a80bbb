//! When the machine itself stood still: its hypervisor ran somebody else, or others had the CPUs.
//!
//! On each CPU a thread does nothing but sleep for a short while, again and again. When it wakes late by
//! more than a millisecond, so does whatever else was to run there.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::cpu;

const NAP: Duration = Duration::from_micros(500);
const LATE: Duration = Duration::from_millis(1);

/// Times in which some CPU stood still, in order and apart from each other.
#[derive(Debug)]
pub(crate) struct Stalls(Vec<(Instant, Instant)>);

impl Stalls {
    /// Those that happen while this work is done.
    pub(crate) fn during<T>(work: impl FnOnce() -> T) -> (T, Self) {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watch = |cpu| {
                let done = &done;
                scope.spawn(move || naps(cpu, done))
            };
            let watchers: Vec<_> = (0..cpu::count()).map(watch).collect();
            let result = work();
            done.store(true, Relaxed);
            // One that panicked has seen nothing.
            let late = watchers.into_iter().filter_map(|watcher| watcher.join().ok());
            (result, Self(union(late.flatten().collect())))
        })
    }

    /// How much of this time they are.
    pub(crate) fn within(&self, from: Instant, until: Instant) -> Duration {
        let part = |&(begin, end): &(Instant, Instant)| {
            end.min(until).saturating_duration_since(begin.max(from))
        };
        self.0.iter().map(part).sum()
    }
}

/// When naps on this CPU ended too late: from when they should have ended until they did.
fn naps(cpu: usize, done: &AtomicBool) -> Vec<(Instant, Instant)> {
    cpu::stay_on(cpu);
    let mut late = Vec::new();
    while !done.load(Relaxed) {
        let due = Instant::now() + NAP;
        thread::sleep(NAP);
        let now = Instant::now();
        if now.saturating_duration_since(due) > LATE {
            late.push((due, now));
        }
    }
    late
}

fn union(mut times: Vec<(Instant, Instant)>) -> Vec<(Instant, Instant)> {
    times.sort_unstable();
    let mut apart: Vec<(Instant, Instant)> = Vec::with_capacity(times.len());
    for (begin, end) in times {
        match apart.last_mut() {
            Some(last) if begin <= last.1 => last.1 = last.1.max(end),
            _ => apart.push((begin, end)),
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_once_and_only_where_it_overlaps() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let stalls = Stalls(union(vec![(at(20), at(30)), (at(10), at(15)), (at(12), at(18))]));
        assert_eq!(stalls.0, [(at(10), at(18)), (at(20), at(30))]);
        assert_eq!(stalls.within(at(0), at(40)), Duration::from_millis(18));
        assert_eq!(stalls.within(at(14), at(22)), Duration::from_millis(6));
        assert_eq!(stalls.within(at(18), at(20)), Duration::ZERO);
        assert_eq!(stalls.within(at(31), at(40)), Duration::ZERO);
    }
}
