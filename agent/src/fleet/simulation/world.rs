//! Agents, a network and a store on virtual time. The agents run the state machine that the driver
//! runs; everything around it is played, from one seed.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use weir_common::lease::{Assumed, Taken, Window};

use crate::fleet::{
    leaser::{Command, Line, Round},
    node::{Node, Noise, QuotaId},
    store::{Reply, Request, memory::Memory},
    terms::{Moment, OnStoreFailure, Terms},
};

pub(super) const MS: u64 = 1_000_000;
/// How long a decision may wait for the store.
const PATIENCE: u64 = 5 * MS;
/// After so long a batch counts as lost.
const TIMEOUT: u64 = 250 * MS;

/// What a history is made of.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) seed: u64,
    pub(super) agents: usize,
    pub(super) limit: u32,
    pub(super) unit_s: u32,
    pub(super) windows: u32,
    pub(super) on_failure: OnStoreFailure,
    /// One way, and as much again at random.
    pub(super) delay_ns: u64,
    /// Agents that get nearly all requests; 0 for all alike.
    pub(super) hot: usize,
    /// Requests in each window, in hundredths of the limit.
    pub(super) demand_percent: u32,
    pub(super) faults: Vec<Fault>,
    /// One of so many messages is lost; 0 for none.
    pub(super) loss: u64,
    /// How wrong clocks may be.
    pub(super) skew_ns: u64,
}

/// What goes wrong, at hundredths of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The store refuses, from … to ….
    Refuses(u64, u64),
    /// The store says nothing, from … to ….
    Silent(u64, u64),
    /// The store forgets everything.
    Empty(u64),
    /// A replica takes over that had not heard of the last so many milliseconds.
    Failover(u64, u64),
    /// An agent dies and starts again.
    Crash(u64),
    /// An agent's clock is set, by milliseconds.
    Clock(u64, i64),
}

#[derive(Debug)]
enum Event {
    Arrive { agent: usize },
    Store { from: Sender, batch: u64, requests: Vec<Request> },
    Reply { to: Sender, batch: u64, replies: Option<Vec<Reply>> },
    Timeout { of: Sender, batch: u64 },
    Probe { of: Sender },
    Probed { of: Sender, up: bool },
    Patience { of: Sender },
    Tick { of: Sender },
    Fault(Fault),
    Over,
    Remember,
}

/// An event at its time; of one time, the one that was made first comes first.
#[derive(Debug)]
struct Scheduled {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// An agent in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sender {
    agent: usize,
    life: u32,
}

/// A request that waits for the store.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    until: u64,
    hits: u32,
    round: Round,
}

#[derive(Debug)]
struct Agent {
    life: u32,
    node: Node,
    quota: QuotaId,
    line: Arc<Line>,
    skew_ns: i64,
    sent: BTreeMap<u64, (u64, Vec<(QuotaId, Command)>)>,
    /// When the last message of the connection arrives: none overtakes another.
    there_at: u64,
    back_at: u64,
    waiting: Vec<Waiter>,
    ticks_at: Option<u64>,
}

/// What a history showed.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) admitted: BTreeMap<Window, u64>,
    pub(super) assumed: BTreeMap<Window, u64>,
    pub(super) decisions: u64,
    pub(super) commands: u64,
    /// What the store forgot of a window.
    pub(super) forgotten: BTreeMap<Window, u64>,
    /// Most that all agents together held unspent in the last window.
    pub(super) most_held: u64,
    /// What died with agents.
    pub(super) stranded: BTreeMap<Window, u64>,
    pub(super) longest_wait_ns: u64,
    pub(super) most_shares: u64,
}

pub(super) struct World {
    setting: Setting,
    terms: Arc<Terms>,
    now: u64,
    begin: u64,
    events: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    noise: Noise,
    agents: Vec<Agent>,
    store: Memory,
    past: Vec<(u64, Memory)>,
    refuses: bool,
    silent: bool,
    batches: u64,
    seen: Seen,
}

impl World {
    pub(super) fn run(setting: Setting) -> Seen {
        let mut world = Self::new(setting);
        while let Some(Reverse(Scheduled { at, event, .. })) = world.events.pop() {
            world.now = at;
            match event {
                Event::Over => break,
                event => world.handle(event),
            }
        }
        world.seen
    }

