//! Cells: who they are, and what their bucket admits in the kernel's units.

use std::fmt;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use weir_common::{
    debt::{self, Tariff},
    gcra::{self, Params},
    load::Bounds,
    source::{self, SourceParams},
    way,
};

use super::tables::LineRef;
use crate::{
    policy::{Bandwidth, Breaker, Bucket},
    quota::{engine::Engine, shared::Named},
};

const SECOND_NS: u64 = 1_000_000_000;

/// Who a cell is, over restarts and versions: 128 bits of a hash.
///
/// It is made of what a person would call the same limit (workload, kind, port, destination), and
/// not of its numbers: a limit whose rate changes stays the same limit and keeps what was spent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity([u8; 16]);

impl Identity {
    /// The identity of a workload.
    pub fn workload(workload: &str) -> Self {
        Self::hash(&["workload", workload])
    }

    /// The identity of the cell behind a line. Lines without a port are one cell in all blocks.
    pub fn cell(workload: &str, line: &LineRef) -> Self {
        match line {
            LineRef::Limit(slot) => {
                let port = slot.port.map(|port| port.to_string()).unwrap_or_default();
                let to = slot.to.map(|to| to.to_string()).unwrap_or_default();
                let beside = if slot.beside { "beside" } else { "" };
                Self::hash(&["limit", workload, slot.kind.name(), &port, &to, beside])
            }
            LineRef::Load(load) => {
                let port = load.port.map(|port| port.to_string()).unwrap_or_default();
                let beside = if load.beside { "beside" } else { "" };
                Self::hash(&["load", workload, &port, beside])
            }
            LineRef::Exempt(peer) => Self::hash(&["exempt", workload, &peer.to_string()]),
            LineRef::Probe => Self::hash(&["probe", workload]),
            LineRef::Resets => Self::hash(&["resets", workload]),
        }
    }

    /// The identity of a quota's count: of all workloads that name it.
    pub(super) fn quota(named: &Named) -> Self {
        let kind = named.meter.kind().encode().to_string();
        let scope = if named.leased.is_some() { "fleet quota" } else { "quota" };
        let parts = [scope, &kind].into_iter().chain(named.text.iter().map(String::as_str));
        Self::hash(&parts.collect::<Vec<_>>())
    }

    fn hash(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"weir identity 1");
        for part in parts {
            // With their lengths, so that no two lists of parts are the same bytes.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        let mut identity = [0; 16];
        identity.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self(identity)
    }

    /// As the records beside the cells store it.
    pub const fn words(self) -> [u64; 2] {
        let number = u128::from_be_bytes(self.0);
        [(number >> 64) as u64, number as u64]
    }

    /// From a record beside a cell.
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self(((words[0] as u128) << 64 | words[1] as u128).to_be_bytes())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How a cell keeps its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellKind {
    /// One bucket, in the cell.
    Bucket,
    /// A bucket for each source, kept elsewhere; the cell names and counts them.
    Source,
    /// How many connections and handshakes there are, in the cell.
    Load,
    /// The same for each source, kept elsewhere.
    SourceLoad,
    /// A breaker, in the cell.
    Breaker,
    /// A bucket in debt mode for each direction, in the cell.
    Debt,
    /// A bucket in debt mode for each direction of each connection, kept elsewhere.
    Flow,
    /// Hits in a window of realtime, in the cell: as cost and burst, its seconds and the hits that
    /// it admits.
    Window,
    /// What is leased of such a window of the fleet's, in the cell.
    Lease,
}

/// A cell and what it admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// How it keeps its state.
    pub kind: CellKind,
    /// What the rules that name it carry. Of a bucket: in 1/256 ns, for [`CellKind::Source`] in
    /// ticks of 64 ns. Of a load: connections and handshakes as cost and burst. Of a breaker: its
    /// packed parameters. Of a bucket in debt mode: the price of a unit in 2^-20 ns, and the burst in
    /// 1/256 ns.
    pub params: Params,
    /// The line it belongs to.
    pub line: LineRef,
}

