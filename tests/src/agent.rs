//! An agent under test: the program that people install, as a process in a lab's namespace.
//!
//! It is spoken to as people and scripts do: arguments, the node file, signals, and the admin
//! socket. What it says of itself comes back as the types that its own clients use. It ends with
//! its handle, and when the test is failing its log is shown.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::signal::Signal;
use weir::{
    app::view::{Explanation, LimitStatus, Pause, Refusal, Status, UplinkStatus, WorkloadStatus},
    lab::{self, Lab, Namespace, Process},
};

use crate::{
    apiserver::ApiServer,
    kubelet::{Kubelet, NODE},
};

/// How long anything may take that should take an instant: loaded machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How much of the log is shown.
const LAST_LINES: usize = 60;

/// Where `cargo build --release` leaves the program.
const BINARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/weir");

/// The program: `WEIR_BIN`, else the release build of this workspace.
pub fn binary() -> PathBuf {
    env::var_os("WEIR_BIN").map_or_else(|| BINARY.into(), PathBuf::from)
}

/// A lab for `test`, if this machine can make one and there is an agent to put in; if not, the
/// test is counted as skipped with the reason.
pub fn lab_or_skip(test: &str) -> Option<Lab> {
    (lab::privileged(test) && is_there_or_skip(test)).then(|| Lab::new().expect("make a lab"))
}

/// Whether there is an agent; if not, the test is counted as skipped with the reason.
pub fn is_there_or_skip(test: &str) -> bool {
    let binary = binary();
    let is_there = binary.is_file();
    if !is_there {
        assert!(
            env::var_os("WEIR_BIN").is_none(),
            "WEIR_BIN names {}, which is not there",
            binary.display()
        );
        let reason = format!("no agent at {}: run `cargo xtask build`", binary.display());
        lab::skip(test, &reason);
    }
    is_there
}

/// Waits until `holds`, and fails with what was last seen when it takes too long.
pub fn eventually<T: fmt::Debug>(
    what: &str,
    look: impl Fn() -> T,
    holds: impl Fn(&T) -> bool,
) -> T {
    let patience = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if holds(&seen) {
            return seen;
        }
        assert!(
            Instant::now() < patience,
            "in {} s this did not come true: {what}; last seen: {seen:#?}",
            PATIENCE.as_secs()
        );
        thread::sleep(LOOK);
    }
}

/// The sum of a metric of a page over the series that have all of these texts among their labels.
pub fn metric(page: &str, name: &str, labels: &[&str]) -> f64 {
    let lines = page.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(name)?;
        let is = rest.is_empty() || rest.starts_with('{');
        let has = labels.iter().all(|label| rest.contains(label));
        (is && has).then(|| value.parse::<f64>().expect("a number"))
    });
    let values: Vec<_> = lines.collect();
    assert!(!values.is_empty(), "no {name} {labels:?} in {page}");
    values.iter().sum()
}

/// An agent, and the files that outlive it.
#[derive(Debug)]
pub struct Agent<'a> {
    namespace: &'a Namespace,
    binary: PathBuf,
    prefix: Vec<String>,
    /// Where it runs, if its node file is named from there.
    folder: Option<PathBuf>,
    node_file: PathBuf,
    pins: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    process: Option<Process>,
}

impl<'a> Agent<'a> {
    /// The files of an agent that was not started yet.
    pub fn new(lab: &Lab, namespace: &'a Namespace, node_file: &str) -> Self {
        let at = |name| lab.directory().join(name);
        let agent = Self {
            namespace,
            binary: binary(),
            prefix: Vec::new(),
            folder: None,
            node_file: at("node.yaml"),
            pins: lab.pins(),
            socket: at("weir.sock"),
            log: at("agent.log"),
            arguments: Vec::new(),
            environment: Vec::new(),
            process: None,
        };
        agent.write(node_file);
        agent
    }

    /// Starts one in this namespace with this node file, and waits until it is ready.
    pub fn start(lab: &Lab, namespace: &'a Namespace, node_file: &str) -> Self {
        let mut agent = Self::new(lab, namespace, node_file);
        agent.launch();
        agent.await_ready();
        agent
    }

    /// Watches the pods of [`NODE`] from the next start on.
    #[must_use]
    pub fn with_pods(mut self, server: &ApiServer, kubelet: &Kubelet) -> Self {
        let arguments = ["--kubernetes", "--node-name", NODE, "--cgroup-root"];
        self.arguments = arguments.into_iter().map(OsString::from).collect();
        self.arguments.push(kubelet.root().into());
        self.environment = vec![("KUBECONFIG".into(), server.kubeconfig().into())];
        self
    }

    /// Starts with these arguments too, from the next start on.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    /// Runs in the folder of its node file, and is told its name alone.
    #[must_use]
    pub fn in_its_folder(mut self) -> Self {
        self.folder = self.node_file.parent().map(Path::to_owned);
        self
    }

    /// Starts the program, and does not wait.
    pub fn launch(&mut self) {
        self.launch_with(&[]);
    }

