//! Queues that send packets at the time they carry: what byte limits need to delay rather than drop.
//!
//! `fq` is such a queue. It stands behind the program at an interface's egress and nowhere else: what a
//! veth's host end receives goes on without a queue, so only one direction of a workload can be paced.
//!
//! The agent puts an `fq` where it is told to, and only where nobody chose a queue: those that the kernel
//! made by itself have the handle 0, all others have one. The kernel keeps that promise: asked to create
//! and not to replace, it refuses where a queue has a handle
//! (<https://github.com/torvalds/linux/blob/v6.1/net/sched/sch_api.c#L1550>). The handle that ours has
//! says that it is ours, to this agent and to the next.

use std::{fmt, io, path::Path};

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle,
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcHandle, TcMessage, TcOption},
    },
};
use serde::Serialize;

use crate::workload::Interface;

const FQ: &str = "fq";
const MQ: &str = "mq";
/// "we" in ASCII.
const OURS: TcHandle = TcHandle { major: 0x7765, minor: 0 };

/// `TCA_FQ_PLIMIT` and `TCA_FQ_FLOW_PLIMIT`: how many packets wait, of all and of one connection.
const LIMITS: [u16; 2] = [1, 2];
/// Ours holds as many as come within the longest delay at 1 Gbit/s, in frames of 300 bytes: `fq`'s own
/// default of 100 for a connection is less than UDP sends in that time at 12 Mbit/s.
const PACKETS: u32 = 40_000;

/// What byte limits do at an interface with what is too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// Delay it where an `fq` is found, else drop it.
    #[default]
    Auto,
    /// Delay it; put an `fq` where nobody chose a queue.
    Fq,
    /// Drop it.
    Off,
}

/// Whether they delay it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Pacing {
    /// By an `fq` that is somebody else's.
    Found,
    /// By an `fq` that the agent put there.
    Ours,
    /// They drop it, and this is why.
    Not(String),
}

impl Pacing {
    /// Whether they do.
    pub const fn is_paced(&self) -> bool {
        matches!(self, Self::Found | Self::Ours)
    }
}

/// One queue of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Queue {
    ifindex: i32,
    handle: TcHandle,
    parent: TcHandle,
    kind: String,
}

/// The queues of a network namespace.
#[derive(Debug)]
pub(super) struct Queues(Vec<Queue>);

/// What stands at an interface's egress.
#[derive(Debug, PartialEq, Eq)]
enum Root<'a> {
    /// An `fq`, or several, one for each of the interface's own queues.
    Fq { ours: bool },
    /// What the kernel put there.
    Default(&'a str),
    /// What somebody else put there.
    Chosen(&'a str),
}

impl Queues {
    /// Those of the calling thread's namespace.
    pub(super) fn list() -> io::Result<Self> {
        in_runtime(async |handle| {
            let messages: Vec<TcMessage> =
                handle.qdisc().get().execute().try_collect().await.map_err(io::Error::other)?;
            Ok(Self(messages.iter().map(queue).collect()))
        })
    }

    /// Whether what an interface receives may go elsewhere: an `ingress`, but no `clsact`.
    fn redirects(&self, ifindex: u32) -> bool {
        let here = |queue: &&Queue| u32::try_from(queue.ifindex) == Ok(ifindex);
        self.0.iter().filter(here).any(|queue| queue.kind == "ingress")
    }

    fn root(&self, ifindex: u32) -> Root<'_> {
        let here = |queue: &&Queue| u32::try_from(queue.ifindex) == Ok(ifindex);
        let mut here = self.0.iter().filter(here);
        // `noqueue` is not always listed.
        let Some(root) = here.clone().find(|queue| queue.parent == TcHandle::ROOT) else {
            return Root::Default("no queue");
        };
        let is_fq = match root.kind.as_str() {
            FQ => true,
            MQ => {
                let mut leaves = here.by_ref().filter(|queue| {
                    queue.parent.major == root.handle.major && queue.parent != TcHandle::ROOT
                });
                let mut some = leaves.by_ref().peekable();
                some.peek().is_some() && some.all(|leaf| leaf.kind == FQ)
            }
            _ => false,
        };
        match root.handle {
            _ if is_fq => Root::Fq { ours: root.kind == FQ && root.handle == OURS },
            TcHandle { major: 0, .. } => Root::Default(&root.kind),
            _ => Root::Chosen(&root.kind),
        }
    }
}

