//! Limits of bytes and packets: what passes, in bytes on the wire, next to time.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use weir::{
    datapath::VolumeCounts,
    lab::{Host, Lab, choose_queue},
};
use weir_tests::{
    agent::{Agent, eventually},
    site::{Side, addresses, node_file},
    traffic::{self, Bulk, Flood, Traffic},
};

/// Bytes of the headers of a UDP packet on the wire.
fn udp_headers(address: IpAddr) -> u64 {
    14 + 8 + if address.is_ipv4() { 20 } else { 40 }
}

fn volume(agent: &Agent<'_>, workload: &str, limit: &str) -> VolumeCounts {
    let limits = agent.workload(workload).limits;
    let found = limits.into_iter().find(|found| found.limit == limit);
    found.expect("the limit is there").volume.expect("it counts bytes")
}

fn since(now: VolumeCounts, before: VolumeCounts) -> (u64, u64) {
    let passed = now.passed_bytes - before.passed_bytes;
    (passed, now.dropped_bytes - before.dropped_bytes)
}

/// As fast as four times a limit.
fn flood(payload: usize, bytes_per_second: f64) -> Flood {
    let pace = 4.0 * bytes_per_second * payload as f64 / (payload + 62) as f64;
    Flood { payload, time: Duration::from_secs(2), pace }
}

/// Never more than rate × time and a burst and a packet; and as much as that, when more is offered.
fn assert_rate(passed: u64, traffic: Traffic, rate: f64, burst: f64, row: &str) {
    let due = rate * traffic.seconds;
    let most = due + burst + 1514.0;
    assert!((passed as f64) <= most, "{row}: {passed} of {most} bytes, {traffic:?}");
    assert!((passed as f64) >= 0.95 * due, "{row}: {passed} of {due} bytes, {traffic:?}");
}

on_each_side! {
    udp_gets_its_rate_in_each_direction
    tcp_with_segments_larger_than_the_burst_goes_on
}

/// Both families, large and tiny packets: the rate, whatever is offered.
fn udp_gets_its_rate_in_each_direction(lab: &Lab, side: Side) {
    const RATE: f64 = 1_250_000.0;
    const BURST: f64 = 312_500.0;
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["ingress-bandwidth: 10Mbit/s", "egress-bandwidth: 10Mbit/s"];
    let agent = Agent::start(lab, side.agent_in(&node, &web), &side.node_file(&web, &policy));
    assert_eq!(agent.workload("web").condition, "enforced");

    let ways: [(&str, &Host, &Host); 2] =
        [("ingress-bandwidth", &client, &web), ("egress-bandwidth", &web, &client)];
    for (limit, from, to) in ways {
        for (address, payload) in addresses(to).into_iter().zip([1400, 30]) {
            let row = format!("{limit}, {payload} bytes to {address}");
            let before = volume(&agent, "web", limit);
            let traffic = traffic::udp(from, to, address, flood(payload, RATE));
            let (passed, dropped) = since(volume(&agent, "web", limit), before);
            assert_rate(passed, traffic, RATE, BURST, &row);
            assert!(dropped > passed, "{row}: {dropped} dropped");
            // What arrived had passed, headers and all. The receiver's own buffer loses some.
            let frame = payload as u64 + udp_headers(address);
            let arrived = traffic.received / payload as u64 * frame;
            assert!(arrived <= passed, "{row}: {passed} passed, {arrived} arrived");
            assert!(arrived > passed / 10 * 8, "{row}: {passed} passed, {arrived} arrived");
            let offered = traffic.packets * frame;
            let seen = passed + dropped;
            assert!(seen.abs_diff(offered) < 2000, "{row}: {seen} seen, {offered} offered");
        }
    }
}

/// TCP with segments that are far larger than the burst: it makes progress, and is never faster.
fn tcp_with_segments_larger_than_the_burst_goes_on(lab: &Lab, side: Side) {
    const RATE: f64 = 12_500_000.0;
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["egress-bandwidth: 100Mbit/s burst=10kB"];
    let agent = Agent::start(lab, side.agent_in(&node, &web), &side.node_file(&web, &policy));
    for address in addresses(&client) {
        let before = volume(&agent, "web", "egress-bandwidth");
        let time = Duration::from_secs(2);
        let bulk = Bulk { port: 9, connections: 1, time, congestion: "cubic" };
        let traffic = traffic::tcp(&web, &client, address, bulk)[0];
        let (passed, _) = since(volume(&agent, "web", "egress-bandwidth"), before);
        // One packet of 64 KiB may be owed, with the headers of its segments.
        let most = RATE * traffic.seconds + 10_000.0 + 70_000.0;
        assert!((passed as f64) <= most, "{address}: {passed} of {most}, {traffic:?}");
        // More than a burst and a packet: what was owed was repaid. (Dropping is all that there is here,
        // and TCP over so short a way knows no slower pace than one timeout after the other.)
        assert!(passed > 10_000 + 65_536, "{address}: {passed} of {most}, {traffic:?}");
        assert!(passed >= traffic.received, "{address}: {passed}, {traffic:?}");
    }
}

