//! Breakers that belong together: the endpoints of a service, of which only so many may be ejected.
//!
//! Nobody keeps a list of who is. Each endpoint's word says since when it has been ejected, so who is
//! about to refuse looks at the words of all: of those that are ejected, the first so many refuse, and
//! the others let pass what comes. There is no place to be taken and given back, so none is lost when
//! an ejection simply ends, a CPU stops between two steps, or the agent dies.
//!
//! Words are read one after the other. Who trips while another reads may be missed by it, and both
//! refuse the SYNs that are under way; a SYN that comes after both have tripped sees both.

use super::{
    Params,
    words::{Phase, State, TICK_SHIFT},
};

/// How long a breaker has been ejected, in ticks; `None` when it is not. Half-open it has been for
/// longer than any that is open.
#[inline(always)]
pub fn ejected_for(word: u64, params: &Params, now_ns: u64) -> Option<u64> {
    let state = State::read(word);
    match state.phase {
        Phase::Closed => None,
        Phase::HalfOpen => Some(u64::MAX >> 1),
        Phase::Open => {
            let remaining = state.remaining(params, now_ns);
            let whole = params.ejection_ns(state.ejections) >> TICK_SHIFT;
            // Rounded up when it began, and read by a CPU whose time may be older.
            if remaining == 0 { None } else { Some(1 + (whole + 2).saturating_sub(remaining)) }
        }
    }
}

/// Whether another one that is ejected has its place before this one: for longer, or for as long and
/// with a lower number.
#[inline(always)]
pub const fn is_before(other: (u64, u32), this: (u64, u32)) -> bool {
    other.0 > this.0 || (other.0 == this.0 && other.1 < this.1)
}
