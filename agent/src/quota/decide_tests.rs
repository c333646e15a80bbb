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

/// The starts of windows that the original computes for this moment (`now / unit * unit`): its months
/// have 30 days, its years 365, its weeks begin on a Thursday.
#[test]
fn windows_of_all_units_begin_where_the_originals_do() {
    for (unit, start, length) in [
        ("SECOND", 1_700_000_000, 1),
        ("minute", 1_699_999_980, 60),
        ("hour", 1_699_999_200, 3600),
        ("day", 1_699_920_000, 86_400),
        ("week", 1_699_488_000, 604_800),
        ("month", 1_697_760_000, 2_592_000),
        ("Year", 1_671_408_000, 31_536_000),
    ] {
        let text = format!(
            "domain: shop\ndescriptors: [{{key: a, rate_limit: {{unit: {unit}, requests_per_unit: 1}}}}]\n"
        );
        let quotas = quotas(&text);
        let left = start + length - NOW.realtime_s();
        let status = &ask(&quotas, &["a=1"]).statuses[0];
        assert_eq!(status.duration_until_reset.as_ref().unwrap().seconds as u64, left, "{unit}");
        let limited =
            |seconds| code(&decide(&quotas, &request(&["a=1"]), later(seconds)).statuses[0]);
        assert_eq!(limited(left - 1), Code::OverLimit, "{unit}");
        assert_eq!(limited(left), Code::Ok, "{unit}");
    }
}

#[test]
fn a_limit_without_a_number_refuses_everything() {
    let quotas = quotas("domain: shop\ndescriptors: [{key: a, rate_limit: {unit: day}}]\n");
    assert_eq!(summary(&ask(&quotas, &["a=1"]).statuses[0]), (Code::OverLimit, Some(0), 0));
}

