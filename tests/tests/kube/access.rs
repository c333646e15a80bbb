//! The chart grants what the agent asks for, and nothing else.

use std::{collections::BTreeSet, fs};

use weir::kube::ACCESS;

/// The items of `key: [a, b]`, where a line says that.
fn items<'a>(line: &'a str, key: &str) -> Option<Vec<&'a str>> {
    let list = line.trim_start_matches([' ', '-']).strip_prefix(key)?.strip_prefix(": [")?;
    let items = list.strip_suffix(']')?.split(", ");
    Some(items.map(|item| item.trim_matches('"')).collect())
}

#[test]
fn the_cluster_role_is_the_list() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/base/weir.yaml");
    let text = fs::read_to_string(path).unwrap();
    let role = text.split("\n---\n").find(|part| part.contains("\nkind: ClusterRole\n")).unwrap();
    let (mut groups, mut resources) = (Vec::new(), Vec::new());
    let mut granted = BTreeSet::new();
    for line in role.lines() {
        if let Some(items) = items(line, "apiGroups") {
            groups = items;
        } else if let Some(items) = items(line, "resources") {
            resources = items;
        } else if let Some(verbs) = items(line, "verbs") {
            for group in &groups {
                for resource in &resources {
                    granted.extend(verbs.iter().map(|verb| (*group, *resource, *verb)));
                }
            }
        }
    }
    let asked = ACCESS.iter().flat_map(|access| {
        access.verbs.iter().map(move |verb| (access.group, access.resource, *verb))
    });
    assert_eq!(granted, asked.collect());
}
