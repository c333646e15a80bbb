//! gRPC reflection as a client such as `grpcurl` uses it: it asks which services there are, follows one
//! to its files, and makes a request of what these say.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitResponse, rate_limit_response::Code, rate_limit_service_client::RateLimitServiceClient,
};
use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message as _};
use protox::{
    Compiler,
    file::{ChainFileResolver, GoogleFileResolver, IncludeFileResolver},
};
use tonic::{
    Code as Status,
    codegen::tokio_stream,
    transport::{Channel, Endpoint},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use weir::rls::{Running, Settings};

const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";

/// What the agent is built with.
const DESCRIPTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/src/rls/rls.descriptors");

/// Where the .proto files lie of which Envoy's types were made: beside them.
fn protos() -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["metadata", "--format-version=1", "--offline", "--locked"]);
    let platform = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let output = command.arg("--filter-platform").arg(platform).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "envoy-types").unwrap();
    Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("proto")
}

/// The agent tells clients what the .proto files say that its own types come from. To make the file
/// anew after another version of these: `WEIR_WRITE_DESCRIPTORS=1 cargo test -p weir-tests --test
/// reflection`.
#[test]
fn the_descriptors_are_those_of_the_types() {
    let protos = protos();
    let mut resolver = ChainFileResolver::new();
    for folder in ["data-plane-api", "protoc-gen-validate", "xds"] {
        resolver.add(IncludeFileResolver::new(protos.join(folder)));
    }
    resolver.add(GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true);
    compiler.open_file("envoy/service/ratelimit/v3/rls.proto").unwrap();
    let made = compiler.encode_file_descriptor_set();
    if env::var_os("WEIR_WRITE_DESCRIPTORS").is_some() {
        fs::write(DESCRIPTORS, &made).unwrap();
    }
    assert!(fs::read(DESCRIPTORS).unwrap() == made, "{DESCRIPTORS} is not what the files say");
}

/// The service with its health checks, which knows no quotas.
async fn start(reflection: bool) -> (Running, Channel) {
    let settings = Settings {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        reflection,
        ..Settings::default()
    };
    let memory = env::temp_dir().join(format!("weir-reflection-{}", std::process::id()));
    let running = Running::start(settings, Arc::default(), memory).await.unwrap();
    let to = format!("http://{}", running.addresses()[0]);
    (running, Endpoint::new(to).unwrap().connect().await.unwrap())
}

async fn ask(channel: &Channel, question: MessageRequest) -> Result<MessageResponse, Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let asked = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::once(request))
        .await;
    let mut answers = asked.map_err(|status| status.code())?.into_inner();
    let answer = answers.message().await.map_err(|status| status.code())?;
    Ok(answer.unwrap().message_response.unwrap())
}

/// A file and what it imports, as it is told by the server.
async fn files(channel: &Channel, question: MessageRequest, pool: &mut DescriptorPool) {
    let mut questions = vec![question];
    let (mut known, mut told) = (BTreeSet::new(), Vec::new());
    while let Some(question) = questions.pop() {
        let answer = ask(channel, question).await.unwrap();
        let MessageResponse::FileDescriptorResponse(files) = answer else { panic!("{answer:?}") };
        for file in files.file_descriptor_proto {
            let file = prost_reflect::prost_types::FileDescriptorProto::decode(&*file);
            let file = file.unwrap();
            if known.insert(file.name().to_owned()) {
                let imports = file.dependency.iter().cloned();
                questions.extend(imports.map(MessageRequest::FileByFilename));
                told.push(file);
            }
        }
    }
    pool.add_file_descriptor_protos(told).unwrap();
}

#[tokio::test]
async fn a_client_that_knows_nothing_finds_the_service_and_asks_it() {
    let (running, channel) = start(true).await;
    let answer = ask(&channel, MessageRequest::ListServices(String::new())).await.unwrap();
    let MessageResponse::ListServicesResponse(listed) = answer else { panic!("{answer:?}") };
    let names: BTreeSet<_> = listed.service.into_iter().map(|service| service.name).collect();
    for name in [SERVICE, "grpc.health.v1.Health"] {
        assert!(names.contains(name), "{names:?}");
    }
    let mut pool = DescriptorPool::new();
    for name in [SERVICE, "grpc.health.v1.Health"] {
        let question = MessageRequest::FileContainingSymbol(name.to_owned());
        files(&channel, question, &mut pool).await;
    }
    let service = pool.get_service_by_name(SERVICE).unwrap();
    let method = service.methods().find(|method| method.name() == "ShouldRateLimit").unwrap();
    let text = r#"{"domain":"shop","descriptors":[{"entries":[{"key":"PATH","value":"/"}],"hitsAddend":"0"}]}"#;
    let mut json = serde_json::Deserializer::from_str(text);
    let request = DynamicMessage::deserialize(method.input(), &mut json).unwrap();
    // What the descriptors make of it is what the service understands.
    let request = envoy_types::pb::envoy::service::ratelimit::v3::RateLimitRequest::decode(
        &*request.encode_to_vec(),
    );
    let request = request.unwrap();
    assert_eq!(request.descriptors[0].hits_addend.as_ref().map(|hits| hits.value), Some(0));
    let answer = RateLimitServiceClient::new(channel.clone()).should_rate_limit(request).await;
    let answer: RateLimitResponse = answer.unwrap().into_inner();
    assert_eq!(answer.overall_code, Code::Ok as i32);
    let answer = DynamicMessage::decode(method.output(), &*answer.encode_to_vec()).unwrap();
    assert_eq!(answer.get_field_by_name("overall_code").unwrap().as_enum_number(), Some(1));
    assert!(pool.get_service_by_name("grpc.health.v1.Health").is_some());
    running.stop().await;
}

#[tokio::test]
async fn who_was_not_told_to_offers_it_not() {
    let (running, channel) = start(false).await;
    let answer = ask(&channel, MessageRequest::ListServices(String::new())).await;
    assert_eq!(answer, Err(Status::Unimplemented));
    running.stop().await;
}
