//! Breakers: what trips them, what they refuse and how soon, how they come back, and what is no
//! evidence.
//!
//! Whether an attempt reached the server is asked of the server's own stack: a closed port answers
//! each with a RST, which it counts, and a refusal by Weir never gets there.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{Backlog, listen};
use weir::{
    lab::{Host, Lab, Namespace},
    load::{Plan, Server, Talk},
};
use weir_tests::{
    agent::{Agent, eventually},
    bpf::{Foreign, Hook, Link, Place},
    open::{Door, abort, connect, connect_at_once, connect_within, is_refused},
    packet::{Packet, flag},
    raw::{Arrivals, Says, Wire, syn},
    site::{
        Side, addresses, ask, ask_in_vain, nft, node_file, policy_lines, run, serve, stack_counter,
    },
};

on_each_side! {
    a_closed_port_trips_it_and_an_open_one_closes_it
    silence_trips_it
    only_its_probes_get_through_when_it_is_half_open
    what_a_workload_opens_is_broken_off_for_one_upstream_alone
    of_a_services_endpoints_only_so_many_are_ejected
}

/// RSTs that a namespace's stack has sent.
fn resets_of(namespace: &Namespace) -> u64 {
    stack_counter(namespace, "Tcp", "OutRsts")
}

/// Changes of a workload's breakers: tripped, half-opened, reopened, closed.
fn changes(agent: &Agent<'_>, workload: &str, hook: &str) -> [u64; 4] {
    ["tripped", "half_opened", "reopened", "closed"]
        .map(|edge| agent.decisions(workload, hook, &format!("note breaker_{edge}")))
}

/// Waits until a breaker has been open for as long as it is to be: the next connection tries.
fn until_it_may_be_tried(agent: &Agent<'_>, workload: &str, breaker: &str) {
    let look = || agent.limit_named(workload, breaker).breaker.expect("a breaker");
    eventually("its time is over", look, |now| now.state == "open" && now.open_seconds <= 0.0);
}

/// Lets no SYN reach the host's stack, nor anything else of TCP.
fn silence(host: &Host) -> Link {
    let deaf = Foreign::tc_drops_tcp("deaf").unwrap();
    deaf.attach(host.namespace(), host.interface(), Hook::Ingress, Place::Last).unwrap()
}

fn a_closed_port_trips_it_and_an_open_one_closes_it(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let file = side.node_file(&web, &["breaker.80: errors=3 ejection=2s probes=2"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let from = client.namespace();
    let to = |place: usize| {
        let all = addresses(&web);
        SocketAddr::new(all[place % all.len()], 80)
    };
    let count = |name| stack_counter(from, "Tcp", name);
    let before = ["RetransSegs", "InErrs", "InCsumErrors"].map(count);

    // Three failures in a row, whatever their address family; the server hears of no other.
    let tripped = Instant::now();
    for place in 0..3 {
        assert!(is_refused(from, to(place)));
    }
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);
    let ends = connect_at_once(from, to(0), 32);
    assert_eq!(ends.counts(), (0, 32));
    println!("{side:?}: of 32 at once the last knew after {:?}", ends.longest);
    let one = run(from, Plan::to(to(0)).attempts(20)).stats;
    assert_eq!(one.codes(), "refused:20");
    let soon = one.refusal().mean().unwrap();
    println!("{side:?}: one after the other they knew after {soon:?}");
    assert_eq!(resets_of(web.namespace()), 3);
    assert_eq!(agent.decisions("web", "tc ingress", "reset breaker_open"), 52);
    // Each at its first SYN, and by a segment that its stack believes.
    assert_eq!(["RetransSegs", "InErrs", "InCsumErrors"].map(count), before);

    let server = serve(&web, &[80]);
    let first = eventually(
        "somebody gets in again",
        || (is_refused(from, to(0)), Instant::now()),
        |(refused, _)| !refused,
    );
    assert!(first.1 - tripped >= Duration::from_secs(2), "the ejection was too short");
    assert_eq!(ask(from, to(1), 10).codes(), "ok:10");
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 1, 0, 1]);
    assert_eq!(resets_of(web.namespace()), 3);
    assert_eq!(server.accepted(80), 11);
}

