//! What the kernel counted of an interface's packets.

use std::{fs, io};

use weir::lab::Namespace;

/// Counters of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packets {
    /// Those that came in there.
    pub received: u64,
    /// Those that left there.
    pub sent: u64,
    /// With their Ethernet headers; what is handed over as one packet has one of each header.
    pub sent_bytes: u64,
}

impl Packets {
    /// Those of an interface of this namespace, so far.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, or has no such interface.
    pub fn read(namespace: &Namespace, interface: &str) -> io::Result<Self> {
        // The kernel shows the interfaces of the thread that looks.
        let read = || fs::read_to_string("/proc/thread-self/net/dev");
        let text = namespace.run(read).map_err(io::Error::other)??;
        let none = || format!("{} has no interface {interface}", namespace.name());
        Self::find(&text, interface).ok_or_else(|| io::Error::other(none()))
    }

    fn find(text: &str, interface: &str) -> Option<Self> {
        let line =
            text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
        let numbers: Vec<u64> =
            line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        Some(Self {
            received: *numbers.get(1)?,
            sent: *numbers.get(9)?,
            sent_bytes: *numbers.get(8)?,
        })
    }

    /// What was added since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            received: self.received - before.received,
            sent: self.sent - before.sent,
            sent_bytes: self.sent_bytes - before.sent_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_an_interface_are_found_by_its_whole_name() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n  \
                    veth-a-p:     1  2  0 0 0 0 0 0   3   4  0 0 0 0 0 0\nveth-a: 9 8 0 0 0 0 0 0 7 6 0 0 0 0 0 0\n";
        assert_eq!(
            Packets::find(text, "veth-a"),
            Some(Packets { received: 8, sent: 6, sent_bytes: 7 })
        );
        assert_eq!(
            Packets::find(text, "veth-a-p"),
            Some(Packets { received: 2, sent: 4, sent_bytes: 3 })
        );
        assert_eq!(Packets::find(text, "veth"), None);
    }
}
