//! Agents that only answer rate limit requests, and Envoys that ask them, configured by the files
//! that `deploy/envoy` offers: what is documented is what is run.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;
use weir::lab::{Host, Lab, Namespace, Node, Process};

use crate::{
    agent::{PATIENCE, binary, eventually, metric},
    envoy::Envoy,
    http::End,
};

/// The proxy of HTTP with a limit for all of them together.
pub const HTTP: &str = include_str!("../../deploy/envoy/http.yaml");
/// The proxy of HTTP with limits of its own.
pub const HTTP_LOCAL: &str = include_str!("../../deploy/envoy/http-local.yaml");
/// The proxy of TCP.
pub const TCP: &str = include_str!("../../deploy/envoy/tcp.yaml");
/// The quota files.
pub const QUOTAS: [(&str, &str); 2] = [
    ("productpage.yaml", include_str!("../../deploy/envoy/quotas/productpage.yaml")),
    ("local.yaml", include_str!("../../deploy/envoy/quotas/local.yaml")),
];

/// Where proxies listen.
pub const PROXY: u16 = 8000;
/// Where the upstream listens.
pub const UPSTREAM: u16 = 9080;

/// One of the files with the addresses of a lab. Envoy waits for answers as long as a loaded machine
/// may take: by itself its filter gives up after 20 ms, which counts as an error.
pub fn configuration(text: &str, upstream: IpAddr, agents: [IpAddr; 2]) -> String {
    let place = |address: IpAddr, port| format!("{{ address: {address}, port_value: {port} }}");
    let local = |last, port| place(IpAddr::from([127, 0, 0, last]), port);
    let mut text = text.to_owned();
    for (from, to) in [
        (local(1, UPSTREAM), place(upstream, UPSTREAM)),
        (local(1, 8081), place(agents[0], 8081)),
        (local(2, 8081), place(agents[1], 8081)),
    ] {
        assert!(text.contains(&from), "the file has no {from}");
        text = text.replace(&from, &to);
    }
    let patient = text.lines().map(|line| match line.split_once("domain: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{line}\n{indent}timeout: 10s\n"),
        _ => format!("{line}\n"),
    });
    let patient: String = patient.collect();
    assert!(patient.lines().count() > text.lines().count(), "the file has no filter");
    patient
}

/// An agent without a data plane. Killed on drop.
#[derive(Debug)]
pub struct Answerer<'a> {
    namespace: &'a Namespace,
    folder: PathBuf,
    process: Option<Process>,
}

impl<'a> Answerer<'a> {
    /// Starts one with the files of `deploy/envoy`, and waits until it answers. Those of one lab
    /// have different names.
    pub fn start(lab: &Lab, namespace: &'a Namespace, name: &str) -> Self {
        Self::start_with(lab, namespace, name, "")
    }

    /// The same, with more lines of `rls`, each indented by two.
    pub fn start_with(lab: &Lab, namespace: &'a Namespace, name: &str, more: &str) -> Self {
        Self::start_with_files(lab, namespace, name, more, &[])
    }

    /// The same, with more quota files, each with its name.
    pub fn start_with_files(
        lab: &Lab,
        namespace: &'a Namespace,
        name: &str,
        more: &str,
        files: &[(&str, &str)],
    ) -> Self {
        let folder = lab.directory().join(name);
        fs::create_dir_all(folder.join("quotas")).expect("make a folder for quotas");
        let mut answerer = Self { namespace, folder, process: None };
        for (name, text) in QUOTAS.iter().chain(files) {
            answerer.write(name, text);
        }
        let quotas = answerer.folder.join("quotas");
        let node_file = format!(
            "rls:\n  listen: 0.0.0.0:8081\n  http: 0.0.0.0:8080\n  quotas: {}\n{more}",
            quotas.display()
        );
        fs::write(answerer.folder.join("node.yaml"), node_file).expect("write a node file");
        answerer.launch();
        answerer
    }

    /// Starts it again, and waits until it answers.
    pub fn launch(&mut self) {
        let log = File::options().create(true).append(true).open(self.folder.join("log"));
        let log = log.expect("open the agent's log");
        let mut command = Command::new(binary());
        command
            .args(["agent", "--no-datapath", "--node-file"])
            .arg(self.folder.join("node.yaml"))
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the agent's log"))
            .stderr(log);
        self.process = Some(self.namespace.spawn(command).expect("start the agent"));
        eventually(
            "the agent answers",
            || self.ask("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")),
            |ready| *ready,
        );
    }

    /// Writes a quota file in one step.
    pub fn write(&self, name: &str, text: &str) {
        let partial = self.folder.join("partial");
        fs::write(&partial, text).expect("write a quota file");
        fs::rename(partial, self.folder.join("quotas").join(name)).expect("replace a quota file");
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    fn signal(&mut self, signal: Signal) {
        let mut process = self.process.take().expect("the agent runs");
        process.signal(signal).expect("signal the agent");
        let ended = process.wait(PATIENCE).expect("wait for the agent");
        assert!(ended.is_some(), "the agent survives {signal}");
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("weir.sock")
    }

    fn ask(&self, path: &str) -> io::Result<String> {
        exchange(std::os::unix::net::UnixStream::connect(self.socket())?, path)
    }

    /// The sum of a metric over the series that have all of these texts among their labels.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        metric(&self.ask("/metrics").expect("ask the agent"), name, labels)
    }
}

