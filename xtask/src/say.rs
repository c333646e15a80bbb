//! What xtask says. Steps and notes go to stderr, so that stdout holds results alone and can be
//! piped. Knows nothing of what is being done.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _},
};

/// Announces what happens next.
pub(crate) fn step(area: &str, text: impl Display) {
    if io::stderr().is_terminal() {
        eprintln!("\x1b[1;36m==> {area}:\x1b[0m {text}");
    } else {
        eprintln!("==> {area}: {text}");
    }
}

/// A detail of the step above it.
pub(crate) fn note(text: impl Display) {
    eprintln!("    {text}");
}

/// Lays rows out in columns: the first to the left, the others to the right, as figures like it.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, width))| {
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                })
                .collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A number with its thousands apart, as in `100 000`.
pub(crate) fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1000), "1 000");
        assert_eq!(thousands(1_234_567), "1 234 567");
    }

    #[test]
    fn a_table_puts_names_left_and_figures_right() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(table(&[row("name", "n"), row("x", "100")]), "name    n\nx     100\n");
    }
}
