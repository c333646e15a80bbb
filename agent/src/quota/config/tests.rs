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

fn overlaid(overlay: &str) -> Result<Configuration, Vec<String>> {
    let shop = "
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: minute, requests_per_unit: 5}
    descriptors: [{key: path, value: /a, rate_limit: {unit: day, requests_per_unit: 5}}]
";
    let sources = [("shop.yaml", shop), ("own.yaml", overlay)]
        .map(|(file, text)| Source { file: file.to_owned(), text: text.to_owned() });
    read(&sources).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn an_overlay_adds_to_the_descriptors_that_it_names() {
    let configuration = overlaid(
        "
format: weir-overlay
domain: shop
owners: [shop]
descriptors:
  - key: user
    descriptors: [{key: path, value: /a, algorithm: token_bucket, burst: 7}]
",
    )
    .unwrap();
    let domain = &configuration.domains[0];
    assert_eq!(domain.access.owners, ["shop"]);
    assert_eq!(domain.descriptors[0].own, Default::default());
    assert_eq!(domain.descriptors[0].descriptors[0].own.burst, Some(7));
}

#[test]
fn own_keys_that_mean_nothing_are_told() {
    let head = "format: weir-overlay\ndomain: shop\n";
    for (text, expected) in [
        (
            "descriptors: [{key: usr, burst: 1, algorithm: token_bucket}]\n",
            "own.yaml:3:15: error: there is no descriptor `shop.usr`; expected a descriptor of the \
             domain's quota file",
        ),
        (
            "descriptors: [{key: user, burst: 1}]\n",
            "own.yaml:3:34: error: `burst` has no meaning for a window; expected `algorithm: \
             token_bucket` or `leaky_bucket` beside it",
        ),
        (
            "descriptors: [{key: user, algorithm: token-bucket}]\n",
            "own.yaml:3:38: error: `algorithm`: `token-bucket` is unknown; expected `token_bucket`",
        ),
        (
            "descriptors: [{key: user, storeless: node}]\n",
            "own.yaml:3:38: error: `storeless` has no meaning without a fleet; expected `scope: \
             fleet` beside it",
        ),
        (
            "descriptors: [{key: user, rate_limit: {unit: day}}]\n",
            "own.yaml:3:27: error: unknown key `rate_limit` in `descriptors`; expected one of key, \
             value, descriptors, algorithm, burst, unit_multiplier, scope, storeless, consistency, \
             on-store-failure, limits",
        ),
        (
            "callers: [{uid: 1, address: 10.0.0.1}]\n",
            "own.yaml:3:11: error: a caller is one fact; expected one of namespace, workload, \
             tls-name, address, uid",
        ),
        (
            "owners: []\n",
            "own.yaml:3:9: error: `owners` is empty; expected a namespace, or no \
             `owners` for everybody",
        ),
    ] {
        assert_eq!(overlaid(&format!("{head}{text}")).unwrap_err(), [expected], "{text}");
    }
    let other = overlaid("format: weir-overlay\ndomain: shops\n").unwrap_err();
    assert!(other[0].contains("no quota file describes the domain `shops`"), "{other:?}");
}

#[test]
fn what_cannot_be_counted_is_told_where_it_is_written() {
    let problems = |own: &str| {
        let text = format!(
            "format: weir\ndomain: a\ndescriptors:\n- key: b\n  {own}\n  rate_limit: {{unit: year, \
             requests_per_unit: 2000000}}\n"
        );
        let source = Source { file: "a.yaml".to_owned(), text };
        let problems = check(&[source], Settings::default());
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(problems("scope: node"), [] as [&str; 0]);
    assert_eq!(problems("scope: fleet\n  storeless: node"), [] as [&str; 0]);
    let with_store = Settings { store: true, ..Settings::default() };
    let text = "format: weir\ndomain: a\ndescriptors:\n- {key: b, scope: fleet, algorithm: \
                token_bucket, rate_limit: {unit: day, requests_per_unit: 2}}\n";
    let source = Source { file: "a.yaml".to_owned(), text: text.to_owned() };
    let told = check(&[source], with_store.clone())[0].to_string();
    assert!(told.contains("`b`: what the fleet leases are fixed windows"), "{told}");
    let text = text.replace("algorithm:", "consistency: strict, algorithm:");
    let source = Source { file: "a.yaml".to_owned(), text };
    assert_eq!(check(&[source], with_store), []);
    for (own, what) in [
        ("algorithm: sliding_window", "counts up to 1048575 hits"),
        ("algorithm: token_bucket", "more than 104 days"),
        ("unit_multiplier: 11", "too long"),
        ("scope: fleet", "needs a store"),
        (
            "limits: [{unit: day, requests_per_unit: 1, unit_multiplier: 365}]",
            "the same algorithm and the same window",
        ),
    ] {
        let found = problems(own);
        assert!(
            found.len() == 1 && found[0].starts_with("a.yaml:4:3: error: "),
            "{own}: {found:?}"
        );
        assert!(found[0].contains(what), "{own}: {found:?}");
    }
}
