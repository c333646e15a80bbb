//! How one attempt to connect ended.

use std::{borrow::Cow, io, time::Duration};

use nix::errno::Errno;

/// The end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Connected, and what was asked for came.
    Ok,
    /// Refused at once, by a RST: ECONNREFUSED.
    Refused,
    /// Connected, then reset: ECONNRESET or EPIPE.
    Reset,
    /// No answer in time.
    Timeout,
    /// Connected, but the peer closed before it had said what it should.
    Short,
    /// Another error, by its number.
    Error(i32),
}

impl Outcome {
    /// What an error of a socket means.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused,
            Some(Errno::ECONNRESET | Errno::EPIPE) => Self::Reset,
            Some(Errno::ETIMEDOUT) => Self::Timeout,
            Some(other) => Self::Error(other as i32),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Short,
            None => Self::Error(0),
        }
    }

    /// Its name in tables.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::Ok => "ok".into(),
            Self::Refused => "refused".into(),
            Self::Reset => "reset".into(),
            Self::Timeout => "timeout".into(),
            Self::Short => "short".into(),
            Self::Error(number) => format!("{:?}", Errno::from_raw(number)).into(),
        }
    }
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// How it ended.
    pub outcome: Outcome,
    /// From the first SYN to the answer that decided: the connection, the refusal, the error.
    pub connect: Duration,
    /// Bytes of payload received.
    pub bytes: u64,
}
