//! How many connections there are at once, in one word.
//!
//! A connection counts as a handshake until both ends know of it, then as established. Who closes an
//! established one says so; a handshake may be abandoned without a word (a forged SYN always is), so
//! handshakes are counted by the epoch they began in, and an epoch that is older than the last one is
//! forgotten as a whole. So a word returns to the truth by a look at the clock: nobody has to walk
//! anything, with or without an agent, and whoever opens the next connection does it.
//!
//! The word is `epoch:12 | previous:16 | current:16 | established:20`; of a source it is
//! `tag:20 | epoch:8 | previous:8 | current:8 | established:20` and shares a line with others.
//! Epochs last 8.6 s ([`EPOCH_SHIFT`]): a handshake counts for 8.6 to 17.2 s. A source has 255 that
//! began in one epoch at most, whatever its bound.
//!
//! CPUs read the clock before they change a word, so a word may be one epoch ahead of who reads it: it
//! stays what it is, and counts for its own epoch. Epochs come round after 9.8 hours, a source's after
//! 37 minutes: a word that was idle for just as long shows its last handshakes once more.
//!
//! # One source, two ways
//!
//! Two CPUs that meet a new source at once can open a way for it each, when a place falls idle between
//! their looks. Each counts its connection first, and then looks at the other ways: if all ways of the
//! source hold more than the bound, it takes the connection back and tries again. Of any connections
//! that were opened, the one counted last saw all others, so a source never has more than its bound,
//! however many ways it has. A connection that cannot be taken back in [`TRIES`] rounds is refused all
//! the same, and forgotten with its epoch.
//!
//! A source that was crowded out may have as many in the shared word, and its bound again once it has
//! a way of its own.

use crate::{
    way::{LINE, Line},
    word::{TRIES, Word},
};

/// An epoch is 2^33 ns.
pub const EPOCH_SHIFT: u32 = 33;

/// Most connections that can be counted.
pub const MAX_CONNECTIONS: u64 = (1 << 20) - 1;
/// Most handshakes that can be asked for: both epochs together may hold more.
pub const MAX_HANDSHAKES: u64 = (1 << 16) - 1;

/// The epoch of a time.
#[inline(always)]
pub const fn epoch(now_ns: u64) -> u64 {
    now_ns >> EPOCH_SHIFT
}

/// How many there may be at once. What is not limited stands at its maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections, handshakes among them; [`MAX_CONNECTIONS`] at most.
    pub connections: u64,
    /// Handshakes; [`MAX_HANDSHAKES`] at most.
    pub handshakes: u64,
}

/// Bits of a word's fields.
#[derive(Clone, Copy)]
struct Shape {
    epoch: u32,
    handshakes: u32,
}

const PLAIN: Shape = Shape { epoch: 12, handshakes: 16 };
const OF_SOURCE: Shape = Shape { epoch: 8, handshakes: 8 };
const ESTABLISHED: u32 = 20;
const TAG: u32 = 20;

#[inline(always)]
const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// A word, read at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Handshakes of the epoch before this one.
    pub previous: u64,
    /// Handshakes of this epoch.
    pub current: u64,
    /// Established connections.
    pub established: u64,
}

impl Load {
    /// Handshakes that are not complete.
    #[inline(always)]
    pub const fn handshakes(&self) -> u64 {
        self.previous + self.current
    }

    /// All connections.
    #[inline(always)]
    pub const fn connections(&self) -> u64 {
        self.handshakes() + self.established
    }

    /// The load of a word, and the epoch that it stands for: this one, or the next if a CPU with a
    /// newer time was here.
    #[inline(always)]
    const fn at(word: u64, shape: Shape, now: u64) -> (Self, u64) {
        let bits = shape.handshakes;
        let current = word >> ESTABLISHED & mask(bits);
        let previous = word >> (ESTABLISHED + bits) & mask(bits);
        let age = now.wrapping_sub(word >> (ESTABLISHED + 2 * bits)) & mask(shape.epoch);
        let (previous, current, epoch) = if age == 0 {
            (previous, current, now)
        } else if age == 1 {
            (current, 0, now)
        } else if age == mask(shape.epoch) && previous + current > 0 {
            (previous, current, now.wrapping_add(1))
        } else {
            (0, 0, now)
        };
        (Self { previous, current, established: word & mask(ESTABLISHED) }, epoch)
    }

