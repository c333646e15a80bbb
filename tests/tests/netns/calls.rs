//! What a workload opens is refused in `connect()` itself where it certainly would be, and nothing
//! else changes: as many get through as without it, and nobody else notices.
//!
//! Whether there was a packet is asked of the caller's own stack, which counts the segments it sends.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn},
};
use weir::lab::{End, Host, Lab, Namespace, Node, veth};
use weir_tests::{
    agent::{Agent, binary, eventually},
    bpf::{Foreign, Hook, Object, Place, exists, pinned_link},
    open::{Ends, connect_at_once, connect_within, is_refused},
    site::{Side, addresses, ask, ask_in_vain, serve, stack_counter},
};

/// One story, wherever a workload's calls can be told from those of others.
macro_rules! with_a_namespace {
    ($($story:ident)*) => {$(
        mod $story {
            use weir_tests::site::Side;

            #[test]
            fn on_the_host_side() {
                super::$story(&lab!(), Side::Host);
            }

            #[test]
            fn inside_the_pod() {
                super::$story(&lab!(), Side::Pod);
            }
        }
    )*};
}

with_a_namespace! {
    an_open_breaker_refuses_before_there_is_a_packet
    a_half_open_breaker_lets_exactly_its_probes_through
    an_outbound_limit_admits_exactly_what_it_is
    without_cgroups_rsts_refuse
}

/// The cgroups that this machine has, or the test is skipped.
fn have_cgroups(test: &str) -> bool {
    let found = are_cgroups_mounted();
    if !found {
        weir::lab::skip(test, "no cgroup v2 hierarchy is mounted");
    }
    found
}

fn are_cgroups_mounted() -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" - cgroup2 ")
}

fn start<'a>(lab: &Lab, side: Side, node: &'a Node, app: &Host, policy: &[&str]) -> Agent<'a> {
    Agent::start(lab, node.namespace(), &side.node_file(app, policy))
}

fn is_hooked(agent: &Agent<'_>) -> bool {
    agent.workload("app").connect.expect("a limit is about what it opens").hooked
}

fn segments_of(namespace: &Namespace) -> u64 {
    stack_counter(namespace, "Tcp", "OutSegs")
}

/// How often something is refused, and that no segment was sent for it.
fn refused_in_silence(from: &Namespace, to: SocketAddr, times: usize) {
    let before = segments_of(from);
    let ends = connect_at_once(from, to, times);
    assert_eq!(ends.counts(), (0, times), "{to}");
    assert_eq!(segments_of(from), before, "a segment was sent to {to}");
    println!("the last of {times} knew after {:?}", ends.longest);
}

fn an_open_breaker_refuses_before_there_is_a_packet(lab: &Lab, side: Side) {
    if !have_cgroups("calls::an_open_breaker_refuses_before_there_is_a_packet") {
        return;
    }
    let node = lab.node("node").unwrap();
    let (app, one) = (node.pod("app").unwrap(), node.client("one").unwrap());
    let other = node.pod("other").unwrap();
    let v6 = format!("; errors=2 ejection=60s to={}", one.ipv6());
    let line = format!(
        "outbound-breaker.3306: errors=2 ejection=60s to={}{}",
        one.ipv4(),
        if app.namespace().has_ipv6() { v6.as_str() } else { "" }
    );
    let mut agent = start(lab, side, &node, &app, &[&line]);
    assert!(is_hooked(&agent));
    let families = addresses(&one);
    for &address in &families {
        let to = SocketAddr::new(address, 3306);
        // The first two are the server's own refusals.
        let before = segments_of(app.namespace());
        assert_eq!(ask(app.namespace(), to, 2).codes(), "refused:2");
        assert_eq!(segments_of(app.namespace()) - before, 2);
        refused_in_silence(app.namespace(), to, 16);
    }
    // By the same address, from a socket of the other family.
    let mapped = SocketAddr::new(one.ipv4().to_ipv6_mapped().into(), 3306);
    if app.namespace().has_ipv6() {
        refused_in_silence(app.namespace(), mapped, 4);
    }
    let so_far = 16 * families.len() as u64 + if families.len() > 1 { 4 } else { 0 };
    assert_eq!(agent.decisions("app", "connect egress", "reset breaker_open"), so_far);
    assert_eq!(agent.decisions("app", "tc egress", "reset breaker_open"), 0);
    let last = agent.last_refusal("app");
    assert_eq!((last.hook.as_str(), last.direction.as_str()), ("connect", "egress"));
    assert!(last.limit.starts_with("outbound-breaker.3306 to="), "{last:?}");

    // Other namespaces, other ports and other protocols are not its matter.
    let to = SocketAddr::new(one.ipv4().into(), 3306);
    let before = segments_of(other.namespace());
    assert!(is_refused(other.namespace(), to));
    assert_eq!(segments_of(other.namespace()) - before, 1, "the server's own refusal");
    let _server = serve(&one, &[80]);
    assert_eq!(ask(app.namespace(), SocketAddr::new(to.ip(), 80), 5).codes(), "ok:5");
    let datagram = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)
    };
    app.namespace().run(datagram).unwrap().unwrap();

    // It needs no agent; the next one takes over.
    agent.kill();
    refused_in_silence(app.namespace(), to, 4);
    agent.restart();
    assert!(is_hooked(&agent));
    refused_in_silence(app.namespace(), to, 4);
    assert_eq!(agent.decisions("app", "connect egress", "reset breaker_open"), so_far + 8);
    let links: Vec<_> = ["connect4", "connect6"]
        .map(|pin| pinned_link(&agent.layout().join("links").join(pin)).unwrap())
        .into();
    assert!(agent.terminate().success());
    refused_in_silence(app.namespace(), to, 4);
    assert!(agent.uninstall().status.success());
    eventually(
        "nothing is hooked",
        || links.iter().any(|pinned| exists(Object::Link(pinned.link))),
        |there| !there,
    );
    let before = segments_of(app.namespace());
    assert_eq!(ask(app.namespace(), to, 3).codes(), "refused:3");
    assert_eq!(segments_of(app.namespace()) - before, 3, "the server's own refusals");
}

