//! Breakers as a person writes them: `errors=5 ejection=30s`.
//!
//! What is not written has a default, and what contradicts itself is refused, so a [`Breaker`] always
//! has something that trips it and a way back.

use std::{fmt, num::NonZeroU16};

use serde::{Serialize, Serializer};
use weir_common::breaker::Params;

use super::{
    fault::{Fault, ValueError},
    part::{Part, period},
    rate::Period,
};

/// Most consecutive failures that can be asked for.
pub const MAX_ERRORS: u16 = 1023;
/// Most probes of one half-open breaker.
pub const MAX_PROBES: u16 = 63;
/// Longest time to wait for an answer: the kernel counts it in 20 bits of milliseconds, and this is
/// the last whole minute.
pub const MAX_TIMEOUT: Period = Period::minutes(17);
/// Longest ejection and interval: 28 bits of milliseconds, to the last whole hour.
pub const MAX_EJECTION: Period = Period::hours(74);

/// When nothing is written.
const MIN_VOLUME: NonZeroU16 = NonZeroU16::new(20).unwrap();
const INTERVAL: Period = Period::seconds(10);
const CONNECT_TIMEOUT: Period = Period::seconds(10);
const EJECTION: Period = Period::seconds(30);
const LONGEST_EJECTION: Period = Period::seconds(300);
const PROBES: NonZeroU16 = NonZeroU16::MIN;

/// What trips a breaker, and how it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Breaker {
    /// Consecutive failures that trip it; `None` for never.
    pub errors: Option<NonZeroU16>,
    /// The share of failures that trips it; `None` for never.
    pub error_ratio: Option<Ratio>,
    /// The window of the ratio, and how long no failure makes it forget one ejection.
    pub interval: Period,
    /// Without an answer for so long, an attempt has failed.
    pub connect_timeout: Period,
    /// How long it stays open the first time.
    pub ejection: Period,
    /// How long it stays open at most; never shorter than `ejection`.
    pub max_ejection: Period,
    /// Connections that try it when it is half-open; `None` closes it at once.
    pub probes: Option<NonZeroU16>,
    /// Whether responses of HTTP/1 are read: 5xx is a failure.
    pub http1: bool,
    /// Of a service's endpoints, so many in a hundred must not be ejected.
    pub min_health: Option<NonZeroU16>,
    /// Of a service's endpoints, so many in a hundred may be ejected at once.
    pub max_ejected: Option<NonZeroU16>,
    /// Whose failures open it.
    pub scope: Scope,
}

/// Whose failures open a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The workload's own.
    #[default]
    Workload,
    /// Those of any two workloads of the node, too.
    Node,
}

impl Breaker {
    /// As the kernel knows it.
    pub fn params(&self) -> Params {
        // The bounds here keep every time within 32 bits of milliseconds.
        let millis = |time: Period| u32::try_from(time.millis()).unwrap_or(u32::MAX);
        let ratio = self.error_ratio;
        Params {
            timeout_ms: millis(self.connect_timeout),
            ejection_ms: millis(self.ejection),
            max_ejection_ms: millis(self.max_ejection),
            interval_ms: millis(self.interval),
            errors: self.errors.map_or(0, |errors| errors.get().into()),
            error_ratio: ratio.map_or(0, |ratio| ratio.percent.get().into()),
            min_volume: ratio.map_or(1, |ratio| ratio.min_volume.get().into()),
            probes: self.probes.map_or(0, |probes| probes.get().into()),
        }
    }

    /// Of so many endpoints of a service, how many may be ejected at once: one always; `None` for all.
    pub fn ejectable(&self, endpoints: usize) -> Option<usize> {
        let spared = self.min_health.map(|percent| 100 - percent.get().min(100));
        let ejected = self.max_ejected.map(NonZeroU16::get);
        let percent = spared.into_iter().chain(ejected).min()?;
        Some((endpoints * usize::from(percent) / 100).max(1))
    }
}

/// A share of failures among enough verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ratio {
    /// Failures in a hundred, 1 to 100.
    pub percent: NonZeroU16,
    /// Verdicts in the window before the share counts.
    pub min_volume: NonZeroU16,
}

impl Ratio {
    /// The highest share, in per cent, that so many failures in a row let happen at all.
    ///
    /// Of `n` verdicts without `errors` failures in a row at most `n - n / errors` failed. The share
    /// is highest just before the next success is due, and lower for every longer stretch.
    fn highest_below(self, errors: NonZeroU16) -> u32 {
        let errors = u32::from(errors.get());
        let verdicts = (u32::from(self.min_volume.get()) + 1).next_multiple_of(errors) - 1;
        let failures = verdicts - verdicts / errors;
        failures * 100 / verdicts
    }
}

