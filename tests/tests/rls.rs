//! Envoy asks Weir: the real Envoy with the files of `deploy/envoy`, against the agent as people run
//! it, in namespaces of their own. Counted at the clients, at Envoy, at the agent and at the upstream.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use weir_tests::{
    agent::{PATIENCE, eventually},
    envoy::Envoy,
    http::Web,
    lab_and_envoy,
    rls::{
        Answerer, HTTP, HTTP_LOCAL, Site, TCP, UPSTREAM, asked_meanwhile, codes, configuration,
        get, with_seconds_left,
    },
};

/// So many admitted, then so many refused.
fn then(admitted: usize, refused: usize) -> Vec<u16> {
    [vec![200; admitted], vec![429; refused]].concat()
}

/// A3: a limit for one path and one for each other, in the ConfigMap's file; answers, headers
/// and numbers on all sides.
#[test]
fn a3_paths_are_limited_by_the_file_and_everybody_counts_the_same() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let agent = site.agent(&lab);
    let envoy = site.envoy(&lab, &program, 0, HTTP);
    with_seconds_left(25);
    let (from, proxy) = (site.client.namespace(), site.proxy(0));

    let first = get(from, proxy, "/productpage");
    assert_eq!(first.code, 200, "{first:?}");
    assert_eq!(first.header("x-ratelimit-limit"), Some("1, 1;w=60"), "{first:?}");
    assert_eq!(first.header("x-ratelimit-remaining"), Some("0"), "{first:?}");
    let reset: u64 = first.header("x-ratelimit-reset").unwrap().parse().unwrap();
    assert!((1..=60).contains(&reset), "{first:?}");
    let second = get(from, proxy, "/productpage");
    assert_eq!(second.code, 429, "{second:?}");
    assert_eq!(second.header("x-envoy-ratelimited"), Some("true"), "{second:?}");
    // Every other path by itself.
    assert_eq!(site.codes(0, "/a", 102), then(100, 2));
    assert_eq!(site.codes(0, "/b", 3), then(3, 0));

    assert_eq!(web.requests(), 104);
    let envoys =
        ["ok", "over_limit", "error"].map(|name| envoy.count(&format!("ratelimit.{name}")));
    assert_eq!(envoys, [104, 3, 0]);
    let hits = |statistic: &str, key: &str| {
        let name = format!("ratelimit_service_rate_limit_{statistic}");
        agent.metric(&name, &[&format!("key1=\"{key}\"")])
    };
    assert_eq!((hits("total_hits", "PATH"), hits("over_limit", "PATH")), (105.0, 2.0));
    assert_eq!(hits("total_hits", "PATH_/productpage"), 2.0);
    assert_eq!(agent.metric("weir_rls_requests_total", &["outcome=\"over_limit\""]), 3.0);
    assert_eq!(agent.metric("ratelimit_service_response_time_seconds_count", &[]), 107.0);

    // Envoy comes again and finds what was counted.
    drop(envoy);
    let _envoy = site.envoy(&lab, &program, 0, HTTP);
    assert_eq!(site.codes(0, "/productpage", 2), then(0, 2));
}

/// The agent is gone: the filter's own word decides. It comes back, and so do answers.
#[test]
fn a_missing_agent_is_failure_mode_deny_both_ways() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let _web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let mut agent = site.agent(&lab);
    // A failed health check would be asked again in its own time only.
    let deny = HTTP.replace("interval: 1s", "interval: 0.1s");
    // Else a second change of health within a second reaches the workers when that is over.
    let at_once = "connect_timeout: 1s\n    common_lb_config: { update_merge_window: 0s }";
    let deny = deny.replace("connect_timeout: 1s", at_once);
    let allow = deny.replace("failure_mode_deny: true", "failure_mode_deny: false");
    let denying = site.envoy(&lab, &program, 0, &deny);
    let allowing = site.envoy(&lab, &program, 1, &allow);
    assert_eq!((site.codes(0, "/c", 1), site.codes(1, "/c", 1)), (vec![200], vec![200]));

    agent.kill();
    assert_eq!(site.codes(0, "/c", 3), [500; 3]);
    assert_eq!(site.codes(1, "/c", 3), [200; 3]);
    assert_eq!(denying.count("ratelimit.error"), 3);
    assert_eq!(allowing.count("ratelimit.failure_mode_allowed"), 3);

    // While it takes all agents for dead, Envoy asks any of them: one answer is no proof.
    let healthy = || denying.number("cluster.rate_limit_cluster.membership_healthy");
    eventually("Envoy takes the agent for dead", healthy, |healthy| *healthy == 0);
    agent.launch();
    eventually("Envoy finds the agent again", healthy, |healthy| *healthy > 0);
    let error = denying.count("ratelimit.error");
    assert_eq!(site.codes(0, "/d", 3), [200; 3]);
    assert_eq!(denying.count("ratelimit.error"), error);
}

