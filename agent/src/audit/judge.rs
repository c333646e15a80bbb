//! What differs between the connections that are tracked and the sockets that there are, and what
//! follows from that. Decides only; whoever acts on it finds out whether it still is so.

use std::collections::{BTreeMap, HashSet};

use weir_common::{
    addr::Addr,
    layout::{Block, Direction},
};

use super::sockets::Sockets;
use crate::datapath::{Connection, Key, Seen, counts_in};

/// Connections that had no socket at the last look: their place, word, and what changes in use.
pub(super) type Suspects = BTreeMap<u32, (u64, Seen)>;

/// What a namespace showed.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub(super) sockets: Sockets,
    /// Every address of the namespace.
    pub(super) addresses: HashSet<Addr>,
}

/// A connection that nobody tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    pub(super) key: Key,
    pub(super) direction: Direction,
    pub(super) cookie: u64,
}

/// Tracked connections, judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Judged {
    /// Without a socket twice in a row, and unused meanwhile.
    pub(super) gone: Vec<Connection>,
    /// Without a socket now.
    pub(super) suspects: Suspects,
    /// Without a socket, but none can be expected.
    pub(super) unjudged: u64,
    /// All of them.
    pub(super) tracked: u64,
}

/// Judges a workload's tracked connections. `before` are the suspects of its last audit.
pub(super) fn judge(
    tracked: impl IntoIterator<Item = Connection>,
    look: &Look,
    before: &Suspects,
) -> Judged {
    let mut judged = Judged::default();
    let mut without = Vec::new();
    for connection in tracked {
        judged.tracked += 1;
        if !look.sockets.connections.contains_key(&connection.key) {
            without.push(connection);
        }
    }
    if without.is_empty() {
        return judged;
    }
    let keys = || look.sockets.connections.keys();
    let locals: HashSet<_> = keys().map(|key| (key.local, key.local_port)).collect();
    let remotes: HashSet<_> = keys().map(|key| (key.remote, key.remote_port)).collect();
    for connection in without {
        let Connection { key, direction, .. } = connection;
        let expected = look.addresses.contains(&key.local)
            && match direction {
                // The socket of a connection whose port was translated has another key here.
                Direction::Ingress => {
                    look.sockets.listens(key.local, key.local_port)
                        && !remotes.contains(&(key.remote, key.remote_port))
                }
                Direction::Egress => !locals.contains(&(key.local, key.local_port)),
            };
        let state = (connection.word, connection.seen);
        if !expected {
            judged.unjudged += 1;
        } else if before.get(&connection.place) == Some(&state) {
            judged.gone.push(connection);
        } else {
            judged.suspects.insert(connection.place, state);
        }
    }
    judged
}

