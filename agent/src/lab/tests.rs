//! The lab itself, with real namespaces. Root only.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::*;
use crate::load::{Plan, Server, Talk};

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < patience, "in 10 s this did not come true: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whether this process alone would be a lab's owner: tells a namespace from the test's own.
fn inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).unwrap().ino()
}

#[test]
fn work_runs_inside_and_the_caller_stays_outside() {
    if !privileged("work_runs_inside_and_the_caller_stays_outside") {
        return;
    }
    let lab = Lab::new().unwrap();
    let namespace = lab.namespace("a").unwrap();
    let here = Path::new("/proc/thread-self/ns/net");
    let before = inode(here);
    let inside = namespace.run(|| inode(here)).unwrap();
    assert_eq!(inside, inode(namespace.path()));
    assert_ne!(inside, before);
    assert_eq!(inode(here), before);
    let also =
        namespace.run_async(async || tokio::task::spawn_local(async move { inode(here) }).await);
    assert_eq!(also.unwrap().unwrap(), inside);
}

#[test]
fn a_thread_made_inside_stays_inside() {
    if !privileged("a_thread_made_inside_stays_inside") {
        return;
    }
    let lab = Lab::new().unwrap();
    let namespace = lab.namespace("a").unwrap();
    let here = Path::new("/proc/thread-self/ns/net");
    let inner = namespace.run(|| thread::spawn(|| inode(here)).join().unwrap()).unwrap();
    assert_eq!(inner, inode(namespace.path()));
}

#[test]
fn a_panic_inside_reaches_the_caller_and_nothing_stays() {
    if !privileged("a_panic_inside_reaches_the_caller_and_nothing_stays") {
        return;
    }
    let mut id = String::new();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let lab = Lab::new().unwrap();
        id = lab.id().to_owned();
        let node = lab.node("node").unwrap();
        let _pod = node.pod("web").unwrap();
        node.namespace().run(|| panic!("on purpose")).unwrap();
    }));
    assert!(caught.is_err());
    assert!(!id.is_empty());
    assert_eq!(remains(&id), Vec::<std::path::PathBuf>::new());
}

#[test]
fn clients_reach_pods_and_pods_reach_clients_over_both_families() {
    if !privileged("clients_reach_pods_and_pods_reach_clients_over_both_families") {
        return;
    }
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let db = node.pod("db").unwrap();
    let client = node.client("c1").unwrap();
    let other = node.client("c2").unwrap();
    let hosts = [&web, &db, &client, &other];
    for server in hosts {
        let mut addresses = vec![SocketAddr::new(server.ipv4().into(), 80)];
        if server.namespace().has_ipv6() {
            addresses.push(SocketAddr::new(server.ipv6().into(), 80));
        }
        let listening =
            server.namespace().run(|| Server::start(&addresses, Talk::Byte)).unwrap().unwrap();
        let mut expected = 0;
        for from in hosts.iter().filter(|from| from.name() != server.name()) {
            for address in &addresses {
                let plan = Plan::to(*address).talk(Talk::Byte).parallel(4).attempts(20);
                let report = from.namespace().run(|| plan.run()).unwrap().unwrap();
                let way = format!("{} to {address} of {}", from.name(), server.name());
                assert_eq!(report.stats.ok(), 20, "{way}: {}", report.stats);
                expected += 20;
            }
        }
        for address in &addresses {
            let plan = Plan::to(*address).talk(Talk::Byte);
            let report = node.namespace().run(|| plan.run()).unwrap().unwrap();
            assert_eq!(report.stats.ok(), 1, "the node to {address}: {}", report.stats);
            expected += 1;
        }
        assert_eq!(listening.accepted(80), expected);
    }
}

