//! HTTP over the real socket, from clients that are polite, broken, slow and gone.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Bounds,
    testing::{Reply, Served, exchange, refusal, request, wait_until},
};
use crate::app::view::{Explanation, History, Recent, Status, Suggestion};

fn get(served: &Served, path: &str) -> Reply {
    exchange(served.connect(), &request("GET", path))
}

fn post(served: &Served, path: &str, body: &str) -> Reply {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(served.connect(), &request)
}

/// A trace whose head has been read: from here on nothing is missed.
fn trace(served: &Served, path: &str) -> BufReader<UnixStream> {
    let mut stream = served.connect();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: weir\r\n\r\n").as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains(" 200 "), "{line}");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    reader
}

/// The next piece of a chunked body.
fn chunk(reader: &mut BufReader<UnixStream>) -> String {
    let mut size = String::new();
    reader.read_line(&mut size).unwrap();
    let size = usize::from_str_radix(size.trim(), 16).unwrap();
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk).unwrap();
    chunk.truncate(size);
    String::from_utf8(chunk).unwrap()
}

#[test]
fn what_is_asked_for_is_answered_as_json() {
    let served = Served::new();
    let reply = get(&served, "/status");
    assert_eq!(reply.code, 200);
    let version = format!("\r\nserver: weir/{}\r\n", env!("CARGO_PKG_VERSION"));
    assert!(reply.head.contains("\r\ncontent-type: application/json\r\n"), "{}", reply.head);
    assert!(format!("{}\r\n", reply.head).contains(&version), "{}", reply.head);
    let status: Status = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(status, super::testing::status());
    let explained: Explanation = serde_json::from_str(&get(&served, "/explain/web").body).unwrap();
    assert_eq!(explained, super::testing::explanation());
    let history: History = serde_json::from_str(&get(&served, "/history/web").body).unwrap();
    assert_eq!(history, super::testing::history());
    let suggested: Suggestion = serde_json::from_str(&get(&served, "/suggest/web").body).unwrap();
    assert_eq!(suggested, super::testing::suggestion());
    let recent: Recent = serde_json::from_str(&get(&served, "/recent").body).unwrap();
    assert_eq!(recent, super::testing::recent());
    assert_eq!(get(&served, "/tables").json(), json!({"tables": {"web": 1}}));
    assert_eq!(get(&served, "/healthz").body, "ok\n");
    let reply = get(&served, "/metrics");
    assert!(reply.head.contains("application/openmetrics-text"), "{}", reply.head);
    assert!(reply.body.ends_with("# EOF\n"), "{}", reply.body);
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let mut served = Served::new();
    let path = served.socket();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    served.stop();
    served.join();
    assert!(!path.exists());
}

#[test]
fn a_workload_that_is_not_there_is_told_with_those_that_are() {
    let served = Served::new();
    let expected = "there is no workload `wbe`; expected one of web, mysql, batch";
    for path in ["/explain/wbe", "/history/wbe", "/suggest/wbe", "/trace?workload=wbe"] {
        let reply = get(&served, path);
        assert_eq!((reply.code, reply.json()["error"].as_str()), (404, Some(expected)), "{path}");
    }
    let reply = post(&served, "/pause", r#"{"workload":"wbe","seconds":60}"#);
    assert_eq!((reply.code, reply.json()["error"].as_str()), (404, Some(expected)));
    // A name with anything in it is a name.
    let reply = get(&served, "/explain/a%2Fb%20c");
    assert!(reply.json()["error"].as_str().unwrap().contains("`a/b c`"), "{}", reply.body);
    served.memory.status.lock().unwrap().workloads.clear();
    let reply = get(&served, "/explain/wbe");
    assert!(reply.body.contains("there are none on this node"), "{}", reply.body);
}

#[test]
fn an_unknown_route_is_told_with_those_there_are() {
    let served = Served::new();
    let reply = get(&served, "/stauts");
    assert_eq!(reply.code, 404);
    let failure = reply.json();
    assert!(failure["error"].as_str().unwrap().contains("`GET /stauts`"), "{failure}");
    assert!(failure["routes"].as_array().unwrap().contains(&json!("GET /status")), "{failure}");
    let reply = exchange(served.connect(), &request("DELETE", "/status"));
    assert_eq!(reply.code, 405);
    assert!(reply.json()["error"].as_str().unwrap().contains("`DELETE /status`"));
}

#[test]
fn over_tcp_there_are_health_and_metrics_and_nothing_else() {
    let served = Served::new();
    let get = |path: &str| exchange(TcpStream::connect(served.tcp).unwrap(), &request("GET", path));
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(get(path).code, 200, "{path}");
    }
    for path in [
        "/status",
        "/explain/web",
        "/history/web",
        "/suggest/web",
        "/recent",
        "/trace",
        "/tables",
        "/log",
        "/pause",
    ] {
        assert_eq!(get(path).code, 404, "{path}");
    }
    assert_eq!(get("/").json()["routes"].as_array().unwrap().len(), 3);
}

