//! Circuit breaking as Istio's DestinationRule has it, by the real Envoy, and the same protection by
//! Weir: side by side, with the same clients, counted at the clients, the servers and both limiters.
//!
//! What is asserted is what is admitted and refused, how, and in which order. Times are printed, but
//! for one: who is refused by Weir does not wait longer for it than behind Envoy.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use weir::lab::{Host, Lab, Namespace, Node};
use weir_tests::{
    agent::{Agent, eventually},
    envoy::{Envoy, Protocol, Rule},
    http::{End, Told, Web, clients, get, request},
    lab_and_envoy,
    open::{connect, connect_within},
    site::{Side, stack_counter},
};

/// The numbers of the rule, but for the ejection.
const RULE: Rule = Rule {
    max_connections: 1,
    connect_timeout_ms: 30,
    max_pending_requests: 1,
    max_requests_per_connection: 1,
    errors: 1,
    interval_s: 5,
    ejection_s: 60,
};
/// The same in Weir's words.
const LIMIT: &str = "max-connections.80: 1";
const BREAKER: &str = "breaker.80: errors=1 interval=5s ejection=60s connect-timeout=30ms \
                       half-open=off";

const CLIENTS: usize = 10;
const SERVICE: Duration = Duration::from_millis(40);
/// Where Envoy listens.
const PROXY: u16 = 8080;

/// One service behind Envoy and one behind Weir.
struct Site {
    node: Node,
    proxy: Host,
    behind_envoy: Host,
    behind_weir: Host,
    client: Host,
}

impl Site {
    fn new(lab: &Lab) -> Self {
        let node = lab.node("node").unwrap();
        let proxy = node.pod("proxy").unwrap();
        let (behind_envoy, behind_weir) = (node.pod("web-e").unwrap(), node.pod("web-w").unwrap());
        let client = node.client("client").unwrap();
        Self { node, proxy, behind_envoy, behind_weir, client }
    }

    fn envoy(&self, program: &Path, lab: &Lab, rule: Rule) -> Envoy<'_> {
        let upstream = at(&self.behind_envoy, 80);
        let kind = (Protocol::Http, PROXY);
        Envoy::start(program, lab, self.proxy.namespace(), kind, upstream, rule)
    }

    fn agent(&self, lab: &Lab, policy: &[&str]) -> Agent<'_> {
        let file = Side::Host.node_file(&self.behind_weir, policy);
        Agent::start(lab, self.node.namespace(), &file)
    }

    fn through_envoy(&self) -> SocketAddr {
        at(&self.proxy, PROXY)
    }

    fn through_weir(&self) -> SocketAddr {
        at(&self.behind_weir, 80)
    }

    fn ask(&self, to: SocketAddr) -> End {
        self.client.namespace().run(|| get(to)).unwrap()
    }
}

fn at(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.ipv4().into(), port)
}

/// Attempts that a server's stack refused because nobody listens.
fn refused_by(server: &Namespace) -> u64 {
    stack_counter(server, "Tcp", "OutRsts")
}

fn tripped(agent: &Agent<'_>, workload: &str, hook: &str) -> u64 {
    agent.decisions(workload, hook, "note breaker_tripped")
}

const OK: fn(&End) -> bool = |end| end.is(200);
const UNAVAILABLE: fn(&End) -> bool = |end| end.is(503);
const REFUSED: fn(&End) -> bool = |end| *end == End::Refused;
const CLOSED: fn(&End) -> bool = |end| *end == End::Closed;
/// Envoy's words for: all hosts are ejected.
const EJECTED: fn(&End) -> bool =
    |end| matches!(end, End::Status(503, body) if body == "no healthy upstream");

/// A refused client of Weir's knows no later than one of Envoy's.
fn compare(what: &str, by_envoy: Option<Duration>, by_weir: Option<Duration>) {
    let (envoy, weir) = (by_envoy.unwrap(), by_weir.unwrap());
    let ratio = envoy.as_secs_f64() / weir.as_secs_f64();
    println!(
        "{what}: a refused client knows after {envoy:?} (Envoy), {weir:?} (Weir), {ratio:.1}x"
    );
    assert!(weir <= envoy, "{what}: {weir:?} is longer than {envoy:?}");
}

