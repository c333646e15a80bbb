//! What each BPF program costs: asks the kernel by loading them all, attaches nothing, and holds
//! the figures against the budget. Knows nothing of how the object was built.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    EbpfLoader,
    programs::{Program, ProgramError},
};

use crate::{host, say, stack};

/// The most instructions the verifier may have to walk. The kernel gives up at a million; 6.1 was seen
/// to walk four times as many as 6.18 for the same program, and half of a million stays in reserve.
const MAX_INSTRUCTIONS: u32 = 125_000;

/// The most stack, of the kernel's 512 bytes: it rounds every frame up, and we may not.
const MAX_STACK: u32 = 400;

/// What the kernel made of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    NotAsked,
    Refused,
    Loaded {
        /// What the verifier walked.
        instructions: u32,
        /// The machine code.
        bytes: u32,
    },
}

/// What one program costs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Figures {
    program: String,
    kernel: Kernel,
    stack: u32,
}

/// Measures every program of the object, prints one table, and fails above the budget.
pub(crate) fn measure(object: &Path) -> Result<()> {
    let elf = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let stacks = stack::scan(&elf)?;
    let mut kernel = BTreeMap::new();
    if host::is_root() {
        let logs = object.parent().context("the object lies in no folder")?;
        kernel = verify(&elf, logs)?;
    } else {
        say::step("build", "not root: the kernel's verifier was not asked, stack is all we know");
    }
    let figures: Vec<Figures> = stacks
        .into_iter()
        .map(|(program, stack)| {
            let kernel = kernel.get(&program).copied().unwrap_or(Kernel::NotAsked);
            Figures { program, kernel, stack }
        })
        .collect();
    print!("{}", table(&figures));
    let wrong: Vec<String> = figures.iter().flat_map(objections).collect();
    if !wrong.is_empty() {
        bail!("BPF programs cannot stay as they are:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn table(figures: &[Figures]) -> String {
    let head = ["program", "verifier instructions", "jited bytes", "stack bytes"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for Figures { program, kernel, stack } in figures {
        let (instructions, bytes) = match kernel {
            Kernel::NotAsked => ("-".to_owned(), "-".to_owned()),
            Kernel::Refused => ("refused".to_owned(), "-".to_owned()),
            Kernel::Loaded { instructions, bytes } => {
                (say::thousands(*instructions), say::thousands(*bytes))
            }
        };
        rows.push(vec![program.clone(), instructions, bytes, stack.to_string()]);
    }
    let (instructions, stack) = (say::thousands(MAX_INSTRUCTIONS), MAX_STACK.to_string());
    rows.push(vec!["(budget)".to_owned(), instructions, String::new(), stack]);
    say::table(&rows)
}

fn objections(Figures { program, kernel, stack }: &Figures) -> Vec<String> {
    let mut objections = Vec::new();
    match kernel {
        Kernel::Refused => objections.push(format!("{program}: the kernel refused it, see above")),
        Kernel::Loaded { instructions, .. } if *instructions > MAX_INSTRUCTIONS => {
            let (is, may) = (say::thousands(*instructions), say::thousands(MAX_INSTRUCTIONS));
            objections.push(format!("{program}: {is} verifier instructions, {may} at most"));
        }
        Kernel::Loaded { .. } | Kernel::NotAsked => {}
    }
    if *stack > MAX_STACK {
        objections.push(format!("{program}: {stack} bytes of stack, {MAX_STACK} at most"));
    }
    objections
}

/// Loads every program, with the object's own values of its globals. Why one was refused goes to
/// a file in `logs`, and its end to the screen.
fn verify(elf: &[u8], logs: &Path) -> Result<BTreeMap<String, Kernel>> {
    // Maps that are pinned by name would be shared with a running agent, and changed.
    let pins = Pins::new();
    let mut loader = EbpfLoader::new();
    if let Some(pins) = &pins {
        loader.default_map_pin_directory(&pins.0);
    }
    let mut ebpf = loader.load(elf).context("the kernel did not take the object's maps")?;
    let mut kernel = BTreeMap::new();
    for (name, program) in ebpf.programs_mut() {
        let figures = match load(program) {
            Ok(()) => cost(program)?,
            Err(error) => {
                report(name, &error, &logs.join(format!("{name}.log")))?;
                Kernel::Refused
            }
        };
        kernel.insert(name.to_owned(), figures);
    }
    Ok(kernel)
}

fn cost(program: &Program) -> Result<Kernel> {
    let info = program.info()?;
    let instructions = info
        .verified_instruction_count()
        .context("this kernel does not tell how many instructions it verified; Linux 5.16 does")?;
    Ok(Kernel::Loaded { instructions, bytes: info.size_jitted() })
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn report(name: &str, error: &ProgramError, file: &Path) -> Result<()> {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        say::step("build", format!("`{name}` cannot be loaded: {error}"));
        return Ok(());
    };
    let log = verifier_log.to_string();
    fs::write(file, &log).with_context(|| format!("cannot write {}", file.display()))?;
    say::step("build", format!("the kernel refused `{name}`: {io_error}"));
    for line in end_of(&log, 12) {
        say::note(line);
    }
    say::note(format!("all of it: {}", file.display()));
    Ok(())
}

/// The last lines of a text.
fn end_of(text: &str, count: usize) -> impl Iterator<Item = &str> {
    let lines = text.lines().count();
    text.lines().skip(lines.saturating_sub(count))
}

/// A folder for pins which goes when it is dropped. None where bpffs is not mounted: then only an
/// object that pins its maps by name would fail to load.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Option<Self> {
        let folder = Path::new("/sys/fs/bpf").join(format!("weir-measure-{}", process::id()));
        fs::create_dir(&folder).is_ok().then_some(Self(folder))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            say::note(format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(kernel: Kernel, stack: u32) -> Figures {
        Figures { program: "weir_tc".to_owned(), kernel, stack }
    }

    fn loaded(instructions: u32) -> Kernel {
        Kernel::Loaded { instructions, bytes: 1 }
    }

    #[test]
    fn the_budget_is_a_limit_that_may_be_reached() {
        assert!(objections(&figures(loaded(MAX_INSTRUCTIONS), MAX_STACK)).is_empty());
        assert_eq!(
            objections(&figures(loaded(MAX_INSTRUCTIONS + 1), MAX_STACK + 1)),
            [
                "weir_tc: 125 001 verifier instructions, 125 000 at most",
                "weir_tc: 401 bytes of stack, 400 at most"
            ]
        );
    }

    #[test]
    fn stack_is_held_against_the_budget_without_root_too() {
        assert!(objections(&figures(Kernel::NotAsked, 8)).is_empty());
        assert_eq!(objections(&figures(Kernel::NotAsked, 500)).len(), 1);
    }

    #[test]
    fn a_refused_program_is_in_the_table_and_fails_the_build() {
        let refused = figures(Kernel::Refused, 8);
        assert_eq!(objections(&refused).len(), 1);
        assert!(table(&[refused]).contains("refused"));
    }

    #[test]
    fn of_a_long_log_the_end_is_shown() {
        assert_eq!(end_of("a\nb\nc\n", 2).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(end_of("a", 2).collect::<Vec<_>>(), ["a"]);
    }
}
