//! `weir trace`: refusals as they happen.

use std::{
    io::{self, Write},
    ops::ControlFlow,
};

use clap::Args;

use super::{
    Answer, Asked, Exit,
    client::{ClientError, Question, encode},
    error::CliError,
    look::{Look, Mood, clean, rate},
    refusals,
};
use crate::app::view::{Refusal, Traced};

/// Show refusals as they happen, until Ctrl-C
///
/// The kernel tells of each limit's refusals at most a hundred times a second and CPU; the counts
/// of `weir status` and the metrics are exact.
#[derive(Debug, Args)]
pub(super) struct Trace {
    /// Only this workload's
    workload: Option<String>,
    /// End after so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    answer: Answer,
}

impl Trace {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let path = match &self.workload {
            Some(workload) => format!("/trace?workload={}", encode(workload)),
            None => "/trace".to_owned(),
        };
        let agent = self.asked.agent();
        let look = Look::of_stdout();
        let mut left = self.count;
        let mut columns = None;
        agent.follow(&Question::get(path), |line| {
            let traced = serde_json::from_slice(line).map_err(|source| {
                let path = agent.path().to_owned();
                ClientError::Gone { path, source: source.into() }
            })?;
            match traced {
                _ if self.answer.is_json() => {
                    out.write_all(line)?;
                    out.write_all(b"\n")?;
                }
                Traced::Lost { lost } => {
                    let _ =
                        writeln!(io::stderr(), "weir: {lost} refusals came too fast to be shown");
                }
                Traced::Refusal(ref refusal) => {
                    let is_first = columns.is_none();
                    let columns = columns.get_or_insert_with(Columns::default);
                    let cells = cells(refusal, &look);
                    columns.fit(&cells);
                    if is_first {
                        writeln!(out, "{}", columns.head(&look))?;
                    }
                    let mood = Mood::of_verdict(&refusal.verdict);
                    writeln!(out, "{}", columns.line(&cells, mood, &look))?;
                }
            }
            out.flush()?;
            if let (Traced::Refusal(_), Some(left)) = (&traced, &mut left) {
                *left -= 1;
                if *left == 0 {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Exit::Ok)
    }
}

/// The columns of a table whose end is not known: they grow as rows come that need it.
struct Columns([usize; 7]);

const TITLES: [&str; 7] =
    ["TIME", "WORKLOAD", "VERDICT", "CONNECTION", "LIMIT", "OFFERED", "REASON"];
const VERDICT: usize = 2;
const OFFERED: usize = 5;
const REASON: usize = 6;

impl Default for Columns {
    fn default() -> Self {
        Self(TITLES.map(str::len))
    }
}

impl Columns {
    fn head(&self, look: &Look) -> String {
        look.paint(Mood::Title, &self.line(&TITLES.map(str::to_owned), Mood::Plain, look))
    }

    fn fit(&mut self, cells: &[String; 7]) {
        for (width, cell) in self.0.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }

    fn line(&self, cells: &[String; 7], mood: Mood, look: &Look) -> String {
        let mut line = String::new();
        for (index, (cell, &width)) in cells.iter().zip(&self.0).enumerate() {
            line.push_str(&match index {
                OFFERED => format!("{cell:>width$}  "),
                // Nothing follows it.
                REASON => cell.clone(),
                VERDICT => look.paint(mood, &format!("{cell:<width$}")) + "  ",
                _ => format!("{cell:<width$}  "),
            });
        }
        line
    }
}

fn cells(refusal: &Refusal, look: &Look) -> [String; 7] {
    [
        (look.local)(refusal.time),
        clean(&refusal.workload),
        clean(&refusal.verdict),
        clean(&refusals::connection(refusal)),
        clean(refusals::limit(refusal)),
        rate(refusal.offered_per_second),
        clean(&refusal.reason),
    ]
}

#[cfg(test)]
mod tests {
    use super::{super::look::tests::PLAIN, *};
    use crate::admin::testing;

    #[test]
    fn columns_grow_with_what_comes() {
        let mut columns = Columns::default();
        let mut line = |refusal: &Refusal| {
            let cells = cells(refusal, &PLAIN);
            columns.fit(&cells);
            (columns.head(&PLAIN), columns.line(&cells, Mood::Bad, &PLAIN))
        };
        let first = testing::refusal("10.0.0.9:51234");
        let (head, row) = line(&first);
        let expected = "\
TIME      WORKLOAD  VERDICT  CONNECTION             LIMIT           OFFERED  REASON
11:59:57  web       reset    10.0.0.9:51234 -> :80  connections.80    812/s  connection_rate";
        assert_eq!(format!("{head}\n{row}"), expected);
        let wide = Refusal { limit: "connections-per-source.8080".to_owned(), ..first.clone() };
        line(&wide);
        let (head, row) = line(&first);
        let expected = "\
TIME      WORKLOAD  VERDICT  CONNECTION             LIMIT                        OFFERED  REASON
11:59:57  web       reset    10.0.0.9:51234 -> :80  connections.80                 812/s  connection_rate";
        assert_eq!(format!("{head}\n{row}"), expected);
    }
}
