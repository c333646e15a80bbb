//! SYNs refused per second while more come than can be refused.
//!
//! The source is XDP live frames: a program in the client's namespace writes each SYN whole and
//! redirects it into the client's veth, which costs less than any way through a socket and hands the
//! node's end what a driver would: a frame, not a packet buffer. Source and refusal share one CPU,
//! and the source's part is in every figure. Frames that a veth had no room for count for nobody:
//! the interface counters say how many arrived. A second is one of CPU time, of all that takes
//! part (see [`super::cpu`]): a system call that sends frames also waits, for the kernel's
//! housekeeping, and would be measured with the refusals.
//!
//! A reset counts when it arrives at the client, where a program at TC drops it, as a packet buffer
//! in every case.

use std::{
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use weir::lab::{Lab, link_index};
use weir_tests::packet::Packet;

use super::{
    bpf::{self, Hook, Kind, TC_SHOT, XDP_DROP, XDP_PASS, live_frames},
    cpu::{self, Meter},
    estimate::{Estimate, in_turns},
    frame::{Frames, Source, Vary},
    report::{Report, Target},
    site::{End, Guard, Site, Xdp, has_nft, limit},
};

/// The name of this bench.
pub(crate) const BENCH: &str = "flood";
/// Frames that one system call sends, at least and at most.
const FRAMES: std::ops::RangeInclusive<f64> = 16_384.0..=1_000_000.0;
/// Client addresses that the SYNs come from, a power of two.
const SOURCES: u8 = 64;
/// A port of the pod where nobody listens.
const PORT: u16 = 8080;
/// What may pass, of what arrives: the day's only token, and what the stack says by itself.
const MOST_PASSED: f64 = 0.001;

/// Who refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    BareXdp,
    WeirXdp,
    BareTc,
    WeirTc,
    /// Of a workload of the same node.
    WeirShield,
    Nft(&'static str),
}

/// How it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Drop,
    Reset,
}

struct Contender {
    name: String,
    site: Site,
    source: Source,
    meter: Meter,
    /// Frames of the next round.
    frames: f64,
}

/// Measures.
pub(crate) fn run(report: &mut Report, rounds: usize, length: Duration) -> Result<()> {
    let mut drops = vec![Who::BareXdp, Who::WeirXdp, Who::WeirShield, Who::BareTc, Who::WeirTc];
    let mut resets = vec![Who::WeirXdp, Who::WeirTc];
    if has_nft() {
        drops.push(Who::Nft("prerouting priority raw"));
        resets.push(Who::Nft("forward priority filter"));
        resets.push(Who::Nft("prerouting priority raw"));
    } else {
        report.note("flood: nftables is not installed, nothing was compared with it");
    }
    let (names, rates) = flood(report, Refusal::Drop, &drops, rounds, length)?;
    for (one, other, least) in [
        ("weir xdp", "bare xdp", 0.7),
        ("weir xdp", "nft prerouting", 1.5),
        ("weir tc", "bare tc", 0.8),
        ("weir shield", "weir tc", 1.5),
    ] {
        hold(report, "drop", &names, &rates, one, other, least);
    }
    let (names, rates) = flood(report, Refusal::Reset, &resets, rounds, length)?;
    for (one, other, least) in [
        ("weir xdp", "nft forward", 1.6),
        ("weir tc", "nft forward", 1.2),
        ("weir xdp", "nft prerouting", 1.6),
        ("weir tc", "nft prerouting", 1.2),
    ] {
        hold(report, "reset", &names, &rates, one, other, least);
    }
    report.note(
        "flood: the budget for resets was raised to 10 000 000/s (node file, `resets`); \
         the default is 1000/s",
    );
    Ok(())
}

fn hold(
    report: &mut Report,
    refusal: &str,
    names: &[String],
    rates: &[Vec<f64>],
    one: &str,
    other: &str,
    least: f64,
) {
    let find = |name: &str| names.iter().position(|have| have == name).map(|place| &rates[place]);
    if let (Some(a), Some(b)) = (find(one), find(other)) {
        let name = format!("{refusal}, {one} / {other}");
        report.hold(BENCH, name, "x", Estimate::quotient(a, b), Target::AtLeast(least));
    }
}

/// The contenders' names, and what each refused per second, round by round.
fn flood(
    report: &mut Report,
    refusal: Refusal,
    who: &[Who],
    rounds: usize,
    length: Duration,
) -> Result<(Vec<String>, Vec<Vec<f64>>)> {
    let lab = Lab::new()?;
    let mut contenders = Vec::new();
    for (number, &who) in who.iter().enumerate() {
        let contender = Contender::new(&lab, number, who, refusal)
            .with_context(|| format!("cannot set up {}", name(who)))?;
        contenders.push(contender);
    }
    let rates = in_turns(rounds, contenders.len(), |contender| {
        contenders[contender].round(refusal, length)
    })?;
    let (verb, mut passed) = match refusal {
        Refusal::Drop => ("dropped", 0.0_f64),
        Refusal::Reset => ("reset", 0.0),
    };
    let mut each = Vec::new();
    for (contender, rounds) in contenders.iter().zip(&rates) {
        let rate: Vec<f64> = rounds.iter().map(|round| round.refused).collect();
        let millions = Estimate::median(&rate).map(|rate| rate.scaled(1e-6));
        report.add(BENCH, format!("{verb}, {}", contender.name), "M/s", millions);
        passed = rounds.iter().map(|round| round.passed).fold(passed, f64::max);
        each.push(rate);
    }
    if passed > MOST_PASSED {
        report.note(format!(
            "flood, {verb}: in one round {:.1} % of the SYNs reached the pod",
            passed * 100.0
        ));
    }
    Ok((contenders.into_iter().map(|contender| contender.name).collect(), each))
}

