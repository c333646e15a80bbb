//! A refusal as a row: when, whose, from where to where, by which limit.

use std::net::SocketAddr;

use super::{
    look::{Look, Mood, rate},
    table::{Cell, Side, Table},
};
use crate::app::view::Refusal;

/// The refusals of one workload.
pub(super) fn table(refusals: &[Refusal], look: &Look) -> Table {
    let mut table = Table::new(&[
        ("TIME", Side::Left),
        ("AGO", Side::Right),
        ("VERDICT", Side::Left),
        ("CONNECTION", Side::Left),
        ("LIMIT", Side::Left),
        ("OFFERED", Side::Right),
        ("REASON", Side::Left),
    ]);
    for refusal in refusals {
        table.row([
            (look.local)(refusal.time).into(),
            look.ago(refusal.time).into(),
            Cell::new(&refusal.verdict, Mood::of_verdict(&refusal.verdict)),
            connection(refusal).into(),
            limit(refusal).into(),
            rate(refusal.offered_per_second).into(),
            refusal.reason.as_str().into(),
        ]);
    }
    table
}

/// What stands for no connection.
const NOBODY: &str = "[::]:0";

/// From the peer's end to the workload's, or the other way round. The workload's own address is
/// known: of it, only the port is shown.
pub(super) fn connection(refusal: &Refusal) -> String {
    let own = |endpoint: &str| match endpoint.parse::<SocketAddr>() {
        Ok(address) => format!(":{}", address.port()),
        Err(_) => endpoint.to_owned(),
    };
    let (source, destination) = (&refusal.source, &refusal.destination);
    if refusal.hook == "connect" {
        // It had no packet, and perhaps no port yet.
        return format!("connect -> {destination}");
    }
    if source == NOBODY {
        // A change that no connection caused: time did.
        return "-".to_owned();
    }
    if refusal.direction == "egress" {
        format!("{} -> {destination}", own(source))
    } else {
        format!("{source} -> {}", own(destination))
    }
}

/// The limit; packets that hide what they are, none refused.
pub(super) fn limit(refusal: &Refusal) -> &str {
    if refusal.limit.is_empty() { "-" } else { &refusal.limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(direction: &str, source: &str, destination: &str) -> Refusal {
        Refusal {
            direction: direction.to_owned(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            ..Refusal::default()
        }
    }

    #[test]
    fn of_the_workloads_own_end_only_the_port_is_shown() {
        let inbound = refusal("ingress", "10.0.0.9:51000", "10.0.0.5:80");
        assert_eq!(connection(&inbound), "10.0.0.9:51000 -> :80");
        let outbound = refusal("egress", "[2001:db8::5]:51000", "[2001:db8::9]:443");
        assert_eq!(connection(&outbound), ":51000 -> [2001:db8::9]:443");
        let odd = refusal("ingress", "?", "??");
        assert_eq!(connection(&odd), "? -> ??");
        assert_eq!(connection(&refusal("ingress", "[::]:0", "[::]:0")), "-");
    }
}
