//! A block of byte limits before one packet: charge, give back, count.
//!
//! As in [`crate::rule`], the `weir_*` functions are global BPF functions, verified once each, so they
//! take numbers and find rule and bucket again.

use weir_common::{
    debt::{self, Tariff},
    flow::{self, Charge},
    gcra::{Q8, q8},
    layout::{FLOW_LINES, MAX_RULES, RULE_SHADOW, Rule, RuleKind},
    way::{self, Line as _, Tick},
    word::TRIES,
};

use super::parcel::Parcel;
use crate::{
    hook::opaque,
    maps,
    rule::{rule_of, unknown},
};

/// A packet is not delayed by more than this: it is dropped, or the queue would be longer than what
/// sends it believes. 100 ms.
const HORIZON: Q8 = q8(100_000_000);
/// A packet that is delayed by more than this is marked: 5 ms.
const CALM: Q8 = q8(5_000_000);

/// What a block says of a packet, packed into the number that a BPF function returns.
///
/// Bits: 0–4 the refusing rule and whether there is one, 5–9 the same of the first rule that wants the
/// packet marked, 10 the refusing bucket was the one that crowded-out connections share, 11 it was
/// contended, 16–30 which rules charged it, 32–63 the delay in units of 64 ns.
#[derive(Clone, Copy)]
pub struct Ruling(u64);

const MARKED: u32 = 5;
const CROWDED: u64 = 1 << 10;
const CONTENDED: u64 = 1 << 11;
const CHARGED: u32 = 16;
const DELAY: u32 = 32;
/// Beside a rule's number: there is one.
const SOME: u64 = 1 << 4;
const DELAY_NS: u64 = 64;

impl Ruling {
    #[inline(always)]
    pub fn is_refused(self) -> bool {
        self.0 & SOME != 0
    }

    #[inline(always)]
    pub fn refused(self) -> Option<u32> {
        if self.is_refused() { Some(self.0 as u32 & 0xf) } else { None }
    }

    #[inline(always)]
    pub fn marked(self) -> Option<u32> {
        let bits = self.0 >> MARKED;
        if bits & SOME == 0 { None } else { Some(bits as u32 & 0xf) }
    }

    #[inline(always)]
    pub fn is_crowded(self) -> bool {
        self.0 & CROWDED != 0
    }

    #[inline(always)]
    pub fn is_contended(self) -> bool {
        self.0 & CONTENDED != 0
    }

    #[inline(always)]
    pub fn delay_ns(self) -> u64 {
        (self.0 >> DELAY) * DELAY_NS
    }
}

/// What a bucket said: bits 0 charged, 1 marked, 2 refused, [`CROWDED`], [`CONTENDED`], and the delay
/// as in a ruling.
const YES: u64 = 1;
const MARK: u64 = 2;
const NO: u64 = 4;

/// What is counted of a packet at a limit.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Outcome {
    Passed,
    /// It had passed, and another limit refused it.
    GivenBack,
    Marked,
    Dropped,
    Shadowed,
}

/// Charges every bucket of the block, up to the one that refuses: what the others took must be given
/// back.
#[inline(always)]
pub fn judge(block: u32, parcel: &Parcel) -> Ruling {
    Ruling(weir_charge_all(block, parcel))
}

/// Gives back what the rules charged.
#[inline(always)]
pub fn give_back(block: u32, ruling: Ruling, parcel: &Parcel) {
    if ruling.0 >> CHARGED & 0x7fff != 0 {
        weir_uncharge_all(block, ruling.0, parcel);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_charge_all(block: u32, parcel: *const Parcel) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Parcel`.
    let Some(parcel) = (unsafe { parcel.as_ref() }) else { return 0 };
    let Some(rules) = maps::block(block) else { return 0 };
    let any = parcel.now_ns;
    let mut ruling = 0;
    let mut delay = 0;
    for index in 0..MAX_RULES as u32 {
        ruling = unknown(ruling, any);
        delay = unknown(delay, any);
        if index >= rules.count {
            break;
        }
        let rule = &rules.rules[index as usize];
        if rule.kind == RuleKind::Exempt as u8 {
            if parcel.peer.masked(rule.mask) == rule.peer {
                return 0;
            }
            continue;
        }
        let said = weir_charge(block, index, parcel);
        if said & NO != 0 {
            return SOME | u64::from(index) | said & (CROWDED | CONTENDED) | ruling;
        }
        ruling |= (said & YES) << (CHARGED + index);
        if said & MARK != 0 && ruling >> MARKED & SOME == 0 {
            ruling |= (SOME | u64::from(index)) << MARKED;
        }
        let its = said >> DELAY;
        delay = if its > delay { its } else { delay };
    }
    ruling | delay << DELAY
}

/// Charges one bucket and counts what it said.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_charge(block: u32, index: u32, parcel: *const Parcel) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Parcel`.
    let Some(parcel) = (unsafe { parcel.as_ref() }) else { return 0 };
    let Some(rule) = rule_of(block, index) else { return 0 };
    let is_flow = rule.kind == RuleKind::ConnectionBandwidth as u8;
    if is_flow && parcel.flow == 0 {
        return 0;
    }
    let enforced = rule.flags & RULE_SHADOW == 0 && !parcel.is_lenient();
    let said = if is_flow {
        weir_charge_flow(block, index, parcel)
    } else {
        weir_charge_cell(block, index, parcel)
    };
    let (outcome, said) = match said {
        said if said & YES != 0 => (Outcome::Passed, if enforced { said } else { YES }),
        said if enforced => (Outcome::Dropped, said | NO),
        _ => (Outcome::Shadowed, 0),
    };
    weir_count_volume(block, index, outcome as u32, parcel);
    said
}

/// Charges a bucket of the workload.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_charge_cell(block: u32, index: u32, parcel: *const Parcel) -> u64 {
    let mut said = CONTENDED;
    for _ in 0..TRIES {
        said = weir_try_cell(block, index, parcel);
        if said & CONTENDED == 0 {
            break;
        }
    }
    said
}

