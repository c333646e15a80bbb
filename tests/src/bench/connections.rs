//! Connections per second, and CPU per connection, that nobody refuses.
//!
//! One thread per CPU is client and server at once: it opens 64 connections, accepts them, closes
//! them, and sees them closed. So no thread ever waits for another CPU to wake up, which on a
//! virtual machine costs more than a connection; what is left is the work itself, and an overhead
//! shows as large as it can.
//!
//! The overhead is said twice. *Derived* is what the programs cost in a test run, where everything
//! they touch is at hand. *In place* is what the kernel's own statistics say of their runs between
//! all the rest that a connection does, less the same of empty programs; these runs come last,
//! because the statistics have a price themselves.

use std::{
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::programs::{ProgramFd, SchedClassifier, TcAttachType};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt,
    },
};
use weir::lab::Lab;

use super::{
    bpf::{self, Runs},
    cpu::{self, Meter},
    estimate::{Estimate, in_turns},
    paths::Added,
    report::{Report, Target},
    site::{Guard, Site, Xdp, has_nft, limit},
};

/// The name of this bench.
pub(crate) const BENCH: &str = "connections";
/// Connections of one thread at a time.
const AT_ONCE: usize = 64;
/// The server's first port; each CPU has its own.
const PORT: u16 = 8080;
/// How long anything on this machine may take to arrive.
const PATIENCE: u16 = 2000;
/// What the limits may add to the CPU of a connection, %.
const MOST_OVERHEAD: f64 = 3.0;

/// Contenders by their place in the order.
const EMPTY: usize = 1;
const WEIR: usize = 2;

/// What measures a site, and what serves there.
type Place = (Meter, Vec<TcpListener>);

/// What one round came to.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    per_second: f64,
    cpu_us: f64,
    inbound: f64,
    outbound: f64,
}

/// Measures.
pub(crate) fn run(
    report: &mut Report,
    rounds: usize,
    length: Duration,
    added: &Added,
) -> Result<()> {
    let lab = Lab::new()?;
    let mut contenders = vec![
        ("nothing", Site::new(&lab, "bare", Guard::Nothing)?),
        ("empty tc programs", Site::new(&lab, "empty", Guard::Empty)?),
        (
            "weir",
            Site::new(&lab, "weir", Guard::Weir { policy: &[limit::FAR], xdp: Xdp::Nowhere })?,
        ),
    ];
    if has_nft() {
        let verdict = format!("{} drop", limit::FAR_NFT);
        let guard = Guard::Nft { hook: "forward priority filter", verdict: &verdict };
        contenders.push(("nft forward", Site::new(&lab, "nft", guard)?));
    } else {
        report.note("connections: nftables is not installed, nothing was compared with it");
    }
    let mut places = Vec::new();
    for (_, site) in &contenders {
        places.push((Meter::new(site.agent())?, listen(site)?));
    }
    let samples = in_turns(rounds, contenders.len(), |contender| {
        let (meter, listeners) = &places[contender];
        round(&contenders[contender].1, meter, listeners, length)
    })?;
    let column = |contender: usize, of: fn(&Round) -> f64| -> Vec<f64> {
        samples[contender].iter().map(of).collect()
    };
    let cpu: Vec<Vec<f64>> =
        (0..contenders.len()).map(|c| column(c, |round| round.cpu_us)).collect();
    for (contender, (name, _)) in contenders.iter().enumerate() {
        let rate = Estimate::median(&column(contender, |round| round.per_second));
        report.add(BENCH, format!("connections, {name}"), "1/s", rate);
    }
    for ((name, _), cpu) in contenders.iter().zip(&cpu) {
        report.add(BENCH, format!("CPU per connection, {name}"), "us", Estimate::median(cpu));
    }
    for (contender, (name, _)) in contenders.iter().enumerate().skip(1) {
        let quotient = Estimate::quotient(&cpu[contender], &cpu[0]);
        report.add(BENCH, format!("CPU per connection, {name} / nothing"), "x", quotient);
    }
    if let [_, _, weir, nft] = &cpu[..] {
        let quotient = Estimate::quotient(weir, nft);
        let name = "CPU per connection, weir / nft forward";
        report.hold(BENCH, name, "x", quotient, Target::AtMost(1.0));
    }
    let weir = &contenders[WEIR].1;
    let admitted = weir.decisions("tc ingress", "pass admitted")?;
    let forgotten = weir.decisions("tc ingress", "note not_remembered")?;
    if forgotten > 0 {
        report.note(format!(
            "connections: {:.0} % of those admitted were not remembered: more than the table holds \
             came within 3 s",
            forgotten as f64 * 100.0 / admitted.max(1) as f64
        ));
    }
    let inbound = Estimate::median(&column(0, |round| round.inbound));
    let outbound = Estimate::median(&column(0, |round| round.outbound));
    report.add(BENCH, "packets of a connection, towards the pod", "", inbound);
    report.add(BENCH, "packets of a connection, from the pod", "", outbound);
    let (Some(inbound), Some(outbound), Some(baseline)) =
        (inbound, outbound, Estimate::median(&cpu[0]))
    else {
        return Ok(());
    };
    // One of the packets towards the pod is the SYN.
    let others = inbound.plus(Estimate::exact(-1.0));
    let ns = added.admitted.plus(added.segment.of(others, outbound));
    let percent = |ns: Estimate| ns.over(baseline.scaled(1000.0)).scaled(100.0);
    let most = Target::AtMost(MOST_OVERHEAD);
    report.hold(BENCH, "overhead of weir, derived", "%", percent(ns), most);

    let timed = [EMPTY, WEIR].map(|contender| (&contenders[contender].1, &places[contender]));
    let [towards, from] = in_place(&timed, rounds.div_ceil(4), length)?;
    report.add(BENCH, "in place, a packet towards the pod, over empty", "ns", towards);
    report.add(BENCH, "in place, a packet from the pod, over empty", "ns", from);
    if let (Some(towards), Some(from)) = (towards, from) {
        let ns = towards.times(inbound).plus(from.times(outbound));
        report.add(BENCH, "overhead of weir, in place", "%", percent(ns));
    }
    Ok(())
}

