//! The merge, layer by layer.

use proptest::prelude::*;

use super::*;
use crate::policy::{
    key::{Key, PortName, Ports},
    layer::{Allow, Entries, Glob, Match},
    place::Place,
    rate::tests::buckets,
};

/// What the parties wrote, as rows of a file: the line of an entry is its index from 1.
#[derive(Default)]
struct Written {
    mode: Option<Mode>,
    policies: Vec<Policy>,
    namespace: Entries,
    workload: Entries,
}

fn place(file: &str, line: usize) -> Place {
    Place::File { file: file.to_owned(), line: u32::try_from(line).unwrap(), column: 1 }
}

fn entries(file: &str, rows: &[(&str, &str)]) -> Entries {
    let entry = |(index, (key, value)): (usize, &(&str, &str))| {
        let at = place(file, index + 1);
        Entry::read(key, at.clone(), value, &at, true)
    };
    rows.iter().enumerate().map(entry).collect()
}

impl Written {
    fn policy(mut self, default: &[(&str, &str)], max: &[(&str, &str)]) -> Self {
        self.policies.push(Policy {
            place: place("policy", 0),
            matches: Match::default(),
            default: entries("default", default),
            max: entries("max", max),
            allow: None,
        });
        self
    }

    fn allow(mut self, keys: &[&str]) -> Self {
        let keys = keys.iter().map(|key| Key::parse(key).unwrap()).collect();
        let allow = Allow { place: place("allow", 1), keys };
        self.policies.last_mut().unwrap().allow = Some(allow);
        self
    }

    fn named(mut self, glob: &str) -> Self {
        self.policies.last_mut().unwrap().matches.name = Some(Glob::new(glob));
        self
    }

    fn namespace(self, rows: &[(&str, &str)]) -> Self {
        Self { namespace: entries("namespace", rows), ..self }
    }

    fn workload(self, rows: &[(&str, &str)]) -> Self {
        Self { workload: entries("workload", rows), ..self }
    }

    fn node(self, mode: Mode) -> Self {
        Self { mode: Some(mode), ..self }
    }

    fn merge(&self) -> Outcome {
        self.merge_after(None)
    }

    fn merge_after(&self, last_good: Option<&LastGood>) -> Outcome {
        let origin = Origin { layer: Layer::Node, place: place("node", 1) };
        let administrator = Administrator {
            mode: self.mode.map(|value| Sourced { value, origin }),
            exempt: Vec::new(),
            services: services(),
            policies: self.policies.clone(),
        };
        let ports = Ports::from([(PortName::parse("mysql").unwrap(), Port::new(3306).unwrap())]);
        let subject =
            Subject { name: "web-1", namespace: None, labels: &BTreeMap::new(), ports: &ports };
        let (namespace, workload) = (&self.namespace, &self.workload);
        effective(
            &subject,
            &Layers { administrator: &administrator, namespace, workload },
            last_good,
        )
    }

    fn effective(&self) -> Effective {
        let outcome = self.merge();
        assert_eq!(outcome.problems, [], "no problem was expected");
        outcome.effective
    }
}

/// A service with four endpoints.
fn services() -> Services {
    let endpoints = (1..=4).map(|last| Cidr::host([192, 0, 2, last].into()));
    Services::from([(ServiceName::parse("db").unwrap(), endpoints.collect())])
}

/// The lines as `key: limit`.
fn shown(effective: &Effective) -> Vec<String> {
    effective.lines.iter().map(|line| format!("{}: {}", line.slot.key(), line.limit)).collect()
}

#[test]
fn nothing_written_means_nothing_limited() {
    let effective = Written::default().effective();
    assert!(effective.lines.is_empty());
    assert_eq!(effective.mode.value, Mode::Enforce);
    assert_eq!(effective.on_limit.value, OnLimit::Reset);
    assert_eq!(effective.on_limit.origin.to_string(), "built in");
}

#[test]
fn the_most_specific_layer_sets_a_key() {
    let written = Written::default()
        .policy(&[("connections", "1/s"), ("connections.80", "2/s")], &[])
        .namespace(&[("connections", "3/s"), ("connections.81", "4/s")])
        .workload(&[("connections", "5/s"), ("connections.mysql", "6/s")]);
    let effective = written.effective();
    assert_eq!(
        shown(&effective),
        ["connections: 5/s", "connections.80: 2/s", "connections.81: 4/s", "connections.3306: 6/s"]
    );
    let origins: Vec<_> = effective.lines.iter().map(|line| line.origin.layer).collect();
    assert_eq!(origins, [Layer::Workload, Layer::Default, Layer::Namespace, Layer::Workload]);
    assert_eq!(effective.lines[3].written_key, "connections.mysql");
}