impl Cell {
    /// The cell of a line that counts what is there at once, each source for itself or not.
    pub(super) fn load(kind: CellKind, bounds: Bounds, line: LineRef) -> Self {
        let Bounds { connections, handshakes } = bounds;
        let burst = if kind == CellKind::SourceLoad { 0 } else { handshakes };
        Self { kind, params: Params { cost: connections, burst, step: 0 }, line }
    }

    /// The cell of a breaker.
    pub(super) fn breaker(breaker: &Breaker, line: LineRef) -> Self {
        let [cost, burst, step] = breaker.params().pack();
        Self { kind: CellKind::Breaker, params: Params { cost, burst, step }, line }
    }

    /// The cell of a line that limits bytes.
    pub(super) fn bandwidth(kind: CellKind, bandwidth: Bandwidth, line: LineRef) -> Self {
        // Eight seconds of bits are as many bytes.
        Self::debt(kind, bandwidth.bits(), 8 * SECOND_NS, bandwidth.burst(), line)
    }

    /// The cell of a line that limits packets.
    pub(super) fn packets(bucket: Bucket, line: LineRef) -> Self {
        let (rate, burst) = (bucket.rate(), bucket.burst().into());
        let period = rate.period().nanos();
        Self::debt(CellKind::Debt, rate.tokens().into(), period, burst, line)
    }

    fn debt(kind: CellKind, units: u64, period_ns: u64, burst: u64, line: LineRef) -> Self {
        // As for buckets: the bounds of `policy` are within the units, and else the strictest holds.
        let params =
            Tariff::new(units, period_ns, burst)
                .map_or(Params { cost: debt::MAX_UNIT << 12, burst: 1, step: 0 }, |tariff| {
                    Params { cost: tariff.price, burst: tariff.burst, step: 0 }
                });
        Self { kind, params, line }
    }

    /// The cell of a quota. Sliding windows are no cells.
    pub(super) fn quota(named: &Named, line: LineRef) -> Option<Self> {
        let Named { meter, leased, .. } = named;
        let (kind, params) = match meter.engine {
            Engine::Sliding => return None,
            Engine::Fixed => {
                let (cost, burst) = (meter.period_s.into(), meter.requests.into());
                let kind = if leased.is_some() { CellKind::Lease } else { CellKind::Window };
                (kind, Params { cost, burst, step: 0 })
            }
            Engine::Bucket { params, .. } => (CellKind::Bucket, params),
        };
        Some(Self { kind, params, line })
    }

    /// The cell of a line with this bucket, each source for itself or not.
    pub(super) fn bucket(kind: CellKind, bucket: Bucket, line: LineRef) -> Self {
        let tokens = u64::from(bucket.rate().tokens());
        let period = bucket.rate().period().nanos();
        let burst = u64::from(bucket.burst());
        // The bounds of `policy` keep every bucket within the units. Should they ever part, the
        // strictest bucket stands in: a limit that is too strict is seen, one too loose is not.
        let params = match kind {
            CellKind::Source => {
                let longest = source::MAX_WINDOW_NS / way::TICK_NS;
                SourceParams::new(tokens, period, burst, bucket.refill()).map_or(
                    Params { cost: longest, burst: longest, step: 0 },
                    |ticks| Params { cost: ticks.cost, burst: ticks.burst, step: ticks.step },
                )
            }
            _ => Params::new(tokens, period, burst, bucket.refill()).unwrap_or(Params {
                cost: gcra::MAX_WINDOW,
                burst: gcra::MAX_WINDOW,
                step: 0,
            }),
        };
        Self { kind, params, line }
    }
}

#[cfg(test)]
mod tests {
    use weir_common::gcra::Refill;

    use super::{super::tables::LoadRef, *};
    use crate::policy::{LimitKind, Period, Rate, ServiceName, Slot, To, parse_bucket, parse_cidr};

    fn slot(kind: LimitKind) -> Slot {
        Slot { kind, port: None, to: None, beside: false }
    }