#[test]
fn a_server_sees_the_addresses_that_the_lab_promises() {
    if !privileged("a_server_sees_the_addresses_that_the_lab_promises") {
        return;
    }
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("c1").unwrap();
    let seen = |from: &Namespace, source: Option<IpAddr>, to: IpAddr| {
        let listener = web.namespace().run(|| TcpListener::bind((to, 80))).unwrap().unwrap();
        let mut plan = Plan::to(SocketAddr::new(to, 80));
        plan = plan.from(source);
        assert_eq!(from.run(|| plan.run()).unwrap().unwrap().stats.codes(), "ok:1");
        listener.accept().unwrap().1.ip()
    };
    let (v4, v6) = (IpAddr::from(web.ipv4()), IpAddr::from(web.ipv6()));
    assert_eq!(seen(client.namespace(), None, v4), client.ipv4());
    assert_eq!(seen(node.namespace(), None, v4), node.ipv4());
    for number in [0, 1, 126] {
        let source = IpAddr::from(client.source_v4(number));
        assert_eq!(seen(client.namespace(), Some(source), v4), source);
    }
    if node.namespace().has_ipv6() {
        assert_eq!(seen(client.namespace(), None, v6), client.ipv6());
        assert_eq!(seen(node.namespace(), None, v6), node.ipv6());
        for number in [0, 1, 0x7fff] {
            let source = IpAddr::from(client.source_v6(number));
            assert_eq!(seen(client.namespace(), Some(source), v6), source);
        }
    }
}

#[test]
fn nothing_leaves_the_lab() {
    if !privileged("nothing_leaves_the_lab") {
        return;
    }
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let pod = node.pod("web").unwrap();
    // A listener of the machine itself is out of reach, whatever address it has.
    let outside = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = outside.local_addr().unwrap().port();
    let plan = Plan::to(SocketAddr::new(node.ipv4().into(), port));
    let report = pod.namespace().run(|| plan.run()).unwrap().unwrap();
    assert_eq!(report.stats.refused(), 1, "{}", report.stats);
}

#[test]
fn an_interface_can_come_back_under_its_old_index() {
    if !privileged("an_interface_can_come_back_under_its_old_index") {
        return;
    }
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("c1").unwrap();
    let address = SocketAddr::new(web.ipv4().into(), 80);
    let server = web.namespace().run(|| Server::start(&[address], Talk::Byte)).unwrap().unwrap();
    for host in [&web, &client] {
        let index = node.index_of(host).unwrap();
        node.unplug(host).unwrap();
        assert!(node.index_of(host).is_err());
        node.plug(host, Some(index)).unwrap();
        assert_eq!(node.index_of(host).unwrap(), index);
        let plan = Plan::to(address).from([client.source_v4(3).into()]).talk(Talk::Byte);
        let report = client.namespace().run(|| plan.run()).unwrap().unwrap();
        assert_eq!(report.stats.ok(), 1, "{}", report.stats);
    }
    assert_eq!(server.accepted(80), 2);
}

