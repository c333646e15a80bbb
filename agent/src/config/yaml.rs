//! YAML as a tree in which everything knows its place.
//!
//! The tree is made from the parser's events rather than by a derived deserializer, because the
//! file has to be read as far as it can be: a deserializer stops at the first error, and takes
//! `off` for a number or a truth value before anybody can say what was meant. Here every scalar
//! is its text. Tags and several documents are refused, and so are anchors and aliases, except where a
//! format that is not ours has them: one file says one thing in one place.

use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span};

/// A place in the file, line and column from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl At {
    const START: Self = Self { line: 1, column: 1 };

    fn of(marker: Marker) -> Self {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        // The parser counts columns from 0.
        Self { line: number(marker.line()).max(1), column: number(marker.col()).saturating_add(1) }
    }
}

/// A value and where it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Nothing at all: `key:` and no more, or `~`.
    Nothing,
    /// A text, a number, a truth value: all the same.
    Scalar(Scalar),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys and values, in order.
    Mapping(Vec<(Key, Node)>),
}

impl Value {
    /// The word for it in errors.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Scalar(_) => "a text",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "keys and values",
        }
    }
}

/// A text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    /// The text stands in the file letter for letter, from the node's place on.
    pub(crate) verbatim: bool,
    /// It stands without quotes, so it may have been meant as a number or a truth value.
    pub(crate) plain: bool,
}

/// The key of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) at: At,
    pub(crate) text: String,
}

/// Why a text is no tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) at: At,
    pub(crate) what: String,
    pub(crate) expected: &'static str,
}

/// A key that a mapping has twice. The first one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Duplicate {
    pub(crate) at: At,
    pub(crate) key: String,
    pub(crate) first: At,
}

/// A tree and the keys that were written twice in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) root: Node,
    pub(crate) duplicates: Vec<Duplicate>,
}

/// Nothing that makes sense here is nested deeper: 16 levels of descriptors are 33 of YAML, and their
/// metadata may have some too. The bound keeps whoever walks the tree, by recursion, off the end of
/// the stack.
const DEEPEST: usize = 48;

/// With aliases, a short text may stand for a tree of any size.
const MOST_ALIASED: usize = 100_000;

/// Reads a text.
pub(crate) fn read(source: &str) -> Result<Tree, Broken> {
    build(Builder { source, ..Builder::default() })
}

/// Reads a text in which anchors, aliases and merge keys (`<<`) are understood. An aliased value keeps
/// the place where it was written.
pub(crate) fn read_with_aliases(source: &str) -> Result<Tree, Broken> {
    build(Builder { source, aliases: Some(Aliases::default()), ..Builder::default() })
}

fn build(mut builder: Builder<'_>) -> Result<Tree, Broken> {
    let source = builder.source;
    for event in Parser::new_from_str(source) {
        let (event, span) = event.map_err(|error| Broken {
            at: At::of(*error.marker()),
            what: format!("this is not YAML: {}", error.info()),
            expected: "",
        })?;
        builder.event(&event, &span)?;
    }
    let root = builder.root.ok_or(Broken {
        at: At::START,
        what: "the file is empty".to_owned(),
        expected: "a key and a value, like `workloads: []`",
    })?;
    Ok(Tree { root, duplicates: builder.duplicates })
}

#[derive(Default)]
struct Builder<'a> {
    source: &'a str,
    documents: usize,
    open: Vec<Open>,
    root: Option<Node>,
    duplicates: Vec<Duplicate>,
    aliases: Option<Aliases>,
}

/// Values that have a name.
#[derive(Default)]
struct Aliases {
    by_anchor: HashMap<usize, Node>,
    /// Nodes that aliases have brought in so far.
    brought: usize,
}

/// A collection whose end has not come yet.
enum Open {
    Sequence {
        at: At,
        anchor: usize,
        items: Vec<Node>,
    },
    Mapping {
        at: At,
        anchor: usize,
        pairs: Vec<(Key, Node)>,
        /// Where each key stands first: files may have many.
        first: HashMap<String, At>,
        /// The key whose value has not come yet.
        key: Option<Key>,
        /// Mappings whose pairs count where the mapping says nothing itself.
        merged: Vec<Node>,
    },
}

