//! The service as clients see it: a real tonic client over TCP and the unix socket.

use std::{
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse, rate_limit_response::Code,
    rate_limit_service_client::RateLimitServiceClient,
};
use tonic::{
    Code as Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;

/// Answers as the domain says, and remembers who asked.
#[derive(Clone, Default)]
struct ByName(Arc<Mutex<Vec<Caller>>>);

impl Decide for ByName {
    fn decide(
        &self,
        request: &RateLimitRequest,
        caller: &Caller,
    ) -> Result<RateLimitResponse, Refused> {
        self.0.lock().unwrap().push(caller.clone());
        let code = match request.domain.as_str() {
            "ok" => Code::Ok,
            "over" => Code::OverLimit,
            "unknown" => Code::Unknown,
            "invalid" => return Err(Refused::Invalid("no sense".to_owned())),
            "denied" => return Err(Refused::Denied("not you".to_owned())),
            _ => return Err(Refused::Unavailable("not now".to_owned())),
        };
        Ok(RateLimitResponse { overall_code: code as i32, ..RateLimitResponse::default() })
    }
}

struct Site {
    server: Server,
    answers: Arc<Answers>,
    workloads: Arc<Workloads>,
    decide: ByName,
}

impl Site {
    async fn new(settings: Settings) -> Self {
        let decide = ByName::default();
        let answers = Arc::new(Answers::new(decide.clone()));
        let workloads = Arc::new(Workloads::default());
        let server =
            Server::start(&settings, Arc::clone(&answers), Arc::clone(&workloads), true).await;
        Self { server: server.unwrap(), answers, workloads, decide }
    }

    async fn on_loopback(settings: Settings) -> Self {
        Self::new(Settings { listen: vec!["127.0.0.1:0".parse().unwrap()], ..settings }).await
    }

    fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::new(format!("http://{}", self.address())).unwrap();
        endpoint.connect().await.unwrap()
    }

    fn last_caller(&self) -> Caller {
        self.decide.0.lock().unwrap().last().unwrap().clone()
    }
}

async fn ask(channel: &Channel, domain: &str) -> Result<i32, tonic::Status> {
    let request = RateLimitRequest { domain: domain.to_owned(), ..RateLimitRequest::default() };
    let answer = RateLimitServiceClient::new(channel.clone()).should_rate_limit(request).await?;
    Ok(answer.into_inner().overall_code)
}

async fn health(channel: &Channel, service: &str) -> i32 {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await;
    answer.unwrap().into_inner().status
}

