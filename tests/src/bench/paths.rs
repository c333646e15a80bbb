//! Nanoseconds per packet of each path through the programs, by `BPF_PROG_TEST_RUN`.
//!
//! Each path is run in turns with a program of the same type that only returns. Both sit behind
//! the same [source](super::frame), by a tail call: it makes each SYN another connection, and
//! writes the frame anew where the path rewrites it. So the difference is the path, and what the
//! source costs is in neither.
//!
//! A test run is kinder than life: nobody else needs the caches and the branch predictor. The memory
//! of handshakes is cleared before every batch, and a batch is small enough for it: what is timed is
//! a claim of a free place, as it is below 20 000 new connections a second.

use std::{
    env,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::{MapData, MapInfo},
    programs::ProgramInfo,
};
use weir_common::{
    layout::{CellLine, PENDING_LINES},
    load,
};
use weir_tests::{
    packet::{Packet, flag},
    testrun::{
        Globals, LOOPBACK, Policy, Programs, RuleExt as _, Runner, SECOND, Which, volume::Limits,
    },
};

use super::{
    bpf::{self, Code, Kind, Mapped, TC_NEXT, TC_REDIRECT, TC_SHOT, XDP_DROP, XDP_PASS, XDP_TX},
    estimate::{Estimate, in_turns},
    frame::{self, Frames, Source, Vary},
    report::{Report, Target},
};

/// The name of this bench.
pub(crate) const BENCH: &str = "paths";
/// Runs that are timed together: a quarter of what the memory of handshakes has places for.
const BATCH: u32 = 16_384;
/// The most instructions of a program that the verifier may walk.
const VERIFIER_BUDGET: f64 = 100_000.0;
/// What a path may cost, over an empty program.
const ADMIT_NS: f64 = 120.0;
const OTHER_NS: f64 = 40.0;
/// The most that a packet of a tracked connection should cost.
const TRACKED_NS: f64 = 120.0;
/// The most that a packet of a workload with limits of bytes should cost, in their program.
const BYTES_NS: f64 = 200.0;
/// `bpf_ktime_get_ns`.
const READ_CLOCK: i32 = 5;
/// The time between events of a limit that the agent sets.
const EVENT_INTERVAL_NS: u64 = 10_000_000;

const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 7);
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x18, 1, 2, 3, 4, 5, 7);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 9);
/// Clients of the paths with a limit per source.
const SOURCES: u32 = 4096;

/// Workloads by what holds for them.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Slot {
    NoRules = 1,
    Admits,
    AdmitsByPort,
    AdmitsPerSource,
    Drops,
    Resets,
    DropsPerSource,
    Tracks,
    LimitsBytes,
    LimitsFlows,
    SpendsBucket,
    SpendsWindow,
    SpendsLease,
}

struct Path {
    name: &'static str,
    which: Which,
    frames: Frames,
    slot: Option<Slot>,
    /// What the program must return.
    code: i32,
    most_ns: Option<f64>,
}

/// What a connection and its packets cost more with the programs attached, ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Added {
    /// A SYN that is admitted.
    pub(crate) admitted: Estimate,
    /// Another TCP packet.
    pub(crate) segment: BothWays,
    /// A TCP packet that is charged to limits of bytes, in their programs alone.
    pub(crate) charged: BothWays,
}

/// The same towards a workload and from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BothWays {
    pub(crate) inbound: Estimate,
    pub(crate) outbound: Estimate,
}

impl BothWays {
    /// What so many packets of both ways cost.
    pub(crate) fn of(self, inbound: Estimate, outbound: Estimate) -> Estimate {
        self.inbound.times(inbound).plus(self.outbound.times(outbound))
    }
}

const ADMITTED: &str = "tc in: SYN admitted";
const INBOUND: &str = "tc in: TCP, not a SYN";
const OUTBOUND: &str = "tc out: TCP, not a SYN";
const CHARGED_IN: &str = "bytes in: TCP";
const CHARGED_OUT: &str = "bytes out: TCP";
/// SYNs that spend a quota, and what that should cost over a limit of connections at most.
const QUOTAS: [(&str, Slot); 3] = [
    ("tc in: SYN admitted, quota by a bucket", Slot::SpendsBucket),
    ("tc in: SYN admitted, quota by a window", Slot::SpendsWindow),
    ("tc in: SYN admitted, quota from a lease", Slot::SpendsLease),
];
const QUOTA_NS: f64 = 40.0;
/// Longer than any machine runs.
const CENTURY_S: u64 = 100 * 365 * 86_400;

