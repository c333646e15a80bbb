//! Who belongs to the fleet: each node writes its name under a key that expires.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::cmd;
use serde::{Deserialize, Serialize};

use super::store::redis::{Link, StoreError};

/// How often a node says that it is there.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// Seconds after which one that said nothing is gone.
const GONE_S: u64 = 15;
/// Names of nodes with the time when they last said that they are there.
const NODES: &str = "weir:nodes";

/// A node of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// Its cluster.
    pub cluster: String,
    /// Its name there.
    pub node: String,
    /// Its agent's version.
    pub version: String,
}

fn key(cluster: &str, node: &str) -> String {
    format!("weir:node:{cluster}/{node}")
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Says that a node is there.
pub(super) async fn register(link: &mut Link, cluster: &str, node: &str) -> Result<(), StoreError> {
    let member = Member {
        cluster: cluster.to_owned(),
        node: node.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let text = serde_json::to_string(&member).unwrap_or_default();
    let key = key(cluster, node);
    link.command(cmd("SET").arg(&key).arg(text).arg("EX").arg(GONE_S)).await?;
    link.command(cmd("ZADD").arg(NODES).arg(now_s()).arg(&key)).await?;
    Ok(())
}

/// Says that a node goes.
pub(super) async fn forget(link: &mut Link, cluster: &str, node: &str) -> Result<(), StoreError> {
    let key = key(cluster, node);
    link.command(cmd("DEL").arg(&key)).await?;
    link.command(cmd("ZREM").arg(NODES).arg(&key)).await?;
    Ok(())
}

/// Who is there, by name.
pub(super) async fn members(link: &mut Link) -> Result<Vec<Member>, StoreError> {
    // Clocks differ: the keys decide, and the list only says which keys to look at.
    let long_ago = now_s().saturating_sub(100 * GONE_S);
    link.command(cmd("ZREMRANGEBYSCORE").arg(NODES).arg("-inf").arg(long_ago)).await?;
    let keys = link.command(cmd("ZRANGE").arg(NODES).arg(0).arg(-1)).await?;
    let keys: Vec<String> =
        redis::from_redis_value(keys).map_err(|error| StoreError::Redis(error.to_string()))?;
    let mut members = Vec::new();
    for key in keys {
        let text = link.command(cmd("GET").arg(&key)).await?;
        let text: Option<String> =
            redis::from_redis_value(text).map_err(|error| StoreError::Redis(error.to_string()))?;
        members.extend(text.and_then(|text| serde_json::from_str(&text).ok()));
    }
    members.sort();
    Ok(members)
}
