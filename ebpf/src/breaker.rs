//! Circuit breakers in their cells: see [`weir_common::breaker`].
//!
//! A breaker's parameters come with the rule that asks it. Verdicts on connections come later, when
//! the rule may be gone: so whoever asks leaves the parameters behind the breaker's words.

use weir_common::{
    breaker::{
        self, Admission, Asked, Counted, Direct, Edge, Failed, Params, Steps, Told, Verdict,
    },
    layout::{MAX_RULES, Rule, RuleKind},
    track::Event,
    way::Line as _,
    word::Word as _,
};

use crate::{
    emit,
    maps::{self, MapLine},
    rule::{rule_of, unknown},
    track::Owner,
};

/// Where a breaker's parameters stand in its cell.
const PARAMS: usize = breaker::WORDS;

#[inline(always)]
fn params(line: &MapLine) -> Params {
    let word = |index| line.word(PARAMS + index).load();
    Params::unpack([word(0), word(1), word(2)])
}

/// What a breaker says of a SYN: no, yes, not now, contended; bits 8 to 15 hold the epoch.
pub const NO: u64 = 0;
pub const YES: u64 = 1;
pub const NOT_NOW: u64 = 2;
pub const CONTENDED: u64 = 4;

/// Asks a rule's breaker whether a SYN may pass.
#[inline(always)]
pub fn admit(rule: &Rule, owner: Owner, now_ns: u64) -> u64 {
    let Some(line) = maps::cell_line(rule.cell) else { return YES };
    for (index, word) in [rule.cost, rule.burst, rule.step].into_iter().enumerate() {
        let place = line.word(PARAMS + index);
        if place.load() != word {
            place.store(word);
        }
    }
    weir_ask(rule.cell, owner, now_ns)
}

/// What a rule's breaker would say of a SYN if it would refuse it.
#[inline(always)]
pub fn peek(rule: &Rule, now_ns: u64) -> Option<Admission> {
    let params = Params::unpack([rule.cost, rule.burst, rule.step]);
    breaker::peek(&maps::cell_line(rule.cell)?, &params, now_ns)
}

/// Takes a SYN back that another rule refused.
#[inline(always)]
pub fn take_back(cell: u32, epoch: u32, owner: Owner, now_ns: u64) {
    weir_tell(cell, epoch << 8 | Verdict::Abandoned as u32, owner, 0, now_ns);
}

/// Tells a breaker what became of the connection at `place`.
#[inline(always)]
pub fn learn(
    cell: u32,
    epoch: u8,
    event: Event,
    young: bool,
    owner: Owner,
    place: u32,
    now_ns: u64,
) {
    let verdict = match event {
        Event::Answered => Verdict::Succeeded,
        Event::Refused => Verdict::Failed,
        Event::GivenUp => Verdict::Abandoned,
        Event::Cut => Verdict::FailedAfterSuccess,
        Event::Broken if young => Verdict::FailedAfterSuccess,
        _ => return,
    };
    weir_tell(cell, u32::from(epoch) << 8 | verdict as u32, owner, place, now_ns);
}

/// Tells a breaker of a response on the connection at `place`.
#[inline(always)]
pub fn learn_response(cell: u32, epoch: u8, failed: bool, owner: Owner, place: u32, now_ns: u64) {
    let verdict = if failed { Verdict::FailedAfterSuccess } else { Verdict::SucceededAgain };
    weir_tell(cell, u32::from(epoch) << 8 | verdict as u32, owner, place, now_ns);
}

/// Milliseconds within which a breaker awaits an answer.
#[inline(always)]
pub fn timeout_ms(cell: u32) -> u64 {
    maps::cell_line(cell).map_or(0, |line| u64::from(params(&line).timeout_ms))
}

/// Asks the breaker of a cell.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_ask(cell: u32, owner: u32, now_ns: u64) -> u64 {
    let (admission, edge) = breaker::ask(&Cell(cell), now_ns);
    emit::edge(owner, cell, edge, 0, now_ns);
    match admission {
        Admission::Admitted { epoch } => YES | u64::from(epoch) << 8,
        Admission::Open => NO,
        Admission::Probing => NOT_NOW,
        Admission::Contended => CONTENDED,
    }
}

