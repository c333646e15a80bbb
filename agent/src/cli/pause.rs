//! `weir pause`: enforcement off for a while, in an emergency.

use std::{io::Write, str::FromStr, time::Duration};

use clap::Args;

use super::{
    Answer, Asked, Exit,
    client::Question,
    error::CliError,
    look::{Look, count, duration},
    write_json,
};
use crate::app::view::{self, Paused};

/// The longest pause: whatever takes longer is a policy.
const LONGEST: u64 = 24 * 3600;

/// Refuse nothing for a while: count what would have been refused
///
/// The kernel ends the pause by itself, even without an agent; `weir resume` ends it earlier. To
/// stop enforcing for longer, write `mode: shadow` into the node file.
#[derive(Debug, Args)]
pub(super) struct Pause {
    #[command(flatten)]
    target: Target,
    /// For how long: 90s, 15m, 2h; at most 24h
    #[arg(long = "for", value_name = "TIME")]
    time: Time,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    answer: Answer,
}

/// Whose enforcement.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Target {
    /// The workload's name, as `weir status` shows it
    workload: Option<String>,
    /// Every workload of this node
    #[arg(long)]
    node: bool,
}

/// A length of time, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time(u64);

impl Time {
    pub(super) const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

/// Why a length of time was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TimeError {
    #[error("expected a number with a unit: 90s, 15m or 2h")]
    NotATime,
    #[error("expected more than no time; to end a pause: weir resume")]
    Zero,
    #[error("expected at most 24h; for longer, write `mode: shadow` into the node file")]
    TooLong,
}

impl FromStr for Time {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).ok_or(TimeError::NotATime)?;
        let unit = match unit {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            _ => return Err(TimeError::NotATime),
        };
        if number.is_empty() {
            return Err(TimeError::NotATime);
        }
        // A number that does not even fit is too long.
        let seconds = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
        match seconds {
            Some(0) => Err(TimeError::Zero),
            Some(seconds) if seconds <= LONGEST => Ok(Self(seconds)),
            _ => Err(TimeError::TooLong),
        }
    }
}

impl Pause {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let Time(seconds) = self.time;
        let look = Look::of_stdout();
        let until = (look.local)(look.now + seconds as f64);
        set(&self.asked, self.answer, self.target, seconds, out, |names| {
            let length = duration(seconds as f64);
            format!(
                "paused {names} for {length}, until {until}: everything is admitted, and counted"
            )
        })
    }
}

/// Asks for a pause, or with no seconds for its end, and tells what came of it.
pub(super) fn set(
    asked: &Asked,
    answer: Answer,
    target: Target,
    seconds: u64,
    out: &mut dyn Write,
    sentence: impl FnOnce(&str) -> String,
) -> Result<Exit, CliError> {
    let Target { workload, node } = target;
    // The command line wants one of the two.
    let workload = if node { None } else { workload };
    let pause = view::Pause { workload, seconds };
    let answered = asked.agent().ask::<Paused>(&Question::post("/pause", &pause))?;
    let Paused { workloads } = &answered.value;
    if answer.is_json() {
        write_json(out, &answered.raw)?;
    } else {
        match workloads.as_slice() {
            [] => writeln!(out, "there is no workload on this node")?,
            [one] => writeln!(out, "{}", sentence(one))?,
            many => {
                let number = count(many.len() as u64, "workload", "workloads");
                writeln!(out, "{}", sentence(&format!("{number} ({})", many.join(", "))))?;
            }
        }
    }
    Ok(Exit::ok_if(!workloads.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_has_a_unit_and_an_end() {
        for (text, expected) in [
            ("90s", Ok(90)),
            ("15m", Ok(900)),
            ("15min", Ok(900)),
            ("24h", Ok(86_400)),
            ("25h", Err(TimeError::TooLong)),
            ("99999999999999999999h", Err(TimeError::TooLong)),
            ("0s", Err(TimeError::Zero)),
            ("15", Err(TimeError::NotATime)),
            ("m", Err(TimeError::NotATime)),
            ("-1m", Err(TimeError::NotATime)),
            ("1.5h", Err(TimeError::NotATime)),
            ("1d", Err(TimeError::NotATime)),
            ("", Err(TimeError::NotATime)),
            ("1ä", Err(TimeError::NotATime)),
        ] {
            assert_eq!(text.parse::<Time>(), expected.map(Time), "{text}");
        }
    }
}
