//! What a decision adds to a rule's counts, as the original does
//! (`src/limiter/base_limiter.go`).

use super::{
    engine::{Hits, Taken},
    series::Counts,
};

/// The number of hits beyond which hits are near a limit. The original multiplies in 32 bits.
fn near(limit: u32, ratio: f32) -> u64 {
    (limit as f32 * ratio).floor() as u64
}

/// Counts hits that were decided. `shadow` says that the rule does not enforce.
pub(super) fn count(counts: &Counts, hits: Hits, taken: &Taken, shadow: bool, ratio: f32) {
    let hits = match hits {
        Hits::Add(hits) => hits,
        Hits::GiveBack(hits) => return counts.total_negative_hits.add(hits),
    };
    counts.total_hits.add(hits);
    let (limit, near) = (u64::from(taken.limit), near(taken.limit, ratio));
    if !taken.over {
        if taken.after > near {
            let inside = if taken.before >= near { hits } else { taken.after - near };
            counts.near_limit.add(inside);
        }
        counts.within_limit.add(hits);
        return;
    }
    // What counts by time knows only that the hits did not fit.
    let over = if taken.before >= limit { hits } else { taken.after.saturating_sub(limit).max(1) };
    counts.over_limit.add(over);
    if taken.before < limit {
        counts.near_limit.add(limit - near.max(taken.before));
    }
    if shadow {
        counts.shadow_mode.add(over);
    }
}
