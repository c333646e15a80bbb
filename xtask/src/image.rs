//! Makes a container image under `dist/`: an OCI archive for this machine's architecture, and the
//! folder of files in it, for `deploy/Dockerfile`.
//!
//! It has the program and nothing else, but for the libraries that a program needs which is not
//! static: those of this machine, found as the loader finds them. `umoci` writes the archive; it is
//! unpacked from its Debian package and not installed.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    host,
    packages::{self, Closure},
    say,
    workspace::{Workspace, read},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROGRAM: &str = "usr/bin/weir";

/// The architecture, in the words of OCI (that is Go's).
fn architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Makes the image of a built program, and runs it out of the archive.
pub(crate) fn image(workspace: &Workspace, weir: &Path) -> Result<()> {
    let dist = workspace.root.join("dist");
    let architecture = architecture();
    let rootfs = dist.join(format!("rootfs-{architecture}"));
    remove(&rootfs)?;
    fill(&rootfs, weir)?;
    let umoci = umoci(workspace)?;
    let stage = workspace.target.join(format!("image-stage-{}", std::process::id()));
    let archive = dist.join(format!("weir-{VERSION}-linux-{architecture}.oci.tar"));
    let made =
        write(&umoci, &rootfs, &stage, &archive).and_then(|()| try_it(&umoci, &archive, &stage));
    remove(&stage)?;
    let said = made?;
    say::step("image", rootfs.display());
    say::step("image", format!("{}: {said}", archive.display()));
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn copy(from: &Path, root: &Path, to: &Path) -> Result<()> {
    let to = root.join(to.strip_prefix("/").unwrap_or(to));
    let folder = to.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?)
}

fn fill(rootfs: &Path, weir: &Path) -> Result<()> {
    copy(weir, rootfs, Path::new(PROGRAM))?;
    for library in libraries(&read(Command::new("ldd").arg(weir)).unwrap_or_default()) {
        copy(&library, rootfs, &library)?;
    }
    // Mount points: the root is read-only, and whoever mounts there need not make them.
    for folder in ["etc/weir", "run/weir", "sys/fs/bpf", "tmp"] {
        let folder = rootfs.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(())
}

/// The files in what ldd(1) prints; none for a static program. What has no file is the kernel's.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let found = line.split_once("=> ").map_or(line, |(_, found)| found);
        let path = found.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    ldd.lines().filter_map(path).collect()
}

fn umoci(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(installed) = host::which_all("umoci").into_iter().next() {
        return Ok(installed);
    }
    let folder = workspace.target.join("umoci");
    let program = folder.join("usr/bin/umoci");
    if !program.is_file() {
        say::note("unpacking umoci from its Debian package, for the archive");
        packages::unpack("umoci", Closure::Alone, &folder)?;
    }
    Ok(program)
}

/// As `image:tag` of a layout folder, which becomes the archive.
fn write(umoci: &Path, rootfs: &Path, stage: &Path, archive: &Path) -> Result<()> {
    let layout = stage.join("layout");
    fs::create_dir_all(stage).with_context(|| format!("cannot make {}", stage.display()))?;
    let image = format!("{}:{VERSION}", layout.display());
    read(Command::new(umoci).args(["init", "--layout"]).arg(&layout))?;
    read(Command::new(umoci).args(["new", "--image", &image]))?;
    // As root's files, whoever builds.
    read(
        Command::new(umoci).args(["insert", "--rootless", "--image", &image]).arg(rootfs).arg("/"),
    )?;
    read(Command::new(umoci).args(["config", "--image", &image]).args([
        "--config.entrypoint=weir",
        "--config.env=PATH=/usr/bin",
        "--os=linux",
        &format!("--architecture={}", architecture()),
        &format!("--config.label=org.opencontainers.image.version={VERSION}"),
        &format!("--config.label=org.opencontainers.image.source={}", env!("CARGO_PKG_REPOSITORY")),
    ]))?;
    read(Command::new(umoci).args(["gc", "--layout"]).arg(&layout))?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--owner=0", "--group=0", "--numeric-owner"]);
    read(tar.arg("--file").arg(archive).arg("--directory").arg(&layout).arg(".")).map(drop)
}

/// Unpacks the archive elsewhere and asks the program in it for its version.
fn try_it(umoci: &Path, archive: &Path, stage: &Path) -> Result<String> {
    if !host::is_root() {
        return Ok("not tried: changing the root is for root".to_owned());
    }
    let layout = stage.join("again");
    let bundle = stage.join("bundle");
    fs::create_dir_all(&layout)?;
    read(Command::new("tar").arg("--extract").arg("--file").arg(archive).arg("-C").arg(&layout))?;
    let image = format!("{}:{VERSION}", layout.display());
    read(Command::new(umoci).args(["unpack", "--image", &image]).arg(&bundle))?;
    let root = bundle.join("rootfs");
    let said = read(Command::new("chroot").arg(&root).args(["/usr/bin/weir", "--version"]))?;
    if said.trim() != format!("weir {VERSION}") {
        bail!("the program in the image says {said:?}");
    }
    Ok(format!("its program says `{}`", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_file() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                   \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(ldd), expected.map(PathBuf::from));
        assert!(libraries("\tstatically linked\n").is_empty());
    }
}
