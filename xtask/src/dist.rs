//! Makes releases: a tarball and a Debian package under `dist/`, the same bytes each time from
//! the same commit and compilers.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    files::{self, Item, Sources},
    glibc, host, say,
    workspace::{Workspace, read, run},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Makes both. The BPF object has been built.
pub(crate) fn dist(workspace: &Workspace) -> Result<()> {
    let time = commit_time(workspace);
    let weir = build(workspace)?;
    let stage = Stage::new(workspace)?;
    let weir = strip(&weir, &stage.0)?;
    let glibc = glibc::needed(&fs::read(&weir)?)?;
    match glibc {
        Some((major, minor)) => say::note(format!("weir needs glibc {major}.{minor} or newer")),
        None => say::note("weir is static and needs no glibc"),
    }
    let sources = Sources { root: &workspace.root, weir: &weir };
    let dist = workspace.root.join("dist");
    fs::create_dir_all(&dist)?;

    let tarball = tarball(&sources, &stage.0, &dist, time)?;
    say::step("dist", tarball.display());
    if host::has_command("dpkg-deb") {
        let deb = deb(&sources, &stage.0, &dist, time, glibc)?;
        say::step("dist", deb.display());
    } else {
        say::step("dist", "no .deb: dpkg-deb is not on this machine");
    }
    Ok(())
}

/// Builds weir for release elsewhere: without this machine's paths in it, and static if the
/// target for that is installed. In a target folder of its own, because the flags differ.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let sysroot = read(Command::new("rustc").args(["--print", "sysroot"]))?;
    let musl = format!("{}-unknown-linux-musl", env::consts::ARCH);
    let is_static = Path::new(sysroot.trim()).join("lib/rustlib").join(&musl).is_dir();
    let target = workspace.target.join("dist");

    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let mut flags = vec![format!("--remap-path-prefix={}=weir", workspace.root.display())];
    flags.extend(home.map(|home| format!("--remap-path-prefix={}=cargo", home.display())));

    let mut command = workspace.cargo();
    command.args(["build", "--release", "--package", "weir", "--locked", "--target-dir"]);
    command.arg(&target).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // The build script hands the object on by its full path, which must not vary either.
    command.env("WEIR_EBPF_OBJECT", workspace.ebpf_object());
    let folder = if is_static {
        say::step("dist", format!("building weir, static, for {musl}"));
        command.args(["--target", &musl]);
        target.join(&musl)
    } else {
        say::step("dist", format!("building weir with this machine's glibc ({musl} is not there)"));
        target
    };
    run(&mut command)?;
    Ok(folder.join("release/weir"))
}

/// A copy of the binary without debug information.
fn strip(weir: &Path, stage: &Path) -> Result<PathBuf> {
    let stripped = stage.join("weir");
    let mut command = Command::new("strip");
    command.arg("--strip-debug").arg("-o").arg(&stripped).arg(weir);
    if !host::has_command("strip") {
        say::note("`strip` is not on this machine: weir keeps its debug information");
        return Ok(weir.to_owned());
    }
    run(&mut command)?;
    Ok(stripped)
}

/// The age of everything in a release: SOURCE_DATE_EPOCH if the packager sets it, else the
/// commit's; without either, a date that archives of all kinds can hold.
fn commit_time(workspace: &Workspace) -> Duration {
    let given = env::var("SOURCE_DATE_EPOCH").ok();
    let commit = || {
        let mut git = Command::new("git");
        git.current_dir(&workspace.root).args(["log", "-1", "--format=%ct"]);
        read(&mut git).ok()
    };
    let seconds = given.or_else(commit).and_then(|text| text.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(315_532_800))
}

