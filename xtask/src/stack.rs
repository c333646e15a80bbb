//! How much stack a BPF program uses, read from its object file: the deepest byte below r10 that
//! each function touches, in whole words, summed along the deepest chain of calls. These are the
//! verifier's own figures. It allows 512 bytes, after rounding frames up a second time, to 16 or
//! 32 bytes with its version.
//!
//! The kernel would tell in its verifier log, but the loader drops the log of a program that
//! loads. The scan knows how LLVM makes addresses on the stack: it copies r10 and adds a constant,
//! and from there on stays inside the variable. Pointers that were spilled and come back are not
//! followed; they were made the same way before.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind,
};

const R10: u8 = 10;

/// One BPF instruction (a 64-bit load takes two).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Insn {
    code: u8,
    dst: u8,
    src: u8,
    off: i16,
    imm: i32,
}

impl Insn {
    const SIZE: usize = 8;

    fn decode(bytes: [u8; Self::SIZE]) -> Self {
        let [code, registers, off0, off1, imm @ ..] = bytes;
        // The two registers share a byte, in the order of the machine's bit fields.
        let (dst, src) = if cfg!(target_endian = "big") {
            (registers >> 4, registers & 15)
        } else {
            (registers & 15, registers >> 4)
        };
        let off = i16::from_ne_bytes([off0, off1]);
        Self { code, dst, src, off, imm: i32::from_ne_bytes(imm) }
    }

    fn class(self) -> u8 {
        self.code & 0x07
    }

    /// The register through which memory is read or written, if this does.
    fn base(self) -> Option<u8> {
        match self.class() {
            0x01 => Some(self.src),        // LDX
            0x02 | 0x03 => Some(self.dst), // ST, STX and the atomics
            _ => None,
        }
    }

    /// Whether this calls a function of the same object.
    fn is_local_call(self) -> bool {
        self.code == 0x85 && self.src == 1
    }

    /// Whether this is the first half of a 64-bit load, which may name a callback.
    fn is_wide_load(self) -> bool {
        self.code == 0x18
    }
}

/// The bytes of stack that a function's own instructions reach. The verifier keeps stack in slots
/// of 8 bytes.
fn frame(insns: &[Insn]) -> u32 {
    // What each register holds, as distance from r10, where that is known.
    let mut known: [Option<i64>; 16] = [None; 16];
    known[usize::from(R10)] = Some(0);
    let mut deepest = 0;
    let mut skip = false;
    for insn in insns {
        if std::mem::take(&mut skip) {
            continue;
        }
        if let Some(at) = insn.base().and_then(|base| known[usize::from(base)]) {
            deepest = deepest.min(at + i64::from(insn.off));
        }
        let dst = usize::from(insn.dst);
        match insn.code {
            0xbf => known[dst] = known[usize::from(insn.src)], // dst = src
            0x07 => {
                // dst += imm
                known[dst] = known[dst].map(|at| at + i64::from(insn.imm));
                deepest = deepest.min(known[dst].unwrap_or(0));
            }
            0x18 => {
                known[dst] = None;
                skip = true;
            }
            // A call leaves nothing in r0 to r5.
            0x85 => known[..6].fill(None),
            _ if matches!(insn.class(), 0x00 | 0x01 | 0x04 | 0x07) => known[dst] = None,
            _ => {}
        }
        known[usize::from(R10)] = Some(0);
    }
    u32::try_from(-deepest).map_or(u32::MAX, |bytes| bytes.next_multiple_of(8))
}

/// A place in the object: section and byte.
type Place = (usize, u64);

/// A function: what it uses itself, and whom it calls.
#[derive(Debug, Default, PartialEq, Eq)]
struct Function {
    name: String,
    frame: u32,
    calls: Vec<Place>,
}

/// The deepest stack below a function, itself included.
fn depth(
    functions: &BTreeMap<Place, Function>,
    entry: Place,
    chain: &mut Vec<Place>,
) -> Result<u32> {
    let Some(function) = functions.get(&entry) else {
        bail!("a call leads to section {} byte {}, where no function starts", entry.0, entry.1);
    };
    if chain.contains(&entry) {
        bail!("`{}` calls itself", function.name);
    }
    chain.push(entry);
    let mut below = 0;
    for call in &function.calls {
        below = below.max(depth(functions, *call, chain)?);
    }
    chain.pop();
    Ok(function.frame.saturating_add(below))
}

/// The stack that each program of an object file uses, in bytes, by the program's name.
pub(crate) fn scan(elf: &[u8]) -> Result<BTreeMap<String, u32>> {
    let file = object::File::parse(elf).context("the BPF object is no ELF file")?;
    let functions = functions(&file)?;
    let mut programs = BTreeMap::new();
    for (place, function) in &functions {
        let section = file.section_by_index(SectionIndex(place.0))?;
        // What is in .text is called by programs; every other section holds programs.
        if section.name()? != ".text" {
            let bytes = depth(&functions, *place, &mut Vec::new())?;
            programs.insert(function.name.clone(), bytes);
        }
    }
    Ok(programs)
}

fn functions(file: &object::File<'_>) -> Result<BTreeMap<Place, Function>> {
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let name = symbol.name().context("a function has no readable name")?.to_owned();
        let section = file.section_by_index(index)?;
        let body = section
            .data_range(symbol.address(), symbol.size())?
            .with_context(|| format!("`{name}` reaches beyond its section"))?;
        let (chunks, rest) = body.as_chunks::<{ Insn::SIZE }>();
        if !rest.is_empty() {
            bail!("`{name}` does not end with a whole instruction");
        }
        let insns: Vec<Insn> = chunks.iter().copied().map(Insn::decode).collect();
        let calls = calls(file, index, symbol.address(), &insns)?;
        functions
            .insert((index.0, symbol.address()), Function { name, frame: frame(&insns), calls });
    }
    Ok(functions)
}

