//! Tracked connections against sockets: what the kernel missed, the audit finds.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use weir::{
    app::view::AuditStatus,
    lab::{Host, Lab, Namespace},
    load::{Plan, Talk},
};
use weir_common::{
    layout::{CellLine, Config},
    load,
    track::{Phase, phase},
};
use weir_tests::{
    agent::{Agent, eventually},
    bpf::{Foreign, Hook, Place},
    open::abort,
    site::{Side, addresses, ask, run, serve},
};

on_each_side! {
    connections_from_before_are_adopted_and_the_limit_holds_beyond
}

/// An agent that audits every second.
fn audited<'a>(lab: &Lab, namespace: &'a Namespace, node_file: &str) -> Agent<'a> {
    let mut agent = Agent::new(lab, namespace, node_file);
    agent.behind(["env", "WEIR_AUDIT_INTERVAL=1"].map(str::to_owned).into());
    agent.launch();
    agent.await_ready();
    agent
}

/// A server that says a byte on each connection and holds it.
struct Holder {
    held: Arc<Mutex<Vec<TcpStream>>>,
}

impl Holder {
    fn start(host: &Host, port: u16) -> Self {
        let held = Arc::new(Mutex::new(Vec::new()));
        for address in addresses(host) {
            let bind = || TcpListener::bind((address, port));
            let listener = host.namespace().run(bind).unwrap().unwrap();
            let held = Arc::clone(&held);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { break };
                    // Whoever has read the byte may close all: this one is among them.
                    let mut held = held.lock().unwrap();
                    // A client that is gone notices nothing.
                    let _ = stream.write_all(b"!");
                    held.push(stream);
                }
            });
        }
        Self { held }
    }

    fn close_all(&self) {
        self.held.lock().unwrap().clear();
    }

    /// Closes without a word that could be repeated: one RST, and the socket is gone.
    fn cut_all(&self) {
        self.held.lock().unwrap().drain(..).for_each(abort);
    }
}

