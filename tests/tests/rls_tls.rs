//! Rate limit requests over TLS: certificates made for the test, replaced while connections are open.
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

use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{
        RateLimitRequest, rate_limit_response::Code,
        rate_limit_service_client::RateLimitServiceClient,
    },
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use weir::rls::{Bounds, Running, Settings, Tls};

/// An authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key for a host or URI.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new([]).unwrap();
        params.subject_alt_names = vec![match name.contains("://") {
            true => SanType::URI(name.try_into().unwrap()),
            false => SanType::DnsName(name.try_into().unwrap()),
        }];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

struct Site {
    folder: PathBuf,
    running: Running,
}

impl Site {
    async fn new(
        name: &str,
        server: (String, String),
        clients: Option<(&Authority, &str)>,
    ) -> Self {
        let folder = std::env::temp_dir().join(format!("weir-tls-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("quotas")).unwrap();
        let at = |name: &str| folder.join(name);
        let quotas = "domain: d\ndescriptors:\n  - key: k\n    rate_limit: {unlimited: true}\n";
        fs::write(at("quotas/d.yaml"), quotas).unwrap();
        fs::write(at("cert.pem"), server.0).unwrap();
        fs::write(at("key.pem"), server.1).unwrap();
        if let Some((authority, _)) = clients {
            fs::write(at("ca.pem"), &authority.pem).unwrap();
        }
        let tls = Tls {
            cert: at("cert.pem"),
            key: at("key.pem"),
            client_ca: clients.map(|_| at("ca.pem")),
            client_names: clients.map(|(_, name)| name.to_owned()).into_iter().collect(),
        };
        let settings = Settings {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            quotas: vec![at("quotas")],
            tls: Some(tls),
            bounds: Bounds { drain_delay: Duration::from_millis(1), ..Bounds::default() },
            ..Settings::default()
        };
        let running = Running::start(settings, Arc::default(), at("memory")).await.unwrap();
        Self { folder, running }
    }

    async fn connect(
        &self,
        trusted: &Authority,
        own: Option<(String, String)>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&trusted.pem))
            .domain_name("weir.test");
        if let Some((certificate, key)) = own {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let address = self.running.addresses()[0];
        Endpoint::new(format!("https://{address}"))?.tls_config(tls)?.connect().await
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn ask(channel: &Channel) -> Result<bool, tonic::Status> {
    let entry = Entry { key: "k".to_owned(), value: String::new() };
    let descriptor = RateLimitDescriptor { entries: vec![entry], ..RateLimitDescriptor::default() };
    let request =
        RateLimitRequest { domain: "d".to_owned(), descriptors: vec![descriptor], hits_addend: 1 };
    let answer = RateLimitServiceClient::new(channel.clone()).should_rate_limit(request).await?;
    Ok(answer.into_inner().overall_code == Code::Ok as i32)
}

/// Whether a new client gets an answer.
async fn is_answered(site: &Site, trusted: &Authority, own: Option<(String, String)>) -> bool {
    match site.connect(trusted, own).await {
        // With TLS 1.3 a client hears of its refusal with the first answer.
        Ok(channel) => ask(&channel).await.is_ok_and(|ok| ok),
        Err(_) => false,
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < patience, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn certificates_change_and_open_connections_go_on() {
    let (before, after) = (Authority::new(), Authority::new());
    let site = Site::new("rotation", before.issue("weir.test"), None).await;
    let open = site.connect(&before, None).await.unwrap();
    assert!(ask(&open).await.unwrap());
    assert!(!is_answered(&site, &after, None).await);

    // The certificate first: until its key is there too, what was there before holds.
    let (certificate, key) = after.issue("weir.test");
    fs::write(site.folder.join("cert.pem"), certificate).unwrap();
    let problem = || site.running.state().view().certificates;
    eventually("the certificate is refused without its key", async || problem().is_some()).await;
    assert!(is_answered(&site, &before, None).await);
    fs::write(site.folder.join("key.pem"), key).unwrap();
    eventually("the new certificate holds", async || is_answered(&site, &after, None).await).await;
    assert_eq!(problem(), None);
    assert!(!is_answered(&site, &before, None).await);
    assert!(ask(&open).await.unwrap(), "an open connection goes on");
}

#[tokio::test]
async fn clients_are_known_by_the_names_in_their_certificates() {
    let (servers, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let envoy = "spiffe://cluster/ns/shop/sa/envoy";
    let site = Site::new("mutual", servers.issue("weir.test"), Some((&clients, envoy))).await;
    assert!(is_answered(&site, &servers, Some(clients.issue(envoy))).await);
    assert!(!is_answered(&site, &servers, None).await, "no certificate");
    assert!(!is_answered(&site, &servers, Some(others.issue(envoy))).await, "of somebody else");
    assert!(!is_answered(&site, &servers, Some(clients.issue("other.test"))).await, "another name");
}