/// Many at once: those that the hook lets through are judged at TC as ever.
fn a_half_open_breaker_lets_exactly_its_probes_through(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let (app, one) = (node.pod("app").unwrap(), node.client("one").unwrap());
    let line = format!(
        "outbound-breaker.3306: errors=1 ejection=1s probes=3 connect-timeout=1000s to={}",
        one.ipv4()
    );
    let agent = start(lab, side, &node, &app, &[&line]);
    let to = SocketAddr::new(one.ipv4().into(), 3306);
    assert!(is_refused(app.namespace(), to));
    // Probes that hear nothing stay out.
    let deaf = Foreign::tc_drops_tcp("deaf").unwrap();
    let _deaf = deaf.attach(one.namespace(), one.interface(), Hook::Ingress, Place::Last).unwrap();
    let name = format!("outbound-breaker.3306 to={}", one.ipv4());
    let look = || agent.limit_named("app", &name).breaker.expect("a breaker");
    eventually("its time is over", look, |now| now.state == "open" && now.open_seconds <= 0.0);
    let before = agent.decisions("app", "tc egress", "pass admitted");
    let Ends { open, refused, others, .. } =
        connect_within(app.namespace(), to, 64, Duration::from_millis(800));
    assert_eq!((open.len(), refused, others.len()), (0, 61, 3), "{others:?}");
    assert_eq!(agent.decisions("app", "tc egress", "pass admitted") - before, 3);
    assert_eq!(agent.refused_calls("app", "reset breaker_probing"), 61);
    let changes = ["tripped", "half_opened", "reopened"]
        .map(|edge| agent.decisions("app", "tc egress", &format!("note breaker_{edge}")));
    assert_eq!(changes, [1, 1, 0], "a refusal in connect() is no evidence");
}

fn an_outbound_limit_admits_exactly_what_it_is(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let (app, one) = (node.pod("app").unwrap(), node.client("one").unwrap());
    let server = serve(&one, &[3306]);
    let agent = start(lab, side, &node, &app, &["outbound-connections: 10 per 1h"]);
    let to = SocketAddr::new(one.ipv4().into(), 3306);
    for round in 0..3 {
        let ends = connect_at_once(app.namespace(), to, 64);
        assert_eq!(ends.counts(), if round == 0 { (10, 54) } else { (0, 64) });
    }
    assert_eq!(server.accepted(3306), 10);
    assert_eq!(agent.refused_calls("app", "reset outbound_rate"), 54 + 128);
    assert_eq!(is_hooked(&agent), are_cgroups_mounted());
    if is_hooked(&agent) {
        refused_in_silence(app.namespace(), to, 4);
    }
    // What does not leave its namespace passes no limit.
    let _own = serve(&app, &[3306]);
    for address in addresses(&app) {
        assert_eq!(ask(app.namespace(), SocketAddr::new(address, 3306), 3).codes(), "ok:3");
    }
    for address in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
        let address: IpAddr = address.parse().unwrap();
        if address.is_ipv6() && !app.namespace().has_ipv6() {
            continue;
        }
        // Nobody listens there: the refusal is the namespace's own, and its segments are counted.
        let before = segments_of(app.namespace());
        assert!(is_refused(app.namespace(), SocketAddr::new(address, 9)), "{address}");
        assert!(segments_of(app.namespace()) > before, "{address} was refused in connect()");
    }
    // A pause lets everybody through, here too.
    agent.pause("app", 60);
    assert_eq!(ask(app.namespace(), to, 5).codes(), "ok:5");
}

