//! The second act: a server fails and comes back, and its breaker and its limit on what is open at
//! once do what they say.
//!
//! Attempts are made one by one, or their number at once is known, and the act waits for states
//! and not for times: so each number is exact. Three ask each other's word: the clients, the
//! server's kernel for the RSTs that it sent, and Weir.

use std::{
    cmp::Ordering,
    fs,
    io::{self, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    DemoError, Ending,
    agent::RunningAgent,
    interrupt::Interrupt,
    phase::{CROWD, Counts, Phase, Phases, State},
    script::{API_PORT, Limits, OTHER_TALK},
};
use crate::{
    app::view::{BreakerStatus, LimitStatus, WorkloadStatus},
    lab::Host,
    load::{Client, Plan, Server, Stats},
};

/// How long anything may take that should be there at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a state is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a client waits for an answer; its SYN is sent again after a second.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Why Weir refuses in this act.
const REASONS: [&str; 3] = ["breaker_open", "breaker_probing", "max_connections"];

/// Who plays.
pub(super) struct Cast<'a> {
    pub api: &'a Host,
    pub client: &'a Host,
    pub limits: &'a Limits,
    pub agent: &'a mut dyn RunningAgent,
    pub interrupt: &'a Interrupt,
}

/// Why a step was not carried out to its end.
enum Stop {
    /// What follows would say nothing any more.
    Astray,
    /// The user wants an end.
    Interrupted,
    Error(DemoError),
}

impl<E: Into<DemoError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Plays the act. The server lives on, for who wants to try it.
pub(super) fn play(
    cast: Cast<'_>,
    out: &mut dyn Write,
) -> Result<(Ending, Option<Server>), DemoError> {
    let mut act = Act {
        server: None,
        breaks_at: Instant::now(),
        ending: Ending::AsPredicted,
        failed: 0,
        cast,
    };
    act.introduce(out)?;
    let ending = match act.play(out) {
        Ok(()) => act.ending,
        Err(Stop::Astray) => {
            writeln!(out, "\n  The rest of the act would say nothing and is left out.")?;
            act.ending
        }
        Err(Stop::Interrupted) => Ending::Interrupted,
        Err(Stop::Error(error)) => return Err(error),
    };
    if act.failed > 0 {
        writeln!(out, "\n  {} attempts were neither accepted nor refused.", act.failed)?;
    }
    writeln!(out)?;
    Ok((ending, act.server))
}

struct Act<'a> {
    cast: Cast<'a>,
    server: Option<Server>,
    /// Since when the breaker can have been open.
    breaks_at: Instant,
    ending: Ending,
    failed: u64,
}

/// What everybody had counted at some time.
struct Mark {
    resets: u64,
    refused: u64,
}

