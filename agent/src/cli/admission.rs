//! `weir admission`: the policies by which an API server refuses annotations that cannot be read.

use std::io::Write;

use clap::Args;

use super::{Exit, error::CliError};
use crate::kube;

/// Print a ValidatingAdmissionPolicy that refuses annotations which no agent could read
///
/// For `kubectl apply -f -`, where the chart is not used. It needs Kubernetes 1.30.
#[derive(Debug, Args)]
pub(super) struct Admission {}

impl Admission {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        out.write_all(kube::admission_policies().as_bytes())?;
        Ok(Exit::Ok)
    }
}
