//! Node files read: whole, wrong, and after a better one.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::config::{Attach, Location};

const WHOLE: &str = r#"
mode: enforce
admin: { listen: 127.0.0.1:9464 }
exempt: [10.0.0.0/8, 192.0.2.1]
pace: fq
uplinks:
  - interface: eth0
  - {interface: eth1, xdp: off}
shield: {xdp: always, above: 500}
policies:
  - match: { name: "web-*", labels: {tier: front} }
    default: { connections: 1000/s }
    max: { connections: 5000/s burst=10000 }
    allow: [connections, connections-per-source.http]
  - default: { exempt: [203.0.113.0/24], on-limit: drop }
workloads:
  - name: mysql
    interface: eth0
    addresses: [10.0.0.5, "2001:db8::5"]
    labels: {tier: db}
    ports: {mysql: 3306}
    probes: {from: [10.0.0.1], ports: [8080, mysql], rate: 50/s}
    resets: 200/s burst=400
    include-management: false
    pace: off
    policy:
      connections.mysql: 1 per 60s
  - name: web-1
    netns: db
    attach: pod
  - name: web-2
    netns: /proc/1/ns/net
    interface: net0
"#;

fn whole() -> NodeFile {
    let reading = read(WHOLE, "node.yaml", None).unwrap();
    assert_eq!(reading.problems, []);
    reading.file
}

/// The problems as text.
fn problems(text: &str) -> Vec<String> {
    match read(text, "node.yaml", None) {
        Ok(reading) => reading.problems.iter().map(ToString::to_string).collect(),
        Err(problem) => vec![format!("fatal: {problem}")],
    }
}

/// Reads a text after the whole file.
fn after(text: &str) -> (NodeFile, Vec<String>) {
    let reading = read(text, "node.yaml", Some(&whole())).unwrap();
    (reading.file, reading.problems.iter().map(ToString::to_string).collect())
}

#[test]
fn a_whole_file_is_read_as_written() {
    let file = whole();
    assert_eq!(file.listen, "127.0.0.1:9464".parse().ok());
    assert_eq!(file.pace, Pace::Fq);
    let paces: Vec<_> = file.workloads.iter().map(|workload| workload.pace).collect();
    assert_eq!(paces, [Some(Pace::Off), None, None]);
    assert_eq!(file.administrator.mode.as_ref().map(|mode| mode.value), Some(Mode::Enforce));
    let exempt: Vec<_> =
        file.administrator.exempt.iter().map(|peer| peer.value.to_string()).collect();
    assert_eq!(exempt, ["10.0.0.0/8", "192.0.2.1"]);
    let uplinks: Vec<_> =
        file.uplinks.iter().map(|uplink| (uplink.interface.as_str(), uplink.xdp)).collect();
    assert_eq!(uplinks, [("eth0", XdpMode::Native), ("eth1", XdpMode::Off)]);
    let (above, calm) = (NonZeroU32::new(500).unwrap(), Duration::from_secs(30));
    assert_eq!(file.shield, Shield { xdp: ShieldMode::Always, above, calm });
    let [front, all] = file.administrator.policies.as_slice() else { panic!("two policies") };
    assert_eq!(front.matches.labels["tier"], "front");
    assert_eq!(front.allow.as_ref().unwrap().keys.len(), 2);
    assert_eq!(all.matches, Match::default());
    assert_eq!(all.default.len(), 2);

    let mysql = file.workload("mysql").unwrap();
    assert_eq!(mysql.location, Location::Host { interface: "eth0".to_owned() });
    assert_eq!(mysql.place.to_string(), "node.yaml:17:5");
    assert_eq!(mysql.addresses.len(), 2);
    let probes = mysql.probes.as_ref().unwrap();
    assert_eq!(probes.ports.iter().map(|port| port.number()).collect::<Vec<_>>(), [8080, 3306]);
    assert_eq!(probes.bucket.to_string(), "50/s");
    assert_eq!(mysql.resets.to_string(), "200/s burst=400");
    assert_eq!(mysql.policy[0].text, "1 per 60s");
    assert_eq!(mysql.policy[0].place.to_string(), "node.yaml:27:7");

    let location = |name: &str| file.workload(name).unwrap().location.clone();
    let Location::Namespace { netns, interface, attach } = location("web-1") else { panic!() };
    assert_eq!(netns.path(), PathBuf::from("/run/netns/db"));
    assert_eq!((interface.as_str(), attach), ("eth0", Attach::Pod));
    let Location::Namespace { netns, interface, attach } = location("web-2") else { panic!() };
    assert_eq!(netns.path(), PathBuf::from("/proc/1/ns/net"));
    assert_eq!((interface.as_str(), attach), ("net0", Attach::Auto));
}

