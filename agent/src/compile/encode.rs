//! Rules as the kernel reads them.

use weir_common::{
    addr::Addr,
    layout::{self, RULE_DROP, RULE_HTTP1, RULE_LEASE, RULE_QUOTA, RULE_SHADOW, RULE_WINDOW},
};

use super::{
    cells::{CellKind, Identity},
    tables::{Block, Rule, RuleKind, WorkloadTable},
};
use crate::policy::Cidr;

/// A block in the kernel's layout.
pub type Encoded = layout::Block;

impl Block {
    /// The block in the kernel's layout. `index_of` gives the place of a cell; `None` when it has
    /// none, or when the table lacks a cell that a rule names.
    pub fn encode(
        &self,
        table: &WorkloadTable,
        index_of: impl Fn(Identity) -> Option<u32>,
    ) -> Option<Encoded> {
        let mut block = layout::Block::default();
        for (to, rule) in block.rules.iter_mut().zip(&self.rules) {
            *to = rule.encode(table, &index_of)?;
        }
        block.tracked = u32::from(self.is_tracked());
        let is_flow = |rule: &Rule| matches!(rule.kind, RuleKind::ConnectionBandwidth(_));
        block.flows = u32::from(self.rules.iter().any(is_flow));
        block.count = u32::try_from(self.rules.len().min(Self::MAX)).ok()?;
        Some(block)
    }
}

impl Rule {
    fn encode(
        &self,
        table: &WorkloadTable,
        index_of: impl Fn(Identity) -> Option<u32>,
    ) -> Option<layout::Rule> {
        let (peer, mask) = prefix(self.peer);
        let mut rule = layout::Rule { peer, mask, ..layout::Rule::default() };
        rule.kind = match self.kind {
            RuleKind::Exempt => layout::RuleKind::Exempt,
            RuleKind::Probe(_) => layout::RuleKind::Probe,
            RuleKind::Source { .. } => layout::RuleKind::Source,
            RuleKind::Limit(_) | RuleKind::Quota { .. } => layout::RuleKind::Limit,
            RuleKind::Load(_) => layout::RuleKind::Load,
            RuleKind::SourceLoad { .. } => layout::RuleKind::SourceLoad,
            RuleKind::Breaker { .. } => layout::RuleKind::Breaker,
            RuleKind::Bandwidth(_) => layout::RuleKind::Bandwidth,
            RuleKind::Packets(_) => layout::RuleKind::Packets,
            RuleKind::ConnectionBandwidth(_) => layout::RuleKind::ConnectionBandwidth,
        } as u8;
        if let RuleKind::Source { group, .. } | RuleKind::SourceLoad { group, .. } = self.kind {
            (rule.group_v4, rule.group_v6) = (group.v4(), group.v6());
        }
        if let RuleKind::Breaker { among: Some(among), .. } = self.kind {
            (rule.group_v4, rule.group_v6) = (among.number, among.at_most);
        }
        if let Some(identity) = self.kind.cell() {
            let params = table.cells.get(&identity)?.params;
            (rule.cost, rule.burst, rule.step) = (params.cost, params.burst, params.step);
            rule.cell = index_of(identity)?;
        }
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let http1 = matches!(self.kind, RuleKind::Breaker { http1: true, .. });
        let quota = matches!(self.kind, RuleKind::Quota { .. });
        let counts = |kind| matches!(self.kind, RuleKind::Quota { counts, .. } if counts == kind);
        rule.flags = flag(self.shadow, RULE_SHADOW)
            | flag(self.drop, RULE_DROP)
            | flag(http1, RULE_HTTP1)
            | flag(quota, RULE_QUOTA)
            | flag(counts(CellKind::Window), RULE_WINDOW)
            | flag(counts(CellKind::Lease), RULE_LEASE);
        Some(rule)
    }
}

/// A network as address and mask. IPv4 stands mapped in IPv6, 96 bits in.
fn prefix(peer: Option<Cidr>) -> (Addr, Addr) {
    let Some(peer) = peer else {
        return (Addr::default(), Addr::default());
    };
    let network = Addr::from(peer.network());
    let skipped = if peer.network().is_ipv4() { 96 } else { 0 };
    (network, Addr::mask(skipped + u32::from(peer.prefix())))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::parse_cidr;

    fn holds(peer: Option<Cidr>, address: IpAddr) -> bool {
        let (network, mask) = prefix(peer);
        Addr::from(address).masked(mask) == network
    }

    proptest! {
        #[test]
        fn a_mask_holds_for_the_addresses_of_its_network(address: IpAddr) {
            prop_assert!(holds(None, address));
            let host = Cidr::host(address);
            prop_assert!(holds(Some(host), address));
            for text in ["0.0.0.0/0", "10.0.0.0/8", "128.0.0.0/1", "2000::/3", "8000::/1"] {
                let network = parse_cidr(text).unwrap();
                prop_assert_eq!(holds(Some(network), address), network.contains(address), "{}", text);
            }
        }
    }
}
