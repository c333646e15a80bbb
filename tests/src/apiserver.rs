//! An API server of the tests' own, over real HTTP: a stand-in, because a kube-apiserver is not to
//! be had on the machines where these tests run.
//!
//! It answers LIST and WATCH as the Kubernetes API documents them (API concepts, "Efficient
//! detection of changes"): objects with `resourceVersion`, watches that begin at one and stream
//! ADDED, MODIFIED, DELETED and BOOKMARK, 410 for versions that are forgotten. It knows pods,
//! namespaces, nodes and events, and the field selectors that the agent uses. It refuses whatever
//! [`weir::kube::ACCESS`] does not list and nobody granted besides, as RBAC would, and remembers that
//! it had to. Nodes and statuses of pods can be patched as the agent does it. Beside the
//! agent there is a person, who may look for pods and reach what listens in them through it
//! (`pods/proxy`), for as long as they are granted that. It can be slow, break a stream in the middle of a line, talk nonsense, and be away.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket;
use serde_json::{Value, json};
use weir::{
    kube::{ACCESS, Access},
    lab::Namespace,
    workload::netns::NetNs,
};

/// The agent.
const TOKEN: &str = "weir-tests";
/// Somebody with a kubeconfig.
const PERSON: &str = "somebody";
/// What that one may ask.
const PERSONAL: [Access; 2] = [
    Access { group: "", resource: "pods", verbs: &["get", "list"] },
    Access { group: "", resource: "pods/proxy", verbs: &["get"] },
];
/// How often a watch gets a bookmark. The real one sends them every minute.
const BOOKMARK: Duration = Duration::from_millis(500);

/// How a watch is to misbehave next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It breaks off in the middle of a line.
    HalfALine,
    /// It sends a line that is no JSON.
    Nonsense,
}

#[derive(Debug, Default)]
struct State {
    /// The `resourceVersion` of the last change.
    version: u64,
    /// Watches that begin before this one get 410.
    forgotten: u64,
    /// By resource and `NAMESPACE/NAME`.
    objects: BTreeMap<(&'static str, String), Value>,
    /// Every change since `forgotten`: its version, resource, kind and object.
    changes: Vec<(u64, &'static str, &'static str, Value)>,
    /// Events that were created, with what was patched into them since.
    events: Vec<Value>,
    /// Verb and resource of every request that was allowed.
    asked: Vec<(String, String)>,
    refused: Vec<String>,
    trouble: Option<(u64, Trouble)>,
    slow: Duration,
    /// What the agent may ask besides.
    granted: Vec<Access>,
    /// Whether the person may use the proxy of pods.
    no_proxy: bool,
    /// Where pods listen: the namespace that the server itself is in.
    network: Option<NetNs>,
    /// Counts up when all connections are to end.
    epoch: u64,
    /// Whether nobody listens: a watch that was accepted before is not begun.
    away: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread dies here")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

/// A running server, and its kubeconfig.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    listening: Option<(TcpListener, JoinHandle<()>)>,
    kubeconfig: PathBuf,
}

impl ApiServer {
    /// Serves on a port of a namespace's loopback; the kubeconfig goes into a directory.
    pub fn start(namespace: &Namespace, directory: &Path) -> Self {
        let listener = namespace.run(|| TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("enter the namespace").expect("listen");
        let address = listener.local_addr().expect("an address");
        let kubeconfig = directory.join("kubeconfig");
        let personal = kubeconfig.with_extension("personal");
        for (path, token) in [(&kubeconfig, TOKEN), (&personal, PERSON)] {
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "tests",
                "clusters": [{"name": "tests", "cluster": {"server": format!("http://{address}")}}],
                "users": [{"name": "weir", "user": {"token": token}}],
                "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "weir"}}],
            });
            fs::write(path, config.to_string()).expect("write a kubeconfig");
        }
        let mut server = Self { shared: Arc::default(), address, listening: None, kubeconfig };
        let network = NetNs::open(&namespace.path().to_string_lossy()).expect("open a namespace");
        server.shared.change(|state| (state.version, state.network) = (1000, Some(network)));
        server.listen(listener);
        server
    }

