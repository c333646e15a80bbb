//! Requests against configurations, by what the original answers.

use envoy_types::pb::{
    envoy::{
        extensions::common::ratelimit::v3::{
            RateLimitDescriptor,
            rate_limit_descriptor::{Entry, RateLimitOverride},
        },
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{Code, DescriptorStatus},
        },
    },
    google::protobuf::UInt64Value,
};

use super::*;
use crate::quota::config::Source;

const SECOND: u64 = 1_000_000_000;
/// 1700000000: a minute has 40 s left, an hour 1600 s + …
const NOW: Now = Now { monotonic_ns: 1_000_000 * SECOND, realtime_ns: 1_700_000_000 * SECOND };

fn later(seconds: u64) -> Now {
    Now {
        monotonic_ns: NOW.monotonic_ns + seconds * SECOND,
        realtime_ns: NOW.realtime_ns + seconds * SECOND,
    }
}

fn quotas(text: &str) -> Quotas {
    with(text, Settings::default())
}

fn with(text: &str, settings: Settings) -> Quotas {
    let quotas = Quotas::new(Bounds { counts: 1000, series: 10 });
    reload(&quotas, text, settings);
    quotas
}

fn reload(quotas: &Quotas, text: &str, settings: Settings) {
    let source = Source { file: "shop.yaml".to_owned(), text: text.to_owned() };
    let configuration = config::read(&[source]).unwrap();
    quotas.apply(&configuration, settings).unwrap();
}

/// `a=b,c=d` is a descriptor of two entries.
fn descriptor(text: &str) -> RateLimitDescriptor {
    let entries = text.split(',').map(|entry| {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        Entry { key: key.to_owned(), value: value.to_owned() }
    });
    RateLimitDescriptor { entries: entries.collect(), ..RateLimitDescriptor::default() }
}

fn request(descriptors: &[&str]) -> RateLimitRequest {
    RateLimitRequest {
        domain: "shop".to_owned(),
        descriptors: descriptors.iter().map(|text| descriptor(text)).collect(),
        hits_addend: 0,
    }
}

fn decide(quotas: &Quotas, request: &RateLimitRequest, now: Now) -> RateLimitResponse {
    match quotas.decide(request, &Caller::default(), now).unwrap() {
        Decision::Ready(response) => response,
        Decision::Waiting(waiting) => panic!("{waiting:?}"),
    }
}

fn ask(quotas: &Quotas, descriptors: &[&str]) -> RateLimitResponse {
    decide(quotas, &request(descriptors), NOW)
}

fn code(status: &DescriptorStatus) -> Code {
    status.code()
}

/// Code, limit if there is one, what is left.
fn summary(status: &DescriptorStatus) -> (Code, Option<u32>, u32) {
    let limit = status.current_limit.as_ref().map(|limit| limit.requests_per_unit);
    (code(status), limit, status.limit_remaining)
}

const FIVE: &str = "
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: minute, requests_per_unit: 5}
";

#[test]
fn a_limit_admits_what_it_says_in_each_window_and_each_value_has_its_own() {
    let quotas = quotas(FIVE);
    for left in (0..5).rev() {
        let response = ask(&quotas, &["user=bob"]);
        assert_eq!(response.overall_code(), Code::Ok);
        let status = &response.statuses[0];
        assert_eq!(summary(status), (Code::Ok, Some(5), left));
        assert_eq!(status.duration_until_reset.as_ref().unwrap().seconds, 40);
        assert_eq!(status.current_limit.as_ref().unwrap().unit, 2);
    }
    let response = ask(&quotas, &["user=bob"]);
    assert_eq!(response.overall_code(), Code::OverLimit);
    assert_eq!(summary(&response.statuses[0]), (Code::OverLimit, Some(5), 0));
    assert_eq!(summary(&ask(&quotas, &["user=eve"]).statuses[0]), (Code::Ok, Some(5), 4));
    let next = decide(&quotas, &request(&["user=bob"]), later(40));
    assert_eq!(summary(&next.statuses[0]), (Code::Ok, Some(5), 4));
}