#[test]
fn offloads_are_switched() {
    if !privileged("offloads_are_switched") {
        return;
    }
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    for offload in
        [Offload::ReceiveChecksum, Offload::SendChecksum, Offload::Tso, Offload::Gso, Offload::Gro]
    {
        for on in [false, true] {
            set_offload(web.namespace(), web.interface(), offload, on).unwrap();
        }
    }
    let error = set_offload(web.namespace(), "none", Offload::Gro, true).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn a_process_runs_inside_and_goes_with_its_guard() {
    if !privileged("a_process_runs_inside_and_goes_with_its_guard") {
        return;
    }
    let lab = Lab::new().unwrap();
    let namespace = lab.namespace("a").unwrap();
    let mut command = Command::new("sleep");
    command.arg("1000");
    // Started from a thread that ends: the process must not end with that thread.
    let mut process =
        thread::scope(|s| s.spawn(|| namespace.spawn(command)).join().unwrap()).unwrap();
    let proc = Path::new("/proc").join(process.id().to_string());
    assert_eq!(inode(&proc.join("ns/net")), inode(namespace.path()));
    thread::sleep(Duration::from_millis(50));
    assert_eq!(process.ended().unwrap(), None);
    drop(process);
    assert!(!proc.exists());
}

#[test]
fn a_process_that_is_asked_to_end_does_so() {
    if !privileged("a_process_that_is_asked_to_end_does_so") {
        return;
    }
    let lab = Lab::new().unwrap();
    let namespace = lab.namespace("a").unwrap();
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut process = namespace.spawn(command).unwrap();
    process.child().stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let status = process.end(Duration::from_secs(10)).unwrap().unwrap();
    assert!(!status.success());
    let error = namespace.spawn(Command::new("/no/such/program")).unwrap_err();
    assert_eq!(error.to_string(), "cannot start /no/such/program");
}

#[test]
fn a_dropped_lab_leaves_no_name_no_mount_and_no_interface() {
    if !privileged("a_dropped_lab_leaves_no_name_no_mount_and_no_interface") {
        return;
    }
    let lab = Lab::new().unwrap();
    let id = lab.id().to_owned();
    let pins = lab.pins();
    fs::create_dir(&pins).unwrap();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let server = web
        .namespace()
        .run(|| Server::start(&[SocketAddr::new(web.ipv4().into(), 80)], Talk::Byte))
        .unwrap()
        .unwrap();
    // The node, the pod and the lab's directory.
    assert_eq!(remains(&id).len(), 3);
    // Another lab's name may begin like this one's.
    let names = [format!("/{id}/"), format!("/{id}-")];
    let mounted = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        names.iter().any(|name| mounts.contains(name))
    };
    assert!(mounted());
    drop((server, web, node, lab));
    assert_eq!(remains(&id), Vec::<std::path::PathBuf>::new());
    assert!(!mounted());
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    if !privileged("what_a_killed_run_left_is_removed_by_the_next") {
        return;
    }
    // As long as the owner lives, no lab of a test beside this one removes what it has.
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let id = format!("weirlab-{}", owner.id());
    let name = format!("{id}-web");
    std::mem::forget(Namespace::create(&name).unwrap());
    fs::create_dir_all(format!("/run/{id}/bpf")).unwrap();
    fs::write(format!("/run/{id}/node.yaml"), "left").unwrap();
    assert_eq!(remains(&id).len(), 2);
    owner.kill().unwrap();
    owner.wait().unwrap();
    let _lab = Lab::new().unwrap();
    assert_eq!(remains(&id), Vec::<std::path::PathBuf>::new());
}

#[test]
fn ip_netns_finds_the_lab() {
    if !privileged("ip_netns_finds_the_lab") {
        return;
    }
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let mut ip = Command::new("ip");
    ip.args(["netns", "exec", web.namespace().name(), "ip", "-br", "addr"]);
    let Ok(output) = ip.output() else {
        skip("ip_netns_finds_the_lab", "iproute2 is not installed");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&web.ipv4().to_string()), "{text}");
}

#[test]
fn a_name_that_fits_no_interface_is_refused() {
    if !privileged("a_name_that_fits_no_interface_is_refused") {
        return;
    }
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    for name in ["", "much-too-long", "Web", "a/b", "../x"] {
        let error = node.pod(name).unwrap_err();
        assert!(matches!(error, LabError::Name { .. }), "{name:?}: {error}");
    }
    let twice = (node.pod("web").unwrap(), node.pod("web").unwrap_err());
    assert!(twice.1.to_string().contains("web"), "{}", twice.1);
}

#[test]
fn links_can_be_made_by_hand() {
    if !privileged("links_can_be_made_by_hand") {
        return;
    }
    let lab = Lab::new().unwrap();
    let (one, other) = (lab.namespace("a").unwrap(), lab.namespace("b").unwrap());
    veth(
        End { namespace: &one, name: "left", mac: [2, 0, 0, 0, 0, 1], index: Some(77) },
        End { namespace: &other, name: "right", mac: [2, 0, 0, 0, 0, 2], index: Some(78) },
    )
    .unwrap();
    assert_eq!(link_index(&one, "left").unwrap(), 77);
    assert_eq!(link_index(&other, "right").unwrap(), 78);
    add_address(&one, "left", Prefix::new([192, 0, 2, 1], 30)).unwrap();
    add_address(&other, "right", Prefix::new([192, 0, 2, 2], 30)).unwrap();
    let listener = other.run(|| TcpListener::bind("192.0.2.2:80")).unwrap().unwrap();
    one.run(|| TcpStream::connect("192.0.2.2:80")).unwrap().unwrap();
    listener.accept().unwrap();
    delete_link(&one, "left").unwrap();
    eventually("the peer is gone too", || link_index(&other, "right").is_err());
}