    fn listen(&mut self, listener: TcpListener) {
        self.shared.change(|state| state.away = false);
        let (ours, shared) =
            (listener.try_clone().expect("share a socket"), Arc::clone(&self.shared));
        self.listening = Some((ours, thread::spawn(move || accept(&listener, &shared))));
    }

    /// The kubeconfig that leads here.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The kubeconfig of a person.
    pub fn personal_kubeconfig(&self) -> PathBuf {
        self.kubeconfig.with_extension("personal")
    }

    /// Whether the person is granted the proxy of pods, as is so at first.
    pub fn grant_proxy(&self, is_granted: bool) {
        self.shared.change(|state| state.no_proxy = !is_granted);
    }

    /// Grants the agent something that is off unless it is asked for.
    pub fn grant(&self, access: Access) {
        self.shared.change(|state| state.granted.push(access));
    }

    /// An object as it is now.
    pub fn object(&self, resource: &'static str, key: &str) -> Value {
        let object = self.shared.state().objects.get(&(resource, key.to_owned())).cloned();
        object.expect("an object")
    }

    /// Is away: nobody listens, and every connection ends.
    pub fn leave(&mut self) {
        self.shared.change(|state| (state.epoch, state.away) = (state.epoch + 1, true));
        if let Some((listener, thread)) = self.listening.take() {
            let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
            thread.join().expect("the server's thread");
        }
    }

    /// Is back, at the same address, and knows everything.
    pub fn come_back(&mut self, namespace: &Namespace) {
        let address = self.address;
        let listener = namespace.run(|| TcpListener::bind(address));
        self.listen(listener.expect("enter the namespace").expect("listen again"));
    }

    /// Makes or replaces an object.
    pub fn put(&self, resource: &'static str, mut object: Value) {
        let key = key_of(&object);
        self.shared.change(|state| {
            state.version += 1;
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            let before = state.objects.insert((resource, key), object.clone());
            let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
            state.changes.push((state.version, resource, kind, object));
        });
    }

    /// Deletes an object.
    pub fn delete(&self, resource: &'static str, key: &str) {
        self.shared.change(|state| {
            state.version += 1;
            let object = state.objects.remove(&(resource, key.to_owned()));
            let mut object = object.expect("an object to delete");
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            state.changes.push((state.version, resource, "DELETED", object));
        });
    }

    /// Changes an object.
    pub fn edit(&self, resource: &'static str, key: &str, edit: impl FnOnce(&mut Value)) {
        let object = self.shared.state().objects.get(&(resource, key.to_owned())).cloned();
        let mut object = object.expect("an object to edit");
        edit(&mut object);
        self.put(resource, object);
    }

    /// Sets an annotation of a pod, or removes it.
    pub fn annotate(&self, resource: &'static str, key: &str, name: &str, value: Option<&str>) {
        self.edit(resource, key, |object| {
            let annotations = &mut object["metadata"]["annotations"];
            match value {
                Some(value) => annotations[name] = value.into(),
                None => _ = annotations.as_object_mut().expect("a mapping").remove(name),
            }
        });
    }

    /// Forgets all changes, as compaction does, and ends the watches: those that come back with an
    /// old version get 410.
    pub fn forget(&self) {
        self.shared.change(|state| {
            state.version += 1;
            (state.forgotten, state.epoch) = (state.version, state.epoch + 1);
            state.changes.clear();
        });
    }

    /// Ends all watches; they may go on where they were.
    pub fn drop_watches(&self) {
        self.shared.change(|state| state.epoch += 1);
    }

    /// Makes every watch that is open misbehave, once.
    pub fn make_trouble(&self, trouble: Trouble) {
        self.shared.change(|state| {
            state.epoch += 1;
            state.trouble = Some((state.epoch, trouble));
        });
    }

    /// Takes so long for each answer.
    pub fn be_slow(&self, slow: Duration) {
        self.shared.change(|state| state.slow = slow);
    }

