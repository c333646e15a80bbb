//! `weir demo`: a lab, an agent, real load, and what the limits predicted next to what was seen.
//!
//! It owns the story and its end: whatever happens, also on Ctrl-C or panic, everything that it
//! made is gone before it returns. It refuses to know how an agent works: that is a program that
//! takes a node file and answers on a socket ([`StartAgent`]).

mod agent;
mod interrupt;
mod outage;
mod phase;
mod prediction;
mod script;
mod story;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitStatus,
};

pub use self::agent::{ChildAgent, Readiness, RunningAgent, Site, StartAgent};
use self::interrupt::Interrupt;
use crate::lab::{Lab, LabError, remains};

/// What the user asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long the load of the first act lasts, at least one second.
    pub seconds: u64,
    /// Whether to keep everything up afterwards, until Ctrl-C.
    pub hold: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { seconds: 8, hold: false }
    }
}

/// How the demo ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every limit admitted what it predicted.
    AsPredicted,
    /// One admitted more than it may, whatever the others did; which one was printed.
    More,
    /// None admitted more, but one fewer, or attempts were neither accepted nor refused. A host
    /// too busy for its clients can do that: what a full bucket would have got meanwhile is lost,
    /// and an open breaker does not wait for them.
    Fewer,
    /// Ctrl-C came before there was anything to compare.
    Interrupted,
}

impl Ending {
    /// Of two acts.
    const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Interrupted, _) | (_, Self::Interrupted) => Self::Interrupted,
            (Self::More, _) | (_, Self::More) => Self::More,
            (Self::Fewer, _) | (_, Self::Fewer) => Self::Fewer,
            (Self::AsPredicted, Self::AsPredicted) => Self::AsPredicted,
        }
    }

    /// For the shell.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::AsPredicted => 0,
            Self::More => 1,
            // Apart from every other failure: this one may be worth a second try.
            Self::Fewer => 4,
            // What a shell reports for a program that SIGINT ended.
            Self::Interrupted => 130,
        }
    }
}

/// Why there was no demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The network could not be made.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A socket, thread or file.
    #[error("cannot {step}")]
    Step {
        /// What was being done, as the end of "cannot ...".
        step: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Nobody reads any more.
    #[error("cannot print")]
    Print(#[from] io::Error),
    /// The agent is gone.
    #[error("the agent ended ({status}); the end of its log:\n{log}")]
    AgentEnded {
        /// How.
        status: ExitStatus,
        /// Its last words.
        log: String,
    },
    /// The agent does not become ready.
    #[error("the agent was not ready within {seconds} s: {answer}; the end of its log:\n{log}")]
    NotReady {
        /// How long it had.
        seconds: u64,
        /// What it last said on its socket.
        answer: String,
        /// Its last words.
        log: String,
    },
    /// The demo's own policy was not understood.
    #[error("the demo's line {line:?} is not understood: {problem}")]
    Policy {
        /// The line.
        line: String,
        /// Why.
        problem: String,
    },
    /// Cleaning up did not succeed.
    #[error("the demo could not remove {}", list(.0))]
    Remains(Vec<PathBuf>),
}

impl DemoError {
    fn step(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Step { step: step.into(), source }
    }
}

/// Runs the demo and prints it to `out`.
pub fn run(
    options: &Options,
    agent: &dyn StartAgent,
    out: &mut dyn Write,
) -> Result<Ending, DemoError> {
    let interrupt = Interrupt::listen().map_err(DemoError::step("listen for signals"))?;
    run_until(&interrupt, options, agent, out)
}

fn run_until(
    interrupt: &Interrupt,
    options: &Options,
    agent: &dyn StartAgent,
    out: &mut dyn Write,
) -> Result<Ending, DemoError> {
    let (id, told) = {
        let lab = Lab::new()?;
        let told = story::tell(&lab, options, agent, interrupt, out);
        (lab.id().to_owned(), told)
        // Here the lab goes, after all that stood on it.
    };
    let left = remains(&id);
    if !left.is_empty() {
        return Err(DemoError::Remains(left));
    }
    let ending = told?;
    writeln!(
        out,
        "Everything is removed again: the agent with its programs and pins, the namespaces, {}.",
        Path::new("/run").join(&id).display()
    )?;
    Ok(ending)
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

#[cfg(test)]
mod tests;