/// Priority 0 is the node's agent, priority 1 any other.
#[test]
fn another_agent_answers_while_the_local_one_is_stopped() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let _web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let mut local = site.agent(&lab);
    let other = Answerer::start(&lab, site.elsewhere.namespace(), "other");
    let envoy = site.envoy(&lab, &program, 0, &HTTP.replace("interval: 1s", "interval: 0.1s"));
    let answered = |by: &Answerer<'_>| by.metric("ratelimit_service_total_requests", &[]);
    eventually(
        "Envoy knows both",
        || envoy.number("cluster.rate_limit_cluster.membership_healthy"),
        |healthy| *healthy == 2,
    );
    assert_eq!(site.codes(0, "/e", 5), [200; 5]);
    assert_eq!((answered(&local), answered(&other)), (5.0, 0.0));

    local.terminate();
    assert_eq!(site.codes(0, "/e", 5), [200; 5], "asked politely, it sends nobody away empty");
    assert_eq!(answered(&other), 5.0);
    assert_eq!(envoy.count("ratelimit.error"), 0);

    local.launch();
    eventually(
        "Envoy comes back to its own agent",
        || (site.code("/e"), answered(&local)),
        |(_, answered)| *answered > 0.0,
    );
    assert_eq!(envoy.count("ratelimit.error"), 0);
}

/// While one agent makes room for the next, its health checks fail, and Envoy asks either of them or
/// another node's: not one of its calls ends in an error.
#[test]
fn an_agent_is_replaced_twenty_times_under_load_and_no_call_fails() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let start = |number| {
        let name = format!("agent-{number}");
        Answerer::start_with(&lab, site.node.namespace(), &name, "  drain-delay: 300ms\n")
    };
    let mut agent = start(0);
    let _other = Answerer::start(&lab, site.elsewhere.namespace(), "elsewhere");
    let envoy = site.envoy(&lab, &program, 0, &HTTP.replace("interval: 1s", "interval: 0.1s"));
    let ends = asked_meanwhile(&site, 4, || {
        for number in 1..=20 {
            let next = start(number);
            agent.terminate();
            agent = next;
            let answered = || agent.metric("ratelimit_service_total_requests", &[]);
            eventually("it is asked", answered, |answered| *answered > 0.0);
        }
    });
    assert_eq!(envoy.count("ratelimit.error"), 0, "{ends:?}");
    assert!(ends.keys().all(|end| end.is(200) || end.is(429)), "{ends:?}");
    let (all, ok): (u64, u64) = (ends.values().sum(), envoy.count("ratelimit.ok"));
    assert_eq!(ok + envoy.count("ratelimit.over_limit"), all, "{ends:?}");
    assert_eq!(web.requests(), ok);
    println!("{all} calls over 21 agents: {ends:?}");
}

