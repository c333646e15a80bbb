//! What the programs do with packets that a test run cannot build, on a device of the test's own.
//!
//! The last test asks the only authority on what a packet is: a receiver.
//!
//! Needs root: each test has a network namespace.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{LinkOrder, TcAttachType, tc::TcAttachOptions};
use etherparse::{Ipv4Header, NetSlice, SlicedPacket, TransportSlice};
use nix::net::if_::if_nametoindex;
use proptest::{prelude::*, sample::Index, test_runner::TestRunner};
use weir::lab::{Lab, Namespace, Prefix, Route, add_address, add_route, privileged};
use weir_common::verdict::{Reason, Verdict};
use weir_tests::{
    packet::{Extension::*, Packet, flag, patched},
    tap::{Handed, Kind, Tap},
    testrun::{Globals, Policy, Programs, RuleExt as _, Which, load_or_skip},
};

const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 7);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9);
/// The client that no limit concerns.
const FRIEND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 99);
const WEB: u32 = 1;
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A namespace, its device and the programs, of which one may be attached to it.
struct Wire {
    programs: Programs,
    tap: Tap,
    namespace: Namespace,
    _lab: Lab,
}

/// Sets up a workload without tokens behind a device; `None` where that cannot be.
fn wire(test: &str, kind: Kind, offload: bool) -> Option<Wire> {
    if !privileged(test) {
        return None;
    }
    let link_header = if kind == Kind::Tap { 14 } else { 0 };
    let globals = Globals { link_header, ..Globals::default() };
    let mut programs = load_or_skip(test, globals)?;
    let lab = Lab::new().expect("a lab");
    let namespace = lab.namespace("wire").expect("a namespace");
    let made = namespace.run(|| Tap::create(kind, "wire0", offload)).expect("the namespace");
    let tap = match made {
        Ok(tap) => tap,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            weir::lab::skip(test, "no /dev/net/tun");
            return None;
        }
        Err(error) => panic!("cannot make a device: {error}"),
    };
    for (address, length) in [(IpAddr::from(SERVER_V4), 24), (SERVER_V6.into(), 64)] {
        add_address(&namespace, "wire0", Prefix::new(address, length)).expect("an address");
    }
    for network in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        add_route(&namespace, "wire0", Prefix::new(network, 0), Route::Link).expect("a route");
    }
    let rules = [programs.connections(1), programs.connections(1)];
    for rule in &rules {
        programs.set_full(rule, false);
    }
    let exempt = programs.exempt().only(FRIEND, 32);
    let policy = Policy {
        ingress: vec![exempt, rules[0]],
        egress: vec![exempt, rules[1]],
        ..Policy::default()
    };
    programs.serve(WEB, &policy);
    let mut wire = Wire { programs, tap, namespace, _lab: lab };
    let index = wire.inside(|_| if_nametoindex("wire0").expect("the device"));
    wire.programs.at_interface(index, WEB);
    Some(wire)
}

impl Wire {
    /// Runs `work` in the namespace.
    fn inside<T: Send>(&mut self, work: impl FnOnce(&mut Programs) -> T + Send) -> T {
        let programs = &mut self.programs;
        self.namespace.run(|| work(programs)).expect("the namespace")
    }

    /// Attaches a program to the device.
    fn attach(&mut self, which: Which) {
        let side = match which {
            Which::OwnIn | Which::HostOut => TcAttachType::Ingress,
            _ => TcAttachType::Egress,
        };
        self.inside(|programs| {
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            let attached = programs.tc(which).attach_with_options("wire0", side, order);
            attached.expect("attach the program");
        });
    }

    /// What comes back of a packet; panics when nothing does.
    fn answer(&self, packet: &[u8], handed: Handed) -> Vec<u8> {
        self.tap.send(packet, handed);
        let l3 = if packet[0] >> 4 == 4 || packet[0] >> 4 == 6 { 0 } else { 14 };
        let tcp = |packet: &[u8]| is_tcp(packet, l3);
        self.tap.receive(PATIENCE, tcp).expect("an answer")
    }

    fn counted(&self, verdict: Verdict, reason: Reason) -> u64 {
        self.programs.total(verdict, reason)
    }
}

/// Whether TCP lies in this IP packet, or in this frame, behind tags or not.
fn is_tcp(packet: &[u8], mut l3: usize) -> bool {
    while l3 >= 14 && packet.get(l3 - 2..l3) == Some(&[0x81, 0]) {
        l3 += 4;
    }
    match packet.get(l3).map(|first| first >> 4) {
        Some(4) => packet.get(l3 + 9) == Some(&6),
        Some(6) => packet.get(l3 + 6) == Some(&6),
        _ => false,
    }
}

