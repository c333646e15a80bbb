//! `weir status --fleet`, of agents as people run them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use weir::fleet::Survey;
use weir_tests::{
    agent::{binary, eventually, is_there_or_skip},
    redis::{Server, free_port},
};

use crate::site::rules;

struct Agent {
    folder: PathBuf,
    http: SocketAddr,
    process: Child,
}

impl Agent {
    fn start(cluster: &str, server: &Server) -> Self {
        let name = format!("weir-fleet-{cluster}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("quotas.yaml"), rules(1000, "hour", "")).unwrap();
        let (at, url) = (folder.display(), server.url());
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let node_file = format!(
            "rls:\n  socket: {at}/rls.sock\n  http: {http}\n  quotas: {at}/quotas.yaml\n  \
             store: {{ redis: \"{url}\", cluster: {cluster}, node: node-1 }}\n"
        );
        fs::write(folder.join("node.yaml"), node_file).unwrap();
        let process = Command::new(binary())
            .args(["agent", "--no-datapath", "--log", "warn", "--node-file"])
            .arg(folder.join("node.yaml"))
            .arg("--socket")
            .arg(folder.join("weir.sock"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { folder, http, process };
        let code = || agent.run(&["probe", "/readyz"]).0;
        eventually("the agent answers", code, |code| *code == Some(0));
        agent
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--socket").arg(self.folder.join("weir.sock"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// Asks for one hit of ann's.
    fn spend(&self) {
        let body =
            r#"{"domain":"shop","descriptors":[{"entries":[{"key":"user","value":"ann"}]}]}"#;
        let mut stream = TcpStream::connect(self.http).unwrap();
        write!(
            stream,
            "POST /json HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        // Before it has reached the store a node has no share.
        let is_decided = ["200", "429"].iter().any(|code| answer.split(' ').nth(1) == Some(code));
        assert!(is_decided, "{answer}");
    }

    fn survey(&self) -> Survey {
        let (_, text) = self.run(&["status", "--fleet", "-o", "json"]);
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_node_tells_who_spends_with_it() {
    redis_or_skip!();
    if !is_there_or_skip("survey::a_node_tells_who_spends_with_it") {
        return;
    }
    let mut server = Server::start();
    let agents = ["east", "west"].map(|cluster| Agent::start(cluster, &server));
    // Shares are told with a quota's joins, every few seconds while it is spent from.
    let both = || {
        agents.iter().for_each(Agent::spend);
        agents.each_ref().map(Agent::survey)
    };
    let [east, west] = eventually("both know of each other", both, |seen| {
        seen.iter().all(|it| it.members.len() == 2 && it.quotas.iter().any(|it| it.spenders == 2))
    });
    let clusters: Vec<_> = east.members.iter().map(|member| member.cluster.as_str()).collect();
    assert_eq!(clusters, ["east", "west"]);
    assert_eq!((east.cluster.as_str(), west.cluster.as_str()), ("east", "west"));
    let (ours, theirs) = (&east.quotas[0], &west.quotas[0]);
    assert_eq!((ours.quota.as_str(), ours.limit, ours.window), ("shop_user_ann", 1000, 3600));
    assert!(ours.granted >= ours.left && ours.granted > 0, "{ours:?}");
    assert!(ours.share + theirs.share <= 1000, "{ours:?} {theirs:?}");
    // A busy machine's store is late at times, and then the code is another.
    let status = || agents[0].run(&["status", "--fleet"]);
    let (_, text) = eventually("the store is up", status, |(code, _)| *code == Some(0));
    assert!(text.starts_with("east/node-1, store redis://127.0.0.1:"), "{text}");

    // Without the store it says so, and what it still has.
    server.kill();
    let down = eventually("the store is down", || agents[0].survey(), |it| it.store == "down");
    assert!(down.problem.is_some() && down.quotas.len() == 1, "{down:?}");
    assert_eq!(agents[0].run(&["status", "--fleet"]).0, Some(1));
}
