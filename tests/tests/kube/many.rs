//! As many pods as a node has, coming, changing and going: nothing is left behind, and what it costs
//! is measured where that is asked for.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use serde_json::json;
use weir::{
    app::view::Histogram,
    lab::{self, Host, Lab},
};
use weir_common::{
    addr::Addr,
    layout::{Local, Record, Workload},
};
use weir_tests::{
    agent::{Agent, PATIENCE, eventually},
    kubelet::{Container, uid},
};

use super::{Cluster, NOTHING, name};

/// What kubelet allows unless told otherwise.
const PODS: u32 = 110;
const LINE: &str = "weir.dev/connections.80";

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

/// Waits until each pod has its programs in both directions.
fn await_both_ways(agent: &Agent<'_>) {
    let all = 2 * PODS as usize;
    eventually("programs run in both directions", || links(agent), |links| *links == all);
}

/// A node with pods, none of which runs yet.
struct Full {
    cluster: Cluster,
    hosts: Vec<Host>,
}

impl Full {
    fn new(lab: &Lab, pods: u32) -> Self {
        let cluster = Cluster::new(lab);
        let pod = |number| cluster.node.pod(&format!("p{number}")).unwrap();
        let hosts = (0..pods).map(pod).collect();
        Self { cluster, hosts }
    }

    fn host(&self, number: u32) -> &Host {
        &self.hosts[number as usize % self.hosts.len()]
    }

    fn start(&self, number: u32) -> Container {
        self.cluster.start(self.host(number), &uid(number), json!({LINE: "10/s"}))
    }

    /// A pod ends, and another one begins with its name, address and interface.
    fn replace(&self, containers: &mut [Container], number: u32) {
        self.cluster.server.delete("pods", &name(self.host(number)));
        let place = number as usize % self.hosts.len();
        let begun = self.start(number);
        // The old one's process ends with its handle.
        drop(std::mem::replace(&mut containers[place], begun));
    }

    fn launch<'a>(&'a self, lab: &Lab) -> Agent<'a> {
        let agent = Agent::new(lab, self.cluster.node.namespace(), NOTHING);
        let mut agent = agent.with_pods(&self.cluster.server, &self.cluster.kubelet);
        agent.launch();
        agent
    }

    /// Waits until these pods are attached, all of them.
    fn await_attached(&self, agent: &Agent<'_>, numbers: std::ops::Range<u32>) {
        let attached = || {
            let status = agent.status().workloads;
            let is_there = |number: &u32| {
                let location = format!("pod {}", uid(*number));
                status.iter().any(|it| it.location == location && it.attached.is_some())
            };
            numbers.clone().filter(is_there).count()
        };
        let count = numbers.len();
        eventually(&format!("{numbers:?} are attached"), attached, |seen| *seen == count);
    }
}

/// How many entries a pinned hash has.
fn entries<K: Pod, V: Pod>(layout: &Path, name: &str) -> usize {
    let map = Map::HashMap(MapData::from_pin(layout.join(name)).unwrap());
    HashMap::<_, K, V>::try_from(map).unwrap().keys().count()
}

/// What is in the maps of pods: how many slots and cells are taken, and entries of each hash.
fn held(layout: &Path) -> Vec<(&'static str, usize)> {
    let map = Map::Array(MapData::from_pin(layout.join("WORKLOADS")).unwrap());
    let slots = Array::<_, Workload>::try_from(map).unwrap();
    let taken = slots.iter().filter(|slot| slot.as_ref().unwrap().identity != [0, 0]).count();
    let map = Map::Array(MapData::from_pin(layout.join("RECORDS")).unwrap());
    let records = Array::<_, Record>::try_from(map).unwrap();
    let kept = records.iter().filter(|cell| cell.as_ref().unwrap().kind != 0).count();
    vec![
        ("WORKLOADS", taken),
        ("RECORDS", kept),
        ("INTERFACES", entries::<u32, u32>(layout, "INTERFACES")),
        ("CALLERS", entries::<u64, u32>(layout, "CALLERS")),
        ("LOCALS", entries::<Local, u32>(layout, "LOCALS")),
        ("ADDRESSES", entries::<Addr, u32>(layout, "ADDRESSES")),
        ("PORTS", entries::<u32, u32>(layout, "PORTS")),
    ]
}

#[test]
fn a_full_node_is_held_and_leaves_nothing_behind() {
    let lab = lab!();
    let full = Full::new(&lab, PODS);
    let mut containers: Vec<_> = (0..PODS).map(|number| full.start(number)).collect();
    let mut agent = full.launch(&lab);
    agent.await_ready();
    full.await_attached(&agent, 0..PODS);
    // What judges comes first; in the other direction nothing is refused.
    await_both_ways(&agent);
    let before = descriptors(&agent);
    // Pods end and others begin in their place, as in a rollout.
    (PODS..2 * PODS).for_each(|number| full.replace(&mut containers, number));
    full.await_attached(&agent, PODS..2 * PODS);
    assert_eq!(links(&agent), 2 * PODS as usize);
    let look = || descriptors(&agent);
    eventually("no descriptor is left", look, |now| *now <= before + 8);

    for host in &full.hosts {
        full.cluster.server.delete("pods", &name(host));
    }
    containers.clear();
    eventually("no pod is left", || agent.status().workloads.len(), |count| *count == 0);
    let held_by = || held(&agent.layout()).into_iter().map(|(_, entries)| entries).sum::<usize>();
    eventually("no pod is in the maps", held_by, |entries| *entries == 0);
    // Their interfaces are there yet, and wait for other pods.
    assert_eq!(links(&agent), 2 * PODS as usize);
    for host in &full.hosts {
        lab::delete_link(full.cluster.node.namespace(), &host.node_interface()).unwrap();
    }
    eventually("no attachment is left", || links(&agent), |count| *count == 0);
    eventually("no namespace is held", look, |now| *now + PODS as usize <= before + 8);
    let tables = agent.request("GET", "/tables", "").unwrap().1;
    assert!(!tables.contains("connections"), "{tables}");
}