/// Whether a rule's breaker that would refuse lets pass, because of its service enough are ejected.
#[inline(always)]
pub fn is_spared(rule: &Rule, block: u32, index: u32, now_ns: u64) -> bool {
    rule.kind == RuleKind::Breaker as u8
        && rule.group_v6 != 0
        && weir_is_spared(block, index, now_ns) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_is_spared(block: u32, this: u32, now_ns: u64) -> u64 {
    let Some(rule) = rule_of(block, this) else { return 0 };
    let own = (weir_ejected_for(block, this, now_ns), this);
    let mut before = 0u64;
    for index in 0..MAX_RULES as u32 {
        before = unknown(before, now_ns);
        let Some(other) = rule_of(block, index) else { break };
        if other.kind == RuleKind::Breaker as u8 && other.group_v4 == rule.group_v4 {
            let age = weir_ejected_for(block, index, now_ns);
            before += u64::from(age != 0 && breaker::is_before((age, index), own));
        }
    }
    u64::from(before >= u64::from(rule.group_v6))
}

/// How long the breaker of a rule has been ejected, in ticks; 0 when it is not.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_ejected_for(block: u32, rule: u32, now_ns: u64) -> u64 {
    let Some(rule) = rule_of(block, rule) else { return 0 };
    let Some(word) = maps::cell(rule.cell) else { return 0 };
    let params = Params::unpack([rule.cost, rule.burst, rule.step]);
    breaker::ejected_for(word.load(), &params, now_ns).unwrap_or(0)
}

/// Tells the breaker of a cell. `verdict` is `epoch << 8 | Verdict`; without a place the attempt began
/// just now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_tell(cell: u32, verdict: u32, owner: u32, place: u32, now_ns: u64) -> u64 {
    let opened_ns = match place {
        0 => now_ns,
        _ => maps::slot(place - 1).map_or(now_ns, |slot| slot.opened_ns),
    };
    let epoch = (verdict >> 8) as u8;
    let edge = breaker::tell(&Cell(cell), epoch, verdict_of(verdict), opened_ns, now_ns);
    emit::edge(owner, cell, edge, place, now_ns);
    0
}

#[inline(always)]
fn verdict_of(code: u32) -> Verdict {
    match code & 0xff {
        1 => Verdict::Succeeded,
        2 => Verdict::Failed,
        3 => Verdict::FailedAfterSuccess,
        5 => Verdict::SucceededAgain,
        _ => Verdict::Abandoned,
    }
}

/// A breaker whose steps are global functions. What a step returns is packed into a number: 0 to try
/// again; else bits 0–3 say which, 4–7 an admission or a flag, 8–15 the epoch, 16–19 the edge, 24–63 a
/// count.
struct Cell(u32);

const EDGES: [Edge; 5] =
    [Edge::None, Edge::Tripped, Edge::Reopened, Edge::HalfOpened, Edge::Closed];

#[inline(always)]
fn edge_of(packed: u64) -> Edge {
    let mut edge = Edge::None;
    for candidate in EDGES {
        if packed >> 16 & 0xf == candidate as u64 {
            edge = candidate;
        }
    }
    edge
}

impl Steps for Cell {
    #[inline(always)]
    fn try_admit(&self, now_ns: u64) -> Asked {
        let packed = weir_try_admit(self.0, now_ns);
        let epoch = (packed >> 8) as u8;
        match packed & 0xf {
            1 => {
                let admission = match packed >> 4 & 0xf {
                    YES => Admission::Admitted { epoch },
                    NOT_NOW => Admission::Probing,
                    _ => Admission::Open,
                };
                Asked::Done(admission, edge_of(packed))
            }
            2 => Asked::Admitted { epoch, timed_out: packed >> 24 },
            3 => Asked::Closed,
            _ => Asked::Again,
        }
    }

