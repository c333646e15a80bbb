//! One corpus of annotations, on which the grammar and the policy must agree. CEL is run by a
//! library for Rust that stands in for the API server's: the functions used (`matches`, `startsWith`,
//! `all`, `exists`, `has`) mean the same in both.

use cel::{Context, Program, Value as Result_};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::policy::{Key, KeyKind};

/// What is to become of an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Both take it.
    Good,
    /// Both refuse it.
    Bad,
    /// The policy cannot know; the agent refuses it, and says so in an event.
    Later,
}

use Fate::{Bad, Good, Later};

const CORPUS: &[(&str, &str, Fate)] = &[
    ("connections", "100/s", Good),
    ("connections.80", "100/s burst=200", Good),
    ("connections.http", " 1  per\t60s  shadow ", Good),
    ("connections", "10 per 1m burst=1", Good),
    ("connections", "5/10s refill=step", Good),
    ("connections", "007/min", Good),
    ("connections", "100\u{a0}per\u{2003}s", Good),
    ("connections", "100", Bad),
    ("connections", "100/fortnight", Bad),
    ("connections", "+100/s", Bad),
    ("connections", "1.5/s", Bad),
    ("connections", "0/s", Bad),
    ("connections", "", Bad),
    ("connections", "100/s burst", Bad),
    ("connections", "100/s burst=0", Bad),
    ("connections", "100/s group=/24,/56", Bad),
    ("connections", "100/s shadow burst=5", Bad),
    ("connections", "100/s; 5/s", Bad),
    ("connections", "100/s burst=5 burst=6", Later),
    ("connections", "9000000000/s", Later),
    ("connections", "5/s burst=2 refill=step", Later),
    ("connections.99999", "5/s", Later),
    ("connections.1234-", "5/s", Later),
    ("connections.HTTP", "5/s", Bad),
    ("connections.a-very-long-name", "5/s", Bad),
    ("connections-per-source", "20/s group=/24,/56", Good),
    ("connections-per-source", "20/s group=24", Bad),
    ("connections-per-source", "20/s group=/64,/56", Later),
    ("outbound-connections", "100/s; 50/s to=10.0.0.0/8; 5/s to=2001:db8::/32 shadow", Good),
    ("outbound-connections.443", "5/s to=service/db", Good),
    ("outbound-connections", "5/s to=example.org", Bad),
    ("outbound-connections", "5/s;", Bad),
    ("outbound-connections", "5/s to=10.0.0.1/8", Later),
    ("outbound-connections", "5/s; 6/s", Later),
    ("max-connections", "500 shadow", Good),
    ("max-connections", "500/s", Bad),
    ("max-connections", "5000000", Later),
    ("max-connections-per-source.80", "20 group=/24,/56", Good),
    ("max-handshakes", "100", Good),
    ("max-handshakes", "many", Bad),
    ("breaker.80", "errors=5 ejection=30s", Good),
    ("breaker", "error-ratio=50% min-volume=20 interval=1m half-open=off http1=on shadow", Good),
    ("breaker", "errors=5 to=10.0.0.7", Bad),
    ("breaker", "ejection=30", Bad),
    ("breaker", "ejection=30s", Later),
    ("breaker", "errors=5 ejection=1h max-ejection=1m", Later),
    ("outbound-breaker", "errors=5 to=10.0.0.7; errors=3 to=service/db max-ejected=50%", Good),
    ("outbound-breaker", "errors=5 to=10.0.0.7 scope=node", Good),
    ("outbound-breaker", "errors=5 scope=cluster", Bad),
    ("connection-bandwidth.80", "10MB/s", Good),
    ("ingress-bandwidth", "80Mbit/s burst=1MB", Good),
    ("egress-bandwidth", "80Mib/s", Bad),
    ("egress-bandwidth", "80Mbps", Bad),
    ("egress-bandwidth", "1bit/s", Later),
    ("packets", "50k/s burst=1000", Good),
    ("packets", "50G/s", Bad),
    ("packets.80", "50k/s", Bad),
    ("quota", "domain=shop authenticated=false", Good),
    ("quota.80", "domain=\"my shop\" user=\"ann b\" pod=$pod shadow", Good),
    ("quota", "user=ann", Bad),
    ("quota", "domain=shop", Bad),
    ("quota", "domain=shop user=$source", Later),
    ("mode", "shadow", Good),
    ("mode", " enforce ", Good),
    ("mode", "off", Bad),
    ("mode.80", "shadow", Bad),
    ("on-limit.443", "drop", Good),
    ("on-limit", "ignore", Bad),
    ("exempt", "10.0.0.0/8", Bad),
    ("conections", "100/s", Bad),
    ("", "100/s", Bad),
];

/// Whether an agent takes it from a pod.
fn agent_takes(key: &str, value: &str) -> bool {
    let key = Key::parse(key).ok().filter(|key| key.kind != KeyKind::Exempt);
    key.is_some_and(|key| key.parse_value(value).is_ok())
}

struct Policy {
    conditions: Vec<Program>,
    checks: Vec<Program>,
}

impl Policy {
    fn of(place: &Place) -> Self {
        let compile =
            |text: &str| Program::compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        Self {
            conditions: place.conditions().iter().map(|(_, text)| compile(text)).collect(),
            checks: place.checks().iter().map(|check| compile(&check.expression)).collect(),
        }
    }

