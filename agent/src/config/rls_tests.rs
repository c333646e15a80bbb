use std::{path::Path, time::Duration};

use super::super::{NodeFile, read as read_file};
use crate::quota::model::Scope;
use crate::rls::{Headers, Modes, Settings};

fn problems(text: &str) -> Vec<String> {
    let reading = read_file(text, "node.yaml", None).unwrap();
    reading.problems.iter().map(ToString::to_string).collect()
}

fn settings(text: &str) -> Settings {
    assert_eq!(problems(text), [] as [&str; 0]);
    read_file(text, "node.yaml", None).unwrap().file.rls.unwrap()
}

#[test]
fn everything_has_a_default_but_where_to_listen() {
    let read = settings("rls: { listen: 127.0.0.1:8081 }\n");
    let listen = vec!["127.0.0.1:8081".parse().unwrap()];
    assert_eq!(read, Settings { listen, ..Settings::default() });
    assert_eq!(problems("rls: {}\n").len(), 1);
    assert_eq!(NodeFile::default().rls, None);
}

#[test]
fn everything_can_be_written() {
    let read = settings(
        "rls:\n  listen: [0.0.0.0:8081, '[::1]:8081']\n  socket: /run/weir/rls.sock\n  \
         socket-mode: 0660\n  threads: 2\n  http: 0.0.0.0:8080\n  debug: 127.0.0.1:6070\n  \
         quotas: /etc/weir/quotas\n  merge-domains: true\n  \
         mode: shadow\n  quota-mode: true\n  near-limit: 90%\n  spare-others-when-over: true\n  \
         response-headers: { reset: X-Reset }\n  dynamic-metadata: true\n  nodes: 3\n  \
         healthy-with-quotas: true\n  reflection: true\n  max-connections: 10\n  \
         max-message-size: 4096\n  keep-alive: 5s\n  keep-alive-timeout: 500ms\n  \
         max-connection-age: 1h\n  max-connection-age-grace: 5m\n",
    );
    assert_eq!((read.listen.len(), read.socket_mode, read.threads), (2, 0o660, 2));
    assert_eq!(read.quotas, [Path::new("/etc/weir/quotas")]);
    let headers = Headers { reset: "X-Reset".to_owned(), ..Headers::default() };
    assert_eq!(
        read.modes,
        Modes {
            merge_domains: true,
            shadow: true,
            quota: true,
            near_limit_percent: 90,
            spare_others_when_over: true,
            headers: Some(headers),
            dynamic_metadata: true,
            nodes: 3,
        }
    );
    assert!(read.reflection && !settings("rls: { socket: /s }\n").reflection);
    let bounds = read.bounds;
    assert_eq!((bounds.connections, bounds.message), (10, 4096));
    assert_eq!(bounds.keep_alive_timeout, Duration::from_millis(500));
    assert_eq!(bounds.max_age_grace, Duration::from_secs(300));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, expected) in [
        ("listen: 8081", "node.yaml:1:16: error: `listen`: `8081` is no socket address"),
        ("listen: x, sokcet: /s", "unknown key `sokcet` in `rls`; expected `socket`"),
        ("listen: '1.1.1.1:1', debug: '1.1.1.1:2'", "can be reached from elsewhere"),
        ("listen: '1.1.1.1:1', near-limit: 0.8", "`near-limit`: `0.8` is no share"),
        ("listen: '1.1.1.1:1', keep-alive: 20", "`keep-alive`: `20` is no time"),
        ("listen: '1.1.1.1:1', quotas: here", "`here` is not absolute"),
        ("socket: /s, socket-mode: rw", "`rw` is no mode"),
        ("socket: /s, tls: { cert: /c }", "`tls` is incomplete; expected `cert` and `key`"),
        ("socket: /s, response-headers: { limit: 'a b' }", "`a b` is no header"),
    ] {
        let text = format!("rls: {{ {text} }}\n");
        let found = problems(&text);
        assert!(found.iter().any(|problem| problem.contains(expected)), "{text}: {found:?}");
        assert_eq!(read_file(&text, "node.yaml", None).unwrap().file.rls, None);
    }
}

