//! The whole demo, with agents that do nothing. Root only.

use std::path::Path;

use super::*;
use crate::{app::view::Status, config, lab::privileged};

/// An agent that is as ready as it is told to be, and limits nothing.
struct Idle(Readiness);

impl StartAgent for Idle {
    fn start(&self, site: &Site<'_>) -> Result<Box<dyn RunningAgent>, DemoError> {
        let text = std::fs::read_to_string(site.node_file).unwrap();
        let read = config::read(&text, "node.yaml", None).unwrap();
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        assert_eq!(read.file.workloads.len(), 3);
        Ok(Box::new(Self(self.0.clone())))
    }
}

impl RunningAgent for Idle {
    fn readiness(&mut self) -> Result<Readiness, DemoError> {
        Ok(self.0.clone())
    }

    fn status(&mut self) -> Result<Status, DemoError> {
        Ok(Status::default())
    }
}

fn play(interrupt: &Interrupt, agent: &dyn StartAgent) -> (Result<Ending, DemoError>, String) {
    let mut out = Vec::new();
    let options = Options { seconds: 1, hold: false };
    let ending = run_until(interrupt, &options, agent, &mut out);
    let text = String::from_utf8(out).unwrap();
    // What it printed names its namespaces. None of them is there any more.
    let names: Vec<_> =
        text.lines().filter_map(|line| line.trim().strip_prefix("netns: ")).collect();
    assert_eq!(names.len(), 3, "{text}");
    for name in names {
        assert!(!Path::new("/run/netns").join(name).exists(), "{name}");
    }
    (ending, text)
}

#[test]
fn without_limits_more_is_admitted_than_predicted_and_nothing_stays() {
    if !privileged("without_limits_more_is_admitted_than_predicted_and_nothing_stays") {
        return;
    }
    let (ending, text) = play(&Interrupt::default(), &Idle(Readiness::Ready));
    assert_eq!(ending.unwrap(), Ending::More, "{text}");
    let verdicts: Vec<_> = text.lines().filter(|line| line.ends_with(" predicted")).collect();
    let (first, second) = verdicts.split_at(5);
    for verdict in first {
        // Only the polite one asks for no more than it may.
        let word = if verdict.contains("of polite") { "as predicted" } else { "MORE than" };
        assert!(verdict.contains(word), "{verdict}");
    }
    // Without a breaker the second act gets no further than a server that works.
    assert_eq!(second.len(), 1, "{text}");
    assert!(second[0].ends_with("OTHER than predicted"), "{text}");
    assert!(text.contains("The rest of the act"), "{text}");
}

#[test]
fn an_interrupt_ends_the_demo_while_it_waits_for_the_agent() {
    if !privileged("an_interrupt_ends_the_demo_while_it_waits_for_the_agent") {
        return;
    }
    let interrupt = Interrupt::default();
    interrupt.ask();
    let (ending, text) = play(&interrupt, &Idle(Readiness::NotYet("starting".to_owned())));
    assert_eq!(ending.unwrap(), Ending::Interrupted, "{text}");
}

#[test]
fn an_interrupt_ends_the_demo_under_load() {
    if !privileged("an_interrupt_ends_the_demo_under_load") {
        return;
    }
    let interrupt = Interrupt::default();
    interrupt.ask();
    let (ending, text) = play(&interrupt, &Idle(Readiness::Ready));
    assert_eq!(ending.unwrap(), Ending::Interrupted, "{text}");
}

#[test]
fn a_program_that_is_no_agent_is_an_error_and_nothing_stays() {
    if !privileged("a_program_that_is_no_agent_is_an_error_and_nothing_stays") {
        return;
    }
    let (ending, _) = play(&Interrupt::default(), &ChildAgent::new("false"));
    let error = ending.unwrap_err();
    assert!(matches!(error, DemoError::AgentEnded { .. }), "{error}");
    assert!(error.to_string().contains("(it wrote nothing)"), "{error}");
    let (ending, _) = play(&Interrupt::default(), &ChildAgent::new("/no/such/weir"));
    assert!(ending.unwrap_err().to_string().contains("/no/such/weir"));
}
