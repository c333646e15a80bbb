//! What must outlive the process, but not the machine's uptime: the last file and values that were
//! good. A file that is broken when the agent starts then removes no protection. What changed, and the
//! pods that were known last, are kept the same way.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

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

/// Writes it whole or not at all.
pub(crate) fn store(path: &Path, memory: &impl Serialize) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = fs::File::create(&partial)?;
    file.write_all(&serde_json::to_vec(memory)?)?;
    fs::rename(&partial, path)
}
