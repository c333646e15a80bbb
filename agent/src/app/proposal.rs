//! From what was seen to lines of a policy that would admit it.
//!
//! Pure, and honest about what it cannot know: the kernel counts by limit and by workload, so a
//! port without a limit has no number, and neither has a source. (Spelling suggestions are
//! `policy::suggest`'s.)
//!
//! A line admits twice the busiest second every second, and twice that at once. The first factor
//! is headroom. The second covers that a second of the agent's is not a second of the clients':
//! two halves of neighbouring seconds, each as busy as the busiest, are within it.

use weir_common::gcra::Refill;

use super::{
    peaks::Peak,
    view::{Seen, SuggestedLine, Suggestion},
};
use crate::policy::{Bucket, Period, Rate};

/// How much more than was seen is admitted.
const HEADROOM: u64 = 2;
/// Less than this is too short a time to go by.
const SHORT_SECONDS: f64 = 3600.0;

/// What is known of one workload.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    pub(super) workload: String,
    /// Why nothing is seen of it, if that is so.
    pub(super) unseen: Option<String>,
    pub(super) watched_seconds: f64,
    /// Ports that a limit speaks of.
    pub(super) ports: Vec<ObservedPort>,
    /// New connections to any port, exempt peers and probes aside.
    pub(super) inbound: Peak,
    /// Those of them to ports that no limit speaks of.
    pub(super) unlimited: Peak,
    /// What holds for all ports together: `connections`, with its value.
    pub(super) holds: Vec<(String, String)>,
    /// Sources with a bucket on the whole node.
    pub(super) live_sources: u64,
}

/// One port of [`Observed`].
#[derive(Clone, Debug, Default)]
pub(super) struct ObservedPort {
    pub(super) port: u16,
    pub(super) peak: Peak,
    /// The limits that hold there, with their values.
    pub(super) holds: Vec<(String, String)>,
}

/// Makes a policy of it.
pub(super) fn propose(observed: &Observed) -> Suggestion {
    let mut lines = Vec::new();
    let mut unknown = Vec::new();
    if let Some(why) = &observed.unseen {
        unknown.push(format!("anything: its packets are not seen ({why})"));
    }
    let hold_all = observed.holds.iter().any(|(limit, _)| limit.starts_with("connections"));
    if hold_all || observed.unlimited.asked > 0 {
        lines.extend(line("connections", observed.inbound, &observed.holds, observed));
    }
    for ObservedPort { port, peak, holds } in &observed.ports {
        match line(&format!("connections.{port}"), *peak, holds, observed) {
            Some(line) => lines.push(line),
            None => unknown.push(format!("what port {port} needs: nobody asked for it")),
        }
    }
    if !lines.is_empty() {
        let reason = "counts what it would refuse and refuses nothing: watch it for a while first";
        let mode = SuggestedLine {
            key: "mode".to_owned(),
            value: "shadow".to_owned(),
            reason: reason.to_owned(),
            seen: None,
        };
        lines.insert(0, mode);
    }
    unknown.extend(unknowns(observed));
    Suggestion {
        workload: observed.workload.clone(),
        watched_seconds: observed.watched_seconds,
        lines,
        unknown,
    }
}

fn line(
    key: &str,
    peak: Peak,
    holds: &[(String, String)],
    observed: &Observed,
) -> Option<SuggestedLine> {
    if peak.asked == 0 {
        return None;
    }
    let second = peak.second.max(1);
    let tokens = sayable(second.saturating_mul(HEADROOM));
    let rate = Rate::new(u32::try_from(tokens).ok()?, Period::SECOND)?;
    let burst = u32::try_from(tokens.saturating_mul(HEADROOM)).ok()?;
    let bucket = Bucket::new(rate, burst, Refill::Smooth)?;
    let span = observed.watched_seconds.clamp(1.0, 60.0);
    let mean = peak.minute as f64 / span;
    let stretch = if span < 60.0 { format!("{span:.0} s") } else { "minute".to_owned() };
    let mut reason = format!(
        "{second} asked in the busiest second, {} in the busiest {stretch} ({mean:.1}/s); twice the \
         second, rounded up",
        peak.minute
    );
    if peak.refused > 0 {
        reason.push_str(&format!(
            "; {} of {} were refused: look who asked before you allow it",
            peak.refused, peak.asked
        ));
    }
    if !holds.is_empty() {
        let holds: Vec<_> =
            holds.iter().map(|(limit, value)| format!("`{limit}: {value}`")).collect();
        reason.push_str(&format!("; now: {}", holds.join(", ")));
    }
    let seen = Seen {
        peak_second: second,
        peak_minute: peak.minute,
        asked: peak.asked,
        refused: peak.refused,
    };
    let (key, value) = (key.to_owned(), bucket.to_string());
    Some(SuggestedLine { key, value, reason, seen: Some(seen) })
}

