//! Values read, refused and printed.

use proptest::prelude::*;

use super::*;
use crate::policy::{key::Key, rate::tests::buckets};

fn read(key: &str, value: &str) -> Result<Setting, ValueError> {
    Key::parse(key).unwrap().parse_value(value)
}

fn limit(value: &str) -> Limit {
    match read("connections", value) {
        Ok(Setting::Limits(limits)) => limits[0],
        other => panic!("`{value}` is not a limit: {other:?}"),
    }
}

/// The fault, its quote and its column.
fn fault(key: &str, value: &str) -> (Fault, String, u32) {
    match read(key, value) {
        Ok(setting) => panic!("`{value}` was read as {setting}"),
        Err(error) => (error.fault, error.quote, error.column),
    }
}

#[test]
fn a_rate_is_written_per_unit_or_per_period() {
    for (written, tokens, millis) in [
        ("100/s", 100, 1000),
        ("50/min", 50, 60_000),
        ("50/m", 50, 60_000),
        ("1 per 60s", 1, 60_000),
        ("10 per 1m", 10, 60_000),
        ("5/10s", 5, 10_000),
        ("5/250ms", 5, 250),
        ("7 per h", 7, 3_600_000),
        ("  7   per\th  ", 7, 3_600_000),
    ] {
        let bucket = limit(written).bucket().unwrap();
        assert_eq!(bucket.rate().tokens(), tokens, "{written}");
        assert_eq!(bucket.rate().period().millis(), millis, "{written}");
        assert_eq!(bucket.burst(), tokens, "the burst defaults to N of `N per T`: {written}");
        assert_eq!(bucket.refill(), Refill::Smooth);
    }
}

#[test]
fn options_stand_in_any_order_and_shadow_last() {
    let written = limit("100/s refill=step burst=200 shadow");
    assert_eq!(written.to_string(), "100/s burst=200 refill=step shadow");
    assert_eq!(
        fault("connections", "100/s shadow burst=200"),
        (Fault::AfterShadow, "burst=200".to_owned(), 14)
    );
}

#[test]
fn sources_are_grouped_by_address_and_slash_64_unless_written() {
    let group = |value| match read("connections-per-source", value) {
        Ok(Setting::Limits(limits)) => limits[0].group,
        other => panic!("{other:?}"),
    };
    assert_eq!(group("20/s"), Group::new(32, 64));
    assert_eq!(group("20/s group=/24,/56"), Group::new(24, 56));
    assert_eq!(limit("20/s").group, None);
    let (fault, quote, column) = fault("connections", "20/s group=/24,/56");
    assert_eq!(fault, Fault::ForeignOption { belongs_to: "connections-per-source" });
    assert_eq!((quote.as_str(), column), ("group=/24,/56", 6));
}

#[test]
fn outbound_limits_are_a_list_by_destination() {
    let Ok(Setting::Limits(limits)) =
        read("outbound-connections", "50/s to=10.0.0.0/8; 5/s to=192.0.2.1 shadow ;100/s")
    else {
        panic!("a list was expected");
    };
    let printed: Vec<_> = limits.iter().map(ToString::to_string).collect();
    assert_eq!(printed, ["50/s to=10.0.0.0/8", "5/s to=192.0.2.1 shadow", "100/s"]);

    let key = "outbound-connections";
    let of = |value| {
        let (fault, quote, column) = fault(key, value);
        (fault, quote.trim().to_owned(), column)
    };
    assert_eq!(of("1/s; 2/s"), (Fault::SameDestination, "2/s".to_owned(), 5));
    assert_eq!(
        of("1/s to=10.0.0.1; 2/s to=10.0.0.1/32"),
        (Fault::SameDestination, "to=10.0.0.1/32".to_owned(), 22)
    );
    assert_eq!(of("1/s;"), (Fault::EmptyEntry, String::new(), 5));
    assert_eq!(of(";1/s"), (Fault::EmptyEntry, String::new(), 1));
    assert_eq!(fault("connections", "1/s; 2/s"), (Fault::NoList, ";".to_owned(), 4));
}

