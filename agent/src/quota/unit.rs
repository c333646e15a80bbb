//! Units of time, as envoyproxy/ratelimit names them.

use std::fmt;

use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit;

/// The length of a window. Months have 30 days and years 365, as in the original
/// (`src/utils/utilities.go`, `UnitToDivider`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3600 s.
    Hour,
    /// 24 h.
    Day,
    /// 7 days, from Thursday to Wednesday: the epoch began on a Thursday.
    Week,
    /// 30 days.
    Month,
    /// 365 days.
    Year,
}

impl Unit {
    /// All of them, by length.
    pub const ALL: [Self; 7] =
        [Self::Second, Self::Minute, Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    /// Its length.
    pub const fn seconds(self) -> u32 {
        const DAY: u32 = 86_400;
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
            Self::Day => DAY,
            Self::Week => 7 * DAY,
            Self::Month => 30 * DAY,
            Self::Year => 365 * DAY,
        }
    }

    /// The name in files: case does not matter there.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    /// The unit of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| unit.name().eq_ignore_ascii_case(name))
    }

    /// `RateLimitResponse.RateLimit.Unit`.
    pub const fn proto(self) -> rate_limit::Unit {
        match self {
            Self::Second => rate_limit::Unit::Second,
            Self::Minute => rate_limit::Unit::Minute,
            Self::Hour => rate_limit::Unit::Hour,
            Self::Day => rate_limit::Unit::Day,
            Self::Week => rate_limit::Unit::Week,
            Self::Month => rate_limit::Unit::Month,
            Self::Year => rate_limit::Unit::Year,
        }
    }

    /// The unit of a number on the wire. `RateLimitResponse.RateLimit.Unit`, `type.v3.RateLimitUnit`
    /// and the `RateLimitUnit` of the configuration's xDS type have the same numbers.
    pub fn from_proto(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| unit.proto() as i32 == number)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