/// Measures every path.
pub(crate) fn run(report: &mut Report, rounds: usize) -> Result<Added> {
    let mut programs = load_programs()?;
    for which in Which::ALL {
        let info = info(&programs, which)?;
        if let Some(count) = info.verified_instruction_count() {
            let name = format!("verifier: {}", which.name());
            let budget = Target::AtMost(VERIFIER_BUDGET);
            report.hold(BENCH, name, "insns", Estimate::exact(count.into()), budget);
        }
    }
    for (kind, name) in [(Kind::Tc, "tc"), (Kind::Xdp, "xdp")] {
        let [empty, clock] = yardsticks(kind, rounds)?;
        report.add(BENCH, format!("{name}: an empty program"), "ns", empty);
        report.add(BENCH, format!("{name}: one that reads the clock, over empty"), "ns", clock);
    }
    report.note(
        "paths are nanoseconds over an empty program of the same type, both behind the same source \
         of frames",
    );
    let paths = paths(&mut programs);
    measure(report, &mut programs, paths, rounds)
}

/// Measures only what overheads are derived from.
pub(crate) fn added(rounds: usize) -> Result<Added> {
    let needed =
        |path: &Path| [ADMITTED, INBOUND, OUTBOUND, CHARGED_IN, CHARGED_OUT].contains(&path.name);
    let mut programs = load_programs()?;
    let paths = paths(&mut programs).into_iter().filter(needed).collect();
    measure(&mut Report::default(), &mut programs, paths, rounds)
}

fn measure(
    report: &mut Report,
    programs: &mut Programs,
    paths: Vec<Path>,
    rounds: usize,
) -> Result<Added> {
    spend_sources(programs)?;
    // Another copy, in which no workload is anywhere.
    let strangers = load_programs()?;
    let mut pending = pending(programs)?;
    let mut contests = Vec::with_capacity(paths.len());
    for path in &paths {
        let programs = if path.slot.is_some() { &*programs } else { &strangers };
        contests.push(Contest::new(programs, path)?);
    }
    // All paths take turns, each next to its empty program: how fast the machine is just now
    // weighs on all of them alike.
    let samples = in_turns(rounds, paths.len(), |number| {
        let path = &paths[number];
        if let Some(slot) = path.slot {
            programs.at_interface(LOOPBACK, slot as u32);
            programs.set_tracked(matches!(slot, Slot::Tracks));
            programs.at_address(SERVER_V4, slot as u32);
            programs.at_address(SERVER_V6, slot as u32);
        }
        contests[number]
            .round(&mut pending)
            .with_context(|| format!("cannot measure {:?}", path.name))
    })?;
    let plain = paths.iter().zip(&samples).find(|(path, _)| path.name == ADMITTED);
    for (path, samples) in paths.iter().zip(&samples) {
        if let Some((_, plain)) = plain
            && QUOTAS.iter().any(|(name, _)| *name == path.name)
        {
            let more: Vec<f64> =
                samples.iter().zip(plain).map(|(one, other)| one - other).collect();
            let name = format!("{}, over a plain limit", path.name);
            report.hold(BENCH, name, "ns", Estimate::median(&more), Target::AtMost(QUOTA_NS));
        }
    }
    for (path, samples) in paths.iter().zip(&samples) {
        let cost = Estimate::median(samples);
        match path.most_ns {
            Some(most) => report.hold(BENCH, path.name, "ns", cost, Target::AtMost(most)),
            None => report.add(BENCH, path.name, "ns", cost),
        }
    }
    let cost = |name| {
        let measured = paths.iter().zip(&samples).find(|(path, _)| path.name == name);
        let cost = measured.and_then(|(_, samples)| Estimate::median(samples));
        cost.with_context(|| format!("the path {name:?} was not measured"))
    };
    let both = |inbound, outbound| -> Result<BothWays> {
        Ok(BothWays { inbound: cost(inbound)?, outbound: cost(outbound)? })
    };
    Ok(Added {
        admitted: cost(ADMITTED)?,
        segment: both(INBOUND, OUTBOUND)?,
        charged: both(CHARGED_IN, CHARGED_OUT)?,
    })
}

/// A path and an empty program, each behind the same source of frames.
struct Contest {
    sources: [Source; 2],
    codes: [i32; 2],
    packet: Vec<u8>,
    /// Who runs first; they change.
    first: usize,
}

