//! Packets by hand: SYNs with chosen addresses, ports and sequence numbers, and what comes back.
//!
//! They leave by a packet socket on a lab host's own interface, so they reach nothing but the lab.
//! Numbers and time are bounded here, whatever a test asks for.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::sys::{
    socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
    time::TimeSpec,
};
use weir::lab::{Host, link_index};

use crate::{
    bpf::{Foreign, Hook, Link, Place},
    packet::Packet,
};

/// No flood has more packets than this,
const MOST: u64 = 1_000_000;
/// lasts longer than this,
const LONGEST: Duration = Duration::from_secs(60);
/// or goes on while so many answers wait to be read.
const RECEIVE_BUFFER: libc::c_int = 64 << 20;

/// A SYN as Linux sends it.
pub fn syn(from: SocketAddr, to: SocketAddr, isn: u32) -> Packet {
    Packet::syn(from.ip(), to.ip()).with(|packet| {
        packet.source_port = from.port();
        packet.port = to.port();
        packet.sequence = isn;
        packet.lifetime = 64;
    })
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Says {
    /// SYN and ACK: the server takes the connection.
    SynAck,
    /// RST and ACK: refused.
    Reset,
    /// Another TCP segment.
    Other,
}

/// A TCP segment that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    /// What it says.
    pub says: Says,
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom it was sent.
    pub to: SocketAddr,
    /// Its sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledgment: u32,
}

/// A lab host's interface, for packets by hand.
#[derive(Debug)]
pub struct Wire<'a> {
    host: &'a Host,
    socket: OwnedFd,
    /// Keeps the host's own stack from answering what it never asked for.
    _mute: Option<Link>,
}

impl<'a> Wire<'a> {
    /// Beside the host's own stack, which answers segments that it knows nothing of with a RST.
    pub fn open(host: &'a Host) -> io::Result<Self> {
        let index = link_index(host.namespace(), host.interface()).map_err(io::Error::other)?;
        let socket = host.namespace().run(|| packet_socket(index));
        Ok(Self { host, socket: socket.map_err(io::Error::other)??, _mute: None })
    }

    /// In place of the host's own TCP, which from now on hears nothing: SYNs are abandoned.
    pub fn open_alone(host: &'a Host) -> io::Result<Self> {
        // Packet sockets listen before TC.
        let mute = Foreign::tc_drops_tcp("mute")?;
        let link = mute.attach(host.namespace(), host.interface(), Hook::Ingress, Place::First)?;
        Ok(Self { _mute: Some(link), ..Self::open(host)? })
    }

    /// Sends one packet to the node.
    pub fn send(&self, packet: &Packet) {
        self.try_send(packet).expect("send a packet");
    }

    fn try_send(&self, packet: &Packet) -> io::Result<()> {
        let mut packet = packet.clone();
        packet.macs = Some([self.host.node_mac(), self.host.mac()]);
        let bytes = packet.bytes();
        // SAFETY: the buffer is as long as said.
        let sent =
            unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends `count` packets, at `per_second` or as fast as it goes. What the other end has no room for,
    /// beside what else the host sends, is lost.
    pub fn flood(
        &self,
        count: u64,
        per_second: Option<u64>,
        mut packet: impl FnMut(u64) -> Packet,
    ) {
        assert!(count <= MOST, "{count} packets are more than a test may send");
        let start = Instant::now();
        for number in 0..count {
            if let Some(rate) = per_second {
                let due = start + Duration::from_nanos(number * 1_000_000_000 / rate);
                // Sleep overshoots: whoever is late catches up.
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            assert!(start.elapsed() < LONGEST, "{number} of {count} packets took too long");
            match self.try_send(&packet(number)) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                sent => sent.expect("send a packet"),
            }
        }
    }

    /// Collects answers until there are `enough`, or nothing more came for as long as `patience`.
    pub fn answers(&self, patience: Duration, enough: impl Fn(&[Answer]) -> bool) -> Vec<Answer> {
        let start = Instant::now();
        let mut answers = Vec::new();
        let mut quiet_since = start;
        while !enough(&answers) && quiet_since.elapsed() < patience && start.elapsed() < LONGEST {
            let left = patience.saturating_sub(quiet_since.elapsed());
            let Some(bytes) = self.receive(left) else { continue };
            if let Some(answer) = read(&bytes) {
                answers.push(answer);
                quiet_since = Instant::now();
            }
        }
        answers
    }

    /// What came for each SYN of `first`, known by the answer to `last`: packets keep their order
    /// on the way there, so what was answered at all was answered before.
    pub fn answers_until(&self, last: SocketAddr) -> Vec<Answer> {
        let to_last = |answers: &[Answer]| answers.iter().any(|answer| answer.from == last);
        let answers = self.answers(Duration::from_secs(10), to_last);
        assert!(to_last(&answers), "no answer of {last}, only {answers:#?}");
        answers.into_iter().filter(|answer| answer.from != last).collect()
    }

    fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        let mut poll =
            libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one live `pollfd`.
        if unsafe { libc::poll(&raw mut poll, 1, millis.max(1)) } < 1 {
            return None;
        }
        let mut buffer = [0u8; 2048];
        // SAFETY: the buffer is as long as said.
        let length = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let length = usize::try_from(length).ok()?;
        buffer.get(..length).map(<[u8]>::to_vec)
    }
}