#[test]
fn a_section_that_cannot_be_read_stays_as_it_was() {
    let before = read_file("rls: { socket: /s }\n", "node.yaml", None).unwrap().file;
    let after = read_file("rls: { socket: s }\n", "node.yaml", Some(&before)).unwrap();
    assert_eq!(after.file.rls, before.rls);
    assert!(after.problems[0].to_string().contains("what stood here before stays"));
}

#[test]
fn a_store_is_one_server_a_cluster_or_sentinels() {
    let store = |text: &str| format!("rls:\n  listen: 127.0.0.1:8081\n  store: {text}\n");
    let read =
        settings(&store("{redis: 'redis://a:6379/1', username: u, timeout: 50ms, cluster: c}"));
    let read = read.store.unwrap();
    assert_eq!((read.cluster.as_str(), read.redis.servers().as_str()), ("c", "redis://a:6379/1"));
    assert_eq!(read.timeout, Duration::from_millis(50));
    assert!(settings(&store("{redis-cluster: ['redis://a', 'redis://b']}")).store.is_some());
    assert!(settings(&store("{sentinels: ['redis://a'], master: m}")).store.is_some());
    for wrong in ["{}", "{redis: 'redis://a', redis-cluster: 'redis://b'}", "{master: m}"] {
        assert_eq!(problems(&store(wrong)).len(), 1, "{wrong}");
    }
    let secret = problems(&store("{redis: 'radish://u:secret@a'}"));
    assert!(!format!("{secret:?}").contains("secret"), "{secret:?}");
}

#[test]
fn quotas_can_come_from_a_management_server() {
    let xds = |text: &str| format!("rls:\n  listen: 127.0.0.1:8081\n  xds: {text}\n");
    let read = settings(&xds("{server: 'eg:18001'}")).xds.unwrap();
    let seconds = Duration::from_secs;
    assert_eq!((read.node.as_str(), read.backoff), ("default", (seconds(10), seconds(60))));
    let read = settings(&xds("{server: 'eg:18001', node: envoy-ratelimit, metadata: {zone: a}, \
         headers: {authorization: Bearer secret}, backoff-longest: 1s, \
         tls: {ca: /certs/ca.crt, cert: /certs/tls.crt, key: /certs/tls.key, name: envoy-gateway}}"));
    let read = read.xds.unwrap();
    let tls = read.tls.as_ref().unwrap();
    assert_eq!((tls.own.is_some(), tls.name.as_deref()), (true, Some("envoy-gateway")));
    assert_eq!((read.metadata.len(), read.headers.len()), (1, 1));
    assert_eq!(read.backoff, (seconds(10), seconds(10)));
    assert!(!format!("{read:?}").contains("secret"), "{read:?}");
    for (wrong, expected) in [
        ("{}", "`xds` names no server"),
        ("{server: eg}", "`eg` is no server; expected HOST:PORT"),
        ("{server: 'http://eg:1'}", "is no server"),
        ("{server: 'eg:1', headers: {X-A: b}}", "cannot be a header"),
        ("{server: 'eg:1', tls: {cert: /c}}", "expected `ca`"),
        ("{server: 'eg:1', tls: {ca: /c, key: /k}}", "expected both of `cert` and `key`"),
        ("{server: 'eg:1', scope: fleet}", "there is no store"),
    ] {
        let found = problems(&xds(wrong));
        assert!(found.iter().any(|problem| problem.contains(expected)), "{wrong}: {found:?}");
    }
    let both = "{server: 'eg:1', scope: fleet}\n  store: {redis: 'redis://a'}";
    assert_eq!(settings(&xds(both)).xds.unwrap().scope, Scope::Fleet);
}

#[test]
fn a_statsd_server_has_an_address() {
    let statsd = |text: &str| format!("rls: {{ socket: /s, statsd: {text} }}\n");
    let read = settings(&statsd("{ server: 'localhost:8125' }")).statsd.unwrap();
    assert_eq!((read.server.as_str(), read.interval), ("localhost:8125", Duration::from_secs(5)));
    for wrong in ["{}", "{ server: localhost }", "{ server: 'a:1', interval: 5 }"] {
        assert_eq!(problems(&statsd(wrong)).len(), 1, "{wrong}");
    }
}
