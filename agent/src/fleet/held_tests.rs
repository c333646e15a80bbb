//! Quotas that the kernel spends from, on one node with a store in memory.

use std::sync::{Arc, atomic::AtomicU64};

use weir_common::lease::{Taken, WORDS};

use super::{
    leaser::{Command, Line},
    node::{Node, QuotaId},
    store::memory::Memory,
    terms::{Consistency, Moment, OnStoreFailure, Terms},
};
use crate::quota::store::Words;

const SECOND_NS: u64 = 1_000_000_000;
const MINUTE_NS: u64 = 60 * SECOND_NS;

/// A cell of the data plane.
#[derive(Debug, Default)]
struct Kernel([AtomicU64; WORDS]);

impl Words for Kernel {
    fn words(&self) -> &[AtomicU64; WORDS] {
        &self.0
    }
}

struct Site {
    node: Node,
    memory: Memory,
    terms: Arc<Terms>,
    now: Moment,
    takes: u32,
}

impl Site {
    fn new(limit: u32) -> Self {
        let terms = Arc::new(Terms {
            stem: "shop_user_ann_".to_owned(),
            limit,
            unit_s: 60,
            consistency: Consistency::Leased,
            on_failure: OnStoreFailure::Deny,
        });
        let now = Moment { mono_ns: SECOND_NS, wall_ns: 1000 * MINUTE_NS };
        Self { node: Node::new(7), memory: Memory::default(), terms, now, takes: 0 }
    }

    fn add(&mut self, kernel: &Arc<Kernel>) -> (QuotaId, Arc<Line>) {
        let line = Arc::new(Line::Held(kernel.clone()));
        let id = self.node.add(self.terms.clone(), line.clone());
        self.node.low(id, self.now);
        self.answer();
        (id, line)
    }

    /// The store answers at once.
    fn answer(&mut self) {
        loop {
            let commands = self.node.commands();
            if commands.is_empty() {
                return;
            }
            for (id, command) in commands {
                self.takes += u32::from(matches!(command, Command::Take { .. }));
                let request = command.request(&self.terms, "a/1", 0);
                let reply = self.memory.apply(&request, self.now.wall_ns);
                self.node.done(id, command, Some(reply), self.now);
            }
        }
    }

    fn pass(&mut self, time_ns: u64) {
        let end = self.now.mono_ns + time_ns;
        while let Some(due_ns) = self.node.due_ns().filter(|due_ns| *due_ns <= end) {
            let step = due_ns.saturating_sub(self.now.mono_ns);
            self.forward(step);
            self.node.tick(self.now);
            self.answer();
        }
        let rest = end - self.now.mono_ns;
        self.forward(rest);
    }

    fn forward(&mut self, time_ns: u64) {
        self.now.mono_ns += time_ns;
        self.now.wall_ns += time_ns;
    }
}

#[test]
fn a_lease_lies_ready_in_each_window_though_nobody_came() {
    let mut site = Site::new(1000);
    let (_, line) = site.add(&Arc::default());
    for _ in 0..5 {
        site.pass(MINUTE_NS);
        let window = site.terms.window(site.now.wall_ns);
        let taken = line.cell().take(window, 1000, 1);
        assert!(matches!(taken, Taken::Admitted { .. }), "{taken:?}");
    }
    // One for the window, one for what was taken, and one in advance.
    assert!(site.takes <= 5 * 3, "{} leases", site.takes);
}

#[test]
fn of_a_small_quota_nothing_is_leased_that_nobody_wants() {
    let mut site = Site::new(7);
    let (id, line) = site.add(&Arc::default());
    site.pass(3 * MINUTE_NS);
    let window = site.terms.window(site.now.wall_ns);
    assert_eq!((site.takes, line.cell().take(window, 7, 1)), (0, Taken::Short));
    site.node.wanted(id, 1, site.now);
    site.answer();
    assert!(matches!(line.cell().take(window, 7, 1), Taken::Admitted { .. }));
}

#[test]
fn a_node_that_stops_leaves_the_kernel_its_lease_and_the_next_goes_on_from_there() {
    let mut site = Site::new(1000);
    let kernel = Arc::new(Kernel::default());
    let (_, line) = site.add(&kernel);
    site.pass(20 * SECOND_NS);
    let window = site.terms.window(site.now.wall_ns);
    let left = line.cell().left(window);
    assert!(left > 0);
    let counted = site.memory.count(&site.terms.counter(window));
    site.node.drain(site.now);
    site.answer();
    assert_eq!(line.cell().left(window), left);
    site.node = Node::new(8);
    let (id, line) = site.add(&kernel);
    assert_eq!(line.cell().left(window), left);
    assert_eq!(site.memory.count(&site.terms.counter(window)), counted, "nothing is leased twice");

    // Named no more, it is given back.
    site.node.remove(id, site.now);
    site.answer();
    assert_eq!(line.cell().left(window), 0);
    assert_eq!(site.memory.count(&site.terms.counter(window)), Some(0));
}
