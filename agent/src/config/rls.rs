//! The node file's `rls:`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use axum::http::uri::Authority;

use super::{
    fields::{Field, Fields, Notes},
    xds,
    yaml::{Node, Value},
};
use crate::{
    fleet::{
        FleetSettings,
        store::redis::{RedisSettings, Topology},
    },
    quota::model::Scope,
    rls::{Bounds, Headers, Modes, Settings, Statsd, Tls},
};

const KEYS: &[&str] = &[
    "listen",
    "socket",
    "socket-mode",
    "threads",
    "http",
    "debug",
    "tls",
    "quotas",
    "xds",
    "merge-domains",
    "mode",
    "quota-mode",
    "near-limit",
    "spare-others-when-over",
    "response-headers",
    "dynamic-metadata",
    "nodes",
    "statsd",
    "store",
    "reflection",
    "healthy-with-quotas",
    "max-connections",
    "max-message-size",
    "keep-alive",
    "keep-alive-timeout",
    "max-connection-age",
    "max-connection-age-grace",
    "drain-delay",
];

/// Reads it; `None` when anything in it is wrong. Half a service would be another service.
pub(super) fn read(notes: &mut Notes<'_>, node: &Node) -> Option<Settings> {
    let fields = notes.fields("rls", node, KEYS, &[])?;
    let mut reader = Reader { notes, fields, good: true };
    let standard = Settings::default();
    let settings = Settings {
        listen: reader.value("listen", addresses, Vec::new),
        socket: reader.option("socket", absolute_path),
        socket_mode: reader.value("socket-mode", mode_bits, || standard.socket_mode),
        threads: reader.value("threads", |n, k, v| number(n, k, v, 1, 64), || standard.threads),
        http: reader.option("http", address),
        debug: reader.option("debug", loopback),
        tls: reader.option("tls", |notes, _, node| tls(notes, node)),
        quotas: reader.value("quotas", paths, Vec::new),
        xds: reader.option("xds", |notes, _, node| xds::read(notes, node)),
        statsd: reader.option("statsd", |notes, _, node| statsd(notes, node)),
        store: reader.option("store", |notes, _, node| store(notes, node)),
        reflection: reader.flag("reflection"),
        modes: modes(&mut reader),
        healthy_with_quotas: reader.flag("healthy-with-quotas"),
        bounds: bounds(&mut reader),
    };
    let Reader { notes, fields, good } = reader;
    let unknown = fields.has_unknown(KEYS);
    if settings.listen.is_empty() && settings.socket.is_none() && good && !unknown {
        notes.error(node.at, "`rls` listens nowhere", "`listen`, `socket` or both");
        return None;
    }
    let asks_fleet = settings.xds.as_ref().is_some_and(|xds| xds.scope == Scope::Fleet);
    if asks_fleet && settings.store.is_none() && good {
        notes.error(node.at, "`xds` has `scope: fleet`, and there is no store", "`store` in `rls`");
        return None;
    }
    (good && !unknown).then_some(settings)
}

fn modes(reader: &mut Reader<'_, '_, '_>) -> Modes {
    let standard = Modes::default();
    let percent = |notes: &mut Notes<'_>, key: &str, node: &Node| {
        let expected = "a percentage like `80%`";
        let scalar = notes.text(key, node, expected)?;
        let percent = scalar.text.strip_suffix('%').and_then(|text| text.parse::<u8>().ok());
        let percent = percent.filter(|percent| (1..=100).contains(percent));
        if percent.is_none() {
            notes.error(node.at, format!("`{key}`: `{}` is no share", scalar.text), expected);
        }
        percent
    };
    let nodes = |notes: &mut Notes<'_>, key: &str, node: &Node| {
        u32::try_from(number(notes, key, node, 1, 100_000)?).ok()
    };
    let mode = |notes: &mut Notes<'_>, key: &str, node: &Node| {
        super::read::word(notes, key, node, &[("enforce", false), ("shadow", true)])
    };
    Modes {
        merge_domains: reader.flag("merge-domains"),
        shadow: reader.value("mode", mode, || false),
        quota: reader.flag("quota-mode"),
        near_limit_percent: reader.value("near-limit", percent, || standard.near_limit_percent),
        spare_others_when_over: reader.flag("spare-others-when-over"),
        headers: reader.value("response-headers", headers, || None),
        dynamic_metadata: reader.flag("dynamic-metadata"),
        nodes: reader.value("nodes", nodes, || standard.nodes),
    }
}

