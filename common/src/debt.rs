//! A token bucket for bytes in one word: the generic cell rate algorithm in debt mode.
//!
//! The word is that of [`crate::gcra`]: the time at which the bucket will be full again. There a take
//! must fit; here it is admitted while anything is left, and charged whole. What a packet took too
//! much is a debt, which time repays before the next packet is admitted: one that is larger than the
//! bucket makes progress, and any stretch of time admits at most rate × time + burst + one packet.
//!
//! What a unit (a byte, a packet) costs is kept to 2^-20 ns and multiplied by the units of a packet
//! before it is rounded, so that a rate of 100 Gbit/s is off by 2^-16 at most and no packet is free.
//! Nothing else is rounded, and nothing is multiplied by elapsed time: no rate of packets starves a
//! bucket, and no idle time overflows it.

use crate::{
    gcra::{MAX_WINDOW, Q8, SKEW, q8, used},
    word::{TRIES, Word},
};

/// Bits of a price below 1/256 ns.
const FRACTION: u32 = 12;
const FRACTION_MASK: u64 = (1 << FRACTION) - 1;

/// Most units that one packet is charged for: twice the largest that the kernel builds.
pub const MAX_UNITS: u64 = 1 << 20;

/// Longest time that a bucket may take to fill, 1/256 ns: an hour.
pub const MAX_BURST: Q8 = q8(3_600_000_000_000);
/// Longest time that one unit may take, 1/256 ns: a second.
pub const MAX_UNIT: Q8 = q8(1_000_000_000);
const _: () = assert!(MAX_UNITS * MAX_UNIT < MAX_WINDOW);

/// What a unit costs, and how much may be spent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tariff {
    /// Time that one unit is worth, 2^-20 ns.
    pub price: u64,
    /// Time that a full bucket is worth, 1/256 ns.
    pub burst: Q8,
}

impl Tariff {
    /// A bucket of `burst` units that refills by `units` every `period_ns`.
    ///
    /// The price is rounded up, so that no rounding admits more than was written. `None` when a number
    /// is 0, when a unit would take longer than a second or the bucket longer than an hour.
    pub fn new(units: u64, period_ns: u64, burst: u64) -> Option<Self> {
        if units == 0 || period_ns == 0 || burst == 0 {
            return None;
        }
        let price = (u128::from(period_ns) << (8 + FRACTION)).div_ceil(u128::from(units));
        // Rounded down, but never to nothing: a bucket that holds no time admits nothing.
        let window = ((price * u128::from(burst)) >> FRACTION).max(1);
        if price >> FRACTION > u128::from(MAX_UNIT) || window > u128::from(MAX_BURST) {
            return None;
        }
        Some(Self { price: u64::try_from(price).ok()?, burst: u64::try_from(window).ok()? })
    }

    /// The most that can be owed, 1/256 ns: for the largest packet, or for what [must pass](force),
    /// which adds up to [twice the burst](Self::cap).
    #[inline(always)]
    pub const fn longest(&self) -> Q8 {
        let packet = self.charge(MAX_UNITS);
        if packet > self.cap() { packet } else { self.cap() }
    }

    /// Up to where packets that must pass are charged, 1/256 ns.
    #[inline(always)]
    pub const fn cap(&self) -> Q8 {
        2 * self.burst
    }

    /// The time that so many units are worth, 1/256 ns, rounded up.
    #[inline(always)]
    pub const fn charge(&self, units: u64) -> Q8 {
        let units = if units > MAX_UNITS { MAX_UNITS } else { units };
        // Apart, because together they may not fit: the price of a second has 50 bits, and units 20.
        let whole = units * (self.price >> FRACTION);
        whole + (units * (self.price & FRACTION_MASK)).div_ceil(1 << FRACTION)
    }
}

/// What a packet would do to a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Admit, and store `next`. `ahead` was spent before.
    Admit {
        /// What to store.
        next: u64,
        /// How much was spent before, 1/256 ns.
        ahead: Q8,
    },
    /// Deny, and store nothing.
    Deny,
    /// Deny, and store this: the word lay further ahead than any debt can lead.
    DenyClamped(u64),
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Spent {
    /// It is charged; so much was spent before, 1/256 ns.
    Admitted(Q8),
    /// As much as the bound was spent already.
    Denied,
    /// Too many others changed the word at once; nothing was charged.
    Contended,
}

