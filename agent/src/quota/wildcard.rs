//! Texts in which `*` stands for anything.

/// A text that is given in three parts, so that nobody has to join them.
pub type Parts<'a> = [&'a str; 3];

/// A pattern: each `*` stands for any number of characters, and there is no way to write a `*` that
/// means itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wildcard {
    first: Box<str>,
    middle: Box<[Box<str>]>,
    /// `None` without any `*`: then the first is all.
    last: Option<Box<str>>,
}

impl Wildcard {
    /// Every text is a pattern.
    pub fn new(pattern: &str) -> Self {
        let mut parts = pattern.split('*').map(Box::from);
        let first = parts.next().unwrap_or_default();
        let mut middle: Vec<Box<str>> = parts.collect();
        let last = middle.pop();
        middle.retain(|part| !part.is_empty());
        Self { first, middle: middle.into(), last }
    }

    /// Whether the whole text fits: it starts with the first literal, ends with the last one, and
    /// has the others between them in order, none over another.
    pub fn matches(&self, text: Parts<'_>) -> bool {
        let text = Joined(text);
        let length = text.len();
        let Some(last) = &self.last else {
            return length == self.first.len() && text.has(0, &self.first);
        };
        let (mut from, Some(end)) = (self.first.len(), length.checked_sub(last.len())) else {
            return false;
        };
        if from > end || !text.has(0, &self.first) || !text.has(end, last) {
            return false;
        }
        // The leftmost place of each is as good as any other: it leaves the most for the rest.
        for part in &self.middle {
            let places = from..(end + 1).saturating_sub(part.len()).max(from);
            let Some(found) = places.into_iter().find(|at| text.has(*at, part)) else {
                return false;
            };
            from = found + part.len();
        }
        true
    }
}

/// Three parts, read as one text.
#[derive(Clone, Copy)]
struct Joined<'a>(Parts<'a>);

impl Joined<'_> {
    fn len(self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }

    /// Whether `literal` stands at this byte. Bytes will do: no character of UTF-8 has another's
    /// beginning inside.
    fn has(self, at: usize, literal: &str) -> bool {
        let (mut skip, mut rest) = (at, literal.as_bytes());
        for part in self.0 {
            let part = part.as_bytes();
            let Some(part) = part.get(skip..) else {
                skip -= part.len();
                continue;
            };
            skip = 0;
            let common = part.len().min(rest.len());
            let (head, tail) = rest.split_at(common);
            if !part.get(..common).is_some_and(|part| is_same(part, head)) {
                return false;
            }
            rest = tail;
        }
        rest.is_empty()
    }
}

/// Whether two texts of one length are the same. They are short, and calling the C library for each costs
/// more than comparing them.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.chunks(8).zip(other.chunks(8)).all(|(one, other)| word(one) == word(other))
}

/// Up to eight bytes as one word, the first lowest.
#[inline]
pub(super) fn word(bytes: &[u8]) -> u64 {
    match bytes.try_into() {
        Ok(bytes) => u64::from_le_bytes(bytes),
        Err(_) => bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// Whether three parts, joined, are this text.
pub(super) fn joined_is(parts: Parts<'_>, text: &str) -> bool {
    let parts = Joined(parts);
    parts.len() == text.len() && parts.has(0, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By all ways of cutting the text.
    fn fits(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| fits(rest, &text[skip..])),
            Some((byte, rest)) => text.first() == Some(byte) && fits(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn a_text_fits_if_there_is_any_way_to_cut_it(
            pattern in "[ab*é]{0,7}", a in "[abé]{0,4}", b in "[abé]{0,4}", c in "[abé]{0,4}",
        ) {
            let joined = format!("{a}{b}{c}");
            let expected = fits(pattern.as_bytes(), joined.as_bytes());
            prop_assert_eq!(Wildcard::new(&pattern).matches([&a, &b, &c]), expected);
            prop_assert!(joined_is([&a, &b, &c], &joined));
            prop_assert_eq!(joined_is([&a, &b, &c], &pattern), joined == pattern);
        }
    }
}
