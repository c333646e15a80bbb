//! What can be said of each pod, and what is said on the pods themselves.

use serde_json::{Value, json};
use weir::{
    lab::Host,
    load::{Plan, Talk},
};
use weir_common::layout::MAX_WORKLOADS;
use weir_tests::{
    agent::eventually,
    bpf::{Foreign, Hook, Place},
    kubelet::{pod_of, uid},
    site::{nft, run, serve},
};

use super::{Cluster, NOTHING, at, await_attached, await_limit, codes, name};

#[test]
fn every_pod_has_a_condition() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let hosts: Vec<_> =
        ["proxy", "quiet", "pending", "mesh"].map(|name| cluster.node.pod(name).unwrap()).into();
    let [proxy, quiet, pending, mesh] = hosts.as_slice() else { panic!() };
    let policy = || json!({"weir.dev/connections": "5/s"});
    for (number, host, annotations) in [(1, proxy, policy()), (2, quiet, json!({}))] {
        let mut object = pod_of(host, &uid(number), annotations);
        object["spec"]["hostNetwork"] = true.into();
        cluster.server.put("pods", object);
    }
    cluster.server.put("pods", pod_of(pending, &uid(3), policy()));
    let mut object = pod_of(mesh, &uid(4), policy());
    let sidecar = json!({"name": "istio-proxy", "image": "none"});
    object["spec"]["containers"].as_array_mut().unwrap().push(sidecar);
    cluster.server.put("pods", object);
    let _container = cluster.kubelet.run(&uid(4), cluster.node.namespace(), mesh.namespace());

    // Ready means that all of them are decided.
    let agent = cluster.agent(&lab, NOTHING);
    await_attached(&agent, &name(mesh));
    let told = |host| {
        let workload = agent.workload(&name(host));
        (workload.condition, workload.detail.unwrap_or_default())
    };
    let (condition, detail) = told(proxy);
    assert_eq!(condition, "not-enforced");
    assert!(detail.contains("node's network"), "{detail}");
    assert_eq!(told(quiet), ("no-policy".to_owned(), String::new()));
    let (condition, detail) = told(pending);
    assert_eq!(condition, "not-enforced");
    assert!(detail.contains("no process"), "{detail}");
    let (condition, detail) = told(mesh);
    assert_eq!(condition, "enforced");
    assert!(detail.contains("istio-proxy"), "{detail}");
    let (code, body) = agent.request("GET", "/readyz", "").unwrap();
    assert_eq!(code, 200, "{body}");
    let kubernetes = agent.status().kubernetes.unwrap();
    assert_eq!((kubernetes.pods, kubernetes.synced, kubernetes.failure), (4, true, None));

    // It is there as soon as it has a process.
    let _container = cluster.kubelet.run(&uid(3), cluster.node.namespace(), pending.namespace());
    await_attached(&agent, &name(pending));
}

/// More workloads than a node has room for: that is said for as long as it is so, and once.
#[test]
fn what_the_kernel_has_no_room_for_is_a_problem_until_it_has() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let workload = |number: u32| {
        format!(
            "  - name: w{number}\n    interface: none{number}\n    policy: {{ connections.80: 1/s }}\n"
        )
    };
    let many: String = (0..MAX_WORKLOADS).map(workload).collect();
    let agent = cluster.agent(&lab, &format!("workloads:\n{many}"));
    let full = || {
        let problems = agent.status().problems;
        problems.iter().filter(|problem| problem.contains("not all of it holds")).count()
    };
    assert_eq!(full(), 1);
    let _container = cluster.start(&web, &uid(1), json!({"weir.dev/connections.80": "5/s"}));
    let is_known = || agent.status().workloads.iter().any(|workload| workload.name == name(&web));
    eventually("the pod is known", is_known, |is_known| *is_known);
    for value in ["6/s", "7/s", "8/s"] {
        cluster.server.annotate("pods", &name(&web), "weir.dev/connections.80", Some(value));
        let explained = || agent.request("GET", "/explain/shop%2Fweb", "").unwrap().1;
        eventually("it is read", explained, |text| text.contains(&format!("\"{value}\"")));
        assert_eq!(full(), 1);
    }
    agent.rewrite(NOTHING);
    eventually("there is room", full, |count| *count == 0);
    await_limit(&agent, &name(&web), Some("8/s"));
    await_attached(&agent, &name(&web));
}