/// One attempt at a bucket of the workload.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_cell(block: u32, index: u32, parcel: *const Parcel) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Parcel`.
    let Some(parcel) = (unsafe { parcel.as_ref() }) else { return YES };
    let Some(rule) = rule_of(block, index) else { return YES };
    let Some(line) = maps::cell_line(rule.cell) else { return YES };
    let word = line.word(parcel.direction());
    let (now, tariff) = (q8(parcel.now_ns), tariff(rule));
    let charge = charge(rule, &tariff, parcel);
    if parcel.must_pass() {
        weir_force(rule.cell, parcel.direction() as u32, parcel.now_ns, charge, tariff.cap());
        return YES;
    }
    let bound = bound(&tariff, charge, parcel);
    // The longest debt lies beyond the horizon of what is delayed, too.
    match debt::attempt(&word, now, charge, bound, HORIZON + tariff.longest()) {
        debt::Spent::Admitted(ahead) => YES | bite(ahead, &tariff, parcel),
        debt::Spent::Denied => 0,
        debt::Spent::Contended => CONTENDED,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_force(cell: u32, word: u32, now_ns: u64, charge: Q8, cap: Q8) -> u64 {
    if let Some(line) = maps::cell_line(cell) {
        debt::force(&line.word(word as usize), q8(now_ns), charge, cap);
    }
    0
}

/// How much may be spent before a packet that costs so much. What is delayed may owe more than the burst.
///
/// What is dropped must fit into what is left: then the large packets of a burst are lost and the small
/// ones that follow them pass, which are what TCP repairs with (a segment sent again, a probe of its
/// tail). Were a large one admitted in debt, everything after it would be lost until that is repaid, and
/// the sender would wait for its timeout. Only what does not fit into a bucket passes in debt, while
/// three quarters of it are left.
#[inline(always)]
fn bound(tariff: &Tariff, charge: Q8, parcel: &Parcel) -> Q8 {
    if parcel.is_paced() {
        return tariff.burst + HORIZON;
    }
    let fits = tariff.burst.saturating_sub(charge);
    let quarter = tariff.burst / 4;
    1 + if fits > quarter { fits } else { quarter }
}

/// What a bucket of which so much is spent does to a packet that it lets pass.
#[inline(always)]
fn bite(ahead: Q8, tariff: &Tariff, parcel: &Parcel) -> u64 {
    if !parcel.is_paced() {
        return if ahead > tariff.burst / 2 { MARK } else { 0 };
    }
    if ahead <= tariff.burst {
        return 0;
    }
    let late = ahead - tariff.burst;
    let mark = if late > CALM { MARK } else { 0 };
    (late >> 8) / DELAY_NS << DELAY | mark
}

#[inline(always)]
fn tariff(rule: &Rule) -> Tariff {
    Tariff { price: rule.cost, burst: rule.burst }
}

#[inline(always)]
fn charge(rule: &Rule, tariff: &Tariff, parcel: &Parcel) -> Q8 {
    let units = if rule.kind == RuleKind::Packets as u8 { parcel.packets } else { parcel.bytes };
    tariff.charge(u64::from(units))
}

/// Charges a connection's bucket. What must pass does so, be it for nothing because too many others
/// changed the line at once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_charge_flow(block: u32, index: u32, parcel: *const Parcel) -> u64 {
    for _ in 0..TRIES {
        let said = weir_try_flow(block, index, parcel);
        if said & CONTENDED == 0 {
            return said;
        }
    }
    // SAFETY: the verifier proves that it is null or a whole `Parcel`.
    let passes = unsafe { parcel.as_ref() }.is_none_or(Parcel::must_pass);
    if passes { YES } else { CONTENDED }
}