#[test]
fn a_domain_in_several_files_is_one_if_told_so() {
    let file = |file: &str, key: &str| Source {
        file: file.to_owned(),
        text: format!(
            "domain: shop\ndescriptors: [{{key: {key}, rate_limit: {{unit: day, requests_per_unit: 1}}}}]\n"
        ),
    };
    let merge = Settings { merge_domains: true, ..Settings::default() };
    let load = |files: &[Source], settings| {
        let quotas = Quotas::new(Bounds { counts: 1000, series: 10 });
        let loaded = quotas.apply(&config::read(files).unwrap(), settings);
        loaded.map(|()| quotas).map_err(|problems| problems[0].to_string())
    };
    let both = [file("one.yaml", "a"), file("two.yaml", "b")];
    let refused = load(&both, Settings::default()).unwrap_err();
    assert!(
        refused.contains("two.yaml:1:1: error: the domain `shop` is written twice"),
        "{refused}"
    );
    let quotas = load(&both, merge.clone()).unwrap();
    let codes = |descriptor| [0; 2].map(|_| code(&ask(&quotas, &[descriptor]).statuses[0]));
    assert_eq!(codes("a=1"), [Code::Ok, Code::OverLimit]);
    assert_eq!(codes("b=1"), [Code::Ok, Code::OverLimit]);
    // Two siblings of one name are an error, in one file or in two.
    let twice = load(&[file("one.yaml", "a"), file("two.yaml", "a")], merge).unwrap_err();
    assert!(twice.contains("two.yaml:2:15: error: ") && twice.contains("shop.a"), "{twice}");
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

#[test]
fn the_value_comes_before_wildcards_and_they_before_the_key_and_there_is_no_way_back() {
    let quotas = quotas(
        "
domain: shop
descriptors:
  - {key: path, value: /a, rate_limit: {unit: day, requests_per_unit: 1}}
  - {key: path, value: '/b*', rate_limit: {unit: day, requests_per_unit: 2}}
  - {key: path, value: '/*c', rate_limit: {unit: day, requests_per_unit: 3}}
  - {key: path, rate_limit: {unit: day, requests_per_unit: 4}}
  - {key: path, value: /open}
  - key: path
    value: /deep
    descriptors: [{key: user, value: bob, rate_limit: {unit: day, requests_per_unit: 5}}]
",
    );
    let limit = |text: &str| summary(&ask(&quotas, &[text]).statuses[0]).1;
    assert_eq!(limit("path=/a"), Some(1));
    assert_eq!(limit("path=/bc"), Some(2), "the first wildcard that fits");
    assert_eq!(limit("path=/xc"), Some(3));
    assert_eq!(limit("path=/x"), Some(4));
    assert_eq!(limit("path="), Some(4));
    assert_eq!(limit("path=/open"), None, "neither limit nor children: let through");
    assert_eq!(limit("path=/deep"), None, "the value matched, so the key alone is not tried");
    assert_eq!(limit("path=/deep,user=bob"), Some(5));
    assert_eq!(limit("path=/deep,user=eve"), None);
}

#[test]
fn values_of_a_wildcard_share_a_count_only_if_told_to() {
    let quotas = quotas(
        "
domain: shop
descriptors:
  - {key: own, value: 'f/*', rate_limit: {unit: day, requests_per_unit: 9}}
  - key: all
    value: 'f/*'
    share_threshold: true
    rate_limit: {unit: day, requests_per_unit: 9}
    descriptors: [{key: user, rate_limit: {unit: day, requests_per_unit: 9}}]
",
    );
    let left = |text: &str| summary(&ask(&quotas, &[text]).statuses[0]).2;
    assert_eq!((left("own=f/1"), left("own=f/2"), left("own=f/1")), (8, 8, 7));
    assert_eq!((left("all=f/1"), left("all=f/2"), left("all=f/1")), (8, 7, 6));
    assert_eq!((left("all=f/1,user=a"), left("all=f/2,user=a"), left("all=f/2,user=b")), (8, 7, 8));
}

#[test]
fn an_unlimited_descriptor_passes_and_says_so() {
    let quotas = quotas(
        "
domain: shop
descriptors:
  - {key: a, rate_limit: {unlimited: true, name: a, replaces: [{name: b}]}}
  - {key: b, rate_limit: {unit: day, requests_per_unit: 0, name: b}}
",
    );
    assert_eq!(ask(&quotas, &["b=1"]).overall_code(), Code::OverLimit);
    let response = ask(&quotas, &["a=1", "b=1"]);
    assert_eq!(response.overall_code(), Code::Ok, "it replaces b");
    let found: Vec<_> = response.statuses.iter().map(summary).collect();
    assert_eq!(found, [(Code::Ok, None, u32::MAX), (Code::Ok, None, 0)]);
}

#[test]
fn limits_replace_each_other_within_one_request() {
    let quotas = quotas(
        "
domain: shop
descriptors:
  - {key: a, rate_limit: {unit: day, requests_per_unit: 5, name: a}}
  - {key: b, rate_limit: {unit: day, requests_per_unit: 5, name: b, replaces: [{name: a}]}}
",
    );
    assert_eq!(summary(&ask(&quotas, &["a=1"]).statuses[0]), (Code::Ok, Some(5), 4));
    let both = ask(&quotas, &["a=1", "b=1"]);
    let found: Vec<_> = both.statuses.iter().map(summary).collect();
    assert_eq!(found, [(Code::Ok, None, 0), (Code::Ok, Some(5), 4)]);
    assert_eq!(
        summary(&ask(&quotas, &["a=1"]).statuses[0]).2,
        3,
        "what is replaced is not counted"
    );
    assert_eq!(both.statuses[1].current_limit.as_ref().unwrap().name, "b");
}

#[test]
fn shadow_counts_and_does_not_refuse() {
    let text = "
domain: shop
descriptors:
  - {key: a, shadow_mode: true, rate_limit: {unit: day, requests_per_unit: 1}}
  - {key: b, rate_limit: {unit: day, requests_per_unit: 1}}
";
    let quotas = quotas(text);
    for left in [0, 0, 0] {
        assert_eq!(summary(&ask(&quotas, &["a=1"]).statuses[0]), (Code::Ok, Some(1), left));
    }
    let series = &quotas.series()[0];
    assert_eq!((series.key().as_str(), series.counts.shadow_mode.get()), ("shop.a", 2));
    assert_eq!(series.counts.over_limit.get(), 2);

    let quotas = with(text, Settings { shadow_mode: true, ..Settings::default() });
    let _ = ask(&quotas, &["b=1"]);
    let response = ask(&quotas, &["b=1"]);
    assert_eq!(response.overall_code(), Code::Ok);
    assert_eq!(code(&response.statuses[0]), Code::OverLimit, "only the overall code changes");
    assert_eq!(quotas.service().global_shadow_mode.get(), 1);
}

#[test]
fn quotas_refuse_only_when_all_of_them_are_over() {
    let text = "
domain: shop
descriptors:
  - {key: a, quota_mode: true, rate_limit: {unit: day, requests_per_unit: 0}}
  - {key: b, quota_mode: true, rate_limit: {unit: day, requests_per_unit: 9}}
  - {key: c, rate_limit: {unit: day, requests_per_unit: 0}}
  - {key: u, rate_limit: {unlimited: true}}
";
    let quotas = quotas(text);
    let overall = |quotas: &Quotas, descriptors: &[&str]| ask(quotas, descriptors).overall_code();
    assert_eq!(overall(&quotas, &["a=1", "b=1"]), Code::Ok);
    assert_eq!(overall(&quotas, &["a=1"]), Code::OverLimit);
    assert_eq!(overall(&quotas, &["b=1", "c=1"]), Code::OverLimit);
    let all = with(text, Settings { quota_mode: true, ..Settings::default() });
    assert_eq!(overall(&all, &["c=1", "none=1"]), Code::Ok, "what matches nothing is a quota");
    assert_eq!(overall(&all, &["c=1", "u=1"]), Code::OverLimit, "what is unlimited is none");
}

#[test]
fn a_request_over_a_limit_spends_from_no_other_if_told_so() {
    let text = "
domain: shop
descriptors:
  - {key: a, rate_limit: {unit: day, requests_per_unit: 1}}
  - {key: b, rate_limit: {unit: day, requests_per_unit: 9}}
";
    for (stop_when_over, left) in [(false, 6), (true, 7)] {
        let quotas = with(text, Settings { stop_when_over, ..Settings::default() });
        assert_eq!(ask(&quotas, &["a=1", "b=1"]).overall_code(), Code::Ok);
        assert_eq!(ask(&quotas, &["a=1", "b=1"]).overall_code(), Code::OverLimit);
        assert_eq!(summary(&ask(&quotas, &["b=1"]).statuses[0]).2, left);
    }
}

#[test]
fn the_same_descriptor_twice_counts_twice_in_order() {
    let response = ask(&quotas(FIVE), &["user=bob", "user=bob"]);
    assert_eq!(response.statuses.iter().map(summary).map(|it| it.2).collect::<Vec<_>>(), [4, 3]);
}

#[test]
fn headers_tell_the_limit_with_least_left_or_the_last_that_refuses() {
    let text = "
domain: shop
descriptors:
  - {key: a, rate_limit: {unit: minute, requests_per_unit: 3}}
  - {key: b, rate_limit: {unit: hour, requests_per_unit: 2}}
  - {key: c, rate_limit: {unit: second, requests_per_unit: 0}}
  - {key: d, rate_limit: {unit: day, requests_per_unit: 0}}
";
    let headers = |quotas: &Quotas, descriptors: &[&str]| {
        let headers = ask(quotas, descriptors).response_headers_to_add;
        headers.into_iter().map(|header| format!("{}={}", header.key, header.value)).collect()
    };
    let on = Settings { headers: Some(HeaderNames::default()), ..Settings::default() };
    let told: Vec<String> = headers(&with(text, on.clone()), &["a=1", "b=1", "none=1"]);
    // Second 1700000000 is 800 s into its hour.
    assert_eq!(told, ["RateLimit-Limit=2", "RateLimit-Remaining=1", "RateLimit-Reset=2800"]);
    let told: Vec<String> = headers(&with(text, on.clone()), &["c=1", "d=1", "a=1"]);
    assert_eq!(told[0], "RateLimit-Limit=0");
    assert_eq!(told[2], format!("RateLimit-Reset={}", 86_400 - 1_700_000_000 % 86_400));
    assert_eq!(headers(&with(text, on), &["none=1"]), [] as [String; 0]);
    assert_eq!(headers(&quotas(text), &["a=1"]), [] as [String; 0]);
}

#[test]
fn metadata_of_what_is_not_over_is_told_and_the_first_word_holds() {
    let text = "
domain: shop
descriptors:
  - {key: a, metadata: {tier: gold, x: {p: 1}}, rate_limit: {unit: day, requests_per_unit: 9}}
  - {key: b, metadata: {tier: tin, x: {p: 2, q: 3}}, rate_limit: {unit: day, requests_per_unit: 9}}
  - {key: c, metadata: {over: true}, rate_limit: {unit: day, requests_per_unit: 0}}
";
    assert_eq!(ask(&quotas(text), &["a=1"]).dynamic_metadata, None);
    let quotas = with(text, Settings { dynamic_metadata: true, ..Settings::default() });
    let metadata = ask(&quotas, &["a=1", "b=1", "c=1"]).dynamic_metadata.unwrap();
    let shown = format!("{:?}", metadata.fields["metadata"]);
    assert!(shown.contains("gold") && !shown.contains("tin") && !shown.contains("over"), "{shown}");
    assert!(shown.contains("NumberValue(1.0)") && shown.contains("NumberValue(3.0)"), "{shown}");
    assert!(!shown.contains("NumberValue(2.0)"), "{shown}");
    assert!(format!("{:?}", metadata.fields["descriptors"]).contains("a=1"));
}

#[test]
fn hits_near_and_over_a_limit_are_counted_as_the_original_does() {
    // With 10 a day, hits are near from the ninth on.
    let text = FIVE.replace("requests_per_unit: 5", "requests_per_unit: 10");
    let counts = |hits: &[u32]| {
        let quotas = quotas(&text);
        for hits in hits {
            let mut request = request(&["user=bob"]);
            request.hits_addend = *hits;
            let _ = decide(&quotas, &request, NOW);
        }
        let counts = &quotas.series()[0].counts;
        let of = [&counts.total_hits, &counts.within_limit, &counts.near_limit, &counts.over_limit];
        of.map(|counter| counter.get())
    };
    assert_eq!(counts(&[8]), [8, 8, 0, 0]);
    assert_eq!(counts(&[9]), [9, 9, 1, 0]);
    assert_eq!(counts(&[9, 1]), [10, 10, 2, 0]);
    assert_eq!(counts(&[9, 3]), [12, 9, 2, 2]);
    assert_eq!(counts(&[10, 3]), [13, 10, 2, 3]);
    assert_eq!(counts(&[12]), [12, 0, 2, 2]);
}

#[test]
fn series_are_named_as_the_original_names_them_and_their_number_is_bounded() {
    let quotas = quotas(
        "
domain: shop
descriptors:
  - {key: plain, rate_limit: {unit: day, requests_per_unit: 9}}
  - {key: detailed, detailed_metric: true, rate_limit: {unit: day, requests_per_unit: 9}}
  - {key: value, value_to_metric: true, rate_limit: {unit: day, requests_per_unit: 9}}
  - {key: wild, value: 'a*', rate_limit: {unit: day, requests_per_unit: 9}}
  - {key: shown, value: 'a*', value_to_metric: true, rate_limit: {unit: day, requests_per_unit: 9}}
  - key: shared
    value: 'a*'
    share_threshold: true
    descriptors: [{key: x, detailed_metric: true, rate_limit: {unit: day, requests_per_unit: 9}}]
",
    );
    for text in ["plain=1", "detailed=1", "value=1", "wild=ab", "shown=ab", "shared=ab,x=10.0.0.1"]
    {
        let _ = ask(&quotas, &[text]);
    }
    let hit = |quotas: &Quotas| -> Vec<String> {
        let series = quotas.series();
        let mut keys: Vec<_> = series
            .iter()
            .filter(|series| series.counts.total_hits.get() > 0)
            .map(|series| series.key())
            .collect();
        keys.sort();
        keys
    };
    assert_eq!(
        hit(&quotas),
        [
            "shop.detailed_1",
            "shop.plain",
            "shop.shared_a*.x_10_0_0_1",
            "shop.shown_ab",
            "shop.value_1",
            "shop.wild_a*"
        ]
    );
    for number in 0..100 {
        let _ = ask(&quotas, &[&format!("value={number}")]);
    }
    assert!(hit(&quotas).contains(&"shop.others".to_owned()));
    assert_eq!(quotas.series().len(), 6 + 10 + 1, "rules, bound, others");
}

#[test]
fn a_count_without_a_place_is_decided_by_one_that_all_such_share() {
    let quotas = Quotas::new(Bounds { counts: 1, series: 1 });
    reload(&quotas, FIVE, Settings::default());
    let over: Vec<_> = (0..100)
        .map(|number| code(&ask(&quotas, &[&format!("user={number}")]).statuses[0]))
        .collect();
    // Sixteen have a way of their own, then five in all have what one would have.
    let admitted = over.iter().filter(|code| **code == Code::Ok).count();
    assert!((13..=16 + 5).contains(&admitted), "{admitted}");
    let crowded = quotas.series()[0].counts.crowded.get();
    assert!(crowded >= 84, "{crowded}");
}

#[test]
fn own_keys_change_how_hits_count() {
    let quotas = quotas(
        "
format: weir
domain: shop
descriptors:
  - key: bucket
    rate_limit: {unit: second, requests_per_unit: 10}
    algorithm: token_bucket
    burst: 3
  - key: drip
    rate_limit: {unit: second, requests_per_unit: 10}
    algorithm: leaky_bucket
  - key: slide
    rate_limit: {unit: minute, requests_per_unit: 4}
    algorithm: sliding_window
  - key: quarter
    rate_limit: {unit: minute, requests_per_unit: 1}
    unit_multiplier: 15
  - key: both
    rate_limit: {unit: minute, requests_per_unit: 3}
    limits: [{unit: day, requests_per_unit: 4}]
",
    );
    let over = |text: &str, now: Now| {
        code(&decide(&quotas, &request(&[text]), now).statuses[0]) == Code::OverLimit
    };
    assert_eq!([0; 4].map(|_| over("bucket=1", NOW)), [false, false, false, true]);
    assert!(!over("bucket=1", later(1)), "refilled, and refused hits cost nothing");
    assert_eq!([0; 2].map(|_| over("drip=1", NOW)), [false, true]);
    assert_eq!([0; 5].map(|_| over("slide=1", NOW)), [false, false, false, false, true]);
    // 40 s later a window begins, with all four of the one before in it; half a window later, two.
    assert!(over("slide=1", later(40)));
    assert_eq!([0; 3].map(|_| over("slide=1", later(70))), [false, false, true]);
    assert_eq!([0; 2].map(|_| over("quarter=1", NOW)), [false, true]);
    assert!(over("quarter=1", later(60)) && !over("quarter=1", later(900)));
    assert_eq!([0; 4].map(|_| over("both=1", NOW)), [false, false, false, true]);
    let both = decide(&quotas, &request(&["both=1"]), later(60));
    // Four were asked for today, and one more: the day's limit is the one that is told.
    assert_eq!(summary(&both.statuses[0]), (Code::OverLimit, Some(4), 0));
    assert_eq!(both.statuses[0].current_limit.as_ref().unwrap().unit, 4);
}

#[test]
fn threads_admit_exactly_a_limit_while_the_rules_are_loaded_again_and_again() {
    let quotas = quotas(FIVE);
    let admitted = std::thread::scope(|scope| {
        let askers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let ok = |_: &usize| {
                        let response = ask(&quotas, &["user=bob", "user=eve"]);
                        response.statuses.iter().filter(|status| code(status) == Code::Ok).count()
                    };
                    (0..300).map(|n| ok(&n)).sum::<usize>()
                })
            })
            .collect();
        for _ in 0..30 {
            reload(&quotas, FIVE, Settings::default());
        }
        askers.into_iter().map(|asker| asker.join().unwrap()).sum::<usize>()
    });
    assert_eq!(admitted, 5 + 5);
    assert_eq!(quotas.series()[0].counts.total_hits.get(), 3 * 300 * 2, "and no hit is lost");
}