    /// The events that were created, as they are now.
    pub fn events(&self) -> Vec<Value> {
        self.shared.state().events.clone()
    }

    /// How often this was asked and allowed.
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        let state = self.shared.state();
        state.asked.iter().filter(|(v, r)| v == verb && r == resource).count()
    }

    /// What was asked and is not granted.
    pub fn refused(&self) -> Vec<String> {
        self.shared.state().refused.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.change(|state| state.epoch += 1);
        if let Some((listener, _)) = self.listening.take() {
            let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
        }
    }
}

fn key_of(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().expect("a name");
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        let shared = Arc::clone(shared);
        // A client that goes away loses its answer.
        thread::spawn(move || {
            let _ = serve(&stream, &shared);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

/// One request of a connection; each has one of its own.
struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: Vec<u8>,
    content: String,
    who: Option<Who>,
}

/// Whose token it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Agent,
    Person,
}

fn read(stream: &TcpStream) -> io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let (mut length, mut content, mut who) = (0, String::new(), None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or_default(),
            "content-type" => content = value.to_owned(),
            "authorization" => {
                who = match value.strip_prefix("Bearer ") {
                    Some(TOKEN) => Some(Who::Agent),
                    Some(PERSON) => Some(Who::Person),
                    _ => None,
                }
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key.to_owned(), value.replace("%3D", "=").replace("%2F", "/"))
    };
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect();
    Ok(Request { method, path: path.to_owned(), query, body, content, who })
}

fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let request = read(stream)?;
    let slow = shared.state().slow;
    thread::sleep(slow);
    let Some(who) = request.who else {
        return answer(stream, "401 Unauthorized", &failure(401, "Unauthorized"));
    };
    let segments: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    let (group, rest) = match segments.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => ("?", segments.as_slice()),
    };
    let (namespace, behind) = match rest {
        ["namespaces", namespace, _, _, "proxy", behind @ ..] => (Some(*namespace), behind),
        ["namespaces", namespace, ..] => (Some(*namespace), [].as_slice()),
        _ => (None, [].as_slice()),
    };
    let (resource, name) = match rest {
        ["namespaces", _, "pods", name, "proxy", ..] => ("pods/proxy", Some(*name)),
        ["namespaces", _, "pods", name, "status"] => ("pods/status", Some(*name)),
        ["namespaces", _, resource] => (*resource, None),
        ["namespaces", _, resource, name] => (*resource, Some(*name)),
        [resource] => (*resource, None),
        [resource, name] => (*resource, Some(*name)),
        _ => ("?", None),
    };
    let is_watch = request.query.get("watch").is_some_and(|watch| watch == "true");
    let verb = match request.method.as_str() {
        "GET" if is_watch => "watch",
        "GET" if name.is_some() => "get",
        "GET" => "list",
        "POST" => "create",
        "PATCH" => "patch",
        _ => "?",
    };
    let (no_proxy, more) = {
        let state = shared.state();
        (state.no_proxy, state.granted.clone())
    };
    let granted = match who {
        Who::Agent => &[ACCESS, &more].concat(),
        Who::Person if no_proxy => &PERSONAL[..1],
        Who::Person => &PERSONAL[..],
    };
    let is_it = |access: &&Access| {
        access.group == group && access.resource == resource && access.verbs.contains(&verb)
    };
    let Some(granted) = granted.iter().find(is_it) else {
        let what = format!("{verb} {group}/{resource}: {} {}", request.method, request.path);
        shared.change(|state| state.refused.push(what));
        return answer(stream, "403 Forbidden", &failure(403, "Forbidden"));
    };
    shared.change(|state| state.asked.push((verb.to_owned(), resource.to_owned())));
    match verb {
        "list" => answer(stream, "200 OK", &list(shared, granted.resource, namespace, &request)),
        "get" => {
            let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
            let (pod, port) = name.split_once(':').unwrap_or((name, ""));
            let key = ("pods", format!("{namespace}/{pod}"));
            let found = shared.state().objects.get(&key).cloned();
            match found {
                None => answer(stream, "404 Not Found", &failure(404, "NotFound")),
                Some(pod) if resource == "pods" => answer(stream, "200 OK", &pod),
                Some(pod) => proxy(stream, shared, &pod, port, behind),
            }
        }
        "watch" => watch(stream, shared, granted.resource, &request),
        "create" => {
            let event: Value = serde_json::from_slice(&request.body)?;
            shared.change(|state| state.events.push(event.clone()));
            answer(stream, "201 Created", &event)
        }
        "patch" if granted.resource != "events" => {
            let key = name.map(|name| match namespace {
                Some(namespace) => format!("{namespace}/{name}"),
                None => name.to_owned(),
            });
            let patch: Value = serde_json::from_slice(&request.body)?;
            let key = key.unwrap_or_default();
            match change(shared, granted.resource, &key, &request.content, &patch) {
                Ok(object) => answer(stream, "200 OK", &object),
                Err((code, reason)) => {
                    answer(stream, &format!("{code} {reason}"), &failure(code, reason))
                }
            }
        }
        "patch" => {
            let patch: Value = serde_json::from_slice(&request.body)?;
            let mut patched = None;
            shared.change(|state| {
                let is_it = |event: &&mut Value| event["metadata"]["name"].as_str() == name;
                if let Some(event) = state.events.iter_mut().find(is_it) {
                    merge(event, &patch);
                    patched = Some(event.clone());
                }
            });
            match patched {
                Some(event) => answer(stream, "200 OK", &event),
                None => answer(stream, "404 Not Found", &failure(404, "NotFound")),
            }
        }
        _ => answer(stream, "405 Method Not Allowed", &failure(405, "MethodNotAllowed")),
    }
}

