//! What the agent may ask of the API server, and nothing else: the ClusterRole is made of this
//! list, and the tests' API server refuses what is not in it. What is off unless it is asked for stands
//! apart.

/// Verbs on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The resource.
    pub resource: &'static str,
    /// The verbs.
    pub verbs: &'static [&'static str],
}

/// All that the agent asks for.
pub const ACCESS: &[Access] = &[
    Access { group: "", resource: "pods", verbs: &["list", "watch"] },
    Access { group: "", resource: "namespaces", verbs: &["list", "watch"] },
    Access { group: "", resource: "nodes", verbs: &["list", "watch"] },
    Access { group: "events.k8s.io", resource: "events", verbs: &["create"] },
];

/// What it asks for besides, to remove the startup taint from its node. RBAC knows no "own node".
pub const STARTUP_TAINT: Access = Access { group: "", resource: "nodes", verbs: &["patch"] };

/// What it asks for besides, to answer pods' readiness gates.
pub const READINESS_GATE: Access = Access { group: "", resource: "pods/status", verbs: &["patch"] };

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is shipped, as rendered from the chart.
    const SHIPPED: &str = include_str!("../../../deploy/kustomize/base/weir.yaml");

    /// The words of a list in brackets.
    fn words(line: &str, key: &str) -> Vec<String> {
        let list = line.trim_start_matches("- ").strip_prefix(key).expect(key);
        let list = list.trim().strip_prefix('[').and_then(|list| list.strip_suffix(']'));
        let words =
            list.expect(key).split(',').map(|word| word.trim().trim_matches('"').to_owned());
        words.collect()
    }

    #[test]
    fn the_shipped_role_grants_what_is_asked_for_and_nothing_else() {
        let (_, role) = SHIPPED.split_once("kind: ClusterRole\n").unwrap();
        let (_, rules) = role.split_once("\nrules:\n").unwrap();
        let (rules, _) = rules.split_once("\n---\n").unwrap();
        let lines = rules.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let lines: Vec<&str> = lines.collect();
        let mut granted = BTreeSet::new();
        for rule in lines.chunks(3) {
            let [groups, resources, verbs] = rule else { panic!("not three lines: {rule:?}") };
            for group in words(groups, "apiGroups:") {
                for resource in words(resources, "resources:") {
                    for verb in words(verbs, "verbs:") {
                        granted.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
        let asked = ACCESS.iter().flat_map(|access| {
            access
                .verbs
                .iter()
                .map(|verb| [access.group, access.resource, verb].map(str::to_owned).into())
        });
        assert_eq!(granted, asked.collect::<BTreeSet<(String, String, String)>>());
    }
}
