//! Breakers read, refused and printed.

use proptest::prelude::*;

use super::*;
use crate::policy::{Key, Setting};

fn read(key: &str, value: &str) -> Result<Setting, ValueError> {
    Key::parse(key).unwrap().parse_value(value)
}

fn breaker(value: &str) -> Breaker {
    match read("breaker", value) {
        Ok(Setting::Limits(limits)) => limits[0].breaker().unwrap(),
        other => panic!("`{value}` is not a breaker: {other:?}"),
    }
}

/// The error in one line, as people see it.
fn told(value: &str) -> String {
    match read("breaker", value) {
        Ok(setting) => panic!("`{value}` was read as {setting}"),
        Err(error) => format!("{}; expected {}", error.what(), error.fault.expected()),
    }
}

#[test]
fn what_is_not_written_has_a_default() {
    let plain = breaker("errors=5");
    assert_eq!(plain.errors.unwrap().get(), 5);
    assert_eq!(plain.error_ratio, None, "only what is written trips it");
    assert_eq!(plain.interval.to_string(), "10s");
    assert_eq!(plain.connect_timeout.to_string(), "10s");
    assert_eq!(plain.ejection.to_string(), "30s");
    assert_eq!(plain.max_ejection.to_string(), "5m");
    assert_eq!(plain.probes.unwrap().get(), 1);
    let ratio = breaker("error-ratio=50%");
    assert_eq!(ratio.errors, None);
    assert_eq!(ratio.error_ratio.unwrap().min_volume.get(), 20);
    // The longest ejection is never shorter than the first.
    assert_eq!(breaker("errors=1 ejection=10m").max_ejection.to_string(), "10m");
    assert_eq!(breaker("errors=1 half-open=off").probes, None);
}

#[test]
fn settings_stand_in_any_order_and_shadow_last() {
    let all = "half-open=on probes=3 max-ejection=300s ejection=30s connect-timeout=2s \
               interval=1m min-volume=30 error-ratio=40% errors=7 shadow";
    let printed = read("breaker", all).unwrap().to_string();
    let expected =
        "errors=7 error-ratio=40% min-volume=30 interval=1m connect-timeout=2s probes=3 shadow";
    assert_eq!(printed, expected);
    assert!(told("errors=5 shadow probes=2").contains("nothing may follow the word `shadow`"));
}

#[test]
fn outbound_breakers_are_a_list_by_destination() {
    let value =
        "errors=5 to=10.0.0.0/8; errors=2 ejection=1s scope=node to=10.0.0.7 shadow; errors=9";
    assert_eq!(read("outbound-breaker.443", value).unwrap().to_string(), value);
    let told = told("errors=5 to=10.0.0.7");
    assert!(told.contains("it only with `outbound-breaker`"), "{told}");
    assert!(read("breaker", "errors=5; errors=6").is_err());
}

