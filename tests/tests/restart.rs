//! Limits with the agent dead, killed, restarted and replaced, under load all the while.
//!
//! Needs root, and the agent that `WEIR_BIN` names (else the release build).
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

#[macro_use(lab)]
extern crate weir_tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use weir::{
    lab::{Host, Lab, Namespace},
    load::{Client, Plan, Talk},
};
use weir_tests::{
    agent::{Agent, binary, eventually},
    bpf::{Pinned, map_memory, pinned_link},
    raw::{Answer, Says, Wire, syn},
    site::{Budget, Side, ask, node_file, serve},
};

const WEB: u16 = 80;
/// A port whose only token is spent: any moment without a program would let a connection through.
const SHUT: u16 = 81;
const ECHO: u16 = 7;

fn at(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.ipv4().into(), port)
}

/// Connections that are open all the while, and must not notice anything.
struct Established(Vec<TcpStream>);

impl Established {
    fn new(from: &Namespace, to: &Host) -> Self {
        let address = at(to, ECHO);
        let listener = to.namespace().run(|| TcpListener::bind(address)).unwrap().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { break };
                thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        });
        let connect = || (0..20).map(|_| TcpStream::connect(address)).collect();
        let streams: Result<Vec<_>, _> = from.run(connect).unwrap();
        Self(streams.unwrap())
    }

    /// Says something on each of them, and hears it again.
    fn all_talk(&mut self) {
        for (number, stream) in self.0.iter_mut().enumerate() {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut byte = [number as u8];
            stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)).unwrap();
            assert_eq!(byte, [number as u8]);
        }
    }
}

/// Each attachment, by the name of its pin.
fn attachments(agent: &Agent<'_>) -> BTreeMap<String, Pinned> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(agent.layout().join("links")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        found.insert(name, pinned_link(&entry.path()).unwrap());
    }
    found
}

/// What happens to the agent under test.
#[derive(Clone, Copy)]
enum Fate {
    Killed,
    Asked,
    Replaced,
}

/// A generator at ten times the limit asks all the time, while the agent goes and comes back
/// three times. What gets in from the first moment to the last is the rate × time and one burst,
/// and no less than nine tenths of that; no attachment has a gap; no open connection is touched.
fn comes_back(lab: &Lab, side: Side, fate: Fate) {
    let budget = Budget::per_second(100, 50);
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let server = serve(&web, &[WEB, SHUT]);
    let mut established = Established::new(client.namespace(), &web);
    let policy = "policy: { connections.80: 100/s burst=50, connections.81: 1 per 1h }";
    // All are answered: a client that is not would ask again.
    let file = node_file(&[side.entry(&web, &["resets: 100000/s", policy])]);
    let mut agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let before = attachments(&agent);
    assert_eq!(before.len(), 2);
    assert_eq!(ask(client.namespace(), at(&web, SHUT), 3).codes(), "ok:1 refused:2");

    let start = |port, rate| {
        let plan = Plan::to(at(&web, port)).talk(Talk::Byte).per_second(rate);
        client.namespace().run(|| Client::start(plan)).unwrap().unwrap()
    };
    let (load, against_the_shut) = (start(WEB, 1000), start(SHUT, 300));
    let mut dead = Vec::new();
    for round in 0..3 {
        thread::sleep(Duration::from_millis(300));
        match fate {
            Fate::Killed => agent.kill(),
            Fate::Asked => assert!(agent.terminate().success()),
            Fate::Replaced => {
                agent.kill();
                // As a package manager does: another file, under another name or the same.
                let copy = lab.directory().join(format!("weir-{round}"));
                fs::copy(binary(), &copy).unwrap();
                fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
                agent.upgrade_to(copy);
            }
        }
        // With nobody there.
        let (accepted, since) = (server.accepted(WEB), Instant::now());
        thread::sleep(Duration::from_millis(500));
        dead.push((server.accepted(WEB) - accepted, since.elapsed()));
        established.all_talk();
        agent.restart();
        established.all_talk();
    }
    thread::sleep(Duration::from_millis(300));
    load.stop();
    against_the_shut.stop();
    let (report, shut) = (load.finish(), against_the_shut.finish());

    let (span, ok) = (report.span.unwrap(), report.stats.ok());
    assert!(ok <= budget.in_time(span.at_most()), "{ok} in {span:?}");
    assert!(ok * 10 >= budget.in_time(span.at_least()) * 9, "{ok} in {span:?}");
    assert_eq!(report.stats.failed(), 0, "{}", report.stats);
    assert_eq!(server.accepted(WEB), ok);
    for (admitted, time) in dead {
        assert!(admitted > 0, "nothing gets in while the agent is dead");
        assert!(admitted <= budget.in_time(time), "{admitted} in {time:?} without an agent");
    }
    assert_eq!((shut.stats.ok(), shut.stats.failed()), (0, 0), "{}", shut.stats);
    assert_eq!(server.accepted(SHUT), 1);
    established.all_talk();

    // The same links, with the new agent's programs behind them.
    let after = attachments(&agent);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, pinned) in &before {
        assert_eq!(after[name].link, pinned.link, "{name}");
        assert_eq!(after[name].interface, pinned.interface, "{name}");
        assert_ne!(after[name].program, pinned.program, "{name}");
    }
    // The counts went on, too.
    let limits = agent.workload("web").limits;
    let limit = limits.iter().find(|limit| limit.limit == "connections.80").unwrap();
    assert_eq!((limit.admitted, limit.refused), (ok, report.stats.refused()));
}

