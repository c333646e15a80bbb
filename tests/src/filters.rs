//! What is attached by clsact, as the kernel lists it: for kernels before TCX (6.6).
//!
//! One netlink dump by hand (RTM_GETTFILTER): it shares no code with what attaches.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use weir::lab::{Namespace, link_index};

use crate::bpf::Hook;

/// A BPF filter of clsact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its place: the lowest number runs first.
    pub priority: u16,
    /// Its number within its place.
    pub handle: u32,
    /// The name that whoever attached it gave.
    pub name: String,
    /// The number of its program.
    pub program: u32,
}

const HEADER: usize = 16;
/// `struct tcmsg`.
const MESSAGE: usize = 20;
const ATTRIBUTE: usize = 4;

/// `TCA_OPTIONS`, and what a BPF filter has in it.
const OPTIONS: u16 = 2;
const NAME: u16 = 7;
const ID: u16 = 11;

/// The filters at a hook, in no order that counts. None where there is no clsact.
pub fn filters_at(namespace: &Namespace, interface: &str, hook: Hook) -> io::Result<Vec<Filter>> {
    let index = link_index(namespace, interface).map_err(io::Error::other)?;
    namespace.run(|| dump(index, hook)).map_err(io::Error::other)?
}

fn dump(index: u32, hook: Hook) -> io::Result<Vec<Filter>> {
    const GET: u16 = 46;
    const NEW: u16 = 44;
    const DONE: u16 = 3;
    const ERROR: u16 = 2;
    // NLM_F_REQUEST | NLM_F_DUMP
    const DUMP: u16 = 0x301;
    let parent: u32 = match hook {
        Hook::Ingress => 0xffff_fff2,
        Hook::Egress => 0xffff_fff3,
    };
    let mut request = Vec::new();
    request.extend_from_slice(&((HEADER + MESSAGE) as u32).to_ne_bytes());
    request.extend_from_slice(&GET.to_ne_bytes());
    request.extend_from_slice(&DUMP.to_ne_bytes());
    for word in [1, 0, 0, index, 0, parent, 0] {
        request.extend_from_slice(&u32::to_ne_bytes(word));
    }
    // SAFETY: numbers only; the descriptor is new, so nobody else has it.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(socket)
    };
    // SAFETY: the buffer is as long as said.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    loop {
        let mut buffer = vec![0u8; 1 << 16];
        let (at, room) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: the buffer is as long as said.
        let got = unsafe { libc::recv(socket.as_raw_fd(), at, room, 0) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut rest = &buffer[..got.cast_unsigned()];
        while rest.len() >= HEADER {
            let length = (u32_at(rest, 0) as usize).clamp(HEADER, rest.len());
            let message = &rest[HEADER..length];
            match u16_at(rest, 4) {
                DONE => return Ok(found),
                ERROR => {
                    let code = u32_at(message, 0).cast_signed();
                    return Err(io::Error::from_raw_os_error(-code));
                }
                NEW => found.extend(filter(message)),
                _ => {}
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// A filter; each place has a message of its own too, without options.
fn filter(message: &[u8]) -> Option<Filter> {
    let options = attribute(message.get(MESSAGE..)?, OPTIONS)?;
    let name = attribute(options, NAME)?.split(|&byte| byte == 0).next()?;
    Some(Filter {
        priority: (u32_at(message, 16) >> 16) as u16,
        handle: u32_at(message, 8),
        name: String::from_utf8_lossy(name).into_owned(),
        program: u32_at(attribute(options, ID)?, 0),
    })
}

fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    /// `NLA_TYPE_MASK`.
    const KIND: u16 = 0x3fff;
    while attributes.len() >= ATTRIBUTE {
        let length = usize::from(u16_at(attributes, 0)).clamp(ATTRIBUTE, attributes.len());
        if u16_at(attributes, 2) & KIND == kind {
            return Some(&attributes[ATTRIBUTE..length]);
        }
        attributes = &attributes[length.next_multiple_of(4).min(attributes.len())..];
    }
    None
}

/// Zero beyond the end, so that a cut message is no panic.
fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    if let Some(found) = from.get(at..at + N) {
        bytes.copy_from_slice(found);
    }
    bytes
}

fn u16_at(from: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes(from, at))
}

fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes(from, at))
}