/// What a run of the second site's programs takes longer than one of the first's, ns: towards the
/// pod, and from it.
fn in_place(
    sites: &[(&Site, &Place); 2],
    rounds: usize,
    length: Duration,
) -> Result<[Option<Estimate>; 2]> {
    let programs: Vec<_> =
        sites.iter().map(|(site, _)| programs(site)).collect::<Result<Vec<_>>>()?;
    let _timed = bpf::time_all_programs().context("cannot make the kernel time programs")?;
    let samples = in_turns(rounds, sites.len(), |contender| {
        let (site, (meter, listeners)) = &sites[contender];
        let before = runs(&programs[contender])?;
        round(site, meter, listeners, length)?;
        let after = runs(&programs[contender])?;
        Ok::<_, anyhow::Error>([0, 1].map(|way: usize| {
            let time = (after[way].time - before[way].time).as_nanos() as f64;
            time / (after[way].count - before[way].count) as f64
        }))
    })?;
    Ok([0, 1].map(|way: usize| {
        let column = |contender: usize| -> Vec<f64> {
            samples[contender].iter().map(|times| times[way]).collect()
        };
        Estimate::difference(&column(1), &column(0))
    }))
}

/// The programs at the pod: of packets towards it, and from it.
fn programs(site: &Site) -> Result<[ProgramFd; 2]> {
    let interface = site.pod.node_interface();
    let first = |hook| -> Result<ProgramFd> {
        let (_, chain) = SchedClassifier::query_tcx(&interface, hook)?;
        let program = chain.first().with_context(|| format!("no program at {interface}"))?;
        Ok(program.fd()?)
    };
    site.node.namespace().run(|| {
        // What leaves the node there enters the pod.
        Ok([first(TcAttachType::Egress)?, first(TcAttachType::Ingress)?])
    })?
}

