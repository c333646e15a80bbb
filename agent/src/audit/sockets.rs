//! The TCP sockets of a network namespace, asked of the kernel by `NETLINK_SOCK_DIAG`
//! (sock_diag(7), `include/uapi/linux/inet_diag.h`).
//!
//! Two dumps, one for each family: a socket of IPv6 that speaks IPv4 has mapped addresses, which is
//! how [`Addr`] holds those of IPv4, too. Connections in TIME_WAIT are over, and are not asked for.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
        setsockopt, socket, sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};
use weir_common::addr::Addr;

use crate::datapath::{HalfClosed, Key};

/// More sockets than this in one namespace are not looked through: twice what can be tracked.
const MOST: usize = 262_144;
/// A dump comes in pieces of 32 KiB at most.
const PIECE: usize = 64 * 1024;
/// Each piece is made while we wait.
const PATIENCE_SECONDS: i64 = 5;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
const MESSAGE: usize = 72;

/// States of `include/net/tcp_states.h`.
const ESTABLISHED: u8 = 1;
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;
/// Up to NEW_SYN_RECV and BOUND_INACTIVE; bit 0 is unused.
const ALL: u32 = 0x3ffe;

/// A socket of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    state: u8,
    /// What the kernel tells sockets apart by; never used again in one boot.
    pub(super) cookie: u64,
}

impl Socket {
    /// How an untracked connection is to be taken up. `None` for one that is not complete, and for
    /// one whose FIN is under way: nobody saw what would acknowledge it, and it is over soon.
    pub(super) const fn adoptable(self) -> Option<HalfClosed> {
        match self.state {
            ESTABLISHED => Some(HalfClosed::No),
            CLOSE_WAIT => Some(HalfClosed::Remote),
            FIN_WAIT2 => Some(HalfClosed::Local),
            _ => None,
        }
    }
}

/// The TCP sockets of a namespace, at a moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Sockets {
    pub(super) connections: HashMap<Key, Socket>,
    listeners: HashSet<(Addr, u16)>,
}

impl Sockets {
    /// All of the calling thread's namespace.
    pub(super) fn dump() -> io::Result<Self> {
        let mut sockets = Self::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            match sockets.dump_family(family as u8) {
                // A kernel without IPv6 has no such sockets.
                Err(error)
                    if family == AddressFamily::Inet6
                        && error.raw_os_error() == Some(libc::ENOENT) => {}
                result => result?,
            }
        }
        Ok(sockets)
    }

    fn dump_family(&mut self, family: u8) -> io::Result<()> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        setsockopt(&netlink, ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))?;
        let kernel = NetlinkAddr::new(0, 0);
        bind(netlink.as_raw_fd(), &kernel)?;
        sendto(netlink.as_raw_fd(), &request(family), &kernel, MsgFlags::empty())?;
        self.receive(&netlink)
    }

    fn receive(&mut self, netlink: &OwnedFd) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            // With MSG_TRUNC the length is the piece's own.
            let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?;
            let piece = buffer.get(..length).ok_or_else(|| bad("a piece is too long"))?;
            if self.read(piece)? == Progress::Done {
                return Ok(());
            }
        }
    }

    /// Takes in one piece of a dump.
    fn read(&mut self, mut piece: &[u8]) -> io::Result<Progress> {
        while !piece.is_empty() {
            let header = piece.first_chunk::<HEADER>().ok_or_else(|| bad("no header"))?;
            let [l0, l1, l2, l3, k0, k1, ..] = *header;
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let body = piece.get(HEADER..length).ok_or_else(|| bad("a wrong length"))?;
            match u16::from_ne_bytes([k0, k1]) {
                kind @ (NLMSG_ERROR | NLMSG_DONE) => {
                    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return match (kind, code) {
                        (NLMSG_DONE, 0..) => Ok(Progress::Done),
                        (_, ..0) => Err(io::Error::from_raw_os_error(-code)),
                        _ => Err(bad("an acknowledgment that nobody asked for")),
                    };
                }
                SOCK_DIAG_BY_FAMILY => self.take(body)?,
                _ => {}
            }
            // Messages are aligned to four bytes, the last one perhaps not.
            piece = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(Progress::More)
    }

    fn take(&mut self, body: &[u8]) -> io::Result<()> {
        let message = body.first_chunk::<MESSAGE>().ok_or_else(|| bad("a socket is cut off"))?;
        let (state, family) = (message[1], i32::from(message[0]));
        let port = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| message[at + i]));
        let address = |at: usize| match family {
            libc::AF_INET => Addr::v4(word(at)),
            _ => Addr {
                high: u64::from(word(at)) << 32 | u64::from(word(at + 4)),
                low: u64::from(word(at + 8)) << 32 | u64::from(word(at + 12)),
            },
        };
        let key = Key {
            local: address(8),
            remote: address(24),
            local_port: port(4),
            remote_port: port(6),
        };
        match state {
            LISTEN => _ = self.listeners.insert((key.local, key.local_port)),
            TIME_WAIT | CLOSE => {}
            _ => {
                let cookie = u64::from(word(44)) << 32 | u64::from(word(48));
                self.connections.insert(key, Socket { state, cookie });
            }
        }
        if self.connections.len() + self.listeners.len() > MOST {
            return Err(io::Error::other(format!("there are more than {MOST} sockets")));
        }
        Ok(())
    }

    /// Whether somebody listens at an address and port, on all addresses perhaps.
    pub(super) fn listens(&self, address: Addr, port: u16) -> bool {
        let any_v4 = address.is_v4() && self.listeners.contains(&(Addr::v4(0), port));
        // A listener on `::` takes IPv4, too, unless it says otherwise, which is not told.
        self.listeners.contains(&(address, port))
            || any_v4
            || self.listeners.contains(&(Addr::default(), port))
    }
}