#[test]
fn each_calling_workload_has_its_own_count_if_the_scope_says_so() {
    let quotas = quotas(
        &FIVE
            .replace("domain:", "format: weir\ndomain:")
            .replace("    rate_limit", "    scope: workload\n    rate_limit"),
    );
    let workload = |name: &str| Caller {
        workload: Some(Workload {
            namespace: "shop".into(),
            name: name.into(),
            identity: name.into(),
        }),
        ..Caller::default()
    };
    let left = |caller: &Caller| match quotas.decide(&request(&["user=bob"]), caller, NOW).unwrap()
    {
        Decision::Ready(response) => response.statuses[0].limit_remaining,
        Decision::Waiting(waiting) => panic!("{waiting:?}"),
    };
    assert_eq!((left(&workload("a")), left(&workload("a")), left(&workload("b"))), (4, 3, 4));
    let address = Caller { address: Some("10.0.0.1".parse().unwrap()), ..Caller::default() };
    assert_eq!((left(&address), left(&Caller::default()), left(&address)), (4, 4, 3));
}

#[test]
fn a_domain_answers_its_owners_and_callers_alone() {
    let quotas = quotas(&format!(
        "format: weir\nowners: [shop]\nmax-hits-addend: 3\ncallers: [{{workload: 'edge/envoy-*'}}, \
         {{address: 10.1.0.0/16}}, {{uid: 101}}, {{tls-name: '*.mesh'}}]{FIVE}"
    ));
    let workload = |namespace: &str, name: &str| Caller {
        workload: Some(Workload {
            namespace: namespace.into(),
            name: name.into(),
            identity: "1".into(),
        }),
        ..Caller::default()
    };
    let address = |text: &str| Caller { address: Some(text.parse().unwrap()), ..Caller::default() };
    let user = |uid| Caller {
        credentials: Some(Credentials { uid, gid: 0, pid: 1 }),
        ..Caller::default()
    };
    let named = |name: &str| Caller { tls_name: Some(name.into()), ..Caller::default() };
    for (caller, may) in [
        (workload("shop", "web"), true),
        (workload("shops", "web"), false),
        (workload("edge", "envoy-1"), true),
        (workload("edge", "other"), false),
        (address("10.1.2.3"), true),
        (address("10.2.2.3"), false),
        (user(101), true),
        (user(0), false),
        (named("a.mesh"), true),
        (named("mesh"), false),
        (Caller::default(), false),
    ] {
        let answer = quotas.decide(&request(&["path=1"]), &caller, NOW);
        let denied = Refused::PermissionDenied { domain: "shop".to_owned() };
        assert_eq!(answer.map(|_| ()).err(), (!may).then_some(denied), "{caller:?}");
    }
    assert_eq!(quotas.service().permission_denied.get(), 6);
    let mut four = request(&["user=bob"]);
    four.hits_addend = 4;
    let refused = quotas.decide(&four, &user(101), NOW).unwrap_err();
    assert_eq!(refused, Refused::TooManyHits { descriptor: 0, hits: 4, most: 3 });
}

