//! What is done with a packet, and why.
//!
//! Every decision has one verdict and one reason. The reason is the same word in the kernel's
//! counters, in events, in metrics and in what `weir explain` prints.

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
#[repr(u8)]
pub enum Verdict {
    /// Goes on to the next program or the stack.
    Pass = 0,
    /// Disappears; the client retries.
    Drop = 1,
    /// Disappears, and the sender is told at once: by a RST, or by ECONNREFUSED from `connect()`.
    Reset = 2,
    /// Would have been refused; goes on, because the line or the workload is in shadow mode.
    Shadow = 3,
    /// Not a decision of its own: something worth counting beside one.
    Note = 4,
}

/// Number of verdicts.
pub const VERDICTS: usize = 5;

impl Verdict {
    /// All verdicts, by their number.
    pub const ALL: [Self; VERDICTS] =
        [Self::Pass, Self::Drop, Self::Reset, Self::Shadow, Self::Note];

    /// The verdict's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Reset => "reset",
            Self::Shadow => "shadow",
            Self::Note => "note",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)*) => {
        /// Why a packet got its verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $variant = $code,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The reason's name in metrics, events and `weir explain`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The reason with this code.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    /// All limits had a token.
    Admitted = 0, "admitted";
    /// A repeated SYN of a handshake that was admitted: free.
    Retransmission = 1, "retransmission";
    /// The peer is exempt.
    Exempt = 2, "exempt";
    /// A health probe from this node, paid from its own bucket.
    Probe = 3, "probe";
    /// No rule speaks of this workload's port.
    NoRule = 4, "no_rule";
    /// A later fragment: it has no ports, its first fragment was judged.
    Fragment = 5, "fragment";
    /// Too short or malformed for its own headers; the stack will drop it.
    Malformed = 6, "malformed";
    /// `connections` is spent.
    ConnectionRate = 7, "connection_rate";
    /// `connections-per-source` of this client is spent.
    SourceRate = 8, "source_rate";
    /// The bucket that crowded-out clients share is spent.
    SourceCrowded = 9, "source_crowded";
    /// `outbound-connections` is spent.
    OutboundRate = 10, "outbound_rate";
    /// The bucket for health probes is spent.
    ProbeRate = 11, "probe_rate";
    /// Too many CPUs changed the same bucket at once.
    Contended = 12, "contended";
    /// A first fragment too short for a TCP header, or one that would overwrite it.
    TinyFragment = 13, "tiny_fragment";
    /// More IPv6 extension headers than are followed.
    HeaderChain = 14, "header_chain";
    /// A reset was due but the budget for resets is spent: the refusal became a drop.
    ResetLimited = 15, "reset_limited";
    /// Admitted, but there was no room to remember it: a repeated SYN would cost a token.
    NotRemembered = 16, "not_remembered";
    /// A packet could not be rewritten into a reset: the refusal became a drop.
    RewriteFailed = 17, "rewrite_failed";
    /// An event was not delivered because the ring was full.
    EventLost = 18, "event_lost";
    /// `max-connections` are open.
    MaxConnections = 19, "max_connections";
    /// `max-handshakes` are not complete yet.
    MaxHandshakes = 20, "max_handshakes";
    /// `max-connections-per-source` of this client are open.
    MaxConnectionsPerSource = 21, "max_connections_per_source";
    /// The breaker is open.
    BreakerOpen = 22, "breaker_open";
    /// The breaker is half-open, and all its probes are out.
    BreakerProbing = 23, "breaker_probing";
    /// There is no room to track the connection that a limit must count.
    TableFull = 24, "table_full";
    /// Would have been refused by a limit on connections, which nobody has audited for too long.
    Unaudited = 25, "unaudited";
    /// A breaker opened: enough failed.
    BreakerTripped = 26, "breaker_tripped";
    /// A breaker opened again: a probe failed.
    BreakerReopened = 27, "breaker_reopened";
    /// A breaker's time is over: it lets probes through.
    BreakerHalfOpened = 28, "breaker_half_opened";
    /// A breaker closed: enough probes succeeded.
    BreakerClosed = 29, "breaker_closed";
    /// Admitted, and tracked where another handshake was: nothing follows that one any more.
    HandshakeDisplaced = 30, "handshake_displaced";
    /// `connection-bandwidth` of this connection is spent.
    ConnectionBandwidth = 31, "connection_bandwidth";
    /// The byte bucket that crowded-out connections share is spent.
    ConnectionCrowded = 32, "connection_crowded";
    /// `ingress-bandwidth` is spent.
    IngressBandwidth = 33, "ingress_bandwidth";
    /// `egress-bandwidth` is spent.
    EgressBandwidth = 34, "egress_bandwidth";
    /// `packets` is spent.
    PacketRate = 35, "packet_rate";
    /// Passed with a mark of congestion (ECN), because a byte limit is half spent.
    Marked = 36, "marked";
    /// The breaker of a service's endpoint is open, but enough other endpoints are ejected.
    EjectionSpared = 37, "ejection_spared";
    /// `quota` is spent.
    Quota = 38, "quota";
    /// The node's lease of a fleet's quota does not suffice: the SYN waits until the store was asked, and is
    /// judged again.
    QuotaAsked = 39, "quota_asked";
    /// A workload's SYN to another workload, refused early at its own end. Counted for who sent it; the refusal
    /// itself is counted for who refuses.
    Shielded = 40, "shielded";
}

impl Reason {
    /// Whether it says what became of bytes and packets, and not of a connection.
    pub const fn is_of_volume(self) -> bool {
        matches!(
            self,
            Self::ConnectionBandwidth
                | Self::ConnectionCrowded
                | Self::IngressBandwidth
                | Self::EgressBandwidth
                | Self::PacketRate
                | Self::Marked
        )
    }
}

/// Room for reasons in a counter row; at least [`Reason::ALL`]'s length.
pub const REASONS: usize = 41;
const _: () = assert!(Reason::ALL.len() <= REASONS);
