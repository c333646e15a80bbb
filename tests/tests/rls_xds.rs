//! Quotas that a management server sends. The server is the tests' own, in place of Envoy Gateway's;
//! what it speaks and who asks are real.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{
        extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
        service::ratelimit::v3::{
            RateLimitRequest, rate_limit_response::Code,
            rate_limit_service_client::RateLimitServiceClient,
        },
    },
    google::protobuf::Any,
    ratelimit::config::ratelimit::v3::{self as config, RateLimitConfig, RateLimitUnit},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tonic::transport::{Certificate, Channel, Endpoint, Identity, ServerTlsConfig};
use weir::{
    quota::model::Scope,
    rls::{Bounds, Running, Settings, Xds, XdsTls, view},
};
use weir_tests::ads::Ads;

/// An agent's rate limit service and what it keeps for its next start.
struct Site {
    folder: PathBuf,
    settings: Settings,
    running: Option<Running>,
}

impl Site {
    fn new(name: &str, server: &Ads) -> Self {
        let folder = std::env::temp_dir().join(format!("weir-xds-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let xds = Xds {
            server: format!("localhost:{}", server.address().port()),
            node: "envoy-ratelimit".to_owned(),
            metadata: Vec::new(),
            headers: vec![("authorization".to_owned(), "Bearer token".to_owned())],
            tls: None,
            scope: Scope::Node,
            backoff: (Duration::from_millis(10), Duration::from_millis(100)),
            message: 64 * 1024,
        };
        let settings = Settings {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            xds: Some(xds),
            bounds: Bounds { drain_delay: Duration::from_millis(1), ..Bounds::default() },
            ..Settings::default()
        };
        Self { folder, settings, running: None }
    }

    async fn start(&mut self) -> Channel {
        let memory = self.folder.join("memory");
        let running = Running::start(self.settings.clone(), Arc::default(), memory).await.unwrap();
        let address = running.addresses()[0];
        self.running = Some(running);
        Endpoint::new(format!("http://{address}")).unwrap().connect().await.unwrap()
    }

    async fn stop(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    fn view(&self) -> view::Rls {
        self.running.as_ref().unwrap().state().view()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Waits until it holds.
async fn until<T: std::fmt::Debug>(mut look: impl FnMut() -> T, holds: impl Fn(&T) -> bool) -> T {
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        let seen = look();
        if holds(&seen) {
            return seen;
        }
        assert!(Instant::now() < patience, "{seen:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A domain as Envoy Gateway sends it: a route's descriptors, one below the other.
fn domain(name: &str, hourly: u32) -> RateLimitConfig {
    let limit = config::RateLimitPolicy {
        unit: RateLimitUnit::Hour as i32,
        requests_per_unit: hourly,
        ..config::RateLimitPolicy::default()
    };
    let descriptor = |key: &str| config::RateLimitDescriptor {
        key: key.to_owned(),
        value: key.to_owned(),
        ..config::RateLimitDescriptor::default()
    };
    let below = config::RateLimitDescriptor { rate_limit: Some(limit), ..descriptor("rule-0") };
    let above = config::RateLimitDescriptor { descriptors: vec![below], ..descriptor("route") };
    RateLimitConfig { name: name.to_owned(), domain: name.to_owned(), descriptors: vec![above] }
}

async fn ask(channel: &Channel, domain: &str) -> Result<Code, tonic::Code> {
    let entry = |key: &str| Entry { key: key.to_owned(), value: key.to_owned() };
    let entries = vec![entry("route"), entry("rule-0")];
    let descriptor = RateLimitDescriptor { entries, ..RateLimitDescriptor::default() };
    let request = RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: vec![descriptor],
        hits_addend: 1,
    };
    let answer = RateLimitServiceClient::new(channel.clone()).should_rate_limit(request).await;
    let answer = answer.map_err(|status| status.code())?.into_inner();
    Ok(Code::try_from(answer.overall_code).unwrap())
}

async fn answers(channel: &Channel, domain: &str, count: usize) -> Vec<Code> {
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(ask(channel, domain).await.unwrap());
    }
    answers
}

const GATEWAY: &str = "default/eg/http";

#[tokio::test]
async fn requests_are_answered_by_what_the_server_sends() {
    let server = Ads::start("127.0.0.1:0".parse().unwrap(), None);
    let mut site = Site::new("answers", &server);
    let channel = site.start().await;
    // Nothing was sent yet, and nobody knows of anything from before.
    assert_eq!(ask(&channel, GATEWAY).await, Err(tonic::Code::Unavailable));
    assert!(!site.view().healthy);

    server.set("1", &[domain(GATEWAY, 2), domain("other", 1)]);
    let version = |site: &Site| site.view().xds.unwrap().version;
    until(|| version(&site), |version| version == "1").await;
    assert!(site.view().healthy);
    assert_eq!(answers(&channel, GATEWAY, 3).await, [Code::Ok, Code::Ok, Code::OverLimit]);
    assert_eq!(answers(&channel, "other", 2).await, [Code::Ok, Code::OverLimit]);
    let heard = until(|| server.heard(), |heard| heard.len() > 1).await;
    let (first, header) = &heard[0];
    assert_eq!(first.node.as_ref().unwrap().id, "envoy-ratelimit");
    assert_eq!(first.type_url, "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig");
    assert_eq!(header.as_deref(), Some("Bearer token"));
    let (taken, _) = &heard[1];
    assert_eq!((taken.version_info.as_str(), taken.response_nonce.as_str()), ("1", "1"));
    assert_eq!(taken.error_detail, None);

    // Three were counted, the refused one among them.
    server.set("2", &[domain(GATEWAY, 4)]);
    until(|| version(&site), |version| version == "2").await;
    assert_eq!(answers(&channel, GATEWAY, 2).await, [Code::Ok, Code::OverLimit]);
    assert_eq!(answers(&channel, "other", 2).await, [Code::Ok; 2], "the domain is gone");
    site.stop().await;
}

#[tokio::test]
async fn what_cannot_hold_is_refused_and_changes_nothing() {
    let server = Ads::start("127.0.0.1:0".parse().unwrap(), None);
    let mut site = Site::new("refused", &server);
    server.set("1", &[domain(GATEWAY, 1)]);
    let channel = site.start().await;
    until(|| site.view().loaded_at, |at| *at > 0.0).await;
    let mut nameless = domain(GATEWAY, 5);
    nameless.descriptors[0].descriptors[0].key.clear();
    let strange = Any { type_url: "type.googleapis.com/a.B".to_owned(), value: Vec::new() };
    let garbage = Any {
        type_url: "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig".to_owned(),
        value: vec![0xff],
    };
    let twice = vec![domain(GATEWAY, 5), domain(GATEWAY, 6)];
    let wrapped = |config: RateLimitConfig| envoy_types::util::pack_any(config);
    for (version, resources, why) in [
        ("2", vec![wrapped(nameless)], "the descriptor has no key"),
        ("3", vec![strange], "its type is `type.googleapis.com/a.B`"),
        ("4", vec![garbage], "it cannot be decoded"),
        ("5", twice.into_iter().map(wrapped).collect(), "default/eg/http"),
    ] {
        server.set_raw(version, resources);
        let last = || server.heard().last().unwrap().0.clone();
        let says = |text: &str| text.contains(why);
        let refusal = until(last, |last| {
            last.error_detail.as_ref().is_some_and(|detail| says(&detail.message))
        });
        // What holds is still the first.
        assert_eq!(refusal.await.version_info, "1");
        assert!(site.view().problems.iter().any(|problem| says(problem)));
    }
    assert_eq!(answers(&channel, GATEWAY, 2).await, [Code::Ok, Code::OverLimit]);
    // The server sends again at once what is refused; it is refused again after a second each time.
    let (began, spoken) = (Instant::now(), server.heard().len());
    until(|| server.heard().len(), |heard| *heard >= spoken + 2).await;
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    server.set("6", &[domain(GATEWAY, 9)]);
    until(|| site.view().xds.unwrap().version, |version| version == "6").await;
    assert_eq!(site.view().problems, [""; 0]);
    assert_eq!(answers(&channel, GATEWAY, 1).await, [Code::Ok]);
    site.stop().await;
}

#[tokio::test]
async fn what_was_sent_last_holds_while_the_server_is_away() {
    let server = Ads::start("127.0.0.1:0".parse().unwrap(), None);
    let address = server.address();
    let mut site = Site::new("away", &server);
    server.set("7", &[domain(GATEWAY, 2)]);
    let channel = site.start().await;
    until(|| site.view().loaded_at, |at| *at > 0.0).await;
    assert_eq!(answers(&channel, GATEWAY, 1).await, [Code::Ok]);

    drop(server);
    let lost = until(|| site.view().xds.unwrap(), |xds| !xds.connected).await;
    assert!(lost.error.is_some(), "{lost:?}");
    assert_eq!(answers(&channel, GATEWAY, 2).await, [Code::Ok, Code::OverLimit]);
    assert!(site.view().healthy);

    // Started again, the agent knows them, and no server does.
    site.stop().await;
    let channel = site.start().await;
    assert!(site.view().healthy);
    assert_eq!(answers(&channel, GATEWAY, 3).await, [Code::Ok, Code::Ok, Code::OverLimit]);

    // A server that counts its versions from the start again is heard all the same.
    let server = Ads::start(address, None);
    server.set("7", &[domain(GATEWAY, 9)]);
    until(|| site.view().xds.unwrap(), |xds| xds.connected && xds.version == "7").await;
    assert_eq!(answers(&channel, GATEWAY, 1).await, [Code::Ok]);
    drop(server);
    until(|| site.view().xds.unwrap(), |xds| !xds.connected).await;
    let server = Ads::start(address, None);
    server.set("7", &[domain(GATEWAY, 1)]);
    let loaded = site.view().loaded_at;
    until(|| site.view().loaded_at, |at| *at > loaded).await;
    assert_eq!(answers(&channel, GATEWAY, 1).await, [Code::OverLimit]);
    site.stop().await;
}

/// An overlay for the gateway's domain with these keys at its only limit.
fn overlay(keys: &str) -> String {
    format!(
        "format: weir-overlay\ndomain: {GATEWAY}\ndescriptors:\n  - key: route\n    value: route\n    \
         descriptors: [{{ key: rule-0, value: rule-0, {keys} }}]\n"
    )
}

#[tokio::test]
async fn overlays_add_to_what_the_server_sends() {
    let server = Ads::start("127.0.0.1:0".parse().unwrap(), None);
    let mut site = Site::new("overlays", &server);
    let folder = site.folder.join("quotas");
    fs::create_dir(&folder).unwrap();
    site.settings.quotas = vec![folder.clone()];
    let write = |text: &str| {
        fs::write(folder.join(".new"), text).unwrap();
        fs::rename(folder.join(".new"), folder.join("gateway.yaml")).unwrap();
    };
    let problems = |site: &Site| site.view().problems;
    let version = |site: &Site| site.view().xds.unwrap().version;

    // They may say who may ask: nothing holds until they can be read.
    write("format: weir-overlay\ndomain: [\n");
    server.set("1", &[domain(GATEWAY, 5)]);
    let channel = site.start().await;
    let refusal = || server.heard().last().and_then(|(last, _)| last.error_detail.clone());
    let refusal = until(refusal, Option::is_some).await.unwrap();
    assert!(refusal.message.contains("gateway.yaml:"), "{refusal:?}");
    assert_eq!(ask(&channel, GATEWAY).await, Err(tonic::Code::Unavailable));
    write(&overlay("algorithm: token_bucket, burst: 1"));
    until(|| version(&site), |version| version == "1").await;
    assert_eq!(problems(&site), [""; 0]);
    assert_eq!(answers(&channel, GATEWAY, 2).await, [Code::Ok, Code::OverLimit]);

    // A bad one is told, and the server is heard all the same.
    write(&overlay("algorithm: tokens"));
    let told = until(|| problems(&site), |problems| !problems.is_empty()).await;
    assert!(
        told[0].contains("gateway.yaml:") && told[0].contains("`tokens` is unknown"),
        "{told:?}"
    );
    server.set("2", &[domain(GATEWAY, 6), domain("other", 1)]);
    until(|| version(&site), |version| version == "2").await;
    assert_eq!(problems(&site), told);
    assert_eq!(answers(&channel, GATEWAY, 1).await, [Code::OverLimit]);
    assert_eq!(answers(&channel, "other", 2).await, [Code::Ok, Code::OverLimit]);

    // What held is known after a start, too, with the file still bad and the server away.
    let address = server.address();
    drop(server);
    site.stop().await;
    let channel = site.start().await;
    assert!(problems(&site)[0].contains("`tokens` is unknown"), "{:?}", problems(&site));
    assert_eq!(answers(&channel, GATEWAY, 2).await, [Code::Ok, Code::OverLimit]);

    write(&overlay("unit_multiplier: 2"));
    until(|| problems(&site), Vec::is_empty).await;
    assert_eq!(answers(&channel, GATEWAY, 7).await[5..], [Code::Ok, Code::OverLimit]);

    // The server takes away what an overlay names: that holds, and the overlay's idleness is told.
    let server = Ads::start(address, None);
    server.set("3", &[domain("other", 1)]);
    let told = until(|| problems(&site), |problems| !problems.is_empty()).await;
    assert!(
        told[0].contains("warning: no resource describes the domain `default/eg/http`"),
        "{told:?}"
    );
    // It is acknowledged a moment later.
    until(|| version(&site), |version| version == "3").await;
    site.stop().await;
}

/// An authority, and a certificate of it for a name.
fn certificate(name: &str) -> (String, String, String) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &issuer).unwrap().pem();
    (ca, certificate, key.serialize_pem())
}

/// As Envoy Gateway wants it: both sides show certificates.
#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let (server_ca, server_cert, server_key) = certificate("envoy-gateway");
    let (client_ca, client_cert, client_key) = certificate("envoy-ratelimit");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(server_cert, server_key))
        .client_ca_root(Certificate::from_pem(client_ca));
    let server = Ads::start("127.0.0.1:0".parse().unwrap(), Some(tls));
    server.set("1", &[domain(GATEWAY, 1)]);
    let mut site = Site::new("tls", &server);
    let write = |name: &str, text: &str| {
        let path = site.folder.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let ca = write("ca.pem", &server_ca);
    let own = (write("cert.pem", &client_cert), write("key.pem", ""));
    let tls = XdsTls { ca, own: Some(own), name: Some("envoy-gateway".to_owned()) };
    site.settings.xds.as_mut().unwrap().tls = Some(tls);
    let channel = site.start().await;
    let error = |site: &Site| site.view().xds.unwrap().error;
    until(|| error(&site), Option::is_some).await;
    assert_eq!(ask(&channel, GATEWAY).await, Err(tonic::Code::Unavailable));
    // The key comes later; certificates are read for each connection.
    fs::write(site.folder.join("key.pem"), client_key).unwrap();
    until(|| site.view().loaded_at, |at| *at > 0.0).await;
    assert_eq!(answers(&channel, GATEWAY, 2).await, [Code::Ok, Code::OverLimit]);
    site.stop().await;
}