    fn new(setting: Setting) -> Self {
        let terms = Arc::new(Terms {
            stem: "sim_".to_owned(),
            limit: setting.limit,
            unit_s: setting.unit_s,
            consistency: Default::default(),
            on_failure: setting.on_failure,
        });
        let mut noise = Noise::new(setting.seed);
        let begin = (1_000_000 + noise.bits() % 1000) * terms.unit_ns();
        let mut world = Self {
            now: begin,
            begin,
            events: BinaryHeap::new(),
            sequence: 0,
            agents: Vec::new(),
            store: Memory::default(),
            past: Vec::new(),
            refuses: false,
            silent: false,
            batches: 0,
            seen: Seen::default(),
            noise,
            terms,
            setting,
        };
        for agent in 0..world.setting.agents {
            let fresh = world.fresh(0);
            world.agents.push(fresh);
            let at = world.now + world.gap(agent);
            world.at(at, Event::Arrive { agent });
        }
        let whole = world.terms.unit_ns() * u64::from(world.setting.windows);
        for fault in world.setting.faults.clone() {
            let percent = match fault {
                Fault::Refuses(at, _)
                | Fault::Silent(at, _)
                | Fault::Empty(at)
                | Fault::Failover(at, _)
                | Fault::Crash(at)
                | Fault::Clock(at, _) => at,
            };
            world.at(begin + whole / 100 * percent, Event::Fault(fault));
            if let Fault::Failover(..) = fault {
                world.at(begin, Event::Remember);
            }
        }
        world.at(begin + whole, Event::Over);
        world
    }

    fn fresh(&mut self, life: u32) -> Agent {
        let mut node = Node::new(self.noise.bits());
        let line = Arc::new(Line::default());
        let quota = node.add(self.terms.clone(), line.clone());
        let skew = self.setting.skew_ns;
        let skew_ns = if skew == 0 {
            0
        } else {
            i64::try_from(self.noise.bits() % (2 * skew)).unwrap() - i64::try_from(skew).unwrap()
        };
        Agent {
            life,
            node,
            quota,
            line,
            skew_ns,
            sent: BTreeMap::new(),
            there_at: 0,
            back_at: 0,
            waiting: Vec::new(),
            ticks_at: None,
        }
    }

    fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse(Scheduled { at, sequence: self.sequence, event }));
    }

    /// Time between two requests of an agent.
    fn gap(&mut self, agent: usize) -> u64 {
        let hot = if self.setting.hot > 0 { self.setting.hot } else { self.setting.agents };
        let requests = u64::from(self.setting.limit) * u64::from(self.setting.demand_percent) / 100;
        let each = (requests.max(1) / hot as u64).max(1);
        let mean = self.terms.unit_ns() / each;
        // One that is not hot asks about once in two windows.
        let cold = self.setting.hot > 0 && agent >= self.setting.hot;
        let mean = if cold { self.terms.unit_ns() * 2 } else { mean };
        self.noise.bits() % (2 * mean).max(1) + 1
    }

    fn moment(&self, agent: usize) -> Moment {
        let wall_ns = self.now.saturating_add_signed(self.agents[agent].skew_ns);
        Moment { mono_ns: self.now, wall_ns }
    }

    fn sender(&self, agent: usize) -> Sender {
        Sender { agent, life: self.agents[agent].life }
    }

    fn is_alive(&self, sender: Sender) -> bool {
        self.agents[sender.agent].life == sender.life
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { agent } => {
                self.seen.decisions += 1;
                self.decide(agent, 1, self.now + PATIENCE, true);
                self.flush(agent);
                let next = self.now + self.gap(agent);
                self.at(next, Event::Arrive { agent });
            }
            Event::Store { from, batch, requests } => self.store(from, batch, &requests),
            Event::Reply { to, batch, replies } => self.reply(to, batch, replies),
            Event::Timeout { of, batch } => self.reply(of, batch, None),
            Event::Probe { of } => {
                let up = !self.refuses && !self.silent;
                let later = self.delay() + self.delay() + if self.silent { TIMEOUT } else { 0 };
                self.at(self.now + later, Event::Probed { of, up });
            }
            Event::Probed { of, up } if self.is_alive(of) => {
                if up {
                    let now = self.moment(of.agent);
                    self.agents[of.agent].node.store_is(true, now);
                    self.flush(of.agent);
                } else {
                    self.probe_later(of);
                }
            }
            Event::Patience { of } if self.is_alive(of) => self.give_up(of.agent),
            Event::Tick { of } if self.is_alive(of) => {
                self.agents[of.agent].ticks_at = None;
                let now = self.moment(of.agent);
                self.agents[of.agent].node.tick(now);
                self.flush(of.agent);
            }
            Event::Fault(fault) => self.fault(fault),
            Event::Remember => {
                let store = self.store.clone();
                self.past.push((self.now, store));
                self.at(self.now + 5 * MS, Event::Remember);
                if self.past.len() > 100 {
                    self.past.remove(0);
                }
            }
            Event::Probed { .. } | Event::Patience { .. } | Event::Tick { .. } | Event::Over => {}
        }
    }

    /// One request, as a decision goes.
    fn decide(&mut self, agent: usize, hits: u32, until: u64, may_wait: bool) {
        let moment = self.moment(agent);
        let window = self.terms.window(moment.wall_ns);
        let limit = self.terms.limit;
        let id = self.agents[agent].quota;
        let line = self.agents[agent].line.clone();
        match line.cell().take(window, limit, hits) {
            Taken::Admitted { low, .. } => {
                *self.seen.admitted.entry(window).or_default() += u64::from(hits);
                if low {
                    self.agents[agent].node.low(id, moment);
                }
            }
            Taken::Exhausted => {}
            Taken::Short | Taken::Contended => {
                if may_wait && self.agents[agent].node.is_up() {
                    let round = self.agents[agent].node.wanted(id, hits, moment);
                    self.agents[agent].waiting.push(Waiter { until, hits, round });
                    let of = self.sender(agent);
                    self.at(until, Event::Patience { of });
                } else if line.cell().assume(window, limit, hits) == Assumed::Admitted {
                    *self.seen.admitted.entry(window).or_default() += u64::from(hits);
                    *self.seen.assumed.entry(window).or_default() += u64::from(hits);
                }
            }
        }
    }

    fn give_up(&mut self, agent: usize) {
        let now = self.now;
        let waiting = std::mem::take(&mut self.agents[agent].waiting);
        let (over, still): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|w| w.until <= now);
        self.agents[agent].waiting = still;
        for Waiter { until, hits, .. } in over {
            let waited = now - (until - PATIENCE);
            self.seen.longest_wait_ns = self.seen.longest_wait_ns.max(waited);
            self.decide(agent, hits, until, false);
        }
        self.flush(agent);
    }

    fn wake(&mut self, agent: usize) {
        let id = self.agents[agent].quota;
        let answered = self.agents[agent].node.get(id).map_or(0, |leaser| leaser.answered());
        let waiting = std::mem::take(&mut self.agents[agent].waiting);
        let (answered, still) = waiting.into_iter().partition(|w| w.round < answered);
        let answered: Vec<Waiter> = answered;
        self.agents[agent].waiting = still;
        for Waiter { until, hits, .. } in answered {
            self.decide(agent, hits, until, true);
        }
    }

    /// Sends what an agent wants to ask, and looks after its timer.
    fn flush(&mut self, agent: usize) {
        let of = self.sender(agent);
        let commands = self.agents[agent].node.commands();
        if !commands.is_empty() {
            self.batches += 1;
            let batch = self.batches;
            let name = format!("agent-{agent}");
            let jitter = u32::try_from(self.noise.bits() % 300).unwrap();
            let requests =
                commands.iter().map(|(_, c)| c.request(&self.terms, &name, jitter)).collect();
            self.agents[agent].sent.insert(batch, (self.now, commands));
            let delay = self.delay();
            let there = (self.now + delay).max(self.agents[agent].there_at);
            self.agents[agent].there_at = there;
            if !self.is_lost() {
                self.at(there, Event::Store { from: of, batch, requests });
            }
            self.at(self.now + TIMEOUT, Event::Timeout { of, batch });
        }
        let due = self.agents[agent].node.due_ns();
        if let Some(due) = due
            && self.agents[agent].ticks_at.is_none_or(|at| due < at)
        {
            self.agents[agent].ticks_at = Some(due);
            self.at(due.max(self.now), Event::Tick { of });
        }
    }

    fn delay(&mut self) -> u64 {
        self.setting.delay_ns + self.noise.bits() % self.setting.delay_ns.max(1)
    }

    fn is_lost(&mut self) -> bool {
        self.setting.loss > 0 && self.noise.bits().is_multiple_of(self.setting.loss)
    }

    fn store(&mut self, from: Sender, batch: u64, requests: &[Request]) {
        if self.silent {
            return;
        }
        let replies = (!self.refuses).then(|| {
            self.seen.commands += requests
                .iter()
                .map(|request| match request {
                    Request::Add { expire_s: Some(_), .. } => 2,
                    _ => 1,
                })
                .sum::<u64>();
            requests.iter().map(|request| self.store.apply(request, self.now)).collect()
        });
        let delay = self.delay();
        let back = (self.now + delay).max(self.agents[from.agent].back_at);
        self.agents[from.agent].back_at = back;
        if !self.is_lost() {
            self.at(back, Event::Reply { to: from, batch, replies });
        }
    }

    fn reply(&mut self, to: Sender, batch: u64, replies: Option<Vec<Reply>>) {
        if !self.is_alive(to) {
            return;
        }
        let Some((sent_at, commands)) = self.agents[to.agent].sent.remove(&batch) else { return };
        let now = self.moment(to.agent);
        let agent = &mut self.agents[to.agent];
        if replies.is_some() {
            agent.node.took_ns(self.now - sent_at);
        } else if agent.node.is_up() {
            agent.node.store_is(false, now);
            self.probe_later(to);
        }
        let agent = &mut self.agents[to.agent];
        for (index, (id, command)) in commands.into_iter().enumerate() {
            let reply = replies.as_ref().map(|replies| replies[index]);
            agent.node.done(id, command, reply, now);
        }
        self.wake(to.agent);
        self.flush(to.agent);
        self.look(now);
    }

    fn probe_later(&mut self, of: Sender) {
        let later = 50 * MS + self.noise.bits() % (50 * MS);
        self.at(self.now + later, Event::Probe { of });
    }

    /// What all hold unspent of the present window.
    fn look(&mut self, now: Moment) {
        if !self.batches.is_multiple_of(16) {
            return;
        }
        let window = self.terms.window(now.wall_ns);
        let last = self.terms.unit_ns() * u64::from(self.setting.windows - 1);
        // Until then shares are still being found.
        if self.now < self.begin + last {
            return;
        }
        let held = self.agents.iter().map(|agent| u64::from(agent.line.cell().left(window))).sum();
        self.seen.most_held = self.seen.most_held.max(held);
        let shares = self.agents.iter().filter_map(|agent| agent.node.get(agent.quota));
        let shares = shares.map(|leaser| u64::from(leaser.share().0)).sum();
        self.seen.most_shares = self.seen.most_shares.max(shares);
    }

    fn forgotten(&mut self, before: &Memory) {
        let window = self.terms.window(self.now);
        // Clocks differ, and with them the windows that are in use.
        for window in window - 8..=window + 8 {
            let key = self.terms.counter(window);
            let lost = before.count(&key).unwrap_or(0);
            let lost = lost.saturating_sub(self.store.count(&key).unwrap_or(0));
            *self.seen.forgotten.entry(window).or_default() += lost;
        }
    }

    fn fault(&mut self, fault: Fault) {
        let percent = self.terms.unit_ns() * u64::from(self.setting.windows) / 100;
        match fault {
            Fault::Refuses(_, until) => {
                self.refuses = !self.refuses;
                if self.refuses {
                    self.at(self.begin + until * percent, Event::Fault(fault));
                }
            }
            Fault::Silent(_, until) => {
                self.silent = !self.silent;
                if self.silent {
                    self.at(self.begin + until * percent, Event::Fault(fault));
                }
            }
            Fault::Empty(_) => {
                let before = std::mem::take(&mut self.store);
                self.forgotten(&before);
            }
            Fault::Failover(_, ms) => {
                let then = self.now.saturating_sub(ms * MS);
                let replica = self.past.iter().rev().find(|(at, _)| *at <= then);
                let replica = replica.map(|(_, store)| store.clone()).unwrap_or_default();
                let before = std::mem::replace(&mut self.store, replica);
                self.forgotten(&before);
            }
            Fault::Crash(_) => {
                let dead: BTreeSet<usize> = (0..1 + self.setting.agents / 10)
                    .map(|_| usize::try_from(self.noise.bits()).unwrap() % self.setting.agents)
                    .collect();
                for agent in dead {
                    let window = self.terms.window(self.moment(agent).wall_ns);
                    for window in [window, window + 1] {
                        let left = u64::from(self.agents[agent].line.cell().left(window));
                        *self.seen.stranded.entry(window).or_default() += left;
                    }
                    let life = self.agents[agent].life + 1;
                    self.agents[agent] = self.fresh(life);
                }
            }
            Fault::Clock(_, ms) => {
                let agent = usize::try_from(self.noise.bits()).unwrap() % self.setting.agents;
                self.agents[agent].skew_ns += ms * i64::try_from(MS).unwrap();
            }
        }
    }
}
