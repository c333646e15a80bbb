//! Licences of dependencies: reads SPDX expressions and holds them against what a program under
//! MIT OR Apache-2.0 can be distributed with. Pure.

/// Licences that ask for no more than their text and names to be kept.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
];

/// Whether an SPDX expression leaves a choice that is allowed. Crates of old write `/` for OR.
pub(crate) fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words };
    parser.any().is_some_and(|allowed| allowed && parser.words.is_empty())
}

/// OR binds loosest, then AND, then WITH. None is what cannot be read.
struct Parser<'a> {
    words: &'a [&'a str],
}

impl<'a> Parser<'a> {
    fn take(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn accept(&mut self, word: &str) -> bool {
        let is_next = self.words.first() == Some(&word);
        if is_next {
            self.take();
        }
        is_next
    }

    fn any(&mut self) -> Option<bool> {
        let mut allowed = self.all()?;
        while self.accept("OR") {
            allowed |= self.all()?;
        }
        Some(allowed)
    }

    fn all(&mut self) -> Option<bool> {
        let mut allowed = self.one()?;
        while self.accept("AND") {
            allowed &= self.one()?;
        }
        Some(allowed)
    }

    fn one(&mut self) -> Option<bool> {
        if self.accept("(") {
            let allowed = self.any()?;
            return self.accept(")").then_some(allowed);
        }
        let licence = self.take()?;
        if matches!(licence, "OR" | "AND" | "WITH" | ")") {
            return None;
        }
        if self.accept("WITH") {
            let full = format!("{licence} WITH {}", self.take()?);
            return Some(ALLOWED.contains(&full.as_str()));
        }
        Some(ALLOWED.contains(&licence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_choice_is_enough() {
        assert!(is_allowed("MIT"));
        assert!(is_allowed("MIT OR Apache-2.0"));
        assert!(is_allowed("GPL-3.0-only OR MIT"));
        assert!(is_allowed("Unlicense/MIT"));
        assert!(is_allowed("Apache-2.0 WITH LLVM-exception OR GPL-2.0-only"));
    }

    #[test]
    fn of_joined_licences_all_must_be_allowed() {
        assert!(is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!is_allowed("MIT AND GPL-3.0-only"));
        assert!(!is_allowed("(MIT OR ISC) AND (GPL-2.0-only OR MPL-2.0)"));
        // AND binds tighter than OR.
        assert!(is_allowed("MIT OR ISC AND GPL-3.0-only"));
        assert!(!is_allowed("GPL-3.0-only WITH Classpath-exception-2.0"));
    }

    #[test]
    fn what_cannot_be_read_is_not_allowed() {
        for text in ["", "MIT OR", "(MIT", "MIT)", "OR MIT", "MIT Apache-2.0", "mine"] {
            assert!(!is_allowed(text), "{text:?}");
        }
    }
}
