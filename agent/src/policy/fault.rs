//! What can be wrong with a key or a value, said so that a person can mend it.
//!
//! An error carries three facts: what was wrong, the offending part with its column inside the
//! text, and what was expected. Where the text stands (file, annotation) is added by whoever read
//! it.

use std::{fmt, net::Ipv4Addr};

use super::{
    bandwidth::{MAX_FILL_SECONDS, MIN_BITS},
    key::Key,
    peer::Cidr,
    rate::{MAX_BURST, MAX_PER_SECOND, MAX_SOURCE_PER_SECOND, MAX_TOKENS, Period},
};

/// Something wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} (column {column}); expected {}", self.what(), fault.expected())]
pub struct ValueError {
    /// What was wrong.
    pub fault: Fault,
    /// The offending part, as written.
    pub quote: String,
    /// Where that part starts in the value: characters, from 1.
    pub column: u32,
}

impl ValueError {
    /// What was wrong, with the offending part.
    pub fn what(&self) -> String {
        let Self { fault, quote, .. } = self;
        if quote.is_empty() { fault.to_string() } else { format!("{fault}: `{quote}`") }
    }
}

/// The kinds of things that can be wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing was written.
    #[error("the value is empty")]
    Empty {
        /// What the key takes.
        expected: &'static str,
    },
    /// Between two `;` or after the last one stands nothing.
    #[error("an entry of the list is empty")]
    EmptyEntry,
    /// The text does not start with a rate.
    #[error("this is not a rate")]
    NotARate,
    /// Not written in digits.
    #[error("this is not a whole number")]
    NotANumber,
    /// More than fits.
    #[error("this number is too large")]
    TooLarge {
        /// The largest that is accepted.
        max: u64,
    },
    /// Zero tokens, or zero time.
    #[error("zero is not accepted")]
    Zero,
    /// A number without a time.
    #[error("a rate needs a time")]
    NoPeriod,
    /// Not a bandwidth with a unit that says bits or bytes.
    #[error("this is not a bandwidth with its unit")]
    NotABandwidth {
        /// The bandwidth that was probably meant.
        meant: Option<String>,
    },
    /// Less than a packet a second.
    #[error("this bandwidth is too low")]
    BandwidthTooLow,
    /// More than can be counted.
    #[error("this bandwidth is too high")]
    BandwidthTooHigh,
    /// Not a number of bytes with its unit.
    #[error("this is not a size in bytes")]
    NotASize,
    /// A burst that no full packet fits into.
    #[error("this burst is smaller than a packet")]
    BurstTooSmall {
        /// The bytes of one.
        least: u64,
    },
    /// A burst that takes too long to fill.
    #[error("this burst is too large")]
    BurstTooLarge,
    /// Less than a packet a second.
    #[error("this is less than a packet a second")]
    PacketsTooSlow,
    /// Not a quantity that Kubernetes takes for a bandwidth.
    #[error("this is not a quantity of bits a second")]
    NotAQuantity,
    /// A unit of time nobody knows.
    #[error("this unit of time is unknown")]
    UnknownUnit {
        /// The unit that was probably meant.
        meant: Option<&'static str>,
    },
    /// More per second than can be counted.
    #[error("this rate is too high")]
    TooFast {
        /// Whether it is a rate per source.
        per_source: bool,
    },
    /// The bucket takes too long to fill, or the period is too long.
    #[error("the bucket would take too long to fill")]
    TooSlow {
        /// The longest time, in hours.
        hours: u64,
    },
    /// A step brings more than the bucket holds.
    #[error("a step brings more tokens than the bucket holds")]
    StepOverflows {
        /// The tokens of one step.
        tokens: u32,
    },
    /// Not a number of connections.
    #[error("this is not a number of connections")]
    NotACount,
    /// A setting of a breaker that is out of its range, or no number or time at all.
    #[error("this value is not accepted")]
    BadSetting {
        /// What is.
        expected: String,
    },
    /// A breaker that nothing trips.
    #[error("nothing would ever trip this breaker")]
    NoCriterion,
    /// `min-volume` without `error-ratio`.
    #[error("only an `error-ratio` waits for a volume")]
    VolumeWithoutRatio,
    /// `error-ratio` beside an `errors` that always trips first.
    #[error("this ratio has no effect: `errors={errors}` always trips first")]
    RatioWithoutEffect {
        /// The failures in a row.
        errors: u16,
        /// The highest ratio that has an effect beside them, in per cent; 0 for none.
        highest: u32,
    },
    /// `max-ejection` below `ejection`.
    #[error("this is shorter than `ejection={ejection}`")]
    EjectionAboveMax {
        /// The first ejection.
        ejection: Period,
    },
    /// `probes` with `half-open=off`.
    #[error("without a half-open state there are no probes")]
    ProbesWithoutHalfOpen,
    /// `min-health` beside a `max-ejected` that is stricter, or the other way round.
    #[error("this has no effect: `{stricter}` is stricter")]
    BoundWithoutEffect {
        /// The other one.
        stricter: String,
    },
    /// A bound on the endpoints of a service, without a service.
    #[error("only a service has endpoints of which some must stay")]
    BoundWithoutService,
    /// Evidence of other workloads about anything at all.
    #[error("workloads share what they learn of a destination only")]
    SharedWithoutDestination,
    /// Not the name of a service.
    #[error("this cannot be the name of a service")]
    NotAService,
    /// An option or word nobody knows.
    #[error("this option is unknown")]
    UnknownOption {
        /// The options that the key takes.
        takes: &'static str,
        /// The option that was probably meant.
        meant: Option<&'static str>,
    },
    /// An option that another key has.
    #[error("this option does not belong to this key")]
    ForeignOption {
        /// The key it belongs to.
        belongs_to: &'static str,
    },
    /// An option twice.
    #[error("this option is written twice")]
    Repeated,
    /// Something after `shadow`.
    #[error("nothing may follow the word `shadow`")]
    AfterShadow,
    /// A word that is none of a few.
    #[error("this word is not accepted here")]
    NotOneOf {
        /// The words that are.
        words: &'static [&'static str],
        /// The one that was probably meant.
        meant: Option<&'static str>,
    },
    /// Neither an address nor a CIDR.
    #[error("this is not an address or CIDR")]
    NotAnAddress,
    /// A prefix length out of range.
    #[error("this prefix length is out of range")]
    PrefixLength {
        /// The longest of that family.
        max: u8,
    },
    /// Bits set behind the prefix.
    #[error("this CIDR has bits set behind its prefix")]
    HostBits {
        /// The network it lies in.
        network: Cidr,
    },
    /// An IPv4 address written as IPv6.
    #[error("this IPv4 address is written as IPv6")]
    Mapped(
        /// The address.
        Ipv4Addr,
    ),
    /// An IPv6 prefix so short that IPv4, which is mapped into IPv6, would be in it.
    #[error("this IPv6 prefix covers the mapped IPv4 addresses too")]
    CoversIpv4,
    /// Not `/N,/M`.
    #[error("this is not a pair of prefix lengths")]
    NotAGroup,
    /// Several entries where one is accepted.
    #[error("this key takes one entry, not a list")]
    NoList,
    /// Two entries of a list with the same destination.
    #[error("this destination has an entry already")]
    SameDestination,
}

