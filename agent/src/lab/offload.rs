//! Segmentation and checksum offloads of an interface, by the kernel's ethtool interface, and its MTU.

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
        .run(|| ethtool(interface, offload as u32, u32::from(on)).map(drop))?
        .doing(|| format!("set {offload:?} of {interface} in {}", namespace.name()))
}

/// Whether an offload is on.
pub fn has_offload(
    namespace: &Namespace,
    interface: &str,
    offload: Offload,
) -> Result<bool, LabError> {
    // Each `ETHTOOL_S…` stands behind its `ETHTOOL_G…`.
    namespace
        .run(|| ethtool(interface, offload as u32 - 1, 0).map(|data| data != 0))?
        .doing(|| format!("look at {offload:?} of {interface} in {}", namespace.name()))
}

/// Sets the largest packet that an interface sends, in bytes without its link header.
pub fn set_mtu(namespace: &Namespace, interface: &str, mtu: i32) -> Result<(), LabError> {
    namespace
        .run(|| {
            let mut request = request(interface)?;
            request.ifr_ifru.ifru_mtu = mtu;
            ask(libc::SIOCSIFMTU, &mut request)
        })?
        .doing(|| format!("set the MTU of {interface} in {} to {mtu}", namespace.name()))
}

/// What the kernel leaves in the command's value.
fn ethtool(interface: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut value = Value { command, data };
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    ask(libc::SIOCETHTOOL, &mut request)?;
    Ok(value.data)
}

fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is integers, arrays and a union of such; all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // One byte is left for the terminating zero.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn ask(question: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // Any socket of the namespace will do.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the name is terminated, and where the question has a pointer in `ifru_data` it is to a live
    // `ethtool_value`, which is all that the commands here read or write.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), question, &raw mut *request) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
