//! What the kernel asks about leases of the fleet's quotas, and how it is answered: the store is asked, and
//! the SYN that waits is sent once more, to be judged again like any other. Nothing was spent on it, so
//! it never costs two hits, and one that gets lost here is repeated by its client.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{io::unix::AsyncFd, sync::Semaphore, time::timeout};
use tracing::{debug, warn};
use weir_common::layout::Handup;

use crate::{
    causes::with_causes,
    datapath::{Datapath, Door, Handups, Injector},
    quota::{identity::Identity, store::Store},
};

/// SYNs that may wait at once. More are dropped, and their clients repeat them.
const WAITING: usize = 256;
/// No store takes longer: its connection would be given up before.
const PATIENCE: Duration = Duration::from_secs(1);

/// What questions are about. Written by whoever owns the data plane, read without waiting for it.
#[derive(Debug, Default)]
pub struct Leases {
    asked: ArcSwapOption<Asked>,
    doors: ArcSwap<HashMap<(u32, u32), Door>>,
    /// SYNs that were left to their clients, ...
    left: AtomicU64,
    /// ... and how many of them the log has told.
    told: AtomicU64,
}

/// Who is asked, and the quotas by their cells.
type Asked = (Arc<dyn Store>, HashMap<u32, Identity>);

impl Leases {
    /// From here on these are asked about.
    pub(super) fn ask(&self, asked: Option<Asked>) {
        self.asked.store(asked.filter(|(_, quotas)| !quotas.is_empty()).map(Arc::new));
    }

    /// Notes where packets of workloads are judged.
    pub(super) fn know(&self, datapath: &Datapath) {
        let doors = datapath.doors().map(|(slot, door)| ((slot, door.ifindex), door));
        self.doors.store(Arc::new(doors.collect()));
    }

    /// Tells how many SYNs were left to their clients since the last time, if any.
    pub(super) fn tell(&self) {
        let left = self.left();
        let fresh = left - self.told.swap(left, Relaxed);
        if fresh > 0 {
            warn!(
                left = fresh,
                "SYNs that waited for a quota of the fleet were not sent once more: too many wait \
                 at once, or they cannot be sent as they are; their clients repeat them"
            );
        }
    }

    /// How many SYNs were left to their clients so far.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Relaxed)
    }

    fn leave(&self) {
        self.left.fetch_add(1, Relaxed);
    }
}

/// Answers all that is asked, until the ring fails.
pub(super) async fn answer(
    mut handups: AsyncFd<Handups>,
    leases: Arc<Leases>,
    injector: Arc<Injector>,
) -> std::io::Error {
    let waiting = Arc::new(Semaphore::new(WAITING));
    loop {
        let mut ready = match handups.readable_mut().await {
            Ok(ready) => ready,
            Err(error) => return error,
        };
        while let Some(handup) = ready.get_inner_mut().next_told() {
            take(&handup, &leases, &injector, &waiting);
        }
        ready.clear_ready();
    }
}

fn take(handup: &Handup, leases: &Arc<Leases>, injector: &Arc<Injector>, waiting: &Arc<Semaphore>) {
    let asked = leases.asked.load();
    let Some((store, quotas)) = asked.as_deref() else { return };
    let Some(quota) = quotas.get(&handup.cell).copied() else { return };
    if handup.lacks == 0 {
        return store.low(quota);
    }
    let wanted = store.want(quota);
    let packet = handup.packet.get(..usize::from(handup.length)).unwrap_or_default().to_vec();
    let permit = Arc::clone(waiting).try_acquire_owned().ok().filter(|_| !packet.is_empty());
    let Some(permit) = permit else { return leases.leave() };
    let (leases, injector) = (Arc::clone(leases), Arc::clone(injector));
    let at = (handup.slot, handup.ifindex);
    tokio::spawn(async move {
        // Late or not: judged again, it is admitted, refused, or waits once more.
        let _ = timeout(PATIENCE, wanted).await;
        let sent = tokio::task::spawn_blocking(move || {
            let doors = leases.doors.load();
            // An interface that is gone takes its SYNs along.
            let Some(door) = doors.get(&at) else { return };
            if let Err(problem) = injector.send(&packet, door) {
                debug!(problem = with_causes(&problem), "a SYN is left to its client");
                leases.leave();
            }
        });
        // A panic inside has been told, and leaves one SYN to its client.
        let _ = sent.await;
        drop(permit);
    });
}
