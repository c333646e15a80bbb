//! How long a client waits to learn that it is refused.
//!
//! One client, one attempt at a time, each contender's attempts between the others'. With a reset
//! the answer is a matter of microseconds; with a drop there is none, and what is shown is that
//! none came while the client tried again.

use std::{
    net::{SocketAddrV4, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket},
};
use weir::lab::Lab;

use super::{
    cpu,
    estimate::{Estimate, in_turns},
    report::{Report, Target},
    site::{Guard, Site, Xdp, has_nft, limit},
};

/// The name of this bench.
pub(crate) const BENCH: &str = "refusal";
/// Attempts in a row at one contender.
const IN_A_ROW: usize = 20;
/// A port of the pod where nobody listens.
const PORT: u16 = 8080;
/// How much longer than nftables a client may wait, at the median.
const MOST: f64 = 1.2;
/// Attempts whose SYN is dropped.
const DROPPED: usize = 16;

/// Measures; with drops for so long.
pub(crate) fn run(report: &mut Report, rounds: usize, drops: Duration) -> Result<()> {
    let lab = Lab::new()?;
    let weir = |on_limit: &'static str| [limit::SPENT, on_limit];
    let mut resets = vec![
        ("pod's own (no listener)", Site::new(&lab, "bare", Guard::Nothing)?),
        (
            "weir",
            Site::new(
                &lab,
                "weir",
                Guard::Weir { policy: &weir("on-limit: reset"), xdp: Xdp::Nowhere },
            )?,
        ),
    ];
    let mut silent = vec![(
        "weir",
        Site::new(
            &lab,
            "weird",
            Guard::Weir { policy: &weir("on-limit: drop"), xdp: Xdp::Nowhere },
        )?,
    )];
    if has_nft() {
        let verdict = format!("{} reject with tcp reset", limit::SPENT_NFT);
        let guard = Guard::Nft { hook: "forward priority filter", verdict: &verdict };
        resets.push(("nft reject", Site::new(&lab, "nft", guard)?));
        let verdict = format!("{} drop", limit::SPENT_NFT);
        let guard = Guard::Nft { hook: "forward priority filter", verdict: &verdict };
        silent.push(("nft drop", Site::new(&lab, "nftd", guard)?));
    } else {
        report.note("refusal: nftables is not installed, nothing was compared with it");
    }
    for (_, site) in resets.iter().chain(&silent) {
        // The day's only token: the pod answers this one itself.
        on_client(site, || attempt(to(site)))??;
    }
    by_reset(report, &resets, rounds)?;
    by_drop(report, &silent, drops)
}

fn by_reset(report: &mut Report, contenders: &[(&str, Site)], rounds: usize) -> Result<()> {
    // One thread moves between the clients' namespaces: another one would have to be woken.
    let samples = thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<Vec<Vec<Vec<f64>>>> {
            cpu::stay_on(cpu::count() - 1);
            in_turns(rounds, contenders.len(), |contender| {
                let site = &contenders[contender].1;
                let namespace = site.client.namespace();
                setns(namespace.handle().as_fd(), CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {}", namespace.name()))?;
                (0..IN_A_ROW)
                    .map(|_| Ok(attempt(to(site))?.as_nanos() as f64 / 1000.0))
                    .collect::<Result<Vec<f64>>>()
            })
        });
        worker.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
    })?;
    let all: Vec<Vec<f64>> = samples.iter().map(|rounds| rounds.concat()).collect();
    for (quantile, name) in [(0.5, "p50"), (0.99, "p99")] {
        for ((who, _), all) in contenders.iter().zip(&all) {
            let estimate = Estimate::quantile(all, quantile);
            report.add(BENCH, format!("reset, {name}, {who}"), "us", estimate);
        }
    }
    let [_, weir, nft] = &samples[..] else { return Ok(()) };
    let medians = |rounds: &[Vec<f64>]| -> Vec<f64> {
        rounds.iter().filter_map(|round| Some(Estimate::median(round)?.value)).collect()
    };
    let quotient = Estimate::quotient(&medians(weir), &medians(nft));
    report.hold(BENCH, "reset, p50, weir / nft reject", "x", quotient, Target::AtMost(MOST));
    Ok(())
}

fn by_drop(report: &mut Report, contenders: &[(&str, Site)], patience: Duration) -> Result<()> {
    let mut waiting = Vec::new();
    for (who, site) in contenders {
        let sockets =
            on_client(site, || (0..DROPPED).map(|_| begin(to(site))).collect::<Result<Vec<_>>>())??;
        waiting.push((who, sockets));
    }
    thread::sleep(patience);
    for (who, sockets) in &waiting {
        let mut answered = 0;
        for socket in sockets {
            let mut poll_fd = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            answered += poll(&mut poll_fd, PollTimeout::ZERO).context("cannot poll")?;
        }
        let name =
            format!("drop, {who}: answered within {:.1} s, of {DROPPED}", patience.as_secs_f64());
        report.add(BENCH, name, "", Estimate::exact(answered.into()));
    }
    report.note("a dropped SYN has no answer: the client waits for its own timeout, and tries again after 1 s");
    Ok(())
}

fn to(site: &Site) -> SocketAddrV4 {
    SocketAddrV4::new(site.pod.ipv4(), PORT)
}

fn on_client<T: Send>(site: &Site, work: impl FnOnce() -> T + Send) -> Result<T> {
    Ok(site.client.namespace().run(work)?)
}

/// Connects, and expects to be refused; how long that took.
fn attempt(to: SocketAddrV4) -> Result<Duration> {
    let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let address = SockaddrIn::from(to);
    let start = Instant::now();
    let answer = connect(client.as_raw_fd(), &address);
    let elapsed = start.elapsed();
    match answer {
        Err(Errno::ECONNREFUSED) => Ok(elapsed),
        Ok(()) => bail!("{to} took a connection that was to be refused"),
        Err(error) => Err(error).with_context(|| format!("{to} should have refused")),
    }
}

/// Begins a connection.
fn begin(to: SocketAddrV4) -> Result<TcpStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    match connect(client.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(client)),
        Err(error) => Err(error).with_context(|| format!("cannot connect to {to}")),
    }
}
