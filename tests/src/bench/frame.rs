//! Frames, and programs that write a different one each time.
//!
//! A test run repeats one packet, and live frames come back as the last user left them. So a
//! source is a program: it writes what changes (or the whole frame), from a counter, and then goes
//! on as another program or sends the frame. What changes comes in pairs, a value and its
//! complement, so that every checksum stays true: a sum of 16-bit words does not notice.

use std::{
    io,
    net::IpAddr,
    os::fd::{BorrowedFd, OwnedFd},
};

use weir_tests::packet::{ETHERNET, IPV4, Packet};

use super::bpf::{self, Code, Kind, Op, Program, Register, Size};

/// Helpers by their number (linux/bpf.h).
const TAIL_CALL: i32 = 12;
const REDIRECT: i32 = 23;
/// What a source returns that could not do its work: no code of any program here.
const FAILED: i32 = 77;

/// Offsets within the Linux options that [`Packet::syn`] writes: MSS, SACK permitted, timestamps.
const TIMESTAMP: usize = 20 + 8;
const ECHOED: usize = 20 + 12;

/// What changes from frame to frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vary {
    /// Nothing.
    Nothing,
    /// Source port and initial sequence number: each frame opens another connection.
    Connection,
    /// These, and the last bits of an IPv4 source: so many sources, a power of two up to 65536.
    Sources(u32),
}

/// A template and what changes in it.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    l3: usize,
    l4: usize,
    vary: Vary,
    /// Whether every frame is written whole, because somebody rewrites it.
    whole: bool,
}

impl Frames {
    /// Frames like this one.
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self { bytes, l3: 0, l4: 0, vary: Vary::Nothing, whole: false }
    }

    /// SYNs like this one, each different.
    pub(crate) fn syns(packet: &Packet, vary: Vary) -> Self {
        let (l3, l4) = (packet.l3(), packet.l4());
        let mut bytes = packet.bytes();
        if vary != Vary::Nothing {
            // The template obeys the same pairs, so its checksums are those of all.
            for [value, complement] in pairs(l3, l4, vary, packet.source) {
                let word = [bytes[value] ^ 0xff, bytes[value + 1] ^ 0xff];
                bytes[complement..complement + 2].copy_from_slice(&word);
            }
            mend_checksums(&mut bytes, l3, l4);
        }
        Self { bytes, l3, l4, vary, whole: false }
    }

    /// Written whole each time.
    pub(crate) fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// The first frame.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The source that goes on as `target`, with the maps that it needs.
    pub(crate) fn before(&self, kind: Kind, target: BorrowedFd<'_>) -> io::Result<Source> {
        let jump = bpf::jump_to(target)?;
        self.source(kind, |code| {
            code.copy(1, CONTEXT);
            code.map(2, &jump);
            code.set(3, 0);
            code.call(TAIL_CALL);
            code.ret(FAILED);
        })
        .map(|source| Source { _jump: Some(jump), ..source })
    }

    /// The source that sends the frame out of an interface, as XDP.
    pub(crate) fn sent_to(&self, ifindex: u32) -> io::Result<Source> {
        self.source(Kind::Xdp, |code| {
            code.set(1, ifindex.cast_signed());
            code.set(2, 0);
            code.call(REDIRECT);
            code.exit();
        })
    }

    fn source(&self, kind: Kind, end: impl FnOnce(&mut Code)) -> io::Result<Source> {
        let counter = bpf::counter()?;
        let mut code = Code::default();
        let (data, data_end) = kind.bounds();
        code.copy(CONTEXT, 1);
        code.load(Size::Word, PACKET, 1, data);
        code.load(Size::Word, 3, 1, data_end);
        code.copy(4, PACKET);
        code.math(Op::Add, 4, self.bytes.len() as i32);
        code.return_if_greater(4, 3, FAILED);
        if self.whole {
            self.write_whole(&mut code);
        }
        if self.vary != Vary::Nothing {
            code.value(5, &counter);
            code.load(Size::Double, NUMBER, 5, 0);
            code.copy(1, NUMBER);
            code.math(Op::Add, 1, 1);
            code.store(Size::Double, 5, 0, 1);
            self.write_number(&mut code);
        }
        end(&mut code);
        let program = bpf::load(kind, &code)?;
        Ok(Source { program, _counter: counter, _jump: None })
    }

    fn write_whole(&self, code: &mut Code) {
        for (place, bytes) in self.bytes.chunks(4).enumerate() {
            let offset = (place * 4) as i16;
            match *bytes {
                [a, b, c, d] => {
                    code.store_value(Size::Word, PACKET, offset, i32::from_ne_bytes([a, b, c, d]));
                }
                [a, b, ..] => {
                    code.store_value(Size::Half, PACKET, offset, u16::from_ne_bytes([a, b]).into());
                }
                // Headers and options have even lengths.
                _ => {}
            }
        }
    }

    fn write_number(&self, code: &mut Code) {
        let write = |code: &mut Code, offset: usize, complements: &[usize]| {
            code.store(Size::Half, PACKET, offset as i16, 1);
            code.math(Op::Xor, 1, 0xffff);
            for &complement in complements {
                code.store(Size::Half, PACKET, complement as i16, 1);
            }
        };
        // Never port 0, whatever the byte order.
        code.copy(1, NUMBER);
        code.math(Op::And, 1, 0x3fff);
        code.math(Op::Or, 1, 0x4000);
        write(code, self.l4, &[self.l4 + 6]);
        code.copy(1, NUMBER);
        code.math(Op::ShiftRight, 1, 14);
        code.math(Op::And, 1, 0xffff);
        write(code, self.l4 + 4, &[self.l4 + TIMESTAMP]);
        if let Vary::Sources(count) = self.vary {
            let at = self.l3 + 14;
            let base = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
            code.copy(1, NUMBER);
            code.math(Op::And, 1, (count - 1) as i32);
            code.math(Op::Or, 1, base.into());
            code.in_network_order(1);
            write(code, at, &[self.l3 + 4, self.l4 + ECHOED]);
        }
    }
}

