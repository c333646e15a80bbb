//! What is wrong with a file, told once, in the order of the file.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{evaluate::Evaluated, evaluate::evaluate, read::Reading, read::read};
use crate::{
    compile::{NodeFacts, Overflow, compile},
    policy::{Problem, Severity},
};

/// All problems of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order of the file.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Gathers what reading, evaluating and compiling found. What was found several times is told
    /// once: where it is known, with what holds in its place.
    pub fn of(reading: &Reading, evaluated: &[Evaluated<'_>], overflows: &[Overflow]) -> Self {
        let mut problems: Vec<Problem> = Vec::new();
        let found = evaluated.iter().flat_map(|workload| &workload.problems);
        for problem in found.chain(&reading.problems) {
            let told = |other: &Problem| other.place == problem.place && other.what == problem.what;
            if !problems.iter().any(told) {
                problems.push(problem.clone());
            }
        }
        for overflow in overflows {
            let workload = reading.file.workload(&overflow.workload);
            let Some(place) = workload.map(|workload| workload.place.clone()) else { continue };
            let mut problem = Problem::error(place, overflow.to_string(), "");
            problem.workload = Some(overflow.workload.clone());
            problems.push(problem);
        }
        problems.sort();
        Self { problems }
    }

    /// Things written that do not take effect.
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// Things that take effect, but perhaps not as meant.
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }
}

impl fmt::Display for Report {
    /// A line for each problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems.iter().try_for_each(|problem| writeln!(f, "{problem}"))
    }
}

/// Checks a node file as if it were read for the first time.
pub fn check(text: &str, file: &str) -> Report {
    let reading = match read(text, file, None) {
        Ok(reading) => reading,
        Err(problem) => return Report { problems: vec![*problem] },
    };
    let evaluated = evaluate(&reading.file, &BTreeMap::new());
    let subjects = evaluated.iter().map(Evaluated::subject);
    let compiled = compile(subjects, &NodeFacts::default(), None);
    Report::of(&reading, &evaluated, &compiled.overflows)
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