impl Fault {
    /// What was expected instead.
    pub fn expected(&self) -> String {
        let did_you_mean = |meant: &Option<&'static str>, otherwise: &str| match meant {
            Some(meant) => format!("{otherwise}; did you mean `{meant}`?"),
            None => otherwise.to_owned(),
        };
        match self {
            Self::Empty { expected } => (*expected).to_owned(),
            Self::EmptyEntry => "an entry between two `;`, and none after the last".to_owned(),
            Self::NotARate => "a rate like `100/s`, `5/10s` or `1 per 60s`".to_owned(),
            Self::NotANumber => {
                "a whole number in digits (for less than one a second: `1 per 10s`)".to_owned()
            }
            Self::TooLarge { max } => format!("at most {max}"),
            Self::Zero => "1 or more (to take a limit away, remove its line)".to_owned(),
            Self::NoPeriod => "a time behind the number, like `100/s` or `100 per 1m`".to_owned(),
            Self::NotABandwidth { meant } => {
                let like = "a whole number with bit/s or B/s, like `80Mbit/s` or `10MB/s`";
                match meant {
                    Some(meant) => format!("{like}; did you mean `{meant}`?"),
                    None => like.to_owned(),
                }
            }
            Self::BandwidthTooLow => format!("a full packet a second ({MIN_BITS}bit/s) or more"),
            Self::BandwidthTooHigh => "at most 1Pbit/s".to_owned(),
            Self::NotASize => "a whole number of bytes with its unit, like `1MB` or `64KiB`".into(),
            Self::BurstTooSmall { least } => format!("{least}B or more"),
            Self::BurstTooLarge => {
                format!("at most what comes in {} hour", MAX_FILL_SECONDS / 3600)
            }
            Self::PacketsTooSlow => "1/s or more".to_owned(),
            Self::NotAQuantity => {
                "a quantity from 1k to 1P, like `10M` (Kubernetes means bits a second)".to_owned()
            }
            Self::UnknownUnit { meant } => did_you_mean(meant, "one of ms, s, m (or min), h"),
            Self::TooFast { per_source: false } => format!("at most {MAX_PER_SECOND} per second"),
            Self::TooFast { per_source: true } => {
                format!("at most {MAX_SOURCE_PER_SECOND} per second for each source")
            }
            Self::TooSlow { hours } => {
                format!("a period, and a time to refill the whole burst, of at most {hours} hours")
            }
            Self::StepOverflows { tokens } => {
                format!("burst={tokens} or more with refill=step, or refill=smooth")
            }
            Self::NotACount => {
                "a whole number of connections at once, like `500` (a rate belongs to \
                 `connections`)"
                    .to_owned()
            }
            Self::BadSetting { expected } => expected.clone(),
            Self::NoCriterion => "errors=N, error-ratio=N%, or both".to_owned(),
            Self::VolumeWithoutRatio => "error-ratio=N% beside it, or no min-volume".to_owned(),
            Self::RatioWithoutEffect { highest: 0, .. } => {
                "errors=2 or more, or no error-ratio".to_owned()
            }
            Self::RatioWithoutEffect { highest, .. } => {
                format!("error-ratio={highest}% or lower, a larger errors, or only one of the two")
            }
            Self::EjectionAboveMax { ejection } => {
                format!("max-ejection={ejection} or longer, or a shorter ejection")
            }
            Self::ProbesWithoutHalfOpen => "half-open=on, or no probes".to_owned(),
            Self::BoundWithoutEffect { .. } => {
                "only one of the two, or both so that they make 100%".to_owned()
            }
            Self::BoundWithoutService => "it beside to=service/NAME".to_owned(),
            Self::SharedWithoutDestination => "it beside to=CIDR or to=service/NAME".to_owned(),
            Self::NotAService => {
                "service/NAME, with a name of up to 31 of a-z, 0-9 and `-`".to_owned()
            }
            Self::UnknownOption { takes, meant } => did_you_mean(meant, takes),
            Self::ForeignOption { belongs_to } => format!("it only with `{belongs_to}`"),
            Self::Repeated => "each option once".to_owned(),
            Self::AfterShadow => "`shadow` as the last word".to_owned(),
            Self::NotOneOf { words, meant } => {
                let list = words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>();
                did_you_mean(meant, &list.join(" or "))
            }
            Self::NotAnAddress => {
                "an IP address, a CIDR like 10.0.0.0/8 (names are not resolved), or with `to=` a \
                 service of the node file: service/NAME"
                    .to_owned()
            }
            Self::PrefixLength { max } => format!("a prefix length of 0 to {max}"),
            Self::HostBits { network } => format!("{network}"),
            Self::Mapped(address) => format!("{address}"),
            Self::CoversIpv4 => "2000::/3 for all public IPv6 addresses, or a longer prefix".into(),
            Self::NotAGroup => {
                "an IPv4 prefix length of 1 to 32 and an IPv6 one of 1 to 128, like group=/24,/56"
                    .to_owned()
            }
            Self::NoList => "one entry without `;` (lists are for `outbound-connections` and `outbound-breaker`)".into(),
            Self::SameDestination => "one entry for each `to=`".to_owned(),
        }
    }

    /// The fault of a number that is too large for a count of tokens.
    pub(super) const fn too_many_tokens(burst: bool) -> Self {
        Self::TooLarge { max: if burst { MAX_BURST } else { MAX_TOKENS } as u64 }
    }
}

/// Something wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nobody knows it.
    #[error("unknown key `{key}`")]
    Unknown {
        /// As written.
        key: String,
        /// The key that was probably meant.
        meant: Option<Key>,
    },
    /// A port on a key that holds for the whole workload.
    #[error("`{key}` takes no port")]
    NoPort {
        /// As written.
        key: String,
        /// The key without the port.
        name: &'static str,
    },
    /// A port that is neither a number nor a name.
    #[error("`{port}` in `{key}` is not a port")]
    NotAPort {
        /// As written.
        key: String,
        /// The part behind the dot.
        port: String,
    },
}

impl KeyError {
    /// What was expected instead.
    pub fn expected(&self) -> String {
        match self {
            Self::Unknown { meant: Some(meant), .. } => format!("`{meant}`"),
            Self::Unknown { meant: None, .. } => format!("one of {}", Names(Key::NAMES)),
            Self::NoPort { name, .. } => format!("`{name}`"),
            Self::NotAPort { .. } => {
                "a number from 1 to 65535, or the name of a declared port (up to 15 of a-z, 0-9 and \
                 `-`, with a letter)"
                    .to_owned()
            }
        }
    }
}

struct Names(&'static [&'static str]);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}
