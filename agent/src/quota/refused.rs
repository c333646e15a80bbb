//! Why a request gets no answer. The server turns it into a gRPC status.

/// Why a request gets no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The request names no domain.
    #[error("rate limit domain must not be empty")]
    EmptyDomain,
    /// The request has no descriptors.
    #[error("rate limit descriptor list must not be empty")]
    NoDescriptors,
    /// There is no configuration yet.
    #[error("no rate limit configuration loaded")]
    NothingLoaded,
    /// A limit in the request has no unit that is known.
    #[error("descriptor {descriptor}: the limit's unit {unit} is unknown")]
    UnknownUnit {
        /// Which descriptor, from 0.
        descriptor: usize,
        /// `RateLimitOverride.unit`.
        unit: i32,
    },
    /// More hits than one descriptor may add in this domain.
    #[error("descriptor {descriptor}: {hits} hits at once, where the domain allows {most}")]
    TooManyHits {
        /// Which descriptor, from 0.
        descriptor: usize,
        /// How many were asked for.
        hits: u64,
        /// The domain's `max-hits-addend`.
        most: u64,
    },
    /// The caller is neither an owner nor a caller of the domain.
    #[error("this caller may not ask about the domain `{domain}`")]
    PermissionDenied {
        /// The domain.
        domain: String,
    },
    /// The store did not answer, and the policy leaves nothing to decide by.
    #[error("a fleet quota could not be decided: {why}")]
    CannotDecide {
        /// What the store said.
        why: String,
    },
}
