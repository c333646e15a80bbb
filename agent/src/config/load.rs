//! The file itself: read as a whole, within reason, as UTF-8.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Nobody writes a larger one by hand, and whoever generates one has made a mistake.
const LARGEST: u64 = 4 << 20;

/// Why a file could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The system refused.
    #[error("{}: the file cannot be read; check that it exists and who may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Larger than any node file.
    #[error("{}: the file is larger than {LARGEST} bytes; expected a node file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not UTF-8.
    #[error("{}:{line}: the file is not UTF-8 here; expected a text file", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line of the first bad byte.
        line: usize,
    },
}

/// Reads a file's text.
pub fn load(path: &Path) -> Result<String, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let before = error.as_bytes().get(..good).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        LoadError::NotText { path: path.to_owned(), line }
    })
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fs};

    use super::*;

    #[test]
    fn what_cannot_be_read_is_said_with_its_name() {
        let folder = std::env::temp_dir().join(format!("weir-load-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("node.yaml");

        let error = load(&path).unwrap_err();
        assert!(error.to_string().contains("node.yaml"), "{error}");
        assert!(error.source().is_some());
        assert!(matches!(load(&folder), Err(LoadError::Unreadable { .. })), "a folder");

        fs::write(&path, b"a: 1\nb: \xff\n").unwrap();
        assert!(matches!(load(&path), Err(LoadError::NotText { line: 2, .. })));
        fs::write(&path, "x".repeat((LARGEST + 1) as usize)).unwrap();
        assert!(matches!(load(&path), Err(LoadError::TooLarge { .. })));
        fs::write(&path, "workloads: []\n").unwrap();
        assert_eq!(load(&path).unwrap(), "workloads: []\n");
        fs::remove_dir_all(&folder).unwrap();
    }
}
