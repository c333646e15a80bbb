//! A circuit breaker in four words: see the parameters for what trips it.
//!
//! Word 0 is the state, words 1 and 2 count the verdicts of two windows, word 3 the attempts that
//! have no verdict yet. Each word changes by compare-and-swap alone, through a pure function.

/// What trips a breaker, and how it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Without an answer for so long, an attempt has failed, ms; 1 to 2^20 - 1.
    pub timeout_ms: u32,
    /// How long it stays open the first time, ms; 1 to 2^28 - 1.
    pub ejection_ms: u32,
    /// How long it stays open at most, ms; 1 to 2^28 - 1.
    pub max_ejection_ms: u32,
    /// The window of the failure ratio, and how long no failure makes it forget one ejection, ms.
    pub interval_ms: u32,
    /// Consecutive failures that trip it; 0 for never; 1023 at most.
    pub errors: u32,
    /// Failures in a hundred that trip it; 0 for never.
    pub error_ratio: u32,
    /// Verdicts in the window before the ratio counts; 1 to 65 535.
    pub min_volume: u32,
    /// Connections that try it when it is half-open; 1 to 63; 0 closes it at once.
    pub probes: u32,
}

impl Params {
    /// As a rule carries them.
    pub const fn pack(self) -> [u64; 3] {
        [
            self.timeout_ms as u64 | (self.ejection_ms as u64) << 32,
            self.max_ejection_ms as u64 | (self.interval_ms as u64) << 32,
            self.errors as u64
                | (self.error_ratio as u64) << 16
                | (self.probes as u64) << 24
                | (self.min_volume as u64) << 32,
        ]
    }

    /// From a rule.
    #[inline(always)]
    pub const fn unpack(words: [u64; 3]) -> Self {
        Self {
            timeout_ms: words[0] as u32,
            ejection_ms: (words[0] >> 32) as u32,
            max_ejection_ms: words[1] as u32,
            interval_ms: (words[1] >> 32) as u32,
            errors: words[2] as u32 & 0xffff,
            error_ratio: (words[2] >> 16) as u32 & 0xff,
            probes: (words[2] >> 24) as u32 & 0xff,
            min_volume: (words[2] >> 32) as u32,
        }
    }
}
