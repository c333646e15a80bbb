//! `weir suggest WORKLOAD`: what was seen, as lines of a policy.

use std::{
    fmt::{self, Write as _},
    io::Write,
};

use clap::Args;

use super::{
    Answer, Asked, Exit,
    client::{Question, encode},
    error::CliError,
    look::{Look, Mood, clean, duration},
    table::{WIDTH, wrap},
    write_json,
};
use crate::app::view::Suggestion;

/// Suggest limits that would admit what was seen, for a start in shadow mode
///
/// A suggestion is made from the counters in the kernel, at most an hour back, and never from
/// guesses: what they do not tell is listed. The exit code is 1 when there is nothing to suggest.
#[derive(Debug, Args)]
pub(super) struct Suggest {
    /// The workload's name, as `weir status` shows it
    workload: String,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    answer: Answer,
}

impl Suggest {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let question = Question::get(format!("/suggest/{}", encode(&self.workload)));
        let answered = self.asked.agent().ask::<Suggestion>(&question)?;
        if self.answer.is_json() {
            write_json(out, &answered.raw)?;
        } else {
            out.write_all(render(&answered.value, &Look::of_stdout()).as_bytes())?;
        }
        Ok(Exit::ok_if(!answered.value.lines.is_empty()))
    }
}

fn render(suggestion: &Suggestion, look: &Look) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut text, suggestion, look);
    text
}

/// Whatever is not a line of the policy is a comment, so that all of it can be pasted.
fn write_all(text: &mut String, suggestion: &Suggestion, look: &Look) -> fmt::Result {
    let watched = duration(suggestion.watched_seconds);
    let name = clean(&suggestion.workload);
    if suggestion.lines.is_empty() {
        writeln!(text, "# Nothing to suggest for {name}: no new connection in {watched}.")?;
    } else {
        writeln!(
            text,
            "# A suggestion for {name}, from the last {watched}. Read it before you use it."
        )?;
        writeln!(text, "policy:")?;
    }
    for line in &suggestion.lines {
        let rule = clean(&format!("{}: {}", line.key, line.value));
        comment(text, "  ", &line.reason)?;
        writeln!(text, "  {}", look.paint(Mood::Title, &rule))?;
    }
    if !suggestion.unknown.is_empty() {
        writeln!(text, "# Not known:")?;
    }
    for unknown in &suggestion.unknown {
        let mut lines = wrap(&clean(unknown), WIDTH - 4).into_iter();
        if let Some(first) = lines.next() {
            writeln!(text, "# - {first}")?;
        }
        lines.try_for_each(|line| writeln!(text, "#   {line}"))?;
    }
    Ok(())
}

fn comment(text: &mut String, indent: &str, comment: &str) -> fmt::Result {
    let mut lines = wrap(&clean(comment), WIDTH - indent.len() - 2).into_iter();
    lines.try_for_each(|line| writeln!(text, "{indent}# {line}"))
}

#[cfg(test)]
mod tests {
    use super::{super::look::tests::PLAIN, *};
    use crate::admin::testing;

    #[test]
    fn a_suggestion_is_yaml_with_its_reasons() {
        let expected = "\
# A suggestion for web, from the last 1h1m. Read it before you use it.
policy:
  # counts what it would refuse
  mode: shadow
  # 58 asked in the busiest second
  connections.80: 120/s burst=240
# Not known:
# - how many sources asked
";
        assert_eq!(render(&testing::suggestion(), &PLAIN), expected);
    }

    #[test]
    fn it_can_be_pasted_into_a_node_file() {
        let mut suggestion = testing::suggestion();
        suggestion.unknown.push("many words ".repeat(40));
        suggestion.lines[1].reason = "many words ".repeat(40);
        let text = render(&suggestion, &PLAIN);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
        let file = format!("workloads:\n  - name: web\n    interface: eth0\n{indented}");
        let reading = crate::config::read(&file, "node.yaml", None).unwrap();
        let evaluated = crate::config::evaluate(&reading.file, &Default::default());
        let lines = &evaluated[0].effective.lines;
        assert_eq!(lines[0].limit.to_string(), "120/s burst=240 shadow");
    }

    #[test]
    fn nothing_seen_is_nothing_suggested() {
        let text = render(&Suggestion { workload: "web".to_owned(), ..Default::default() }, &PLAIN);
        assert_eq!(text, "# Nothing to suggest for web: no new connection in 0s.\n");
    }
}
