//! The decision at a TC hook: the only place that spends.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_ktime_get_ns};
use weir_common::{
    layout::{Direction, Hook, MAX_BLOCKS, MAX_WORKLOADS, RULE_DROP, TRACKED, Workload},
    verdict::{Reason, Verdict},
};

use crate::{
    emit, handup,
    hook::{NEXT, SHOT, Tc, TcHook},
    maps,
    parse::{Parsed, Segment},
    pending, reply,
    rule::{self, Ruling},
    track::{self, Known, Opened, Owner},
    workload,
};

/// Judges one packet and returns the hook's code.
#[inline(always)]
pub fn run(tc: &Tc, direction: Direction) -> i32 {
    let hook = match direction {
        Direction::Ingress => Hook::TcIngress,
        Direction::Egress => Hook::TcEgress,
    };
    let mut segment = Segment::empty();
    match tc.parse(&mut segment) {
        Parsed::Other => NEXT,
        Parsed::Syn => on_syn(tc, hook, &segment),
        Parsed::Later => follow(tc, hook, &segment),
        Parsed::Unreachable => unreachable(tc, hook, &segment),
        Parsed::Fragment => skip(tc, hook, Reason::Fragment),
        Parsed::Malformed | Parsed::Short => skip(tc, hook, Reason::Malformed),
        Parsed::TinyFragment => on_hidden(tc, hook, Reason::TinyFragment),
        Parsed::HeaderChain => on_hidden(tc, hook, Reason::HeaderChain),
    }
}

/// A segment that starts no connection is never refused: it may end one.
#[inline(always)]
fn follow(tc: &Tc, hook: Hook, segment: &Segment) -> i32 {
    if maps::tracks()
        && let Some(slot) = workload::at(tc)
        && let Some(workload) = maps::workload(slot)
        && workload.flags & TRACKED != 0
    {
        let (owner, now_ns) = (track::owner(slot, hook.direction()), now());
        if let Some(place) = track::find(segment, owner, now_ns) {
            place.follow(segment, owner, now_ns);
            if place.may_respond(segment, owner) {
                place.respond(tc.http1_status(segment), now_ns);
            }
        }
    }
    NEXT
}

/// A SYN that could not be delivered has failed. The message goes the other way than what it quotes.
#[inline(always)]
fn unreachable(tc: &Tc, hook: Hook, quoted: &Segment) -> i32 {
    if let Some(slot) = workload::at(tc)
        && let Some(workload) = maps::workload(slot)
        && workload.flags & TRACKED != 0
    {
        let owner = track::owner(slot, hook.direction()) ^ 1;
        let now_ns = now();
        if let Some(place) = track::find(quoted, owner, now_ns) {
            place.lose(quoted, owner, now_ns);
        }
    }
    NEXT
}

#[inline(always)]
fn skip(tc: &Tc, hook: Hook, reason: Reason) -> i32 {
    if let Some(slot) = workload::at(tc) {
        emit::count(slot, hook, Verdict::Pass, reason);
    }
    NEXT
}

/// A packet that hides what it is passes only where nothing is to be protected.
#[inline(always)]
fn on_hidden(tc: &Tc, hook: Hook, reason: Reason) -> i32 {
    let Some(slot) = workload::at(tc) else { return NEXT };
    let Some(workload) = maps::workload(slot) else { return NEXT };
    if !workload::has_rules(workload, hook.direction()) {
        return NEXT;
    }
    if in_shadow(workload, now()) {
        emit::count(slot, hook, Verdict::Shadow, reason);
        return NEXT;
    }
    emit::count(slot, hook, Verdict::Drop, reason);
    SHOT
}

