//! Remembering a handshake in one step: looking and claiming, as the hook does them one after the
//! other.

use weir_common::{
    handshake::{self, Known},
    way::Line,
};

/// The place that remembers this handshake, with its word.
pub(crate) fn candidate<L: Line>(line: &L, tag: u64, now_ns: u64) -> Option<(usize, u64)> {
    match handshake::look(line, tag, now_ns) {
        Known::Live(index, word) => Some((index, word)),
        Known::Free(_) | Known::Crowded => None,
    }
}

/// A place for a handshake that was just admitted.
pub(crate) fn claim<L: Line>(line: &L, tag: u64, now_ns: u64) -> Option<usize> {
    match handshake::look(line, tag, now_ns) {
        Known::Free(index) => handshake::claim(line, index, tag, now_ns).then_some(index),
        Known::Live(..) | Known::Crowded => None,
    }
}
