//! How numbers, times and texts look to people.

use std::{
    env,
    io::{self, IsTerminal as _},
};

use super::time;

/// What the looks depend on, besides what is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Whether there may be colours.
    pub(super) colours: bool,
    /// Seconds since 1970.
    pub(super) now: f64,
    /// A time as the reader's clock shows it.
    pub(super) local: fn(f64) -> String,
}

impl Look {
    /// As it should be on standard output.
    pub(super) fn of_stdout() -> Self {
        let colours =
            io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        Self { colours, now: time::now(), local: time::local }
    }

    /// How long ago.
    pub(super) fn ago(&self, time: f64) -> String {
        duration((self.now - time).max(0.0))
    }

    /// A text in the colour of what it means.
    pub(super) fn paint(&self, mood: Mood, text: &str) -> String {
        match mood.code() {
            Some(code) if self.colours && !text.is_empty() => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// What a text means to the reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    /// Nothing special.
    #[default]
    Plain,
    /// A title.
    Title,
    /// As it should be.
    Good,
    /// To be known.
    Notable,
    /// Not as it should be.
    Bad,
}

impl Mood {
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Title => Some("1"),
            Self::Good => Some("32"),
            Self::Notable => Some("33"),
            Self::Bad => Some("31"),
        }
    }

    /// The mood of a workload's condition.
    pub(super) fn of_condition(condition: &str) -> Self {
        match condition {
            "enforced" => Self::Good,
            "not-enforced" | "undecided" => Self::Bad,
            _ => Self::Notable,
        }
    }

    /// The mood of a verdict.
    pub(super) fn of_verdict(verdict: &str) -> Self {
        match verdict {
            "pass" => Self::Plain,
            "shadow" => Self::Notable,
            _ => Self::Bad,
        }
    }
}

/// A length of time in its two largest units: `0s`, `45s`, `3m12s`, `3h12m`, `2d4h`.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    let units = [(86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units {
        parts.push((rest / size, unit));
        rest %= size;
    }
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(parts.len() - 1);
    let shown = parts.iter().skip(first).take(2).enumerate();
    shown
        .filter(|(index, (count, _))| *index == 0 || *count > 0)
        .map(|(_, (count, unit))| format!("{count}{unit}"))
        .collect()
}

/// A number per second.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        rate if !rate.is_finite() || rate <= 0.0 => "0/s".to_owned(),
        rate if rate < 99.95 => format!("{rate:.1}/s"),
        rate => format!("{rate:.0}/s"),
    }
}

/// So many of something.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A limit's value, without what already stands in its name.
pub(super) fn value(limit: &str, value: &str) -> String {
    let told = |word: &&str| word.starts_with("to=") && limit.split(' ').any(|part| part == *word);
    let words: Vec<_> = value.split(' ').filter(|word| !told(word)).collect();
    words.join(" ")
}

/// A text that cannot change the terminal that shows it.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Without colours, at noon of the first day, UTC.
    pub(in super::super) const PLAIN: Look = Look { colours: false, now: 43_200.0, local: utc };

    fn utc(time: f64) -> String {
        let seconds = time as u64 % 86_400;
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }

    #[test]
    fn a_duration_is_its_two_largest_units() {
        for (seconds, text) in [
            (0.0, "0s"),
            (0.9, "0s"),
            (45.0, "45s"),
            (60.0, "1m"),
            (192.0, "3m12s"),
            (3600.0, "1h"),
            (3605.0, "1h"),
            (11_520.0, "3h12m"),
            (187_200.0, "2d4h"),
            (-1.0, "0s"),
            (f64::NAN, "0s"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn a_rate_has_a_decimal_where_it_matters() {
        for (per_second, text) in [
            (0.0, "0/s"),
            (0.5, "0.5/s"),
            (99.94, "99.9/s"),
            (99.96, "100/s"),
            (1234.5, "1234/s"),
            (f64::INFINITY, "0/s"),
        ] {
            assert_eq!(rate(per_second), text, "{per_second}");
        }
    }

    #[test]
    fn destinations_are_told_once() {
        let limit = "outbound-connections.443 to=10.0.0.0/8";
        assert_eq!(value(limit, "50/s to=10.0.0.0/8 shadow"), "50/s shadow");
        assert_eq!(value(limit, "50/s to=10.0.0.0/9"), "50/s to=10.0.0.0/9");
        assert_eq!(value("connections", "100/s burst=200"), "100/s burst=200");
    }

    #[test]
    fn colours_are_for_terminals_and_control_characters_for_nobody() {
        assert_eq!(PLAIN.paint(Mood::Bad, "reset"), "reset");
        let look = Look { colours: true, ..PLAIN };
        assert_eq!(look.paint(Mood::Bad, "reset"), "\x1b[31mreset\x1b[0m");
        assert_eq!(look.paint(Mood::Bad, ""), "");
        assert_eq!(clean("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
