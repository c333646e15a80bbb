//! A tracked connection's word: whatever is sent, its counts fall exactly once.

use proptest::prelude::*;
use weir_common::{
    layout::Slot,
    load::Change,
    track::{
        End::{self, Local, Remote},
        Event, Phase, Segment, adopted, flag, is_absent, next, opening, phase, removed,
    },
};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
const NOW: u64 = 1000 * HOUR;
const TAG: u64 = 77;
const ISN: u32 = 1000;
const ANSWER: u32 = 5000;
const ACK: u8 = flag::ACK;

/// A connection and what its word has told those who count.
struct Connection {
    word: u64,
    slot: Slot,
    handshakes: i32,
    established: i32,
    events: Vec<Event>,
}

impl Connection {
    /// A client's SYN was admitted.
    fn opening(now_ns: u64) -> Self {
        let word = opening(0, TAG, Remote, now_ns);
        let slot = Slot { isn: ISN, answer: ANSWER, ..Slot::default() };
        Self { word, slot, handshakes: 1, established: 0, events: Vec::new() }
    }

    /// Both ends know of it.
    fn established() -> Self {
        let mut it = Self::opening(NOW);
        it.send(Local, flag::SYN | ACK, ANSWER, ISN + 1, NOW);
        it.send(Remote, ACK, ISN + 1, ANSWER + 1, NOW);
        assert_eq!(it.take(), [Event::Answered, Event::Established]);
        it
    }

    fn send(&mut self, from: End, flags: u8, sequence: u32, acknowledgment: u32, now_ns: u64) {
        self.segment(&Segment { from, flags, sequence, acknowledgment, payload: 0 }, now_ns);
    }

    fn segment(&mut self, segment: &Segment, now_ns: u64) {
        if segment.flags & flag::FIN != 0 {
            self.slot.fins[segment.from as usize] = segment.end();
        }
        let Some(step) = next(self.word, &self.slot, segment, now_ns) else { return };
        self.word = step.word;
        self.events.push(step.event);
        match step.event.change() {
            None => {}
            Some(Change::Established) => {
                self.handshakes -= 1;
                self.established += 1;
            }
            Some(Change::Abandoned) => self.handshakes -= 1,
            Some(Change::Closed) => self.established -= 1,
            Some(Change::Reopened) => self.established += 1,
        }
    }

    fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What it counts as, by its word alone.
    fn counts(&self) -> (i32, i32) {
        match phase(self.word) {
            Phase::Free | Phase::Reset => (0, 0),
            Phase::Opening | Phase::Answered => (1, 0),
            Phase::Established => (0, 1),
        }
    }
}

fn ends() -> impl Strategy<Value = End> {
    prop_oneof![Just(Local), Just(Remote)]
}