fn runs(programs: &[ProgramFd; 2]) -> Result<[Runs; 2]> {
    let [towards, from] = programs;
    Ok([bpf::runs(towards.as_fd())?, bpf::runs(from.as_fd())?])
}

/// A listener for each CPU, in the pod.
fn listen(site: &Site) -> Result<Vec<TcpListener>> {
    let address = site.pod.ipv4();
    let listeners = site.pod.namespace().run(|| {
        let ports = PORT..PORT + cpu::count() as u16;
        ports.map(|port| TcpListener::bind((address, port))).collect::<Result<Vec<_>, _>>()
    })?;
    let listeners = listeners.with_context(|| format!("cannot listen at {address}"))?;
    for listener in &listeners {
        listener.set_nonblocking(true).context("cannot make a listener wait for nobody")?;
    }
    Ok(listeners)
}

fn round(site: &Site, meter: &Meter, listeners: &[TcpListener], length: Duration) -> Result<Round> {
    let (packets, before, start) = (site.pod_packets()?, meter.read()?, Instant::now());
    let until = start + length;
    let counts = thread::scope(|scope| -> Result<Vec<u64>> {
        let workers: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(cpu, listener)| {
                let client = site.client.namespace();
                scope.spawn(move || client.run(|| work(cpu, listener, until)))
            })
            .collect();
        let mut counts = Vec::new();
        for worker in workers {
            let count = worker.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            counts.push(count??);
        }
        Ok(counts)
    })?;
    let (elapsed, cpu) = (start.elapsed(), meter.read()? - before);
    let packets = site.pod_packets()?.since(packets);
    let connections: u64 = counts.iter().sum();
    if connections == 0 {
        bail!("no connection came about within {length:?}");
    }
    let each = |total: f64| total / connections as f64;
    Ok(Round {
        per_second: connections as f64 / elapsed.as_secs_f64(),
        cpu_us: each(cpu.as_secs_f64() * 1e6),
        inbound: each(packets.sent as f64),
        outbound: each(packets.received as f64),
    })
}

/// Opens and closes connections until it is time; how many.
fn work(cpu: usize, listener: &TcpListener, until: Instant) -> Result<u64> {
    cpu::stay_on(cpu);
    let SocketAddr::V4(to) = listener.local_addr().context("a listener without an address")? else {
        bail!("a listener without an IPv4 address");
    };
    let mut connections = 0;
    while Instant::now() < until {
        let clients = (0..AT_ONCE).map(|_| open(to)).collect::<Result<Vec<_>>>()?;
        for _ in &clients {
            // Accepted and closed: the client sees the end of the stream.
            drop(accept(listener)?);
        }
        for client in &clients {
            await_end(client)?;
        }
        connections += clients.len() as u64;
    }
    Ok(connections)
}

/// Begins a connection. When the client closes it, nothing is left: a RST ends what the server's
/// FIN began, so that no round leaves waiting sockets for the next.
fn open(to: SocketAddrV4) -> Result<TcpStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Inet, SockType::Stream, flags, None).context("no socket")?;
    at_once(&client)?;
    match connect(client.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(client)),
        Err(error) => Err(error).with_context(|| format!("cannot connect to {to}")),
    }
}

fn at_once(socket: &OwnedFd) -> Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(socket, sockopt::Linger, &linger).context("cannot set SO_LINGER")
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                await_input(listener).context("a connection did not arrive")?;
            }
            Err(error) => return Err(error).context("cannot accept"),
        }
    }
}

fn await_end(mut client: &TcpStream) -> Result<()> {
    loop {
        match std::io::Read::read(&mut client, &mut [0]) {
            Ok(0) => return Ok(()),
            Ok(_) => bail!("the server said something"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                await_input(client).context("a connection did not end")?;
            }
            Err(error) => return Err(error).context("a connection was not closed as it should be"),
        }
    }
}

pub(crate) fn await_input(socket: &impl AsFd) -> Result<()> {
    let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match poll(&mut sockets, PollTimeout::from(PATIENCE)) {
        Ok(0) => bail!("nothing within {PATIENCE} ms"),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