fn v4() -> Packet {
    Packet::syn(CLIENT_V4, SERVER_V4)
}

fn v6() -> Packet {
    Packet::syn(CLIENT_V6, SERVER_V6)
}

macro_rules! wire {
    ($kind:expr) => {
        wire!($kind, false)
    };
    ($kind:expr, $offload:expr) => {{
        match wire(weir_tests::this_test!(), $kind, $offload) {
            Some(wire) => wire,
            None => return,
        }
    }};
}

/// The same with the checksum left to a device: only the pseudo header is summed.
fn without_checksum(packet: &Packet) -> (Vec<u8>, Handed) {
    let bytes = packet.bytes();
    let l4 = packet.l4();
    let add = |sum: u32, word: &[u8]| sum + u32::from(u16::from_be_bytes([word[0], word[1]]));
    let addresses = match packet.source {
        IpAddr::V4(_) => &bytes[l4 - 8..l4],
        IpAddr::V6(_) => &bytes[l4 - 32..l4],
    };
    let sum = addresses.chunks(2).fold(6 + (bytes.len() - l4) as u32, add);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
    let handed = Handed { checksum_from: Some(l4), ..Handed::default() };
    (patched(bytes, l4 + 16, &sum.to_be_bytes()), handed)
}

#[test]
fn a_syn_whose_checksum_is_left_to_the_device_gets_a_valid_answer() {
    for kind in [Kind::Tap, Kind::Tun] {
        let mut wire = wire!(kind);
        wire.attach(Which::OwnIn);
        for syn in [v4(), v6()] {
            for payload in [0, 1, 700] {
                let syn = syn.clone().with(|packet| {
                    packet.payload = vec![3; payload];
                    packet.macs = packet.macs.filter(|_| kind == Kind::Tap);
                });
                let answer = syn.refusal().bytes();
                let (packet, handed) = without_checksum(&syn);
                assert_eq!(wire.answer(&packet, handed), answer, "{kind:?}");
                assert_eq!(wire.answer(&syn.bytes(), Handed::default()), answer, "{kind:?}");
            }
        }
        assert_eq!(wire.counted(Verdict::Reset, Reason::ConnectionRate), 12);
    }
}

#[test]
fn a_local_caller_is_refused_at_once() {
    for offload in [false, true] {
        for which in [Which::OwnOut, Which::HostIn] {
            let mut wire = wire!(Kind::Tun, offload);
            wire.attach(which);
            let refused = wire.inside(|_| {
                [IpAddr::from(CLIENT_V4), CLIENT_V6.into()].map(|peer| {
                    let peer = SocketAddr::new(peer, 8080);
                    TcpStream::connect_timeout(&peer, PATIENCE).map_err(|error| error.kind())
                })
            });
            for outcome in refused {
                assert_eq!(outcome.err(), Some(io::ErrorKind::ConnectionRefused));
            }
        }
    }
}

#[test]
fn a_local_caller_who_sends_data_with_its_syn_is_refused_at_once() {
    let mut wire = wire!(Kind::Tun, true);
    wire.attach(Which::OwnOut);
    // 1: as a client; 4: without a cookie.
    wire.namespace.set("ipv4/tcp_fastopen", "5").expect("TCP Fast Open");
    let error = wire.inside(|_| send_with_syn(SocketAddr::new(CLIENT_V4.into(), 8080), b"hello"));
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    // The kernel says whether the data was in the SYN.
    let event = wire.programs.events();
    assert_eq!(wire.counted(Verdict::Reset, Reason::OutboundRate), 1, "{event:?}");
}

/// Connects with data in the SYN; the error that it ends with.
fn send_with_syn(peer: SocketAddr, data: &[u8]) -> io::Error {
    let SocketAddr::V4(peer) = peer else { panic!("IPv4 is enough") };
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0, "a socket: {}", io::Error::last_os_error());
    // SAFETY: just made, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: integers and arrays of them, for which zeros are valid.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as libc::sa_family_t;
    address.sin_port = peer.port().to_be();
    address.sin_addr.s_addr = u32::from_ne_bytes(peer.ip().octets());
    // SAFETY: both buffers live and are as long as stated.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_FASTOPEN,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if sent < 0 {
        return io::Error::last_os_error();
    }
    // Sent with the SYN; the refusal comes with the next call.
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    match io::Read::read(&mut stream, &mut [0; 8]) {
        Ok(length) => panic!("read {length} bytes"),
        Err(error) => error,
    }
}