fn print(who: &str, told: &Told) {
    println!("{who}: {:?}, answered in {:?}", told.counts(), told.median(OK));
}

/// C1: ten clients at a service that takes one connection.
#[test]
fn c1_one_connection_at_a_time_and_the_others_are_refused() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let from = site.client.namespace();
    let lasting = Duration::from_secs(3);

    let server = Web::start(&site.behind_envoy, 80, SERVICE);
    let envoy = site.envoy(&program, &lab, RULE);
    let by_envoy = clients(from, site.through_envoy(), CLIENTS, lasting);
    print("Envoy", &by_envoy);
    assert_eq!(by_envoy.count(OK) + by_envoy.count(UNAVAILABLE), by_envoy.0.len() as u64);
    assert_eq!(server.requests(), by_envoy.count(OK));
    // Another connection for each request; one at a time, but that the next may be there before the
    // server has noticed the end of the last: Envoy counts what it has not closed itself.
    assert_eq!(server.connections(), server.requests());
    assert!(server.most_at_once() <= 2, "{}", server.most_at_once());
    let overflow = envoy.stat("upstream_rq_pending_overflow");
    assert!((1..=by_envoy.count(UNAVAILABLE)).contains(&overflow), "{overflow}");
    drop((envoy, server));

    let server = Web::start(&site.behind_weir, 80, SERVICE);
    let agent = site.agent(&lab, &[LIMIT, BREAKER]);
    let by_weir = clients(from, site.through_weir(), CLIENTS, lasting);
    print("Weir", &by_weir);
    assert_eq!(by_weir.count(OK) + by_weir.count(REFUSED), by_weir.0.len() as u64);
    assert_eq!(server.requests(), by_weir.count(OK));
    assert_eq!((server.connections(), server.most_at_once()), (server.requests(), 1));
    let limit = agent.limit_named("web-w", "max-connections.80");
    assert_eq!((limit.admitted, limit.refused), (by_weir.count(OK), by_weir.count(REFUSED)));
    assert_eq!(tripped(&agent, "web-w", "tc ingress"), 0, "too many is no failure");

    // Most are refused and somebody always gets in: forty milliseconds each, three seconds.
    for (told, refused) in [(&by_envoy, UNAVAILABLE), (&by_weir, REFUSED)] {
        assert!(told.count(OK) > 1, "{:?}", told.counts());
        assert!(told.count(refused) > told.count(OK), "{:?}", told.counts());
    }
    compare("overflow", by_envoy.median(UNAVAILABLE), by_weir.median(REFUSED));
}

/// C1: the service breaks down. Both notice with the first connection that fails, and from then on
/// nobody gets there.
#[test]
fn c1_the_first_failed_connection_ejects_the_service() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let from = site.client.namespace();
    let lasting = Duration::from_secs(2);
    let envoy = site.envoy(&program, &lab, RULE);
    let agent = site.agent(&lab, &[LIMIT, BREAKER]);

    let by_envoy = clients(from, site.through_envoy(), CLIENTS, lasting);
    let by_weir = clients(from, site.through_weir(), CLIENTS, lasting);
    print("Envoy", &by_envoy);
    print("Weir", &by_weir);
    assert_eq!(by_envoy.count(UNAVAILABLE), by_envoy.0.len() as u64);
    assert_eq!(by_weir.count(REFUSED), by_weir.0.len() as u64);
    assert_eq!(envoy.stat("outlier_detection.ejections_enforced_total"), 1);
    assert_eq!(tripped(&agent, "web-w", "tc ingress"), 1);
    // Envoy's workers learn of an ejection from its main thread, so more may have been under way. Here
    // the RST opens the breaker on its own way back: only a SYN that another CPU was deciding at that
    // very moment, and that had asked the breaker before, can have got through beside it.
    let attempts =
        (refused_by(site.behind_envoy.namespace()), refused_by(site.behind_weir.namespace()));
    println!("attempts that got to the broken service: {attempts:?} (Envoy, Weir)");
    assert!((1..=CLIENTS as u64).contains(&attempts.0), "{attempts:?}");
    let cpus = thread::available_parallelism().unwrap().get() as u64;
    assert!((1..=cpus).contains(&attempts.1), "{attempts:?}");
    let to_trip = |told: &Told, ejected: fn(&End) -> bool| {
        told.first(ejected).unwrap().saturating_sub(told.0[0].at)
    };
    println!(
        "from the first answer to the first by the open breaker: {:?} (Envoy), {:?} (Weir)",
        to_trip(&by_envoy, EJECTED),
        by_weir.0[1].at - by_weir.0[0].at,
    );
    compare("ejected", by_envoy.median(EJECTED), by_weir.median(REFUSED));

    // It is well again, and nobody notices for the time of the ejection.
    let _servers = [&site.behind_envoy, &site.behind_weir].map(|at| Web::start(at, 80, SERVICE));
    for _ in 0..5 {
        assert!(EJECTED(&site.ask(site.through_envoy())));
        assert!(REFUSED(&site.ask(site.through_weir())));
    }
}

