//! One quota of the fleet on one node: how much to lease, when, and what an answer means.
//!
//! Events come in with the time, commands come out; the words of the [`Cell`] are the only thing it
//! shares. Nothing here waits, and nothing is asked twice: a request whose answer never came counts as
//! granted and lost, because it may have been done.
//!
//! **How much.** What a node holds unspent is lost to the fleet if it dies. So a node leases ahead no
//! more than a hundredth of its share of the limit, and shares never add up to more than the limit:
//! together at most 1 %, or one for each spender where that is more. Below eight for each spender
//! nothing is leased ahead: the store is asked when somebody asks.
//!
//! **When.** Below a mark that covers two round trips at the present rate the next slice is asked for.
//! A quota that is in use gets a slice of the next window shortly before it begins. One that the kernel
//! spends from is always in use: connections come without a word, and should not wait for the store.

use std::sync::{Arc, atomic::AtomicU64};

use weir_common::{
    lease::{Cell, UNLIMITED, WORDS, Window, grant},
    way,
};

use super::{
    store::{Reply, Request, SPENDS_FOR},
    terms::{Moment, OnStoreFailure, Terms},
};
use crate::quota::store::Words;

const MS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000 * MS;
/// Hits for each spender below which nothing is leased ahead.
const SMALL: u32 = 8;
/// The part of its share that a node may hold unspent: one in so many.
const HELD: u32 = 100;
/// Seconds for which a counter outlives its window at least: it may be made before the window begins,
/// and a node whose clock is behind may still spend from it.
const SLACK_S: u32 = 10;
/// Shortest time over which a rate is measured, ...
const RATE_NS: u64 = 100 * MS;
/// ... unless so many hits came earlier: these tell a rate, too.
const MANY: u32 = 32;

/// The words of a quota.
#[derive(Debug)]
pub enum Line {
    /// On a cache line of their own.
    Own(Own),
    /// Where the kernel spends from them, too.
    Held(Arc<dyn Words>),
}

/// Words that only this process knows.
#[repr(align(64))]
#[derive(Debug, Default)]
pub struct Own([AtomicU64; WORDS]);

impl Default for Line {
    fn default() -> Self {
        Self::Own(Own::default())
    }
}

impl Line {
    /// The words, with what they mean.
    pub const fn cell(&self) -> Cell<'_, Self> {
        Cell(self)
    }

    /// Whether the kernel spends from them, too.
    pub const fn is_held(&self) -> bool {
        matches!(self, Self::Held(_))
    }
}

impl way::Line for Line {
    type Word<'line> = &'line AtomicU64;

    fn word(&self, index: usize) -> &AtomicU64 {
        match self {
            Self::Own(Own(words)) => &words[index],
            Self::Held(held) => &held.words()[index],
        }
    }
}

/// What to ask of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Lease from a window.
    Take {
        /// The window.
        window: Window,
        /// How many.
        hits: u32,
        /// Whether to say when the counter may be forgotten.
        expire: bool,
    },
    /// Count what was admitted while the store was away.
    Settle {
        /// The window.
        window: Window,
        /// How many.
        hits: u32,
    },
    /// Give back what was leased and not spent.
    Give {
        /// The window.
        window: Window,
        /// How many.
        hits: u32,
    },
    /// Say anew when the counter may be forgotten.
    Expire {
        /// The window.
        window: Window,
    },
    /// Say that this node spends, and ask for its share.
    Join {
        /// The present window.
        window: Window,
        /// The share that it has.
        held: u32,
        /// Hits that it wants of a window.
        weight: u32,
    },
}

