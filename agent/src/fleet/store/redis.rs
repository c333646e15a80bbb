//! The store in Redis: one server, a set watched by sentinels, or a cluster.
//!
//! A batch is one pipeline. What is asked is `INCRBY` and `EXPIRE`, as envoyproxy/ratelimit asks it,
//! and scripts of our own. The client repeats nothing by itself: neither a command nor, within a
//! batch, a connection.

use std::{fmt, fs, path::PathBuf, time::Duration};

use futures_util::future::join_all;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, Pipeline, RedisError, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    sentinel::{SentinelClientBuilder, SentinelServerType},
};

use super::{
    Reply, Request, SPENDS_FOR,
    pool::{Drawn, SERVER_TIME},
};

/// Takes what was not spent from a counter that is there, and never more than it holds.
const GIVE_BACK: &str = r"
local count = redis.call('GET', KEYS[1])
if not count then return -1 end
local hits = math.min(tonumber(ARGV[1]), tonumber(count))
if hits < 1 then return tonumber(count) end
return redis.call('DECRBY', KEYS[1], string.format('%d', hits))
";

/// Notes a spender as `window:reserved:weight` and says how many there are and what its share is. What
/// a node may believe to hold stays reserved until it joins again, so shares never add up to more than
/// the limit, also when an answer is lost. Who holds a share that is not known here tells of a store that
/// has forgotten everybody: until the others come, too, nobody gets more than it held.
const JOIN: &str = r"
local node, window, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local held, weight, spends_for = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
local others, weights, count, known = 0, weight, 1, held == 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] == node then
    known = true
  else
    local w, r, h = string.match(all[i + 1], '^(%d+):(%d+):(%d+)$')
    if not w or tonumber(w) + spends_for < window then
      redis.call('HDEL', KEYS[1], all[i])
    else
      others, weights, count = others + tonumber(r), weights + tonumber(h), count + 1
    end
  end
end
local half = math.floor(limit / 2)
local fair = math.floor((limit - half) / count) + math.floor(half * weight / math.max(weights, 1))
local share = math.min(math.max(limit - others, 0), fair)
if not known then share = math.min(share, held) end
redis.call('HSET', KEYS[1], node,
  string.format('%d:%d:%d', window, math.max(share, held), weight))
redis.call('EXPIRE', KEYS[1], ARGV[6])
return {count, share}
";

/// How servers are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server: `redis://host:port/db`, `rediss://…` with TLS, `unix:///path?db=1`.
    Single(String),
    /// Some nodes of a cluster, which know the others.
    Cluster(Vec<String>),
    /// Sentinels, which know the master of a name.
    Sentinel {
        /// The name.
        master: String,
        /// The sentinels.
        sentinels: Vec<String>,
        /// Number of the master's database.
        database: u8,
    },
}

/// Where the store is and who we are to it.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// How servers are found.
    pub topology: Topology,
    /// ACL user; `None` for the default user.
    pub username: Option<String>,
    /// A file with the password, read at each connection, so that it can be changed.
    pub password_file: Option<PathBuf>,
    /// Certificates of who may sign the server's; `None` for the system's.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and its key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
}

impl RedisSettings {
    /// One server, without any secrets.
    pub fn single(url: impl Into<String>) -> Self {
        Self {
            topology: Topology::Single(url.into()),
            username: None,
            password_file: None,
            ca_file: None,
            client_cert: None,
            connect_timeout: Duration::from_secs(1),
        }
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Addresses may carry a password too.
        f.debug_struct("RedisSettings").field("servers", &self.servers()).finish_non_exhaustive()
    }
}

/// Why the store cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file that the settings name.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The address makes no sense.
    #[error(
        "the store's address is not understood: expected redis://HOST:PORT/DB, rediss:// or unix://PATH"
    )]
    Address,
    /// Redis, or the way there.
    #[error("{0}")]
    Redis(String),
    /// The server does not take writes: it is a replica now, still loading, full, or cannot save.
    #[error("the store takes no writes: {0}")]
    ReadOnly(String),
    /// No answer in time.
    #[error("the store did not answer in time")]
    Timeout,
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        match error.code() {
            Some(
                "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOREPLICAS" | "OOM"
                | "MISCONF" | "BUSY",
            ) => Self::ReadOnly(error.to_string()),
            _ => Self::Redis(error.to_string()),
        }
    }
}

/// A connection, or those to the nodes of a cluster. Clones share it.
#[derive(Clone)]
pub enum Link {
    /// To one server.
    One(MultiplexedConnection),
    /// To a cluster.
    Cluster(ClusterConnection),
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(_) => "Link::One",
            Self::Cluster(_) => "Link::Cluster",
        })
    }
}

