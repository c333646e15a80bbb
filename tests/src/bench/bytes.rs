//! How well bandwidth is limited: what TCP gets of a rate, what that costs it, and what it does to others.
//!
//! Connections send towards the pod as fast as they may, through the limit and nothing else: a way of some
//! 50 µs, the hardest for a limit that drops, because the smallest window is more than the rate. Each
//! contender holds the same rate with the same burst. What is spent before the first figure is the burst.
//! *Rate* is what went to the pod on the wire, of the rate that was asked for; *share* what of it was new
//! payload. Beside them a connection asks for a byte every few milliseconds.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};
use weir::lab::Lab;
use weir_common::{debt, gcra::q8};
use weir_tests::{counters::Packets, site::stack_counter};

use super::{
    cpu::Meter,
    estimate::{Estimate, in_turns},
    report::{Report, Target},
    site::{Guard, Site, Xdp, has_nft},
};

/// The name of this bench.
pub(crate) const BENCH: &str = "bytes";
/// The server's port, and that of the probe.
const PORT: u16 = 9000;
/// Payload of a full frame, and what else of it is on the wire.
const PAYLOAD: f64 = 1448.0;
const HEADERS: f64 = 66.0;
/// What a connection may be off.
const ACCURATE: f64 = 0.02;
/// What contended updates may lose to a bare compare-and-swap.
const CONTENDED: f64 = 0.5;
const CONGESTION: &str = "cubic";

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Megabits a second.
    pub(crate) rates: &'static [u32],
    /// Connections at once.
    pub(crate) connections: &'static [usize],
    /// Rounds of each contender.
    pub(crate) rounds: usize,
    /// Before the first figure.
    pub(crate) warm: Duration,
    /// What is measured.
    pub(crate) length: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    rate: f64,
    share: f64,
    repeated: f64,
    probe: f64,
    probe_worst: f64,
    cpu: f64,
}

/// Measures.
pub(crate) fn run(report: &mut Report, effort: Effort) -> Result<()> {
    let half = half_of_the_line(effort)?;
    report
        .note(format!("bytes: {half} Mbit/s is half of what one connection gets without a limit"));
    for mbit in effort.rates.iter().copied().chain([half]) {
        for &connections in effort.connections {
            row(report, effort, mbit, connections)?;
        }
    }
    contended(report, effort.rounds * 24)
}

/// Half of what one connection gets where nothing limits it, in whole hundreds of Mbit/s.
fn half_of_the_line(effort: Effort) -> Result<u32> {
    const MBIT: f64 = 125_000.0;
    let lab = Lab::new()?;
    let site = Site::new(&lab, "line", Guard::Nothing)?;
    let line = round(&site, &Meter::new(site.agent())?, MBIT, 1, effort)?.rate;
    Ok(((line / 200.0) as u32).max(1) * 100)
}

