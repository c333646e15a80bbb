//! Tables: aligned, at most [`WIDTH`] columns wide, nothing cut off.
//!
//! Where the cells are too wide together, the widest texts are wrapped, at spaces if they can be.

use std::fmt::Write as _;

use super::look::{Look, Mood, clean};

/// Characters in a line.
pub(super) const WIDTH: usize = 100;
/// Between two columns.
const GAP: usize = 2;
/// No text is wrapped to less.
const NARROWEST: usize = 12;

/// On which side of its column a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// For texts.
    Left,
    /// For numbers, which are never wrapped.
    Right,
}

/// One cell.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    mood: Mood,
}

impl Cell {
    pub(super) fn new(text: impl AsRef<str>, mood: Mood) -> Self {
        Self { text: clean(text.as_ref()), mood }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Mood::Plain)
    }
}

/// A table with a title for each column.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Side)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(super) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// Adds a row whose cells are as many as the columns, which are known to the caller alone.
    pub(super) fn push(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub(super) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes a column away if it says nothing: if all its cells are `nothing`.
    pub(super) fn without_idle(mut self, title: &str, nothing: &str) -> Self {
        let column = self.columns.iter().position(|(other, _)| *other == title);
        let Some(column) = column else { return self };
        if self.rows.iter().all(|row| row.get(column).is_none_or(|cell| cell.text == nothing)) {
            self.columns.remove(column);
            for row in self.rows.iter_mut().filter(|row| column < row.len()) {
                row.remove(column);
            }
        }
        self
    }

    /// The whole table, a line feed at its end; nothing if it has no rows.
    pub(super) fn render(&self, look: &Look) -> String {
        let mut text = String::new();
        if self.rows.is_empty() {
            return text;
        }
        let widths = self.widths();
        let titles: Vec<_> =
            self.columns.iter().map(|(title, _)| Cell::new(title, Mood::Title)).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            self.render_row(&mut text, row, &widths, look);
        }
        text
    }

    /// The widths of the columns: what their texts need, less what is too much for a line. The
    /// widest texts give first, down to their longest word, and only then are words broken.
    fn widths(&self) -> Vec<usize> {
        let needed = |of: fn(&str) -> usize| -> Vec<usize> {
            let title = |column: &(&str, Side)| length(column.0);
            let mut widths: Vec<_> = self.columns.iter().map(title).collect();
            for row in &self.rows {
                for (width, cell) in widths.iter_mut().zip(row) {
                    *width = (*width).max(of(&cell.text));
                }
            }
            widths
        };
        let mut widths = needed(length);
        let gaps = GAP * widths.len().saturating_sub(1);
        let room = WIDTH.saturating_sub(gaps);
        let words = needed(|text| text.split(' ').map(length).max().unwrap_or_default());
        let narrowest = vec![NARROWEST; widths.len()];
        for floors in [words, narrowest] {
            self.shrink(&mut widths, &floors, room);
        }
        // Where a text was wrapped at a space, less may do.
        let wrapped = |column: usize, width: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.flat_map(|cell| wrap(&cell.text, width)).map(|line| length(&line)).max()
        };
        let titles = self.columns.iter().map(|(title, _)| length(title));
        let tight =
            widths.iter().zip(titles).enumerate().map(|(column, (&width, title))| {
                wrapped(column, width).unwrap_or_default().max(title)
            });
        tight.collect()
    }

    fn shrink(&self, widths: &mut [usize], floors: &[usize], room: usize) {
        while widths.iter().sum::<usize>() > room {
            let columns = widths.iter_mut().zip(floors).zip(&self.columns);
            let wide = columns.filter(|((width, floor), (_, side))| {
                *side == Side::Left && **width > (**floor).max(NARROWEST)
            });
            let Some(((width, _), _)) = wide.max_by_key(|((width, _), _)| **width) else {
                // Too much for a line: then it is wider than it should be, but all there.
                break;
            };
            *width -= 1;
        }
    }

    fn render_row(&self, text: &mut String, row: &[Cell], widths: &[usize], look: &Look) {
        let cells: Vec<_> =
            row.iter().zip(widths).map(|(cell, width)| wrap(&cell.text, *width)).collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or_default();
        for line in 0..height {
            // Trailing spaces would be noise in a pipe, so they wait until something follows.
            let mut pending = 0;
            for (index, part) in cells.iter().map(|cell| cell.get(line)).enumerate() {
                let part = part.map_or("", String::as_str);
                let width = widths.get(index).copied().unwrap_or_default();
                let side = self.columns.get(index).map_or(Side::Left, |(_, side)| *side);
                let mood = row.get(index).map_or(Mood::Plain, |cell| cell.mood);
                let padding = width.saturating_sub(length(part));
                let (before, after) = match side {
                    Side::Left => (0, padding),
                    Side::Right => (padding, 0),
                };
                pending += before;
                if !part.is_empty() {
                    let _ = write!(text, "{:pending$}{}", "", look.paint(mood, part));
                    pending = 0;
                }
                pending += after + GAP;
            }
            text.push('\n');
        }
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// A text in lines of at most `width` characters, at least one line.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let space = usize::from(!line.is_empty());
        if length(&line) + space + length(word) <= width {
            line.extend(std::iter::repeat_n(' ', space));
            line.push_str(word);
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for c in word.chars() {
            if length(&line) == width {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::{super::look::tests::PLAIN, *};

    fn table() -> Table {
        Table::new(&[("NAME", Side::Left), ("COUNT", Side::Right), ("DETAIL", Side::Left)])
    }

    #[test]
    fn texts_stand_left_and_numbers_right() {
        let mut table = table();
        table.row(["web".into(), "7".into(), "all is well".into()]);
        table.row(["mysql-primary".into(), "12345678".into(), "".into()]);
        assert_eq!(
            table.render(&PLAIN),
            "NAME              COUNT  DETAIL\n\
             web                   7  all is well\n\
             mysql-primary  12345678\n"
        );
    }

    #[test]
    fn a_table_without_rows_is_nothing() {
        assert_eq!(table().render(&PLAIN), "");
    }

    #[test]
    fn what_is_too_wide_is_wrapped_and_nothing_is_lost() {
        let mut table = table();
        let words = "seven words that go on and on ".repeat(8);
        let address = "2001:db8:".repeat(12);
        table.row([address.as_str().into(), "18446744073709551615".into(), words.trim().into()]);
        let text = table.render(&PLAIN);
        let widest = text.lines().map(length).max().unwrap();
        assert!(widest <= WIDTH && widest > WIDTH - 12, "{widest}\n{text}");
        assert!(text.lines().all(|line| line == line.trim_end()), "{text:?}");
        let squeezed: String = text.split_whitespace().collect();
        for part in ["seven", "18446744073709551615"] {
            assert!(squeezed.contains(part), "{text}");
        }
        assert_eq!(text.matches("seven").count(), 8, "{text}");
        assert_eq!(text.matches(':').count(), 24, "{text}");
    }

    #[test]
    fn words_are_broken_only_when_nothing_else_helps() {
        let mut table = table();
        let (word, words) = ("w".repeat(60), "some words ".repeat(6));
        table.row([word.as_str().into(), "1".into(), words.trim().into()]);
        let text = table.render(&PLAIN);
        assert!(text.contains(&word), "{text}");
        assert!(text.lines().all(|line| length(line) <= WIDTH), "{text}");
    }

    #[test]
    fn an_idle_column_goes() {
        let mut table = table();
        table.row(["web".into(), "0".into(), "".into()]);
        let text =
            table.clone().without_idle("COUNT", "0").without_idle("DETAIL", "").render(&PLAIN);
        assert_eq!(text, "NAME\nweb\n");
        table.row(["api".into(), "1".into(), "".into()]);
        assert!(table.without_idle("COUNT", "0").render(&PLAIN).contains("COUNT"));
    }

    #[test]
    fn colours_do_not_move_columns() {
        let mut table = table();
        table.row([Cell::new("web", Mood::Good), "7".into(), "x".into()]);
        let coloured = table.render(&Look { colours: true, ..PLAIN });
        assert!(coloured.contains("\x1b[32mweb\x1b[0m "), "{coloured:?}");
        let mut plain = coloured;
        for code in ["\x1b[32m", "\x1b[1m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, table.render(&PLAIN));
    }

    #[test]
    fn what_comes_from_elsewhere_cannot_move_the_cursor() {
        let mut table = table();
        table.row(["\x1b[2J".into(), "1".into(), "a\nb".into()]);
        let text = table.render(&PLAIN);
        assert!(!text.contains('\x1b') && text.lines().count() == 2, "{text:?}");
    }

    #[test]
    fn a_text_is_wrapped_at_spaces_if_it_can_be() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(wrap("ab", 0), ["a", "b"]);
    }
}
