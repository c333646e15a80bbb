//! What `weir check` says.

use std::time::{Duration, Instant};

use super::*;

fn told(text: &str) -> Vec<String> {
    check(text, "node.yaml").problems.iter().map(ToString::to_string).collect()
}

fn vm(policy: &str, more: &str) -> String {
    format!("workloads:\n- name: vm\n  interface: eth0\n  policy: {{{policy}}}\n{more}")
}

#[test]
fn a_good_file_has_nothing_to_tell() {
    let report = check(&vm("connections.443: 5/s", ""), "node.yaml");
    assert_eq!((report.errors(), report.warnings()), (0, 0));
    assert_eq!(report.to_string(), "");
}

#[test]
fn a_limit_without_a_port_on_the_hosts_interface_is_refused() {
    for key in ["connections", "connections-per-source"] {
        assert_eq!(
            told(&vm(&format!("{key}: 5/s"), "")),
            [format!(
                "node.yaml:4:12: error: `vm` is the host's own interface eth0: `{key}` without a \
                 port would limit SSH too; expected a port, like `{key}.443`, or \
                 `include-management: true`; it is not enforced"
            )]
        );
    }
    for fine in
        ["connections: 5/s shadow", "mode: shadow, connections: 5/s", "outbound-connections: 5/s"]
    {
        assert_eq!(told(&vm(fine, "")), [] as [&str; 0], "{fine}");
    }
    assert_eq!(told(&vm("connections: 5/s", "  include-management: true\n")), [] as [&str; 0]);
    let pod = "workloads: [{name: pod, netns: pod, policy: {connections: 5/s}}]";
    assert_eq!(told(pod), [] as [&str; 0]);
}

#[test]
fn an_administrators_limit_without_a_port_is_refused_there_too() {
    let found = told(&vm("", "policies: [{max: {connections: 5/s}}]\n"));
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("node.yaml:5:19: error: `vm` is the host's own interface"),
        "{found:?}"
    );
}

#[test]
fn what_is_refused_is_not_in_force() {
    let text = vm("connections: 5/s, connections.443: 6/s", "");
    let reading = read(&text, "node.yaml", None).unwrap();
    let evaluated = evaluate(&reading.file, &BTreeMap::new());
    let lines: Vec<_> = evaluated[0].effective.lines.iter().map(|line| line.slot.key()).collect();
    assert_eq!(lines, ["connections.443"]);
}

#[test]
fn a_limit_at_port_22_of_the_host_is_a_warning() {
    let report = check(&vm("connections.22: 5/s", ""), "node.yaml");
    assert_eq!((report.errors(), report.warnings()), (0, 1));
}

#[test]
fn what_several_workloads_meet_is_told_once() {
    let text = "policies: [{default: {connections.http: 5/s, connections.80: x}}]\n\
                workloads: [{name: a, netns: a}, {name: b, netns: b}]\n";
    let found = told(text);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("no port named `http`"));
    assert!(found[1].contains("this is not a rate: `x`"));
}

#[test]
fn a_policy_for_nobody_is_checked_too() {
    let found = told("policies: [{match: {name: x}, max: {connections: zero}}]\n");
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn too_many_rules_for_a_port_are_an_error() {
    let list: Vec<_> = (0..16).map(|net| format!("1/s to=10.{net}.0.0/16")).collect();
    let found = told(&format!(
        "workloads: [{{name: a, netns: a, policy: {{outbound-connections: {}}}}}]\n",
        list.join("; ")
    ));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("16 outbound rules for any port, at most 15 fit"), "{found:?}");
}

#[test]
fn problems_are_told_in_the_order_of_the_file() {
    let found = told("workloads: [{name: a, netns: a, policy: {x: 1}}]\nmode: x\nadmin: x\n");
    let lines: Vec<_> = found.iter().map(|problem| problem.split(':').nth(1)).collect();
    assert_eq!(lines, [Some("1"), Some("2"), Some("3")]);
}

#[test]
fn the_last_good_value_stays_until_the_line_is_mended_or_taken_away() {
    let good = vm("connections.443: 5/s", "");
    let reading = read(&good, "node.yaml", None).unwrap();
    let first = evaluate(&reading.file, &BTreeMap::new());
    let last_good = BTreeMap::from([("vm".to_owned(), first[0].last_good.clone())]);

    let bad =
        read(&vm("connections.443: 5/fortnight", ""), "node.yaml", Some(&reading.file)).unwrap();
    let second = evaluate(&bad.file, &last_good);
    assert_eq!(second[0].effective.lines[0].limit.to_string(), "5/s");
    assert!(second[0].effective.lines[0].kept);
    let report = Report::of(&bad, &second, &[]);
    assert_eq!(report.errors(), 1);
    assert!(report.to_string().ends_with("; the last good value `5/s` stays\n"), "{report}");

    let gone = read(&vm("", ""), "node.yaml", Some(&bad.file)).unwrap();
    let last_good = BTreeMap::from([("vm".to_owned(), second[0].last_good.clone())]);
    assert_eq!(evaluate(&gone.file, &last_good)[0].effective.lines, []);
}