fn row(report: &mut Report, effort: Effort, mbit: u32, connections: usize) -> Result<()> {
    let lab = Lab::new()?;
    let bytes = u64::from(mbit) * 125_000;
    // As the policy's default: 250 ms.
    let burst = bytes / 4;
    let policy = format!("ingress-bandwidth: {mbit}Mbit/s");
    let weir = Guard::Weir { policy: &[&policy], xdp: Xdp::Nowhere };
    let tbf = format!("root tbf rate {mbit}mbit burst {burst} latency 50ms");
    let htb = [
        "root handle 1: htb default 1".to_owned(),
        format!("classid 1:1 parent 1: htb rate {mbit}mbit burst {burst}"),
    ];
    let nft = format!("limit rate over {bytes} bytes/second burst {burst} bytes drop");
    let mut contenders = vec![
        ("weir", Site::new(&lab, "weir", weir)?),
        ("tbf", Site::new(&lab, "tbf", Guard::Queue { qdisc: &tbf, class: None })?),
        ("htb", Site::new(&lab, "htb", Guard::Queue { qdisc: &htb[0], class: Some(&htb[1]) })?),
    ];
    report.note("bytes: a bucket of `nft limit` holds what comes in a second beside its burst");
    if has_nft() {
        contenders.push(("nft limit", Site::new(&lab, "nft", Guard::NftBytes(&nft))?));
    } else {
        report.note("bytes: nftables is not installed, nothing was compared with it");
    }
    let meters: Vec<Meter> =
        contenders.iter().map(|(_, site)| Meter::new(site.agent())).collect::<Result<_>>()?;
    let samples = in_turns(effort.rounds, contenders.len(), |contender| {
        round(&contenders[contender].1, &meters[contender], bytes as f64, connections, effort)
    })?;
    let what = format!("{mbit} Mbit/s, {connections} conn.");
    let column = |contender: usize, of: fn(&Round) -> f64| -> Option<Estimate> {
        Estimate::median(&samples[contender].iter().map(of).collect::<Vec<f64>>())
    };
    for (contender, (who, _)) in contenders.iter().enumerate() {
        let rate = column(contender, |round| round.rate);
        let name = format!("rate, {what}, {who}");
        if *who == "weir" {
            report.hold(BENCH, &name, "x", rate, Target::AtLeast(1.0 - ACCURATE));
            report.hold(BENCH, &name, "x", rate, Target::AtMost(1.0 + ACCURATE));
        } else {
            report.add(BENCH, name, "x", rate);
        }
    }
    type Column = (&'static str, &'static str, fn(&Round) -> f64);
    let columns: [Column; 5] = [
        ("share", "x", |round| round.share),
        ("sent again", "%", |round| round.repeated),
        ("probe, median", "ms", |round| round.probe),
        ("probe, 98 %", "ms", |round| round.probe_worst),
        ("CPU", "%", |round| round.cpu),
    ];
    for (name, unit, of) in columns {
        for (contender, (who, _)) in contenders.iter().enumerate() {
            report.add(BENCH, format!("{name}, {what}, {who}"), unit, column(contender, of));
        }
    }
    Ok(())
}

