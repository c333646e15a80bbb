//! Another kernel: a test, or a whole suite, that goes on inside a virtual machine.
//!
//! The machine is QEMU with software emulation, its disk an initramfs made of busybox, a few
//! kernel modules, the agent, the BPF object, Redis where this machine has it, and the test's own executable,
//! which is started again in there.
//! What it needs is named by the environment (`cargo xtask test` brings it, or says why it cannot).
//! It refuses to know what is tested.
//!
//! Time inside is the host's, so load works; speed is a tenth, so nothing can be measured.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, PipeReader, Write as _},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use weir::lab::skip;

use crate::{agent, testrun};

/// How long a test may take inside, the kernel's start included; and how long a suite may.
const PATIENCE: Duration = Duration::from_secs(240);
const PATIENCE_WITH_ALL: Duration = Duration::from_secs(900);
/// How long the kernel may take to start, and how often it is tried: under emulation a start hangs
/// now and then, before the kernel's first word.
const START: Duration = Duration::from_secs(60);
const STARTS: usize = 3;
/// How much of the console is shown when a test fails.
const LAST_LINES: usize = 80;
/// Megabytes of its memory. The initramfs takes its size twice while it is unpacked.
const MEMORY: &str = "2048";

/// Names the kernel to boot.
const KERNEL: &str = "WEIR_VM_KERNEL";
/// Set inside.
const INSIDE: &str = "WEIR_VM_INSIDE";
/// What the console says when the kernel has started, before its version.
const HERE: &str = "weir-vm: this is Linux ";
/// What the console says of each test that did not run inside, before its name and the reason.
const SKIPPED: &str = "weir-vm: skipped: ";
/// What the console says when the test is over, before its exit code.
const OVER: &str = "weir-vm: the test ended with ";

/// What a test inside puts before what it measured, for people to see outside.
pub const FIGURE: &str = "weir-vm: figure: ";

/// What Debian's cloud kernel has as modules and the lab needs.
const MODULES: [&str; 6] = ["veth", "sch_ingress", "cls_bpf", "tun", "sch_fq", "sch_netem"];

/// What goes on inside.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    /// The test that started the machine.
    test: &'a str,
    /// Whether it goes on itself, or all other tests of its executable run.
    others: bool,
}

impl Part<'_> {
    /// What selects it from its executable.
    fn arguments(self) -> String {
        // The harness knows a test without its crate.
        let test = self.test.split_once("::").map_or(self.test, |(_, name)| name);
        let how = if self.others { "--skip" } else { "--nocapture" };
        format!("--exact {how} {test}")
    }

    const fn patience(self) -> Duration {
        if self.others { PATIENCE_WITH_ALL } else { PATIENCE }
    }
}

/// Runs `work` in a virtual machine, or skips the test where there is none.
///
/// `test` is the test's name, as `module::name`, with its crate's name first.
pub fn inside(test: &str, work: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() { work() } else { outside(Part { test, others: false }) }
}

/// Runs all tests of this executable in a virtual machine, save this one, or skips it where there
/// is none.
pub fn all_others_inside(test: &str) {
    outside(Part { test, others: true });
}

fn outside(part: Part<'_>) {
    let test = part.test;
    if env::var_os(KERNEL).is_none() {
        let reason = env::var("WEIR_VM_LACKS");
        let reason = reason.as_deref().unwrap_or("run `cargo xtask test`");
        return skip(test, &format!("it boots another kernel: {reason}"));
    }
    let started = Instant::now();
    let (end, console) = boot(part);
    let verdict = console.iter().find_map(|line| line.split_once(OVER)).map(|(_, code)| code);
    // The machine is made for the tests, so nothing may be lacking in it.
    let skipped: Vec<_> = console.iter().filter_map(|line| line.strip_prefix(SKIPPED)).collect();
    if skipped.is_empty() && verdict.is_some_and(|code| code.trim() == "0") {
        // What the suite inside was like, and what it measured.
        let told = |line: &&String| ["test result: ", FIGURE].iter().any(|of| line.starts_with(of));
        let sums = console.iter().filter(told);
        sums.for_each(|line| println!("{line}"));
        println!("{test}: {:.1} s in the virtual machine", started.elapsed().as_secs_f64());
        return;
    }
    let why = match (verdict, end) {
        _ if !skipped.is_empty() => format!("it skipped {}", skipped.join("; ")),
        (Some(code), _) => format!("it ended with {code}"),
        (None, Some(status)) => format!("the virtual machine ended before it ({status})"),
        (None, None) if !has_started(&console) => {
            format!("the kernel did not start within {} s, {STARTS} times", START.as_secs())
        }
        (None, None) => format!("it did not end within {} s", part.patience().as_secs()),
    };
    let last = &console[console.len().saturating_sub(LAST_LINES)..];
    panic!("{test}, in the virtual machine: {why}; the console's end:\n{}", last.join("\n"));
}