#[test]
fn a_packet_in_pieces_is_parsed_and_answered() {
    let mut wire = wire!(Kind::Tap);
    wire.attach(Which::OwnIn);
    for syn in [v4(), v6()] {
        let syn = syn.with(|packet| packet.payload = (0..5000).map(|at| at as u8).collect());
        let answer = syn.refusal().bytes();
        // In the first piece: the Ethernet header, some of IP, some of TCP, all headers.
        for linear in [14, 15, 34, 50, 66, 74, 94, 128] {
            let handed = Handed { linear: Some(linear), ..Handed::default() };
            assert_eq!(wire.answer(&syn.bytes(), handed), answer, "{linear} bytes in one piece");
        }
    }
}

#[test]
fn headers_that_are_too_long_to_look_through_hide_no_syn() {
    let mut wire = wire!(Kind::Tap);
    wire.attach(Which::OwnIn);
    let handed = Handed { linear: Some(14), ..Handed::default() };
    // The second ends within reach.
    for (length, verdict, reason) in
        [(255, Verdict::Drop, Reason::HeaderChain), (50, Verdict::Drop, Reason::ConnectionRate)]
    {
        let syn = v6().with(|packet| {
            packet.extensions = vec![Destination(length)];
            packet.payload = vec![0; 5000];
        });
        let before = wire.counted(verdict, reason);
        wire.tap.send(&syn.bytes(), handed);
        // The next packet comes back when this one has been judged.
        let _ = wire.answer(&v4().bytes(), Handed::default());
        assert_eq!(wire.counted(verdict, reason), before + 1, "{length}");
    }
}

#[test]
fn a_tag_that_the_stack_took_off_is_on_the_answer_again() {
    let mut wire = wire!(Kind::Tap);
    wire.attach(Which::OwnIn);
    for tags in [vec![(0x8100, 100)], vec![(0x88a8, 100), (0x8100, 7)]] {
        for syn in [v4(), v6()] {
            let syn = syn.with(|packet| packet.tags = tags.clone());
            wire.tap.send(&syn.bytes(), Handed::default());
            let answer = syn.refusal().bytes();
            let seen = wire.tap.receive(PATIENCE, |packet| packet == answer);
            assert!(seen.is_some(), "no answer with {tags:?}");
        }
    }
}

#[test]
fn frames_that_end_in_their_headers_are_counted_and_passed() {
    let mut wire = wire!(Kind::Tap);
    wire.attach(Which::OwnIn);
    for whole in [v4().bytes(), v6().bytes()] {
        let headers = whole.len() - 20;
        for length in 14..headers {
            wire.tap.send(&whole[..length], Handed::default());
        }
        let sent = headers as u64 - 14;
        let before = wire.counted(Verdict::Reset, Reason::ConnectionRate);
        let _ = wire.answer(&whole, Handed::default());
        assert_eq!(wire.counted(Verdict::Reset, Reason::ConnectionRate), before + 1);
        assert!(wire.counted(Verdict::Pass, Reason::Malformed) >= sent);
    }
}

