//! `weir status`: what is protected, and how it goes.

use std::{fmt::Write as _, io::Write};

use clap::Args;
use serde::de::DeserializeOwned;

use super::{
    Answer, Asked, Exit,
    client::Question,
    error::CliError,
    fleet,
    look::{Look, Mood, clean, count, duration, rate, value},
    table::{Cell, Side, Table},
    write_json,
};
use crate::app::view::{self, LimitStatus, WorkloadStatus};

/// Show every workload, limit and uplink of this node
///
/// The exit code is 1 when a workload is not decided or not enforced, an uplink has no program, or
/// the node file has problems; with --fleet, when the store does not answer. A pause and shadow mode
/// are meant that way.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Who shares quotas with this node through its store, and what they share
    #[arg(long)]
    fleet: bool,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    answer: Answer,
}

impl Status {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        if self.fleet {
            return self.show("/rls/fleet", fleet::render, fleet::is_well, out);
        }
        self.show("/status", render, is_well, out)
    }

    fn show<T: DeserializeOwned>(
        &self,
        path: &str,
        render: fn(&T, &Look) -> String,
        is_well: fn(&T) -> bool,
        out: &mut dyn Write,
    ) -> Result<Exit, CliError> {
        let answered = self.asked.agent().ask::<T>(&Question::get(path))?;
        if self.answer.is_json() {
            write_json(out, &answered.raw)?;
        } else {
            out.write_all(render(&answered.value, &Look::of_stdout()).as_bytes())?;
        }
        Ok(Exit::ok_if(is_well(&answered.value)))
    }
}

fn is_well(status: &view::Status) -> bool {
    let enforced = |workload: &WorkloadStatus| {
        !matches!(workload.condition.as_str(), "not-enforced" | "undecided")
    };
    status.ready
        && status.problems.is_empty()
        && status.workloads.iter().all(enforced)
        && status.uplinks.iter().all(|uplink| uplink.attached.is_some())
}

/// The whole answer for people.
fn render(status: &view::Status, look: &Look) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = head(&mut text, status, look);
    for part in [
        workloads(&status.workloads).render(look),
        uplinks(status).render(look),
        shields(status).render(look),
        limits(&status.workloads).render(look),
    ] {
        if !part.is_empty() {
            let _ = write!(text, "\n{part}");
        }
    }
    text
}

fn head(text: &mut String, status: &view::Status, look: &Look) -> std::fmt::Result {
    let ready = if status.ready {
        look.paint(Mood::Good, "ready")
    } else {
        look.paint(Mood::Bad, "not ready")
    };
    let (version, up) = (clean(&status.version), duration(status.uptime_seconds));
    writeln!(text, "weir {version}, {ready}, up {up}")?;
    let read = if status.loaded_at > 0.0 {
        format!("read {} ({} ago)", (look.local)(status.loaded_at), look.ago(status.loaded_at))
    } else {
        look.paint(Mood::Bad, "never understood")
    };
    writeln!(text, "node file {}, {read}", clean(&status.node_file))?;
    if let Some(trial) = &status.trial {
        let (until, left) = ((look.local)(trial.ends), duration((trial.ends - look.now).max(0.0)));
        let said = match trial.holds {
            true => format!("another file holds on trial until {until} ({left} left)"),
            false => "a file on trial was not understood; the last good one holds".to_owned(),
        };
        writeln!(text, "{}", look.paint(Mood::Notable, &said))?;
    }
    if let Some(kubernetes) = &status.kubernetes {
        let (node, pods) = (clean(&kubernetes.node), count(kubernetes.pods, "pod", "pods"));
        let doubt = kubernetes.doubt().map_or_else(String::new, |doubt| {
            format!("; {}", look.paint(Mood::Bad, &clean(&doubt)))
        });
        writeln!(text, "Kubernetes node {node}, {pods}{doubt}")?;
    }
    let sources = count(status.live_sources, "source has a bucket", "sources have buckets");
    let handshakes =
        count(status.live_handshakes, "handshake is remembered", "handshakes are remembered");
    writeln!(text, "{sources}, {handshakes}")?;
    if !status.problems.is_empty() {
        let title = count(status.problems.len() as u64, "problem", "problems");
        writeln!(text, "\n{}", look.paint(Mood::Bad, &format!("{title} with the node file:")))?;
        for problem in &status.problems {
            writeln!(text, "  {}", clean(problem))?;
        }
    }
    if status.workloads.is_empty() {
        writeln!(text, "\nno workload is protected: the node file names none")?;
    }
    Ok(())
}

