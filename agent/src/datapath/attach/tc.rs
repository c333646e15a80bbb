//! One TC program at one hook: a TCX link, or a filter where the kernel has none.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};

use super::{Rank, Way};
use crate::datapath::error::AnyError;

/// Our places among clsact filters, by rank: before everybody who did not ask for a place. Of one
/// priority, the last to come runs first.
const PRIORITIES: [u16; 2] = [1, 2];
/// Our number there, "weir" in ASCII: others count from 1, and who asks for a number that is taken
/// replaces the program behind it.
const HANDLE: TcHandle = TcHandle::new(0x7765, 0x6972);

/// Where a program is to run.
pub(super) struct Hook<'a> {
    pub(super) interface: &'a str,
    pub(super) hook: TcAttachType,
    pub(super) rank: Rank,
    pub(super) order: LinkOrder,
}

pub(super) enum AttachError {
    Program(AnyError),
    Pin(PathBuf, io::Error),
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for AttachError {
    fn from(error: E) -> Self {
        Self::Program(Box::new(error))
    }
}

pub(super) const fn hook(host: bool, way: Way) -> TcAttachType {
    match (host, way) {
        // What leaves the host through its end of the pair enters the workload.
        (true, Way::In) | (false, Way::Out) => TcAttachType::Egress,
        (true, Way::Out) | (false, Way::In) => TcAttachType::Ingress,
    }
}

/// Makes a program run at a hook, in place of what the pin at this path has there. Says what holds it:
/// `tcx` or `clsact`.
pub(super) fn attach(
    program: &mut SchedClassifier,
    at: Hook,
    path: &Path,
    no_tcx: &mut bool,
) -> Result<&'static str, AttachError> {
    let Hook { interface, hook, rank, order } = at;
    let priority = PRIORITIES[rank as usize];
    if path.exists() {
        match replace(program, interface, hook, priority, path) {
            Ok(kind) => return Ok(kind),
            // The interface died and took the link along, or somebody removed the filter.
            Err(_) => remove_pin(path)?,
        }
    }
    if !*no_tcx {
        match program.attach_with_options(interface, hook, TcAttachOptions::TcxOrder(order)) {
            Ok(id) => {
                let link: FdLink = program.take_link(id)?.try_into()?;
                link.pin(path)
                    .map_err(|error| AttachError::Pin(path.to_owned(), io::Error::other(error)))?;
                return Ok("tcx");
            }
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                *no_tcx = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
    // Somebody else's clsact serves as well; it is never removed.
    let _ = tc::qdisc_add_clsact(interface);
    let options = NlOptions { priority, handle: HANDLE, classid: None };
    let id = program.attach_with_options(interface, hook, TcAttachOptions::Netlink(options))?;
    keep_filter(program.take_link(id)?);
    // A filter has no link to pin; the program's pin marks that it is there.
    program
        .pin(path)
        .map_err(|error| AttachError::Pin(path.to_owned(), io::Error::other(error)))?;
    Ok("clsact")
}

/// Swaps the program behind an existing attachment.
fn replace(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
    priority: u16,
    path: &Path,
) -> Result<&'static str, AnyError> {
    match pinned_link(path) {
        Ok(link) => {
            let id = program.attach_to_link(link)?;
            // Closing this descriptor leaves the pinned link as it is.
            let _: FdLink = program.take_link(id)?.try_into()?;
            Ok("tcx")
        }
        Err(_) => {
            let link = SchedClassifierLink::attached(interface, hook, priority, HANDLE, None)?;
            let id = program.attach_to_link(link)?;
            keep_filter(program.take_link(id)?);
            Ok("clsact")
        }
    }
}

/// The link behind a pin; an error for a filter's pin.
pub(super) fn pinned_link(path: &Path) -> Result<SchedClassifierLink, LinkError> {
    PinnedLink::from_pin(path).map(FdLink::from).and_then(SchedClassifierLink::try_from)
}

/// A filter's handle removes it when dropped; filters are to outlive this process.
fn keep_filter(link: SchedClassifierLink) {
    std::mem::forget(link);
}

pub(super) fn remove_filter(interface: &str, program: &str) {
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        // At most hooks it is not there.
        let _ = tc::qdisc_detach_program(interface, hook, program);
    }
}

fn remove_pin(path: &Path) -> Result<(), AttachError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::Pin(path.to_owned(), error))
        }
        _ => Ok(()),
    }
}

/// Names of programs that run before ours at a hook; `None` when ours does not run there.
pub(super) fn programs_before(
    ours: u32,
    interface: &str,
    hook: TcAttachType,
) -> Option<Vec<String>> {
    let (_, chain) = SchedClassifier::query_tcx(interface, hook).ok()?;
    let place = chain.iter().position(|program| program.id() == ours)?;
    let name = |program: &ProgramInfo| program.name_as_str().unwrap_or("?").to_owned();
    Some(chain[..place].iter().map(name).collect())
}
