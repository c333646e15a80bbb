//! CPU per byte of one long connection for each CPU, in both directions.
//!
//! As for connections, one thread is sender and receiver: it fills the socket, empties the other
//! one, and so on. The kernel hands over segments of up to 64 KiB, as it does between pods on one
//! node; a packet here is one of those.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};
use weir::lab::Lab;

use super::{
    bpf::{self, Hook, Kind, XDP_PASS},
    connections::await_input,
    cpu::{self, Meter},
    estimate::{Estimate, in_turns},
    paths::Added,
    report::{Report, Target},
    site::{End, Guard, Site, Xdp, has_nft, limit},
};

/// The name of this bench.
pub(crate) const BENCH: &str = "bulk";
/// Bytes of one call, and of the buffers of a socket.
const CHUNK: usize = 256 * 1024;
/// The server's port.
const PORT: u16 = 9000;
/// What the limits may add to the CPU of a byte, %.
const MOST_OVERHEAD: f64 = 3.0;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    gigabits: f64,
    ns_per_kib: f64,
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
        report.note("bulk: nftables is not installed, nothing was compared with it");
    }
    let policy: &[&str] = &["ingress-bandwidth: 1Tbit/s", "egress-bandwidth: 1Tbit/s"];
    contenders
        .push(("weir bytes", Site::new(&lab, "bytes", Guard::Weir { policy, xdp: Xdp::Nowhere })?));
    // What a shield does to what is no SYN: its pod cuts its own segments.
    let mut shield = Site::new(&lab, "xdp", Guard::Nothing)?;
    shield.attach(&bpf::returning(Kind::Xdp, XDP_PASS)?, Hook::Xdp, End::Pod)?;
    contenders.push(("xdp at its veth", shield));
    let peer = contenders.iter().position(|(who, _)| *who == "nft forward");
    let mut places = Vec::new();
    for (_, site) in &contenders {
        let pairs = (0..cpu::count()).map(|_| connect(site)).collect::<Result<Vec<_>>>()?;
        places.push((Meter::new(site.agent())?, pairs));
    }
    for (way, name) in [(Way::In, "to the pod"), (Way::Out, "from the pod")] {
        let samples = in_turns(rounds, contenders.len(), |contender| {
            let (meter, pairs) = &places[contender];
            round(&contenders[contender].1, meter, pairs, way, length)
        })?;
        let column = |contender: usize, of: fn(&Round) -> f64| -> Vec<f64> {
            samples[contender].iter().map(of).collect()
        };
        let cpu: Vec<Vec<f64>> =
            (0..contenders.len()).map(|c| column(c, |round| round.ns_per_kib)).collect();
        for (contender, (who, _)) in contenders.iter().enumerate() {
            let rate = Estimate::median(&column(contender, |round| round.gigabits));
            report.add(BENCH, format!("{name}, {who}"), "Gbit/s", rate);
        }
        for ((who, _), cpu) in contenders.iter().zip(&cpu) {
            report.add(BENCH, format!("CPU {name}, {who}"), "ns/KiB", Estimate::median(cpu));
        }
        for (contender, (who, _)) in contenders.iter().enumerate().skip(1) {
            let quotient = Estimate::quotient(&cpu[contender], &cpu[0]);
            report.add(BENCH, format!("CPU {name}, {who} / nothing"), "x", quotient);
        }
        if let Some(nft) = peer {
            let quotient = Estimate::quotient(&cpu[1], &cpu[nft]);
            let name = format!("CPU {name}, weir / nft forward");
            report.hold(BENCH, name, "x", quotient, Target::AtMost(1.0));
        }
        let inbound = Estimate::median(&column(0, |round| round.inbound));
        let outbound = Estimate::median(&column(0, |round| round.outbound));
        report.add(BENCH, format!("packets {name}, towards it"), "1/MiB", inbound);
        report.add(BENCH, format!("packets {name}, from it"), "1/MiB", outbound);
        if let (Some(inbound), Some(outbound), Some(baseline)) =
            (inbound, outbound, Estimate::median(&cpu[0]))
        {
            let packet = added.segment.of(inbound, outbound);
            let charged = packet.plus(added.charged.of(inbound, outbound));
            for (who, ns) in [("weir", packet), ("weir bytes", charged)] {
                let percent = ns.over(baseline.scaled(1024.0)).scaled(100.0);
                let name = format!("overhead of {who} {name}, derived");
                report.hold(BENCH, name, "%", percent, Target::AtMost(MOST_OVERHEAD));
            }
        }
    }
    Ok(())
}

