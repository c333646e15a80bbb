//! Connections that stay open until the test ends them, and every way to end one.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use weir::lab::{Host, Namespace};

use crate::{
    agent::{PATIENCE, eventually},
    site::addresses,
};

/// How long a client waits for an answer to its SYN: one that is lost is sent again.
const ANSWER: Duration = Duration::from_secs(10);

/// Listens on a port of a host, in both families, and accepts only when it is told to: the kernel
/// completes handshakes by itself.
#[derive(Debug)]
pub struct Door(Vec<TcpListener>);

impl Door {
    /// Opens it.
    pub fn open(host: &Host, port: u16) -> Self {
        let bind = |address| TcpListener::bind(SocketAddr::new(address, port));
        let listeners: io::Result<Vec<_>> = host
            .namespace()
            .run(|| addresses(host).into_iter().map(bind).collect())
            .expect("enter the namespace");
        let listeners = listeners.expect("listen");
        for listener in &listeners {
            listener.set_nonblocking(true).expect("do not wait for connections");
        }
        Self(listeners)
    }

    /// Accepts so many connections, whichever address they came to.
    pub fn accept(&self, count: usize) -> Vec<TcpStream> {
        let mut streams = Vec::new();
        let patience = Instant::now() + PATIENCE;
        while streams.len() < count {
            streams.extend(self.waiting());
            assert!(Instant::now() < patience, "{} connections of {count} came", streams.len());
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(streams.len(), count, "more connections came");
        streams
    }

    /// Accepts those that are complete now.
    pub fn waiting(&self) -> Vec<TcpStream> {
        let accept = |listener: &TcpListener| match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("wait for data");
                stream.set_read_timeout(Some(PATIENCE)).expect("but not for ever");
                Some(stream)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("accept a connection: {error}"),
        };
        let mut streams = Vec::new();
        for listener in &self.0 {
            streams.extend(std::iter::from_fn(|| accept(listener)));
        }
        streams
    }
}

/// What came of attempts that were made at the same moment.
#[derive(Debug, Default)]
pub struct Ends {
    /// Connections that are open.
    pub open: Vec<TcpStream>,
    /// How many got ECONNREFUSED,
    pub refused: usize,
    /// the longest wait for it,
    pub longest: Duration,
    /// and all else.
    pub others: Vec<io::Error>,
}

impl Ends {
    /// How many are open and how many were refused; nothing else may have happened.
    pub fn counts(&self) -> (usize, usize) {
        assert!(self.others.is_empty(), "neither open nor refused: {:?}", self.others);
        (self.open.len(), self.refused)
    }
}

/// Connects so many times at the same moment, each on a thread of its own.
pub fn connect_at_once(from: &Namespace, to: SocketAddr, count: usize) -> Ends {
    connect_within(from, to, count, ANSWER)
}

/// The same, given up after this time.
pub fn connect_within(from: &Namespace, to: SocketAddr, count: usize, patience: Duration) -> Ends {
    let barrier = Barrier::new(count);
    let connect = || {
        barrier.wait();
        let begin = Instant::now();
        (TcpStream::connect_timeout(&to, patience), begin.elapsed())
    };
    let results: Vec<(io::Result<TcpStream>, Duration)> = from
        .run(|| {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..count).map(|_| scope.spawn(connect)).collect();
                threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
            })
        })
        .expect("enter the namespace");
    let mut ends = Ends::default();
    for (result, took) in results {
        match result {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).expect("wait, but not for ever");
                ends.open.push(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                ends.refused += 1;
                ends.longest = ends.longest.max(took);
            }
            Err(error) => ends.others.push(error),
        }
    }
    ends
}

/// One connection that must come about.
pub fn connect(from: &Namespace, to: SocketAddr) -> TcpStream {
    let mut ends = connect_at_once(from, to, 1);
    assert_eq!(ends.counts(), (1, 0), "{to}");
    ends.open.remove(0)
}

/// Whether a connection comes about; it is closed at once if so.
pub fn is_refused(from: &Namespace, to: SocketAddr) -> bool {
    connect_at_once(from, to, 1).counts() == (0, 1)
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server closes; the client when it sees that.
    ServerFirst,
    /// The client closes; the server when it sees that.
    ClientFirst,
    /// Both close at the same moment.
    BothClose,
    /// The server resets it.
    ServerAborts,
    /// The client resets it.
    ClientAborts,
    /// Both reset it at the same moment.
    BothAbort,
}

impl Ending {
    /// Every way.
    pub const ALL: [Self; 6] = [
        Self::ServerFirst,
        Self::ClientFirst,
        Self::BothClose,
        Self::ServerAborts,
        Self::ClientAborts,
        Self::BothAbort,
    ];

    /// Ends a connection.
    pub fn end(self, client: TcpStream, server: TcpStream) {
        match self {
            Self::ServerFirst => one_after_the_other(server, client),
            Self::ClientFirst => one_after_the_other(client, server),
            Self::ServerAborts => abort(server),
            Self::ClientAborts => abort(client),
            Self::BothClose => at_once(client, server, drop),
            Self::BothAbort => at_once(client, server, abort),
        }
    }
}

fn one_after_the_other(first: TcpStream, mut second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("close one side");
    drop_when_told(&mut second);
    drop((first, second));
}

/// Reads to the end of the other's data.
pub fn drop_when_told(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("hear that the other side is closed");
}

fn at_once(client: TcpStream, server: TcpStream, end: fn(TcpStream)) {
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        for stream in [client, server] {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                end(stream);
            });
        }
    });
}

/// Closes by a RST, without a farewell.
pub fn abort(stream: TcpStream) {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &at_once).expect("set SO_LINGER");
    drop(stream);
}

/// Each client's end of a connection with the server's, which knows it by its address. The server
/// accepts in an order of its own.
pub fn pairs(clients: Vec<TcpStream>, mut servers: Vec<TcpStream>) -> Vec<(TcpStream, TcpStream)> {
    let pair = |client: TcpStream| {
        let own = client.local_addr().expect("a connection has two ends");
        let is_its = |server: &TcpStream| server.peer_addr().is_ok_and(|peer| peer == own);
        let server = servers.iter().position(is_its).expect("the server has it too");
        (client, servers.swap_remove(server))
    };
    clients.into_iter().map(pair).collect()
}

/// A byte from one end must come out at the other.
pub fn carries(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"?").expect("send a byte");
    let mut byte = [0];
    to.read_exact(&mut byte).expect("receive a byte");
}

/// Waits until so many connections are open at a limit, and so many of them are handshakes.
pub fn eventually_open(
    agent: &crate::agent::Agent<'_>,
    workload: &str,
    limit: &str,
    expected: (u64, u64),
) {
    let look = || {
        let limit = agent.limit_named(workload, limit);
        (limit.connections.unwrap_or(u64::MAX), limit.handshakes.unwrap_or(u64::MAX))
    };
    eventually("so many connections are open, and so many handshakes", look, |seen| {
        *seen == expected
    });
}