#[test]
fn the_sample_has_no_problem() {
    let sample = include_str!("../../../deploy/node.sample.yaml");
    assert_eq!(problems(sample), [] as [&str; 0]);
}

#[test]
fn an_empty_list_of_workloads_is_a_file() {
    assert_eq!(problems("workloads: []\n"), [] as [&str; 0]);
}

#[test]
fn a_text_that_says_nothing_is_refused_whole() {
    for text in ["", "# nothing\n", "workloads\n", "- name: x\n", "a: [1\n", "a: 1\n---\nb: 2\n"] {
        let found = problems(text);
        assert!(found[0].starts_with("fatal: node.yaml:"), "{text:?}: {found:?}");
    }
}

#[test]
fn each_problem_says_where_what_and_what_was_expected() {
    let rows: &[(&str, &str)] = &[
        (
            "modes: shadow",
            "node.yaml:1:1: error: unknown key `modes` in `node file`; expected `mode`",
        ),
        (
            "mode: audit",
            "node.yaml:1:7: error: mode: this word is not accepted here: `audit`; expected \
             `enforce` or `shadow`",
        ),
        (
            "mode: [shadow]",
            "node.yaml:1:7: error: `mode`: a list stands here; expected `enforce` or `shadow`",
        ),
        (
            "admin: {listen: 9464}",
            "node.yaml:1:17: error: `listen`: `9464` is no socket address; expected an address and \
             a port like 127.0.0.1:9464",
        ),
        (
            "exempt: [10.0.0.1/8]",
            "node.yaml:1:10: error: exempt: this CIDR has bits set behind its prefix: \
             `10.0.0.1/8`; expected 10.0.0.0/8",
        ),
        (
            "pace: fd",
            "node.yaml:1:7: error: `pace`: `fd` is not accepted here; expected `auto` or `fq` or \
             `off`",
        ),
        (
            "uplinks: [{interface: eth0, xdp: genric}]",
            "node.yaml:1:34: error: `xdp`: `genric` is not accepted here; expected `native` or \
             `generic` or `off`; did you mean `generic`?",
        ),
        (
            "shield: {xdp: native}",
            "node.yaml:1:15: error: `xdp`: `native` is not accepted here; expected `auto` or `always` \
             or `off`",
        ),
        (
            "shield: {above: 0}",
            "node.yaml:1:17: error: `above`: `0` is no such number; expected SYNs per second, a number \
             from 1 to 4294967295",
        ),
        (
            "uplinks: [{xdp: off}]",
            "node.yaml:1:11: error: an uplink without `interface`; expected the interface's name",
        ),
        (
            "uplinks: [{interface: a}, {interface: a}]",
            "node.yaml:1:27: error: the uplink `a` is listed twice; expected it once: it stands at \
             node.yaml:1:11 already",
        ),
        (
            "policies: [{match: {namespace: [shop]}, default: {mode: shadow}}]",
            "node.yaml:1:32: error: `namespace`: a list stands here; expected a pattern like `web-*`",
        ),
        (
            "policies: [{match: {name: x}}]",
            "node.yaml:1:12: warning: this policy says nothing; expected `default`, `max` or \
             `allow` beside `match`",
        ),
        (
            "policies: [{allow: [exempt]}]",
            "node.yaml:1:21: error: `exempt` cannot be allowed; expected keys that workloads may \
             set; `exempt` is the administrator's alone",
        ),
        (
            "policies: [{max: {conections: 5/s}}]",
            "node.yaml:1:19: error: unknown key `conections`; expected `connections`",
        ),
        (
            "workloads: [{interface: eth0}]",
            "node.yaml:1:13: error: a workload without `name`; expected `name` in each workload",
        ),
        (
            "workloads: [{name: a b, interface: eth0}]",
            "node.yaml:1:20: error: `name`: `a b` is no name; expected up to 63 letters, digits, \
             `-`, `_` and `.`",
        ),
        (
            "workloads: [{name: a}]",
            "node.yaml:1:13: error: nothing says where this workload's packets are; expected \
             `interface`, or `netns`, or both; `a` is not limited at all",
        ),
        (
            "workloads: [{name: a, interface: a/b}]",
            "node.yaml:1:34: error: `interface`: `a/b` cannot be an interface; expected the name of \
             an interface, up to 15 letters without blanks and `/`; `a` is not limited at all",
        ),
        (
            "workloads: [{name: a, netns: x/y}]",
            "node.yaml:1:30: error: `netns`: `x/y` is no network namespace; expected a name that \
             `ip netns` lists, or an absolute path; `a` is not limited at all",
        ),
        (
            "workloads: [{name: a, interface: b, attach: pod}]",
            "node.yaml:1:45: warning: `attach` says nothing about an interface of the host; \
             expected `attach` only beside `netns`",
        ),
        (
            "workloads: [{name: a, interface: b, ports: {HTTP: 80}}]",
            "node.yaml:1:45: error: `HTTP` cannot be a port's name; expected up to 15 of a-z, 0-9 \
             and `-`, with a letter",
        ),
        (
            "workloads: [{name: a, interface: b, ports: {http: 65536}}]",
            "node.yaml:1:51: error: `http`: `65536` is no port; expected a port number from 1 to \
             65535",
        ),
        (
            "workloads: [{name: a, interface: b, probes: {ports: [http]}}]",
            "node.yaml:1:54: error: `ports`: `http` is no port; expected a port number, or a name \
             from this workload's `ports`",
        ),
        (
            "workloads: [{name: a, interface: b, probes: {rate: 5/s}}]",
            "node.yaml:1:45: error: probes without ports; expected `ports`, the ports that are probed",
        ),
        (
            "workloads: [{name: a, interface: b, addresses: [10.0.0.0/8]}]",
            "node.yaml:1:49: error: `addresses`: `10.0.0.0/8` is no host's address; expected an IP \
             address",
        ),
        (
            "workloads: [{name: a, interface: b, resets: none}]",
            "node.yaml:1:45: error: resets: this is not a rate: `none`; expected a rate like \
             `100/s`, `5/10s` or `1 per 60s`",
        ),
        (
            "workloads: [{name: a, interface: b, include-management: yes}]",
            "node.yaml:1:57: error: `include-management`: `yes` is not accepted here; expected \
             `true` or `false`",
        ),
        (
            "workloads: [{name: a, interface: b, policy: {connections: {rate: 5}}}]",
            "node.yaml:1:59: error: `connections`: keys and values stands here; expected one text, \
             like `100/s burst=200`",
        ),
        (
            "workloads: [{name: a, interface: b, policy: {connections.80: 5/sec}}]",
            "node.yaml:1:64: error: connections.80: this unit of time is unknown: `sec`; expected \
             one of ms, s, m (or min), h; did you mean `s`?",
        ),
        (
            "workloads: [{name: a, interface: b, policy: {connections.80: '5/s brust=2'}}]",
            "node.yaml:1:67: error: connections.80: this option is unknown: `brust=2`; expected \
             burst=N, refill=smooth|step, group=/N,/M (per source), to=CIDR|service/NAME (outbound) or shadow; \
             did you mean `burst=`?",
        ),
        (
            "workloads: [{name: a, interface: b, policy: {weir.dev/connections: 5/s}}]",
            "node.yaml:1:46: error: unknown key `weir.dev/connections`; expected `connections`",
        ),
        (
            "workloads: [{name: a, interface: b}, {name: a, interface: c}]",
            "node.yaml:1:38: error: the workload `a` is there twice; expected another name: `a` \
             stands at node.yaml:1:13 already; the first one counts",
        ),
        (
            "workloads: [{name: a, netns: x}, {name: b, netns: /run/netns/x}]",
            "node.yaml:1:34: error: `b` has the interface of `a`: eth0 in x; expected one workload \
             for each interface; the first one counts",
        ),
        (
            "workloads: [{name: a, netns: x, addresses: [10.0.0.1]}, {name: b, netns: y, addresses: \
             [10.0.0.1]}]",
            "node.yaml:1:57: error: `b` has the address of `a`: 10.0.0.1; expected one workload for \
             each address; the first one counts",
        ),
        (
            "mode: shadow\nmode: enforce",
            "node.yaml:2:1: error: the key `mode` is written twice; expected it once: it stands at \
             node.yaml:1:1 already; the first one counts",
        ),
        (
            "workloads:",
            "node.yaml:1:10: error: `workloads`: nothing stands here; expected a list of workloads",
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(problems(text), [*expected], "{text}");
    }
}

#[test]
fn every_problem_of_a_file_is_told_at_once() {
    let found = problems("mode: x\nexempt: [y, z]\nworkloads: [{name: a}, {}]\nnonsense: 1\n");
    assert_eq!(found.len(), 6, "{found:#?}");
}

#[test]
fn what_cannot_be_read_keeps_what_it_was() {
    let (file, found) = after(
        "mode: x\nadmin: {listen: y}\nexempt: [z]\npace: w\nuplinks: [{}]\nshield: {calm: q}\npolicies: [x]\nworkloads: none\n",
    );
    assert_eq!(file, whole());
    assert!(
        found.iter().all(|problem| problem.ends_with("; what stood here before stays")),
        "{found:#?}"
    );
}

#[test]
fn a_misspelt_key_keeps_what_the_right_one_said() {
    let (file, found) = after("polices: []\nworkloads: []\n");
    assert_eq!(file.administrator.policies, whole().administrator.policies);
    assert_eq!(file.workloads, []);
    assert_eq!(file.uplinks, [], "what is not written is gone");
    assert!(found[0].ends_with("; what stood here before stays"), "{found:?}");
}

#[test]
fn a_workload_keeps_each_part_that_cannot_be_read() {
    let (file, _) = after(
        "workloads:\n- {name: mysql, interface: a/b, addresses: [x], labels: y, ports: {mysql: z}, \
         probes: {}, resets: w, pace: r, include-management: v, policy: u}\n",
    );
    let mut expected = whole().workload("mysql").unwrap().clone();
    expected.place = file.workloads[0].place.clone();
    assert_eq!(file.workloads, [expected]);

    let (file, found) = after("workloads: [{name: web-1, netnss: other}]\n");
    assert_eq!(file.workloads[0].location, whole().workload("web-1").unwrap().location);
    assert!(found[0].ends_with("; eth0 in db stays"), "{found:?}");
}

#[test]
fn workloads_that_an_entry_without_a_name_may_be_are_kept() {
    let (file, found) =
        after("workloads:\n- {nam: mysql, interface: eth0}\n- {name: web-1, netns: n}\n");
    let names: Vec<_> = file.workloads.iter().map(|workload| workload.name.as_str()).collect();
    assert_eq!(names, ["web-1", "mysql", "web-2"]);
    assert!(found[0].ends_with("what the last file said of mysql, web-2 stays"), "{found:?}");

    let (file, _) = after("workloads:\n- {name: web-1, netns: n}\n");
    assert_eq!(file.workloads.len(), 1, "what is not written is gone");
}

#[test]
fn without_a_previous_file_the_good_part_counts() {
    let reading = read(
        "exempt: [10.0.0.0/8, x]\npolicies: [{max: {connections: 1/s}}, {match: 5, max: {}}]\n\
         workloads: [{name: a, interface: b, labels: x}]\n",
        "node.yaml",
        None,
    )
    .unwrap();
    assert_eq!(reading.file.administrator.exempt.len(), 1);
    assert_eq!(reading.file.administrator.policies.len(), 1);
    assert_eq!(reading.file.workloads.len(), 1);
    assert_eq!(reading.problems.len(), 3);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        let _ = read(&text, "node.yaml", Some(&whole()));
    }

    /// A whole file with one line spoilt still says all it can, and never loses a workload.
    #[test]
    fn one_spoilt_line_takes_no_workload_away(line in 0..40_usize, noise in "[ -~]{1,12}") {
        let mut lines: Vec<String> = WHOLE.lines().map(str::to_owned).collect();
        let line = line % lines.len();
        let indent = lines[line].len() - lines[line].trim_start().len();
        let value = lines[line].find(": ").map_or(indent, |at| at + 2);
        lines[line].replace_range(value.., &format!("\"{}\"", noise.replace(['"', '\\'], "")));
        let before = whole();
        if let Ok(reading) = read(&lines.join("\n"), "node.yaml", Some(&before)) {
            for workload in &before.workloads {
                // A name may have become another one; then there are as many.
                let kept = reading.file.workload(&workload.name).is_some()
                    || reading.file.workloads.len() >= before.workloads.len();
                prop_assert!(kept, "{} is gone: {:?}", workload.name, reading.problems);
            }
        }
    }
}