#[test]
fn the_first_matching_policy_fills_a_key() {
    let written = Written::default()
        .policy(&[("connections", "1/s")], &[])
        .named("db-*")
        .policy(&[("connections", "2/s")], &[])
        .policy(&[("connections", "3/s"), ("connections-per-source", "4/s")], &[]);
    assert_eq!(shown(&written.effective()), ["connections: 2/s", "connections-per-source: 4/s"]);
}

#[test]
fn a_maximum_clamps_rate_and_burst_each_for_itself() {
    let written = Written::default()
        .policy(&[], &[("connections", "50/s burst=500")])
        .workload(&[("connections", "100/s")]);
    let effective = written.effective();
    assert_eq!(shown(&effective), ["connections: 50/s burst=100"]);
    let line = &effective.lines[0];
    assert_eq!(line.written, "100/s");
    assert_eq!(line.clamps[0].changed, ["rate"]);
    assert_eq!(line.clamps[0].bound, "50/s burst=500");
    assert_eq!(
        line.clamps[0].to_string(),
        "rate from `50/s burst=500` (administrator's max, max:1:1)"
    );
}

#[test]
fn a_maximum_above_what_is_written_changes_nothing() {
    let written = Written::default()
        .policy(&[], &[("connections", "100/s")])
        .workload(&[("connections", "5 per 60s")]);
    let effective = written.effective();
    assert_eq!(shown(&effective), ["connections: 5/m"]);
    assert_eq!(effective.lines[0].clamps, []);
}

#[test]
fn a_maximum_holds_where_nobody_set_the_key() {
    let written = Written::default()
        .policy(&[], &[("connections", "50/s"), ("connections.80", "5/s")])
        .policy(&[], &[("connections", "40/s burst=100")])
        .workload(&[("connections.mysql", "100/s")]);
    assert_eq!(
        shown(&written.effective()),
        ["connections: 40/s burst=50", "connections.80: 5/s", "connections.3306: 100/s"]
    );
}

#[test]
fn a_maximum_widens_the_groups_of_sources() {
    let written = Written::default()
        .policy(&[], &[("connections-per-source", "20/s group=/24,/56")])
        .workload(&[("connections-per-source", "5/s group=/28,/48")]);
    let effective = written.effective();
    assert_eq!(shown(&effective), ["connections-per-source: 5/s group=/24,/48"]);
    assert_eq!(effective.lines[0].clamps[0].changed, ["group"]);
}

#[test]
fn a_maximum_clamps_what_is_open_at_once() {
    let written = Written::default()
        .policy(
            &[("max-handshakes", "70")],
            &[
                ("max-connections", "100"),
                ("max-handshakes", "50"),
                ("max-connections-per-source", "10 group=/24,/56"),
            ],
        )
        .workload(&[("max-connections", "500"), ("max-connections-per-source", "5")]);
    let effective = written.effective();
    assert_eq!(
        shown(&effective),
        [
            "max-connections: 100",
            "max-connections-per-source: 5 group=/24,/56",
            "max-handshakes: 50",
        ]
    );
    let clamps: Vec<_> =
        effective.lines.iter().map(|line| line.clamps[0].changed.clone()).collect();
    assert_eq!(clamps, [vec!["number"], vec!["group"], vec!["number"]]);
    assert_eq!(
        effective.lines[0].clamps[0].to_string(),
        "number from `100` (administrator's max, max:1:1)"
    );
}

