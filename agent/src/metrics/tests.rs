//! What is exposed, read by a parser that knows nothing of how it was written, and compared with
//! what the page about it says.

use std::collections::{BTreeMap, BTreeSet};

use weir_common::verdict::Reason;

use super::{Traces, render};
use crate::{
    admin::testing::status,
    app::view::{LimitStatus, Status},
    datapath::VolumeCounts,
};

const PAGE: &str = include_str!("../../../docs/metrics.md");

/// Everything between two `# TYPE` lines.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: bool,
    unit: Option<String>,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Family {
    /// The name that a query uses.
    fn queried(&self, name: &str) -> String {
        match self.kind.as_str() {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        }
    }
}

/// Reads the text format of OpenMetrics, strictly as far as it is used here.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    let body = text.strip_suffix("# EOF\n").expect("it ends with its end");
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name, rest) =
                (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            if current != name {
                assert!(!families.contains_key(name), "{name} is not in one piece");
                current = name.to_owned();
            }
            let family = families.entry(current.clone()).or_default();
            assert!(family.samples.is_empty(), "{line} comes after its samples");
            match what {
                "HELP" => family.help = !rest.is_empty(),
                "TYPE" => family.kind = rest.to_owned(),
                "UNIT" => family.unit = Some(rest.to_owned()),
                _ => panic!("{line}"),
            }
        } else {
            let family = families.get_mut(&current).expect("a family before its samples");
            let sample = parse_sample(line);
            if family.kind == "histogram" {
                // Of its series, the sum stands for all.
                let part = sample.name.strip_prefix(&current).expect(line);
                assert!(["_bucket", "_count", "_sum"].contains(&part), "{line}");
                if part != "_sum" {
                    continue;
                }
            } else {
                assert_eq!(sample.name, family.queried(&current), "{line}");
            }
            family.samples.push(sample);
        }
    }
    families
}

fn parse_sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let (name, rest) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').expect(line)),
        None => (series, ""),
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest.chars().peekable();
    while rest.peek().is_some() {
        let label: String = rest.by_ref().take_while(|c| *c != '=').collect();
        assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
        assert_eq!(rest.next(), Some('"'), "{line}");
        let mut value = String::new();
        loop {
            match rest.next().expect(line) {
                '"' => break,
                '\\' => value.push(match rest.next().expect(line) {
                    'n' => '\n',
                    c => c,
                }),
                c => value.push(c),
            }
        }
        assert!(labels.insert(label, value).is_none(), "a label twice: {line}");
        assert!(matches!(rest.next(), None | Some(',')), "{line}");
    }
    let value = value.parse().expect(line);
    Sample { name: name.to_owned(), labels, value }
}

fn everything() -> BTreeMap<String, Family> {
    let mut status = status();
    let volume = VolumeCounts { passed_bytes: 1500, passed_packets: 1, ..VolumeCounts::default() };
    status.workloads[0].limits.push(LimitStatus {
        limit: "egress-bandwidth".to_owned(),
        kind: "egress-bandwidth".to_owned(),
        volume: Some(volume),
        ..LimitStatus::default()
    });
    parse(&render(status, Traces { open: 1, skipped: 2 }, None).unwrap())
}

/// The value of the one series with these labels.
fn value(families: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = families.values().flat_map(|family| &family.samples);
    let mut found = samples.filter(|sample| {
        let has =
            |(label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|v| v == value);
        sample.name == name && labels.iter().all(has)
    });
    let sample = found.next().unwrap_or_else(|| panic!("no {name} {labels:?}"));
    assert!(found.next().is_none(), "several {name} {labels:?}");
    sample.value
}

#[test]
fn the_text_is_well_formed_and_no_series_is_there_twice() {
    for (name, family) in everything() {
        assert!(name.starts_with("weir_") && family.help && !family.kind.is_empty(), "{name}");
        assert_eq!(name.ends_with("_seconds"), family.unit.is_some(), "{name}");
        assert!(!name.ends_with("_total"), "{name}");
        assert!(!family.samples.is_empty(), "{name} has no sample in a status with everything");
        let series: BTreeSet<_> = family.samples.iter().map(|sample| &sample.labels).collect();
        assert_eq!(series.len(), family.samples.len(), "{name} has a series twice");
        let labels: BTreeSet<Vec<_>> =
            family.samples.iter().map(|sample| sample.labels.keys().collect()).collect();
        assert_eq!(labels.len(), 1, "{name} has series with different labels");
        assert!(family.samples.iter().all(|sample| sample.value >= 0.0), "{name}");
    }
}

