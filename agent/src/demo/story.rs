//! The demo from the first line to the last.

use std::{
    cmp::Ordering,
    env, fs,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    DemoError, Ending, Options,
    agent::{Readiness, RunningAgent, Site, StartAgent, last_lines},
    interrupt::Interrupt,
    outage::{self, Cast},
    prediction::{Asked, Interval, admits},
    script::{
        API_PORT, DB_PORT, FROM_DB, GREEDY, HOOK_PORT, Limits, OTHER_TALK, POLITE, TO_DB, WEB_PORT,
        WEB_TALK,
    },
};
use crate::{
    lab::{Host, Lab, Node},
    load::{Client, Header, Plan, Report, Row, Server, Talk},
};

/// How long the agent may take to attach.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How often its life is checked while the lab is held.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The network with its servers.
struct Stage {
    // Servers go first, then their namespaces, then the node.
    web_server: Server,
    db_server: Server,
    hook_server: Server,
    web: Host,
    db: Host,
    api: Host,
    polite: Host,
    greedy: Host,
    node: Node,
}

/// One flow of connections.
struct Flow {
    name: String,
    client: Client,
}

/// Who connects to whom.
struct Flows {
    greedy_web: Flow,
    polite_web: Flow,
    greedy_db: Flow,
    db_polite: Flow,
}

pub(super) fn tell(
    lab: &Lab,
    options: &Options,
    agent: &dyn StartAgent,
    interrupt: &Interrupt,
    out: &mut dyn Write,
) -> Result<Ending, DemoError> {
    let stage = Stage::set(lab)?;
    introduce(&stage, out)?;
    let limits = Limits::new()?;
    let file = limits.node_file(&stage.web, &stage.db, &stage.api);
    let node_file = lab.directory().join("node.yaml");
    fs::write(&node_file, &file)
        .map_err(DemoError::step(format!("write {}", node_file.display())))?;
    writeln!(out, "The node file:")?;
    for line in file.lines() {
        writeln!(out, "  {line}")?;
    }
    writeln!(out)?;

    let (pins, socket, log) =
        (lab.pins(), lab.directory().join("weir.sock"), lab.directory().join("agent.log"));
    let site = Site {
        node: stage.node.namespace(),
        node_file: &node_file,
        pins: &pins,
        socket: &socket,
        log: &log,
    };
    let started = Instant::now();
    let mut agent = agent.start(&site)?;
    if !await_ready(agent.as_mut(), interrupt, &log)? {
        return Ok(Ending::Interrupted);
    }
    writeln!(out, "The agent is ready after {:.2} s.\n", started.elapsed().as_secs_f64())?;

    // Before the first attempt, so that each row ends just before the next second's attempts.
    let start = Instant::now();
    let seconds = options.seconds.max(1);
    let mut flows = stage.open(Some(Duration::from_secs(seconds)))?;
    if watch(&mut flows, start, seconds, agent.as_mut(), interrupt, out)? {
        return Ok(Ending::Interrupted);
    }
    let first = compare(&limits, flows.finish(), &stage, out)?;
    let cast = Cast {
        api: &stage.api,
        client: &stage.polite,
        limits: &limits,
        agent: agent.as_mut(),
        interrupt,
    };
    let (second, _api_server) = outage::play(cast, out)?;
    if second == Ending::Interrupted {
        return Ok(second);
    }
    let ending = first.and(second);
    if options.hold {
        let flows = stage.open(None)?;
        advise(&stage, &socket, out)?;
        while !interrupt.wait_until(Instant::now() + CHECK_EVERY) {
            agent.readiness()?;
        }
        writeln!(out)?;
        drop(flows);
    }
    Ok(ending)
}

