//! What the agent holds of the machine's memory.

/// Gives back what the start needed: programs are loaded from large buffers, in which the C library keeps
/// pages that nobody uses any more.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number and touches nothing that is in use (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