    /// Starts the program with these arguments too, and does not wait.
    pub fn launch_with(&mut self, more: &[&OsStr]) {
        assert!(self.process.is_none(), "one agent at a time");
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.expect("open the agent's log");
        let mut command = self.command();
        let name = self.node_file.file_name().expect("a file's name");
        match &self.folder {
            Some(folder) => command.current_dir(folder).arg("--node-file").arg(name),
            None => command.arg("--node-file").arg(&self.node_file),
        };
        command
            .arg("--socket")
            .arg(&self.socket)
            .args(more)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the agent's log"))
            .stderr(log);
        self.process = Some(self.namespace.spawn(command).expect("start the agent"));
    }

    /// Starts it behind a program (`setpriv ...`) from the next start on.
    pub fn behind(&mut self, prefix: Vec<String>) {
        self.prefix = prefix;
    }

    fn command(&self) -> Command {
        let program = self.binary.as_os_str();
        let mut words = self.prefix.iter().map(AsRef::as_ref).chain([program]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        command.arg("agent").arg("--pin-dir").arg(&self.pins);
        command
    }

    /// Waits until every workload is decided.
    pub fn await_ready(&mut self) {
        let patience = Instant::now() + PATIENCE;
        loop {
            let process = self.process.as_mut().expect("the agent was started");
            if let Some(status) = process.ended().expect("ask after the agent") {
                panic!("the agent ended before it was ready: {status}");
            }
            match self.request("GET", "/readyz", "") {
                Ok((200, _)) => return,
                answer => assert!(Instant::now() < patience, "the agent is not ready: {answer:?}"),
            }
            thread::sleep(LOOK);
        }
    }

    /// Kills it as `kill -9` does: no chance to tidy up.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the agent runs");
        process.signal(Signal::SIGKILL).expect("kill the agent");
        let ended = process.wait(PATIENCE).expect("wait for the agent");
        assert!(ended.is_some(), "the agent survives SIGKILL");
    }

    /// Lets it stand still: it holds what it holds, and does nothing more.
    pub fn freeze(&mut self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Runs `work` while the agent stands still: it sees only what came of it.
    pub fn behind_its_back<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.freeze();
        let result = work();
        self.signal(Signal::SIGCONT);
        result
    }

    fn signal(&mut self, signal: Signal) {
        let process = self.process.as_mut().expect("the agent runs");
        process.signal(signal).expect("signal the agent");
    }

