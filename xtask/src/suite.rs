//! Runs all tests and says truly how it ended. Knows the runners, not the tests.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Read, Write},
    path::PathBuf,
    process::{self, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    envoy, host, kube_tools, say,
    setup::Consent,
    summary::{Counts, Runner, Total, skips},
    vm,
    workspace::{Workspace, read, shown},
};

/// What to run.
pub(crate) struct Selection {
    /// Without the suite that boots another kernel.
    pub(crate) no_vm: bool,
    /// What to hand to the runner.
    pub(crate) args: Vec<String>,
}

/// Runs the tests of the workspace and prints the closing line. Returns whether all is well.
pub(crate) fn run(workspace: &Workspace, consent: Consent, selection: &Selection) -> Result<bool> {
    if !host::is_root() {
        say::step(
            "test",
            "not root: tests that load BPF programs or make namespaces will be skipped",
        );
    }
    let skip_file = SkipFile::new(workspace)?;
    let mut environment: Vec<(&str, OsString)> = vec![
        ("WEIR_SKIP_FILE", skip_file.0.clone().into()),
        // For tests that start the agent as users do.
        ("WEIR_BIN", workspace.weir_for_tests().into()),
    ];
    let packages = packages(&selection.args);
    if packages.is_empty() || packages.contains(&vm::SUITE) {
        environment.extend(vm::environment(workspace, consent, selection.no_vm));
        environment.push(envoy::environment(consent));
    }
    if packages.is_empty() || packages.contains(&kube_tools::SUITE) {
        environment.extend(kube_tools::environment(consent));
    }

    let nextest = read(workspace.cargo().args(["nextest", "--version"])).is_ok();
    let runner = if nextest { Runner::Nextest } else { Runner::Cargo };
    let mut runs = vec![(runner, tests(workspace, runner, &selection.args))];
    // nextest cannot run doc tests. A filter is meant for tests, so it leaves these out.
    if nextest && selection.args.is_empty() {
        runs.push((Runner::Cargo, doc_tests(workspace)));
    }
    let mut counts = Counts::default();
    let mut good = true;
    for (runner, mut command) in runs {
        command.envs(environment.iter().cloned());
        say::step("test", shown(&command));
        let (success, counted) = run_counting(&mut command, runner)?;
        good &= success;
        counts.add(counted);
    }

    let skips = skips(&fs::read_to_string(&skip_file.0).unwrap_or_default());
    for (name, reason) in &skips {
        say::note(format!("skipped: {name}: {reason}"));
    }
    let selected = !selection.args.is_empty();
    let total = Total::of(counts, skips.len(), selected);
    if counts.left_out > 0 {
        let why = if selected { "not selected, or ignored" } else { "marked #[ignore]" };
        say::note(format!("{} left out by the runner: {why}", counts.left_out));
    }
    if !good && total.failed == 0 {
        say::note("the runner failed, though no test did: see above");
    }
    println!("{total}");
    Ok(good && total.failed == 0)
}

/// The packages that are named for the runner: `-p x`, `-px`, `--package x` or `--package=x`.
fn packages(args: &[String]) -> Vec<&str> {
    let mut args = args.iter().map(String::as_str).take_while(|arg| *arg != "--");
    let mut packages = Vec::new();
    while let Some(arg) = args.next() {
        let written = arg.strip_prefix("--package").or_else(|| arg.strip_prefix("-p"));
        match written {
            Some("") => packages.extend(args.next()),
            Some(name) => packages.push(name.trim_start_matches('=')),
            None => {}
        }
    }
    packages
}

fn tests(workspace: &Workspace, runner: Runner, args: &[String]) -> Command {
    let mut command = workspace.cargo();
    match runner {
        Runner::Nextest => command.args(["nextest", "run"]),
        Runner::Cargo => command.arg("test"),
    };
    // It writes into a pipe, and we into the terminal.
    if io::stderr().is_terminal() {
        command.args(["--color", "always"]);
    }
    // Who names packages wants those and no others.
    if packages(args).is_empty() {
        // Without its own compiler the BPF crate does not build for the host.
        command.args(["--workspace", "--exclude", "weir-ebpf"]);
    }
    command.arg("--no-fail-fast").args(args);
    command
}

fn doc_tests(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo();
    command.args(["test", "--quiet", "--doc", "--workspace", "--exclude", "weir-ebpf"]);
    command.arg("--no-fail-fast");
    command
}

/// Runs a command with its output shown as it comes, and counts along.
fn run_counting(command: &mut Command, runner: Runner) -> Result<(bool, Counts)> {
    let counts = Mutex::new(Counts::default());
    let count = |line: &str| {
        counts.lock().unwrap_or_else(PoisonError::into_inner).read(runner, line);
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("{} has no output to read", shown(command));
    };
    let (out, err) = thread::scope(|scope| {
        let out = scope.spawn(|| pass_on(stdout, io::stdout(), count));
        let err = pass_on(stderr, io::stderr(), count);
        (out.join(), err)
    });
    match out {
        Ok(out) => out?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    err?;
    let success = child.wait()?.success();
    Ok((success, counts.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

fn pass_on(from: impl Read, mut to: impl Write, read: impl Fn(&str)) -> Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    // Bytes, not text: a test may print anything.
    while from.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        to.flush()?;
        read(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(())
}

/// The file that skipping tests write to; each run has its own.
struct SkipFile(PathBuf);

impl SkipFile {
    fn new(workspace: &Workspace) -> Result<Self> {
        fs::create_dir_all(&workspace.target)?;
        let path = workspace.target.join(format!("skipped-tests-{}", process::id()));
        fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
        // Tests run in their crates' folders, so the path must not be relative.
        Ok(Self(env::current_dir()?.join(path)))
    }
}

impl Drop for SkipFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            say::note(format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_found_however_they_are_written() {
        let words = "-E all() -p a -pb --package c --package=d -- -p e";
        let args: Vec<String> = words.split(' ').map(str::to_owned).collect();
        assert_eq!(packages(&args), ["a", "b", "c", "d"]);
        assert!(packages(&["--test".to_owned(), "netns".to_owned()]).is_empty());
    }
}