    #[inline(always)]
    const fn read(word: u64, shape: Shape, now: u64) -> Self {
        Self::at(word, shape, now).0
    }

    #[inline(always)]
    const fn write(self, shape: Shape, epoch: u64) -> u64 {
        let bits = shape.handshakes;
        (epoch & mask(shape.epoch)) << (ESTABLISHED + 2 * bits)
            | self.previous << (ESTABLISHED + bits)
            | self.current << ESTABLISHED
            | self.established
    }

    /// One more handshake, if the bounds and the word's fields allow.
    #[inline(always)]
    const fn open(mut self, shape: Shape, bounds: Bounds) -> Result<Self, Opened> {
        if self.handshakes() >= bounds.handshakes || self.current == mask(shape.handshakes) {
            return Err(Opened::TooManyHandshakes);
        }
        if self.connections() >= bounds.connections {
            return Err(Opened::TooManyConnections);
        }
        self.current += 1;
        Ok(self)
    }

    /// What happened to one connection that began `age` epochs ago.
    #[inline(always)]
    const fn changed(mut self, change: Change, age: u64) -> Self {
        if matches!(change, Change::Established | Change::Abandoned) {
            // Who opened it may have had an older time than the word: then it stands in a later epoch,
            // and when it ends two epochs after its own, it counts for another.
            // Of an epoch that is forgotten nothing is left to take away.
            match age {
                1 if self.previous > 0 => self.previous -= 1,
                0 | 1 => self.current = self.current.saturating_sub(1),
                _ => {}
            }
        }
        match change {
            Change::Established | Change::Reopened => {
                if self.established < mask(ESTABLISHED) {
                    self.established += 1;
                }
            }
            Change::Closed => self.established = self.established.saturating_sub(1),
            Change::Abandoned => {}
        }
        self
    }
}

/// What came of opening a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Opened {
    /// It counts as a handshake.
    Opened,
    /// Too many handshakes are not complete.
    TooManyHandshakes,
    /// Too many connections are open.
    TooManyConnections,
    /// Too many others changed the word at once; nothing was counted.
    Contended,
}

/// What happens to a connection that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Change {
    /// Both ends know of it.
    Established = 1,
    /// It was refused or given up before that.
    Abandoned = 2,
    /// It was established, and is closed.
    Closed = 3,
    /// It was taken for closed, and is not; or it is older than whoever counts.
    Reopened = 4,
}

/// A load's word at a time.
#[inline(always)]
pub const fn read(word: u64, now_ns: u64) -> Load {
    Load::read(word, PLAIN, epoch(now_ns))
}

/// Counts one more handshake if the bounds allow.
#[inline(always)]
pub fn open<W: Word>(cell: &W, now_ns: u64, bounds: Bounds) -> Opened {
    for _ in 0..TRIES {
        match try_open(cell, now_ns, bounds) {
            Opened::Contended => {}
            opened => return opened,
        }
    }
    Opened::Contended
}

/// One attempt at [`open`].
#[inline(always)]
pub fn try_open<W: Word>(cell: &W, now_ns: u64, bounds: Bounds) -> Opened {
    let word = cell.load();
    let (load, epoch) = Load::at(word, PLAIN, epoch(now_ns));
    match load.open(PLAIN, bounds) {
        Ok(load) => match cell.compare_exchange(word, load.write(PLAIN, epoch)) {
            Ok(_) => Opened::Opened,
            Err(_) => Opened::Contended,
        },
        Err(opened) => opened,
    }
}

/// Whether [`open`] would certainly refuse, and how. Writes nothing.
#[inline(always)]
pub fn would_refuse(word: u64, now_ns: u64, bounds: Bounds) -> Option<Opened> {
    Load::read(word, PLAIN, epoch(now_ns)).open(PLAIN, bounds).err()
}

