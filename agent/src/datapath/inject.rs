//! Sending a packet towards a workload once more, to where it was judged.
//!
//! The kernel runs a program on the packet (`BPF_PROG_TEST_RUN`), which redirects a copy of it to the
//! interface, out of it or into it as before: it passes the hook again, at any kind of interface, and
//! that takes no socket and no capability beyond those of loading.

use std::{io, path::Path};

use super::{attach::Side, error::DatapathError, object};
use crate::workload::netns::NetNs;
use aya::{
    Ebpf, TestRun as _, TestRunOptions,
    programs::{ProgramError, SchedClassifier},
};

/// `BPF_F_INGRESS`: to where packets enter the interface.
const ENTERS: u32 = 1;
/// Bytes of `__sk_buff` up to and with `cb[1]`, and where `cb` begins (`include/uapi/linux/bpf.h`).
const CONTEXT: usize = 56;
const CB: usize = 48;
/// Bytes of an Ethernet header, and where its type stands.
const ETHERNET: usize = 14;
const ETHER_TYPE: usize = 12;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// Where a workload's packets come and go, and are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// The interface, in its namespace.
    pub ifindex: u32,
    /// Which end it is.
    pub side: Side,
    /// Its network namespace, if it is not the agent's.
    pub netns: Option<NetNs>,
    /// Whether its packets start with an Ethernet header.
    pub ethernet: bool,
}

impl Door {
    /// Whether packets towards the workload enter the interface there.
    const fn is_entered(&self) -> bool {
        match self.side {
            Side::Host => false,
            Side::Own | Side::Pod => true,
        }
    }
}

/// The program that sends.
pub struct Injector {
    object: Ebpf,
}

const NAME: &str = "weir_inject";

impl Injector {
    pub(super) fn load(directory: &Path) -> Result<Self, DatapathError> {
        let mut object = object::load(directory, object::PLAIN, 0)?;
        let program = object.program_mut(NAME).ok_or_else(|| refused(ProgramError::NotLoaded))?;
        let program: &mut SchedClassifier = program.try_into().map_err(refused)?;
        program.load().map_err(refused)?;
        Ok(Self { object })
    }

    /// Sends a packet that was judged at a door once more, from its link header on.
    pub fn send(&self, packet: &[u8], door: &Door) -> Result<(), DatapathError> {
        let packet = whole(packet, door.ethernet)
            .ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        let mut context = [0u8; CONTEXT];
        let flags = if door.is_entered() { ENTERS } else { 0 };
        for (to, word) in context[CB..].as_chunks_mut().0.iter_mut().zip([door.ifindex, flags]) {
            *to = word.to_ne_bytes();
        }
        let send = || -> Result<u32, DatapathError> {
            let program = self.object.program(NAME);
            let program = program.ok_or_else(|| refused(ProgramError::NotLoaded))?;
            let program: &SchedClassifier = program.try_into().map_err(refused)?;
            let options = TestRunOptions {
                data_in: Some(&packet),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            };
            Ok(program.test_run(options).map_err(refused)?.return_value)
        };
        // Interfaces are found in the namespace of who runs the program.
        let returned = match &door.netns {
            Some(netns) => netns.run(send).map_err(failed)??,
            None => send()?,
        };
        match i32::from_ne_bytes(returned.to_ne_bytes()) {
            error if error < 0 => Err(failed(io::Error::from_raw_os_error(-error))),
            _ => Ok(()),
        }
    }
}

fn refused(source: ProgramError) -> DatapathError {
    DatapathError::Program { name: NAME, source: Box::new(source) }
}

fn failed(source: io::Error) -> DatapathError {
    DatapathError::Injection { source }
}

/// The packet with an Ethernet header, as the kernel wants it, and with its checksum: that of a packet
/// that never left the machine may have been left to a device, which this one will not meet.
fn whole(packet: &[u8], ethernet: bool) -> Option<Vec<u8>> {
    let mut whole = Vec::with_capacity(ETHERNET + packet.len());
    if !ethernet {
        whole.extend([0; ETHER_TYPE]);
        whole.extend(if packet.first()? >> 4 == 6 { IPV6 } else { IPV4 });
    }
    whole.extend_from_slice(packet);
    complete(&mut whole);
    Some(whole)
}