/// Starts the machine and waits for its end, `None` if that does not come; with all that its
/// console said.
fn boot(part: Part<'_>) -> (Option<ExitStatus>, Vec<String>) {
    let kernel = named(KERNEL);
    // Two machines on one host would starve each other.
    let lock = File::create(kernel.with_file_name("machine.lock")).expect("make a lock file");
    lock.lock().expect("wait for another machine's end");
    let disk = Disk::new(kernel.with_file_name("initramfs"), part);
    let mut tries = 1;
    loop {
        let (console, machine_end) = io::pipe().expect("make a pipe");
        let machine = Machine::start(&kernel, &disk, machine_end);
        let (end, console) = watch(machine, console, part.patience());
        if end.is_some() || has_started(&console) || tries == STARTS {
            return (end, console);
        }
        println!("{}: the virtual machine did not start; once more", part.test);
        tries += 1;
    }
}

/// Listens to a machine until it ends, or until it takes too long, and then ends it.
fn watch(
    mut machine: Machine,
    console: PipeReader,
    patience: Duration,
) -> (Option<ExitStatus>, Vec<String>) {
    let started = Instant::now();
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            // Nobody listens to a machine that took too long.
            let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    });
    let mut console = Vec::new();
    loop {
        let patience = if has_started(&console) { patience } else { START };
        match lines.recv_timeout(patience.saturating_sub(started.elapsed())) {
            Ok(line) => console.push(line),
            Err(RecvTimeoutError::Timeout) => return (None, console),
            Err(RecvTimeoutError::Disconnected) => {
                return (Some(machine.0.wait().expect("wait for QEMU")), console);
            }
        }
    }
}

fn has_started(console: &[String]) -> bool {
    console.iter().any(|line| line.contains(HERE))
}

/// A file that the environment names.
fn named(variable: &str) -> PathBuf {
    let Some(path) = env::var_os(variable).map(PathBuf::from) else {
        panic!("{variable} is not set: run `cargo xtask test`");
    };
    assert!(path.exists(), "{variable} names {}, which is not there", path.display());
    path
}

/// A program of this machine.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A running QEMU, killed on drop.
struct Machine(Child);

