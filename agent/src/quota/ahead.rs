//! Memory that is asked for before it is needed.
//!
//! Among a million counts or ten thousand rules most of a decision is waiting for memory, one line after
//! another. What does not depend on what was read before can be on its way meanwhile.

/// Asks the processor to bring a value's first cache line nearer. It changes nothing but time.
#[inline(always)]
pub(super) fn fetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: it reads nothing, whatever the pointer; this one is a reference's.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    // Elsewhere the instruction is not stable in Rust yet.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