/// The connections of a workload that its rules would count and that are not tracked.
pub(super) fn missing<'a>(
    look: &Look,
    own: &HashSet<Addr>,
    rules: impl Fn(Direction, u16) -> Option<&'a Block>,
    is_tracked: impl Fn(&Key) -> bool,
) -> Vec<Missing> {
    let mut missing = Vec::new();
    for (key, socket) in &look.sockets.connections {
        // What stays in the namespace never meets the workload's interface.
        if !own.contains(&key.local) || look.addresses.contains(&key.remote) {
            continue;
        }
        if socket.adoptable().is_none() {
            continue;
        }
        // Sockets do not tell who opened a connection; somebody who listens there does.
        let (direction, port) = if look.sockets.listens(key.local, key.local_port) {
            (Direction::Ingress, key.local_port)
        } else {
            (Direction::Egress, key.remote_port)
        };
        let Some(block) = rules(direction, port).filter(|block| block.tracked != 0) else {
            continue;
        };
        if !counts_in(block, key.remote).is_empty() && !is_tracked(key) {
            missing.push(Missing { key: *key, direction, cookie: socket.cookie });
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use weir_common::layout::{Rule, RuleKind};

    use super::*;

    const ESTABLISHED: u8 = 1;
    const FIN_WAIT1: u8 = 4;

    fn address(last: u8) -> Addr {
        IpAddr::from([10, 0, 0, last]).into()
    }

    fn key(local_port: u16, remote_port: u16) -> Key {
        Key { local: address(1), remote: address(2), local_port, remote_port }
    }

    fn connection(key: Key, direction: Direction) -> Connection {
        Connection { place: 9, word: 70, key, workload: 1, direction, seen: [0; 5] }
    }

    fn look(sockets: Sockets) -> Look {
        Look { sockets, addresses: [address(1)].into() }
    }

    fn block(kind: RuleKind) -> Block {
        let mut block = Block { count: 1, tracked: 1, ..Block::default() };
        block.rules[0] = Rule { kind: kind as u8, cell: 3, ..Rule::default() };
        block
    }

    #[test]
    fn a_connection_without_a_socket_is_gone_when_it_was_so_before_and_unused_meanwhile() {
        let inbound = connection(key(80, 5000), Direction::Ingress);
        let empty = look(Sockets::default().listening(Addr::default(), 80));
        let first = judge([inbound], &empty, &Suspects::new());
        assert_eq!((first.gone.len(), first.suspects.len(), first.tracked), (0, 1, 1));
        let second = judge([inbound], &empty, &first.suspects);
        assert_eq!((second.gone, second.suspects.len()), (vec![inbound], 0));
        for used in [
            Connection { word: 71, ..inbound },
            Connection { seen: [0, 1, 0, 0, 0], ..inbound },
            Connection { place: 10, ..inbound },
        ] {
            let second = judge([used], &empty, &first.suspects);
            assert_eq!((second.gone.len(), second.suspects.len()), (0, 1), "{used:?}");
        }
    }

    #[test]
    fn any_socket_with_the_same_ends_keeps_it() {
        let inbound = connection(key(80, 5000), Direction::Ingress);
        let suspects = Suspects::from([(9, (70, [0; 5]))]);
        let sockets = Sockets::default().listening(Addr::default(), 80);
        let judged = judge([inbound], &look(sockets.with(inbound.key, FIN_WAIT1, 1)), &suspects);
        assert_eq!(judged, Judged { tracked: 1, ..Judged::default() });
    }

    #[test]
    fn where_no_socket_can_be_expected_nothing_is_judged() {
        let suspects = Suspects::from([(9, (70, [0; 5]))]);
        let inbound = connection(key(80, 5000), Direction::Ingress);
        let outbound = connection(key(5000, 80), Direction::Egress);
        let listening = || Sockets::default().listening(Addr::default(), 80);
        let elsewhere = |connection: Connection| Connection {
            key: Key { local: address(7), ..connection.key },
            ..connection
        };
        let translated = |key| listening().with(key, ESTABLISHED, 1);
        let other = Key { remote: address(8), ..outbound.key };
        for (connection, sockets) in [
            // Nobody listens: forwarded, or the server is gone and nobody needs its room.
            (inbound, Sockets::default()),
            // The local end is no address of the namespace.
            (elsewhere(inbound), listening()),
            (elsewhere(outbound), listening()),
            // The client has a connection to another port here, the workload from the same port to
            // somebody else.
            (inbound, translated(key(15006, 5000))),
            (outbound, translated(other)),
        ] {
            let judged = judge([connection], &look(sockets), &suspects);
            assert_eq!((judged.unjudged, judged.gone.len()), (1, 0), "{connection:?}");
        }
        for connection in [inbound, outbound] {
            let judged = judge([connection], &look(listening()), &suspects);
            assert_eq!((judged.unjudged, judged.gone.len()), (0, 1), "{connection:?}");
        }
    }

    /// The directions of what is missing when these are the sockets.
    fn find(sockets: Sockets, block: &Block) -> Vec<Direction> {
        let own = [address(1)].into();
        let missing = missing(&look(sockets), &own, |_, _| Some(block), |_| false);
        missing.iter().map(|missing| missing.direction).collect()
    }

    #[test]
    fn a_listener_tells_who_opened_a_connection() {
        let load = block(RuleKind::Load);
        let sockets = || Sockets::default().with(key(80, 5000), ESTABLISHED, 1);
        let inbound = sockets().listening(Addr::default(), 80);
        assert_eq!(find(inbound, &load), [Direction::Ingress]);
        assert_eq!(find(sockets(), &load), [Direction::Egress]);
    }

    #[test]
    fn only_what_is_counted_and_passes_the_interface_is_missing() {
        let load = block(RuleKind::Load);
        let with =
            |key, state| Sockets::default().with(key, state, 1).listening(Addr::default(), 80);
        let at =
            |local, remote| Key { local: address(local), remote: address(remote), ..key(80, 5) };
        assert_eq!(find(with(at(1, 2), ESTABLISHED), &load).len(), 1);
        assert_eq!(find(with(at(1, 2), FIN_WAIT1), &load), []);
        assert_eq!(find(with(at(1, 1), ESTABLISHED), &load), []);
        assert_eq!(find(with(at(3, 2), ESTABLISHED), &load), []);
        assert_eq!(find(with(at(1, 2), ESTABLISHED), &block(RuleKind::Breaker)), []);
        assert_eq!(find(with(at(1, 2), ESTABLISHED), &Block { tracked: 0, ..load }), []);
        let look = look(with(at(1, 2), ESTABLISHED));
        let own = [address(1)].into();
        assert_eq!(missing(&look, &own, |_, _| Some(&load), |_| true), []);
        assert_eq!(missing(&look, &own, |_, _| None, |_| false), []);
        // Of the workload's end the local port counts, of others' the remote one.
        let asked = |direction, port| {
            assert_eq!((direction, port), (Direction::Ingress, 80));
            Some(&load)
        };
        assert_eq!(missing(&look, &own, asked, |_| false).len(), 1);
    }
}