    #[inline(always)]
    fn try_judge(&self, epoch: u8, verdict: Verdict, opened_ns: u64, now_ns: u64) -> Told {
        let verdict = u32::from(epoch) << 8 | verdict as u32;
        let packed = weir_try_judge(self.0, verdict, opened_ns, now_ns);
        match packed & 0xf {
            1 => Told::Done(edge_of(packed)),
            2 => Told::Taken { timed_out: packed >> 24, counts: packed >> 4 & 1 != 0 },
            _ => Told::Again,
        }
    }

    #[inline(always)]
    fn try_count(&self, epoch: u8, ok: u64, failed: u64, now_ns: u64) -> Counted {
        match weir_try_count(self.0, epoch.into(), ok, failed, now_ns) {
            1 => Counted::Calm,
            2 => Counted::Trips,
            _ => Counted::Again,
        }
    }

    #[inline(always)]
    fn try_fail(
        &self,
        epoch: u8,
        failures: u64,
        ratio_trips: bool,
        after_success: bool,
        now_ns: u64,
    ) -> Failed {
        let epoch = u32::from(after_success) << 9 | u32::from(ratio_trips) << 8 | u32::from(epoch);
        match weir_try_fail(self.0, epoch, failures, now_ns) {
            1 => Failed::Counted,
            2 => Failed::Tripped,
            3 => Failed::Stale,
            _ => Failed::Again,
        }
    }

    #[inline(always)]
    fn try_calm(&self, epoch: u8, sure: bool) -> bool {
        weir_try_calm(self.0, u32::from(sure) << 8 | u32::from(epoch)) != 0
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_admit(cell: u32, now_ns: u64) -> u64 {
    let Some(line) = maps::cell_line(cell) else { return 1 | YES << 4 };
    let params = params(&line);
    match (Direct { line: &line, params: &params }).try_admit(now_ns) {
        Asked::Done(admission, edge) => {
            let edge = (edge as u64) << 16;
            match admission {
                Admission::Admitted { epoch } => 1 | YES << 4 | u64::from(epoch) << 8 | edge,
                Admission::Probing => 1 | NOT_NOW << 4 | edge,
                Admission::Open | Admission::Contended => 1 | edge,
            }
        }
        Asked::Admitted { epoch, timed_out } => 2 | u64::from(epoch) << 8 | timed_out << 24,
        Asked::Closed => 3,
        Asked::Again => 0,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_judge(cell: u32, verdict: u32, opened_ns: u64, now_ns: u64) -> u64 {
    let Some(line) = maps::cell_line(cell) else { return 1 };
    let params = params(&line);
    let steps = Direct { line: &line, params: &params };
    match steps.try_judge((verdict >> 8) as u8, verdict_of(verdict), opened_ns, now_ns) {
        Told::Done(edge) => 1 | (edge as u64) << 16,
        Told::Taken { timed_out, counts } => 2 | u64::from(counts) << 4 | timed_out << 24,
        Told::Again => 0,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_count(cell: u32, epoch: u32, ok: u64, failed: u64, now_ns: u64) -> u64 {
    let Some(line) = maps::cell_line(cell) else { return 1 };
    let params = params(&line);
    let steps = Direct { line: &line, params: &params };
    match steps.try_count(epoch as u8, ok, failed, now_ns) {
        Counted::Calm => 1,
        Counted::Trips => 2,
        Counted::Again => 0,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_fail(cell: u32, epoch: u32, failures: u64, now_ns: u64) -> u64 {
    let Some(line) = maps::cell_line(cell) else { return 3 };
    let params = params(&line);
    let steps = Direct { line: &line, params: &params };
    let (ratio_trips, after_success) = (epoch >> 8 & 1 != 0, epoch >> 9 & 1 != 0);
    match steps.try_fail(epoch as u8, failures, ratio_trips, after_success, now_ns) {
        Failed::Counted => 1,
        Failed::Tripped => 2,
        Failed::Stale => 3,
        Failed::Again => 0,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_calm(cell: u32, epoch: u32) -> u64 {
    let Some(line) = maps::cell_line(cell) else { return 1 };
    let params = params(&line);
    u64::from((Direct { line: &line, params: &params }).try_calm(epoch as u8, epoch >> 8 != 0))
}
