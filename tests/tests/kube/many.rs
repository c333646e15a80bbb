//! As many pods as a node has, coming, changing and going: what it costs is printed, and nothing is
//! left behind.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;
use weir_tests::{
    agent::{Agent, eventually},
    kubelet::uid,
};

use super::{Cluster, NOTHING, name};

/// What kubelet allows unless told otherwise.
const PODS: u32 = 110;
const LINE: &str = "weir.dev/connections.80";

fn attached(agent: &Agent<'_>) -> usize {
    let workloads = agent.status().workloads;
    workloads.iter().filter(|workload| workload.attached.is_some()).count()
}

fn cpu_ticks(agent: &Agent<'_>) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn resident_kib(agent: &Agent<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(agent: &Agent<'_>) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.id())).unwrap().count()
}

fn links(agent: &Agent<'_>) -> usize {
    fs::read_dir(agent.layout().join("links")).unwrap().count()
}

#[test]
fn a_full_node_is_held_and_leaves_nothing_behind() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let hosts: Vec<_> =
        (0..PODS).map(|number| cluster.node.pod(&format!("p{number}")).unwrap()).collect();
    let start = |number: u32| {
        let host = &hosts[(number % PODS) as usize];
        cluster.start(host, &uid(number), json!({LINE: "10/s"}))
    };
    let mut containers: Vec<_> = (0..PODS).map(start).collect();
    let agent = Agent::new(&lab, cluster.node.namespace(), NOTHING);
    let mut agent = agent.with_pods(&cluster.server, &cluster.kubelet);
    let began = Instant::now();
    agent.launch();
    agent.await_ready();
    let decided = began.elapsed();
    eventually("all are attached", || attached(&agent), |count| *count == PODS as usize);
    println!("start to all decided: {decided:.2?}, to all attached: {:.2?}", began.elapsed());

    // One after the other, from the API server's word to the kernel's tables.
    let mut took: Vec<Duration> = Vec::new();
    for host in &hosts {
        let pod = name(host);
        let at = Instant::now();
        cluster.server.annotate("pods", &pod, LINE, Some("20/s"));
        let is_changed = || agent.explain(&pod).lines.iter().any(|line| line.value == "20/s");
        while !is_changed() {
            assert!(at.elapsed() < Duration::from_secs(30), "{pod} is not changed");
        }
        took.push(at.elapsed());
    }
    took.sort();
    let kubernetes = agent.status().kubernetes.unwrap();
    println!(
        "annotation to kernel, with {PODS} pods and this test's look at it: median {:.1?}, p99 {:.1?}; \
         by the agent's own clock: {:?}",
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        kubernetes.policy_seconds,
    );

    let (ticks, at) = (cpu_ticks(&agent), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    // 100 ticks are a second.
    let busy = (cpu_ticks(&agent) - ticks) as f64 / at.elapsed().as_secs_f64();
    println!("idle: {busy:.1} % of a core, {} KiB resident", resident_kib(&agent));

    // Pods end and others begin in their place, as in a rollout.
    let before = descriptors(&agent);
    for number in PODS..2 * PODS {
        let host = &hosts[(number % PODS) as usize];
        cluster.server.delete("pods", &name(host));
        drop(containers.remove(0));
        containers.push(start(number));
    }
    let all_new = || {
        let status = agent.status().workloads;
        let is_new = |number: u32| {
            let location = format!("pod {}", uid(number));
            status.iter().any(|it| it.location == location && it.attached.is_some())
        };
        (PODS..2 * PODS).filter(|number| is_new(*number)).count()
    };
    eventually("all new pods are attached", all_new, |count| *count == PODS as usize);
    println!("first process to attached: {:?}", agent.status().kubernetes.unwrap().attach_seconds);
    assert_eq!(links(&agent), 2 * PODS as usize);
    let look = || descriptors(&agent);
    eventually("no descriptor is left", look, |now| *now <= before + 8);

    for host in &hosts {
        cluster.server.delete("pods", &name(host));
    }
    containers.clear();
    eventually("no pod is left", || agent.status().workloads.len(), |count| *count == 0);
    eventually("no attachment is left", || links(&agent), |count| *count == 0);
    let look = || descriptors(&agent);
    eventually("no namespace is held", look, |now| *now + PODS as usize <= before + 8);
    let tables = agent.request("GET", "/tables", "").unwrap().1;
    assert!(!tables.contains("connections"), "{tables}");
}