/// C1: what a service answers with 500 is a failure to Envoy, and an answer to Weir, which sees
/// connections and not what is said on them, unless it is told to look.
#[test]
fn c1_a_500_ejects_the_service_behind_envoy_and_behind_weir_where_it_reads_http() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let servers =
        [&site.behind_envoy, &site.behind_weir].map(|at| Web::start(at, 80, Duration::ZERO));
    servers.iter().for_each(|server| server.fail(true));
    let envoy = site.envoy(&program, &lab, RULE);
    let agent = site.agent(&lab, &[BREAKER]);
    let ask = |to| (0..5).map(|_| site.ask(to)).collect::<Vec<_>>();
    let (by_envoy, by_weir) = (ask(site.through_envoy()), ask(site.through_weir()));
    // A worker of Envoy's tells the main thread, which ejects: another request may come between.
    let answered = by_envoy.iter().take_while(|end| end.is(500)).count();
    assert!((1..5).contains(&answered), "{by_envoy:?}");
    assert!(by_envoy[answered..].iter().all(EJECTED), "{by_envoy:?}");
    assert!(by_weir.iter().all(|end| end.is(500)), "{by_weir:?}");
    assert_eq!(servers.each_ref().map(Web::requests), [answered as u64, 5]);
    assert_eq!(envoy.stat("outlier_detection.ejections_enforced_total"), 1);
    assert_eq!(tripped(&agent, "web-w", "tc ingress"), 0);
    drop(agent);
    let reading = format!("{BREAKER} http1=on");
    let agent = site.agent(&lab, &[&reading]);
    let by_weir = ask(site.through_weir());
    assert!(by_weir[0].is(500), "{by_weir:?}");
    assert!(by_weir[1..].iter().all(|end| matches!(end, End::Refused)), "{by_weir:?}");
    assert_eq!(tripped(&agent, "web-w", "tc ingress"), 1);
}

/// C1: a service that lets SYNs disappear. Envoy's connect timeout and Weir's are the same number,
/// noticed by a timer there and by the next who comes here.
#[test]
fn c1_silence_is_a_failure_to_both() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let from = site.client.namespace();
    let drops = weir_tests::bpf::Foreign::tc_drops_tcp("deaf").unwrap();
    let _links = [&site.behind_envoy, &site.behind_weir].map(|host| {
        use weir_tests::bpf::{Hook, Place};
        drops.attach(host.namespace(), host.interface(), Hook::Ingress, Place::Last).unwrap()
    });
    let envoy = site.envoy(&program, &lab, RULE);
    let agent = site.agent(&lab, &[BREAKER]);
    let begin = Instant::now();
    eventually("Envoy ejects it", || site.ask(site.through_envoy()), EJECTED);
    let by_envoy = begin.elapsed();
    let begin = Instant::now();
    let dial = |patience| {
        let ends = connect_within(from, site.through_weir(), 1, Duration::from_millis(patience));
        (ends.refused, ends.others.len())
    };
    // Envoy gave its client an answer after the time-out. Weir judges by it and answers nobody: who
    // was admitted waits as long as it likes to.
    assert_eq!(dial(20), (0, 1));
    let refused = || dial(20).0;
    eventually("Weir refuses it", refused, |refused| *refused == 1);
    let by_weir = begin.elapsed();
    println!("silent for 30 ms: refused after {by_envoy:?} (Envoy), {by_weir:?} (Weir)");
    assert_eq!(envoy.stat("outlier_detection.ejections_enforced_total"), 1);
    assert_eq!(tripped(&agent, "web-w", "tc ingress"), 1);
}

