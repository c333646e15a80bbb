//! The hooks in `connect()`: whose calls they judge, and keeping them attached.
//!
//! Two programs on the root of the cgroup v2 hierarchy see every `connect()` of the node, and look
//! the caller's network namespace up in `CALLERS`. They are attached only while somebody stands
//! there. Where they cannot be attached nothing is lost but time: TC refuses the same connections.
//!
//! A link to a cgroup cannot be given another program by the libraries used here, so a starting agent
//! attaches its own beside the old one and renames its pin over the old one's. Meanwhile both judge a
//! call, and the second passes on what the first refused: neither takes anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::programs::{CgroupAttachMode, links::FdLink};
use weir_common::{
    addr::Addr,
    layout::{Local, MAX_LOCALS},
};

use super::{
    error::{AnyError, DatapathError},
    maps::Writers,
    object::Programs,
};
use crate::compile::Identity;

/// The programs and their pins.
const HOOKS: [(&str, &str); 2] = [("weir_connect4", "connect4"), ("weir_connect6", "connect6")];
/// Behind the name of a pin: not yet in the old one's place.
const NEW: &str = "-new";

/// Whether a pin is one of these.
pub(super) fn is_pin(name: &str) -> bool {
    let name = name.strip_suffix(NEW).unwrap_or(name);
    HOOKS.iter().any(|(_, pin)| *pin == name)
}

/// A workload to which all connections belong that a network namespace opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The workload.
    pub workload: Identity,
    /// The namespace's cookie.
    pub namespace: u64,
    /// The namespace's own addresses: connections to them do not leave it.
    pub addresses: Vec<IpAddr>,
}

/// What is hooked now.
#[derive(Debug)]
pub(super) struct Hooks {
    directory: PathBuf,
    /// Whether this process attached its programs.
    attached: bool,
}

impl Hooks {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.join("links"), attached: false }
    }

    pub(super) fn reconcile(
        &mut self,
        wanted: &[Caller],
        programs: &mut Programs,
        writers: &mut Writers,
        slot_of: impl Fn(Identity) -> Option<u32>,
    ) -> Result<BTreeMap<Identity, Result<(), DatapathError>>, DatapathError> {
        let mut callers = BTreeMap::new();
        let mut locals = BTreeSet::new();
        let mut results = BTreeMap::new();
        for caller in wanted {
            let Some(slot) = slot_of(caller.workload) else { continue };
            let result = note_locals(caller, slot, writers, &mut locals);
            if result.is_ok() {
                callers.insert(caller.namespace, slot);
            }
            results.insert(caller.workload, result);
        }
        // A caller comes after its addresses, and goes before they do; one that has another place now
        // changes it before they go.
        for (&namespace, &slot) in &callers {
            writers
                .callers
                .insert(namespace, slot, 0)
                .map_err(|source| DatapathError::Map { name: "CALLERS", source })?;
        }
        let known: Vec<u64> = writers.callers.keys().filter_map(Result::ok).collect();
        for namespace in known.into_iter().filter(|known| !callers.contains_key(known)) {
            let _ = writers.callers.remove(&namespace);
        }
        let known: Vec<Local> = writers.locals.keys().filter_map(Result::ok).collect();
        for local in known.into_iter().filter(|known| !locals.contains(known)) {
            let _ = writers.locals.remove(&local);
        }
        if callers.is_empty() {
            self.detach();
            return Ok(results);
        }
        self.attach(programs)?;
        Ok(results)
    }

    fn attach(&mut self, programs: &mut Programs) -> Result<(), DatapathError> {
        let pins = HOOKS.map(|(_, pin)| self.directory.join(pin));
        if self.attached && pins.iter().all(|pin| pin.exists()) {
            return Ok(());
        }
        let path = root().ok_or(DatapathError::NoCgroup)?;
        let failed = |source: AnyError| DatapathError::Cgroup { path: path.clone(), source };
        let cgroup = File::open(&path).map_err(|error| failed(error.into()))?;
        // Both must load before the first is attached, as everywhere.
        for (name, _) in HOOKS {
            programs.connect(name)?;
        }
        for ((name, _), pin) in HOOKS.into_iter().zip(&pins) {
            let program = programs.connect(name)?;
            // For a link the kernel always lets others in beside it, and takes no mode.
            let id = program
                .attach(&cgroup, CgroupAttachMode::Single)
                .map_err(|error| failed(error.into()))?;
            let link = program.take_link(id).map_err(|error| failed(error.into()))?;
            let link = FdLink::try_from(link).map_err(|error| failed(error.into()))?;
            replace(link, pin)
                .map_err(|source| DatapathError::Pin { path: pin.clone(), source })?;
        }
        self.attached = true;
        Ok(())
    }

    fn detach(&mut self) {
        for (_, pin) in HOOKS {
            // Its pin is all that holds a link; most of the time it is not there.
            let _ = fs::remove_file(self.directory.join(pin));
        }
        self.attached = false;
    }
}

