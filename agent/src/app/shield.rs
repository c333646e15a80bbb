//! When a workload floods others of its node, and when that is over.
//!
//! While it does, XDP at the host's end of its veth refuses early what TC would refuse behind the host's
//! forwarding: its shield is up. XDP takes segmentation offload from the workload, which then pays for what
//! else it sends many times over. So a shield goes up where it saves more than that, and comes down after a
//! calm. This is told rates and the time, and performs no I/O.

/// A shield goes up when so many looks in a row saw a flood: one busy moment is none.
const LOOKS: u8 = 2;
/// It is calm below this part of what raises a shield, so that one flood does not move it again and again.
const CALM: f64 = 0.5;
/// What it costs to cut so many bytes into segments, a refusal at the shield saves: 250 to 460 were measured.
const BYTES_OF_A_SYN: f64 = 300.0;
/// Most bytes that a SYN is, on the wire.
const SYN: f64 = 78.0;
/// A shield that was of no use is not raised again for so many times its calm.
const REST: u64 = 20;

/// When to raise a shield and to take it down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Refused SYNs per second from which it pays.
    pub(super) above: f64,
    /// So long there must have been clearly fewer.
    pub(super) calm_ns: u64,
}

/// What was seen over the last second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// SYNs per second of the workload that reached TC.
    pub(super) sent: f64,
    /// Those that its shield refused.
    pub(super) shielded: f64,
    /// SYNs per second that TC refused, on their way to whatever workload of the node.
    pub(super) refused: f64,
    /// Bytes per second of the workload, all of them.
    pub(super) bytes: f64,
}

impl Seen {
    /// What a shield costs the workload for what is no SYN, in refused SYNs per second that would save as much.
    fn price(self) -> f64 {
        (self.bytes - SYN * (self.sent + self.shielded)).max(0.0) / BYTES_OF_A_SYN
    }
}

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The shield goes up.
    Up,
    /// It comes down, after a calm.
    Down,
    /// It comes down, while the flood goes on: it costs more than it saves.
    TooDear,
}

/// The shield of one interface.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shield {
    /// TC refuses alone.
    Down {
        /// Looks in a row that saw a flood.
        looks: u8,
        /// Until then it stays down.
        rests_until_ns: u64,
    },
    /// XDP refuses early.
    Up {
        /// Since when it is calm, if it is.
        calm_since_ns: Option<u64>,
        /// Whether it has refused a flood, and saved more than it cost.
        was_of_use: bool,
    },
}

impl Default for Shield {
    fn default() -> Self {
        Self::Down { looks: 0, rests_until_ns: 0 }
    }
}

impl Shield {
    /// Up, as an agent before this one left it. Its calm begins anew.
    pub(super) const INHERITED: Self = Self::Up { calm_since_ns: None, was_of_use: true };

