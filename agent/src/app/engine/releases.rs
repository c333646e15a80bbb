//! Whom the agent lets go when all is decided: the node with its startup taint, and pods with their
//! readiness gates.

use std::collections::BTreeMap;

use super::{Engine, Known, answers::Condition};
use crate::{
    app::Kubernetes,
    kube::{Release, Releases},
};

/// What somebody may wait for, and what was said lately.
#[derive(Debug, Default)]
pub(super) struct Doors {
    startup_taint: Option<String>,
    readiness_gate: bool,
    releases: Releases,
}

impl Doors {
    pub(super) fn of(kubernetes: &Kubernetes) -> Self {
        Self {
            startup_taint: kubernetes.startup_taint.clone(),
            readiness_gate: kubernetes.readiness_gate,
            releases: Releases::default(),
        }
    }
}

impl Engine {
    /// The words that are to be said now.
    pub fn releases(&mut self) -> Vec<Release> {
        let Doors { startup_taint, readiness_gate, .. } = &self.pods.doors;
        let is_on = startup_taint.is_some() || *readiness_gate;
        let Some(cluster) = self.pods.cluster.as_ref().filter(|_| is_on) else {
            return Vec::new();
        };
        let (taints, gated) = cluster.waiting();
        let mut wanted = Vec::new();
        if startup_taint.as_ref().is_some_and(|key| taints.has(key)) && self.ready() {
            wanted.push(Release::Node(taints));
        }
        if *readiness_gate && !gated.is_empty() {
            let known: BTreeMap<&str, &Known> =
                self.workloads.iter().map(|known| (known.key.as_str(), known)).collect();
            for pod in gated {
                let Some(known) = known.get(pod.uid.as_str()) else { continue };
                let Condition { word, detail, .. } = self.condition(known);
                let held = match word {
                    "undecided" => continue,
                    "not-enforced" => Some(detail.unwrap_or_default()),
                    _ => None,
                };
                wanted.push(Release::Pod { pod, reason: reason(word), held });
            }
        }
        let now = self.clock.monotonic_ns();
        self.pods.doors.releases.due(wanted, now)
    }
}

/// A condition's word as the API wants reasons: `not-enforced` is `NotEnforced`.
fn reason(word: &str) -> String {
    let capital = |part: &str| {
        let mut letters = part.chars();
        let first = letters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    word.split('-').map(capital).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_words_of_the_apis_form() {
        assert_eq!(reason("enforced"), "Enforced");
        assert_eq!(reason("not-enforced"), "NotEnforced");
    }
}
