//! A breaker that a pod's own failures trip begins when the pod was ready for the first time.

use std::fs;

use serde_json::json;
use weir_tests::{
    agent::eventually,
    kubelet::{pod_of, uid},
    site::stack_counter,
};

use super::{Cluster, NOTHING, await_attached, await_limit, codes, name};

#[test]
fn what_does_not_answer_before_it_is_ready_has_not_failed() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let client = cluster.node.client("client").unwrap();
    let breaker = "errors=2 ejection=1m";
    let mut pod = pod_of(&web, &uid(1), json!({"weir.dev/breaker.80": breaker}));
    let conditions = pod["status"]["conditions"].take();
    cluster.server.put("pods", pod);
    let _container = cluster.kubelet.run(&uid(1), cluster.node.namespace(), web.namespace());
    let mut agent = cluster.agent(&lab, NOTHING);
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    let is_ready = |ready: bool| {
        let mut conditions = conditions.clone();
        conditions[0]["status"] = if ready { "True" } else { "False" }.into();
        cluster.server.edit("pods", &web_name, |pod| pod["status"]["conditions"] = conditions);
    };

    // Its server does not listen yet: each attempt gets there.
    let heard = || stack_counter(web.namespace(), "Tcp", "OutRsts");
    assert_eq!(codes(client.namespace(), &web, 5), "refused:5");
    assert_eq!(heard(), 5);
    await_limit(&agent, &web_name, None);
    let detail = agent.workload(&web_name).detail.unwrap_or_default();
    assert!(detail.contains("`breaker.80` waits until the pod is ready"), "{detail}");

    is_ready(true);
    await_limit(&agent, &web_name, Some(breaker));
    assert_eq!(codes(client.namespace(), &web, 5), "refused:5");
    assert_eq!(heard(), 5 + 2);

    // It stays armed: for the next agent, too, which sees a pod that is not ready.
    let kept = lab.directory().join("pods.json");
    let kept = || fs::read_to_string(&kept).unwrap_or_default();
    eventually("what is known is kept", kept, |text| text.contains(r#""was_ready":true"#));
    agent.kill();
    is_ready(false);
    agent.restart();
    let state = || agent.limit_named(&web_name, "breaker.80").breaker.map(|breaker| breaker.state);
    eventually("it is open", state, |state| state.as_deref() == Some("open"));
    assert_eq!(codes(client.namespace(), &web, 5), "refused:5");
    assert_eq!(heard(), 5 + 2);
}