impl fmt::Display for Breaker {
    /// As it would be written; defaults are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        words.extend(self.errors.map(|errors| format!("errors={errors}")));
        if let Some(Ratio { percent, min_volume }) = self.error_ratio {
            words.push(format!("error-ratio={percent}%"));
            if min_volume != MIN_VOLUME {
                words.push(format!("min-volume={min_volume}"));
            }
        }
        let times = [
            ("interval", self.interval, INTERVAL),
            ("connect-timeout", self.connect_timeout, CONNECT_TIMEOUT),
            ("ejection", self.ejection, EJECTION),
            ("max-ejection", self.max_ejection, LONGEST_EJECTION.max(self.ejection)),
        ];
        let written = times.into_iter().filter(|(_, time, default)| time != default);
        words.extend(written.map(|(name, time, _)| format!("{name}={time}")));
        match self.probes {
            Some(probes) if probes == PROBES => {}
            Some(probes) => words.push(format!("probes={probes}")),
            None => words.push("half-open=off".to_owned()),
        }
        if self.http1 {
            words.push("http1=on".to_owned());
        }
        if self.scope == Scope::Node {
            words.push("scope=node".to_owned());
        }
        let bounds = [("min-health", self.min_health), ("max-ejected", self.max_ejected)];
        words.extend(
            bounds
                .into_iter()
                .filter_map(|(name, percent)| percent.map(|percent| format!("{name}={percent}%"))),
        );
        f.write_str(&words.join(" "))
    }
}

impl Serialize for Breaker {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A setting and the word it was written with.
type Setting<'a, T> = Option<(T, Part<'a>)>;

/// What is written of a breaker so far.
#[derive(Default)]
pub(super) struct Written<'a> {
    errors: Setting<'a, NonZeroU16>,
    error_ratio: Setting<'a, NonZeroU16>,
    min_volume: Setting<'a, NonZeroU16>,
    interval: Setting<'a, Period>,
    connect_timeout: Setting<'a, Period>,
    ejection: Setting<'a, Period>,
    max_ejection: Setting<'a, Period>,
    probes: Setting<'a, NonZeroU16>,
    half_open: Setting<'a, bool>,
    http1: Setting<'a, bool>,
    min_health: Setting<'a, NonZeroU16>,
    max_ejected: Setting<'a, NonZeroU16>,
    scope: Setting<'a, Scope>,
}

/// The settings of a breaker, as they start.
pub(super) const OPTIONS: [&str; 13] = [
    "errors=",
    "error-ratio=",
    "min-volume=",
    "interval=",
    "connect-timeout=",
    "ejection=",
    "max-ejection=",
    "probes=",
    "half-open=",
    "http1=",
    "min-health=",
    "max-ejected=",
    "scope=",
];

/// Those of them that are about destinations.
pub(super) const OUTBOUND: [&str; 3] = ["min-health=", "max-ejected=", "scope="];

impl<'a> Written<'a> {
    /// Takes a setting in; `word` is all of it. Only for names of [`OPTIONS`].
    pub(super) fn set(
        &mut self,
        name: &str,
        value: Part<'a>,
        word: Part<'a>,
    ) -> Result<(), ValueError> {
        match name {
            "errors" => put(&mut self.errors, word, || whole(name, value, word, MAX_ERRORS)),
            "error-ratio" => put(&mut self.error_ratio, word, || percent(name, value, word, 100)),
            "min-volume" => put(&mut self.min_volume, word, || whole(name, value, word, u16::MAX)),
            "interval" => put(&mut self.interval, word, || time(name, value, word, MAX_EJECTION)),
            "connect-timeout" => {
                put(&mut self.connect_timeout, word, || time(name, value, word, MAX_TIMEOUT))
            }
            "ejection" => put(&mut self.ejection, word, || time(name, value, word, MAX_EJECTION)),
            "max-ejection" => {
                put(&mut self.max_ejection, word, || time(name, value, word, MAX_EJECTION))
            }
            "probes" => put(&mut self.probes, word, || whole(name, value, word, MAX_PROBES)),
            "half-open" => put(&mut self.half_open, word, || switch(value)),
            "min-health" => put(&mut self.min_health, word, || percent(name, value, word, 99)),
            "max-ejected" => put(&mut self.max_ejected, word, || percent(name, value, word, 100)),
            "scope" => put(&mut self.scope, word, || scope(value)),
            _ => put(&mut self.http1, word, || switch(value)),
        }
    }