/// Passes a GET on to a port of a pod. The path goes as it is after its decoding, as the API server
/// sends it.
fn proxy(
    mut stream: &TcpStream,
    shared: &Shared,
    pod: &Value,
    port: &str,
    path: &[&str],
) -> io::Result<()> {
    let network = shared.state().network.clone().expect("the server's own namespace");
    let host = pod["status"]["podIP"].as_str().unwrap_or_default();
    let address = format!("{host}:{port}");
    let Ok(mut there) = network.run(|| TcpStream::connect(&address))? else {
        let mut status = failure(503, "ServiceUnavailable");
        status["message"] = format!("error trying to reach service: dial tcp {address}").into();
        return answer(stream, "503 Service Unavailable", &status);
    };
    let path = path.join("/").replace("%2F", "/");
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    there.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    there.read_to_end(&mut answer)?;
    stream.write_all(&answer)
}

/// Patches a node, or the status of a pod: what the patch says of the UID and of the
/// `resourceVersion` must be so, and conditions are merged by their type (`patchMergeKey` of
/// `PodStatus.conditions`).
fn change(
    shared: &Shared,
    resource: &str,
    key: &str,
    content: &str,
    patch: &Value,
) -> Result<Value, (u16, &'static str)> {
    let (resource, wanted) = match resource {
        "pods/status" => ("pods", "application/strategic-merge-patch+json"),
        _ => ("nodes", "application/merge-patch+json"),
    };
    if content != wanted {
        return Err((415, "UnsupportedMediaType"));
    }
    let mut result = Err((404, "NotFound"));
    shared.change(|state| {
        let Some(object) = state.objects.get_mut(&(resource, key.to_owned())) else { return };
        let is_so = |field: &str| {
            let said = &patch["metadata"][field];
            said.is_null() || *said == object["metadata"][field]
        };
        if !is_so("uid") || !is_so("resourceVersion") {
            result = Err((409, "Conflict"));
            return;
        }
        let mut patch = patch.clone();
        if let Some(new) = patch["status"]["conditions"].as_array().cloned() {
            let before = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let stays = |one: &Value| !new.iter().any(|condition| condition["type"] == one["type"]);
            let conditions = before.into_iter().filter(stays).chain(new.iter().cloned());
            patch["status"]["conditions"] = conditions.collect::<Vec<_>>().into();
        }
        merge(object, &patch);
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let object = object.clone();
        state.changes.push((state.version, resource, "MODIFIED", object.clone()));
        result = Ok(object);
    });
    result
}

