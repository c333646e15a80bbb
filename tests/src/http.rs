//! A small web server and its clients, by hand over std's sockets: both keep a connection or close
//! it as they are told, and count connections apart from requests.
//!
//! They know neither Weir nor Envoy, so what either does to them is seen from outside.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket;
use weir::lab::{Host, Namespace};

use crate::agent::PATIENCE;

/// What the server has seen and how it is to behave. Relaxed everywhere: whoever reads a number has
/// waited for the answer that it belongs to.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    fails: AtomicBool,
    service_ms: AtomicU64,
    connections: AtomicU64,
    requests: AtomicU64,
    now: AtomicU64,
    most: AtomicU64,
    open: Mutex<HashMap<u64, TcpStream>>,
}

/// A running server. Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct Web {
    shared: Arc<Shared>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// Serves on this port of a host's IPv4 address; each request takes so long.
    pub fn start(host: &Host, port: u16, service: Duration) -> Self {
        let address = SocketAddr::new(host.ipv4().into(), port);
        let listener = host.namespace().run(|| TcpListener::bind(address));
        let listener = listener.expect("enter the namespace").expect("listen");
        let shared = Arc::new(Shared::default());
        shared.service_ms.store(service.as_millis() as u64, Ordering::Relaxed);
        let (ours, theirs) = (listener.try_clone().expect("share a socket"), Arc::clone(&shared));
        let thread = thread::spawn(move || accept(&listener, &theirs));
        Self { shared, listener: ours, thread: Some(thread) }
    }

    /// From now on every answer is a 500, or a 200 again.
    pub fn fail(&self, fails: bool) {
        self.shared.fails.store(fails, Ordering::Relaxed);
    }

    /// Connections accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Requests answered.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// The most connections that were open at once.
    pub fn most_at_once(&self) -> u64 {
        self.shared.most.load(Ordering::Relaxed)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A listening socket that is shut down lets no further SYN in, and `accept` returns.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic of the server was printed by its thread.
            let _ = thread.join();
        }
        for stream in self.shared.open.lock().expect("no thread dies here").values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        let now = shared.now.fetch_add(1, Ordering::Relaxed) + 1;
        shared.most.fetch_max(now, Ordering::Relaxed);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let kept = stream.try_clone().expect("share a socket");
            shared.open.lock().expect("no thread dies here").insert(number, kept);
            // A client that goes away loses its answer; it has counted that itself.
            let _ = serve(&stream, &shared);
            // Counted before it ends: whoever sees the end sees the count.
            shared.now.fetch_sub(1, Ordering::Relaxed);
            shared.open.lock().expect("no thread dies here").remove(&number);
        });
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let (mut head, mut close) = (0, false);
        for line in lines.by_ref() {
            let line = line?;
            if line.is_empty() {
                break;
            }
            head += 1;
            close |= line.eq_ignore_ascii_case("connection: close");
        }
        if head == 0 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(shared.service_ms.load(Ordering::Relaxed)));
        let status = if shared.fails.load(Ordering::Relaxed) {
            "500 Internal Server Error"
        } else {
            "200 OK"
        };
        let connection = if close { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: 6\r\nConnection: {connection}\r\n\r\nhello\n"
        );
        shared.requests.fetch_add(1, Ordering::Relaxed);
        (&*stream).write_all(answer.as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// An answer: its code, and its body if that is not the server's own.
    Status(u16, String),
    /// ECONNREFUSED.
    Refused,
    /// Connected, and closed or reset before an answer.
    Closed,
    /// No answer in time, or another error.
    Silent,
}

impl End {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Silent,
        }
    }

    /// Whether it is an answer with this code.
    pub fn is(&self, code: u16) -> bool {
        matches!(self, Self::Status(status, _) if *status == code)
    }
}

/// Sends a request on a connection and reads its answer; `close`: the last one on it.
pub fn request(stream: &mut TcpStream, close: bool) -> io::Result<End> {
    let connection = if close { "close" } else { "keep-alive" };
    let head = format!("GET / HTTP/1.1\r\nHost: lab\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let (mut code, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        } else if let Some(status) = line.strip_prefix("HTTP/1.1 ") {
            code = status.split(' ').next().and_then(|code| code.parse().ok());
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    let body = if body == "hello\n" { String::new() } else { body };
    Ok(code.map_or(End::Closed, |code| End::Status(code, body)))
}

/// A connection, one request, the end.
pub fn get(to: SocketAddr) -> End {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        request(&mut stream, true)
    };
    ask().unwrap_or_else(|error| End::of(&error))
}

/// One request of one client.
#[derive(Clone, Debug)]
pub struct Asked {
    /// How it ended,
    pub end: End,
    /// when that was known, after all clients' start,
    pub at: Duration,
    /// and how long it had taken.
    pub took: Duration,
}

/// What clients were told, in the order in which they knew.
#[derive(Clone, Debug, Default)]
pub struct Told(pub Vec<Asked>);

impl Told {
    /// How many ended so.
    pub fn count(&self, which: impl Fn(&End) -> bool) -> u64 {
        self.0.iter().filter(|asked| which(&asked.end)).count() as u64
    }

    /// How many ended how.
    pub fn counts(&self) -> Vec<(End, u64)> {
        let mut counts = std::collections::BTreeMap::new();
        for asked in &self.0 {
            *counts.entry(asked.end.clone()).or_default() += 1;
        }
        counts.into_iter().collect()
    }

    /// The median time of those that ended so.
    pub fn median(&self, which: impl Fn(&End) -> bool) -> Option<Duration> {
        let all = self.0.iter().filter(|asked| which(&asked.end));
        let mut times: Vec<_> = all.map(|asked| asked.took).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    /// When the first that ended so was known.
    pub fn first(&self, which: impl Fn(&End) -> bool) -> Option<Duration> {
        self.0.iter().find(|asked| which(&asked.end)).map(|asked| asked.at)
    }
}

/// So many clients, each asking again when it has its answer, and after a pause if that was not
/// what it wanted: unpaced, they would measure how fast they can be refused.
pub fn clients(from: &Namespace, to: SocketAddr, count: usize, lasting: Duration) -> Told {
    /// Ten clients stay below a workload's thousand resets a second.
    const PAUSE: Duration = Duration::from_millis(20);
    let all = Mutex::new(Vec::new());
    let start = Instant::now();
    let client = || {
        while start.elapsed() < lasting {
            let begin = Instant::now();
            let end = get(to);
            let (took, wanted) = (begin.elapsed(), end.is(200));
            all.lock().expect("no client dies here").push(Asked { end, at: start.elapsed(), took });
            if !wanted {
                thread::sleep(PAUSE);
            }
        }
    };
    from.run(|| {
        thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(client);
            }
        });
    })
    .expect("enter the namespace");
    let mut all = all.into_inner().expect("no client died");
    all.sort_by_key(|asked| asked.at);
    Told(all)
}
