//! Kubernetes' own bandwidths of what pods send, where somebody else holds them already.
//!
//! (What goes to them, and the CNI's `tbf` for it, is in `policy`.)

use std::{fs, process::Command, time::Duration};

use serde_json::json;
use weir::lab::{Namespace, shape, skip};
use weir_tests::{
    agent::{Agent, eventually},
    bpf::pin_map,
    kubelet::uid,
    traffic::{self, Flood},
};

use super::{Cluster, NOTHING, await_attached, name};

const EGRESS: &str = "kubernetes.io/egress-bandwidth";

fn limits(agent: &Agent<'_>, pod: &str) -> Vec<String> {
    let limits = agent.workload(pod).limits.into_iter();
    limits.map(|limit| format!("{}: {}", limit.limit, limit.value)).collect()
}

/// Runs iproute2 in a namespace; what it said when it failed.
fn run(namespace: &Namespace, words: &str) -> Result<(), String> {
    let mut words = words.split(' ');
    let tool = words.next().unwrap();
    let words: Vec<_> = words.collect();
    let output = namespace.run(|| Command::new(tool).args(words).output()).unwrap();
    let output = output.map_err(|_| "iproute2 is not installed".to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// The CNI's bandwidth plugin sends what comes from a pod through an `ifb` with a `tbf`.
#[test]
fn what_an_ifb_limits_is_left_to_it() {
    const TEST: &str = "shapers::what_an_ifb_limits_is_left_to_it";
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let (web, client) = (cluster.node.pod("web").unwrap(), cluster.node.client("client").unwrap());
    let node = cluster.node.namespace();
    let agent = cluster.agent(&lab, NOTHING);
    let _container = cluster.start(&web, &uid(1), json!({ EGRESS: "8M" }));
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    let is_limited = |limits: &Vec<String>| *limits == ["egress-bandwidth: 8Mbit/s"];
    eventually("Weir limits", || limits(&agent, &web_name), is_limited);

    if let Err(reason) = run(node, "ip link add bwp0123456789 type ifb") {
        skip(TEST, &format!("no ifb: {reason}"));
        return;
    }
    run(node, "ip link set bwp0123456789 up").unwrap();
    // An `ifb` without a `tbf` limits nothing, nor does one that nothing is sent through.
    let end = web.node_interface();
    run(node, &format!("tc qdisc add dev {end} handle ffff: ingress")).unwrap();
    let detail = || agent.workload(&web_name).detail.unwrap_or_default();
    assert!(is_limited(&limits(&agent, &web_name)), "{}", detail());
    shape(node, "bwp0123456789", 500_000).unwrap();
    run(
        node,
        &format!(
            "tc filter add dev {end} parent ffff: protocol all u32 match u32 0 0 \
             action mirred egress redirect dev bwp0123456789"
        ),
    )
    .unwrap();
    eventually("Weir leaves it", || limits(&agent, &web_name), Vec::is_empty);
    let expected = format!("`{EGRESS}` is left to the `ifb` behind {end}");
    assert!(detail().contains(&expected), "{}", detail());
    // Behind Weir's programs the plugin's limit holds as it did.
    // A megabyte a second is twice as much; what waits in its queue has the sender wait.
    let flood = Flood { payload: 1000, time: Duration::from_secs(1), pace: 1_000_000.0 };
    let traffic = traffic::udp(&web, &client, client.ipv4().into(), flood);
    let most = 500_000.0 * traffic.seconds + 300_000.0;
    assert!(traffic.received > 200_000 && (traffic.received as f64) < most, "{traffic:?}");

    run(node, &format!("tc qdisc del dev {end} ingress")).unwrap();
    eventually("Weir limits again", || limits(&agent, &web_name), is_limited);
}

/// Cilium's bandwidth manager is known by its map.
#[test]
fn what_ciliums_bandwidth_manager_limits_is_left_to_it() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    // What the agent sees as the machine's BPF file system is a part of the lab's.
    let machine = lab.pins().with_file_name("machine");
    let globals = machine.join("tc/globals");
    fs::create_dir_all(&globals).unwrap();
    let agent = Agent::new(&lab, cluster.node.namespace(), NOTHING);
    let mut agent = agent.with_pods(&cluster.server, &cluster.kubelet);
    let bind = format!("mount --bind {} /sys/fs/bpf && exec \"$@\"", machine.display());
    let words = ["unshare", "--mount", "sh", "-c", &bind, "sh"];
    agent.behind(words.map(str::to_owned).to_vec());
    agent.launch();
    agent.await_ready();
    let annotations = json!({ EGRESS: "8M", "kubernetes.io/ingress-bandwidth": "9M" });
    let _container = cluster.start(&web, &uid(1), annotations);
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    let both = ["ingress-bandwidth: 9Mbit/s", "egress-bandwidth: 8Mbit/s"];
    let mut seen = eventually("Weir limits both", || limits(&agent, &web_name), |it| it.len() == 2);
    seen.sort_by_key(|limit| limit.starts_with('e'));
    assert_eq!(seen, both);

    pin_map("cilium_throttle", &globals.join("cilium_throttle")).unwrap();
    // Nobody tells of a pin: it is found when the agent looks at its interfaces next.
    let _ = cluster.node.pod("other").unwrap();
    let to_pod = |limits: &Vec<String>| *limits == [both[0]];
    eventually("one is left to Cilium", || limits(&agent, &web_name), to_pod);
    let detail = agent.workload(&web_name).detail.unwrap_or_default();
    let expected = format!("`{EGRESS}` is left to Cilium's bandwidth manager");
    assert!(detail.contains(&expected), "{detail}");
}