#[inline(always)]
fn on_syn(tc: &Tc, hook: Hook, syn: &Segment) -> i32 {
    let direction = hook.direction();
    let Some(slot) = workload::at(tc) else { return NEXT };
    let Some(workload) = maps::workload(slot) else { return NEXT };
    let Some(rules) = workload::rules(slot, workload, direction, syn.port()) else {
        emit::count(slot, hook, Verdict::Pass, Reason::NoRule);
        return NEXT;
    };
    let now_ns = now();
    let mut site = Site::new(slot, rules.index, tc.hook());
    let known = if rules.tracked() {
        site = site.tracked();
        track::known(syn, site.owner(), now_ns)
    } else {
        pending::recall(syn, site.owner(), now_ns)
    };
    if known.is_repeated() {
        emit::count(slot, hook, Verdict::Pass, Reason::Retransmission);
        return NEXT;
    }
    let ruling = rule::judge(site, in_shadow(workload, now_ns), syn.peer(direction), now_ns);
    if ruling.refused().is_some() {
        if ruling.took() as u16 != 0 {
            rule::give_back(site.block(), ruling.took(), syn.peer(direction), now_ns);
        }
        return refuse(tc, site, syn, ruling, now_ns);
    }
    if known.is_again() {
        // The connection that has its addresses and ports is counted already.
        rule::give_back_tracked(site.block(), ruling.took(), syn.peer(direction), now_ns);
    }
    match weir_admit(syn, site.0, ruling.0, known.0, now_ns) {
        0 => NEXT,
        lack => {
            rule::give_back(site.block(), ruling.took(), syn.peer(direction), now_ns);
            if lack == 2 {
                return NEXT;
            }
            // What cannot be tracked cannot be counted: it is refused, or the limit would not hold.
            refuse(tc, site, syn, ruling, now_ns)
        }
    }
}

/// Where a packet is judged, packed for BPF functions.
///
/// Bits: 0–15 the block of rules, 16–31 the workload's slot, 32–33 the hook, 34 whether the rules'
/// connections are tracked.
#[derive(Clone, Copy)]
pub struct Site(pub u64);

impl Site {
    const TRACKED: u64 = 1 << 34;

    #[inline(always)]
    fn new(slot: u32, block: u32, hook: TcHook) -> Self {
        const { assert!(MAX_BLOCKS <= 1 << 16 && MAX_WORKLOADS <= 1 << 15) };
        Self(u64::from(block) | u64::from(slot) << 16 | (hook as u64) << 32)
    }

    #[inline(always)]
    fn tracked(self) -> Self {
        Self(self.0 | Self::TRACKED)
    }

    #[inline(always)]
    pub fn is_tracked(self) -> bool {
        self.0 & Self::TRACKED != 0
    }

    #[inline(always)]
    pub fn block(self) -> u32 {
        self.0 as u32 & 0xffff
    }

    #[inline(always)]
    pub fn slot(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
    }

    #[inline(always)]
    pub fn hook(self) -> TcHook {
        TcHook::from_bits(self.0 >> 32)
    }

    #[inline(always)]
    fn direction(self) -> Direction {
        self.hook().direction()
    }

    #[inline(always)]
    pub fn owner(self) -> Owner {
        self.slot() << 1 | self.direction() as u32
    }
}

/// Counts a SYN that no rule refuses, and remembers or tracks its connection. 1 when there is no room
/// to track it, and 2 when that concerns only rules in shadow: then it is not counted.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_admit(
    syn: *const Segment,
    site: u64,
    ruling: u64,
    known: u64,
    now_ns: u64,
) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(syn) = (unsafe { syn.as_ref() }) else { return 0 };
    let (site, ruling, known) = (Site(site), Ruling(ruling), Known(known));
    let (slot, hook) = (site.slot(), site.hook().counted());
    let admission = ruling.admission();
    let must_track = site.is_tracked() && admission == Reason::Admitted && !known.is_again();
    if must_track {
        match track::open(syn, site.owner(), site.block(), ruling.took(), now_ns) {
            Opened::NoRoom if rule::enforces_tracked(site.block()) => return 1,
            Opened::NoRoom => {
                // What only counts refuses nobody.
                emit::count(slot, hook, Verdict::Shadow, Reason::TableFull);
                return 2;
            }
            Opened::Displacing => {
                emit::count(slot, hook, Verdict::Note, Reason::HandshakeDisplaced);
            }
            Opened::Tracked => {}
        }
    }
    if let Some(rule) = rule::find(site.block(), ruling.shadowed()) {
        let unaudited = rule::counts_connections(rule) && is_unaudited(now_ns);
        let reason =
            if unaudited { Reason::Unaudited } else { ruling.reason(rule, site.direction()) };
        emit::refusal(slot, hook, Verdict::Shadow, reason, rule, syn, now_ns);
    } else {
        emit::count(slot, hook, Verdict::Pass, admission);
        emit::log(slot, Verdict::Pass, admission, syn);
    }
    if !site.is_tracked() && admission != Reason::Exempt && !pending::remember(known, now_ns) {
        emit::count(slot, hook, Verdict::Note, Reason::NotRemembered);
    }
    0
}