fn unknowns(observed: &Observed) -> Vec<String> {
    let mut unknown = Vec::new();
    if observed.unlimited.asked > 0 {
        unknown.push(format!(
            "which ports {} connections went to, {} in the busiest second: no limit speaks of \
             these ports, and they are counted together, SYNs that were sent again included. A \
             line `connections.PORT: 1000000/s shadow` makes a port count",
            observed.unlimited.asked, observed.unlimited.second
        ));
    }
    let sources = match observed.live_sources {
        0 => "none has a bucket on this node now".to_owned(),
        1 => "1 has a bucket on this node now".to_owned(),
        many => format!("{many} have a bucket on this node now, those of other workloads included"),
    };
    unknown.push(format!(
        "how many sources asked and how fast each: sources are not counted one by one ({sources}). \
         So no `connections-per-source` is suggested"
    ));
    if observed.watched_seconds < SHORT_SECONDS {
        let watched = observed.watched_seconds as u64;
        unknown.push(format!(
            "what a busier time brings: the agent has watched for {watched} s, and looks back an \
             hour at most"
        ));
    }
    unknown
}

/// The next number that people say: one or two digits that are easy, then zeros.
fn sayable(number: u64) -> u64 {
    const EASY: [u64; 10] = [10, 12, 15, 20, 25, 30, 40, 50, 60, 80];
    if number < 10 {
        return number;
    }
    let mut scale = 1;
    loop {
        if let Some(easy) = EASY.iter().find(|easy| number <= **easy * scale) {
            return easy * scale;
        }
        match scale.checked_mul(10) {
            // Nobody counts that far.
            Some(next) if next < u64::MAX / 100 => scale = next,
            _ => return number,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::parse_bucket;

    fn peak(second: u64, minute: u64, refused: u64) -> Peak {
        Peak { second, minute, refused, asked: 10 * minute }
    }

    fn web() -> Observed {
        let holds = |limit: &str, value: &str| (limit.to_owned(), value.to_owned());
        let port = ObservedPort {
            port: 8080,
            peak: peak(58, 1740, 0),
            holds: vec![holds("connections.8080", "20/s burst=40")],
        };
        let quiet = ObservedPort { port: 3306, ..ObservedPort::default() };
        Observed {
            workload: "web".to_owned(),
            watched_seconds: 7200.0,
            ports: vec![port, quiet],
            inbound: peak(58, 1740, 0),
            ..Observed::default()
        }
    }

    fn written(suggestion: &Suggestion) -> Vec<String> {
        suggestion.lines.iter().map(|line| format!("{}: {}", line.key, line.value)).collect()
    }

    #[test]
    fn what_was_seen_becomes_a_policy_in_shadow() {
        let suggestion = propose(&web());
        assert_eq!(written(&suggestion), ["mode: shadow", "connections.8080: 120/s burst=240"]);
        let reason = "58 asked in the busiest second, 1740 in the busiest minute (29.0/s); twice \
                      the second, rounded up; now: `connections.8080: 20/s burst=40`";
        assert_eq!(suggestion.lines[1].reason, reason);
        assert_eq!(suggestion.unknown[0], "what port 3306 needs: nobody asked for it");
        assert!(suggestion.unknown[1].starts_with("how many sources asked"), "{suggestion:?}");
        assert_eq!(suggestion.unknown.len(), 2);
    }

    #[test]
    fn refusals_and_a_short_time_are_told() {
        let mut observed = web();
        observed.watched_seconds = 30.0;
        observed.ports[0].peak.refused = 400;
        let suggestion = propose(&observed);
        let reason = &suggestion.lines[1].reason;
        assert!(reason.contains("1740 in the busiest 30 s (58.0/s)"), "{reason}");
        assert!(reason.contains("400 of 17400 were refused: look who asked"), "{reason}");
        assert!(suggestion.unknown.last().unwrap().contains("watched for 30 s"));
    }

    #[test]
    fn a_port_without_a_limit_has_no_line_and_is_not_invented() {
        let mut observed = web();
        observed.ports.clear();
        observed.unlimited = peak(7, 60, 0);
        observed.inbound = peak(60, 1800, 0);
        let suggestion = propose(&observed);
        assert_eq!(written(&suggestion), ["mode: shadow", "connections: 120/s burst=240"]);
        let text = suggestion.unknown.join("\n");
        assert!(text.contains("which ports 600 connections went to, 7 in the busiest"), "{text}");
    }

    #[test]
    fn without_any_connection_nothing_is_suggested() {
        let observed = Observed { unseen: Some("no such interface".to_owned()), ..web() };
        let observed = Observed { ports: Vec::new(), inbound: Peak::default(), ..observed };
        let suggestion = propose(&observed);
        assert!(suggestion.lines.is_empty());
        assert!(suggestion.unknown[0].contains("not seen (no such interface)"));
    }

    proptest! {
        #[test]
        fn a_line_can_be_written_and_admits_what_was_seen(second in 1..4_000_000_u64) {
            let observed = Observed { watched_seconds: 60.0, ..Observed::default() };
            let line = line("connections", peak(second, second, 0), &[], &observed).unwrap();
            let bucket = parse_bucket(&line.value).unwrap();
            prop_assert_eq!(bucket.to_string(), line.value);
            prop_assert!(bucket.rate().per_second() >= 2.0 * second as f64);
            prop_assert!(bucket.rate().per_second() <= 3.0 * second as f64);
            prop_assert!(u64::from(bucket.burst()) >= 4 * second);
        }
    }

    #[test]
    fn numbers_are_rounded_up_to_what_people_say() {
        let pairs = [(1, 1), (9, 9), (11, 12), (21, 25), (116, 120), (121, 150), (801, 1000)];
        for (number, said) in pairs {
            assert_eq!(sayable(number), said);
        }
        assert_eq!(sayable(u64::MAX), u64::MAX);
    }
}