/// Pins a link in the place of another: while both are there, both judge.
fn replace(link: FdLink, pin: &Path) -> io::Result<()> {
    let mut new = pin.as_os_str().to_owned();
    new.push(NEW);
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    link.pin(&new).map_err(io::Error::other)?;
    fs::rename(new, pin)
}

/// Tells the kernel which addresses are a caller's own.
fn note_locals(
    caller: &Caller,
    slot: u32,
    writers: &mut Writers,
    locals: &mut BTreeSet<Local>,
) -> Result<(), DatapathError> {
    for &address in &caller.addresses {
        let local = Local { address: Addr::from(address), slot: u64::from(slot) };
        writers.locals.insert(local, 0, 0).map_err(|_| DatapathError::Full {
            what: "addresses in namespaces of workloads",
            limit: MAX_LOCALS,
        })?;
        locals.insert(local);
    }
    Ok(())
}

/// The directory of the root of the cgroup v2 hierarchy, where it is mounted.
///
/// In a cgroup namespace, what is mounted as its root may be a cgroup below the real one, which would
/// leave out all processes of others. Only the real one is of no [type](
/// https://docs.kernel.org/admin-guide/cgroup-v2.html#core-interface-files).
fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let is_root =
        |path: &PathBuf| path.join("cgroup.procs").exists() && !path.join("cgroup.type").exists();
    mount_points(&mounts).into_iter().find(is_root)
}

/// Where cgroup v2 is mounted, by the lines of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
fn mount_points(mounts: &str) -> Vec<PathBuf> {
    let of_line = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let is_cgroup2 = after.split(' ').next() == Some("cgroup2");
        let path = before.split(' ').nth(4).filter(|_| is_cgroup2)?;
        // Blanks in it are written as octal numbers; nobody mounts it below such a name.
        Some(PathBuf::from(path))
    };
    mounts.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_is_found_among_the_mounts() {
        let hybrid = "\
            24 1 0:22 / /sys/fs/cgroup rw,relatime shared:8 - tmpfs tmpfs rw,mode=755\n\
            25 24 0:23 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
            36 24 0:34 / /sys/fs/cgroup/unified rw,relatime - cgroup2 none rw\n\
            37 1 0:34 /a /mnt/a rw,relatime shared:1 master:2 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mount_points(hybrid),
            [PathBuf::from("/sys/fs/cgroup/unified"), PathBuf::from("/mnt/a")]
        );
        assert!(mount_points("").is_empty());
        assert!(mount_points("24 1 0:22 / /sys").is_empty());
    }

    #[test]
    fn its_pins_are_told_from_those_of_interfaces() {
        assert!(is_pin("connect4") && is_pin("connect6-new"));
        assert!(!is_pin("host-4-in") && !is_pin("connect5"));
    }
}