/// Killed, an agent takes with it what it was being asked, and no more.
#[test]
fn a_killed_agent_fails_the_calls_in_flight_alone() {
    const CLIENTS: u64 = 4;
    const KILLS: u64 = 5;
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let _web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let start = |number| Answerer::start(&lab, site.node.namespace(), &format!("agent-{number}"));
    let mut agent = start(0);
    let _other = Answerer::start(&lab, site.elsewhere.namespace(), "elsewhere");
    let envoy = site.envoy(&lab, &program, 0, &HTTP.replace("interval: 1s", "interval: 0.1s"));
    let ends = asked_meanwhile(&site, CLIENTS, || {
        for number in 1..=KILLS {
            let next = start(number);
            agent.kill();
            agent = next;
            let answered = || agent.metric("ratelimit_service_total_requests", &[]);
            eventually("it is asked", answered, |answered| *answered > 20.0);
        }
    });
    // A client waits for its answer before it asks again.
    let failed = envoy.count("ratelimit.error");
    assert!(failed <= KILLS * CLIENTS, "{failed}: {ends:?}");
    let error: u64 = ends.iter().filter(|(end, _)| end.is(500)).map(|(_, count)| count).sum();
    assert_eq!(error, failed, "{ends:?}");
    assert!(ends.keys().all(|end| end.is(200) || end.is(429) || end.is(500)), "{ends:?}");
}

/// A1: each proxy has ten tokens of its own, and gets one every six seconds.
#[test]
fn a1_each_proxy_has_a_bucket_of_its_own() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let _web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let _agent = site.agent(&lab);
    let _envoys = [0, 1].map(|which| site.envoy(&lab, &program, which, HTTP_LOCAL));
    let from = site.client.namespace();
    for which in [0, 1] {
        let began = Instant::now();
        let told = site.codes(which, "/", 20);
        let admitted = told.iter().filter(|code| **code == 200).count();
        // On a slow machine the bucket fills meanwhile.
        let filled = began.elapsed().as_secs() as usize / 6;
        assert!((10..=10 + filled).contains(&admitted), "{admitted}, filled {filled}: {told:?}");
        let refused = get(from, site.proxy(which), "/");
        if refused.code == 429 {
            assert_eq!(refused.header("x-local-rate-limit"), Some("true"), "{refused:?}");
        }
    }
    // Not in steps of a minute: the next token comes after six seconds.
    let began = Instant::now();
    eventually("the bucket fills", || site.code("/"), |code| *code == 200);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

/// A2: a path with a bucket of its own, and a smaller one for all else.
#[test]
fn a2_a_path_has_a_larger_bucket_than_all_else() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let _web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let _agent = site.agent(&lab);
    // The path is asked about first; where it has no limit, `all` holds for everything but it.
    let text = HTTP_LOCAL.replace(
        "- generic_key: { descriptor_value: all }",
        "- request_headers: { header_name: \":path\", descriptor_key: PATH }\n              \
         - actions:\n                - header_value_match:\n                    \
         descriptor_key: generic_key\n                    descriptor_value: all\n                    \
         expect_match: false\n                    headers:\n                    - name: \":path\"\n                      \
         string_match: { exact: /productpage }",
    );
    assert_ne!(text, HTTP_LOCAL);
    let _envoy = site.envoy(&lab, &program, 0, &text);
    for (path, tokens, seconds_each) in [("/productpage", 100, 0.6), ("/other", 10, 6.0)] {
        let began = Instant::now();
        let told = site.codes(0, path, tokens + 20);
        let admitted = told.iter().filter(|code| **code == 200).count();
        let filled = (began.elapsed().as_secs_f64() / seconds_each) as usize;
        assert!((tokens..=tokens + filled).contains(&admitted), "{path}: {admitted}, {filled}");
        assert!(told.contains(&429), "{path}");
    }
}

/// A5: one call a minute through the egress gateway, whoever in the mesh makes it.
#[test]
fn a5_the_egress_gateway_has_one_token_for_all() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let _agent = site.agent(&lab);
    let text = HTTP_LOCAL.replace("descriptor_value: all", "descriptor_value: outside");
    let gateway = site.envoy(&lab, &program, 0, &text);
    assert_eq!(site.codes(0, "/", 2), then(1, 1));
    // Another workload, another path: it is the gateway's token.
    let other = &site.proxies[1];
    assert_eq!(codes(other.namespace(), site.proxy(0), "/aa", 2), then(0, 2));
    assert_eq!(web.requests(), 1);
    let envoys =
        ["ok", "over_limit", "error"].map(|name| gateway.count(&format!("ratelimit.{name}")));
    assert_eq!(envoys, [1, 3, 0]);
}