#[test]
fn an_agent_killed_under_load_comes_back_on_the_host_side() {
    comes_back(&lab!(), Side::Host, Fate::Killed);
}

#[test]
fn an_agent_killed_under_load_comes_back_inside_the_pod() {
    comes_back(&lab!(), Side::Pod, Fate::Killed);
}

#[test]
fn an_agent_killed_under_load_comes_back_on_a_machines_own_interface() {
    comes_back(&lab!(), Side::Own, Fate::Killed);
}

#[test]
fn an_agent_that_is_asked_to_end_leaves_its_limits_in_place() {
    comes_back(&lab!(), Side::Host, Fate::Asked);
}

#[test]
fn an_upgrade_under_load_replaces_every_program_without_a_gap() {
    comes_back(&lab!(), Side::Pod, Fate::Replaced);
}

/// How many handshakes the kernel remembers, as its map has it: there is no agent to ask.
fn remembered(agent: &Agent<'_>) -> usize {
    use weir_common::{handshake::ahead, layout::CellLine};
    let data = aya::maps::MapData::from_pin(agent.layout().join("PENDING")).unwrap();
    let lines: aya::maps::Array<_, CellLine> =
        aya::maps::Array::try_from(aya::maps::Map::Array(data)).unwrap();
    let now = weir_tests::testrun::now_ns();
    let words = lines.iter().flat_map(|line| line.unwrap().words);
    words.filter(|word| ahead(*word, now) > 0).count()
}

/// Ten thousand clients send a SYN each and are never heard of again, with nobody alive to tidy
/// up. The limit stays exact, the kernel takes no more memory, the places of their handshakes are
/// free again when their time has come, and the workload next door notices nothing.
#[test]
fn ten_thousand_abandoned_handshakes_need_no_agent() {
    const SYNS: u64 = 10_000;
    const ADMITTED: usize = 8000;
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (web, db) = (node.pod("web").unwrap(), node.pod("db").unwrap());
    let (attacker, client) = (node.client("attacker").unwrap(), node.client("client").unwrap());
    let _servers = (serve(&web, &[WEB, SHUT]), serve(&db, &[WEB]));
    let policy = [
        "policy: { connections.80: 1 per 60s burst=8000, on-limit: drop }",
        "policy: { connections.80: 10 per 60s }",
    ];
    let file =
        node_file(&[Side::Host.entry(&web, &policy[..1]), Side::Host.entry(&db, &policy[1..])]);
    let mut agent = Agent::start(&lab, node.namespace(), &file);
    agent.kill();
    let memory = || {
        let mut sizes = BTreeMap::new();
        for name in ["CELLS", "COUNTS", "TALLIES", "INTERFACES", "SOURCES", "PENDING"] {
            sizes.insert(name, map_memory(&agent.layout().join(name)).unwrap());
        }
        sizes
    };
    let memory_before = memory();

    let wire = Wire::open_alone(&attacker).unwrap();
    let from = |number: u64| {
        let source = attacker.source_v4((number % 100) as u8);
        SocketAddr::new(source.into(), 10_000 + (number / 100) as u16)
    };
    let flood = || wire.flood(SYNS, Some(20_000), |number| syn(from(number), at(&web, WEB), 7));
    let last = at(&web, SHUT);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let neighbour = scope.spawn(|| ask(client.namespace(), at(&db, WEB), 15).codes());
        flood();
        let live = remembered(&agent);
        assert!(live >= ADMITTED * 95 / 100, "{live} handshakes are remembered");
        wire.send(&syn(from(0), last, 7));
        let answers = wire.answers_until(last);
        assert_eq!(neighbour.join().unwrap(), "ok:10 refused:5");
        answers
    });
    // The server repeats its answers; clients are told apart by their address.
    let admitted: BTreeSet<_> = answers
        .iter()
        .filter(|answer| answer.says == Says::SynAck)
        .map(|answer| answer.to)
        .collect();
    assert_eq!(admitted.len(), ADMITTED);
    // The first that came, first served.
    assert_eq!(admitted, (0..ADMITTED as u64).map(from).collect());
    assert_eq!(memory(), memory_before);

    eventually("their places are free again", || remembered(&agent), |live| *live == 0);
    agent.restart();
    let limits = agent.workload("web").limits;
    assert_eq!(limits[0].admitted, ADMITTED as u64);
    assert_eq!(limits[0].refused, SYNS - ADMITTED as u64);
    assert_eq!(agent.decisions("web", "tc ingress", "note not_remembered"), 0);
    assert_eq!(agent.status().live_handshakes, 0);
}