#[test]
fn the_examples_of_the_documentation_are_good_files() {
    let pages = [
        ("policy.md", include_str!("../../../docs/policy.md")),
        ("node-file.md", include_str!("../../../docs/node-file.md")),
    ];
    for (page, text) in pages {
        let blocks: Vec<_> = text.split("```yaml\n").skip(1).collect();
        assert!(!blocks.is_empty(), "{page}");
        for block in blocks {
            let example = block.split("```").next().unwrap();
            assert_eq!(check(example, page).to_string(), "", "{example}");
        }
    }
}

/// What costs the square of its length takes minutes for files as large as these.
#[test]
fn a_file_full_of_errors_is_read_in_time() {
    const MANY: usize = 20_000;
    let keys: String = (0..MANY).map(|n| format!("    key-{n}: x\n")).collect();
    let workloads: String = (0..MANY)
        .map(|n| {
            let (high, low) = (n >> 8, n & 255);
            format!(
                "- {{name: w{n}, netns: n{n}, addresses: [10.0.{high}.{low}], policy: {{x: 1}}}}\n"
            )
        })
        .collect();
    let uplinks: String = (0..MANY).map(|n| format!("- {{interface: eth{n}, xdp: x}}\n")).collect();
    let start = Instant::now();
    for text in [
        format!("workloads:\n- name: vm\n  netns: vm\n  policy:\n{keys}"),
        format!("workloads:\n{workloads}"),
        format!("uplinks:\n{uplinks}"),
    ] {
        let report = check(&text, "node.yaml");
        assert_eq!(report.errors(), MANY);
    }
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
}

#[test]
fn the_policies_of_the_documentation_are_good() {
    let pages = [
        ("connections.md", include_str!("../../../docs/connections.md")),
        ("connection-tracking.md", include_str!("../../../docs/connection-tracking.md")),
        ("breakers.md", include_str!("../../../docs/breakers.md")),
    ];
    for (page, text) in pages {
        let blocks: Vec<_> = text.split("```yaml\n").skip(1).collect();
        assert!(!blocks.is_empty(), "{page}");
        for block in blocks {
            let policy = block.split("```").next().unwrap().replace('\n', "\n    ");
            let example = format!("workloads:\n  - name: a\n    netns: a\n    {policy}\n");
            assert_eq!(check(&example, page).to_string(), "", "{example}");
        }
    }
}

#[test]
fn what_is_refused_on_the_page_of_breakers_is_refused_in_these_words() {
    let page = include_str!("../../../docs/breakers.md");
    for value in [
        "ejection=30s",
        "errors=5 max-ejection=10s",
        "errors=5 min-volume=10",
        "errors=5 error-ratio=90%",
        "errors=5 half-open=off probes=3",
    ] {
        let text = format!("workloads: [{{name: a, netns: a, policy: {{breaker: {value}}}}}]\n");
        let report = check(&text, "node.yaml");
        let what = report.problems[0].to_string();
        let said = what.split("error: ").nth(1).unwrap().split("; meanwhile").next().unwrap();
        assert!(page.lines().any(|line| line == said), "{said}");
    }
    let text = "workloads: [{name: a, netns: a, policy: {breaker.80: errors=5 probes=10, \
                max-connections.80: 4}}]\n";
    let what = check(text, "node.yaml").problems[0].to_string();
    assert!(page.contains(what.split("error: ").nth(1).unwrap()), "{what}");
}

#[test]
fn what_would_hold_for_ssh_is_refused_for_the_newer_keys_too() {
    for line in [
        "max-connections: 5",
        "max-connections-per-source: 5",
        "max-handshakes: 5",
        "breaker: errors=5",
    ] {
        let report = check(&vm(line, ""), "node.yaml");
        assert_eq!(report.errors(), 1, "{line}: {report}");
        assert!(report.to_string().contains("SSH"), "{report}");
    }
    assert_eq!(check(&vm("outbound-breaker: errors=5", ""), "node.yaml").errors(), 0);
}

#[test]
fn the_documentation_names_every_key() {
    let page = include_str!("../../../docs/policy.md");
    for key in crate::policy::Key::NAMES {
        assert!(page.contains(&format!("| `{key}")), "{key}");
    }
}
