//! The oldest kernel that is supported, Linux 6.1: its verifier, and interfaces without TCX, where
//! programs are clsact filters.
//!
//! Each test boots it and goes on inside; needs what `cargo xtask test` brings.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

use std::{net::SocketAddr, process::Command};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, TcAttachOptions, TcHandle},
};
use weir::lab::{Lab, Namespace};
use weir_tests::{
    agent::{self, Agent},
    bpf::{Foreign, Hook},
    filters::{Filter, filters_at},
    site::{Side, addresses, ask, node_file, serve},
    vm,
};

const WEB: u16 = 80;
/// Where Weir stands among filters: before everybody who did not ask for a place.
const FIRST: u16 = 1;

/// Goes on in a virtual machine.
macro_rules! inside {
    ($work:expr) => {{ vm::inside(weir_tests::this_test!(), $work) }};
}

#[path = "vm/handups.rs"]
mod handups;
#[path = "vm/pacing.rs"]
mod pacing;
#[path = "vm/shields.rs"]
mod shields;

#[test]
fn the_demo_ends_as_predicted() {
    inside!(|| {
        const FEWER: Option<i32> = Some(4);
        // On a busy host clients stall for seconds here, and what a full bucket would have got
        // meanwhile is admitted to nobody. Then once more; for anything else there is no excuse.
        let mut demos = (0..3).map(|_| {
            let demo = Command::new(agent::binary()).args(["demo", "--seconds", "4"]).status();
            demo.unwrap().code()
        });
        let code = demos.find(|code| *code != FEWER).unwrap_or(FEWER);
        assert_eq!(code, Some(0));
    });
}

/// A filter stays in its place when its program is replaced, with the next agent's; and what is
/// not Weir's stays when all of Weir goes.
#[test]
fn filters_outlive_the_agent_and_go_when_they_are_told_to() {
    inside!(|| {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let (web, client) = (node.pod("web").unwrap(), node.client("client").unwrap());
        let (end, inside) = (node.namespace(), web.node_interface());
        let server = serve(&web, &[WEB]);
        let file = Side::Host.node_file(&web, &["connections.80: 3 per 60s"]);
        let mut agent = Agent::start(&lab, end, &file);
        let status = agent.workload("web");
        assert_eq!(status.condition, "enforced", "{:?}", status.detail);
        assert_eq!(status.attached.as_deref(), Some("clsact"), "this kernel has TCX");
        let before = weirs(end, &inside);
        // At the host's end directions are mirrored.
        assert_eq!(names(&before), ["weir_host_out", "weir_host_in"]);
        assert!(before.iter().all(|filter| filter.priority == FIRST), "{before:?}");

        // Others come and go.
        let other = Foreign::tc_ok("other").unwrap();
        let pin = lab.pins().with_file_name("other");
        other.pin(&pin).unwrap();
        let mut attached = SchedClassifier::from_pin(&pin).unwrap();
        end.run(|| {
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                let options = NlOptions { priority: 2, ..NlOptions::default() };
                let options = TcAttachOptions::Netlink(options);
                let id = attached.attach_with_options(&inside, hook, options).unwrap();
                std::mem::forget(attached.take_link(id).unwrap());
            }
        })
        .unwrap();

        let [at, ..] = addresses(&web)[..] else { panic!("no address") };
        let at = SocketAddr::new(at, WEB);
        assert_eq!(ask(client.namespace(), at, 2).codes(), "ok:2");
        // Weir's "pass" lets the next program see the packet.
        assert!(other.seen() >= 8, "{}", other.seen());

        agent.kill();
        assert_eq!(weirs(end, &inside), before);
        // It still enforces, and the next agent goes on with the same bucket.
        assert_eq!(ask(client.namespace(), at, 3).codes(), "ok:1 refused:2");
        agent.restart();
        assert_eq!(ask(client.namespace(), at, 3).codes(), "refused:3");
        assert_eq!(server.accepted(WEB), 3);
        let after = weirs(end, &inside);
        assert_eq!(names(&after), names(&before));
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((before.priority, before.handle), (after.priority, after.handle));
            assert_ne!(before.program, after.program, "the agent's own program takes the place");
        }

        assert!(agent.terminate().success());
        let removed = agent.uninstall();
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        assert_eq!(weirs(end, &inside), []);
        assert!(!agent.pins().exists());
        assert_eq!(others(end, &inside), ["other", "other"]);
        assert_eq!(ask(client.namespace(), at, 5).codes(), "ok:5");
    });
}