#[test]
fn a_breaker_is_replaced_as_a_whole_and_has_no_maximum() {
    let written = Written::default()
        .policy(&[("breaker", "errors=9"), ("breaker.80", "errors=8 probes=3")], &[])
        .workload(&[("breaker", "error-ratio=50%")]);
    assert_eq!(
        shown(&written.effective()),
        ["breaker: error-ratio=50%", "breaker.80: errors=8 probes=3"]
    );
    let outcome = Written::default()
        .policy(&[], &[("breaker", "errors=5"), ("outbound-breaker.80", "errors=5")])
        .workload(&[("breaker", "errors=100")])
        .merge();
    assert_eq!(shown(&outcome.effective), ["breaker: errors=100"]);
    assert_eq!(outcome.problems.len(), 2);
    assert_eq!(
        outcome.problems[0].to_string(),
        "max:1:1: error: a breaker has no maximum: of two, neither is stricter in all it does; \
         expected the breaker under `default`, and an `allow` without it"
    );
    let twice = Written::default()
        .workload(&[("breaker.mysql", "errors=5"), ("breaker.3306", "errors=3")])
        .merge();
    assert_eq!(shown(&twice.effective), ["breaker.3306: errors=5"]);
    assert_eq!(twice.problems[0].effect.as_deref(), Some("the first one holds"));
}

#[test]
fn a_breaker_in_shadow_stands_beside_the_administrators() {
    let written = Written::default()
        .policy(&[("breaker", "errors=9")], &[])
        .workload(&[("breaker", "errors=2 shadow")]);
    let effective = written.effective();
    assert_eq!(shown(&effective), ["breaker: errors=9", "breaker: errors=2 shadow"]);
    assert!(effective.lines[1].slot.beside);
}

#[test]
fn probes_are_no_more_than_may_be_open_at_once() {
    let told = |rows: &[(&str, &str)]| {
        let outcome = Written::default().workload(rows).merge();
        let problems: Vec<_> = outcome.problems.iter().map(ToString::to_string).collect();
        (shown(&outcome.effective), problems)
    };
    let (holds, problems) =
        told(&[("breaker.mysql", "errors=5 probes=10"), ("max-connections.3306", "4")]);
    assert_eq!(holds, ["max-connections.3306: 4", "breaker.3306: errors=5 probes=4"]);
    assert_eq!(
        problems,
        ["workload:1:1: error: `breaker.mysql`: probes=10 is more than the 4 that \
          `max-connections.3306` lets in at once; expected probes=4 or fewer, or a larger \
          max-connections; it holds with probes=4"]
    );
    // A limit for all ports holds for this one too; the lower of two counts.
    let both = [
        ("breaker.80", "errors=5 probes=10"),
        ("max-connections.80", "8"),
        ("max-connections", "3"),
    ];
    assert!(told(&both).0.contains(&"breaker.80: errors=5 probes=3".to_owned()));
    for fits in [
        [("breaker", "errors=5 probes=10"), ("max-connections.80", "4")],
        [("breaker.80", "errors=5 probes=10"), ("max-connections.80", "10")],
        [("breaker.80", "errors=5 probes=10"), ("max-connections.80", "4 shadow")],
        [("breaker.80", "errors=5 half-open=off"), ("max-connections.80", "1")],
        [("outbound-breaker.80", "errors=5 probes=10"), ("max-connections.80", "1")],
    ] {
        assert_eq!(told(&fits).1, [""; 0], "{fits:?}");
    }
}

#[test]
fn bad_values_of_the_newer_keys_keep_the_last_good_ones() {
    let good = Written::default()
        .workload(&[("max-connections", "10"), ("breaker.mysql", "errors=3")])
        .merge();
    let bad = Written::default()
        .workload(&[("max-connections", "ten"), ("breaker.mysql", "errors=0")])
        .merge_after(Some(&good.last_good));
    assert_eq!(shown(&bad.effective), ["max-connections: 10", "breaker.3306: errors=3"]);
    assert!(bad.effective.lines.iter().all(|line| line.kept));
    assert!(bad.problems[1].to_string().ends_with("the last good value `errors=3` stays"));
}

#[test]
fn a_port_by_name_and_by_number_is_one_port() {
    let written = Written::default()
        .policy(&[], &[("connections.3306", "5/s")])
        .workload(&[("connections.mysql", "10/s")]);
    assert_eq!(shown(&written.effective()), ["connections.3306: 5/s"]);

    let twice = Written::default()
        .workload(&[("connections.mysql", "10/s burst=1"), ("connections.3306", "5/s")])
        .merge();
    assert_eq!(shown(&twice.effective), ["connections.3306: 5/s burst=1"]);
    assert!(twice.problems[0].to_string().contains("both hold"), "{}", twice.problems[0]);
}

