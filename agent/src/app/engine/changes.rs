//! What changed and at whose word: the history of policies, conditions and pauses.

use tracing::warn;

use super::{Engine, answers::Condition, seconds};
use crate::{
    app::{
        history::{Facts, Part},
        view,
    },
    causes::with_causes,
    compile::LineRef,
    policy::{Effective, Origin, Period},
};

impl Engine {
    /// Takes what holds into the history.
    pub(super) fn note_policies(&mut self) {
        let time = seconds(self.clock.realtime_ns());
        let Self { history, workloads, .. } = self;
        let is_there = |name: &str| workloads.iter().any(|known| known.name == name);
        let mut changed = history.retain(is_there, time);
        for known in workloads {
            changed |= history.observe(&known.name, Part::Policy, lines(&known.effective), time);
        }
        self.history_changed |= changed;
    }

    /// Takes attachments and conditions into the history.
    pub(super) fn note_states(&mut self) {
        if !self.decided {
            return;
        }
        let time = seconds(self.clock.realtime_ns());
        for index in 0..self.workloads.len() {
            let Some(known) = self.workloads.get(index) else { break };
            let Condition { word, detail, .. } = self.condition(known);
            let detail = detail.unwrap_or_default();
            let mut facts =
                Facts::from([("condition".to_owned(), stated(word.to_owned(), detail))]);
            if let Ok(attached) = &known.attached {
                let kind = stated(attached.kind.to_owned(), known.location.to_string());
                facts.insert("attached".to_owned(), kind);
            }
            self.history_changed |= self.history.observe(&known.name, Part::State, facts, time);
        }
    }

    pub(super) fn keep_history(&mut self) {
        if !self.history_changed {
            return;
        }
        self.history_changed = !self.history_file.keep(&self.history);
    }

    /// Pauses enforcement, or ends a pause, at somebody's word; the names it concerned. The kernel
    /// ends it by itself.
    pub fn pause(&mut self, pause: &view::Pause, by: &str) -> Result<Vec<String>, String> {
        /// A pause is for the length of an incident.
        const LONGEST: u64 = 24 * 3600;
        if pause.seconds > LONGEST {
            return Err("a pause may last 24 hours at most".to_owned());
        }
        let until = match pause.seconds {
            0 => 0,
            seconds => self.clock.monotonic_ns() + seconds * 1_000_000_000,
        };
        let mut names = Vec::new();
        let now = self.clock.monotonic_ns();
        let time = seconds(self.clock.realtime_ns());
        for known in &self.workloads {
            if pause.workload.as_ref().is_some_and(|name| *name != known.name) {
                continue;
            }
            let before = self.datapath.shadowed_until(known.identity).saturating_sub(now);
            match self.datapath.shadow_until(known.identity, until) {
                // Whoever was asked notes who asked.
                Ok(true) => {
                    names.push(known.name.clone());
                    let entry = view::HistoryEntry {
                        time,
                        key: "pause".to_owned(),
                        from: left(before.div_ceil(1_000_000_000)),
                        to: left(pause.seconds),
                        by: by.to_owned(),
                    };
                    self.history.push(&known.name, entry);
                    self.history_changed = true;
                }
                Ok(false) => {}
                Err(problem) => {
                    let (workloads, seconds) = (&names, pause.seconds);
                    warn!(?workloads, seconds, "audit: a pause reached these and then failed");
                    return Err(with_causes(&problem));
                }
            }
        }
        self.note_states();
        match (&pause.workload, names.is_empty()) {
            (Some(name), true) => Err(format!("there is no workload `{name}`")),
            _ => Ok(names),
        }
    }
}

fn stated(value: String, origin: String) -> view::Stated {
    view::Stated { value, origin }
}

/// What is left of a pause.
fn left(seconds: u64) -> Option<view::Stated> {
    let left = Period::from_millis(seconds.saturating_mul(1000))?;
    Some(stated(left.to_string(), String::new()))
}

/// What holds, by key.
fn lines(effective: &Effective) -> Facts {
    let lines = effective.lines.iter().map(|line| {
        let origin = stated(line.limit.to_string(), line.origin.to_string());
        (LineRef::Limit(line.slot).to_string(), origin)
    });
    let sourced = |value: String, origin: &Origin| stated(value, origin.to_string());
    let mut facts: Facts = lines.collect();
    let Effective { mode, on_limit, on_limit_ports, exempt, .. } = effective;
    facts.insert("mode".to_owned(), sourced(mode.value.to_string(), &mode.origin));
    facts.insert("on-limit".to_owned(), sourced(on_limit.value.to_string(), &on_limit.origin));
    for (port, on_limit) in on_limit_ports {
        let fact = sourced(on_limit.value.to_string(), &on_limit.origin);
        facts.insert(format!("on-limit.{port}"), fact);
    }
    for peer in exempt {
        facts.insert(format!("exempt {}", peer.value), sourced("exempt".to_owned(), &peer.origin));
    }
    facts
}
