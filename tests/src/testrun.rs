//! The programs in the kernel, run on given packets by `BPF_PROG_TEST_RUN`, without an interface.
//!
//! Each [`Programs`] is a private copy: its maps are nobody else's and vanish with it. Policy is
//! written straight into the maps, as the agent's compiler would, so that a row shows what the
//! programs do with tables and nothing of how tables come about.
//!
//! The kernel builds the packet from plain bytes: it is linear, its checksums are taken for
//! complete, and it comes from the loopback (interface 1). Anything else needs an interface.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

pub mod volume;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
    programs::{Program, ProgramError, SchedClassifier, Xdp},
};
use nix::time::{ClockId, clock_gettime};
use weir_common::{
    addr::Addr,
    breaker,
    gcra::{Params, Refill, q8},
    layout::{
        Block, CellLine, Config, Counts, Direction, Event, HOOKS, Hook, PORTS_EGRESS,
        PORTS_INGRESS, RULE_DROP, RULE_HTTP1, RULE_LEASE, RULE_QUOTA, RULE_SHADOW, RULE_WINDOW,
        Rule, RuleKind, TRACKED, Tally, Workload, port_key,
    },
    load::{self, Load},
    nh::Secret,
    source::SourceParams,
    verdict::{REASONS, Reason, Verdict},
    way,
};

/// A second.
pub const SECOND: u64 = 1_000_000_000;
/// A day.
pub const DAY: u64 = 86_400 * SECOND;
/// The interface that the kernel says the packets come from: the loopback.
pub const LOOPBACK: u32 = 1;

/// Where `cargo xtask build` leaves the object.
const OBJECT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/bpfel-unknown-none/release/weir-ebpf");

/// The programs, by where they are attached and which way the workload's packets go there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// Host side of a veth, towards the workload.
    HostIn,
    /// Host side of a veth, from the workload.
    HostOut,
    /// The workload's own interface, towards it.
    OwnIn,
    /// The workload's own interface, from it.
    OwnOut,
    /// An uplink's XDP.
    Uplink,
    /// The XDP of the host's end of a pod that floods.
    Shield,
    /// The limits of bytes, on any interface: towards the workload.
    BytesIn,
    /// The limits of bytes, from it.
    BytesOut,
}

impl Which {
    /// The TC programs.
    pub const TC: [Self; 4] = [Self::HostIn, Self::HostOut, Self::OwnIn, Self::OwnOut];
    /// All programs that decide about connections.
    pub const ALL: [Self; 5] =
        [Self::HostIn, Self::HostOut, Self::OwnIn, Self::OwnOut, Self::Uplink];

    /// The program's name in the object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostIn => "weir_host_in",
            Self::HostOut => "weir_host_out",
            Self::OwnIn => "weir_own_in",
            Self::OwnOut => "weir_own_out",
            Self::Uplink => "weir_uplink",
            Self::Shield => "weir_shield",
            Self::BytesIn => "weir_bytes_in",
            Self::BytesOut => "weir_bytes_out",
        }
    }

    /// The hook under which it counts.
    pub const fn hook(self) -> Hook {
        match self {
            Self::HostIn | Self::OwnIn | Self::BytesIn => Hook::TcIngress,
            Self::HostOut | Self::OwnOut | Self::BytesOut => Hook::TcEgress,
            Self::Uplink | Self::Shield => Hook::Xdp,
        }
    }

    /// Which way the packet goes, seen from the workload.
    pub const fn direction(self) -> Direction {
        self.hook().direction()
    }

    /// What a hook's code does with the packet. A shadow refusal passes.
    ///
    /// # Panics
    /// On codes that no program may return.
    pub fn verdict(self, code: i32) -> Verdict {
        match (self, code) {
            // XDP_PASS, XDP_DROP, XDP_TX.
            (Self::Uplink | Self::Shield, 2) => Verdict::Pass,
            (Self::Uplink | Self::Shield, 1) => Verdict::Drop,
            (Self::Uplink | Self::Shield, 3) => Verdict::Reset,
            // TCX_NEXT (also TC_ACT_UNSPEC), TC_ACT_SHOT, TC_ACT_REDIRECT.
            (_, -1) => Verdict::Pass,
            (_, 2) => Verdict::Drop,
            (_, 7) => Verdict::Reset,
            _ => panic!("{} returned {code}", self.name()),
        }
    }
}