#[test]
fn destinations_are_lines_of_their_own_under_one_key() {
    let written = Written::default()
        .policy(
            &[("outbound-connections", "1/s to=192.0.2.0/24")],
            &[("outbound-connections", "40/s to=10.0.0.0/8; 90/s")],
        )
        .workload(&[("outbound-connections", "50/s to=10.0.0.0/8; 5/s to=10.1.0.0/16")]);
    assert_eq!(
        shown(&written.effective()),
        [
            "outbound-connections: 90/s",
            "outbound-connections: 40/s to=10.0.0.0/8",
            "outbound-connections: 5/s to=10.1.0.0/16",
        ]
    );
}

#[test]
fn a_workload_shadows_only_its_own_lines() {
    let written = Written::default()
        .policy(&[("connections", "10/s")], &[("connections.80", "5/s")])
        .workload(&[("mode", "shadow"), ("connections", "50/s"), ("connections.80", "3/s")]);
    let effective = written.effective();
    assert_eq!(
        shown(&effective),
        [
            "connections: 10/s",
            "connections: 50/s shadow",
            "connections.80: 5/s",
            "connections.80: 3/s shadow",
        ]
    );
    let beside: Vec<_> = effective.lines.iter().map(|line| line.slot.beside).collect();
    assert_eq!(beside, [false, true, false, true]);
    assert!(matches!(&effective.lines[1].shadow, Some(Shadow::Mode(origin))
        if origin.layer == Layer::Workload));
}

#[test]
fn a_line_in_shadow_alone_is_beside_nothing() {
    let written = Written::default().workload(&[("connections", "5/s shadow")]);
    let effective = written.effective();
    assert!(!effective.lines[0].slot.beside);
    assert_eq!(effective.lines[0].shadow, Some(Shadow::Line));
}

#[test]
fn the_node_in_shadow_shadows_all_lines_that_do_not_say_enforce() {
    let written = Written::default()
        .node(Mode::Shadow)
        .policy(&[("connections", "10/s")], &[("connections.80", "5/s")])
        .namespace(&[("connections.81", "7/s")]);
    assert!(written.effective().lines.iter().all(|line| line.shadow.is_some()));

    let written = written.workload(&[("mode", "enforce"), ("connections.80", "3/s")]);
    assert_eq!(
        shown(&written.effective()),
        [
            "connections: 10/s shadow",
            "connections.80: 3/s",
            "connections.80: 5/s shadow",
            "connections.81: 7/s shadow",
        ]
    );
}

#[test]
fn a_maximum_of_enforce_takes_the_shadow_away() {
    let written = Written::default()
        .node(Mode::Shadow)
        .policy(&[], &[("mode", "enforce")])
        .namespace(&[("connections.81", "7/s")])
        .workload(&[("mode", "shadow"), ("connections", "5/s shadow")]);
    let effective = written.effective();
    assert_eq!(shown(&effective), ["connections: 5/s", "connections.81: 7/s"]);
    assert_eq!(effective.lines[0].clamps[0].changed, ["shadow"]);
    assert_eq!(effective.mode.value, Mode::Enforce);
    assert_eq!(effective.mode.origin.layer, Layer::Max);
}

#[test]
fn an_administrators_own_word_shadow_stays() {
    let written = Written::default()
        .policy(&[("connections", "5/s shadow")], &[("connections", "9/s shadow")]);
    assert_eq!(shown(&written.effective()), ["connections: 5/s shadow"]);
}

#[test]
fn refusals_are_set_by_port_and_by_layer() {
    let written = Written::default()
        .policy(&[("on-limit", "drop"), ("on-limit.80", "drop")], &[])
        .workload(&[("on-limit", "reset"), ("on-limit.mysql", "drop")]);
    let effective = written.effective();
    let at = |port| effective.on_limit(Port::new(port));
    assert_eq!(effective.on_limit(None), OnLimit::Reset);
    assert_eq!(at(80), OnLimit::Drop);
    assert_eq!(at(81), OnLimit::Reset);
    assert_eq!(at(3306), OnLimit::Drop);
}

