//! systemd understands the unit, and finds that it gives up most of root's rights.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::files::text;

fn analyze() -> Result<PathBuf, String> {
    let program = Path::new("/usr/bin/systemd-analyze");
    if program.is_file() {
        Ok(program.to_owned())
    } else {
        Err("systemd-analyze is not on this machine".to_owned())
    }
}

/// Runs systemd-analyze on the unit: whether it is content, and what it says.
fn ask(analyze: &Path, words: &[&str], name: &str, unit: &str) -> (bool, String) {
    let folder = std::env::temp_dir().join(format!("weir-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("weir.service");
    fs::write(&path, unit).unwrap();
    let output = Command::new(analyze).args(words).arg(&path).output().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    (output.status.success(), said.concat())
}

/// With a program that is there: systemd looks.
fn unit() -> String {
    let unit = text("deploy/systemd/weir.service");
    let there = unit.replace("/usr/local/bin/weir", "/bin/true");
    assert_ne!(unit, there);
    there
}

#[test]
fn the_unit_is_understood() {
    let analyze = needs!(analyze());
    let (good, said) = ask(&analyze, &["verify", "--man=no"], "verify", &unit());
    assert!(good && !said.contains("weir.service"), "{said}");
    let wrong = unit().replace("ProtectSystem=strict", "ProtectSystem=much");
    let (_, said) = ask(&analyze, &["verify", "--man=no"], "verify-wrong", &wrong);
    assert!(said.contains("weir.service"), "{said}");
}

/// systemd's own measure: 10 for a service that may do everything, 0 for one that may do nothing.
#[test]
fn the_unit_is_hardened() {
    let analyze = needs!(analyze());
    let words = ["security", "--offline=true", "--threshold=40", "--no-pager"];
    let (good, said) = ask(&analyze, &words, "security", &unit());
    assert!(good, "{said}");
}
