//! Values: the text behind a key, read and printed.
//!
//! The grammar, with blanks between words:
//!
//! ```text
//! limit    = rate option* ["shadow"]              connections, connections-per-source
//!          | N option* ["shadow"]                 max-connections, …-per-source, max-handshakes
//!          | option+ ["shadow"]                   breaker
//!          | bandwidth option* ["shadow"]         connection-, ingress-, egress-bandwidth
//!          | N ["k" | "M"] "/" [N] unit option* ["shadow"]    packets
//!          | "domain=" NAME (KEY "=" VALUE)+ ["shadow"]       quota
//! limits   = limit (";" limit)*                   outbound-connections, outbound-breaker
//! rate     = N "/" [N] unit | N "per" [N] unit
//! unit     = "ms" | "s" | "m" | "min" | "h"
//! bandwidth = N [prefix] ("bit/s" | "B/s")
//! prefix   = "k" | "M" | "G" | "T" | "P" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi"
//! option   = "burst=" N [prefix] "B"             of a bandwidth
//!          | "burst=" N                          of packets
//!          | "burst=" N | "refill=" ("smooth" | "step")      of a rate
//!          | "group=/" N ",/" N                   connections-per-source, max-…-per-source
//!          | "to=" (CIDR | "service/" NAME)       outbound-connections, outbound-breaker
//!          | "errors=" N | "error-ratio=" N "%" | "min-volume=" N | "interval=" N unit
//!          | "connect-timeout=" N unit | "ejection=" N unit | "max-ejection=" N unit
//!          | "probes=" N | "half-open=" ("on" | "off")
//!          | "http1=" ("on" | "off")              of a breaker
//!          | "min-health=" N "%" | "max-ejected=" N "%"      outbound-breaker to a service
//! exempt   = CIDR (("," | blank) CIDR)*
//! on-limit = "reset" | "drop"
//! mode     = "enforce" | "shadow"
//! ```

use std::{fmt, num::NonZeroU32};

use serde::Serialize;
use weir_common::{gcra::Refill, load};

use super::{
    bandwidth::{self, Bandwidth},
    breaker::{self, Breaker},
    fault::{Fault, ValueError},
    key::{KeyKind, LimitKind},
    part::{Part, period, split, words},
    peer::{Cidr, Group, To},
    quota::Quota,
    rate::{
        Bucket, MAX_BURST, MAX_PER_SECOND, MAX_SOURCE_PER_SECOND, MAX_SOURCE_WINDOW, MAX_TOKENS,
        MAX_WINDOW, Period, Rate,
    },
    suggest::nearest,
};

/// Whether limits refuse, or only count what they would refuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Counted and reported, not refused.
    Shadow,
    /// Refused.
    #[default]
    Enforce,
}

impl Mode {
    const WORDS: &[&str] = &["enforce", "shadow"];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How a connection is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLimit {
    /// With a RST: the client knows at once.
    #[default]
    Reset,
    /// In silence: the client tries again.
    Drop,
}

impl OnLimit {
    const WORDS: &[&str] = &["reset", "drop"];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Drop => "drop",
        }
    }
}

impl fmt::Display for OnLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a limit admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Terms {
    /// So many a while.
    Bucket(Bucket),
    /// So many at once.
    AtOnce(NonZeroU32),
    /// As long as they do not fail.
    Breaker(Breaker),
    /// So many bytes a while.
    Bandwidth(Bandwidth),
    /// What the quota of this name admits.
    Quota(Quota),
}

impl Terms {
    /// What admits no more than either. Of two breakers or quotas neither is stricter: the
    /// first one stays.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Bucket(a), Self::Bucket(b)) => Self::Bucket(a.stricter(b)),
            (Self::AtOnce(a), Self::AtOnce(b)) => Self::AtOnce(a.min(b)),
            (Self::Bandwidth(a), Self::Bandwidth(b)) => Self::Bandwidth(a.stricter(b)),
            (first, _) => first,
        }
    }
}

impl fmt::Display for Terms {
    /// As they would be written; defaults are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bucket(bucket) => bucket.fmt(f),
            Self::AtOnce(number) => number.fmt(f),
            Self::Breaker(breaker) => breaker.fmt(f),
            Self::Bandwidth(bandwidth) => bandwidth.fmt(f),
            Self::Quota(quota) => quota.fmt(f),
        }
    }
}

