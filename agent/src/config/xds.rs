//! The `xds` of the node file's `rls`: a management server that sends quotas.

use std::{path::PathBuf, time::Duration};

use super::{
    fields::Notes,
    rls::{Reader, absolute_path, duration, number, server, text},
    yaml::{Node, Value},
};
use crate::{
    quota::model::Scope,
    rls::{Xds, XdsTls},
};

/// Reads it; `None` when anything in it is wrong.
pub(super) fn read(notes: &mut Notes<'_>, node: &Node) -> Option<Xds> {
    const NAMES: &[&str] = &[
        "server",
        "node",
        "metadata",
        "headers",
        "tls",
        "scope",
        "backoff-first",
        "backoff-longest",
        "max-message-size",
    ];
    let fields = notes.fields("xds", node, NAMES, &[])?;
    let unknown = fields.has_unknown(NAMES);
    let at = fields.at;
    let scope = |notes: &mut Notes<'_>, key: &str, node: &Node| {
        super::read::word(notes, key, node, &[("node", Scope::Node), ("fleet", Scope::Fleet)])
    };
    let size =
        |notes: &mut Notes<'_>, key: &str, node: &Node| number(notes, key, node, 1024, 1 << 30);
    let mut reader = Reader { notes, fields, good: !unknown };
    let server = reader.option("server", server);
    let name = reader.value("node", text, || "default".to_owned());
    let metadata = reader.value("metadata", texts, Vec::new);
    let headers = reader.value("headers", headers, Vec::new);
    let tls = reader.option("tls", |notes, _, node| tls(notes, node));
    let scope = reader.value("scope", scope, || Scope::Node);
    let first = reader.value("backoff-first", duration, || Duration::from_secs(10));
    let longest = reader.value("backoff-longest", duration, || Duration::from_secs(60));
    let message = reader.value("max-message-size", size, || 4 << 20);
    let Reader { notes, good, .. } = reader;
    if server.is_none() && good {
        notes.error(at, "`xds` names no server", "`server: HOST:PORT`");
    }
    let backoff = (first, longest.max(first));
    let server = server?;
    good.then_some(Xds { server, node: name, metadata, headers, tls, scope, backoff, message })
}

/// Names and their texts.
fn texts(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Vec<(String, String)>> {
    let Value::Mapping(pairs) = &node.value else {
        notes.error(node.at, format!("`{key}` is no mapping"), "names and texts");
        return None;
    };
    let read = pairs.iter().map(|(name, node)| {
        let value = notes.text(key, node, "a text")?.text.clone();
        Some((name.text.clone(), value))
    });
    let read: Vec<_> = read.collect();
    read.into_iter().collect()
}

/// What is said with each stream. Names and values are shown to nobody: they may be secrets.
fn headers(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Vec<(String, String)>> {
    let headers = texts(notes, key, node)?;
    let is_header = |(name, value): &(String, String)| {
        // Names that end so carry bytes, and `grpc-` is the protocol's own.
        let is_reserved = name.ends_with("-bin") || name.starts_with("grpc-");
        let is_name = name.bytes().all(|byte| !byte.is_ascii_uppercase());
        !is_reserved
            && is_name
            && name.parse::<axum::http::HeaderName>().is_ok()
            && value.parse::<axum::http::HeaderValue>().is_ok()
    };
    if !headers.iter().all(is_header) {
        let expected = "names in small letters and their values, without `-bin` and `grpc-`";
        notes.error(node.at, format!("`{key}` has what cannot be a header"), expected);
        return None;
    }
    Some(headers)
}

fn tls(notes: &mut Notes<'_>, node: &Node) -> Option<XdsTls> {
    const NAMES: &[&str] = &["ca", "cert", "key", "name"];
    let fields = notes.fields("tls", node, NAMES, &[])?;
    let unknown = fields.has_unknown(NAMES);
    let at = fields.at;
    let mut reader = Reader { notes, fields, good: !unknown };
    let ca = reader.option("ca", absolute_path);
    let cert: Option<PathBuf> = reader.option("cert", absolute_path);
    let key = reader.option("key", absolute_path);
    let name = reader.option("name", text);
    let Reader { notes, good, .. } = reader;
    let missing = match (&ca, &cert, &key) {
        (None, ..) => Some("`ca`"),
        (_, Some(_), None) | (_, None, Some(_)) => Some("both of `cert` and `key`, or none"),
        _ => None,
    };
    if let Some(missing) = missing.filter(|_| good) {
        notes.error(at, "`tls` of `xds` is incomplete", missing);
        return None;
    }
    good.then_some(XdsTls { ca: ca?, own: cert.zip(key), name })
}
