//! One connection costs one token, however often its SYN has to be sent.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use weir::{
    lab::Lab,
    load::{Outcome, Plan, Talk},
};
use weir_tests::{
    agent::{Agent, eventually},
    bpf::{Foreign, Hook, Place},
    raw::{Says, Wire, syn},
    site::{Side, addresses, ask, run, serve},
};

on_each_side! {
    a_syn_that_is_sent_seven_times_costs_one_token
    another_sequence_number_is_another_connection
    a_client_that_hears_nothing_pays_once
}

/// A client that hears nothing sends its SYN again, and again. Here it does so six times, with the
/// pauses shortened.
fn a_syn_that_is_sent_seven_times_costs_one_token(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80, 81]);
    let file = side.node_file(&web, &["connections.80: 2 per 60s"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let wire = Wire::open_alone(&client).unwrap();
    let mut free = 0;
    for (from, to) in addresses(&client).into_iter().zip(addresses(&web)) {
        let packet = syn(SocketAddr::new(from, 20_001), SocketAddr::new(to, 80), 4711);
        wire.send(&packet);
        for exponent in 0..6 {
            thread::sleep(Duration::from_millis(4 << exponent));
            wire.send(&packet);
        }
        free += 6;
        let last = SocketAddr::new(to, 81);
        wire.send(&syn(SocketAddr::new(from, 20_001), last, 4711));
        let answers = wire.answers_until(last);
        // The server repeats its answer less often than it is asked.
        assert!(!answers.is_empty());
        assert!(answers.iter().all(|answer| answer.says == Says::SynAck), "{answers:#?}");
        assert_eq!(agent.limit("web").admitted, free / 6);
        assert_eq!(agent.decisions("web", "tc ingress", "pass retransmission"), free);
    }
    assert_eq!(agent.limit("web").refused, 0);
}

/// Only the same SYN is free: same addresses, same ports, same sequence number.
fn another_sequence_number_is_another_connection(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let file = side.node_file(&web, &["connections.80: 2 per 60s"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let wire = Wire::open_alone(&client).unwrap();
    let from = SocketAddr::new(client.ipv4().into(), 20_001);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    for isn in [1, 2, 3, 4] {
        wire.send(&syn(from, to, isn));
    }
    wire.send(&syn(SocketAddr::new(from.ip(), 20_002), to, 1));
    // The refused ones are refused again.
    wire.send(&syn(from, to, 3));
    let resets = |answers: &[weir_tests::raw::Answer]| {
        answers.iter().filter(|answer| answer.says == Says::Reset).count()
    };
    let answers = wire.answers(Duration::from_secs(10), |answers| resets(answers) == 4);
    assert_eq!(resets(&answers), 4, "{answers:#?}");
    let limit = agent.limit("web");
    assert_eq!((limit.admitted, limit.refused), (2, 4));
}

/// The same with real clients and their real pauses: what the server says gets lost, so each
/// client sends its SYN again after a second.
fn a_client_that_hears_nothing_pays_once(lab: &Lab, side: Side) {
    const CLIENTS: u64 = 8;
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let file = side.node_file(&web, &["connections.80: 10 per 60s"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let deaf = Foreign::tc_drops_tcp("deaf").unwrap();
    let link =
        deaf.attach(client.namespace(), client.interface(), Hook::Ingress, Place::First).unwrap();
    let plan = Plan::to(SocketAddr::new(web.ipv4().into(), 80)).talk(Talk::Byte);
    let plan = plan.parallel(CLIENTS as usize).attempts(CLIENTS);
    let stats = run(client.namespace(), plan.timeout(Duration::from_millis(2500))).stats;
    assert_eq!(stats.count(Outcome::Timeout), CLIENTS, "{stats}");
    let sent_again = agent.decisions("web", "tc ingress", "pass retransmission");
    assert!(sent_again >= CLIENTS, "{sent_again} SYNs were sent again");
    let limit = agent.limit("web");
    assert_eq!((limit.admitted, limit.refused), (CLIENTS, 0));
    drop(link);
    // What was not spent is still there.
    let to = SocketAddr::new(IpAddr::from(web.ipv4()), 80);
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:2 refused:3");
}

/// A handshake is remembered for as long as its client may try again, then its place is free.
#[test]
fn handshakes_are_forgotten_when_their_time_has_come() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let file = Side::Host.node_file(&web, &["connections.80: 1000/s"]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 50).codes(), "ok:50");
    assert_eq!(agent.status().live_handshakes, 50);
    eventually("handshakes are forgotten", || agent.status().live_handshakes, |live| *live == 0);
}
