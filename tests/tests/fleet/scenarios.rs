//! Three clusters, each in a network namespace of its own with its agent and the real Envoy, and one
//! Redis that all of them reach over their links. Files are those of `deploy/envoy`, unchanged; an
//! overlay says that their limits are the fleet's.
//!
//! Windows are minutes of the clock, so an attempt that a minute's end falls into is made again.

use std::{
    array,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use redis::Commands as _;
use weir::{
    clock::Clock,
    lab::{Host, Lab, Node},
};
use weir_tests::{
    agent::{PATIENCE, eventually},
    envoy::Envoy,
    http::Web,
    lab_and_envoy,
    redis::Server,
    rls::{Answerer, HTTP, PROXY, TCP, UPSTREAM, configuration, get, with_seconds_left},
};

/// Where Redis listens, in the namespace that joins the others.
const REDIS: u16 = 6379;
/// The domain of the files.
const DOMAIN: &str = "productpage-ratelimit";

/// What makes limits of the file the fleet's: the descriptors, as in the file.
fn overlay(descriptors: &[(&str, Option<&str>)], policy: &str) -> String {
    let each = descriptors.iter().map(|(key, value)| {
        let value = value.map(|value| format!("    value: \"{value}\"\n")).unwrap_or_default();
        format!("  - key: {key}\n{value}    scope: fleet\n    on-store-failure: {policy}\n")
    });
    let each: String = each.collect();
    format!("format: weir-overlay\ndomain: {DOMAIN}\ndescriptors:\n{each}")
}

const PATHS: [(&str, Option<&str>); 2] = [("PATH", Some("/productpage")), ("PATH", None)];
const CONNECTIONS: [(&str, Option<&str>); 1] = [("authenticated", Some("false"))];

/// The namespaces.
struct Site {
    between: Node,
    clusters: [Host; 3],
    web: Host,
}

impl Site {
    fn new(lab: &Lab) -> Self {
        let between = lab.node("between").unwrap();
        let clusters = ["east", "west", "north"].map(|name| between.pod(name).unwrap());
        let web = between.pod("web").unwrap();
        Self { between, clusters, web }
    }

    /// Starts Redis, the agents and the Envoys.
    fn start<'a>(
        &'a self,
        lab: &Lab,
        program: &Path,
        envoy: &str,
        files: &[(&str, &str)],
    ) -> Fleet<'a> {
        let bind = self.between.ipv4().to_string();
        let arguments = ["--bind", "127.0.0.1", &bind, "--protected-mode", "no"];
        let redis = self.between.namespace().run(|| Server::start_with(REDIS, &arguments)).unwrap();
        let start = |which: usize| {
            let cluster = &self.clusters[which];
            // A machine that stops for a moment must not make a batch a lost one.
            let store = format!(
                "  store: {{ redis: \"redis://{bind}:{REDIS}/0\", cluster: {}, timeout: 5s }}\n",
                cluster.name()
            );
            let namespace = cluster.namespace();
            let agent = Answerer::start_with_files(lab, namespace, cluster.name(), &store, files);
            eventually(
                "it reaches Redis",
                || agent.metric("weir_fleet_store_up", &[]),
                |up| *up > 0.0,
            );
            // Its own agent, and the next cluster's while that does not answer.
            let agents = [Ipv4Addr::LOCALHOST, self.clusters[(which + 1) % 3].ipv4()];
            let text = configuration(envoy, self.web.ipv4().into(), agents.map(IpAddr::from));
            let envoy = Envoy::launch(program, lab, namespace, &text);
            let healthy = || envoy.number("cluster.rate_limit_cluster.membership_healthy");
            eventually("Envoy knows its agent", healthy, |healthy| *healthy == 2);
            (agent, envoy)
        };
        let (agents, envoys) = thread::scope(|scope| {
            let start = &start;
            let started = array::from_fn::<_, 3, _>(|which| scope.spawn(move || start(which)));
            started.map(|started| started.join().unwrap()).into_iter().unzip()
        });
        Fleet {
            envoys,
            agents,
            web: Web::start(&self.web, UPSTREAM, Duration::ZERO),
            redis,
            site: self,
        }
    }
}

struct Fleet<'a> {
    envoys: Vec<Envoy<'a>>,
    agents: Vec<Answerer<'a>>,
    web: Web,
    redis: Server,
    site: &'a Site,
}

