//! `weir explain WORKLOAD`: what holds, whose word it is, and what it refused.

use std::{
    fmt::{self, Write as _},
    io::Write,
};

use clap::Args;
use serde::de::DeserializeOwned;

use super::{
    Answer, Asked, Exit,
    client::{Answered, Question, encode},
    cluster::Through,
    error::CliError,
    explain_domain,
    look::{Look, Mood, clean, count, duration, rate, value},
    refusals,
    table::{Cell, Side, Table, WIDTH, wrap},
    write_json,
};
use crate::{
    app::view::{
        BreakerStatus, ConnectStatus, ExplainedLine, Explanation, LimitStatus, SourcesStatus,
        WorkloadStatus,
    },
    datapath::VolumeCounts,
    metrics::{Kind, kind_of},
};

/// Where the facts about a line start.
const FACTS: usize = 13;

/// Show why a workload's connections, or requests to a domain of quotas, were refused
///
/// Of a workload: each line of the policy that holds, with its origin, what made it stricter, the
/// tokens that are left and what it did; the decisions in the kernel; the last ten refusals. Of a
/// domain: its rules, what was counted for each, the descriptors that are refused most, and callers
/// who may not ask.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The workload's name, as `weir status` shows it
    #[arg(required_unless_present = "domain")]
    workload: Option<String>,
    /// A domain of Envoy's rate limit service instead
    #[arg(long, value_name = "DOMAIN", conflicts_with = "workload")]
    domain: Option<String>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    through: Through,
    #[command(flatten)]
    answer: Answer,
}

impl Explain {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let Self { workload, domain, .. } = &self;
        match domain {
            None if self.through.is_wanted() => {
                let pod = workload.as_deref().unwrap_or_default();
                self.tell(&self.through.explain(pod)?, render, out)
            }
            Some(_) if self.through.is_wanted() => Err(CliError::Failed(anyhow::anyhow!(
                "domains are explained on their node: run `weir explain --domain` there"
            ))),
            None => {
                let workload = workload.as_deref().unwrap_or_default();
                self.show(format!("/explain/{}", encode(workload)), render, out)
            }
            Some(domain) => {
                let path = format!("/rls/domains/{}", encode(domain));
                self.show(path, explain_domain::render, out)
            }
        }
    }

    fn show<T: DeserializeOwned>(
        &self,
        path: String,
        render: fn(&T, &Look) -> String,
        out: &mut dyn Write,
    ) -> Result<Exit, CliError> {
        self.tell(&self.asked.agent().ask::<T>(&Question::get(path))?, render, out)
    }

    fn tell<T>(
        &self,
        answered: &Answered<T>,
        render: fn(&T, &Look) -> String,
        out: &mut dyn Write,
    ) -> Result<Exit, CliError> {
        if self.answer.is_json() {
            write_json(out, &answered.raw)?;
        } else {
            out.write_all(render(&answered.value, &Look::of_stdout()).as_bytes())?;
        }
        Ok(Exit::Ok)
    }
}

fn render(explanation: &Explanation, look: &Look) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut text, explanation, look);
    text
}

fn write_all(text: &mut String, explanation: &Explanation, look: &Look) -> fmt::Result {
    let Explanation { workload, lines, problems, refusals } = explanation;
    head(text, workload, look)?;
    answer(text, explanation, look)?;
    if !problems.is_empty() {
        title(text, look, "PROBLEMS")?;
        for problem in problems {
            writeln!(text, "  {}", clean(problem))?;
        }
    }
    title(text, look, "POLICY")?;
    if lines.is_empty() {
        writeln!(text, "  no limit holds for it")?;
    }
    for line in lines {
        let limit = workload.limits.iter().find(|limit| limit.limit == line.limit);
        explain_line(text, line, limit, look)?;
    }
    for limit in &workload.limits {
        if !lines.iter().any(|line| line.limit == limit.limit) {
            // Buckets beside the policy: probes.
            heading(text, &limit.limit, &limit.value, look)?;
            counts(text, limit)?;
        }
    }
    let (decisions, changes, faults) = decisions(workload);
    table(text, look, "DECISIONS", decisions)?;
    table(text, look, "CHANGES OF BREAKERS", changes)?;
    table(text, look, "FAULTS (the packets are among the decisions too)", faults)?;
    table(text, look, "LAST REFUSALS (sampled)", refusals::table(refusals, look))
}

pub(super) fn table(text: &mut String, look: &Look, heading: &str, table: Table) -> fmt::Result {
    if table.is_empty() {
        return Ok(());
    }
    title(text, look, heading)?;
    text.push_str(&table.render(look));
    Ok(())
}