/// One entry of a limit: what it admits, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Limit {
    /// What it admits.
    #[serde(flatten)]
    pub terms: Terms,
    /// How sources are told apart; of limits per source only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// The destinations it holds for, `None` for all; of outbound limits only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<To>,
    /// Whether it was written with the word `shadow`.
    pub shadow: bool,
}

impl Limit {
    /// Its bucket, if it is a rate.
    pub const fn bucket(&self) -> Option<Bucket> {
        match self.terms {
            Terms::Bucket(bucket) => Some(bucket),
            _ => None,
        }
    }

    /// Its bandwidth, if it limits bytes.
    pub const fn bandwidth(&self) -> Option<Bandwidth> {
        match self.terms {
            Terms::Bandwidth(bandwidth) => Some(bandwidth),
            _ => None,
        }
    }

    /// How many it admits at once, if it limits that.
    pub const fn at_once(&self) -> Option<NonZeroU32> {
        match self.terms {
            Terms::AtOnce(number) => Some(number),
            _ => None,
        }
    }

    /// Its breaker, if it is one.
    pub const fn breaker(&self) -> Option<Breaker> {
        match self.terms {
            Terms::Breaker(breaker) => Some(breaker),
            _ => None,
        }
    }
}

impl fmt::Display for Limit {
    /// As it would be written; defaults are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.terms)?;
        if let Some(group) = self.group.filter(|group| *group != Group::default()) {
            write!(f, " group={group}")?;
        }
        if let Some(to) = self.to {
            write!(f, " to={to}")?;
        }
        if self.shadow {
            f.write_str(" shadow")?;
        }
        Ok(())
    }
}

/// What a key was set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Of a limit: one entry, or of an outbound one an entry for each destination.
    Limits(Vec<Limit>),
    /// Of `on-limit`.
    OnLimit(OnLimit),
    /// Of `mode`.
    Mode(Mode),
    /// Of `exempt`.
    Exempt(Vec<Cidr>),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn join<T: fmt::Display>(
            items: &[T],
            separator: &str,
            f: &mut fmt::Formatter<'_>,
        ) -> fmt::Result {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    f.write_str(separator)?;
                }
                item.fmt(f)?;
            }
            Ok(())
        }
        match self {
            Self::Limits(limits) => join(limits, "; ", f),
            Self::OnLimit(on_limit) => on_limit.fmt(f),
            Self::Mode(mode) => mode.fmt(f),
            Self::Exempt(peers) => join(peers, ", ", f),
        }
    }
}

/// Reads the value of a key.
pub(super) fn parse(kind: KeyKind, text: &str) -> Result<Setting, ValueError> {
    match kind {
        KeyKind::Limit(kind) => limits(kind, text).map(Setting::Limits),
        KeyKind::Mode => match choice(text, Mode::WORDS)? {
            "shadow" => Ok(Setting::Mode(Mode::Shadow)),
            _ => Ok(Setting::Mode(Mode::Enforce)),
        },
        KeyKind::OnLimit => match choice(text, OnLimit::WORDS)? {
            "drop" => Ok(Setting::OnLimit(OnLimit::Drop)),
            _ => Ok(Setting::OnLimit(OnLimit::Reset)),
        },
        KeyKind::Exempt => parse_exempt(text).map(Setting::Exempt),
    }
}

/// Reads a lone bucket, as the node file has them for probes and resets: a rate and `burst=`.
pub fn parse_bucket(text: &str) -> Result<Bucket, ValueError> {
    // `connections` has no options of its own, so its reader refuses all that a bucket lacks.
    let whole = Part { text, column: 1 };
    let (bucket, options) = bucket(LimitKind::Connections, whole)?;
    let refused = [(options.shadow, "shadow"), (bucket.refill() == Refill::Step, "refill=step")];
    for (is_set, word) in refused {
        if is_set {
            let at = words(whole).find(|part| part.text == word).unwrap_or(whole);
            return Err(at.fault(Fault::ForeignOption { belongs_to: "connections" }));
        }
    }
    Ok(bucket)
}