/// The SYNs that come to a host, stamped by the kernel when they come out of the wire.
#[derive(Debug)]
pub struct Arrivals(OwnedFd);

impl Arrivals {
    /// Begins to listen.
    pub fn listen(host: &Host) -> io::Result<Self> {
        let index = link_index(host.namespace(), host.interface()).map_err(io::Error::other)?;
        let socket = host.namespace().run(|| packet_socket(index)).map_err(io::Error::other)??;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        until_arrivals_are_stamped()?;
        Ok(Self(socket))
    }

    /// When those came that nobody has asked for yet, in seconds since 1970.
    pub fn syns(&self) -> Vec<f64> {
        let mut stamps = Vec::new();
        let mut buffer = [0u8; 2048];
        while let Some((length, stamp)) = receive_stamped(self.0.as_fd(), &mut buffer) {
            let is_syn = SlicedPacket::from_ethernet(&buffer[..length]).is_ok_and(|packet| {
                matches!(packet.transport, Some(TransportSlice::Tcp(tcp)) if tcp.syn() && !tcp.ack())
            });
            if is_syn {
                stamps.push(stamp.as_secs_f64());
            }
        }
        stamps
    }
}

/// The kernel begins to stamp what arrives some time after the first socket asked for it: it has
/// its code patched by a worker. Until then a packet is stamped when it is read.
/// <https://elixir.bootlin.com/linux/v6.12/source/net/core/dev.c#L2119> (`net_enable_timestamp`)
fn until_arrivals_are_stamped() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    let patience = Instant::now() + LONGEST;
    loop {
        socket.send_to(&[0], socket.local_addr()?)?;
        let here = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        if receive_stamped(socket.as_fd(), &mut [0]).is_some_and(|(_, stamp)| stamp < here) {
            return Ok(());
        }
        if Instant::now() > patience {
            return Err(io::Error::other("the kernel does not stamp what arrives"));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The length of the next packet, and when it came since 1970; nothing if none waits.
fn receive_stamped(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Option<(usize, Duration)> {
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    let stamp = message.cmsgs().expect("read a stamp").find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    });
    Some((message.bytes, stamp.expect("a packet without a stamp")))
}

fn packet_socket(index: u32) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers; the kernel gives a descriptor that is nobody else's.
    let socket = unsafe {
        let socket = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::c_int::from(protocol),
        );
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(socket)
    };
    // SAFETY: `sockaddr_ll` is integers; all zeros is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address is live and as long as said.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
    Ok(socket)
}

fn option(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value is live and as long as said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn read(frame: &[u8]) -> Option<Answer> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    let says = match (tcp.syn(), tcp.rst(), tcp.ack()) {
        (true, false, true) => Says::SynAck,
        (false, true, true) => Says::Reset,
        _ => Says::Other,
    };
    Some(Answer {
        says,
        from: SocketAddr::new(from, tcp.source_port()),
        to: SocketAddr::new(to, tcp.destination_port()),
        sequence: tcp.sequence_number(),
        acknowledgment: tcp.acknowledgment_number(),
    })
}
