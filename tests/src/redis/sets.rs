//! Servers that belong together: a cluster, and a master with a replica that sentinels watch.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use redis::{Connection, FromRedisValue, InfoDict, cmd};

use super::{Server, Tls, free_port};
use crate::agent::eventually;

/// Slots of a cluster.
const SLOTS: usize = 16_384;
/// After so long without an answer a server is taken for dead.
const DEAD_MS: &str = "1000";

fn ask<T: FromRedisValue>(client: &mut Connection, words: &[&str]) -> T {
    let (name, rest) = words.split_first().expect("a command");
    cmd(name).arg(rest).query(client).expect("a server answers")
}

/// Whether a server is a master, and as a replica whether it has all that its master has. One whose role
/// changes breaks its connections off, and says nothing.
fn role(server: &Server) -> Option<(String, bool)> {
    let info: InfoDict = cmd("INFO").arg("replication").query(&mut server.client()).ok()?;
    let link: Option<String> = info.get("master_link_status");
    Some((info.get("role").unwrap_or_default(), link.as_deref() == Some("up")))
}

/// Waits until a replica has all that its master has.
pub fn await_replica(server: &Server) {
    let has_all = |seen: &Option<(String, bool)>| {
        seen.as_ref().is_some_and(|(role, is_up)| role == "slave" && *is_up)
    };
    eventually("the replica has all", || role(server), has_all);
}

/// Waits until a replica has taken over.
pub fn await_master(server: &Server) {
    let has_taken_over =
        |seen: &Option<(String, bool)>| seen.as_ref().is_some_and(|(role, _)| role == "master");
    eventually("the replica took over", || role(server), has_taken_over);
}

/// A cluster of three masters, of which the first has a replica.
#[derive(Debug)]
pub struct Cluster {
    /// The masters.
    pub masters: Vec<Server>,
    /// The first one's replica.
    pub replica: Server,
    scheme: &'static str,
}

/// What addresses of servers begin with.
fn scheme(tls: Option<&Tls>) -> &'static str {
    if tls.is_some() { "rediss" } else { "redis" }
}

impl Cluster {
    /// Starts one and waits until all of it answers.
    pub fn start() -> Self {
        Self::start_secured(None)
    }

    /// Starts one whose servers speak TLS alone, if that is given.
    pub fn start_secured(tls: Option<&Tls>) -> Self {
        let member = || {
            // The usual port of the bus, 10 000 higher, may not exist.
            let bus = free_port().to_string();
            let server = Server::start_secured(
                tls,
                &[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &bus,
                    "--cluster-node-timeout",
                    DEAD_MS,
                    "--cluster-replica-validity-factor",
                    "0",
                ],
            );
            (server, bus)
        };
        let members = [(); 4].map(|()| member());
        let mut first = members[0].0.client();
        for (server, bus) in &members[1..] {
            let port = server.address().port().to_string();
            let () = ask(&mut first, &["CLUSTER", "MEET", "127.0.0.1", &port, bus]);
        }
        let masters = members.len() - 1;
        for (number, (server, _)) in members[..masters].iter().enumerate() {
            let from = (SLOTS * number / masters).to_string();
            let to = (SLOTS * (number + 1) / masters - 1).to_string();
            let () = ask(&mut server.client(), &["CLUSTER", "ADDSLOTSRANGE", &from, &to]);
        }
        let id: String = ask(&mut first, &["CLUSTER", "MYID"]);
        let [one, two, three, (replica, _)] = members;
        let knows = || -> String { ask(&mut replica.client(), &["CLUSTER", "NODES"]) };
        eventually("the replica knows its master", knows, |nodes| nodes.contains(&id));
        let () = ask(&mut replica.client(), &["CLUSTER", "REPLICATE", &id]);
        await_replica(&replica);
        let masters = vec![one.0, two.0, three.0];
        let cluster = Self { masters, replica, scheme: scheme(tls) };
        cluster.await_whole();
        cluster
    }

    /// Waits until every server that lives knows that all slots are served.
    pub fn await_whole(&self) {
        for server in self.masters.iter().chain([&self.replica]) {
            let look = || -> String { ask(&mut server.client(), &["CLUSTER", "INFO"]) };
            eventually("the cluster is whole", look, |info| {
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:4")
            });
        }
    }

    /// Its servers' addresses for clients.
    pub fn urls(&self) -> Vec<String> {
        let servers = self.masters.iter().chain([&self.replica]);
        servers.map(|server| format!("{}://{}", self.scheme, server.address())).collect()
    }
}

/// What the sentinels call the master.
pub const MASTER: &str = "store";

/// A master and its replica, and three sentinels of which two must agree.
#[derive(Debug)]
pub struct Watched {
    /// The master, as it was at first.
    pub master: Server,
    /// The replica, as it was at first.
    pub replica: Server,
    sentinels: Vec<Sentinel>,
    scheme: &'static str,
}

impl Watched {
    /// Starts them and waits until all know each other.
    pub fn start() -> Self {
        Self::start_secured(None)
    }

    /// Starts servers and sentinels that speak TLS alone, if that is given.
    pub fn start_secured(tls: Option<&Tls>) -> Self {
        let master = Server::start_secured(tls, &[]);
        let port = master.address().port();
        let replica = Server::start_secured(tls, &["--replicaof", &format!("127.0.0.1 {port}")]);
        await_replica(&replica);
        let sentinels = [0, 1, 2].map(|number| Sentinel::start(&master, number, tls)).into();
        let watched = Self { master, replica, sentinels, scheme: scheme(tls) };
        for sentinel in &watched.sentinels {
            let look = || -> InfoDict { ask(&mut sentinel.client(), &["INFO", "sentinel"]) };
            eventually("the sentinels know all", look, |info| {
                let line: Option<String> = info.get("master0");
                line.is_some_and(|line| line.contains("slaves=1,sentinels=3"))
            });
        }
        watched
    }

    /// The sentinels' addresses for clients.
    pub fn urls(&self) -> Vec<String> {
        self.sentinels
            .iter()
            .map(|sentinel| format!("{}://127.0.0.1:{}", self.scheme, sentinel.port))
            .collect()
    }
}

/// A sentinel, killed on drop.
#[derive(Debug)]
struct Sentinel {
    child: Child,
    port: u16,
    socket: PathBuf,
}

impl Sentinel {
    fn start(beside: &Server, number: usize, tls: Option<&Tls>) -> Self {
        let (port, master) = (free_port(), beside.address().port());
        let file = beside.folder().join(format!("sentinel-{number}.conf"));
        let socket = beside.folder().join(format!("sentinel-{number}.sock"));
        let listen = match tls {
            None => format!("port {port}\n"),
            Some(tls) => {
                let lines = tls.server(port);
                lines.iter().map(|(name, value)| format!("{name} {value}\n")).collect()
            }
        };
        let text = format!(
            "{listen}bind 127.0.0.1\nunixsocket {}\n\
             sentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {MASTER} {DEAD_MS}\n\
             sentinel failover-timeout {MASTER} 5000\n",
            socket.display()
        );
        fs::write(&file, text).expect("write the sentinel's file");
        let child = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .current_dir(beside.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start a sentinel");
        let sentinel = Self { child, port, socket };
        let listens = || UnixStream::connect(&sentinel.socket).is_ok();
        eventually("the sentinel listens", listens, |up| *up);
        sentinel
    }

    fn client(&self) -> Connection {
        let client = redis::Client::open(format!("unix://{}", self.socket.display()));
        client.expect("name the sentinel").get_connection().expect("connect to the sentinel")
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
