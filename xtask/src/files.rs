//! Which files a release consists of and where each goes: in a tarball, in a Debian package, on
//! this host. Lists are pure; `place` writes them.

use std::{
    fs::{self, File, FileTimes},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

/// The program as the unit file names it.
const UNIT_PROGRAM: &str = "/usr/local/bin/weir";

/// The administrator's file. It is never written nor removed.
pub(crate) const NODE_FILE: &str = "etc/weir/node.yaml";
/// The example beside it.
pub(crate) const SAMPLE: &str = "etc/weir/node.sample.yaml";
/// The unit, as installed from source.
pub(crate) const UNIT: &str = "etc/systemd/system/weir.service";

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// What that file holds.
    Of(PathBuf),
    /// This text.
    Text(String),
}

/// A file of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Relative to where the release goes.
    pub(crate) to: PathBuf,
    pub(crate) content: Content,
    pub(crate) mode: u32,
}

impl Item {
    fn copy(from: PathBuf, to: impl Into<PathBuf>, mode: u32) -> Self {
        Self { to: to.into(), content: Content::Of(from), mode }
    }

    /// A file whose text is made here.
    pub(crate) fn text(text: String, to: impl Into<PathBuf>, mode: u32) -> Self {
        Self { to: to.into(), content: Content::Text(text), mode }
    }
}

/// Where the files come from.
pub(crate) struct Sources<'a> {
    /// The workspace.
    pub(crate) root: &'a Path,
    /// The built binary.
    pub(crate) weir: &'a Path,
}

impl Sources<'_> {
    fn unit(&self) -> PathBuf {
        self.root.join("deploy/systemd/weir.service")
    }

    fn sample(&self) -> PathBuf {
        self.root.join("deploy/node.sample.yaml")
    }

    fn papers(&self, folder: &str) -> Vec<Item> {
        ["LICENSE-APACHE", "LICENSE-MIT", "README.md"]
            .map(|name| Item::copy(self.root.join(name), format!("{folder}/{name}"), 0o644))
            .into()
    }

    /// The unit with the path of the program that it shall start.
    fn unit_for(&self, program: &str) -> Result<String> {
        let unit = self.unit();
        let text =
            fs::read_to_string(&unit).with_context(|| format!("cannot read {}", unit.display()))?;
        unit_with(&text, program)
    }

    /// The tarball: one folder of that name.
    pub(crate) fn tarball(&self, folder: &str) -> Vec<Item> {
        let mut items = self.papers(folder);
        items.push(Item::copy(self.weir.to_owned(), format!("{folder}/weir"), 0o755));
        items.push(Item::copy(self.unit(), format!("{folder}/weir.service"), 0o644));
        items.push(Item::copy(self.sample(), format!("{folder}/node.sample.yaml"), 0o644));
        items.sort_by(|a, b| a.to.cmp(&b.to));
        items
    }

    /// The Debian package, without its control files.
    pub(crate) fn deb(&self) -> Result<Vec<Item>> {
        let mut items = self.papers("usr/share/doc/weir");
        items.push(Item::copy(self.weir.to_owned(), "usr/bin/weir", 0o755));
        let unit = self.unit_for("/usr/bin/weir")?;
        items.push(Item::text(unit, "usr/lib/systemd/system/weir.service", 0o644));
        items.push(Item::copy(self.sample(), SAMPLE, 0o644));
        let copyright = self.root.join("deploy/debian/copyright");
        items.push(Item::copy(copyright, "usr/share/doc/weir/copyright", 0o644));
        Ok(items)
    }

    /// This host, or a folder that stands for its root. The sample is for those who have no node
    /// file yet.
    pub(crate) fn host(&self, prefix: &Path, has_node_file: bool) -> Result<Vec<Item>> {
        let program = program(prefix);
        let unit = self.unit_for(&program.display().to_string())?;
        let mut items = vec![
            Item::copy(self.weir.to_owned(), relative(&program), 0o755),
            Item::text(unit, UNIT, 0o644),
        ];
        if !has_node_file {
            items.push(Item::copy(self.sample(), SAMPLE, 0o644));
        }
        Ok(items)
    }
}

