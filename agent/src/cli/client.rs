//! Asking an agent: HTTP over its admin socket.

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::{HeaderMap, Method, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, runtime, time::timeout};

use super::error::CliError;
use crate::app::view::Failure;

/// This program.
const OURS: &str = env!("CARGO_PKG_VERSION");
/// An agent gives up on a request a little earlier, and says why.
const PATIENCE: Duration = Duration::from_secs(15);
/// More of an answer is not read.
const LONGEST_ANSWER: usize = 64 << 20;
/// More of one line of a stream is not read.
const LONGEST_LINE: usize = 1 << 20;

/// Why an agent did not answer the question.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// No socket, or nobody behind it.
    #[error("no agent listens on {}: start one with `weir agent`, or name its socket with --socket", path.display())]
    Nobody { path: PathBuf },
    /// Not for this user.
    #[error("{} may not be opened: the admin socket is for root; try it with sudo", path.display())]
    Denied { path: PathBuf },
    /// Another reason not to reach it.
    #[error("cannot connect to {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// It is there and says nothing.
    #[error("the agent on {} did not answer within {} s: it is busy or stuck; its log may say more", path.display(), PATIENCE.as_secs())]
    Silent { path: PathBuf },
    /// It went away in the middle.
    #[error("the agent on {} went away before it had answered", path.display())]
    Gone { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    /// It stopped, and its stream with it.
    #[error("the agent on {} has stopped", path.display())]
    Stopped { path: PathBuf },
    /// Somebody else's socket.
    #[error("{} is the socket of something else than a weir agent", path.display())]
    NotAnAgent { path: PathBuf },
    /// It does not know the question.
    #[error("the agent on {} is weir {theirs} and does not know `{question}`, this is weir {OURS}: restart the agent with this version", path.display())]
    TooOld { path: PathBuf, theirs: String, question: String },
    /// Its answer is not what this version expects.
    #[error("the agent on {} is weir {theirs} and its answer is not understood by weir {OURS}: use one version for both", path.display())]
    NotUnderstood {
        path: PathBuf,
        theirs: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It says no.
    #[error("{0}")]
    Refused(String),
}

impl ClientError {
    /// Whether the agent understood the question and refused.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// An agent that can be asked.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    path: PathBuf,
}

/// A question.
pub(super) struct Question<'a> {
    method: Method,
    path: String,
    body: Option<&'a dyn erased::Json>,
}

/// Bodies of any type, without a type parameter on every question.
mod erased {
    pub(in super::super) trait Json {
        fn json(&self) -> serde_json::Result<Vec<u8>>;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> serde_json::Result<Vec<u8>> {
            serde_json::to_vec(self)
        }
    }
}

impl<'a> Question<'a> {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None }
    }

    pub(super) fn put(path: impl Into<String>) -> Self {
        Self { method: Method::PUT, path: path.into(), body: None }
    }

    pub(super) fn post<T: Serialize>(path: impl Into<String>, body: &'a T) -> Self {
        Self { method: Method::POST, path: path.into(), body: Some(body) }
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, io::Error> {
        let body = self.body.map(erased::Json::json).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(self.method.clone())
            .uri(&self.path)
            // HTTP/1.1 wants one; a unix socket has none.
            .header(header::HOST, "weir")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body));
        request.map_err(io::Error::other)
    }
}

/// A text as one segment of a path, or one value of a query (RFC 3986 §2.1).
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// An answer, for programs as it came and for this one as it is understood.
#[derive(Debug)]
pub(super) struct Answered<T> {
    pub(super) raw: serde_json::Value,
    pub(super) value: T,
}

