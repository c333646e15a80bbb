//! Who waits for the agent is let go when all is decided, and not before: a node with the startup
//! taint, and pods that name the agent's condition among their readiness gates.

use serde_json::{Value, json};
use weir::kube::{GATE, READINESS_GATE, STARTUP_TAINT};
use weir_tests::{
    agent::{Agent, eventually},
    kubelet::{NODE, pod_of, uid},
};

use super::{Cluster, NOTHING, await_attached, name};

const TAINT: &str = "weir.dev/agent-not-ready";

fn tainted(keys: &[&str]) -> Value {
    let taints: Vec<_> =
        keys.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": {}}, "spec": {"taints": taints},
    })
}

fn taints(cluster: &Cluster) -> Vec<Value> {
    let node = cluster.server.object("nodes", NODE);
    node["spec"]["taints"].as_array().cloned().unwrap_or_default()
}

fn agent<'a>(cluster: &'a Cluster, lab: &weir::lab::Lab, arguments: &[&str]) -> Agent<'a> {
    let agent = Agent::new(lab, cluster.node.namespace(), NOTHING);
    let mut agent = agent.with_pods(&cluster.server, &cluster.kubelet).with(arguments);
    agent.launch();
    agent
}

#[test]
fn the_startup_taint_goes_when_the_agent_is_ready_and_others_stay() {
    let lab = lab!();
    let mut cluster = Cluster::new(&lab);
    cluster.server.grant(STARTUP_TAINT);
    cluster.server.put("nodes", tainted(&["example.com/gpu", TAINT]));
    // Whoever cannot ask for the pods is not ready, whatever was known.
    cluster.server.leave();
    let arguments = ["--startup-taint", TAINT];
    {
        let waiting = agent(&cluster, &lab, &arguments);
        let code = || waiting.request("GET", "/readyz", "").map_or(0, |(code, _)| code);
        eventually("it runs and is not ready", code, |code| *code == 503);
        assert_eq!(taints(&cluster).len(), 2);
    }
    cluster.server.come_back(cluster.node.namespace());
    let mut agent = agent(&cluster, &lab, &arguments);
    agent.await_ready();
    let others = || taints(&cluster);
    let left = eventually("the taint is gone", others, |taints| taints.len() == 1);
    assert_eq!(left[0]["key"], "example.com/gpu");
    // Whoever taints it again does not know that the agent is there.
    cluster.server.put("nodes", tainted(&[TAINT]));
    eventually("it goes again", others, Vec::is_empty);
    assert_eq!(cluster.server.refused(), Vec::<String>::new());
}

#[test]
fn a_pod_passes_its_gate_when_its_policy_holds() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    cluster.server.grant(READINESS_GATE);
    let web = cluster.node.pod("web").unwrap();
    let (web_name, line) = (name(&web), "weir.dev/connections.80");
    let gated = |number| {
        let mut pod = pod_of(&web, &uid(number), json!({line: "2 per 60s"}));
        pod["spec"]["readinessGates"] = json!([{"conditionType": GATE}]);
        pod
    };
    cluster.server.put("pods", gated(1));
    let mut agent = agent(&cluster, &lab, &["--readiness-gate"]);
    agent.await_ready();
    let said = || {
        let pod = cluster.server.object("pods", &web_name);
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let all = conditions.len();
        let word = |it: &Value, field: &str| it[field].as_str().unwrap_or_default().to_owned();
        let ours = conditions.iter().find(|condition| condition["type"] == GATE);
        ours.map(|it| (word(it, "status"), word(it, "reason"), word(it, "message"), all))
    };
    let held = eventually("it is held, and why", said, Option::is_some).unwrap();
    assert_eq!((held.0.as_str(), held.1.as_str()), ("False", "NotEnforced"));
    assert!(held.2.contains("no process"), "{held:?}");

    let _container = cluster.kubelet.run(&uid(1), cluster.node.namespace(), web.namespace());
    await_attached(&agent, &web_name);
    let passed = |said: &Option<(String, String, String, usize)>| {
        said.as_ref().is_some_and(|said| said.0 == "True")
    };
    let told = eventually("it passes", said, passed).unwrap();
    assert_eq!((told.1.as_str(), told.2.as_str()), ("Enforced", ""));
    assert_eq!(told.3, 2, "the other condition stays");

    // The next one of this name waits anew; kubelet has started it.
    cluster.server.delete("pods", &web_name);
    cluster.server.put("pods", gated(2));
    let _next = cluster.kubelet.run(&uid(2), cluster.node.namespace(), web.namespace());
    eventually("it passes, too", said, passed);
    assert_eq!(cluster.server.refused(), Vec::<String>::new());
}

/// Neither is asked for unless somebody wants it, and without the right nothing else suffers.
#[test]
fn what_was_not_granted_is_told_and_nobody_asks_for_what_is_off() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    cluster.server.put("nodes", tainted(&[TAINT]));
    let mut wanted = agent(&cluster, &lab, &["--startup-taint", TAINT]);
    wanted.await_ready();
    let failure = || wanted.status().kubernetes.and_then(|status| status.failure);
    let told = eventually("it is told", failure, Option::is_some).unwrap();
    assert!(told.contains("startup taint"), "{told}");
    assert!(cluster.server.refused().iter().all(|what| what.starts_with("patch /nodes")));
    assert_eq!(taints(&cluster).len(), 1);
    drop(wanted);
    let refused = cluster.server.refused().len();
    let quiet = cluster.agent(&lab, NOTHING);
    let uptime = || quiet.status().uptime_seconds;
    eventually("it has had time for it", uptime, |seconds| *seconds > 1.5);
    assert_eq!(cluster.server.refused().len(), refused);
}