fn bounds(reader: &mut Reader<'_, '_, '_>) -> Bounds {
    let standard = Bounds::default();
    let size =
        |notes: &mut Notes<'_>, key: &str, node: &Node| number(notes, key, node, 1024, 4 << 20);
    let count = |notes: &mut Notes<'_>, key: &str, node: &Node| number(notes, key, node, 1, 65_536);
    Bounds {
        connections: reader.value("max-connections", count, || standard.connections),
        message: reader.value("max-message-size", size, || standard.message),
        keep_alive: reader.value("keep-alive", duration, || standard.keep_alive),
        keep_alive_timeout: reader
            .value("keep-alive-timeout", duration, || standard.keep_alive_timeout),
        max_age: reader.value("max-connection-age", duration, || standard.max_age),
        max_age_grace: reader
            .value("max-connection-age-grace", duration, || standard.max_age_grace),
        drain_delay: reader.value("drain-delay", duration, || standard.drain_delay),
        drain: standard.drain,
    }
}

/// Reads the keys of one mapping and remembers whether all of them could be read.
pub(super) struct Reader<'r, 'a, 'n> {
    pub(super) notes: &'r mut Notes<'a>,
    pub(super) fields: Fields<'n>,
    pub(super) good: bool,
}

impl Reader<'_, '_, '_> {
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Notes<'_>, &str, &Node) -> Option<T>,
        default: impl FnOnce() -> T,
    ) -> T {
        match self.fields.read(self.notes, key, |notes, node| read(notes, key, node)) {
            Field::Good(value) => value,
            Field::Absent => default(),
            Field::Bad { .. } => {
                self.good = false;
                default()
            }
        }
    }

    pub(super) fn option<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Notes<'_>, &str, &Node) -> Option<T>,
    ) -> Option<T> {
        self.value(key, |notes, key, node| read(notes, key, node).map(Some), || None)
    }

    fn flag(&mut self, key: &str) -> bool {
        self.value(key, super::read::boolean, || false)
    }
}