fn head(text: &mut String, workload: &WorkloadStatus, look: &Look) -> fmt::Result {
    let name = look.paint(Mood::Title, &clean(&workload.name));
    let condition =
        look.paint(Mood::of_condition(&workload.condition), &clean(&workload.condition));
    write!(text, "{name}: {condition}")?;
    if let Some(left) = workload.paused_seconds {
        write!(text, " for another {}", duration(left))?;
    }
    write!(text, ", {}", clean(&workload.location))?;
    match &workload.attached {
        Some(kind) => writeln!(text, ", attached by {}", clean(kind))?,
        None => writeln!(text, ", nothing attached")?,
    }
    match &workload.connect {
        Some(ConnectStatus { hooked: true, .. }) => {
            writeln!(text, "its connect() fails at once where a limit refuses")?;
        }
        Some(ConnectStatus { detail, .. }) => {
            let detail = detail.as_deref().unwrap_or_default();
            let sentence = format!("its connect() is not hooked, RSTs refuse: {detail}");
            writeln!(text, "{}", wrap(&clean(&sentence), WIDTH).join("\n"))?;
        }
        None => {}
    }
    if let Some(pace) = &workload.pace {
        let way = if pace.direction == "egress" { "from it" } else { "towards it" };
        let sentence = match (&pace.by, &pace.detail) {
            (Some(by), _) => format!("its byte limits delay what is too much {way}, by {by}"),
            (None, why) => format!(
                "its byte limits drop what is too much: {}",
                why.as_deref().unwrap_or_default()
            ),
        };
        writeln!(text, "{}", wrap(&clean(&sentence), WIDTH).join("\n"))?;
    }
    if let Some(detail) = &workload.detail {
        writeln!(text, "{}", wrap(&clean(detail), WIDTH).join("\n"))?;
    }
    Ok(())
}

/// In one sentence: what was refused last, and why.
fn answer(text: &mut String, explanation: &Explanation, look: &Look) -> fmt::Result {
    let Some(last) = explanation.refusals.first() else {
        return writeln!(text, "nothing was refused lately");
    };
    let verb = if last.verdict == "shadow" { "would have refused" } else { "refused" };
    let ago = look.ago(last.time);
    let peer = if last.direction == "egress" { &last.destination } else { &last.source };
    let toward = if last.direction == "egress" { "to" } else { "from" };
    let sentence = if last.limit.is_empty() {
        format!("{ago} ago a packet {toward} {peer} was refused: {}", last.reason)
    } else {
        let bucket = if last.value.is_empty() {
            format!("`{}`", last.limit)
        } else {
            format!("`{}` ({})", last.limit, last.value)
        };
        let offered = rate(last.offered_per_second);
        format!(
            "{ago} ago {bucket} {verb} a connection {toward} {peer}: {}, {offered} were asking",
            last.reason
        )
    };
    writeln!(text, "{}", wrap(&clean(&sentence), WIDTH).join("\n"))
}

fn title(text: &mut String, look: &Look, title: &str) -> fmt::Result {
    writeln!(text, "\n{}", look.paint(Mood::Title, title))
}

fn explain_line(
    text: &mut String,
    line: &ExplainedLine,
    limit: Option<&LimitStatus>,
    look: &Look,
) -> fmt::Result {
    heading(text, &line.limit, &line.value, look)?;
    fact(text, "from", &line.origin)?;
    line.clamps.iter().try_for_each(|clamp| fact(text, "clamped", clamp))?;
    if let Some(shadow) = &line.shadow {
        fact(text, "only counts", shadow)?;
    }
    limit.map_or(Ok(()), |limit| counts(text, limit))
}

fn heading(text: &mut String, limit: &str, full: &str, look: &Look) -> fmt::Result {
    let value = clean(&value(limit, full));
    let limit = look.paint(Mood::Title, &clean(limit));
    if value.is_empty() {
        return writeln!(text, "  {limit}");
    }
    writeln!(text, "  {limit} {value}")
}

fn counts(text: &mut String, limit: &LimitStatus) -> fmt::Result {
    if let Some(volume) = &limit.volume {
        return volumes(text, limit, volume);
    }
    fact(text, "now", &format!("{}{} asking", state(limit), rate(limit.offered_per_second)))?;
    if let Some(SourcesStatus { source: Some(source), share, .. }) = &limit.sources {
        let part = share * 100.0;
        let mind = format!(
            "{part:.0} % of it comes from {source}: if that is a node, a gateway, a proxy or a NAT, the \
             clients behind it share one bucket"
        );
        fact(text, "mind", &mind)?;
    }
    let with = limit.counted_with.as_ref().map(|other| format!("with `{other}`: "));
    let with = with.unwrap_or_default();
    let mut so_far = format!("{with}{} admitted, {} refused", limit.admitted, limit.refused);
    if limit.shadow || limit.shadowed > 0 {
        so_far.push_str(&format!(", {} would have been refused", limit.shadowed));
    }
    fact(text, "so far", &so_far)
}

