//! The keys of a mapping, taken out one by one, with every problem noted and none fatal.
//!
//! What a reader gets for a key is three-valued: not written, good, or bad. Bad is not "not
//! written": what stood there before the file was broken stays in force, and the problem says so.

use std::{collections::BTreeMap, ops::Range};

use super::yaml::{At, Key, Node, Scalar, Value};
use crate::policy::{Place, Problem, nearest};

/// Collects problems of one file.
#[derive(Debug)]
pub(crate) struct Notes<'a> {
    file: &'a str,
    pub(crate) problems: Vec<Problem>,
}

/// What was written for a key.
#[derive(Debug)]
pub(crate) enum Field<T> {
    Absent,
    Good(T),
    /// It cannot be read, or not all of it.
    Bad {
        /// These of the notes say why.
        notes: Range<usize>,
        /// The part that can be read, where a part is better than nothing.
        part: Option<T>,
    },
}

impl<T> Field<T> {
    pub(crate) fn map<U>(self, map: impl FnOnce(T) -> U) -> Field<U> {
        match self {
            Self::Absent => Field::Absent,
            Self::Good(value) => Field::Good(map(value)),
            Self::Bad { notes, part } => Field::Bad { notes, part: part.map(map) },
        }
    }

    /// The notes that say what is wrong with it.
    pub(crate) fn notes(&self) -> Range<usize> {
        match self {
            Self::Bad { notes, .. } => notes.clone(),
            Self::Absent | Self::Good(_) => 0..0,
        }
    }

    /// The value or its default; `None` when it is bad.
    pub(crate) fn good(self, default: impl FnOnce() -> T) -> Option<T> {
        match self {
            Self::Absent => Some(default()),
            Self::Good(value) => Some(value),
            Self::Bad { .. } => None,
        }
    }
}

impl<'a> Notes<'a> {
    pub(crate) const fn new(file: &'a str) -> Self {
        Self { file, problems: Vec::new() }
    }

    pub(crate) fn place(&self, at: At) -> Place {
        Place::File { file: self.file.to_owned(), line: at.line, column: at.column }
    }

    pub(crate) fn error(&mut self, at: At, what: impl Into<String>, expected: impl Into<String>) {
        self.problems.push(Problem::error(self.place(at), what, expected));
    }

    pub(crate) fn warning(&mut self, at: At, what: impl Into<String>, expected: impl Into<String>) {
        self.problems.push(Problem::warning(self.place(at), what, expected));
    }

    /// What is in force for a field: what it says; what it said before, when it cannot be read;
    /// else the part that can, or the default. The problems of the field are told which.
    pub(crate) fn settle<T: Clone>(
        &mut self,
        field: Field<T>,
        previous: Option<&T>,
        default: impl FnOnce() -> T,
    ) -> T {
        match (field, previous) {
            (Field::Good(value), _) => value,
            (Field::Absent, _) => default(),
            (Field::Bad { notes, .. }, Some(previous)) => {
                for problem in self.problems.get_mut(notes).unwrap_or_default() {
                    problem.effect.get_or_insert_with(|| "what stood here before stays".to_owned());
                }
                previous.clone()
            }
            (Field::Bad { part, .. }, None) => part.unwrap_or_else(default),
        }
    }

    /// The text of a node.
    pub(crate) fn text<'n>(
        &mut self,
        key: &str,
        node: &'n Node,
        expected: &str,
    ) -> Option<&'n Scalar> {
        match &node.value {
            Value::Scalar(scalar) => Some(scalar),
            other => {
                self.mismatch(key, node.at, other, expected);
                None
            }
        }
    }

    /// The items of a node.
    pub(crate) fn list<'n>(
        &mut self,
        key: &str,
        node: &'n Node,
        expected: &str,
    ) -> Option<&'n [Node]> {
        match &node.value {
            Value::Sequence(items) => Some(items),
            other => {
                self.mismatch(key, node.at, other, expected);
                None
            }
        }
    }

    /// The pairs of a node.
    pub(crate) fn pairs<'n>(
        &mut self,
        key: &str,
        node: &'n Node,
        expected: &str,
    ) -> Option<&'n [(Key, Node)]> {
        match &node.value {
            Value::Mapping(pairs) => Some(pairs),
            other => {
                self.mismatch(key, node.at, other, expected);
                None
            }
        }
    }

    fn mismatch(&mut self, key: &str, at: At, found: &Value, expected: &str) {
        self.error(at, format!("`{key}`: {} stands here", found.name()), expected);
    }

    /// The keys of a node, which must be among the known ones. What a later version will know is
    /// said to be just that.
    pub(crate) fn fields<'n>(
        &mut self,
        name: &str,
        node: &'n Node,
        known: &'static [&'static str],
        later: &[&str],
    ) -> Option<Fields<'n>> {
        let pairs = self.pairs(name, node, &format!("the keys {}", known.join(", ")))?;
        let mut meant = BTreeMap::new();
        for (key, _) in pairs {
            if known.contains(&key.text.as_str()) {
                continue;
            }
            if later.contains(&key.text.as_str()) {
                let what = format!("`{}` in `{name}` is not supported by this version", key.text);
                self.error(key.at, what, format!("one of {}", known.join(", ")));
                continue;
            }
            let near = nearest(&key.text, known.iter().copied());
            let expected = match near {
                Some(near) => format!("`{near}`"),
                None => format!("one of {}", known.join(", ")),
            };
            let problem = self.problems.len();
            self.error(key.at, format!("unknown key `{}` in `{name}`", key.text), expected);
            if let Some(near) = near {
                meant.entry(near.to_owned()).or_insert(problem);
            }
        }
        Some(Fields { at: node.at, pairs, meant })
    }
}

/// The keys of one mapping.
#[derive(Debug)]
pub(crate) struct Fields<'n> {
    pub(crate) at: At,
    pairs: &'n [(Key, Node)],
    /// Keys that were probably meant by unknown ones, with the note about that.
    meant: BTreeMap<String, usize>,
}

impl<'n> Fields<'n> {
    /// Reads a key with a function that notes its problems and returns `None` when it has any.
    pub(crate) fn read<T>(
        &self,
        notes: &mut Notes<'_>,
        key: &str,
        read: impl FnOnce(&mut Notes<'_>, &'n Node) -> Option<T>,
    ) -> Field<T> {
        self.read_part(notes, key, |notes, node| read(notes, node).ok_or(None))
    }

    /// The same with a function that returns the part it could read as an error.
    pub(crate) fn read_part<T>(
        &self,
        notes: &mut Notes<'_>,
        key: &str,
        read: impl FnOnce(&mut Notes<'_>, &'n Node) -> Result<T, Option<T>>,
    ) -> Field<T> {
        let Some(node) = self.get(key) else {
            // A misspelt key is a key that cannot be read.
            return match self.meant.get(key) {
                None => Field::Absent,
                Some(note) => Field::Bad { notes: *note..*note + 1, part: None },
            };
        };
        let first = notes.problems.len();
        match read(notes, node) {
            Ok(value) => Field::Good(value),
            Err(part) => Field::Bad { notes: first..notes.problems.len(), part },
        }
    }

    /// The value of a key, if it is written.
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node> {
        self.pairs.iter().find(|(written, _)| written.text == key).map(|(_, node)| node)
    }

    /// Whether there are other keys than these.
    pub(crate) fn has_unknown(&self, known: &[&str]) -> bool {
        self.pairs.iter().any(|(key, _)| !known.contains(&key.text.as_str()))
    }
}