/// Packets that together are, or may be taken for, the start of a connection, from this port.
fn evasions(port: u16) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let of = |base: Packet| {
        base.with(|packet| {
            packet.macs = None;
            packet.source_port = port;
            packet.id = port;
        })
    };
    let (v4, v6) = (of(v4()), of(v6()));
    let v4 = |change: fn(&mut Packet)| v4.clone().with(change);
    let chain = |extensions: &[weir_tests::packet::Extension]| {
        v6.clone().with(|packet| packet.extensions = extensions.to_vec())
    };
    let long = |packet: &mut Packet| packet.payload = vec![0; 24];
    let pieces = |packet: Packet, ends: &[usize]| {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let cuts = starts.zip(ends.iter().copied());
        cuts.map(|(start, end)| packet.clone().with(|p| p.cut = Some(start..end)).bytes())
            .collect::<Vec<_>>()
    };
    let backwards = |mut pieces: Vec<Vec<u8>>| {
        pieces.reverse();
        pieces
    };
    let without_length = |packet: Packet, at: usize| vec![patched(packet.bytes(), at, &[0, 0])];
    vec![
        ("a SYN", vec![v4(|_| ()).bytes()]),
        ("a SYN in IPv6", vec![chain(&[]).bytes()]),
        ("data", vec![v4(long).bytes()]),
        ("ECN", vec![v4(|packet| packet.flags |= 0xc0).bytes()]),
        ("URG and PSH", vec![v4(|packet| packet.flags |= 0x28).bytes()]),
        ("FIN", vec![v4(|packet| packet.flags |= 0x01).bytes()]),
        ("IPv4 options", vec![v4(|packet| packet.ip_options = vec![1; 40]).bytes()]),
        ("a total length of 0", without_length(v4(|_| ()), 2)),
        ("two fragments", pieces(v4(long), &[40, 64])),
        ("fragments in the wrong order", backwards(pieces(v4(long), &[40, 64]))),
        ("a header in two fragments", pieces(v4(long), &[16, 64])),
        ("options in two fragments", pieces(v4(long), &[24, 64])),
        ("a header in many fragments", pieces(v4(long), &[8, 16, 24, 32, 40, 64])),
        ("two fragments of IPv6", pieces(chain(&[Fragment]).with(long), &[40, 64])),
        ("options in two fragments of IPv6", pieces(chain(&[Fragment]).with(long), &[24, 64])),
        ("a header in two fragments of IPv6", pieces(chain(&[Fragment]).with(long), &[8, 64])),
        (
            "extension headers in two fragments",
            pieces(chain(&[Fragment, Destination(0), Destination(0)]), &[8, 56]),
        ),
        ("a fragment header that cuts nothing", vec![chain(&[Fragment]).bytes()]),
        ("hop-by-hop", vec![chain(&[HopByHop(0)]).bytes()]),
        ("a payload length of 0", without_length(chain(&[]), 4)),
        ("a payload length of 0 behind hop-by-hop", without_length(chain(&[HopByHop(0)]), 4)),
        (
            "all kinds of headers",
            vec![chain(&[HopByHop(0), Destination(0), Fragment, Destination(0)]).bytes()],
        ),
        ("six headers", vec![chain(&[Destination(0); 6]).bytes()]),
        ("seven headers", vec![chain(&[Destination(0); 7]).bytes()]),
        ("twenty headers", vec![chain(&[Destination(0); 20]).bytes()]),
        ("a long header", vec![chain(&[Destination(200)]).bytes()]),
    ]
}

/// Sends packets; whether they opened a connection before that of a friend.
fn accepted(wire: &Wire, packets: &[Vec<u8>], port: u16) -> bool {
    for packet in packets {
        wire.tap.send(packet, Handed::default());
    }
    let friend = Packet::syn(FRIEND, SERVER_V4).with(|packet| {
        packet.macs = None;
        packet.source_port = port;
    });
    wire.tap.send(&friend.bytes(), Handed::default());
    let mut accepted = false;
    loop {
        // SYN and ACK: to the friend, or to somebody who should have been refused.
        let answer = wire.tap.receive(PATIENCE, |packet| {
            let l4 = if packet[0] >> 4 == 4 { 20 } else { 40 };
            is_tcp(packet, 0) && packet.get(l4 + 13).is_some_and(|flags| flags & 0x3f == 0x12)
        });
        let answer = answer.expect("the friend is answered");
        hang_up(wire, &answer);
        if answer[0] >> 4 == 4 && answer[16..20] == FRIEND.octets() {
            return accepted;
        }
        accepted = true;
    }
}

/// Resets a connection that the receiver has accepted, or it would repeat its answer later.
fn hang_up(wire: &Wire, answer: &[u8]) {
    let of = |at: usize| -> [u8; 4] { answer[at..at + 4].try_into().expect("four bytes") };
    let (source, destination, l4) = match answer[0] >> 4 {
        4 => (IpAddr::from(of(12)), IpAddr::from(of(16)), 20),
        _ => {
            let of = |at: usize| -> [u8; 16] { answer[at..at + 16].try_into().expect("16 bytes") };
            (of(8).into(), of(24).into(), 40)
        }
    };
    let reset = Packet::syn(destination, source).with(|packet| {
        packet.macs = None;
        packet.port = u16::from_be_bytes([answer[l4], answer[l4 + 1]]);
        packet.source_port = u16::from_be_bytes([answer[l4 + 2], answer[l4 + 3]]);
        packet.sequence = u32::from_be_bytes(of(l4 + 8));
        packet.flags = flag::RST;
        packet.tcp_options.clear();
    });
    wire.tap.send(&reset.bytes(), Handed::default());
}

