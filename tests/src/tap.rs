//! A device whose other end is this process: real packets, byte by byte, through the stack.
//!
//! Where a test run's packets are too plain: checksums left to the device, packets in pieces, tags
//! taken off, and a receiver that says what it makes of a packet. Nothing here knows programs.
#![allow(clippy::expect_used, reason = "a test that cannot go on fails, and says where")]

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes before each packet: the header of virtio, which says what is left to do.
const HEADER: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;

/// What a device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ethernet frames.
    Tap,
    /// IP packets without a link header.
    Tun,
}

/// How a packet is handed in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handed {
    /// The checksum is left to the device: the sum starts here, 16 bytes before its field.
    pub checksum_from: Option<usize>,
    /// Only so many bytes lie in the buffer itself, the rest in pieces; for more than a page.
    pub linear: Option<usize>,
}

/// A tap or tun device in the thread's network namespace, up. It goes with this value.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Makes the device; with `offload` it offers to compute checksums.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(kind: Kind, name: &str, offload: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        let kind = match kind {
            Kind::Tap => libc::IFF_TAP,
            Kind::Tun => libc::IFF_TUN,
        };
        let mut request = request(name);
        request.ifr_ifru.ifru_flags =
            (kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the request is a live `ifreq` with a terminated name, as this call takes it.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
        // SAFETY: takes its argument by value.
        check(unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                if offload { libc::TUN_F_CSUM } else { 0 },
            )
        })?;
        let tap = Self { file, name: name.to_owned() };
        tap.bring_up()?;
        Ok(tap)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands a packet to the stack, as if it had come in over the device. The stack is done with
    /// it when this returns.
    ///
    /// # Panics
    /// When the device refuses it.
    pub fn send(&self, packet: &[u8], handed: Handed) {
        let mut header = [0; HEADER];
        if let Some(start) = handed.checksum_from {
            header[0] = NEEDS_CHECKSUM;
            header[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
            header[8..10].copy_from_slice(&16u16.to_ne_bytes());
        }
        if let Some(linear) = handed.linear {
            header[2..4].copy_from_slice(&(linear as u16).to_ne_bytes());
        }
        let parts = [IoSlice::new(&header), IoSlice::new(packet)];
        let sent = (&self.file).write_vectored(&parts);
        let sent = sent.unwrap_or_else(|error| panic!("hand in {} bytes: {error}", packet.len()));
        assert_eq!(sent, HEADER + packet.len());
    }

    /// The next packet that the stack sends and `wanted` is true of, or `None` after `patience`.
    ///
    /// # Panics
    /// When the device fails.
    pub fn receive(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; 70_000];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut ready = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut ready, timeout).expect("wait for a packet") == 0 {
                return None;
            }
            let length = (&self.file).read(&mut buffer).expect("read a packet");
            let packet = &buffer[HEADER..length];
            assert_eq!(buffer[0] & NEEDS_CHECKSUM, 0, "a packet without its checksum");
            if wanted(packet) {
                return Some(packet.to_vec());
            }
        }
    }

    fn bring_up(&self) -> io::Result<()> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        // SAFETY: as in `create`.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })?;
        let mut request = self::request(&self.name);
        request.ifr_ifru.ifru_mtu = 9000;
        // SAFETY: as in `create`.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &request) })
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: integers and unions of them, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < request.ifr_name.len(), "an interface's name has 15 bytes at most");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
