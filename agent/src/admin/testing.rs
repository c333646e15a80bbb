//! An agent of plain values behind a real socket, for the tests of both ends.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::json;
use tokio::{
    net::TcpListener,
    runtime,
    sync::{broadcast, watch},
};
use tracing_subscriber::{Registry, filter::Targets, reload};
use weir_common::{
    layout::Hook,
    verdict::{Reason, Verdict},
};

use super::{Bounds, Inspect, Peer, bind, serve_within};
use crate::{
    app::view::{
        AuditStatus, BreakerStatus, Bucket, ConnectStatus, ExplainedLine, Explanation, Histogram,
        History, HistoryEntry, KubernetesStatus, LimitStatus, Pause, Recent, RecentSecond,
        RecentWorkload, Refusal, Reloads, Seen, ShieldStatus, SourcesStatus, Stated, Status,
        SuggestedLine, Suggestion, UplinkStatus, WorkloadStatus,
    },
    telemetry::{self, LevelHandle, Levels},
};

/// A folder that goes with the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weir-admin-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("weir.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Answers from memory.
pub(crate) struct Memory {
    pub(crate) status: Mutex<Status>,
    pub(crate) recent: Mutex<Recent>,
    pub(crate) refusals: broadcast::Sender<Refusal>,
    pub(crate) pauses: Mutex<Vec<Pause>>,
    /// While it is set, no question is answered.
    pub(crate) stuck: AtomicBool,
    /// How many questions wait for an answer.
    pub(crate) waiting: AtomicUsize,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            status: Mutex::new(status()),
            recent: Mutex::new(recent()),
            refusals: broadcast::channel(4).0,
            pauses: Mutex::default(),
            stuck: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl Memory {
    fn wait_until_free(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        while self.stuck.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inspect for Memory {
    fn status(&self) -> Status {
        self.wait_until_free();
        self.status.lock().unwrap().clone()
    }

    fn explain(&self, workload: &str) -> Option<Explanation> {
        (workload == "web").then(explanation)
    }

    fn history(&self, workload: &str) -> Option<History> {
        (workload == "web").then(history)
    }

    fn recent(&self) -> Recent {
        self.wait_until_free();
        self.recent.lock().unwrap().clone()
    }

    fn suggest(&self, workload: &str) -> Option<Suggestion> {
        (workload == "web").then(suggestion)
    }

    fn pause(&self, pause: &Pause, by: Peer) -> Result<Vec<String>, String> {
        assert!(by.uid.is_some() && by.pid.is_some(), "{by}");
        let names: Vec<_> = self.status().workloads.into_iter().map(|known| known.name).collect();
        let names: Vec<_> = names
            .into_iter()
            .filter(|name| pause.workload.as_ref().is_none_or(|wanted| wanted == name))
            .collect();
        if names.is_empty() {
            return Err("nobody of that name".to_owned());
        }
        if pause.seconds == 13 {
            return Err("the map cannot be written".to_owned());
        }
        self.pauses.lock().unwrap().push(pause.clone());
        Ok(names)
    }

    fn ready(&self) -> bool {
        self.status().ready
    }

    fn tables_json(&self) -> serde_json::Value {
        json!({"tables": {"web": 1}})
    }

    fn subscribe(&self) -> broadcast::Receiver<Refusal> {
        self.refusals.subscribe()
    }
}

/// A served [`Memory`], on threads of its own.
pub(crate) struct Served {
    pub(crate) memory: Arc<Memory>,
    pub(crate) folder: Folder,
    pub(crate) tcp: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    server: Option<thread::JoinHandle<()>>,
    /// What the level is changed of.
    _filter: reload::Layer<Targets, Registry>,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::within(Bounds::DEFAULT)
    }

    pub(crate) fn within(bounds: Bounds) -> Self {
        let memory = Arc::new(Memory::default());
        let folder = Folder::new();
        let (filter, level): (_, LevelHandle) = telemetry::filter(&Levels::default());
        let (stop, drain) = watch::channel(false);
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let inside = runtime.enter();
        let socket = bind(&folder.socket()).unwrap();
        let tcp = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = tcp.local_addr().unwrap();
        drop(inside);
        let inspect: Arc<dyn Inspect> = memory.clone();
        let server = thread::spawn(move || {
            runtime.block_on(serve_within(bounds, inspect, level, socket, Some(tcp), drain));
        });
        Self { memory, folder, tcp: address, stop, server: Some(server), _filter: filter }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.socket()
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Tells the server to stop, as the agent does.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until the server has stopped.
    pub(crate) fn join(&mut self) {
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.memory.stuck.store(false, Ordering::Relaxed);
        self.stop();
        if !thread::panicking() {
            self.join();
        }
    }
}

/// Comes back when `is` says so; a test that waits too long fails.
pub(crate) fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if is() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} did not happen within 20 s");
}

/// One answer: its code, head and body.
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Sends a request on a connection and reads all that comes until it ends.
pub(crate) fn exchange(mut stream: impl io::Read + io::Write, request: &str) -> Reply {
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    // Who hangs up without having read all of the request resets the connection, after its answer.
    let reset = |error: io::Error| error.kind() == io::ErrorKind::ConnectionReset;
    assert!(end.is_ok() || end.is_err_and(reset));
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { code, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// A request without a body.
pub(crate) fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n")
}

/// A status in which everything occurs.
pub(crate) fn status() -> Status {
    let mut everything = BTreeMap::new();
    for hook in Hook::ALL {
        let place = format!("{} {}", hook.name(), hook.direction().name());
        let row: &mut BTreeMap<_, _> = everything.entry(place).or_default();
        for &reason in Reason::ALL {
            row.insert(
                format!("{} {}", verdict(reason).name(), reason.name()),
                100 + reason as u64,
            );
        }
    }
    let limit = LimitStatus {
        limit: "connections.80".to_owned(),
        kind: "connections".to_owned(),
        port: "80".to_owned(),
        value: "100/s burst=200".to_owned(),
        tokens: Some(7),
        rate_per_second: 100.0,
        offered_per_second: 812.4,
        admitted: 1000,
        refused: 50,
        ..LimitStatus::default()
    };
    let beside = LimitStatus {
        limit: "connections.80 (shadow)".to_owned(),
        value: "80/s shadow".to_owned(),
        rate_per_second: 80.0,
        beside: true,
        shadow: true,
        shadowed: 9,
        refused: 0,
        ..limit.clone()
    };
    let source = LimitStatus {
        limit: "connections-per-source".to_owned(),
        kind: "connections-per-source".to_owned(),
        port: String::new(),
        value: "20/s".to_owned(),
        tokens: None,
        sources: Some(SourcesStatus {
            collapsed: true,
            source: Some("10.0.0.9".to_owned()),
            share: 0.93,
        }),
        ..limit.clone()
    };
    let open = LimitStatus {
        limit: "max-connections.80".to_owned(),
        kind: "max-connections".to_owned(),
        value: "500".to_owned(),
        tokens: None,
        connections: Some(40),
        handshakes: Some(3),
        ..limit.clone()
    };
    let handshakes = LimitStatus {
        limit: "max-handshakes.80".to_owned(),
        kind: "max-handshakes".to_owned(),
        value: "100".to_owned(),
        counted_with: Some(open.limit.clone()),
        ..open.clone()
    };
    let breaker = LimitStatus {
        limit: "breaker.80".to_owned(),
        kind: "breaker".to_owned(),
        value: "errors=5".to_owned(),
        tokens: None,
        breaker: Some(BreakerStatus {
            state: "open".to_owned(),
            open_seconds: 12.5,
            ejections: 2,
            ..BreakerStatus::default()
        }),
        ..limit.clone()
    };
    let outbound = ["10.0.0.0/8", "192.0.2.10/32"].map(|to| LimitStatus {
        limit: format!("outbound-connections to={to}"),
        kind: "outbound-connections".to_owned(),
        port: String::new(),
        to: to.to_owned(),
        value: format!("50/s to={to}"),
        ..limit.clone()
    });
    let web = WorkloadStatus {
        name: "web".to_owned(),
        location: "eth0 in web".to_owned(),
        condition: "enforced".to_owned(),
        detail: Some("programs of others run first and may decide first: cilium".to_owned()),
        attached: Some("tcx".to_owned()),
        before: vec!["cilium".to_owned()],
        connect: Some(ConnectStatus { hooked: true, detail: None }),
        limits: [limit, beside, source]
            .into_iter()
            .chain(outbound)
            .chain([open, handshakes, breaker])
            .collect(),
        audit: Some(AuditStatus {
            age_seconds: Some(12.0),
            tracked: 340,
            unjudged: 2,
            excess: 1,
            missing: 4,
            removed: 7,
            adopted: 504,
            errors: 1,
            error: None,
        }),
        decisions: everything,
        ..WorkloadStatus::default()
    };
    let mysql = WorkloadStatus {
        name: "mysql".to_owned(),
        location: "eth7".to_owned(),
        condition: "not-enforced".to_owned(),
        detail: Some("interface eth7 is not there".to_owned()),
        ..WorkloadStatus::default()
    };
    let batch = WorkloadStatus {
        name: "batch".to_owned(),
        location: "eth0 in batch".to_owned(),
        condition: "paused".to_owned(),
        attached: Some("clsact".to_owned()),
        paused_seconds: Some(840.0),
        ..WorkloadStatus::default()
    };
    let uplinks =
        [("eth0", Some("xdp"), None), ("eth1", None, Some("cannot run XDP in its driver"))];
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: 11_520.5,
        ready: true,
        node_file: "/etc/weir/node.yaml".to_owned(),
        loaded_at: 43_000.0,
        reloads: Reloads { succeeded: 4, failed: 1 },
        trial: None,
        problems: vec!["node.yaml:1:1: error: unknown key `modes`".to_owned()],
        workloads: vec![web, mysql, batch],
        uplinks: uplinks
            .map(|(interface, attached, detail)| UplinkStatus {
                interface: interface.to_owned(),
                attached: attached.map(str::to_owned),
                detail: detail.map(str::to_owned),
            })
            .into(),
        shields: vec![ShieldStatus {
            interface: "veth-web".to_owned(),
            workload: "web".to_owned(),
            attached: Some("xdp".to_owned()),
            detail: None,
            refused_per_second: 48_000.0,
        }],
        shields_raised: 3,
        kubernetes: Some(KubernetesStatus {
            node: "node-1".to_owned(),
            pods: 2,
            synced: true,
            relists: 1,
            errors: 2,
            events_sent: 3,
            policy_seconds: Histogram {
                buckets: vec![Bucket { at_most: 0.05, count: 4 }],
                count: 5,
                sum: 1.5,
            },
            ..KubernetesStatus::default()
        }),
        live_sources: 12,
        live_handshakes: 3,
        corrected_counts: 2,
        unsent_syns: 1,
    }
}

/// A verdict that the reason can come with.
fn verdict(reason: Reason) -> Verdict {
    match reason {
        Reason::Admitted
        | Reason::Retransmission
        | Reason::Exempt
        | Reason::Probe
        | Reason::NoRule
        | Reason::Fragment
        | Reason::Malformed => Verdict::Pass,
        Reason::TinyFragment | Reason::HeaderChain => Verdict::Drop,
        Reason::ResetLimited
        | Reason::NotRemembered
        | Reason::RewriteFailed
        | Reason::EventLost
        | Reason::BreakerTripped
        | Reason::BreakerReopened
        | Reason::BreakerHalfOpened
        | Reason::BreakerClosed
        | Reason::HandshakeDisplaced
        | Reason::QuotaAsked
        | Reason::Shielded => Verdict::Note,
        _ => Verdict::Reset,
    }
}

/// A refusal of `web`.
pub(crate) fn refusal(source: &str) -> Refusal {
    Refusal {
        time: 43_197.0,
        workload: "web".to_owned(),
        direction: "ingress".to_owned(),
        hook: "tc".to_owned(),
        verdict: "reset".to_owned(),
        reason: "connection_rate".to_owned(),
        limit: "connections.80".to_owned(),
        value: "100/s burst=200".to_owned(),
        offered_per_second: 812.4,
        source: source.to_owned(),
        destination: "10.0.0.5:80".to_owned(),
    }
}

/// What holds for `web`.
pub(crate) fn explanation() -> Explanation {
    let line = |limit: &str, value: &str, origin: &str| ExplainedLine {
        limit: limit.to_owned(),
        value: value.to_owned(),
        origin: origin.to_owned(),
        ..ExplainedLine::default()
    };
    let clamp =
        "rate, burst from `100/s burst=200` (administrator's max, /etc/weir/node.yaml:9:12)";
    let clamped = ExplainedLine {
        clamps: vec![clamp.to_owned()],
        ..line("connections.80", "100/s burst=200", "workload, /etc/weir/node.yaml:17:7")
    };
    let beside = ExplainedLine {
        shadow: Some("its own word".to_owned()),
        ..line("connections.80 (shadow)", "80/s shadow", "workload, /etc/weir/node.yaml:17:7")
    };
    let source = line("connections-per-source", "20/s", "administrator's default, node.yaml:3:1");
    Explanation {
        workload: status().workloads.remove(0),
        lines: vec![clamped, beside, source],
        problems: vec!["node.yaml:18:7: error: unknown key `conections`".to_owned()],
        refusals: vec![refusal("10.0.0.9:51234"), refusal("[2001:db8:1:2:3:4:5:6]:51234")],
    }
}

/// The last minute: `web` was busier every second, and refused what was above 40.
pub(crate) fn recent() -> Recent {
    let second =
        |asked: u32| RecentSecond { admitted: asked.min(40), refused: asked.saturating_sub(40) };
    let web = RecentWorkload {
        name: "web".to_owned(),
        admitted: 10_000,
        refused: 500,
        seconds: (1..=60).map(second).collect(),
    };
    let batch = RecentWorkload {
        name: "batch".to_owned(),
        admitted: 70,
        refused: 0,
        seconds: vec![second(7); 10],
    };
    let mysql = RecentWorkload { name: "mysql".to_owned(), ..RecentWorkload::default() };
    Recent {
        time: 43_199.0,
        workloads: vec![web, mysql, batch],
        refusals: vec![refusal("10.0.0.9:51234"), refusal("10.0.0.7:40000")],
    }
}

/// What changed for `web`.
pub(crate) fn history() -> History {
    let stated = |value: &str, origin: &str| {
        Some(Stated { value: value.to_owned(), origin: origin.to_owned() })
    };
    let entry = |time: f64, key: &str| HistoryEntry {
        time,
        key: key.to_owned(),
        ..HistoryEntry::default()
    };
    let line = "workload, /etc/weir/node.yaml:17:7";
    let entries = vec![
        HistoryEntry { to: stated("100/s", line), ..entry(39_600.0, "connections.80") },
        HistoryEntry {
            from: stated("not-enforced", "interface eth0 is not there"),
            to: stated("enforced", ""),
            ..entry(39_601.0, "condition")
        },
        HistoryEntry {
            to: stated("15m", ""),
            by: "uid 0, pid 4242".to_owned(),
            ..entry(43_000.0, "pause")
        },
        HistoryEntry {
            from: stated("100/s", line),
            to: stated("100/s burst=200", line),
            ..entry(43_100.0, "connections.80")
        },
    ];
    History { workload: "web".to_owned(), entries, forgotten: 3 }
}

/// What was seen of `web`.
pub(crate) fn suggestion() -> Suggestion {
    let line = |key: &str, value: &str, reason: &str, seen: Option<Seen>| SuggestedLine {
        key: key.to_owned(),
        value: value.to_owned(),
        reason: reason.to_owned(),
        seen,
    };
    let seen = Seen { peak_second: 58, peak_minute: 1740, asked: 9000, refused: 0 };
    Suggestion {
        workload: "web".to_owned(),
        watched_seconds: 3660.0,
        lines: vec![
            line("mode", "shadow", "counts what it would refuse", None),
            line("connections.80", "120/s burst=240", "58 asked in the busiest second", Some(seen)),
        ],
        unknown: vec!["how many sources asked".to_owned()],
    }
}