/// Reads one network or address.
pub fn parse_cidr(text: &str) -> Result<Cidr, ValueError> {
    Cidr::parse(text).map_err(|fault| Part { text, column: 1 }.fault(fault))
}

fn choice(text: &str, accepted: &'static [&'static str]) -> Result<&'static str, ValueError> {
    let whole = Part { text, column: 1 };
    let mut words = words(whole);
    let Some(word) = words.next() else {
        return Err(whole.fault(Fault::NotOneOf { words: accepted, meant: None }));
    };
    if let Some(found) = accepted.iter().find(|one| **one == word.text) {
        return match words.next() {
            None => Ok(found),
            Some(more) => Err(more.fault(Fault::NotOneOf { words: accepted, meant: None })),
        };
    }
    let meant = nearest(&word.text.to_lowercase(), accepted.iter().copied());
    Err(word.fault(Fault::NotOneOf { words: accepted, meant }))
}

fn parse_exempt(text: &str) -> Result<Vec<Cidr>, ValueError> {
    let whole = Part { text, column: 1 };
    let separator = |letter: char| letter == ',' || letter.is_whitespace();
    let peers = split(whole, separator)
        .map(|part| Cidr::parse(part.text).map_err(|fault| part.fault(fault)))
        .collect::<Result<Vec<_>, _>>()?;
    if peers.is_empty() {
        return Err(whole.fault(Fault::Empty { expected: "addresses or CIDRs like 10.0.0.0/8" }));
    }
    Ok(peers)
}

fn limits(kind: LimitKind, text: &str) -> Result<Vec<Limit>, ValueError> {
    let mut found: Vec<Limit> = Vec::new();
    let mut rest = Some(Part { text, column: 1 });
    while let Some(part) = rest {
        let entry = match part.split_once(';') {
            Some((entry, after)) => {
                if !kind.is_outbound() {
                    let byte = part.text.find(';').unwrap_or(0);
                    return Err(part.from(byte).until(1).fault(Fault::NoList));
                }
                rest = Some(after);
                entry
            }
            None => {
                rest = None;
                part
            }
        };
        let is_list = rest.is_some() || !found.is_empty();
        if is_list && entry.text.trim().is_empty() {
            return Err(entry.fault(Fault::EmptyEntry));
        }
        let limit = limit(kind, entry)?;
        if found.iter().any(|earlier| earlier.to == limit.to) {
            let written = words(entry).find(|word| word.text.starts_with("to="));
            return Err(written.unwrap_or(entry).fault(Fault::SameDestination));
        }
        found.push(limit);
    }
    Ok(found)
}

