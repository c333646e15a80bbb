//! The node file: one YAML file that says what to protect on this node, and how.
//!
//! [`load`] is the only function that touches the world; [`read`] turns the text into a
//! [`NodeFile`], [`evaluate`] into what holds for each workload, and [`check`] into what
//! `weir check` prints. All of them go on past an error as far as sense can be made, and say for
//! each problem what holds meanwhile.

mod evaluate;
pub(crate) mod fields;
mod load;
mod node_file;
mod read;
mod report;
mod rls;
mod workloads;
mod xds;
pub(crate) mod yaml;

pub use self::{
    evaluate::{Evaluated, evaluate, evaluate_all},
    load::{LoadError, load},
    node_file::{
        Attach, Location, Namespace, Netns, NodeFile, Pace, PodLocation, Shield, ShieldMode,
        Uplink, Workload, XdpMode,
    },
    read::{Reading, read},
    report::{Report, check},
};