    /// Whether it is up.
    pub(super) const fn is_up(self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// SYNs per second of the workload that are refused.
    ///
    /// A shield counts for who sent them. TC counts for who refuses: while the shield is down, the workload's
    /// are at most what it sent and at most what was refused. Who opens many connections floods nobody while
    /// they are admitted, and another's flood is none of its.
    pub(super) fn flood(self, seen: Seen) -> f64 {
        match self {
            Self::Down { .. } => seen.sent.min(seen.refused),
            Self::Up { .. } => seen.shielded,
        }
    }

    /// Whether it matters what else the workload sends.
    pub(super) fn asks_for_bytes(self, seen: Seen, terms: Terms) -> bool {
        self.is_up() || self.flood(seen) >= terms.above
    }

    /// Whether it stays down although there is a flood, because it would cost more than it saves.
    pub(super) fn is_too_dear(self, seen: Seen, terms: Terms) -> bool {
        let flood = self.flood(seen);
        !self.is_up() && flood >= terms.above && flood - seen.price() < terms.above
    }

    /// Takes in what is sent and refused now.
    pub(super) fn look(&mut self, seen: Seen, terms: Terms, now_ns: u64) -> Option<Turn> {
        let flood = self.flood(seen);
        let saves = flood - seen.price();
        match self {
            Self::Down { looks, rests_until_ns } => {
                let pays = saves >= terms.above && now_ns >= *rests_until_ns;
                *looks = if pays { *looks + 1 } else { 0 };
                if *looks < LOOKS {
                    return None;
                }
                *self = Self::Up { calm_since_ns: None, was_of_use: false };
                Some(Turn::Up)
            }
            Self::Up { calm_since_ns, was_of_use } => {
                if saves >= terms.above * CALM {
                    *calm_since_ns = None;
                    *was_of_use = true;
                    return None;
                }
                let since = *calm_since_ns.get_or_insert(now_ns);
                if now_ns.saturating_sub(since) < terms.calm_ns {
                    return None;
                }
                // What it was raised for was another's flood, or one that only TC can refuse, or it cost more
                // than it saved.
                let rest_ns = if *was_of_use { 0 } else { terms.calm_ns.saturating_mul(REST) };
                *self = Self::Down { looks: 0, rests_until_ns: now_ns.saturating_add(rest_ns) };
                Some(if flood < terms.above * CALM { Turn::Down } else { Turn::TooDear })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const TERMS: Terms = Terms { above: 1000.0, calm_ns: 30 * SECOND };

    /// The turns that these rates make, one a second, with the second of each.
    fn turns(shield: &mut Shield, rates: &[f64]) -> Vec<(usize, Turn)> {
        let seconds = rates.iter().enumerate();
        let turn = |(second, rate): (usize, &f64)| {
            let seen = Seen { sent: *rate, shielded: *rate, refused: *rate, bytes: 0.0 };
            Some((second, shield.look(seen, TERMS, second as u64 * SECOND)?))
        };
        seconds.filter_map(turn).collect()
    }

    #[test]
    fn one_busy_second_raises_nothing() {
        let mut shield = Shield::default();
        let rates = [9000.0, 0.0].repeat(50);
        assert_eq!(turns(&mut shield, &rates), []);
        assert_eq!(turns(&mut shield, &[999.0; 100]), []);
        assert_eq!(turns(&mut shield, &[1000.0; 3]), [(1, Turn::Up)]);
    }

    #[test]
    fn it_comes_down_after_a_calm_that_nothing_interrupts() {
        let mut shield = Shield::INHERITED;
        let mut rates = vec![0.0; 20];
        rates.push(500.0);
        rates.extend([499.0; 40]);
        assert_eq!(turns(&mut shield, &rates), [(51, Turn::Down)]);
        assert!(!shield.is_up());
    }

    #[test]
    fn who_is_not_refused_floods_nobody_and_who_sends_nothing_neither() {
        let busy = Seen { sent: 5000.0, shielded: 0.0, refused: 10.0, bytes: 0.0 };
        assert_eq!(Shield::default().flood(busy), 10.0);
        let others = Seen { sent: 3.0, shielded: 0.0, refused: 80_000.0, bytes: 0.0 };
        assert_eq!(Shield::default().flood(others), 3.0);
        // What a shield refuses reaches TC no more, and what others do is not its.
        let shielded = Seen { sent: 0.0, shielded: 49_000.0, refused: 10.0, bytes: 0.0 };
        assert_eq!(Shield::INHERITED.flood(shielded), 49_000.0);
        assert_eq!(Shield::INHERITED.flood(others), 0.0);
    }

    #[test]
    fn one_that_costs_more_than_it_saves_is_not_raised_and_comes_down() {
        let flood = |bytes| Seen { sent: 5000.0, shielded: 0.0, refused: 5000.0, bytes };
        let looks = |shield: &mut Shield, seen: Seen| {
            (0..40).find_map(|second| Some((second, shield.look(seen, TERMS, second * SECOND)?)))
        };
        // Its own SYNs are no price, and neither is what weighs as much as 4000 of them.
        for bytes in [5000.0 * 74.0, 5000.0 * SYN + 4000.0 * BYTES_OF_A_SYN] {
            assert_eq!(looks(&mut Shield::default(), flood(bytes)), Some((1, Turn::Up)));
        }
        assert_eq!(
            looks(&mut Shield::default(), flood(5000.0 * SYN + 4001.0 * BYTES_OF_A_SYN)),
            None
        );
        let dear = |bytes| Shield::default().is_too_dear(flood(bytes), TERMS);
        assert_eq!([0.0, 100e6].map(dear), [false, true]);
        let up = |bytes| Seen { sent: 0.0, shielded: 5000.0, refused: 0.0, bytes };
        assert_eq!(looks(&mut { Shield::INHERITED }, up(5000.0 * SYN)), None);
        let down = Some((30, Turn::TooDear));
        assert_eq!(looks(&mut { Shield::INHERITED }, up(100e6)), down);
    }

    #[test]
    fn one_that_was_of_no_use_rests() {
        let mut shield = Shield::default();
        let mut rates = vec![9000.0; 2];
        rates.extend([0.0; 32]);
        // The same again, which is believed only after twenty calms.
        rates.extend([9000.0; 700]);
        let rested = 2 + 30 + 600;
        assert_eq!(
            turns(&mut shield, &rates),
            [(1, Turn::Up), (32, Turn::Down), (rested + 1, Turn::Up)]
        );
        // It refuses now, so that the next flood raises it at once.
        let mut rates = vec![9000.0];
        rates.extend([0.0; 31]);
        rates.extend([9000.0; 2]);
        assert_eq!(turns(&mut shield, &rates), [(31, Turn::Down), (33, Turn::Up)]);
    }

    proptest! {
        #[test]
        fn it_moves_seldom_and_never_without_a_reason(
            rates in proptest::collection::vec(prop_oneof![0.0..400.0f64, 400.0..1200.0, 0.0..9000.0], 1..400),
        ) {
            let mut shield = Shield::default();
            let mut up_since = None;
            for (second, turn) in turns(&mut shield, &rates) {
                match turn {
                    Turn::Up => {
                        prop_assert_eq!(up_since, None);
                        prop_assert!(rates[second - 1..=second].iter().all(|rate| *rate >= 1000.0));
                        up_since = Some(second);
                    }
                    Turn::Down | Turn::TooDear => {
                        let since = up_since.take();
                        prop_assert!(since.is_some_and(|since| second > since + 30));
                        prop_assert!(rates[second - 30..=second].iter().all(|rate| *rate < 500.0));
                    }
                }
            }
            prop_assert_eq!(shield.is_up(), up_since.is_some());
        }
    }
}