/// Connects and waits for the server's byte, so that the connection is established for both.
fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// So many connections one after the other: those that came about, and how many were refused.
fn open(from: &Namespace, to: SocketAddr, number: usize) -> (Vec<TcpStream>, usize) {
    let attempts = from.run(|| (0..number).map(|_| connect(to)).collect::<Vec<_>>()).unwrap();
    let (mut open, mut refused) = (Vec::new(), 0);
    for attempt in attempts {
        match attempt {
            Ok(stream) => open.push(stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    (open, refused)
}

fn connections(agent: &Agent<'_>) -> u64 {
    let limits = agent.workload("web").limits;
    let limit = limits.into_iter().find(|limit| limit.kind == "max-connections").unwrap();
    limit.connections.unwrap()
}

fn audit(agent: &Agent<'_>) -> AuditStatus {
    agent.workload("web").audit.unwrap_or_default()
}

/// Waits for an audit that begins from here on.
fn await_audit(agent: &Agent<'_>) -> AuditStatus {
    let uptime = agent.status().uptime_seconds;
    let look = || (agent.status().uptime_seconds, audit(agent));
    let begun =
        |(now, audit): &(f64, AuditStatus)| audit.age_seconds.is_some_and(|age| now - age > uptime);
    eventually("there is another audit", look, begun).1
}

/// What `ss` counts: established connections at a port of the namespace, in both families.
fn in_ss(namespace: &Namespace, port: u16) -> u64 {
    let read =
        || ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
    let at = format!(":{port:04X}");
    let texts = namespace.run(read).unwrap();
    let lines = texts.iter().flatten().flat_map(|text| text.lines().skip(1));
    let established = lines.filter(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _, state) = (words.next(), words.next(), words.next());
        local.is_some_and(|local| local.ends_with(&at)) && state == Some("01")
    });
    established.count() as u64
}

/// Attach to a workload with 200 connections: they are counted though nobody saw them begin, they
/// cost no token, nobody may come beyond the limits, and all of it ends when they do.
fn connections_from_before_are_adopted_and_the_limit_holds_beyond(lab: &Lab, side: Side) {
    const BEFORE: usize = 200;
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let holder = Holder::start(&web, 80);
    let elsewhere = Holder::start(&client, 80);
    let families = addresses(&web);
    let each = BEFORE / families.len();
    let at = |address: IpAddr| SocketAddr::new(address, 80);
    let mut before = Vec::new();
    for &address in &families {
        let (streams, refused) = open(client.namespace(), at(address), each);
        assert_eq!(refused, 0);
        before.push(streams);
    }
    // What the workload opened itself is not inbound, and what stays inside passes no interface.
    let (_out, _) = open(web.namespace(), at(client.ipv4().into()), 3);
    let (_inside, _) = open(web.namespace(), at(web.ipv4().into()), 3);
    // One side of one connection has nothing more to say.
    before[0][0].shutdown(std::net::Shutdown::Write).unwrap();

    let per_source = each as u64 + 5;
    let file = side.node_file(
        &web,
        &[
            "connections.80: 1000 per 3600s",
            &format!("max-connections.80: \"{}\"", BEFORE + 7),
            &format!("max-connections-per-source.80: \"{per_source}\""),
        ],
    );
    let agent = audited(lab, side.agent_in(&node, &web), &file);
    let found = eventually("all are adopted", || audit(&agent), |a| a.adopted >= BEFORE as u64);
    assert_eq!((found.adopted, found.tracked, found.removed), (BEFORE as u64, BEFORE as u64, 0));
    assert_eq!(connections(&agent), BEFORE as u64);
    let rate = || {
        let limits = agent.workload("web").limits;
        let limit = limits.into_iter().find(|limit| limit.kind == "connections").unwrap();
        (limit.admitted, limit.tokens)
    };
    assert_eq!(rate(), (0, Some(1000)));

    // Five more of the client's first address, then all of the others that there is room for.
    let (five, refused) = open(client.namespace(), at(families[0]), 6);
    assert_eq!((five.len(), refused), (5, 1));
    assert_eq!(agent.decisions("web", "tc ingress", "reset max_connections_per_source"), 1);
    let mut two = Vec::new();
    if families.len() == 2 {
        let refused;
        (two, refused) = open(client.namespace(), at(families[1]), 4);
        assert_eq!((two.len(), refused), (2, 2));
        assert_eq!(agent.decisions("web", "tc ingress", "reset max_connections"), 2);
    }
    let all = BEFORE + five.len() + two.len();
    assert_eq!(connections(&agent), all as u64);
    await_audit(&agent);
    assert_eq!(connections(&agent), all as u64);

    drop((before, five, two));
    holder.close_all();
    eventually("all are gone", || connections(&agent), |open| *open == 0);
    let (again, refused) = open(client.namespace(), at(families[0]), per_source as usize + 1);
    assert_eq!((again.len() as u64, refused), (per_source, 1));
    // The kernel saw them all end, so the audit had nothing to remove.
    assert_eq!(await_audit(&agent).removed, 0);
    drop(elsewhere);
}

/// Both ends vanish and nobody hears of it: the count holds them until the audit finds no socket.
#[test]
fn what_vanished_without_a_word_is_removed_within_two_audits() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let holder = Holder::start(&web, 80);
    let file = Side::Host
        .node_file(&web, &["max-connections.80: \"10\"", "max-connections-per-source.80: \"10\""]);
    let agent = audited(&lab, node.namespace(), &file);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let (open_ones, _) = open(client.namespace(), to, 12);
    assert_eq!((open_ones.len(), connections(&agent)), (10, 10));

    let deaf = Foreign::tc_drops_tcp("deaf").unwrap();
    let lines: Vec<_> = [&client, &web]
        .iter()
        .map(|host| deaf.attach(host.namespace(), host.interface(), Hook::Egress, Place::First))
        .collect::<Result<_, _>>()
        .unwrap();
    holder.cut_all();
    drop(open_ones);
    assert_eq!(connections(&agent), 10);
    let found = eventually("they are removed", || audit(&agent), |audit| audit.removed == 10);
    assert_eq!((found.adopted, found.tracked), (0, 0));
    assert_eq!(connections(&agent), 0);
    drop(lines);
    // There is room again, for the source as well, and for no more than before.
    let (again, refused) = open(client.namespace(), to, 12);
    assert_eq!((again.len(), refused), (10, 2));
}