#[test]
fn services_are_read_or_stay_as_they_were() {
    let good = "services: {db: [192.0.2.10, 192.0.2.11], far: [10.0.0.0/8]}\n";
    let file = read(good, "node.yaml", None).unwrap();
    assert_eq!(file.problems, []);
    let services = &file.file.administrator.services;
    let shown: Vec<_> = services
        .iter()
        .map(|(name, endpoints)| format!("{name}: {} {}", endpoints.len(), endpoints[0]))
        .collect();
    assert_eq!(shown, ["db: 2 192.0.2.10", "far: 1 10.0.0.0/8"]);
    for (bad, told) in [
        ("{db: [192.0.2.300]}", "this is not an address or CIDR"),
        ("{db: []}", "`db` has no endpoints"),
        ("{Db: [192.0.2.1]}", "`Db` cannot be a service's name"),
        ("{db: [192.0.2.0/24, 192.0.2.1]}", "192.0.2.1 and 192.0.2.0/24 are not apart"),
    ] {
        let reading = read(&format!("services: {bad}\n"), "node.yaml", Some(&file.file)).unwrap();
        assert!(reading.problems.iter().any(|problem| problem.what.contains(told)), "{bad}");
        assert_eq!(reading.file.administrator.services, *services, "{bad}");
    }
}