#[test]
fn each_fault_names_its_part_and_column() {
    use Fault::*;
    const TAKES: &str = "burst=N, refill=smooth|step, group=/N,/M (per source), to=CIDR|service/NAME (outbound) or shadow";
    let key = "connections";
    let rows: &[(&str, Fault, &str, u32)] = &[
        ("", Empty { expected: "a rate like `100/s` or `1 per 60s`" }, "", 1),
        ("fast", NotARate, "fast", 1),
        ("burst=5", NotARate, "burst=5", 1),
        ("burst=5/s", NotARate, "burst=5/s", 1),
        ("100", NoPeriod, "100", 1),
        ("100/", NoPeriod, "100/", 1),
        ("100 per", NoPeriod, "per", 5),
        ("0/s", Zero, "0", 1),
        ("5/0s", Zero, "0s", 3),
        ("0.5/s", NotANumber, "0.5", 1),
        ("-5/s", NotANumber, "-5", 1),
        ("10k/s", NotANumber, "10k", 1),
        ("5/10", UnknownUnit { meant: None }, "10", 3),
        ("5/S", UnknownUnit { meant: Some("s") }, "S", 3),
        ("1 per 2minutes", UnknownUnit { meant: Some("m") }, "minutes", 8),
        ("9999999999/s", TooLarge { max: 1_000_000_000 }, "9999999999", 1),
        ("10000001/s", TooFast { per_source: false }, "10000001/s", 1),
        ("1/721h", TooSlow { hours: 720 }, "721h", 3),
        ("1/99999999999999999999h", TooSlow { hours: 720 }, "99999999999999999999h", 3),
        ("1/h burst=721", TooSlow { hours: 720 }, "burst=721", 5),
        ("1/s burst=0", Zero, "0", 11),
        ("1/s burst=", NotANumber, "", 11),
        ("1/s burst=x", NotANumber, "x", 11),
        ("1/s burst=2 burst=2", Repeated, "burst=2", 13),
        ("1/s brust=2", UnknownOption { takes: TAKES, meant: Some("burst=") }, "brust=2", 5),
        ("1/s burst", UnknownOption { takes: TAKES, meant: Some("burst=") }, "burst", 5),
        ("1/s shadw", UnknownOption { takes: TAKES, meant: Some("shadow") }, "shadw", 5),
        ("1/s please", UnknownOption { takes: TAKES, meant: None }, "please", 5),
        (
            "1/s to=10.0.0.0/8",
            ForeignOption { belongs_to: "outbound-connections" },
            "to=10.0.0.0/8",
            5,
        ),
        ("10/s burst=5 refill=step", StepOverflows { tokens: 10 }, "burst=5", 6),
    ];
    for (value, expected, quote, column) in rows {
        assert_eq!(fault(key, value), (expected.clone(), (*quote).to_owned(), *column), "{value}");
    }
    let (step, quote, column) = fault(key, "1/s refill=stepp");
    assert!(matches!(step, NotOneOf { meant: Some("step"), .. }));
    assert_eq!((quote.as_str(), column), ("stepp", 12));
}

#[test]
fn buckets_of_a_source_have_narrower_bounds() {
    let key = "connections-per-source";
    assert!(read(key, "1000000/s").is_ok());
    assert_eq!(fault(key, "1000001/s").0, Fault::TooFast { per_source: true });
    assert!(read(key, "7 per 24h").is_ok());
    assert_eq!(fault(key, "7 per 25h").0, Fault::TooSlow { hours: 24 });
    assert_eq!(fault(key, "1/h burst=25").0, Fault::TooSlow { hours: 24 });
    // Fills in 5 hours, but comes back only every 25.
    assert_eq!(fault(key, "5 per 25h burst=1").0, Fault::TooSlow { hours: 24 });
}

#[test]
fn words_are_few_and_exact() {
    assert_eq!(read("mode", "shadow"), Ok(Setting::Mode(Mode::Shadow)));
    assert_eq!(read("mode", " enforce "), Ok(Setting::Mode(Mode::Enforce)));
    assert_eq!(read("on-limit.80", "drop"), Ok(Setting::OnLimit(OnLimit::Drop)));
    assert!(matches!(fault("mode", "Shadow").0, Fault::NotOneOf { meant: Some("shadow"), .. }));
    assert!(matches!(fault("on-limit", "rest").0, Fault::NotOneOf { meant: Some("reset"), .. }));
    assert!(matches!(fault("mode", "").0, Fault::NotOneOf { .. }));
    assert_eq!(fault("mode", "shadow please").2, 8);
}