impl Command {
    /// What it is in the store's words. `jitter_s` spreads the ends of counters.
    pub fn request(self, terms: &Terms, node: &str, jitter_s: u32) -> Request {
        let expire_s = terms.unit_s.saturating_add(SLACK_S).saturating_add(jitter_s);
        match self {
            Self::Take { window, hits, expire } => Request::Add {
                key: terms.counter(window),
                hits,
                expire_s: expire.then_some(expire_s),
            },
            Self::Settle { window, hits } => {
                Request::Add { key: terms.counter(window), hits, expire_s: Some(expire_s) }
            }
            Self::Give { window, hits } => Request::GiveBack { key: terms.counter(window), hits },
            Self::Expire { window } => Request::Expire { key: terms.counter(window), expire_s },
            Self::Join { window, held, weight } => Request::Join {
                key: terms.spenders(),
                node: node.to_owned(),
                window,
                limit: terms.limit,
                held,
                weight,
                expire_s: terms.unit_s.saturating_mul(SPENDS_FOR + 1).saturating_add(60),
            },
        }
    }
}

/// What the machine must know of the store and the time.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Now.
    pub now: Moment,
    /// Whether the store answers.
    pub up: bool,
    /// How long it takes to, in nanoseconds.
    pub round_trip_ns: u64,
    /// Random bits.
    pub random: u64,
}

/// Who waits is answered in rounds: all that came before a request was sent are answered with it.
pub type Round = u64;

/// What one window's counter was asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Book {
    window: Window,
    /// Hits of the request that is under way; 0 for none.
    in_flight: u32,
    /// How many of these somebody waits for, and the round in which they said so.
    covered: u32,
    round: Round,
    /// Whether the counter's end was set.
    begun: bool,
    /// Of what was admitted without the store, what it was told.
    settled: u32,
}

/// This node among the spenders.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// 0 as long as the store has not said.
    spenders: u32,
    held: u32,
    /// When to join again.
    due_ns: u64,
    in_flight: bool,
}

/// Hits per second, as seen lately.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    per_s: f64,
    window: Window,
    spent: u32,
    since_ns: u64,
}

/// What happened at a quota, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Hits leased whose window ended before they were spent.
    pub stranded: u64,
    /// Hits admitted without the store that turned out to exceed the limit.
    pub overshoot: u64,
    /// Hits admitted without the store.
    pub assumed: u64,
    /// Requests whose answer never came.
    pub lost: u64,
    /// When the store last granted something, by the monotonic clock; 0 for never.
    pub granted_at_ns: u64,
}

/// One quota's state machine.
#[derive(Debug)]
pub struct Leaser {
    terms: Arc<Terms>,
    line: Arc<Line>,
    books: [Book; 2],
    /// Hits that somebody waits for and that no request covers, in the present round.
    waiting: u32,
    round: Round,
    /// Rounds below this one are answered.
    answered: Round,
    /// How often the store was asked for a lease.
    asked: u32,
    rate: Rate,
    share: Share,
    spent_at_ns: u64,
    /// How long before the next window its lease is asked for.
    head_ns: u64,
    due_ns: Option<u64>,
    tally: Tally,
}

impl Leaser {
    /// A quota that nothing is leased of. `random` spreads what all nodes would do at once.
    pub fn new(terms: Arc<Terms>, line: Arc<Line>, random: u64) -> Self {
        let most = (terms.unit_ns() / 5).min(SECOND_NS);
        let head_ns = most / 2 + random % (most / 2);
        let mut leaser = Self {
            terms,
            line,
            books: [Book::default(); 2],
            waiting: 0,
            round: 0,
            answered: 0,
            asked: 0,
            rate: Rate::default(),
            share: Share::default(),
            spent_at_ns: 0,
            head_ns,
            due_ns: None,
            tally: Tally::default(),
        };
        leaser.mark(0);
        leaser
    }

    /// What the quota is.
    pub fn terms(&self) -> &Arc<Terms> {
        &self.terms
    }

    /// Its words.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The share that this node holds, and among how many.
    pub fn share(&self) -> (u32, u32) {
        (self.share.held, self.share.spenders)
    }