#[test]
fn contradictions_name_the_setting_and_what_was_expected() {
    for (value, expected) in [
        ("", "the value is empty; expected settings like `errors=5 ejection=30s`"),
        (
            "ejection=30s",
            "nothing would ever trip this breaker: `ejection=30s`; expected errors=N, \
             error-ratio=N%, or both",
        ),
        (
            "errors=0",
            "this value is not accepted: `errors=0`; expected errors=N with a whole number from 1 \
             to 1023",
        ),
        (
            "errors=1024",
            "this value is not accepted: `errors=1024`; expected errors=N with a whole number \
             from 1 to 1023",
        ),
        (
            "error-ratio=101%",
            "this value is not accepted: `error-ratio=101%`; expected error-ratio=N% with a whole \
             number from 1 to 100",
        ),
        (
            "error-ratio=50",
            "this value is not accepted: `error-ratio=50`; expected error-ratio=N% with a whole \
             number from 1 to 100",
        ),
        (
            "errors=5 ejection=0s",
            "this value is not accepted: `ejection=0s`; expected ejection=T with a time from 1ms \
             to 74h, like 30s",
        ),
        (
            "errors=5 connect-timeout=1h",
            "this value is not accepted: `connect-timeout=1h`; expected connect-timeout=T with a \
             time from 1ms to 17m, like 30s",
        ),
        (
            "errors=5 interval=10",
            "this unit of time is unknown: `10`; expected one of ms, s, m (or min), h",
        ),
        (
            "errors=5 max-ejection=50%",
            "this unit of time is unknown: `%`; expected one of ms, s, m (or min), h",
        ),
        (
            "errors=5 max-ejection=10s",
            "this is shorter than `ejection=30s`: `max-ejection=10s`; expected max-ejection=30s or \
             longer, or a shorter ejection",
        ),
        (
            "errors=5 min-volume=10",
            "only an `error-ratio` waits for a volume: `min-volume=10`; expected error-ratio=N% \
             beside it, or no min-volume",
        ),
        (
            "errors=5 error-ratio=90%",
            "this ratio has no effect: `errors=5` always trips first: `error-ratio=90%`; expected \
             error-ratio=83% or lower, a larger errors, or only one of the two",
        ),
        (
            "errors=1 error-ratio=1%",
            "this ratio has no effect: `errors=1` always trips first: `error-ratio=1%`; expected \
             errors=2 or more, or no error-ratio",
        ),
        (
            "errors=5 half-open=off probes=3",
            "without a half-open state there are no probes: `probes=3`; expected half-open=on, or \
             no probes",
        ),
        (
            "errors=5 probes=64",
            "this value is not accepted: `probes=64`; expected probes=N with a whole number from 1 \
             to 63",
        ),
        (
            "errors=5 errors=6",
            "this option is written twice: `errors=6`; expected each option once",
        ),
        (
            "errors=5 max-ejected=50%",
            "this option does not belong to this key: `max-ejected=50%`; expected it only with \
             `outbound-breaker`",
        ),
        (
            "errors=5 half-open=maybe",
            "this word is not accepted here: `maybe`; expected `on` or `off`",
        ),
    ] {
        assert_eq!(told(value), expected, "{value}");
    }
    let slip = told("errors=5 ejecton=30s");
    assert!(slip.ends_with("; did you mean `ejection=`?"), "{slip}");
    let foreign = told("errors=5 burst=3");
    assert!(foreign.contains("it only with `connections`"), "{foreign}");
}

#[test]
fn bounds_are_the_kernels() {
    assert!(u64::from(u32::MAX >> 12) >= MAX_TIMEOUT.millis());
    assert!(u64::from(u32::MAX >> 4) >= MAX_EJECTION.millis());
    let widest = breaker(
        "errors=1023 error-ratio=1% min-volume=65535 interval=74h connect-timeout=17m ejection=74h \
         probes=63",
    );
    assert_eq!(widest.max_ejection, MAX_EJECTION);
}

/// The highest share of failures of any stretch of at least `volume` verdicts without `errors`
/// failures in a row, by trying them all.
fn highest_share(errors: u32, volume: u32) -> u32 {
    let share = |verdicts: u32| {
        let failed = (1..=verdicts).filter(|at| at % errors != 0).count() as u32;
        failed * 100 / verdicts
    };
    (volume..volume + 3 * errors).map(share).max().unwrap()
}

