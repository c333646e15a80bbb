//! The compiler for the BPF target: a rustc with the source of `core`, and a bpf-linker that
//! understands its bitcode. Finds what is there, chooses, and compiles a bpf-linker when asked.
//! Knows nothing of packages' states and of consent.
//!
//! Any rustc will do that is new enough and has `core`'s source beside it: rustup's nightly with
//! `rust-src`, or Debian's. Both are started by their path, so no rustup state is made or changed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    host, say,
    workspace::{Workspace, read, run},
};

/// The bpf-linker that setup compiles, and the LLVM it is compiled against.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
const LLVM: u32 = 22;
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The oldest rustc that the workspace's `rust-version` admits.
const FLOOR: (u32, u32) = minor(env!("CARGO_PKG_RUST_VERSION").as_bytes());

/// A rustc that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rust {
    /// Who made it, for people.
    origin: String,
    /// The folder with `bin/rustc`, `bin/cargo` and `lib/rustlib`.
    sysroot: PathBuf,
    release: String,
    llvm: u32,
    has_source: bool,
}

/// A bpf-linker that was found. A linker whose LLVM is linked statically does not tell which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    path: PathBuf,
    version: String,
    llvm: Option<u32>,
}

/// A rustc and a linker which go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    rust: Rust,
    linker: Linker,
}

/// What is lacking for a compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    pub(crate) rust: bool,
    pub(crate) linker: bool,
}

/// Looks for every compiler and linker on this machine and takes the first that go together.
pub(crate) fn find() -> Result<Compiler, Lack> {
    choose(&rusts(), &linkers())
}

/// LLVM reads the bitcode of its own and of older versions, so the linker's must not be older.
fn choose(rusts: &[Rust], linkers: &[Linker]) -> Result<Compiler, Lack> {
    let usable = |rust: &&Rust| rust.has_source && minor(rust.release.as_bytes()) >= FLOOR;
    for rust in rusts.iter().filter(usable) {
        let fits = |linker: &&Linker| linker.llvm.is_none_or(|llvm| llvm >= rust.llvm);
        if let Some(linker) = linkers.iter().find(fits) {
            return Ok(Compiler { rust: rust.clone(), linker: linker.clone() });
        }
    }
    // The linker that setup can compile is of this LLVM, so it must suit the rustc that is there.
    let rust = !rusts.iter().filter(usable).any(|rust| rust.llvm <= LLVM);
    let linker = !linkers.iter().any(|linker| linker.llvm.is_none_or(|llvm| llvm >= LLVM));
    // A newer rustc beside an older linker lacks a rustc by the rule above; never answer "nothing".
    Err(Lack { rust: rust || !linker, linker })
}

impl Compiler {
    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{} rustc {} with bpf-linker {} ({})",
            self.rust.origin,
            self.rust.release,
            self.linker.version,
            self.linker.path.display()
        )
    }

    /// The cargo command that compiles the BPF object of this workspace.
    pub(crate) fn build_command(&self, workspace: &Workspace) -> Command {
        let mut command = Command::new(self.rust.sysroot.join("bin/cargo"));
        command.current_dir(&workspace.root);
        command.args(["build", "--package", "weir-ebpf", "--release"]);
        command.args(["--target", crate::workspace::BPF_TARGET, "-Z", "build-std=core"]);
        command.arg("--target-dir").arg(workspace.ebpf_target());
        // What the host's toolchain and the shell say about Rust is not about this one.
        for name in [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            command.env_remove(name);
        }
        command.env("RUSTC", self.rust.sysroot.join("bin/rustc"));
        // Building `core` is an unstable option of cargo; Debian's compiler calls itself stable.
        command.env("RUSTC_BOOTSTRAP", "1");
        command.env("CARGO_ENCODED_RUSTFLAGS", self.flags(workspace).join("\x1f"));
        command
    }

    fn flags(&self, workspace: &Workspace) -> Vec<String> {
        let mut flags = vec![
            // BTF is made from debug information.
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("-Clinker={}", self.linker.path.display()),
            // v3 has 32-bit jumps and atomics that return the old value (Linux 5.12).
            "-Ctarget-cpu=v3".to_owned(),
            // aya-ebpf lays out registers and contexts by the machine that will run the program.
            format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        ];
        // BTF names source files; they should be the same wherever the checkout is.
        let home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
        for (from, to) in [(Some(workspace.root.clone()), "weir"), (home, "cargo")] {
            if let Some(from) = from {
                flags.push(format!("--remap-path-prefix={}={to}", from.display()));
            }
        }
        flags
    }
}