/// Requests are not connections. Two clients take turns on a connection each: Envoy, which limits
/// what is under way at its upstream, serves both; Weir limits who is connected, and serves one.
#[test]
fn c1_clients_that_keep_their_connections_take_turns_behind_envoy_alone() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let from = site.client.namespace();
    let behind_envoy = Web::start(&site.behind_envoy, 80, Duration::ZERO);
    let behind_weir = Web::start(&site.behind_weir, 80, Duration::ZERO);
    let envoy = site.envoy(&program, &lab, RULE);
    let agent = site.agent(&lab, &[LIMIT]);

    let mut both = [0, 1].map(|_| connect(from, site.through_envoy()));
    for _ in 0..10 {
        for stream in &mut both {
            assert!(request(stream, false).unwrap().is(200));
        }
    }
    // `maxRequestsPerConnection: 1` is Envoy's to keep, towards the server.
    assert_eq!((behind_envoy.requests(), behind_envoy.connections()), (20, 20));
    assert_eq!(envoy.stat("upstream_rq_pending_overflow"), 0);

    let mut one = connect(from, site.through_weir());
    for _ in 0..10 {
        assert!(request(&mut one, false).unwrap().is(200));
        assert_eq!(site.ask(site.through_weir()), End::Refused);
    }
    assert_eq!((behind_weir.requests(), behind_weir.connections()), (10, 1));
    let limit = agent.limit_named("web-w", "max-connections.80");
    assert_eq!((limit.admitted, limit.refused), (1, 10));
}

const MYSQL: u16 = 3306;
/// Where Envoy listens as a sidecar.
const SIDECAR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 13306);

fn outbound_breaker(vm: &Host) -> String {
    let settings = BREAKER.split_once(": ").unwrap().1;
    format!("outbound-breaker.{MYSQL}: {settings} to={}", vm.ipv4())
}