/// By the kernel's own stamps: what reaches the server after the breaker has tripped was on its way past
/// the breaker before, and there is at most one such packet for each other CPU.
#[test]
fn no_syn_passes_after_the_trip() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let file = Side::Host.node_file(&web, &["breaker.80: errors=25 ejection=60s"]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    let arrivals = Arrivals::listen(&web).unwrap();
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let refused = |attempts| run(client.namespace(), Plan::to(to).parallel(8).attempts(attempts));
    assert_eq!(refused(100).stats.codes(), "refused:100");
    // Before so many others were refused that nobody remembers.
    let tripped = eventually(
        "the agent has heard of it",
        || {
            let refusals = agent.explain("web").refusals;
            refusals.iter().find(|it| it.reason == "breaker_tripped").map(|it| it.time)
        },
        Option::is_some,
    );
    assert_eq!(refused(1000).stats.codes(), "refused:1000");
    let syns = arrivals.syns();
    let (before, after): (Vec<f64>, Vec<f64>) =
        syns.iter().copied().partition(|came| Some(*came) <= tripped);
    assert!(before.len() >= 25, "{} SYNs, tripped at {tripped:?}: {syns:?}", syns.len());
    let others = thread::available_parallelism().unwrap().get() - 1;
    assert!(after.len() <= others, "{after:?} came after {tripped:?}");
    assert_eq!(resets_of(web.namespace()), syns.len() as u64);
}

/// Without an answer for `connect-timeout` an attempt has failed. Who comes next notices.
fn silence_trips_it(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=3 ejection=60s connect-timeout=300ms"];
    let agent = Agent::start(lab, side.agent_in(&node, &web), &side.node_file(&web, &policy));
    let _deaf = silence(&web);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let begin = Instant::now();
    let ends = connect_within(client.namespace(), to, 3, Duration::from_millis(100));
    assert_eq!(ends.others.len(), 3, "{ends:?}");
    assert_eq!(changes(&agent, "web", "tc ingress"), [0; 4]);
    let refused =
        || connect_within(client.namespace(), to, 1, Duration::from_millis(50)).refused == 1;
    eventually("the breaker is open", refused, |refused| *refused);
    println!("{side:?}: three unanswered for 300 ms, refused after {:?}", begin.elapsed());
    assert!(begin.elapsed() >= Duration::from_millis(300), "no time-out was over yet");
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);
    assert_eq!(connect_at_once(client.namespace(), to, 20).counts(), (0, 20));
}

/// Exactly as many as its probes, of many that come at once; and when they fail it stays open for
/// longer.
fn only_its_probes_get_through_when_it_is_half_open(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=1 ejection=1s probes=2 connect-timeout=2s interval=1h"];
    let agent = Agent::start(lab, side.agent_in(&node, &web), &side.node_file(&web, &policy));
    let from = client.namespace();
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert!(is_refused(from, to));
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);

    // Probes that hear nothing stay out.
    let deaf = silence(&web);
    until_it_may_be_tried(&agent, "web", "breaker.80");
    let passed = || agent.decisions("web", "tc ingress", "pass admitted");
    let before = passed();
    let ends = connect_within(from, to, 32, Duration::from_millis(500));
    assert_eq!((ends.refused, ends.others.len()), (30, 2), "{ends:?}");
    assert_eq!(passed() - before, 2);
    assert_eq!(agent.decisions("web", "tc ingress", "reset breaker_probing"), 30);
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 1, 0, 0]);

    // Without an answer they have failed: open again, and for twice as long.
    let ask = || {
        let ends = connect_within(from, to, 1, Duration::from_millis(50));
        (ends.refused, changes(&agent, "web", "tc ingress"))
    };
    let mut earliest = Instant::now();
    loop {
        let begin = Instant::now();
        if ask().1[2] == 1 {
            break;
        }
        earliest = begin;
        assert!(earliest.elapsed() < Duration::from_secs(30));
    }
    drop(deaf);
    let server = serve(&web, &[80]);
    let last = eventually("it is tried again", ask, |(_, changes)| changes[1] == 2);
    let open = earliest.elapsed();
    println!("{side:?}: open for {open:?} the second time");
    assert!(open >= Duration::from_secs(2), "{open:?}");
    assert_eq!(last.0, 0);
    // One probe succeeded; a second one closes it.
    assert_eq!(run(from, Plan::to(to).talk(Talk::Byte).attempts(5)).stats.codes(), "ok:5");
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 2, 1, 1]);
    assert_eq!(server.accepted(80), 6);
}