    /// Asks it to end, as a service manager does.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the agent runs");
        process.signal(Signal::SIGTERM).expect("ask the agent to end");
        let ended = process.wait(PATIENCE).expect("wait for the agent");
        ended.expect("the agent ends when it is asked to")
    }

    /// Starts it again after its end, and waits until it is ready.
    pub fn restart(&mut self) {
        self.launch();
        self.await_ready();
    }

    /// Runs another copy of the program from the next start on.
    pub fn upgrade_to(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Whether it is running.
    pub fn runs(&mut self) -> bool {
        let process = self.process.as_mut();
        process.is_some_and(|process| process.ended().expect("ask after the agent").is_none())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the agent runs").id()
    }

    /// Where it pins.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The pin directory of this layout.
    pub fn layout(&self) -> PathBuf {
        self.pins.join(format!("v{}", weir_common::layout::LAYOUT))
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Runs `weir agent --uninstall`.
    pub fn uninstall(&self) -> Output {
        let mut command = self.command();
        command.arg("--uninstall");
        let output = self.namespace.run(move || command.output());
        output.expect("enter the namespace").expect("run the agent")
    }

    /// Runs a further agent on the same pins and node file, behind `prefix` (`setpriv ...`), until
    /// it ends: how it ended, and what it said. It must end by itself.
    pub fn run_another(&self, prefix: &[&str], pins: &Path, socket: &Path) -> (ExitStatus, String) {
        let said = self.log.with_extension("other");
        let log = File::create(&said).expect("make a log");
        let program = self.binary.as_os_str();
        let mut words = prefix.iter().map(AsRef::as_ref).chain([program]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .arg("agent")
            .arg("--pin-dir")
            .arg(pins)
            .arg("--node-file")
            .arg(&self.node_file)
            .arg("--socket")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share a log"))
            .stderr(log);
        let mut process = self.namespace.spawn(command).expect("start another agent");
        let ended = process.wait(PATIENCE).expect("wait for another agent");
        let said = fs::read_to_string(said).expect("read a log");
        (ended.unwrap_or_else(|| panic!("another agent runs on: {said}")), said)
    }

    /// The sum of a metric over the series that have all of these texts among their labels.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, page) = self.request("GET", "/metrics", "").expect("ask the agent");
        metric(&page, name, labels)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its node file.
    pub fn node_file(&self) -> &Path {
        &self.node_file
    }

    /// Writes the node file in one step, and does not wait.
    pub fn write(&self, text: &str) {
        let partial = self.node_file.with_extension("new");
        fs::write(&partial, text).expect("write a node file");
        fs::rename(partial, &self.node_file).expect("replace the node file");
    }

    /// Rewrites the node file and waits until the agent has read it, good or bad.
    pub fn rewrite(&self, text: &str) -> Status {
        let before = self.status();
        // A change is seen by its time and inode; the agent looks by itself, once for each.
        let written = SystemTime::now();
        self.write(text);
        let written = written.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        eventually(
            "the agent reads the new file",
            || self.status(),
            |status| {
                status.reloads.failed > before.reloads.failed
                    || status.reloads.succeeded > before.reloads.succeeded
                        && status.loaded_at >= written.as_secs_f64()
            },
        )
    }

    /// Rewrites the node file and asks for it at once, with SIGHUP. Comes back when some reload
    /// after the rewrite is done.
    pub fn rewrite_now(&mut self, text: &str) -> Status {
        let before = self.status().reloads;
        self.write(text);
        let process = self.process.as_mut().expect("the agent runs");
        process.signal(Signal::SIGHUP).expect("ask the agent to reload");
        eventually(
            "the agent reads the new file",
            || self.status(),
            |status| status.reloads != before,
        )
    }

    /// Everything it tells at a glance.
    pub fn status(&self) -> Status {
        self.get("/status")
    }

    /// What it tells of a workload.
    pub fn workload(&self, name: &str) -> WorkloadStatus {
        let workloads = self.status().workloads;
        let found = workloads.into_iter().find(|workload| workload.name == name);
        found.unwrap_or_else(|| panic!("the agent does not know the workload {name}"))
    }

    /// What it tells of an uplink.
    pub fn uplink(&self, interface: &str) -> UplinkStatus {
        let uplinks = self.status().uplinks;
        let found = uplinks.into_iter().find(|uplink| uplink.interface == interface);
        found.unwrap_or_else(|| panic!("the agent does not know the uplink {interface}"))
    }

    /// What it tells of a workload's only limit.
    pub fn limit(&self, workload: &str) -> LimitStatus {
        let limits = self.workload(workload).limits;
        assert_eq!(limits.len(), 1, "limits of {workload}: {limits:#?}");
        limits.into_iter().next().expect("one limit")
    }

    /// What it tells of one of a workload's limits: `max-connections.80`.
    pub fn limit_named(&self, workload: &str, name: &str) -> LimitStatus {
        let limits = self.workload(workload).limits;
        let found = limits.iter().find(|limit| limit.limit == name).cloned();
        found.unwrap_or_else(|| panic!("{workload} has no limit {name}: {limits:#?}"))
    }

    /// How often a decision was made: `tc ingress`, `reset connection_rate`.
    pub fn decisions(&self, workload: &str, hook: &str, decision: &str) -> u64 {
        let workload = self.workload(workload);
        let row = workload.decisions.get(hook);
        row.and_then(|row| row.get(decision)).copied().unwrap_or_default()
    }

    /// How often something that the workload opened was refused so: in `connect()` where that is
    /// hooked, else at its SYN.
    pub fn refused_calls(&self, workload: &str, decision: &str) -> u64 {
        let hooks = ["tc egress", "connect egress"];
        hooks.map(|hook| self.decisions(workload, hook, decision)).iter().sum()
    }

    /// Where a workload's policy comes from, and what was refused lately.
    pub fn explain(&self, workload: &str) -> Explanation {
        // A pod's name has a slash.
        self.get(&format!("/explain/{}", workload.replace('/', "%2F")))
    }

    /// A workload's last refusal that was sampled; they arrive a moment later than they happen.
    pub fn last_refusal(&self, workload: &str) -> Refusal {
        let look = || self.explain(workload).refusals;
        let refusals = eventually("a refusal was sampled", look, |refusals| !refusals.is_empty());
        refusals.into_iter().next().expect("one refusal")
    }

    /// Pauses a workload.
    pub fn pause(&self, workload: &str, seconds: u64) {
        let pause = Pause { workload: Some(workload.to_owned()), seconds };
        let body = serde_json::to_string(&pause).expect("a pause as JSON");
        let (code, answer) = self.request("POST", "/pause", &body).expect("ask the agent");
        assert_eq!(code, 200, "pausing {workload}: {answer}");
    }

    /// Waits until a workload is in this condition.
    pub fn await_condition(&self, workload: &str, condition: &str) -> WorkloadStatus {
        eventually(
            &format!("{workload} is {condition}"),
            || self.workload(workload),
            |workload| workload.condition == condition,
        )
    }

    fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let (code, body) = self.request("GET", path, "").expect("ask the agent");
        assert_eq!(code, 200, "GET {path}: {body}");
        serde_json::from_str(&body)
            .unwrap_or_else(|error| panic!("GET {path} is not what it should be: {error}: {body}"))
    }

    /// One exchange over the admin socket: the answer's code and body.
    pub fn request(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        request(&self.socket, method, path, body)
    }
}

/// One request over a socket that an agent listens on: the answer's code and body.
pub fn request(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    Ok((code, body.to_owned()))
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        // Killed, not asked: what it leaves in the kernel goes with the lab.
        drop(self.process.take());
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            eprintln!("the agent's log:\n{}", last.join("\n"));
        }
    }
}
