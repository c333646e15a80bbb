//! The real Envoy, configured as Istio configures it from a DestinationRule, in a namespace of the
//! lab. Which fields of the rule become which of Envoy's stands here and nowhere else.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};
use weir::lab::{Lab, Namespace, Process, skip};

use crate::agent::{PATIENCE, eventually};

/// Where its own numbers are, within its namespace.
const ADMIN: u16 = 9901;
const CLUSTER: &str = "upstream";

/// Envoy, if this machine has it; if not, the test is counted as skipped with the reason.
pub fn program_or_skip(test: &str) -> Option<PathBuf> {
    if let Some(program) = env::var_os("WEIR_ENVOY") {
        return Some(program.into());
    }
    let reason = env::var("WEIR_ENVOY_LACKS")
        .unwrap_or_else(|_| "WEIR_ENVOY names no Envoy: run `cargo xtask test`".to_owned());
    skip(test, &reason);
    None
}

/// A DestinationRule's traffic policy.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// `connectionPool.tcp.maxConnections`
    pub max_connections: u32,
    /// `connectionPool.tcp.connectTimeout`, in milliseconds
    pub connect_timeout_ms: u32,
    /// `connectionPool.http.http1MaxPendingRequests`
    pub max_pending_requests: u32,
    /// `connectionPool.http.maxRequestsPerConnection`
    pub max_requests_per_connection: u32,
    /// `outlierDetection.consecutive5xxErrors`
    pub errors: u32,
    /// `outlierDetection.interval`, in seconds
    pub interval_s: u32,
    /// `outlierDetection.baseEjectionTime`, in seconds
    pub ejection_s: u32,
}

/// What Envoy takes a connection for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Requests.
    Http,
    /// Bytes.
    Tcp,
}

/// A running Envoy, killed on drop.
#[derive(Debug)]
pub struct Envoy<'a> {
    namespace: &'a Namespace,
    log: PathBuf,
    _process: Process,
}

impl<'a> Envoy<'a> {
    /// Starts one that listens on a port of its namespace and passes on to `upstream`.
    pub fn start(
        program: &Path,
        lab: &Lab,
        namespace: &'a Namespace,
        (protocol, port): (Protocol, u16),
        upstream: SocketAddr,
        rule: Rule,
    ) -> Self {
        let text = configuration(protocol, port, upstream, rule).to_string();
        Self::launch(program, lab, namespace, &text)
    }

    /// Starts one with this configuration, JSON or YAML.
    pub fn launch(program: &Path, lab: &Lab, namespace: &'a Namespace, text: &str) -> Self {
        let at = |end| lab.directory().join(format!("envoy-{}.{end}", namespace.name()));
        let (config, log) = (at("yaml"), at("log"));
        fs::write(&config, text).expect("write Envoy's configuration");
        let output = File::create(&log).expect("make Envoy's log");
        let mut command = Command::new(program);
        command
            .arg("--config-path")
            .arg(&config)
            // Limits hold for all workers together, but each may open one connection: one worker.
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("share Envoy's log"))
            .stderr(output);
        let process = namespace.spawn(command).expect("start Envoy");
        let envoy = Self { namespace, log, _process: process };
        let ready = || envoy.ask("/ready").is_ok_and(|answer| answer.contains("LIVE"));
        eventually("Envoy is ready", ready, |ready| *ready);
        envoy
    }

    /// A number of the cluster that it passes on to.
    pub fn stat(&self, name: &str) -> u64 {
        self.number(&format!("cluster.{CLUSTER}.{name}"))
    }

    /// A number, by its whole name.
    pub fn number(&self, name: &str) -> u64 {
        self.find(name).unwrap_or_else(|| panic!("Envoy does not know {name}"))
    }

    /// A number that Envoy makes when it counts for the first time.
    pub fn count(&self, name: &str) -> u64 {
        self.find(&format!("cluster.{CLUSTER}.{name}")).unwrap_or_default()
    }

    fn find(&self, name: &str) -> Option<u64> {
        let answer = self.ask(&format!("/stats?filter=^{name}$")).expect("ask Envoy");
        let line = answer.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.and_then(|value| value.trim().parse().ok())
    }

    fn ask(&self, path: &str) -> io::Result<String> {
        let ask = || {
            let mut stream = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, ADMIN))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        self.namespace.run(ask).expect("enter the namespace")
    }
}

impl Drop for Envoy<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("Envoy's log: {}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

fn configuration(protocol: Protocol, port: u16, upstream: SocketAddr, rule: Rule) -> Value {
    let at = |address: &str, port: u16| json!({ "socket_address": { "address": address, "port_value": port } });
    let filter = match protocol {
        Protocol::Http => http_filter(),
        Protocol::Tcp => json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "lab",
                "cluster": CLUSTER,
            },
        }),
    };
    let mut cluster = json!({
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": format!("{:.3}s", f64::from(rule.connect_timeout_ms) / 1e3),
        "circuit_breakers": { "thresholds": [{
            "max_connections": rule.max_connections,
            "max_pending_requests": rule.max_pending_requests,
        }] },
        "outlier_detection": {
            "consecutive_5xx": rule.errors,
            "interval": format!("{}s", rule.interval_s),
            "base_ejection_time": format!("{}s", rule.ejection_s),
            "max_ejection_percent": 100,
            "enforcing_success_rate": 0,
        },
        // minHealthPercent 0, Istio's default: hosts that are ejected are not used after all.
        "common_lb_config": { "healthy_panic_threshold": { "value": 0 } },
        "load_assignment": { "cluster_name": CLUSTER, "endpoints": [{ "lb_endpoints": [{
            "endpoint": { "address": at(&upstream.ip().to_string(), upstream.port()) },
        }] }] },
    });
    if protocol == Protocol::Http {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {
                    "max_requests_per_connection": rule.max_requests_per_connection,
                },
                "explicit_http_config": { "http_protocol_options": {} },
            },
        });
    }
    json!({
        "admin": { "address": at("127.0.0.1", ADMIN) },
        "static_resources": {
            "listeners": [{
                "name": "lab",
                "address": at("0.0.0.0", port),
                "filter_chains": [{ "filters": [filter] }],
            }],
            "clusters": [cluster],
        },
    })
}

fn http_filter() -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network\
                .http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "lab",
            "route_config": { "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": CLUSTER } }],
            }] },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                },
            }],
        },
    })
}
