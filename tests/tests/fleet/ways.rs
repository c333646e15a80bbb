//! The ways to a server: users and passwords, TLS, a unix socket, a database's number.

use std::fs;

use redis::Commands as _;
use weir::fleet::store::redis::RedisSettings;
use weir_tests::redis::{Server, free_port};

use crate::site::{Node, rules};

/// One admitted hit, which then stands in the database that was meant.
fn works(settings: RedisSettings) {
    let node = Node::start(settings, "east", &rules(1000, "hour", "  on-store-failure: deny\n"));
    weir_tests::agent::eventually("a hit is admitted", || node.admits().1, |admitted| *admitted);
}

#[test]
fn a_user_and_a_password_from_a_file() {
    redis_or_skip!();
    let server = Server::start_with(
        free_port(),
        &["--user", "weir", "on", ">opensesame", "~*", "+@all", "--user", "default", "off"],
    );
    let file = server.folder().join("password");
    fs::write(&file, "opensesame\n").unwrap();
    let settings = RedisSettings {
        username: Some("weir".to_owned()),
        password_file: Some(file.clone()),
        ..RedisSettings::single(server.url())
    };
    works(settings.clone());

    fs::write(&file, "something else\n").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(settings.connect()).unwrap_err().to_string();
    assert!(!refused.contains("something else"), "{refused}");
}

#[test]
fn a_unix_socket_and_a_database() {
    redis_or_skip!();
    let server = Server::start();
    works(RedisSettings::single(format!("unix://{}?db=3", server.socket().display())));
    let mut client = server.client();
    let () = redis::cmd("SELECT").arg(3).query(&mut client).unwrap();
    let keys: Vec<String> = client.keys("shop_user_ann_*").unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
}

#[test]
fn tls_with_certificates_on_both_sides() {
    redis_or_skip!();
    let folder = std::env::temp_dir().join(format!("weir-redis-tls-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    // Of its own: OpenSSL takes a certificate for self-signed whose issuer has its name.
    ca.distinguished_name.push(rcgen::DnType::CommonName, "weir tests");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let signed = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    };
    let ca_file = write("ca.pem", ca_cert.pem());
    let (server_cert, server_key) = signed("localhost");
    let (server_cert, server_key) =
        (write("server.pem", server_cert), write("server.key", server_key));
    let (cert, key) = signed("weir");
    let client_cert = (write("client.pem", cert), write("client.key", key));
    let port = free_port();
    let text = |path: &std::path::Path| path.display().to_string();
    let server = Server::start_with(
        port,
        &[
            "--port",
            "0",
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &text(&server_cert),
            "--tls-key-file",
            &text(&server_key),
            "--tls-ca-cert-file",
            &text(&ca_file),
        ],
    );
    let settings = RedisSettings {
        ca_file: Some(ca_file),
        client_cert: Some(client_cert),
        ..RedisSettings::single(format!("rediss://localhost:{port}/0"))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(settings.connect()).unwrap();
    works(settings.clone());
    let without = RedisSettings { client_cert: None, ..settings };
    let asked = runtime.block_on(async {
        let mut link = without.connect().await?;
        link.command(&redis::cmd("PING")).await
    });
    assert!(asked.is_err(), "a client without a certificate is refused");
    drop(server);
    fs::remove_dir_all(&folder).unwrap();
}
