//! From what was written to what holds for each workload.

use std::collections::BTreeMap;

use super::node_file::{NodeFile, Workload};
use crate::{
    compile,
    policy::{
        Administrator, Effective, KUBERNETES_BANDWIDTH, LastGood, Layers, LimitKind, Line, Outcome,
        Place, Port, Problem, Subject, effective,
    },
};

/// What holds for one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluated<'a> {
    /// The workload.
    pub workload: &'a Workload,
    /// What holds.
    pub effective: Effective,
    /// What to hand to the next [`evaluate`].
    pub last_good: LastGood,
    /// What is wrong, and what holds in its place.
    pub problems: Vec<Problem>,
    /// What else to know.
    pub remarks: Vec<String>,
}

impl Evaluated<'_> {
    /// Leaves what Kubernetes' own annotations ask for, towards and from the workload, to who does it
    /// already. Two buckets in a row would be slower than either, and nobody asked for that.
    pub fn leave_to(&mut self, others: &[Option<String>; 2]) {
        for ((annotation, _), other) in KUBERNETES_BANDWIDTH.iter().zip(others) {
            let Some(other) = other else { continue };
            let is_its = |line: &Line| matches!(&line.origin.place, Place::Annotation { key, .. } if key == annotation);
            if self.effective.lines.iter().any(is_its) {
                self.effective.lines.retain(|line| !is_its(line));
                self.remarks.push(format!("`{annotation}` is left to {other}"));
            }
        }
    }

    /// The workload as `compile` wants it.
    pub fn subject(&self) -> compile::Subject<'_> {
        let workload = self.workload;
        compile::Subject {
            identity: &workload.identity,
            name: &workload.name,
            effective: &self.effective,
            probes: workload.probes.as_ref(),
            resets: workload.resets,
        }
    }
}

/// Evaluates the workloads of a file, each with the last good values known under its identity.
pub fn evaluate<'a>(
    file: &'a NodeFile,
    last_good: &BTreeMap<String, LastGood>,
) -> Vec<Evaluated<'a>> {
    evaluate_all(&file.administrator, &file.workloads, last_good)
}

/// Evaluates workloads, wherever they come from, in their order.
pub fn evaluate_all<'a>(
    administrator: &Administrator,
    workloads: impl IntoIterator<Item = &'a Workload>,
    last_good: &BTreeMap<String, LastGood>,
) -> Vec<Evaluated<'a>> {
    let one =
        |workload: &'a Workload| one(administrator, workload, last_good.get(&workload.identity));
    workloads.into_iter().map(one).collect()
}

fn one<'a>(
    administrator: &Administrator,
    workload: &'a Workload,
    last_good: Option<&LastGood>,
) -> Evaluated<'a> {
    let namespace = workload.namespace.as_deref();
    let subject = Subject {
        name: &workload.name,
        namespace: namespace.map(|namespace| namespace.name.as_str()),
        labels: &workload.labels,
        ports: &workload.ports,
    };
    let layers = Layers {
        administrator,
        namespace: namespace.map_or(&[], |namespace| namespace.policy.as_slice()),
        workload: &workload.policy,
    };
    let Outcome { mut effective, last_good, mut problems } =
        effective(&subject, &layers, last_good);
    if workload.is_host() {
        problems.extend(guard_management(workload, &mut effective));
    }
    let mut remarks = workload.remarks.clone();
    if !workload.is_armed {
        remarks.extend(disarm(&mut effective));
    }
    Evaluated { workload, effective, last_good, problems, remarks }
}

/// Takes away the breakers that a workload's own failures trip: before it is ready for the first time,
/// that it answers nobody is no failure.
fn disarm(effective: &mut Effective) -> Vec<String> {
    let waits = |line: &Line| line.slot.kind == LimitKind::Breaker;
    let remark = |line: &Line| format!("`{}` waits until the pod is ready", line.written_key);
    let remarks = effective.lines.iter().filter(|line| waits(line)).map(remark).collect();
    effective.lines.retain(|line| !waits(line));
    remarks
}

/// Takes inbound limits without a port off the host's own interface: they would hold for SSH too,
/// and whoever locks themselves out cannot mend the file.
fn guard_management(workload: &Workload, effective: &mut Effective) -> Vec<Problem> {
    const SSH: u16 = 22;
    if workload.include_management {
        return Vec::new();
    }
    let limits = |line: &Line, port: Option<u16>| {
        line.slot.kind.is_inbound()
            && line.shadow.is_none()
            && line.slot.port.map(Port::number) == port
    };
    let mut problems = Vec::new();
    for line in &effective.lines {
        let (key, place) = (&line.written_key, || line.origin.place.clone());
        let at = format!("`{}` is the host's own interface {}", workload.name, workload.location);
        if limits(line, None) {
            let what = format!("{at}: `{key}` without a port would limit SSH too");
            let expected = format!("a port, like `{key}.443`, or `include-management: true`");
            problems.push(Problem::error(place(), what, expected).effect("it is not enforced"));
        } else if limits(line, Some(SSH)) {
            let what = format!("{at}: `{key}` limits SSH");
            let expected = "`include-management: true` beside it, to say that this is meant";
            problems.push(Problem::warning(place(), what, expected));
        }
    }
    effective.lines.retain(|line| !limits(line, None));
    for problem in &mut problems {
        problem.workload = Some(workload.name.clone());
    }
    problems
}
