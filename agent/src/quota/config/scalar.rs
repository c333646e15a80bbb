//! Scalars as the original's YAML reader understands them.

use crate::config::{
    fields::Notes,
    yaml::{Node, Value},
};

/// A text. Numbers and truth values are their text; nothing is the empty text. A number with a point
/// is refused, as the original does (`error checking config`): nobody can tell whether `1.10` was
/// meant to be `1.1`.
pub(super) fn text(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<String> {
    match &node.value {
        Value::Nothing => Some(String::new()),
        Value::Scalar(scalar) if scalar.plain && is_float(&scalar.text) => {
            let what = format!("`{key}`: `{}` is a number with a point", scalar.text);
            notes.error(node.at, what, format!("it in quotes: `\"{}\"`", scalar.text));
            None
        }
        Value::Scalar(scalar) => Some(scalar.text.clone()),
        _ => notes.text(key, node, "a text").map(|scalar| scalar.text.clone()),
    }
}

/// A whole number that fits 32 bits. Only plain decimal digits: the original takes `010` for 8 and
/// `1_000` for a thousand, and a limit is no place for such surprises.
pub(super) fn number(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<u32> {
    let expected = format!("a whole number from 0 to {}", u32::MAX);
    let scalar = notes.text(key, node, &expected)?;
    let digits = scalar.text.bytes().all(|byte| byte.is_ascii_digit());
    let surprising = scalar.text.len() > 1 && scalar.text.starts_with('0');
    let number = scalar.text.parse().ok().filter(|_| scalar.plain && digits && !surprising);
    if number.is_none() {
        notes.error(node.at, format!("`{key}`: `{}` is not accepted", scalar.text), expected);
    }
    number
}

/// A truth value, in all the words that YAML 1.1 has for it.
pub(super) fn truth(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<bool> {
    let scalar = notes.text(key, node, "`true` or `false`")?;
    let truth = scalar.plain.then(|| truth_of(&scalar.text)).flatten();
    if truth.is_none() {
        let what = format!("`{key}`: `{}` is no truth value", scalar.text);
        notes.error(node.at, what, "`true` or `false`");
    }
    truth
}

/// The truth value of a word.
pub(super) fn truth_of(word: &str) -> Option<bool> {
    match word {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            Some(true)
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            Some(false)
        }
        _ => None,
    }
}

/// Whether YAML takes a word for a number that is not whole.
pub(super) fn is_float(word: &str) -> bool {
    let digits = word.strip_prefix(['-', '+']).unwrap_or(word);
    let lower = digits.to_ascii_lowercase();
    if matches!(lower.as_str(), ".inf" | ".nan") {
        return true;
    }
    let numeric = digits.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && digits.contains(|letter: char| letter.is_ascii_digit());
    numeric && digits.contains(['.', 'e', 'E']) && digits.parse::<f64>().is_ok()
}