fn round(
    site: &Site,
    meter: &Meter,
    rate: f64,
    connections: usize,
    effort: Effort,
) -> Result<Round> {
    let address = site.pod.ipv4();
    let listener = site.pod.namespace().run(|| TcpListener::bind((address, PORT)))??;
    let prober = site.pod.namespace().run(|| TcpListener::bind((address, PORT + 1)))??;
    let (over, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let (over, received) = (&over, &received);
    let connect = |port| connect(site, address, port);
    thread::scope(|scope| {
        let probe = connect(PORT + 1)?;
        let (echo, _) = prober.accept().context("cannot accept")?;
        // All are there before the first of them sends: a peer drops SYNs too.
        let mut pairs = Vec::new();
        for _ in 0..connections {
            let sender = connect(PORT)?;
            setsockopt(&sender, sockopt::TcpCongestion, &CONGESTION.into())?;
            pairs.push((sender, listener.accept().context("cannot accept")?.0));
        }
        scope.spawn(move || answer(echo, over));
        for (sender, receiver) in pairs {
            scope.spawn(move || pour(sender, over));
            scope.spawn(move || drain(receiver, received, over));
        }
        thread::sleep(effort.warm);
        let tcp = |name| stack_counter(site.client.namespace(), "Tcp", name);
        let before = (tcp("RetransSegs"), tcp("OutSegs"), received.load(Ordering::SeqCst));
        let packets = (site.pod_packets()?, site.client_packets()?);
        let (start, cpu) = (Instant::now(), meter.read()?);
        let times = ask(probe, start + effort.length);
        let seconds = start.elapsed().as_secs_f64();
        let arrived = received.load(Ordering::SeqCst) - before.2;
        let passed = site.pod_packets()?.since(packets.0);
        let pieces = site.client_packets()?.since(packets.1).sent;
        let (cpu, repeated, sent) =
            (meter.read()? - cpu, tcp("RetransSegs") - before.0, tcp("OutSegs") - before.1);
        over.store(true, Ordering::SeqCst);
        let mut times = times?;
        let passed = on_the_wire(passed, pieces, sent);
        times.sort_by(f64::total_cmp);
        let at = |part: f64| {
            times.get((times.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN)
        };
        Ok(Round {
            rate: passed / seconds / rate,
            share: arrived as f64 / PAYLOAD * (PAYLOAD + HEADERS) / seconds / rate,
            repeated: 100.0 * repeated as f64 / (sent.max(1) as f64),
            probe: 1000.0 * at(0.5),
            probe_worst: 1000.0 * at(0.98),
            cpu: 100.0 * cpu.as_secs_f64() / seconds,
        })
    })
}

/// Bytes that went to the pod, if nothing had been handed over in larger pieces than the wire's. The client
/// sent so many segments in so many pieces, and of what was dropped some were as large as others.
fn on_the_wire(passed: Packets, pieces: u64, segments: u64) -> f64 {
    let more = segments.saturating_sub(pieces) as f64 / pieces.max(1) as f64;
    passed.sent_bytes as f64 + HEADERS * more * passed.sent as f64
}

fn connect(site: &Site, address: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let stream = site.client.namespace().run(|| TcpStream::connect((address, port)))?;
    stream.with_context(|| format!("cannot connect to {address}"))
}

fn pour(mut stream: TcpStream, over: &AtomicBool) {
    let block = [0x55; 65_536];
    let _ = stream.set_write_timeout(Some(Duration::from_millis(50)));
    while !over.load(Ordering::Relaxed) {
        match stream.write(&block) {
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
    // What is still in the buffers is not waited for.
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(&stream, sockopt::Linger, &linger);
}

/// Reads until it is over. The end of a connection may have been dropped, so nobody waits for that.
fn drain(mut stream: TcpStream, received: &AtomicU64, over: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
    while !over.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => _ = received.fetch_add(bytes as u64, Ordering::Relaxed),
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
}

/// Answers each byte with one, until it is over.
fn answer(mut stream: TcpStream, over: &AtomicBool) {
    let mut byte = [0];
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
    while !over.load(Ordering::Relaxed) {
        match stream.read_exact(&mut byte) {
            Ok(()) if stream.write_all(&byte).is_ok() => {}
            Err(error) if is_timeout(&error) => {}
            _ => return,
        }
    }
}

/// Asks for a byte again and again, and how long each took, in seconds. One that is not heard in time
/// took until then at least, and is the last.
fn ask(mut stream: TcpStream, until: Instant) -> Result<Vec<f64>> {
    stream.set_nodelay(true).context("cannot prepare the probe")?;
    let mut times = Vec::new();
    let mut byte = [7];
    loop {
        let start = Instant::now();
        let left = until.saturating_duration_since(start);
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left)).context("cannot prepare the probe")?;
        stream.write_all(&byte).context("the probe cannot ask")?;
        let heard = stream.read_exact(&mut byte);
        times.push(start.elapsed().as_secs_f64());
        match heard {
            Ok(()) => {}
            Err(error) if is_timeout(&error) => break,
            Err(error) => return Err(error).context("the probe hears nothing"),
        }
        thread::sleep(Duration::from_millis(5).saturating_sub(start.elapsed()));
    }
    Ok(times)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Two threads change one bucket's word, next to two that only compare and swap it.
fn contended(report: &mut Report, rounds: usize) -> Result<()> {
    const TIMES: u64 = 200_000;
    let tariff = debt::Tariff::new(125_000_000_000, 1_000_000_000, 6_250_000_000)
        .ok_or_else(|| anyhow!("a tariff within its bounds"))?;
    let charge = tariff.charge(1514);
    let both = |work: &(dyn Fn(&AtomicU64) + Sync)| {
        let (word, barrier) = (AtomicU64::new(0), Barrier::new(3));
        thread::scope(|scope| {
            for cpu in 0..2 {
                let (word, barrier) = (&word, &barrier);
                scope.spawn(move || {
                    super::cpu::stay_on(cpu);
                    barrier.wait();
                    work(word);
                    barrier.wait();
                });
            }
            barrier.wait();
            let start = Instant::now();
            barrier.wait();
            TIMES as f64 * 2.0 / start.elapsed().as_secs_f64()
        })
    };
    let samples = in_turns(rounds, 2, |contender| {
        anyhow::Ok(match contender {
            0 => both(&|word| {
                for time in 0..TIMES {
                    let _ = debt::take(
                        word,
                        q8(1_000_000_000 + time),
                        charge,
                        tariff.burst,
                        tariff.longest(),
                    );
                }
            }),
            _ => both(&|word| {
                for _ in 0..TIMES {
                    let mut seen = word.load(Ordering::Relaxed);
                    while let Err(now) = word.compare_exchange(
                        seen,
                        seen.wrapping_add(1),
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    ) {
                        seen = now;
                    }
                }
            }),
        })
    })?;
    let quotient = Estimate::quotient(&samples[0], &samples[1]);
    let name = "two CPUs at one bucket / at one bare word";
    report.hold(BENCH, name, "x", quotient, Target::AtLeast(CONTENDED));
    Ok(())
}