#[test]
fn a_clock_that_is_set_back_gives_nothing_out_and_refuses_nobody_for_long() {
    let quotas = quotas(&FIVE.replace("minute", "second"));
    let at = |seconds: i64| Now {
        realtime_ns: NOW.realtime_ns.checked_add_signed(seconds * SECOND as i64).unwrap(),
        ..NOW
    };
    let left = |now| summary(&decide(&quotas, &request(&["user=bob"]), now).statuses[0]);
    assert_eq!(left(at(0)).2, 4);
    assert_eq!(left(at(-3)).2, 3, "a little: the window stays");
    assert_eq!(left(at(-3600)).2, 2, "by much: the count goes along");
    assert_eq!(left(at(-3599)).2, 4, "and the next window is a new one");
}

#[test]
fn the_rules_are_shown_as_the_original_shows_them() {
    let quotas = quotas(
        "
domain: shop
descriptors:
  - key: k
    value: v
    shadow_mode: true
    rate_limit: {unit: minute, requests_per_unit: 3}
    descriptors: [{key: x, quota_mode: true, rate_limit: {unit: day, requests_per_unit: 1}}]
",
    );
    assert_eq!(
        quotas.rules().unwrap().to_string(),
        "shop.k_v: unit=MINUTE requests_per_unit=3, shadow_mode: true, quota_mode: false\n\
         shop.k_v.x: unit=DAY requests_per_unit=1, shadow_mode: false, quota_mode: true\n"
    );
}

