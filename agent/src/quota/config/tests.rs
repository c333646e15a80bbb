use super::*;

fn problems(text: &str) -> Vec<String> {
    let source = Source { file: "shop.yaml".to_owned(), text: text.to_owned() };
    match read(&[source]) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_file_of_the_original_is_read() {
    let text = "
domain: shop
descriptors:
  - key: user
    value: bob
    shadow_mode: true
    rate_limit: {unit: Minute, requests_per_unit: 5, name: bob, replaces: [{name: all}]}
    descriptors:
      - key: path
        metadata: {tier: gold, weight: 2, deep: [true, ~, \"1\"]}
  - key: user
    rate_limit: {unlimited: true}
";
    assert_eq!(problems(text), [] as [&str; 0]);
}

#[test]
fn what_the_original_rejects_is_told_with_its_place_and_what_was_expected() {
    for (text, expected) in [
        (
            "descriptors: []\n",
            "shop.yaml:1:1: error: the file has no domain; expected `domain: NAME`",
        ),
        ("domain: ''\n", "shop.yaml:1:10: error: the file has no domain; expected `domain: NAME`"),
        (
            "domain: a\ndescriptor: []\n",
            "shop.yaml:2:1: error: unknown key `descriptor` in `quota file`; expected `descriptors`",
        ),
        (
            "domain: a\ndescriptors: [{value: b}]\n",
            "shop.yaml:2:15: error: the descriptor has no key; expected `key: NAME`",
        ),
        (
            "domain: a\ndescriptors: [{key: b, rate_limit: {unit: fortnight}}]\n",
            "shop.yaml:2:43: error: `unit`: `fortnight` is no unit; expected one of second, minute, \
             hour, day, week, month, year",
        ),
        (
            "domain: a\ndescriptors: [{key: b, rate_limit: {requests_per_unit: 1}}]\n",
            "shop.yaml:2:36: error: the `rate_limit` has no unit; expected one of second, minute, \
             hour, day, week, month, year",
        ),
        (
            "domain: a\ndescriptors: [{key: b, rate_limit: {unlimited: true, unit: day}}]\n",
            "shop.yaml:2:60: error: an unlimited `rate_limit` has a unit; expected `unlimited: true` \
             alone",
        ),
        (
            "domain: a\ndescriptors: [{key: b, value: c, share_threshold: true}]\n",
            "shop.yaml:2:51: error: `share_threshold` stands at `b_c`, which has no `*`; expected a \
             value with a `*`, or no `share_threshold`",
        ),
        (
            "domain: a\ndescriptors: [{key: b, value: 1.5}]\n",
            "shop.yaml:2:31: error: `value`: `1.5` is a number with a point; expected it in quotes: \
             `\"1.5\"`",
        ),
        (
            "domain: a\ndescriptors: [{key: b, rate_limit: {unit: day, requests_per_unit: -1}}]\n",
            "shop.yaml:2:67: error: `requests_per_unit`: `-1` is not accepted; expected a whole \
             number from 0 to 4294967295",
        ),
        (
            "domain: a\ndescriptors: [{key: b, rate_limit: {unit: day, name: n, replaces: [{name: n}]}}]\n",
            "shop.yaml:2:68: error: the limit `n` replaces itself; expected the names of other limits",
        ),
        (
            "domain: a\ndescriptors: [{key: b, rate_limit: {unit: day, replaces: [{name: ''}]}}]\n",
            "shop.yaml:2:59: error: an entry of `replaces` has no name; expected `name: NAME`",
        ),
        (
            "domain: a\ndescriptors: [text]\n",
            "shop.yaml:2:15: error: `descriptors`: a text stands here; expected the keys key, value, \
             descriptors, rate_limit, shadow_mode, quota_mode, detailed_metric, value_to_metric, \
             share_threshold, metadata",
        ),
        (
            "domain: a\ndomain: b\n",
            "shop.yaml:2:1: error: the key `domain` is written twice; expected it once: it stands at \
             shop.yaml:1:1 already",
        ),
    ] {
        assert_eq!(problems(text), [expected], "{text}");
    }
}