#[test]
fn workloads_set_only_what_is_allowed() {
    let written = Written::default()
        .policy(&[("connections", "10/s")], &[])
        .allow(&["connections.80"])
        .workload(&[("connections", "99/s"), ("connections.80", "5/s"), ("mode", "shadow")]);
    let outcome = written.merge();
    assert_eq!(shown(&outcome.effective), ["connections: 10/s", "connections.80: 5/s"]);
    assert_eq!(outcome.problems.len(), 2);
    let effect = outcome.problems[1].effect.as_deref();
    assert_eq!(effect, Some("meanwhile `enforce` (built in) holds"));
    assert_eq!(
        outcome.problems[0].to_string(),
        "workload:1:1: error: `connections` may not be set by a workload; expected one of the keys \
         that `allow` at allow:1:1 lists; meanwhile `10/s` (administrator's default, default:1:1) \
         holds"
    );
}

#[test]
fn only_administrators_exempt_peers() {
    let written = Written::default()
        .policy(&[("exempt", "10.0.0.0/8, 192.0.2.1")], &[])
        .policy(&[("exempt", "10.0.0.0/8")], &[]);
    assert_eq!(written.effective().exempt.len(), 2);
    let outcome = written.workload(&[("exempt", "0.0.0.0/0")]).merge();
    assert_eq!(outcome.effective.exempt.len(), 2);
    assert!(outcome.problems[0].what.contains("only administrators"));
}

#[test]
fn what_has_no_order_has_no_maximum() {
    let outcome =
        Written::default().policy(&[], &[("on-limit", "drop"), ("exempt", "10.0.0.1")]).merge();
    assert_eq!(outcome.problems.len(), 2);
    assert_eq!(outcome.effective.on_limit.value, OnLimit::Reset);
    assert!(outcome.effective.exempt.is_empty());
}

#[test]
fn a_bad_value_leaves_the_last_good_one_in_force() {
    let good = Written::default()
        .policy(&[("connections", "50/s")], &[("connections", "20/s")])
        .workload(&[("connections", "10/s"), ("connections.mysql", "3/s")])
        .merge();
    let bad = |rows: &[(&str, &str)], last_good| {
        Written::default()
            .policy(&[("connections", "50/s")], &[("connections", "8/s")])
            .workload(rows)
            .merge_after(last_good)
    };
    let rows = [("connections", "ten"), ("connections.3306", "3/sec")];
    let outcome = bad(&rows, Some(&good.last_good));
    // The last good value, under the maximum of today.
    assert_eq!(shown(&outcome.effective), ["connections: 8/s", "connections.3306: 3/s"]);
    assert!(outcome.effective.lines.iter().all(|line| line.kept));
    assert_eq!(
        outcome.problems[0].to_string(),
        "workload:1:1: error: connections: this is not a rate: `ten`; expected a rate like \
         `100/s`, `5/10s` or `1 per 60s`; the last good value `10/s` stays"
    );
    // And again: what was kept is still the last good.
    let again = bad(&rows, Some(&outcome.last_good));
    assert_eq!(again.effective, outcome.effective);

    // Without a last good value the layer below holds.
    let outcome = bad(&rows, None);
    assert_eq!(shown(&outcome.effective), ["connections: 8/s"]);
    let effect = outcome.problems[0].effect.as_deref();
    assert_eq!(effect, Some("meanwhile `8/s` (administrator's default, default:1:1) holds"));
    assert_eq!(outcome.problems[1].effect.as_deref(), Some("meanwhile nothing limits it"));

    // What was taken away is not a bad value.
    assert_eq!(shown(&bad(&[], Some(&good.last_good)).effective), ["connections: 8/s"]);
}

#[test]
fn a_misspelt_key_keeps_the_value_of_the_key_that_was_meant() {
    let good = Written::default().workload(&[("connections.mysql", "10/s")]).merge();
    let misspelt = Written::default().workload(&[("conections.mysql", "9/s")]);
    let outcome = misspelt.merge_after(Some(&good.last_good));
    assert_eq!(shown(&outcome.effective), ["connections.3306: 10/s"]);
    assert_eq!(
        outcome.problems[0].to_string(),
        "workload:1:1: error: unknown key `conections.mysql`; expected `connections.mysql`; the \
         last good value `10/s` stays"
    );
    let both = Written::default()
        .workload(&[("conections.mysql", "9/s"), ("connections.mysql", "8/s")])
        .merge_after(Some(&good.last_good));
    assert_eq!(shown(&both.effective), ["connections.3306: 8/s"]);
}

