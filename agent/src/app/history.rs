//! What changed for a workload, when, and at whose word.
//!
//! It is told how things are and finds out what that changes: a policy's values with their
//! origins, how programs are attached, the condition. Bounded: [`KEPT`] changes of the node and
//! [`KEPT_EACH`] of a workload; older ones are forgotten, and counted. Performs no I/O: whoever
//! owns it writes it beside the last good policy, so that it outlives the process.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::view::{HistoryEntry, Stated};

/// Changes that are kept in all.
pub(super) const KEPT: usize = 200;
/// Changes that are kept of one workload.
pub(super) const KEPT_EACH: usize = 50;

/// Which half of what is known of a workload is told: each is compared with itself alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Part {
    /// Lines of its policy.
    Policy,
    /// Attachment and condition.
    State,
}

/// How things are, by key.
pub(super) type Facts = BTreeMap<String, Stated>;

/// Changes of all workloads, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct History {
    entries: VecDeque<(String, HistoryEntry)>,
    known: BTreeMap<String, BTreeMap<Part, Facts>>,
    forgotten: BTreeMap<String, u64>,
}

impl History {
    /// Takes in how a part of a workload is now; whether anything changed.
    pub(super) fn observe(&mut self, workload: &str, part: Part, now: Facts, time: f64) -> bool {
        let known = self.known.entry(workload.to_owned()).or_default();
        let before = known.insert(part, now.clone()).unwrap_or_default();
        let mut keys: Vec<_> = before.keys().chain(now.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let changes: Vec<_> = keys
            .into_iter()
            .map(|key| (key, before.get(key), now.get(key)))
            // Whose word it is may change without any effect.
            .filter(|(_, from, to)| from.map(|from| &from.value) != to.map(|to| &to.value))
            .map(|(key, from, to)| HistoryEntry {
                time,
                key: key.clone(),
                from: from.cloned(),
                to: to.cloned(),
                by: String::new(),
            })
            .collect();
        let changed = !changes.is_empty();
        for entry in changes {
            self.push(workload, entry);
        }
        changed
    }

    /// Forgets how things were for workloads that are gone; what changed is kept.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool, time: f64) -> bool {
        let gone: Vec<String> = self.known.keys().filter(|name| !is_there(name)).cloned().collect();
        for name in &gone {
            for part in [Part::Policy, Part::State] {
                self.observe(name, part, Facts::new(), time);
            }
            self.known.remove(name);
        }
        !gone.is_empty()
    }

    /// Adds what somebody did.
    pub(super) fn push(&mut self, workload: &str, entry: HistoryEntry) {
        self.entries.push_back((workload.to_owned(), entry));
        let of_workload =
            || self.entries.iter().enumerate().filter(|(_, (name, _))| name == workload);
        let surplus = of_workload().count().saturating_sub(KEPT_EACH);
        let oldest = of_workload().next().map(|(index, _)| index).filter(|_| surplus > 0);
        if let Some(index) = oldest {
            self.forget(index);
        }
        while self.entries.len() > KEPT {
            self.forget(0);
        }
    }

    fn forget(&mut self, index: usize) {
        let Some((name, _)) = self.entries.remove(index) else { return };
        *self.forgotten.entry(name).or_default() += 1;
        // Of a workload that is gone with its last change, nothing is left to tell.
        let Self { entries, known, forgotten } = self;
        forgotten.retain(|name, _| {
            known.contains_key(name) || entries.iter().any(|(other, _)| other == name)
        });
    }