    #[test]
    fn identities_are_the_same_in_every_version() {
        // Cells are found by these after an upgrade: a change loses what was spent.
        let line = LineRef::Limit(slot(LimitKind::Connections));
        let identity = Identity::cell("mysql", &line);
        assert_eq!(identity.to_string(), "587b389413a104dfe7d578bd0513ee2c");
        assert_eq!(Identity::from_words(identity.words()), identity);
        let load = LoadRef { port: None, beside: false, connections: None, handshakes: None };
        let identity = Identity::cell("mysql", &LineRef::Load(load));
        assert_eq!(identity.to_string(), "36778bcca719be262efa86ea74c9a0e3");
        // Whichever of its lines are there.
        let lines = Some(slot(LimitKind::MaxConnections));
        let other = LineRef::Load(LoadRef { connections: lines, ..load });
        assert_eq!(Identity::cell("mysql", &other), identity);
    }

    #[test]
    fn identities_differ_in_each_part() {
        let plain = slot(LimitKind::Connections);
        let load = LoadRef { port: None, beside: false, connections: None, handshakes: None };
        let lines = [
            LineRef::Limit(plain),
            LineRef::Limit(slot(LimitKind::ConnectionsPerSource)),
            LineRef::Limit(slot(LimitKind::OutboundConnections)),
            LineRef::Limit(Slot { port: crate::policy::Port::new(80), ..plain }),
            LineRef::Limit(Slot { to: parse_cidr("10.0.0.0/8").ok().map(To::Cidr), ..plain }),
            LineRef::Limit(Slot {
                to: Some(To::Service(ServiceName::parse("db").unwrap())),
                ..plain
            }),
            LineRef::Limit(Slot { beside: true, ..plain }),
            LineRef::Exempt(parse_cidr("10.0.0.0/8").unwrap()),
            LineRef::Probe,
            LineRef::Resets,
            LineRef::Limit(slot(LimitKind::MaxConnectionsPerSource)),
            LineRef::Limit(slot(LimitKind::Breaker)),
            LineRef::Limit(slot(LimitKind::OutboundBreaker)),
            LineRef::Load(load),
            LineRef::Load(LoadRef { port: crate::policy::Port::new(80), ..load }),
            LineRef::Load(LoadRef { beside: true, ..load }),
        ];
        let mut seen = std::collections::BTreeSet::new();
        for workload in ["a", "b"] {
            assert!(lines.iter().all(|line| seen.insert(Identity::cell(workload, line))));
        }
    }

    #[test]
    fn every_bucket_that_can_be_written_fits_the_kernels_units() {
        let costs = |kind, bucket: Bucket| {
            let params = Cell::bucket(kind, bucket, LineRef::Probe).params;
            let unit = if kind == CellKind::Source { 1 } else { 256 * 64 };
            let exact = u128::from(bucket.rate().period().nanos()) * unit
                / (64 * u128::from(bucket.rate().tokens()));
            let cost = u128::from(params.cost);
            assert!(cost == exact || cost == exact + 1, "{bucket}: {cost} instead of {exact}");
            assert_eq!(params.burst, params.cost * u64::from(bucket.burst()), "{bucket}");
        };
        for text in ["1 per 720h", "10000000/s burst=1000000000", "7 per 720h", "1000000000/720h"] {
            costs(CellKind::Bucket, parse_bucket(text).unwrap());
        }
        let rate =
            |tokens, millis| Rate::new(tokens, Period::from_millis(millis).unwrap()).unwrap();
        for (rate, burst) in [
            (rate(1, 86_400_000), 1),
            (rate(7, 86_400_000), 7),
            (rate(5, 86_400_000), 1),
            (rate(1_000_000, 1000), 1_000_000_000),
            (rate(999_999_937, 86_400_000), 999_999_937),
        ] {
            for refill in [Refill::Smooth, Refill::Step] {
                if let Some(bucket) = Bucket::new(rate, burst, refill) {
                    costs(CellKind::Source, bucket);
                }
            }
        }
    }
}
