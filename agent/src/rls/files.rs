//! Quota files: which they are, whether they have changed, and what they say.
//!
//! A folder is read as Kubernetes mounts a ConfigMap: its files are symlinks by way of `..data`,
//! which is replaced in one step. Names that begin with a dot are not looked at. Whether anything
//! has changed is told by where the symlinks lead, so every way of changing a file is noticed
//! (written in place, renamed over, the folder's symlink swapped), and no event can be missed.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{config, quota::config::Source};

/// The texts of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Texts {
    /// Name and text, in the order of their names.
    pub(super) files: Vec<(String, String)>,
}

impl Texts {
    /// As they are read.
    pub(super) fn sources(&self) -> Vec<Source> {
        let source =
            |(file, text): &(String, String)| Source { file: file.clone(), text: text.clone() };
        self.files.iter().map(source).collect()
    }
}

/// Why files could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// A folder or file.
    #[error("{}: cannot be read; check that it exists and who may read it", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// One file.
    #[error(transparent)]
    File(#[from] config::LoadError),
}

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Files(pub(super) Vec<PathBuf>);

/// What tells one state of the files from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp(BTreeMap<PathBuf, Option<[i128; 4]>>);

impl Files {
    /// The state of the files. Nothing is opened.
    pub(super) fn stamp(&self) -> Stamp {
        let mut stamp = BTreeMap::new();
        for path in &self.0 {
            let paths = list(path).unwrap_or_else(|_| vec![path.clone()]);
            stamp.extend(paths.into_iter().map(|path| {
                let state = fs::metadata(&path).ok().map(|meta| {
                    let time =
                        i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
                    [meta.dev().into(), meta.ino().into(), time, meta.size().into()]
                });
                (path, state)
            }));
        }
        Stamp(stamp)
    }

    /// What they say.
    pub(super) fn read(&self) -> Result<Texts, FilesError> {
        let mut files = Vec::new();
        for path in &self.0 {
            let paths = list(path)
                .map_err(|source| FilesError::Unreadable { path: path.clone(), source })?;
            for path in paths {
                files.push((path.display().to_string(), config::load(&path)?));
            }
        }
        Ok(Texts { files })
    }
}

/// A file itself, or the files of a folder.
fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let is_hidden = entry.file_name().as_encoded_bytes().first() == Some(&b'.');
        // Behind a symlink too. What is gone by now is gone.
        let is_file = fs::metadata(entry.path()).is_ok_and(|meta| meta.is_file());
        if !is_hidden && is_file {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("weir-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        /// Puts a version there as the kubelet does: a folder, `..data`, and a symlink to each file.
        fn mount(&self, version: &str, text: &str) {
            let folder = self.0.join(format!("..{version}"));
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("config.yaml"), text).unwrap();
            symlink(format!("..{version}"), self.0.join("..data_tmp")).unwrap();
            fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
            let _ = symlink("..data/config.yaml", self.0.join("config.yaml"));
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_mounted_config_map_is_read_once_and_its_swap_is_seen() {
        let folder = Folder::new("configmap");
        folder.mount("one", "domain: a\n");
        let files = Files(vec![folder.0.clone()]);
        let texts = files.read().unwrap();
        let name = folder.0.join("config.yaml").display().to_string();
        assert_eq!(texts.files, [(name, "domain: a\n".to_owned())]);
        let before = files.stamp();
        assert_eq!(files.stamp(), before);
        // The same length, the same second: another file all the same.
        folder.mount("two", "domain: b\n");
        assert_ne!(files.stamp(), before);
        assert_eq!(files.read().unwrap().files[0].1, "domain: b\n");
    }

    #[test]
    fn files_that_come_and_go_are_seen() {
        let folder = Folder::new("come-and-go");
        let files = Files(vec![folder.0.clone(), folder.0.join(".overlay")]);
        let mut before = files.stamp();
        let mut changed = || {
            let now = files.stamp();
            std::mem::replace(&mut before, now.clone()) != now
        };
        fs::write(folder.0.join("a.yaml"), "x").unwrap();
        assert!(changed());
        fs::write(folder.0.join(".overlay"), "x").unwrap();
        assert!(changed());
        fs::write(folder.0.join(".hidden"), "x").unwrap();
        assert!(!changed());
        fs::remove_file(folder.0.join("a.yaml")).unwrap();
        assert!(changed());
    }

    #[test]
    fn what_cannot_be_read_is_said_with_its_name() {
        let files = Files(vec!["/nowhere/quotas".into()]);
        assert!(files.read().unwrap_err().to_string().starts_with("/nowhere/quotas: "));
    }
}
