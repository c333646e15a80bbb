//! What is open at once: counted exactly, given back by every way in which a connection ends, and
//! by time where one never began.

use std::{
    net::{Shutdown, SocketAddr},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use weir::lab::{Host, Lab};
use weir_tests::{
    agent::{Agent, eventually},
    http::{End, Web, request},
    open::{
        Door, Ending, carries, connect, connect_at_once, drop_when_told, eventually_open,
        is_refused, pairs,
    },
    packet::flag,
    raw::{Answer, Says, Wire, syn},
    site::{Side, addresses, ask, nft, node_file, policy_lines, serve},
};

on_each_side! {
    ten_of_sixty_four_are_open_at_once
    every_end_makes_room_for_the_next
    each_client_has_its_own_number
}

const LIMIT: &str = "max-connections.80";

/// Sixty-four at the same moment, five times in a row: what an end gives back is exactly what was
/// taken.
fn ten_of_sixty_four_are_open_at_once(lab: &Lab, side: Side) {
    const THREADS: usize = 64;
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let door = Door::open(&web, 80);
    let file = side.node_file(&web, &["max-connections.80: 10"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let families = addresses(&web);
    for round in 1..=5 {
        let to = SocketAddr::new(families[round % families.len()], 80);
        let ends = connect_at_once(client.namespace(), to, THREADS);
        assert_eq!(ends.counts(), (10, THREADS - 10), "round {round}, {to}");
        let at_server = door.accept(10);
        eventually_open(&agent, "web", LIMIT, (10, 0));
        drop((ends, at_server));
        eventually_open(&agent, "web", LIMIT, (0, 0));
        let limit = agent.limit("web");
        let rounds = round as u64;
        assert_eq!((limit.admitted, limit.refused), (10 * rounds, 54 * rounds));
        let refused = agent.decisions("web", "tc ingress", "reset max_connections");
        assert_eq!(refused, 54 * rounds);
    }
}

fn every_end_makes_room_for_the_next(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let door = Door::open(&web, 80);
    let file = side.node_file(&web, &["max-connections.80: 1"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let from = client.namespace();
    let accept = || door.accept(1).remove(0);
    for address in addresses(&web) {
        let to = SocketAddr::new(address, 80);
        for ending in Ending::ALL {
            let mut at_client = connect(from, to);
            let mut at_server = accept();
            carries(&mut at_client, &mut at_server);
            assert!(is_refused(from, to), "{to}: there was room before {ending:?}");
            ending.end(at_client, at_server);
            eventually_open(&agent, "web", LIMIT, (0, 0));
        }

        // A connection that one end has closed lives on, and so does its place.
        let (mut at_client, mut at_server) = (connect(from, to), accept());
        at_client.shutdown(Shutdown::Write).unwrap();
        drop_when_told(&mut at_server);
        for _ in 0..3 {
            carries(&mut at_server, &mut at_client);
            assert!(is_refused(from, to), "{to}: half of a connection is one");
        }
        drop((at_server, at_client));
        eventually_open(&agent, "web", LIMIT, (0, 0));
    }
    let endings = (Ending::ALL.len() + 1) * addresses(&web).len();
    assert_eq!(agent.limit("web").admitted, endings as u64);
}

fn each_client_has_its_own_number(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let (greedy, polite) = (node.client("greedy").unwrap(), node.client("polite").unwrap());
    let door = Door::open(&web, 80);
    let file = side.node_file(&web, &["max-connections-per-source.80: 3"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let refused = || agent.decisions("web", "tc ingress", "reset max_connections_per_source");
    for address in addresses(&web) {
        let to = SocketAddr::new(address, 80);
        let before = refused();
        let much = connect_at_once(greedy.namespace(), to, 20);
        assert_eq!(much.counts(), (3, 17), "{to}");
        let little = connect_at_once(polite.namespace(), to, 3);
        assert_eq!(little.counts(), (3, 0), "{to}");
        assert!(is_refused(polite.namespace(), to));
        assert_eq!(refused() - before, 18);
        drop((door.accept(6), much, little));
        // All of it comes back.
        let again = || {
            let ends = connect_at_once(greedy.namespace(), to, 3);
            drop(door.waiting());
            ends.counts()
        };
        eventually("the client may open three again", again, |counts| *counts == (3, 0));
    }
}

/// How many handshakes may be open, and how each way of ending one makes room. The last ones are
/// abandoned, as forged ones always are, with nobody left to look after them but the clock.
#[test]
fn a_handshake_counts_until_it_is_complete_given_up_or_forgotten() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _door = Door::open(&web, 80);
    let file = Side::Host.node_file(&web, &["max-handshakes.80: 3"]);
    let mut agent = Agent::start(&lab, node.namespace(), &file);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let limit = "max-handshakes.80";

    // Who completes its handshake leaves room for the next, however many there were.
    let held = connect_at_once(client.namespace(), to, 1).open;
    for _ in 0..20 {
        connect(client.namespace(), to);
    }
    assert_eq!(agent.limit("web").refused, 0);
    eventually_open(&agent, "web", limit, (21, 0));

    let wire = Wire::open_alone(&client).unwrap();
    let by_hand = ByHand { wire: &wire, client: &client, to };
    let first_epoch = load_epoch();
    let opened = [0, 1, 2].map(|number| by_hand.open(number));
    assert!(opened.iter().all(|answer| answer.says == Says::SynAck), "{opened:#?}");
    eventually_open(&agent, "web", limit, (24, 3));
    assert_eq!(by_hand.open(3).says, Says::Reset);
    assert_eq!(agent.decisions("web", "tc ingress", "reset max_handshakes"), 1);

    // Complete.
    by_hand.say(0, flag::ACK, opened[0].sequence.wrapping_add(1));
    eventually_open(&agent, "web", limit, (24, 2));
    assert_eq!(by_hand.open(4).says, Says::SynAck);
    assert_eq!(by_hand.open(5).says, Says::Reset);
    // Given up.
    by_hand.say(1, flag::RST, 0);
    eventually_open(&agent, "web", limit, (24, 2));
    assert_eq!(by_hand.open(6).says, Says::SynAck);
    assert_eq!(by_hand.open(7).says, Says::Reset);
    let last_epoch = load_epoch();

    // Abandoned: number 2, 4 and 6. An epoch that is not the last one is forgotten as a whole.
    agent.kill();
    for number in 8.. {
        let before = load_epoch();
        let says = by_hand.open(number).says;
        if says == Says::SynAck {
            assert!(load_epoch() >= first_epoch + 2, "forgotten too early");
            break;
        }
        assert_eq!(says, Says::Reset);
        assert!(before < last_epoch + 2, "not forgotten in time");
        std::thread::sleep(Duration::from_millis(100));
    }
    agent.restart();
    let limit = agent.limit_named("web", limit);
    let established = limit.connections.unwrap() - limit.handshakes.unwrap();
    assert_eq!(established, 22, "what is established is not forgotten");
    drop(held);
}

/// The epoch that the kernel counts handshakes by: 2^33 ns of the monotonic clock.
fn load_epoch() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    (now.tv_sec() * 1_000_000_000 + now.tv_nsec()) >> 33
}

/// A client that sends what it is told to and nothing else.
struct ByHand<'a> {
    wire: &'a Wire<'a>,
    client: &'a Host,
    to: SocketAddr,
}

impl ByHand<'_> {
    fn from(&self, number: u16) -> SocketAddr {
        SocketAddr::new(self.client.ipv4().into(), 20_000 + number)
    }

    fn isn(number: u16) -> u32 {
        1_000_000 + u32::from(number)
    }

    /// Sends a SYN and waits for its answer.
    fn open(&self, number: u16) -> Answer {
        let from = self.from(number);
        self.wire.send(&syn(from, self.to, Self::isn(number)));
        let its = |answer: &Answer| answer.to == from && answer.says != Says::Other;
        let answers = self.wire.answers(Duration::from_secs(10), |all| all.iter().any(its));
        let answer = answers.into_iter().find(its);
        answer.unwrap_or_else(|| panic!("no answer to the SYN of {from}"))
    }

    /// The client's next segment.
    fn say(&self, number: u16, flags: u8, acknowledgment: u32) {
        let segment = syn(self.from(number), self.to, Self::isn(number) + 1).with(|segment| {
            (segment.flags, segment.acknowledgment) = (flags, acknowledgment);
            segment.tcp_options.clear();
        });
        self.wire.send(&segment);
    }
}

/// A client that keeps its connection is one connection, whatever it asks on it. Envoy's
/// `max_requests` and `max_requests_per_connection` have no counterpart.
#[test]
fn a_connection_with_many_requests_is_one() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let server = Web::start(&web, 80, Duration::ZERO);
    let policy = ["max-connections.80: 1", "connections.80: 2 per 720h"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let mut stream = connect(client.namespace(), to);
    for _ in 0..100 {
        assert!(request(&mut stream, false).unwrap().is(200));
    }
    assert!(is_refused(client.namespace(), to));
    assert_eq!((server.connections(), server.requests()), (1, 100));
    assert_eq!(agent.limit_named("web", "max-connections.80").admitted, 1);
    // Without keep-alive each request is a connection: one more, and the rate is spent.
    assert_eq!(request(&mut stream, true).unwrap(), End::Status(200, String::new()));
    drop(stream);
    eventually_open(&agent, "web", LIMIT, (0, 0));
    let asked = || client.namespace().run(|| weir_tests::http::get(to)).unwrap();
    assert!(asked().is(200));
    assert_eq!(asked(), End::Refused);
    assert_eq!(server.requests(), 102);
}

/// Both ends of one connection are workloads of the node: each counts it once.
fn pods_of_one_node(side: Side, lab: &Lab) {
    let node = lab.node("node").unwrap();
    let (one, two) = (node.pod("one").unwrap(), node.pod("two").unwrap());
    let doors = [Door::open(&one, 80), Door::open(&two, 80)];
    let policy = policy_lines(&["max-connections.80: 3", "outbound-connections.80: 20 per 720h"]);
    let policy: Vec<_> = policy.iter().map(String::as_str).collect();
    let file = node_file(&[side.entry(&one, &policy), side.entry(&two, &policy)]);
    let agent = Agent::start(lab, node.namespace(), &file);
    let to = |host: &Host| SocketAddr::new(host.ipv4().into(), 80);
    let there = connect_at_once(one.namespace(), to(&two), 12);
    assert_eq!(there.counts(), (3, 9));
    eventually_open(&agent, "two", LIMIT, (3, 0));
    eventually_open(&agent, "one", LIMIT, (0, 0));
    let back = connect_at_once(two.namespace(), to(&one), 5);
    assert_eq!(back.counts(), (3, 2));
    eventually_open(&agent, "one", LIMIT, (3, 0));
    eventually_open(&agent, "two", LIMIT, (3, 0));
    // Who opened them paid for them all, those that the other end refused among them.
    let outbound = |name| agent.limit_named(name, "outbound-connections.80").admitted;
    assert_eq!((outbound("one"), outbound("two")), (12, 5));
    drop((there, back, doors.map(|door| door.accept(3))));
    eventually_open(&agent, "one", LIMIT, (0, 0));
    eventually_open(&agent, "two", LIMIT, (0, 0));
}

#[test]
fn a_connection_between_pods_of_one_node_counts_once_at_each_on_the_host_side() {
    pods_of_one_node(Side::Host, &lab!());
}

#[test]
fn a_connection_between_pods_of_one_node_counts_once_at_each_inside_the_pods() {
    pods_of_one_node(Side::Pod, &lab!());
}

/// Clients dial an address that is translated to the pod's on the way.
fn through_a_service(test: &str, side: Side, lab: &Lab) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let rules = format!(
        "table ip service {{ chain pre {{ type nat hook prerouting priority dstnat
           ip daddr 10.96.0.1 tcp dport 8000 dnat to {}:80
         }}\n}}\n",
        web.ipv4()
    );
    if !nft(test, node.namespace(), &rules) {
        return;
    }
    let door = Door::open(&web, 80);
    let file = side.node_file(&web, &["max-connections.80: 10"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let to = SocketAddr::from(([10, 96, 0, 1], 8000));
    for round in 1..=2 {
        let ends = connect_at_once(client.namespace(), to, 64);
        assert_eq!(ends.counts(), (10, 54));
        // The pod's own address is another way to the same limit.
        let direct = SocketAddr::new(web.ipv4().into(), 80);
        assert!(is_refused(client.namespace(), direct));
        let at_server = door.accept(10);
        eventually_open(&agent, "web", LIMIT, (10, 0));
        for (client, server) in pairs(ends.open, at_server) {
            Ending::ALL[round].end(client, server);
        }
        eventually_open(&agent, "web", LIMIT, (0, 0));
    }
    assert_eq!(agent.limit("web").refused, 2 * 55);
}

#[test]
fn a_service_address_leads_to_the_same_limit_on_the_host_side() {
    let test = "connections::a_service_address_leads_to_the_same_limit_on_the_host_side";
    through_a_service(test, Side::Host, &lab!());
}

#[test]
fn a_service_address_leads_to_the_same_limit_inside_the_pod() {
    let test = "connections::a_service_address_leads_to_the_same_limit_inside_the_pod";
    through_a_service(test, Side::Pod, &lab!());
}

/// Nobody needs to live for a count to be right: programs count, and the next agent reads it.
#[test]
fn counts_go_on_without_an_agent() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let door = Door::open(&web, 80);
    let file = Side::Host.node_file(&web, &["max-connections.80: 10"]);
    let mut agent = Agent::start(&lab, node.namespace(), &file);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let ends = connect_at_once(client.namespace(), to, 20);
    assert_eq!(ends.counts(), (10, 10));
    let mut open = ends.open;
    let mut at_server = door.accept(10);
    agent.kill();
    // Which connection of the server's belongs to which of the client's does not matter: all six
    // that both ends closed by themselves are over, and no others.
    open.truncate(4);
    let kept: Vec<_> = open.iter().map(|stream| stream.local_addr().unwrap()).collect();
    at_server.retain(|stream| kept.contains(&stream.peer_addr().unwrap()));
    assert_eq!(at_server.len(), 4);
    let room = || {
        let ends = connect_at_once(client.namespace(), to, 20);
        let counts = ends.counts();
        drop((door.accept(counts.0), ends));
        counts
    };
    eventually("six get in", room, |counts| *counts == (6, 14));
    agent.restart();
    eventually_open(&agent, "web", LIMIT, (4, 0));
    drop((open, at_server));
    eventually_open(&agent, "web", LIMIT, (0, 0));
}

/// In shadow the count is kept and nobody is refused.
#[test]
fn in_shadow_connections_are_counted_and_not_refused() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[81]);
    let door = Door::open(&web, 80);
    let file = Side::Host.node_file(&web, &["max-connections.80: 2 shadow"]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    let to = |port| SocketAddr::new(web.ipv4().into(), port);
    let ends = connect_at_once(client.namespace(), to(80), 10);
    assert_eq!(ends.counts(), (10, 0));
    assert_eq!(ask(client.namespace(), to(81), 5).codes(), "ok:5");
    assert_eq!(agent.limit("web").shadowed, 8);
    assert_eq!(agent.decisions("web", "tc ingress", "shadow max_connections"), 8);
    drop(door.accept(10));
}
