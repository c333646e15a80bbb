//! What cannot be read or done is said clearly, and takes no protection away.

use std::{
    fs, net::SocketAddr, os::unix::process::ExitStatusExt as _, path::Path, process::ExitStatus,
};

use weir::lab::skip;
use weir_tests::{
    agent::Agent,
    site::{Side, ask, node_file, policy_lines, serve},
};

/// Each file in place of the good one, and what the agent must say about it.
#[test]
fn a_bad_file_keeps_what_was_good_and_is_told() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let good = Side::Host.node_file(&web, &["connections.80: 2 per 60s"]);
    let with = |line: &str| Side::Host.node_file(&web, &[line]);
    let twice = good.clone() + good.trim_start_matches("workloads:\n");
    let no_name = good.replace("name: web", "nam: web");
    let files = [
        ("broken YAML", "workloads: [".to_owned(), "node.yaml:"),
        ("an empty file", String::new(), "empty"),
        ("another document", "just words\n".to_owned(), "node.yaml:1:1"),
        ("an unknown key", format!("modes: enforce\n{good}"), "`modes`"),
        ("a misspelt key", with("conections.80: 100/s"), "`conections.80`"),
        ("a zero rate", with("connections.80: 0/s"), "zero"),
        ("a wrong unit", with("connections.80: 5 per 60sec"), "`sec`"),
        ("a zero burst", with("connections.80: 5/s burst=0"), "zero"),
        ("a port out of range", good.clone() + "      connections.70000: 1/s\n", "70000"),
        ("a workload twice", twice, "`web`"),
        ("a workload without a name", no_name, "`nam`"),
    ];
    let agent = Agent::start(&lab, node.namespace(), &good);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(agent.status().problems, [""; 0]);
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:2 refused:3");
    for (what, file, expected) in files {
        let status = agent.rewrite(&file);
        let problems = status.problems.join("\n");
        assert!(problems.contains(expected), "{what}: expected {expected} in: {problems}");
        assert_eq!(agent.workload("web").condition, "enforced", "{what}");
        assert_eq!(ask(client.namespace(), to, 2).codes(), "refused:2", "{what}");
        let status = agent.rewrite(&good);
        assert_eq!(status.problems, [""; 0], "after {what}");
    }
    // No file at all.
    fs::remove_file(agent.node_file()).unwrap();
    weir_tests::agent::eventually(
        "the agent misses its file",
        || agent.status().problems,
        |problems| !problems.is_empty(),
    );
    assert_eq!(ask(client.namespace(), to, 2).codes(), "refused:2");
    let log = agent.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// One bad entry does not keep the others from being protected.
#[test]
fn what_cannot_be_found_is_told_and_the_others_are_protected() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let policy = policy_lines(&["connections.80: 2 per 60s"]);
    let policy: Vec<_> = policy.iter().map(String::as_str).collect();
    let gone = "  - { name: gone, interface: eth7, policy: { connections.80: 1/s } }\n".to_owned();
    let nowhere =
        "  - { name: nowhere, netns: no-such, policy: { connections: 1/s } }\n".to_owned();
    let file = "uplinks: [ { interface: eth8 } ]\n".to_owned()
        + &node_file(&[gone, Side::Host.entry(&web, &policy), nowhere]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    for (name, word) in [("gone", "eth7"), ("nowhere", "no-such")] {
        let workload = agent.workload(name);
        assert_eq!(workload.condition, "not-enforced", "{name}");
        let detail = workload.detail.unwrap_or_default();
        assert!(detail.contains(word), "{name}: {detail}");
    }
    let uplink = agent.uplink("eth8");
    assert_eq!(uplink.attached, None);
    assert!(uplink.detail.is_some_and(|detail| detail.contains("eth8")));
    assert_eq!(agent.workload("web").condition, "enforced");
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:2 refused:3");
}

