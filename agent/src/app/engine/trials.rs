//! A file on trial: it holds for now, and what was good before stays what was good.

use std::{collections::BTreeMap, path::Path};

use super::Engine;
use crate::{
    app::{memory::Memory, trial::Trial, view},
    config::NodeFile,
    policy::LastGood,
};

/// The trial that holds, or should.
pub(super) struct OnTrial {
    pub(super) trial: Trial,
    /// Whether it was understood.
    holds: bool,
    /// What the node file brought.
    before: Good,
}

/// A file that was good, and the values.
struct Good {
    text: String,
    file: NodeFile,
    last_good: BTreeMap<String, LastGood>,
}

impl Good {
    /// The last good values, if none came from a trial: a file's workloads have those from before,
    /// and pods have what they wrote meanwhile.
    fn last_good(&self, mut now: BTreeMap<String, LastGood>) -> BTreeMap<String, LastGood> {
        for workload in &self.file.workloads {
            now.remove(&workload.identity);
            let before = self.last_good.get_key_value(&workload.identity);
            now.extend(before.map(|(identity, good)| (identity.clone(), good.clone())));
        }
        now
    }
}

impl Engine {
    /// Reads anew: this file holds in place of the node file, or with `None` that again. In one step, so
    /// that nobody sees a trial of which it is not known yet whether it holds.
    pub fn reload_with(&mut self, trial: Option<Trial>) {
        self.try_out(trial);
        self.reload();
    }

    /// From the next reload on, this file holds in place of the node file; with `None`, that again.
    fn try_out(&mut self, trial: Option<Trial>) {
        if let Some(OnTrial { before, .. }) = self.trial.take() {
            self.last_good = before.last_good(std::mem::take(&mut self.last_good));
            (self.text, self.file) = (before.text, before.file);
        }
        self.trial = trial.map(|trial| OnTrial {
            trial,
            holds: false,
            before: Good {
                text: self.text.clone(),
                file: self.file.clone(),
                last_good: self.last_good.clone(),
            },
        });
    }

    /// The file that is to hold now.
    pub(super) fn path(&self) -> &Path {
        self.trial.as_ref().map_or(&self.path, |on_trial| &on_trial.trial.path)
    }

    /// Notes whether the trial, if there is one, was understood.
    pub(super) const fn note_trial(&mut self, holds: bool) {
        if let Some(on_trial) = &mut self.trial {
            on_trial.holds = holds;
        }
    }

    pub(super) fn trial_status(&self) -> Option<view::TrialStatus> {
        let OnTrial { trial, holds, .. } = self.trial.as_ref()?;
        Some(view::TrialStatus { ends: trial.ends_seconds(), holds: *holds })
    }

    /// Keeps what is good now for the next start; of a trial, nothing.
    pub(super) fn keep_last_good(&mut self) {
        if !self.last_good_changed {
            return;
        }
        let before = self.trial.as_ref().map(|on_trial| &on_trial.before);
        let last_good = self.last_good.clone();
        let memory = match before {
            Some(before) => {
                Memory { file: before.text.clone(), last_good: before.last_good(last_good) }
            }
            None => Memory { file: self.text.clone(), last_good },
        };
        // What no file was good for is not kept either.
        if memory.file.is_empty() {
            return;
        }
        self.last_good_changed = !self.memory.keep(&memory);
    }
}