/// A receiver, ready for both families: IPv6 needs a moment after the device is up.
fn listen(wire: &mut Wire) -> TcpListener {
    let listener = wire.inside(|_| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080)));
    let deadline = Instant::now() + PATIENCE;
    let ready = (1..1000).any(|port| {
        assert!(Instant::now() < deadline, "IPv6 does not come up");
        let syn = v6().with(|packet| {
            packet.macs = None;
            packet.source_port = port;
        });
        accepted(wire, &[syn.bytes()], port) || {
            thread::sleep(Duration::from_millis(20));
            false
        }
    });
    assert!(ready, "the receiver does not answer");
    listener.expect("a listener")
}

#[test]
fn what_a_receiver_takes_for_a_connection_is_refused() {
    let mut wire = wire!(Kind::Tun);
    let _listener = listen(&mut wire);
    // Without programs, to see that the receiver is one, and which tricks it falls for.
    let count = evasions(0).len() as u16;
    let tried = |wire: &Wire, index: u16| {
        let port = 1000 + index;
        let (name, packets) = evasions(port).swap_remove(index.into());
        (name, accepted(wire, &packets, port))
    };
    let taken: Vec<&str> =
        (0..count).map(|index| tried(&wire, index)).filter(|t| t.1).map(|t| t.0).collect();
    eprintln!("taken by the receiver: {taken:#?}");
    assert!(taken.starts_with(&["a SYN", "a SYN in IPv6"]), "{taken:?}");

    let mut wire = wire!(Kind::Tun);
    let _listener = listen(&mut wire);
    wire.attach(Which::OwnIn);
    for index in 0..count {
        let (name, accepted) = tried(&wire, index);
        assert!(!accepted, "{name} got through");
    }
}

/// Where changes of single bytes are worth while.
const HEADERS: usize = 80;

/// What is changed of a packet.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Cut(Index),
}

#[test]
fn whatever_is_done_to_packets_the_receiver_sees_no_connection() {
    let mut wire = wire!(Kind::Tun);
    let _listener = listen(&mut wire);
    wire.attach(Which::OwnIn);
    let shapes = evasions(0);
    let change = prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        3 => (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => (any::<Index>(), proptest::collection::vec(any::<u8>(), 8..9))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => any::<Index>().prop_map(Change::Cut),
    ];
    let changed = (any::<Index>(), proptest::collection::vec((any::<Index>(), change), 0..4));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let port = std::cell::Cell::new(1000u16);
    let result = runner.run(&changed, |(shape, changes)| {
        port.set(port.get().wrapping_add(1).max(1000));
        let (name, mut packets) = evasions(port.get()).swap_remove(shape.index(shapes.len()));
        for (packet, change) in changes {
            let packet = packet.index(packets.len());
            alter(&mut packets[packet], &change);
        }
        packets.iter_mut().for_each(|packet| sum_up(packet));
        // The device itself takes nothing that is neither IPv4 nor IPv6.
        packets.retain(|packet| packet.len() >= 20 && [4, 6].contains(&(packet[0] >> 4)));
        prop_assert!(!accepted(&wire, &packets, port.get()), "{name}: {packets:02x?}");
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// Makes the checksums right again, or a receiver would look no further.
fn sum_up(packet: &mut [u8]) {
    let header = 4 * usize::from(packet.first().map_or(0, |first| first & 0xf));
    if packet.first().is_some_and(|first| first >> 4 == 4)
        && let Ok((mut ip, _)) = Ipv4Header::from_slice(packet)
    {
        ip.header_checksum = ip.calc_header_checksum();
        packet[..header].copy_from_slice(&ip.to_bytes());
    }
    if let Some((at, sum)) = tcp_sum(packet) {
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Where the checksum of TCP stands, and what it should be.
fn tcp_sum(packet: &[u8]) -> Option<(usize, u16)> {
    let parsed = SlicedPacket::from_ip(packet).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = &parsed.transport else { return None };
    let sum = match &parsed.net {
        Some(NetSlice::Ipv4(ip)) => {
            tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
        }
        Some(NetSlice::Ipv6(ip)) => {
            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
        }
        _ => return None,
    };
    // Not from the packet's end: something may follow it.
    let at = tcp.slice().as_ptr() as usize - packet.as_ptr() as usize;
    Some((at + 16, sum.ok()?))
}

fn alter(packet: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Set(at, byte) => {
            let at = at.index(packet.len().min(HEADERS));
            packet[at] = *byte;
        }
        Change::Flip(at, bit) => {
            let at = at.index(packet.len().min(HEADERS));
            packet[at] ^= 1 << bit;
        }
        Change::Insert(at, bytes) => {
            let at = at.index(packet.len() + 1);
            packet.splice(at..at, bytes.iter().copied());
        }
        Change::Cut(at) => packet.truncate(1 + at.index(packet.len())),
    }
}