impl Agent {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Asks and waits for the answer.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        question: &Question<'_>,
    ) -> Result<Answered<T>, ClientError> {
        self.block_on(async {
            let answer = async {
                let response = self.open(question).await?;
                let version = self.version(response.headers())?;
                let body = self.collect(response, &version).await?;
                let not_understood = |source: serde_json::Error| ClientError::NotUnderstood {
                    path: self.path.clone(),
                    theirs: version.clone(),
                    source: source.into(),
                };
                let raw = serde_json::from_slice(&body).map_err(not_understood)?;
                let value = serde_json::from_slice(&body).map_err(not_understood)?;
                Ok(Answered { raw, value })
            };
            let silent = |_| Err(ClientError::Silent { path: self.path.clone() });
            timeout(PATIENCE, answer).await.unwrap_or_else(silent)
        })?
    }

    /// Reads lines for as long as they come and `each` wants more.
    pub(super) fn follow(
        &self,
        question: &Question<'_>,
        mut each: impl FnMut(&[u8]) -> Result<ControlFlow<()>, CliError>,
    ) -> Result<(), CliError> {
        self.block_on(async {
            let silent = |_| Err(ClientError::Silent { path: self.path.clone() });
            let opened = timeout(PATIENCE, self.open(question)).await;
            let mut response = opened.unwrap_or_else(silent)?;
            self.version(response.headers())?;
            let mut line = Vec::new();
            while let Some(frame) = response.body_mut().frame().await {
                let frame = frame.map_err(|error| self.gone(error))?;
                let Ok(data) = frame.into_data() else { continue };
                for part in data.split_inclusive(|byte| *byte == b'\n') {
                    line.extend_from_slice(part);
                    if line.len() > LONGEST_LINE {
                        Err(self.gone(io::Error::other("a line of its answer is too long")))?;
                    }
                    if line.pop_if(|last| *last == b'\n').is_some() {
                        if each(&line)?.is_break() {
                            return Ok(());
                        }
                        line.clear();
                    }
                }
            }
            Err(ClientError::Stopped { path: self.path.clone() }.into())
        })?
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> Result<T, ClientError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|source| ClientError::Connect { path: self.path.clone(), source })?;
        Ok(runtime.block_on(work))
    }

    /// Asks a question whose answer is yes or no by its code, and returns what was said to it.
    pub(super) fn probe(&self, path: &str) -> Result<(bool, String), ClientError> {
        self.block_on(async {
            let answer = async {
                let response = self.send(&Question::get(path)).await?;
                let version = self.version(response.headers())?;
                let yes = response.status().is_success();
                let said = self.collect(response, &version).await?;
                Ok((yes, String::from_utf8_lossy(&said).into_owned()))
            };
            let silent = |_| Err(ClientError::Silent { path: self.path.clone() });
            timeout(PATIENCE, answer).await.unwrap_or_else(silent)
        })?
    }

    /// The head of the answer. What is not a success is an error.
    async fn open(&self, question: &Question<'_>) -> Result<Response<Incoming>, ClientError> {
        let response = self.send(question).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let theirs = self.version(response.headers())?;
        let body = self.collect(response, &theirs).await?;
        Err(match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) if failure.routes.is_empty() => ClientError::Refused(failure.error),
            Ok(_) => {
                let question = format!("{} {}", question.method, question.path);
                ClientError::TooOld { path: self.path.clone(), theirs, question }
            }
            Err(source) => ClientError::NotUnderstood {
                path: self.path.clone(),
                theirs,
                source: source.into(),
            },
        })
    }

    /// The head of the answer, whatever it says.
    async fn send(&self, question: &Question<'_>) -> Result<Response<Incoming>, ClientError> {
        let path = || self.path.clone();
        let request =
            question.request().map_err(|source| ClientError::Connect { path: path(), source })?;
        let stream =
            UnixStream::connect(&self.path).await.map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::Nobody { path: path() }
                }
                io::ErrorKind::PermissionDenied => ClientError::Denied { path: path() },
                _ => ClientError::Connect { path: path(), source },
            })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.gone(error))?;
        // It ends with the stream; what it could say, the answer says too.
        tokio::spawn(async move { drop(connection.await) });
        let answered = sender.send_request(request).await;
        answered.map_err(|error| {
            if error.is_parse() {
                ClientError::NotAnAgent { path: path() }
            } else {
                self.gone(error)
            }
        })
    }

    /// The version of who answered.
    fn version(&self, headers: &HeaderMap) -> Result<String, ClientError> {
        let server = headers.get(header::SERVER).and_then(|server| server.to_str().ok());
        let version = server.and_then(|server| server.strip_prefix("weir/"));
        version
            .map(str::to_owned)
            .ok_or_else(|| ClientError::NotAnAgent { path: self.path.clone() })
    }

    async fn collect(
        &self,
        response: Response<Incoming>,
        theirs: &str,
    ) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|source| {
            if source.is::<LengthLimitError>() {
                let theirs = theirs.to_owned();
                ClientError::NotUnderstood { path: self.path.clone(), theirs, source }
            } else {
                ClientError::Gone { path: self.path.clone(), source }
            }
        })?;
        Ok(body.to_bytes())
    }

    fn gone(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Gone { path: self.path.clone(), source: source.into() }
    }
}
