//! Tells when interfaces, addresses or queues come and go, and at which interfaces. What changed there
//! it does not say: the engine compares what is wanted with what is there.

use std::{collections::BTreeSet, io, os::fd::OwnedFd, time::Duration};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::{io::unix::AsyncFd, time::sleep};

use crate::datapath::Doubt;

/// `RTMGRP_LINK | RTMGRP_TC | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR` of rtnetlink(7).
const GROUPS: u32 = 0x1 | 0x8 | 0x10 | 0x100;

/// A container's set-up makes a dozen changes; they are answered once.
const SETTLE: Duration = Duration::from_millis(10);

/// Changes of this namespace's interfaces.
pub(super) struct LinkEvents(AsyncFd<OwnedFd>);

impl LinkEvents {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &NetlinkAddr::new(0, GROUPS))?;
        // SAFETY: the socket owns its descriptor and is never replaced while it is registered.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// Waits for a change, and for those that come right after it; which interfaces they are about.
    pub(super) async fn changed(&mut self) -> io::Result<Doubt> {
        let mut ready = self.0.readable().await?;
        sleep(SETTLE).await;
        let mut buffer = [0; 8192];
        let mut doubt = Doubt::Of(BTreeSet::new());
        loop {
            let socket = std::os::fd::AsRawFd::as_raw_fd(ready.get_inner());
            match recv(socket, &mut buffer, MsgFlags::empty()) {
                Ok(length) => doubt.join(told(buffer.get(..length).unwrap_or_default())),
                // A message that was lost may have been about any of them.
                Err(nix::errno::Errno::ENOBUFS) => doubt.join(Doubt::All),
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(doubt)
    }
}

/// The interfaces that messages are about.
fn told(mut messages: &[u8]) -> Doubt {
    /// `struct nlmsghdr`; all of `ifinfomsg`, `ifaddrmsg` and `tcmsg` have the index 4 bytes behind it.
    const HEADER: usize = 16;
    let word = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let mut indexes = BTreeSet::new();
    while !messages.is_empty() {
        let (length, index) = (word(messages, 0), word(messages, HEADER + 4));
        let (Some(length), Some(index)) = (length, index) else { return Doubt::All };
        indexes.insert(index);
        // Messages begin at multiples of four (netlink(3), `NLMSG_NEXT`).
        let next = (length as usize).max(HEADER).next_multiple_of(4);
        messages = messages.get(next..).unwrap_or_default();
    }
    Doubt::Of(indexes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; length.next_multiple_of(4) as usize];
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[20..24].copy_from_slice(&index.to_ne_bytes());
        bytes
    }

    #[test]
    fn every_message_names_its_interface() {
        let messages = [message(32, 7), message(33, 9), message(24, 7)].concat();
        assert_eq!(told(&messages), Doubt::Of([7, 9].into()));
        assert_eq!(told(&messages[..10]), Doubt::All, "what is cut off may be about any");
        assert_eq!(told(&[]), Doubt::Of(BTreeSet::new()));
    }
}