/// Counts what happened to a connection that was opened at `opened_ns`. `false` when too many others
/// changed the word at once: then it stays wrong until as many connections close.
#[inline(always)]
pub fn change<W: Word>(cell: &W, change: Change, opened_ns: u64, now_ns: u64) -> bool {
    (0..TRIES).any(|_| try_change(cell, change, opened_ns, now_ns))
}

/// One attempt at [`change`].
#[inline(always)]
pub fn try_change<W: Word>(cell: &W, change: Change, opened_ns: u64, now_ns: u64) -> bool {
    let opened = epoch(opened_ns);
    let word = cell.load();
    let (load, epoch) = Load::at(word, PLAIN, epoch(now_ns));
    let next = load.changed(change, epoch.wrapping_sub(opened)).write(PLAIN, epoch);
    cell.compare_exchange(word, next).is_ok()
}

/// The ways of a line of sources' loads; the last word is shared by those that find no way.
pub const WAYS: usize = LINE - 1;

/// The tag bits of a hash, never 0 and never 1: a used way is never 0, and 1 is the shared word's.
#[inline(always)]
pub const fn tag(hash: u64) -> u64 {
    let tag = hash >> (64 - TAG);
    if tag < 2 { tag + 2 } else { tag }
}

/// The shared word's tag.
pub const SHARED: u64 = 1;

/// What came of opening a source's connection, and where it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceOpened {
    /// What came of it.
    pub opened: Opened,
    /// The word of the line; [`WAYS`] for the shared one.
    pub way: usize,
}

/// Where a source's connections count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The word of the line; [`WAYS`] for the shared one.
    pub way: usize,
    /// Connections of the source in other ways.
    pub elsewhere: u64,
}

/// The first step of opening: the way that holds a source's connections, else one that holds none,
/// else the shared word. Writes nothing.
///
/// In the kernel each step is a function of its own: verified once, and not once for each way.
#[inline(always)]
pub fn place_for<L: Line>(line: &L, tag: u64, now_ns: u64) -> Place {
    let now = epoch(now_ns);
    let (mut own, mut free) = (WAYS, WAYS);
    let (mut here, mut all) = (0, 0);
    for index in 0..WAYS {
        let word = line.word(index).load();
        let connections = Load::read(word, OF_SOURCE, now).connections();
        if connections == 0 {
            if free == WAYS {
                free = index;
            }
        } else if word >> (64 - TAG) == tag {
            if own == WAYS {
                (own, here) = (index, connections);
            }
            all += connections;
        }
    }
    if own < WAYS {
        Place { way: own, elsewhere: all - here }
    } else {
        Place { way: free, elsewhere: 0 }
    }
}

/// A source's connections in other ways than this one.
#[inline(always)]
fn elsewhere<L: Line>(line: &L, way: usize, tag: u64, now: u64) -> u64 {
    let mut connections = 0;
    for index in 0..WAYS {
        let word = line.word(index).load();
        if index != way && word >> (64 - TAG) == tag {
            connections += Load::read(word, OF_SOURCE, now).connections();
        }
    }
    connections
}

/// The second step: one connection more in that place; and how many it holds then.
#[inline(always)]
pub fn open_in<L: Line>(
    line: &L,
    place: Place,
    tag: u64,
    now_ns: u64,
    connections: u64,
) -> (Opened, u64) {
    let now = epoch(now_ns);
    let owner = if place.way == WAYS { SHARED } else { tag };
    let word = line.word(place.way).load();
    let (load, epoch) = Load::at(word, OF_SOURCE, now);
    // A free way carries somebody else's past, of which nothing counts.
    if word >> (64 - TAG) != owner && load.connections() > 0 {
        return (Opened::Contended, 0);
    }
    let connections = connections.saturating_sub(place.elsewhere);
    let Ok(load) = load.open(OF_SOURCE, Bounds { connections, handshakes: MAX_HANDSHAKES }) else {
        return (Opened::TooManyConnections, 0);
    };
    let next = owner << (64 - TAG) | load.write(OF_SOURCE, epoch);
    match line.word(place.way).compare_exchange(word, next) {
        Ok(_) => (Opened::Opened, load.connections()),
        Err(_) => (Opened::Contended, 0),
    }
}

