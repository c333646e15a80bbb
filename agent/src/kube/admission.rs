//! A `ValidatingAdmissionPolicy` that refuses annotations that no agent could read, at `kubectl
//! apply` and not in an event later: made of the shapes that the grammar has.
//!
//! It never refuses what an agent takes. What it lets pass and an agent does not (sums, settings that
//! contradict each other, ports that the pod does not declare), the agent names in an event.

use std::fmt::Write as _;

use crate::policy::{ANNOTATION_PREFIX, shape};

/// Where annotations stand in the objects of some resources.
struct Place {
    name: &'static str,
    about: &'static str,
    /// The metadata, behind `object.`, from the outside: each may be missing.
    path: &'static [&'static str],
    /// API group, version and resources.
    resources: &'static [(&'static str, &'static str, &'static [&'static str])],
}

const PLACES: [Place; 3] = [
    Place {
        name: "weir-annotations",
        about: "pods and namespaces",
        path: &["metadata", "annotations"],
        resources: &[("", "v1", &["pods", "namespaces"])],
    },
    // A pod that a controller makes is refused to the controller: whoever wrote its template should
    // hear of it first.
    Place {
        name: "weir-template-annotations",
        about: "pods' templates",
        path: &["spec", "template", "metadata", "annotations"],
        resources: &[
            ("apps", "v1", &["deployments", "statefulsets", "daemonsets", "replicasets"]),
            ("batch", "v1", &["jobs"]),
        ],
    },
    Place {
        name: "weir-cronjob-annotations",
        about: "templates of pods in templates of Jobs",
        path: &["spec", "jobTemplate", "spec", "template", "metadata", "annotations"],
        resources: &[("batch", "v1", &["cronjobs"])],
    },
];

/// One thing that is checked.
struct Check {
    expression: String,
    message: String,
}

/// A text as a literal of CEL.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

impl Place {
    fn annotations(&self, object: &str) -> String {
        format!("{object}.{}", self.path.join("."))
    }

    /// Whether an object has annotations.
    fn has(&self, object: &str) -> String {
        let mut so_far = object.to_owned();
        let steps = self.path.iter().map(|step| {
            so_far = format!("{so_far}.{step}");
            format!("has({so_far})")
        });
        steps.collect::<Vec<_>>().join(" && ")
    }

    /// When it is asked at all: somebody writes annotations of ours, or others than before.
    fn conditions(&self) -> Vec<(&'static str, String)> {
        let now = self.annotations("object");
        let ours = literal(ANNOTATION_PREFIX);
        let before = self.annotations("oldObject");
        vec![
            ("ours", format!("{} && {now}.exists(k, k.startsWith({ours}))", self.has("object"))),
            (
                "changed",
                format!("oldObject == null || !({}) || {now} != {before}", self.has("oldObject")),
            ),
        ]
    }

    fn checks(&self) -> Vec<Check> {
        let all = self.annotations("object");
        let (ours, known) = (literal(ANNOTATION_PREFIX), literal(&shape::annotations()));
        let names: Vec<&str> = shape::keys().map(|kind| kind.name()).collect();
        let keys = Check {
            expression: format!("{all}.all(k, !k.startsWith({ours}) || k.matches({known}))"),
            message: format!(
                "an annotation {ANNOTATION_PREFIX}... that Weir does not know; expected one of {}, some with .PORT",
                names.join(", ")
            ),
        };
        let values = shape::keys().map(|kind| {
            let (value, example) = shape::value(kind);
            let (key, value) = (literal(&shape::annotation(kind)), literal(&value));
            let name = kind.name();
            Check {
                expression: format!("{all}.all(k, !k.matches({key}) || {all}[k].matches({value}))"),
                message: format!(
                    "{ANNOTATION_PREFIX}{name} cannot be read; expected a value like `{example}`"
                ),
            }
        });
        std::iter::once(keys).chain(values).collect()
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        // A JSON string is a YAML string.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        writeln!(text, "# Of {}.", self.about)?;
        writeln!(text, "apiVersion: admissionregistration.k8s.io/v1")?;
        writeln!(text, "kind: ValidatingAdmissionPolicy\nmetadata:\n  name: {}", self.name)?;
        writeln!(text, "spec:\n  # A check that fails must keep no pod from running.")?;
        writeln!(text, "  failurePolicy: Ignore\n  matchConstraints:\n    resourceRules:")?;
        for (group, version, resources) in self.resources {
            writeln!(text, "      - apiGroups: [{group:?}]\n        apiVersions: [{version}]")?;
            writeln!(text, "        operations: [CREATE, UPDATE]")?;
            writeln!(text, "        resources: [{}]", resources.join(", "))?;
        }
        writeln!(text, "  matchConditions:")?;
        for (name, expression) in self.conditions() {
            writeln!(text, "    - name: {name}\n      expression: {}", quoted(&expression))?;
        }
        writeln!(text, "  validations:")?;
        for Check { expression, message } in self.checks() {
            writeln!(text, "    - expression: {}", quoted(&expression))?;
            writeln!(text, "      message: {}", quoted(&message))?;
        }
        writeln!(text, "---\napiVersion: admissionregistration.k8s.io/v1")?;
        writeln!(text, "kind: ValidatingAdmissionPolicyBinding\nmetadata:\n  name: {}", self.name)?;
        writeln!(text, "spec:\n  policyName: {}\n  validationActions: [Deny]", self.name)
    }
}

/// The policies with their bindings, as YAML.
pub fn admission_policies() -> String {
    let mut text =
        "# Written by `weir admission`. Refuses annotations that no agent could read.\n".to_owned();
    for (index, place) in PLACES.iter().enumerate() {
        if index > 0 {
            text.push_str("---\n");
        }
        // Writing into a text cannot fail.
        let _ = place.write(&mut text);
    }
    text
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
