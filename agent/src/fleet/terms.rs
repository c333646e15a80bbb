//! What a quota of the fleet is, and its names in the store.
//!
//! Counters are named, windowed and expired as envoyproxy/ratelimit does
//! (`src/limiter/cache_key.go`, `src/redis/fixed_cache_impl.go`), so that both count together on one
//! Redis: `<prefix><domain>_<key>_<value>_…<window start in Unix seconds>`.

use weir_common::lease::Window;

use crate::clock::Clock;
pub use crate::quota::model::{Consistency, OnStoreFailure};

/// One quota of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The counter's name without the window: `<prefix><domain>_<key>_<value>_`….
    pub stem: String,
    /// Hits that a window admits in the whole fleet.
    pub limit: u32,
    /// Seconds that a window lasts; never 0.
    pub unit_s: u32,
    /// How exact the answers are.
    pub consistency: Consistency,
    /// What decides when the store does not.
    pub on_failure: OnStoreFailure,
}

/// A moment, as both clocks show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// CLOCK_MONOTONIC: for distances.
    pub mono_ns: u64,
    /// CLOCK_REALTIME: for windows.
    pub wall_ns: u64,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Moment {
    /// This one, by the machine's clocks.
    pub fn now() -> Self {
        Self { mono_ns: Clock.monotonic_ns(), wall_ns: Clock.realtime_ns() }
    }
}

impl Terms {
    /// The window of a time.
    pub fn window(&self, wall_ns: u64) -> Window {
        // Numbers of windows fit until 2106.
        u32::try_from(wall_ns / self.unit_ns()).unwrap_or(u32::MAX)
    }

    /// How long a window lasts, in nanoseconds.
    pub fn unit_ns(&self) -> u64 {
        u64::from(self.unit_s.max(1)) * SECOND_NS
    }

    /// What is left of the window of a time, in nanoseconds; never 0.
    pub fn rest_ns(&self, wall_ns: u64) -> u64 {
        self.unit_ns() - wall_ns % self.unit_ns()
    }

    /// The counter of a window.
    pub fn counter(&self, window: Window) -> String {
        format!("{}{}", self.stem, u64::from(window) * u64::from(self.unit_s.max(1)))
    }

    /// Where the nodes that spend from the quota are kept. The limit's window is part of it, because
    /// windows of another length have other numbers.
    pub fn spenders(&self) -> String {
        format!("weir:spenders:{}:{}", self.unit_s, self.stem)
    }
}

/// The part of a counter's name that all its windows share.
pub fn stem<'a>(
    prefix: &str,
    domain: &str,
    entries: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> String {
    let mut stem = format!("{prefix}{domain}_");
    for (key, value) in entries {
        stem.push_str(key);
        stem.push('_');
        stem.push_str(value);
        stem.push('_');
    }
    stem
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(unit_s: u32) -> Terms {
        Terms {
            stem: stem("", "shop", [("user", "ann"), ("path", "")]),
            limit: 10,
            unit_s,
            consistency: Consistency::Leased,
            on_failure: OnStoreFailure::Local,
        }
    }

    #[test]
    fn counters_are_named_as_the_original_names_them() {
        let now = 1_700_000_000 * SECOND_NS;
        for (unit, start) in [
            (1, "1700000000"),
            (60, "1699999980"),
            (3600, "1699999200"),
            (86_400, "1699920000"),
            (604_800, "1699488000"),
            (2_592_000, "1697760000"),
            (31_536_000, "1671408000"),
        ] {
            let terms = terms(unit);
            assert_eq!(terms.counter(terms.window(now)), format!("shop_user_ann_path__{start}"));
        }
        assert_eq!(stem("p:", "d", []), "p:d_");
    }

    #[test]
    fn a_window_always_has_something_left() {
        let terms = terms(60);
        assert_eq!(terms.rest_ns(60 * SECOND_NS), 60 * SECOND_NS);
        assert_eq!(terms.rest_ns(60 * SECOND_NS - 1), 1);
    }
}
