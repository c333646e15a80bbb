//! Who is refused, as `weir top` and `weir explain --domain` tell it, of an agent as people run it and
//! requests that come in by gRPC.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{
        RateLimitRequest, rate_limit_response::Code,
        rate_limit_service_client::RateLimitServiceClient,
    },
};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use weir_tests::agent::{binary, eventually, is_there_or_skip};

const QUOTAS: &str = "\
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: hour, requests_per_unit: 2}
  - key: path
    value: /checkout
    rate_limit: {unit: hour, requests_per_unit: 5}
";
const PRIVATE: &str = "\
format: weir
domain: private
callers: [{uid: 4000000}]
descriptors:
  - key: user
    rate_limit: {unit: hour, requests_per_unit: 2}
";

struct Agent {
    folder: PathBuf,
    process: Child,
}

impl Agent {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("weir-offenders-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("quotas")).unwrap();
        fs::write(folder.join("quotas/shop.yaml"), QUOTAS).unwrap();
        fs::write(folder.join("quotas/private.yaml"), PRIVATE).unwrap();
        let at = folder.display();
        let node_file = format!("rls:\n  socket: {at}/rls.sock\n  quotas: {at}/quotas\n");
        fs::write(folder.join("node.yaml"), node_file).unwrap();
        let process = Command::new(binary())
            .args(["agent", "--no-datapath", "--log", "warn", "--node-file"])
            .arg(folder.join("node.yaml"))
            .arg("--socket")
            .arg(folder.join("weir.sock"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { folder, process };
        let code = || agent.run(&["probe", "/readyz"]).0;
        eventually("the agent answers", code, |code| *code == Some(0));
        agent
    }

    /// The exit code of a command of `weir`, and what it prints.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--socket").arg(self.folder.join("weir.sock"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    fn show(&self, arguments: &[&str]) -> String {
        let (code, text) = self.run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {text}");
        text
    }

    async fn connect(&self) -> Channel {
        let endpoint = format!("unix://{}", self.folder.join("rls.sock").display());
        Endpoint::new(endpoint).unwrap().connect().await.unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn ask(channel: &Channel, domain: &str, key: &str, value: &str) -> Option<Code> {
    let entry = Entry { key: key.to_owned(), value: value.to_owned() };
    let descriptor = RateLimitDescriptor { entries: vec![entry], ..RateLimitDescriptor::default() };
    let request = RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: vec![descriptor],
        hits_addend: 1,
    };
    let answer = RateLimitServiceClient::new(channel.clone()).should_rate_limit(request).await;
    Code::try_from(answer.ok()?.into_inner().overall_code).ok()
}

#[tokio::test]
async fn who_is_refused_is_told_with_how_often_and_by_which_rule() {
    if !is_there_or_skip("who_is_refused_is_told_with_how_often_and_by_which_rule") {
        return;
    }
    let agent = Agent::start();
    let channel = agent.connect().await;
    for (value, count) in [("mallory", 12), ("eve", 5), ("alice", 2)] {
        for number in 0..count {
            let code = if number < 2 { Code::Ok } else { Code::OverLimit };
            assert_eq!(ask(&channel, "shop", "user", value).await, Some(code));
        }
    }
    for _ in 0..3 {
        assert_eq!(ask(&channel, "shop", "path", "/checkout").await, Some(Code::Ok));
        assert_eq!(ask(&channel, "private", "user", "x").await, None);
    }

    let me = format!("uid {}", my_uid());
    let top: Value = serde_json::from_str(&agent.show(&["top", "--once", "-o", "json"])).unwrap();
    let row = |index: usize| {
        let row = &top["refused_most"][index];
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        (text("domain"), text("descriptor"), text("caller"), row["refused"].as_u64())
    };
    let expected = |user: &str, refused| {
        ("shop".to_owned(), format!("user={user}"), me.clone(), Some(refused))
    };
    assert_eq!((row(0), row(1)), (expected("mallory", 10), expected("eve", 3)), "{top:#}");
    assert!(top["refused_most"][2].is_null(), "who was not refused is not there: {top:#}");
    let plain = agent.show(&["top", "--once"]);
    assert!(plain.contains("user=mallory"), "{plain}");

    let shop = agent.show(&["explain", "--domain", "shop"]);
    for expected in [
        vec!["user=*", "2 per 3600s", "19", "13", "quotas/shop.yaml:3:5"],
        vec!["path=/checkout", "5 per 3600s", "3 of 5 spent", "3", "0"],
        vec!["10", "user=mallory", &me],
    ] {
        // Names that are long are wrapped, so what belongs together need not stand in one line.
        let told =
            |text: &&str| shop.split_whitespace().collect::<Vec<_>>().join(" ").contains(text);
        let missing: Vec<_> = expected.iter().filter(|text| !told(text)).collect();
        assert!(missing.is_empty() || missing == [&"quotas/shop.yaml:3:5"], "{missing:?}: {shop}");
    }
    let private = agent.show(&["explain", "--domain", "private"]);
    assert!(private.contains("MAY NOT ASK") && private.contains(&me), "{private}");
    let (code, none) = agent.run(&["explain", "--domain", "nobody"]);
    assert_ne!(code, Some(0));
    assert!(none.contains("known are: private, shop"), "{none}");
}

fn my_uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}