/// The program's path under a prefix.
pub(crate) fn program(prefix: &Path) -> PathBuf {
    prefix.join("bin/weir")
}

/// A path without its leading `/`, to be put below a folder.
pub(crate) fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn unit_with(text: &str, program: &str) -> Result<String> {
    if !text.contains(UNIT_PROGRAM) {
        bail!("weir.service does not name {UNIT_PROGRAM}, so its path cannot be changed");
    }
    Ok(text.replace(UNIT_PROGRAM, program))
}

/// Writes the files below a folder. A time makes them, and the folders made for them, all of that
/// age, for archives that come out the same each time.
pub(crate) fn place(items: &[Item], root: &Path, time: Option<Duration>) -> Result<()> {
    for item in items {
        let to = root.join(&item.to);
        make_folders(root, &item.to)?;
        // Written beside and renamed: a running program cannot be written to, but replaced.
        let mut beside = to.clone().into_os_string();
        beside.push(".new");
        match &item.content {
            Content::Of(from) => {
                fs::copy(from, &beside)
                    .with_context(|| format!("cannot copy {}", from.display()))?;
            }
            Content::Text(text) => fs::write(&beside, text)
                .with_context(|| format!("cannot write {}", to.display()))?,
        }
        fs::set_permissions(&beside, fs::Permissions::from_mode(item.mode))?;
        if let Some(time) = time {
            let when = SystemTime::UNIX_EPOCH + time;
            File::open(&beside)?.set_times(FileTimes::new().set_modified(when))?;
        }
        fs::rename(&beside, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

/// Makes the folders that a file lies in. New ones may be read by all, whatever the umask says.
fn make_folders(root: &Path, file: &Path) -> Result<()> {
    let mut folders: Vec<PathBuf> = file.ancestors().skip(1).map(|at| root.join(at)).collect();
    folders.reverse();
    for folder in folders {
        if !folder.exists() {
            fs::create_dir_all(&folder)
                .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(items: &[Item]) -> Vec<String> {
        items.iter().map(|item| item.to.display().to_string()).collect()
    }

    fn sources() -> Sources<'static> {
        Sources { root: Path::new("/src"), weir: Path::new("/built/weir") }
    }

    #[test]
    fn a_tarball_lists_its_files_in_one_order() {
        let items = sources().tarball("weir-1");
        assert_eq!(
            names(&items),
            [
                "weir-1/LICENSE-APACHE",
                "weir-1/LICENSE-MIT",
                "weir-1/README.md",
                "weir-1/node.sample.yaml",
                "weir-1/weir",
                "weir-1/weir.service",
            ]
        );
        let executable: Vec<&Item> = items.iter().filter(|item| item.mode & 0o111 != 0).collect();
        assert_eq!(executable.len(), 1);
        assert_eq!(executable[0].content, Content::Of(PathBuf::from("/built/weir")));
    }

    #[test]
    fn the_unit_starts_the_program_where_it_was_put() {
        let unit = "[Service]\nExecStart=/usr/local/bin/weir agent\n";
        assert!(unit_with(unit, "/opt/w/bin/weir").unwrap().contains("=/opt/w/bin/weir agent"));
        assert!(unit_with("ExecStart=/bin/other", "/usr/bin/weir").is_err());
    }

    #[test]
    fn no_list_has_the_administrators_node_file() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let sources = Sources { root, weir: Path::new("/built/weir") };
        let host = sources.host(Path::new("/usr/local"), false).unwrap();
        let lists = [names(&sources.deb().unwrap()), names(&host)];
        for list in lists {
            assert!(list.contains(&SAMPLE.to_owned()), "{list:?}");
            assert!(!list.contains(&NODE_FILE.to_owned()), "{list:?}");
        }
        let with_node_file = sources.host(Path::new("/usr/local"), true).unwrap();
        assert!(!names(&with_node_file).contains(&SAMPLE.to_owned()));
    }
}
