//! Commands from their words to their answers, with an agent behind a real socket.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::net::UnixListener,
    path::Path,
    sync::atomic::Ordering,
    thread,
};

use serde_json::{Value, json};

use super::*;
use crate::admin::testing::{Folder, Served, refusal, wait_until};

/// What a command wrote, and how it ended.
fn run_on(socket: &Path, words: &[&str]) -> (Result<Exit, CliError>, String) {
    let tail = ["--socket", socket.to_str().unwrap()];
    let words = ["weir"].iter().chain(words).chain(&tail);
    let Cli { command } = Cli::try_parse_from(words).unwrap();
    let mut out = Vec::new();
    let exit = command.run(&mut out);
    (exit, String::from_utf8(out).unwrap())
}

fn run(served: &Served, words: &[&str]) -> (Exit, String) {
    let (exit, text) = run_on(&served.socket(), words);
    (exit.unwrap(), text)
}

fn fail(socket: &Path, words: &[&str]) -> (ExitCode, String) {
    let error = run_on(socket, words).0.unwrap_err();
    (error.exit_code().into(), with_causes(&error))
}

fn is_code(code: ExitCode, number: u8) -> bool {
    // There is no other way to look into it.
    format!("{code:?}") == format!("{:?}", ExitCode::from(number))
}

#[test]
fn status_shows_the_node_and_says_whether_all_is_well() {
    let served = Served::new();
    let (exit, text) = run(&served, &["status"]);
    assert_eq!(exit, Exit::NotOk, "a workload is not enforced");
    assert!(text.contains("/etc/weir/node.yaml") && text.contains("mysql"), "{text}");
    {
        let mut status = served.memory.status.lock().unwrap();
        status.workloads.retain(|workload| workload.condition != "not-enforced");
        status.uplinks.clear();
        status.problems.clear();
    }
    assert_eq!(run(&served, &["status"]).0, Exit::Ok);
    served.memory.status.lock().unwrap().ready = false;
    assert_eq!(run(&served, &["status"]).0, Exit::NotOk);
}

#[test]
fn for_programs_the_answers_are_those_of_the_socket() {
    let served = Served::new();
    let json = |words: &[&str]| -> Value {
        let words: Vec<_> = words.iter().chain(&["-o", "json"]).copied().collect();
        serde_json::from_str(&run(&served, &words).1).unwrap()
    };
    assert_eq!(json(&["status"]), serde_json::to_value(crate::admin::testing::status()).unwrap());
    let explanation = serde_json::to_value(crate::admin::testing::explanation()).unwrap();
    assert_eq!(json(&["explain", "web"]), explanation);
    let history = serde_json::to_value(crate::admin::testing::history()).unwrap();
    assert_eq!(json(&["history", "web"]), history);
    let suggestion = serde_json::to_value(crate::admin::testing::suggestion()).unwrap();
    assert_eq!(json(&["suggest", "web"]), suggestion);
    let screen = json(&["top", "--once"]);
    assert_eq!(screen["workloads"][0]["name"], "web");
    assert_eq!(screen["workloads"][0]["seconds"].as_array().unwrap().len(), 60);
    assert_eq!(screen["refusals"][0]["source"], "10.0.0.9:51234");
    assert_eq!(json(&["pause", "web", "--for", "15m"]), json!({"workloads": ["web"]}));
    assert_eq!(json(&["resume", "web"]), json!({"workloads": ["web"]}));
    assert_eq!(json(&["log"]), json!({"level": "info"}));
}

#[test]
fn a_pause_is_for_one_workload_or_the_node() {
    let served = Served::new();
    let (exit, text) = run(&served, &["pause", "web", "--for", "15m"]);
    assert!(exit == Exit::Ok && text.starts_with("paused web for 15m, until "), "{text}");
    let (_, text) = run(&served, &["pause", "--node", "--for", "90s"]);
    assert!(text.starts_with("paused 3 workloads (web, mysql, batch) for 1m30s"), "{text}");
    let (_, text) = run(&served, &["resume", "--node"]);
    assert!(text.starts_with("resumed 3 workloads"), "{text}");
    let pauses = served.memory.pauses.lock().unwrap();
    let asked: Vec<_> =
        pauses.iter().map(|pause| (pause.workload.as_deref(), pause.seconds)).collect();
    assert_eq!(asked, [(Some("web"), 900), (None, 90), (None, 0)]);
}

