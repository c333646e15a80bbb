//! `weir top`: who is asked, who refuses and by which limit, while it happens; and which descriptors
//! of rate limit requests are refused most.
//!
//! [`screen`] makes rates of two looks at the agent, [`view`] knows what the reader is looking at,
//! [`draw`] how that looks. Only [`terminal`] owns a terminal; without one there is a plain table.

mod draw;
mod screen;
mod terminal;
mod view;

use std::{
    io::{self, IsTerminal as _, Write},
    str::FromStr,
    thread,
    time::Duration,
};

use clap::Args;

use self::screen::{Screen, Snapshot};
use super::{
    Answer, Asked, Exit,
    client::{Agent, ClientError, Question},
    error::CliError,
    look::Look,
    time, write_json,
};

/// Watch workloads, limits and refusals as they change
///
/// Keys: q quits, j and k select a workload, enter shows its limits, s sorts, p freezes, ? helps.
/// Without a terminal it prints one table and ends; with `-o json` it prints one object in a line
/// for each interval, until Ctrl-C.
#[derive(Debug, Args)]
pub(super) struct Top {
    /// How often to look: 500ms, 1s, 1m
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: Interval,
    /// Look once, print and end
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    answer: Answer,
}

/// How often to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval(Duration);

/// Why an interval was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum IntervalError {
    #[error("expected a number with a unit: 500ms, 1s or 1m")]
    NotAnInterval,
    #[error("expected 100ms to 1h")]
    OutOfBounds,
}

impl FromStr for Interval {
    type Err = IntervalError;

    fn from_str(text: &str) -> Result<Self, IntervalError> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).ok_or(IntervalError::NotAnInterval)?;
        let unit = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(IntervalError::NotAnInterval),
        };
        if number.is_empty() {
            return Err(IntervalError::NotAnInterval);
        }
        let millis = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
        match millis {
            Some(millis @ 100..=3_600_000) => Ok(Self(Duration::from_millis(millis))),
            _ => Err(IntervalError::OutOfBounds),
        }
    }
}

impl Top {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let Interval(interval) = self.interval;
        let agent = self.asked.agent();
        // Whoever cannot be asked at first is not waited for.
        let first = look(&agent)?;
        if self.answer.is_json() {
            let screen = Screen::of(None, &first, time::now());
            if self.once {
                write_json(out, &screen)?;
            } else {
                stream(&agent, interval, first, &screen, out)?;
            }
        } else if self.once || !io::stdout().is_terminal() {
            let look = Look::of_stdout();
            let screen = Screen::of(None, &first, look.now);
            out.write_all(draw::plain(&screen, &look).as_bytes())?;
        } else {
            terminal::run(&agent, interval, first)?;
        }
        Ok(Exit::Ok)
    }
}

/// Asks for everything that is shown.
fn look(agent: &Agent) -> Result<Snapshot, ClientError> {
    let status = agent.ask(&Question::get("/status"))?.value;
    let recent = agent.ask(&Question::get("/recent"))?.value;
    // Where no rate limit requests are answered, none are refused.
    let refused_most = match agent.ask(&Question::get("/rls/refused")) {
        Ok(answered) => answered.value,
        Err(error) if error.is_refusal() => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(Snapshot { status, recent, refused_most })
}

/// One object in a line for each interval. A program that reads it is told of an agent that goes.
fn stream(
    agent: &Agent,
    interval: Duration,
    first: Snapshot,
    screen: &Screen,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut line = |screen: &Screen| -> Result<(), CliError> {
        serde_json::to_writer(&mut *out, screen).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    };
    line(screen)?;
    let mut before = first;
    loop {
        thread::sleep(interval);
        let now = look(agent)?;
        line(&Screen::of(Some(&before), &now, time::now()))?;
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_a_unit_and_bounds() {
        let millis = |millis| Ok(Interval(Duration::from_millis(millis)));
        for (text, expected) in [
            ("1s", millis(1000)),
            ("500ms", millis(500)),
            ("2m", millis(120_000)),
            ("1h", millis(3_600_000)),
            ("2h", Err(IntervalError::OutOfBounds)),
            ("10ms", Err(IntervalError::OutOfBounds)),
            ("0s", Err(IntervalError::OutOfBounds)),
            ("99999999999999999999s", Err(IntervalError::OutOfBounds)),
            ("1", Err(IntervalError::NotAnInterval)),
            ("s", Err(IntervalError::NotAnInterval)),
            ("", Err(IntervalError::NotAnInterval)),
            ("1ä", Err(IntervalError::NotAnInterval)),
        ] {
            assert_eq!(text.parse::<Interval>(), expected, "{text}");
        }
    }
}
