//! Who asked what they may not, how often. Bounded: callers can be many.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    sync::{Mutex, PoisonError},
};

use super::view;
use crate::quota::Caller;

/// Pairs of domain and caller that are told apart. The rest counts together, by domain.
const PAIRS: usize = 256;
/// The caller that stands for the rest.
const OTHERS: &str = "others";

/// Counts refused questions. They are rare and nobody waits for them, so a lock will do.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<BTreeMap<(String, String), u64>>);

impl Ledger {
    pub(super) fn count(&self, domain: &str, caller: &Caller) {
        let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (domain.to_owned(), String::new());
        // Writing to a string does not fail.
        let _ = name(caller, &mut key.1);
        // Domains are the configuration's, so their number is bounded already.
        if pairs.len() >= PAIRS && !pairs.contains_key(&key) {
            key.1 = OTHERS.to_owned();
        }
        *pairs.entry(key).or_default() += 1;
    }

    pub(super) fn snapshot(&self) -> Vec<view::Denied> {
        let pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |((domain, caller), count): (&(String, String), &u64)| view::Denied {
            domain: domain.clone(),
            caller: caller.clone(),
            count: *count,
        };
        pairs.iter().map(row).collect()
    }
}

/// What people call a caller.
pub(super) fn name(caller: &Caller, to: &mut impl Write) -> fmt::Result {
    if let Some(workload) = &caller.workload {
        if !workload.namespace.is_empty() {
            to.write_str(&workload.namespace)?;
            to.write_char('/')?;
        }
        return to.write_str(&workload.name);
    }
    if let Some(name) = &caller.tls_name {
        return to.write_str(name);
    }
    match (caller.address, caller.credentials) {
        (Some(address), _) => write!(to, "{address}"),
        (None, Some(credentials)) => write!(to, "uid {}", credentials.uid),
        (None, None) => to.write_str("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_told_apart_up_to_a_bound() {
        let ledger = Ledger::default();
        for number in 0..1000 {
            let address = Some(std::net::Ipv4Addr::from_bits(number).into());
            ledger.count("shop", &Caller { address, ..Caller::default() });
        }
        let rows = ledger.snapshot();
        assert_eq!(rows.len(), PAIRS + 1);
        assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), 1000);
        let others = rows.iter().find(|row| row.caller == OTHERS).unwrap();
        assert_eq!(others.count, 1000 - PAIRS as u64);
    }
}
