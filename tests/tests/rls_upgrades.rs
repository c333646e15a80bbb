//! Agents that limit connections in the kernel and answer Envoy, replaced one after another as a
//! rolling update does it: the successor starts beside its predecessor and takes over.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

use std::{fs, path::PathBuf, time::Duration};

use weir::lab::Lab;
use weir_tests::{
    agent::{Agent, eventually, request},
    http::Web,
    lab_and_envoy,
    rls::{Answerer, HTTP, QUOTAS, Site, UPSTREAM, asked_meanwhile},
    site::Side,
};

const UPGRADES: u32 = 20;

/// The node file: a limit that is never reached, whose count tells of every connection, and the
/// service with the files of `deploy/envoy`.
fn node_file(lab: &Lab, site: &Site) -> String {
    let quotas = lab.directory().join("quotas");
    fs::create_dir_all(&quotas).unwrap();
    for (name, text) in QUOTAS {
        fs::write(quotas.join(name), text).unwrap();
    }
    let workload = Side::Host.node_file(&site.web, &["connections.9080: 100000/s"]);
    let quotas = quotas.display();
    format!("rls: {{ listen: 0.0.0.0:8081, quotas: {quotas}, drain-delay: 300ms }}\n{workload}")
}

/// Where a successor answers probes until it takes over.
fn probes(lab: &Lab, number: u32) -> PathBuf {
    lab.directory().join(format!("probe-{number}.sock"))
}

/// Twenty times, under load: the successor proves that the kernel takes its programs, answers beside
/// its predecessor, and takes over when that ends. Not one of Envoy's calls ends in an error, and the
/// kernel's count of connections misses none.
#[test]
fn an_agent_with_its_data_plane_is_replaced_twenty_times_and_no_call_fails() {
    let (lab, program) = lab_and_envoy!();
    let site = Site::new(&lab);
    let web = Web::start(&site.web, UPSTREAM, Duration::ZERO);
    let file = node_file(&lab, &site);
    let mut agent = Agent::start(&lab, site.node.namespace(), &file);
    let _other = Answerer::start(&lab, site.elsewhere.namespace(), "elsewhere");
    // The upstream ends the connection after each request, so that each is one more.
    let text = HTTP.replace("interval: 1s", "interval: 0.1s").replacen(
        "type: STATIC",
        "type: STATIC\n    typed_extension_protocol_options:\n      \
         envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
         common_http_protocol_options: { max_requests_per_connection: 1 }\n        \
         explicit_http_config: { http_protocol_options: {} }",
        1,
    );
    let envoy = site.envoy(&lab, &program, 0, &text);
    let ends = asked_meanwhile(&site, 4, || {
        for number in 1..=UPGRADES {
            let own = probes(&lab, number);
            let mut next = Agent::new(&lab, site.node.namespace(), &file);
            next.launch_with(&["--standby".as_ref(), own.as_os_str()]);
            let said = || request(&own, "GET", "/readyz", "").map(|(_, said)| said);
            let waits = || said().is_ok_and(|said| said.contains("\"standby\":true"));
            eventually("the successor is ready", waits, |waits| *waits);
            assert!(agent.terminate().success());
            agent = next;
            agent.await_ready();
            let answered = || agent.metric("ratelimit_service_total_requests", &[]);
            eventually("it is asked", answered, |answered| *answered > 0.0);
        }
    });
    assert_eq!(envoy.count("ratelimit.error"), 0, "{ends:?}");
    assert!(ends.keys().all(|end| end.is(200) || end.is(429)), "{ends:?}");
    let (all, ok): (u64, u64) = (ends.values().sum(), envoy.count("ratelimit.ok"));
    assert_eq!(ok + envoy.count("ratelimit.over_limit"), all, "{ends:?}");
    assert_eq!(web.requests(), ok);

    let workload = agent.workload("web");
    assert_eq!(workload.condition, "enforced");
    let limit = agent.limit_named("web", "connections.9080");
    assert_eq!((limit.admitted, limit.refused), (web.connections(), 0));
    assert!(limit.admitted >= ok, "{} connections for {ok} requests", limit.admitted);
    println!("{all} calls, {} connections over 21 agents: {ends:?}", limit.admitted);
}