impl Stage {
    fn set(lab: &Lab) -> Result<Self, DemoError> {
        let node = lab.node("node")?;
        let (web, db, api) = (node.pod("web")?, node.pod("db")?, node.pod("api")?);
        let (polite, greedy) = (node.client("polite")?, node.client("greedy")?);
        Ok(Self {
            web_server: serve(&web, WEB_PORT, WEB_TALK)?,
            db_server: serve(&db, DB_PORT, OTHER_TALK)?,
            hook_server: serve(&polite, HOOK_PORT, OTHER_TALK)?,
            web,
            db,
            api,
            polite,
            greedy,
            node,
        })
    }

    /// Begins all flows, for a time or until they are dropped.
    fn open(&self, lasting: Option<Duration>) -> Result<Flows, DemoError> {
        let flow = |from: &Host, to: &Host, port: u16, rate: u64, talk: Talk| {
            let name = format!("{} > {}:{port}", from.name(), to.name());
            let address = SocketAddr::from((to.ipv4(), port));
            let mut plan = Plan::to(address).per_second(rate).talk(talk);
            if let Some(duration) = lasting {
                plan = plan.lasting(duration);
            }
            let client = from.namespace().run(|| Client::start(plan))?;
            let client = client.map_err(DemoError::step(format!("open connections {name}")))?;
            Ok::<_, DemoError>(Flow { name, client })
        };
        Ok(Flows {
            greedy_web: flow(&self.greedy, &self.web, WEB_PORT, GREEDY, WEB_TALK)?,
            polite_web: flow(&self.polite, &self.web, WEB_PORT, POLITE, WEB_TALK)?,
            greedy_db: flow(&self.greedy, &self.db, DB_PORT, TO_DB, OTHER_TALK)?,
            db_polite: flow(&self.db, &self.polite, HOOK_PORT, FROM_DB, OTHER_TALK)?,
        })
    }
}

fn serve(host: &Host, port: u16, talk: Talk) -> Result<Server, DemoError> {
    let mut addresses = vec![IpAddr::from(host.ipv4())];
    if host.namespace().has_ipv6() {
        addresses.push(host.ipv6().into());
    }
    let addresses: Vec<_> =
        addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
    let server = host.namespace().run(|| Server::start(&addresses, talk))?;
    server.map_err(DemoError::step(format!("serve on port {port} of {}", host.name())))
}

fn introduce(stage: &Stage, out: &mut dyn Write) -> io::Result<()> {
    let (web, db, api) = (stage.web.ipv4(), stage.db.ipv4(), stage.api.ipv4());
    writeln!(out, "A node, its workloads and their clients, each in a network namespace:\n")?;
    writeln!(out, "  greedy --+                      +-- web  {web}:{WEB_PORT}")?;
    writeln!(out, "           +-- node (the agent) --+-- db   {db}:{DB_PORT}")?;
    writeln!(out, "  polite --+                      +-- api  {api}:{API_PORT}\n")
}

/// Whether the agent became ready; not if the user wants an end first.
fn await_ready(
    agent: &mut dyn RunningAgent,
    interrupt: &Interrupt,
    log: &Path,
) -> Result<bool, DemoError> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let answer = match agent.readiness()? {
            Readiness::Ready => return Ok(true),
            Readiness::NotYet(answer) => answer,
        };
        if Instant::now() >= deadline {
            let seconds = READY_WITHIN.as_secs();
            return Err(DemoError::NotReady { seconds, answer, log: last_lines(log) });
        }
        if interrupt.wait_until(Instant::now() + ASK_EVERY) {
            return Ok(false);
        }
    }
}