/// Connections that are idle, or half closed, or whose server does not listen any more, are not
/// touched, and short ones that come and go all the while are neither lost nor found.
#[test]
fn what_lives_is_left_alone() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let holder = Holder::start(&web, 80);
    let _short = serve(&web, &[81]);
    let file = Side::Host.node_file(&web, &["max-connections: \"1000\""]);
    let agent = audited(&lab, node.namespace(), &file);
    let at = |port| SocketAddr::new(web.ipv4().into(), port);
    let (streams, _) = open(client.namespace(), at(80), 20);
    streams[0].shutdown(std::net::Shutdown::Write).unwrap();
    holder.held.lock().unwrap()[1].shutdown(std::net::Shutdown::Write).unwrap();
    let plan = Plan::to(at(81)).talk(Talk::Byte).per_second(300).lasting(Duration::from_secs(6));
    let stats = run(client.namespace(), plan).stats;
    assert_eq!(stats.refused(), 0);
    let found = await_audit(&agent);
    assert_eq!((found.removed, found.adopted, found.errors), (0, 0, 0), "{found:#?}");
    eventually("the short ones are gone", || connections(&agent), |open| *open == 20);
}

/// Counts go on without an agent, and the next one finds what they missed.
#[test]
fn after_a_kill_the_counts_are_what_ss_says() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let holder = Holder::start(&web, 80);
    let file = Side::Host.node_file(&web, &["max-connections.80: \"100\""]);
    let mut agent = audited(&lab, node.namespace(), &file);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let (mut streams, _) = open(client.namespace(), to, 50);
    agent.kill();

    // Some end and some begin, seen by the kernel.
    let closed: Vec<_> = streams.drain(..20).collect();
    let ports: Vec<_> = closed.iter().map(|stream| stream.local_addr().unwrap()).collect();
    let is_closed = |stream: &TcpStream| stream.peer_addr().is_ok_and(|peer| ports.contains(&peer));
    drop(closed);
    holder.held.lock().unwrap().retain(|stream| !is_closed(stream));
    let (more, _) = open(client.namespace(), to, 5);
    streams.extend(more);
    let truth = || in_ss(web.namespace(), 80);
    eventually("the pod's sockets are closed", truth, |open| *open == 35);
    agent.restart();
    eventually("the count is the truth", || connections(&agent), |open| *open == truth());
    let found = await_audit(&agent);
    assert_eq!((found.tracked, found.removed, found.adopted), (35, 0, 0), "{found:#?}");

    // The others end while there is no agent, and no packet says so.
    agent.kill();
    let deaf = Foreign::tc_drops_tcp("deaf").unwrap();
    let lines: Vec<_> = [&client, &web]
        .iter()
        .map(|host| deaf.attach(host.namespace(), host.interface(), Hook::Egress, Place::First))
        .collect::<Result<_, _>>()
        .unwrap();
    holder.cut_all();
    drop(streams);
    eventually("the pod's sockets are closed", truth, |open| *open == 0);
    agent.restart();
    assert_eq!(connections(&agent), 35);
    eventually("the count is the truth", || connections(&agent), |open| *open == 0);
    assert_eq!(audit(&agent).removed, 35);
    drop(lines);
}

/// Attach to a workload whose connections come and go all the while: whoever closes in the moment of
/// the adoption is not counted for long.
#[test]
fn connections_that_end_while_they_are_adopted_leave_nothing() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _holder = Holder::start(&web, 80);
    let _short = serve(&web, &[81]);
    let file = Side::Host.node_file(&web, &["max-connections: \"1000\""]);
    let at = |port| SocketAddr::new(web.ipv4().into(), port);
    let (_streams, _) = open(client.namespace(), at(80), 20);
    let load = Plan::to(at(81)).talk(Talk::Byte).parallel(16).lasting(Duration::from_secs(6));
    thread::scope(|scope| {
        let load = scope.spawn(|| run(client.namespace(), load).stats);
        let agent = audited(&lab, node.namespace(), &file);
        assert_eq!(load.join().unwrap().refused(), 0);
        eventually("only those are left", || connections(&agent), |open| *open == 20);
        let found = await_audit(&agent);
        assert!(found.adopted >= 20, "{found:#?}");
        assert_eq!(found.tracked, 20, "{found:#?}");
    });
}

