//! What people should be told on their own objects, and how often: pure.
//!
//! An API server keeps events for an hour and has many nodes to listen to. So the same thing is said
//! of an object once an hour at most, and all nodes' agents together stay bounded by what each may
//! say: [`AT_ONCE`] events, and one more every [`EVERY`].

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// How long until the same is said again.
const AGAIN: Duration = Duration::from_secs(3600);
/// Events that may be said at once.
const AT_ONCE: u64 = 25;
/// How long it takes until one more may be said.
const EVERY: Duration = Duration::from_secs(5);
/// Things that were said and are remembered.
const REMEMBERED: usize = 4096;

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// A namespace.
    Namespace {
        /// Its name.
        name: String,
    },
}

/// Why something is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A value cannot be read.
    BadValue,
    /// A limit refused connections.
    LimitReached,
    /// Most of what a limit per source counts comes from one source.
    SourcesCollapsed,
    /// A breaker refuses connections for a while.
    BreakerOpened,
    /// A breaker lets connections pass again.
    BreakerClosed,
    /// It floods others of its node, and XDP refuses that early.
    ShieldUp,
    /// It does not any more.
    ShieldDown,
}

impl Cause {
    /// The reason of the event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadValue => "WeirBadValue",
            Self::LimitReached => "WeirLimitReached",
            Self::SourcesCollapsed => "WeirSourcesCollapsed",
            Self::BreakerOpened => "WeirBreakerOpened",
            Self::BreakerClosed => "WeirBreakerClosed",
            Self::ShieldUp => "WeirShieldUp",
            Self::ShieldDown => "WeirShieldDown",
        }
    }

    /// Whether somebody should do something.
    pub const fn is_warning(self) -> bool {
        !matches!(self, Self::BreakerClosed | Self::ShieldDown)
    }
}

/// Something to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Of what.
    pub object: Object,
    /// Why.
    pub cause: Cause,
    /// For people.
    pub note: String,
}

/// What is to be said, and what was said lately.
#[derive(Debug)]
pub struct Notices {
    said: BTreeMap<(Object, Cause, String), u64>,
    outbox: VecDeque<Notice>,
    tokens: u64,
    refilled_ns: u64,
    /// What was not said because too much was.
    pub withheld: u64,
}

impl Default for Notices {
    fn default() -> Self {
        Self {
            said: BTreeMap::new(),
            outbox: VecDeque::new(),
            tokens: AT_ONCE,
            refilled_ns: 0,
            withheld: 0,
        }
    }
}

impl Notices {
    /// Says something about a topic of an object (an annotation, a limit), unless it was said
    /// lately or too much was.
    pub fn say(
        &mut self,
        object: Object,
        cause: Cause,
        topic: &str,
        now_ns: u64,
        note: impl FnOnce() -> String,
    ) {
        let again = AGAIN.as_nanos() as u64;
        let key = (object, cause, topic.to_owned());
        if self.said.get(&key).is_some_and(|said| now_ns.saturating_sub(*said) < again) {
            return;
        }
        self.refill(now_ns);
        if self.tokens == 0 {
            self.withheld += 1;
            return;
        }
        self.tokens -= 1;
        if self.said.len() >= REMEMBERED {
            self.said.retain(|_, said| now_ns.saturating_sub(*said) < again);
            // Still full: the oldest make room.
            while self.said.len() >= REMEMBERED {
                let oldest = self.said.iter().min_by_key(|(_, said)| **said);
                let Some(key) = oldest.map(|(key, _)| key.clone()) else { break };
                self.said.remove(&key);
            }
        }
        self.outbox.push_back(Notice { object: key.0.clone(), cause, note: note() });
        self.said.insert(key, now_ns);
    }

    fn refill(&mut self, now_ns: u64) {
        let every = EVERY.as_nanos() as u64;
        let more = now_ns.saturating_sub(self.refilled_ns) / every;
        self.tokens = self.tokens.saturating_add(more).min(AT_ONCE);
        self.refilled_ns += more * every;
    }

    /// Takes what is to be said.
    pub fn take(&mut self) -> VecDeque<Notice> {
        std::mem::take(&mut self.outbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn pod(uid: u64) -> Object {
        Object::Pod { namespace: "shop".to_owned(), name: "web".to_owned(), uid: uid.to_string() }
    }

    #[test]
    fn the_same_is_said_once_an_hour() {
        let mut notices = Notices::default();
        let mut say = |uid, topic, at| {
            notices.say(pod(uid), Cause::BadValue, topic, at, || "x".to_owned());
            notices.take().len()
        };
        assert_eq!(say(1, "a", SECOND), 1);
        assert_eq!(say(1, "a", 2 * SECOND), 0);
        assert_eq!(say(1, "b", 2 * SECOND), 1);
        assert_eq!(say(2, "a", 2 * SECOND), 1, "another pod of that name");
        assert_eq!(say(1, "a", 3601 * SECOND), 1);
    }

    #[test]
    fn a_node_does_not_flood_the_api_server() {
        let mut notices = Notices::default();
        for uid in 0..10_000 {
            notices.say(pod(uid), Cause::LimitReached, "connections", SECOND, String::new);
        }
        assert_eq!(notices.take().len() as u64, AT_ONCE);
        assert_eq!(notices.withheld, 10_000 - AT_ONCE);
        for uid in 0..10_000 {
            notices.say(pod(uid), Cause::LimitReached, "connections", 61 * SECOND, String::new);
        }
        assert_eq!(notices.take().len(), 12);
        assert!(notices.said.len() <= REMEMBERED);
    }
}
