//! The XDP program of an uplink.

use std::{fs, io, path::Path};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    xdp::XdpLink,
};

use super::UplinkMode;
use crate::datapath::error::{AnyError, DatapathError};

/// The name of its pin.
pub(super) fn pin(index: u32, mode: UplinkMode) -> String {
    match mode {
        UplinkMode::Native => format!("uplink-{index}-native"),
        UplinkMode::Generic => format!("uplink-{index}-generic"),
    }
}

/// Makes the program run on an interface, in place of what the pin at this path has there.
pub(super) fn attach(
    program: &mut Xdp,
    interface: &str,
    mode: UplinkMode,
    path: &Path,
) -> Result<(), DatapathError> {
    if path.exists() {
        // Also when it is ours already: a link whose interface is gone refuses.
        if replace(program, path).is_ok() {
            return Ok(());
        }
        fs::remove_file(path)
            .map_err(|source| DatapathError::Pin { path: path.to_owned(), source })?;
    }
    let flags = match mode {
        UplinkMode::Native => XdpMode::Driver,
        UplinkMode::Generic => XdpMode::Skb,
    };
    let failed =
        |source: AnyError| DatapathError::Attach { interface: interface.to_owned(), source };
    let id = program.attach(interface, flags).map_err(|error| {
        let code = match &error {
            ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
            _ => None,
        };
        match code {
            Some(libc::EBUSY | libc::EEXIST) => {
                DatapathError::ForeignXdp { interface: interface.to_owned() }
            }
            Some(libc::EOPNOTSUPP | libc::EINVAL) if mode == UplinkMode::Native => {
                DatapathError::NoNativeXdp {
                    interface: interface.to_owned(),
                    source: Box::new(error),
                }
            }
            _ => failed(error.into()),
        }
    })?;
    let link = program.take_link(id).map_err(|error| failed(error.into()))?;
    let link: FdLink = link.try_into().map_err(|error: LinkError| failed(error.into()))?;
    link.pin(path).map_err(|error| DatapathError::Pin {
        path: path.to_owned(),
        source: io::Error::other(error),
    })?;
    Ok(())
}

/// Swaps the program behind an existing attachment.
fn replace(program: &mut Xdp, path: &Path) -> Result<(), AnyError> {
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(path)?))?;
    let id = program.attach_to_link(link)?;
    let _: FdLink = program.take_link(id)?.try_into()?;
    Ok(())
}
