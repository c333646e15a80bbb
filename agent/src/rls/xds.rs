//! Quotas that a management server sends: xDS, aggregated, the whole state with each response.
//!
//! What it sends holds at once or not at all; either way it is told, with the reason. What held
//! goes on to hold while it is away.
//! <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>

use std::{convert::Infallible, fs, io, path::PathBuf, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::{
        protobuf::{Any, Struct, Value, value::Kind},
        rpc::Status,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tonic::{
    Code,
    codegen::tokio_stream::wrappers::ReceiverStream,
    metadata::{Ascii, MetadataKey, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tracing::{info, warn};

use super::{
    connection::{drained, jittered},
    server::Health,
    settings::{Xds, XdsTls},
    state::State,
};
use crate::{causes::with_causes, quota::xds::type_url};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// TCP asks whether the server lives. HTTP/2 must not: a server in Go ends connections that ping
/// more often than every five minutes (`keepalive.EnforcementPolicy` of grpc-go).
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Servers send at once again what was refused (go-control-plane's cache does). It is refused again
/// after this only.
const AGAIN: Duration = Duration::from_secs(1);
/// Bytes of a refusal's text.
const MESSAGE: usize = 4096;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("{}: cannot be read", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("no connection")]
    Connection(#[from] tonic::transport::Error),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("the server ended the stream")]
    Ended,
}

/// Asks for quotas until the agent is to stop.
pub(super) async fn follow(
    state: Arc<State>,
    settings: Xds,
    health: Health,
    mut drain: watch::Receiver<bool>,
) {
    let (first, longest) = settings.backoff;
    let mut wait = first;
    loop {
        let error = tokio::select! {
            () = drained(&mut drain) => return,
            error = hear(&state, &settings, &health, &mut wait) => with_causes(&error),
        };
        let pause = jittered(wait, 0.5);
        warn!(server = settings.server, error, again_in = ?pause, "nobody sends quotas; what held before holds");
        state.note_server(|server| {
            server.connected = false;
            server.error = Some(error);
        });
        tokio::select! {
            () = drained(&mut drain) => return,
            () = sleep(pause) => {}
        }
        wait = (wait * 2).min(longest);
    }
}

/// Takes what the server sends, until the stream ends.
async fn hear(
    state: &Arc<State>,
    settings: &Xds,
    health: &Health,
    wait: &mut Duration,
) -> StreamError {
    let ended: Result<Infallible, StreamError> = async {
        let channel = connect(settings).await?;
        info!(server = settings.server, "connected to the server that sends quotas");
        state.note_server(|server| {
            server.connected = true;
            server.error = None;
        });
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(settings.message);
        let mut conversation = Conversation::new(settings);
        let (say, said) = mpsc::channel(1);
        // What the server answers first it may answer late, so the question waits there already.
        say.send(conversation.open()).await.map_err(|_| StreamError::Ended)?;
        let mut request = tonic::Request::new(ReceiverStream::new(said));
        for (name, value) in headers(&settings.headers) {
            request.metadata_mut().insert(name, value);
        }
        let mut responses = client.stream_aggregated_resources(request).await?.into_inner();
        while let Some(response) = responses.message().await? {
            *wait = settings.backoff.0;
            let overlays = state.overlay_changes();
            let reply = if conversation.was_refused(&response, overlays) {
                sleep(AGAIN).await;
                conversation.refuse_again(&response)
            } else {
                let taken = take(state, response.resources.clone()).await;
                health.set(state.is_healthy()).await;
                conversation.reply(response, taken, overlays)
            };
            state.note_server(|server| server.version.clone_from(&conversation.version));
            say.send(reply).await.map_err(|_| StreamError::Ended)?;
        }
        Err(StreamError::Ended)
    }
    .await;
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn take(state: &Arc<State>, resources: Vec<Any>) -> Result<(), String> {
    let state = Arc::clone(state);
    match tokio::task::spawn_blocking(move || state.take(&resources)).await {
        Ok(taken) => taken.map_err(|problems| problems.join("; ")),
        Err(_) => Err("taking the resources broke: this is a bug of the client".to_owned()),
    }
}

async fn connect(settings: &Xds) -> Result<Channel, StreamError> {
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::new(format!("{scheme}://{}", settings.server))?
        .connect_timeout(CONNECT)
        .tcp_keepalive(Some(KEEP_ALIVE))
        .tcp_keepalive_interval(Some(KEEP_ALIVE / 3));
    if let Some(tls) = &settings.tls {
        endpoint = endpoint.tls_config(certificates(tls)?)?;
    }
    Ok(endpoint.connect().await?)
}

fn certificates(tls: &XdsTls) -> Result<ClientTlsConfig, StreamError> {
    let read = |path: &PathBuf| {
        fs::read(path).map_err(|source| StreamError::File { path: path.clone(), source })
    };
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
    if let Some((certificate, key)) = &tls.own {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    if let Some(name) = &tls.name {
        config = config.domain_name(name);
    }
    Ok(config)
}

/// What was read from the node file can be said.
fn headers(
    headers: &[(String, String)],
) -> impl Iterator<Item = (MetadataKey<Ascii>, MetadataValue<Ascii>)> {
    let parsed = headers.iter().map(|(name, value)| (name.parse().ok(), value.parse().ok()));
    parsed.filter_map(|(name, value)| name.zip(value))
}

/// What is said on one stream.
#[derive(Debug)]
struct Conversation {
    node: Node,
    /// The server's name for what was taken last on this stream.
    version: String,
    /// What was refused last.
    refused: Option<Refused>,
}

/// What was refused.
#[derive(Debug)]
struct Refused {
    resources: Vec<Any>,
    why: String,
    /// How often overlays had changed: under others it may hold.
    overlays: u64,
}

impl Conversation {
    fn new(settings: &Xds) -> Self {
        let text = |value: &String| Value { kind: Some(Kind::StringValue(value.clone())) };
        let metadata = settings.metadata.iter();
        let fields = metadata.map(|(name, value)| (name.clone(), text(value))).collect();
        let metadata = (!settings.metadata.is_empty()).then_some(Struct { fields });
        let node = Node { id: settings.node.clone(), metadata, ..Node::default() };
        Self { node, version: String::new(), refused: None }
    }

    /// The first question. It names no version: a server that was started again may give an old
    /// name to something new, and would send nothing then.
    fn open(&self) -> DiscoveryRequest {
        self.say("", None)
    }

    fn was_refused(&self, response: &DiscoveryResponse, overlays: u64) -> bool {
        self.refused.as_ref().is_some_and(|refused| {
            refused.resources == response.resources && refused.overlays == overlays
        })
    }

    fn refuse_again(&self, response: &DiscoveryResponse) -> DiscoveryRequest {
        self.say(&response.nonce, self.refused.as_ref().map(|refused| refused.why.clone()))
    }

    fn reply(
        &mut self,
        response: DiscoveryResponse,
        taken: Result<(), String>,
        overlays: u64,
    ) -> DiscoveryRequest {
        match taken {
            Ok(()) => {
                self.version = response.version_info;
                self.refused = None;
            }
            Err(mut why) => {
                why.truncate(why.floor_char_boundary(MESSAGE));
                self.refused = Some(Refused { resources: response.resources, why, overlays });
            }
        }
        self.say(&response.nonce, self.refused.as_ref().map(|refused| refused.why.clone()))
    }

    fn say(&self, nonce: &str, refusal: Option<String>) -> DiscoveryRequest {
        let refusal = refusal.map(|message| Status {
            code: Code::InvalidArgument as i32,
            message,
            ..Status::default()
        });
        DiscoveryRequest {
            version_info: self.version.clone(),
            node: Some(self.node.clone()),
            type_url: type_url(),
            response_nonce: nonce.to_owned(),
            error_detail: refusal,
            ..DiscoveryRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(version: &str, nonce: &str, value: u8) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: version.to_owned(),
            nonce: nonce.to_owned(),
            resources: vec![Any { type_url: type_url(), value: vec![value] }],
            ..DiscoveryResponse::default()
        }
    }

    fn conversation() -> Conversation {
        Conversation::new(&Xds {
            server: "server:18000".to_owned(),
            node: "envoy-ratelimit".to_owned(),
            metadata: vec![("zone".to_owned(), "a".to_owned())],
            headers: Vec::new(),
            tls: None,
            scope: Default::default(),
            backoff: (Duration::from_secs(1), Duration::from_secs(1)),
            message: 1024,
        })
    }

    #[test]
    fn the_first_question_says_who_asks_and_for_what() {
        let asked = conversation().open();
        let node = asked.node.unwrap();
        assert_eq!((node.id.as_str(), asked.type_url), ("envoy-ratelimit", type_url()));
        assert!(node.metadata.unwrap().fields.contains_key("zone"));
        assert_eq!((asked.version_info, asked.response_nonce), (String::new(), String::new()));
    }

    #[test]
    fn a_refusal_names_what_holds_and_why_the_other_does_not() {
        let mut conversation = conversation();
        let taken = conversation.reply(response("1", "a", 1), Ok(()), 0);
        assert_eq!((taken.version_info.as_str(), taken.response_nonce.as_str()), ("1", "a"));
        assert_eq!(taken.error_detail, None);
        let bad = response("2", "b", 2);
        let refused = conversation.reply(bad.clone(), Err("no key".to_owned()), 0);
        assert_eq!((refused.version_info.as_str(), refused.response_nonce.as_str()), ("1", "b"));
        assert_eq!(refused.error_detail.unwrap().message, "no key");
        // Sent again, under another name or not.
        assert!(conversation.was_refused(&response("3", "c", 2), 0));
        assert!(!conversation.was_refused(&response("3", "c", 2), 1), "overlays have changed");
        assert_eq!(conversation.refuse_again(&bad).error_detail.unwrap().message, "no key");
        assert!(!conversation.was_refused(&response("3", "c", 3), 0));
        assert_eq!(conversation.reply(response("3", "c", 3), Ok(()), 0).error_detail, None);
        assert!(!conversation.was_refused(&bad, 0));
    }

    #[test]
    fn a_long_refusal_is_cut_between_letters() {
        let why = "ß".repeat(MESSAGE);
        let refused = conversation().reply(response("1", "a", 1), Err(why), 0);
        assert_eq!(refused.error_detail.unwrap().message.len(), MESSAGE);
    }
}