#[test]
fn an_agent_without_workloads_can_be_scraped() {
    let families = parse(&render(Status::default(), Traces::default(), None).unwrap());
    assert_eq!(families.len(), everything().len());
    assert_eq!(value(&families, "weir_ready", &[]), 0.0);
}

#[test]
fn numbers_are_those_of_the_status() {
    let families = everything();
    let of = |name: &str, labels: &[(&str, &str)]| value(&families, name, labels);
    assert_eq!(of("weir_uptime_seconds", &[]), 11_520.5);
    assert_eq!(of("weir_config_problems", &[]), 1.0);
    assert_eq!(of("weir_config_reloads_total", &[("result", "failed")]), 1.0);
    assert_eq!(of("weir_config_reloads_total", &[("result", "succeeded")]), 4.0);
    assert_eq!(of("weir_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    for (workload, condition, is) in [
        ("web", "enforced", 1.0),
        ("web", "not-enforced", 0.0),
        ("mysql", "not-enforced", 1.0),
        ("batch", "paused", 1.0),
    ] {
        let labels = [("workload", workload), ("condition", condition)];
        assert_eq!(of("weir_workload_condition", &labels), is, "{labels:?}");
    }
    assert_eq!(of("weir_attached", &[("workload", "web"), ("kind", "tcx")]), 1.0);
    assert_eq!(of("weir_attached", &[("workload", "web"), ("kind", "clsact")]), 0.0);
    assert_eq!(of("weir_attached", &[("workload", "mysql"), ("kind", "tcx")]), 0.0);
    assert_eq!(of("weir_uplink_attached", &[("interface", "eth0"), ("kind", "xdp")]), 1.0);
    assert_eq!(of("weir_uplink_attached", &[("interface", "eth1"), ("kind", "xdp")]), 0.0);
    assert_eq!(of("weir_foreign_programs", &[("workload", "web")]), 1.0);
    assert_eq!(of("weir_pause_remaining_seconds", &[("workload", "batch")]), 840.0);
    assert_eq!(of("weir_live_sources", &[]), 12.0);
    assert_eq!(of("weir_live_sources_capacity", &[]), 229_376.0);
    assert_eq!(of("weir_live_handshakes_capacity", &[]), 65_536.0);
    assert_eq!(of("weir_trace_skipped_total", &[]), 2.0);
    let port = [("limit", "connections"), ("port", "80"), ("beside", "false")];
    assert_eq!(of("weir_limit_admitted_total", &port), 1000.0);
    assert_eq!(of("weir_limit_refused_total", &port), 50.0);
    assert_eq!(of("weir_limit_tokens", &port), 7.0);
    assert_eq!(of("weir_limit_shadow", &port), 0.0);
    let beside = [("limit", "connections"), ("beside", "true")];
    assert_eq!(of("weir_limit_shadowed_total", &beside), 9.0);
    assert_eq!(of("weir_limit_shadow", &beside), 1.0);
    assert_eq!(of("weir_limit_refused_total", &[("to", "10.0.0.0/8")]), 50.0);
    // Counted together, so the counters stand at one of them.
    let load = [("limit", "max-handshakes")];
    assert_eq!(of("weir_limit_connections", &load), 40.0);
    assert_eq!(of("weir_limit_handshakes", &[("limit", "max-connections")]), 3.0);
    let refused = &families["weir_limit_refused"].samples;
    assert!(refused.iter().any(|sample| sample.labels["limit"] == "max-connections"));
    assert!(refused.iter().all(|sample| sample.labels["limit"] != "max-handshakes"));
    // A bucket for each source has no one number of tokens.
    let tokens = &families["weir_limit_tokens"].samples;
    assert!(tokens.iter().all(|sample| sample.labels["limit"] != "connections-per-source"));
}

#[test]
fn each_reason_is_counted_once_and_what_is_no_decision_apart() {
    let families = everything();
    let place = [("hook", "tc"), ("direction", "ingress")];
    let changes = [
        (Reason::BreakerTripped, "tripped"),
        (Reason::BreakerReopened, "reopened"),
        (Reason::BreakerHalfOpened, "half_opened"),
        (Reason::BreakerClosed, "closed"),
    ];
    for (reason, change) in changes {
        let labels = [place[0], place[1], ("change", change)];
        let count = value(&families, "weir_breaker_changes_total", &labels);
        assert_eq!(count, 100.0 + f64::from(reason as u8));
    }
    for &reason in Reason::ALL {
        let name = match reason {
            Reason::EventLost | Reason::Shielded => continue,
            _ if changes.iter().any(|(change, _)| *change == reason) => continue,
            Reason::ResetLimited
            | Reason::NotRemembered
            | Reason::RewriteFailed
            | Reason::HandshakeDisplaced
            | Reason::QuotaAsked => "weir_faults_total",
            _ => "weir_decisions_total",
        };
        let labels = [place[0], place[1], ("reason", reason.name())];
        assert_eq!(value(&families, name, &labels), 100.0 + f64::from(reason as u8));
    }
    let faults = families["weir_faults"].samples.len();
    let decisions = families["weir_decisions"].samples.len();
    assert_eq!((faults, decisions), (5 * 4, (Reason::ALL.len() - 11) * 4));
    // At all four places together.
    let lost = 4.0 * (100.0 + f64::from(Reason::EventLost as u8));
    assert_eq!(value(&families, "weir_events_lost_total", &[("workload", "web")]), lost);
    assert_eq!(value(&families, "weir_events_lost_total", &[("workload", "mysql")]), 0.0);
    let shielded = 4.0 * (100.0 + f64::from(Reason::Shielded as u8));
    assert_eq!(value(&families, "weir_shielded_total", &[("workload", "web")]), shielded);
}

#[test]
fn what_the_status_repeats_becomes_one_series() {
    let mut status = status();
    let twin = LimitStatus { admitted: 1, ..status.workloads[0].limits[0].clone() };
    status.workloads[0].limits.push(twin);
    let families = parse(&render(status, Traces::default(), None).unwrap());
    let port = [("limit", "connections"), ("port", "80"), ("beside", "false")];
    assert_eq!(value(&families, "weir_limit_admitted_total", &port), 1001.0);
}

#[test]
fn names_from_the_node_file_are_escaped() {
    let mut status = status();
    status.workloads[1].name = "a\"b\\c\nd".to_owned();
    let families = parse(&render(status, Traces::default(), None).unwrap());
    assert_eq!(value(&families, "weir_foreign_programs", &[("workload", "a\"b\\c\nd")]), 0.0);
}

/// The rows of the tables below a heading, cell by cell, without the titles.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let section = PAGE.split("\n## ").find(|section| section.starts_with(heading)).expect(heading);
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

fn ticked(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_page_lists_every_metric_with_its_type_and_labels_and_no_other() {
    let mut listed = BTreeMap::new();
    for row in rows("Metrics") {
        let name = row[0].trim_matches('`').to_owned();
        let stability = row[3].as_str();
        assert!(["stable", "experimental"].contains(&stability), "{name}: {stability}");
        let twice = listed.insert(name.clone(), (row[1].clone(), ticked(&row[2])));
        assert!(twice.is_none(), "{name} is listed twice");
    }
    let mut exposed = BTreeMap::new();
    for (name, family) in everything() {
        let labels = family.samples[0].labels.keys().cloned().collect();
        exposed.insert(family.queried(&name), (family.kind, labels));
    }
    assert_eq!(listed, exposed);
}

#[test]
fn the_page_says_for_every_reason_what_to_do() {
    let listed: Vec<_> =
        rows("Reasons").into_iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    let known: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), known);
    assert_eq!(listed.len(), known.len(), "one of them is listed twice");
}

#[test]
fn alerts_ask_for_metrics_that_exist() {
    let exposed: BTreeSet<_> =
        everything().iter().map(|(name, family)| family.queried(name)).collect();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mentioned = PAGE.split(|c| !is_name(c)).filter(|word| word.starts_with("weir_"));
    let mut number = 0;
    for name in mentioned {
        assert!(exposed.contains(name), "the page mentions {name}");
        number += 1;
    }
    assert!(number > exposed.len());
}
