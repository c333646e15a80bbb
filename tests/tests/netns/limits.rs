//! What limits admit: counts, seen by clients, servers and the agent alike.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Barrier,
    thread,
    time::Duration,
};

use weir::{
    lab::Lab,
    load::{Plan, Talk},
};
use weir_tests::{
    agent::Agent,
    site::{Budget, Side, addresses, ask, node_file, run, serve},
};

const MYSQL: u16 = 3306;

on_each_side! {
    one_connection_a_minute_gets_in
    ten_of_sixty_four_threads_get_in
    ten_connections_a_minute_get_out_to_one_network
}

/// B1: the first connection gets in, all others are refused, whatever their address family.
fn one_connection_a_minute_gets_in(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let mysql = node.pod("mysql").unwrap();
    let client = node.client("client").unwrap();
    let server = serve(&mysql, &[MYSQL, 80]);
    let file = side.node_file(&mysql, &["connections.3306: 1 per 60s"]);
    let agent = Agent::start(lab, side.agent_in(&node, &mysql), &file);
    assert_eq!(agent.workload("mysql").condition, "enforced");

    let mut codes = Vec::new();
    for address in addresses(&mysql) {
        let to = SocketAddr::new(address, MYSQL);
        codes.push(ask(client.namespace(), to, 20).codes());
        // Other ports are not the limit's.
        let other = ask(client.namespace(), SocketAddr::new(address, 80), 5);
        assert_eq!(other.codes(), "ok:5");
    }
    let refused = 20 * codes.len() as u64 - 1;
    assert_eq!(codes[0], "ok:1 refused:19");
    assert!(codes[1..].iter().all(|codes| codes == "refused:20"), "{codes:?}");
    assert_eq!(server.accepted(MYSQL), 1);
    let limit = agent.limit("mysql");
    assert_eq!((limit.admitted, limit.refused, limit.shadowed), (1, refused, 0));
    assert_eq!(limit.tokens, Some(0));
    assert_eq!(agent.decisions("mysql", "tc ingress", "reset connection_rate"), refused);
    assert_eq!(agent.decisions("mysql", "tc ingress", "pass admitted"), 1);
}

/// All at the same moment: a bucket that two CPUs take from at once admits no more.
fn ten_of_sixty_four_threads_get_in(lab: &Lab, side: Side) {
    const THREADS: usize = 64;
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let server = serve(&web, &[80]);
    let file = side.node_file(&web, &["connections.80: 1 per 60s burst=10"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);

    let barrier = Barrier::new(THREADS);
    let connect = || {
        barrier.wait();
        let mut byte = [0];
        TcpStream::connect((web.ipv4(), 80)).and_then(|mut stream| stream.read_exact(&mut byte))
    };
    let ends: Vec<io::Result<()>> = client
        .namespace()
        .run(|| {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(connect)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            })
        })
        .unwrap();
    let refused = |end: &&io::Result<()>| {
        end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    assert_eq!(ends.iter().filter(|end| end.is_ok()).count(), 10, "{ends:?}");
    assert_eq!(ends.iter().filter(refused).count(), THREADS - 10, "{ends:?}");
    assert_eq!(server.accepted(80), 10);
    assert_eq!(agent.limit("web").admitted, 10);
}

/// B3: what the workload opens is limited where it goes, and nowhere else.
fn ten_connections_a_minute_get_out_to_one_network(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let app = node.pod("app").unwrap();
    let (vm, other) = (node.client("vm").unwrap(), node.client("other").unwrap());
    let (at_vm, at_other) = (serve(&vm, &[MYSQL, 80]), serve(&other, &[MYSQL]));
    let v6 = format!("10 per 60s to={}", vm.ipv6());
    let lines = [
        format!("outbound-connections.3306: 10 per 60s to={}; {v6}", vm.ipv4()),
        "connections: 1 per 60s".to_owned(),
    ];
    let mut policy = vec![lines[0].as_str()];
    if side != Side::Own {
        // What comes in does not matter to what goes out.
        policy.push(&lines[1]);
    }
    let agent = Agent::start(lab, side.agent_in(&node, &app), &side.node_file(&app, &policy));
    assert_eq!(agent.workload("app").condition, "enforced");

    let families = addresses(&vm);
    for &address in &families {
        let stats = ask(app.namespace(), SocketAddr::new(address, MYSQL), 30);
        assert_eq!(stats.codes(), "ok:10 refused:20", "{address}");
        // Another port there is another matter.
        assert_eq!(ask(app.namespace(), SocketAddr::new(address, 80), 15).codes(), "ok:15");
    }
    for address in addresses(&other) {
        assert_eq!(ask(app.namespace(), SocketAddr::new(address, MYSQL), 15).codes(), "ok:15");
    }
    let families = families.len() as u64;
    assert_eq!(at_vm.accepted(MYSQL), 10 * families);
    assert_eq!(at_other.accepted(MYSQL), 15 * families);
    let reset = agent.refused_calls("app", "reset outbound_rate");
    assert_eq!(reset, 20 * families);
}

