//! What can go wrong while a lab is built.

use std::io;

/// A lab, or a part of it, could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The caller may not make network namespaces.
    #[error("network namespaces need root and CAP_SYS_ADMIN: run it as root, or with sudo")]
    NotPermitted(#[source] io::Error),
    /// A name that would not fit an interface or a file.
    #[error("{name:?} cannot name a part of the lab: expected 1 to {longest} of a-z, 0-9 and -")]
    Name {
        /// What was given.
        name: String,
        /// The most characters that leave room for what is put before it.
        longest: usize,
    },
    /// No address is left for another host.
    #[error("a node has room for {0} pods and clients")]
    Full(u8),
    /// The system refused a step.
    #[error("cannot {step}")]
    Step {
        /// What was being done, as the end of "cannot ...".
        step: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Adds what was being done to the system's answer.
pub(super) trait Doing<T> {
    /// `step` completes the sentence "cannot ...".
    fn doing(self, step: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, step: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|source| LabError::Step { step: step(), source: source.into() })
    }
}
