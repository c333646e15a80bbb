//! Queues that make a way longer or worse.

use std::time::Duration;

use futures_util::StreamExt as _;
use rtnetlink::{
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcHandle, TcMessage},
    },
};

use super::{
    error::{Doing, LabError},
    links::{link_index, netlink},
    namespace::Namespace,
};

/// `TCA_OPTIONS` of linux/rtnetlink.h: here a bare struct, not attributes.
const OPTIONS: u16 = 2;
/// The kernel's unit of time for queues.
const TICK_NS: u128 = 64;
/// More packets than any test has under way.
const PACKETS: u32 = 10_000;

/// Delays what an interface sends, and loses this part of it, by the kernel's `netem`.
///
/// # Errors
/// When the kernel has no `netem`, or the interface a queue of somebody's.
pub fn impair(
    namespace: &Namespace,
    interface: &str,
    delay: Duration,
    loss: f64,
) -> Result<(), LabError> {
    let index = link_index(namespace, interface)?;
    let latency = u32::try_from(delay.as_nanos() / TICK_NS).unwrap_or(u32::MAX);
    // linux/pkt_sched.h, `struct tc_netem_qopt`: latency, limit, loss, gap, duplicates, jitter.
    let options = [latency, PACKETS, (loss * f64::from(u32::MAX)) as u32, 0, 0, 0];
    let options: Vec<u8> = options.iter().flat_map(|word| word.to_ne_bytes()).collect();
    set_queue(namespace, index, "netem", options)
        .doing(|| format!("impair {interface} in {}", namespace.name()))
}

/// Puts a queue of this kind, with its own defaults, behind an interface: one that somebody chose.
///
/// # Errors
/// When the kernel refuses it.
pub fn choose_queue(namespace: &Namespace, interface: &str, kind: &str) -> Result<(), LabError> {
    let index = link_index(namespace, interface)?;
    set_queue(namespace, index, kind, Vec::new())
        .doing(|| format!("put {kind} on {interface} in {}", namespace.name()))
}

/// Lets an interface send no more than so many bytes a second, by the kernel's `tbf`.
///
/// # Errors
/// When the kernel has no `tbf`, or the interface a queue of somebody's.
pub fn shape(namespace: &Namespace, interface: &str, rate: u32) -> Result<(), LabError> {
    /// `TCA_TBF_PARMS`, and the bytes of `struct tc_tbf_qopt` of linux/pkt_sched.h.
    const PARMS: (u16, u16) = (1, 36);
    /// Bytes that wait, and ticks of 64 ns that the bucket lasts: 50 ms.
    const ROOM: [u32; 2] = [1 << 20, 781_250];
    let index = link_index(namespace, interface)?;
    let mut options = Vec::new();
    options.extend((PARMS.1 + 4).to_ne_bytes());
    options.extend(PARMS.0.to_ne_bytes());
    // `struct tc_ratespec`, of Ethernet; then that of a peak, which there is none of.
    options.extend([0, 1, 0, 0, 0, 0, 0, 0]);
    options.extend(rate.to_ne_bytes());
    options.extend([0; 12]);
    options.extend(ROOM.iter().flat_map(|word| word.to_ne_bytes()));
    options.extend([0; 4]);
    set_queue(namespace, index, "tbf", options)
        .doing(|| format!("shape {interface} in {}", namespace.name()))
}

fn set_queue(
    namespace: &Namespace,
    index: u32,
    kind: &str,
    options: Vec<u8>,
) -> Result<(), std::io::Error> {
    netlink(namespace, async |mut handle| {
        let mut message = TcMessage::with_index(index as i32);
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        if !options.is_empty() {
            message.attributes.push(TcAttribute::Other(DefaultNla::new(OPTIONS, options)));
        }
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let mut answers = handle.request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.code {
                    None => Ok(()),
                    Some(_) => Err(rtnetlink::Error::NetlinkError(error)),
                };
            }
        }
        Ok(())
    })
}