/// Refuses "later" at once, and takes a while for the rest.
#[derive(Debug)]
struct Far;

impl store::Store for Far {
    fn take(&self, ask: &store::Ask<'_>, _now: Now) -> Option<engine::Taken> {
        (ask.meter.requests == 1).then(|| taken(true))
    }

    fn ask(&self, questions: Vec<store::Question>, _now: Now) -> store::Asking {
        Box::pin(async move {
            let answer = |question: store::Question| match question.prefix.as_str() {
                "shop_user_bob_" => Ok(taken(false)),
                prefix => Err(store::NoAnswer(prefix.to_owned())),
            };
            questions.into_iter().map(answer).collect()
        })
    }

    fn hold(&self, _: Vec<store::Held>, _: std::sync::Arc<dyn shared::Cell>, _: Now) {}

    fn want(&self, _: identity::Identity) -> store::Wanted {
        Box::pin(async {})
    }

    fn low(&self, _: identity::Identity) {}
}

fn taken(over: bool) -> engine::Taken {
    engine::Taken { over, before: 1, after: 2, limit: 5, reset_s: 1 }
}

#[tokio::test]
async fn fleet_quotas_are_decided_by_the_store() {
    let text = "
format: weir
domain: shop
descriptors:
  - {key: user, scope: fleet, rate_limit: {unit: minute, requests_per_unit: 5}}
  - {key: now, scope: fleet, rate_limit: {unit: minute, requests_per_unit: 1}}
";
    let quotas = Quotas::new(Bounds { counts: 8, series: 1 });
    let source = Source { file: "shop.yaml".to_owned(), text: text.to_owned() };
    let configuration = config::read(&[source]).unwrap();
    let problems = quotas.apply(&configuration, Settings::default()).unwrap_err();
    assert!(problems[0].what.contains("`scope: fleet` needs a store"), "{problems:?}");
    assert!(quotas.set_store(std::sync::Arc::new(Far)));
    quotas.apply(&configuration, Settings { store: true, ..Settings::default() }).unwrap();

    assert_eq!(ask(&quotas, &["now=1"]).overall_code(), Code::OverLimit);
    let wait = async |descriptors: &[&str]| match quotas
        .decide(&request(descriptors), &Caller::default(), NOW)
        .unwrap()
    {
        Decision::Ready(response) => panic!("{response:?}"),
        Decision::Waiting(waiting) => waiting.finish(&quotas).await,
    };
    let response = wait(&["none=1", "user=bob"]).await.unwrap();
    assert_eq!(response.overall_code(), Code::Ok);
    let found: Vec<_> = response.statuses.iter().map(summary).collect();
    assert_eq!(found, [(Code::Ok, None, 0), (Code::Ok, Some(5), 3)]);
    let refused = wait(&["user=eve"]).await.unwrap_err();
    assert_eq!(refused, Refused::CannotDecide { why: "shop_user_eve_".to_owned() });
    assert_eq!(quotas.service().redis_error.get(), 1);
}

#[test]
fn without_a_store_each_node_has_its_part_if_the_quota_says_so() {
    let text = "
format: weir
domain: shop
descriptors:
  - {key: user, scope: fleet, storeless: divide, rate_limit: {unit: minute, requests_per_unit: 11}}
";
    for (nodes, part) in [(1, 11), (3, 3), (20, 1)] {
        let quotas = with(text, Settings { nodes, ..Settings::default() });
        let admitted = (0..15).filter(|_| ask(&quotas, &["user=ann"]).overall_code() == Code::Ok);
        assert_eq!(admitted.count(), part, "{nodes}");
    }
}