/// Whom a function calls, or hands to the kernel as a callback: both run on top of its frame.
fn calls(
    file: &object::File<'_>,
    section: SectionIndex,
    start: u64,
    insns: &[Insn],
) -> Result<Vec<Place>> {
    let mut relocations = BTreeMap::new();
    for (offset, relocation) in file.section_by_index(section)?.relocations() {
        if let RelocationTarget::Symbol(symbol) = relocation.target() {
            relocations.insert(offset, symbol);
        }
    }
    let mut calls = Vec::new();
    for (number, insn) in insns.iter().enumerate() {
        let at = start + (number * Insn::SIZE) as u64;
        let target = relocations
            .get(&at)
            .map(|index| file.symbol_by_index(*index))
            .transpose()
            .context("a relocation names no symbol")?;
        if insn.is_local_call() {
            let (section, base) = match &target {
                // The distance is counted from the symbol, or from the section that it stands for.
                Some(symbol) => (
                    symbol.section_index().context("a call leads out of the object")?,
                    symbol.address(),
                ),
                None => (section, at + Insn::SIZE as u64),
            };
            let instructions = match target {
                Some(_) => i64::from(insn.imm) + 1,
                None => i64::from(insn.imm),
            };
            let to = base.wrapping_add_signed(instructions * Insn::SIZE as i64);
            calls.push((section.0, to));
        } else if insn.is_wide_load()
            && let Some(symbol) = target
            && let Some(section) = symbol.section_index()
            && file.section_by_index(section)?.kind() == object::SectionKind::Text
        {
            let to = symbol.address().wrapping_add_signed(i64::from(insn.imm));
            calls.push((section.0, to));
        }
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dst: u8, off: i16) -> Insn {
        Insn { code: 0x7b, dst, src: 1, off, imm: 0 }
    }

    fn load(src: u8, off: i16) -> Insn {
        Insn { code: 0x79, dst: 1, src, off, imm: 0 }
    }

    fn copy(dst: u8, src: u8) -> Insn {
        Insn { code: 0xbf, dst, src, ..Insn::default() }
    }

    fn add(dst: u8, imm: i32) -> Insn {
        Insn { code: 0x07, dst, imm, ..Insn::default() }
    }

    #[test]
    fn the_deepest_direct_access_counts() {
        assert_eq!(frame(&[]), 0);
        assert_eq!(frame(&[store(10, -4)]), 8);
        assert_eq!(frame(&[store(10, -8), load(10, -136), store(10, -16)]), 136);
    }

    #[test]
    fn an_address_handed_to_a_helper_counts() {
        let call = Insn { code: 0x85, imm: 1, ..Insn::default() };
        assert_eq!(frame(&[copy(2, 10), add(2, -64), call]), 64);
    }

    #[test]
    fn an_access_through_a_copy_of_the_stack_pointer_counts() {
        assert_eq!(frame(&[copy(6, 10), add(6, -32), copy(7, 6), store(7, -8), load(7, 16)]), 40);
    }

    #[test]
    fn pointers_to_elsewhere_do_not_count() {
        assert_eq!(frame(&[copy(2, 1), add(2, -64), store(2, -400)]), 0);
        // r2 was on the stack, and then a wide load and a call made it something else.
        let wide = Insn { code: 0x18, dst: 2, ..Insn::default() };
        assert_eq!(frame(&[copy(2, 10), add(2, -8), wide, Insn::default(), store(2, -400)]), 8);
        let call = Insn { code: 0x85, imm: 1, ..Insn::default() };
        assert_eq!(frame(&[copy(2, 10), add(2, -8), call, store(2, -400)]), 8);
    }

    #[test]
    fn instructions_are_decoded_as_the_kernel_lays_them_out() {
        // *(u64 *)(r10 - 0x88) = r4
        let insn = Insn::decode([0x7b, 0x4a, 0x78, 0xff, 0, 0, 0, 0]);
        assert_eq!(insn, Insn { code: 0x7b, dst: 10, src: 4, off: -136, imm: 0 });
    }

    fn function(name: &str, frame: u32, calls: &[Place]) -> Function {
        Function { name: name.to_owned(), frame, calls: calls.to_vec() }
    }

    #[test]
    fn frames_add_up_along_the_deepest_chain_of_calls() {
        let functions = BTreeMap::from([
            ((4, 0), function("program", 16, &[(2, 0), (2, 80)])),
            ((2, 0), function("shallow", 100, &[])),
            ((2, 80), function("middle", 40, &[(2, 160)])),
            ((2, 160), function("leaf", 72, &[])),
        ]);
        assert_eq!(depth(&functions, (4, 0), &mut Vec::new()).unwrap(), 128);
    }

    #[test]
    fn recursion_and_calls_into_nothing_are_errors() {
        let twice = BTreeMap::from([((1, 0), function("again", 8, &[(1, 0)]))]);
        let error = depth(&twice, (1, 0), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("`again` calls itself"));
        let lost = BTreeMap::from([((1, 0), function("lost", 8, &[(1, 64)]))]);
        assert!(depth(&lost, (1, 0), &mut Vec::new()).is_err());
    }
}