    /// When [`Self::tick`] wants to be called next.
    pub fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }

    /// Whether an answer is awaited.
    pub fn is_asking(&self) -> bool {
        self.share.in_flight || self.books.iter().any(|book| book.in_flight > 0)
    }

    /// Who waits since an earlier round should look at the words again.
    pub fn answered(&self) -> Round {
        self.answered
    }

    /// Somebody wants more than there is, and waits until the round that is returned is answered.
    pub fn wanted(&mut self, hits: u32, context: Context, out: &mut Vec<Command>) -> Round {
        let round = self.round;
        self.waiting = self.waiting.saturating_add(hits);
        self.plan(context, 0, out);
        round
    }

    /// The lease runs low, or time has passed, or the store is back.
    pub fn tick(&mut self, context: Context, out: &mut Vec<Command>) {
        self.plan(context, 0, out);
    }

    /// A command was answered; `None` if no answer came, or a failure.
    pub fn done(
        &mut self,
        command: Command,
        reply: Option<Reply>,
        context: Context,
        out: &mut Vec<Command>,
    ) {
        if reply.is_none() {
            self.tally.lost += 1;
        }
        let mut promised = 0;
        match command {
            Command::Take { window, hits, expire } => {
                let counted = match reply {
                    Some(Reply::Counted(after)) => Some(after),
                    _ => None,
                };
                promised = self.took(window, hits, counted, context);
                if counted == Some(u64::from(hits)) && !expire {
                    // The counter is new: it was lost since we set its end.
                    out.push(Command::Expire { window });
                }
            }
            Command::Settle { window, hits } => {
                if let Some(Reply::Counted(after)) = reply {
                    let over = after.saturating_sub(u64::from(self.terms.limit));
                    self.tally.overshoot += over.min(u64::from(hits));
                    self.line.cell().note_seen(window, after);
                }
            }
            Command::Join { .. } => {
                self.share.in_flight = false;
                if let Some(Reply::Joined { spenders, share }) = reply {
                    self.share.spenders = spenders;
                    self.share.held = share;
                }
            }
            Command::Give { .. } | Command::Expire { .. } => {}
        }
        self.plan(context, promised, out);
    }

    /// Gives everything back: the node stops spending from this quota.
    pub fn drain(&mut self, context: Context, out: &mut Vec<Command>) {
        let now = self.terms.window(context.now.wall_ns);
        self.mark(0);
        for window in [now, now.saturating_add(1)] {
            let hits = self.line.cell().withdraw(window, 0);
            if hits > 0 && context.up {
                out.push(Command::Give { window, hits });
            }
        }
        self.due_ns = None;
    }

    /// Returns how many of the lease those will take who waited for it.
    fn took(&mut self, window: Window, hits: u32, after: Option<u64>, context: Context) -> u32 {
        let now = self.terms.window(context.now.wall_ns);
        let book = self.book(window);
        let mut promised = 0;
        if book.window == window {
            promised = book.covered;
            book.in_flight = 0;
            let answered = book.round + 1;
            self.answered = self.answered.max(answered);
        } else {
            self.answer_all();
        }
        let Some(after) = after else { return 0 };
        let granted = grant(self.terms.limit, after, hits);
        let cell = self.line.cell();
        if window <= now {
            cell.note_seen(window, after);
        }
        if granted > 0 {
            self.tally.granted_at_ns = context.now.mono_ns;
            if !cell.credit(window, granted) {
                self.tally.stranded += u64::from(granted);
            }
        }
        promised
    }

    /// Whoever waits should look again: no answer will come.
    fn answer_all(&mut self) {
        self.waiting = 0;
        self.round += 1;
        self.answered = self.round;
    }

    fn book(&mut self, window: Window) -> &mut Book {
        &mut self.books[(window & 1) as usize]
    }

    /// Makes cell and book hold a window.
    fn turn(&mut self, window: Window) {
        if self.book(window).window == window {
            return;
        }
        let old = self.book(window).window;
        self.tally.assumed += u64::from(self.line.cell().assumed(old));
        self.tally.stranded += u64::from(self.line.cell().open(window));
        *self.book(window) = Book { window, ..Book::default() };
    }

    /// Looks at everything, and asks for what is needed. Of the lease, `promised` are as good as spent.
    fn plan(&mut self, context: Context, promised: u32, out: &mut Vec<Command>) {
        let window = self.terms.window(context.now.wall_ns);
        self.turn(window);
        self.measure(window, context.now.mono_ns);
        let target = self.target();
        if context.up {
            self.settle(window, out);
            self.renew(window, target, promised, context, out);
            self.lease_ahead(window, target, context, out);
            self.join(window, context, out);
            self.give_back(window, target, context, out);
        } else {
            self.answer_all();
        }
        let covered = (self.rate.per_s * 2e-9 * context.round_trip_ns as f64).ceil() as u32;
        self.mark(if target == 0 { 0 } else { covered.min(target / 2) + 1 });
        self.due_ns = self.next_due(window, target, context);
    }

    /// Sets the marks that decisions see.
    fn mark(&mut self, low: u32) {
        let allowance = match self.terms.on_failure {
            OnStoreFailure::Local => self.share.held,
            OnStoreFailure::Allow => UNLIMITED,
            OnStoreFailure::Deny => 0,
        };
        self.line.cell().mark(low, allowance);
    }

    fn measure(&mut self, window: Window, now_ns: u64) {
        let cell = self.line.cell();
        let spent = |window| cell.granted(window).saturating_sub(cell.left(window));
        let fresh = if self.rate.window == window {
            spent(window).saturating_sub(self.rate.spent)
        } else {
            spent(self.rate.window).saturating_sub(self.rate.spent).saturating_add(spent(window))
        };
        if fresh > 0 || self.waiting > 0 {
            self.spent_at_ns = now_ns;
        }
        let age_ns = now_ns.saturating_sub(self.rate.since_ns);
        if age_ns < RATE_NS / 5 {
            return;
        }
        let over_ns = if fresh < MANY { age_ns.max(RATE_NS) } else { age_ns };
        let seen = f64::from(fresh) * SECOND_NS as f64 / over_ns as f64;
        // Up at once, down slowly.
        let per_s = seen.max(self.rate.per_s * 0.7 + seen * 0.3);
        self.rate = Rate { per_s, window, spent: spent(window), since_ns: now_ns };
    }

    /// How much to hold unspent.
    fn target(&self) -> u32 {
        let Terms { limit, .. } = *self.terms;
        let Share { spenders, held, .. } = self.share;
        if spenders == 0 || limit < spenders.saturating_mul(SMALL) {
            return 0;
        }
        let most = if limit / HELD < spenders { 1 } else { held / HELD };
        let horizon_s = (f64::from(self.terms.unit_s) / 8.0).min(1.0);
        // One of many that are rarely asked keeps nothing from the others.
        let wanted = (self.rate.per_s * horizon_s).round() as u32;
        wanted.max(u32::from(self.line.is_held())).min(most)
    }

    fn settle(&mut self, window: Window, out: &mut Vec<Command>) {
        let assumed = self.line.cell().assumed(window);
        let book = self.book(window);
        let hits = assumed.saturating_sub(book.settled);
        if hits > 0 {
            book.settled = assumed;
            book.begun = true;
            out.push(Command::Settle { window, hits });
        }
    }

    fn renew(
        &mut self,
        window: Window,
        target: u32,
        promised: u32,
        context: Context,
        out: &mut Vec<Command>,
    ) {
        let cell = self.line.cell();
        if cell.is_exhausted(window, self.terms.limit) {
            self.answer_all();
            return;
        }
        let left = cell.left(window).saturating_sub(promised);
        let covered = (self.rate.per_s * 2e-9 * context.round_trip_ns as f64).ceil() as u32;
        // A quota that nobody uses is not leased anew.
        let wants = self.waiting > 0
            || (left <= covered.min(target / 2)
                && self.is_in_use(context.now.mono_ns)
                && (self.line.is_held() || cell.granted(window) > 0));
        if self.book(window).in_flight > 0 || !wants {
            return;
        }
        let hits = self.waiting.saturating_add(target).min(self.terms.limit).saturating_sub(left);
        if hits > 0 {
            let (covered, round) = (self.waiting, self.round);
            self.waiting = 0;
            self.round += 1;
            let book = self.book(window);
            (book.covered, book.round) = (covered, round);
            self.take(window, hits, out);
        } else {
            // There is enough by now.
            self.answer_all();
        }
    }

    fn lease_ahead(
        &mut self,
        window: Window,
        target: u32,
        context: Context,
        out: &mut Vec<Command>,
    ) {
        let rest_ns = self.terms.rest_ns(context.now.wall_ns);
        let expected = self.rate.per_s * self.head_ns as f64 / SECOND_NS as f64;
        let next = window.saturating_add(1);
        let is_expected = self.line.is_held() || expected >= 0.5;
        if rest_ns > self.head_ns || target == 0 || !is_expected || !self.in_use_lately(context) {
            return;
        }
        self.turn(next);
        if !self.book(next).begun {
            self.book(next).covered = 0;
            self.take(next, target, out);
        }
    }

    fn take(&mut self, window: Window, hits: u32, out: &mut Vec<Command>) {
        let book = self.book(window);
        let expire = !book.begun;
        book.begun = true;
        book.in_flight = hits;
        self.asked = self.asked.saturating_add(1);
        out.push(Command::Take { window, hits, expire });
    }

    fn join(&mut self, window: Window, context: Context, out: &mut Vec<Command>) {
        let now_ns = context.now.mono_ns;
        // A key that is seen once needs no share.
        if self.share.in_flight
            || self.asked < 2 && !self.line.is_held()
            || now_ns < self.share.due_ns
            || !self.in_use_lately(context)
        {
            return;
        }
        let every_ns = self.terms.unit_ns().clamp(SECOND_NS, 5 * SECOND_NS);
        self.share.in_flight = true;
        self.share.due_ns = now_ns + every_ns - context.random % (every_ns / 8);
        let wants = self.rate.per_s * f64::from(self.terms.unit_s);
        let weight = (wants as u32).clamp(1, self.terms.limit.max(1));
        out.push(Command::Join { window, held: self.share.held, weight });
    }

    fn give_back(&mut self, window: Window, target: u32, context: Context, out: &mut Vec<Command>) {
        let keep = if self.is_in_use(context.now.mono_ns) { target } else { 0 };
        // In a window of a few seconds it would come too late for others. Of one that is used up nobody
        // asks for more, so what is left serves those who ask here.
        if self.terms.unit_s < 10
            || self.book(window).in_flight > 0
            || self.line.cell().is_exhausted(window, self.terms.limit)
        {
            return;
        }
        let granted_ago = context.now.mono_ns.saturating_sub(self.tally.granted_at_ns);
        if self.line.cell().left(window) > keep && granted_ago > RATE_NS {
            let hits = self.line.cell().withdraw(window, keep);
            if hits > 0 {
                out.push(Command::Give { window, hits });
            }
        }
    }

    fn idle_ns(&self) -> u64 {
        (self.terms.unit_ns() / 4).clamp(SECOND_NS, 10 * SECOND_NS)
    }

    fn is_in_use(&self, now_ns: u64) -> bool {
        self.line.is_held() || now_ns.saturating_sub(self.spent_at_ns) <= self.idle_ns()
    }

    fn in_use_lately(&self, context: Context) -> bool {
        self.line.is_held() || self.spent_at_ns > 0 && self.is_in_use(context.now.mono_ns)
    }

    fn next_due(&self, window: Window, target: u32, context: Context) -> Option<u64> {
        let Moment { mono_ns, wall_ns } = context.now;
        let cell = self.line.cell();
        if !self.in_use_lately(context) && cell.left(window) == 0 {
            return None;
        }
        let rest_ns = self.terms.rest_ns(wall_ns);
        // When to lease the next window, or, once that is done, a moment after it began.
        let ahead = if rest_ns > self.head_ns { rest_ns - self.head_ns } else { rest_ns };
        let idle = if cell.left(window) > target { RATE_NS } else { self.idle_ns() };
        Some(mono_ns + ahead.min(idle).max(MS))
    }
}
