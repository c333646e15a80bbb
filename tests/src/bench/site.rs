//! Places to measure at: nodes side by side, each with one client, one pod and one way to limit.
//!
//! Every contender has a node of its own, so nothing is attached, removed or reloaded between two
//! rounds, and nobody pays for another's rules. All of them are namespaces of one lab.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use weir::lab::{Host, Lab, Namespace, Node, Offload, Process, link_index, set_offload};

use weir_tests::counters::Packets;

use super::bpf::{self, Hook, Kind, Program};

/// How long an agent may take to attach.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A node with a client and a pod.
#[derive(Debug)]
pub(crate) struct Site {
    // These go first.
    agent: Option<Agent>,
    links: Vec<OwnedFd>,
    pub(crate) client: Host,
    pub(crate) pod: Host,
    pub(crate) node: Node,
}

#[derive(Debug)]
struct Agent {
    process: Process,
    socket: PathBuf,
}

/// How a site's pod is protected.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guard<'a> {
    /// Not at all.
    Nothing,
    /// By programs that do nothing, where weir's would be: what the hooks cost by themselves.
    Empty,
    /// By an agent with these lines of policy, at the pod, and early.
    Weir { policy: &'a [&'a str], xdp: Xdp },
    /// By nftables: for SYNs to the pod, at this hook, this verdict (with its limit).
    Nft { hook: &'a str, verdict: &'a str },
    /// By nftables: for all that is forwarded to the pod, this verdict.
    NftBytes(&'a str),
    /// By a queue at the node's end of the pod's veth pair, as `tc` is told of it, with its class.
    Queue { qdisc: &'a str, class: Option<&'a str> },
}

/// Where weir has XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Xdp {
    Nowhere,
    /// At the node's end of the client's way.
    Uplink,
    /// There too, but the client is a workload of the node that has a shield.
    Shield,
}

/// One of a site's interfaces.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The node's end of the pod's veth pair: where weir stands.
    Pod,
    /// The node's end of the client's.
    Uplink,
    /// The client's own.
    Client,
}

/// Limits of the same meaning for both.
pub(crate) mod limit {
    /// So far away that no connection meets it.
    pub(crate) const FAR: &str = "connections: 1000000/s burst=1000000";
    /// Spent by the first connection of the day.
    pub(crate) const SPENT: &str = "connections: 1 per 24h burst=1";
    pub(crate) const FAR_NFT: &str = "limit rate over 1000000/second burst 1000000 packets";
    pub(crate) const SPENT_NFT: &str = "limit rate over 1/day burst 1 packets";
}

impl Site {
    /// Makes a site; names are short, because interfaces are named after them.
    pub(crate) fn new(lab: &Lab, name: &str, guard: Guard<'_>) -> Result<Self> {
        let node = lab.node(name)?;
        let pod = node.pod(&format!("{name}-p"))?;
        let client = node.client(&format!("{name}-c"))?;
        let mut site = Self { agent: None, links: Vec::new(), client, pod, node };
        match guard {
            Guard::Nothing => {}
            Guard::Empty => {
                for hook in [Hook::TcEgress, Hook::TcIngress] {
                    site.attach(&bpf::returning(Kind::Tc, Kind::Tc.pass())?, hook, End::Pod)?;
                }
            }
            Guard::Weir { policy, xdp } => {
                let agent = site.start_agent(lab, name, policy, xdp);
                site.agent =
                    Some(agent.with_context(|| format!("cannot start the agent of {name}"))?);
            }
            Guard::Nft { hook, verdict } => {
                site.load_nft(hook, &format!("tcp flags & (syn | ack) == syn {verdict}"))?;
            }
            Guard::NftBytes(verdict) => site.load_nft("forward priority filter", verdict)?,
            Guard::Queue { qdisc, class } => {
                let end = site.pod.node_interface();
                let mut batch = format!("qdisc add dev {end} {qdisc}\n");
                if let Some(class) = class {
                    batch += &format!("class add dev {end} {class}\n");
                }
                feed(site.node.namespace(), "tc", &["-batch", "-"], &batch)?;
            }
        }
        Ok(site)
    }