/// C2: a VM's MySQL, called from a pod. Envoy is the pod's sidecar with a TCP proxy. Weir limits what
/// is open where it is open, at the VM, and breaks off what the pod opens.
#[test]
fn c2_a_vms_database_is_called_once_at_a_time_and_not_at_all_when_it_is_down() {
    let (lab, program) = lab_and_envoy!();
    // What the VM's agent writes has a place of its own.
    let on_vm = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let (with_envoy, with_weir) = (node.pod("app-e").unwrap(), node.pod("app-w").unwrap());
    let (vm_e, vm_w) = (node.client("vm-e").unwrap(), node.client("vm-w").unwrap());
    let other = node.client("other").unwrap();
    let lasting = Duration::from_secs(2);
    let kind = (Protocol::Tcp, SIDECAR.port());
    let proxy =
        || Envoy::start(&program, &lab, with_envoy.namespace(), kind, at(&vm_e, MYSQL), RULE);

    // Too many.
    let servers = [&vm_e, &vm_w].map(|vm| Web::start(vm, MYSQL, SERVICE));
    let envoy = proxy();
    let by_envoy = clients(with_envoy.namespace(), SIDECAR, CLIENTS, lasting);
    print("Envoy", &by_envoy);
    // Whom Envoy refuses was connected first.
    assert_eq!(by_envoy.count(OK) + by_envoy.count(CLOSED), by_envoy.0.len() as u64);
    assert_eq!(servers[0].requests(), by_envoy.count(OK));
    drop(envoy);
    let limit = format!("max-connections.{MYSQL}: 1");
    let file = Side::Own.node_file(&vm_w, &[&limit]);
    let vm_agent = Agent::start(&on_vm, vm_w.namespace(), &file);
    let by_weir = clients(with_weir.namespace(), at(&vm_w, MYSQL), CLIENTS, lasting);
    print("Weir", &by_weir);
    assert_eq!(by_weir.count(OK) + by_weir.count(REFUSED), by_weir.0.len() as u64);
    assert_eq!((servers[1].requests(), servers[1].most_at_once()), (by_weir.count(OK), 1));
    assert_eq!(vm_agent.limit("vm-w").refused, by_weir.count(REFUSED));
    for told in [&by_envoy, &by_weir] {
        assert!(told.count(OK) > 1, "{:?}", told.counts());
    }
    compare("overflow", by_envoy.median(CLOSED), by_weir.median(REFUSED));

    // Down.
    drop(servers);
    let envoy = proxy();
    let policy = [outbound_breaker(&vm_w)];
    let file = Side::Host.node_file(&with_weir, &policy.each_ref().map(String::as_str));
    let agent = Agent::start(&lab, node.namespace(), &file);
    let attempts = || [&vm_e, &vm_w].map(|vm| refused_by(vm.namespace()));
    let before = attempts();
    let by_envoy = clients(with_envoy.namespace(), SIDECAR, CLIENTS, lasting);
    let by_weir = clients(with_weir.namespace(), at(&vm_w, MYSQL), CLIENTS, lasting);
    print("Envoy", &by_envoy);
    print("Weir", &by_weir);
    let after = attempts();
    let attempts = [0, 1].map(|vm| after[vm] - before[vm]);
    println!("attempts that got to the broken VM: {attempts:?} (Envoy, Weir)");
    assert_eq!(by_envoy.count(CLOSED), by_envoy.0.len() as u64);
    assert_eq!(by_weir.count(REFUSED), by_weir.0.len() as u64);
    assert_eq!(envoy.stat("outlier_detection.ejections_enforced_total"), 1);
    assert_eq!(tripped(&agent, "app-w", "tc egress"), 1);
    // Ten dial at once, and nothing limits them before the first answer.
    let few = 1..=CLIENTS as u64;
    assert!(attempts.iter().all(|attempts| few.contains(attempts)), "{attempts:?}");
    compare("ejected", by_envoy.median(CLOSED), by_weir.median(REFUSED));
    // Another upstream is none of this breaker's business.
    let _server = Web::start(&other, MYSQL, Duration::ZERO);
    assert!(with_weir.namespace().run(|| get(at(&other, MYSQL))).unwrap().is(200));
}

