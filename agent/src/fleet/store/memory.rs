//! A store in memory: what Redis does, in a few plain lines. The model for the simulation and for
//! the conformance suite, and the store of an agent that has no other.

use std::collections::BTreeMap;

use super::{Reply, Request, SPENDS_FOR, fair_share, pool::State};

#[derive(Clone, Copy, Debug)]
struct Counter {
    count: u64,
    /// `None` lives for ever.
    until_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Spender {
    window: u32,
    /// What the node may believe to hold; never less than what it does.
    reserved: u32,
    weight: u32,
}

/// The store.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    counters: BTreeMap<String, Counter>,
    spenders: BTreeMap<String, BTreeMap<String, Spender>>,
    pools: BTreeMap<String, State>,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Memory {
    /// Does one request.
    pub fn apply(&mut self, request: &Request, now_ns: u64) -> Reply {
        let until = |expire_s: u32| Some(now_ns + u64::from(expire_s) * SECOND_NS);
        match request {
            Request::Add { key, hits, expire_s } => {
                self.forget(key, now_ns);
                let counter = self
                    .counters
                    .entry(key.clone())
                    .or_insert(Counter { count: 0, until_ns: None });
                counter.count += u64::from(*hits);
                if let Some(expire_s) = expire_s {
                    counter.until_ns = until(*expire_s);
                }
                Reply::Counted(counter.count)
            }
            Request::Expire { key, expire_s } => {
                self.forget(key, now_ns);
                if let Some(counter) = self.counters.get_mut(key) {
                    counter.until_ns = until(*expire_s);
                }
                Reply::Done
            }
            Request::GiveBack { key, hits } => {
                self.forget(key, now_ns);
                if let Some(counter) = self.counters.get_mut(key) {
                    counter.count = counter.count.saturating_sub(u64::from(*hits));
                }
                Reply::Done
            }
            Request::Draw { key, pool, hits } => {
                let (changed, drawn) =
                    pool.draw(self.pools.get(key).copied(), *hits, now_ns / 1000);
                if let Some(state) = changed {
                    self.pools.insert(key.clone(), state);
                }
                Reply::Drawn(drawn)
            }
            Request::Join { key, node, window, limit, held, weight, .. } => {
                let spenders = self.spenders.entry(key.clone()).or_default();
                let is_known = spenders.remove(node).is_some() || *held == 0;
                spenders.retain(|_, spender| spender.window.saturating_add(SPENDS_FOR) >= *window);
                let others: u64 = spenders.values().map(|other| u64::from(other.reserved)).sum();
                let count = u32::try_from(spenders.len()).unwrap_or(u32::MAX).saturating_add(1);
                let free = u64::from(*limit).saturating_sub(others);
                let weights = spenders.values().map(|other| u64::from(other.weight)).sum::<u64>()
                    + u64::from(*weight);
                let fair = fair_share(*limit, count, *weight, weights);
                let share = u32::try_from(free).unwrap_or(u32::MAX).min(fair);
                // A store that forgot this node's share forgot the others', too.
                let share = if is_known { share } else { share.min(*held) };
                // Until it joins again nobody knows whether it heard of its new share.
                let reserved = share.max(*held);
                let spender = Spender { window: *window, reserved, weight: *weight };
                spenders.insert(node.clone(), spender);
                Reply::Joined { spenders: count, share }
            }
        }
    }

    fn forget(&mut self, key: &str, now_ns: u64) {
        let over = |counter: &Counter| counter.until_ns.is_some_and(|until| until <= now_ns);
        if self.counters.get(key).is_some_and(over) {
            self.counters.remove(key);
        }
    }

    /// A counter, if it is there.
    pub fn count(&self, key: &str) -> Option<u64> {
        self.counters.get(key).map(|counter| counter.count)
    }
}
