//! The checks that need no test run: formatting, lints, and what the dependencies are.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    licence, say,
    workspace::{Workspace, read, run},
};

/// Runs all checks.
pub(crate) fn all(workspace: &Workspace) -> Result<()> {
    say::step("ci", "cargo fmt --check");
    run(workspace.cargo().args(["fmt", "--all", "--", "--check"]))
        .context("the code is not formatted: run `cargo fmt --all`")?;
    say::step("ci", "cargo clippy -D warnings");
    let mut clippy = workspace.cargo();
    // The BPF crate needs its own compiler; `build` shows that compiler's warnings.
    clippy.args(["clippy", "--workspace", "--exclude", "weir-ebpf", "--all-targets", "--quiet"]);
    run(clippy.args(["--", "-D", "warnings"]))?;
    say::step("ci", "dependencies");
    dependencies(workspace)
}

/// A dependency, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Dependency {
    name: String,
    version: String,
    licence: Option<String>,
}

fn dependencies(workspace: &Workspace) -> Result<()> {
    let mut metadata = workspace.cargo();
    metadata.args(["metadata", "--format-version", "1", "--locked"]);
    // Crates that only Windows would build are never downloaded otherwise.
    metadata.args(["--filter-platform", &host_target()?]);
    let metadata: Value = serde_json::from_str(&read(&mut metadata)?)
        .context("`cargo metadata` did not print JSON")?;
    let all = foreign(&metadata)?;
    let wrong: Vec<String> = all.iter().filter_map(objection).collect();
    if !wrong.is_empty() {
        bail!("dependencies whose licence is not on the list:\n  {}", wrong.join("\n  "));
    }
    say::note(format!("{} dependencies, all licences allowed", all.len()));
    for (name, versions) in duplicates(&all) {
        say::note(format!("in several versions: {name} {}", versions.join(", ")));
    }
    Ok(())
}

fn host_target() -> Result<String> {
    let version = read(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

/// The resolved packages that are not ours.
fn foreign(metadata: &Value) -> Result<BTreeSet<Dependency>> {
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned();
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let nodes = list(metadata.get("resolve").and_then(|resolve| resolve.get("nodes")))
        .context("`cargo metadata` resolved nothing")?;
    let used: BTreeSet<String> = nodes.iter().filter_map(|node| text(node, "id")).collect();
    let packages = list(metadata.get("packages")).context("`cargo metadata` lists no packages")?;
    packages
        .iter()
        // What has no source is a member of this workspace.
        .filter(|package| package.get("source").is_some_and(Value::is_string))
        .filter(|package| text(package, "id").is_some_and(|id| used.contains(&id)))
        .map(|package| {
            Ok(Dependency {
                name: text(package, "name").context("a package has no name")?,
                version: text(package, "version").context("a package has no version")?,
                licence: text(package, "license"),
            })
        })
        .collect()
}

fn objection(dependency: &Dependency) -> Option<String> {
    let Dependency { name, version, licence } = dependency;
    match licence {
        None => Some(format!("{name} {version} names none")),
        Some(licence) if licence::is_allowed(licence) => None,
        Some(licence) => Some(format!("{name} {version}: {licence}")),
    }
}

fn duplicates(all: &BTreeSet<Dependency>) -> BTreeMap<&str, Vec<&str>> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Dependency { name, version, .. } in all {
        versions.entry(name).or_default().push(version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    versions
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn example() -> Value {
        json!({
            "packages": [
                {"id": "1", "name": "own", "version": "0.1.0", "license": "MIT", "source": null},
                {"id": "2", "name": "a", "version": "1.0.0", "license": "MIT", "source": "r"},
                {"id": "3", "name": "a", "version": "2.0.0", "license": "GPL-3.0", "source": "r"},
                {"id": "4", "name": "b", "version": "1.0.0", "license": null, "source": "r"},
                {"id": "5", "name": "unused", "version": "1.0.0", "license": "X", "source": "r"},
            ],
            "resolve": {"nodes": [{"id": "1"}, {"id": "2"}, {"id": "3"}, {"id": "4"}]},
        })
    }

    #[test]
    fn only_packages_of_others_that_are_used_are_judged() {
        let all = foreign(&example()).unwrap();
        let wrong: Vec<String> = all.iter().filter_map(objection).collect();
        assert_eq!(wrong, ["a 2.0.0: GPL-3.0", "b 1.0.0 names none"]);
    }

    #[test]
    fn a_package_in_two_versions_is_reported() {
        let all = foreign(&example()).unwrap();
        assert_eq!(duplicates(&all), BTreeMap::from([("a", vec!["1.0.0", "2.0.0"])]));
    }
}