/// A thousand pods, a few at a time: what each of them had is given back.
#[test]
fn a_thousand_pods_come_and_go_and_nothing_is_left() {
    const AT_ONCE: u32 = 20;
    const PASSED: u32 = 1000;
    let lab = lab!();
    let full = Full::new(&lab, AT_ONCE);
    let mut agent = full.launch(&lab);
    agent.await_ready();
    let layout = agent.layout();
    let (empty, open, pinned) = (held(&layout), descriptors(&agent), links(&agent));
    let mut containers: Vec<_> = (0..AT_ONCE).map(|number| full.start(number)).collect();
    full.await_attached(&agent, 0..AT_ONCE);
    let (busy, busy_open) = (held(&layout), descriptors(&agent));
    for first in (AT_ONCE..PASSED).step_by(AT_ONCE as usize) {
        (first..first + AT_ONCE).for_each(|number| full.replace(&mut containers, number));
        full.await_attached(&agent, first..first + AT_ONCE);
    }
    eventually("as much is held as before", || held(&layout), |now| *now == busy);
    let look = || descriptors(&agent);
    eventually("as much is open as before", look, |now| *now <= busy_open + 4);
    for host in &full.hosts {
        full.cluster.server.delete("pods", &name(host));
    }
    containers.clear();
    eventually("all was given back", || held(&layout), |now| *now == empty);
    eventually("no link is pinned", || links(&agent), |now| *now == pinned);
    eventually("nothing is open", look, |now| *now <= open + 4);
    assert_eq!(full.cluster.server.refused(), Vec::<String>::new());
}

/// The bound of a histogram's bucket that has this share of what was seen.
fn quantile(histogram: &Histogram, share: f64) -> f64 {
    let wanted = (histogram.count as f64 * share).ceil() as u64;
    let mut seen = 0;
    let reached = histogram.buckets.iter().find(|bucket| {
        seen += bucket.count;
        seen >= wanted
    });
    reached.map_or(f64::INFINITY, |bucket| bucket.at_most)
}

/// Figures of a build: to be run alone, with `WEIR_BIN` naming a release build.
#[test]
#[ignore = "measures: run it alone, on a release build"]
fn figures_of_a_full_node() {
    const IDLE: Duration = Duration::from_secs(20);
    let lab = lab!();
    let full = Full::new(&lab, PODS);
    let mut containers: Vec<_> = (0..PODS).map(|number| full.start(number)).collect();
    let began = Instant::now();
    let mut agent = full.launch(&lab);
    agent.await_ready();
    println!("first start to {PODS} decided: {:.2?}", began.elapsed());
    full.await_attached(&agent, 0..PODS);
    let first = links(&agent);
    await_both_ways(&agent);
    println!("all of its programs: {:.2?}, {first} of them first", began.elapsed());
    agent.terminate();
    let began = Instant::now();
    agent.launch();
    agent.await_ready();
    println!("a later start to {PODS} decided: {:.2?}", began.elapsed());
    full.await_attached(&agent, 0..PODS);

    // One after the other, from the API server's word to the kernel's tables.
    let mut took: Vec<Duration> = Vec::new();
    for host in &full.hosts {
        let pod = name(host);
        let at = Instant::now();
        full.cluster.server.annotate("pods", &pod, LINE, Some("20/s"));
        let is_changed = || agent.explain(&pod).lines.iter().any(|line| line.value == "20/s");
        while !is_changed() {
            assert!(at.elapsed() < PATIENCE, "{pod} is not changed");
            std::thread::sleep(Duration::from_millis(1));
        }
        took.push(at.elapsed());
    }
    took.sort();
    let (median, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!(
        "annotation to kernel, as seen over the admin socket: median {median:.1?}, p99 {p99:.1?}"
    );
    let policies = agent.status().kubernetes.unwrap().policy_seconds;
    println!(
        "annotation to kernel, by the agent's clock: p99 within {} s",
        quantile(&policies, 0.99)
    );

    let (ticks, at) = (cpu_ticks(&agent), Instant::now());
    std::thread::sleep(IDLE);
    // 100 ticks are a second.
    let busy = (cpu_ticks(&agent) - ticks) as f64 / at.elapsed().as_secs_f64();
    println!(
        "idle: {busy:.2} % of a core, {:.1} MiB resident",
        resident_kib(&agent) as f64 / 1024.0
    );

    for number in PODS..2 * PODS {
        full.replace(&mut containers, number);
        full.await_attached(&agent, number..number + 1);
    }
    let attached = agent.status().kubernetes.unwrap().attach_seconds;
    println!(
        "first process to enforced, of {} pods among {PODS}: median within {} s, p99 within {} s",
        attached.count,
        quantile(&attached, 0.5),
        quantile(&attached, 0.99)
    );
}