/// The options of one entry, with the place of those that can fail later.
#[derive(Default)]
struct Options<'a> {
    /// Of a bandwidth, in bytes.
    size: Option<(u64, Part<'a>)>,
    burst: Option<(NonZeroU32, Part<'a>)>,
    refill: Option<(Refill, Part<'a>)>,
    group: Option<Group>,
    to: Option<To>,
    breaker: breaker::Written<'a>,
    shadow: bool,
}

fn limit(kind: LimitKind, entry: Part<'_>) -> Result<Limit, ValueError> {
    let (terms, options) = match kind {
        LimitKind::Connections
        | LimitKind::ConnectionsPerSource
        | LimitKind::OutboundConnections => {
            let (bucket, options) = bucket(kind, entry)?;
            (Terms::Bucket(bucket), options)
        }
        LimitKind::MaxConnections
        | LimitKind::MaxConnectionsPerSource
        | LimitKind::MaxHandshakes => {
            let mut words = words(entry);
            let number = at_once(kind, entry, words.next())?;
            (Terms::AtOnce(number), options(kind, words)?)
        }
        LimitKind::Breaker | LimitKind::OutboundBreaker => {
            if entry.text.trim().is_empty() {
                let expected = "settings like `errors=5 ejection=30s`";
                return Err(entry.fault(Fault::Empty { expected }));
            }
            let mut options = options(kind, words(entry))?;
            let written = std::mem::take(&mut options.breaker);
            if let Some(bound) = written.of_service()
                && options.to.and_then(To::service).is_none()
            {
                return Err(bound.fault(Fault::BoundWithoutService));
            }
            if let Some(word) = written.shared()
                && options.to.is_none()
            {
                return Err(word.fault(Fault::SharedWithoutDestination));
            }
            let breaker = written.finish(entry)?;
            (Terms::Breaker(breaker), options)
        }
        LimitKind::ConnectionBandwidth
        | LimitKind::IngressBandwidth
        | LimitKind::EgressBandwidth => {
            let mut words = words(entry);
            let Some(first) = words.next() else {
                return Err(entry.fault(Fault::Empty { expected: "a bandwidth like `80Mbit/s`" }));
            };
            let bits = bandwidth::rate(first)?;
            let options = options(kind, words)?;
            (Terms::Bandwidth(bandwidth::join(bits, options.size, first)?), options)
        }
        LimitKind::Packets => {
            let (bucket, options) = packets(entry)?;
            (Terms::Bucket(bucket), options)
        }
        LimitKind::Quota => {
            let (quota, shadow) = Quota::parse(entry)?;
            (Terms::Quota(quota), Options { shadow, ..Options::default() })
        }
    };
    let group = kind.is_per_source().then(|| options.group.unwrap_or_default());
    Ok(Limit { terms, group, to: options.to, shadow: options.shadow })
}

fn bucket(kind: LimitKind, entry: Part<'_>) -> Result<(Bucket, Options<'_>), ValueError> {
    let mut words = words(entry);
    let (rate, written) = rate(entry, &mut words)?;
    let options = options(kind, words)?;
    let per_source = kind.is_per_source();
    let (fastest, longest) = if per_source {
        (MAX_SOURCE_PER_SECOND, MAX_SOURCE_WINDOW)
    } else {
        (MAX_PER_SECOND, MAX_WINDOW)
    };
    if rate.exceeds(fastest) {
        return Err(written.fault(Fault::TooFast { per_source }));
    }
    let plain = Bucket::of(rate);
    let refill = options.refill.map_or(Refill::Smooth, |(refill, _)| refill);
    let bucket = Bucket::unchecked(rate, options.burst.map(|(burst, _)| burst), refill);
    if bucket.slower_than(longest) {
        // The burst is to blame if the rate alone would have done.
        let blamed = options.burst.filter(|_| !plain.slower_than(longest));
        let at = blamed.map_or(written, |(_, at)| at);
        return Err(at.fault(Fault::TooSlow { hours: longest.whole_hours() }));
    }
    if bucket.overflows() {
        let at = options.burst.map_or(written, |(_, at)| at);
        return Err(at.fault(Fault::StepOverflows { tokens: rate.tokens() }));
    }
    Ok((bucket, options))
}

/// A rate of packets: one a second at least, and a burst of 50 ms and at least a packet that the
/// kernel cuts into 64.
fn packets(entry: Part<'_>) -> Result<(Bucket, Options<'_>), ValueError> {
    const LEAST_BURST: u32 = 64;
    let kind = LimitKind::Packets;
    let mut words = words(entry);
    let Some(first) = words.next() else {
        return Err(entry.fault(Fault::Empty { expected: "a rate like `50k/s`" }));
    };
    let (number, time) = first.split_once('/').ok_or_else(|| first.fault(Fault::NoPeriod))?;
    let (digits, scale) = match number.text.as_bytes() {
        [.., b'k'] => (number.until(number.text.len() - 1), 1000),
        [.., b'M'] => (number.until(number.text.len() - 1), 1_000_000),
        _ => (number, 1),
    };
    let tokens =
        tokens(digits, false)?.checked_mul(NonZeroU32::new(scale).unwrap_or(NonZeroU32::MIN));
    let tokens = tokens.filter(|tokens| tokens.get() <= MAX_TOKENS);
    let tokens = tokens.ok_or_else(|| number.fault(Fault::too_many_tokens(false)))?;
    let rate = Rate::unchecked(tokens, period(time, first)?);
    let options = options(kind, words)?;
    if rate.exceeds(MAX_PER_SECOND) {
        return Err(first.fault(Fault::TooFast { per_source: false }));
    }
    if Rate::unchecked(NonZeroU32::MIN, Period::SECOND).speed(rate).is_gt() {
        return Err(first.fault(Fault::PacketsTooSlow));
    }
    let default = || ((rate.per_second() / 20.0) as u32).max(LEAST_BURST);
    let burst = options.burst.map_or_else(default, |(burst, _)| burst.get());
    let bucket = Bucket::unchecked(rate, NonZeroU32::new(burst), Refill::Smooth);
    if bucket.slower_than(PACKETS_WINDOW) {
        let at = options.burst.map_or(first, |(_, at)| at);
        return Err(at.fault(Fault::TooSlow { hours: PACKETS_WINDOW.whole_hours() }));
    }
    Ok((bucket, options))
}

/// Longest time to fill the bucket of `packets`.
const PACKETS_WINDOW: Period = Period::hours(1);

/// The number that a limit on what is open at once starts with.
fn at_once(
    kind: LimitKind,
    entry: Part<'_>,
    number: Option<Part<'_>>,
) -> Result<NonZeroU32, ValueError> {
    let Some(number) = number else {
        return Err(entry.fault(Fault::Empty { expected: "a number of connections like `500`" }));
    };
    if !number.text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(number.fault(Fault::NotACount));
    }
    let max = most_at_once(kind);
    match number.text.parse::<u32>() {
        Ok(count) if u64::from(count) <= max => {
            NonZeroU32::new(count).ok_or_else(|| number.fault(Fault::Zero))
        }
        _ => Err(number.fault(Fault::TooLarge { max })),
    }
}

/// As many as the kernel can count.
const fn most_at_once(kind: LimitKind) -> u64 {
    match kind {
        LimitKind::MaxHandshakes => load::MAX_HANDSHAKES,
        _ => load::MAX_CONNECTIONS,
    }
}

fn options<'a>(
    kind: LimitKind,
    words: impl Iterator<Item = Part<'a>>,
) -> Result<Options<'a>, ValueError> {
    let mut options = Options::default();
    for word in words {
        option(kind, word, &mut options)?;
    }
    Ok(options)
}