    /// Attaches a program to one of the site's interfaces, for as long as the site lives.
    pub(crate) fn attach(&mut self, program: &Program, hook: Hook, end: End) -> Result<()> {
        let (namespace, interface) = match end {
            End::Pod => (self.node.namespace(), self.pod.node_interface()),
            End::Uplink => (self.node.namespace(), self.client.node_interface()),
            End::Client => (self.client.namespace(), self.client.interface().to_owned()),
        };
        let index = link_index(namespace, &interface)?;
        let link = namespace.run(|| bpf::attach(program, hook, index))?;
        self.links.push(link.with_context(|| format!("cannot attach a program to {interface}"))?);
        Ok(())
    }

    /// The agent's process, where there is one.
    pub(crate) fn agent(&self) -> Option<u32> {
        self.agent.as_ref().map(|agent| agent.process.id())
    }

    /// How often the agent's programs decided so: `tc ingress`, `pass admitted`. 0 without an agent.
    pub(crate) fn decisions(&self, hook: &str, decision: &str) -> Result<u64> {
        let Some(agent) = &self.agent else { return Ok(0) };
        let answer = get(&agent.socket, "/status").context("the agent does not answer")?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let status: serde_json::Value =
            serde_json::from_str(body).context("the agent's status is no JSON")?;
        let count = &status["workloads"][0]["decisions"][hook][decision];
        Ok(count.as_u64().unwrap_or(0))
    }

    /// Lets frames that XDP sends arrive at both ends of the client's veth pair, and fixes the
    /// neighbours, so that a program which drops everything leaves the rest of the way alone.
    pub(crate) fn prepare_for_frames(&self, sources: u8) -> Result<()> {
        let uplink = self.client.node_interface();
        let ends = [
            (self.node.namespace(), uplink.as_str()),
            (self.client.namespace(), self.client.interface()),
        ];
        for (namespace, interface) in ends {
            // A veth receives XDP frames only where NAPI runs, which generic receive offload needs.
            set_offload(namespace, interface, Offload::Gro, true)?;
        }
        let pod = self.pod.node_interface();
        let mut neighbours = vec![(self.pod.ipv4(), pod.as_str(), self.pod.mac())];
        neighbours.push((self.client.ipv4(), uplink.as_str(), self.client.mac()));
        let of_client =
            (0..sources).map(|n| (self.client.source_v4(n), uplink.as_str(), self.client.mac()));
        neighbours.extend(of_client);
        let mut batch = String::new();
        for (address, interface, mac) in neighbours {
            batch += &format!(
                "neigh replace {address} lladdr {} dev {interface} nud permanent\n",
                Mac(mac)
            );
        }
        feed(self.node.namespace(), "ip", &["-batch", "-"], &batch)
    }

    /// Packets that an interface of a namespace has received and sent so far.
    pub(crate) fn packets(&self, namespace: &Namespace, interface: &str) -> Result<Packets> {
        Packets::read(namespace, interface)
            .with_context(|| format!("cannot read the counters of {interface}"))
    }

    /// Packets at the node's end of the pod's veth pair: received are those from the pod.
    pub(crate) fn pod_packets(&self) -> Result<Packets> {
        self.packets(self.node.namespace(), &self.pod.node_interface())
    }

    /// Packets at the client's own interface.
    pub(crate) fn client_packets(&self) -> Result<Packets> {
        self.packets(self.client.namespace(), self.client.interface())
    }