impl Contest {
    fn new(programs: &Programs, path: &Path) -> Result<Self> {
        let kind = if path.which == Which::Uplink { Kind::Xdp } else { Kind::Tc };
        let empty = bpf::returning(kind, kind.pass())?;
        Ok(Self {
            sources: [
                path.frames.before(kind, program(programs, path.which)?)?,
                path.frames.before(kind, empty.as_fd())?,
            ],
            codes: [path.code, kind.pass()],
            packet: path.frames.bytes().to_vec(),
            first: 0,
        })
    }

    /// What the path took longer than the empty program, ns.
    fn round(&mut self, pending: &mut Mapped) -> Result<f64> {
        let mut times = [0.0; 2];
        for contender in [self.first, 1 - self.first] {
            // Handshakes of other paths, and of the last round.
            pending.clear();
            let program = self.sources[contender].program.as_fd();
            let ran = bpf::test_run(program, &self.packet, BATCH)?;
            if ran.code != self.codes[contender] {
                bail!("the program returned {} instead of {}", ran.code, self.codes[contender]);
            }
            times[contender] = ran.each.as_nanos() as f64;
        }
        self.first = 1 - self.first;
        Ok(times[0] - times[1])
    }
}

fn load_programs() -> Result<Programs> {
    let object = env::var_os("WEIR_EBPF_OBJECT").map_or_else(
        || {
            let built = "../target/ebpf/bpfel-unknown-none/release/weir-ebpf";
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(built)
        },
        PathBuf::from,
    );
    let mut programs = Programs::load(&object, Globals::default()).map_err(|error| {
        anyhow::anyhow!("{error}").context(format!(
            "cannot load {} (`cargo xtask build` makes it; loading needs root)",
            object.display()
        ))
    })?;
    let all = Which::ALL.into_iter().chain([Which::BytesIn, Which::BytesOut]);
    all.for_each(|which| programs.prepare(which));
    programs.set_event_interval(EVENT_INTERVAL_NS);
    serve(&mut programs);
    Ok(programs)
}

/// Policies: limits far away, and limits that are spent.
fn serve(programs: &mut Programs) {
    let far = |programs: &mut Programs| programs.limit(10_000_000, SECOND, 10_000_000);
    let spent = |programs: &mut Programs| {
        let rule = programs.connections(1);
        programs.set_full(&rule, false);
        rule
    };
    // For a whole run: 10 000 batches.
    let resets = Some(90_000_000);
    let give = |programs: &mut Programs, slot: Slot, policy: Policy| {
        programs.serve(slot as u32, &Policy { resets, ..policy });
    };
    give(programs, Slot::NoRules, Policy::default());
    let both =
        |rules: Vec<_>| Policy { ingress: rules.clone(), egress: rules, ..Policy::default() };
    let rule = far(programs);
    give(programs, Slot::Admits, both(vec![rule]));
    let rule = far(programs);
    let ports = vec![(Which::HostIn.direction(), 8080, vec![rule])];
    give(programs, Slot::AdmitsByPort, Policy { ports, ..Policy::default() });
    let rules = vec![programs.connections_per_source(1_000_000, (32, 64)), far(programs)];
    give(programs, Slot::AdmitsPerSource, both(rules));
    let rule = spent(programs);
    give(programs, Slot::Drops, both(vec![rule.dropping()]));
    let rule = spent(programs);
    give(programs, Slot::Resets, both(vec![rule]));
    let rules = vec![programs.connections_per_source(1, (32, 64)).dropping(), far(programs)];
    give(programs, Slot::DropsPerSource, both(rules));
    let rule = programs.at_once(1_000_000, load::MAX_HANDSHAKES);
    give(programs, Slot::Tracks, both(vec![rule]));
    let rule = far(programs);
    give(programs, Slot::SpendsBucket, both(vec![rule.spending_a_quota()]));
    let rule = programs.quota_window(u32::MAX.into(), CENTURY_S);
    give(programs, Slot::SpendsWindow, both(vec![rule]));
    let rule = programs.quota_lease(u32::MAX, CENTURY_S);
    give(programs, Slot::SpendsLease, both(vec![rule]));
    // A terabit a second is more than comes, and what is said is charged.
    let far = 125_000_000_000;
    let rule = programs.bandwidth(far, far);
    let limits =
        |rules: Vec<_>| Limits { ingress: rules.clone(), egress: rules, ..Limits::default() };
    programs.limit_bytes(Slot::LimitsBytes as u32, &limits(vec![rule]));
    let rules = vec![programs.connection_bandwidth(far, far), programs.bandwidth(far, far)];
    programs.limit_bytes(Slot::LimitsFlows as u32, &limits(rules));
}

