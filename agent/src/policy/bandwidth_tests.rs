use proptest::prelude::*;

use super::*;
use crate::policy::{Key, Setting, Terms};

fn value(key: &str, text: &str) -> Result<Setting, ValueError> {
    Key::parse(key).unwrap().parse_value(text)
}

fn bandwidth(text: &str) -> Bandwidth {
    let Setting::Limits(limits) = value("egress-bandwidth", text).unwrap() else { panic!() };
    let Terms::Bandwidth(bandwidth) = limits[0].terms else { panic!("{text}") };
    bandwidth
}

#[test]
fn units_say_bits_or_bytes() {
    for (text, bits, burst) in [
        ("80Mbit/s burst=1MB", 80_000_000, 1_000_000),
        ("80Mbit/s", 80_000_000, 2_500_000),
        ("10MB/s", 80_000_000, 2_500_000),
        ("1Gbit/s burst=64KiB", 1_000_000_000, 65_536),
        ("100kbit/s", 100_000, 15_140),
        ("1MiB/s", 8 << 20, (1 << 20) / 4),
        ("12112bit/s", 12_112, 15_140),
        ("1Pbit/s", MAX_BITS, MAX_BITS / 32),
    ] {
        let bandwidth = bandwidth(text);
        assert_eq!((bandwidth.bits(), bandwidth.burst()), (bits, burst), "{text}");
    }
}

#[test]
fn bad_bandwidths_are_refused_with_the_reason() {
    for (text, what, expected) in [
        ("", "empty", "80Mbit/s"),
        ("80M", "unit", "`80Mbit/s`"),
        ("80", "unit", "`80bit/s`"),
        ("80Mbps", "unit", "`80Mbit/s`"),
        ("80Mb/s", "unit", "`80Mbit/s`"),
        ("100mbit/s", "unit", "`100Mbit/s`"),
        ("-80Mbit/s", "bandwidth", "bit/s"),
        ("1.5Gbit/s", "bandwidth", "bit/s"),
        ("Mbit/s", "bandwidth", "bit/s"),
        ("0Mbit/s", "zero", "1 or more"),
        ("12111bit/s", "too low", "12112bit/s"),
        ("1513B/s", "too low", "12112bit/s"),
        ("2Pbit/s", "too high", "1Pbit/s"),
        ("99999999999999999999Gbit/s", "too high", "1Pbit/s"),
        ("80Mbit/s burst=1M", "size", "`1MB`"),
        ("80Mbit/s burst=1500B", "smaller than a packet", "1514B"),
        ("80Mbit/s burst=0MB", "zero", "1 or more"),
        ("80Mbit/s burst=999999999999GB", "large", "hour"),
        ("12112bit/s burst=6MB", "large", "hour"),
        ("80Mbit/s burst=1MB burst=1MB", "twice", "once"),
        ("80Mbit/s refill=step", "does not belong", "connections"),
        ("80Mbit/s; 80Mbit/s", "one entry", "one entry"),
        ("80Mbit/s group=/24,/64", "does not belong", "connections-per-source"),
    ] {
        let error = value("ingress-bandwidth", text).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn packets_are_a_rate_with_a_short_burst() {
    for (text, printed) in [
        ("50k/s", "50000/s burst=2500"),
        ("50000/s burst=2500", "50000/s burst=2500"),
        ("2M/s burst=1000", "2000000/s burst=1000"),
        ("100/s", "100/s burst=64"),
        ("60/1m", "60/m burst=64"),
    ] {
        assert_eq!(value("packets", text).unwrap().to_string(), printed, "{text}");
    }
    for (text, what) in [
        ("59/1m", "packet a second"),
        ("1/2s", "packet a second"),
        ("11M/s", "too high"),
        ("0/s", "zero"),
        ("50K/s", "whole number"),
        ("5k", "time"),
        ("100/s burst=1k", "whole number"),
        ("100/s refill=step", "does not belong"),
        ("1/s burst=3601", "too long"),
    ] {
        let error = value("packets", text).unwrap_err().to_string();
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[test]
fn kubernetes_quantities_are_bits() {
    for (text, bits) in [
        ("10M", 10_000_000),
        ("1Gi", 1 << 30),
        ("1.5G", 1_500_000_000),
        ("13k", 13_000),
        ("20000", 20_000),
        ("1e6", 1_000_000),
        ("12E3", 12_000),
        ("+1M", 1_000_000),
        ("20000000m", 20_000),
        ("1P", MAX_BITS),
        (".5M", 500_000),
    ] {
        let expected = Bandwidth::new(bits, None);
        match expected {
            Some(expected) => assert_eq!(parse_kubernetes(text), Ok(expected), "{text}"),
            // Kubernetes takes it, but it is less than a frame a second.
            None => assert!(parse_kubernetes(text).is_err(), "{text}"),
        }
    }
    for text in [
        "", "0", "-1M", "999", "2P", "1Ei", "10Mbit/s", "1 M", "M", "1e", "1e999", ".", "1..2M",
        "١M",
    ] {
        assert!(parse_kubernetes(text).is_err(), "{text}");
    }
}

#[test]
fn the_stricter_has_the_lower_rate_and_the_lower_burst() {
    let strict = bandwidth("80Mbit/s burst=1MB").stricter(bandwidth("1Gbit/s burst=64KiB"));
    assert_eq!(strict.to_string(), "80Mbit/s burst=64KiB");
    let strict = bandwidth("80Mbit/s").stricter(bandwidth("1Gbit/s"));
    assert_eq!(strict.to_string(), "80Mbit/s");
}

proptest! {
    #[test]
    fn what_is_printed_reads_the_same(bits in MIN_BITS..MAX_BITS, burst in prop::option::of(FRAME..1 << 30)) {
        if let Some(bandwidth) = Bandwidth::new(bits, burst) {
            prop_assert_eq!(self::bandwidth(&bandwidth.to_string()), bandwidth);
        }
    }

    #[test]
    fn any_text_is_a_quantity_or_an_error(text in "[0-9.eEkMGPim+-]{0,24}") {
        if let Err(error) = parse_kubernetes(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