/// A limit that would shut out SSH is not enforced before it is asked for twice.
#[test]
fn a_limit_for_all_ports_of_a_machine_needs_a_second_word() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let vm = node.pod("vm").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&vm, &[22]);
    let to = SocketAddr::new(vm.ipv4().into(), 22);
    let file = Side::Own.node_file(&vm, &["connections: 1 per 60s"]);
    let agent = Agent::start(&lab, vm.namespace(), &file);
    let problems = agent.status().problems.join("\n");
    assert!(problems.contains("include-management"), "{problems}");
    assert_eq!(ask(client.namespace(), to, 10).codes(), "ok:10");
    let lines = ["include-management: true", "policy: { connections: 1 per 60s }"];
    let status = agent.rewrite(&node_file(&[Side::Own.entry(&vm, &lines)]));
    assert_eq!(status.problems, [""; 0]);
    assert_eq!(ask(client.namespace(), to, 10).codes(), "ok:1 refused:9");
}

/// The file may have been broken while nobody looked.
#[test]
fn an_agent_that_starts_on_a_broken_file_goes_on_with_the_last_good_one() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let good = Side::Host.node_file(&web, &["connections.80: 2 per 60s"]);
    let mut agent = Agent::start(&lab, node.namespace(), &good);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 1).codes(), "ok:1");
    for broken in ["workloads: [".to_owned(), good.replace("2 per 60s", "many")] {
        agent.kill();
        agent.write(&broken);
        agent.restart();
        assert!(!agent.status().problems.is_empty());
        assert_eq!(agent.workload("web").condition, "enforced", "{broken}");
        assert_eq!(agent.limit("web").value, "2/m");
    }
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:1 refused:4");
}

/// With nothing before it, a broken file is reported, and mended without a restart.
#[test]
fn an_agent_whose_first_file_is_broken_says_so_and_waits() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let agent = Agent::start(&lab, node.namespace(), "workloads: [");
    let status = agent.status();
    assert_eq!((status.reloads.succeeded, status.reloads.failed), (0, 1));
    assert_eq!((status.problems.len(), status.workloads.len()), (1, 0), "{status:#?}");
    let status = agent.rewrite(&Side::Host.node_file(&web, &["connections.80: 2 per 60s"]));
    assert_eq!(status.problems, [""; 0]);
    agent.await_condition("web", "enforced");
}

/// It ended by itself, with a code that says so, and said why in its own words.
fn failed_clearly(what: &str, (status, said): &(ExitStatus, String), words: &[&str]) {
    assert_eq!(status.signal(), None, "{what}: {status}: {said}");
    assert!(!matches!(status.code(), Some(0 | 101)), "{what}: {status}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
    for word in words {
        assert!(said.contains(word), "{what}: expected {word} in: {said}");
    }
}

/// One owner: the second agent ends with the reason, and the first does not notice.
#[test]
fn a_second_agent_on_the_same_pins_is_turned_away() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let file = Side::Host.node_file(&web, &["connections.80: 2 per 60s"]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    let other = lab.directory().join("other").join("weir.sock");
    let answer = agent.run_another(&[], agent.pins(), &other);
    failed_clearly("the same pins", &answer, &["another agent"]);
    let answer = agent.run_another(&[], &agent.pins().with_file_name("other"), agent.socket());
    failed_clearly("the same socket", &answer, &["weir.sock"]);
    assert_eq!(agent.workload("web").condition, "enforced");
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:2 refused:3");
}

/// Without the right to load programs, or a place to pin them, the agent says which and ends.
#[test]
fn an_agent_without_the_means_says_what_is_missing() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let file = Side::Host.node_file(&web, &["connections.80: 2 per 60s"]);
    let agent = Agent::new(&lab, node.namespace(), &file);
    let answer = agent.run_another(&[], &lab.directory().join("pins"), agent.socket());
    failed_clearly("no BPF file system", &answer, &["mount -t bpf"]);

    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.is_file() {
        skip("files::an_agent_without_the_means_says_what_is_missing", "no setpriv (util-linux)");
        return;
    }
    let without = ["setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon"];
    let answer = agent.run_another(&without, agent.pins(), agent.socket());
    failed_clearly("no CAP_BPF", &answer, &["CAP_BPF"]);
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let socket = std::env::temp_dir().join(format!("{}.sock", lab.id()));
    let answer = agent.run_another(&nobody, agent.pins(), &socket);
    failed_clearly("not root", &answer, &["root"]);
}
