//! What one lab has on the machine, by name, and how it goes away.
//!
//! All names carry the process id. A lab lives as long as its process, so a name whose process is
//! gone is a leftover of a killed run and is removed when the next lab is made.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{
    error::{Doing, LabError},
    namespace::{self, Namespace},
    node::{Node, check},
};

const PREFIX: &str = "weirlab-";
const RUN: &str = "/run";
/// The bpffs, below the lab's directory.
const BPF: &str = "bpf";

/// A lab's names and its directory. Make it first and let it go last.
#[derive(Debug)]
pub struct Lab {
    id: String,
    directory: PathBuf,
}

impl Lab {
    /// Claims a directory below `/run`, readable by root alone, with an empty bpffs in it, and
    /// removes what dead runs have left.
    pub fn new() -> Result<Self, LabError> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        namespace::may_create()?;
        sweep();
        let id = match LABS.fetch_add(1, Ordering::Relaxed) {
            0 => format!("{PREFIX}{}", process::id()),
            more => format!("{PREFIX}{}.{more}", process::id()),
        };
        let directory = Path::new(RUN).join(&id);
        let bpf = directory.join(BPF);
        for path in [&directory, &bpf] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .doing(|| format!("make {}", path.display()))?;
        }
        // From here on, drop cleans up.
        let lab = Self { id, directory };
        // A mount of its own: bpffs gives every mount its own tree, so that nothing of the
        // machine's /sys/fs/bpf is touched and unmounting frees every pin at once.
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .doing(|| format!("mount a BPF file system at {}", bpf.display()))?;
        Ok(lab)
    }

    /// What all of this lab's names begin with.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its directory, for files and sockets.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A pin directory in the lab's own bpffs; made by whoever pins.
    pub fn pins(&self) -> PathBuf {
        self.directory.join(BPF).join("weir")
    }

    /// A namespace with nothing but a loopback.
    pub fn namespace(&self, name: &str) -> Result<Namespace, LabError> {
        check(name)?;
        Namespace::create(&format!("{}-{name}", self.id))
    }

    /// A node: a router without pods or clients yet.
    pub fn node(&self, name: &str) -> Result<Node, LabError> {
        Node::create(&self.id, name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove_directory(&self.directory);
    }
}

/// What still bears a lab's name: empty once all its parts are dropped.
pub fn remains(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (path, name) in named_paths() {
        let of_lab =
            name.strip_prefix(id).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        if of_lab {
            found.push(path);
        }
    }
    found
}

/// Removes what processes that are gone have left.
///
/// A process that is not in sight counts as gone. That holds as long as labs that share `/run`
/// also share their process ids, as everything outside of containers does.
fn sweep() {
    for (path, name) in named_paths() {
        let Some(owner) = owner(&name) else { continue };
        if Path::new("/proc").join(owner.to_string()).exists() {
            continue;
        }
        if path.starts_with(namespace::NETNS_DIR) {
            namespace::remove(&path);
        } else {
            remove_directory(&path);
        }
    }
}

/// Every path that a lab can own, with its name.
fn named_paths() -> impl Iterator<Item = (PathBuf, String)> {
    [namespace::NETNS_DIR, RUN]
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).into_iter().flatten())
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?)))
        .filter(|(_, name)| name.starts_with(PREFIX))
}

/// The process id in a name.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

fn remove_directory(directory: &Path) {
    let bpf = directory.join(BPF);
    // More than once if a killed run was interrupted between two mounts; EINVAL: not mounted.
    while umount2(&bpf, MntFlags::MNT_DETACH).is_ok() {}
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %directory.display(), %error, "a lab's directory stays behind");
    }
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn the_owner_of_a_name_is_its_process() {
        for (name, expected) in [
            ("weirlab-4711", Some(4711)),
            ("weirlab-4711-web", Some(4711)),
            ("weirlab-4711.2-web-3", Some(4711)),
            ("weirlab-", None),
            ("weirlab-web", None),
            ("other-4711", None),
        ] {
            assert_eq!(owner(name), expected, "{name}");
        }
    }
}
