//! What the node file's `rls:` says, with its defaults.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use crate::{fleet::FleetSettings, quota::model::Scope};

/// How the rate limit service is offered, and from which files it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where gRPC is served over TCP.
    pub listen: Vec<SocketAddr>,
    /// Where gRPC is served on a unix socket.
    pub socket: Option<PathBuf>,
    /// The permissions of that socket's file.
    pub socket_mode: u32,
    /// Threads that answer, each with its own listener and its own connections.
    pub threads: usize,
    /// Where `/json` and `/healthcheck` are served over HTTP/1.
    pub http: Option<SocketAddr>,
    /// Where `/rlconfig` and `/stats` are served; a loopback address.
    pub debug: Option<SocketAddr>,
    /// Certificates, if gRPC is served over TLS. The unix socket is never encrypted.
    pub tls: Option<Tls>,
    /// Quota files and overlays, and folders of them; with [`Self::xds`], overlays alone.
    pub quotas: Vec<PathBuf>,
    /// Where quotas are asked for by xDS.
    pub xds: Option<Xds>,
    /// Who is told what was counted, beside whoever asks for metrics.
    pub statsd: Option<Statsd>,
    /// The store of quotas of scope `fleet`.
    pub store: Option<FleetSettings>,
    /// Whether clients may ask over gRPC which services there are, and what their messages are made of.
    pub reflection: bool,
    /// What answers are made of.
    pub modes: Modes,
    /// The service is healthy only while at least one domain is known.
    pub healthy_with_quotas: bool,
    /// What clients may take.
    pub bounds: Bounds,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            socket: None,
            socket_mode: 0o666,
            threads: 1,
            http: None,
            debug: None,
            tls: None,
            quotas: Vec::new(),
            xds: None,
            statsd: None,
            store: None,
            reflection: false,
            modes: Modes::default(),
            healthy_with_quotas: false,
            bounds: Bounds::default(),
        }
    }
}

impl Settings {
    /// Where gRPC is served, for people.
    pub fn places(&self) -> Vec<String> {
        let tcp = self.listen.iter().map(ToString::to_string);
        tcp.chain(self.socket.iter().map(|path| path.display().to_string())).collect()
    }
}

/// What holds for all answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes {
    /// Descriptors of a domain may stand in several files.
    pub merge_domains: bool,
    /// No answer is `OVER_LIMIT` as a whole.
    pub shadow: bool,
    /// Every limit is a quota: over only if all of them are.
    pub quota: bool,
    /// From which percentage of a limit on hits count as near it.
    pub near_limit_percent: u8,
    /// A request that is over a limit spends from that limit alone.
    pub spare_others_when_over: bool,
    /// The headers that tell of the limit, if any.
    pub headers: Option<Headers>,
    /// Tell the request and the limits' metadata in the answer.
    pub dynamic_metadata: bool,
    /// Nodes of the fleet, for quotas that are divided because there is no store.
    pub nodes: u32,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            merge_domains: false,
            shadow: false,
            quota: false,
            near_limit_percent: 80,
            spare_others_when_over: false,
            headers: None,
            dynamic_metadata: false,
            nodes: 1,
        }
    }
}

/// The names of response headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The limit's requests per unit.
    pub limit: String,
    /// What is left of them.
    pub remaining: String,
    /// Seconds until the window ends.
    pub reset: String,
}

impl Default for Headers {
    fn default() -> Self {
        let name = |name: &str| format!("RateLimit-{name}");
        Self { limit: name("Limit"), remaining: name("Remaining"), reset: name("Reset") }
    }
}

/// Certificates, in PEM files that are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server's chain, its own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Whose certificates clients must have; without it they need none.
    pub client_ca: Option<PathBuf>,
    /// The names, one of which a client's certificate must have; any if there are none.
    pub client_names: Vec<String>,
}

/// A management server that sends quotas.
#[derive(Clone, PartialEq, Eq)]
pub struct Xds {
    /// Its address, as `HOST:PORT`.
    pub server: String,
    /// Who we are to it.
    pub node: String,
    /// What else it is told of us.
    pub metadata: Vec<(String, String)>,
    /// Headers of each stream; they may hold secrets.
    pub headers: Vec<(String, String)>,
    /// How the connection is encrypted, if it is.
    pub tls: Option<XdsTls>,
    /// Who shares the counts of its limits: the node, or the fleet.
    pub scope: Scope,
    /// The wait before it is asked again, first and longest.
    pub backoff: (Duration, Duration),
    /// Bytes of a response.
    pub message: usize,
}

impl fmt::Debug for Xds {
    /// Without the headers' values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Xds")
            .field("server", &self.server)
            .field("node", &self.node)
            .field("headers", &headers)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Certificates for the connection to a management server, in PEM files that are read for each
/// connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdsTls {
    /// Whose certificates the server may have.
    pub ca: PathBuf,
    /// Our own certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// The name that its certificate must have; that of its address without it.
    pub name: Option<String>,
}

/// A statsd server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statsd {
    /// Its address, as `HOST:PORT`.
    pub server: String,
    /// How often it is told.
    pub interval: Duration,
}

/// What clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at once, over all threads. More wait until one ends.
    pub connections: usize,
    /// Bytes of a request.
    pub message: usize,
    /// How long a connection may be silent before it is asked whether it lives.
    pub keep_alive: Duration,
    /// How long it may take to say so, and to begin.
    pub keep_alive_timeout: Duration,
    /// How long a connection may live until it is asked to end.
    pub max_age: Duration,
    /// How long what was begun may take from then on.
    pub max_age_grace: Duration,
    /// How long the agent goes on answering after it was told to end: health checks fail meanwhile,
    /// so that clients go elsewhere by themselves.
    pub drain_delay: Duration,
    /// How long connections may take to end after that.
    pub drain: Duration,
}

impl Default for Bounds {
    /// Age and grace are the original's (`GRPC_MAX_CONNECTION_AGE`, `…_GRACE`).
    fn default() -> Self {
        Self {
            connections: 1024,
            message: 64 * 1024,
            keep_alive: Duration::from_secs(60),
            keep_alive_timeout: Duration::from_secs(20),
            max_age: Duration::from_secs(24 * 3600),
            max_age_grace: Duration::from_secs(3600),
            drain_delay: Duration::from_secs(2),
            drain: Duration::from_secs(5),
        }
    }
}
