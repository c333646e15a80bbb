use super::{super::look::tests::PLAIN, super::table::WIDTH, *};
use crate::admin::testing;

#[test]
fn all_of_the_node_is_shown_within_a_hundred_columns() {
    let text = render(&testing::status(), &PLAIN);
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    let expected = "\
weir 0.1.0, ready, up 3h12m
node file /etc/weir/node.yaml, read 11:56:40 (3m20s ago)
Kubernetes node node-1, 2 pods
12 sources have buckets, 3 handshakes are remembered

1 problem with the node file:
  node.yaml:1:1: error: unknown key `modes`

WORKLOAD  WHERE          CONDITION         ATTACHED  CONNECT  DETAIL
web       eth0 in web    enforced          tcx       hooked   programs of others run first and may
                                                              decide first: cilium
mysql     eth7           not-enforced      -         -        interface eth7 is not there
batch     eth0 in batch  paused, 14m left  clsact    -

UPLINK  ATTACHED  DETAIL
eth0    xdp
eth1    -         cannot run XDP in its driver

SHIELD    WORKLOAD  ATTACHED  REFUSED
veth-web  web       xdp       48000/s

WORKLOAD  LIMIT                   VALUE        TOKENS   NOW  OFFERED  ADMITTED  REFUSED  SHADOWED
web       connections.80          100/s             7     -    812/s      1000       50         0
                                  burst=200
web       connections.80          80/s shadow       7     -    812/s      1000        0         9
          (shadow)
web       connections-per-source  20/s              -     -    812/s      1000       50         0
web       outbound-connections    50/s              7     -    812/s      1000       50         0
          to=10.0.0.0/8
web       outbound-connections    50/s              7     -    812/s      1000       50         0
          to=192.0.2.10/32
web       max-connections.80      500               -    40    812/s      1000       50         0
web       max-handshakes.80       100               -     3    812/s      1000       50         0
web       breaker.80              errors=5          -  open    812/s      1000       50         0
";
    assert_eq!(text.replace(env!("CARGO_PKG_VERSION"), "0.1.0"), expected, "{text}");
}

#[test]
fn an_agent_that_never_understood_its_file_says_so() {
    let text = render(&view::Status { version: "1".to_owned(), ..Default::default() }, &PLAIN);
    let expected = "weir 1, not ready, up 0s\nnode file , never understood\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.ends_with("no workload is protected: the node file names none\n"), "{text}");
}

#[test]
fn what_is_in_shadow_or_paused_is_meant_that_way() {
    let mut status = testing::status();
    status.problems.clear();
    status.uplinks.clear();
    assert!(!is_well(&status), "one is not enforced");
    status.workloads.retain(|workload| workload.name != "mysql");
    assert!(is_well(&status), "one is paused");
    status.workloads[0].condition = "undecided".to_owned();
    assert!(!is_well(&status));
}