#[test]
fn a_port_whose_name_is_gone_keeps_its_limit() {
    // As it comes back from storage.
    let kept = serde_json::json!([{
        "layer": Layer::Workload,
        "key": "connections.http",
        "port": 8080,
        "text": "4/s",
        "place": place("workload", 1),
    }]);
    let last_good: LastGood = serde_json::from_value(kept).unwrap();
    let written = Written::default().workload(&[("connections.http", "5/s")]);
    assert_eq!(shown(&written.merge_after(Some(&last_good)).effective), ["connections.8080: 4/s"]);
    let outcome = written.merge();
    assert_eq!(outcome.effective.lines, []);
    assert!(outcome.problems[0].is_error());
}

#[test]
fn a_policy_about_a_port_that_a_workload_lacks_is_a_warning() {
    let outcome = Written::default().policy(&[("connections.mysqk", "5/s")], &[]).merge();
    assert!(!outcome.problems[0].is_error());
    assert_eq!(outcome.problems[0].expected.as_deref(), Some("`mysql`"));
}

#[test]
fn a_bad_maximum_keeps_all_maxima_of_its_key() {
    let good = Written::default()
        .policy(&[], &[("connections", "10/s")])
        .policy(&[], &[("connections", "20/s burst=5")])
        .merge();
    let bad = Written::default()
        .policy(&[], &[("connections", "10/fortnight")])
        .workload(&[("connections", "1000/s")]);
    let outcome = bad.merge_after(Some(&good.last_good));
    assert_eq!(shown(&outcome.effective), ["connections: 10/s burst=5"]);
}

#[test]
fn last_good_values_survive_storage() {
    let outcome = Written::default()
        .policy(&[("mode", "shadow")], &[("connections", "8/s")])
        .workload(&[("connections.mysql", "10/s"), ("outbound-connections", "1/s to=::1; 2/s")])
        .merge();
    let stored = serde_json::to_string(&outcome.last_good).unwrap();
    let read: LastGood = serde_json::from_str(&stored).unwrap();
    assert_eq!(read, outcome.last_good);
}

#[test]
fn problems_are_reported_once_and_name_the_workload() {
    let outcome = Written::default().workload(&[("quota", "5"), ("nonsense", "5")]).merge();
    let shown: Vec<_> = outcome.problems.iter().map(ToString::to_string).collect();
    assert_eq!(outcome.problems.len(), 2);
    assert!(shown[0].contains("quota: this value is not accepted: `5`"), "{shown:?}");
    assert!(shown[1].contains("unknown key `nonsense`"), "{shown:?}");
    assert!(outcome.problems.iter().all(|problem| problem.workload.as_deref() == Some("web-1")));
}

type Row = (String, String);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let key = prop_oneof![
        Just("connections"),
        Just("connections.3306"),
        Just("connections.mysql"),
        Just("connections-per-source"),
        Just("outbound-connections"),
        Just("max-connections"),
        Just("max-connections.mysql"),
        Just("max-handshakes"),
        Just("max-connections-per-source"),
        Just("breaker"),
        Just("breaker.mysql"),
        Just("mode"),
        Just("connectoins"),
        Just("connections.0"),
    ];
    let value = prop_oneof![
        6 => (buckets(), any::<bool>()).prop_map(|(bucket, shadow)| {
            format!("{bucket}{}", if shadow { " shadow" } else { "" })
        }),
        6 => (1..9_u32, any::<bool>()).prop_map(|(number, shadow)| {
            format!("{number}{}", if shadow { " shadow" } else { "" })
        }),
        6 => (1..9_u32, 1..9_u32, any::<bool>()).prop_map(|(errors, probes, shadow)| {
            let shadow = if shadow { " shadow" } else { "" };
            format!("errors={errors} probes={probes}{shadow}")
        }),
        1 => Just("shadow".to_owned()),
        1 => Just("enforce".to_owned()),
        1 => Just("nonsense".to_owned()),
    ];
    proptest::collection::vec((key.prop_map(str::to_owned), value), 0..6)
}