#[test]
fn exempt_takes_networks_between_commas_or_blanks() {
    let Ok(Setting::Exempt(peers)) = read("exempt", "10.0.0.0/8, 192.0.2.1 2001:db8::/32") else {
        panic!("networks were expected");
    };
    assert_eq!(Setting::Exempt(peers).to_string(), "10.0.0.0/8, 192.0.2.1, 2001:db8::/32");
    assert_eq!(fault("exempt", "10.0.0.0/8, db").1, "db");
    assert_eq!(fault("exempt", "10.0.0.0/8, db").2, 13);
    assert!(matches!(fault("exempt", " , ").0, Fault::Empty { .. }));
}

#[test]
fn columns_count_characters_not_bytes() {
    assert_eq!(fault("connections", "1/s é bad").2, 5);
    assert_eq!(fault("exempt", "é").2, 1);
    assert_eq!(fault("exempt", "10.0.0.1,\u{a0}é").2, 11);
}

#[test]
fn long_nonsense_is_quoted_in_part() {
    let (_, quote, _) = fault("connections", &"x".repeat(5000));
    assert!(quote.chars().count() <= 61);
}

#[test]
fn a_bucket_of_its_own_takes_a_rate_and_a_burst() {
    assert_eq!(parse_bucket("50/s burst=70").unwrap().to_string(), "50/s burst=70");
    for (value, quote) in [
        ("5/s shadow", "shadow"),
        ("5/s refill=step", "refill=step"),
        ("5/s to=10.0.0.1", "to=10.0.0.1"),
    ] {
        assert_eq!(parse_bucket(value).unwrap_err().quote, quote);
    }
}

#[test]
fn what_is_open_at_once_is_a_number() {
    let printed = |key, value| read(key, value).unwrap().to_string();
    assert_eq!(printed("max-connections.80", " 500 "), "500");
    assert_eq!(printed("max-handshakes", "65535 shadow"), "65535 shadow");
    assert_eq!(printed("max-connections", "1048575"), "1048575");
    assert_eq!(printed("max-connections-per-source", "20 group=/32,/64"), "20");
    assert_eq!(
        printed("max-connections-per-source", "20 group=/24,/56 shadow"),
        "20 group=/24,/56 shadow"
    );
    let key = "max-connections";
    assert_eq!(fault(key, "0"), (Fault::Zero, "0".to_owned(), 1));
    assert_eq!(fault(key, "100/s"), (Fault::NotACount, "100/s".to_owned(), 1));
    assert_eq!(fault(key, "many").0, Fault::NotACount);
    assert_eq!(fault(key, "1048576").0, Fault::TooLarge { max: 1_048_575 });
    assert_eq!(fault("max-handshakes", "65536").0, Fault::TooLarge { max: 65_535 });
    assert_eq!(fault(key, "99999999999").0, Fault::TooLarge { max: 1_048_575 });
    assert!(matches!(fault(key, "").0, Fault::Empty { .. }));
    assert_eq!(fault(key, "5; 6").0, Fault::NoList);
    assert_eq!(fault(key, "5 shadow 6").0, Fault::AfterShadow);
    let foreign = |value| match fault(key, value) {
        (Fault::ForeignOption { belongs_to }, _, 3) => belongs_to,
        other => panic!("{other:?}"),
    };
    assert_eq!(foreign("5 burst=6"), "connections");
    assert_eq!(foreign("5 group=/24,/56"), "max-connections-per-source");
    assert_eq!(foreign("5 to=10.0.0.1"), "outbound-connections");
    assert_eq!(foreign("5 errors=5"), "breaker");
    assert!(matches!(fault(key, "5 shadw").0, Fault::UnknownOption { meant: Some("shadow"), .. }));
}

