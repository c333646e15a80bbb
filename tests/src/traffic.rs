//! Traffic by the byte: UDP at a pace or as fast as it goes, TCP in bulk, and what arrives of it.
//!
//! Bounded in time, between namespaces that the test made.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use weir::lab::Host;

/// What was sent and what arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes of payload that were sent.
    pub sent: u64,
    /// Bytes of payload that arrived.
    pub received: u64,
    /// Packets, of UDP, that were sent.
    pub packets: u64,
    /// From before the first byte was sent until after the last.
    pub seconds: f64,
}

/// How UDP is sent.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Bytes of payload of each packet.
    pub payload: usize,
    /// For how long.
    pub time: Duration,
    /// Bytes of payload a second.
    pub pace: f64,
}

/// Sends UDP from one host to another at a pace.
pub fn udp(from: &Host, to: &Host, address: IpAddr, flood: Flood) -> Traffic {
    let bind = move |ip: IpAddr| {
        let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        UdpSocket::bind((any, 0)).expect("bind a UDP socket")
    };
    let sink = to.namespace().run(|| bind(address)).expect("enter the namespace");
    sink.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
    let target = SocketAddr::new(address, sink.local_addr().expect("a bound socket").port());
    let source = from.namespace().run(|| bind(address)).expect("enter the namespace");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut received, mut buffer) = (0, vec![0; 65_536]);
            loop {
                match sink.recv(&mut buffer) {
                    Ok(bytes) => received += bytes as u64,
                    Err(_) if over.load(Ordering::SeqCst) => return received,
                    Err(_) => {}
                }
            }
        });
        let payload = vec![0x55; flood.payload];
        let start = Instant::now();
        let mut traffic = Traffic::default();
        while start.elapsed() < flood.time {
            let due = (start.elapsed().as_secs_f64() * flood.pace) as u64;
            while traffic.sent < due {
                // What a local program drops comes back as an error; it was sent all the same.
                let _ = source.send_to(&payload, target);
                traffic.sent += flood.payload as u64;
                traffic.packets += 1;
            }
            thread::sleep(Duration::from_micros(500));
        }
        traffic.seconds = start.elapsed().as_secs_f64();
        over.store(true, Ordering::SeqCst);
        traffic.received = receiver.join().expect("the receiver does not panic");
        traffic
    })
}

/// How TCP is sent.
#[derive(Clone, Copy, Debug)]
pub struct Bulk<'a> {
    /// The port to listen on.
    pub port: u16,
    /// So many connections at once.
    pub connections: usize,
    /// For how long.
    pub time: Duration,
    /// The congestion control.
    pub congestion: &'a str,
}

/// Sends as much as goes over TCP connections: what arrived on each.
pub fn tcp(from: &Host, to: &Host, address: IpAddr, bulk: Bulk<'_>) -> Vec<Traffic> {
    let at = SocketAddr::new(address, bulk.port);
    let listener = to.namespace().run(|| TcpListener::bind(at)).expect("enter the namespace");
    let listener = listener.expect("listen");
    let received: Vec<AtomicU64> = (0..bulk.connections).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        let mut senders = Vec::new();
        for counter in &received {
            let stream = from.namespace().run(|| TcpStream::connect(at)).expect("enter");
            let stream = stream.expect("connect");
            let congestion = bulk.congestion.to_owned().into();
            setsockopt(&stream, sockopt::TcpCongestion, &congestion)
                .expect("set congestion control");
            let (accepted, _) = listener.accept().expect("accept");
            scope.spawn(move || drain(accepted, counter));
            senders.push(scope.spawn(move || pour(stream, bulk.time)));
        }
        let ends = senders.into_iter().map(|sender| sender.join().expect("no panic"));
        let sent: Vec<(u64, f64)> = ends.collect();
        sent.into_iter()
            .zip(&received)
            .map(|((sent, seconds), received)| Traffic {
                sent,
                received: received.load(Ordering::SeqCst),
                packets: 0,
                seconds,
            })
            .collect()
    })
}

/// Writes until the time is over.
fn pour(mut stream: TcpStream, time: Duration) -> (u64, f64) {
    let block = vec![0x55; 65_536];
    stream.set_write_timeout(Some(Duration::from_millis(50))).expect("set a timeout");
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        match stream.write(&block) {
            Ok(bytes) => sent += bytes as u64,
            Err(error) if is_timeout(&error) => {}
            Err(_) => break,
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    // What is still in the buffers is not waited for: the socket is closed at once.
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &linger).expect("close at once");
    (sent, seconds)
}

/// Reads until the end, and tells how much so far.
fn drain(mut stream: TcpStream, counter: &AtomicU64) {
    let mut buffer = vec![0; 262_144];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(bytes) => _ = counter.fetch_add(bytes as u64, Ordering::SeqCst),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
