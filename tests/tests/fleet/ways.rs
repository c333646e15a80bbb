//! The ways to a server: users and passwords, TLS, a unix socket, a database's number.

use std::fs;

use redis::Commands as _;
use weir::fleet::store::redis::{RedisSettings, Topology};
use weir_tests::redis::{
    Server, Tls, free_port,
    sets::{Cluster, MASTER, Watched},
};

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
    let tls = Tls::new();
    let server = Server::start_secured(Some(&tls), &[]);
    let url = format!("rediss://localhost:{}/0", server.address().port());
    let settings = tls.settings(RedisSettings::single(url));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(settings.connect()).unwrap();
    works(settings.clone());
    let without = RedisSettings { client_cert: None, ..settings };
    let asked = runtime.block_on(async {
        let mut link = without.connect().await?;
        link.command(&redis::cmd("PING")).await
    });
    assert!(asked.is_err(), "a client without a certificate is refused");
}

#[test]
fn tls_to_every_server_of_a_cluster() {
    redis_or_skip!();
    let tls = Tls::new();
    let cluster = Cluster::start_secured(Some(&tls));
    let topology = Topology::Cluster(cluster.urls());
    works(tls.settings(RedisSettings { topology, ..RedisSettings::single("") }));
    let reached = cluster.masters.iter().map(|server| server.client().keys("shop_user_ann_*"));
    let reached: Vec<Vec<String>> = reached.map(Result::unwrap).collect();
    assert!(reached.iter().any(|keys| !keys.is_empty()), "{reached:?}");
}

#[test]
fn tls_to_sentinels_and_to_whom_they_name() {
    redis_or_skip!();
    let tls = Tls::new();
    let set = Watched::start_secured(Some(&tls));
    let (master, sentinels) = (MASTER.to_owned(), set.urls());
    let topology = Topology::Sentinel { master, sentinels, database: 2 };
    works(tls.settings(RedisSettings { topology, ..RedisSettings::single("") }));
    let mut client = set.master.client();
    let () = redis::cmd("SELECT").arg(2).query(&mut client).unwrap();
    let keys: Vec<String> = client.keys("shop_user_ann_*").unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
}
