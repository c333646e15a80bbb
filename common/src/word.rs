//! The one thing a limit needs from memory: a 64-bit word with compare-and-swap.
//!
//! In the kernel a word lies in a BPF map value and is changed by BPF atomics; in the agent it is
//! the same memory, mapped; in tests it may be a model checker's. The arithmetic sees only this
//! trait, so it cannot differ between them.

#[cfg(target_has_atomic = "64")]
use core::sync::atomic::{AtomicU64, Ordering};

/// How often a compare-and-swap loop tries before it gives up.
///
/// The verifier wants a bound. A loser of 16 rounds met 16 other writers of the same word within
/// a microsecond; it is refused as `contended` rather than admitted without being charged.
pub const TRIES: u32 = 16;

/// A 64-bit word that may change under the caller.
pub trait Word {
    /// Reads the word.
    fn load(&self) -> u64;

    /// Writes `new` if the word still is `current`; `Err` carries what it was instead.
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64>;
}

// Not on the BPF target, whose `AtomicU64` can only load and store.
#[cfg(target_has_atomic = "64")]
impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        // Decisions rest on the word alone, never on memory that it would publish.
        AtomicU64::load(self, Ordering::Relaxed)
    }

    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        AtomicU64::compare_exchange(self, current, new, Ordering::SeqCst, Ordering::SeqCst)
    }
}

impl<W: Word + ?Sized> Word for &W {
    fn load(&self) -> u64 {
        (**self).load()
    }

    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        (**self).compare_exchange(current, new)
    }
}
