//! What must outlive the process, but not the machine's uptime: the last file and values that were
//! good. A file that is broken when the agent starts then removes no protection. What changed, and the
//! pods that were known last, are kept the same way.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::warn;

use crate::policy::LastGood;

/// The last good policy.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Memory {
    /// The file's text.
    pub(super) file: String,
    /// The last good values, by the workloads' identities.
    pub(super) last_good: BTreeMap<String, LastGood>,
}

/// Reads it; `None` when there is none.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file that keeps something for the next start.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    /// Why it could not be written, once that was said.
    failure: Option<String>,
}

impl Keeper {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path, failure: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes it; whether that was done. It is to be tried again, and the same failure is said once.
    pub(crate) fn keep(&mut self, memory: &impl Serialize) -> bool {
        let failure = store(&self.path, memory).err().map(|problem| problem.to_string());
        if let Some(why) = failure.as_ref().filter(|why| self.failure.as_ref() != Some(*why)) {
            let path = self.path.display();
            warn!(%path, error = why, "this is not kept for the next start; it is tried again");
        }
        self.failure = failure;
        self.failure.is_none()
    }
}

/// Writes it whole or not at all.
pub(crate) fn store(path: &Path, memory: &impl Serialize) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = fs::File::create(&partial)?;
    file.write_all(&serde_json::to_vec(memory)?)?;
    fs::rename(&partial, path)
}
