//! What the agent may ask of the API server, and nothing else: the ClusterRole is made of this
//! list, and the tests' API server refuses what is not in it.

/// Verbs on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The resource.
    pub resource: &'static str,
    /// The verbs.
    pub verbs: &'static [&'static str],
}

/// All that the agent asks for.
pub const ACCESS: &[Access] = &[
    Access { group: "", resource: "pods", verbs: &["list", "watch"] },
    Access { group: "", resource: "namespaces", verbs: &["list", "watch"] },
];
