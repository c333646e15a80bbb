//! Which descriptors are refused most.
//!
//! Whoever decides leaves a note in a queue of fixed size and goes on; nothing is allocated and nobody
//! is waited for. The notes are collected four times a second. What does not fit into the queue by
//! then is known by number alone, and counted for those that did: under a flood the numbers are
//! estimates from a sample.
//!
//! Of all descriptors that were ever refused, so many are remembered, by the space-saving algorithm
//! (Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data
//! Streams", ICDT 2005): a new one takes the place of the least refused and inherits its number as the
//! error of its own. Whatever was refused more often than that is among them for certain.

use std::{
    fmt::{self, Write},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use arrayvec::ArrayString;
use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse, rate_limit_response::Code,
};

use super::{denied, view};
use crate::quota::Caller;

/// Notes that wait to be collected.
const WAITING: usize = 512;
/// Descriptors that are remembered.
const REMEMBERED: usize = 256;
/// Seconds until one is forgotten that is refused no more.
const FORGOTTEN: f64 = 600.0;

/// A text of so many bytes; what is longer is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cut<const N: usize>(ArrayString<N>);

impl<const N: usize> Write for Cut<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = text.floor_char_boundary(self.0.remaining_capacity());
        // It fits.
        let _ = self.0.try_push_str(text.get(..room).unwrap_or_default());
        Ok(())
    }
}

/// A refused descriptor.
#[derive(Debug)]
struct Note {
    domain: Cut<64>,
    descriptor: Cut<160>,
    caller: Cut<64>,
}

/// The notes and what was made of them.
#[derive(Debug)]
pub(super) struct Offenders {
    notes: SyncSender<Note>,
    /// Notes that found no room since they were collected last.
    missed: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    notes: Receiver<Note>,
    sketch: Sketch,
}

impl Default for Offenders {
    fn default() -> Self {
        let (send, notes) = sync_channel(WAITING);
        let kept = Mutex::new(Kept { notes, sketch: Sketch::default() });
        Self { notes: send, missed: AtomicU64::new(0), kept }
    }
}

impl Offenders {
    /// Notes the descriptors that an answer refuses.
    pub(super) fn note(
        &self,
        request: &RateLimitRequest,
        answer: &RateLimitResponse,
        caller: &Caller,
    ) {
        let pairs = request.descriptors.iter().zip(&answer.statuses);
        for (descriptor, _) in pairs.filter(|(_, status)| status.code == Code::OverLimit as i32) {
            let mut note =
                Note { domain: Cut::default(), descriptor: Cut::default(), caller: Cut::default() };
            // Nothing of this fails: what is too long is cut.
            let _ = note.domain.write_str(&request.domain);
            for (index, entry) in descriptor.entries.iter().enumerate() {
                let separator = if index > 0 { ", " } else { "" };
                for text in [separator, &entry.key, "=", &entry.value] {
                    let _ = note.descriptor.write_str(text);
                }
            }
            let _ = denied::name(caller, &mut note.caller);
            // The queue is full, or nobody collects any more.
            if self.notes.try_send(note).is_err() {
                self.missed.fetch_add(1, Relaxed);
            }
        }
    }

    /// Takes in the notes. `now` is in seconds since 1970.
    pub(super) fn collect(&self, now: f64) {
        let mut kept = self.lock();
        let notes: Vec<_> = kept.notes.try_iter().take(WAITING).collect();
        let missed = self.missed.swap(0, Relaxed);
        let each = 1 + missed.checked_div(notes.len() as u64).unwrap_or_default();
        for Note { domain, descriptor, caller } in &notes {
            kept.sketch.count(&domain.0, &descriptor.0, &caller.0, each, now);
        }
        kept.sketch.forget(now);
    }