fn tarball(sources: &Sources<'_>, stage: &Path, dist: &Path, time: Duration) -> Result<PathBuf> {
    let name = format!("weir-{VERSION}-linux-{}", env::consts::ARCH);
    let items = sources.tarball(&name);
    let root = stage.join("tar");
    files::place(&items, &root, Some(time))?;
    let tar = stage.join("weir.tar");
    let mut command = Command::new("tar");
    command
        .args(["--create", "--format=ustar", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{}", time.as_secs()))
        .arg("--file")
        .arg(&tar)
        .arg("--directory")
        .arg(&root)
        // In the order of the list, not of the folder.
        .args(items.iter().map(|item| &item.to));
    run(&mut command)?;
    // Without a name and a time in the header.
    run(Command::new("gzip").args(["--no-name", "--best", "--force"]).arg(&tar))?;
    let to = dist.join(format!("{name}.tar.gz"));
    fs::copy(stage.join("weir.tar.gz"), &to)
        .with_context(|| format!("cannot write {}", to.display()))?;
    Ok(to)
}

fn deb(
    sources: &Sources<'_>,
    stage: &Path,
    dist: &Path,
    time: Duration,
    glibc: Option<(u32, u32)>,
) -> Result<PathBuf> {
    let architecture = read(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let mut items = sources.deb()?;
    let kilobytes = size(&items)?.div_ceil(1024);
    items.push(Item::text(control(architecture, glibc, kilobytes), "DEBIAN/control", 0o644));
    items.push(Item::text(format!("/{}\n", files::SAMPLE), "DEBIAN/conffiles", 0o644));
    for script in ["postinst", "prerm", "postrm"] {
        let from = sources.root.join("deploy/debian").join(script);
        let text =
            fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
        items.push(Item::text(text, format!("DEBIAN/{script}"), 0o755));
    }
    let root = stage.join("deb");
    files::place(&items, &root, Some(time))?;
    let to = dist.join(format!("weir_{VERSION}_{architecture}.deb"));
    let mut command = Command::new("dpkg-deb");
    // Gives the archive, and the folders in it, that time at most.
    command.env("SOURCE_DATE_EPOCH", time.as_secs().to_string());
    command.args(["--root-owner-group", "-Zxz", "--build"]).arg(&root).arg(&to);
    read(&mut command)?;
    Ok(to)
}

fn size(items: &[Item]) -> Result<u64> {
    let mut bytes = 0;
    for item in items {
        bytes += match &item.content {
            files::Content::Of(from) => {
                fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?.len()
            }
            files::Content::Text(text) => text.len() as u64,
        };
    }
    Ok(bytes)
}

fn control(architecture: &str, glibc: Option<(u32, u32)>, kilobytes: u64) -> String {
    let depends = glibc.map_or_else(String::new, |(major, minor)| {
        format!("Depends: libc6 (>= {major}.{minor})\n")
    });
    // There is no address to write to, only a place to ask.
    let repository = env!("CARGO_PKG_REPOSITORY");
    format!(
        "Package: weir\n\
         Version: {VERSION}\n\
         Architecture: {architecture}\n\
         Maintainer: The Weir authors <{repository}>\n\
         Installed-Size: {kilobytes}\n\
         {depends}\
         Section: net\n\
         Priority: optional\n\
         Homepage: {repository}\n\
         Description: limits new connections in the kernel, for every service of a node\n \
         One agent per node protects each workload from overload: connections above a\n \
         rate are refused by BPF programs before they reach it. It enforces nothing\n \
         until /etc/weir/node.yaml says so.\n"
    )
}

/// A folder for what goes into archives, removed when dropped.
struct Stage(PathBuf);

impl Stage {
    fn new(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.target.join(format!("dist-stage-{}", std::process::id()));
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            say::note(format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_file_names_the_glibc_that_is_needed() {
        let control_text = control("amd64", Some((2, 34)), 10);
        assert!(control_text.contains("Depends: libc6 (>= 2.34)\nSection: net\n"));
        assert!(!control("amd64", None, 10).contains("Depends"));
    }

    #[test]
    fn continued_lines_of_the_description_are_indented() {
        let control_text = control("amd64", None, 10);
        let (_, description) = control_text.split_once("Description: ").unwrap();
        assert!(description.lines().skip(1).all(|line| line.starts_with(' ')));
        assert!(control_text.ends_with('\n'));
    }
}