/// How the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Globals {
    /// The slot that the programs serve alone; 0 finds it by interface.
    pub fixed_slot: u32,
    /// Bytes of the link header.
    pub link_header: u32,
}

impl Default for Globals {
    fn default() -> Self {
        Self { fixed_slot: 0, link_header: 14 }
    }
}

/// What one run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What became of the packet.
    pub verdict: Verdict,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// What was counted, once for each time: slot, hook, verdict and reason.
    pub counted: Vec<(u32, Hook, Verdict, Reason)>,
}

impl Run {
    /// Verdicts and reasons alone, of a run that concerns one workload at one hook.
    pub fn decisions(&self) -> Vec<(Verdict, Reason)> {
        self.counted.iter().map(|&(_, _, verdict, reason)| (verdict, reason)).collect()
    }
}

/// What holds for a workload.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Rules for inbound connections to any port.
    pub ingress: Vec<Rule>,
    /// Rules for outbound connections to any port.
    pub egress: Vec<Rule>,
    /// Rules for one port.
    pub ports: Vec<(Direction, u16, Vec<Rule>)>,
    /// Until when refusals are only counted, CLOCK_MONOTONIC ns.
    pub shadow_until_ns: u64,
    /// How many resets the workload may cause, for the whole test; `None` for plenty.
    pub resets: Option<u64>,
}

/// The tallies of the slots in use.
type Tallies = BTreeMap<(u32, u8, u8, u8), u64>;

/// A private copy of the programs and their maps.
pub struct Programs {
    ebpf: Ebpf,
    loaded: BTreeSet<Which>,
    slots: BTreeSet<u32>,
    cells: u32,
    blocks: u32,
    secret: u64,
    tallies: Tallies,
}

/// The object: what `WEIR_EBPF_OBJECT` names, else what was built last.
pub fn object() -> PathBuf {
    env::var_os("WEIR_EBPF_OBJECT").map_or_else(|| OBJECT.into(), PathBuf::from)
}

/// Loads the programs, or notes why `test` is skipped.
///
/// # Panics
/// When the kernel refuses them for another reason than a missing privilege.
pub fn load_or_skip(test: &str, globals: Globals) -> Option<Programs> {
    let object = object();
    if !object.is_file() {
        let reason = format!("no BPF object at {}: run `cargo xtask build`", object.display());
        weir::lab::skip(test, &reason);
        return None;
    }
    match Programs::load(&object, globals) {
        Ok(programs) => Some(programs),
        Err(error) if is_denied(&*error) => {
            weir::lab::skip(test, "loading BPF programs needs root or CAP_BPF and CAP_NET_ADMIN");
            None
        }
        Err(error) => panic!("cannot load {}: {error:?}", object.display()),
    }
}

fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let denied = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
            .is_some_and(|code| [libc::EPERM, libc::EACCES].contains(&code));
        if denied {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Programs {
    /// Makes the maps; programs are loaded when they are first run.
    ///
    /// # Errors
    /// When the file cannot be read or the kernel refuses a map.
    pub fn load(object: &Path, globals: Globals) -> Result<Self, Box<dyn std::error::Error>> {
        let bytes = fs::read(object)?;
        let ebpf = EbpfLoader::new()
            .override_global("FIXED_SLOT", &globals.fixed_slot, true)
            .override_global("LINK_HEADER", &globals.link_header, true)
            .load(&bytes)?;
        let mut programs = Self {
            ebpf,
            loaded: BTreeSet::new(),
            slots: BTreeSet::new(),
            cells: 0,
            blocks: 0,
            secret: 0x0123_4567_89ab_cdef,
            tallies: Tallies::new(),
        };
        programs.forget();
        programs.set_heartbeat(now_ns());
        Ok(programs)
    }

    /// Loads a program now: from here on its [`Runner`] can be had.
    pub fn prepare(&mut self, which: Which) {
        if !self.loaded.insert(which) {
            return;
        }
        let program = self.ebpf.program_mut(which.name()).expect("in the object");
        let loaded = match program {
            Program::SchedClassifier(tc) => tc.load(),
            Program::Xdp(xdp) => xdp.load(),
            _ => panic!("{} is neither TC nor XDP", which.name()),
        };
        if let Err(error) = loaded {
            panic!("the kernel refuses {}: {error}", which.name());
        }
    }

    /// Runs a program on a packet.
    pub fn run(&mut self, which: Which, packet: &[u8]) -> Run {
        self.prepare(which);
        let (code, packet) = self.runner(which).run(packet);
        self.counted(which, code, packet)
    }

    /// What a run did, with what was counted since the last.
    fn counted(&mut self, which: Which, code: i32, packet: Vec<u8>) -> Run {
        let before = std::mem::take(&mut self.tallies);
        self.tallies = self.read_tallies();
        let mut counted = Vec::new();
        for (&(slot, hook, verdict, reason), &count) in &self.tallies {
            let old = before.get(&(slot, hook, verdict, reason)).copied();
            let key = (
                slot,
                Hook::ALL[usize::from(hook)],
                Verdict::ALL[usize::from(verdict)],
                Reason::from_code(reason).expect("a known reason"),
            );
            counted.extend((old.unwrap_or(0)..count).map(|_| key));
        }
        Run { verdict: which.verdict(code), packet, counted }
    }

    /// A prepared program that several threads may run.
    pub fn runner(&self, which: Which) -> Runner<'_> {
        match self.ebpf.program(which.name()).expect("in the object") {
            Program::SchedClassifier(tc) => Runner::Tc(tc),
            Program::Xdp(xdp) => Runner::Xdp(xdp),
            _ => panic!("{} is neither TC nor XDP", which.name()),
        }
    }

    /// The loaded programs, to attach one.
    pub fn tc(&mut self, which: Which) -> &mut SchedClassifier {
        self.prepare(which);
        let program = self.ebpf.program_mut(which.name()).expect("in the object");
        program.try_into().expect("a TC program")
    }

    /// Forgets handshakes and sources: a new secret places each of them elsewhere.
    pub fn forget(&mut self) {
        self.secret = self.secret.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let secret = self.secret();
        self.configure(|config| config.secret = secret);
    }

    /// The least time between two events of a limit on a CPU.
    pub fn set_event_interval(&mut self, interval_ns: u64) {
        self.configure(|config| config.event_interval_ns = interval_ns);
    }

    /// The key of the placement hashes.
    pub fn secret(&self) -> Secret {
        let odd = 0x9e37_79b9_7f4a_7c15u64;
        std::array::from_fn(|word| (self.secret ^ word as u64).wrapping_mul(odd))
    }

    fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut map: Array<_, Config> = self.array("CONFIG");
        let mut config = map.get(&0, 0).expect("CONFIG has one entry");
        change(&mut config);
        map.set(0, config, 0).expect("write CONFIG");
    }

    /// Gives a workload its policy, in place of what it had.
    pub fn serve(&mut self, slot: u32, policy: &Policy) {
        let any_port = [self.write_block(&policy.ingress), self.write_block(&policy.egress)];
        let ports = policy.ports.iter().map(|(_, _, rules)| rules);
        let mut all = ports.chain([&policy.ingress, &policy.egress]);
        let mut flags = if all.any(|rules| is_tracked(rules)) { TRACKED } else { 0 };
        if flags != 0 {
            self.configure(|config| config.tracked = 1);
        }
        for (direction, port, rules) in &policy.ports {
            flags |= match direction {
                Direction::Ingress => PORTS_INGRESS,
                Direction::Egress => PORTS_EGRESS,
            };
            let block = self.write_block(rules);
            let key = port_key(slot, *direction, *port);
            self.insert::<u32>("PORTS", key, block);
        }
        let resets = policy.resets.unwrap_or(1_000_000);
        let budget = match resets {
            0 => Params { cost: 2, burst: 1, step: 0 },
            _ => params(1, 100 * DAY / resets, resets),
        };
        let workload = Workload {
            identity: [u64::from(slot), 0],
            shadow_until_ns: policy.shadow_until_ns,
            reset_cost: budget.cost,
            reset_burst: budget.burst,
            reset_cell: self.new_cell(),
            any_port,
            flags,
            any_port_bytes: [0; 2],
        };
        self.array::<Workload>("WORKLOADS").set(slot, workload, 0).expect("write WORKLOADS");
        if self.slots.insert(slot) {
            self.tallies = self.read_tallies();
        }
    }

    /// The workload's record.
    pub fn workload(&mut self, slot: u32) -> Workload {
        let map: Array<_, Workload> = self.array("WORKLOADS");
        map.get(&slot, 0).expect("read WORKLOADS")
    }

    /// Says which workload an interface belongs to.
    pub fn at_interface(&mut self, interface: u32, slot: u32) {
        self.insert::<u32>("INTERFACES", interface, slot);
    }

    /// Says which workload an address belongs to.
    pub fn at_address(&mut self, address: impl Into<IpAddr>, slot: u32) {
        self.insert::<Addr>("ADDRESSES", address.into().into(), slot);
    }

    /// Takes an address from whatever workload has it.
    pub fn forget_address(&mut self, address: impl Into<IpAddr>) {
        let map = self.ebpf.map_mut("ADDRESSES").expect("in the object");
        let mut map: HashMap<_, Addr, u32> = map.try_into().expect("a hash");
        map.remove(&address.into().into()).expect("write a hash");
    }

    /// A limit of `burst` tokens that refill by `tokens` per `period_ns`, in a cell of its own.
    pub fn limit(&mut self, tokens: u64, period_ns: u64, burst: u64) -> Rule {
        let params = params(tokens, period_ns, burst);
        Rule {
            cost: params.cost,
            burst: params.burst,
            step: params.step,
            cell: self.new_cell(),
            kind: RuleKind::Limit as u8,
            ..Rule::default()
        }
    }

    /// A quota of so many hits in each window of so many seconds of the clock.
    pub fn quota_window(&mut self, hits: u64, period_s: u64) -> Rule {
        Rule {
            cost: period_s,
            burst: hits,
            cell: self.new_cell(),
            kind: RuleKind::Limit as u8,
            flags: RULE_QUOTA | RULE_WINDOW,
            ..Rule::default()
        }
    }

    /// A lease of so many hits of a fleet's quota, for the window that the clock shows now.
    pub fn quota_lease(&mut self, hits: u32, period_s: u64) -> Rule {
        let rule =
            Rule { flags: RULE_QUOTA | RULE_LEASE, ..self.quota_window(u32::MAX.into(), period_s) };
        // The programs have no other clock here than the monotonic one.
        assert!(now_ns() / SECOND < period_s, "this machine runs for longer than a window lasts");
        // The first window's lease: the window's number and its hits.
        let mut line = CellLine::default();
        line.words[0] = hits.into();
        self.array::<CellLine>("CELLS").set(rule.cell, line, 0).expect("write CELLS");
        rule
    }

    /// A limit of so many connections for the whole test: it takes 100 days to refill.
    pub fn connections(&mut self, burst: u64) -> Rule {
        self.limit(1, 100 * DAY / burst, burst)
    }

    /// The same for each source; `groups` are the prefix lengths that group IPv4 and IPv6.
    pub fn connections_per_source(&mut self, burst: u64, groups: (u8, u8)) -> Rule {
        let period = DAY / burst;
        let params = SourceParams::new(1, period, burst, Refill::Smooth).expect("a valid limit");
        Rule {
            cost: params.cost,
            burst: params.burst,
            step: params.step,
            cell: self.new_cell(),
            kind: RuleKind::Source as u8,
            group_v4: groups.0,
            group_v6: groups.1,
            ..Rule::default()
        }
    }

    /// A bucket for health probes.
    pub fn probes(&mut self, burst: u64) -> Rule {
        Rule { kind: RuleKind::Probe as u8, ..self.connections(burst) }
    }

    /// So many connections and handshakes at once.
    pub fn at_once(&mut self, connections: u64, handshakes: u64) -> Rule {
        Rule {
            cost: connections,
            burst: handshakes,
            cell: self.new_cell(),
            kind: RuleKind::Load as u8,
            ..Rule::default()
        }
    }

    /// So many connections of each source at once; `groups` as for `connections_per_source`.
    pub fn at_once_per_source(&mut self, connections: u64, groups: (u8, u8)) -> Rule {
        Rule {
            kind: RuleKind::SourceLoad as u8,
            group_v4: groups.0,
            group_v6: groups.1,
            ..self.at_once(connections, 0)
        }
    }

    /// A breaker.
    pub fn breaker(&mut self, params: breaker::Params, http1: bool) -> Rule {
        let [cost, burst, step] = params.pack();
        Rule {
            cost,
            burst,
            step,
            cell: self.new_cell(),
            kind: RuleKind::Breaker as u8,
            flags: if http1 { RULE_HTTP1 } else { 0 },
            ..Rule::default()
        }
    }

    /// Where a breaker is now.
    pub fn broken(&mut self, rule: &Rule) -> breaker::View {
        let line = self.line("CELLS", rule.cell).words.map(AtomicU64::new);
        let params = breaker::Params::unpack([rule.cost, rule.burst, rule.step]);
        breaker::read(&line, &params, now_ns())
    }

    /// What a load counts now.
    pub fn loaded(&mut self, rule: &Rule) -> Load {
        load::read(self.cell(rule.cell), now_ns())
    }

    /// What all sources' loads count now: connections of each, without those that are idle.
    pub fn source_loads(&mut self) -> Vec<u64> {
        let map: Array<_, CellLine> = self.array("SOURCE_LOADS");
        let words = map.iter().flat_map(|line| line.expect("read SOURCE_LOADS").words);
        words
            .filter_map(|word| load::read_source(word, now_ns()))
            .map(|(_, load)| load.connections())
            .collect()
    }

    /// Whether the node seems to have workloads whose connections are tracked.
    pub fn set_tracked(&mut self, tracked: bool) {
        self.configure(|config| config.tracked = tracked.into());
    }

    /// When the agent seems to have lived last.
    pub fn set_heartbeat(&mut self, heartbeat_ns: u64) {
        self.configure(|config| config.heartbeat_ns = heartbeat_ns);
    }

    /// Peers that no limit concerns.
    pub fn exempt(&mut self) -> Rule {
        Rule { kind: RuleKind::Exempt as u8, cell: self.new_cell(), ..Rule::default() }
    }

    /// Fills a limit's bucket, or takes all of its tokens.
    pub fn set_full(&mut self, rule: &Rule, full: bool) {
        let word = if full { 0 } else { q8(now_ns()) + rule.burst };
        let mut line = CellLine::default();
        line.words[0] = word;
        self.array::<CellLine>("CELLS").set(rule.cell, line, 0).expect("write CELLS");
    }

    /// The first word of a cell.
    pub fn cell(&mut self, index: u32) -> u64 {
        self.line("CELLS", index).words[0]
    }

    /// A line of `CELLS`, `SOURCES` or `PENDING`.
    pub fn line(&mut self, map: &str, index: u32) -> CellLine {
        let map: Array<_, CellLine> = self.array(map);
        map.get(&index, 0).expect("read a line")
    }

    /// All lines of a map, to see whether anything was written.
    pub fn lines(&mut self, map: &str) -> Vec<[u64; 8]> {
        let map: Array<_, CellLine> = self.array(map);
        map.iter().map(|line| line.expect("read a line").words).collect()
    }

    /// What happened at a rule's cell, on all CPUs.
    pub fn counts(&mut self, rule: &Rule) -> Counts {
        let map = self.ebpf.map("COUNTS").expect("in the object");
        let map: PerCpuArray<_, Counts> = map.try_into().expect("a per-CPU array");
        let values = map.get(&rule.cell, 0).expect("read COUNTS");
        values.iter().fold(Counts::default(), |sum, one| Counts {
            // A refund on another CPU than the take leaves one of them negative.
            admitted: sum.admitted.wrapping_add(one.admitted),
            refused: sum.refused + one.refused,
            shadowed: sum.shadowed + one.shadowed,
            last_event_ns: sum.last_event_ns.max(one.last_event_ns),
        })
    }

    /// How often a decision was counted, at all slots in use and all hooks.
    pub fn total(&self, verdict: Verdict, reason: Reason) -> u64 {
        self.read_tallies()
            .iter()
            .filter(|((_, _, v, r), _)| (*v, *r) == (verdict as u8, reason as u8))
            .map(|(_, count)| count)
            .sum()
    }

    /// The words of remembered handshakes.
    pub fn handshakes(&mut self) -> Vec<u64> {
        let map: Array<_, CellLine> = self.array("PENDING");
        let words = map.iter().flat_map(|line| line.expect("read PENDING").words);
        words.filter(|word| *word != 0).collect()
    }

    /// Changes every remembered handshake.
    pub fn alter_handshakes(&mut self, change: impl Fn(u64) -> u64) {
        let mut map: Array<_, CellLine> = self.array("PENDING");
        for index in 0..map.len() {
            let mut line = map.get(&index, 0).expect("read PENDING");
            if line.words != [0; way::LINE] {
                line.words = line.words.map(|word| if word == 0 { 0 } else { change(word) });
                map.set(index, line, 0).expect("write PENDING");
            }
        }
    }

    /// The events that were not read yet.
    pub fn events(&mut self) -> Vec<Event> {
        let map = self.ebpf.map_mut("EVENTS").expect("in the object");
        let mut ring: RingBuf<_> = map.try_into().expect("a ring buffer");
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            assert_eq!(item.len(), size_of::<Event>(), "bytes of an event");
            // SAFETY: as many bytes as an `Event` has, which is integers (`aya::Pod`).
            events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
        events
    }

    fn new_cell(&mut self) -> u32 {
        self.cells += 1;
        self.cells
    }

    fn write_block(&mut self, rules: &[Rule]) -> u32 {
        if rules.is_empty() {
            return 0;
        }
        let tracked = is_tracked(rules).into();
        let is_flow = |rule: &Rule| rule.kind == RuleKind::ConnectionBandwidth as u8;
        let flows = rules.iter().any(is_flow).into();
        let mut block = Block { count: rules.len() as u32, tracked, flows, ..Block::default() };
        block.rules[..rules.len()].copy_from_slice(rules);
        self.blocks += 1;
        let index = self.blocks;
        self.array::<Block>("BLOCKS").set(index, block, 0).expect("write BLOCKS");
        index
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Array<&mut MapData, V> {
        let map = self.ebpf.map_mut(name).expect("in the object");
        map.try_into().expect("an array")
    }

    fn insert<K: aya::Pod>(&mut self, name: &str, key: K, value: u32) {
        let map = self.ebpf.map_mut(name).expect("in the object");
        let mut map: HashMap<_, K, u32> = map.try_into().expect("a hash");
        map.insert(key, value, 0).expect("write a hash");
    }

    fn read_tallies(&self) -> Tallies {
        let map = self.ebpf.map("TALLIES").expect("in the object");
        let map: PerCpuArray<_, Tally> = map.try_into().expect("a per-CPU array");
        let mut tallies = Tallies::new();
        for &slot in &self.slots {
            for hook in 0..HOOKS {
                let values = map.get(&(slot * HOOKS + hook), 0).expect("read TALLIES");
                for verdict in 0..Verdict::ALL.len() {
                    for reason in 0..REASONS {
                        let sum: u64 = values.iter().map(|t| t.counts[verdict][reason]).sum();
                        if sum != 0 {
                            let key = (slot, hook as u8, verdict as u8, reason as u8);
                            tallies.insert(key, sum);
                        }
                    }
                }
            }
        }
        tallies
    }
}