fn option<'a>(
    kind: LimitKind,
    word: Part<'a>,
    options: &mut Options<'a>,
) -> Result<(), ValueError> {
    if options.shadow {
        return Err(word.fault(Fault::AfterShadow));
    }
    if word.text == "shadow" {
        options.shadow = true;
        return Ok(());
    }
    let (name, value) = word.split_once('=').unwrap_or((word, word.from(word.text.len())));
    let known = OPTIONS.into_iter().chain(breaker::OPTIONS);
    let has_value = name.text.len() < word.text.len();
    let Some(option) =
        known.clone().find(|known| has_value && known.trim_end_matches('=') == name.text)
    else {
        return Err(word.fault(unknown(kind, name.text, known)));
    };
    if !takes(kind, option) {
        return Err(word.fault(Fault::ForeignOption { belongs_to: owner(kind, option) }));
    }
    let repeated = |is_set: bool| {
        if is_set { Err(word.fault(Fault::Repeated)) } else { Ok(()) }
    };
    match name.text {
        "burst" if kind.is_bandwidth() => {
            repeated(options.size.is_some())?;
            options.size = Some((bandwidth::size(value)?, word));
        }
        "burst" => {
            repeated(options.burst.is_some())?;
            options.burst = Some((tokens(value, true)?, word));
        }
        "refill" => {
            const WORDS: &[&str] = &["smooth", "step"];
            repeated(options.refill.is_some())?;
            let refill = match value.text {
                "smooth" => Refill::Smooth,
                "step" => Refill::Step,
                other => {
                    let meant = nearest(other, WORDS.iter().copied());
                    return Err(value.fault(Fault::NotOneOf { words: WORDS, meant }));
                }
            };
            options.refill = Some((refill, word));
        }
        "group" => {
            repeated(options.group.is_some())?;
            options.group = Some(Group::parse(value.text).map_err(|fault| value.fault(fault))?);
        }
        "to" => {
            repeated(options.to.is_some())?;
            options.to = Some(To::parse(value.text).map_err(|fault| value.fault(fault))?);
        }
        name => options.breaker.set(name, value, word)?,
    }
    Ok(())
}

/// The options that are no breaker's alone, as they start.
const OPTIONS: [&str; 4] = ["burst=", "refill=", "group=", "to="];

