//! Which count a hit belongs to, as 128 bits.
//!
//! envoyproxy/ratelimit names a count `domain_key_value_…_start` (`src/limiter/cache_key.go`). The same
//! text, without the start of the window, is hashed here piece by piece, so that two descriptors
//! share a count exactly when they do there; but never across domains, whose names only need to be
//! glued differently there to meet. The window stands in the counter's word; its length is part of the
//! identity.
//!
//! Values come from the network, so the hash is keyed: two of std's SipHash with keys of this process.
//! Two counts meet with probability 2⁻¹²⁸ times their pairs, whoever chose the values.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};

use super::engine::Kind;

/// Names a count in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Chooses the place.
    pub(super) high: u64,
    /// Tells it from others there.
    pub(super) low: u64,
}

impl Identity {
    /// The name of nothing.
    pub(super) const NONE: Self = Self { high: 0, low: 0 };

    /// Where in a table it may stand: already a keyed hash.
    pub const fn place(self) -> u64 {
        self.high
    }

    /// The count of this kind of the same name.
    ///
    /// Kinds are few and nobody's choice, so they need no more than to be told apart.
    pub const fn of_kind(self, kind: Kind) -> Self {
        let kind = kind.encode().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { high: self.high ^ kind, low: self.low ^ kind.rotate_left(32) }
    }
}

/// The keys of this process.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    high: RandomState,
    low: RandomState,
}

impl Keys {
    /// Begins a name.
    pub fn start(&self) -> Name {
        let (high, low) = (self.high.build_hasher(), self.low.build_hasher());
        Name { high, low, waiting: [0; PIECE], length: 0 }
    }
}

/// Bytes that are hashed at once. Names are made of many short texts, and each call of a hasher costs more
/// than the bytes; most names are shorter than this.
const PIECE: usize = 128;

/// A name being written.
#[derive(Clone, Debug)]
pub struct Name {
    high: DefaultHasher,
    low: DefaultHasher,
    /// What was written and not hashed yet.
    waiting: [u8; PIECE],
    length: usize,
}

impl Name {
    /// Appends a text as it is: where one ends and the next begins is for the caller to say.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Appends bytes as they are. Pieces end where they are full, so they depend on the name alone and
    /// not on how it was cut.
    pub fn bytes(&mut self, mut bytes: &[u8]) {
        loop {
            let room = self.waiting.get_mut(self.length..).unwrap_or_default();
            let (now, rest) = bytes.split_at(room.len().min(bytes.len()));
            if let Some(room) = room.get_mut(..now.len()) {
                room.copy_from_slice(now);
            }
            self.length += now.len();
            if rest.is_empty() {
                return;
            }
            self.high.write(&self.waiting);
            self.low.write(&self.waiting);
            self.length = 0;
            bytes = rest;
        }
    }

    /// Appends an entry.
    pub fn entry(&mut self, key: &str, value: &str) {
        for part in [key, "_", value, "_"] {
            self.text(part);
        }
    }

    /// Appends something that no entry can be, like who asks.
    pub fn beside(&mut self, text: &str) {
        // No text in UTF-8 has this byte.
        self.bytes(&[0xff]);
        self.text(text);
    }

    /// The name.
    pub fn finish(mut self) -> Identity {
        let waiting = self.waiting.get(..self.length).unwrap_or_default();
        self.high.write(waiting);
        self.low.write(waiting);
        Identity { high: self.high.finish(), low: self.low.finish() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_its_text_however_it_was_cut(
            text in prop::collection::vec(any::<u8>(), 0..400),
            cuts in prop::collection::vec(0..400_usize, 0..8),
        ) {
            let keys = Keys::default();
            let mut whole = keys.start();
            whole.bytes(&text);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut pieces = keys.start();
            cuts.windows(2).for_each(|cut| pieces.bytes(&text[cut[0]..cut[1]]));
            let longer = { let mut longer = whole.clone(); longer.bytes(&[0]); longer };
            let whole = whole.finish();
            prop_assert_eq!(whole, pieces.finish());
            prop_assert_ne!(whole, longer.finish());
        }
    }
}
