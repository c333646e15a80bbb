//! Brings what the suite needs to boot another kernel: Debian's cloud kernel with its modules, a
//! static busybox, and QEMU. All of it is unpacked into the target folder and nothing is
//! installed, so that no package of the machine has to give way. Booting is the tests' task.
//!
//! A machine that cannot have all this is no worse for it: the tests are told why, and skip.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    host::{self, Host},
    packages::{self, Closure},
    say,
    setup::Consent,
    workspace::{Workspace, read},
};

/// The package of the tests that need it.
pub(crate) const SUITE: &str = "weir-tests";

const KERNEL_META: &str = "linux-image-cloud-amd64";
const QEMU: &str = "qemu-system-x86_64";

/// Where everything is.
struct Files {
    /// What packages were unpacked into.
    unpacked: PathBuf,
    kernel: PathBuf,
    /// Starts the unpacked QEMU.
    qemu: PathBuf,
}

/// What tells the tests where everything is, or why it is not.
pub(crate) fn environment(
    workspace: &Workspace,
    consent: Consent,
    unwanted: bool,
) -> Vec<(&'static str, OsString)> {
    let reason = if unwanted {
        "--no-vm was given".to_owned()
    } else {
        match prepare(workspace, consent) {
            Ok(environment) => return environment.map(|(name, path)| (name, path.into())).into(),
            Err(error) => one_line(&error),
        }
    };
    say::step("test", format!("no other kernel is booted: {reason}"));
    vec![("WEIR_VM_LACKS", reason.into())]
}

/// An error as a reason in a list: of what a command wrote, its first line.
fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().next().unwrap_or_default().to_owned()
}

/// Makes sure of the files.
fn prepare(workspace: &Workspace, consent: Consent) -> Result<[(&'static str, PathBuf); 4]> {
    if env::consts::ARCH != "x86_64" {
        bail!("the kernel is for x86_64, and this machine is {}", env::consts::ARCH);
    }
    let folder = workspace.target.join("vm");
    let files = Files {
        unpacked: folder.join("unpacked"),
        kernel: folder.join("vmlinuz"),
        qemu: folder.join("qemu"),
    };
    let missing = missing(&files);
    if !missing.is_empty() {
        let list: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
        let list = list.join(", ");
        let host = Host::look();
        if consent.no_install {
            bail!("it needs {list} from Debian, and --no-install was given");
        }
        if !host.debian {
            bail!("it takes {list} from Debian's mirrors by apt-get, and this is {}", host.name);
        }
        say::step("test", format!("unpacking into {}:", files.unpacked.display()));
        for (package, why) in missing {
            say::note(format!("{package:<24}  {why}"));
            fetch(&files, package)?;
        }
    }
    let modules = modules(&files.unpacked)?;
    let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let qemu = host::which_all(QEMU).into_iter().next().unwrap_or(files.qemu);
    // Whether it finds its libraries here.
    read(Command::new(&qemu).arg("--version"))?;
    say::step("test", format!("the VM boots Linux {version}"));
    Ok([
        ("WEIR_VM_QEMU", qemu),
        ("WEIR_VM_KERNEL", files.kernel),
        ("WEIR_VM_MODULES", modules),
        ("WEIR_VM_BUSYBOX", files.unpacked.join("bin/busybox")),
    ])
}

/// The packages that were not unpacked yet, and what each is for.
fn missing(files: &Files) -> Vec<(&'static str, &'static str)> {
    let has = |file: &str| files.unpacked.join(file).is_file();
    let mut missing = Vec::new();
    if !files.kernel.is_file() {
        missing.push((KERNEL_META, "the kernel to boot, with its modules"));
    }
    if !has("bin/busybox") {
        missing.push(("busybox-static", "its user land"));
    }
    if !host::has_command(QEMU) && !files.qemu.is_file() {
        missing.push(("qemu-system-x86", "the machine"));
    }
    missing
}

fn fetch(files: &Files, package: &str) -> Result<()> {
    let unpacked = &files.unpacked;
    match package {
        KERNEL_META => {
            let image = |name: &str| name.starts_with("linux-image-");
            let kernel = packages::resolve_meta(KERNEL_META, image)?;
            packages::unpack(&kernel, Closure::Alone, unpacked)?;
            // Last, so that a kernel that is there means that its modules are.
            fs::copy(last_of(&unpacked.join("boot"), "vmlinuz-")?, &files.kernel)
                .context("cannot copy the kernel")?;
        }
        "qemu-system-x86" => {
            packages::unpack(package, Closure::WithDependencies, unpacked)?;
            let script = qemu_script(unpacked);
            fs::write(&files.qemu, script).context("cannot write the script that starts QEMU")?;
            fs::set_permissions(&files.qemu, fs::Permissions::from_mode(0o755))?;
        }
        _ => packages::unpack(package, Closure::Alone, unpacked)?,
    }
    Ok(())
}

/// Starts the unpacked QEMU with its own libraries and firmware.
fn qemu_script(unpacked: &Path) -> String {
    let at = unpacked.display();
    format!(
        "#!/bin/sh\n\
         u='{at}'\n\
         export LD_LIBRARY_PATH=\"$u/lib/x86_64-linux-gnu:$u/usr/lib/x86_64-linux-gnu\"\n\
         exec \"$u/usr/bin/{QEMU}\" -L \"$u/usr/share/qemu\" -L \"$u/usr/share/seabios\" \"$@\"\n"
    )
}

fn modules(unpacked: &Path) -> Result<PathBuf> {
    // Newer packages have moved their files under /usr.
    let usr = unpacked.join("usr/lib/modules");
    last_of(&if usr.is_dir() { usr } else { unpacked.join("lib/modules") }, "")
}

/// The entry of a folder whose name starts so; the last by name if there are several.
fn last_of(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.pop().with_context(|| format!("there is no {prefix}* in {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_reason_is_one_line() {
        let error = anyhow!("E: no route\nE: no file").context("`apt-get` failed");
        assert_eq!(one_line(&error), "`apt-get` failed: E: no route");
    }
}