    /// The most refused first.
    pub(super) fn all(&self, now: f64) -> Vec<view::Offender> {
        self.collect(now);
        let mut all = self.lock().sketch.0.clone();
        all.sort_by(|a, b| (b.refused, &a.descriptor).cmp(&(a.refused, &b.descriptor)));
        all
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Between two statements it is whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Sketch(Vec<view::Offender>);

impl Sketch {
    fn count(&mut self, domain: &str, descriptor: &str, caller: &str, hits: u64, now: f64) {
        let is_it =
            |known: &view::Offender| known.descriptor == descriptor && known.domain == domain;
        if let Some(known) = self.0.iter_mut().find(|known| is_it(known)) {
            known.refused += hits;
            known.last = now;
            if known.caller != caller {
                caller.clone_into(&mut known.caller);
            }
            return;
        }
        let mut new = view::Offender {
            domain: domain.to_owned(),
            descriptor: descriptor.to_owned(),
            caller: caller.to_owned(),
            refused: hits,
            error: 0,
            last: now,
        };
        if self.0.len() < REMEMBERED {
            self.0.push(new);
        } else if let Some(least) = self.0.iter_mut().min_by_key(|known| known.refused) {
            new.error = least.refused;
            new.refused += least.refused;
            *least = new;
        }
    }

    fn forget(&mut self, now: f64) {
        self.0.retain(|known| now - known.last < FORGOTTEN);
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::{
        extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
        service::ratelimit::v3::rate_limit_response::DescriptorStatus,
    };

    use super::*;
    use crate::allocations::counted;

    fn refused(value: &str) -> (RateLimitRequest, RateLimitResponse) {
        let entry = |value: &str| Entry { key: "user".to_owned(), value: value.to_owned() };
        let descriptor = |value| RateLimitDescriptor {
            entries: vec![entry(value)],
            ..RateLimitDescriptor::default()
        };
        let request = RateLimitRequest {
            domain: "shop".to_owned(),
            descriptors: vec![descriptor("somebody else"), descriptor(value)],
            hits_addend: 1,
        };
        let status = |code: Code| DescriptorStatus { code: code as i32, ..Default::default() };
        let answer = RateLimitResponse {
            statuses: vec![status(Code::Ok), status(Code::OverLimit)],
            ..RateLimitResponse::default()
        };
        (request, answer)
    }

    fn refuse(offenders: &Offenders, value: &str) {
        let (request, answer) = refused(value);
        offenders.note(&request, &answer, &Caller::default());
    }

    #[test]
    fn a_note_allocates_nothing_whether_there_is_room_for_it_or_not() {
        let offenders = Offenders::default();
        let caller = Caller { address: Some([10, 0, 0, 7].into()), ..Caller::default() };
        let (request, answer) = refused(&"mallory ".repeat(50));
        for round in 0..2 {
            let note = || (0..WAITING * 2).for_each(|_| offenders.note(&request, &answer, &caller));
            let ((), allocated) = counted(note);
            assert_eq!(allocated, 0, "round {round}");
            offenders.collect(1.0);
        }
        assert_eq!(offenders.all(1.0)[0].refused, WAITING as u64 * 4);
    }

    #[test]
    fn what_is_refused_often_is_found_among_any_number() {
        let offenders = Offenders::default();
        for round in 0..40 {
            for stranger in 0..WAITING / 2 {
                refuse(&offenders, &format!("{round}-{stranger}"));
                // As often as all others together.
                refuse(&offenders, "mallory");
            }
            offenders.collect(1.0);
        }
        let all = offenders.all(1.0);
        assert_eq!(all.len(), REMEMBERED);
        assert_eq!((&*all[0].descriptor, &*all[0].caller), ("user=mallory", "unknown"));
        let real = 40 * WAITING as u64 / 2;
        assert!(all[0].refused >= real && all[0].refused - all[0].error <= real, "{:?}", all[0]);
        assert_eq!(offenders.all(1.0 + FORGOTTEN), []);
    }

    #[test]
    fn what_finds_no_room_is_counted_for_those_that_did() {
        let offenders = Offenders::default();
        for _ in 0..WAITING * 10 {
            refuse(&offenders, "mallory");
        }
        assert_eq!(offenders.all(1.0)[0].refused, WAITING as u64 * 10);
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let offenders = Offenders::default();
        refuse(&offenders, &"ß".repeat(1000));
        let all = offenders.all(1.0);
        assert_eq!(all[0].descriptor.len(), 159, "{all:?}");
    }
}
