//! The only clock of the agent.

/// Reads the machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`, in nanoseconds.
    pub fn monotonic_ns(&self) -> u64 {
        read(nix::time::ClockId::CLOCK_MONOTONIC)
    }

    /// CLOCK_BOOTTIME, by which the kernel notes when processes started, in nanoseconds.
    pub fn boottime_ns(&self) -> u64 {
        read(nix::time::ClockId::CLOCK_BOOTTIME)
    }

    /// CLOCK_REALTIME in nanoseconds since 1970.
    pub fn realtime_ns(&self) -> u64 {
        read(nix::time::ClockId::CLOCK_REALTIME)
    }
}

fn read(clock: nix::time::ClockId) -> u64 {
    // These clocks exist on every Linux; a failure cannot be told from the epoch and is harmless.
    clock.now().map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}
