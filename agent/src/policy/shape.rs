//! What keys and values look like, as regular expressions: for whoever checks what is written long
//! before an agent reads it, and cannot run the grammar.
//!
//! A shape takes everything that the grammar takes. It takes more: numbers out of bounds, an option
//! twice, settings that contradict each other, prefixes with bits behind them. The syntax is RE2's
//! (<https://github.com/google/re2/wiki/Syntax>), which Rust's `regex` understands, too.

use super::key::{ANNOTATION_PREFIX, KeyKind, LimitKind};

/// What Rust calls white space; `\s` of RE2 is ASCII's alone, without the vertical tab.
const BLANK: &str = r"[\s\pZ\x0b\x85]";
const NUMBER: &str = "0*[1-9][0-9]{0,9}";
const PERIOD: &str = "[0-9]*(ms|s|min|m|h)";
const PREFIX: &str = "([kMGTP]|[KMGTP]i)?";
/// A destination; what is a network and what is a name is the grammar's to say.
const TO: &str = "to=(service/[^;]+|[0-9A-Fa-f:./]+)";

/// The annotation of a key, with any port or none.
pub fn annotation(kind: KeyKind) -> String {
    format!("^{}({})$", regex_of(ANNOTATION_PREFIX), key(kind))
}

/// The annotations that a workload or a namespace may have.
pub fn annotations() -> String {
    let keys: Vec<String> = keys().map(key).collect();
    format!("^{}({})$", regex_of(ANNOTATION_PREFIX), keys.join("|"))
}

/// The keys that workloads and namespaces may set: not the administrator's.
pub fn keys() -> impl Iterator<Item = KeyKind> {
    KeyKind::ALL.into_iter().filter(|kind| *kind != KeyKind::Exempt)
}

fn regex_of(text: &str) -> String {
    text.replace('.', r"\.")
}

fn key(kind: KeyKind) -> String {
    // A number, or a name with a letter: of RFC 6335 more is the grammar's to say.
    let port = if kind.takes_port() { r"(\.[a-z0-9-]{1,15})?" } else { "" };
    format!("{}{port}", kind.name())
}

/// What values of a key look like, and one of them.
pub fn value(kind: KeyKind) -> (String, &'static str) {
    let (shape, example) = match kind {
        KeyKind::Mode => ("(enforce|shadow)".to_owned(), "shadow"),
        KeyKind::OnLimit => ("(reset|drop)".to_owned(), "drop"),
        KeyKind::Exempt => (".+".to_owned(), "10.0.0.0/8"),
        KeyKind::Limit(kind) => limit(kind),
    };
    (format!("^{BLANK}*{shape}{BLANK}*$"), example)
}

/// Words with blanks between them, the last of which may be `shadow`.
fn words(first: &str, more: &[&str]) -> String {
    let more = match more {
        [] => String::new(),
        more => format!("({BLANK}+({}))*", more.join("|")),
    };
    format!("({first}){more}({BLANK}+shadow)?")
}

fn limit(kind: LimitKind) -> (String, &'static str) {
    let burst = format!("burst={NUMBER}");
    let size = format!("burst=[0-9]+{PREFIX}B");
    let rate = format!("{NUMBER}/{PERIOD}|{NUMBER}{BLANK}+per{BLANK}+{PERIOD}");
    let (refill, group) = ("refill=(smooth|step)", "group=/[0-9]+,/[0-9]+");
    let bandwidth = format!("[0-9]+{PREFIX}(bit|B)/s");
    match kind {
        LimitKind::Connections => (words(&rate, &[&burst, refill]), "100/s burst=200"),
        LimitKind::ConnectionsPerSource => (words(&rate, &[&burst, refill, group]), "20/s"),
        LimitKind::OutboundConnections => {
            (list(&words(&rate, &[&burst, refill, TO])), "50/s to=10.0.0.0/8")
        }
        LimitKind::MaxConnections | LimitKind::MaxHandshakes => (words(NUMBER, &[]), "500"),
        LimitKind::MaxConnectionsPerSource => (words(NUMBER, &[group]), "20 group=/24,/56"),
        LimitKind::Breaker => (breaker(&[]), "errors=5 ejection=30s"),
        LimitKind::OutboundBreaker => {
            let percents = format!("(min-health|max-ejected)={NUMBER}%");
            let more = [TO, &percents, "scope=(workload|node)"];
            (list(&breaker(&more)), "errors=5 to=10.0.0.7")
        }
        LimitKind::ConnectionBandwidth
        | LimitKind::IngressBandwidth
        | LimitKind::EgressBandwidth => (words(&bandwidth, &[&size]), "80Mbit/s burst=1MB"),
        LimitKind::Packets => {
            (words(&format!("{NUMBER}[kM]?/{PERIOD}"), &[&burst]), "50k/s burst=1000")
        }
        // Quotes may stand anywhere in a word.
        LimitKind::Quota => {
            (format!(r#"(?s:[domain"]+=.+{BLANK}.*=.*)"#), "domain=shop authenticated=false")
        }
    }
}

fn breaker(more: &[&str]) -> String {
    let numbers = format!("(errors|min-volume|probes)={NUMBER}");
    let percent = format!("error-ratio={NUMBER}%");
    let times = format!("(interval|connect-timeout|ejection|max-ejection)={PERIOD}");
    let switches = "(half-open|http1)=(on|off)";
    let all: Vec<&str> =
        [&*numbers, &*percent, &*times, switches].into_iter().chain(more.iter().copied()).collect();
    words(&all.join("|"), &all)
}

fn list(entry: &str) -> String {
    format!("{entry}({BLANK}*;{BLANK}*{entry})*")
}