#[test]
fn a_pause_names_whom_it_is_for() {
    for words in [
        &["pause", "--for", "1m"][..],
        &["pause", "web", "--node", "--for", "1m"],
        &["pause", "web"],
        &["pause", "web", "--for", "1"],
        &["resume"],
        &["explain"],
        &["agent"],
        &["agent", "--uninstall", "--node-file", "x"],
        &["agent", "--node-file", "x", "--log", "debgu"],
        &["check"],
        &["demo", "--seconds", "0"],
        &["trace", "--count", "0"],
        &["history"],
        &["suggest"],
        &["top", "--interval", "1"],
    ] {
        let error = Cli::try_parse_from(["weir"].iter().chain(words)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{words:?}");
    }
}

#[test]
fn the_level_of_the_log_is_shown_and_changed() {
    let served = Served::new();
    assert_eq!(run(&served, &["log"]).1, "the agent logs info\n");
    let (_, text) = run(&served, &["log", "warn,weir::app=trace"]);
    assert_eq!(text, "the agent logs weir::app=trace,warn\n");
}

#[test]
fn top_prints_one_table_where_there_is_no_terminal() {
    let served = Served::new();
    let (exit, text) = run(&served, &["top", "--once", "--interval", "500ms"]);
    assert_eq!(exit, Exit::Ok);
    let web = text.lines().nth(1).unwrap();
    let words: Vec<_> = web.split_whitespace().collect();
    assert_eq!(words, ["web", "enforced", "tcx", "40.0/s", "20.0/s"], "{text}");
    assert_eq!(text.lines().count(), 4);
}

#[test]
fn top_as_a_stream_ends_with_the_agent() {
    let served = Served::new();
    let socket = served.socket();
    let (lines, mut out) = io::pipe().unwrap();
    let top = thread::spawn(move || {
        let words = ["weir", "top", "-o", "json", "--interval", "100ms", "--socket"];
        let words = words.iter().map(AsRef::as_ref).chain([socket.as_os_str()]);
        Cli::try_parse_from(words).unwrap().command.run(&mut out)
    });
    let mut lines = BufReader::new(lines).lines().map(Result::unwrap);
    let first: Vec<_> = lines.by_ref().take(2).collect();
    assert_eq!(first.len(), 2, "{first:?}");
    drop(served);
    for line in first.into_iter().chain(lines) {
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["workloads"][0]["name"], "web");
    }
    let error = top.join().unwrap().unwrap_err();
    assert!(is_code(error.exit_code().into(), 3), "{error}");
}

#[test]
fn history_and_suggestions_are_of_one_workload() {
    let served = Served::new();
    let (exit, text) = run(&served, &["history", "web"]);
    assert!(exit == Exit::Ok && text.contains("uid 0, pid 4242"), "{text}");
    let (exit, text) = run(&served, &["suggest", "web"]);
    assert!(exit == Exit::Ok && text.contains("connections.80: 120/s burst=240"), "{text}");
    for command in ["history", "suggest"] {
        let (code, text) = fail(&served.socket(), &[command, "wbe"]);
        assert!(is_code(code, 1) && text.starts_with("there is no workload `wbe`"), "{text}");
    }
}

#[test]
fn a_trace_ends_after_so_many() {
    let served = Served::new();
    let socket = served.socket();
    let reader = thread::spawn(move || run_on(&socket, &["trace", "web", "--count", "2"]));
    wait_until("the trace", || served.memory.refusals.receiver_count() == 1);
    for source in ["10.0.0.9:1", "10.0.0.9:2", "10.0.0.9:3"] {
        served.memory.refusals.send(refusal(source)).unwrap();
    }
    let (exit, text) = reader.join().unwrap();
    assert_eq!(exit.unwrap(), Exit::Ok);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() == 3 && lines[0].contains("REASON"), "{text}");
    assert!(lines[1].contains("10.0.0.9:1 -> :80") && lines[2].contains("10.0.0.9:2"), "{text}");
    wait_until("the end of it", || served.memory.refusals.receiver_count() == 0);
}

