//! What the stories in the lab have in common: workloads on each side of attachment, servers in
//! them, clients that ask, and what a limit may admit.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    time::Duration,
};

use weir::{
    lab::{Host, Namespace, Node},
    load::{Plan, Report, Server, Stats, Talk},
};

/// Where a workload's packets are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// At the host's end of a pod's veth.
    Host,
    /// Inside the pod.
    Pod,
    /// At a machine's own interface: the agent runs in the workload.
    Own,
}

impl Side {
    /// The namespace that the agent runs in.
    pub fn agent_in<'a>(self, node: &'a Node, workload: &'a Host) -> &'a Namespace {
        match self {
            Self::Host | Self::Pod => node.namespace(),
            Self::Own => workload.namespace(),
        }
    }

    /// The workload's entry in a node file. `more` are further lines of it, one key each; a line
    /// below such a key is indented.
    pub fn entry(self, workload: &Host, more: &[&str]) -> String {
        let mut text = format!("  - name: {}\n", workload.name());
        let mut line = |line: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "    {line}");
        };
        line(&format!("interface: {}", workload.interface()));
        match self {
            Self::Host | Self::Pod => {
                line(&format!("netns: {}", workload.namespace().name()));
                line(if self == Self::Host { "attach: host" } else { "attach: pod" });
            }
            Self::Own => {}
        }
        more.iter().for_each(|more| line(more));
        text
    }

    /// A node file with one workload and its policy.
    pub fn node_file(self, workload: &Host, policy: &[&str]) -> String {
        let policy = policy_lines(policy);
        let lines: Vec<_> = policy.iter().map(String::as_str).collect();
        node_file(&[self.entry(workload, &lines)])
    }
}

/// The lines of a workload's entry that are its policy.
pub fn policy_lines(policy: &[&str]) -> Vec<String> {
    let mut lines = vec!["policy:".to_owned()];
    lines.extend(policy.iter().map(|line| format!("  {line}")));
    lines
}

/// A node file with these workloads.
pub fn node_file(entries: &[String]) -> String {
    format!("workloads:\n{}", entries.concat())
}

/// A pod's address in both families, or in the one that this kernel has.
pub fn addresses(host: &Host) -> Vec<IpAddr> {
    let mut addresses = vec![IpAddr::from(host.ipv4())];
    if host.namespace().has_ipv6() {
        addresses.push(host.ipv6().into());
    }
    addresses
}

/// A server on these ports of a host, in both families, that says one byte.
pub fn serve(host: &Host, ports: &[u16]) -> Server {
    let all: Vec<_> = addresses(host)
        .into_iter()
        .flat_map(|address| ports.iter().map(move |&port| SocketAddr::new(address, port)))
        .collect();
    let server = host.namespace().run(|| Server::start(&all, Talk::Byte));
    server.expect("enter the namespace").expect("listen")
}

/// Carries out a plan in a namespace.
pub fn run(from: &Namespace, plan: Plan) -> Report {
    from.run(|| plan.run()).expect("enter the namespace").expect("start a client")
}

/// Connects so many times, one after the other, and hears the server's byte each time it can.
pub fn ask(from: &Namespace, to: SocketAddr, attempts: u64) -> Stats {
    run(from, Plan::to(to).talk(Talk::Byte).attempts(attempts)).stats
}

/// The same, given up soon: for where no answer is expected.
pub fn ask_in_vain(from: &Namespace, to: SocketAddr, attempts: u64) -> Stats {
    let plan = Plan::to(to).talk(Talk::Byte).attempts(attempts).parallel(attempts as usize);
    run(from, plan.attempts(attempts).timeout(Duration::from_millis(400))).stats
}

/// A counter of the namespace's stack: `Tcp RetransSegs` for example.
pub fn stack_counter(namespace: &Namespace, protocol: &str, name: &str) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/snmp");
    let text = namespace.run(read).expect("enter the namespace").expect("read its counters");
    let prefix = format!("{protocol}:");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split_whitespace().zip(values.split_whitespace()).find(|(n, _)| *n == name);
    let value = found.and_then(|(_, value)| value.parse().ok());
    value.unwrap_or_else(|| panic!("no {protocol} {name} in {text}"))
}

/// Loads nftables rules into a namespace; `false`, and the test counted as skipped, where there is
/// no `nft`.
#[must_use]
pub fn nft(test: &str, namespace: &Namespace, rules: &str) -> bool {
    let load = || {
        let mut nft = Command::new("nft");
        nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = nft.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(rules.as_bytes())?;
        }
        child.wait_with_output()
    };
    match namespace.run(load).expect("enter the namespace") {
        Ok(output) if output.status.success() => true,
        Ok(output) => panic!("nft refuses {rules}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            weir::lab::skip(test, "nftables is not installed");
            false
        }
    }
}

/// What a token bucket admits in a time, from full and with somebody always asking: its burst, and
/// what comes back. Exact arithmetic of its own: it shares nothing with the data plane.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Tokens ...
    pub tokens: u64,
    /// ... that come back in this time.
    pub period: Duration,
    /// Tokens of the full bucket.
    pub burst: u64,
}

impl Budget {
    /// So many a second.
    pub const fn per_second(tokens: u64, burst: u64) -> Self {
        Self { tokens, period: Duration::from_secs(1), burst }
    }

    /// What it admits in this time, and no more.
    pub fn in_time(self, time: Duration) -> u64 {
        let back = time.as_nanos() * u128::from(self.tokens) / self.period.as_nanos();
        self.burst + u64::try_from(back).unwrap_or(u64::MAX)
    }
}
