//! Quotas as a workload names them: `domain=shop user=ann`. Each new connection is one hit on that
//! descriptor.
//!
//! What the descriptor admits stands in the quota files; a name here only says which one.

use std::fmt;

use arrayvec::ArrayString;
use serde::{Serialize, Serializer};

use super::{
    fault::{Fault, ValueError},
    part::Part,
};

/// Most bytes of a name as it is written.
pub const LONGEST: usize = 200;
/// Most entries of a descriptor.
pub const MOST_ENTRIES: usize = 16;

/// A quota's name: a domain and the entries of a descriptor, in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota(ArrayString<LONGEST>);

/// What a value can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variables<'a> {
    /// `$namespace`: empty on a machine without Kubernetes.
    pub namespace: &'a str,
    /// `$pod`: the workload's name.
    pub pod: &'a str,
    /// `$port`: the port of the line; empty for all ports together.
    pub port: &'a str,
}

impl Variables<'_> {
    const WORDS: &'static [&'static str] = &["$namespace", "$pod", "$port"];

    fn fill(&self, value: String) -> String {
        match value.as_str() {
            "$namespace" => self.namespace.to_owned(),
            "$pod" => self.pod.to_owned(),
            "$port" => self.port.to_owned(),
            _ => value,
        }
    }
}

impl Quota {
    /// Reads a name, and whether the word `shadow` follows.
    pub(super) fn parse(entry: Part<'_>) -> Result<(Self, bool), ValueError> {
        const EXPECTED: &str = "a domain and its descriptor, like `domain=shop user=ann`";
        let mut words = words(entry);
        let is_shadow = words.last().is_some_and(|word| word.text == "shadow");
        if is_shadow {
            words.pop();
        }
        let Some((domain, entries)) = words.split_first() else {
            return Err(entry.fault(Fault::Empty { expected: EXPECTED }));
        };
        let bad = |word: &Part<'_>, expected: &str| {
            Err(word.fault(Fault::BadSetting { expected: expected.to_owned() }))
        };
        match pair(domain.text) {
            Some((key, value)) if key == "domain" && !value.is_empty() => {}
            _ => return bad(domain, "`domain=NAME` first, then the entries of the descriptor"),
        }
        if entries.is_empty() {
            return bad(domain, "one entry at least behind the domain, like `user=ann`");
        }
        if let Some(word) = entries.get(MOST_ENTRIES) {
            return bad(word, "at most 16 entries");
        }
        for word in entries {
            let Some((key, value)) = pair(word.text) else {
                return bad(word, "`key=value`; a value with blanks stands in \"quotes\"");
            };
            if key.is_empty() {
                return bad(word, "a key before the `=`");
            }
            if value.starts_with('$') && !Variables::WORDS.contains(&value.as_str()) {
                return bad(word, "$namespace, $pod or $port, or a value without `$` at its start");
            }
        }
        let mut text = ArrayString::new();
        for (index, word) in words.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            if text.try_push_str(blank).and_then(|()| text.try_push_str(word.text)).is_err() {
                return bad(word, "at most 200 bytes in all");
            }
        }
        Ok((Self(text), is_shadow))
    }

    /// The domain.
    pub fn domain(&self) -> String {
        self.pairs().next().map(|(_, domain)| domain).unwrap_or_default()
    }

    /// The descriptor's entries, with what variables stand for.
    pub fn entries(&self, variables: &Variables<'_>) -> Vec<(String, String)> {
        self.pairs().skip(1).map(|(key, value)| (key, variables.fill(value))).collect()
    }

    fn pairs(&self) -> impl Iterator<Item = (String, String)> {
        words(Part { text: &self.0, column: 1 }).into_iter().filter_map(|word| pair(word.text))
    }
}

impl fmt::Display for Quota {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0.as_str(), f)
    }
}

impl Serialize for Quota {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The words of a text; blanks between quotes separate none.
fn words(whole: Part<'_>) -> Vec<Part<'_>> {
    let mut words = Vec::new();
    let (mut start, mut quoted) = (None, false);
    for (at, letter) in whole.text.char_indices() {
        quoted ^= letter == '"';
        match start {
            None if !letter.is_whitespace() => start = Some(at),
            Some(first) if letter.is_whitespace() && !quoted => {
                words.push(whole.until(at).from(first));
                start = None;
            }
            _ => {}
        }
    }
    words.extend(start.map(|first| whole.from(first)));
    words
}

/// A key and its value, without quotes; `None` without `=` and where a quote is not closed.
fn pair(word: &str) -> Option<(String, String)> {
    let (key, value) = word.split_once('=')?;
    let bare = |text: &str| text.replace('"', "");
    let closed = word.matches('"').count().is_multiple_of(2);
    closed.then(|| (bare(key), bare(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Quota, bool), ValueError> {
        Quota::parse(Part { text, column: 1 })
    }

    const VARIABLES: Variables<'_> = Variables { namespace: "shop", pod: "web-1", port: "3306" };

    #[test]
    fn a_name_is_a_domain_and_entries_in_order() {
        let (quota, shadow) = parse("  domain=shop  authenticated=false path=/a=b ").unwrap();
        assert!(!shadow);
        assert_eq!(quota.domain(), "shop");
        let entries = quota.entries(&VARIABLES);
        let entry = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(entries, [entry("authenticated", "false"), entry("path", "/a=b")]);
        assert_eq!(quota.to_string(), "domain=shop authenticated=false path=/a=b");
    }

    #[test]
    fn quotes_hold_blanks_together_and_variables_stand_for_facts() {
        let (quota, shadow) =
            parse(r#"domain="my shop" user="ann b" pod=$pod port=$port ns=$namespace e= shadow"#)
                .unwrap();
        assert!(shadow);
        assert_eq!(quota.domain(), "my shop");
        let values: Vec<_> =
            quota.entries(&VARIABLES).into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, ["ann b", "web-1", "3306", "shop", ""]);
    }

    #[test]
    fn what_is_no_name_is_refused_where_it_stands() {
        let long = format!("domain=shop key={}", "x".repeat(LONGEST));
        let many = format!("domain=shop{}", " a=b".repeat(MOST_ENTRIES + 1));
        for (text, column) in [
            ("", 1),
            ("shadow", 1),
            ("shop user=ann", 1),
            ("user=ann domain=shop", 1),
            ("domain= user=ann", 1),
            ("domain=shop", 1),
            ("domain=shop user", 13),
            ("domain=shop =ann", 13),
            ("domain=shop user=\"ann", 13),
            ("domain=shop user=$source", 13),
            (&long, 13),
            (&many, 77),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.column, column, "{text}: {error}");
        }
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for text in ["domain=a b=c", "domain=a b=\"c d\" e=$pod"] {
            let (quota, _) = parse(text).unwrap();
            assert_eq!(parse(&quota.to_string()).unwrap().0, quota);
        }
    }
}