impl Act<'_> {
    fn introduce(&self, out: &mut dyn Write) -> io::Result<()> {
        let Limits { api_breaker, api_at_once, .. } = self.cast.limits;
        writeln!(out, "Then api fails and comes back. Two lines hold for it:\n")?;
        for (key, value) in [api_breaker.text(), api_at_once.text()] {
            writeln!(out, "  {key}: {value}")?;
        }
        writeln!(
            out,
            "\nIts clients are ok, refused by a RST of api's own kernel, which counts them,"
        )?;
        writeln!(out, "refused by Weir, or held without an end:\n")?;
        let columns = format!("{:>4}{:>5}{:>6}{:>6}", "ok", "api", "Weir", "held");
        writeln!(out, "  {:<36}{:>21}  {:>21}", "", "predicted", "seen")?;
        writeln!(out, "  {:<30}{:>6}{columns}  {columns}  breaker", "what api does", "asked")
    }

    fn play(&mut self, out: &mut dyn Write) -> Result<(), Stop> {
        let limits = self.cast.limits;
        let phases = Phases::new(&limits.api_breaker.says, limits.api_at_once.says);
        self.serve(Server::start)?;
        self.one_by_one(&phases.works, out)?;

        self.server = None;
        self.breaks_at = Instant::now();
        self.one_by_one(&phases.fails, out)?;
        self.one_by_one(&phases.stays_away, out)?;
        self.await_end_of_ejection()?;
        self.breaks_at = Instant::now();
        self.one_by_one(&phases.tried_too_early, out)?;

        // Nothing answers the probes, so they are out together.
        self.serve(Server::deaf)?;
        self.await_end_of_ejection()?;
        let probes = self.at_once(&phases.hangs, out)?;
        self.let_go(&phases.answers, probes, out)?;
        self.one_by_one(&phases.works_again, out)?;

        self.server = None;
        self.serve(Server::idle)?;
        self.await_nobody()?;
        let crowd = self.at_once(&phases.crowd, out)?;
        self.let_go(&phases.crowd_ends, crowd, out)
    }

    fn serve(
        &mut self,
        begin: fn(&[SocketAddr], crate::load::Talk) -> io::Result<Server>,
    ) -> Result<(), Stop> {
        let address = self.address();
        let server = self.cast.api.namespace().run(|| begin(&[address], OTHER_TALK));
        let step = DemoError::step(format!("serve on port {API_PORT} of api"));
        self.server = Some(server.map_err(DemoError::from)?.map_err(step)?);
        Ok(())
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((self.cast.api.ipv4(), API_PORT))
    }

    fn plan(&self) -> Plan {
        Plan::to(self.address()).talk(OTHER_TALK).timeout(TIMEOUT)
    }

    fn start(&self, plan: Plan) -> Result<Client, DemoError> {
        let client = self.cast.client.namespace().run(|| Client::start(plan))?;
        client.map_err(DemoError::step("open connections to api"))
    }

    /// One attempt after the other.
    fn one_by_one(&mut self, phase: &Phase, out: &mut dyn Write) -> Result<(), Stop> {
        let mark = self.mark()?;
        let report = self.start(self.plan().attempts(phase.asked()))?.finish();
        self.judge(phase, &mark, &report.stats, 0, out)
    }

    /// All attempts together, until as many are left as should be.
    fn at_once(&mut self, phase: &Phase, out: &mut dyn Write) -> Result<Client, Stop> {
        let mark = self.mark()?;
        let plan = self.plan().parallel(CROWD as usize).attempts(phase.asked());
        let client = self.start(plan)?;
        let ends = phase.asked() - phase.predicted.held;
        self.wait_for(|_| Ok(client.stats().attempts() >= ends))?;
        let stats = client.take_recent();
        let held = phase.asked() - stats.attempts();
        self.judge(phase, &mark, &stats, held, out)?;
        Ok(client)
    }

    /// Lets the server serve who waits.
    fn let_go(&mut self, phase: &Phase, client: Client, out: &mut dyn Write) -> Result<(), Stop> {
        let mark = self.mark()?;
        if let Some(server) = &self.server {
            server.work();
        }
        self.wait_for(|_| Ok(client.in_flight() == 0))?;
        // What did not end in time makes fewer than predicted.
        self.judge(phase, &mark, &client.take_recent(), 0, out)
    }

    fn judge(
        &mut self,
        phase: &Phase,
        mark: &Mark,
        stats: &Stats,
        held: u64,
        out: &mut dyn Write,
    ) -> Result<(), Stop> {
        let now = self.mark()?;
        let breaker = self.breaker()?;
        let since = self.breaks_at.elapsed();
        let seen = Counts {
            ok: stats.ok(),
            by_server: now.resets - mark.resets,
            by_weir: now.refused - mark.refused,
            held,
        };
        self.failed += stats.failed();
        let fits = phase.after.fits(&breaker, since)
            && stats.failed() == 0
            && stats.refused() == seen.by_server + seen.by_weir;
        let place = phase.place(&seen, fits);
        // Then the ejection may have been over before the last attempt.
        let late = phase.refuses_for.is_some_and(|time| since >= time);
        let (verdict, ending) = match place {
            Ordering::Equal => ("as predicted", Ending::AsPredicted),
            _ if late => ("TOO LATE to tell", Ending::Fewer),
            Ordering::Greater => ("MORE than predicted", Ending::More),
            Ordering::Less => ("OTHER than predicted", Ending::Fewer),
        };
        let state = match phase.after {
            State::Open(_) if breaker.state == "open" => {
                format!("open, {:.1} s", breaker.open_seconds)
            }
            _ => breaker.state,
        };
        writeln!(
            out,
            "  {:<30}{:>6}{}  {seen}  {state:<11}  {verdict}",
            phase.what,
            phase.asked(),
            phase.predicted
        )?;
        if ending == Ending::AsPredicted {
            return Ok(());
        }
        self.ending = ending;
        Err(Stop::Astray)
    }

    fn mark(&mut self) -> Result<Mark, Stop> {
        let refused = self
            .workload()?
            .decisions
            .values()
            .flatten()
            .filter(|(what, _)| match what.split_once(' ') {
                Some(("reset" | "drop", reason)) => REASONS.contains(&reason),
                _ => false,
            })
            .map(|(_, count)| count)
            .sum();
        let statistics = self
            .cast
            .api
            .namespace()
            .run(|| fs::read_to_string("/proc/thread-self/net/snmp"))
            .map_err(DemoError::from)?
            .map_err(DemoError::step("read the statistics of api's kernel"))?;
        let resets = resets_sent(&statistics).ok_or_else(|| {
            let unknown = io::Error::from(io::ErrorKind::InvalidData);
            DemoError::step("find the sent RSTs among the statistics of api's kernel")(unknown)
        })?;
        Ok(Mark { resets, refused })
    }

    fn workload(&mut self) -> Result<WorkloadStatus, Stop> {
        let workloads = self.cast.agent.status()?.workloads;
        let api = workloads.into_iter().find(|workload| workload.name == self.cast.api.name());
        Ok(api.unwrap_or_default())
    }

    fn limit(&mut self, key: &str) -> Result<LimitStatus, Stop> {
        let limits = self.workload()?.limits;
        Ok(limits.into_iter().find(|limit| limit.limit == key).unwrap_or_default())
    }

    fn breaker(&mut self) -> Result<BreakerStatus, Stop> {
        Ok(self.limit(&self.cast.limits.api_breaker.key)?.breaker.unwrap_or_default())
    }

    fn await_end_of_ejection(&mut self) -> Result<(), Stop> {
        self.wait_for(|act| {
            let breaker = act.breaker()?;
            Ok(breaker.state == "open" && breaker.open_seconds <= 0.0)
        })
    }

    /// Until all connections of before are closed.
    fn await_nobody(&mut self) -> Result<(), Stop> {
        self.wait_for(|act| {
            let limit = act.limit(&act.cast.limits.api_at_once.key)?;
            Ok(limit.connections == Some(0))
        })
    }

    /// Waits, but not for ever: what is not there then shows in the next line.
    fn wait_for(
        &mut self,
        mut there: impl FnMut(&mut Self) -> Result<bool, Stop>,
    ) -> Result<(), Stop> {
        let deadline = Instant::now() + PATIENCE;
        while !there(self)? && Instant::now() < deadline {
            if self.cast.interrupt.wait_until(Instant::now() + LOOK_EVERY) {
                return Err(Stop::Interrupted);
            }
        }
        Ok(())
    }
}

/// `OutRsts` of `/proc/net/snmp`: a line of names, and one of numbers.
fn resets_sent(statistics: &str) -> Option<u64> {
    let mut lines = statistics.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let index = names.split_whitespace().position(|name| name == "OutRsts")?;
    numbers.split_whitespace().nth(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resets_of_a_kernel_are_found_by_their_name() {
        let text = "Icmp: InMsgs OutRsts\nIcmp: 7 8\nTcp: MaxConn InSegs OutRsts InCsumErrors\n\
                    Tcp: -1 20 5 0\nUdp: OutRsts\nUdp: 9\n";
        assert_eq!(resets_sent(text), Some(5));
        assert_eq!(resets_sent("Tcp: InSegs\nTcp: 20\n"), None);
        assert_eq!(resets_sent(""), None);
        let own = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        assert!(resets_sent(&own).is_some(), "{own}");
    }
}
