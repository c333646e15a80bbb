//! The API server is away, forgets, is slow, and talks nonsense.

use std::time::Duration;

use serde_json::json;
use weir_tests::{agent::eventually, apiserver::Trouble, kubelet::uid, site::serve};

use super::{Cluster, NOTHING, await_attached, await_gone, await_limit, codes, name};

const LINE: &str = "weir.dev/connections.80";

#[test]
fn pods_stay_limited_while_the_api_server_is_away() {
    let lab = lab!();
    let mut cluster = Cluster::new(&lab);
    let (web, db) = (cluster.node.pod("web").unwrap(), cluster.node.pod("db").unwrap());
    let client = cluster.node.client("client").unwrap();
    let _servers = (serve(&web, &[80]), serve(&db, &[80]));
    let (web_name, db_name) = (name(&web), name(&db));
    let _containers = (
        cluster.start(&web, &uid(1), json!({LINE: "2 per 60s"})),
        cluster.start(&db, &uid(2), json!({LINE: "2 per 60s"})),
    );
    let node = &cluster.node;
    let (server, kubelet) = (&mut cluster.server, &cluster.kubelet);
    let agent = weir_tests::agent::Agent::new(&lab, node.namespace(), NOTHING);
    let mut agent = agent.with_pods(server, kubelet);
    agent.launch();
    agent.await_ready();
    await_attached(&agent, &web_name);
    await_attached(&agent, &db_name);
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");
    // What is known is kept within a second.
    let kept = lab.directory().join("pods.json");
    eventually("the pods are kept", || kept.exists(), |exists| *exists);

    server.leave();
    let failure = || agent.status().kubernetes.unwrap().failure;
    eventually("the agent notices", failure, Option::is_some);
    let (code, body) = agent.request("GET", "/readyz", "").unwrap();
    assert_eq!(code, 200, "all that is known is decided: {body}");
    assert!(body.contains("the API server is not heard"), "{body}");
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
    // Another agent does not know more than the last one, and takes nothing away.
    agent.kill();
    server.delete("pods", &db_name);
    agent.launch();
    let status = || agent.request("GET", "/status", "").is_ok();
    eventually("the agent answers", status, |answers| *answers);
    await_attached(&agent, &web_name);
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
    assert_eq!(codes(client.namespace(), &db, 5), "ok:2 refused:3");
    let (code, body) = agent.request("GET", "/readyz", "").unwrap();
    assert_eq!(code, 503, "nobody has listed the pods: {body}");
    assert!(body.contains("not all pods were listed"), "{body}");

    server.come_back(node.namespace());
    agent.await_ready();
    await_gone(&agent, &db_name);
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
    assert_eq!(codes(client.namespace(), &db, 5), "ok:5");
}

#[test]
fn an_agent_that_knows_no_pods_takes_nothing_away() {
    let lab = lab!();
    let mut cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let client = cluster.node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let _container = cluster.start(&web, &uid(1), json!({LINE: "2 per 60s"}));
    let node = &cluster.node;
    let (server, kubelet) = (&mut cluster.server, &cluster.kubelet);
    let agent = weir_tests::agent::Agent::new(&lab, node.namespace(), NOTHING);
    let mut agent = agent.with_pods(server, kubelet);
    agent.launch();
    agent.await_ready();
    await_attached(&agent, &name(&web));
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");
    server.leave();
    agent.kill();
    // Its state is lost, its pins are not.
    let _ = std::fs::remove_file(lab.directory().join("pods.json"));
    agent.launch();
    let failure = || {
        let (_, body) = agent.request("GET", "/status", "").ok()?;
        let status: weir::app::view::Status = serde_json::from_str(&body).ok()?;
        status.kubernetes?.failure
    };
    eventually("the agent has asked in vain", failure, Option::is_some);
    assert_eq!(agent.request("GET", "/readyz", "").unwrap().0, 503);
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
    server.come_back(node.namespace());
    agent.await_ready();
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
}

/// What is known is written once a second, so a pod may come and the agent be killed before.
#[test]
fn a_pod_that_was_not_written_yet_keeps_what_it_spent() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let (web, db) = (cluster.node.pod("web").unwrap(), cluster.node.pod("db").unwrap());
    let client = cluster.node.client("client").unwrap();
    let _servers = (serve(&web, &[80]), serve(&db, &[80]));
    let mut agent = cluster.agent(&lab, NOTHING);
    let policy = || json!({LINE: "2 per 60s"});
    let _db = cluster.start(&db, &uid(1), policy());
    await_attached(&agent, &name(&db));
    let path = lab.directory().join("pods.json");
    let kept = || std::fs::read_to_string(&path).unwrap_or_default();
    let before = eventually("the first is written", kept, |text| text.contains(&uid(1)));
    let _web = cluster.start(&web, &uid(2), policy());
    await_attached(&agent, &name(&web));
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");

    agent.kill();
    std::fs::write(&path, before).unwrap();
    // Time to do something wrong.
    cluster.server.be_slow(Duration::from_millis(700));
    agent.launch();
    let up = || agent.request("GET", "/healthz", "").map_or(0, |(code, _)| code);
    eventually("it runs", up, |code| *code == 200);
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
    agent.await_ready();
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
    assert_eq!(agent.limit(&name(&web)).admitted, 2, "its counts are the same");
}

#[test]
fn a_troubled_watch_loses_no_change() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let agent = cluster.agent(&lab, NOTHING);
    let _container = cluster.start(&web, &uid(1), json!({LINE: "1/s"}));
    let web_name = name(&web);
    await_limit(&agent, &web_name, Some("1/s"));
    let kubernetes = || agent.status().kubernetes.unwrap();

    cluster.server.drop_watches();
    cluster.server.annotate("pods", &web_name, LINE, Some("2/s"));
    await_limit(&agent, &web_name, Some("2/s"));
    cluster.server.make_trouble(Trouble::HalfALine);
    cluster.server.annotate("pods", &web_name, LINE, Some("3/s"));
    await_limit(&agent, &web_name, Some("3/s"));
    let before = kubernetes().errors;
    cluster.server.make_trouble(Trouble::Nonsense);
    cluster.server.annotate("pods", &web_name, LINE, Some("4/s"));
    await_limit(&agent, &web_name, Some("4/s"));
    assert!(kubernetes().errors > before, "nonsense is counted");
    let before = kubernetes().relists;
    cluster.server.forget();
    cluster.server.annotate("pods", &web_name, LINE, Some("5/s"));
    await_limit(&agent, &web_name, Some("5/s"));
    eventually("it listed again", || kubernetes().relists, |relists| *relists > before);
    cluster.server.be_slow(Duration::from_millis(300));
    cluster.server.drop_watches();
    cluster.server.annotate("pods", &web_name, LINE, Some("6/s"));
    await_limit(&agent, &web_name, Some("6/s"));
    // What happened meanwhile is not missed either.
    cluster.server.be_slow(Duration::ZERO);
    cluster.server.forget();
    cluster.server.delete("pods", &web_name);
    await_gone(&agent, &web_name);
    assert_eq!(cluster.server.refused(), Vec::<String>::new());
}
