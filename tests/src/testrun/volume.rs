//! The programs that limit bytes and packets, run on packets of which more is said than their bytes:
//! how they are cut into segments, and when they are to be sent.

use std::array;

use aya::{
    TestRun as _, TestRunOptions,
    maps::{Array, PerCpuArray},
};
use weir_common::{
    debt::Tariff,
    gcra::q8,
    layout::{
        BYTE_PORTS_EGRESS, BYTE_PORTS_INGRESS, CellLine, Direction, PACED_EGRESS, PACED_INGRESS,
        Rule, RuleKind, Volume, Workload, bytes_key,
    },
};

use super::{Programs, Run, Runner, SECOND, Which, now_ns};

/// Bytes of the kernel's `struct __sk_buff`
/// (<https://github.com/torvalds/linux/blob/v6.1/include/uapi/linux/bpf.h#L5795>).
const SKB: usize = 192;
/// Where its fields begin.
const TSTAMP: usize = 152;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;

/// What the kernel knows of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skb {
    /// Segments that it is cut into; 0 where nobody said.
    pub gso_segs: u32,
    /// Payload of each segment but the last; 0 of a packet that is not cut.
    pub gso_size: u32,
    /// When it is to be sent, CLOCK_MONOTONIC ns; 0 for at once.
    pub send_at_ns: u64,
}

/// Byte limits of a workload.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Towards the workload, whatever the port.
    pub ingress: Vec<Rule>,
    /// From it.
    pub egress: Vec<Rule>,
    /// For one of its ports.
    pub ports: Vec<(Direction, u16, Vec<Rule>)>,
    /// Whether something behind the programs sends packets at the time that they carry.
    pub paced: bool,
    /// Until when nothing is refused, CLOCK_MONOTONIC ns.
    pub shadow_until_ns: u64,
}

/// What one run did.
#[derive(Clone, Debug)]
pub struct Passage {
    /// As for the other programs.
    pub run: Run,
    /// When the packet is to be sent, CLOCK_MONOTONIC ns; 0 for at once.
    pub send_at_ns: u64,
}

impl Programs {
    /// So many bytes a second, and so many at once.
    pub fn bandwidth(&mut self, bytes: u64, burst: u64) -> Rule {
        self.volume_rule(RuleKind::Bandwidth, bytes, burst)
    }

    /// So many packets.
    pub fn packets(&mut self, packets: u64, burst: u64) -> Rule {
        self.volume_rule(RuleKind::Packets, packets, burst)
    }

    /// So many bytes of each connection and direction.
    pub fn connection_bandwidth(&mut self, bytes: u64, burst: u64) -> Rule {
        self.volume_rule(RuleKind::ConnectionBandwidth, bytes, burst)
    }

    fn volume_rule(&mut self, kind: RuleKind, units: u64, burst: u64) -> Rule {
        let tariff = Tariff::new(units, SECOND, burst).expect("a valid limit");
        Rule {
            cost: tariff.price,
            burst: tariff.burst,
            cell: self.new_cell(),
            kind: kind as u8,
            ..Rule::default()
        }
    }

    /// Gives a workload its byte limits, in place of all that it had.
    pub fn limit_bytes(&mut self, slot: u32, limits: &Limits) {
        let mut flags = if limits.paced { PACED_INGRESS | PACED_EGRESS } else { 0 };
        for (direction, port, rules) in &limits.ports {
            flags |= match direction {
                Direction::Ingress => BYTE_PORTS_INGRESS,
                Direction::Egress => BYTE_PORTS_EGRESS,
            };
            let block = self.write_block(rules);
            self.insert::<u32>("PORTS", bytes_key(slot, *direction, *port), block);
        }
        let record = Workload {
            identity: [u64::from(slot), 0],
            shadow_until_ns: limits.shadow_until_ns,
            any_port_bytes: [self.write_block(&limits.ingress), self.write_block(&limits.egress)],
            flags,
            ..Workload::default()
        };
        self.array::<Workload>("WORKLOADS").set(slot, record, 0).expect("write WORKLOADS");
        if self.slots.insert(slot) {
            self.tallies = self.read_tallies();
        }
    }

    /// Runs a program on a packet of which this is said.
    pub fn pass(&mut self, which: Which, packet: &[u8], skb: Skb) -> Passage {
        self.prepare(which);
        let mut context = [0; SKB];
        let mut put =
            |at: usize, bytes: &[u8]| context[at..at + bytes.len()].copy_from_slice(bytes);
        put(TSTAMP, &skb.send_at_ns.to_ne_bytes());
        put(GSO_SEGS, &skb.gso_segs.to_ne_bytes());
        put(GSO_SIZE, &skb.gso_size.to_ne_bytes());
        let (mut after, mut out) = ([0; SKB], vec![0; packet.len()]);
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut after),
            ..TestRunOptions::default()
        };
        let Runner::Tc(program) = self.runner(which) else { panic!("{which:?} is not of TC") };
        let result = program.test_run(options).expect("the kernel builds this packet");
        let run = self.counted(which, result.return_value as i32, out);
        let send_at = array::from_fn(|byte| after[TSTAMP + byte]);
        Passage { run, send_at_ns: u64::from_ne_bytes(send_at) }
    }

    /// How much of a bucket of the workload is spent, in its own unit of 1/256 ns: as its word says,
    /// which means something next to the clock only.
    pub fn debt(&mut self, rule: &Rule, direction: Direction) -> u64 {
        self.line("CELLS", rule.cell).words[direction as usize]
    }

    /// Leaves a bucket with this part of its burst spent, of now; more than 1 is debt. Returns the word.
    pub fn spend(&mut self, rule: &Rule, direction: Direction, part: f64) -> u64 {
        let mut line = self.line("CELLS", rule.cell);
        let word = q8(now_ns()) + (rule.burst as f64 * part) as u64;
        line.words[direction as usize] = word;
        self.array::<CellLine>("CELLS").set(rule.cell, line, 0).expect("write CELLS");
        word
    }

    /// The words of connections' buckets that are in use.
    pub fn flows(&mut self) -> Vec<u64> {
        let map: Array<_, CellLine> = self.array("FLOWS");
        let words = map.iter().flat_map(|line| line.expect("read FLOWS").words);
        words.filter(|word| *word != 0).collect()
    }

    /// What passed a limit and what did not, on all CPUs.
    pub fn volume(&mut self, rule: &Rule) -> Volume {
        let map = self.ebpf.map("VOLUMES").expect("in the object");
        let map: PerCpuArray<_, Volume> = map.try_into().expect("a per-CPU array");
        let values = map.get(&rule.cell, 0).expect("read VOLUMES");
        values.iter().fold(Volume::default(), |sum, one| Volume {
            // What was given back on another CPU leaves one of them negative.
            passed_bytes: sum.passed_bytes.wrapping_add(one.passed_bytes),
            passed_packets: sum.passed_packets.wrapping_add(one.passed_packets),
            marked_bytes: sum.marked_bytes + one.marked_bytes,
            marked_packets: sum.marked_packets + one.marked_packets,
            dropped_bytes: sum.dropped_bytes + one.dropped_bytes,
            dropped_packets: sum.dropped_packets + one.dropped_packets,
            shadowed_bytes: sum.shadowed_bytes + one.shadowed_bytes,
            shadowed_packets: sum.shadowed_packets + one.shadowed_packets,
        })
    }
}

/// What so many units cost under a rule, 1/256 ns.
pub fn cost(rule: &Rule, units: u64) -> u64 {
    Tariff { price: rule.cost, burst: rule.burst }.charge(units)
}
