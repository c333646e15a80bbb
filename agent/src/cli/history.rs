//! `weir history WORKLOAD`: what changed, when, and at whose word.

use std::{fmt::Write as _, io::Write};

use clap::Args;

use super::{
    Answer, Asked, Exit,
    client::{Question, encode},
    error::CliError,
    look::{Look, Mood, count},
    table::{Cell, Side, Table},
    write_json,
};
use crate::app::view::{self, HistoryEntry, Stated};

/// Show what changed for a workload: policy, attachment, condition, pauses
///
/// The newest change comes last. The agent keeps the last 50 of each workload, 200 in all; they
/// survive a restart of the agent, but not of the node.
#[derive(Debug, Args)]
pub(super) struct History {
    /// The workload's name, as `weir status` shows it; one that is gone is known for a while
    workload: String,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    answer: Answer,
}

impl History {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let question = Question::get(format!("/history/{}", encode(&self.workload)));
        let answered = self.asked.agent().ask::<view::History>(&question)?;
        if self.answer.is_json() {
            write_json(out, &answered.raw)?;
        } else {
            out.write_all(render(&answered.value, &Look::of_stdout()).as_bytes())?;
        }
        Ok(Exit::Ok)
    }
}

fn render(history: &view::History, look: &Look) -> String {
    let mut table = Table::new(&[
        ("TIME", Side::Left),
        ("CHANGED", Side::Left),
        ("FROM", Side::Left),
        ("TO", Side::Left),
        ("BY", Side::Left),
    ]);
    for entry in &history.entries {
        table.row([
            (look.local)(entry.time).into(),
            entry.key.as_str().into(),
            value(entry, entry.from.as_ref(), Mood::Plain),
            value(entry, entry.to.as_ref(), mood(entry)),
            by(entry).into(),
        ]);
    }
    let mut text = table.render(look);
    if history.entries.is_empty() {
        text.push_str("nothing has changed since the agent began to look\n");
    }
    if history.forgotten > 0 {
        let older = count(history.forgotten, "older change was", "older changes were");
        // Writing to a string does not fail.
        let _ = writeln!(text, "{older} forgotten");
    }
    text
}

fn mood(entry: &HistoryEntry) -> Mood {
    match (&entry.to, entry.key.as_str()) {
        (Some(to), "condition") => Mood::of_condition(&to.value),
        (Some(_), "pause") => Mood::Notable,
        (None, "attached") => Mood::Bad,
        _ => Mood::Plain,
    }
}

fn value(entry: &HistoryEntry, stated: Option<&Stated>, mood: Mood) -> Cell {
    let text = stated.map_or("-", |stated| stated.value.as_str());
    // The destinations of a line stand in its key.
    Cell::new(super::look::value(&entry.key, text), mood)
}

/// Who asked; else whose word the new value is, or the old one's that is gone.
fn by(entry: &HistoryEntry) -> String {
    if !entry.by.is_empty() {
        return entry.by.clone();
    }
    let stated = entry.to.as_ref().or(entry.from.as_ref());
    stated.map(|stated| stated.origin.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{super::look::tests::PLAIN, *};
    use crate::admin::testing;

    #[test]
    fn changes_are_told_oldest_first_with_their_origin() {
        let expected = "\
TIME      CHANGED         FROM          TO               BY
11:00:00  connections.80  -             100/s            workload, /etc/weir/node.yaml:17:7
11:00:01  condition       not-enforced  enforced
11:56:40  pause           -             15m              uid 0, pid 4242
11:58:20  connections.80  100/s         100/s burst=200  workload, /etc/weir/node.yaml:17:7
3 older changes were forgotten
";
        assert_eq!(render(&testing::history(), &PLAIN), expected);
        let text = render(&view::History::default(), &PLAIN);
        assert_eq!(text, "nothing has changed since the agent began to look\n");
    }
}