#[test]
fn several_hits_fit_as_a_whole_or_not_at_all_and_count_either_way() {
    let quotas = quotas(FIVE);
    let mut three = request(&["user=bob"]);
    three.hits_addend = 3;
    assert_eq!(summary(&decide(&quotas, &three, NOW).statuses[0]), (Code::Ok, Some(5), 2));
    assert_eq!(summary(&decide(&quotas, &three, NOW).statuses[0]), (Code::OverLimit, Some(5), 0));
    let mut look = request(&["user=bob"]);
    look.descriptors[0].hits_addend = Some(UInt64Value { value: 0 });
    assert_eq!(code(&decide(&quotas, &look, NOW).statuses[0]), Code::OverLimit, "6 are counted");
    look.descriptors[0].is_negative_hits = true;
    look.descriptors[0].hits_addend = Some(UInt64Value { value: 2 });
    assert_eq!(summary(&decide(&quotas, &look, NOW).statuses[0]), (Code::Ok, Some(5), 1));
}

#[test]
fn a_limit_in_the_request_judges_the_same_count() {
    let quotas = quotas(FIVE);
    for _ in 0..3 {
        let _ = ask(&quotas, &["user=bob"]);
    }
    let mut own = request(&["user=bob"]);
    own.descriptors[0].limit = Some(RateLimitOverride { requests_per_unit: 4, unit: 2 });
    assert_eq!(summary(&decide(&quotas, &own, NOW).statuses[0]), (Code::Ok, Some(4), 0));
    assert_eq!(summary(&decide(&quotas, &own, NOW).statuses[0]), (Code::OverLimit, Some(4), 0));
    assert_eq!(summary(&ask(&quotas, &["user=bob"]).statuses[0]), (Code::OverLimit, Some(5), 0));
    own.descriptors[0].limit = Some(RateLimitOverride { requests_per_unit: 4, unit: 0 });
    let refused = quotas.decide(&own, &Caller::default(), NOW).unwrap_err();
    assert_eq!(refused, Refused::UnknownUnit { descriptor: 0, unit: 0 });
}

#[test]
fn a_reload_keeps_what_was_counted() {
    let quotas = quotas(FIVE);
    let _ = ask(&quotas, &["user=bob"]);
    reload(&quotas, &FIVE.replace("unit: 5", "unit: 7"), Settings::default());
    assert_eq!(summary(&ask(&quotas, &["user=bob"]).statuses[0]), (Code::Ok, Some(7), 5));
    assert_eq!(quotas.series()[0].counts.total_hits.get(), 2);
}

#[test]
fn what_matches_nothing_passes_with_an_empty_status() {
    let quotas = quotas(FIVE);
    let response = ask(&quotas, &["path=/", "user=bob,path=/", "user=bob"]);
    let found: Vec<_> = response.statuses.iter().map(summary).collect();
    assert_eq!(found, [(Code::Ok, None, 0), (Code::Ok, None, 0), (Code::Ok, Some(5), 4)]);
    let unknown = RateLimitRequest { domain: "else".to_owned(), ..request(&["user=bob"]) };
    let response = decide(&quotas, &unknown, NOW);
    assert_eq!(response.overall_code(), Code::Ok);
    assert_eq!(summary(&response.statuses[0]), (Code::Ok, None, 0));
    assert_eq!(quotas.service().domain_not_found.get(), 1);
}

#[test]
fn requests_that_say_nothing_are_refused() {
    let quotas = Quotas::new(Bounds { counts: 8, series: 1 });
    let refused =
        |request: &RateLimitRequest| quotas.decide(request, &Caller::default(), NOW).unwrap_err();
    assert_eq!(refused(&RateLimitRequest::default()), Refused::EmptyDomain);
    assert_eq!(refused(&request(&[])), Refused::NoDescriptors);
    assert_eq!(refused(&request(&["a=b"])), Refused::NothingLoaded);
    assert_eq!(quotas.service().service_error.get(), 3);
}