/// A slot that another workload takes over brings nothing along.
#[test]
fn a_workload_that_leaves_takes_its_connections_along() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (web, api) = (node.pod("web").unwrap(), node.pod("api").unwrap());
    let client = node.client("client").unwrap();
    let _holder = Holder::start(&web, 80);
    let line = ["max-connections.80: \"10\""];
    let agent = audited(&lab, node.namespace(), &Side::Host.node_file(&web, &line));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let (streams, _) = open(client.namespace(), to, 8);
    let used = || tracked(&agent.layout());
    assert_eq!(used(), 8);
    agent.rewrite(&Side::Host.node_file(&api, &line));
    eventually("its connections are forgotten", used, |used| *used == 0);
    assert_eq!(agent.workload("api").audit.unwrap_or_default().removed, 0);
    drop(streams);
}

/// Connections in the kernel's table, established ones.
fn tracked(pins: &Path) -> usize {
    let data = MapData::from_pin(pins.join("TRACKS")).unwrap();
    let map: Array<MapData, CellLine> = Map::Array(data).try_into().unwrap();
    let lines = map.iter().map(|line| line.unwrap().words);
    lines.flatten().filter(|word| phase(*word) == Phase::Established).count()
}

/// Connections that began while a rule was not there are known to it when it comes.
#[test]
fn a_line_that_comes_finds_the_connections_that_are_open() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let holder = Holder::start(&web, 80);
    let without = Side::Host.node_file(&web, &["connections.80: 1000/s"]);
    let with =
        Side::Host.node_file(&web, &["connections.80: 1000/s", "max-connections.80: \"10\""]);
    // At its usual pace: a change is looked at without waiting for it.
    let agent = Agent::start(&lab, node.namespace(), &without);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let (streams, _) = open(client.namespace(), to, 8);
    assert_eq!(agent.workload("web").audit, None);
    agent.rewrite(&with);
    eventually("they are adopted", || connections(&agent), |open| *open == 8);
    let (more, refused) = open(client.namespace(), to, 3);
    assert_eq!((more.len(), refused), (2, 1));
    drop((streams, more));
    holder.close_all();
    eventually("all are gone", || connections(&agent), |open| *open == 0);
}

/// A line that comes later counts the connections that are tracked because of an earlier one.
#[test]
fn a_second_line_counts_what_is_tracked_because_of_the_first() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let holder = Holder::start(&web, 80);
    let first = ["max-handshakes.80: \"1000\""];
    let second = [first[0], "max-connections: \"10\"", "max-connections-per-source.80: \"9\""];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &first));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let (streams, _) = open(client.namespace(), to, 8);
    agent.rewrite(&Side::Host.node_file(&web, &second));
    eventually("they are counted", || connections(&agent), |open| *open == 8);
    let (more, refused) = open(client.namespace(), to, 3);
    assert_eq!((more.len(), refused), (1, 2));
    assert_eq!(agent.decisions("web", "tc ingress", "reset max_connections_per_source"), 2);
    drop((streams, more));
    holder.close_all();
    eventually("all are gone", || connections(&agent), |open| *open == 0);
    let (again, refused) = open(client.namespace(), to, 10);
    assert_eq!((again.len(), refused), (9, 1));
}

/// Counts that are wrong though every connection is right are found, and become right.
#[test]
fn a_count_that_nobody_can_explain_is_corrected() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let holder = Holder::start(&web, 80);
    let lines = ["max-connections.80: \"10\"", "max-connections-per-source.80: \"9\""];
    let agent = audited(&lab, node.namespace(), &Side::Host.node_file(&web, &lines));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let (streams, _) = open(client.namespace(), to, 3);
    assert_eq!(connections(&agent), 3);
    for map in ["CELLS", "SOURCE_LOADS"] {
        assert_eq!(add_to_loads(&agent.layout(), map, 3, 6), 1, "{map}");
    }
    assert_eq!(connections(&agent), 9);
    eventually("it is right again", || connections(&agent), |open| *open == 3);
    eventually("both are", || agent.status().corrected_counts, |corrected| *corrected == 2);
    let (more, refused) = open(client.namespace(), to, 8);
    assert_eq!((more.len(), refused), (6, 2));
    drop((streams, more));
    holder.close_all();
    eventually("all are gone", || connections(&agent), |open| *open == 0);
    assert_eq!(agent.status().corrected_counts, 2);
}