/// How much of a bucket is spent: 0 when it is full, more than the burst when it is in debt.
#[inline(always)]
pub const fn ahead(word: u64, now: Q8) -> Q8 {
    let ahead = word.wrapping_sub(now) as i64;
    if word == 0 || ahead < 0 { 0 } else { ahead as u64 }
}

/// The transition for a packet of this charge at time `now`, where less than `bound` may be spent.
#[inline(always)]
pub const fn step(word: u64, now: Q8, charge: Q8, bound: Q8, longest: Q8) -> Step {
    let ahead = ahead(word, now);
    if ahead >= bound {
        if ahead > bound.wrapping_add(longest).wrapping_add(SKEW) {
            return Step::DenyClamped(used(now.wrapping_add(bound)));
        }
        return Step::Deny;
    }
    Step::Admit { next: used(now.wrapping_add(ahead).wrapping_add(charge)), ahead }
}

/// Charges a packet if less than `bound` is spent: the burst, less what is dropped early, more by what
/// is delayed.
///
/// `longest` is the most that can be owed: what lies further ahead is of another tariff.
#[inline(always)]
pub fn take<W: Word>(cell: &W, now: Q8, charge: Q8, bound: Q8, longest: Q8) -> Spent {
    for _ in 0..TRIES {
        match attempt(cell, now, charge, bound, longest) {
            Spent::Contended => {}
            spent => return spent,
        }
    }
    Spent::Contended
}

/// One attempt of it; `Contended` when somebody else changed the word meanwhile.
#[inline(always)]
pub fn attempt<W: Word>(cell: &W, now: Q8, charge: Q8, bound: Q8, longest: Q8) -> Spent {
    let word = cell.load();
    let (next, spent) = match step(word, now, charge, bound, longest) {
        Step::Admit { next, ahead } => (next, Spent::Admitted(ahead)),
        Step::Deny => return Spent::Denied,
        Step::DenyClamped(next) => (next, Spent::Denied),
    };
    match cell.compare_exchange(word, next) {
        Ok(_) => spent,
        Err(_) => Spent::Contended,
    }
}

/// The word after a packet that must pass, which adds to what is spent up to `cap`. More than that is
/// not owed: a flood of what must pass would keep everything else out long after its end.
#[inline(always)]
pub const fn forced(word: u64, now: Q8, charge: Q8, cap: Q8) -> u64 {
    let ahead = ahead(word, now);
    let wanted = ahead.wrapping_add(charge);
    let owed = if wanted > cap { if ahead > cap { ahead } else { cap } } else { wanted };
    used(now.wrapping_add(owed))
}

/// Charges a packet that must pass. Losing the race [`TRIES`] times, it is not charged.
#[inline(always)]
pub fn force<W: Word>(cell: &W, now: Q8, charge: Q8, cap: Q8) {
    let mut word = cell.load();
    for _ in 0..TRIES {
        match cell.compare_exchange(word, forced(word, now, charge, cap)) {
            Ok(_) => return,
            Err(seen) => word = seen,
        }
    }
}

/// Gives a charge back, after another limit refused what this one had admitted.
///
/// A bucket that has become full meanwhile stays full. Losing the race [`TRIES`] times loses the
/// charge, which errs on the side of the limit.
#[inline(always)]
pub fn refund<W: Word>(cell: &W, charge: Q8) {
    let mut word = cell.load();
    for _ in 0..TRIES {
        if word == 0 {
            return;
        }
        match cell.compare_exchange(word, used(word.wrapping_sub(charge))) {
            Ok(_) => return,
            Err(seen) => word = seen,
        }
    }
}

/// The word for a bucket whose tariff changes: it holds as many units as before, or as many as fit, and
/// owes as many. See [`crate::gcra::rescale`] for why a change gives nothing.
pub fn rescale(word: u64, now: Q8, old: &Tariff, new: &Tariff) -> u64 {
    let convert = |time: u64| {
        let time = u128::from(time) * u128::from(new.price) / u128::from(old.price.max(1));
        u64::try_from(time).unwrap_or(MAX_WINDOW).min(MAX_WINDOW)
    };
    let spent = ahead(word, now);
    let spent = match spent.checked_sub(old.burst) {
        Some(owed) => new.burst.saturating_add(convert(owed)),
        None => new.burst.saturating_sub(convert(old.burst - spent)),
    };
    if spent == 0 { 0 } else { used(now.wrapping_add(spent)) }
}