#[test]
fn a_trace_that_the_agent_ends_is_told_as_such() {
    let served = Served::new();
    let socket = served.socket();
    let reader = thread::spawn(move || run_on(&socket, &["trace", "-o", "json"]));
    wait_until("the trace", || served.memory.refusals.receiver_count() == 1);
    served.memory.refusals.send(refusal("10.0.0.9:1")).unwrap();
    served.stop();
    let (exit, text) = reader.join().unwrap();
    let error = exit.unwrap_err();
    assert!(error.to_string().ends_with("has stopped"), "{error}");
    // What was sent before may have been overtaken by the stop.
    for line in text.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["source"], "10.0.0.9:1");
    }
}

#[test]
fn what_the_agent_refuses_is_told_in_its_words() {
    let served = Served::new();
    let (code, text) = fail(&served.socket(), &["explain", "wbe"]);
    assert_eq!(text, "there is no workload `wbe`; expected one of web, mysql, batch");
    assert!(is_code(code, 1));
    // Whatever somebody types is a name, and not another route.
    let (_, text) = fail(&served.socket(), &["explain", "../status?x#y"]);
    assert!(text.starts_with("there is no workload `../status?x#y`"), "{text}");
}

#[test]
fn nobody_at_the_socket_is_told_with_what_to_do() {
    let folder = Folder::new();
    let (code, text) = fail(&folder.socket(), &["status"]);
    assert!(is_code(code, 3));
    let start = format!("no agent listens on {}: start one", folder.socket().display());
    assert!(text.starts_with(&start), "{text}");
    // The same with a socket that is left over.
    drop(UnixListener::bind(folder.socket()).unwrap());
    assert!(fail(&folder.socket(), &["status"]).1.starts_with(&start));
}

/// Answers one request with these bytes.
fn answer_with(folder: &Folder, bytes: String) -> thread::JoinHandle<()> {
    let _ = std::fs::remove_file(folder.socket());
    let listener = UnixListener::bind(folder.socket()).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
    })
}

/// An answer with this code, of this server.
fn http(code: &str, server: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {code}\r\nServer: {server}\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[test]
fn an_agent_of_another_version_and_somebody_else_are_told_apart() {
    let folder = Folder::new();
    let unknown = r#"{"error":"what?","routes":["GET /status"]}"#;
    let mut cut = http("200 OK", "weir/0.1.0", "{}");
    cut.pop();
    for (answer, expected) in [
        (
            http("404 Not Found", "weir/0.0.1", unknown),
            "is weir 0.0.1 and does not know `GET /explain/web`",
        ),
        (http("200 OK", "weir/9.9.9", "7"), "is weir 9.9.9 and its answer is not understood"),
        (
            http("500 Oops", "weir/9.9.9", "<html>"),
            "is weir 9.9.9 and its answer is not understood",
        ),
        (http("200 OK", "nginx", "{}"), "is the socket of something else"),
        ("SSH-2.0-x\r\n".to_owned(), "is the socket of something else"),
        (cut, "went away before it had answered"),
        (String::new(), "went away before it had answered"),
    ] {
        let agent = answer_with(&folder, answer);
        let (code, text) = fail(&folder.socket(), &["explain", "web"]);
        assert!(text.contains(expected), "{text}");
        assert!(is_code(code, 3));
        agent.join().unwrap();
    }
}

#[test]
fn an_older_agent_that_leaves_fields_out_is_understood() {
    let folder = Folder::new();
    let body = r#"{"version":"0.0.9","shiny":"field"}"#;
    let agent = answer_with(&folder, http("200 OK", "weir/0.0.9", body));
    let (exit, text) = run_on(&folder.socket(), &["status"]);
    assert_eq!(exit.unwrap(), Exit::NotOk);
    assert!(text.starts_with("weir 0.0.9, "), "{text}");
    agent.join().unwrap();
}

#[test]
fn an_agent_that_is_stuck_says_so_itself() {
    let bounds = crate::admin::Bounds {
        request: std::time::Duration::from_millis(100),
        ..crate::admin::Bounds::DEFAULT
    };
    let served = Served::within(bounds);
    served.memory.stuck.store(true, Ordering::Relaxed);
    let (code, text) = fail(&served.socket(), &["status"]);
    assert!(text.starts_with("no answer within 0.1 s") && is_code(code, 1), "{text}");
}

#[test]
fn check_says_where_what_and_what_was_expected() {
    let folder = Folder::new();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("good.yaml"), "workloads: []\n").unwrap();
    std::fs::write(at("bad.yaml"), "modes: shadow\nworkloads: []\n").unwrap();
    let check = |files: &[&str], output: &str| {
        let files: Vec<_> = files.iter().map(|file| at(file).display().to_string()).collect();
        let words = ["weir", "check", "-o", output].map(str::to_owned);
        let Cli { command } = Cli::try_parse_from(words.into_iter().chain(files)).unwrap();
        let mut out = Vec::new();
        (command.run(&mut out).unwrap(), String::from_utf8(out).unwrap())
    };
    let (exit, text) = check(&["good.yaml"], "table");
    assert!(exit == Exit::Ok && text.ends_with("good.yaml: ok\n"), "{text}");
    let (exit, text) = check(&["good.yaml", "bad.yaml", "none.yaml"], "table");
    assert_eq!(exit, Exit::NotOk);
    assert!(text.contains("bad.yaml:1:1: error: ") && text.contains("expected"), "{text}");
    assert!(text.contains("bad.yaml: 1 error\n"), "{text}");
    assert!(text.contains("none.yaml: the file cannot be read"), "{text}");
    let (exit, text) = check(&["bad.yaml", "none.yaml"], "json");
    let checked: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((exit, &checked[0]["errors"]), (Exit::NotOk, &json!(1)));
    assert_eq!(checked[0]["problems"][0]["place"]["file"]["line"], 1);
    assert!(checked[1]["unreadable"].as_str().unwrap().contains("No such file"), "{text}");
}