fn segments() -> impl Strategy<Value = Segment> {
    // Near what is right, or anything.
    let number = || {
        prop_oneof![
            (ISN - 1..ISN + 4).prop_map(|it| it),
            (ANSWER - 1..ANSWER + 4).prop_map(|it| it),
            any::<u32>(),
        ]
    };
    let flags = prop::sample::select(vec![
        flag::SYN,
        flag::SYN | ACK,
        ACK,
        ACK,
        flag::FIN | ACK,
        flag::FIN,
        flag::RST,
        flag::RST | ACK,
        0,
        0xff,
    ]);
    (ends(), flags, number(), number(), 0..3000_u32).prop_map(
        |(from, flags, sequence, acknowledgment, payload)| Segment {
            from,
            flags,
            sequence,
            acknowledgment,
            payload,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4096, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Whoever sends whatever to whom.
    #[test]
    fn what_a_word_told_is_what_it_says(segments in prop::collection::vec(segments(), 0..60)) {
        let mut it = Connection::opening(NOW);
        for segment in &segments {
            it.segment(segment, NOW);
            prop_assert_eq!((it.handshakes, it.established), it.counts(), "{:?}", segment);
        }
        // An audit that knows that it is gone owes what is left.
        let (_, established) = it.counts();
        let last = removed(it.word, NOW).and_then(|step| step.event.change());
        prop_assert_eq!(last == Some(Change::Closed), established == 1);
    }
}

#[test]
fn who_closed_one_way_is_counted_for_as_long_as_the_other_way_lives() {
    let mut it = Connection::established();
    it.send(Local, flag::FIN | ACK, ANSWER + 1, ISN + 1, NOW);
    it.send(Remote, ACK, ISN + 1, ANSWER + 2, NOW);
    let mut sent = ISN + 1;
    for halves in 1..48 {
        // Longer than any time that the word could hold.
        let now = NOW + halves * HOUR / 2;
        assert!(!is_absent(it.word, now), "after {halves} half hours");
        let segment = Segment {
            from: Remote,
            flags: ACK,
            sequence: sent,
            acknowledgment: ANSWER + 2,
            payload: 1400,
        };
        sent = segment.end();
        it.segment(&segment, now);
        it.send(Local, ACK, ANSWER + 2, sent, now);
        assert_eq!((it.handshakes, it.established), (0, 1));
    }
    let end = NOW + 24 * HOUR;
    it.take();
    it.send(Remote, flag::FIN | ACK, sent, ANSWER + 2, end);
    it.send(Local, ACK, ANSWER + 2, sent + 1, end);
    it.send(Remote, flag::FIN | ACK, sent, ANSWER + 2, end);
    it.send(Local, flag::RST, ANSWER + 2, 0, end);
    assert_eq!(it.take(), [Event::Nothing, Event::Closed]);
}

#[test]
fn ends_that_open_at_once_are_one_connection() {
    let mut it = Connection::opening(NOW);
    // The other end's own SYN says nothing; each acknowledges the other's by a SYN with ACK.
    it.send(Local, flag::SYN, ANSWER, 0, NOW);
    it.send(Local, flag::SYN | ACK, ANSWER, ISN + 1, NOW);
    it.send(Remote, flag::SYN | ACK, ISN, ANSWER + 1, NOW);
    it.send(Remote, ACK, ISN + 1, ANSWER + 1, NOW);
    assert_eq!(it.take(), [Event::Answered, Event::Established]);
}

#[test]
fn ends_that_close_at_once_close_once() {
    let mut it = Connection::established();
    it.send(Local, flag::FIN | ACK, ANSWER + 1, ISN + 1, NOW);
    it.send(Remote, flag::FIN | ACK, ISN + 1, ANSWER + 1, NOW);
    it.send(Local, ACK, ANSWER + 2, ISN + 2, NOW);
    it.send(Remote, ACK, ISN + 2, ANSWER + 2, NOW);
    let events = it.take();
    assert_eq!(events.iter().filter(|event| **event == Event::Closed).count(), 1, "{events:?}");
    assert_eq!(phase(it.word), Phase::Free);
}

/// TCP Fast Open: the answer acknowledges the SYN's data, too, or not (RFC 7413, 4.2).
#[test]
fn a_syn_with_data_is_answered_with_or_without_it() {
    for acknowledgment in [ISN + 1, ISN + 1 + 1400] {
        let mut it = Connection::opening(NOW);
        it.send(Local, flag::SYN | ACK, ANSWER, acknowledgment, NOW);
        assert_eq!(it.take(), [Event::Answered], "{acknowledgment}");
    }
}

#[test]
fn an_answer_to_another_syn_is_none() {
    let mut it = Connection::opening(NOW);
    for acknowledgment in [0, ISN, ISN - 1, ISN + 100_000] {
        it.send(Local, flag::SYN | ACK, ANSWER, acknowledgment, NOW);
        it.send(Local, flag::RST | ACK, 0, acknowledgment, NOW);
    }
    assert_eq!(it.take(), []);
}

#[test]
fn a_handshake_is_forgotten_by_the_clock_and_a_connection_is_not() {
    let it = Connection::opening(NOW);
    assert!(!is_absent(it.word, NOW + 17 * SECOND));
    assert!(is_absent(it.word, NOW + 18 * SECOND));
    let it = Connection::established();
    // The word's time comes round every 73 minutes.
    for minutes in 0..1000 {
        assert!(!is_absent(it.word, NOW + minutes * 60 * SECOND));
    }
}

/// Who holds the word of a connection that is gone changes nothing of the next, though it has the same
/// addresses and ports: no compare-and-swap with the old word succeeds.
#[test]
fn the_next_connection_has_another_word() {
    let first = opening(0, TAG, Remote, NOW);
    let gone = removed(first, NOW).unwrap().word;
    let second = opening(gone, TAG, Remote, NOW);
    assert_ne!(first, second);
    // One that takes the place of a handshake, too.
    assert_ne!(opening(second, TAG, Remote, NOW), second);
    let old = adopted(gone, TAG);
    assert_ne!(adopted(removed(old, NOW).unwrap().word, TAG), old);
    // Only the 4096th later is like it.
    let mut word = first;
    for _ in 1..4096 {
        word = opening(removed(word, NOW).unwrap().word, TAG, Remote, NOW);
        assert_ne!(word, first);
    }
}
