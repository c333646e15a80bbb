//! The quotas that workloads name: their counts lie in cells of the data plane, for as long as somebody
//! names them.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    compile::Identity,
    datapath::Datapath,
    quota::{
        Now, Quotas,
        rules::Rules,
        shared::{Cell, Named},
    },
};

/// The quotas of this node, and which of them lie in cells.
#[derive(Default)]
pub(super) struct Spent {
    service: Option<Arc<Quotas>>,
    named: BTreeMap<Identity, Named>,
    /// The rules by which they were found.
    seen: Option<Arc<Rules>>,
}

impl Spent {
    /// Those of a service.
    pub(super) fn of(service: Arc<Quotas>) -> Self {
        Self { service: Some(service), ..Self::default() }
    }

    /// Where quotas are found.
    pub(super) fn service(&self) -> Option<Arc<Quotas>> {
        self.service.clone()
    }

    /// Whether the quotas are others since they were looked at last.
    pub(super) fn have_changed(&mut self) -> bool {
        let Some(now) = self.service.as_ref().and_then(|service| service.rules()) else {
            return false;
        };
        let same = self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &now));
        self.seen = Some(now);
        !same
    }

    /// Takes out of their cells the counts that are not among these.
    pub(super) fn leave(
        &mut self,
        quotas: &BTreeMap<Identity, Named>,
        datapath: &Datapath,
        now: Now,
    ) {
        let before = self.named.len();
        self.named.retain(|identity, named| quotas.get(identity) == Some(named));
        if self.named.len() != before {
            self.share(datapath, now);
        }
    }

    /// Puts these counts into their cells.
    pub(super) fn enter(
        &mut self,
        quotas: BTreeMap<Identity, Named>,
        datapath: &Datapath,
        now: Now,
    ) {
        if self.named != quotas {
            self.named = quotas;
            self.share(datapath, now);
        }
    }

    fn share(&self, datapath: &Datapath, now: Now) {
        let Some(service) = &self.service else { return };
        let cell =
            |identity| -> Option<Arc<dyn Cell>> { Some(Arc::new(datapath.shared_cell(identity)?)) };
        let named = self.named.iter();
        let cells = named.filter_map(|(identity, named)| Some((named.clone(), cell(*identity)?)));
        service.share(cells.collect(), now);
    }
}