/// A connection: the client's end and the pod's.
fn connect(site: &Site) -> Result<[TcpStream; 2]> {
    let address = site.pod.ipv4();
    let listener = site.pod.namespace().run(|| TcpListener::bind((address, PORT)))?;
    let listener = listener.with_context(|| format!("cannot listen at {address}"))?;
    let client = site.client.namespace().run(|| TcpStream::connect((address, PORT)))?;
    let client = client.with_context(|| format!("cannot connect to {address}"))?;
    let (server, _) = listener.accept().context("cannot accept")?;
    for stream in [&client, &server] {
        stream.set_nonblocking(true).context("cannot make a connection wait for nobody")?;
        prepare(stream).context("cannot prepare a connection")?;
    }
    Ok([client, server])
}

fn prepare(stream: &TcpStream) -> nix::Result<()> {
    // One that paces nothing: a timer per packet is not what is to be measured.
    setsockopt(stream, sockopt::TcpCongestion, &"reno".into())?;
    setsockopt(stream, sockopt::SndBuf, &CHUNK)?;
    setsockopt(stream, sockopt::RcvBuf, &CHUNK)
}

fn round(
    site: &Site,
    meter: &Meter,
    pairs: &[[TcpStream; 2]],
    way: Way,
    length: Duration,
) -> Result<Round> {
    let (packets, before, start) = (site.pod_packets()?, meter.read()?, Instant::now());
    let until = start + length;
    let counts = thread::scope(|scope| -> Result<Vec<u64>> {
        let workers: Vec<_> = pairs
            .iter()
            .enumerate()
            .map(|(cpu, [client, server])| {
                let (from, to) = if way == Way::In { (client, server) } else { (server, client) };
                scope.spawn(move || work(cpu, from, to, until))
            })
            .collect();
        let mut counts = Vec::new();
        for worker in workers {
            counts.push(worker.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??);
        }
        Ok(counts)
    })?;
    let (elapsed, cpu) = (start.elapsed(), meter.read()? - before);
    let packets = site.pod_packets()?.since(packets);
    let bytes: u64 = counts.iter().sum();
    if bytes == 0 {
        bail!("no byte arrived within {length:?}");
    }
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    Ok(Round {
        gigabits: bytes as f64 * 8.0 / 1e9 / elapsed.as_secs_f64(),
        ns_per_kib: cpu.as_nanos() as f64 / mebibytes / 1024.0,
        inbound: packets.sent as f64 / mebibytes,
        outbound: packets.received as f64 / mebibytes,
    })
}

/// Sends and receives until it is time; how many bytes arrived.
fn work(cpu: usize, mut from: &TcpStream, mut to: &TcpStream, until: Instant) -> Result<u64> {
    cpu::stay_on(cpu);
    let out = vec![0x55; CHUNK];
    let mut into = vec![0; CHUNK];
    let mut arrived = 0;
    let mut on_the_way = 0;
    loop {
        let over = Instant::now() >= until;
        if !over && let Some(sent) = moved(from.write(&out)).context("cannot send")? {
            on_the_way += sent;
        }
        while on_the_way > 0 {
            match moved(to.read(&mut into)).context("cannot receive")? {
                Some(0) => bail!("the sender closed"),
                Some(received) => {
                    on_the_way -= received;
                    arrived += received as u64;
                }
                // What a round sends it also receives, so that the next begins with an empty pipe.
                None if over => await_input(&to.as_fd()).context("bytes did not arrive")?,
                None => break,
            }
        }
        if over {
            return Ok(arrived);
        }
    }
}

/// Bytes moved; `None` when nothing could be.
fn moved(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
