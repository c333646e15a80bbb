//! `weir explain` from elsewhere, through the API server.

use std::{
    ffi::OsStr,
    os::unix::{fs::symlink, process::ExitStatusExt as _},
    process::{Command, Output},
};

use serde_json::json;
use weir::app::view::Explanation;
use weir_tests::{
    agent::{Agent, binary, eventually},
    kubelet::{NODE, uid},
    site::serve,
};

use super::{Cluster, NOTHING, await_attached, codes, name};

#[test]
fn a_pod_is_explained_to_whoever_has_a_kubeconfig_and_the_right() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let client = cluster.node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let agent = Agent::new(&lab, cluster.node.namespace(), NOTHING);
    let mut agent = agent.with_pods(&cluster.server, &cluster.kubelet);
    let listen = ["--listen", "127.0.0.1:9464"].map(OsStr::new);
    agent.launch_with(&listen);
    agent.await_ready();
    let _container = cluster.start(&web, &uid(1), json!({"weir.dev/connections.80": "2 per 60s"}));
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");

    let plugin = lab.directory().join("kubectl-weir");
    symlink(binary(), &plugin).unwrap();
    let ask = |program: &std::path::Path, arguments: &[&str]| -> Output {
        let mut command = Command::new(program);
        command.arg("explain").args(arguments);
        command.env("KUBECONFIG", cluster.server.personal_kubeconfig());
        cluster.node.namespace().run(move || command.output()).unwrap().unwrap()
    };
    let explain = |arguments: &[&str]| ask(&plugin, arguments);
    let fails = |arguments: &[&str], code: i32, why: &str| {
        let output = explain(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.status.signal()), (Some(code), None), "{said}");
        assert!(said.contains(why), "{said}");
    };
    fails(&["shop/nobody"], 3, "where shop/nobody is");
    fails(&["web"], 3, "expected NAMESPACE/POD");
    fails(&[&web_name], 3, "no agent runs on node-1, the node of shop/web");
    let pod = |name: &str, address: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "weir-system", "name": name, "uid": name,
                "labels": {"app.kubernetes.io/name": "weir"},
            },
            "spec": {"nodeName": NODE, "hostNetwork": true, "containers": []},
            "status": {"podIP": address},
        })
    };
    // Of two, as during an update, one does not answer yet.
    cluster.server.put("pods", pod("weir-1", "127.0.0.2"));
    fails(&[&web_name], 3, "the agent weir-1 on node-1 could not be asked");
    cluster.server.put("pods", pod("weir-2", "127.0.0.1"));
    fails(&[&web_name], 3, "start it with --explain-over-tcp");
    // What is known is kept within a second; who is killed before has forgotten the pod.
    let kept = || std::fs::read_to_string(lab.directory().join("pods.json")).unwrap_or_default();
    eventually("the pod is kept", kept, |pods| pods.contains(&uid(1)));
    agent.kill();
    agent.launch_with(&[listen[0], listen[1], OsStr::new("--explain-over-tcp")]);
    agent.await_ready();
    await_attached(&agent, &web_name);

    let output = explain(&[&web_name]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("connections.80 2/m"), "{said}{output:?}");
    let output = ask(&binary(), &[&web_name, "--cluster", "-o", "json"]);
    let told: Explanation = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told.workload.limits[0].refused, 3);
    assert_eq!(told.lines, agent.explain(&web_name).lines);
    // What nobody granted is refused, and nothing but explanations is told.
    cluster.server.grant_proxy(false);
    fails(&[&web_name], 3, "you may not `get` its `pods/proxy`");
    cluster.server.grant_proxy(true);
    fails(&["shop/web", "--agents", "elsewhere"], 3, "of the namespace `elsewhere`");
}