/// Where setup puts the bpf-linker that it compiles. The versions are part of the name, so that
/// a newer xtask does not take an old one for its own.
pub(crate) fn linker_root() -> PathBuf {
    host::cache_dir().join(format!("bpf-linker-{LINKER_VERSION}-llvm{LLVM}"))
}

/// Compiles bpf-linker into the cache; cargo's own lock there makes a second xtask wait.
pub(crate) fn compile_linker(workspace: &Workspace) -> Result<()> {
    let root = linker_root();
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    say::step("setup", format!("compiling bpf-linker {LINKER_VERSION} (once, a minute or two)"));
    let mut path = vec![PathBuf::from(LLVM_PREFIX).join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let mut command = workspace.cargo();
    command
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--quiet"])
        .args(["--no-default-features", "--features", &format!("llvm-{LLVM}")])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(root.join("build"))
        .env("PATH", env::join_paths(path)?)
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET");
    run(&mut command).context("bpf-linker did not compile")?;
    // Only the program is wanted; what it was made of is some hundred megabytes.
    fs::remove_dir_all(root.join("build")).context("cannot remove bpf-linker's build folder")
}

/// What to do on a machine where setup cannot install.
pub(crate) fn by_hand() -> Vec<String> {
    vec![
        "rustup toolchain install nightly --component rust-src".to_owned(),
        format!(
            "cargo install bpf-linker --version {LINKER_VERSION}   # with the LLVM it asks for"
        ),
    ]
}

/// Every rustc worth asking: rustup's nightlies, the newest name first, then the system's.
fn rusts() -> Vec<Rust> {
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    let mut nightlies: Vec<PathBuf> = rustup
        .and_then(|home| fs::read_dir(home.join("toolchains")).ok())
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("nightly"))
        .map(|entry| entry.path())
        .collect();
    nightlies.sort_by(|a, b| b.cmp(a));
    nightlies
        .iter()
        .map(|sysroot| ("rustup's nightly", sysroot.as_path()))
        .chain([("the system's", Path::new("/usr"))])
        .filter_map(|(origin, sysroot)| ask_rust(origin, sysroot))
        .collect()
}

fn ask_rust(origin: &str, sysroot: &Path) -> Option<Rust> {
    if !sysroot.join("bin/cargo").is_file() {
        return None;
    }
    let mut command = Command::new(sysroot.join("bin/rustc"));
    let version = read(command.arg("-vV").env_remove("LD_LIBRARY_PATH")).ok()?;
    let (release, llvm) = rustc_version(&version)?;
    Some(Rust {
        origin: origin.to_owned(),
        sysroot: sysroot.to_owned(),
        release,
        llvm,
        has_source: sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file(),
    })
}

/// Release and LLVM's major version, from `rustc -vV`.
fn rustc_version(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let release = field("release: ")?.to_owned();
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((release, llvm))
}

fn linkers() -> Vec<Linker> {
    let mut paths = host::which_all("bpf-linker");
    paths.push(linker_root().join("bin/bpf-linker"));
    paths.iter().filter_map(|path| ask_linker(path)).collect()
}

fn ask_linker(path: &Path) -> Option<Linker> {
    // A linker whose LLVM was removed does not start, and so is none.
    let version = read(Command::new(path).arg("--version")).ok()?;
    let libraries = read(Command::new("ldd").arg(path)).unwrap_or_default();
    Some(Linker {
        path: path.to_owned(),
        version: version.split_whitespace().last()?.to_owned(),
        llvm: llvm_of(&libraries),
    })
}

