//! Bandwidths as a person writes them: `80Mbit/s burst=1MB`, and as Kubernetes does: `10M`.
//!
//! Own keys demand a unit that says bits or bytes: `10M` is ten times something else for whoever reads
//! it as the other. What is written in Kubernetes' annotations are bare quantities of bits.

use std::{fmt, num::NonZeroU64};

use serde::{Serialize, Serializer};

use super::{
    fault::{Fault, ValueError},
    part::Part,
};

/// Bytes of the largest ordinary frame, without which no burst is worth having.
pub const FRAME: u64 = 1514;
/// The lowest bandwidth: a frame a second, in bits.
pub const MIN_BITS: u64 = FRAME * 8;
/// The highest bandwidth, as in Kubernetes: 1 Pbit/s.
pub const MAX_BITS: u64 = 1_000_000_000_000_000;
/// The longest time that a bucket may take to fill: an hour.
pub const MAX_FILL_SECONDS: u64 = 3600;

/// The default burst in time: a quarter of a second. Where a limit drops, TCP over a short way knows no
/// slower pace than to wait for its timeout, 200 ms on Linux; what comes meanwhile must not be lost.
const BURSTS_PER_SECOND: u64 = 4;
/// The least default burst: what TCP sends before it hears anything (ten frames, RFC 6928).
const LEAST_BURST: u64 = 10 * FRAME;

/// A rate of bytes, and how many may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bandwidth {
    bits: NonZeroU64,
    burst: Option<NonZeroU64>,
}

impl Bandwidth {
    /// A bandwidth of so many bits a second, with a burst of so many bytes or the default, unless one
    /// is out of the bounds of this module.
    pub fn new(bits: u64, burst: Option<u64>) -> Option<Self> {
        let bits =
            NonZeroU64::new(bits).filter(|bits| (MIN_BITS..=MAX_BITS).contains(&bits.get()))?;
        let burst = match burst {
            None => None,
            Some(bytes) if bytes < FRAME || fills_too_slowly(bytes, bits.get()) => return None,
            Some(bytes) => NonZeroU64::new(bytes),
        };
        Some(Self { bits, burst })
    }

    /// Bits a second.
    pub const fn bits(self) -> u64 {
        self.bits.get()
    }

    /// Bytes that may come at once: as written, or those of 250 ms and at least ten full frames.
    pub fn burst(self) -> u64 {
        let default = || (self.bits() / 8 / BURSTS_PER_SECOND).max(LEAST_BURST);
        self.burst.map_or_else(default, NonZeroU64::get)
    }

    /// What admits no more than either.
    pub fn stricter(self, other: Self) -> Self {
        let bits = self.bits.min(other.bits);
        let burst = self.burst().min(other.burst());
        let plain = Self { bits, burst: None };
        if plain.burst() == burst { plain } else { Self { bits, burst: NonZeroU64::new(burst) } }
    }
}

const fn fills_too_slowly(bytes: u64, bits: u64) -> bool {
    bytes as u128 * 8 > bits as u128 * MAX_FILL_SECONDS as u128
}

impl fmt::Display for Bandwidth {
    /// As it would be written; a default burst is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}bit/s", Scaled(self.bits()))?;
        match self.burst {
            Some(bytes) => write!(f, " burst={}B", Scaled(bytes.get())),
            None => Ok(()),
        }
    }
}

impl Serialize for Bandwidth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What stands before `bit/s` or `B`.
const PREFIXES: [(&str, u64); 11] = [
    ("Pi", 1 << 50),
    ("P", 1_000_000_000_000_000),
    ("Ti", 1 << 40),
    ("T", 1_000_000_000_000),
    ("Gi", 1 << 30),
    ("G", 1_000_000_000),
    ("Mi", 1 << 20),
    ("M", 1_000_000),
    ("Ki", 1 << 10),
    ("k", 1000),
    ("", 1),
];

/// A number with the largest prefix that needs no fraction.
struct Scaled(u64);

impl fmt::Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A power of two is also a multiple of smaller powers of ten: the shortest number wins.
        let fitting = PREFIXES.iter().filter(|(_, scale)| self.0.is_multiple_of(*scale));
        let (prefix, scale) = fitting.max_by_key(|(_, scale)| *scale).unwrap_or(&("", 1));
        write!(f, "{}{prefix}", self.0 / scale)
    }
}