proptest! {
    #[test]
    fn a_ratio_is_refused_only_where_it_can_never_be_met(
        errors in 1..40_u16, volume in 1..80_u16,
    ) {
        let ratio = Ratio {
            percent: NonZeroU16::MIN,
            min_volume: NonZeroU16::new(volume).unwrap(),
        };
        let highest = ratio.highest_below(NonZeroU16::new(errors).unwrap());
        prop_assert_eq!(highest, highest_share(errors.into(), volume.into()));
    }

    #[test]
    fn any_breaker_survives_the_round_trip(
        errors in proptest::option::of(1..=MAX_ERRORS),
        ratio in proptest::option::of((1..=100_u16, 1..=u16::MAX)),
        times in (1..=MAX_EJECTION.millis(), 1..=MAX_TIMEOUT.millis(), 1..=MAX_EJECTION.millis()),
        longer in 0..=MAX_EJECTION.millis(),
        probes in 0..=MAX_PROBES,
        http1: bool,
    ) {
        let period = |millis| Period::from_millis(millis).unwrap();
        let (interval, timeout, ejection) = times;
        let ratio = ratio.map(|(percent, volume)| Ratio {
            percent: NonZeroU16::new(percent).unwrap(),
            min_volume: NonZeroU16::new(volume).unwrap(),
        });
        // One of the two at least.
        let errors = errors.or(ratio.is_none().then_some(1)).and_then(NonZeroU16::new);
        let breaker = Breaker {
            errors,
            error_ratio: ratio.filter(|ratio| {
                errors.is_none_or(|errors| u32::from(ratio.percent.get()) <= ratio.highest_below(errors))
            }),
            interval: period(interval),
            connect_timeout: period(timeout),
            ejection: period(ejection),
            max_ejection: period((ejection + longer).min(MAX_EJECTION.millis())),
            probes: NonZeroU16::new(probes),
            http1,
            min_health: None,
            max_ejected: None,
            scope: Scope::Workload,
        };
        let printed = breaker.to_string();
        match read("breaker", &printed) {
            Ok(Setting::Limits(limits)) => prop_assert_eq!(limits[0].breaker(), Some(breaker)),
            other => prop_assert!(false, "{}: {:?}", printed, other),
        }
    }
}

#[test]
fn bounds_on_endpoints_are_for_services_and_must_agree() {
    let told = |value: &str| read("outbound-breaker", value).unwrap_err().to_string();
    for (value, expected) in [
        ("errors=5 max-ejected=50%", "it beside to=service/NAME"),
        ("errors=5 min-health=50% to=10.0.0.1", "it beside to=service/NAME"),
        (
            "errors=5 min-health=100% to=service/db",
            "min-health=N% with a whole number from 1 to 99",
        ),
        (
            "errors=5 min-health=80% max-ejected=50% to=service/db",
            "only one of the two, or both so that they make 100%",
        ),
        ("errors=5 scope=node", "it beside to=CIDR or to=service/NAME"),
        ("errors=5 scope=fleet to=10.0.0.1", "`workload` or `node`"),
        ("errors=5 to=service/", "service/NAME, with a name of up to 31 of a-z, 0-9 and `-`"),
        ("errors=5 to=service/Db", "service/NAME, with a name of up to 31 of a-z, 0-9 and `-`"),
    ] {
        let told = told(value);
        assert!(told.ends_with(&format!("; expected {expected}")), "{told}");
    }
    let blamed = |value: &str| read("outbound-breaker", value).unwrap_err().quote;
    let both = |health, ejected| {
        format!("errors=5 min-health={health}% max-ejected={ejected}% to=service/db")
    };
    assert_eq!(blamed(&both(80, 50)), "max-ejected=50%");
    assert_eq!(blamed(&both(80, 10)), "min-health=80%");
    assert!(read("outbound-breaker", &both(80, 20)).is_ok());
}

#[test]
fn one_endpoint_may_always_be_ejected_and_no_more_than_the_share() {
    let ejectable = |settings: &str, endpoints| {
        let value = format!("errors=5 {settings} to=service/db");
        let Ok(Setting::Limits(limits)) = read("outbound-breaker", &value) else {
            panic!("{value}")
        };
        limits[0].breaker().unwrap().ejectable(endpoints)
    };
    assert_eq!(ejectable("", 4), None);
    assert_eq!(ejectable("max-ejected=50%", 4), Some(2));
    assert_eq!(ejectable("max-ejected=50%", 5), Some(2));
    assert_eq!(ejectable("max-ejected=10%", 4), Some(1));
    assert_eq!(ejectable("min-health=50%", 5), Some(2));
    assert_eq!(ejectable("min-health=99%", 1), Some(1));
    assert_eq!(ejectable("max-ejected=100%", 3), Some(3));
}
