//! gRPC reflection: which services there are, and what their messages are made of, for `grpcurl` and
//! the like. Nobody needs it to be answered, so it is offered only where it was asked for.
//! <https://grpc.io/docs/guides/reflection/>

use tonic::service::Routes;
use tonic_reflection::server::{Builder, Error};

/// Envoy's `rls.proto` and all that it imports, as `protoc --include_imports` writes them, from the same
/// files as the types. `tests/tests/reflection.rs` makes it, and fails where it is another.
const RATE_LIMIT_SERVICE: &[u8] = include_bytes!("rls.descriptors");

/// Adds both versions of the service: clients ask for `v1` first, old ones for `v1alpha` alone.
pub(super) fn offer(routes: Routes) -> Result<Routes, Error> {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(RATE_LIMIT_SERVICE)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?))
}