/// Each connection has its own bucket, in each direction; the port is the workload's.
#[test]
fn each_connection_gets_its_own_rate_and_another_port_is_free() {
    const RATE: f64 = 1_250_000.0;
    const BURST: f64 = 300_000.0;
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let key = "connection-bandwidth.9";
    let policy = ["connection-bandwidth.9: 10Mbit/s burst=300kB"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let time = Duration::from_secs(2);
    for address in addresses(&web) {
        let bulk = |port| Bulk { port, connections: 3, time, congestion: "cubic" };
        let before = volume(&agent, "web", key);
        let limited = traffic::tcp(&client, &web, address, bulk(9));
        let (passed, dropped) = since(volume(&agent, "web", key), before);
        for traffic in &limited {
            // The bytes on the wire are some more than the payload, so this is no tighter than due.
            let most = RATE * traffic.seconds + BURST + 70_000.0;
            assert!((traffic.received as f64) <= most, "{address}: {traffic:?} of {most}");
            // Nobody lives off another's bucket: each has its burst at least.
            assert!(traffic.received as f64 > BURST, "{address}: {traffic:?}");
        }
        let received: u64 = limited.iter().map(|traffic| traffic.received).sum();
        assert!(passed > received && dropped > 0, "{address}: {passed} {dropped} {limited:?}");
        // Another port of the workload, and the same port of somebody else, are not the limit's.
        let before = volume(&agent, "web", key);
        let free = traffic::tcp(&client, &web, address, bulk(10));
        assert_eq!(since(volume(&agent, "web", key), before).0, 0);
        let received: u64 = free.iter().map(|traffic| traffic.received).sum();
        assert!(received as f64 > 3.0 * (RATE * 2.0 + BURST), "{address}: {free:?}");
    }
    let other = addresses(&client)[0];
    let before = volume(&agent, "web", key);
    let bulk =
        Bulk { port: 9, connections: 1, time: Duration::from_millis(200), congestion: "cubic" };
    assert!(traffic::tcp(&web, &client, other, bulk)[0].received > 0);
    assert_eq!(since(volume(&agent, "web", key), before).0, 0);
}

/// Small packets of UDP count as packets; each direction has its own bucket.
#[test]
fn packets_are_limited_in_each_direction() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["packets: 1k/s burst=100"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let packets = || volume(&agent, "web", "packets").passed_packets;
    let address = addresses(&web)[0];
    let flood = Flood { payload: 30, time: Duration::from_secs(1), pace: 150_000.0 };
    for (from, to, address) in [(&client, &web, address), (&web, &client, addresses(&client)[0])] {
        let (begin, before) = (Instant::now(), packets());
        let traffic = traffic::udp(from, to, address, flood);
        let passed = (packets() - before) as f64;
        // Between the two looks at the count, with a few packets that find the neighbours.
        let most = 1000.0 * begin.elapsed().as_secs_f64() + 105.0;
        assert!(passed <= most, "{passed} of {most}: {traffic:?}");
        assert!(passed >= 950.0 * traffic.seconds, "{passed}: {traffic:?}");
    }
    assert!(agent.decisions("web", "tc ingress", "drop packet_rate") > 0);
    assert!(agent.decisions("web", "tc egress", "drop packet_rate") > 0);
}

/// What was spent outlives a killed agent, a limit that goes takes its programs along, and an
/// uninstall leaves nothing.
#[test]
fn a_killed_agent_leaves_its_byte_limits_and_an_uninstall_none() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let limited = Side::Host.node_file(&web, &["ingress-bandwidth: 1Mbit/s"]);
    let mut agent = Agent::start(&lab, node.namespace(), &limited);
    let pins = |agent: &Agent<'_>| {
        let links = std::fs::read_dir(agent.layout().join("links")).unwrap();
        let names = links.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with("-bytes")).count()
    };
    assert_eq!(pins(&agent), 2);
    let address = addresses(&web)[0];
    let flood = Flood { payload: 1000, time: Duration::from_secs(1), pace: 1_000_000.0 };
    let most = |traffic: Traffic| 125_000.0 * traffic.seconds + 31_250.0 + 1514.0;
    let bytes = |agent: &Agent<'_>| volume(agent, "web", "ingress-bandwidth").passed_bytes;

    agent.kill();
    let traffic = traffic::udp(&client, &web, address, flood);
    assert!((traffic.received as f64) <= most(traffic), "{traffic:?}");
    assert!(traffic.received > 60_000, "{traffic:?}");
    agent.restart();
    // The counts are the kernel's, and no burst came with the new agent.
    let before = bytes(&agent);
    assert!(before as f64 >= traffic.received as f64, "{before} {traffic:?}");
    assert_eq!(pins(&agent), 2);
    let traffic = traffic::udp(&client, &web, address, flood);
    let passed = (bytes(&agent) - before) as f64;
    assert!(passed <= most(traffic), "{passed}: {traffic:?}");

    agent.rewrite(&Side::Host.node_file(&web, &["connections: 100/s"]));
    eventually("the programs go", || pins(&agent), |pins| *pins == 0);
    let traffic = traffic::udp(&client, &web, address, flood);
    assert!(traffic.received > 500_000, "{traffic:?}");

    agent.rewrite(&limited);
    eventually("the programs come", || pins(&agent), |pins| *pins == 2);
    agent.terminate();
    let output = agent.uninstall();
    assert!(output.status.success(), "{output:?}");
    let traffic = traffic::udp(&client, &web, address, flood);
    assert!(traffic.received > 500_000, "{traffic:?}");
}