/// Each destination has a breaker of its own, and other ports there are not its matter.
fn what_a_workload_opens_is_broken_off_for_one_upstream_alone(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let app = node.pod("app").unwrap();
    let (one, two) = (node.client("one").unwrap(), node.client("two").unwrap());
    let _servers = (serve(&one, &[80]), serve(&two, &[3306]));
    let line = format!(
        "outbound-breaker.3306: errors=2 ejection=60s to={}; errors=2 ejection=60s to={}",
        one.ipv4(),
        two.ipv4()
    );
    let agent = Agent::start(lab, side.agent_in(&node, &app), &side.node_file(&app, &[&line]));
    let to = |host: &Host, port| SocketAddr::new(host.ipv4().into(), port);
    assert_eq!(ask(app.namespace(), to(&one, 3306), 20).codes(), "refused:20");
    assert_eq!(resets_of(one.namespace()), 2);
    assert_eq!(agent.refused_calls("app", "reset breaker_open"), 18);
    assert_eq!(changes(&agent, "app", "tc egress"), [1, 0, 0, 0]);
    assert_eq!(ask(app.namespace(), to(&two, 3306), 20).codes(), "ok:20");
    assert_eq!(ask(app.namespace(), to(&one, 80), 20).codes(), "ok:20");
}

/// Each endpoint of a service has a breaker of its own, and only so many refuse at once: the first
/// that were ejected. The kernel sees to that alone.
fn of_a_services_endpoints_only_so_many_are_ejected(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let app = node.pod("app").unwrap();
    let endpoints = ["one", "two", "three", "four"].map(|name| node.client(name).unwrap());
    let addresses = endpoints.each_ref().map(|host| host.ipv4().to_string()).join(", ");
    let policy = ["outbound-breaker.3306: errors=2 ejection=60s max-ejected=50% to=service/db"];
    let file = format!("services: {{ db: [{addresses}] }}\n{}", side.node_file(&app, &policy));
    let mut agent = Agent::start(lab, side.agent_in(&node, &app), &file);
    assert_eq!(agent.status().problems, [] as [String; 0]);
    let to = |place: usize| SocketAddr::new(endpoints[place].ipv4().into(), 3306);
    let heard = |place: usize| resets_of(endpoints[place].namespace());
    agent.kill();

    // Those that come first are ejected, whichever they are; they hear of two attempts each.
    for place in [2, 1] {
        assert_eq!(ask(app.namespace(), to(place), 10).codes(), "refused:10");
        assert_eq!(heard(place), 2, "endpoint {place}");
        // Of those that are ejected within one tick of 2^20 ns any may be the first.
        thread::sleep(Duration::from_millis(20));
    }
    // The others would be too, and refuse by themselves.
    for place in [0, 3] {
        assert_eq!(ask(app.namespace(), to(place), 10).codes(), "refused:10");
        assert_eq!(heard(place), 10, "endpoint {place}");
    }
    // That changes nothing for the first two.
    assert_eq!(ask(app.namespace(), to(2), 5).codes(), "refused:5");
    assert_eq!(ask(app.namespace(), to(1), 5).codes(), "refused:5");
    assert_eq!((heard(2), heard(1)), (2, 2));

    agent.restart();
    assert_eq!(changes(&agent, "app", "tc egress"), [4, 0, 0, 0]);
    assert_eq!(agent.refused_calls("app", "reset breaker_open"), 8 + 8 + 10);
    assert_eq!(agent.decisions("app", "tc egress", "shadow ejection_spared"), 8 + 8);
    // One that works again gets all who come, ejected or not.
    let _server = serve(&endpoints[0], &[3306]);
    assert_eq!(ask(app.namespace(), to(0), 10).codes(), "ok:10");
    assert_eq!(agent.decisions("app", "tc egress", "shadow ejection_spared"), 8 + 8 + 10);
}