/// Prints each second's rows; whether the user wants an end.
fn watch(
    flows: &mut Flows,
    start: Instant,
    seconds: u64,
    agent: &mut dyn RunningAgent,
    interrupt: &Interrupt,
    out: &mut dyn Write,
) -> Result<bool, DemoError> {
    writeln!(out, "{Header}")?;
    let mut last = start;
    for second in 1..=seconds {
        if interrupt.wait_until(start + Duration::from_secs(second)) {
            return Ok(true);
        }
        // An agent that has ended is an error; its limits would go on without it.
        agent.readiness()?;
        if second == seconds {
            // The last row holds what is still on its way.
            flows.all().into_iter().for_each(|flow| flow.client.wait());
        }
        let now = Instant::now();
        for (index, flow) in flows.all().into_iter().enumerate() {
            let stats = flow.client.take_recent();
            let row = Row {
                elapsed: (index == 0).then_some(Duration::from_secs(second)),
                flow: &flow.name,
                in_flight: flow.client.in_flight(),
                interval: now - last,
                stats: &stats,
            };
            writeln!(out, "{row}")?;
        }
        last = now;
    }
    writeln!(out)?;
    Ok(false)
}

impl Flows {
    fn all(&mut self) -> [&mut Flow; 4] {
        [&mut self.greedy_web, &mut self.polite_web, &mut self.greedy_db, &mut self.db_polite]
    }

    fn finish(self) -> Reports {
        Reports {
            greedy_web: self.greedy_web.client.finish(),
            polite_web: self.polite_web.client.finish(),
            greedy_db: self.greedy_db.client.finish(),
            db_polite: self.db_polite.client.finish(),
        }
    }
}

struct Reports {
    greedy_web: Report,
    polite_web: Report,
    greedy_db: Report,
    db_polite: Report,
}

/// One limit's line of the comparison.
#[derive(Clone, Copy)]
struct Verdict<'a> {
    workload: &'a str,
    limit: &'a str,
    whose: &'a str,
    asked: u64,
    predicted: Interval,
    seen: u64,
}

impl Verdict<'_> {
    fn place(&self) -> Ordering {
        self.predicted.place(self.seen)
    }
}

