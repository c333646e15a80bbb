//! Tests that need more than this machine gives say so, where it is counted.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
};

use super::namespace;

/// Notes that `test` did not run: one line for people, and one in the file that `WEIR_SKIP_FILE`
/// names, from which a test run counts what it skipped.
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let Some(path) = env::var_os("WEIR_SKIP_FILE") else {
        return;
    };
    if let Err(error) = note(Path::new(&path), test, reason) {
        eprintln!("cannot note it in {}: {error}", Path::new(&path).display());
    }
}

fn note(path: &Path, test: &str, reason: &str) -> io::Result<()> {
    let line = format!("{test}: {reason}\n");
    // One write, so that the lines of parallel tests do not mix.
    OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}

/// Whether labs can be made here; if not, `test` is skipped for that reason.
///
/// ```no_run
/// # fn the_test() {
/// if !weir::lab::privileged("a_refused_syn_is_counted") { return }
/// # }
/// ```
#[must_use]
pub fn privileged(test: &str) -> bool {
    match namespace::may_create() {
        Ok(()) => true,
        Err(error) => {
            skip(test, &error.to_string());
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_skipped_test_has_its_line() {
        let path = env::temp_dir().join(format!("weir-skipped-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        note(&path, "one", "not root").unwrap();
        note(&path, "other", "no IPv6").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one: not root\nother: no IPv6\n");
        fs::remove_file(&path).unwrap();
    }
}