/// `half-open=off`: when its time is over it closes, and everybody gets in at once.
#[test]
fn without_a_half_open_state_all_get_in_when_its_time_is_over() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=1 ejection=1s half-open=off"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 10).codes(), "refused:10");
    assert_eq!(resets_of(web.namespace()), 1);
    let server = serve(&web, &[80]);
    assert!(is_refused(client.namespace(), to));
    until_it_may_be_tried(&agent, "web", "breaker.80");
    assert_eq!(connect_at_once(client.namespace(), to, 32).counts(), (32, 0));
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 1]);
    eventually("all were accepted", || server.accepted(80), |accepted| *accepted == 32);
}

/// The share of failures counts from so many verdicts on, and not before.
#[test]
fn a_share_of_failures_trips_it_once_there_are_enough_verdicts() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    // A window that no test outlives.
    let policy = ["breaker.80: error-ratio=50% min-volume=20 interval=24h ejection=60s"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let server = serve(&web, &[80]);
    assert_eq!(ask(client.namespace(), to, 10).codes(), "ok:10");
    drop(server);
    // Nine of nineteen, then ten of twenty; what comes then is refused.
    assert_eq!(ask(client.namespace(), to, 9).codes(), "refused:9");
    assert_eq!(changes(&agent, "web", "tc ingress"), [0; 4]);
    let before = resets_of(web.namespace());
    assert_eq!(ask(client.namespace(), to, 10).codes(), "refused:10");
    assert_eq!(resets_of(web.namespace()) - before, 1);
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);
}

/// Below the share nothing trips, however many fail.
#[test]
fn failures_below_the_share_trip_nothing() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: error-ratio=50% min-volume=5 interval=24h ejection=60s"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let server = serve(&web, &[80]);
    assert_eq!(ask(client.namespace(), to, 30).codes(), "ok:30");
    drop(server);
    assert_eq!(ask(client.namespace(), to, 29).codes(), "refused:29");
    assert_eq!(agent.decisions("web", "tc ingress", "pass admitted"), 59);
    assert_eq!(changes(&agent, "web", "tc ingress"), [0; 4]);
}

/// A server that accepts nothing: its stack answers until the queue is full, and then no more.
#[test]
fn a_server_whose_queue_is_full_trips_it() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=3 ejection=60s connect-timeout=200ms"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let listener = web.namespace().run(|| TcpListener::bind(to)).unwrap().unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let refused = eventually(
        "the breaker is open",
        || connect_within(client.namespace(), to, 1, Duration::from_millis(60)),
        |ends| ends.refused == 1,
    );
    drop((refused, listener));
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);
}

/// An upstream that no way leads to: the answer is an ICMP message, or none.
#[test]
fn an_upstream_that_no_way_leads_to_trips_it() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let app = node.pod("app").unwrap();
    // Of the block for documentation; the node has no default route.
    let to = SocketAddr::from(([192, 0, 2, 1], 3306));
    let policy = ["outbound-breaker: errors=3 ejection=60s connect-timeout=200ms to=192.0.2.1"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&app, &policy));
    let begin = Instant::now();
    let refused = || connect_within(app.namespace(), to, 1, Duration::from_millis(60)).refused;
    eventually("the breaker is open", refused, |refused| *refused == 1);
    println!("refused after {:?}", begin.elapsed());
    assert_eq!(changes(&agent, "app", "tc egress"), [1, 0, 0, 0]);
}

