//! The agent as the demo sees it: a program in the node's namespace, and a socket that says when
//! it is ready.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::DemoError;
use crate::{
    app::view::Status,
    lab::{Namespace, Process},
};

/// How long an agent may take to answer one question, or to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much of its log is shown when it fails.
const LAST_LINES: usize = 12;
/// More of an answer than this is not read.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// Where an agent is to work.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The network namespace that it runs in.
    pub node: &'a Namespace,
    /// Its node file.
    pub node_file: &'a Path,
    /// Where it may pin, in a bpffs; not made yet.
    pub pins: &'a Path,
    /// Its admin socket.
    pub socket: &'a Path,
    /// Where its log goes.
    pub log: &'a Path,
}

/// Whoever can start an agent.
pub trait StartAgent {
    /// Starts one.
    fn start(&self, site: &Site<'_>) -> Result<Box<dyn RunningAgent>, DemoError>;
}

/// An agent; it stops when dropped.
pub trait RunningAgent {
    /// Whether it enforces yet. An error if it is gone.
    fn readiness(&mut self) -> Result<Readiness, DemoError>;
    /// Where everything stands now.
    fn status(&mut self) -> Result<Status, DemoError>;
}

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It enforces.
    Ready,
    /// Not yet, in its own words or those of its silence.
    NotYet(String),
}

/// Starts the program itself, as `PROGRAM agent`.
#[derive(Clone, Debug)]
pub struct ChildAgent {
    program: PathBuf,
}

impl ChildAgent {
    /// Runs this program.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// Runs the binary that the caller is running.
    pub fn this_binary() -> Result<Self, DemoError> {
        let program = std::env::current_exe();
        Ok(Self::new(program.map_err(DemoError::step("find the path of this program"))?))
    }
}

impl StartAgent for ChildAgent {
    fn start(&self, site: &Site<'_>) -> Result<Box<dyn RunningAgent>, DemoError> {
        let open = || File::options().create(true).append(true).open(site.log);
        let log = open().map_err(DemoError::step(format!("write {}", site.log.display())))?;
        let both = log.try_clone().map_err(DemoError::step("share the agent's log"))?;
        let mut command = Command::new(&self.program);
        command
            .arg("agent")
            .arg("--node-file")
            .arg(site.node_file)
            .arg("--pin-dir")
            .arg(site.pins)
            .arg("--socket")
            .arg(site.socket)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(both);
        Ok(Box::new(Child {
            process: Some(site.node.spawn(command)?),
            socket: site.socket.to_owned(),
            log: site.log.to_owned(),
        }))
    }
}

struct Child {
    // `None` only while it is being dropped.
    process: Option<Process>,
    socket: PathBuf,
    log: PathBuf,
}

impl Child {
    fn lives(&mut self) -> Result<(), DemoError> {
        if let Some(process) = &mut self.process
            && let Some(status) = process.ended()?
        {
            return Err(DemoError::AgentEnded { status, log: last_lines(&self.log) });
        }
        Ok(())
    }
}

impl RunningAgent for Child {
    fn readiness(&mut self) -> Result<Readiness, DemoError> {
        self.lives()?;
        Ok(match get(&self.socket, "/readyz") {
            Ok((200, _)) => Readiness::Ready,
            Ok((code, answer)) => Readiness::NotYet(format!("{code} {}", answer.trim())),
            Err(error) => Readiness::NotYet(format!("{}: {error}", self.socket.display())),
        })
    }

    fn status(&mut self) -> Result<Status, DemoError> {
        self.lives()?;
        let status = get(&self.socket, "/status").and_then(|(code, answer)| match code {
            200 => serde_json::from_str(&answer).map_err(io::Error::from),
            _ => Err(io::Error::other(format!("{code} {}", answer.trim()))),
        });
        status.map_err(DemoError::step("learn the agent's status"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            // If it does not end it is killed with the handle.
            let _ = process.end(PATIENCE);
        }
    }
}

/// The end of a log, for an error message.
pub(super) fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return "(it wrote nothing)".to_owned();
    }
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// Asks an HTTP server on a unix socket; its status code and body.
fn get(socket: &Path, path: &str) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // In one piece: a server may answer, and close, as soon as it has read enough.
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP/1"))
}

/// RFC 9112 §4: the status line; the body is what follows the blank line.
fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    words.next()?.strip_prefix("HTTP/1.")?;
    Some((words.next()?.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;
    use crate::lab::Lab;

    #[test]
    fn readiness_is_asked_for_over_the_socket() {
        let path = std::env::temp_dir().join(format!("weir-readyz-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        assert!(get(&path, "/readyz").is_err());
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nready").unwrap();
            request[..length].to_vec()
        });
        assert_eq!(get(&path, "/readyz").unwrap(), (200, "ready".to_owned()));
        let request = server.join().unwrap();
        assert!(request.starts_with(b"GET /readyz HTTP/1.1\r\n"), "{request:?}");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_agent_that_ends_leaves_its_last_words() {
        if !crate::lab::privileged("an_agent_that_ends_leaves_its_last_words") {
            return;
        }
        let lab = Lab::new().unwrap();
        let node = lab.namespace("node").unwrap();
        let at = |name| lab.directory().join(name);
        let (file, socket, log) = (at("node.yaml"), at("weir.sock"), at("agent.log"));
        fs::write(&log, "one\n\nlast words\n").unwrap();
        let pins = lab.pins();
        let site = Site { node: &node, node_file: &file, pins: &pins, socket: &socket, log: &log };
        let mut agent = ChildAgent::new("false").start(&site).unwrap();
        let error = loop {
            match agent.readiness() {
                Ok(Readiness::NotYet(_)) => thread::yield_now(),
                Ok(Readiness::Ready) => panic!("nothing listens"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().ends_with("one\nlast words"), "{error}");
    }

    #[test]
    fn an_answer_is_its_code_and_its_body() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nweb: no interface\n";
        assert_eq!(parse(answer), Some((503, "web: no interface\n".to_owned())));
        for other in ["", "SSH-2.0-x\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