/// This kernel has what the hooks in `connect()` need, and its verifier takes them.
#[test]
fn what_a_workload_opens_is_refused_in_connect() {
    inside!(|| {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let (app, client) = (node.pod("app").unwrap(), node.client("client").unwrap());
        let server = serve(&client, &[WEB]);
        let file = Side::Pod.node_file(&app, &["outbound-connections.80: 3 per 1h"]);
        let mut agent = Agent::start(&lab, node.namespace(), &file);
        let connect = agent.workload("app").connect.unwrap();
        assert!(connect.hooked, "{:?}", connect.detail);
        for address in addresses(&client).into_iter().take(1) {
            let at = SocketAddr::new(address, WEB);
            assert_eq!(ask(app.namespace(), at, 10).codes(), "ok:3 refused:7");
        }
        assert_eq!(agent.decisions("app", "connect egress", "reset outbound_rate"), 7);
        assert_eq!(agent.decisions("app", "tc egress", "reset outbound_rate"), 0);
        assert_eq!(server.accepted(WEB), 3);
        assert!(agent.terminate().success());
        assert!(agent.uninstall().status.success());
    });
}

/// Programs of this kernel cannot ask which namespace they run in: each pod has its own.
#[test]
fn pods_are_limited_from_inside() {
    inside!(|| {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let (web, db) = (node.pod("web").unwrap(), node.pod("db").unwrap());
        let client = node.client("client").unwrap();
        let servers = [serve(&web, &[WEB]), serve(&db, &[WEB])];
        let policy = |tokens: u32| format!("  connections.80: {tokens} per 60s");
        let entry = |pod, tokens| Side::Pod.entry(pod, &["policy:", &policy(tokens)]);
        let file = node_file(&[entry(&web, 3), entry(&db, 5)]);
        let mut agent = Agent::start(&lab, node.namespace(), &file);
        for (pod, server, tokens) in [(&web, &servers[0], 3), (&db, &servers[1], 5)] {
            let status = agent.workload(pod.name());
            assert_eq!(status.attached.as_deref(), Some("clsact"), "{:?}", status.detail);
            let filters = weirs(pod.namespace(), pod.interface());
            assert_eq!(names(&filters), ["weir_own_in", "weir_own_out"]);
            for address in addresses(pod) {
                ask(client.namespace(), SocketAddr::new(address, WEB), 10);
            }
            assert_eq!(server.accepted(WEB), tokens);
            assert_eq!(agent.limit(pod.name()).admitted, tokens);
        }

        // A pod that is no longer in the file is left alone, by this agent ...
        agent.rewrite(&node_file(&[entry(&web, 3)]));
        agent::eventually(
            "the filters are gone",
            || weirs(db.namespace(), db.interface()),
            |filters| filters.is_empty(),
        );
        // ... and by the next one, if the file changed while none ran.
        agent.kill();
        agent.write(&node_file(&[entry(&db, 5)]));
        agent.restart();
        assert_eq!(weirs(web.namespace(), web.interface()), []);
        assert_eq!(weirs(db.namespace(), db.interface()).len(), 2);

        assert!(agent.terminate().success());
        assert!(agent.uninstall().status.success());
        assert_eq!(weirs(db.namespace(), db.interface()), []);
    });
}