/// In shadow it trips and comes back, and refuses nobody.
#[test]
fn in_shadow_it_only_counts() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=3 ejection=60s shadow"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 10).codes(), "refused:10");
    // By the server itself, each.
    assert_eq!(resets_of(web.namespace()), 10);
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);
    assert_eq!(agent.decisions("web", "tc ingress", "shadow breaker_open"), 7);
    let _server = serve(&web, &[80]);
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:5");
    let limit = agent.limit("web");
    assert_eq!((limit.refused, limit.shadowed), (0, 12));
}

/// What a server's stack would answer, by hand.
fn answer_to(syn: &Packet, acknowledgment: u32) -> Packet {
    syn.refusal().with(|answer| answer.acknowledgment = acknowledgment)
}

/// One failure would trip it. Nothing here is one.
#[test]
fn what_proves_nothing_trips_nothing() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=1 ejection=60s connect-timeout=10s"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let (ours, theirs) = (Wire::open_alone(&client).unwrap(), Wire::open_alone(&web).unwrap());
    let from = |port| SocketAddr::new(client.ipv4().into(), port);
    let to = |port| SocketAddr::new(web.ipv4().into(), port);
    let passed = || agent.decisions("web", "tc ingress", "pass admitted");
    let sent = |port, isn| {
        let packet = syn(from(port), to(80), isn);
        let before = passed();
        ours.send(&packet);
        eventually("the SYN has passed", passed, |passed| *passed == before + 1);
        packet
    };
    let packet = sent(20_001, 1000);
    // It acknowledges what was never sent: too little, nothing, or far too much.
    for acknowledgment in [1000, 0, 1001 + (1 << 20), 999] {
        theirs.send(&answer_to(&packet, acknowledgment));
    }
    // No acknowledgment at all.
    theirs.send(&answer_to(&packet, 1001).with(|answer| answer.flags = flag::RST));
    // Another client's, another port's.
    theirs.send(&answer_to(&syn(from(20_002), to(80), 1000), 1001));
    theirs.send(&answer_to(&syn(from(20_001), to(81), 1000), 1001));
    // All seven came by the program and out at the client.
    let answers = ours.answers(Duration::from_secs(10), |all| all.len() >= 7);
    assert_eq!(answers.len(), 7, "{answers:#?}");
    assert_eq!(changes(&agent, "web", "tc ingress"), [0; 4]);

    // And the real thing, so that this test can fail.
    theirs.send(&answer_to(&packet, 1001));
    eventually("it trips", || changes(&agent, "web", "tc ingress"), |seen| seen[0] == 1);
    assert!(is_refused(node.namespace(), to(80)));
}

/// Who gives up says nothing of the server, neither before its answer nor after it; who only falls
/// silent leaves the server's silence to count.
#[test]
fn a_client_that_gives_up_is_no_evidence() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=1 ejection=60s connect-timeout=500ms"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let (ours, theirs) = (Wire::open_alone(&client).unwrap(), Wire::open_alone(&web).unwrap());
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let passed = || agent.decisions("web", "tc ingress", "pass admitted");
    let sent = |port| {
        let packet = syn(SocketAddr::new(client.ipv4().into(), port), to, 1000);
        let before = passed();
        ours.send(&packet);
        eventually("the SYN has passed", passed, |passed| *passed == before + 1);
        packet
    };
    let give_up = |packet: &Packet| {
        ours.send(&packet.clone().with(|packet| {
            (packet.flags, packet.sequence) = (flag::RST, packet.sequence + 1);
            packet.tcp_options.clear();
        }));
    };
    // Longer than two time-outs: whoever comes then notices what failed.
    let wait = || thread::sleep(Duration::from_millis(1100));
    for port in 20_001..20_003 {
        give_up(&sent(port));
        wait();
    }
    let answered = sent(20_004);
    theirs.send(&answer_to(&answered, 1001).with(|answer| answer.flags = flag::SYN | flag::ACK));
    let answers = ours.answers(Duration::from_secs(10), |all| !all.is_empty());
    assert_eq!(answers[0].says, Says::SynAck);
    give_up(&answered);
    wait();
    sent(20_005);
    assert_eq!(changes(&agent, "web", "tc ingress"), [0; 4]);
    // The last one was left without an answer.
    wait();
    assert!(is_refused(node.namespace(), to));
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);
}

