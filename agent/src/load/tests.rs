//! Servers and clients against each other, over loopback.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    time::Duration,
};

use super::*;

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[test]
fn what_the_client_opens_the_server_accepts() {
    for talk in [Talk::Nothing, Talk::Byte, Talk::Http] {
        let server = Server::start(&[loopback(), loopback()], talk).unwrap();
        let [one, other] = server.addresses()[..] else { panic!("two addresses") };
        let first = Plan::to(one).parallel(8).attempts(100).talk(talk).run().unwrap();
        let second = Plan::to(other).talk(talk).run().unwrap();
        assert_eq!(first.stats.ok(), 100, "{talk:?}: {}", first.stats);
        assert_eq!(second.stats.ok(), 1, "{talk:?}: {}", second.stats);
        // Without a word the client may be done before the server has accepted.
        let patience = std::time::Instant::now() + Duration::from_secs(5);
        while server.accepted_in_all() < 101 && std::time::Instant::now() < patience {
            std::thread::yield_now();
        }
        assert_eq!(server.accepted(one.port()), 100, "{talk:?}");
        assert_eq!(server.accepted(other.port()), 1, "{talk:?}");
        let bytes = first.stats.bytes();
        assert_eq!(bytes == 0, talk == Talk::Nothing);
        assert_eq!(bytes % 100, 0);
    }
}

#[test]
fn an_open_loop_makes_every_attempt_that_is_due() {
    let server = Server::start(&[loopback()], Talk::Byte).unwrap();
    let plan = Plan::to(server.addresses()[0]).talk(Talk::Byte);
    let report = plan.per_second(200).lasting(Duration::from_millis(500)).run().unwrap();
    assert_eq!(report.stats.attempts(), 100);
    assert_eq!(report.stats.ok(), 100, "{}", report.stats);
    assert_eq!(report.unsent, 0);
    // The first leaves at 0 ms, the last at 495 ms.
    let span = report.span.unwrap();
    assert!(span.at_most() >= Duration::from_millis(495), "{span:?}");
    assert!(span.at_least() <= span.at_most(), "{span:?}");
}

#[test]
fn a_closed_port_refuses() {
    let closed = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let report = Plan::to(closed).attempts(3).run().unwrap();
    assert_eq!(report.stats.count(Outcome::Refused), 3, "{}", report.stats);
    assert!(report.stats.refusal().mean().is_some());
}

#[test]
fn a_peer_that_never_accepts_is_a_timeout_of_the_answer() {
    let silent = TcpListener::bind(loopback()).unwrap();
    let plan = Plan::to(silent.local_addr().unwrap()).talk(Talk::Byte);
    let report = plan.timeout(Duration::from_millis(50)).run().unwrap();
    assert_eq!(report.stats.count(Outcome::Timeout), 1, "{}", report.stats);
}

#[test]
fn a_peer_that_says_too_little_is_told_from_one_that_answers() {
    let server = Server::start(&[loopback()], Talk::Nothing).unwrap();
    let report = Plan::to(server.addresses()[0]).talk(Talk::Byte).run().unwrap();
    assert_eq!(report.stats.count(Outcome::Short), 1, "{}", report.stats);
}

#[test]
fn a_source_address_is_used_or_the_error_is_named() {
    let server = Server::start(&[loopback()], Talk::Nothing).unwrap();
    let plan = Plan::to(server.addresses()[0]);
    let ours = IpAddr::from([127, 0, 0, 9]);
    assert_eq!(plan.clone().from([ours]).run().unwrap().stats.ok(), 1);
    let foreign = IpAddr::from([192, 0, 2, 1]);
    let report = plan.from([foreign]).run().unwrap();
    assert_eq!(report.stats.codes(), "EADDRNOTAVAIL:1");
}

#[test]
fn a_client_that_is_stopped_ends_without_its_plan() {
    let server = Server::start(&[loopback()], Talk::Nothing).unwrap();
    let client = Client::start(Plan::to(server.addresses()[0]).per_second(50)).unwrap();
    while client.stats().ok() == 0 {
        std::thread::yield_now();
    }
    client.stop();
    let report = client.finish();
    assert_eq!(report.stats.attempts(), report.stats.ok());
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let _server = Server::start(&[taken], Talk::Nothing).unwrap();
    let error = Server::start(&[taken], Talk::Nothing).unwrap_err();
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
}

#[test]
fn an_idle_server_lets_connections_wait() {
    let server = Server::idle(&[loopback()], Talk::Byte).unwrap();
    let plan = Plan::to(server.addresses()[0]).parallel(8).attempts(8).talk(Talk::Byte);
    let client = Client::start(plan).unwrap();
    while client.in_flight() < 8 {
        std::thread::yield_now();
    }
    assert_eq!((client.stats().attempts(), server.accepted_in_all()), (0, 0));
    server.work();
    assert_eq!(client.finish().stats.ok(), 8);
}

#[test]
fn a_deaf_server_answers_no_syn_until_it_works() {
    let server = Server::deaf(&[loopback()], Talk::Byte).unwrap();
    let plan = Plan::to(server.addresses()[0]).talk(Talk::Byte);
    let unanswered = plan.clone().timeout(Duration::from_millis(50)).run().unwrap();
    assert_eq!(unanswered.stats.count(Outcome::Timeout), 1, "{}", unanswered.stats);
    assert!(unanswered.stats.connect().mean().is_none());
    let waiting = Client::start(plan.timeout(Duration::from_secs(20))).unwrap();
    while waiting.in_flight() == 0 {
        std::thread::yield_now();
    }
    server.work();
    // Its SYN is sent again after a second.
    assert_eq!(waiting.finish().stats.ok(), 1);
}