impl Fleet<'_> {
    fn proxy(&self, which: usize) -> SocketAddr {
        SocketAddr::new(self.site.clusters[which].ipv4().into(), PROXY)
    }

    /// Whether a cluster's proxy lets a request pass; it is answered in any case.
    fn asks(&self, which: usize, path: &str) -> bool {
        let answer = get(self.site.between.namespace(), self.proxy(which), path);
        assert!([200, 429].contains(&answer.code), "{answer:?}");
        answer.code == 200
    }

    /// Whether a cluster's proxy lets a connection pass.
    fn connects(&self, which: usize) -> bool {
        let connect = || {
            let mut stream = TcpStream::connect(self.proxy(which)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // Refused, it may be closed before or after this.
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer.starts_with("HTTP/1.1 200")
        };
        self.site.between.namespace().run(connect).unwrap()
    }

    /// A statistic of all Envoys together.
    fn envoys(&self, name: &str) -> u64 {
        total(&self.envoys, name)
    }

    /// What Redis counted in this minute under the original's name, and for how long it keeps that.
    fn counted(&self, entry: &str) -> (u64, i64) {
        let key = format!("{DOMAIN}_{entry}_{}", minute() * 60);
        let mut client = self.redis.client();
        (client.get(&key).unwrap_or(0), client.ttl(&key).unwrap())
    }
}