/// Connects, and waits for the server to reset the connection.
fn cut_short(from: &Namespace, door: &Door, to: SocketAddr) {
    let mut client = connect(from, to);
    door.accept(1).into_iter().for_each(abort);
    let error = client.read(&mut [0]).expect_err("the server resets it");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// A server that answers and then breaks the connection off is as broken as one that refuses it. A
/// client that does so is not the server's fault.
#[test]
fn a_server_that_breaks_off_what_it_accepted_trips_it() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=1 ejection=60s"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let door = Door::open(&web, 80);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    for _ in 0..5 {
        abort(connect(client.namespace(), to));
        drop(door.accept(1));
    }
    assert_eq!(changes(&agent, "web", "tc ingress"), [0; 4]);
    cut_short(client.namespace(), &door, to);
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);
    assert!(is_refused(client.namespace(), to));
}

/// The same with more than one failure in a row.
#[test]
fn a_server_that_breaks_off_all_it_accepted_fails_in_a_row() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=3 ejection=60s"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let door = Door::open(&web, 80);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    for _ in 0..3 {
        cut_short(client.namespace(), &door, to);
    }
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);
}

/// What checks a workload's health is neither evidence nor refused.
#[test]
fn health_probes_are_no_evidence_and_pass_an_open_breaker() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let lines = ["probes: { ports: [8080] }", "policy: { breaker.8080: errors=3 ejection=60s }"];
    let file = node_file(&[Side::Host.entry(&web, &lines)]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    let to = SocketAddr::new(web.ipv4().into(), 8080);
    assert_eq!(ask(node.namespace(), to, 20).codes(), "refused:20");
    assert_eq!(changes(&agent, "web", "tc ingress"), [0; 4]);
    // Clients' failures count, and count alone.
    assert_eq!(ask(client.namespace(), to, 10).codes(), "refused:10");
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 0, 0, 0]);
    assert_eq!(resets_of(web.namespace()), 23);
    // The workload is well again: its probes see that at once, and its clients in a minute. A probe
    // that succeeds closes nothing.
    let server = serve(&web, &[8080]);
    assert_eq!(ask(node.namespace(), to, 20).codes(), "ok:20");
    assert_eq!(ask(client.namespace(), to, 10).codes(), "refused:10");
    assert_eq!(server.accepted(8080), 20);
    assert_eq!(agent.decisions("web", "tc ingress", "pass probe"), 40);
}

/// Behind a service's address the breaker is the service's: it cannot tell a broken endpoint from a
/// good one, and refuses both.
#[test]
fn behind_a_service_address_the_breaker_is_the_services() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let app = node.pod("app").unwrap();
    let (good, broken) = (node.client("good").unwrap(), node.client("broken").unwrap());
    let rules = format!(
        "table ip service {{ chain pre {{ type nat hook prerouting priority dstnat
           ip daddr 10.96.0.1 tcp dport 3306 dnat to numgen inc mod 2 map {{ 0: {}, 1: {} }}
         }}\n}}\n",
        good.ipv4(),
        broken.ipv4()
    );
    let test = "breakers::behind_a_service_address_the_breaker_is_the_services";
    if !nft(test, node.namespace(), &rules) {
        return;
    }
    let server = serve(&good, &[3306]);
    let line = format!(
        "outbound-breaker.3306: errors=1 ejection=60s to=10.96.0.1; errors=1 ejection=60s to={}",
        broken.ipv4()
    );
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&app, &[&line]));
    let service = SocketAddr::from(([10, 96, 0, 1], 3306));
    // The first goes to the good one, the second to the broken one, and none gets any further.
    assert_eq!(ask(app.namespace(), service, 20).codes(), "ok:1 refused:19");
    assert_eq!((server.accepted(3306), resets_of(broken.namespace())), (1, 1));
    // Its own address was never dialled, so its own breaker knows nothing of it.
    let by_endpoint = format!("outbound-breaker.3306 to={}", broken.ipv4());
    let by_endpoint = agent.limit_named("app", &by_endpoint);
    assert_eq!((by_endpoint.admitted, by_endpoint.refused), (0, 0));
    assert_eq!(changes(&agent, "app", "tc egress"), [1, 0, 0, 0]);
    // Under their own addresses both are what they are.
    let to = |host: &Host| SocketAddr::new(host.ipv4().into(), 3306);
    assert_eq!(ask(app.namespace(), to(&good), 5).codes(), "ok:5");
    assert_eq!(ask(app.namespace(), to(&broken), 5).codes(), "refused:5");
    assert_eq!(resets_of(broken.namespace()), 2);
    assert_eq!(changes(&agent, "app", "tc egress"), [2, 0, 0, 0]);
}