impl Machine {
    fn start(kernel: &Path, disk: &Disk, console: io::PipeWriter) -> Self {
        let mut command = Command::new(named("WEIR_VM_QEMU"));
        command
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", MEMORY])
            // Time is short, and mitigations are for guests with secrets.
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(&disk.0)
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("share the console"))
            .stderr(console);
        // SAFETY: one system call, which is async-signal-safe, and its error is a bare number.
        unsafe { command.pre_exec(die_with_parent) };
        Self(command.spawn().expect("start QEMU"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A test run that is killed leaves no machine behind.
fn die_with_parent() -> io::Result<()> {
    // SAFETY: numbers only.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An initramfs in a file, removed on drop.
struct Disk(PathBuf);

impl Disk {
    fn new(path: PathBuf, part: Part<'_>) -> Self {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.expect("make the initramfs");
        // From here on it is removed.
        let disk = Self(path);
        let mut archive = Archive { file, packed: BTreeSet::new() };
        for directory in ["dev", "proc", "sys", "tmp", "run", "root"] {
            archive.directory(Path::new(directory));
        }
        archive.file("bin/busybox", &named("WEIR_VM_BUSYBOX"));
        archive.program("bin/weir", &agent::binary());
        archive.program("bin/test", &env::current_exe().expect("find this executable"));
        if let Some(redis) = on_path("redis-server") {
            archive.program("bin/redis-server", &redis);
        }
        archive.file("lib/weir-ebpf", &testrun::object());
        let modules = modules(&named("WEIR_VM_MODULES"));
        for (name, path) in &modules {
            archive.file(&format!("lib/modules/{name}.ko"), path);
        }
        let modules: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
        archive.entry("init", 0o100_755, init(part, &modules).as_bytes());
        archive.entry("TRAILER!!!", 0, &[]);
        disk
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What the kernel starts.
fn init(part: Part<'_>, modules: &[&str]) -> String {
    let arguments = part.arguments();
    let modules = modules.join(" ");
    format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin HOME=/root\n\
         /bin/busybox --install -s /bin\n\
         echo '{HERE}'$(uname -r)\n\
         mount -t devtmpfs dev /dev\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t tmpfs tmp /tmp\n\
         mount -t tmpfs run /run\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         for module in {modules}; do insmod /lib/modules/$module.ko; done\n\
         ip link set lo up\n\
         export {INSIDE}=1 WEIR_BIN=/bin/weir WEIR_EBPF_OBJECT=/lib/weir-ebpf\n\
         export WEIR_SKIP_FILE=/tmp/skipped\n\
         /bin/test {arguments} 2>&1\n\
         code=$?\n\
         [ $code = 0 ] || dmesg | tail -n 20\n\
         [ ! -s /tmp/skipped ] || sed 's/^/{SKIPPED}/' /tmp/skipped\n\
         echo '{OVER}'$code\n\
         poweroff -f\n"
    )
}

/// The modules to load, with their files. What is built into the kernel needs none.
fn modules(tree: &Path) -> Vec<(&'static str, PathBuf)> {
    let built_in = fs::read_to_string(tree.join("modules.builtin")).unwrap_or_default();
    let mut found = Vec::new();
    for module in MODULES {
        let file = format!("{module}.ko");
        if built_in.lines().any(|line| line.ends_with(&format!("/{file}"))) {
            continue;
        }
        let path = find(&tree.join("kernel"), &file);
        let path = path.unwrap_or_else(|| panic!("there is no {file} in {}", tree.display()));
        found.push((module, path));
    }
    found
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if entry.file_name() == name {
            return Some(path);
        }
    }
    None
}

/// A cpio archive of the "newc" kind, which is what kernels unpack
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive {
    file: File,
    /// What is in it, so that two programs share a library.
    packed: BTreeSet<PathBuf>,
}

impl Archive {
    /// Packs a program and the libraries that it is linked with, where it looks for them.
    fn program(&mut self, name: &str, path: &Path) {
        self.file(name, path);
        let ldd = Command::new("ldd").arg(path).output().expect("start ldd");
        let libraries = String::from_utf8_lossy(&ldd.stdout);
        // `libc.so.6 => /lib/libc.so.6 (0x...)`, `/lib64/ld-linux.so.2 (0x...)`; for what is
        // linked statically it says so and fails.
        for line in libraries.lines() {
            assert!(!line.contains("not found"), "a library of {}: {line}", path.display());
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.file(library.trim_start_matches('/'), Path::new(library));
            }
        }
    }

    fn file(&mut self, name: &str, path: &Path) {
        if !self.packed.insert(name.into()) {
            return;
        }
        let data = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.entry(name, 0o100_755, &data);
    }

    /// Makes a folder and those above it, once each.
    fn directory(&mut self, path: &Path) {
        if path.as_os_str().is_empty() || !self.packed.insert(path.to_owned()) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.record(path, 0o040_755, &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        let name = Path::new(name);
        if let Some(parent) = name.parent() {
            self.directory(parent);
        }
        self.record(name, mode, data);
    }

    fn record(&mut self, name: &Path, mode: u32, data: &[u8]) {
        let name = name.to_str().expect("a name in UTF-8");
        let (size, name_size) = (data.len(), name.len() + 1);
        // Inode (any number, with one link), mode, owner, group, links, time; then the device's
        // numbers and the node's, and a checksum that this kind does not have.
        let mut record = format!("070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}", 0, 0, 0, 1, 0);
        record += &format!("{size:08x}{:032x}{name_size:08x}{:08x}{name}\0", 0, 0);
        let mut record = record.into_bytes();
        pad(&mut record);
        record.extend_from_slice(data);
        pad(&mut record);
        self.file.write_all(&record).expect("write the initramfs");
    }
}

/// Names and data end at a multiple of four bytes.
fn pad(record: &mut Vec<u8>) {
    record.resize(record.len().next_multiple_of(4), 0);
}