impl RedisSettings {
    /// Whether an address makes sense.
    pub fn understands(url: &str) -> bool {
        url.into_connection_info().is_ok()
    }

    /// The servers' addresses, without user and password.
    pub fn servers(&self) -> String {
        let bare = |url: &String| match (url.find("://"), url.rfind('@')) {
            (Some(scheme), Some(at)) if at > scheme => {
                format!("{}://{}", &url[..scheme], &url[at + 1..])
            }
            _ => url.clone(),
        };
        match &self.topology {
            Topology::Single(url) => bare(url),
            Topology::Cluster(urls) => urls.iter().map(bare).collect::<Vec<_>>().join(","),
            Topology::Sentinel { master, sentinels, .. } => {
                let sentinels: Vec<_> = sentinels.iter().map(bare).collect();
                format!("{master} of {}", sentinels.join(","))
            }
        }
    }

    /// Connects.
    pub async fn connect(&self) -> Result<Link, StoreError> {
        let password = self.password()?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // Whoever waits has a timeout of its own.
            .set_response_timeout(None);
        match &self.topology {
            Topology::Single(url) => {
                let info = self.info(url, password.as_deref())?;
                let client = match info.addr() {
                    ConnectionAddr::TcpTls { .. } => Client::build_with_tls(info, self.tls()?)?,
                    _ => Client::open(info)?,
                };
                let link = client.get_multiplexed_async_connection_with_config(&config).await?;
                Ok(Link::One(link))
            }
            Topology::Cluster(urls) => {
                let infos: Result<Vec<_>, _> =
                    urls.iter().map(|url| self.info(url, password.as_deref())).collect();
                let infos = infos?;
                let tls =
                    infos.iter().any(|info| matches!(info.addr(), ConnectionAddr::TcpTls { .. }));
                let mut builder = ClusterClientBuilder::new(infos)
                    // A redirection is a repetition too, of what was not done.
                    .retries(0)
                    .connection_timeout(self.connect_timeout)
                    .response_timeout(self.connect_timeout);
                if let Some(username) = &self.username {
                    builder = builder.username(username);
                }
                if let Some(password) = &password {
                    builder = builder.password(password);
                }
                if tls {
                    builder = builder.certs(self.tls()?);
                }
                let client: ClusterClient = builder.build()?;
                Ok(Link::Cluster(client.get_async_connection().await?))
            }
            Topology::Sentinel { master, sentinels, database } => {
                let addresses: Result<Vec<ConnectionAddr>, StoreError> =
                    sentinels.iter().map(|url| Ok(self.info(url, None)?.addr().clone())).collect();
                let addresses = addresses?;
                let tls = addresses.iter().any(|it| matches!(it, ConnectionAddr::TcpTls { .. }));
                let kind = SentinelServerType::Master;
                let mut builder = SentinelClientBuilder::new(addresses, master.clone(), kind)?
                    .set_client_to_redis_db(i64::from(*database));
                if tls {
                    // Whom sentinels name, they name by address and port alone.
                    builder = builder
                        .set_client_to_sentinel_certificates(self.tls()?)
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_redis_certificates(self.tls()?);
                }
                if let Some(username) = &self.username {
                    builder = builder.set_client_to_redis_username(username);
                }
                if let Some(password) = &password {
                    builder = builder.set_client_to_redis_password(password);
                }
                let mut client = builder.build()?;
                Ok(Link::One(client.get_async_connection_with_config(&config).await?))
            }
        }
    }

    fn password(&self) -> Result<Option<String>, StoreError> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let text = fs::read_to_string(path)
            .map_err(|source| StoreError::File { path: path.display().to_string(), source })?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    fn info(&self, url: &str, password: Option<&str>) -> Result<ConnectionInfo, StoreError> {
        // The error would quote the address, and the address may hold a password.
        let info = url.into_connection_info().map_err(|_| StoreError::Address)?;
        let mut redis = info.redis_settings().clone();
        if let Some(username) = &self.username {
            redis = redis.set_username(username);
        }
        if let Some(password) = password {
            redis = redis.set_password(password);
        }
        Ok(info.set_redis_settings(redis))
    }

    fn tls(&self) -> Result<TlsCertificates, StoreError> {
        let read = |path: &PathBuf| {
            fs::read(path)
                .map_err(|source| StoreError::File { path: path.display().to_string(), source })
        };
        let client_tls = match &self.client_cert {
            Some((cert, key)) => {
                Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? })
            }
            None => None,
        };
        Ok(TlsCertificates { client_tls, root_cert: self.ca_file.as_ref().map(read).transpose()? })
    }
}