/// A6: calls out, by way of a sidecar and by way of the egress gateway: one file, one count for
/// both, as they share a node. `/` and `/aa` one a minute, every other path a hundred.
#[test]
fn a6_calls_out_are_counted_over_sidecar_and_egress_gateway() {
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
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let agent = site.agent(&lab);
    let loaded = || agent.metric("ratelimit_service_config_load_success", &[]);
    let before = loaded();
    agent.write("productpage.yaml", FILE);
    eventually("the file is read", loaded, |loaded| *loaded > before);
    let [sidecar, gateway] = [0, 1].map(|which| site.envoy(&lab, &program, which, HTTP));
    with_seconds_left(25);
    assert_eq!(site.codes(0, "/", 2), then(1, 1));
    assert_eq!(site.codes(1, "/", 1), then(0, 1));
    assert_eq!(site.codes(1, "/aa", 2), then(1, 1));
    assert_eq!(site.codes(0, "/aa", 1), then(0, 1));
    assert_eq!(site.codes(0, "/b", 60), then(60, 0));
    assert_eq!(site.codes(1, "/b", 42), then(40, 2));
    assert_eq!(web.requests(), 102);
    let over = [&sidecar, &gateway].map(|envoy| envoy.count("ratelimit.over_limit"));
    assert_eq!(over, [2, 4]);
}

/// A7, local: ten a minute in each cluster, each by itself. Here, two nodes that share nothing.
#[test]
fn a7_local_limits_of_two_clusters_are_apart() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let _web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let agents = [site.agent(&lab), Answerer::start(&lab, site.elsewhere.namespace(), "elsewhere")];
    // The second cluster's proxy asks its own agent first.
    let [first, second] =
        ["1", "2"].map(|last| format!("address: 127.0.0.{last}, port_value: 8081"));
    let swapped =
        HTTP_LOCAL.replace(&first, "HERE").replace(&second, &first).replace("HERE", &second);
    let _envoys = [(0, HTTP_LOCAL), (1, &swapped)]
        .map(|(which, text)| site.envoy(&lab, &program, which, text));
    for (which, agent) in agents.iter().enumerate() {
        let began = Instant::now();
        let told = site.codes(which, "/", 15);
        let admitted = told.iter().filter(|code| **code == 200).count();
        let filled = began.elapsed().as_secs() as usize / 6;
        assert!((10..=10 + filled).contains(&admitted), "{admitted}, filled {filled}: {told:?}");
        assert_eq!(agent.metric("ratelimit_service_total_requests", &[]), 15.0);
    }
}

/// A4: one call a minute out of the mesh, for each sidecar.
#[test]
fn a4_calls_out_have_one_token() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let _agent = site.agent(&lab);
    let text = HTTP_LOCAL.replace("descriptor_value: all", "descriptor_value: outside");
    let _envoys = [0, 1].map(|which| site.envoy(&lab, &program, which, &text));
    for which in [0, 1] {
        assert_eq!(site.codes(which, "/", 3), then(1, 2));
    }
    assert_eq!(web.requests(), 2);
}

/// B2: the network filter asks for each connection. What it writes as `limit` is not sent.
#[test]
fn b2_connections_are_limited_by_the_file() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let agent = site.agent(&lab);
    let envoy = site.envoy(&lab, &program, 0, TCP);
    with_seconds_left(15);
    let connect = || {
        let mut stream = TcpStream::connect(site.proxy(0)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Refused, it may be closed before or after this.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.starts_with("HTTP/1.1 200")
    };
    let told: Vec<bool> =
        site.client.namespace().run(|| (0..15).map(|_| connect()).collect()).unwrap();
    assert_eq!(told, [vec![true; 10], vec![false; 5]].concat());
    assert_eq!(web.requests(), 10);
    let envoys = ["total", "ok", "over_limit", "cx_closed", "error"]
        .map(|name| envoy.number(&format!("ratelimit.tcp-global-ratelimit.{name}")));
    assert_eq!(envoys, [15, 10, 5, 5, 0]);
    let hits = |statistic: &str| {
        let name = format!("ratelimit_service_rate_limit_{statistic}");
        agent.metric(&name, &["key1=\"authenticated_false\""])
    };
    assert_eq!((hits("total_hits"), hits("over_limit")), (15.0, 5.0));
}

