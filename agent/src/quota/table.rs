//! A hash table whose texts lie elsewhere, and which reads what it is asked piece by piece.

use super::wildcard::{Parts, joined_is, word};

/// A number that stands for nothing.
pub(super) const NONE: u32 = u32::MAX;

/// From (parent, text) to a number. Nothing is added later.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Hash and number; [`NONE`] where there is none.
    places: Box<[(u32, u32)]>,
}

impl Table {
    /// Of (parent, text, number): each pair of parent and text once, no number [`NONE`].
    pub(super) fn new<'a>(entries: impl ExactSizeIterator<Item = (u32, &'a str, u32)>) -> Self {
        let size = (entries.len() * 2).next_power_of_two().max(2);
        let mut places = vec![(0, NONE); size];
        for (parent, text, id) in entries {
            let hash = hash(parent, [text, "", ""]);
            let mut at = hash as usize & (size - 1);
            while places.get(at).is_some_and(|(_, id)| *id != NONE) {
                at = (at + 1) & (size - 1);
            }
            if let Some(place) = places.get_mut(at) {
                *place = ((hash >> 32) as u32, id);
            }
        }
        Self { places: places.into() }
    }

    /// The number of a text that is given in parts. `entry` tells what stands for a number.
    pub(super) fn find<'a>(
        &self,
        parent: u32,
        parts: Parts<'_>,
        entry: impl Fn(u32) -> Option<(u32, &'a str)>,
    ) -> Option<u32> {
        let hash = hash(parent, parts);
        let mask = self.places.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        // It is half empty, so this ends.
        while let Some((tag, id)) = self.places.get(at).copied().filter(|(_, id)| *id != NONE) {
            if tag == (hash >> 32) as u32
                && entry(id).is_some_and(|(of, text)| of == parent && joined_is(parts, text))
            {
                return Some(id);
            }
            at = (at + 1) & mask;
        }
        None
    }
}

/// Over the joined text, eight bytes at a time, however it was cut. Nobody who asks puts anything into
/// the table, so it need not be keyed.
fn hash(parent: u32, parts: Parts<'_>) -> u64 {
    // A multiplication whose halves are folded reaches every bit from every bit.
    let mix = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
        (product >> 64) as u64 ^ product as u64
    };
    let (mut hash, mut waiting, mut bits) = (mix(0x243f_6a88_85a3_08d3, parent.into()), 0, 0);
    for chunk in parts.iter().flat_map(|part| part.as_bytes().chunks(8)) {
        let word = word(chunk);
        waiting |= word << bits;
        bits += 8 * chunk.len() as u32;
        if bits >= u64::BITS {
            hash = mix(hash, waiting);
            bits -= u64::BITS;
            // What did not fit: nothing, if all of the word did.
            waiting = word.checked_shr(8 * chunk.len() as u32 - bits).unwrap_or(0);
        }
    }
    mix(mix(hash, waiting), bits.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_is_found_however_it_was_cut(
            a in "[ab]{0,20}", b in "[abé]{0,20}", c in "[ab]{0,20}", other in "[ab]{0,3}",
        ) {
            let (whole, other) = (format!("{a}{b}{c}"), other + "z");
            let texts = [whole.as_str(), &other];
            let table = Table::new(texts.iter().copied().zip(0..).map(|(text, id)| (7, text, id))
                .collect::<Vec<_>>().into_iter());
            let find = |parent, parts| {
                table.find(parent, parts, |id| texts.get(id as usize).map(|text| (7, *text)))
            };
            prop_assert_eq!(find(7, [&a, &b, &c]), Some(0));
            prop_assert_eq!(find(7, [&other, "", ""]), Some(1));
            prop_assert_eq!(find(8, [&a, &b, &c]), None);
            prop_assert_eq!(find(7, [&a, &b, &(c.clone() + "y")]), None);
            prop_assert_eq!(hash(7, [&a, &b, &c]), hash(7, [&whole, "", ""]));
        }
    }
}