/// Whether a dump goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done,
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(family: u8) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &(REQUEST as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    put(HEADER, &[family, libc::IPPROTO_TCP as u8]);
    put(HEADER + 4, &(ALL & !(1 << TIME_WAIT)).to_ne_bytes());
    bytes
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's list of sockets: {what}"))
}

#[cfg(test)]
impl Sockets {
    pub(super) fn with(mut self, key: Key, state: u8, cookie: u64) -> Self {
        self.connections.insert(key, Socket { state, cookie });
        self
    }

    pub(super) fn listening(mut self, address: Addr, port: u16) -> Self {
        self.listeners.insert((address, port));
        self
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
        time::{Duration, Instant},
    };

    use super::*;

    fn key(local: SocketAddr, remote: SocketAddr) -> Key {
        Key {
            local: local.ip().into(),
            remote: remote.ip().into(),
            local_port: local.port(),
            remote_port: remote.port(),
        }
    }

    #[test]
    fn both_ends_and_the_listener_of_a_connection_are_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let at = listener.local_addr().unwrap();
            let client = TcpStream::connect(at).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let sockets = Sockets::dump().unwrap();
            assert!(sockets.listens(at.ip().into(), at.port()));
            assert!(!sockets.listens(peer.ip().into(), peer.port()));
            let (to, from) =
                (sockets.connections[&key(at, peer)], sockets.connections[&key(peer, at)]);
            assert_eq!((to.state, from.state), (ESTABLISHED, ESTABLISHED));
            assert_ne!(to.cookie, from.cookie);
            // A socket is the same one in the next dump; one that has said its last, and was heard,
            // is half closed.
            client.shutdown(Shutdown::Write).unwrap();
            let closed = || {
                let sockets = Sockets::dump().unwrap();
                let (to, from) =
                    (sockets.connections[&key(at, peer)], sockets.connections[&key(peer, at)]);
                (from.adoptable() == Some(HalfClosed::Local)).then_some(to)
            };
            let patience = Instant::now() + Duration::from_secs(20);
            let now = loop {
                match closed() {
                    Some(now) => break now,
                    None => assert!(Instant::now() < patience, "the FIN was not heard"),
                }
            };
            assert_eq!((now.cookie, now.adoptable()), (to.cookie, Some(HalfClosed::Remote)));
            drop(server);
        }
    }

    #[test]
    fn a_listener_on_all_addresses_listens_on_each() {
        let v4: Addr = IpAddr::from([10, 0, 0, 1]).into();
        let v6: Addr = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]).into();
        let listeners = |address| Sockets::default().listening(address, 80);
        assert!(listeners(Addr::v4(0)).listens(v4, 80));
        assert!(!listeners(Addr::v4(0)).listens(v6, 80));
        assert!(listeners(Addr::default()).listens(v4, 80));
        assert!(listeners(Addr::default()).listens(v6, 80));
        assert!(!listeners(v4).listens(v4, 81));
        assert!(!listeners(v4).listens(v6, 80));
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error_and_nonsense_too() {
        let mut sockets = Sockets::default();
        let error = |code: i32| message(NLMSG_ERROR, &code.to_ne_bytes());
        let refused = sockets.read(&error(-libc::ENOENT)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOENT));
        let late = sockets.read(&message(NLMSG_DONE, &(-libc::EPERM).to_ne_bytes())).unwrap_err();
        assert_eq!(late.raw_os_error(), Some(libc::EPERM));
        assert_eq!(sockets.read(&message(NLMSG_DONE, &[0; 4])).unwrap(), Progress::Done);
        assert_eq!(sockets.read(&message(99, &[0; 8])).unwrap(), Progress::More);
        let short = message(SOCK_DIAG_BY_FAMILY, &[0; MESSAGE - 1]);
        for bad in [error(0), short, vec![0; 8], message(99, &[])[..HEADER - 4].to_vec(), {
            let mut long = message(99, &[0; 8]);
            long[0] = 0xff;
            long
        }] {
            assert!(sockets.read(&bad).is_err(), "{bad:?}");
        }
        // A length that does not lead on must not be waited for.
        assert!(sockets.read(&[0; HEADER]).is_err());
    }
}