fn notes(events: &[Value], reason: &str) -> Vec<String> {
    let events = events.iter().filter(|event| event["reason"] == reason);
    events.map(|event| event["note"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_bad_value_is_told_once_and_the_last_good_one_holds() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let client = cluster.node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let mut agent = cluster.agent(&lab, NOTHING);
    let key = "weir.dev/connections.80";
    let _container = cluster.start(&web, &uid(1), json!({key: "2 per 60s"}));
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    await_limit(&agent, &web_name, Some("2/m"));
    cluster.server.annotate("pods", &web_name, key, Some("9 per fortnight"));
    let look = || notes(&cluster.server.events(), "WeirBadValue");
    let told = eventually("an event is there", look, |notes| !notes.is_empty());
    assert!(told[0].contains("`fortnight`") && told[0].contains("expected"), "{told:?}");
    assert!(told[0].contains("the last good value `2 per 60s` stays"), "{told:?}");
    let event = cluster.server.events().remove(0);
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["regarding"]["uid"], uid(1));
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");
    // Neither another change of the pod, nor a restart of the agent, takes the old value away.
    cluster.server.edit("pods", &web_name, |pod| pod["metadata"]["labels"]["x"] = "y".into());
    agent.kill();
    agent.restart();
    await_limit(&agent, &web_name, Some("2/m"));
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
    let look = || notes(&cluster.server.events(), "WeirLimitReached");
    let reached = eventually("the limit is told of", look, |notes| !notes.is_empty());
    assert!(reached[0].contains("connections.80: 2/m"), "{reached:?}");
    // One for each agent that ran, however often it was seen. The second one has said it before it
    // said that the limit is reached, which it notices later.
    let look = || notes(&cluster.server.events(), "WeirBadValue").len();
    eventually("both agents have said it", look, |count| *count == 2);
    cluster.server.annotate("pods", &web_name, key, Some("100/s"));
    await_limit(&agent, &web_name, Some("100/s"));
    assert_eq!(look(), 2, "and said it once");
    assert_eq!(cluster.server.refused(), Vec::<String>::new());
    assert!(cluster.server.count("create", "events") >= 2);
}

/// Clients behind an address that they share are one source to a limit per source; as many clients
/// with addresses of their own are not.
#[test]
fn clients_behind_one_address_are_told() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let (web, db) = (cluster.node.pod("web").unwrap(), cluster.node.pod("db").unwrap());
    let client = cluster.node.client("client").unwrap();
    // As a Service with `externalTrafficPolicy: Cluster` does on its way to a pod of another node.
    let rules = format!(
        "table ip service {{ chain post {{ type nat hook postrouting priority srcnat
           ip daddr {} masquerade
         }}\n}}\n",
        web.ipv4()
    );
    if !nft("kube clients_behind_one_address_are_told", cluster.node.namespace(), &rules) {
        return;
    }
    let _servers = (serve(&web, &[80]), serve(&db, &[80]));
    let agent = cluster.agent(&lab, NOTHING);
    let limit = || json!({"weir.dev/connections-per-source.80": "5/s"});
    let _containers = (cluster.start(&web, &uid(1), limit()), cluster.start(&db, &uid(2), limit()));
    let (web_name, db_name) = (name(&web), name(&db));
    for pod in [&web_name, &db_name] {
        await_attached(&agent, pod);
        await_limit(&agent, pod, Some("5/s"));
    }
    let sources = |pod| agent.limit(pod).sources.unwrap();
    assert!(!sources(&web_name).collapsed);

    // Seven, so that no rhythm of sampling meets the same one each time.
    let clients = || (2..9).map(|last| client.source_v4(last).into());
    let ask = |pod: &Host| {
        let plan = Plan::to(at(pod)).from(clients()).per_second(300).attempts(100);
        run(client.namespace(), plan.talk(Talk::Byte)).stats
    };
    let look = || {
        let _ = (ask(&web), ask(&db));
        sources(&web_name)
    };
    let seen = eventually("the node's address is told", look, |seen| seen.collapsed);
    let gateway = web.gateway_v4().to_string();
    assert_eq!(seen.source.as_deref(), Some(gateway.as_str()));
    assert!(seen.share > 0.8, "{seen:?}");
    let (limit, told) = (agent.limit(&db_name), sources(&db_name));
    assert!(limit.refused > 100 && !told.collapsed, "{limit:?}");

    let detail = agent.workload(&web_name).detail.unwrap_or_default();
    assert!(detail.contains(&gateway), "{detail}");
    let metric = |pod: &str| {
        let workload = format!("workload=\"{pod}\"");
        agent.metric("weir_limit_sources_collapsed", &[&workload])
    };
    assert_eq!((metric(&web_name), metric(&db_name)), (1.0, 0.0));
    let look = || notes(&cluster.server.events(), "WeirSourcesCollapsed");
    let told = eventually("the pod is told", look, |notes| !notes.is_empty());
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(&gateway), "{told:?}");
    assert_eq!(cluster.server.refused(), Vec::<String>::new());
}

/// A network plugin puts packets into the pod and leaves the host's end of its veth out.
#[test]
fn a_pod_that_is_reached_by_a_shortcut_is_judged_inside() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let client = cluster.node.client("client").unwrap();
    let node = cluster.node.namespace();
    let shortcut = Foreign::tc_into_peer("shortcut", node, &web).unwrap();
    let uplink = client.node_interface();
    let _link = shortcut.attach(node, &uplink, Hook::Ingress, Place::First).unwrap();
    let _server = serve(&web, &[80]);
    let mut agent = cluster.agent(&lab, NOTHING);
    let limit = json!({"weir.dev/connections.80": "2 per 60s"});
    let _container = cluster.start(&web, &uid(1), limit);
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    assert_eq!(codes(client.namespace(), &web, 40), "ok:40");
    // Looked at twice a minute, and with every change of the file.
    agent.rewrite("mode: enforce # again\n");
    let judged = || agent.workload(&web_name).detail.unwrap_or_default();
    eventually("it is judged inside", judged, |detail| detail.contains("judged inside"));
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");
    // The next agent sees the same counters.
    agent.kill();
    agent.restart();
    await_attached(&agent, &web_name);
    assert_eq!(codes(client.namespace(), &web, 5), "refused:5");
}