const TCP: u8 = 6;
/// Where a TCP header has its checksum.
const CHECKSUM: usize = 16;

/// Completes a TCP checksum that covers the addresses only. Any other stays as it is: one that is wrong
/// came so, and the receiver will see that.
fn complete(frame: &mut [u8]) -> Option<()> {
    let (link, packet) = frame.split_at_mut_checked(ETHERNET)?;
    let (addresses, header) = match link.get(ETHER_TYPE..)? {
        kind if kind == IPV4 && *packet.get(9)? == TCP => {
            (12..20, usize::from(packet.first()? & 0xf) * 4)
        }
        kind if kind == IPV6 && *packet.get(6)? == TCP => (8..40, 40),
        _ => return None,
    };
    // What follows the packet is padding.
    let end = match link.get(ETHER_TYPE..)? {
        kind if kind == IPV4 => usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?])),
        _ => 40 + usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?])),
    };
    let length = u32::try_from(packet.get(header..end)?.len()).ok()?;
    let pseudo = sum(packet.get(addresses)?) + u32::from(TCP) + length;
    let segment = packet.get_mut(header..end)?;
    let stands = u16::from_be_bytes([*segment.get(CHECKSUM)?, *segment.get(CHECKSUM + 1)?]);
    if stands != fold(pseudo) {
        return None;
    }
    // What stands there is the sum over the addresses: with the segment's it is the whole.
    let checksum = !fold(sum(segment));
    segment.get_mut(CHECKSUM..CHECKSUM + 2)?.copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

/// The ones' complement sum of RFC 1071, not folded.
fn sum(bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks();
    let pairs: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    pairs + rest.first().map_or(0, |byte| u32::from(*byte) << 8)
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN over IPv4 as tcpdump showed it, from 10.0.0.1:40000 to 10.0.0.2:80, with its checksum.
    fn frame() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x26, 0xce, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        let tcp = ETHERNET + 20;
        let pseudo = sum(&frame[ETHERNET + 12..ETHERNET + 20]) + 6 + 20;
        let checksum = !fold(pseudo + sum(&frame[tcp..]));
        frame[tcp + CHECKSUM..tcp + CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    fn checksum(frame: &[u8]) -> [u8; 2] {
        let at = ETHERNET + 20 + CHECKSUM;
        [frame[at], frame[at + 1]]
    }

    fn with_checksum(checksum: u16) -> Vec<u8> {
        let mut frame = frame();
        let at = ETHERNET + 20 + CHECKSUM;
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    #[test]
    fn a_checksum_that_was_left_to_a_device_is_completed() {
        let pseudo = fold(sum(&frame()[ETHERNET + 12..ETHERNET + 20]) + 6 + 20);
        let left = with_checksum(pseudo);
        let whole = whole(&left, true).unwrap();
        assert_eq!(checksum(&whole), checksum(&frame()));
    }

    #[test]
    fn any_other_checksum_stays() {
        assert_eq!(whole(&frame(), true).unwrap(), frame());
        let wrong = with_checksum(0x1234);
        assert_eq!(whole(&wrong, true).unwrap(), wrong);
    }

    #[test]
    fn a_packet_without_a_link_header_gets_one() {
        let whole = whole(&frame()[ETHERNET..], false).unwrap();
        assert_eq!(whole[ETHER_TYPE..], frame()[ETHER_TYPE..]);
        assert_eq!(super::whole(&[], false), None);
    }

    #[test]
    fn no_packet_is_too_short_or_too_strange() {
        for length in 0..frame().len() {
            let _ = whole(&frame()[..length], true);
            let _ = whole(&frame()[..length], false);
        }
        for byte in 0..=255 {
            for at in ETHERNET..ETHERNET + 20 {
                let mut frame = frame();
                frame[at] = byte;
                let _ = whole(&frame, true);
            }
        }
    }
}