/// One attempt at a connection's bucket.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_flow(block: u32, index: u32, parcel: *const Parcel) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Parcel`.
    let Some(parcel) = (unsafe { parcel.as_ref() }) else { return YES };
    let Some(rule) = rule_of(block, index) else { return YES };
    let Some((place, tag)) = place(rule, parcel) else { return YES };
    let Some(line) = maps::flow_line(place) else { return YES };
    let way = opaque(weir_flow_way(place, tag, parcel.now_ns) as usize) & (way::LINE - 1);
    let tariff = tariff(rule);
    let charge = charge(rule, &tariff, parcel);
    let bound = if parcel.must_pass() { tariff.cap() } else { bound(&tariff, charge, parcel) };
    let charge = Charge {
        ticks: flow::ticks(charge, parcel.random),
        bound: flow::ticks(bound, 0),
        longest: flow::ticks(HORIZON + tariff.longest(), 0),
        forced: parcel.must_pass(),
    };
    let crowded = if way == flow::WAYS { CROWDED } else { 0 };
    match flow::attempt(&line, way, tag, Tick::from_ns(parcel.now_ns), charge) {
        flow::Spent::Admitted(_) if charge.forced => YES | crowded,
        flow::Spent::Admitted(ahead) => YES | crowded | bite(flow::time(ahead), &tariff, parcel),
        flow::Spent::Denied => crowded,
        flow::Spent::Contended => CONTENDED,
    }
}

/// The line and tag of a connection's bucket under a rule.
#[inline(always)]
fn place(rule: &Rule, parcel: &Parcel) -> Option<(u32, u64)> {
    let hash = flow::of_rule(maps::secret()?, parcel.flow, rule.cell);
    Some((way::line_of(hash, FLOW_LINES), way::tag(hash)))
}

/// The way of a line that is a connection's.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_flow_way(line: u32, tag: u64, now_ns: u64) -> u64 {
    maps::flow_line(line).map_or(0, |line| flow::way_for(&line, tag, Tick::from_ns(now_ns)) as u64)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_uncharge_all(block: u32, ruling: u64, parcel: *const Parcel) -> u64 {
    for index in 0..MAX_RULES as u32 {
        if ruling >> (CHARGED + index) & 1 != 0 {
            weir_uncharge(block, index, parcel);
        }
    }
    0
}

/// Gives one charge back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_uncharge(block: u32, index: u32, parcel: *const Parcel) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Parcel`.
    let Some(parcel) = (unsafe { parcel.as_ref() }) else { return 0 };
    let Some(rule) = rule_of(block, index) else { return 0 };
    let tariff = tariff(rule);
    let charge = charge(rule, &tariff, parcel);
    weir_count_volume(block, index, Outcome::GivenBack as u32, parcel);
    if rule.kind != RuleKind::ConnectionBandwidth as u8 {
        if let Some(line) = maps::cell_line(rule.cell) {
            debt::refund(&line.word(parcel.direction()), charge);
        }
        return 0;
    }
    let Some((place, tag)) = place(rule, parcel) else { return 0 };
    let ticks = flow::ticks(charge, parcel.random);
    weir_uncharge_flow(place, tag, ticks, parcel.now_ns)
}

/// Gives back to a connection's bucket.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_uncharge_flow(place: u32, tag: u64, ticks: u64, now_ns: u64) -> u64 {
    for _ in 0..TRIES {
        if weir_try_uncharge_flow(place, tag, ticks, now_ns) != 0 {
            break;
        }
    }
    0
}

/// One attempt at it; 1 when it is done.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_uncharge_flow(place: u32, tag: u64, ticks: u64, now_ns: u64) -> u64 {
    let Some(line) = maps::flow_line(place) else { return 1 };
    let way = opaque(weir_flow_way(place, tag, now_ns) as usize) & (way::LINE - 1);
    u64::from(flow::attempt_refund(&line, way, tag, Tick::from_ns(now_ns), ticks))
}

/// Counts a packet at the limit of a rule.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_count_volume(
    block: u32,
    rule: u32,
    outcome: u32,
    parcel: *const Parcel,
) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Parcel`.
    let Some(parcel) = (unsafe { parcel.as_ref() }) else { return 0 };
    let Some(rule) = rule_of(block, rule) else { return 0 };
    let Some(volume) = maps::volume(rule.cell) else { return 0 };
    let (bytes, packets) = (u64::from(parcel.bytes), u64::from(parcel.packets));
    if outcome == Outcome::Passed as u32 {
        volume.passed_bytes += bytes;
        volume.passed_packets += packets;
    } else if outcome == Outcome::GivenBack as u32 {
        volume.passed_bytes = volume.passed_bytes.wrapping_sub(bytes);
        volume.passed_packets = volume.passed_packets.wrapping_sub(packets);
    } else if outcome == Outcome::Marked as u32 {
        volume.marked_bytes += bytes;
        volume.marked_packets += packets;
    } else if outcome == Outcome::Dropped as u32 {
        volume.dropped_bytes += bytes;
        volume.dropped_packets += packets;
    } else {
        volume.shadowed_bytes += bytes;
        volume.shadowed_packets += packets;
    }
    0
}