/// A loaded program.
#[derive(Clone, Copy)]
pub enum Runner<'a> {
    /// At TC.
    Tc(&'a SchedClassifier),
    /// At XDP.
    Xdp(&'a Xdp),
}

impl Runner<'_> {
    /// Runs it; its code and the packet afterwards.
    pub fn run(self, packet: &[u8]) -> (i32, Vec<u8>) {
        let mut out = vec![0; packet.len()];
        match self.try_run(packet, Some(&mut out)) {
            Ok((code, length)) => {
                out.truncate(length);
                (code, out)
            }
            Err(error) => panic!("test run of {} bytes: {error}", packet.len()),
        }
    }

    /// Runs it; its code and how many bytes the packet has afterwards.
    ///
    /// # Errors
    /// When the kernel does not build this packet: TC takes none that is too short for the IP
    /// header that its EtherType promises, nor one of more than a page.
    pub fn try_run(
        self,
        packet: &[u8],
        out: Option<&mut [u8]>,
    ) -> Result<(i32, usize), ProgramError> {
        let options =
            TestRunOptions { data_in: Some(packet), data_out: out, ..TestRunOptions::default() };
        let result = match self {
            Self::Tc(tc) => tc.test_run(options),
            Self::Xdp(xdp) => xdp.test_run(options),
        }?;
        Ok((result.return_value as i32, result.data_size_out as usize))
    }
}

