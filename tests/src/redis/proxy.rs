//! A way to a server that can be slow, cut, or lead elsewhere.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// What connections share.
#[derive(Debug)]
struct Way {
    server: Mutex<SocketAddr>,
    delay_us: AtomicU64,
    /// Nothing passes, and nothing is lost: what was sent arrives when the way is whole again, as TCP
    /// sends it once more.
    is_cut: Mutex<bool>,
    whole: Condvar,
    over: AtomicBool,
}

/// A TCP proxy. It ends with its handle, its connections with their servers.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    way: Arc<Way>,
}

impl Proxy {
    /// One before a server. It adds no delay at first.
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind the proxy");
        let address = listener.local_addr().expect("ask for the proxy's address");
        let way = Arc::new(Way {
            server: Mutex::new(server),
            delay_us: AtomicU64::new(0),
            is_cut: Mutex::new(false),
            whole: Condvar::new(),
            over: AtomicBool::new(false),
        });
        let ours = way.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if ours.over.load(SeqCst) {
                    return;
                }
                let server = *ours.server.lock().unwrap_or_else(PoisonError::into_inner);
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) else {
                    continue;
                };
                pass_on(&client, &server, &ours, true);
                pass_on(&server, &client, &ours, false);
            }
        });
        Self { address, way }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    /// What clients send arrives so much later from now on.
    pub fn delay(&self, delay: Duration) {
        self.way.delay_us.store(u64::try_from(delay.as_micros()).expect("a delay"), SeqCst);
    }

    /// From now on nothing passes, or all does again.
    pub fn cut(&self, is_cut: bool) {
        *self.way.is_cut.lock().unwrap_or_else(PoisonError::into_inner) = is_cut;
        self.way.whole.notify_all();
    }

    /// New connections lead to another server.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.way.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.way.over.store(true, SeqCst);
        self.cut(false);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

impl Way {
    fn await_whole(&self) {
        let is_cut = self.is_cut.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.whole.wait_while(is_cut, |is_cut| *is_cut));
    }
}

/// Hands on in order, what clients send each after the delay that held when it came.
fn pass_on(from: &TcpStream, to: &TcpStream, way: &Arc<Way>, is_delayed: bool) {
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let mut from = from.try_clone().expect("share a stream");
    let mut to = to.try_clone().expect("share a stream");
    let (sender, pieces) = mpsc::channel::<(Instant, Vec<u8>)>();
    let (reads, writes) = (way.clone(), way.clone());
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(read) = from.read(&mut buffer) {
            let delay_us = if is_delayed { reads.delay_us.load(SeqCst) } else { 0 };
            let at = Instant::now() + Duration::from_micros(delay_us);
            if read == 0 || sender.send((at, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (at, piece) in pieces {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            writes.await_whole();
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        // An end does not get through either.
        writes.await_whole();
        let _ = to.shutdown(Shutdown::Both);
    });
}