#[tokio::test]
async fn answers_and_errors_come_as_grpc_has_them() {
    let site = Site::on_loopback(Settings::default()).await;
    let channel = site.channel().await;
    assert_eq!(ask(&channel, "ok").await.unwrap(), Code::Ok as i32);
    assert_eq!(ask(&channel, "over").await.unwrap(), Code::OverLimit as i32);
    for (domain, status) in [
        ("invalid", Status::InvalidArgument),
        ("denied", Status::PermissionDenied),
        ("later", Status::Unavailable),
        // Envoy would pass the request.
        ("unknown", Status::Unavailable),
    ] {
        assert_eq!(ask(&channel, domain).await.unwrap_err().code(), status, "{domain}");
    }
    let counts: Vec<_> = site.answers.outcomes().map(|(_, count)| count).collect();
    assert_eq!(counts, [1, 1, 1, 1, 2]);
    let timed: u64 = site.answers.latency().buckets.iter().map(|(_, count)| count).sum();
    assert_eq!(timed, 6);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_and_the_connection_lives() {
    let bounds = Bounds { message: 1024, ..Bounds::default() };
    let site = Site::on_loopback(Settings { bounds, ..Settings::default() }).await;
    let channel = site.channel().await;
    let refused = ask(&channel, &"x".repeat(2000)).await.unwrap_err();
    assert_eq!(refused.code(), Status::OutOfRange);
    assert_eq!(ask(&channel, "ok").await.unwrap(), Code::Ok as i32);
}

#[tokio::test]
async fn health_checks_are_answered_by_name() {
    let site = Site::on_loopback(Settings::default()).await;
    let channel = site.channel().await;
    for name in ["", "ratelimit"] {
        assert_eq!(health(&channel, name).await, 1, "{name:?} serves");
    }
    site.server.set_healthy(false).await;
    assert_eq!(health(&channel, "ratelimit").await, 2, "it does not serve");
}

#[tokio::test]
async fn every_thread_listens_on_the_same_port() {
    let site = Site::on_loopback(Settings { threads: 3, ..Settings::default() }).await;
    for _ in 0..20 {
        assert_eq!(ask(&site.channel().await, "ok").await.unwrap(), Code::Ok as i32);
    }
}

#[tokio::test]
async fn a_caller_over_tcp_is_known_by_its_address() {
    let site = Site::on_loopback(Settings::default()).await;
    let channel = site.channel().await;
    ask(&channel, "ok").await.unwrap();
    let address = "127.0.0.1".parse().unwrap();
    assert_eq!(site.last_caller(), Caller { address: Some(address), ..Caller::default() });
    let web = Workload { namespace: "".into(), name: "web".into(), identity: "web".into() };
    site.workloads.replace([(address, web.clone())]);
    ask(&channel, "ok").await.unwrap();
    assert_eq!(site.last_caller().workload, Some(web));
}

/// A path for a socket that goes with the test.
struct SocketPath(PathBuf);

impl SocketPath {
    fn new(name: &str) -> Self {
        let name = format!("weir-rls-{name}-{}.sock", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        Endpoint::new(format!("unix://{}", self.0.display())).unwrap().connect().await
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn a_caller_on_the_socket_is_known_by_its_credentials() {
    let path = SocketPath::new("credentials");
    let settings =
        Settings { socket: Some(path.0.clone()), socket_mode: 0o640, ..Settings::default() };
    let site = Site::new(settings).await;
    let mode = std::fs::metadata(&path.0).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(ask(&path.channel().await.unwrap(), "ok").await.unwrap(), Code::Ok as i32);
    let caller = site.last_caller();
    let credentials = caller.credentials.unwrap();
    assert_eq!(credentials.uid, std::fs::metadata("/proc/self").unwrap().uid());
    assert_eq!(credentials.pid, i32::try_from(std::process::id()).unwrap());
    assert_eq!(caller.address, None);
    site.server.stop().await;
    assert!(!path.0.exists());
}

#[tokio::test]
async fn a_successor_takes_the_socket_over() {
    let path = SocketPath::new("successor");
    let settings = Settings { socket: Some(path.0.clone()), ..Settings::default() };
    let first = Site::new(settings.clone()).await;
    let before = path.channel().await.unwrap();
    assert_eq!(ask(&before, "ok").await.unwrap(), Code::Ok as i32);
    let second = Site::new(settings).await;
    let after = path.channel().await.unwrap();
    assert_eq!(ask(&after, "over").await.unwrap(), Code::OverLimit as i32);
    assert_eq!(second.decide.0.lock().unwrap().len(), 1, "the successor was asked");
    assert_eq!(ask(&before, "ok").await.unwrap(), Code::Ok as i32, "the first still answers");
    first.server.stop().await;
    assert!(path.0.exists(), "the successor's socket stays");
    assert_eq!(ask(&after, "ok").await.unwrap(), Code::Ok as i32);
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let path = SocketPath::new("file");
    std::fs::write(&path.0, "precious").unwrap();
    let settings = Settings { socket: Some(path.0.clone()), ..Settings::default() };
    let answers = Arc::new(Answers::new(ByName::default()));
    let started = Server::start(&settings, answers, Arc::default(), true).await;
    assert!(matches!(started, Err(StartError::Listen(ListenError::NotASocket { .. }))));
    assert_eq!(std::fs::read_to_string(&path.0).unwrap(), "precious");
}

#[tokio::test]
async fn an_old_connection_is_replaced_without_an_error() {
    let bounds = Bounds { max_age: std::time::Duration::from_millis(50), ..Bounds::default() };
    let site = Site::on_loopback(Settings { bounds, ..Settings::default() }).await;
    let channel = site.channel().await;
    let until = std::time::Instant::now() + std::time::Duration::from_millis(500);
    while std::time::Instant::now() < until {
        assert_eq!(ask(&channel, "ok").await.unwrap(), Code::Ok as i32);
    }
}

#[tokio::test]
async fn when_it_stops_a_silent_client_does_not_hold_it_up() {
    let site = Site::on_loopback(Settings::default()).await;
    let _silent = tokio::net::TcpStream::connect(site.address()).await.unwrap();
    let channel = site.channel().await;
    ask(&channel, "ok").await.unwrap();
    let address = site.address();
    tokio::time::timeout(std::time::Duration::from_secs(20), site.server.stop()).await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