/// A rule with something more.
pub trait RuleExt {
    /// Only for peers in this prefix.
    fn only(self, peer: impl Into<IpAddr>, length: u32) -> Self;
    /// Counted, not enforced.
    fn shadow(self) -> Self;
    /// Refuses without an answer.
    fn dropping(self) -> Self;
    /// Spends from what others spend from, too.
    fn spending_a_quota(self) -> Self;
}

impl RuleExt for Rule {
    fn only(mut self, peer: impl Into<IpAddr>, length: u32) -> Self {
        let peer = peer.into();
        let bits = if peer.is_ipv4() { 96 + length } else { length };
        self.mask = Addr::mask(bits);
        self.peer = Addr::from(peer).masked(self.mask);
        self
    }

    fn shadow(mut self) -> Self {
        self.flags |= RULE_SHADOW;
        self
    }

    fn dropping(mut self) -> Self {
        self.flags |= RULE_DROP;
        self
    }

    fn spending_a_quota(mut self) -> Self {
        self.flags |= RULE_QUOTA;
        self
    }
}

/// The clock of the programs.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a monotonic clock");
    now.tv_sec() as u64 * SECOND + now.tv_nsec() as u64
}

/// Whether some of the rules are about connections that must be tracked.
fn is_tracked(rules: &[Rule]) -> bool {
    rules.iter().any(|rule| rule.kind >= RuleKind::Load as u8)
}

fn params(tokens: u64, period_ns: u64, burst: u64) -> Params {
    Params::new(tokens, period_ns, burst, Refill::Smooth).expect("a valid limit")
}
