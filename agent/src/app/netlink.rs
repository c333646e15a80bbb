//! Tells when interfaces, addresses or queues come and go. It does not say which: the engine compares
//! what is wanted with what is there.

use std::{io, os::fd::OwnedFd, time::Duration};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::{io::unix::AsyncFd, time::sleep};

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

    /// Waits for a change, and for those that come right after it.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        sleep(SETTLE).await;
        let mut buffer = [0; 8192];
        loop {
            let socket = std::os::fd::AsRawFd::as_raw_fd(ready.get_inner());
            match recv(socket, &mut buffer, MsgFlags::empty()) {
                // What was told does not matter; a lost message (ENOBUFS) was one, too.
                Ok(_) | Err(nix::errno::Errno::ENOBUFS) => {}
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
