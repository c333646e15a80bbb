//! The benches, and what they print.
//!
//! It owns the command line, the order of the benches and the report. Every figure is of this run,
//! next to a peer or to nothing at all, in turns. Nothing fails because it is slow.

mod bpf;
mod bulk;
mod bytes;
mod connections;
mod cpu;
mod estimate;
mod fleet;
mod flood;
mod frame;
mod paths;
mod refusal;
mod report;
mod requests;
mod site;
mod stalls;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use self::report::Report;

/// What the limits cost and what they refuse, next to nothing attached, nftables and bare programs
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Options {
    /// A short run, to see that it works
    #[arg(long)]
    quick: bool,
    /// Also write the figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Which benches; all when none is named
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
struct Effort {
    paths: usize,
    rounds: usize,
    round: Duration,
    attempts: usize,
    drops: Duration,
    bytes: bytes::Effort,
    fleet: fleet::Effort,
}

const FULL: Effort = Effort {
    paths: 200,
    rounds: 24,
    round: Duration::from_millis(300),
    attempts: 300,
    drops: Duration::from_millis(2200),
    bytes: bytes::Effort {
        rates: &[1, 10, 100, 1000],
        connections: &[1, 100],
        rounds: 2,
        warm: Duration::from_millis(1500),
        length: Duration::from_secs(10),
    },
    fleet: fleet::Effort {
        agents: &[1, 3, 8],
        delays_ms: &[0, 1, 10],
        rounds: 5,
        round: Duration::from_millis(500),
        warm: Duration::from_millis(3500),
        paced: Duration::from_secs(8),
    },
};
const QUICK: Effort = Effort {
    paths: 20,
    rounds: 5,
    round: Duration::from_millis(100),
    attempts: 30,
    drops: Duration::from_millis(500),
    bytes: bytes::Effort {
        rates: &[100],
        connections: &[1],
        rounds: 1,
        warm: Duration::from_millis(300),
        length: Duration::from_millis(700),
    },
    fleet: fleet::Effort {
        agents: &[1, 3],
        delays_ms: &[0, 10],
        rounds: 1,
        round: Duration::from_millis(150),
        warm: Duration::from_millis(300),
        paced: Duration::from_secs(2),
    },
};

/// All benches, in their order.
const ALL: [&str; 8] = [
    paths::BENCH,
    connections::BENCH,
    refusal::BENCH,
    bulk::BENCH,
    bytes::BENCH,
    flood::BENCH,
    requests::BENCH,
    fleet::BENCH,
];

/// Runs what the command line asks for.
pub(crate) fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(unknown) = options.names.iter().find(|name| !ALL.contains(&name.as_str())) {
        bail!("there is no bench {unknown:?}; expected some of {}", ALL.join(", "));
    }
    let wanted =
        |bench: &str| options.names.is_empty() || options.names.iter().any(|name| name == bench);
    let effort = if options.quick { QUICK } else { FULL };
    let mut report = Report { machine: machine(), quick: options.quick, ..Report::default() };
    let report_to = &mut report;
    let started = Instant::now();
    if wanted(requests::BENCH) {
        step(requests::BENCH, || requests::run(effort.rounds, effort.round))?;
    }
    if wanted(fleet::BENCH) {
        step(fleet::BENCH, || fleet::run(report_to, effort.fleet))?;
    }
    // They share nothing with the others.
    let apart = [requests::BENCH, fleet::BENCH];
    if options.names.is_empty() || options.names.iter().any(|name| !apart.contains(&&**name)) {
        packets(report_to, &wanted, &effort)?;
    }
    report.seconds = started.elapsed().as_secs_f64().round();
    if !report.figures.is_empty() {
        print!("{}", report.table());
    }
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The benches of packets, bytes and connections.
fn packets(report_to: &mut Report, wanted: &impl Fn(&str) -> bool, effort: &Effort) -> Result<()> {
    let added = step(paths::BENCH, || match wanted(paths::BENCH) {
        true => paths::run(report_to, effort.paths),
        // Overheads are derived from some of them.
        false => paths::added(effort.paths),
    })?;
    if wanted(connections::BENCH) {
        step(connections::BENCH, || {
            connections::run(report_to, effort.rounds, effort.round, &added)
        })?;
    }
    if wanted(refusal::BENCH) {
        step(refusal::BENCH, || refusal::run(report_to, effort.attempts, effort.drops))?;
    }
    if wanted(bulk::BENCH) {
        step(bulk::BENCH, || bulk::run(report_to, effort.rounds, effort.round, &added))?;
    }
    if wanted(bytes::BENCH) {
        step(bytes::BENCH, || bytes::run(report_to, effort.bytes))?;
    }
    if wanted(flood::BENCH) {
        step(flood::BENCH, || flood::run(report_to, effort.rounds, effort.round / 2))?;
    }
    Ok(())
}

/// Says what goes on, and where it failed.
fn step<T>(bench: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("measuring {bench} ...");
    run().with_context(|| format!("the bench {bench:?} cannot go on"))
}

fn machine() -> String {
    let cpus = cpu::count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} CPUs, Linux {}", kernel.trim())
}
