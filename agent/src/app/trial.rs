//! A node file on trial, on a machine whose administrator may shut themselves out with it.
//!
//! The trial lies beside the admin socket, and its time of change is its end: one file, replaced in
//! one step, that says all. While it has not ended it holds in place of the node file, which nobody
//! touches before the trial is confirmed. So a trial that is not confirmed ends by itself: by the
//! clock, or, where the folder does not outlive the machine (`/run`), with the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::{info, warn};

/// Where the trial of the agent with this admin socket lies.
pub fn path(socket: &Path) -> PathBuf {
    socket.with_file_name("trial.yaml")
}

/// When the trial ends, if there is one.
pub fn end(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// A trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The file.
    pub path: PathBuf,
    /// When it ends.
    pub ends: SystemTime,
}

impl Trial {
    /// When it ends, in seconds since 1970.
    pub fn ends_seconds(&self) -> f64 {
        self.ends.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }
}

/// The trial, while it holds. One that has ended is removed.
pub(super) fn current(path: &Path) -> Option<Trial> {
    let ends = end(path)?;
    if SystemTime::now() < ends {
        return Some(Trial { path: path.to_owned(), ends });
    }
    match fs::remove_file(path) {
        Ok(()) => {
            info!(trial = %path.display(), "audit: nobody confirmed the trial; the node file holds again")
        }
        Err(problem) => {
            warn!(trial = %path.display(), error = %problem, "a trial that has ended stays, and does not hold")
        }
    }
    None
}