/// Where there is no cgroup v2 hierarchy nothing is lost but time.
fn without_cgroups_rsts_refuse(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let (app, one) = (node.pod("app").unwrap(), node.client("one").unwrap());
    let _server = serve(&one, &[3306]);
    let script = lab.directory().join("weir-without-cgroups");
    let hidden = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private sh -c '\n\
         for point in $(awk \"/ - cgroup2 /{{print \\$5}}\" /proc/self/mountinfo); do\n\
         umount -l \"$point\"; done\nexec {} \"$@\"' weir \"$@\"\n",
        binary().display()
    );
    fs::write(&script, hidden).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let file = side.node_file(&app, &["outbound-connections: 10 per 1h"]);
    let mut agent = Agent::new(lab, node.namespace(), &file);
    agent.upgrade_to(script);
    agent.restart();
    let status = agent.workload("app");
    assert_eq!(status.condition, "enforced");
    let connect = status.connect.unwrap();
    assert!(!connect.hooked);
    assert!(connect.detail.unwrap().contains("cgroup v2"));
    let to = SocketAddr::new(one.ipv4().into(), 3306);
    assert_eq!(connect_at_once(app.namespace(), to, 64).counts(), (10, 54));
    assert_eq!(agent.decisions("app", "tc egress", "reset outbound_rate"), 54);
    assert_eq!(agent.decisions("app", "connect egress", "reset outbound_rate"), 0);
}

/// A line in shadow, and one that refuses in silence, are TC's alone.
#[test]
fn what_is_not_refused_by_rst_is_not_refused_in_connect() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (app, one) = (node.pod("app").unwrap(), node.client("one").unwrap());
    let _server = serve(&one, &[80, 81]);
    let policy = [
        "outbound-connections.80: 1 per 1h shadow",
        "outbound-connections.81: 1 per 1h",
        "on-limit.81: drop",
    ];
    let agent = start(&lab, Side::Host, &node, &app, &policy);
    let to = |port| SocketAddr::new(one.ipv4().into(), port);
    assert_eq!(ask(app.namespace(), to(80), 10).codes(), "ok:10");
    assert_eq!(agent.decisions("app", "tc egress", "shadow outbound_rate"), 9);
    assert_eq!(ask(app.namespace(), to(81), 1).codes(), "ok:1");
    assert_eq!(ask_in_vain(app.namespace(), to(81), 3).codes(), "timeout:3");
    assert!(!agent.workload("app").decisions.contains_key("connect egress"));
}

/// With a second way out nobody knows by which one a call will go.
#[test]
fn a_namespace_with_two_ways_out_is_not_hooked() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (app, one) = (node.pod("app").unwrap(), node.client("one").unwrap());
    veth(
        End { namespace: node.namespace(), name: "second", mac: [2, 0, 0, 0, 0, 1], index: None },
        End { namespace: app.namespace(), name: "eth1", mac: [2, 0, 0, 0, 0, 2], index: None },
    )
    .unwrap();
    let agent = start(&lab, Side::Host, &node, &app, &["outbound-connections: 1 per 1h"]);
    let connect = agent.workload("app").connect.unwrap();
    assert!(!connect.hooked);
    assert!(connect.detail.unwrap().starts_with("eth1 leads out"));
    let _server = serve(&one, &[80]);
    let to = SocketAddr::new(one.ipv4().into(), 80);
    assert_eq!(ask(app.namespace(), to, 5).codes(), "ok:1 refused:4");
    assert_eq!(agent.decisions("app", "tc egress", "reset outbound_rate"), 4);
}

/// Who does not wait for the connection hears of the refusal all the same.
#[test]
fn a_call_that_does_not_wait_is_told_at_once() {
    let lab = lab!();
    if !have_cgroups("calls::a_call_that_does_not_wait_is_told_at_once") {
        return;
    }
    let node = lab.node("node").unwrap();
    let (app, one) = (node.pod("app").unwrap(), node.client("one").unwrap());
    let _server = serve(&one, &[80]);
    let agent = start(&lab, Side::Host, &node, &app, &["outbound-connections: 1 per 1h"]);
    assert!(is_hooked(&agent));
    let to = SocketAddr::new(one.ipv4().into(), 80);
    assert_eq!(ask(app.namespace(), to, 1).codes(), "ok:1");
    let call = || {
        let family = AddressFamily::Inet;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = nix::sys::socket::socket(family, SockType::Stream, flags, None)?;
        let to = SockaddrIn::from(SocketAddrV4::new(one.ipv4(), 80));
        nix::sys::socket::connect(socket.as_raw_fd(), &to)
    };
    assert_eq!(app.namespace().run(call).unwrap(), Err(Errno::ECONNREFUSED));
    assert_eq!(agent.decisions("app", "connect egress", "reset outbound_rate"), 1);
}
