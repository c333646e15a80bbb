//! Values: the text behind a key, read and printed.
//!
//! The grammar, with blanks between words:
//!
//! ```text
//! limit    = rate option* ["shadow"]              connections, connections-per-source
//! limits   = limit (";" limit)*                   outbound-connections
//! rate     = N "/" [N] unit | N "per" [N] unit
//! unit     = "ms" | "s" | "m" | "min" | "h"
//! option   = "burst=" N | "refill=" ("smooth" | "step")
//!          | "group=/" N ",/" N                   connections-per-source
//!          | "to=" CIDR                           outbound-connections
//! exempt   = CIDR (("," | blank) CIDR)*
//! on-limit = "reset" | "drop"
//! mode     = "enforce" | "shadow"
//! ```

use std::{fmt, num::NonZeroU32};

use serde::Serialize;
use weir_common::gcra::Refill;

use super::{
    fault::{Fault, ValueError},
    key::{KeyKind, LimitKind},
    part::{Part, period, split, words},
    peer::{Cidr, Group},
    rate::{
        Bucket, MAX_BURST, MAX_PER_SECOND, MAX_SOURCE_PER_SECOND, MAX_SOURCE_WINDOW, MAX_TOKENS,
        MAX_WINDOW, Rate,
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

/// One entry of a limit: a bucket, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Limit {
    /// The bucket.
    pub bucket: Bucket,
    /// How sources are told apart; of `connections-per-source` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// The destinations it holds for, `None` for all; of `outbound-connections` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Cidr>,
    /// Whether it was written with the word `shadow`.
    pub shadow: bool,
}

impl fmt::Display for Limit {
    /// As it would be written; defaults are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bucket)?;
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
    /// Of a limit: one entry, or for `outbound-connections` one for each destination.
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
    let limit = limit(LimitKind::Connections, Part { text, column: 1 })?;
    let refused =
        [(limit.shadow, "shadow"), (limit.bucket.refill() == Refill::Step, "refill=step")];
    for (is_set, word) in refused {
        if is_set {
            let at = words(Part { text, column: 1 }).find(|part| part.text == word);
            let at = at.unwrap_or(Part { text, column: 1 });
            return Err(at.fault(Fault::ForeignOption { belongs_to: "connections" }));
        }
    }
    Ok(limit.bucket)
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
                if kind != LimitKind::OutboundConnections {
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
    burst: Option<(NonZeroU32, Part<'a>)>,
    refill: Option<(Refill, Part<'a>)>,
    group: Option<Group>,
    to: Option<Cidr>,
    shadow: bool,
}

fn limit(kind: LimitKind, entry: Part<'_>) -> Result<Limit, ValueError> {
    let mut words = words(entry);
    let (rate, written) = rate(entry, &mut words)?;
    let mut options = Options::default();
    for word in words {
        option(kind, word, &mut options)?;
    }

    let per_source = kind == LimitKind::ConnectionsPerSource;
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
    let group = per_source.then(|| options.group.unwrap_or_default());
    Ok(Limit { bucket, group, to: options.to, shadow: options.shadow })
}

fn option<'a>(
    kind: LimitKind,
    word: Part<'a>,
    options: &mut Options<'a>,
) -> Result<(), ValueError> {
    const NAMES: [&str; 5] = ["burst=", "refill=", "group=", "to=", "shadow"];
    if options.shadow {
        return Err(word.fault(Fault::AfterShadow));
    }
    if word.text == "shadow" {
        options.shadow = true;
        return Ok(());
    }
    let (name, value) = word.split_once('=').unwrap_or((word, word.from(word.text.len())));
    let repeated = |is_set: bool| {
        if is_set { Err(word.fault(Fault::Repeated)) } else { Ok(()) }
    };
    let belongs = |to: LimitKind| {
        let foreign = Fault::ForeignOption { belongs_to: to.name() };
        if kind == to { Ok(()) } else { Err(word.fault(foreign)) }
    };
    let has_value = name.text.len() < word.text.len();
    match name.text {
        "burst" if has_value => {
            repeated(options.burst.is_some())?;
            options.burst = Some((tokens(value, true)?, word));
        }
        "refill" if has_value => {
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
        "group" if has_value => {
            belongs(LimitKind::ConnectionsPerSource)?;
            repeated(options.group.is_some())?;
            options.group = Some(Group::parse(value.text).map_err(|fault| value.fault(fault))?);
        }
        "to" if has_value => {
            belongs(LimitKind::OutboundConnections)?;
            repeated(options.to.is_some())?;
            options.to = Some(Cidr::parse(value.text).map_err(|fault| value.fault(fault))?);
        }
        written => {
            let bare = |option: &&'static str| option.trim_end_matches('=') == written;
            let near = || nearest(written, NAMES.map(|name| name.trim_end_matches('=')));
            let meant = NAMES.into_iter().find(bare).or_else(|| {
                near().and_then(|near| NAMES.into_iter().find(|name| name.starts_with(near)))
            });
            return Err(word.fault(Fault::UnknownOption { meant }));
        }
    }
    Ok(())
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