impl Builder<'_> {
    fn event(&mut self, event: &Event<'_>, span: &Span) -> Result<(), Broken> {
        let at = At::of(span.start);
        let broken = |what: &str, expected| Err(Broken { at, what: what.to_owned(), expected });
        if event.tag().is_some() {
            return broken("a tag (`!…`) stands here", "plain values without tags");
        }
        match event {
            Event::Alias(anchor) if self.aliases.is_some() => self.alias(*anchor, at),
            Event::Alias(_) => broken("an alias (`*…`) stands here", "the value itself"),
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(_, anchor, _)
            | Event::MappingStart(_, anchor, _)
                if *anchor > 0 && self.aliases.is_none() =>
            {
                broken("an anchor (`&…`) stands here", "the value alone: aliases are not read")
            }
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return broken("a second document starts here", "one document in the file");
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, _) => self.scalar(text, *style, *anchor, span),
            Event::SequenceStart(_, anchor, _) => {
                self.open(Open::Sequence { at, anchor: *anchor, items: Vec::new() }, at)
            }
            Event::MappingStart(_, anchor, _) => {
                let (pairs, first, merged) = (Vec::new(), HashMap::new(), Vec::new());
                let anchor = *anchor;
                self.open(Open::Mapping { at, anchor, pairs, first, key: None, merged }, at)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence { at, anchor, items }) => {
                    self.named(anchor, Node { at, value: Value::Sequence(items) })
                }
                Some(Open::Mapping { at, anchor, mut pairs, merged, .. }) => {
                    merged.into_iter().for_each(|node| merge(&mut pairs, node));
                    self.named(anchor, Node { at, value: Value::Mapping(pairs) })
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn open(&mut self, collection: Open, at: At) -> Result<(), Broken> {
        let broken = |what: &str, expected| Err(Broken { at, what: what.to_owned(), expected });
        if self.open.len() >= DEEPEST {
            return broken("this is nested too deeply", "at most 48 levels");
        }
        if let Some(Open::Mapping { key: None, .. }) = self.open.last() {
            return broken("a list or mapping stands where a key should", "a key, which is a text");
        }
        self.open.push(collection);
        Ok(())
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        span: &Span,
    ) -> Result<(), Broken> {
        let mut at = At::of(span.start);
        let written = span.slice(self.source).unwrap_or_default();
        let inner = match style {
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                at.column = at.column.saturating_add(1);
                written.get(1..written.len().saturating_sub(1)).unwrap_or_default()
            }
            _ => written,
        };
        if let Some(Open::Mapping { key: key @ None, .. }) = self.open.last_mut() {
            *key = Some(Key { at: At::of(span.start), text: text.to_owned() });
            return Ok(());
        }
        let is_nothing = style == ScalarStyle::Plain && matches!(text, "" | "~" | "null");
        let value = if is_nothing {
            Value::Nothing
        } else {
            Value::Scalar(Scalar {
                text: text.to_owned(),
                verbatim: inner == text,
                plain: style == ScalarStyle::Plain,
            })
        };
        self.named(anchor, Node { at, value })
    }

    /// A value that was written, perhaps with an anchor.
    fn named(&mut self, anchor: usize, node: Node) -> Result<(), Broken> {
        if let Some(aliases) = self.aliases.as_mut().filter(|_| anchor > 0) {
            aliases.by_anchor.insert(anchor, node.clone());
        }
        self.value(node)
    }

    fn alias(&mut self, anchor: usize, at: At) -> Result<(), Broken> {
        let broken = |what: &str, expected| Err(Broken { at, what: what.to_owned(), expected });
        if let Some(Open::Mapping { key: None, .. }) = self.open.last() {
            return broken("an alias stands where a key should", "a key, which is a text");
        }
        let Some(aliases) = &mut self.aliases else { return Ok(()) };
        // A value is not known before its end: it cannot contain itself.
        let Some(node) = aliases.by_anchor.get(&anchor) else {
            return broken("this alias stands inside its own anchor", "a value that is complete");
        };
        let (size, depth) = extent(node);
        aliases.brought += size;
        if aliases.brought > MOST_ALIASED {
            return broken("aliases make this file too large", "at most 100000 aliased values");
        }
        if self.open.len() + depth > DEEPEST {
            return broken("this is nested too deeply", "at most 48 levels");
        }
        let node = node.clone();
        self.value(node)
    }

    fn value(&mut self, node: Node) -> Result<(), Broken> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { pairs, first, key, merged, .. }) => {
                // A value without a key cannot come: the first node of a pair became the key.
                let Some(key) = key.take() else { return Ok(()) };
                if self.aliases.is_some() && key.text == "<<" {
                    match node.value {
                        Value::Sequence(items) => merged.extend(items),
                        _ => merged.push(node),
                    }
                } else if let Some(&first) = first.get(&key.text) {
                    let Key { at, text: key } = key;
                    self.duplicates.push(Duplicate { at, key, first });
                } else {
                    first.insert(key.text.clone(), key.at);
                    pairs.push((key, node));
                }
            }
        }
        Ok(())
    }
}