    fn start_agent(&self, lab: &Lab, name: &str, policy: &[&str], xdp: Xdp) -> Result<Agent> {
        let at = |what: &str| lab.directory().join(format!("{name}.{what}"));
        let (file, socket, log) = (at("yaml"), at("sock"), at("log"));
        fs::write(&file, self.node_file(policy, xdp))
            .with_context(|| format!("cannot write {}", file.display()))?;
        // Each agent its own pins, beside each other in the lab's BPF file system.
        let pins = lab.pins().with_file_name(name);
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(weir()?);
        command.arg("agent").arg("--node-file").arg(&file).arg("--pin-dir").arg(&pins);
        command.arg("--socket").arg(&socket).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        let mut agent = self.node.namespace().spawn(command)?;
        await_ready(&mut agent, &socket).with_context(|| {
            format!("its log:\n{}", fs::read_to_string(&log).unwrap_or_default())
        })?;
        Ok(Agent { process: agent, socket })
    }

    fn node_file(&self, policy: &[&str], xdp: Xdp) -> String {
        let workload = |name: &str, host: &Host| {
            format!(
                "  - name: {name}\n    netns: {}\n    interface: {}\n    addresses: [{}]\n",
                host.namespace().name(),
                host.interface(),
                host.ipv4(),
            )
        };
        let mut text = match xdp {
            Xdp::Nowhere => String::new(),
            Xdp::Uplink => {
                let name = self.client.node_interface();
                format!("uplinks:\n  - interface: {name}\n    xdp: native\n")
            }
            Xdp::Shield => "shield: { xdp: always }\n".to_owned(),
        };
        text += "mode: enforce\nworkloads:\n";
        if xdp == Xdp::Shield {
            text += &workload("client", &self.client);
        }
        text += &workload("pod", &self.pod);
        // The budget for resets is out of the way: what is measured is how fast it can refuse.
        text += "    resets: 10000000/s burst=10000000\n    policy:\n";
        for line in policy {
            text += &format!("      {line}\n");
        }
        text
    }

    fn load_nft(&self, hook: &str, verdict: &str) -> Result<()> {
        let address: Ipv4Addr = self.pod.ipv4();
        let rules = format!(
            "table ip bench {{\n  chain guard {{\n    type filter hook {hook};\n    \
             ip daddr {address} {verdict}\n  }}\n}}\n"
        );
        feed(self.node.namespace(), "nft", &["-f", "-"], &rules)
    }
}

/// Whether nftables can be compared with.
pub(crate) fn has_nft() -> bool {
    Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The agent: what `WEIR_BIN` names, or what was built beside this program.
fn weir() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WEIR_BIN") {
        return Ok(path.into());
    }
    let path = std::env::current_exe().context("cannot find this program")?.with_file_name("weir");
    if !path.is_file() {
        bail!(
            "no agent at {}: `cargo xtask build` makes it, or WEIR_BIN names one",
            path.display()
        );
    }
    Ok(path)
}

fn await_ready(agent: &mut Process, socket: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        if let Some(status) = agent.ended()? {
            bail!("it ended ({status})");
        }
        let answer = match get(socket, "/readyz") {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(answer) => anyhow!("it answers {:?}", answer.trim()),
            Err(error) => anyhow!("{}: {error}", socket.display()),
        };
        if start.elapsed() > READY_WITHIN {
            return Err(
                answer.context(format!("it was not ready within {} s", READY_WITHIN.as_secs()))
            );
        }
        thread::sleep(ASK_EVERY);
    }
}

/// Asks an agent; all of its answer.
fn get(socket: &Path, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(READY_WITHIN))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Runs a tool in a namespace with this as its input.
fn feed(namespace: &Namespace, tool: &str, arguments: &[&str], input: &str) -> Result<()> {
    let output = namespace.run(|| -> io::Result<_> {
        let mut child = Command::new(tool)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    })?;
    let output = output.with_context(|| format!("cannot run {tool}"))?;
    if !output.status.success() {
        bail!(
            "{tool} refused:\n{}\nwhat it was given:\n{input}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// As people write it.
struct Mac([u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<_> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&words.join(":"))
    }
}
