//! SYNs that wait for the fleet's store, where programs are filters: they are sent once more, and judged
//! again.

use std::{collections::BTreeSet, fs, net::SocketAddr, time::Duration};

use weir::lab::Lab;
use weir_tests::{
    agent::{Agent, eventually},
    raw::{Answer, Says, Wire, syn},
    redis, redis_or_skip,
    site::{Side, serve},
    vm,
};

/// How long an emulated machine may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 80;
const LIMIT: u64 = 5;
/// More than the limit.
const SYNS: u16 = 8;

#[test]
fn syns_that_wait_for_the_store_are_sent_once_more() {
    redis_or_skip!();
    inside!(|| {
        for side in [Side::Host, Side::Pod] {
            let (lab, redis) = (Lab::new().unwrap(), redis::Server::start());
            let node = lab.node("node").unwrap();
            let (web, client) = (node.pod("web").unwrap(), node.client("client").unwrap());
            let _server = serve(&web, &[PORT]);
            let quotas = lab.directory().join("quotas.yaml");
            // Too little to lease ahead.
            let limit = format!("{{ unit: year, requests_per_unit: {LIMIT} }}");
            let text = format!(
                "format: weir\ndomain: shop\ndescriptors:\n- key: user\n  scope: fleet\n  \
                 on-store-failure: deny\n  rate_limit: {limit}\n"
            );
            fs::write(&quotas, text).unwrap();
            let store = redis.socket().display().to_string();
            // An emulated machine is slow, and what takes longer is given up.
            let text = format!(
                "rls:\n  listen: 127.0.0.1:8081\n  quotas: {}\n  \
                 store: {{ redis: \"unix://{store}\", node: one, timeout: 10s }}\n{}",
                quotas.display(),
                side.node_file(&web, &["quota.80: domain=shop user=ann"])
            );
            let agent = Agent::start(&lab, node.namespace(), &text);
            assert_eq!(agent.workload("web").attached.as_deref(), Some("clsact"));
            // Each is sent once by this client: what comes of it, comes of the agent's sending. (The
            // client's own stack resets what it knows nothing of.)
            let wire = Wire::open(&client).unwrap();
            let to = SocketAddr::new(web.ipv4().into(), PORT);
            for number in 0..SYNS {
                let from = SocketAddr::new(client.ipv4().into(), 10_000 + number);
                wire.send(&syn(from, to, 7));
            }
            let count = |verdict| agent.decisions("web", "tc ingress", verdict);
            let decided = || (count("pass admitted"), count("reset quota"));
            let all = (LIMIT, u64::from(SYNS) - LIMIT);
            eventually("all are decided", decided, |decided| *decided == all);
            assert!(count("note quota_asked") >= 1, "{side:?}");
            let told = |answers: &[Answer], says| {
                let told = answers.iter().filter(|answer| answer.says == says);
                told.map(|answer| answer.to.port()).collect::<BTreeSet<_>>().len() as u64
            };
            let counts =
                |answers: &[Answer]| (told(answers, Says::SynAck), told(answers, Says::Reset));
            let answers = wire.answers(PATIENCE, |answers| counts(answers) == all);
            assert_eq!(counts(&answers), all, "{side:?}");
            assert_eq!(agent.metric("weir_quota_unsent_syns_total", &[]), 0.0);
        }
    });
}
