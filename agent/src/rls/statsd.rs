//! Counts for a statsd server, under the original's names.
//!
//! What has grown since the last time is sent, in packets of UDP, so a server that is away costs
//! nothing and what it missed is not sent again.

use std::{
    collections::HashMap,
    net::{Ipv6Addr, UdpSocket},
    sync::Arc,
};

use cadence::{BufferedUdpMetricSink, Counted as _, MetricError, StatsdClient};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::warn;

use super::{connection::drained, settings::Statsd, state::State};
use crate::causes::with_causes;

/// Sends until the agent is to stop, and once more then.
pub(super) async fn report(state: Arc<State>, settings: Statsd, mut drain: watch::Receiver<bool>) {
    let mut sent = Sent::default();
    let mut tick = interval(settings.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Ok(());
    loop {
        let is_last = tokio::select! {
            () = drained(&mut drain) => true,
            _ = tick.tick() => false,
        };
        let (state, server) = (Arc::clone(&state), settings.server.clone());
        let send = move || {
            let grown = sent.grown(state.counts());
            let told = send(&server, &grown).map_err(|error| with_causes(&error));
            (sent, told)
        };
        let told;
        // It reads all series, and asks for the server's address.
        (sent, told) = match tokio::task::spawn_blocking(send).await {
            Ok(done) => done,
            Err(_) => (Sent::default(), Err("sending broke: this is a bug".to_owned())),
        };
        if let Err(error) = &told
            && told != before
        {
            warn!(server = settings.server, error, "statsd is not told; counts go on");
        }
        before = told;
        if is_last {
            return;
        }
    }
}

fn send(server: &str, counts: &[(String, u64)]) -> Result<(), MetricError> {
    if counts.is_empty() {
        return Ok(());
    }
    // A socket of IPv6 reaches servers of both families where the kernel has both.
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
    let socket = socket.or_else(|_| UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_nonblocking(true)?;
    let sink = BufferedUdpMetricSink::from(server, socket)?;
    let client = StatsdClient::from_sink("", sink);
    for (name, grown) in counts {
        client.count(name, *grown)?;
    }
    client.flush()
}

/// What was sent so far.
#[derive(Debug, Default)]
struct Sent(HashMap<String, u64>);

impl Sent {
    /// What is more than it was. A series that is gone is forgotten, and begins again at 0.
    fn grown(&mut self, counts: Vec<(String, u64)>) -> Vec<(String, u64)> {
        let before = std::mem::take(&mut self.0);
        let mut grown = Vec::new();
        for (name, count) in counts {
            let more = count.saturating_sub(before.get(&name).copied().unwrap_or_default());
            if more > 0 {
                grown.push((clean(&name), more));
            }
            self.0.insert(name, count);
        }
        grown
    }
}

/// A name may hold values of requests; a line of statsd ends at the end of a line.
fn clean(name: &str) -> String {
    name.replace(|letter: char| letter.is_control() || letter == ':' || letter == '|', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_grown_is_sent() {
        let mut sent = Sent::default();
        let counts = |a, b| vec![("a".to_owned(), a), ("b:1|c\n".to_owned(), b)];
        assert_eq!(sent.grown(counts(0, 2)), [("b_1_c_".to_owned(), 2)]);
        assert_eq!(sent.grown(counts(3, 2)), [("a".to_owned(), 3)]);
        assert_eq!(sent.grown(Vec::new()), []);
        assert_eq!(sent.grown(counts(1, 0)), [("a".to_owned(), 1)]);
    }
}