/// A queue that somebody chose stays, and a kernel without `fq` says so; meanwhile the limit drops.
#[test]
fn pacing_that_cannot_be_is_explained_and_nobodys_queue_is_replaced() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (web, db) = (node.pod("web").unwrap(), node.pod("db").unwrap());
    let policy = ["policy: { ingress-bandwidth: 1Mbit/s }", "pace: fq"];
    let entries = [Side::Host.entry(&web, &policy), Side::Pod.entry(&db, &policy)];
    choose_queue(node.namespace(), &web.node_interface(), "pfifo").unwrap();
    let agent = Agent::start(&lab, node.namespace(), &node_file(&entries));
    let pace = |name: &str| agent.workload(name).pace.expect("it has byte limits");
    let chosen = pace("web");
    assert_eq!((chosen.by, chosen.direction.as_str()), (None, "ingress"));
    let left =
        format!("{} has `pfifo` of somebody else, which is left alone", web.node_interface());
    assert_eq!(chosen.detail, Some(left));
    let own = pace("db");
    assert_eq!(own.direction, "egress");
    match own.by.as_deref() {
        Some("own fq") => assert_eq!(own.detail, None),
        _ => assert_eq!(own.detail.unwrap(), "this kernel has no `fq` (CONFIG_NET_SCH_FQ)"),
    }
    for name in ["web", "db"] {
        assert_eq!(agent.workload(name).condition, "enforced");
    }
}

/// What goes from one pod of a node to another is limited once where it leaves and once where it arrives,
/// and it makes no difference on which side of the pods' interfaces.
#[test]
fn between_two_pods_each_side_limits_once_wherever_it_is_attached() {
    const RATE: f64 = 2_500_000.0;
    let mut shares = Vec::new();
    for side in [Side::Host, Side::Pod] {
        let lab = lab!();
        let node = lab.node("node").unwrap();
        let (app, db) = (node.pod("app").unwrap(), node.pod("db").unwrap());
        let entry = |pod: &Host, line: &str| side.entry(pod, &["policy:", line]);
        let file = node_file(&[
            entry(&app, "  egress-bandwidth: 20Mbit/s burst=50kB"),
            entry(&db, "  ingress-bandwidth: 10Mbit/s burst=50kB"),
        ]);
        let agent = Agent::start(&lab, node.namespace(), &file);
        for address in addresses(&db) {
            let row = format!("{side:?} {address}");
            let look = || {
                (
                    volume(&agent, "app", "egress-bandwidth"),
                    volume(&agent, "db", "ingress-bandwidth"),
                )
            };
            let before = look();
            let traffic = traffic::udp(&app, &db, address, flood(1000, RATE));
            let after = look();
            let left = since(after.0, before.0);
            let arrived = since(after.1, before.1);
            assert_rate(left.0, traffic, RATE, 50_000.0, &row);
            assert_rate(arrived.0, traffic, RATE / 2.0, 50_000.0, &row);
            // All that left came there once, beside what finds neighbours on either side.
            let there = arrived.0 + arrived.1;
            assert!(there.abs_diff(left.0) < 2000, "{row}: {there} of {}", left.0);
            shares.push([left.0 as f64, arrived.0 as f64].map(|bytes| bytes / traffic.seconds));
        }
    }
    let (host, pod) = shares.split_at(shares.len() / 2);
    for (host, pod) in host.iter().flatten().zip(pod.iter().flatten()) {
        assert!((host / pod - 1.0).abs() < 0.05, "{shares:?}");
    }
}
