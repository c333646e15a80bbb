//! All quotas of one node: which of them wants what, and when. Knows the store as something that is
//! up or not, and the time as an argument.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    leaser::{Command, Context, Leaser, Line, Round},
    store::Reply,
    terms::{Moment, Terms},
};

/// A quota's number on this node.
pub type QuotaId = u32;

/// Seeded noise, good enough to spread what happens at once.
#[derive(Clone, Copy, Debug)]
pub struct Noise(u64);

impl Noise {
    /// Noise that repeats for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next bits: splitmix64.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }
}

/// All quotas of one node.
#[derive(Debug)]
pub struct Node {
    leasers: Vec<Option<Leaser>>,
    free: Vec<QuotaId>,
    timers: BTreeSet<(u64, QuotaId)>,
    up: bool,
    round_trip_ns: u64,
    noise: Noise,
    commands: Vec<(QuotaId, Command)>,
}

impl Node {
    /// A node without quotas, which believes that the store is there.
    pub fn new(seed: u64) -> Self {
        Self {
            leasers: Vec::new(),
            free: Vec::new(),
            timers: BTreeSet::new(),
            up: true,
            round_trip_ns: 1_000_000,
            noise: Noise::new(seed),
            commands: Vec::new(),
        }
    }

    /// Takes a quota in.
    pub fn add(&mut self, terms: Arc<Terms>, line: Arc<Line>) -> QuotaId {
        let leaser = Some(Leaser::new(terms, line, self.noise.bits()));
        if let Some(id) = self.free.pop() {
            self.leasers[id as usize] = leaser;
            return id;
        }
        self.leasers.push(leaser);
        u32::try_from(self.leasers.len() - 1).unwrap_or(u32::MAX)
    }

    /// Lets a quota go; what was leased is given back.
    pub fn remove(&mut self, id: QuotaId, now: Moment) {
        self.step(id, now, |leaser, context, out| leaser.drain(context, out));
        if let Some(leaser) = self.leasers.get_mut(id as usize).and_then(Option::take) {
            if let Some(due_ns) = leaser.due_ns() {
                self.timers.remove(&(due_ns, id));
            }
            // An answer that is still to come must not reach another quota.
            if !leaser.is_asking() {
                self.free.push(id);
            }
        }
    }

    /// A quota.
    pub fn get(&self, id: QuotaId) -> Option<&Leaser> {
        self.leasers.get(id as usize)?.as_ref()
    }

    /// All quotas.
    pub fn iter(&self) -> impl Iterator<Item = &Leaser> {
        self.leasers.iter().flatten()
    }

    /// Somebody waits for a quota, until [`Leaser::answered`] is beyond the round that is returned.
    pub fn wanted(&mut self, id: QuotaId, hits: u32, now: Moment) -> Round {
        let mut round = 0;
        self.step(id, now, |leaser, context, out| round = leaser.wanted(hits, context, out));
        round
    }

    /// A quota's lease runs low.
    pub fn low(&mut self, id: QuotaId, now: Moment) {
        self.step(id, now, Leaser::tick);
    }

    /// The answer to a command; `None` if there was none.
    pub fn done(&mut self, id: QuotaId, command: Command, reply: Option<Reply>, now: Moment) {
        self.step(id, now, |leaser, context, out| leaser.done(command, reply, context, out));
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        while let Some(&(due_ns, id)) = self.timers.first()
            && due_ns <= now.mono_ns
        {
            self.step(id, now, Leaser::tick);
        }
    }

    /// When [`Self::tick`] is due, by the monotonic clock.
    pub fn due_ns(&self) -> Option<u64> {
        self.timers.first().map(|&(due_ns, _)| due_ns)
    }

    /// Whether the store answers. When it does again, what was admitted without it is told at once,
    /// and leases are asked for as they are needed: no herd.
    pub fn store_is(&mut self, up: bool, now: Moment) {
        let back = up && !self.up;
        self.up = up;
        if !back {
            return;
        }
        for id in 0..u32::try_from(self.leasers.len()).unwrap_or(u32::MAX) {
            let owes = |leaser: &Leaser| {
                let window = leaser.terms().window(now.wall_ns);
                leaser.line().cell().assumed(window) > 0
            };
            if self.get(id).is_some_and(owes) {
                self.step(id, now, Leaser::tick);
            }
        }
    }

    /// Whether the store answers, as this node was told last.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// How long the store took to answer.
    pub fn took_ns(&mut self, round_trip_ns: u64) {
        self.round_trip_ns = self.round_trip_ns - self.round_trip_ns / 8 + round_trip_ns / 8;
    }

    /// Gives back what nobody spends any more: the node stops, and the kernel goes on.
    pub fn drain(&mut self, now: Moment) {
        for id in 0..u32::try_from(self.leasers.len()).unwrap_or(u32::MAX) {
            if self.get(id).is_some_and(|leaser| leaser.line().is_held()) {
                continue;
            }
            self.step(id, now, |leaser, context, out| leaser.drain(context, out));
        }
    }

    /// Random bits for whoever acts for this node.
    pub fn random(&mut self) -> u64 {
        self.noise.bits()
    }

    /// What to ask of the store now, in order. Each must be answered by [`Self::done`].
    pub fn commands(&mut self) -> Vec<(QuotaId, Command)> {
        std::mem::take(&mut self.commands)
    }

    fn step(
        &mut self,
        id: QuotaId,
        now: Moment,
        step: impl FnOnce(&mut Leaser, Context, &mut Vec<Command>),
    ) {
        let random = self.noise.bits();
        let context = Context { now, up: self.up, round_trip_ns: self.round_trip_ns, random };
        let Some(leaser) = self.leasers.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        let before = leaser.due_ns();
        let mut out = Vec::new();
        step(leaser, context, &mut out);
        let after = leaser.due_ns();
        if before != after {
            if let Some(due_ns) = before {
                self.timers.remove(&(due_ns, id));
            }
            if let Some(due_ns) = after {
                self.timers.insert((due_ns, id));
            }
        }
        self.commands.extend(out.into_iter().map(|command| (id, command)));
    }
}