/// A segment of a connection that is established at the workload that tracks.
fn established(programs: &mut Programs, syn: &Packet) -> Vec<u8> {
    const ANSWER: u32 = 0x9000_0000;
    programs.at_interface(LOOPBACK, Slot::Tracks as u32);
    let answer = syn.clone().with(|packet| {
        std::mem::swap(&mut packet.source, &mut packet.destination);
        std::mem::swap(&mut packet.source_port, &mut packet.port);
        packet.flags = flag::SYN | flag::ACK;
        packet.acknowledgment = packet.sequence.wrapping_add(1);
        packet.sequence = ANSWER;
    });
    let data = syn.clone().with(|packet| {
        packet.flags = flag::ACK;
        packet.sequence = packet.sequence.wrapping_add(1);
        packet.acknowledgment = ANSWER.wrapping_add(1);
        packet.payload = vec![0; 100];
    });
    for (which, packet) in [(Which::HostIn, syn), (Which::HostOut, &answer), (Which::HostIn, &data)]
    {
        let _ = programs.run(which, &packet.bytes());
    }
    data.bytes()
}

/// Lets every source spend its only token.
fn spend_sources(programs: &mut Programs) -> Result<()> {
    programs.at_interface(LOOPBACK, Slot::DropsPerSource as u32);
    let frames = many_sources();
    let source = frames.before(Kind::Tc, program(programs, Which::HostIn)?)?;
    bpf::test_run(source.program.as_fd(), frames.bytes(), SOURCES * 2)?;
    Ok(())
}

/// SYNs from [`SOURCES`] clients.
fn many_sources() -> Frames {
    let packet = Packet::syn(Ipv4Addr::new(198, 18, 0, 0), SERVER_V4);
    Frames::syns(&packet, Vary::Sources(SOURCES))
}