/// Over the unix socket Envoy is known by its user, and a domain may be kept for one.
#[test]
fn envoy_asks_over_the_unix_socket_and_is_known_by_its_user() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let socket = lab.directory().join("rls.sock");
    let agent = Answerer::start_with(
        &lab,
        site.node.namespace(),
        "agent",
        &format!("  socket: {}\n", socket.display()),
    );
    let agents = [site.node.ipv4().into(), site.elsewhere.ipv4().into()];
    let text = configuration(HTTP, site.web.ipv4().into(), agents);
    let tcp = format!("socket_address: {{ address: {}, port_value: 8081 }}", site.node.ipv4());
    assert!(text.contains(&tcp), "{text}");
    let text = text.replace(&tcp, &format!("pipe: {{ path: {} }}", socket.display()));
    let envoy = Envoy::launch(&program, &lab, site.proxies[0].namespace(), &text);
    let healthy = || envoy.number("cluster.rate_limit_cluster.membership_healthy");
    eventually("Envoy knows its agent", healthy, |healthy| *healthy > 0);
    with_seconds_left(25);
    assert_eq!(site.codes(0, "/productpage", 2), then(1, 1));
    assert_eq!((web.requests(), envoy.count("ratelimit.error")), (1, 0));

    let keep = |uid: u32| {
        let loaded = || agent.metric("ratelimit_service_config_load_success", &[]);
        let before = loaded();
        let text = format!(
            "format: weir-overlay\ndomain: productpage-ratelimit\ncallers: [{{ uid: {uid} }}]\n"
        );
        agent.write("overlay.yaml", &text);
        eventually("the overlay is read", loaded, |loaded| *loaded > before);
    };
    // Denied, it is an error to the filter, and `failure_mode_deny` refuses.
    let mine = fs::metadata("/proc/self").unwrap().uid();
    keep(mine + 1);
    assert_eq!(site.codes(0, "/a", 1), [500]);
    let caller = format!("caller=\"uid {mine}\"");
    assert_eq!(agent.metric("weir_rls_denied_total", &[&caller]), 1.0);
    keep(mine);
    assert_eq!(site.codes(0, "/a", 1), [200]);
}

/// A ConfigMap's change is seen, keeps counts, and a broken one changes nothing.
#[test]
fn a_changed_file_holds_at_once_and_keeps_counts() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let _web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let agent = site.agent(&lab);
    let _envoy = site.envoy(&lab, &program, 0, HTTP);
    with_seconds_left(25);
    assert_eq!(site.codes(0, "/productpage", 2), then(1, 1));
    let file = weir_tests::rls::QUOTAS[0].1;
    let loaded = || agent.metric("ratelimit_service_config_load_success", &[]);
    let before = loaded();
    agent.write(
        "productpage.yaml",
        &file.replace("requests_per_unit: 1\n", "requests_per_unit: 4\n"),
    );
    eventually("the file is read", loaded, |loaded| *loaded > before);
    // Two were counted, the refused one among them.
    assert_eq!(site.codes(0, "/productpage", 3), then(2, 1));
    agent.write("productpage.yaml", "domain: productpage-ratelimit\nlimits: []\n");
    let problems = || agent.metric("weir_rls_config_problems", &[]);
    eventually("the file is refused", problems, |problems| *problems > 0.0);
    assert_eq!(site.codes(0, "/productpage", 1), then(0, 1));
    assert_eq!(site.codes(0, "/f", 1), then(1, 0));
}