/// The third step, after a connection was counted in a way: whether the source's other ways hold more
/// than `room`. Then it must be taken back. Of two that count in two ways at once, the later sees the
/// other.
#[inline(always)]
pub fn is_too_much<L: Line>(line: &L, way: usize, tag: u64, now_ns: u64, room: u64) -> bool {
    way != WAYS && elsewhere(line, way, tag, epoch(now_ns)) > room
}

/// One attempt to count one more connection of a source. [`Opened::Contended`] when another changed
/// the line: try again.
#[inline(always)]
pub fn open_source<L: Line>(line: &L, tag: u64, now_ns: u64, connections: u64) -> SourceOpened {
    let place = place_for(line, tag, now_ns);
    let way = place.way;
    let (mut opened, here) = open_in(line, place, tag, now_ns, connections);
    let room = connections.saturating_sub(here);
    if opened == Opened::Opened && is_too_much(line, way, tag, now_ns, room) {
        // A failure leaves the handshake to its epoch.
        let _ = change_source(&line.word(way), tag, Change::Abandoned, now_ns, now_ns);
        opened = Opened::Contended;
    }
    SourceOpened { opened, way }
}

/// Whether [`open_source`] would certainly refuse. Writes nothing.
#[inline(always)]
pub fn would_refuse_source<L: Line>(line: &L, tag: u64, now_ns: u64, connections: u64) -> bool {
    refuses_in(line, place_for(line, tag, now_ns), now_ns, connections)
}

/// The second step of [`would_refuse_source`].
#[inline(always)]
pub fn refuses_in<L: Line>(line: &L, place: Place, now_ns: u64, connections: u64) -> bool {
    let load = Load::read(line.word(place.way).load(), OF_SOURCE, epoch(now_ns));
    let connections = connections.saturating_sub(place.elsewhere);
    load.open(OF_SOURCE, Bounds { connections, handshakes: MAX_HANDSHAKES }).is_err()
}

/// Counts what happened to a source's connection, in the word where it was opened. A word that has
/// another owner meanwhile forgot it.
#[inline(always)]
pub fn change_source<W: Word>(
    cell: &W,
    owner: u64,
    change: Change,
    opened_ns: u64,
    now_ns: u64,
) -> bool {
    (0..TRIES).any(|_| try_change_source(cell, owner, change, opened_ns, now_ns))
}

/// One attempt at [`change_source`].
#[inline(always)]
pub fn try_change_source<W: Word>(
    cell: &W,
    owner: u64,
    change: Change,
    opened_ns: u64,
    now_ns: u64,
) -> bool {
    let opened = epoch(opened_ns);
    let word = cell.load();
    if word >> (64 - TAG) != owner {
        return true;
    }
    let (load, epoch) = Load::at(word, OF_SOURCE, epoch(now_ns));
    let load = load.changed(change, epoch.wrapping_sub(opened));
    let next = owner << (64 - TAG) | load.write(OF_SOURCE, epoch);
    cell.compare_exchange(word, next).is_ok()
}

/// The established connections that a word holds, whosever load it is.
#[inline(always)]
pub const fn established(word: u64) -> u64 {
    word & mask(ESTABLISHED)
}

/// The word with so many established connections, whosever load it is; handshakes stay as they are.
pub const fn corrected(word: u64, established: u64) -> u64 {
    let most = mask(ESTABLISHED);
    word & !most | if established < most { established } else { most }
}

/// The tag of a source's word.
#[inline(always)]
pub const fn owner(word: u64) -> u64 {
    word >> (64 - TAG)
}

/// A source's load at a time, and its tag; `None` when the way is as good as absent.
pub const fn read_source(word: u64, now_ns: u64) -> Option<(u64, Load)> {
    let load = Load::read(word, OF_SOURCE, epoch(now_ns));
    if load.connections() == 0 { None } else { Some((owner(word), load)) }
}
