//! A timer that rings when it is asked to.
//!
//! The runtime's own timers count in whole milliseconds, and so does the call in which it sleeps: together
//! they ring up to two milliseconds late, which is much of the time that a decision has.

use std::{
    future, io,
    os::fd::{AsFd, AsRawFd, RawFd},
    time::Duration,
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

/// Rings once for each time that it is set.
pub(super) struct Alarm {
    timer: AsyncFd<Timer>,
    set: Option<Instant>,
}

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    /// One that is not set. Belongs to the runtime that calls this.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Timer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        // SAFETY: the timer owns its descriptor, and is not taken out while this lives.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self { timer, set: None })
    }

    /// Rings at this time, or at once if it is over, and at no other.
    pub(super) fn set(&mut self, at: Instant) {
        if self.set == Some(at) {
            return;
        }
        // None at all would mean never.
        let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let once = Expiration::OneShot(TimeSpec::from_duration(left));
        // The kernel refuses only what is no time or no timer.
        let set = self.timer.get_ref().0.set(once, TimerSetTimeFlags::empty());
        debug_assert_eq!(set, Ok(()));
        self.set = Some(at);
    }

    /// Waits until it rings; if it is not set, for ever.
    pub(super) async fn rings(&mut self) {
        if self.set.is_none() {
            return future::pending().await;
        }
        // It was set anew meanwhile, if there is nothing to read.
        let read = |timer: &Timer| timer.0.wait().map_err(io::Error::from);
        if self.timer.async_io(Interest::READABLE, read).await.is_err() {
            return future::pending().await;
        }
        self.set = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_rings_when_its_time_has_come_and_once() {
        let mut alarm = Alarm::new().unwrap();
        let at = Instant::now() + Duration::from_micros(1500);
        alarm.set(at);
        alarm.rings().await;
        assert!(Instant::now() >= at);
        let again = tokio::time::timeout(Duration::from_millis(20), alarm.rings()).await;
        assert!(again.is_err(), "it rang twice");
    }

    #[tokio::test]
    async fn a_time_that_is_over_rings_at_once() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Instant::now());
        alarm.rings().await;
    }

    #[tokio::test]
    async fn it_rings_at_the_time_that_was_set_last() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Instant::now());
        // It has rung by now, and nobody listened.
        let at = Instant::now() + Duration::from_millis(20);
        alarm.set(at);
        alarm.rings().await;
        assert!(Instant::now() >= at);
    }
}
