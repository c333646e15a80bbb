//! The agent needs the rights that the shipped files give it, and none besides.

use std::{fs, net::SocketAddr, path::Path};

use weir_tests::{
    agent::{Agent, eventually},
    bpf::Foreign,
    site::{Side, ask, node_file, serve},
};

fn shipped(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join("deploy").join(path)).unwrap()
}

/// The capabilities of the DaemonSet, in the words of setpriv(1).
fn of_the_pod() -> Vec<String> {
    let manifest = shipped("kustomize/base/weir.yaml");
    let (_, below) = manifest.split_once("capabilities:\n").unwrap();
    let (dropped, added) = below.split_once("add:\n").unwrap();
    assert_eq!(dropped.trim(), "drop: [ALL]");
    let lines = added.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let names = lines.map_while(|line| line.strip_prefix("- ")).map(str::to_lowercase);
    names.collect()
}

/// The capabilities of the unit.
fn of_the_unit() -> Vec<String> {
    let unit = shipped("systemd/weir.service");
    let mut lines = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let words = lines.next().unwrap().split(' ');
    words.map(|word| word.strip_prefix("CAP_").unwrap().to_lowercase()).collect()
}

/// A program that gives a command these capabilities alone, and no way to others.
fn with_only(capabilities: &[String]) -> Vec<String> {
    let set: Vec<_> = capabilities.iter().map(|name| format!("+{name}")).collect();
    let set = format!("-all,{}", set.join(","));
    let words = ["setpriv", "--no-new-privs", "--inh-caps", &set, "--bounding-set", &set];
    words.map(str::to_owned).into()
}

/// All that an agent attaches to, enforced, and taken over by the next.
fn enforces_with(capabilities: &[String]) {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (web, db) = (node.pod("web").unwrap(), node.pod("db").unwrap());
    let client = node.client("client").unwrap();
    let _servers = (serve(&web, &[80]), serve(&db, &[80]));
    // What an uplink's program sends back arrives on a veth whose other end has a program, too.
    let pass = Foreign::xdp_pass("pass").unwrap();
    let _link = pass.attach_xdp(client.namespace(), client.interface()).unwrap();
    let policy = ["policy: { connections.80: 2 per 1h, max-connections.80: 100 }"];
    let entries = [Side::Host.entry(&web, &policy), Side::Pod.entry(&db, &policy)];
    let file = format!("uplinks: [ {{ interface: {} }} ]\n", client.node_interface())
        + &node_file(&entries);
    let mut agent = Agent::new(&lab, node.namespace(), &file);
    agent.behind(with_only(capabilities));
    agent.launch();
    agent.await_ready();
    assert_eq!(agent.status().problems, [""; 0]);
    for (name, host) in [("web", &web), ("db", &db)] {
        assert_eq!(agent.workload(name).condition, "enforced", "{name}");
        let to = SocketAddr::new(host.ipv4().into(), 80);
        assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:2 refused:3", "{name}");
    }
    assert!(agent.uplink(&client.node_interface()).attached.is_some());
    agent.kill();
    agent.restart();
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 2).codes(), "refused:2");
    agent.kill();
    let removed = agent.uninstall();
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    // The kernel frees programs a moment after their last pin is gone.
    let codes = || ask(client.namespace(), to, 1).codes();
    eventually("nothing is limited any more", codes, |codes| codes == "ok:1");
}

#[test]
fn the_pods_capabilities_are_enough() {
    let capabilities = of_the_pod();
    assert_eq!(capabilities.len(), 5, "{capabilities:?}");
    enforces_with(&capabilities);
}

#[test]
fn the_units_capabilities_are_enough() {
    let capabilities = of_the_unit();
    assert_eq!(capabilities.len(), 4, "{capabilities:?}");
    enforces_with(&capabilities);
}

/// What is taken away is missed: the tests above would see a right that is lacking.
#[test]
fn without_the_others_programs_do_not_load() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let file = Side::Host.node_file(&web, &["connections.80: 2 per 60s"]);
    let agent = Agent::new(&lab, node.namespace(), &file);
    let some: Vec<String> = of_the_pod().into_iter().filter(|name| name == "net_admin").collect();
    let prefix = with_only(&some);
    let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
    let (status, said) = agent.run_another(&prefix, agent.pins(), agent.socket());
    assert!(!status.success(), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}