/// Somebody else's filter may already have our place and number.
#[test]
fn a_filter_in_weirs_place_is_left_alone_and_runs_after_weirs() {
    inside!(|| {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let (web, client) = (node.pod("web").unwrap(), node.client("client").unwrap());
        let (end, inside) = (node.namespace(), web.node_interface());
        let other = Foreign::tc_ok("other").unwrap();
        let pin = lab.pins().with_file_name("other");
        other.pin(&pin).unwrap();
        let mut attached = SchedClassifier::from_pin(&pin).unwrap();
        end.run(|| {
            aya::programs::tc::qdisc_add_clsact(&inside).unwrap();
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                let options =
                    NlOptions { priority: FIRST, handle: TcHandle::new(0, 1), classid: None };
                let options = TcAttachOptions::Netlink(options);
                let id = attached.attach_with_options(&inside, hook, options).unwrap();
                std::mem::forget(attached.take_link(id).unwrap());
            }
        })
        .unwrap();
        let server = serve(&web, &[WEB]);
        let file = Side::Host.node_file(&web, &["connections.80: 3 per 60s"]);
        let agent = Agent::start(&lab, end, &file);
        let status = agent.workload("web");
        assert_eq!(status.condition, "enforced", "{:?}", status.detail);
        let at = SocketAddr::new(web.ipv4().into(), WEB);
        assert_eq!(ask(client.namespace(), at, 5).codes(), "ok:3 refused:2");
        assert_eq!(server.accepted(WEB), 3);
        assert!(other.seen() > 0);
        assert_eq!(others(end, &inside), ["other", "other"]);
    });
}

/// The program of uplinks, in the stack and in the driver.
#[test]
fn uplinks_refuse_early() {
    inside!(|| {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let (web, client) = (node.pod("web").unwrap(), node.client("client").unwrap());
        let server = serve(&web, &[WEB]);
        let uplink = client.node_interface();
        let workloads = Side::Host.node_file(&web, &["connections.80: 3 per 60s"]);
        let file = |mode| format!("uplinks: [{{ interface: {uplink}, xdp: {mode} }}]\n{workloads}");
        let agent = Agent::start(&lab, node.namespace(), &file("generic"));
        assert_eq!(agent.uplink(&uplink).attached.as_deref(), Some("xdp-generic"));
        let ask = |address| ask(client.namespace(), SocketAddr::new(address, WEB), 10).codes();
        let codes: Vec<_> = addresses(&web).into_iter().map(ask).collect();
        assert_eq!(codes, ["ok:3 refused:7", "refused:10"]);
        assert_eq!(server.accepted(WEB), 3);
        assert_eq!(agent.decisions("web", "xdp ingress", "reset connection_rate"), 17);

        // Their answers reach clients over real interfaces, not through a veth.
        agent.rewrite(&file("native"));
        agent::eventually(
            "the driver runs the program",
            || agent.uplink(&uplink),
            |uplink| uplink.attached.as_deref() == Some("xdp"),
        );
        // The place is taken, and not by a program in the stack (EEXIST).
        let other = Foreign::xdp_pass("other").unwrap();
        let refused = other.attach_xdp(node.namespace(), &uplink).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
    });
}

/// Weir's filters at an interface, ingress first.
fn weirs(namespace: &Namespace, interface: &str) -> Vec<Filter> {
    let mut filters = all(namespace, interface);
    filters.retain(|filter| filter.name.starts_with("weir_"));
    filters
}

/// The names of all other filters there.
fn others(namespace: &Namespace, interface: &str) -> Vec<String> {
    let mut filters = all(namespace, interface);
    filters.retain(|filter| !filter.name.starts_with("weir_"));
    names(&filters)
}

fn all(namespace: &Namespace, interface: &str) -> Vec<Filter> {
    let at = |hook| filters_at(namespace, interface, hook).unwrap();
    [at(Hook::Ingress), at(Hook::Egress)].concat()
}

fn names(filters: &[Filter]) -> Vec<String> {
    filters.iter().map(|filter| filter.name.clone()).collect()
}