impl Drop for Answerer<'_> {
    fn drop(&mut self) {
        drop(self.process.take());
        if thread::panicking() {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            eprintln!("the log of {}:\n{log}", self.folder.display());
        }
    }
}

fn exchange(mut stream: impl io::Read + io::Write, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub code: u16,
    /// All of it.
    pub text: String,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Asks a proxy for a path.
pub fn get(from: &Namespace, to: SocketAddr, path: &str) -> Answer {
    let ask = || {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        exchange(stream, path)
    };
    let text = from.run(ask).expect("enter the namespace").expect("ask the proxy");
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Answer { code, text }
}

/// Whether an agent admits a request about a descriptor of one entry, of domain `shop`, as asked over HTTP.
///
/// # Panics
/// If the agent decides neither.
pub fn is_admitted(from: &Namespace, agent: SocketAddr, (key, value): (&str, &str)) -> bool {
    let body = format!(
        r#"{{"domain":"shop","descriptors":[{{"entries":[{{"key":"{key}","value":"{value}"}}]}}]}}"#
    );
    let post = || {
        let mut stream = TcpStream::connect(agent)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "POST /json HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let answer = from.run(post).expect("enter the namespace").expect("ask the agent");
    match answer.split(' ').nth(1) {
        Some("200") => true,
        Some("429") => false,
        _ => panic!("{answer}"),
    }
}

/// The statuses of so many requests, one after the other.
pub fn codes(from: &Namespace, to: SocketAddr, path: &str, count: usize) -> Vec<u16> {
    (0..count).map(|_| get(from, to, path).code).collect()
}

/// Waits until a minute of the clock has so many seconds left: windows are the clock's.
pub fn with_seconds_left(seconds: u64) {
    let left = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        60 - now.as_secs() % 60
    };
    while left() < seconds {
        thread::sleep(Duration::from_millis(50));
    }
}

/// A node with an agent, a proxy and what it stands for, and another node's agent.
#[derive(Debug)]
pub struct Site {
    /// The node.
    pub node: Node,
    /// Another node.
    pub elsewhere: Host,
    /// Where Envoys run.
    pub proxies: [Host; 2],
    /// What they stand for.
    pub web: Host,
    /// Who asks.
    pub client: Host,
}

impl Site {
    /// Makes its hosts; nothing runs there yet.
    pub fn new(lab: &Lab) -> Self {
        let node = lab.node("node").expect("make a node");
        let pod = |name| node.pod(name).expect("make a pod");
        let client = |name| node.client(name).expect("make a client");
        let proxies = [pod("proxy-1"), pod("proxy-2")];
        let (web, elsewhere, client) = (pod("web"), client("elsewhere"), client("client"));
        Self { node, elsewhere, proxies, web, client }
    }

    /// Starts the node's agent, without a data plane.
    pub fn agent(&self, lab: &Lab) -> Answerer<'_> {
        Answerer::start(lab, self.node.namespace(), "agent")
    }

    /// Starts one of the proxies, and waits until it knows its agent.
    pub fn envoy(&self, lab: &Lab, program: &Path, which: usize, text: &str) -> Envoy<'_> {
        let agents: [IpAddr; 2] = [self.node.ipv4().into(), self.elsewhere.ipv4().into()];
        let text = configuration(text, self.web.ipv4().into(), agents);
        let envoy = Envoy::launch(program, lab, self.proxies[which].namespace(), &text);
        let healthy = || envoy.number("cluster.rate_limit_cluster.membership_healthy");
        eventually("Envoy knows its agent", healthy, |healthy| *healthy > 0);
        envoy
    }

    /// Where a proxy listens.
    pub fn proxy(&self, which: usize) -> SocketAddr {
        SocketAddr::new(self.proxies[which].ipv4().into(), PROXY)
    }

    /// The statuses of so many requests by way of a proxy.
    pub fn codes(&self, which: usize, path: &str, count: usize) -> Vec<u16> {
        codes(self.client.namespace(), self.proxy(which), path, count)
    }

    /// The status of one request by way of the first proxy.
    pub fn code(&self, path: &str) -> u16 {
        get(self.client.namespace(), self.proxy(0), path).code
    }
}

/// How so many clients' requests end while `work` is done: each asks the first proxy at most 200
/// times a second.
pub fn asked_meanwhile(site: &Site, clients: u64, work: impl FnOnce()) -> BTreeMap<End, u64> {
    let (stop, ends) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    let ask = || {
        while !stop.load(Ordering::Relaxed) {
            *ends
                .lock()
                .expect("no client panicked")
                .entry(crate::http::get(site.proxy(0)))
                .or_default() += 1;
            thread::sleep(Duration::from_millis(5));
        }
    };
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| site.client.namespace().run(ask).expect("enter the namespace"));
        }
        let done = panic::catch_unwind(AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| panic::resume_unwind(panic));
    });
    ends.into_inner().expect("no client panicked")
}