    /// Whether the object is let in.
    fn takes(&self, object: &Value, before: &Value) -> bool {
        let mut context = Context::default();
        context.add_variable("object", object).unwrap();
        context.add_variable("oldObject", before).unwrap();
        let holds = |program: &Program| match program.execute(&context) {
            Ok(Result_::Bool(holds)) => holds,
            other => panic!("{other:?} for {object}"),
        };
        !self.conditions.iter().all(holds) || self.checks.iter().all(holds)
    }
}

fn pod(key: &str, value: &str) -> Value {
    json!({"metadata": {"annotations": {format!("weir.dev/{key}"): value, "other/key": "x"}}})
}

#[test]
fn the_grammar_and_the_policy_agree_on_the_corpus() {
    let policy = Policy::of(&PLACES[0]);
    let (template, cronjob) = (Policy::of(&PLACES[1]), Policy::of(&PLACES[2]));
    for &(key, value, fate) in CORPUS {
        let object = pod(key, value);
        let let_in = policy.takes(&object, &Value::Null);
        assert_eq!(let_in, fate != Bad, "policy: {key}: {value:?}");
        assert_eq!(agent_takes(key, value), fate == Good, "agent: {key}: {value:?}");
        let deployment = json!({"spec": {"template": object}});
        assert_eq!(template.takes(&deployment, &Value::Null), let_in, "{key}: {value:?}");
        let nightly = json!({"spec": {"jobTemplate": deployment}});
        assert_eq!(cronjob.takes(&nightly, &Value::Null), let_in, "{key}: {value:?}");
    }
    for fate in [Good, Bad, Later] {
        assert!(CORPUS.iter().filter(|(_, _, its)| *its == fate).count() > 10, "{fate:?}");
    }
    for kind in shape::keys() {
        let (_, example) = shape::value(kind);
        assert!(agent_takes(kind.name(), example), "{example}");
        assert!(policy.takes(&pod(kind.name(), example), &Value::Null), "{example}");
    }
}

#[test]
fn what_is_not_ours_or_was_there_before_is_let_in() {
    let policy = Policy::of(&PLACES[0]);
    let bad = pod("connections", "many");
    for object in [
        json!({"metadata": {"annotations": {"other/connections": "many"}}}),
        // Kubernetes' own words are not ours to refuse: the agent says what it makes of them.
        json!({"metadata": {"annotations": {"kubernetes.io/ingress-bandwidth": "many"}}}),
        json!({"metadata": {}}),
    ] {
        assert!(policy.takes(&object, &Value::Null), "{object}");
        assert!(!policy.takes(&bad, &object), "{object}");
    }
    // kubelet and controllers write pods too: they are not to blame.
    assert!(policy.takes(&bad, &bad));
    assert!(!policy.takes(&pod("connections", "few"), &bad));
    let template = Policy::of(&PLACES[1]);
    for object in
        [json!({"spec": {"template": {}}}), json!({"spec": {"template": {"metadata": {}}}})]
    {
        assert!(template.takes(&object, &Value::Null), "{object}");
        let cronjob = json!({"spec": {"jobTemplate": object}});
        assert!(Policy::of(&PLACES[2]).takes(&cronjob, &Value::Null), "{cronjob}");
    }
    assert!(Policy::of(&PLACES[2]).takes(&json!({"spec": {}}), &Value::Null));
}

#[test]
fn the_chart_has_the_policies_of_this_grammar() {
    let shipped = include_str!("../../../deploy/helm/weir/files/admission.yaml");
    assert!(
        shipped == admission_policies(),
        "deploy/helm/weir/files/admission.yaml is stale: write `weir admission` into it"
    );
}

/// Words of the grammar, and some that are none.
fn word() -> impl Strategy<Value = String> {
    let words = [
        "100/s",
        "1",
        "per",
        "60s",
        "m",
        "5/10min",
        "burst=20",
        "burst=1MB",
        "refill=step",
        "refill=smooth",
        "group=/24,/56",
        "to=10.0.0.0/8",
        "to=service/db",
        "to=::1",
        "shadow",
        "errors=5",
        "error-ratio=9%",
        "min-volume=3",
        "ejection=5s",
        "interval=1m",
        "probes=2",
        "half-open=on",
        "http1=off",
        "scope=node",
        "min-health=50%",
        "10MB/s",
        "80Kibit/s",
        "50k/s",
        "domain=a",
        "b=\"c",
        "d\"",
        "e=",
        "=",
        "enforce",
        "reset",
        ";",
        "x",
    ];
    (0..words.len()).prop_map(move |index| words[index].to_owned())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    /// The shapes by themselves: running CEL for each would take too long.
    #[test]
    fn no_shape_refuses_what_the_grammar_takes(
        kind in 0..KeyKind::ALL.len(),
        words in prop::collection::vec(word(), 0..6),
        blank in prop::sample::select(vec![" ", "  ", "\t", "\n", "\u{a0}", "\u{b}", "\u{85}"]),
    ) {
        let (kind, text) = (KeyKind::ALL[kind], words.join(blank));
        if agent_takes(kind.name(), &text) {
            let shape = regex::Regex::new(&shape::value(kind).0).unwrap();
            prop_assert!(shape.is_match(&text), "{}: {text:?}", kind.name());
        }
    }
}