/// Whether the key has the option.
fn takes(kind: LimitKind, option: &str) -> bool {
    match option {
        "burst=" => kind.is_rate() || kind.is_volume(),
        "refill=" => kind.is_rate(),
        "group=" => kind.is_per_source(),
        "to=" => kind.is_outbound(),
        option if breaker::OUTBOUND.contains(&option) => kind == LimitKind::OutboundBreaker,
        _ => kind.is_breaker(),
    }
}

/// A key that has the option, the nearest to the one that has not.
fn owner(kind: LimitKind, option: &str) -> &'static str {
    let owner = match option {
        "burst=" | "refill=" => LimitKind::Connections,
        "group=" if kind.is_rate() || kind.is_volume() => LimitKind::ConnectionsPerSource,
        "group=" => LimitKind::MaxConnectionsPerSource,
        "to=" if kind.is_breaker() => LimitKind::OutboundBreaker,
        "to=" => LimitKind::OutboundConnections,
        option if breaker::OUTBOUND.contains(&option) => LimitKind::OutboundBreaker,
        _ => LimitKind::Breaker,
    };
    owner.name()
}

fn unknown(
    kind: LimitKind,
    written: &str,
    known: impl Iterator<Item = &'static str> + Clone,
) -> Fault {
    let all = match kind {
        _ if kind.is_breaker() => {
            "errors=N, error-ratio=N%, min-volume=N, interval=T, connect-timeout=T, ejection=T, \
             max-ejection=T, probes=N, half-open=on|off, http1=on|off, to=CIDR|service/NAME \
             and scope=workload|node (outbound), min-health=N%, max-ejected=N% (to a service) or \
             shadow"
        }
        _ if kind.is_bandwidth() => "burst=SIZE (like 1MB) or shadow",
        LimitKind::Packets => "burst=N or shadow",
        _ if kind.is_rate() => {
            "burst=N, refill=smooth|step, group=/N,/M (per source), to=CIDR|service/NAME \
             (outbound) or shadow"
        }
        _ => "group=/N,/M (per source) or shadow",
    };
    let known = known.filter(|option| takes(kind, option)).chain(["shadow"]);
    let name = |option: &'static str| option.trim_end_matches('=');
    let bare = known.clone().find(|option| name(option) == written);
    let near = || {
        let near = nearest(written, known.clone().map(name))?;
        known.clone().find(|option| name(option) == near)
    };
    Fault::UnknownOption { takes: all, meant: bare.or_else(near) }
}

/// The rate at the start of an entry, and where it stands.
fn rate<'a>(
    entry: Part<'a>,
    words: &mut impl Iterator<Item = Part<'a>>,
) -> Result<(Rate, Part<'a>), ValueError> {
    let Some(first) = words.next() else {
        return Err(entry.fault(Fault::Empty { expected: "a rate like `100/s` or `1 per 60s`" }));
    };
    let starts_a_number = |letter: char| letter.is_ascii_digit() || "+-.,".contains(letter);
    if let Some((number, time)) = first.split_once('/')
        && first.text.starts_with(starts_a_number)
    {
        let number = tokens(number, false)?;
        return Ok((Rate::unchecked(number, period(time, first)?), first));
    }
    let is_number = first.text.bytes().all(|byte| byte.is_ascii_digit());
    match words.next() {
        Some(per) if per.text == "per" => {
            let number = tokens(first, false)?;
            let time = words.next().ok_or_else(|| per.fault(Fault::NoPeriod))?;
            Ok((Rate::unchecked(number, period(time, time)?), first))
        }
        _ if is_number => Err(first.fault(Fault::NoPeriod)),
        _ => Err(first.fault(Fault::NotARate)),
    }
}

fn tokens(part: Part<'_>, burst: bool) -> Result<NonZeroU32, ValueError> {
    let max = if burst { MAX_BURST } else { MAX_TOKENS };
    if part.text.is_empty() || !part.text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(part.fault(Fault::NotANumber));
    }
    let number: u32 = match part.text.parse() {
        Ok(number) if number <= max => number,
        _ => return Err(part.fault(Fault::too_many_tokens(burst))),
    };
    NonZeroU32::new(number).ok_or_else(|| part.fault(Fault::Zero))
}

#[cfg(test)]
#[path = "value_tests.rs"]
mod tests;
