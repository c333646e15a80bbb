//! The program as a shell sees it: exit codes, streams, the environment.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener, process::CommandExt as _},
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
};

use weir::lab::privileged;

const WEIR: &str = env!("CARGO_BIN_EXE_weir");

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weir-shell-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn weir(words: &[&str]) -> Output {
    Command::new(WEIR)
        .args(words)
        .env_remove("WEIR_SOCKET")
        .env_remove("WEIR_LOG")
        .output()
        .unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_command_line_that_is_not_understood_is_2() {
    for words in [&[][..], &["stauts"], &["pause"], &["check"], &["agent"]] {
        let output = weir(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(told(&output).contains("Usage"), "{words:?}: {}", told(&output));
    }
    assert_eq!(weir(&["--version"]).status.code(), Some(0));
    let help = String::from_utf8(weir(&["--help"]).stdout).unwrap();
    assert!(help.contains("Exit codes:"), "{help}");
}

#[test]
fn no_agent_is_3_and_the_environment_names_the_socket() {
    let folder = Folder::new("nobody");
    let socket = folder.0.join("weir.sock");
    let output = Command::new(WEIR).arg("status").env("WEIR_SOCKET", &socket).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout.is_empty());
    let expected = format!("weir: no agent listens on {}", socket.display());
    assert!(told(&output).starts_with(&expected), "{}", told(&output));
}

#[test]
fn a_socket_that_may_not_be_opened_is_3() {
    if !privileged("a_socket_that_may_not_be_opened_is_3") {
        return;
    }
    let folder = Folder::new("denied");
    // The program itself must be reachable by anybody.
    let (program, socket) = (folder.0.join("weir"), folder.0.join("weir.sock"));
    fs::copy(WEIR, &program).unwrap();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755)).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    let mut nobody = Command::new(&program);
    nobody.arg("status").arg("--socket").arg(&socket).uid(65_534).gid(65_534).current_dir("/");
    let output = loop {
        match nobody.output() {
            // A test beside this one forked while the copy was open for writing.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::yield_now(),
            output => break output.unwrap(),
        }
    };
    assert_eq!(output.status.code(), Some(3), "{}", told(&output));
    assert!(told(&output).contains("may not be opened: the admin socket is for root"));
}

#[test]
fn a_file_with_errors_is_1_and_one_without_is_0() {
    let folder = Folder::new("check");
    let file = folder.0.join("node.yaml");
    let path = file.to_str().unwrap();
    fs::write(&file, "workloads: []\n").unwrap();
    assert_eq!(weir(&["check", path]).status.code(), Some(0));
    fs::write(&file, "workload: []\n").unwrap();
    let output = weir(&["check", path]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with(&format!("{path}:1:1: error: ")), "{text}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = Folder::new("pipe");
    let file = folder.0.join("node.yaml");
    // More problems than a pipe holds.
    fs::write(&file, "unknown: key\n".repeat(3000)).unwrap();
    let mut weir = Command::new(WEIR)
        .arg("check")
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(weir.stdout.take());
    let output = weir.wait_with_output().unwrap();
    assert_eq!((output.status.code(), told(&output)), (Some(0), String::new()));
}

#[test]
fn an_agent_without_its_privileges_or_files_says_what_is_missing() {
    let folder = Folder::new("agent");
    let at = |name: &str| folder.0.join(name).display().to_string();
    let (file, pins, socket) = (at("node.yaml"), at("pins"), at("run/weir.sock"));
    fs::write(&file, "workloads: []\n").unwrap();
    // A folder that is on no BPF file system.
    let words = ["agent", "--node-file", &file, "--pin-dir", &pins, "--socket", &socket];
    let output = weir(&words);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("bpf"), "{}", told(&output));
    assert!(!PathBuf::from(&socket).exists(), "it takes its socket away again");
    let words = ["agent", "--node-file", &file, "--pin-dir", &pins, "--socket", &file];
    let output = weir(&words);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("exists and is no socket"), "{}", told(&output));
}

#[test]
fn nothing_to_remove_is_told_as_such() {
    let folder = Folder::new("uninstall");
    let pins = folder.0.join("pins");
    let output = weir(&["agent", "--uninstall", "--pin-dir", pins.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("nothing of Weir is below {}\n", pins.display()));
}
