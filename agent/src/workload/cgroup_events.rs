//! Tells when pods' cgroups come and go, and when the first process is in one. It does not say
//! which: the engine compares what it wants with what is there.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{io::unix::AsyncFd, time::sleep};

use super::cgroup::Cgroups;

/// A container's start makes several changes; they are answered once.
const SETTLE: Duration = Duration::from_millis(5);

/// Changes of the pods' cgroups.
#[derive(Debug)]
pub struct CgroupEvents {
    root: PathBuf,
    inotify: AsyncFd<Descriptor>,
    watched: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl CgroupEvents {
    /// Watches the cgroups below a mount point.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the descriptor is owned and never replaced while it is registered.
        let inotify = unsafe { AsyncFd::register(Descriptor(inotify)) }?;
        let mut events = Self { root, inotify, watched: BTreeSet::new() };
        events.watch();
        Ok(events)
    }

    /// Waits for a change, and for those that come right after it; what there is then.
    pub async fn changed(&mut self) -> io::Result<Cgroups> {
        let mut ready = self.inotify.readable().await?;
        sleep(SETTLE).await;
        loop {
            match ready.get_inner().0.read_events() {
                // What was told does not matter; more than fits in the queue was something, too.
                Ok(_) => {}
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(self.watch())
    }

    /// Watches what came, and forgets what went: its watches went with it. What there is.
    fn watch(&mut self) -> Cgroups {
        let cgroups = Cgroups::look(&self.root);
        let Cgroups { pods, above } = &cgroups;
        let children =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        let pods: Vec<&PathBuf> = pods.values().flatten().collect();
        let directories = above.iter().chain(pods.iter().copied()).cloned();
        let directories = directories.map(|path| (path, children));
        // cgroup v2 says there when the first process came and the last one went; v1 does not.
        let files = pods.iter().map(|path| (path.join("cgroup.events"), AddWatchFlags::IN_MODIFY));
        let mut watched = BTreeSet::new();
        for (path, flags) in directories.chain(files) {
            if self.watched.contains(&path) || self.add(&path, flags) {
                watched.insert(path);
            }
        }
        self.watched = watched;
        cgroups
    }

    fn add(&self, path: &Path, flags: AddWatchFlags) -> bool {
        // Gone by now, or none of its kind here: nothing to watch.
        self.inotify.get_ref().0.add_watch(path, flags).is_ok()
    }
}