/// What a limit of bytes or packets let pass.
fn volumes(text: &mut String, limit: &LimitStatus, volume: &VolumeCounts) -> fmt::Result {
    let offered = format!("{} packets offered", rate(limit.offered_per_second));
    fact(text, "now", &offered)?;
    let both =
        |bytes, packets| format!("{} in {}", size(bytes), count(packets, "packet", "packets"));
    let mut so_far = format!("{} passed", both(volume.passed_bytes, volume.passed_packets));
    for (bytes, packets, what) in [
        (volume.marked_bytes, volume.marked_packets, "marked of these"),
        (volume.dropped_bytes, volume.dropped_packets, "dropped"),
        (volume.shadowed_bytes, volume.shadowed_packets, "would have been dropped"),
    ] {
        if packets > 0 {
            so_far.push_str(&format!(", {} {what}", both(bytes, packets)));
        }
    }
    fact(text, "so far", &so_far)
}

/// Bytes for people, in the unit that leaves at most four digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 10_000.0 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    format!("{scaled:.0} {}", UNITS.get(unit).unwrap_or(&""))
}

/// What a limit stands at.
fn state(limit: &LimitStatus) -> String {
    if let Some(connections) = limit.connections {
        let open = count(connections, "connection", "connections");
        let handshakes = limit.handshakes.unwrap_or_default();
        return format!("{open}, {handshakes} of them not complete, ");
    }
    if let Some(breaker) = &limit.breaker {
        return format!("{}, ", where_it_is(breaker));
    }
    match (limit.tokens, limit.kind.as_str()) {
        (Some(tokens), _) => format!("{} left, ", count(tokens, "token", "tokens")),
        (None, "connections-per-source") => "a bucket for each source, ".to_owned(),
        (None, "max-connections-per-source") => "a count for each source, ".to_owned(),
        (None, _) => String::new(),
    }
}

/// Where a breaker is, in words.
fn where_it_is(breaker: &BreakerStatus) -> String {
    let times = count(breaker.ejections, "time in a row", "times in a row");
    match breaker.state.as_str() {
        "open" if breaker.told => {
            let left = breaker.open_seconds;
            format!("open for {left:.1} s more, because two other workloads' breakers tripped")
        }
        "open" => format!("open for {:.1} s more, {times}", breaker.open_seconds),
        "half-open" => format!(
            "half-open, {} out and {} succeeded",
            count(breaker.probes_out, "probe", "probes"),
            breaker.probes_succeeded
        ),
        state => format!(
            "{state}, {} in a row, {} of {} failed lately, {} not answered yet",
            count(breaker.consecutive, "failure", "failures"),
            breaker.failed,
            breaker.failed + breaker.succeeded,
            breaker.unanswered
        ),
    }
}

/// A word and what it says of the line above, wrapped beside the word.
fn fact(text: &mut String, word: &str, fact: &str) -> fmt::Result {
    let indent = 4 + FACTS;
    for (index, part) in wrap(&clean(fact), WIDTH - indent).iter().enumerate() {
        let word = if index == 0 { word } else { "" };
        writeln!(text, "    {word:<FACTS$}{part}")?;
    }
    Ok(())
}

/// The decisions, what became of breakers, and what went otherwise than decided.
fn decisions(workload: &WorkloadStatus) -> (Table, Table, Table) {
    let mut decisions = Table::new(&[
        ("AT", Side::Left),
        ("VERDICT", Side::Left),
        ("REASON", Side::Left),
        ("PACKETS", Side::Right),
    ]);
    let few = [("AT", Side::Left), ("REASON", Side::Left), ("TIMES", Side::Right)];
    let (mut changes, mut faults) = (Table::new(&few), Table::new(&few));
    for (place, row) in &workload.decisions {
        for (what, count) in row {
            let (verdict, reason) = what.split_once(' ').unwrap_or((what, ""));
            let (at, count) = (place.as_str().into(), count.to_string().into());
            match kind_of(reason) {
                Kind::Decision | Kind::Shielded => {
                    let verdict = Cell::new(verdict, Mood::of_verdict(verdict));
                    decisions.row([at, verdict, reason.into(), count]);
                }
                Kind::Fault | Kind::LostEvent => faults.row([at, reason.into(), count]),
                Kind::Edge => changes.row([at, reason.into(), count]),
            }
        }
    }
    (decisions, changes, faults)
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