/// What it all comes to. More than predicted outweighs all else: nothing excuses it.
fn ending(verdicts: &[Verdict<'_>], failed: u64) -> Ending {
    let any = |place| verdicts.iter().any(|verdict| verdict.place() == place);
    if any(Ordering::Greater) {
        Ending::More
    } else if any(Ordering::Less) || failed > 0 {
        Ending::Fewer
    } else {
        Ending::AsPredicted
    }
}

fn compare(
    limits: &Limits,
    reports: Reports,
    stage: &Stage,
    out: &mut dyn Write,
) -> Result<Ending, DemoError> {
    let asked = |report: &Report| Asked::new(report.stats.attempts(), report.span);
    let Reports { greedy_web, polite_web, greedy_db, db_polite } = &reports;
    let per_source = limits.web_per_source.says;
    let greedy = admits(per_source, &asked(greedy_web));
    let polite = admits(per_source, &asked(polite_web));
    let span = match (greedy_web.span, polite_web.span) {
        (Some(one), Some(other)) => Some(one.with(&other)),
        (one, other) => one.or(other),
    };
    let at_web = greedy_web.stats.attempts() + polite_web.stats.attempts();
    let whole = admits(limits.web.says, &Asked::new(at_web, span));
    let verdicts = [
        Verdict {
            workload: stage.web.name(),
            limit: &limits.web_per_source.key,
            whose: "of greedy",
            asked: greedy_web.stats.attempts(),
            predicted: greedy,
            seen: greedy_web.stats.ok(),
        },
        Verdict {
            workload: stage.web.name(),
            limit: &limits.web_per_source.key,
            whose: "of polite",
            asked: polite_web.stats.attempts(),
            predicted: polite,
            seen: polite_web.stats.ok(),
        },
        Verdict {
            workload: stage.web.name(),
            limit: &limits.web.key,
            whose: "of both",
            asked: at_web,
            // What passes each one's own limit, and no more than the workload's.
            predicted: greedy.plus(polite).under(whole),
            seen: stage.web_server.accepted(WEB_PORT),
        },
        Verdict {
            workload: stage.db.name(),
            limit: &limits.db.key,
            whose: "of greedy",
            asked: greedy_db.stats.attempts(),
            predicted: admits(limits.db.says, &asked(greedy_db)),
            seen: stage.db_server.accepted(DB_PORT),
        },
        Verdict {
            workload: stage.db.name(),
            limit: &limits.db_outbound.key,
            whose: "to polite",
            asked: db_polite.stats.attempts(),
            predicted: admits(limits.db_outbound.says, &asked(db_polite)),
            seen: stage.hook_server.accepted(HOOK_PORT),
        },
    ];
    writeln!(out, "Predicted is burst + rate x time, and no more than was asked for:\n")?;
    writeln!(
        out,
        "  {:<9}{:<29}{:<11}{:>6}{:>12}{:>7}",
        "workload", "limit", "", "asked", "predicted", "seen"
    )?;
    for verdict in &verdicts {
        writeln!(
            out,
            "  {:<9}{:<29}{:<11}{:>6}{:>12}{:>7}  {}",
            verdict.workload,
            verdict.limit,
            verdict.whose,
            verdict.asked,
            verdict.predicted,
            verdict.seen,
            match verdict.place() {
                Ordering::Equal => "as predicted",
                Ordering::Greater => "MORE than predicted",
                Ordering::Less => "FEWER than predicted",
            }
        )?;
    }
    let failed: u64 = [greedy_web, polite_web, greedy_db, db_polite]
        .into_iter()
        .map(|report| report.stats.failed() + report.unsent)
        .sum();
    if failed > 0 {
        writeln!(out, "\n  {failed} attempts were neither accepted nor refused.")?;
    }
    writeln!(out)?;
    Ok(ending(&verdicts, failed))
}

/// What to try while everything is up.
fn advise(stage: &Stage, socket: &Path, out: &mut dyn Write) -> io::Result<()> {
    let weir = env::current_exe().unwrap_or_else(|_| PathBuf::from("weir"));
    let (weir, socket) = (weir.display(), socket.display());
    let (web, greedy) = (stage.web.ipv4(), stage.greedy.namespace().name());
    let url = format!("http://{web}:{WEB_PORT}/");
    writeln!(out, "The clients go on and everything stays up until Ctrl-C. Try:\n")?;
    writeln!(out, "  {weir} status --socket {socket}")?;
    writeln!(out, "  {weir} explain web --socket {socket}")?;
    writeln!(out, "  {weir} explain api --socket {socket}")?;
    writeln!(out, "  {weir} trace --socket {socket}")?;
    writeln!(out, "  ip netns exec {greedy} curl -sS {url}")?;
    writeln!(out, "  ip netns exec {} curl -sS {url}", stage.polite.namespace().name())?;
    writeln!(out, "  ip netns exec {} ss -tan\n", stage.web.namespace().name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_bucket;

    #[test]
    fn more_than_predicted_outweighs_all_else() {
        let bucket = parse_bucket("5 per 60s").unwrap();
        let predicted = admits(bucket, &Asked::new(50, None));
        let seeing =
            |seen| Verdict { workload: "", limit: "", whose: "", asked: 50, predicted, seen };
        let (less, right, more) = (seeing(4), seeing(5), seeing(6));
        assert_eq!(ending(&[right, right], 0), Ending::AsPredicted);
        assert_eq!(ending(&[right, less], 0), Ending::Fewer);
        assert_eq!(ending(&[right, right], 1), Ending::Fewer);
        assert_eq!(ending(&[less, more], 1), Ending::More);
        let endings = [Ending::AsPredicted, Ending::More, Ending::Fewer, Ending::Interrupted];
        assert_eq!(endings.map(Ending::exit_code), [0, 1, 4, 130]);
        assert_eq!(Ending::Fewer.and(Ending::More), Ending::More);
        assert_eq!(Ending::Fewer.and(Ending::AsPredicted), Ending::Fewer);
        assert_eq!(Ending::AsPredicted.and(Ending::AsPredicted), Ending::AsPredicted);
        assert_eq!(Ending::More.and(Ending::Interrupted), Ending::Interrupted);
    }
}
