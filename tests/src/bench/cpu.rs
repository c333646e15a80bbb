//! CPU time spent on a piece of work.
//!
//! Counted are the bench itself (its threads are clients and servers alike), the agent if there is
//! one, and the kernel's own threads that go on with packets when a CPU has too many (`ksoftirqd`).
//! This kernel charges a soft interrupt to the thread that it interrupts, which is the one that
//! sent the packet, so what programs and rules cost is in it. Other processes of the machine are
//! not: they make a run noisier, not the figure larger.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// The clocks of all that takes part.
#[derive(Clone, Debug)]
pub(crate) struct Meter(Vec<ClockId>);

impl Meter {
    /// Of this process, the kernel's threads, and these processes.
    pub(crate) fn new(others: impl IntoIterator<Item = u32>) -> Result<Self> {
        let mut clocks = vec![ClockId::CLOCK_PROCESS_CPUTIME_ID];
        for id in kernel_threads()?.into_iter().chain(others) {
            let pid = Pid::from_raw(id.cast_signed());
            let clock = ClockId::pid_cpu_clock_id(pid)
                .with_context(|| format!("cannot ask for the CPU time of process {id}"))?;
            clocks.push(clock);
        }
        Ok(Self(clocks))
    }

    /// What all of them have used so far.
    pub(crate) fn read(&self) -> Result<Duration> {
        self.0.iter().try_fold(Duration::ZERO, |sum, &clock| {
            let time = clock_gettime(clock).context("cannot read a process's CPU time")?;
            Ok(sum + Duration::from(time))
        })
    }
}

fn kernel_threads() -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list processes")? {
        let entry = entry.context("cannot list processes")?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Gone again meanwhile, or not.
        if fs::read_to_string(entry.path().join("comm"))
            .is_ok_and(|name| name.starts_with("ksoftirqd/"))
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// How many CPUs there are.
pub(crate) fn count() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Keeps this thread on one CPU. Where that is refused the scheduler decides, as it would anyway.
pub(crate) fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
