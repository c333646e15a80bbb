//! Renders the chart into the kustomizations, so that both say the same. The chart is the truth; a
//! test compares.
//!
//! The first line of each rendered file is the command that makes it, for people, for this module
//! and for the test.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    kube_tools::Tools,
    say,
    workspace::{Workspace, read},
};

/// Where the kustomizations are; each may have one rendered file.
const KUSTOMIZATIONS: &str = "deploy/kustomize";
const RENDERED: &str = "weir.yaml";

/// Renders every file anew.
pub(crate) fn render(workspace: &Workspace, tools: &Tools) -> Result<()> {
    let folder = workspace.root.join(KUSTOMIZATIONS);
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path().join(RENDERED);
        if path.is_file() {
            let before = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let text = rendered(&workspace.root, &tools.helm, &before)
                .with_context(|| format!("cannot render {}", path.display()))?;
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            say::step("manifests", path.display());
        }
    }
    Ok(())
}

fn rendered(root: &Path, helm: &Path, before: &str) -> Result<String> {
    let first = before.lines().next().unwrap_or_default();
    let words = first
        .strip_prefix("# helm ")
        .context("its first line is no command: expected `# helm template ...`")?;
    let mut command = Command::new(helm);
    command.current_dir(root).args(words.split(' '));
    Ok(format!("{first}\n{}", read(&mut command)?))
}