/// Reads `80Mbit/s` or `10MB/s`: bits a second.
pub(super) fn rate(part: Part<'_>) -> Result<u64, ValueError> {
    let not_one = |meant| part.fault(Fault::NotABandwidth { meant });
    let (number, unit) = number(part).ok_or_else(|| not_one(None))?;
    let found = ["bit/s", "B/s"].into_iter().zip([1, 8]).find_map(|(suffix, bits)| {
        let prefix = unit.text.strip_suffix(suffix)?;
        Some((scale(prefix)?, bits))
    });
    let Some((scale, bits)) = found else { return Err(not_one(meant(number.text, unit.text))) };
    let bits = number.text.parse::<u64>().ok().and_then(|number| {
        number.checked_mul(scale)?.checked_mul(bits).filter(|bits| *bits <= MAX_BITS)
    });
    match bits {
        None => Err(part.fault(Fault::BandwidthTooHigh)),
        Some(0) => Err(part.fault(Fault::Zero)),
        Some(bits) if bits < MIN_BITS => Err(part.fault(Fault::BandwidthTooLow)),
        Some(bits) => Ok(bits),
    }
}

/// Reads `1MB` or `64KiB`: bytes.
pub(super) fn size(part: Part<'_>) -> Result<u64, ValueError> {
    let (number, unit) = number(part).ok_or_else(|| part.fault(Fault::NotASize))?;
    let prefix = unit.text.strip_suffix('B').and_then(scale);
    let prefix = prefix.ok_or_else(|| part.fault(Fault::NotASize))?;
    let bytes = number.text.parse::<u64>().ok().and_then(|number| number.checked_mul(prefix));
    match bytes {
        Some(0) => Err(part.fault(Fault::Zero)),
        Some(bytes) if bytes < FRAME => Err(part.fault(Fault::BurstTooSmall { least: FRAME })),
        Some(bytes) => Ok(bytes),
        None => Err(part.fault(Fault::BurstTooLarge)),
    }
}

/// Puts a rate and a burst together.
pub(super) fn join(
    bits: u64,
    burst: Option<(u64, Part<'_>)>,
    at: Part<'_>,
) -> Result<Bandwidth, ValueError> {
    let bandwidth = Bandwidth::new(bits, burst.map(|(bytes, _)| bytes));
    bandwidth.ok_or_else(|| burst.map_or(at, |(_, at)| at).fault(Fault::BurstTooLarge))
}

fn number(part: Part<'_>) -> Option<(Part<'_>, Part<'_>)> {
    let digits = part.text.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| (part.until(digits), part.from(digits)))
}

fn scale(prefix: &str) -> Option<u64> {
    PREFIXES.iter().find(|(name, _)| *name == prefix).map(|(_, scale)| *scale)
}

/// What was probably meant by a unit that says not enough.
fn meant(number: &str, unit: &str) -> Option<String> {
    let lower = unit.to_lowercase();
    let bare = ["bits/s", "bit/s", "bps", "b/s", "bit", "b", "ps", "/s", ""];
    let stem = bare.iter().find_map(|suffix| lower.strip_suffix(suffix))?;
    let (prefix, _) = PREFIXES.iter().find(|(name, _)| name.to_lowercase() == stem)?;
    Some(format!("{number}{prefix}bit/s"))
}

/// Reads the value of `kubernetes.io/ingress-bandwidth` or `egress-bandwidth`: a quantity of bits a
/// second.
///
/// Kubernetes takes 1k to 1P
/// (<https://github.com/kubernetes/kubernetes/blob/v1.31.0/pkg/util/bandwidth/utils.go>), as a quantity
/// (<https://github.com/kubernetes/apimachinery/blob/v0.31.0/pkg/api/resource/quantity.go>): digits with
/// a fraction, then a binary or decimal suffix or an exponent.
pub fn parse_kubernetes(text: &str) -> Result<Bandwidth, ValueError> {
    let whole = Part { text, column: 1 };
    let refused = || whole.fault(Fault::NotAQuantity);
    let bits = quantity(text).ok_or_else(refused)?;
    if !(1000..=MAX_BITS).contains(&bits) {
        return Err(refused());
    }
    Bandwidth::new(bits, None).ok_or_else(|| whole.fault(Fault::BandwidthTooLow))
}

/// The value of a quantity, rounded up as Kubernetes does.
fn quantity(text: &str) -> Option<u64> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at_checked(end)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // No quantity that is accepted needs more digits than a u128 has.
    if whole.len() + fraction.len() == 0 || whole.len() + fraction.len() > 18 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let mut below = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let mut above = 1_u128;
    match suffix {
        "n" => below = below.checked_mul(1_000_000_000)?,
        "u" => below = below.checked_mul(1_000_000)?,
        "m" => below = below.checked_mul(1000)?,
        "E" => above = 1_000_000_000_000_000_000,
        "Ei" => above = 1 << 60,
        _ => match scale(suffix) {
            Some(scale) => above = scale.into(),
            None => {
                let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
                let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
                if exponent < 0 {
                    below = below.checked_mul(power)?;
                } else {
                    above = power;
                }
            }
        },
    }
    u64::try_from(digits.checked_mul(above)?.div_ceil(below)).ok()
}

#[cfg(test)]
#[path = "bandwidth_tests.rs"]
mod tests;