fn name(who: Who) -> String {
    match who {
        Who::BareXdp => "bare xdp".to_owned(),
        Who::WeirXdp => "weir xdp".to_owned(),
        Who::BareTc => "bare tc".to_owned(),
        Who::WeirTc => "weir tc".to_owned(),
        Who::WeirShield => "weir shield".to_owned(),
        Who::Nft(hook) => format!("nft {}", hook.split(' ').next().unwrap_or(hook)),
    }
}

#[derive(Clone, Copy, Debug)]
struct Round {
    /// Per second.
    refused: f64,
    /// Part of what arrived.
    passed: f64,
}

impl Contender {
    fn new(lab: &Lab, number: usize, who: Who, refusal: Refusal) -> Result<Self> {
        let policy = match refusal {
            Refusal::Drop => [limit::SPENT, "on-limit: drop"],
            Refusal::Reset => [limit::SPENT, "on-limit: reset"],
        };
        let verdict = match refusal {
            Refusal::Drop => format!("{} drop", limit::SPENT_NFT),
            Refusal::Reset => format!("{} reject with tcp reset", limit::SPENT_NFT),
        };
        let guard = match who {
            Who::BareXdp | Who::BareTc => Guard::Nothing,
            Who::WeirXdp => Guard::Weir { policy: &policy, xdp: Xdp::Uplink },
            Who::WeirTc => Guard::Weir { policy: &policy, xdp: Xdp::Nowhere },
            Who::WeirShield => Guard::Weir { policy: &policy, xdp: Xdp::Shield },
            Who::Nft(hook) => Guard::Nft { hook, verdict: &verdict },
        };
        let mut site = Site::new(lab, &format!("f{number}"), guard)?;
        site.prepare_for_frames(SOURCES)?;
        let mut put = |kind, code, hook, end| {
            let program = bpf::returning(kind, code);
            site.attach(&program.context("cannot load a program of two instructions")?, hook, end)
        };
        match who {
            Who::BareXdp => put(Kind::Xdp, XDP_DROP, Hook::Xdp, End::Uplink)?,
            Who::BareTc => put(Kind::Tc, TC_SHOT, Hook::TcEgress, End::Pod)?,
            // A veth does not tell its peer about frames of XDP_TX unless that runs XDP too.
            Who::WeirXdp => put(Kind::Xdp, XDP_PASS, Hook::Xdp, End::Client)?,
            Who::WeirTc | Who::WeirShield | Who::Nft(_) => {}
        }
        put(Kind::Tc, TC_SHOT, Hook::TcIngress, End::Client)?;
        let source = syns(&site)?
            .sent_to(link_index(site.client.namespace(), site.client.interface())?)
            .context("cannot load the source of SYNs")?;
        let meter = Meter::new(site.agent())?;
        let frames = *FRAMES.start();
        Ok(Self { name: name(who), site, source, meter, frames })
    }

    fn round(&mut self, refusal: Refusal, length: Duration) -> Result<Round> {
        let Site { client, node, .. } = &self.site;
        let uplink = client.node_interface();
        let arrived = || self.site.packets(node.namespace(), &uplink);
        let answered = || self.site.packets(client.namespace(), client.interface());
        let frame = syns(&self.site)?;
        let (before, pod, answers) = (arrived()?, self.site.pod_packets()?, answered()?);
        let (start, used) = (Instant::now(), self.meter.read()?);
        let (program, frames) = (self.source.program.as_fd(), self.frames as u32);
        client.namespace().run(|| {
            cpu::stay_on(cpu::count() - 1);
            live_frames(program, frame.bytes(), frames)
        })??;
        let (elapsed, used) = (start.elapsed(), self.meter.read()? - used);
        // The next round is to last as long as was asked for.
        let wanted = self.frames * length.as_secs_f64() / elapsed.as_secs_f64();
        let wanted = wanted.clamp(*FRAMES.start(), *FRAMES.end());
        let arrived = arrived()?.since(before).received as f64;
        let answers = answered()?.since(answers).received as f64;
        // What a bare program at TC drops is counted as sent by nobody.
        let passed = self.site.pod_packets()?.since(pod).sent as f64;
        let refused = match refusal {
            Refusal::Drop => arrived - passed,
            Refusal::Reset => answers,
        };
        self.frames = wanted;
        Ok(Round { refused: refused / used.as_secs_f64(), passed: passed / arrived })
    }
}

/// SYNs from the client's addresses to the pod.
fn syns(site: &Site) -> Result<Frames> {
    let Site { client, pod, .. } = site;
    let packet = Packet::syn(client.source_v4(0), pod.ipv4()).with(|packet| {
        packet.macs = Some([client.node_mac(), client.mac()]);
        packet.port = PORT;
        packet.lifetime = 64;
    });
    Ok(Frames::syns(&packet, Vary::Sources(SOURCES.into())).whole())
}
