//! Segmentation and checksum offloads of an interface, by the kernel's ethtool interface.

use std::{io, mem, os::fd::AsRawFd};

use super::{
    error::{Doing, LabError},
    namespace::Namespace,
};

/// What an interface can be told to leave to its hardware, or to do on its behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Offload {
    /// Checksums of what it receives.
    ReceiveChecksum = 0x15,
    /// Checksums of what it sends.
    SendChecksum = 0x17,
    /// Splitting of large TCP segments.
    Tso = 0x1f,
    /// Late splitting of large packets.
    Gso = 0x24,
    /// Joining of received packets. On a veth it also makes the receiving side run NAPI.
    Gro = 0x2c,
}

/// linux/ethtool.h: `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Turns an offload on or off.
pub fn set_offload(
    namespace: &Namespace,
    interface: &str,
    offload: Offload,
    on: bool,
) -> Result<(), LabError> {
    namespace
        .run(|| set(interface, offload, on))?
        .doing(|| format!("set {offload:?} of {interface} in {}", namespace.name()))
}

fn set(interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    let mut value = Value { command: offload as u32, data: u32::from(on) };
    // SAFETY: `ifreq` is integers, arrays and a union of such; all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // One byte is left for the terminating zero.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // Any socket of the namespace will do.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the name is terminated, and `ifru_data` points to a live `ethtool_value` that the
    // kernel reads (and for these commands does not write) during the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
