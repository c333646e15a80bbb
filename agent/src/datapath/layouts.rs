//! Pins of other layouts: what an agent of another version left, or holds now.
//!
//! A layout names what lies in the maps, so maps are never shared between layouts. Links are: a link
//! says where a program runs, not which. So the pins of links move to the directory of this layout,
//! where whoever attaches finds them and swaps the program behind each in one step. Until then the
//! old programs run, on the old maps, which live as long as they do. What the limits had spent is
//! forgotten with these maps: after a change of layout every bucket is full, and every count begins
//! with the sockets that the audit finds.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
};

use tracing::info;

use super::{error::DatapathError, maps};

/// The directory for the pins of links, in that of a layout.
pub(super) const LINKS: &str = "links";

/// Other layouts, which nobody else owns while this lives.
#[derive(Debug)]
pub(super) struct Others(Vec<(PathBuf, File)>);

impl Others {
    /// Becomes the owner of every other layout below `root`. An agent that owns one of them is an
    /// error, and then nothing is changed.
    pub(super) fn own(
        root: &Path,
        own: &Path,
        lock: impl Fn(&Path) -> Result<File, DatapathError>,
    ) -> Result<Self, DatapathError> {
        let locked = |path: PathBuf| lock(&path).map(|lock| (path, lock));
        others(root, own)?.into_iter().map(locked).collect::<Result<_, _>>().map(Self)
    }

    /// Takes over their links and removes the rest.
    pub(super) fn inherit(self, own: &Path) -> Result<(), DatapathError> {
        for (other, _lock) in self.0 {
            let links = move_links(&other, own)?;
            let maps = maps::unpin(&other).len();
            for path in [other.join(LINKS), other.clone()] {
                // An empty directory without an owner is no harm; the next agent tries again.
                let _ = fs::remove_dir(path);
            }
            info!(layout = %other.display(), links, maps, "audit: took over from another layout; its limits start anew");
        }
        Ok(())
    }
}

/// The directories of other layouts: `v` and a number.
fn others(root: &Path, own: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let failed = |source| DatapathError::PinDirectory { path: root.to_owned(), source };
    let mut others = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path != own && path.file_name().is_some_and(is_layout) && path.is_dir() {
            others.push(path);
        }
    }
    others.sort();
    Ok(others)
}

fn is_layout(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix('v'));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

fn move_links(other: &Path, own: &Path) -> Result<usize, DatapathError> {
    let to = own.join(LINKS);
    let failed = |source| DatapathError::Pin { path: to.clone(), source };
    fs::create_dir_all(&to).map_err(failed)?;
    let mut moved = 0;
    for entry in fs::read_dir(other.join(LINKS)).into_iter().flatten().flatten() {
        // Replaces a pin of the same interface: one program is enough there.
        fs::rename(entry.path(), to.join(entry.file_name())).map_err(failed)?;
        moved += 1;
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_a_v_and_a_number() {
        assert!(is_layout(OsStr::new("v1")) && is_layout(OsStr::new("v20")));
        for name in ["v", "vx", "1", "links", "v1.old", "v-1"] {
            assert!(!is_layout(OsStr::new(name)), "{name}");
        }
    }
}