/// C2: a breaker at the caller does not know why it was refused. To Envoy its own overflow is no
/// failure; a refusal by the VM's limit is one to the caller's breaker, and `errors=1` opens it at the
/// first moment of too much.
#[test]
fn c2_a_limit_at_the_vm_is_a_failure_to_its_callers_breaker() {
    let (lab, program) = lab_and_envoy!();
    let on_vm = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let (with_envoy, with_weir) = (node.pod("app-e").unwrap(), node.pod("app-w").unwrap());
    let (vm_e, vm_w) = (node.client("vm-e").unwrap(), node.client("vm-w").unwrap());
    let _servers = [&vm_e, &vm_w].map(|vm| Web::start(vm, MYSQL, SERVICE));
    let kind = (Protocol::Tcp, SIDECAR.port());
    let envoy = Envoy::start(&program, &lab, with_envoy.namespace(), kind, at(&vm_e, MYSQL), RULE);
    let limit = format!("max-connections.{MYSQL}: 1");
    let file = Side::Own.node_file(&vm_w, &[&limit]);
    let vm_agent = Agent::start(&on_vm, vm_w.namespace(), &file);
    let file = Side::Host.node_file(&with_weir, &[&outbound_breaker(&vm_w)]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    let lasting = Duration::from_secs(1);
    let by_envoy = clients(with_envoy.namespace(), SIDECAR, CLIENTS, lasting);
    let by_weir = clients(with_weir.namespace(), at(&vm_w, MYSQL), CLIENTS, lasting);
    print("Envoy", &by_envoy);
    print("Weir", &by_weir);
    assert_eq!(envoy.stat("outlier_detection.ejections_enforced_total"), 0);
    assert_eq!(tripped(&agent, "app-w", "tc egress"), 1);
    assert!(by_envoy.count(OK) > CLIENTS as u64, "{:?}", by_envoy.counts());
    assert!(by_weir.count(OK) <= CLIENTS as u64, "{:?}", by_weir.counts());
    assert!(vm_agent.limit("vm-w").refused >= 1);
}

/// C3: two clusters, the same rule in both with an ejection of six seconds, and each minds its own.
#[test]
fn c3_each_cluster_ejects_its_own_service_and_takes_it_back() {
    let (lab, program) = lab_and_envoy!();
    let labs = [lab, Lab::new().unwrap()];
    let sites = labs.each_ref().map(Site::new);
    let rule = Rule { ejection_s: 6, ..RULE };
    let breaker = BREAKER.replace("ejection=60s", "ejection=6s");
    let start = |site: &Site| {
        [&site.behind_envoy, &site.behind_weir].map(|at| Web::start(at, 80, Duration::ZERO))
    };
    let mut servers = sites.each_ref().map(start).map(Some);
    let [one, two] = [0, 1].map(|number| {
        let (lab, site) = (&labs[number], &sites[number]);
        (site.envoy(&program, lab, rule), site.agent(lab, &[LIMIT, &breaker]))
    });
    let ways = sites.each_ref().map(|site| [site.through_envoy(), site.through_weir()]);
    for (site, ways) in sites.iter().zip(ways) {
        assert!(ways.into_iter().all(|way| site.ask(way).is(200)));
    }

    servers[0] = None;
    let broken = Instant::now();
    let [envoy, weir] = ways[0];
    eventually("Envoy ejects it", || sites[0].ask(envoy), EJECTED);
    // The limit may still hold the last connection: that refuses as well, and trips nothing.
    let trips = || (sites[0].ask(weir), tripped(&one.1, "web-w", "tc ingress"));
    eventually("Weir's breaker trips", trips, |(_, tripped)| *tripped == 1);
    servers[0] = Some(start(&sites[0]));

    // In the first cluster until somebody gets in again; in the second all the time.
    let until_well = |way| {
        let mut in_vain = 0;
        while !sites[0].ask(way).is(200) {
            in_vain += 1;
            assert!(broken.elapsed() < Duration::from_secs(40), "it never comes back");
            thread::sleep(Duration::from_millis(50));
        }
        (broken.elapsed(), in_vain)
    };
    let (by_envoy, by_weir) = thread::scope(|scope| {
        let threads = ways[0].map(|way| scope.spawn(move || until_well(way)));
        for _ in 0..50 {
            assert!(sites[1].ask(ways[1][0]).is(200));
            eventually("Weir's limit has room", || sites[1].ask(ways[1][1]), OK);
            // Not a wait: how often its clients ask.
            thread::sleep(Duration::from_millis(50));
        }
        let [by_envoy, by_weir] = threads.map(|thread| thread.join().unwrap());
        (by_envoy, by_weir)
    });
    println!("taken back after, and in vain before: {by_envoy:?} (Envoy), {by_weir:?} (Weir)");
    for (time, in_vain) in [by_envoy, by_weir] {
        assert!(time >= Duration::from_secs(6) && in_vain > 0, "{time:?}");
    }
    let ejections = |envoy: &Envoy<'_>| envoy.stat("outlier_detection.ejections_enforced_total");
    assert_eq!((ejections(&one.0), ejections(&two.0)), (1, 0));
    let trips = [&one.1, &two.1].map(|agent| tripped(agent, "web-w", "tc ingress"));
    assert_eq!(trips, [1, 0]);
    assert_eq!(one.1.decisions("web-w", "tc ingress", "note breaker_closed"), 1);
}
