//! Facts about this machine. It looks, and changes nothing.

use std::{
    env, fs,
    io::{self, IsTerminal as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// What setup has to know about the machine before it decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// Whether this is Debian itself; its derivatives name other versions of other packages.
    pub(crate) debian: bool,
    /// The system as it calls itself.
    pub(crate) name: String,
    /// Whether we are root.
    pub(crate) root: bool,
    /// Whether somebody can be asked.
    pub(crate) terminal: bool,
}

impl Host {
    /// Looks at this machine.
    pub(crate) fn look() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Self {
            debian: os_release(&release, "ID").as_deref() == Some("debian"),
            name: os_release(&release, "PRETTY_NAME")
                .unwrap_or_else(|| "an unknown system".to_owned()),
            root: is_root(),
            terminal: io::stdin().is_terminal() && io::stderr().is_terminal(),
        }
    }
}

/// Whether this process may do what only root may.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// A value of os-release(5).
fn os_release(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name == key).then(|| value.trim_matches(['"', '\'']).to_owned())
    })
}

/// Every executable of that name, in the order of PATH, then where administrators' tools live:
/// a user's PATH often lacks the sbin folders.
pub(crate) fn which_all(name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .filter(|file| is_executable(file))
        .collect()
}

/// Whether there is a command of that name.
pub(crate) fn has_command(name: &str) -> bool {
    !which_all(name).is_empty()
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The folder for what may be fetched or built again, by the XDG base directory rules.
pub(crate) fn cache_dir() -> PathBuf {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"))
        .join("weir")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_lose_their_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID='12'\nID=debian\n";
        assert_eq!(os_release(text, "ID").as_deref(), Some("debian"));
        assert_eq!(os_release(text, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(os_release(text, "ID_LIKE"), None);
    }

    #[test]
    fn commands_outside_a_users_path_are_found() {
        assert!(has_command("sh"));
        assert!(!has_command("a command that nobody has"));
    }
}
