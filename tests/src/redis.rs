//! Private Redis servers, on free loopback ports and without persistence, and a proxy before them that
//! makes the way there worse.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

mod proxy;
pub mod sets;
mod tls;

use std::{
    cell::RefCell,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weir::lab::skip;

pub use self::{proxy::Proxy, tls::Tls};
use crate::agent::eventually;

/// Whether this machine has Redis; if not, the test is counted as skipped.
pub fn available_or_skip(test: &str) -> bool {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    skip(test, "there is no redis-server here: run `cargo xtask setup`");
    false
}

/// A port that was free a moment ago, and that no connection gets as its own end: of those below the
/// kernel's usual range for that, each process begins elsewhere.
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const PORTS: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(97);
    let candidates = (0..PORTS).filter_map(|_| {
        let port = FIRST + begin.wrapping_add(NEXT.fetch_add(1, SeqCst)) % PORTS;
        u16::try_from(port).ok()
    });
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut free = candidates.filter(is_free);
    free.next().expect("a free port")
}

/// A server, killed on drop.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    folder: PathBuf,
    arguments: Vec<String>,
}

impl Server {
    /// Starts one that knows no secrets.
    pub fn start() -> Self {
        Self::start_with(free_port(), &[])
    }

    /// Starts one with more arguments.
    pub fn start_with(port: u16, more: &[&str]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, SeqCst);
        let name = format!("weir-redis-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("make the server's folder");
        let arguments: Vec<String> = more.iter().map(|text| (*text).to_owned()).collect();
        let child = Self::spawn(port, &folder, &arguments);
        let mut server = Self { child, port, folder, arguments };
        server.await_start();
        server
    }

    /// Starts one that speaks TLS alone, if that is given, with more arguments.
    pub fn start_secured(tls: Option<&Tls>, more: &[&str]) -> Self {
        let port = free_port();
        let secured: Vec<String> = tls
            .into_iter()
            .flat_map(|tls| tls.server(port))
            .flat_map(|(name, value)| [format!("--{name}"), value])
            .collect();
        let more: Vec<&str> =
            secured.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Self::start_with(port, &more)
    }

    fn spawn(port: u16, folder: &Path, arguments: &[String]) -> Child {
        let port = port.to_string();
        Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--daemonize", "no", "--dir"])
            .arg(folder)
            .args(["--unixsocket", "redis.sock"])
            .args(if arguments.iter().any(|text| text == "--port") {
                vec![]
            } else {
                vec!["--port", &port]
            })
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start redis-server")
    }

    fn await_start(&mut self) {
        let socket = self.socket();
        let child = RefCell::new(&mut self.child);
        let listens = || {
            if let Ok(Some(status)) = child.borrow_mut().try_wait() {
                panic!("redis-server ended: {status}");
            }
            UnixStream::connect(&socket).is_ok()
        };
        eventually("the server listens", listens, |up| *up);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    /// A folder of its own.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its address for clients.
    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address())
    }

    /// A client of the test's own.
    pub fn client(&self) -> redis::Connection {
        let client = redis::Client::open(format!("unix://{}", self.socket().display()));
        client.expect("name the server").get_connection().expect("connect to the server")
    }

    /// Stops it in the middle of whatever it does: connections stay, answers do not come.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("wait for the server's end");
    }

    /// Starts it again, empty, on the same port.
    pub fn restart(&mut self) {
        // A socket's file outlives a killed server.
        let _ = fs::remove_file(self.socket());
        self.child = Self::spawn(self.port, &self.folder, &self.arguments);
        self.await_start();
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("signal the server");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that was killed before is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
