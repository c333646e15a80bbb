//! What in envoyproxy/ratelimit is an environment variable (`src/settings/settings.go`), and what the
//! agent tells the quotas about itself.

/// Settings for all domains. The default is the original's.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Several files may say something about one domain (`MERGE_DOMAIN_CONFIG`).
    pub merge_domains: bool,
    /// Nothing is enforced (`SHADOW_MODE`).
    pub shadow_mode: bool,
    /// Every descriptor is a quota (`QUOTA_MODE`).
    pub quota_mode: bool,
    /// A request that is over a limit spends from no other
    /// (`STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT`).
    pub stop_when_over: bool,
    /// Headers for the response (`LIMIT_RESPONSE_HEADERS_ENABLED`); `None` for none.
    pub headers: Option<HeaderNames>,
    /// Dynamic metadata in responses (`RESPONSE_DYNAMIC_METADATA`).
    pub dynamic_metadata: bool,
    /// The part of a limit beyond which hits are near it (`NEAR_LIMIT_RATIO`).
    pub near_limit_ratio: f32,
    /// There is a store, so quotas of scope `fleet` can hold.
    pub store: bool,
    /// Nodes that share what is written as `storeless: divide`.
    pub nodes: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            merge_domains: false,
            shadow_mode: false,
            quota_mode: false,
            stop_when_over: false,
            headers: None,
            dynamic_metadata: false,
            near_limit_ratio: 0.8,
            store: false,
            nodes: 1,
        }
    }
}

/// Names of the response's headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames {
    /// The limit (`LIMIT_LIMIT_HEADER`).
    pub limit: String,
    /// What is left (`LIMIT_REMAINING_HEADER`).
    pub remaining: String,
    /// Seconds until it comes back (`LIMIT_RESET_HEADER`).
    pub reset: String,
}

impl Default for HeaderNames {
    fn default() -> Self {
        Self {
            limit: "RateLimit-Limit".to_owned(),
            remaining: "RateLimit-Remaining".to_owned(),
            reset: "RateLimit-Reset".to_owned(),
        }
    }
}

/// What memory may be used. It is taken once, when the quotas are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Live counts. Each takes up to 64 bytes, once it was used.
    pub counts: usize,
    /// Series of metrics that are named by values of requests.
    pub series: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { counts: 1 << 20, series: 10_000 }
    }
}
