//! The XDP programs of uplinks and of shields.

use std::{fs, io, path::Path};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    xdp::XdpLink,
};

use super::UplinkMode;
use crate::datapath::error::{AnyError, DatapathError};

/// What an XDP program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Early {
    /// An uplink.
    Uplink(UplinkMode),
    /// The host's end of a veth whose workload floods others. In the driver alone: in the stack it would
    /// run when a packet has cost most of what it costs.
    Shield,
}

/// How the names of shields' pins begin.
const SHIELD: &str = "shield-";

impl Early {
    /// An interface has one of them at a time.
    pub(super) const ALL: [Self; 3] =
        [Self::Uplink(UplinkMode::Native), Self::Uplink(UplinkMode::Generic), Self::Shield];

    /// The program's name in the object.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Uplink(_) => "weir_uplink",
            Self::Shield => "weir_shield",
        }
    }

    /// How it runs.
    pub(super) const fn mode(self) -> UplinkMode {
        match self {
            Self::Uplink(mode) => mode,
            Self::Shield => UplinkMode::Native,
        }
    }

    /// The name of its pin.
    pub(super) fn pin(self, index: u32) -> String {
        match self {
            Self::Uplink(UplinkMode::Native) => format!("uplink-{index}-native"),
            Self::Uplink(UplinkMode::Generic) => format!("uplink-{index}-generic"),
            Self::Shield => format!("{SHIELD}{index}"),
        }
    }
}

/// The interface of the shield that has this pin.
pub(super) fn shielded(pin: &str) -> Option<u32> {
    pin.strip_prefix(SHIELD)?.parse().ok()
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
            // The last is a veth's, whose other end may send more than fits into a page
            // (<https://elixir.bootlin.com/linux/v6.12/source/drivers/net/veth.c#L1551>).
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE) if mode == UplinkMode::Native => {
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