/// Makes an interface's egress what is wanted, and says what became of it. Called inside its namespace.
pub(super) fn pace(queues: &Queues, ifindex: u32, interface: &str, wanted: Pace) -> Pacing {
    match (queues.root(ifindex), wanted) {
        (Root::Fq { ours: true }, Pace::Fq) => Pacing::Ours,
        (Root::Fq { ours: true }, Pace::Auto | Pace::Off) => {
            remove(ifindex);
            Pacing::Not("`pace: fq` is not written any more".to_owned())
        }
        (Root::Fq { ours: false }, Pace::Auto | Pace::Fq) => Pacing::Found,
        (Root::Fq { ours: false }, Pace::Off) => Pacing::Not("`pace: off`".to_owned()),
        (Root::Default(_), Pace::Fq) => match add(ifindex) {
            Ok(()) => Pacing::Ours,
            Err(problem) => Pacing::Not(no_fq(interface, &problem)),
        },
        (Root::Chosen(kind), Pace::Fq) => {
            Pacing::Not(format!("{interface} has `{kind}` of somebody else, which is left alone"))
        }
        (Root::Default(kind) | Root::Chosen(kind), _) => {
            Pacing::Not(format!("{interface} has {}, not `fq`", Kind(kind)))
        }
    }
}

/// Who else limits bytes at the host's ends of pods.
///
/// The CNI's bandwidth plugin puts a `tbf` behind the host's end, and sends what comes in there through
/// an `ifb` of its own with another
/// (<https://github.com/containernetworking/plugins/blob/v1.5.1/plugins/meta/bandwidth/ifb_creator.go>).
/// Cilium's bandwidth manager delays what pods send, by times in a map that is there when it is on.
pub struct Shapers {
    queues: Queues,
    /// Whether there is an `ifb` of the plugin's that limits.
    has_ifb: bool,
    has_manager: bool,
}

/// Where Cilium pins the rates of its bandwidth manager.
const CILIUM: &str = "/sys/fs/bpf/tc/globals/cilium_throttle";
/// How the plugin names its `ifb`s.
const IFB: &str = "bwp";

impl Shapers {
    /// Looks around in the calling thread's namespace, which has these interfaces.
    pub fn look(host: &[Interface]) -> Self {
        // Who cannot be seen is not waited for: then Weir limits, too.
        let queues = Queues::list().unwrap_or(Queues(Vec::new()));
        let limits = |link: &Interface| queues.root(link.index) == Root::Chosen("tbf");
        let has_ifb = host.iter().any(|link| link.name.starts_with(IFB) && limits(link));
        Self { has_ifb, has_manager: Path::new(CILIUM).exists(), queues }
    }

    /// Who limits bytes towards and from the pod whose host's end this is.
    pub fn of(&self, ifindex: u32, interface: &str) -> [Option<String>; 2] {
        let tbf = self.queues.root(ifindex) == Root::Chosen("tbf");
        let from = if self.has_ifb && self.queues.redirects(ifindex) {
            Some(format!("the `ifb` behind {interface}"))
        } else {
            self.has_manager.then(|| "Cilium's bandwidth manager".to_owned())
        };
        [tbf.then(|| format!("the `tbf` on {interface}")), from]
    }
}

/// A queue's kind as people read it.
struct Kind<'a>(&'a str);

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(' ') { f.write_str(self.0) } else { write!(f, "`{}`", self.0) }
    }
}

fn no_fq(interface: &str, problem: &io::Error) -> String {
    match problem.raw_os_error() {
        Some(libc::ENOENT) => "this kernel has no `fq` (CONFIG_NET_SCH_FQ)".to_owned(),
        Some(libc::EEXIST) => format!("{interface} has a queue of somebody else by now"),
        _ => format!("the kernel puts no `fq` on {interface}: {problem}"),
    }
}

