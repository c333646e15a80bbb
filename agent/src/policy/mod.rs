//! Policy: the words in which limits are written, and whose word counts.
//!
//! There is one grammar, for annotations, policy files and the node file, and one merge of what
//! the administrator, the namespace and the workload say. Everything here is pure. It has never
//! heard of YAML, maps or interfaces: readers of files hand it texts with their places, and
//! `compile` turns what comes out into rules.

pub mod bandwidth;
pub mod breaker;
pub mod effective;
pub mod fault;
pub mod key;
pub mod layer;
mod part;
pub mod peer;
pub mod place;
pub mod probes;
pub mod quota;
pub mod rate;
pub mod reading;
pub mod shape;
mod suggest;
pub mod value;

pub use self::{
    bandwidth::Bandwidth,
    breaker::{Breaker, Ratio, Scope},
    effective::{Clamp, Effective, Layers, Line, Outcome, Served, Shadow, Slot, effective},
    key::{ANNOTATION_PREFIX, Key, KeyKind, LimitKind, Port, PortName, PortRef, Ports},
    layer::{
        Administrator, Allow, Entries, Entry, Glob, KUBERNETES_BANDWIDTH, Match, Policy, Subject,
        annotations, kubernetes_annotations,
    },
    peer::{Cidr, Group, ServiceName, Services, To},
    place::{Layer, Origin, Place, Problem, Severity, Sourced},
    probes::{Probes, RESETS},
    quota::{Quota, Variables},
    rate::{Bucket, Period, Rate},
    reading::LastGood,
    suggest::nearest,
    value::{Limit, Mode, OnLimit, Setting, Terms, parse_bucket, parse_cidr},
};
