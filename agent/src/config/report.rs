//! What is wrong with a file, told once, in the order of the file.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use serde::Serialize;

use super::{evaluate::Evaluated, evaluate::evaluate, read::Reading, read::read};
use crate::{
    compile::{Misfit, NodeFacts, compile},
    policy::{Place, Problem, Severity},
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
    pub fn of(reading: &Reading, evaluated: &[Evaluated<'_>], misfits: &[Misfit]) -> Self {
        let found = evaluated.iter().flat_map(|workload| &workload.problems);
        let mut told = HashSet::new();
        let mut problems: Vec<Problem> = found
            .chain(&reading.problems)
            // Objects are told about their annotations themselves.
            .filter(|problem| !matches!(problem.place, Place::Annotation { .. }))
            .filter(|problem| told.insert((&problem.place, &problem.what)))
            .cloned()
            .collect();
        let workloads = &reading.file.workloads;
        let places: BTreeMap<_, _> =
            workloads.iter().map(|workload| (&workload.name, &workload.place)).collect();
        for misfit in misfits {
            let Some(&place) = places.get(&misfit.workload().to_owned()) else { continue };
            let mut problem = Problem::error(place.clone(), misfit.to_string(), "");
            problem.workload = Some(misfit.workload().to_owned());
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
    Report::of(&reading, &evaluated, &compiled.misfits)
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