fn address(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<SocketAddr> {
    let expected = "an address and a port like 0.0.0.0:8081 or [::]:8081";
    let scalar = notes.text(key, node, expected)?;
    let address = scalar.text.parse();
    if address.is_err() {
        notes.error(node.at, format!("`{key}`: `{}` is no socket address", scalar.text), expected);
    }
    address.ok()
}

/// What is shown there is for people on this machine.
fn loopback(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<SocketAddr> {
    let address = address(notes, key, node)?;
    if !address.ip().is_loopback() {
        let what = format!("`{key}`: {address} can be reached from elsewhere");
        notes.error(node.at, what, "a loopback address like 127.0.0.1:6070");
        return None;
    }
    Some(address)
}

/// One of something, or a list of them.
fn some<T>(
    notes: &mut Notes<'_>,
    key: &str,
    node: &Node,
    one: impl Fn(&mut Notes<'_>, &str, &Node) -> Option<T>,
) -> Option<Vec<T>> {
    match &node.value {
        Value::Sequence(items) => {
            let read: Vec<_> = items.iter().map(|item| one(notes, key, item)).collect();
            read.into_iter().collect()
        }
        _ => Some(vec![one(notes, key, node)?]),
    }
}

fn addresses(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Vec<SocketAddr>> {
    some(notes, key, node, address)
}

pub(super) fn text(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<String> {
    let text = notes.text(key, node, "a text").map(|scalar| scalar.text.clone())?;
    if text.is_empty() {
        notes.error(node.at, format!("`{key}` is empty"), "a text");
        return None;
    }
    Some(text)
}

fn texts(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Vec<String>> {
    some(notes, key, node, text)
}

pub(super) fn absolute_path(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<PathBuf> {
    let expected = "an absolute path";
    let path = PathBuf::from(&notes.text(key, node, expected)?.text);
    if !path.is_absolute() {
        notes.error(node.at, format!("`{key}`: `{}` is not absolute", path.display()), expected);
        return None;
    }
    Some(path)
}

fn paths(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Vec<PathBuf>> {
    some(notes, key, node, absolute_path)
}

fn mode_bits(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<u32> {
    let expected = "permissions in octal, like 0660";
    let scalar = notes.text(key, node, expected)?;
    let mode = u32::from_str_radix(&scalar.text, 8).ok().filter(|mode| *mode <= 0o777);
    if mode.is_none() {
        notes.error(node.at, format!("`{key}`: `{}` is no mode", scalar.text), expected);
    }
    mode
}

pub(super) fn number(
    notes: &mut Notes<'_>,
    key: &str,
    node: &Node,
    least: usize,
    most: usize,
) -> Option<usize> {
    let expected = format!("a whole number from {least} to {most}");
    let scalar = notes.text(key, node, &expected)?;
    let number = scalar.text.parse().ok().filter(|number| (least..=most).contains(number));
    if number.is_none() {
        notes.error(node.at, format!("`{key}`: `{}` is not accepted", scalar.text), expected);
    }
    number
}

/// A time of up to ten years: tokio's timers do not reach much further.
pub(super) fn duration(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Duration> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    const LONGEST: u64 = 10 * 365 * 24 * 3_600_000;
    let expected = "a time like `500ms`, `20s`, `5m` or `24h`";
    let scalar = notes.text(key, node, expected)?;
    let digits = scalar.text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or_default();
    let (count, unit) = scalar.text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    let millis = count.parse::<u64>().ok().zip(unit);
    let millis = millis.and_then(|(count, (_, scale))| count.checked_mul(*scale));
    let millis = millis.filter(|millis| (1..=LONGEST).contains(millis));
    if millis.is_none() {
        notes.error(node.at, format!("`{key}`: `{}` is no time", scalar.text), expected);
    }
    millis.map(Duration::from_millis)
}

/// `true` for the usual names, or the names.
fn headers(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Option<Headers>> {
    if matches!(&node.value, Value::Scalar(_)) {
        let on = super::read::boolean(notes, key, node)?;
        return Some(on.then(Headers::default));
    }
    const NAMES: &[&str] = &["limit", "remaining", "reset"];
    let fields = notes.fields(key, node, NAMES, &[])?;
    let unknown = fields.has_unknown(NAMES);
    let Headers { limit, remaining, reset } = Headers::default();
    let mut reader = Reader { notes, fields, good: !unknown };
    let headers = Headers {
        limit: reader.value("limit", header_name, || limit),
        remaining: reader.value("remaining", header_name, || remaining),
        reset: reader.value("reset", header_name, || reset),
    };
    reader.good.then_some(Some(headers))
}

fn header_name(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<String> {
    let name = text(notes, key, node)?;
    if name.parse::<axum::http::HeaderName>().is_err() {
        notes.error(node.at, format!("`{key}`: `{name}` is no header"), "a header's name");
        return None;
    }
    Some(name)
}

fn tls(notes: &mut Notes<'_>, node: &Node) -> Option<Tls> {
    const NAMES: &[&str] = &["cert", "key", "client-ca", "client-names"];
    let fields = notes.fields("tls", node, NAMES, &[])?;
    let unknown = fields.has_unknown(NAMES);
    let at = fields.at;
    let mut reader = Reader { notes, fields, good: !unknown };
    let cert = reader.option("cert", absolute_path);
    let key = reader.option("key", absolute_path);
    let client_ca = reader.option("client-ca", absolute_path);
    let client_names = reader.value("client-names", texts, Vec::new);
    let Reader { notes, good, .. } = reader;
    let missing = match (&cert, &key) {
        (Some(_), Some(_)) if client_ca.is_none() && !client_names.is_empty() => {
            Some("`client-ca` beside `client-names`")
        }
        (Some(_), Some(_)) => None,
        _ => Some("`cert` and `key`"),
    };
    if let Some(missing) = missing.filter(|_| good) {
        notes.error(at, "`tls` is incomplete", missing);
        return None;
    }
    good.then_some(Tls { cert: cert?, key: key?, client_ca, client_names })
}

/// HOST:PORT.
pub(super) fn server(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<String> {
    let server = text(notes, key, node)?;
    let is_whole = |it: Authority| it.port_u16().is_some() && !it.as_str().contains('@');
    if !server.parse().is_ok_and(is_whole) {
        notes.error(node.at, format!("`{key}`: `{server}` is no server"), "HOST:PORT");
        return None;
    }
    Some(server)
}

/// Who is told what was counted. The interval is the original's.
fn statsd(notes: &mut Notes<'_>, node: &Node) -> Option<Statsd> {
    const NAMES: &[&str] = &["server", "interval"];
    let fields = notes.fields("statsd", node, NAMES, &[])?;
    let unknown = fields.has_unknown(NAMES);
    let at = fields.at;
    let mut reader = Reader { notes, fields, good: !unknown };
    let server = reader.option("server", server);
    let interval = reader.value("interval", duration, || Duration::from_secs(5));
    let Reader { notes, good, .. } = reader;
    if server.is_none() && good {
        notes.error(at, "`statsd` names no server", "`server: HOST:PORT`");
    }
    let server = server?;
    good.then_some(Statsd { server, interval })
}

/// Where the counts of a fleet are kept.
fn store(notes: &mut Notes<'_>, node: &Node) -> Option<FleetSettings> {
    const NAMES: &[&str] = &[
        "redis",
        "redis-cluster",
        "sentinels",
        "master",
        "database",
        "username",
        "password-file",
        "ca",
        "cert",
        "key",
        "timeout",
        "key-prefix",
        "cluster",
        "node",
    ];
    let fields = notes.fields("store", node, NAMES, &[])?;
    let unknown = fields.has_unknown(NAMES);
    let at = fields.at;
    let mut reader = Reader { notes, fields, good: !unknown };
    let single = reader.option("redis", redis_url);
    let nodes =
        reader.option("redis-cluster", |notes, key, node| some(notes, key, node, redis_url));
    let sentinels =
        reader.option("sentinels", |notes, key, node| some(notes, key, node, redis_url));
    let master = reader.option("master", text);
    let database = reader.value("database", |n, k, v| number(n, k, v, 0, 255), || 0);
    let username = reader.option("username", text);
    let password_file = reader.option("password-file", absolute_path);
    let ca_file = reader.option("ca", absolute_path);
    let cert = reader.option("cert", absolute_path);
    let key = reader.option("key", absolute_path);
    let timeout = reader.value("timeout", duration, || Duration::from_millis(100));
    let key_prefix = reader.value("key-prefix", text, String::new);
    let cluster = reader.value("cluster", text, || "default".to_owned());
    let node = reader.value("node", text, host_name);
    let Reader { notes, good, .. } = reader;
    let database = u8::try_from(database).unwrap_or_default();
    let topology = match (single, nodes, sentinels, master) {
        (Some(url), None, None, None) => Some(Topology::Single(url)),
        (None, Some(urls), None, None) => Some(Topology::Cluster(urls)),
        (None, None, Some(sentinels), Some(master)) => {
            Some(Topology::Sentinel { master, sentinels, database })
        }
        _ => None,
    };
    if topology.is_none() && good {
        notes.error(
            at,
            "`store` does not say where it is",
            "one of `redis`, `redis-cluster`, or `sentinels` with `master`",
        );
    }
    if cert.is_some() != key.is_some() && good {
        notes.error(at, "`store` is incomplete", "both of `cert` and `key`, or none");
        return None;
    }
    let redis = RedisSettings {
        username,
        password_file,
        ca_file,
        client_cert: cert.zip(key),
        topology: topology?,
        ..RedisSettings::single("")
    };
    let settings = FleetSettings::new(redis, cluster, node);
    good.then_some(FleetSettings { timeout, key_prefix, ..settings })
}

/// An address of Redis. It is not quoted in what is said of it: it may hold a password.
fn redis_url(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<String> {
    let url = text(notes, key, node)?;
    if !RedisSettings::understands(&url) {
        let expected = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH?db=N";
        notes.error(node.at, format!("`{key}` is no address of Redis"), expected);
        return None;
    }
    Some(url)
}

/// The machine's name, as the kernel tells it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
#[path = "rls_tests.rs"]
mod tests;