/// RFC 7396, for objects.
fn merge(target: &mut Value, patch: &Value) {
    let (Value::Object(target), Value::Object(patch)) = (&mut *target, patch) else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn failure(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "code": code, "message": format!("the tests' API server says {reason}"),
    })
}

fn answer(mut stream: &TcpStream, status: &str, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// Whether an object is one of those asked for.
fn is_selected(object: &Value, request: &Request) -> bool {
    let by_field = request.query.get("fieldSelector").is_none_or(|selector| {
        let (path, wanted) = selector.split_once('=').expect("a selector by a field");
        object.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str)
            == Some(wanted)
    });
    by_field
        && request.query.get("labelSelector").is_none_or(|selector| {
            let (label, wanted) = selector.split_once('=').expect("a selector by a label");
            object["metadata"]["labels"][label].as_str() == Some(wanted)
        })
}

fn kind_of(resource: &str) -> &'static str {
    match resource {
        "pods" => "Pod",
        "namespaces" => "Namespace",
        "nodes" => "Node",
        _ => "Event",
    }
}

fn list(shared: &Shared, resource: &str, namespace: Option<&str>, request: &Request) -> Value {
    let is_there = |object: &Value| {
        namespace.is_none_or(|name| object["metadata"]["namespace"].as_str() == Some(name))
    };
    let state = shared.state();
    let items: Vec<&Value> = state
        .objects
        .iter()
        .filter(|((its, _), object)| {
            *its == resource && is_there(object) && is_selected(object, request)
        })
        .map(|(_, object)| object)
        .collect();
    json!({
        "kind": format!("{}List", kind_of(resource)), "apiVersion": "v1",
        "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
    })
}

fn watch(
    mut stream: &TcpStream,
    shared: &Shared,
    resource: &'static str,
    request: &Request,
) -> io::Result<()> {
    let since = request.query.get("resourceVersion").and_then(|version| version.parse().ok());
    let mut seen: u64 = since.unwrap_or_default();
    let (epoch, away) = {
        let state = shared.state();
        (state.epoch, state.away)
    };
    if away {
        return Ok(());
    }
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let chunk = |mut stream: &TcpStream, text: &str| {
        stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
    };
    if seen < shared.state().forgotten {
        let mut status = failure(410, "Expired");
        status["message"] = format!("too old resource version: {seen}").into();
        chunk(stream, &format!("{}\n", json!({"type": "ERROR", "object": status})))?;
        return chunk(stream, "");
    }
    loop {
        let mut lines = String::new();
        let mut state = shared.state();
        for (version, its, kind, object) in &state.changes {
            if *version > seen && *its == resource && is_selected(object, request) {
                lines += &format!("{}\n", json!({"type": kind, "object": object}));
            }
        }
        seen = state.version;
        if lines.is_empty() && state.epoch == epoch {
            let (woken, timeout) =
                shared.changed.wait_timeout(state, BOOKMARK).expect("no thread dies here");
            state = woken;
            if timeout.timed_out() {
                let object = json!({
                    "kind": kind_of(resource), "apiVersion": "v1",
                    "metadata": {"resourceVersion": seen.to_string()},
                });
                lines = format!("{}\n", json!({"type": "BOOKMARK", "object": object}));
            }
        }
        let (now, trouble) = (state.epoch, state.trouble);
        drop(state);
        if !lines.is_empty() {
            chunk(stream, &lines)?;
        }
        if now != epoch {
            return match trouble.filter(|(at, _)| *at == now) {
                Some((_, Trouble::HalfALine)) => chunk(stream, "{\"type\": \"MODIFIED\", \"obj"),
                Some((_, Trouble::Nonsense)) => chunk(stream, "{\"type\": 7, \"object\": [}\n"),
                None => chunk(stream, ""),
            };
        }
    }
}