const CONTEXT: Register = 6;
const PACKET: Register = 2;
const NUMBER: Register = 7;

/// Offsets of the 16-bit fields that change, each with the one that balances it.
fn pairs(l3: usize, l4: usize, vary: Vary, source: IpAddr) -> Vec<[usize; 2]> {
    let mut pairs = vec![[l4, l4 + 6], [l4 + 4, l4 + TIMESTAMP]];
    if matches!(vary, Vary::Sources(_)) && source.is_ipv4() {
        // The source address counts in two sums: its complements are the IP header's
        // identification and, for TCP, the echoed timestamp.
        pairs.push([l3 + 14, l3 + 4]);
        pairs.push([l3 + 14, l4 + ECHOED]);
    }
    pairs
}

/// Computes the checksums of a TCP segment over IPv4 or IPv6 again.
fn mend_checksums(bytes: &mut [u8], l3: usize, l4: usize) {
    let is_v4 = bytes[l3] >> 4 == 4;
    if is_v4 {
        bytes[l3 + 10..l3 + 12].fill(0);
        let sum = !fold(sum(&bytes[l3..l3 + IPV4]));
        bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes[l4 + 16..l4 + 18].fill(0);
    let addresses = if is_v4 { l3 + 12..l3 + 20 } else { l3 + 8..l3 + 40 };
    let length = (bytes.len() - l4) as u64;
    let sum = !fold(sum(&bytes[addresses]) + 6 + length + sum(&bytes[l4..]));
    bytes[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
}

/// RFC 1071, of an even number of bytes.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A loaded source.
#[derive(Debug)]
pub(crate) struct Source {
    /// The program.
    pub(crate) program: Program,
    _counter: OwnedFd,
    _jump: Option<OwnedFd>,
}

/// A UDP datagram over IPv4 with some payload.
pub(crate) fn udp(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    // The protocol alone tells; nobody here looks at what follows.
    bytes[ETHERNET + 9] = 17;
    bytes[ETHERNET + 10..ETHERNET + 12].fill(0);
    let sum = !fold(sum(&bytes[ETHERNET..ETHERNET + IPV4]));
    bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
    bytes
}