#[inline(always)]
fn refuse(tc: &Tc, site: Site, syn: &Segment, ruling: Ruling, now_ns: u64) -> i32 {
    weir_refuse(tc.raw(), syn, site.0, ruling.0, now_ns) as i32
}

/// Refuses a SYN, because of a rule or for want of room; the hook's code.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_refuse(
    skb: *mut __sk_buff,
    syn: *const Segment,
    site: u64,
    ruling: u64,
    now_ns: u64,
) -> u64 {
    const PASS: u64 = NEXT as u64;
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(syn) = (unsafe { syn.as_ref() }) else { return PASS };
    let (site, ruling) = (Site(site), Ruling(ruling));
    let (slot, hook, direction) = (site.slot(), site.hook().counted(), site.direction());
    let Some(workload) = maps::workload(slot) else { return PASS };
    let rule = rule::find(site.block(), ruling.refused());
    if let Some(rule) = rule
        && ruling.reason(rule, direction) == Reason::QuotaAsked
    {
        return handup::weir_hand_up(skb, site.0, rule.cell);
    }
    let drop = rule.is_some_and(|rule| rule.flags & RULE_DROP != 0);
    let mut verdict = refusal(workload, syn, drop, now_ns);
    if let Some(rule) = rule {
        let reason = ruling.reason(rule, direction);
        emit::refusal(slot, hook, verdict, reason, rule, syn, now_ns);
        emit::log(slot, verdict, reason, syn);
    } else {
        if in_shadow(workload, now_ns) {
            verdict = Verdict::Shadow;
        }
        emit::count(slot, hook, verdict, Reason::TableFull);
    }
    if verdict == Verdict::Shadow {
        return PASS;
    }
    if verdict == Verdict::Reset {
        if reply::reset(skb, syn) {
            return site.hook().send_back(skb) as u64;
        }
        emit::count(slot, hook, Verdict::Note, Reason::RewriteFailed);
    } else if !drop && syn.answerable != 0 {
        emit::count(slot, hook, Verdict::Note, Reason::ResetLimited);
    }
    SHOT as u64
}

/// Connections that nobody has audited for so long are counted, not refused: 5 minutes.
const UNAUDITED_NS: u64 = 300_000_000_000;

/// Whether no agent has lived for too long to believe the counts of connections.
#[inline(always)]
pub fn is_unaudited(now_ns: u64) -> bool {
    now_ns.saturating_sub(maps::heartbeat_ns()) > UNAUDITED_NS
}

/// Resets have a budget, or spoofed SYNs would make this node their amplifier.
#[inline(always)]
pub fn refusal(workload: &Workload, syn: &Segment, drop: bool, now_ns: u64) -> Verdict {
    if drop || syn.answerable == 0 {
        return Verdict::Drop;
    }
    match rule::take_reset(workload, now_ns) {
        true => Verdict::Reset,
        false => Verdict::Drop,
    }
}

#[inline(always)]
pub fn in_shadow(workload: &Workload, now_ns: u64) -> bool {
    now_ns < workload.shadow_until_ns
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