fn paths(programs: &mut Programs) -> Vec<Path> {
    use Which::{BytesIn, BytesOut, HostIn, HostOut, Uplink};

    let v4 = Packet::syn(CLIENT_V4, SERVER_V4);
    let tracked = Frames::of(established(programs, &v4));
    let v6 = Packet::syn(CLIENT_V6, SERVER_V6);
    let syn = Frames::syns(&v4, Vary::Connection);
    let syn_v6 = Frames::syns(&v6, Vary::Connection);
    let same = Frames::syns(&v4, Vary::Nothing);
    let sources = many_sources();
    let data = |packet: &Packet| {
        Frames::of(
            packet
                .clone()
                .with(|packet| {
                    packet.flags = flag::ACK | flag::PSH;
                    packet.payload = vec![0x55; 512];
                })
                .bytes(),
        )
    };
    let (segment, segment_v6) = (data(&v4), data(&v6));
    let datagram = Frames::of(frame::udp(&v4));
    let row = |name, which: Which, frames: &Frames, slot, code| Path {
        name,
        which,
        frames: frames.clone(),
        slot,
        code,
        most_ns: None,
    };
    let pass =
        |name, which, frames: &Frames, slot: Slot| row(name, which, frames, Some(slot), TC_NEXT);
    let within = |most_ns, path: Path| Path { most_ns: Some(most_ns), ..path };
    let rewritten = |path: Path| Path { frames: path.frames.whole(), ..path };
    let xdp = |name, frames: &Frames, slot, code| row(name, Uplink, frames, slot, code);
    let quotas = QUOTAS.map(|(name, slot)| pass(name, HostIn, &syn, slot));
    let others = vec![
        row("tc in: SYN, no workload here", HostIn, &syn, None, TC_NEXT),
        xdp("xdp: SYN to nobody here", &syn, None, XDP_PASS),
        within(ADMIT_NS, pass(ADMITTED, HostIn, &syn, Slot::Admits)),
        pass("tc in: SYN admitted, by a port's limit", HostIn, &syn, Slot::AdmitsByPort),
        pass("tc in: SYN admitted, IPv6", HostIn, &syn_v6, Slot::Admits),
        pass("tc in: SYN admitted, per source too", HostIn, &sources, Slot::AdmitsPerSource),
        pass("tc out: SYN admitted", HostOut, &syn, Slot::Admits),
        pass("tc in: SYN repeated", HostIn, &same, Slot::Admits),
        pass("tc in: SYN, no rule for it", HostIn, &syn, Slot::NoRules),
        row("tc in: SYN refused, drop", HostIn, &syn, Some(Slot::Drops), TC_SHOT),
        row(
            "tc in: SYN refused per source, drop",
            HostIn,
            &sources,
            Some(Slot::DropsPerSource),
            TC_SHOT,
        ),
        rewritten(row("tc in: SYN refused, reset", HostIn, &syn, Some(Slot::Resets), TC_REDIRECT)),
        within(OTHER_NS, pass(INBOUND, HostIn, &segment, Slot::Admits)),
        within(OTHER_NS, pass("tc in: TCP, not a SYN, IPv6", HostIn, &segment_v6, Slot::Admits)),
        within(OTHER_NS, pass(OUTBOUND, HostOut, &segment, Slot::Admits)),
        within(TRACKED_NS, pass("tc in: TCP, not a SYN, tracked", HostIn, &tracked, Slot::Tracks)),
        pass("tc in: TCP, not a SYN, of nobody tracked", HostIn, &segment, Slot::Tracks),
        pass("tc in: UDP", HostIn, &datagram, Slot::Admits),
        within(BYTES_NS, pass(CHARGED_IN, BytesIn, &segment, Slot::LimitsBytes)),
        within(BYTES_NS, pass("bytes in: TCP, IPv6", BytesIn, &segment_v6, Slot::LimitsBytes)),
        within(BYTES_NS, pass(CHARGED_OUT, BytesOut, &segment, Slot::LimitsBytes)),
        within(BYTES_NS, pass("bytes in: UDP", BytesIn, &datagram, Slot::LimitsBytes)),
        pass("bytes in: TCP, each connection too", BytesIn, &segment, Slot::LimitsFlows),
        xdp("xdp: SYN left to tc", &syn, Some(Slot::Admits), XDP_PASS),
        xdp("xdp: SYN refused, drop", &syn, Some(Slot::Drops), XDP_DROP),
        xdp("xdp: SYN refused per source, drop", &sources, Some(Slot::DropsPerSource), XDP_DROP),
        rewritten(xdp("xdp: SYN refused, reset", &syn, Some(Slot::Resets), XDP_TX)),
        within(OTHER_NS, xdp("xdp: TCP, not a SYN", &segment, Some(Slot::Admits), XDP_PASS)),
        xdp("xdp: UDP", &datagram, Some(Slot::Admits), XDP_PASS),
    ];
    others.into_iter().chain(quotas).collect()
}

/// The time of an empty program, and what reading the clock adds to it.
fn yardsticks(kind: Kind, rounds: usize) -> Result<[Option<Estimate>; 2]> {
    let empty = bpf::returning(kind, kind.pass())?;
    let mut code = Code::default();
    code.call(READ_CLOCK);
    code.ret(kind.pass());
    let clock = bpf::load(kind, &code)?;
    let packet = Packet::syn(CLIENT_V4, SERVER_V4).bytes();
    let times = in_turns(rounds, 2, |contender| {
        let program = if contender == 0 { empty.as_fd() } else { clock.as_fd() };
        bpf::test_run(program, &packet, BATCH).map(|ran| ran.each.as_nanos() as f64)
    })?;
    Ok([Estimate::median(&times[0]), Estimate::difference(&times[1], &times[0])])
}

fn program(programs: &Programs, which: Which) -> Result<BorrowedFd<'_>> {
    Ok(match programs.runner(which) {
        Runner::Tc(tc) => tc.fd()?.as_fd(),
        Runner::Xdp(xdp) => xdp.fd()?.as_fd(),
    })
}

fn info(programs: &Programs, which: Which) -> Result<ProgramInfo> {
    Ok(match programs.runner(which) {
        Runner::Tc(tc) => tc.info()?,
        Runner::Xdp(xdp) => xdp.info()?,
    })
}

/// The memory of handshakes, to clear it.
fn pending(programs: &Programs) -> Result<Mapped> {
    let maps = info(programs, Which::HostIn)?.map_ids()?.unwrap_or_default();
    for id in maps {
        if MapInfo::from_id(id)?.name_as_str() == Some("PENDING") {
            let map = MapData::from_id(id)?;
            let bytes = PENDING_LINES as usize * size_of::<CellLine>();
            return Mapped::new(map.fd().as_fd(), bytes).context("cannot map PENDING");
        }
    }
    bail!("the programs have no map PENDING")
}