#[test]
fn what_a_limit_admits_is_shown_as_json() {
    let json = |key, value| match read(key, value) {
        Ok(Setting::Limits(limits)) => serde_json::to_value(limits[0]).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(json("connections", "5/s")["bucket"]["burst"], 5);
    assert_eq!(json("max-connections", "5")["at-once"], 5);
    assert_eq!(json("breaker", "errors=5 shadow")["breaker"], "errors=5");
}

fn terms_of(kind: LimitKind) -> BoxedStrategy<Terms> {
    if kind.is_bandwidth() {
        let bits = bandwidth::MIN_BITS..=1_000_000_000_000;
        let burst = proptest::option::of(bandwidth::FRAME..=1_000_000);
        (bits, burst)
            .prop_filter_map("too slow to fill", |(bits, burst)| Bandwidth::new(bits, burst))
            .prop_map(Terms::Bandwidth)
            .boxed()
    } else if kind == LimitKind::Packets {
        (1..=1_000_000_u32, 1..=3600_u32)
            .prop_map(|(rate, burst)| match read("packets", &format!("{rate}/s burst={burst}")) {
                Ok(Setting::Limits(limits)) => limits[0].terms,
                other => panic!("{other:?}"),
            })
            .boxed()
    } else if kind.is_rate() {
        buckets().prop_map(Terms::Bucket).boxed()
    } else if kind.is_breaker() {
        let plain = (1..9_u16, 1..9_u16).prop_map(|(errors, probes)| {
            match read("breaker", &format!("errors={errors} probes={probes}")) {
                Ok(Setting::Limits(limits)) => limits[0].terms,
                other => panic!("{other:?}"),
            }
        });
        plain.boxed()
    } else {
        let most = u32::try_from(most_at_once(kind)).unwrap();
        (1..=most).prop_map(|number| Terms::AtOnce(NonZeroU32::new(number).unwrap())).boxed()
    }
}

fn limits_of(kind: LimitKind) -> impl Strategy<Value = Setting> {
    let to = proptest::option::of((any::<u32>(), 0..=32_u8).prop_map(|(address, prefix)| {
        let shift = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let network = std::net::Ipv4Addr::from_bits(address & shift);
        Cidr::parse(&format!("{network}/{prefix}")).unwrap()
    }));
    let group = (1..=32_u8, 1..=128_u8).prop_map(|(v4, v6)| Group::new(v4, v6).unwrap());
    let entry =
        (terms_of(kind), group, to, any::<bool>()).prop_map(move |(terms, group, to, shadow)| {
            Limit {
                terms,
                group: kind.is_per_source().then_some(group),
                to: to.filter(|_| kind.is_outbound()).map(To::Cidr),
                shadow,
            }
        });
    let most = if kind.is_outbound() { 4 } else { 1 };
    proptest::collection::vec(entry, 1..=most).prop_filter_map("out of bounds", move |limits| {
        let per_source = kind == LimitKind::ConnectionsPerSource;
        let fits = limits.iter().all(|limit| {
            !per_source
                || limit.bucket().is_none_or(|bucket| {
                    !bucket.slower_than(MAX_SOURCE_WINDOW)
                        && !bucket.rate().exceeds(MAX_SOURCE_PER_SECOND)
                })
        });
        let mut seen = std::collections::BTreeSet::new();
        let distinct = limits.iter().all(|limit| seen.insert(limit.to));
        (fits && distinct).then_some(Setting::Limits(limits))
    })
}

/// Text made of the grammar's own pieces, which gets further into the parser than noise does.
fn nearly_a_value() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("100"),
        Just("0"),
        Just("4294967296"),
        Just("/"),
        Just("s"),
        Just("ms"),
        Just("h"),
        Just("per"),
        Just(" "),
        Just("\t"),
        Just(";"),
        Just(","),
        Just("="),
        Just("burst="),
        Just("refill="),
        Just("step"),
        Just("smooth"),
        Just("group="),
        Just("/24,/56"),
        Just("to="),
        Just("10.0.0.0/8"),
        Just("::/0"),
        Just("errors="),
        Just("error-ratio="),
        Just("50%"),
        Just("min-volume="),
        Just("ejection="),
        Just("half-open=off"),
        Just("probes="),
        Just("shadow"),
        Just("drop"),
        Just("é"),
        Just("\u{2028}"),
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_limit_survives_the_round_trip(
        (kind, setting) in (0..8_usize).prop_map(|index| LimitKind::ALL[index])
            .prop_flat_map(|kind| (Just(kind), limits_of(kind))),
    ) {
        let printed = setting.to_string();
        prop_assert_eq!(parse(KeyKind::Limit(kind), &printed), Ok(setting), "{}", printed);
    }

    #[test]
    fn any_text_is_read_or_refused_with_its_place(
        key in (0..11_usize).prop_map(|index| Key::NAMES[index]),
        value in prop_oneof![".{0,80}", nearly_a_value()],
    ) {
        match read(key, &value) {
            Ok(setting) => prop_assert_eq!(read(key, &setting.to_string()), Ok(setting)),
            Err(error) => {
                let skipped = usize::try_from(error.column).unwrap() - 1;
                let rest: String = value.chars().skip(skipped).collect();
                prop_assert!(rest.starts_with(error.quote.trim_end_matches('…')));
                prop_assert!(!error.fault.expected().is_empty());
            }
        }
        let _ = parse_bucket(&value);
        let _ = parse_cidr(&value);
    }
}