/// A refusal is a refusal: that the other end has a limit and no fault is not to be seen in a RST. So
/// a limit there opens an impatient breaker here, until its time is over.
#[test]
fn a_limit_at_the_other_end_counts_as_its_failure() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (app, db) = (node.pod("app").unwrap(), node.pod("db").unwrap());
    let client = node.client("client").unwrap();
    let policy = |line| policy_lines(&[line]);
    let breaker = format!("outbound-breaker.3306: errors=2 ejection=60s to={}", db.ipv4());
    let (breaker, limit) = (policy(&breaker), policy("max-connections.3306: 1"));
    let entry = |host: &Host, lines: &[String]| {
        Side::Host.entry(host, &lines.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let file = node_file(&[entry(&app, &breaker), entry(&db, &limit)]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    let _door = Door::open(&db, 3306);
    let to = SocketAddr::new(db.ipv4().into(), 3306);
    let only = connect(client.namespace(), to);
    assert_eq!(ask(app.namespace(), to, 10).codes(), "refused:10");
    assert_eq!(agent.decisions("db", "tc ingress", "reset max_connections"), 2);
    assert_eq!(agent.refused_calls("app", "reset breaker_open"), 8);
    assert_eq!(changes(&agent, "app", "tc egress"), [1, 0, 0, 0]);
    drop(only);
}

/// From the other end: who dials a service whose only pod is broken is refused by the
/// service's address.
#[test]
fn a_pods_breaker_refuses_through_a_service_address() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let rules = format!(
        "table ip service {{ chain pre {{ type nat hook prerouting priority dstnat
           ip daddr 10.96.0.1 tcp dport 8000 dnat to {}:80
         }}\n}}\n",
        web.ipv4()
    );
    let test = "breakers::a_pods_breaker_refuses_through_a_service_address";
    if !nft(test, node.namespace(), &rules) {
        return;
    }
    let policy = ["breaker.80: errors=2 ejection=60s"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let service = SocketAddr::from(([10, 96, 0, 1], 8000));
    assert_eq!(ask(client.namespace(), service, 12).codes(), "refused:12");
    assert_eq!(resets_of(web.namespace()), 2);
    assert_eq!(stack_counter(client.namespace(), "Tcp", "RetransSegs"), 0);
    assert_eq!(agent.decisions("web", "tc ingress", "reset breaker_open"), 10);
}

/// A breaker needs nobody: it trips, refuses and comes back with the agent dead, and the next agent
/// finds what it did.
#[test]
fn it_works_without_an_agent() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let policy = ["breaker.80: errors=3 ejection=1s probes=1"];
    let mut agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    agent.kill();
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 10).codes(), "refused:10");
    assert_eq!(resets_of(web.namespace()), 3);
    let server: Server = serve(&web, &[80]);
    let refused = || is_refused(client.namespace(), to);
    eventually("it closes again", refused, |refused| !refused);
    assert_eq!(ask_in_vain(client.namespace(), to, 10).codes(), "ok:10");
    agent.restart();
    assert_eq!(changes(&agent, "web", "tc ingress"), [1, 1, 0, 1]);
    assert_eq!(server.accepted(80), 11);
}