/// What came of a batch: an answer for each request that has one.
#[derive(Debug)]
pub struct Executed {
    /// In the order of the requests; `None` for what the server refused.
    pub replies: Vec<Option<Reply>>,
    /// Why the connection should not be used any more, if so.
    pub broken: Option<StoreError>,
}

impl Link {
    /// Does a batch, each request once at most. An error means that any of them may have been done.
    pub async fn execute(&mut self, batch: &[Request]) -> Result<Executed, StoreError> {
        let values: Vec<Result<Value, RedisError>> = match self {
            Self::One(link) => {
                let mut pipeline = Pipeline::with_capacity(batch.len() * 2);
                for request in batch {
                    add(&mut pipeline, request);
                }
                pipeline.ignore_errors().query_async(link).await?
            }
            Self::Cluster(link) => {
                // A pipeline goes to one node, and these keys lie on many.
                join_all(batch.iter().map(|request| {
                    let mut link = link.clone();
                    async move {
                        let mut pipeline = Pipeline::new();
                        add(&mut pipeline, request);
                        let values: Vec<Result<Value, RedisError>> =
                            pipeline.ignore_errors().query_async(&mut link).await?;
                        values.into_iter().next().unwrap_or(Ok(Value::Nil))
                    }
                }))
                .await
            }
        };
        let mut broken = None;
        let replies = values
            .into_iter()
            .zip(batch)
            .map(|(value, request)| match value {
                Ok(value) => read(request, value),
                Err(error) => {
                    let io = error.is_io_error() || error.is_connection_dropped();
                    let error = StoreError::from(error);
                    if io || matches!(error, StoreError::ReadOnly(_)) {
                        broken = Some(error);
                    }
                    None
                }
            })
            .collect();
        Ok(Executed { replies, broken })
    }

    /// One command that belongs to no quota.
    pub async fn command(&mut self, command: &Cmd) -> Result<Value, StoreError> {
        let value = match self {
            Self::One(link) => link.req_packed_command(command).await,
            Self::Cluster(link) => link.req_packed_command(command).await,
        };
        Ok(value.and_then(Value::extract_error)?)
    }
}

/// Adds a request; all but one of its answers are ignored.
fn add(pipeline: &mut Pipeline, request: &Request) {
    match request {
        Request::Add { key, hits, expire_s } => {
            pipeline.cmd("INCRBY").arg(key).arg(*hits);
            if let Some(expire_s) = expire_s {
                pipeline.cmd("EXPIRE").arg(key).arg(*expire_s).ignore();
            }
        }
        Request::Expire { key, expire_s } => {
            pipeline.cmd("EXPIRE").arg(key).arg(*expire_s);
        }
        // Sent whole: a server that took over knows no digests, and a script is short.
        Request::GiveBack { key, hits } => {
            pipeline.cmd("EVAL").arg(GIVE_BACK).arg(1).arg(key).arg(*hits);
        }
        Request::Draw { key, pool, hits } => {
            pipeline
                .cmd("EVAL")
                .arg(format!("{SERVER_TIME}{}", pool.script()))
                .arg(1)
                .arg(key)
                .arg(*hits)
                .arg(pool.requests)
                .arg(pool.period_s)
                .arg(pool.burst());
        }
        Request::Join { key, node, window, limit, held, weight, expire_s } => {
            pipeline
                .cmd("EVAL")
                .arg(JOIN)
                .arg(1)
                .arg(key)
                .arg(node)
                .arg(*window)
                .arg(*limit)
                .arg(*held)
                .arg(*weight)
                .arg(*expire_s)
                .arg(SPENDS_FOR);
        }
    }
}

fn read(request: &Request, value: Value) -> Option<Reply> {
    match (request, value) {
        (Request::Add { .. }, Value::Int(count)) => {
            Some(Reply::Counted(u64::try_from(count).unwrap_or(0)))
        }
        (Request::Expire { .. } | Request::GiveBack { .. }, _) => Some(Reply::Done),
        (Request::Draw { .. }, value) => {
            let (admitted, before, reset_s): (u8, u64, u32) =
                redis::from_redis_value(value).ok()?;
            Some(Reply::Drawn(Drawn { admitted: admitted == 1, before, reset_s }))
        }
        (Request::Join { .. }, value) => {
            let (spenders, share) = redis::from_redis_value(value).ok()?;
            Some(Reply::Joined { spenders, share })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let settings = RedisSettings::single("redis://ann:secret@store:6379/1");
        assert_eq!(settings.servers(), "redis://store:6379/1");
        assert!(!format!("{settings:?}").contains("secret"));
        let wrong = RedisSettings::single("radish://ann:secret@store");
        let error = wrong.info("radish://ann:secret@store", None).map(drop).unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
