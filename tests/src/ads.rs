//! A management server, in place of Envoy Gateway's: the aggregated discovery service of xDS with
//! the whole state in each response, as go-control-plane's snapshot cache serves it. It answers a
//! question about another version than its own at once, and one about its own when there is a new
//! one; so what is refused is sent again.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    google::protobuf::Any,
    ratelimit::config::ratelimit::v3::RateLimitConfig,
};
use envoy_types::util::pack_any;
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
    sync::{mpsc, watch},
};
use tonic::{
    Request, Response, Status, Streaming, async_trait,
    codegen::tokio_stream::{Stream, wrappers::ReceiverStream},
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};

/// A version and its resources.
type Snapshot = (String, Vec<Any>);

/// What clients said, and the value of a header that they sent.
type Heard = Arc<Mutex<Vec<(DiscoveryRequest, Option<String>)>>>;

/// The server. It goes away, and its connections with it, on drop.
#[derive(Debug)]
pub struct Ads {
    address: SocketAddr,
    snapshot: watch::Sender<Snapshot>,
    heard: Heard,
    /// Its own, so that nothing of it outlives it.
    runtime: Option<Runtime>,
}

impl Ads {
    /// Starts one; port 0 is any. It has nothing to send yet.
    pub fn start(address: SocketAddr, tls: Option<ServerTlsConfig>) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("listen");
        listener.set_nonblocking(true).expect("a listener that does not block");
        let address = listener.local_addr().expect("an address");
        let (snapshot, given) = watch::channel(Snapshot::default());
        let heard = Heard::default();
        let service = Service { given, heard: Arc::clone(&heard) };
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).expect("certificates");
        }
        let service = AggregatedDiscoveryServiceServer::new(service);
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let served = server.add_service(service);
            served.serve_with_incoming(TcpIncoming::from(listener)).await.expect("serve");
        });
        Self { address, snapshot, heard, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends this to everybody.
    pub fn set(&self, version: &str, resources: &[RateLimitConfig]) {
        let resources = resources.iter().cloned().map(pack_any).collect();
        self.set_raw(version, resources);
    }

    /// Sends this to everybody, whatever it is.
    pub fn set_raw(&self, version: &str, resources: Vec<Any>) {
        self.snapshot.send_replace((version.to_owned(), resources));
    }

    /// What was said, with the value of the header `authorization`.
    pub fn heard(&self) -> Vec<(DiscoveryRequest, Option<String>)> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Ads {
    fn drop(&mut self) {
        let runtime = self.runtime.take();
        // Whoever drops it may be asynchronous and may not wait.
        let gone = thread::spawn(|| runtime.map(|it| it.shutdown_timeout(Duration::from_secs(10))));
        let _ = gone.join();
    }
}

struct Service {
    given: watch::Receiver<Snapshot>,
    heard: Heard,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let header = request.metadata().get("authorization");
        let header = header.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut requests = request.into_inner();
        let (heard, mut given) = (Arc::clone(&self.heard), self.given.clone());
        let (send, sent) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut nonce = 0;
            while let Ok(Some(asked)) = requests.message().await {
                let said = (asked.clone(), header.clone());
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(said);
                let new = |(version, _): &Snapshot| *version != asked.version_info;
                let answer = tokio::select! {
                    Ok(given) = given.wait_for(new) => (*given).clone(),
                    // The client hears of no more.
                    () = send.closed() => return,
                    else => return,
                };
                nonce += 1;
                let (version_info, resources) = answer;
                let answer = DiscoveryResponse {
                    version_info,
                    resources,
                    type_url: asked.type_url,
                    nonce: nonce.to_string(),
                    ..DiscoveryResponse::default()
                };
                if send.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(sent))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only the state of the world is sent"))
    }
}