/// LLVM's major version among a program's libraries: `libLLVM.so.22.1`, `libLLVM-14.so.1`.
fn llvm_of(libraries: &str) -> Option<u32> {
    let (_, rest) = libraries.split_once("libLLVM")?;
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Major and minor of a version such as `1.97.0-nightly`.
const fn minor(version: &[u8]) -> (u32, u32) {
    let mut parts = [0; 2];
    let mut part = 0;
    let mut at = 0;
    while at < version.len() && part < 2 {
        match version[at] {
            digit @ b'0'..=b'9' => parts[part] = parts[part] * 10 + (digit - b'0') as u32,
            _ => part += 1,
        }
        at += 1;
    }
    (parts[0], parts[1])
}

/// Finds the compiler after setup did what it could.
pub(crate) fn find_now() -> Result<Compiler> {
    match find() {
        Ok(compiler) => Ok(compiler),
        Err(lack) => bail!(
            "there is still no {} for BPF; what works elsewhere is\n  {}",
            if lack.rust { "compiler" } else { "linker" },
            by_hand().join("\n  ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust(release: &str, llvm: u32, has_source: bool) -> Rust {
        Rust {
            origin: "a".to_owned(),
            sysroot: PathBuf::from("/r"),
            release: release.to_owned(),
            llvm,
            has_source,
        }
    }

    fn linker(path: &str, llvm: Option<u32>) -> Linker {
        Linker { path: PathBuf::from(path), version: "0.13.0".to_owned(), llvm }
    }

    #[test]
    fn the_first_rustc_with_source_and_the_first_linker_that_reads_it_are_taken() {
        let rusts = [rust("1.97.0-nightly", 22, false), rust("1.96.0", 22, true)];
        let linkers = [linker("/old", Some(21)), linker("/good", Some(22)), linker("/x", None)];
        let chosen = choose(&rusts, &linkers).unwrap();
        assert_eq!(chosen.rust.release, "1.96.0");
        assert_eq!(chosen.linker.path, PathBuf::from("/good"));
    }

    #[test]
    fn a_statically_linked_linker_is_trusted() {
        assert!(choose(&[rust("1.97.0-nightly", 23, true)], &[linker("/x", None)]).is_ok());
    }

    #[test]
    fn what_is_lacking_is_named() {
        let good = rust("1.96.0", 22, true);
        assert_eq!(choose(&[], &[]), Err(Lack { rust: true, linker: true }));
        assert_eq!(
            choose(std::slice::from_ref(&good), &[]),
            Err(Lack { rust: false, linker: true })
        );
        assert_eq!(
            choose(&[rust("1.80.0", 18, true)], &[linker("/l", Some(22))]),
            Err(Lack { rust: true, linker: false })
        );
        assert_eq!(
            choose(&[rust("1.99.0-nightly", 23, true)], &[linker("/l", Some(22))]),
            Err(Lack { rust: true, linker: false })
        );
    }

    #[test]
    fn a_missing_compiler_never_lacks_nothing() {
        for llvm in [18, 22, 23] {
            for linker_llvm in [None, Some(14), Some(22), Some(23)] {
                for source in [false, true] {
                    if let Err(lack) =
                        choose(&[rust("1.96.0", llvm, source)], &[linker("/l", linker_llvm)])
                    {
                        assert!(lack.rust || lack.linker);
                    }
                }
            }
        }
    }

    #[test]
    fn versions_are_read_from_what_the_tools_print() {
        let text = "rustc 1.97.0-nightly (e50 2026-05-19)\nbinary: rustc\nhost: x\n\
                    release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(rustc_version(text), Some(("1.97.0-nightly".to_owned(), 22)));
        assert_eq!(llvm_of("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1"), Some(22));
        assert_eq!(llvm_of("\tlibLLVM-14.so.1 => /usr/lib/libLLVM-14.so.1"), Some(14));
        assert_eq!(llvm_of("\tlibc.so.6"), None);
        assert_eq!(minor(b"1.97.0-nightly"), (1, 97));
        assert_eq!(minor(b"1.95"), (1, 95));
    }
}
