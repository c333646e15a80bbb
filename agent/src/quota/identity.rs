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
        Name { high: self.high.build_hasher(), low: self.low.build_hasher() }
    }
}

/// A name being written.
#[derive(Clone, Debug)]
pub struct Name {
    high: DefaultHasher,
    low: DefaultHasher,
}

impl Name {
    /// Appends a text as it is: where one ends and the next begins is for the caller to say.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.high.write(bytes);
        self.low.write(bytes);
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
    pub fn finish(&self) -> Identity {
        Identity { high: self.high.finish(), low: self.low.finish() }
    }
}