    /// The first setting that is about the endpoints of a service.
    pub(super) fn of_service(&self) -> Option<Part<'a>> {
        let settings = [self.min_health, self.max_ejected];
        settings.into_iter().flatten().map(|(_, word)| word).next()
    }

    /// The setting by which other workloads' failures open it: both must mean the same destination.
    pub(super) fn shared(&self) -> Option<Part<'a>> {
        self.scope.filter(|(scope, _)| *scope == Scope::Node).map(|(_, word)| word)
    }

    /// The breaker, if its settings agree.
    pub(super) fn finish(self, entry: Part<'_>) -> Result<Breaker, ValueError> {
        let value = |setting: &Setting<'_, Period>, default| setting.map_or(default, |(it, _)| it);
        if let (None, None) = (self.errors, self.error_ratio) {
            return Err(entry.trim().fault(Fault::NoCriterion));
        }
        if let (Some((_, at)), None) = (self.min_volume, self.error_ratio) {
            return Err(at.fault(Fault::VolumeWithoutRatio));
        }
        let min_volume = self.min_volume.map_or(MIN_VOLUME, |(it, _)| it);
        let ratio = self.error_ratio.map(|(percent, at)| (Ratio { percent, min_volume }, at));
        if let (Some((errors, _)), Some((ratio, at))) = (self.errors, ratio) {
            let highest = ratio.highest_below(errors);
            if u32::from(ratio.percent.get()) > highest {
                return Err(at.fault(Fault::RatioWithoutEffect { errors: errors.get(), highest }));
            }
        }
        let ejection = value(&self.ejection, EJECTION);
        let max_ejection = match self.max_ejection {
            Some((longest, at)) if longest < ejection => {
                return Err(at.fault(Fault::EjectionAboveMax { ejection }));
            }
            Some((longest, _)) => longest,
            None => LONGEST_EJECTION.max(ejection),
        };
        let probes = match (self.half_open, self.probes) {
            (Some((false, _)), Some((_, at))) => {
                return Err(at.fault(Fault::ProbesWithoutHalfOpen));
            }
            (Some((false, _)), None) => None,
            (_, probes) => Some(probes.map_or(PROBES, |(it, _)| it)),
        };
        if let (Some((health, at)), Some((ejected, other))) = (self.min_health, self.max_ejected) {
            // One of them is as good as not written, unless both say the same.
            let spared = 100 - health.get();
            let (at, stricter) = match ejected.get() {
                ejected if ejected < spared => (at, format!("max-ejected={ejected}%")),
                ejected if ejected > spared => (other, format!("min-health={health}%")),
                _ => (at, String::new()),
            };
            if !stricter.is_empty() {
                return Err(at.fault(Fault::BoundWithoutEffect { stricter }));
            }
        }
        Ok(Breaker {
            errors: self.errors.map(|(it, _)| it),
            error_ratio: ratio.map(|(it, _)| it),
            interval: value(&self.interval, INTERVAL),
            connect_timeout: value(&self.connect_timeout, CONNECT_TIMEOUT),
            ejection,
            max_ejection,
            probes,
            http1: self.http1.is_some_and(|(on, _)| on),
            min_health: self.min_health.map(|(it, _)| it),
            max_ejected: self.max_ejected.map(|(it, _)| it),
            scope: self.scope.map_or(Scope::Workload, |(it, _)| it),
        })
    }
}

fn put<'a, T>(
    setting: &mut Setting<'a, T>,
    word: Part<'a>,
    value: impl FnOnce() -> Result<T, ValueError>,
) -> Result<(), ValueError> {
    if setting.is_some() {
        return Err(word.fault(Fault::Repeated));
    }
    *setting = Some((value()?, word));
    Ok(())
}

/// A whole number from 1 to `most`.
fn whole(name: &str, value: Part<'_>, word: Part<'_>, most: u16) -> Result<NonZeroU16, ValueError> {
    let number = digits(value.text).filter(|number| number.get() <= most);
    number.ok_or_else(|| bad(word, format!("{name}=N with a whole number from 1 to {most}")))
}

fn digits(text: &str) -> Option<NonZeroU16> {
    // `parse` alone would take "+5".
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A percentage from 1 to `most`.
fn percent(
    name: &str,
    value: Part<'_>,
    word: Part<'_>,
    most: u16,
) -> Result<NonZeroU16, ValueError> {
    let number = value.text.strip_suffix('%').and_then(digits);
    let percent = number.filter(|percent| percent.get() <= most);
    percent.ok_or_else(|| bad(word, format!("{name}=N% with a whole number from 1 to {most}")))
}

/// A time from 1ms to `most`.
fn time(name: &str, value: Part<'_>, word: Part<'_>, most: Period) -> Result<Period, ValueError> {
    let out_of_range = || bad(word, format!("{name}=T with a time from 1ms to {most}, like 30s"));
    if !value.text.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(out_of_range());
    }
    match period(value, value) {
        Ok(time) if time <= most => Ok(time),
        Err(error) if matches!(error.fault, Fault::UnknownUnit { .. }) => Err(error),
        _ => Err(out_of_range()),
    }
}

fn switch(value: Part<'_>) -> Result<bool, ValueError> {
    match value.text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(value.fault(Fault::NotOneOf { words: &["on", "off"], meant: None })),
    }
}

fn scope(value: Part<'_>) -> Result<Scope, ValueError> {
    match value.text {
        "workload" => Ok(Scope::Workload),
        "node" => Ok(Scope::Node),
        _ => Err(value.fault(Fault::NotOneOf { words: &["workload", "node"], meant: None })),
    }
}

fn bad(word: Part<'_>, expected: String) -> ValueError {
    word.fault(Fault::BadSetting { expected })
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