fn total(envoys: &[Envoy<'_>], name: &str) -> u64 {
    envoys.iter().map(|envoy| envoy.count(&format!("ratelimit.{name}"))).sum()
}

fn minute() -> u64 {
    Clock.realtime_ns() / 60_000_000_000
}

/// Makes the attempt, and makes it again in a fresh minute if one ended meanwhile, whatever came of it.
fn within_a_minute<T>(attempt: impl Fn() -> T) -> T {
    let once = || {
        with_seconds_left(8);
        let begin = minute();
        let seen = panic::catch_unwind(AssertUnwindSafe(&attempt));
        (minute() == begin).then_some(seen)
    };
    let again = || {
        let spent_from = minute();
        while minute() == spent_from {
            thread::sleep(Duration::from_millis(50));
        }
        once()
    };
    let seen = once().or_else(again).expect("an attempt within a minute");
    seen.unwrap_or_else(|failure| panic::resume_unwind(failure))
}

/// Asks one cluster after the other until the limit is used up and all are refused. What each admitted.
///
/// A decision that a busy machine keeps waiting for Redis for 5 ms is refused, too, and what Redis then
/// grants is there for the next.
fn spend(limit: u64, clusters: &[usize], ask: impl Fn(usize) -> bool) -> [u64; 3] {
    let (mut admitted, mut refused) = ([0; 3], 0);
    let patience = Instant::now() + Duration::from_secs(10);
    for which in clusters.iter().cycle() {
        if ask(*which) {
            (admitted[*which], refused) = (admitted[*which] + 1, 0);
        } else {
            refused += 1;
        }
        let is_used_up = admitted.iter().sum::<u64>() >= least(limit);
        if (is_used_up && refused >= 4 * clusters.len()) || Instant::now() > patience {
            break;
        }
    }
    admitted
}

/// All but a hundredth.
fn least(limit: u64) -> u64 {
    limit - limit / 100
}

#[track_caller]
fn assert_exact(limit: u64, admitted: [u64; 3]) {
    let sum: u64 = admitted.iter().sum();
    assert!((least(limit)..=limit).contains(&sum), "{sum} of {limit}: {admitted:?}");
}

/// A3: the ingress gateways of three clusters.
#[test]
fn a3_ingress_gateways_of_three_clusters_have_one_limit() {
    redis_or_skip!();
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let files = [("fleet.yaml", &*overlay(&PATHS, "deny"))];
    let fleet = site.start(&lab, &program, HTTP, &files);
    within_a_minute(|| {
        let before = fleet.web.requests();
        let page = spend(1, &[0, 1, 2], |which| fleet.asks(which, "/productpage"));
        let (counted, ttl) = fleet.counted("PATH_/productpage");
        assert_exact(1, page);
        // Every other path by itself.
        let others =
            ["/a", "/b"].map(|path| spend(100, &[0, 1, 2], |which| fleet.asks(which, path)));
        for other in others {
            assert_exact(100, other);
            assert!(other.iter().all(|admitted| *admitted > 0), "each cluster spends: {other:?}");
        }
        let sum: u64 = [page, others[0], others[1]].iter().flatten().sum();
        assert_eq!(fleet.web.requests() - before, sum);
        // The original would see the same counter, and for as long.
        assert!(counted >= 1 && (1..=60 + 300 + 10).contains(&ttl), "{counted}, {ttl}");
    });
    // What clients see of it.
    let seen = within_a_minute(|| {
        let ask = || get(site.between.namespace(), fleet.proxy(1), "/productpage");
        eventually("the limit is reached", ask, |seen| seen.code == 429)
    });
    assert_eq!(seen.code, 429, "{seen:?}");
    assert_eq!(seen.header("x-ratelimit-limit"), Some("1, 1;w=60"), "{seen:?}");
    assert_eq!(seen.header("x-envoy-ratelimited"), Some("true"), "{seen:?}");
    assert_eq!(fleet.envoys("error"), 0);
    assert_eq!(fleet.envoys("ok"), fleet.web.requests());
    let commands: f64 =
        fleet.agents.iter().map(|agent| agent.metric("weir_fleet_store_commands_total", &[])).sum();
    println!("{} requests, {commands} commands", fleet.web.requests() + fleet.envoys("over_limit"));
}

/// A6: calls out of the mesh, by sidecars and by the egress gateway.
#[test]
fn a6_sidecars_and_the_egress_gateway_have_one_limit() {
    const FILE: &str = "\
domain: productpage-ratelimit
descriptors:
  - key: PATH
    value: \"/\"
    rate_limit: { unit: minute, requests_per_unit: 1 }
  - key: PATH
    value: \"/aa\"
    rate_limit: { unit: minute, requests_per_unit: 1 }
  - key: PATH
    rate_limit: { unit: minute, requests_per_unit: 100 }
";
    redis_or_skip!();
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let paths = [("PATH", Some("/")), ("PATH", Some("/aa")), ("PATH", None)];
    let files = [("productpage.yaml", FILE), ("fleet.yaml", &*overlay(&paths, "deny"))];
    let fleet = site.start(&lab, &program, HTTP, &files);
    within_a_minute(|| {
        let before = fleet.web.requests();
        let spent = [("/", 1), ("/aa", 1), ("/b", 100)].map(|(path, limit)| {
            let admitted = spend(limit, &[0, 1, 2], |which| fleet.asks(which, path));
            assert_exact(limit, admitted);
            admitted.iter().sum::<u64>()
        });
        assert_eq!(fleet.web.requests() - before, spent.iter().sum::<u64>());
    });
    assert_eq!(fleet.envoys("error"), 0);
}

/// A7: a limit that is global, with everybody asking at once.
#[test]
fn a7_clusters_that_ask_at_once_have_one_limit() {
    redis_or_skip!();
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let files = [("fleet.yaml", &*overlay(&PATHS, "deny"))];
    let fleet = site.start(&lab, &program, HTTP, &files);
    for (path, limit) in [("/productpage", 1), ("/c", 100)] {
        within_a_minute(|| {
            let at_once = thread::scope(|scope| {
                let fleet = &fleet;
                let each = [0, 1, 2].map(|which| {
                    scope.spawn(move || (0..50).filter(|_| fleet.asks(which, path)).count())
                });
                each.map(|each| each.join().unwrap() as u64)
            });
            let rest = limit - at_once.iter().sum::<u64>().min(limit);
            let after = spend(rest, &[0, 1, 2], |which| fleet.asks(which, path));
            assert_exact(limit, array::from_fn(|which| at_once[which] + after[which]));
        });
    }
    assert_eq!(fleet.envoys("error"), 0);
}

/// B2: the network filter asks for each connection. It writes another limit, which Envoy does not send.
#[test]
fn b2_connections_through_three_clusters_have_one_limit() {
    redis_or_skip!();
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let files = [("fleet.yaml", &*overlay(&CONNECTIONS, "deny"))];
    let fleet = site.start(&lab, &program, TCP, &files);
    within_a_minute(|| {
        let before = fleet.web.connections();
        let admitted = spend(10, &[0, 1, 2], |which| fleet.connects(which));
        assert_exact(10, admitted);
        assert_eq!(fleet.web.connections() - before, admitted.iter().sum::<u64>());
        let (counted, ttl) = fleet.counted("authenticated_false");
        assert!(counted >= 10 && (1..=60 + 300 + 10).contains(&ttl), "{counted}, {ttl}");
    });
}

/// B5: a VM's database, called by way of the caller's own proxy and by way of the east-west gateway:
/// whoever comes second has what the first left.
#[test]
fn b5_callers_and_the_east_west_gateway_have_one_limit() {
    const CALLER: usize = 0;
    const GATEWAY: usize = 1;
    redis_or_skip!();
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let files = [("fleet.yaml", &*overlay(&CONNECTIONS, "deny"))];
    let fleet = site.start(&lab, &program, TCP, &files);
    within_a_minute(|| {
        // A refusal is perhaps a busy machine's; what it asked for is there the next time.
        let first = (0..40).filter(|_| fleet.connects(CALLER)).take(4).count() as u64;
        let [_, second, _] = spend(10 - first, &[GATEWAY], |which| fleet.connects(which));
        let after = (0..4).filter(|_| fleet.connects(CALLER)).count() as u64;
        assert_exact(10, [first + after, second, 0]);
        assert!(first == 4 && second > 0, "{first}, {second}");
    });
}

/// B6: first each cluster has a limit of its own; from the moment that an overlay says so, all have one.
#[test]
fn b6_limits_of_three_clusters_are_apart_until_they_are_the_fleets() {
    redis_or_skip!();
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let fleet = site.start(&lab, &program, TCP, &[]);
    within_a_minute(|| {
        let admitted = spend(30, &[0, 1, 2], |which| fleet.connects(which));
        assert_eq!(admitted, [10; 3]);
    });
    for agent in &fleet.agents {
        let loaded = || agent.metric("ratelimit_service_config_load_success", &[]);
        let before = loaded();
        agent.write("fleet.yaml", &overlay(&CONNECTIONS, "deny"));
        eventually("the file is read", loaded, |loaded| *loaded > before);
    }
    within_a_minute(|| {
        let at_once = thread::scope(|scope| {
            let fleet = &fleet;
            let each = [0, 1, 2].map(|which| {
                scope.spawn(move || (0..10).filter(|_| fleet.connects(which)).count())
            });
            each.map(|each| each.join().unwrap() as u64)
        });
        let rest = 10 - at_once.iter().sum::<u64>().min(10);
        let after = spend(rest, &[0, 1, 2], |which| fleet.connects(which));
        assert_exact(10, array::from_fn(|which| at_once[which] + after[which]));
    });
}

/// Redis is killed in the middle of load and comes back empty: proxies see no error, and the clusters go
/// on by their shares.
#[test]
fn nobody_behind_envoy_sees_that_redis_is_killed() {
    const FILE: &str = "\
domain: productpage-ratelimit
descriptors:
  - key: PATH
    rate_limit: { unit: second, requests_per_unit: 100000 }
";
    redis_or_skip!();
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let overlay = overlay(&[("PATH", None)], "local");
    let files = [("productpage.yaml", FILE), ("fleet.yaml", &*overlay)];
    let Fleet { envoys, agents, mut redis, web: _web, .. } =
        site.start(&lab, &program, HTTP, &files);
    let (away, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let ask = |which: usize| {
        let (mut meanwhile, to) =
            (Vec::new(), SocketAddr::new(site.clusters[which].ipv4().into(), PROXY));
        while !over.load(SeqCst) {
            let before = away.load(SeqCst);
            let code = get(site.between.namespace(), to, "/x").code;
            assert!([200, 429].contains(&code), "{code}");
            if before && away.load(SeqCst) {
                meanwhile.push(code);
            }
            // Others want the CPU, too.
            thread::sleep(Duration::from_millis(3));
        }
        meanwhile
    };
    let each = |name, holds: fn(f64) -> bool| {
        for agent in &agents {
            eventually(name, || agent.metric(name, &[]), |seen| holds(*seen));
        }
    };
    let happens = AssertUnwindSafe(|| {
        each("weir_fleet_assumed_share", |share| share > 0.0);
        redis.kill();
        each("weir_fleet_store_up", |up| up == 0.0);
        away.store(true, SeqCst);
        each("weir_fleet_assumed_hits_total", |hits| hits > 0.0);
        away.store(false, SeqCst);
        site.between.namespace().run(|| redis.restart()).unwrap();
        each("weir_fleet_store_up", |up| up > 0.0);
    });
    let meanwhile = thread::scope(|scope| {
        let ask = &ask;
        let load = [0, 1, 2].map(|which| scope.spawn(move || ask(which)));
        let happened = panic::catch_unwind(happens);
        over.store(true, SeqCst);
        let meanwhile = load.map(|load| load.join().unwrap());
        happened.unwrap_or_else(|failure| panic::resume_unwind(failure));
        meanwhile
    });
    for codes in meanwhile {
        assert!(!codes.is_empty() && codes.iter().all(|code| *code == 200), "{codes:?}");
    }
    assert_eq!(total(&envoys, "error"), 0);
}