fn borrowed(rows: &[Row]) -> Vec<(&str, &str)> {
    rows.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

proptest! {
    #[test]
    fn what_holds_is_never_looser_than_a_maximum(
        default in rows(), first in rows(), second in rows(), namespace in rows(), workload in rows(),
    ) {
        let written = Written::default()
            .policy(&borrowed(&default), &borrowed(&first))
            .policy(&[], &borrowed(&second))
            .namespace(&borrowed(&namespace))
            .workload(&borrowed(&workload));
        let effective = written.merge().effective;
        // The maxima alone, under the same defaults for the mode.
        let modes: Vec<_> =
            borrowed(&default).into_iter().filter(|(key, _)| *key == "mode").collect();
        let maxima = Written::default()
            .policy(&modes, &borrowed(&first))
            .policy(&[], &borrowed(&second))
            .merge()
            .effective;
        for bound in maxima.lines.iter().filter(|line| line.shadow.is_none()) {
            let holds = effective.line(&bound.slot);
            prop_assert!(holds.is_some(), "{:?} is gone", bound.slot);
            let holds = holds.unwrap();
            prop_assert!(holds.shadow.is_none());
            let (is, max) = (holds.limit.terms, bound.limit.terms);
            prop_assert_eq!(is.stricter(max), is);
            prop_assert!(holds.limit.group <= bound.limit.group);
        }
        // No two lines share a slot.
        let slots: BTreeSet<_> = effective.lines.iter().map(|line| line.slot).collect();
        prop_assert_eq!(slots.len(), effective.lines.len());
    }

    #[test]
    fn a_merge_with_its_own_last_good_changes_nothing(
        default in rows(), max in rows(), workload in rows(),
    ) {
        let written = Written::default()
            .policy(&borrowed(&default), &borrowed(&max))
            .workload(&borrowed(&workload));
        let once = written.merge();
        let again = written.merge_after(Some(&once.last_good));
        // A bad entry beside a good one of the same key may now keep the good one twice.
        prop_assert_eq!(shown(&once.effective), shown(&again.effective));
    }

    #[test]
    fn bad_values_never_take_protection_away(workload in rows(), broken in rows()) {
        let before = Written::default().workload(&borrowed(&workload)).merge();
        // The same keys, each with a value that cannot be read, and some noise.
        let mut rows: Vec<Row> =
            workload.iter().map(|(key, _)| (key.clone(), "??".to_owned())).collect();
        rows.extend(broken.into_iter().filter(|(key, value)| {
            key != "mode" && value == "nonsense"
        }));
        let after =
            Written::default().workload(&borrowed(&rows)).merge_after(Some(&before.last_good));
        prop_assert_eq!(shown(&before.effective), shown(&after.effective));
    }
}

#[test]
fn a_breaker_to_a_service_is_one_for_each_endpoint() {
    let value = "errors=3 max-ejected=60% to=service/db; errors=5 to=10.0.0.1";
    let effective = Written::default().workload(&[("outbound-breaker.80", value)]).effective();
    let to = effective.lines.iter().filter_map(|line| line.slot.to);
    let to: Vec<_> = to.map(|to| to.to_string()).collect();
    assert_eq!(to, ["10.0.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]);
    let served: Vec<_> =
        effective.lines.iter().filter_map(|line| line.service.as_ref()?.ejectable).collect();
    assert_eq!(served, [2, 2, 2, 2]);
    assert_eq!(effective.lines[1].limit.to_string(), "errors=3 max-ejected=60% to=service/db");
}

#[test]
fn a_rate_to_a_service_is_one_for_all_endpoints() {
    let rows = [("outbound-connections", "5/s to=service/db")];
    let effective = Written::default().workload(&rows).effective();
    let [line] = &effective.lines[..] else { panic!("{:?}", effective.lines) };
    assert_eq!(line.slot.to.map(|to| to.to_string()).as_deref(), Some("service/db"));
    assert_eq!(line.service.as_ref().map(|served| served.endpoints.len()), Some(4));
}

/// What names no service that is there keeps what was good before.
#[test]
fn an_unknown_service_is_an_error_and_removes_nothing() {
    let good = Written::default().workload(&[("outbound-breaker", "errors=3 to=service/db")]);
    let before = good.merge();
    assert_eq!(before.problems, []);
    let bad = Written::default().workload(&[("outbound-breaker", "errors=3 to=service/bd")]);
    let after = bad.merge_after(Some(&before.last_good));
    let [problem] = &after.problems[..] else { panic!("{:?}", after.problems) };
    assert_eq!(problem.what, "`outbound-breaker`: there is no service `bd`");
    assert_eq!(problem.expected.as_deref(), Some("one of db"));
    assert_eq!(shown(&after.effective), shown(&before.effective));
}