fn workloads(workloads: &[WorkloadStatus]) -> Table {
    let mut table = Table::new(&[
        ("WORKLOAD", Side::Left),
        ("WHERE", Side::Left),
        ("CONDITION", Side::Left),
        ("ATTACHED", Side::Left),
        ("CONNECT", Side::Left),
        ("DETAIL", Side::Left),
    ]);
    for workload in workloads {
        table.row([
            workload.name.as_str().into(),
            workload.location.as_str().into(),
            condition(workload),
            workload.attached.as_deref().unwrap_or("-").into(),
            match &workload.connect {
                Some(connect) if connect.hooked => "hooked",
                Some(_) => "by RST",
                None => "-",
            }
            .into(),
            workload.detail.as_deref().unwrap_or_default().into(),
        ]);
    }
    table.without_idle("DETAIL", "").without_idle("CONNECT", "-")
}

/// The condition of a workload, with what is left of a pause.
pub(super) fn condition(workload: &WorkloadStatus) -> Cell {
    let mut text = workload.condition.clone();
    if let Some(left) = workload.paused_seconds {
        text = format!("{text}, {} left", duration(left));
    }
    Cell::new(text, Mood::of_condition(&workload.condition))
}

fn uplinks(status: &view::Status) -> Table {
    let mut table =
        Table::new(&[("UPLINK", Side::Left), ("ATTACHED", Side::Left), ("DETAIL", Side::Left)]);
    for uplink in &status.uplinks {
        let attached = match &uplink.attached {
            Some(kind) => Cell::new(kind, Mood::Good),
            None => Cell::new("-", Mood::Bad),
        };
        let detail = uplink.detail.as_deref().unwrap_or_default();
        table.row([uplink.interface.as_str().into(), attached, detail.into()]);
    }
    table.without_idle("DETAIL", "")
}

fn shields(status: &view::Status) -> Table {
    let mut table = Table::new(&[
        ("SHIELD", Side::Left),
        ("WORKLOAD", Side::Left),
        ("ATTACHED", Side::Left),
        ("REFUSED", Side::Right),
        ("DETAIL", Side::Left),
    ]);
    for shield in &status.shields {
        let attached = match &shield.attached {
            Some(kind) => Cell::new(kind, Mood::Good),
            None => Cell::new("-", Mood::Bad),
        };
        let refused = format!("{:.0}/s", shield.refused_per_second);
        let detail = shield.detail.as_deref().unwrap_or_default();
        table.row([
            shield.interface.as_str().into(),
            shield.workload.as_str().into(),
            attached,
            refused.into(),
            detail.into(),
        ]);
    }
    table.without_idle("DETAIL", "")
}

fn limits(workloads: &[WorkloadStatus]) -> Table {
    let mut table = Table::new(&[
        ("WORKLOAD", Side::Left),
        ("LIMIT", Side::Left),
        ("VALUE", Side::Left),
        ("TOKENS", Side::Right),
        ("NOW", Side::Right),
        ("OFFERED", Side::Right),
        ("ADMITTED", Side::Right),
        ("REFUSED", Side::Right),
        ("SHADOWED", Side::Right),
    ]);
    for workload in workloads {
        for limit in &workload.limits {
            table.row([
                workload.name.as_str().into(),
                limit.limit.as_str().into(),
                value(&limit.limit, &limit.value).into(),
                tokens(limit).into(),
                open(limit).into(),
                rate(limit.offered_per_second).into(),
                limit.admitted.to_string().into(),
                mooded(limit.refused, Mood::Bad),
                mooded(limit.shadowed, Mood::Notable),
            ]);
        }
    }
    table.without_idle("SHADOWED", "0").without_idle("NOW", "-")
}

/// What is open now, of what the limit is about; where a breaker is.
fn open(limit: &LimitStatus) -> String {
    if let Some(breaker) = &limit.breaker {
        return clean(&breaker.state);
    }
    let open = match limit.kind.as_str() {
        "max-handshakes" => limit.handshakes,
        _ => limit.connections,
    };
    open.map_or_else(|| "-".to_owned(), |open| open.to_string())
}

/// The tokens that are left; only rates for all sources together have one number of them.
pub(super) fn tokens(limit: &LimitStatus) -> String {
    limit.tokens.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string())
}

fn mooded(number: u64, mood: Mood) -> Cell {
    Cell::new(number.to_string(), if number > 0 { mood } else { Mood::Plain })
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