/// Adds the pairs of a mapping that are not there. What is no mapping has none.
fn merge(pairs: &mut Vec<(Key, Node)>, node: Node) {
    let Value::Mapping(more) = node.value else { return };
    for (key, value) in more {
        if !pairs.iter().any(|(known, _)| known.text == key.text) {
            pairs.push((key, value));
        }
    }
}

/// How many nodes a value has, and how many levels of collections.
fn extent(node: &Node) -> (usize, usize) {
    let inside: Box<dyn Iterator<Item = &Node>> = match &node.value {
        Value::Nothing | Value::Scalar(_) => return (1, 0),
        Value::Sequence(items) => Box::new(items.iter()),
        Value::Mapping(pairs) => Box::new(pairs.iter().map(|(_, node)| node)),
    };
    let (size, depth) = inside
        .map(extent)
        .fold((0, 0), |(size, depth), (more, inner)| (size + more, depth.max(inner)));
    (size + 1, depth + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(line: u32, column: u32) -> At {
        At { line, column }
    }

    fn pairs(source: &str) -> Vec<(Key, Node)> {
        match read(source).unwrap().root.value {
            Value::Mapping(pairs) => pairs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_knows_its_place() {
        let pairs = pairs("a: off\nb:\n  - 'x y'\n  - \"z\"\nc: {d: ~}\n");
        assert_eq!((pairs[0].0.at, pairs[0].1.at), (at(1, 1), at(1, 4)));
        assert_eq!(
            pairs[0].1.value,
            Value::Scalar(Scalar { text: "off".to_owned(), verbatim: true, plain: true })
        );
        let Value::Sequence(items) = &pairs[1].1.value else { panic!("{pairs:?}") };
        assert_eq!((items[0].at, items[1].at), (at(3, 6), at(4, 6)), "behind the quote");
        let Value::Mapping(inner) = &pairs[2].1.value else { panic!("{pairs:?}") };
        assert_eq!((inner[0].0.at, &inner[0].1.value), (at(5, 5), &Value::Nothing));
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(pairs("é: ü\n")[0].1.at, at(1, 4));
    }

    #[test]
    fn texts_that_differ_from_what_is_written_are_not_verbatim() {
        let verbatim = |source| match &pairs(source)[0].1.value {
            Value::Scalar(scalar) => scalar.verbatim,
            other => panic!("{other:?}"),
        };
        assert!(verbatim("a: b c"));
        assert!(verbatim("a: 'b c'"));
        assert!(!verbatim("a: 'b''c'"));
        assert!(!verbatim("a: \"b\\tc\""));
        assert!(!verbatim("a: b\n  c"));
        assert!(!verbatim("a: >\n  b\n  c"));
    }

    #[test]
    fn keys_written_twice_are_found_at_every_level() {
        let tree = read("a: 1\nb: {c: 1, c: 2}\na: 3\n").unwrap();
        let found: Vec<_> = tree
            .duplicates
            .iter()
            .map(|twice| (twice.key.as_str(), twice.at, twice.first))
            .collect();
        assert_eq!(found, [("c", at(2, 11), at(2, 5)), ("a", at(3, 1), at(1, 1))]);
        assert_eq!(pairs("a: 1\na: 3\n").len(), 1);
    }

    #[test]
    fn what_is_not_one_plain_document_is_refused_with_its_place() {
        for (source, place, what) in [
            ("", at(1, 1), "empty"),
            ("# only a comment\n", at(1, 1), "empty"),
            ("a: &x 1\n", at(1, 7), "anchor"),
            ("a: [1]\nb: *x\n", at(2, 4), "not YAML"),
            ("a: !!str 1\n", at(1, 10), "tag"),
            ("a: 1\n---\nb: 2\n", at(2, 1), "second document"),
            ("? [a]\n: 1\n", at(1, 3), "where a key should"),
            ("a: [1\n", at(1, 4), "not YAML"),
            ("a: b: c\n", at(1, 5), "not YAML"),
            ("a:\n\tb: 1\n", at(2, 1), "not YAML"),
        ] {
            let broken = read(source).unwrap_err();
            assert!(broken.what.contains(what), "{source:?}: {broken:?}");
            assert_eq!(broken.at.line, place.line, "{source:?}: {broken:?}");
        }
        let deep = "[".repeat(10_000);
        assert!(read(&deep).is_err());
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert!(read(&deep).unwrap_err().what.contains("nested"));
    }

    #[test]
    fn aliases_are_understood_where_the_format_has_them() {
        let plain = |source: &str| {
            let tree = read_with_aliases(source).unwrap();
            assert_eq!(tree.duplicates, []);
            show(&tree.root)
        };
        assert_eq!(plain("a: &x {b: 1}\nc: *x\nd: [&y z, *y]\n"), "{a:{b:1},c:{b:1},d:[z,z]}");
        assert_eq!(
            plain("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\ne: {b: 3, <<: [*x, {f: 4, b: 5}]}\n"),
            "{a:{b:1,c:2},d:{b:3,c:2},e:{b:3,c:2,f:4}}"
        );
        let what = |source: &str| read_with_aliases(source).unwrap_err().what;
        assert!(what("a: &x [*x]\n").contains("inside its own anchor"));
        assert!(what("a: *x\n").contains("not YAML"));
        let lists = |levels: usize| {
            let line = |n: usize| format!("l{n}: &l{n} [{}]\n", format!("*l{},", n - 1).repeat(10));
            (1..levels).map(line).fold("l0: &l0 [a]\n".to_owned(), |text, line| text + &line)
        };
        assert!(what(&lists(9)).contains("too large"));
        let nested = |n: usize| {
            let (open, close) = ("[".repeat(30), "]".repeat(30));
            format!("n{n}: &n{n} {open}*n{}{close}\n", n - 1)
        };
        assert!(what(&format!("n0: &n0 a\n{}{}", nested(1), nested(2))).contains("nested"));
    }

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Nothing => "~".to_owned(),
            Value::Scalar(scalar) => scalar.text.clone(),
            Value::Sequence(items) => {
                format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(","))
            }
            Value::Mapping(pairs) => {
                let pair = |(key, node): &(Key, Node)| format!("{}:{}", key.text, show(node));
                format!("{{{}}}", pairs.iter().map(pair).collect::<Vec<_>>().join(","))
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_tree_or_broken(source in ".{0,200}") {
            let _ = read(&source);
        }

        #[test]
        fn any_pieces_of_yaml_are_a_tree_or_broken(
            pieces in proptest::collection::vec(prop_oneof![
                Just("a"), Just(": "), Just("\n"), Just("  "), Just("- "), Just("["), Just("]"),
                Just("{"), Just("}"), Just("'"), Just("\""), Just("? "), Just("&a "), Just("*a"),
                Just("|\n"), Just("#"), Just("<<: "), Just(","), Just("---\n"), Just("!t "), Just("é"),
            ], 0..30),
        ) {
            let _ = read(&pieces.concat());
            let _ = read_with_aliases(&pieces.concat());
        }
    }
}