/// B4: the gateway is a pod that passes connections on. Its inbound limit is what its backend,
/// outside the cluster, gets to see from all clients together.
#[test]
fn a_gateway_pods_limit_protects_what_lies_behind_it() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let gateway = node.pod("gateway").unwrap();
    let clients = [node.client("one").unwrap(), node.client("two").unwrap()];
    let vm = node.client("vm").unwrap();
    let backend = serve(&vm, &[MYSQL]);
    let at = SocketAddr::new(gateway.ipv4().into(), MYSQL);
    let behind = SocketAddr::new(vm.ipv4().into(), MYSQL);
    let listener = gateway.namespace().run(|| TcpListener::bind(at)).unwrap().unwrap();
    gateway.namespace().run(|| thread::spawn(move || pass_on(&listener, behind))).unwrap();
    let file = Side::Host.node_file(&gateway, &["connections.3306: 10 per 60s"]);
    let agent = Agent::start(&lab, node.namespace(), &file);

    let reports: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .map(|client| {
                let plan = Plan::to(at).talk(Talk::Byte).parallel(4).attempts(15);
                scope.spawn(|| run(client.namespace(), plan))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ok: u64 = reports.iter().map(|report| report.stats.ok()).sum();
    let refused: u64 = reports.iter().map(|report| report.stats.refused()).sum();
    assert_eq!((ok, refused), (10, 20));
    assert_eq!(backend.accepted(MYSQL), 10);
    assert_eq!(agent.limit("gateway").refused, 20);
}

/// A byte from the backend for each connection, until the namespace's sockets are gone.
fn pass_on(listener: &TcpListener, to: SocketAddr) {
    for stream in listener.incoming() {
        let pass = |mut from: TcpStream| -> io::Result<()> {
            let mut backend = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
            let mut answer = Vec::new();
            backend.read_to_end(&mut answer)?;
            from.write_all(&answer)
        };
        // A client that gets nothing counts that itself.
        let _ = stream.and_then(pass);
    }
}

/// A connection must pass the line of its port and the line of all ports, and a refusal by one
/// costs the other nothing.
#[test]
fn a_refusal_by_one_line_costs_the_other_nothing() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80, 81]);
    let policy = ["connections: 10 per 60s", "connections.80: 3 per 60s"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));

    let address = web.ipv4().into();
    let at =
        |port, attempts| ask(client.namespace(), SocketAddr::new(address, port), attempts).codes();
    assert_eq!(at(80, 20), "ok:3 refused:17");
    assert_eq!(at(81, 20), "ok:7 refused:13");
    let limits = agent.workload("web").limits;
    let mut admitted: Vec<_> =
        limits.iter().map(|limit| (limit.limit.as_str(), limit.admitted)).collect();
    admitted.sort_unstable();
    assert_eq!(admitted, [("connections", 10), ("connections.80", 3)]);
}

/// Two workloads with the same policy have a bucket each.
#[test]
fn workloads_do_not_share_their_budgets() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (one, two) = (node.pod("one").unwrap(), node.pod("two").unwrap());
    let client = node.client("client").unwrap();
    let _servers = (serve(&one, &[80]), serve(&two, &[80]));
    let policy = ["policy:", "  connections: 5 per 60s"];
    let file = node_file(&[Side::Host.entry(&one, &policy), Side::Pod.entry(&two, &policy)]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    for pod in [&one, &two] {
        let stats = ask(client.namespace(), SocketAddr::new(pod.ipv4().into(), 80), 12);
        assert_eq!(stats.codes(), "ok:5 refused:7", "{}", pod.name());
        assert_eq!(agent.limit(pod.name()).admitted, 5);
    }
}

/// Tokens come back at the rate as written, evenly, and no faster.
#[test]
fn tokens_come_back_at_the_rate_that_was_written() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let server = serve(&web, &[80]);
    let file = Side::Host.node_file(&web, &["connections.80: 20/s burst=5"]);
    let _agent = Agent::start(&lab, node.namespace(), &file);
    let plan = Plan::to(SocketAddr::new(web.ipv4().into(), 80))
        .talk(Talk::Byte)
        .per_second(200)
        .lasting(Duration::from_secs(3));
    let report = run(client.namespace(), plan);
    let span = report.span.unwrap();
    let budget = Budget::per_second(20, 5);
    let ok = report.stats.ok();
    assert!(ok <= budget.in_time(span.at_most()), "{ok} in {span:?}");
    assert!(ok * 10 >= budget.in_time(span.at_least()) * 9, "{ok} in {span:?}");
    assert_eq!(server.accepted(80), ok);
    assert_eq!(report.stats.failed(), 0, "{}", report.stats);
}

/// Each client has its own bucket: one that takes all of its tokens leaves the others theirs.
#[test]
fn each_client_has_its_own_budget() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let (greedy, polite) = (node.client("greedy").unwrap(), node.client("polite").unwrap());
    let _server = serve(&web, &[80]);
    let policy = ["connections-per-source.80: 3 per 60s"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    for address in addresses(&web) {
        let to = SocketAddr::new(address, 80);
        assert_eq!(ask(greedy.namespace(), to, 30).codes(), "ok:3 refused:27");
        assert_eq!(ask(polite.namespace(), to, 3).codes(), "ok:3");
    }
    // The greedy one's second address is another client; of IPv6, of another /64.
    let sources = [greedy.source_v4(1).into(), greedy.source_v4(2).into()];
    let plan = Plan::to(SocketAddr::new(web.ipv4().into(), 80)).from(sources).talk(Talk::Byte);
    let stats = run(greedy.namespace(), plan.attempts(8)).stats;
    assert_eq!(stats.codes(), "ok:6 refused:2");
    let families = addresses(&web).len() as u64;
    let reset = agent.decisions("web", "tc ingress", "reset source_rate");
    assert_eq!(reset, 27 * families + 2);
}