#[test]
fn readiness_names_who_is_undecided_and_who_is_not_enforced() {
    let served = Served::new();
    let reply = get(&served, "/readyz");
    assert_eq!(reply.code, 200);
    let mysql = json!([{"workload": "mysql", "reason": "interface eth7 is not there"}]);
    assert_eq!(reply.json(), json!({"ready": true, "undecided": [], "not_enforced": mysql}));
    {
        let mut status = served.memory.status.lock().unwrap();
        status.ready = false;
        status.workloads[0].condition = "undecided".to_owned();
        status.workloads[0].detail = None;
    }
    let reply = get(&served, "/readyz");
    assert_eq!(reply.code, 503);
    assert_eq!(reply.json()["undecided"], json!([{"workload": "web", "reason": ""}]));
}

#[test]
fn a_pause_concerns_one_workload_or_all() {
    let served = Served::new();
    let reply = post(&served, "/pause", r#"{"workload":"web","seconds":900}"#);
    assert_eq!((reply.code, reply.json()), (200, json!({"workloads": ["web"]})));
    let reply = post(&served, "/pause", r#"{"seconds":0}"#);
    assert_eq!(reply.json(), json!({"workloads": ["web", "mysql", "batch"]}));
    let reply = post(&served, "/pause", r#"{"seconds":13}"#);
    assert_eq!(
        (reply.code, reply.json()["error"].as_str()),
        (409, Some("the map cannot be written"))
    );
    assert_eq!(served.memory.pauses.lock().unwrap().len(), 2);
}

#[test]
fn a_pause_that_is_not_understood_pauses_nobody() {
    let served = Served::new();
    for (body, code) in [
        // Without its misspelt workload it would be for the whole node.
        (r#"{"workoad":"web","seconds":900}"#, 422),
        (r#"{"workload":"web"}"#, 422),
        (r#"{"seconds":-1}"#, 422),
        ("pause", 400),
        ("", 400),
    ] {
        let reply = post(&served, "/pause", body);
        assert_eq!(reply.code, code, "{body}: {}", reply.body);
        assert!(!reply.json()["error"].as_str().unwrap().is_empty());
    }
    assert!(served.memory.pauses.lock().unwrap().is_empty());
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let served = Served::new();
    let body = format!("{{\"workload\":\"{}\",\"seconds\":9}}", "x".repeat(Bounds::DEFAULT.body));
    let reply = post(&served, "/pause", &body);
    assert_eq!(reply.code, 413, "{}", reply.body);
    assert!(reply.json()["error"].is_string());
    // Said beforehand or not: chunked, its length is known to nobody.
    let request = format!(
        "POST /pause HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Type: application/json\
         \r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    assert_eq!(exchange(served.connect(), &request).code, 413);
    assert!(served.memory.pauses.lock().unwrap().is_empty());
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let served = Served::new();
    let reply = get(&served, &format!("/{}", "x".repeat(20_000)));
    assert!([414, 431].contains(&reply.code), "{}", reply.code);
    assert_eq!(get(&served, "/healthz").code, 200);
}

#[test]
fn the_level_of_the_log_changes() {
    let served = Served::new();
    let put = |path: &str| exchange(served.connect(), &request("PUT", path));
    assert_eq!(get(&served, "/log").json(), json!({"level": "info"}));
    assert_eq!(
        put("/log?level=weir%3A%3Aapp%3Ddebug,warn").json()["level"],
        "weir::app=debug,warn"
    );
    assert_eq!(get(&served, "/log").json(), json!({"level": "weir::app=debug,warn"}));
    let reply = put("/log?level=loud");
    assert_eq!(reply.code, 400);
    assert!(reply.json()["error"].as_str().unwrap().starts_with("`loud` is not a level"));
    assert_eq!(put("/log").code, 400);
    assert_eq!(put("/log?level=info&lvl=x").code, 400);
}

#[test]
fn who_sends_its_request_too_slowly_is_cut_off_and_nobody_else() {
    let bounds = Bounds { head: Duration::from_secs(1), ..Bounds::DEFAULT };
    let served = Served::within(bounds);
    let mut slow = served.connect();
    slow.write_all(b"GET /status HTTP/1.1\r\nHost:").unwrap();
    let mut silent = served.connect();
    assert_eq!(get(&served, "/healthz").code, 200);
    for stream in [&mut slow, &mut silent] {
        // An end, or an answer that says it was too slow, and then the end.
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.contains(" 408 "), "{answer}");
    }
}

#[test]
fn a_body_that_never_comes_is_not_waited_for() {
    let bounds = Bounds { request: Duration::from_millis(200), ..Bounds::DEFAULT };
    let served = Served::within(bounds);
    let request = "POST /pause HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\
                   Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{";
    let reply = exchange(served.connect(), request);
    assert_eq!(reply.code, 503, "{}", reply.body);
    assert!(served.memory.pauses.lock().unwrap().is_empty());
}

#[test]
fn an_agent_that_is_stuck_says_so() {
    let bounds = Bounds { request: Duration::from_millis(200), ..Bounds::DEFAULT };
    let served = Served::within(bounds);
    served.memory.stuck.store(true, Ordering::Relaxed);
    for path in ["/status", "/recent", "/healthz", "/readyz", "/metrics"] {
        let reply = get(&served, path);
        assert_eq!(reply.code, 503, "{path}");
        assert!(reply.json()["error"].as_str().unwrap().starts_with("no answer within 0.2 s"));
    }
    served.memory.stuck.store(false, Ordering::Relaxed);
    wait_until("an answer", || get(&served, "/healthz").code == 200);
}

#[test]
fn connections_above_the_bound_wait_for_their_turn() {
    let bounds = Bounds { connections: 2, ..Bounds::DEFAULT };
    let served = Served::within(bounds);
    let first = trace(&served, "/trace");
    let _second = trace(&served, "/trace");
    let mut third = served.connect();
    third.write_all(request("GET", "/healthz").as_bytes()).unwrap();
    third.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(third.read(&mut [0]).is_err(), "nobody answers yet");
    third.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    drop(first);
    let mut answer = String::new();
    third.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
}

#[test]
fn a_trace_tells_refusals_as_they_happen() {
    let served = Served::new();
    let mut all = trace(&served, "/trace");
    let mut mysql = trace(&served, "/trace?workload=mysql");
    served.memory.refusals.send(refusal("10.0.0.9:1")).unwrap();
    let other = crate::app::view::Refusal { workload: "mysql".to_owned(), ..refusal("10.0.0.9:2") };
    served.memory.refusals.send(other.clone()).unwrap();
    let lines = [chunk(&mut all), chunk(&mut all)];
    assert!(lines.iter().all(|line| line.ends_with("}\n")), "{lines:?}");
    let first: crate::app::view::Refusal = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(first, refusal("10.0.0.9:1"));
    let line = chunk(&mut mysql);
    assert_eq!(serde_json::from_str::<crate::app::view::Refusal>(&line).unwrap(), other);
    assert_eq!(get(&served, "/trace?workload=web&x=1").code, 400);
}

#[test]
fn a_client_that_leaves_frees_its_trace() {
    let bounds = Bounds { traces: 2, ..Bounds::DEFAULT };
    let served = Served::within(bounds);
    let first = trace(&served, "/trace");
    let _second = trace(&served, "/trace");
    assert_eq!(served.memory.refusals.receiver_count(), 2);
    let reply = get(&served, "/trace");
    assert_eq!(reply.code, 429);
    assert!(reply.json()["error"].as_str().unwrap().starts_with("2 traces run already"));
    assert!(get(&served, "/metrics").body.contains("\nweir_trace_streams 2\n"));
    // Nothing is sent: that it left must be noticed all the same.
    drop(first);
    wait_until("the end of the stream", || served.memory.refusals.receiver_count() == 1);
    wait_until("room for another", || {
        get(&served, "/metrics").body.contains("\nweir_trace_streams 1\n")
    });
    trace(&served, "/trace");
}

#[test]
fn a_client_that_is_too_slow_is_told_what_it_missed() {
    let served = Served::new();
    let mut slow = trace(&served, "/trace");
    // Far more than pipes and the channel of four hold together.
    let sent = 5_000;
    for _ in 0..sent {
        served.memory.refusals.send(refusal(&"x".repeat(1000))).unwrap();
    }
    let (mut told, mut lost) = (0, 0);
    while told + lost < sent {
        for line in chunk(&mut slow).lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            match line["lost"].as_u64() {
                Some(missed) => lost += missed,
                None => told += 1,
            }
        }
    }
    assert!(told + lost == sent && lost > 0, "{told} + {lost}");
    let metrics = get(&served, "/metrics").body;
    assert!(metrics.contains(&format!("\nweir_trace_skipped_total {lost}\n")), "{metrics}");
}

#[test]
fn a_stop_ends_streams_and_idle_connections_and_lets_requests_end() {
    let bounds = Bounds { drain: Duration::from_secs(60), ..Bounds::DEFAULT };
    let mut served = Served::within(bounds);
    let mut stream = trace(&served, "/trace");
    let mut idle = served.connect();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: weir\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).unwrap();
    served.memory.stuck.store(true, Ordering::Relaxed);
    let mut busy = served.connect();
    busy.write_all(request("GET", "/status").as_bytes()).unwrap();
    wait_until("the request is under way", || served.memory.waiting.load(Ordering::Relaxed) > 0);
    let started = Instant::now();
    served.stop();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "0\r\n\r\n");
    served.memory.stuck.store(false, Ordering::Relaxed);
    busy.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(" 200 OK"), "{rest}");
    served.join();
    assert!(started.elapsed() < bounds.drain, "it did not have to be cut off");
    assert!(UnixStream::connect(served.socket()).is_err());
}

#[test]
fn a_connection_over_tcp_does_not_live_for_ever() {
    let bounds = Bounds { tcp_connection: Duration::from_millis(200), ..Bounds::DEFAULT };
    let served = Served::within(bounds);
    let mut stream = TcpStream::connect(served.tcp).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: weir\r\n\r\n").unwrap();
    let mut answer = String::new();
    // Kept alive after the answer, and then ended by the server.
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
}
