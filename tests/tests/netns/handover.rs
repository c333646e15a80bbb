//! One agent takes over from another that runs, as in a rolling update that starts the successor
//! first, also where the two share no layout of the maps.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use weir_common::layout::LAYOUT;
use weir_tests::{
    agent::{Agent, binary, eventually},
    site::{Side, ask, serve},
};

/// What `weir probe` says, and whether it says yes.
fn probe(question: &str, socket: &Path) -> (bool, String) {
    let mut command = Command::new(binary());
    let asked = command.args(["probe", question, "--socket"]).arg(socket).output();
    let asked = asked.expect("run the program");
    (asked.status.success(), String::from_utf8_lossy(&asked.stdout).into_owned())
}

#[test]
fn a_successor_waits_and_goes_on_where_its_predecessor_ended() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let file = Side::Host.node_file(&web, &["connections.80: 3 per 1h"]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let mut first = Agent::start(&lab, node.namespace(), &file);
    assert_eq!(ask(client.namespace(), to, 1).codes(), "ok:1");

    let own = lab.directory().join("probe.sock");
    let standby = own.as_os_str();
    let mut second = Agent::new(&lab, node.namespace(), &file);
    second.launch_with(&["--standby".as_ref(), standby]);
    let ready = |(yes, _): &(bool, String)| *yes;
    let (_, said) = eventually("the successor is ready", || probe("/readyz", &own), ready);
    assert!(said.contains("\"standby\":true"), "{said}");
    assert!(probe("/healthz", &own).0);
    // It disturbs nobody: not the first agent, not the limits.
    assert!(first.runs());
    assert_eq!(ask(client.namespace(), to, 1).codes(), "ok:1");
    assert!(second.runs());

    assert!(first.terminate().success());
    let runs = |(yes, said): &(bool, String)| *yes && !said.contains("standby");
    eventually("the successor takes over", || probe("/readyz", &own), runs);
    assert_eq!(second.workload("web").condition, "enforced");
    // The one token that was left, and not one more.
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:1 refused:4");
    assert!(second.terminate().success());
    assert!(!own.exists(), "the socket for probes goes with the agent");
}

#[test]
fn a_successor_takes_over_from_one_that_is_killed() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let file = Side::Host.node_file(&web, &["connections.80: 3 per 1h"]);
    let mut first = Agent::start(&lab, node.namespace(), &file);
    let own = lab.directory().join("probe.sock");
    let mut second = Agent::new(&lab, node.namespace(), &file);
    second.launch_with(&["--standby".as_ref(), own.as_os_str()]);
    let ready = |(yes, _): &(bool, String)| *yes;
    eventually("the successor is ready", || probe("/readyz", &own), ready);
    first.kill();
    second.await_ready();
    assert_eq!(second.workload("web").condition, "enforced");
}

#[test]
fn a_successor_that_is_not_needed_ends_when_it_is_told() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let file = Side::Host.node_file(&web, &["connections.80: 3 per 1h"]);
    let mut first = Agent::start(&lab, node.namespace(), &file);
    let own = lab.directory().join("probe.sock");
    let mut second = Agent::new(&lab, node.namespace(), &file);
    second.launch_with(&["--standby".as_ref(), own.as_os_str()]);
    let ready = |(yes, _): &(bool, String)| *yes;
    eventually("the successor is ready", || probe("/readyz", &own), ready);
    assert!(second.terminate().success());
    assert!(first.runs());
    assert_eq!(first.workload("web").condition, "enforced");
}

/// The pins of a running agent are moved to where one of another layout would have them.
#[test]
fn the_programs_of_another_layout_are_replaced_and_never_joined() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (web, db) = (node.pod("web").unwrap(), node.pod("db").unwrap());
    let client = node.client("client").unwrap();
    let _servers = (serve(&web, &[80]), serve(&db, &[80]));
    let policy = ["policy: { connections.80: 2 per 1h }"];
    let entries = [Side::Host.entry(&web, &policy), Side::Pod.entry(&db, &policy)];
    let file = weir_tests::site::node_file(&entries);
    let mut first = Agent::start(&lab, node.namespace(), &file);
    let [to, db] = [&web, &db].map(|host| SocketAddr::new(host.ipv4().into(), 80));
    for to in [to, db] {
        assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:2 refused:3");
    }
    // It would miss its pins and repair them: one of another layout has its own, and lets these be.
    first.freeze();
    let other = first.pins().join(format!("v{}", LAYOUT + 7));
    fs::rename(first.layout(), &other).unwrap();

    // Its owner is respected, whatever its layout is called.
    let socket = lab.directory().join("other").join("weir.sock");
    let (status, said) = first.run_another(&[], first.pins(), &socket);
    assert!(!status.success() && said.contains("another agent owns"), "{said}");
    let own = lab.directory().join("probe.sock");
    let mut second = Agent::new(&lab, node.namespace(), &file);
    second.launch_with(&["--standby".as_ref(), own.as_os_str()]);
    let ready = |(yes, _): &(bool, String)| *yes;
    eventually("the successor is ready", || probe("/readyz", &own), ready);
    // The old programs hold on to the end.
    first.kill();
    second.await_ready();

    assert!(!other.exists(), "nothing of the other layout is left");
    for (name, to) in [("web", to), ("db", db)] {
        let workload = second.workload(name);
        assert_eq!(workload.condition, "enforced");
        // One program at each hook: no token is spent twice, and the new buckets are full.
        assert_eq!((workload.attached.as_deref(), workload.before.len()), (Some("tcx"), 0));
        assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:2 refused:3", "{name}");
        let spent = second.limit_named(name, "connections.80");
        assert_eq!((spent.admitted, spent.refused), (2, 3), "{name}");
    }
}
