//! The wall clock as the reader of a table sees it.

use crate::clock::Clock;

/// Seconds since 1970, now.
pub(super) fn now() -> f64 {
    Clock.realtime_ns() as f64 / 1e9
}

/// A time of day in this machine's time zone: `13:04:05`, with the day if it is not today's.
pub(super) fn local(time: f64) -> String {
    let (Some(then), Some(now)) = (fields(time), fields(now())) else { return "-".to_owned() };
    let day = |fields: &libc::tm| (fields.tm_year, fields.tm_yday);
    let clock = format!("{:02}:{:02}:{:02}", then.tm_hour, then.tm_min, then.tm_sec);
    if day(&then) == day(&now) {
        return clock;
    }
    let (year, month) = (then.tm_year.saturating_add(1900), then.tm_mon + 1);
    format!("{year}-{month:02}-{:02} {clock}", then.tm_mday)
}

fn fields(time: f64) -> Option<libc::tm> {
    // A time that does not fit becomes the nearest one that does.
    let time = time as libc::time_t;
    let mut fields = std::mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call, which fills the fields or returns null. It
    // reads TZ from the environment, which this program never changes.
    unsafe {
        let filled = libc::localtime_r(&raw const time, fields.as_mut_ptr());
        if filled.is_null() { None } else { Some(fields.assume_init()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_day_is_named() {
        let today = local(now());
        assert_eq!(today.len(), "13:04:05".len(), "{today}");
        // Noon UTC is in 2001 in every time zone.
        let then = local(1_000_000_000.0);
        assert!(
            then.starts_with("2001-09-") && then.len() == "2001-09-09 01:46:40".len(),
            "{then}"
        );
        // No calendar goes that far.
        assert_eq!(local(f64::MAX), "-");
    }
}
