//! Pieces of a value's text, each with its place in it.

use super::{
    fault::{Fault, ValueError},
    rate::{MAX_WINDOW, Period},
};

/// A piece of the value and where it starts.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) text: &'a str,
    /// Characters from 1.
    pub(super) column: u32,
}

impl<'a> Part<'a> {
    pub(super) fn fault(self, fault: Fault) -> ValueError {
        /// A quote is for finding the place, not for repeating a novel.
        const LONGEST: usize = 60;
        let mut quote: String = self.text.chars().take(LONGEST).collect();
        if quote.len() < self.text.len() {
            quote.push('…');
        }
        ValueError { fault, quote, column: self.column }
    }

    /// The part from this byte on.
    pub(super) fn from(self, byte: usize) -> Self {
        let (before, text) = self.text.split_at_checked(byte).unwrap_or((self.text, ""));
        Self { text, column: self.column.saturating_add(columns(before)) }
    }

    /// Without the blanks around it.
    pub(super) fn trim(self) -> Self {
        let start = self.text.len() - self.text.trim_start().len();
        let part = self.from(start);
        part.until(part.text.trim_end().len())
    }

    pub(super) fn until(self, byte: usize) -> Self {
        Self { text: self.text.get(..byte).unwrap_or(self.text), ..self }
    }

    pub(super) fn split_once(self, separator: char) -> Option<(Self, Self)> {
        let byte = self.text.find(separator)?;
        Some((self.until(byte), self.from(byte + separator.len_utf8())))
    }
}

fn columns(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

/// The parts between separators, without empty ones.
pub(super) fn split<'a>(
    whole: Part<'a>,
    separator: impl Fn(char) -> bool,
) -> impl Iterator<Item = Part<'a>> {
    let mut rest = whole;
    std::iter::from_fn(move || {
        let start = rest.text.find(|letter| !separator(letter))?;
        let word = rest.from(start);
        let end = word.text.find(&separator).unwrap_or(word.text.len());
        rest = word.from(end);
        Some(word.until(end))
    })
}

pub(super) fn words(whole: Part<'_>) -> impl Iterator<Item = Part<'_>> {
    split(whole, char::is_whitespace)
}

/// A time like `s` or `60s`; `around` is quoted when there is none.
pub(super) fn period(part: Part<'_>, around: Part<'_>) -> Result<Period, ValueError> {
    if part.text.is_empty() {
        return Err(around.fault(Fault::NoPeriod));
    }
    let digits = part.text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = (part.until(digits), part.from(digits));
    let scale = match unit.text {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        other => {
            let blamed = if other.is_empty() { part } else { unit };
            return Err(blamed.fault(Fault::UnknownUnit { meant: meant_unit(other) }));
        }
    };
    let too_slow = || part.fault(Fault::TooSlow { hours: MAX_WINDOW.whole_hours() });
    let count: u64 = match count.text {
        "" => 1,
        digits => digits.parse().map_err(|_| too_slow())?,
    };
    let millis = count.checked_mul(scale).ok_or_else(too_slow)?;
    let period = Period::from_millis(millis).ok_or_else(|| part.fault(Fault::Zero))?;
    if period > MAX_WINDOW { Err(too_slow()) } else { Ok(period) }
}

fn meant_unit(written: &str) -> Option<&'static str> {
    match written.to_lowercase().as_str() {
        "s" | "sec" | "secs" | "second" | "seconds" => Some("s"),
        "m" | "min" | "mins" | "minute" | "minutes" => Some("m"),
        "h" | "hr" | "hrs" | "hour" | "hours" => Some("h"),
        "ms" | "msec" | "millis" | "milliseconds" => Some("ms"),
        _ => None,
    }
}