    /// What changed for a workload, oldest first, and how much was forgotten. Nothing if nobody of
    /// that name is known.
    pub(super) fn of(&self, workload: &str) -> Option<(Vec<HistoryEntry>, u64)> {
        let entries: Vec<_> = self
            .entries
            .iter()
            .filter(|(name, _)| name == workload)
            .map(|(_, entry)| entry.clone())
            .collect();
        let forgotten = self.forgotten.get(workload).copied().unwrap_or_default();
        let is_known = self.known.contains_key(workload) || !entries.is_empty();
        is_known.then_some((entries, forgotten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(facts: &[(&str, &str)]) -> Facts {
        let stated =
            |value: &str| Stated { value: value.to_owned(), origin: "node.yaml:3:1".to_owned() };
        facts.iter().map(|(key, value)| ((*key).to_owned(), stated(value))).collect()
    }

    fn told(history: &History, workload: &str) -> Vec<String> {
        let (entries, _) = history.of(workload).unwrap_or_default();
        let value = |stated: &Option<Stated>| {
            stated.as_ref().map_or("-", |stated| stated.value.as_str()).to_owned()
        };
        entries
            .iter()
            .map(|entry| format!("{}: {} > {}", entry.key, value(&entry.from), value(&entry.to)))
            .collect()
    }

    #[test]
    fn only_what_changes_is_told() {
        let mut history = History::default();
        let first = facts(&[("connections", "10/s"), ("mode", "enforce")]);
        assert!(history.observe("web", Part::Policy, first.clone(), 1.0));
        assert!(!history.observe("web", Part::Policy, first.clone(), 2.0));
        let mut moved = first;
        for stated in moved.values_mut() {
            stated.origin = "node.yaml:9:1".to_owned();
        }
        assert!(!history.observe("web", Part::Policy, moved, 3.0), "a line that moved");
        history.observe("web", Part::State, facts(&[("condition", "enforced")]), 4.0);
        history.observe("web", Part::Policy, facts(&[("connections", "20/s")]), 5.0);
        let expected = [
            "connections: - > 10/s",
            "mode: - > enforce",
            "condition: - > enforced",
            "connections: 10/s > 20/s",
            "mode: enforce > -",
        ];
        assert_eq!(told(&history, "web"), expected);
        assert_eq!(history.of("api"), None);
    }

    #[test]
    fn a_workload_that_is_gone_is_told_until_it_is_forgotten() {
        let mut history = History::default();
        history.observe("web", Part::Policy, facts(&[("connections", "10/s")]), 1.0);
        assert!(history.retain(|_| false, 2.0));
        assert!(!history.retain(|_| false, 3.0));
        assert_eq!(told(&history, "web"), ["connections: - > 10/s", "connections: 10/s > -"]);
        for round in 0..KEPT {
            let name = format!("other-{}", round % 10);
            history.observe(&name, Part::Policy, facts(&[("mode", &round.to_string())]), 4.0);
        }
        assert_eq!(history.of("web"), None);
        assert!(!history.forgotten.contains_key("web"));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut history = History::default();
        for round in 0..1000 {
            let now = facts(&[("connections", &format!("{round}/s"))]);
            history.observe(&format!("web-{}", round % 3), Part::Policy, now, f64::from(round));
        }
        assert_eq!(history.entries.len(), 3 * KEPT_EACH);
        let (entries, forgotten) = history.of("web-0").unwrap();
        assert_eq!((entries.len(), forgotten), (KEPT_EACH, 334 - KEPT_EACH as u64));
        assert_eq!(entries.last().unwrap().time, 999.0);
        for round in 0..1000 {
            let now = facts(&[("connections", &format!("{round}/s"))]);
            history.observe(&format!("api-{}", round % 9), Part::Policy, now, 2000.0);
        }
        assert_eq!(history.entries.len(), KEPT);
    }

    #[test]
    fn a_restart_changes_nothing() {
        let mut history = History::default();
        let policy = facts(&[("connections", "10/s")]);
        history.observe("web", Part::Policy, policy.clone(), 1.0);
        let text = serde_json::to_vec(&history).unwrap();
        let mut after: History = serde_json::from_slice(&text).unwrap();
        assert_eq!(after, history);
        assert!(!after.observe("web", Part::Policy, policy, 2.0));
    }
}
