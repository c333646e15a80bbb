//! Which glibc a binary needs: the newest version among the symbols that it imports.

use anyhow::{Context as _, Result};
use object::{Endianness, elf::FileHeader64, read::elf::FileHeader as _};

/// The newest glibc version that the ELF file asks for; none for a static binary.
pub(crate) fn needed(elf: &[u8]) -> Result<Option<(u32, u32)>> {
    let header = FileHeader64::<Endianness>::parse(elf).context("weir is no 64-bit ELF file")?;
    let endian = header.endian()?;
    let sections = header.sections(endian, elf)?;
    let Some((mut needs, strings)) = sections.gnu_verneed(endian, elf)? else {
        return Ok(None);
    };
    let strings = sections.strings(endian, elf, strings)?;
    let mut names = Vec::new();
    while let Some((_, mut versions)) = needs.next()? {
        while let Some(version) = versions.next()? {
            names.push(String::from_utf8_lossy(version.name(endian, strings)?).into_owned());
        }
    }
    Ok(newest(names.iter().map(String::as_str)))
}

fn newest<'a>(names: impl Iterator<Item = &'a str>) -> Option<(u32, u32)> {
    names
        .filter_map(|name| {
            let (major, rest) = name.strip_prefix("GLIBC_")?.split_once('.')?;
            let minor = rest.split('.').next()?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let names = ["GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.9", "GCC_3.0", "GLIBC_PRIVATE"];
        assert_eq!(newest(names.into_iter()), Some((2, 34)));
        assert_eq!(newest(["GCC_3.0"].into_iter()), None);
    }

    #[test]
    fn this_very_program_tells_what_it_needs() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needed = needed(&own).unwrap();
        assert_eq!(needed.is_some(), cfg!(target_env = "gnu"));
    }
}