/// Adds to the words of a map that hold so many established connections; how many words these were.
fn add_to_loads(pins: &Path, map: &str, holding: u64, more: u64) -> usize {
    let map = Map::Array(MapData::from_pin(pins.join(map)).unwrap());
    let mut lines: Array<MapData, CellLine> = map.try_into().unwrap();
    let mut changed = 0;
    for index in 0..lines.len() {
        let mut line = lines.get(&index, 0).unwrap();
        // The first word is enough: a source that is alone has the first way, a load no other.
        let word = &mut line.words[0];
        if load::established(*word) == holding && *word >> 32 != 0 {
            *word = load::corrected(*word, holding + more);
            lines.set(index, line, 0).unwrap();
            changed += 1;
        }
    }
    changed
}

/// What belongs to a workload that is tracked no more is nobody's, and goes.
#[test]
fn what_a_workload_leaves_behind_is_removed() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _holder = Holder::start(&web, 80);
    let without = Side::Host.node_file(&web, &["connections.80: 1000/s"]);
    let with =
        Side::Host.node_file(&web, &["connections.80: 1000/s", "max-connections.80: \"10\""]);
    let agent = audited(&lab, node.namespace(), &with);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let (streams, _) = open(client.namespace(), to, 8);
    assert_eq!(connections(&agent), 8);
    agent.rewrite(&without);
    let gone = || agent.log().contains("connections of workloads that are not tracked any more");
    eventually("they are removed", gone, |gone| *gone);
    // The cell was kept, the connections are still there: they are found again.
    agent.rewrite(&with);
    // They count before the second look has confirmed them.
    eventually("they are adopted", || audit(&agent).adopted, |adopted| *adopted == 8);
    assert_eq!(connections(&agent), 8);
    drop(streams);
}

/// The namespace is gone: the audit says so, and the limits stay.
#[test]
fn a_failure_is_counted_and_limits_nothing_less() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _holder = Holder::start(&web, 80);
    let name = lab.directory().join("ns");
    std::os::unix::fs::symlink(web.namespace().path(), &name).unwrap();
    let file = Side::Host.node_file(&web, &["max-connections.80: \"3\""]);
    let file = file.replace(web.namespace().name(), name.to_str().unwrap());
    let agent = audited(&lab, node.namespace(), &file);
    await_audit(&agent);
    fs::remove_file(name).unwrap();
    let found = eventually("audits fail", || audit(&agent), |audit| audit.errors > 0);
    assert!(found.error.is_some(), "{found:#?}");
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let (streams, refused) = open(client.namespace(), to, 5);
    assert_eq!((streams.len(), refused), (3, 2));
}

fn config(pins: &Path) -> (Array<MapData, Config>, Config) {
    let data = MapData::from_pin(pins.join("CONFIG")).unwrap();
    let map: Array<MapData, Config> = Map::Array(data).try_into().unwrap();
    let config = map.get(&0, 0).unwrap();
    (map, config)
}

/// The agent says every second that it lives, though nothing changes. Counts of connections that
/// nobody has looked after for five minutes refuse nobody, until there is an agent again.
#[test]
fn without_a_heartbeat_counts_refuse_nobody() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let holder = Holder::start(&web, 80);
    let file = Side::Host.node_file(&web, &["max-connections.80: \"3\""]);
    let mut agent = Agent::start(&lab, node.namespace(), &file);
    let beat = || config(&agent.layout()).1.heartbeat_ns;
    let first = beat();
    let second = eventually("the heart beats", beat, |beat| *beat > first);
    eventually("the heart beats on", beat, |beat| *beat > second);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let (three, refused) = open(client.namespace(), to, 5);
    assert_eq!((three.len(), refused), (3, 2));

    agent.kill();
    // Alone for a moment: nothing changes.
    assert_eq!(open(client.namespace(), to, 2).1, 2);
    let (mut map, mut long_ago) = config(&agent.layout());
    long_ago.heartbeat_ns -= 301_000_000_000;
    map.set(0, long_ago, 0).unwrap();
    let (beyond, refused) = open(client.namespace(), to, 2);
    assert_eq!((beyond.len(), refused), (2, 0));
    agent.restart();
    assert_eq!(agent.decisions("web", "tc ingress", "shadow unaudited"), 2);
    assert_eq!(ask(client.namespace(), to, 2).codes(), "refused:2");
    drop((three, beyond));
    holder.close_all();
    eventually("all are gone", || connections(&agent), |open| *open == 0);
}
