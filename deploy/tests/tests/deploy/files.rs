//! Where the shipped files are, and how they are read.

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a workspace").to_owned()
}

/// A file of the workspace.
pub(crate) fn text(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("it is YAML");
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// The files that the chart is rendered into.
pub(crate) fn rendered() -> Vec<PathBuf> {
    let folder = root().join("deploy/kustomize");
    let entries = fs::read_dir(folder).expect("kustomizations");
    let files = entries.map(|entry| entry.expect("an entry").path().join("weir.yaml"));
    let mut files: Vec<_> = files.filter(|path| path.is_file()).collect();
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    files
}

/// The object of this kind in a rendered file.
pub(crate) fn object(kustomization: &str, kind: &str) -> Value {
    let text = text(format!("deploy/kustomize/{kustomization}/weir.yaml"));
    let found = documents(&text).into_iter().find(|document| document["kind"] == kind);
    found.unwrap_or_else(|| panic!("{kustomization} has no {kind}"))
}

/// A program that `cargo xtask test` brought, or why it is not there.
pub(crate) fn tool(variable: &str) -> Result<PathBuf, String> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| {
        env::var("WEIR_HELM_LACKS")
            .unwrap_or_else(|_| format!("{variable} is not set: run it by `cargo xtask test`"))
    })
}

/// The agent: `WEIR_BIN`, else the release build, if it is there.
pub(crate) fn agent() -> Result<PathBuf, String> {
    let built = || root().join("target/release/weir");
    let agent = env::var_os("WEIR_BIN").map_or_else(built, PathBuf::from);
    if agent.is_file() {
        Ok(agent)
    } else {
        Err(format!("no agent at {}: run `cargo xtask build`", agent.display()))
    }
}

/// Notes that a test did not run, where a test run counts what it skipped.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    if let Some(path) = env::var_os("WEIR_SKIP_FILE") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let line = format!("{test}: {reason}\n");
        file.expect("open the list").write_all(line.as_bytes()).expect("write to the list");
    }
}

/// Runs a program at the root of the workspace: whether it succeeded, what it printed, and its
/// errors.
pub(crate) fn run(program: &Path, args: &[&str]) -> (bool, String, String) {
    let output = Command::new(program).current_dir(root()).args(args).output().expect("run it");
    let text = |bytes| String::from_utf8(bytes).expect("it prints text");
    (output.status.success(), text(output.stdout), text(output.stderr))
}