/// Takes our `fq` away, if it is there: by its handle, so nobody else's goes.
pub(super) fn remove(ifindex: u32) {
    let request = |message| RouteNetlinkMessage::DelQueueDiscipline(message);
    // Gone, with its interface or by somebody's hand: nothing to remove.
    let _ = change(ifindex, request, 0, Vec::new());
}

fn add(ifindex: u32) -> io::Result<()> {
    let limit = |kind| TcOption::Other(DefaultNla::new(kind, PACKETS.to_ne_bytes().to_vec()));
    let options = vec![TcAttribute::Options(LIMITS.map(limit).into())];
    change(ifindex, RouteNetlinkMessage::NewQueueDiscipline, NLM_F_CREATE | NLM_F_EXCL, options)
}

fn change(
    ifindex: u32,
    request: impl FnOnce(TcMessage) -> RouteNetlinkMessage,
    flags: u16,
    options: Vec<TcAttribute>,
) -> io::Result<()> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle::ROOT;
    message.header.handle = OURS;
    message.attributes.push(TcAttribute::Kind(FQ.to_owned()));
    message.attributes.extend(options);
    let mut message = NetlinkMessage::from(request(message));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    in_runtime(async |mut handle| {
        let mut answers = handle.request(message).map_err(io::Error::other)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.code {
                    None => Ok(()),
                    Some(_) => Err(error.to_io()),
                };
            }
        }
        Ok(())
    })
}

/// Netlink in the calling thread's namespace.
fn in_runtime<T>(work: impl AsyncFnOnce(Handle) -> io::Result<T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result
    })
}

fn queue(message: &TcMessage) -> Queue {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    });
    Queue {
        ifindex: message.header.index,
        handle: message.header.handle,
        parent: message.header.parent,
        kind: kind.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(kind: &str, handle: u32, parent: u32) -> Queue {
        Queue { ifindex: 7, handle: handle.into(), parent: parent.into(), kind: kind.to_owned() }
    }

    fn root(queues: &[Queue]) -> String {
        format!("{:?}", Queues(queues.to_vec()).root(7))
    }

    #[test]
    fn a_queue_that_sends_on_time_is_known_and_others_are_left_alone() {
        const ROOT: u32 = 0xffff_ffff;
        let clsact = queue("clsact", 0xffff_0000, 0xffff_fff1);
        assert_eq!(root(std::slice::from_ref(&clsact)), r#"Default("no queue")"#);
        let rows = [
            (queue("noqueue", 0, ROOT), r#"Default("noqueue")"#),
            (queue("pfifo_fast", 0, ROOT), r#"Default("pfifo_fast")"#),
            (queue("fq_codel", 0x8001_0000, ROOT), r#"Chosen("fq_codel")"#),
            (queue("tbf", 0x0001_0000, ROOT), r#"Chosen("tbf")"#),
            // The kernel's own default (net.core.default_qdisc) and somebody's choice pace alike.
            (queue("fq", 0, ROOT), "Fq { ours: false }"),
            (queue("fq", 0x8001_0000, ROOT), "Fq { ours: false }"),
            (queue("fq", 0x7765_0000, ROOT), "Fq { ours: true }"),
        ];
        for (queue, expected) in rows {
            assert_eq!(root(&[clsact.clone(), queue]), expected);
        }
        // One queue for each of a card's: all of them must be.
        for (handle, kind) in [(0_u32, "Default"), (0x8001_0000, "Chosen")] {
            let mq = queue("mq", handle, ROOT);
            let leaf = |kind, minor| queue(kind, 0, handle | minor);
            assert_eq!(root(&[mq.clone(), leaf("fq", 1), leaf("fq", 2)]), "Fq { ours: false }");
            let mixed = [mq.clone(), leaf("fq", 1), leaf("pfifo_fast", 2)];
            assert_eq!(root(&mixed), format!(r#"{kind}("mq")"#));
            assert_eq!(root(&[mq]), format!(r#"{kind}("mq")"#));
        }
        let elsewhere = Queue { ifindex: 8, ..queue("fq", 0, ROOT) };
        assert_eq!(root(&[elsewhere]), r#"Default("no queue")"#);
    }
}
