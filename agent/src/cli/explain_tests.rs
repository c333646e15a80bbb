use super::{super::look::tests::PLAIN, *};
use crate::admin::testing;

/// What was explained, with fewer decisions.
fn explanation() -> Explanation {
    let mut explanation = testing::explanation();
    for (place, row) in &mut explanation.workload.decisions {
        let shown = ["pass admitted", "reset connection_rate", "note reset_limited"];
        row.retain(|what, _| place == "tc ingress" && shown.contains(&what.as_str()));
    }
    explanation
}

#[test]
fn why_something_was_refused_is_answered_within_a_hundred_columns() {
    let text = render(&explanation(), &PLAIN);
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    let expected = "\
web: enforced, eth0 in web, attached by tcx
its connect() fails at once where a limit refuses
programs of others run first and may decide first: cilium
3s ago `connections.80` (100/s burst=200) refused a connection from 10.0.0.9:51234: connection_rate,
812/s were asking

PROBLEMS
  node.yaml:18:7: error: unknown key `conections`

POLICY
  connections.80 100/s burst=200
    from         workload, /etc/weir/node.yaml:17:7
    clamped      rate, burst from `100/s burst=200` (administrator's max, /etc/weir/node.yaml:9:12)
    now          7 tokens left, 812/s asking
    so far       1000 admitted, 50 refused
  connections.80 (shadow) 80/s shadow
    from         workload, /etc/weir/node.yaml:17:7
    only counts  its own word
    now          7 tokens left, 812/s asking
    so far       1000 admitted, 0 refused, 9 would have been refused
  connections-per-source 20/s
    from         administrator's default, node.yaml:3:1
    now          a bucket for each source, 812/s asking
    mind         93 % of it comes from 10.0.0.9: if that is a node, a gateway, a proxy or a NAT, the
                 clients behind it share one bucket
    so far       1000 admitted, 50 refused
  outbound-connections to=10.0.0.0/8 50/s
    now          7 tokens left, 812/s asking
    so far       1000 admitted, 50 refused
  outbound-connections to=192.0.2.10/32 50/s
    now          7 tokens left, 812/s asking
    so far       1000 admitted, 50 refused
  max-connections.80 500
    now          40 connections, 3 of them not complete, 812/s asking
    so far       1000 admitted, 50 refused
  max-handshakes.80 100
    now          40 connections, 3 of them not complete, 812/s asking
    so far       with `max-connections.80`: 1000 admitted, 50 refused
  breaker.80 errors=5
    now          open for 12.5 s more, 2 times in a row, 812/s asking
    so far       1000 admitted, 50 refused

DECISIONS
AT          VERDICT  REASON           PACKETS
tc ingress  pass     admitted             100
tc ingress  reset    connection_rate      107

FAULTS (the packets are among the decisions too)
AT          REASON         TIMES
tc ingress  reset_limited    115

LAST REFUSALS (sampled)
TIME      AGO  VERDICT  CONNECTION                       LIMIT           OFFERED  REASON
11:59:57   3s  reset    10.0.0.9:51234 -> :80            connections.80    812/s  connection_rate
11:59:57   3s  reset    [2001:db8:1:2:3:4:5:6]:51234 ->  connections.80    812/s  connection_rate
                        :80
";
    assert_eq!(text, expected, "{text}");
}

#[test]
fn a_workload_without_a_policy_says_so() {
    let workload = WorkloadStatus {
        name: "batch".to_owned(),
        condition: "no-policy".to_owned(),
        location: "eth0 in batch".to_owned(),
        ..WorkloadStatus::default()
    };
    let text = render(&Explanation { workload, ..Explanation::default() }, &PLAIN);
    let expected = "\
batch: no-policy, eth0 in batch, nothing attached
nothing was refused lately

POLICY
  no limit holds for it
";
    assert_eq!(text, expected);
}

#[test]
fn a_packet_that_hides_what_it_is_was_refused_by_no_limit() {
    let mut explanation = explanation();
    let last = &mut explanation.refusals[0];
    last.limit.clear();
    last.reason = "tiny_fragment".to_owned();
    let text = render(&explanation, &PLAIN);
    let expected = "\n3s ago a packet from 10.0.0.9:51234 was refused: tiny_fragment\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn shadow_is_told_as_what_would_have_been() {
    let mut explanation = explanation();
    let last = &mut explanation.refusals[0];
    last.verdict = "shadow".to_owned();
    last.direction = "egress".to_owned();
    let text = render(&explanation, &PLAIN);
    assert!(text.contains("would have refused a connection to 10.0.0.5:80"), "{text}");
}