#[test]
fn check_reads_quota_files_together() {
    let folder = Folder::new();
    let quota = "domain: shop\ndescriptors: [{key: user, rate_limit: {unit: day}}]\n";
    let overlay = "format: weir-overlay\ndomain: shop\ndescriptors: [{key: user, scope: node}]\n";
    let wrong = "domain: shop\ndescriptors: [{key: path, units: 1}]\n";
    for (name, text) in [("quota", quota), ("overlay", overlay), ("wrong", wrong)] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let check = |words: &[&str]| {
        let words = words.iter().map(|word| match word.strip_prefix('@') {
            Some(file) => folder.path().join(file).display().to_string(),
            None => (*word).to_owned(),
        });
        let words = ["weir", "check"].map(str::to_owned).into_iter().chain(words);
        let Cli { command } = Cli::try_parse_from(words).unwrap();
        let mut out = Vec::new();
        (command.run(&mut out).unwrap(), String::from_utf8(out).unwrap())
    };
    assert_eq!(check(&["@quota", "@overlay"]).0, Exit::Ok);
    assert_eq!(check(&["--merge-domains", "@quota"]).0, Exit::Ok);
    let (exit, text) = check(&["@overlay"]);
    assert!(
        text.contains("overlay:1:1: error: no quota file describes the domain `shop`"),
        "{text}"
    );
    assert_eq!(exit, Exit::NotOk);
    // Where a server describes it, it cannot be known here.
    assert_eq!(check(&["--xds", "@overlay"]).0, Exit::Ok);
    let (exit, text) = check(&["--xds", "@quota", "@overlay"]);
    assert!(text.contains("quota:1:1: error: the domain `shop` is not the server's"), "{text}");
    assert_eq!(exit, Exit::NotOk);
    let (exit, text) = check(&["@quota", "@quota"]);
    assert!(text.contains("the domain `shop` is written twice"), "{text}");
    assert_eq!(exit, Exit::NotOk);
    let (exit, text) = check(&["@quota", "@wrong"]);
    assert!(text.contains("wrong:2:27: error: unknown key `units` in `descriptors`"), "{text}");
    assert!(text.contains("quota: ok\n") && text.contains("wrong: 1 error\n"), "{text}");
    assert_eq!(exit, Exit::NotOk);
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
}
