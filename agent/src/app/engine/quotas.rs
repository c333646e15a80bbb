//! The quotas that workloads name: their counts lie in cells of the data plane, for as long as somebody
//! names them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    app::leases::Leases,
    compile::Identity,
    datapath::Datapath,
    quota::{
        Now, Quotas,
        rules::Rules,
        shared::{Cell, Named},
        store::Held,
    },
};

/// The quotas of this node, and which of them lie in cells.
#[derive(Default)]
pub(super) struct Spent {
    service: Option<Arc<Quotas>>,
    named: BTreeMap<Identity, Named>,
    /// The rules by which they were found.
    seen: Option<Arc<Rules>>,
    /// For whoever answers what the kernel asks about leases.
    leases: Arc<Leases>,
}

impl Spent {
    /// Those of a service.
    pub(super) fn of(service: Arc<Quotas>) -> Self {
        Self { service: Some(service), ..Self::default() }
    }

    /// What the kernel asks about, for whoever answers.
    pub(super) fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    /// Where quotas are found.
    pub(super) fn service(&self) -> Option<Arc<Quotas>> {
        self.service.clone()
    }

    /// Notes which rules quotas are found by from here on.
    pub(super) fn look(&mut self) {
        self.seen = self.service.as_ref().and_then(|service| service.rules());
    }

    /// Whether there are other rules since.
    pub(super) fn have_changed(&self) -> bool {
        let now = self.service.as_ref().and_then(|service| service.rules());
        let of = |rules: &Option<Arc<Rules>>| rules.as_ref().map(Arc::as_ptr);
        of(&now) != of(&self.seen)
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
        let (mut cells, mut held, mut asked) = (Vec::new(), Vec::new(), HashMap::new());
        for (identity, named) in &self.named {
            match &named.leased {
                None => {
                    let cell = datapath.shared_cell(*identity);
                    cells.extend(cell.map(|cell| (named.clone(), Arc::new(cell) as Arc<dyn Cell>)));
                }
                Some(question) => {
                    let Some(lease) = datapath.shared_lease(*identity) else { continue };
                    let words = Arc::new(lease);
                    held.push(Held { question: question.clone(), words });
                    asked.extend(datapath.cell_of(*identity).map(|cell| (cell, named.identity)));
                }
            }
        }
        service.share(cells, now);
        service.hold(held, Arc::new(datapath.store_away()), now);
        self.leases.ask(service.store().map(|store| (Arc::clone(store), asked)));
    }
}
