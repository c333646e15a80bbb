//! Ctrl-C as a value that is asked, so that everything is cleaned up on the ordinary way out.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

/// Whether the user wants an end.
#[derive(Debug, Default)]
pub(super) struct Interrupt {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP ask for an end instead of being one.
    pub(super) fn listen() -> io::Result<Arc<Self>> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let interrupt = Arc::new(Self::default());
        let theirs = Arc::clone(&interrupt);
        let [mut int, mut term, mut hup] = {
            let _inside = runtime.enter();
            [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ]
        };
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                    _ = hup.recv() => {}
                }
            });
            theirs.ask();
        })?;
        Ok(interrupt)
    }

    /// Asks for an end.
    pub(super) fn ask(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    /// Waits until `until`, at most until an end is asked for, and says whether it was.
    pub(super) fn wait_until(&self, until: Instant) -> bool {
        let patience = until.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |asked| !*asked);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_ends_when_an_end_is_asked_for() {
        let interrupt = Interrupt::default();
        let never = Instant::now() + Duration::from_secs(3600);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| interrupt.wait_until(never));
            interrupt.ask();
            assert!(waiting.join().unwrap());
        });
        assert!(interrupt.wait_until(Instant::now()));
    }

    #[test]
    fn a_wait_ends_in_time() {
        let interrupt = Interrupt::default();
        assert!(!interrupt.wait_until(Instant::now() + Duration::from_millis(1)));
        assert!(!interrupt.wait_until(Instant::now()));
    }
}
