//! The service as clients see it: a real tonic client over TCP and the unix socket, and HTTP.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{
        RateLimitDescriptor,
        rate_limit_descriptor::{Entry, RateLimitOverride},
    },
    service::ratelimit::v3::{
        RateLimitRequest, rate_limit_response::Code,
        rate_limit_service_client::RateLimitServiceClient,
    },
};
use tonic::{
    Code as Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;
use crate::quota::{
    self, Workload, config,
    model::{Access, CallerRule},
};

/// `open` admits everything, `shut` nothing, and `mine` is for whoever the test says.
const DOMAINS: [(&str, &str); 3] = [
    ("open.yaml", "domain: open\ndescriptors:\n  - key: k\n    rate_limit: {unlimited: true}\n"),
    (
        "shut.yaml",
        "domain: shut\ndescriptors:\n  - key: k\n    rate_limit: {unit: hour, requests_per_unit: 0}\n",
    ),
    (
        "mine.yaml",
        "domain: mine\ndescriptors:\n  - key: k\n    rate_limit: {unit: hour, requests_per_unit: 9}\n",
    ),
];

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weir-rls-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("quotas")).unwrap();
        let folder = Self(path);
        for (name, text) in DOMAINS {
            folder.write(name, text);
        }
        folder
    }

    fn write(&self, name: &str, text: &str) {
        let partial = self.0.join("partial");
        fs::write(&partial, text).unwrap();
        fs::rename(partial, self.0.join("quotas").join(name)).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.0.join("rls.sock")
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::new(format!("unix://{}", self.socket().display())).unwrap();
        endpoint.connect().await.unwrap()
    }

    fn settings(&self) -> Settings {
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let bounds = Bounds { drain_delay: Duration::from_millis(1), ..Bounds::default() };
        Settings { listen, quotas: vec![self.0.join("quotas")], bounds, ..Settings::default() }
    }

    fn on_socket(&self) -> Settings {
        Settings { listen: Vec::new(), socket: Some(self.socket()), ..self.settings() }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Site {
    running: Running,
    workloads: Arc<Workloads>,
}

impl Site {
    async fn new(folder: &Folder, settings: Settings) -> Self {
        let workloads = Arc::new(Workloads::default());
        let memory = folder.0.join("memory.json");
        let running = Running::start(settings, Arc::clone(&workloads), memory).await.unwrap();
        Self { running, workloads }
    }

    fn address(&self) -> SocketAddr {
        self.running.addresses()[0]
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::new(format!("http://{}", self.address())).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// Keeps the domain `mine` for these callers.
    fn keep_for(&self, callers: Vec<CallerRule>) {
        let source = |(file, text): (&str, &str)| config::Source {
            file: file.to_owned(),
            text: text.to_owned(),
        };
        let sources = DOMAINS.map(source);
        let mut configuration = config::read(&sources).unwrap();
        for domain in &mut configuration.domains {
            if domain.name == "mine" {
                domain.access = Access { callers: callers.clone(), ..Access::default() };
            }
        }
        let state = self.running.state();
        state.quotas.apply(&configuration, quota::Settings::default()).unwrap();
    }

    /// Waits until what is told of the service is as it should be.
    async fn eventually(&self, holds: impl Fn(&view::Rls) -> bool) -> view::Rls {
        let patience = Instant::now() + Duration::from_secs(30);
        loop {
            let view = self.running.state().view();
            if holds(&view) {
                return view;
            }
            assert!(Instant::now() < patience, "{view:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn question(domain: &str) -> RateLimitRequest {
    let entry = Entry { key: "k".to_owned(), value: "v".to_owned() };
    let descriptor = RateLimitDescriptor { entries: vec![entry], ..RateLimitDescriptor::default() };
    RateLimitRequest { domain: domain.to_owned(), descriptors: vec![descriptor], hits_addend: 0 }
}

async fn pose(channel: &Channel, question: RateLimitRequest) -> Result<Code, tonic::Status> {
    let answer = RateLimitServiceClient::new(channel.clone()).should_rate_limit(question).await?;
    Ok(Code::try_from(answer.into_inner().overall_code).unwrap())
}

async fn ask(channel: &Channel, domain: &str) -> Result<Code, tonic::Status> {
    pose(channel, question(domain)).await
}

async fn refused(channel: &Channel, question: RateLimitRequest) -> Status {
    pose(channel, question).await.unwrap_err().code()
}

async fn health(channel: &Channel, service: &str) -> i32 {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await;
    answer.unwrap().into_inner().status
}

#[tokio::test]
async fn answers_and_errors_come_as_grpc_has_them() {
    let folder = Folder::new("answers");
    let site = Site::new(&folder, folder.settings()).await;
    let channel = site.channel().await;
    assert_eq!(ask(&channel, "open").await.unwrap(), Code::Ok);
    assert_eq!(ask(&channel, "shut").await.unwrap(), Code::OverLimit);
    assert_eq!(ask(&channel, "never heard of").await.unwrap(), Code::Ok);
    assert_eq!(refused(&channel, question("")).await, Status::InvalidArgument);
    let nothing = RateLimitRequest { domain: "open".to_owned(), ..RateLimitRequest::default() };
    assert_eq!(refused(&channel, nothing).await, Status::InvalidArgument);
    let mut no_unit = question("open");
    no_unit.descriptors[0].limit = Some(RateLimitOverride { requests_per_unit: 1, unit: 0 });
    assert_eq!(refused(&channel, no_unit).await, Status::InvalidArgument);
    site.keep_for(vec![CallerRule::Uid(4_000_000)]);
    assert_eq!(refused(&channel, question("mine")).await, Status::PermissionDenied);

    let view = site.running.state().view();
    let counts: Vec<_> =
        view.outcomes.iter().map(|(outcome, count)| (outcome.as_str(), *count)).collect();
    let expected =
        [("denied", 1), ("invalid", 3), ("ok", 2), ("over_limit", 1), ("unavailable", 0)];
    assert_eq!(counts, expected);
    assert_eq!(view.took.buckets.iter().map(|(_, count)| count).sum::<u64>(), 7);
    let denied =
        view::Denied { domain: "mine".to_owned(), caller: "127.0.0.1".to_owned(), count: 1 };
    assert_eq!(view.denied, [denied]);
}

#[tokio::test]
async fn without_quotas_nothing_is_decided() {
    let folder = Folder::new("nothing");
    folder.write("bad.yaml", "domian: x\n");
    let site = Site::new(&folder, folder.settings()).await;
    let channel = site.channel().await;
    assert_eq!(refused(&channel, question("open")).await, Status::Unavailable);
    assert_eq!(health(&channel, "ratelimit").await, 1, "as the original");
    fs::remove_file(folder.0.join("quotas/bad.yaml")).unwrap();
    site.eventually(|view| view.problems.is_empty()).await;
    assert_eq!(ask(&channel, "open").await.unwrap(), Code::Ok);
}

#[tokio::test]
async fn a_bad_file_leaves_what_was_good_now_and_at_the_next_start() {
    let folder = Folder::new("bad");
    let site = Site::new(&folder, folder.settings()).await;
    let channel = site.channel().await;
    for _ in 0..9 {
        assert_eq!(ask(&channel, "mine").await.unwrap(), Code::Ok);
    }
    folder.write("mine.yaml", "domain: mine\ndescriptors:\n  - kye: k\n");
    let view = site.eventually(|view| !view.problems.is_empty()).await;
    let problem = view.problems.join("\n");
    assert!(problem.contains("mine.yaml:3:5: error: unknown key `kye`"), "{problem}");
    assert_eq!(view.service["config_load_error"], 1);
    assert_eq!(ask(&channel, "mine").await.unwrap(), Code::OverLimit, "counts and rules stay");

    let second = Site::new(&folder, folder.settings()).await;
    assert_eq!(second.running.state().view().problems.join("\n"), problem);
    assert_eq!(ask(&second.channel().await, "shut").await.unwrap(), Code::OverLimit);

    let text = DOMAINS[2].1.replace('9', "10");
    folder.write("mine.yaml", &text);
    site.eventually(|view| view.problems.is_empty()).await;
    // The one above was refused and counted: it is the tenth.
    assert_eq!(ask(&channel, "mine").await.unwrap(), Code::OverLimit, "a reload keeps counts");
}

#[tokio::test]
async fn health_may_depend_on_quotas() {
    let folder = Folder::new("health");
    let settings = Settings { healthy_with_quotas: true, ..folder.settings() };
    for (name, _) in DOMAINS {
        fs::remove_file(folder.0.join("quotas").join(name)).unwrap();
    }
    let site = Site::new(&folder, settings).await;
    let channel = site.channel().await;
    assert_eq!(health(&channel, "ratelimit").await, 2, "it does not serve");
    folder.write("open.yaml", DOMAINS[0].1);
    site.eventually(|view| view.healthy).await;
    for name in ["", "ratelimit"] {
        while health(&channel, name).await != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_and_the_connection_lives() {
    let folder = Folder::new("large");
    let bounds = Bounds { message: 1024, ..Bounds::default() };
    let site = Site::new(&folder, Settings { bounds, ..folder.settings() }).await;
    let channel = site.channel().await;
    assert_eq!(refused(&channel, question(&"x".repeat(2000))).await, Status::OutOfRange);
    assert_eq!(ask(&channel, "open").await.unwrap(), Code::Ok);
}

#[tokio::test]
async fn every_thread_listens_on_the_same_port() {
    let folder = Folder::new("threads");
    let site = Site::new(&folder, Settings { threads: 3, ..folder.settings() }).await;
    for _ in 0..20 {
        assert_eq!(ask(&site.channel().await, "open").await.unwrap(), Code::Ok);
    }
}

#[tokio::test]
async fn a_caller_over_tcp_is_known_by_its_address_and_its_workload() {
    let folder = Folder::new("address");
    let site = Site::new(&folder, folder.settings()).await;
    let channel = site.channel().await;
    site.keep_for(vec![CallerRule::Namespace("shop".to_owned())]);
    assert_eq!(refused(&channel, question("mine")).await, Status::PermissionDenied);
    let web = Workload { namespace: "shop".into(), name: "web".into(), identity: "1".into() };
    site.workloads.replace([("127.0.0.1".parse().unwrap(), web)]);
    assert_eq!(ask(&channel, "mine").await.unwrap(), Code::Ok);
    site.workloads.replace([]);
    assert_eq!(refused(&channel, question("mine")).await, Status::PermissionDenied);
}

#[tokio::test]
async fn a_caller_on_the_socket_is_known_by_its_credentials() {
    let folder = Folder::new("credentials");
    let site = Site::new(&folder, Settings { socket_mode: 0o640, ..folder.on_socket() }).await;
    let mode = fs::metadata(folder.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let channel = folder.channel().await;
    let uid = fs::metadata("/proc/self").unwrap().uid();
    site.keep_for(vec![CallerRule::Uid(uid)]);
    assert_eq!(ask(&channel, "mine").await.unwrap(), Code::Ok);
    site.keep_for(vec![CallerRule::Uid(uid + 1)]);
    assert_eq!(refused(&channel, question("mine")).await, Status::PermissionDenied);
    assert_eq!(site.running.state().view().denied[0].caller, format!("uid {uid}"));
    site.running.stop().await;
    assert!(!folder.socket().exists());
}

#[tokio::test]
async fn a_successor_takes_the_socket_over() {
    let folder = Folder::new("successor");
    let first = Site::new(&folder, folder.on_socket()).await;
    let before = folder.channel().await;
    assert_eq!(ask(&before, "open").await.unwrap(), Code::Ok);
    let second = Site::new(&folder, folder.on_socket()).await;
    let after = folder.channel().await;
    assert_eq!(ask(&after, "shut").await.unwrap(), Code::OverLimit);
    assert_eq!(second.running.state().view().outcomes["over_limit"], 1);
    assert_eq!(ask(&before, "open").await.unwrap(), Code::Ok, "the first still answers");
    first.running.stop().await;
    assert!(folder.socket().exists(), "the successor's socket stays");
    assert_eq!(ask(&after, "open").await.unwrap(), Code::Ok);
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let folder = Folder::new("file");
    fs::write(folder.socket(), "precious").unwrap();
    let started =
        Running::start(folder.on_socket(), Arc::default(), folder.0.join("memory.json")).await;
    assert!(matches!(started, Err(StartError::Listen(ListenError::NotASocket { .. }))));
    assert_eq!(fs::read_to_string(folder.socket()).unwrap(), "precious");
}

#[tokio::test]
async fn what_was_sent_on_an_old_connection_is_answered() {
    let folder = Folder::new("old");
    let bounds = Bounds { max_age: Duration::from_millis(50), ..Bounds::default() };
    let site = Site::new(&folder, Settings { bounds, ..folder.settings() }).await;
    let channel = site.channel().await;
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        match ask(&channel, "open").await {
            Ok(code) => assert_eq!(code, Code::Ok),
            // What tonic's client had not sent yet when it was told to go, it does not send again.
            Err(status) => assert_eq!(status.code(), Status::Cancelled, "{status:?}"),
        }
    }
}

#[tokio::test]
async fn a_connection_beyond_the_bound_waits_until_another_ends() {
    let folder = Folder::new("bound");
    let bounds = Bounds { connections: 1, ..Bounds::default() };
    let site = Site::new(&folder, Settings { bounds, ..folder.settings() }).await;
    let first = site.channel().await;
    assert_eq!(ask(&first, "open").await.unwrap(), Code::Ok);
    let second = site.channel().await;
    let mut waiting = tokio::spawn(async move { ask(&second, "open").await });
    let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(ask(&first, "open").await.unwrap(), Code::Ok);
    drop(first);
    assert_eq!(waiting.await.unwrap().unwrap(), Code::Ok);
}

#[tokio::test]
async fn a_client_that_does_not_go_when_its_time_is_over_is_cut_off_after_the_grace() {
    use tokio::io::AsyncReadExt as _;
    let folder = Folder::new("grace");
    let (max_age, max_age_grace) = (Duration::from_millis(20), Duration::from_millis(20));
    let bounds = Bounds { max_age, max_age_grace, ..Bounds::default() };
    let site = Site::new(&folder, Settings { bounds, ..folder.settings() }).await;
    let mut stream = tokio::net::TcpStream::connect(site.address()).await.unwrap();
    // The preface and empty settings of HTTP/2 (RFC 9113 section 3.4), and then nothing, not even an
    // acknowledgement.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    tokio::io::AsyncWriteExt::write_all(&mut stream, preface).await.unwrap();
    let mut said = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut said)).await;
    ended.expect("it is cut off").unwrap();
    // A frame's type is its fourth byte; GOAWAY is 7.
    let mut types = Vec::new();
    let mut rest = &said[..];
    while let [a, b, c, kind, ..] = *rest {
        types.push(kind);
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    assert!(types.contains(&7), "it was told to go: {types:?}");
}

#[tokio::test]
async fn when_it_stops_a_silent_client_does_not_hold_it_up() {
    let folder = Folder::new("silent");
    let site = Site::new(&folder, folder.settings()).await;
    let _silent = tokio::net::TcpStream::connect(site.address()).await.unwrap();
    let channel = site.channel().await;
    ask(&channel, "open").await.unwrap();
    let address = site.address();
    tokio::time::timeout(Duration::from_secs(20), site.running.stop()).await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

/// An exchange over HTTP/1: the answer's code and body.
fn exchange(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_answered_as_the_original_answers_it() {
    let folder = Folder::new("json");
    let any = "127.0.0.1:0".parse().ok();
    let site = Site::new(&folder, Settings { http: any, debug: any, ..folder.settings() }).await;
    let (http, debug) = (site.running.http().unwrap(), site.running.debug().unwrap());
    let ask = |domain: &str| {
        let body = format!(
            r#"{{"domain":"{domain}","descriptors":[{{"entries":[{{"key":"k","value":"v"}}]}}]}}"#
        );
        exchange(http, "POST", "/json", &body)
    };
    let (code, body) = ask("open");
    assert_eq!(code, 200);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&body).unwrap(),
        serde_json::json!({
            "overallCode": "OK",
            "statuses": [{ "code": "OK", "limitRemaining": u32::MAX }],
        })
    );
    let (code, body) = ask("shut");
    assert_eq!((code, body.contains("OVER_LIMIT")), (429, true), "{body}");
    assert_eq!(ask(""), (400, "rate limit domain must not be empty".to_owned()));
    assert_eq!(exchange(http, "POST", "/json", "{\"what\":1}").0, 400);
    assert_eq!(exchange(http, "GET", "/healthcheck", ""), (200, "OK".to_owned()));
    assert_eq!(exchange(http, "GET", "/rlconfig", "").0, 404, "not for everybody");

    let (code, rules) = exchange(debug, "GET", "/rlconfig", "");
    let line = "shut.k: unit=HOUR requests_per_unit=0, shadow_mode: false, quota_mode: false\n";
    assert_eq!((code, rules.contains(line)), (200, true), "{rules}");
    let (code, stats) = exchange(debug, "GET", "/stats", "");
    let line = "ratelimit.service.rate_limit.shut.k.over_limit: 1\n";
    assert_eq!((code, stats.contains(line)), (200, true), "{stats}");
}

#[tokio::test]
async fn statsd_is_told_what_was_counted_under_the_originals_names() {
    let folder = Folder::new("statsd");
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let statsd = Statsd {
        server: server.local_addr().unwrap().to_string(),
        interval: Duration::from_millis(20),
    };
    let site = Site::new(&folder, Settings { statsd: Some(statsd), ..folder.settings() }).await;
    let channel = site.channel().await;
    for _ in 0..10 {
        ask(&channel, "mine").await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What was counted last is told when it ends.
    site.running.stop().await;
    let mut sums = std::collections::BTreeMap::<String, u64>::new();
    let mut packet = [0; 2048];
    while let Ok(length) = server.recv(&mut packet) {
        for line in str::from_utf8(&packet[..length]).unwrap().lines() {
            let (name, rest) = line.split_once(':').unwrap();
            let count = rest.strip_suffix("|c").unwrap();
            *sums.entry(name.to_owned()).or_default() += count.parse::<u64>().unwrap();
        }
    }
    let sum = |name: &str| sums.get(name).copied().unwrap_or_default();
    assert_eq!(sum("ratelimit.service.rate_limit.mine.k.total_hits"), 10, "{sums:?}");
    assert_eq!(sum("ratelimit.service.rate_limit.mine.k.over_limit"), 1, "{sums:?}");
    assert_eq!(sum("ratelimit_server.ShouldRateLimit.total_requests"), 10, "{sums:?}");
    assert_eq!(sum("ratelimit.service.config_load_success"), 1, "{sums:?}");
}
