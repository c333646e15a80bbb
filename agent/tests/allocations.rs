//! A decision allocates its reply and nothing else.

#[path = "../src/allocations.rs"]
mod allocations;

use allocations::counted;
use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{RateLimitRequest, RateLimitResponse},
};
use weir::quota::{
    Bounds, Caller, Decision, Now, Quotas, Settings,
    config::{self, Source},
};

fn decide(quotas: &Quotas, request: &RateLimitRequest) -> RateLimitResponse {
    let now = Now { monotonic_ns: 1 << 40, realtime_ns: 1_700_000_000_000_000_000 };
    match quotas.decide(request, &Caller::default(), now) {
        Ok(Decision::Ready(response)) => response,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_decision_allocates_its_reply_and_nothing_else() {
    let text = "
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: day, requests_per_unit: 3}
  - key: named
    detailed_metric: true
    rate_limit: {unit: day, requests_per_unit: 3, name: a-limit}
  - key: path
    value: '/a*b'
    share_threshold: true
    descriptors: [{key: user, rate_limit: {unit: minute, requests_per_unit: 1}}]
";
    let quotas = Quotas::new(Bounds { counts: 1000, series: 10 });
    let source = Source { file: "shop.yaml".to_owned(), text: text.to_owned() };
    let configuration = config::read(&[source]).unwrap();
    quotas.apply(&configuration, Settings::default()).unwrap();
    let descriptor = |entries: &[(&str, &str)]| RateLimitDescriptor {
        entries: entries
            .iter()
            .map(|(key, value)| Entry { key: (*key).to_owned(), value: (*value).to_owned() })
            .collect(),
        ..RateLimitDescriptor::default()
    };
    let request = RateLimitRequest {
        domain: "shop".to_owned(),
        descriptors: vec![
            descriptor(&[("user", "bob")]),
            descriptor(&[("named", "eve")]),
            descriptor(&[("path", "/a/b"), ("user", "bob")]),
            descriptor(&[("path", "/none")]),
        ],
        hits_addend: 0,
    };
    // The first one makes the series that is named by a value; a table and the lock of a thread.
    let _ = decide(&quotas, &request);
    for round in 0..6 {
        let (response, decided) = counted(|| decide(&quotas, &request));
        // What a copy allocates is what the reply is made of.
        let (_, reply) = counted(|| response.clone());
        assert_eq!(decided, reply, "round {round}, code {}", response.overall_code);
    }
    // A new value takes its place in the table without allocating either.
    let mut other = request.clone();
    other.descriptors.truncate(1);
    other.descriptors[0].entries[0].value = "another".to_owned();
    let (response, decided) = counted(|| decide(&quotas, &other));
    let (_, reply) = counted(|| response.clone());
    assert_eq!(decided, reply, "a new count");
}
