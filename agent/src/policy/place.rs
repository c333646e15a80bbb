//! Where something was written, and how a problem with it is told.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::fault::{KeyError, ValueError};

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Nowhere: it is how Weir behaves when nobody says otherwise.
    BuiltIn,
    /// In a file.
    File {
        /// The file's name, as it was given.
        file: String,
        /// Line, from 1.
        line: u32,
        /// Column in characters, from 1.
        column: u32,
    },
    /// In an annotation.
    Annotation {
        /// The annotated object, like `pod shop/web-1`.
        object: String,
        /// The whole key.
        key: String,
    },
    /// In a resource that a management server sent.
    Resource {
        /// The resource's name.
        name: String,
        /// The part of it, like `domain.key_value`.
        part: String,
    },
}

impl Place {
    /// The place of a part that starts in this column of the text that stands here.
    fn inside(&self, inside: u32) -> Self {
        match self {
            Self::File { file, line, column } => Self::File {
                file: file.clone(),
                line: *line,
                column: column.saturating_add(inside.saturating_sub(1)),
            },
            other => other.clone(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Annotation { object, key } => write!(f, "{object}, annotation {key}"),
            Self::Resource { name, part } => write!(f, "xDS resource {name}, {part}"),
        }
    }
}

/// Whose word it is. More specific words come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// How Weir behaves when nobody says otherwise.
    BuiltIn,
    /// What the administrator says for the whole node.
    Node,
    /// An administrator's policy: fills what nobody else sets.
    Default,
    /// An administrator's policy: what nobody may exceed.
    Max,
    /// The namespace's annotations.
    Namespace,
    /// The workload's own words.
    Workload,
}

impl Layer {
    /// Whether an administrator wrote it.
    pub const fn is_administrator(self) -> bool {
        matches!(self, Self::Node | Self::Default | Self::Max)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "built in",
            Self::Node => "node",
            Self::Default => "administrator's default",
            Self::Max => "administrator's max",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
        })
    }
}

/// Whose word it is and where it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// Whose word it is.
    pub layer: Layer,
    /// Where it was written.
    pub place: Place,
}

impl Origin {
    /// What holds when nobody says otherwise.
    pub const BUILT_IN: Self = Self { layer: Layer::BuiltIn, place: Place::BuiltIn };
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::BuiltIn => f.write_str("built in"),
            _ => write!(f, "{}, {}", self.layer, self.place),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Something written does not take effect.
    Error,
    /// Everything takes effect, but perhaps not as meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Something wrong with what was written: what, where, what was expected, and what holds now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// How bad.
    pub severity: Severity,
    /// What is wrong, with the offending part quoted.
    pub what: String,
    /// What was expected instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What holds meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// The workload it was found for, where it depends on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
}

impl Problem {
    /// An error; `expected` may be empty.
    pub fn error(place: Place, what: impl Into<String>, expected: impl Into<String>) -> Self {
        let expected = Some(expected.into()).filter(|expected| !expected.is_empty());
        let severity = Severity::Error;
        Self { place, severity, what: what.into(), expected, effect: None, workload: None }
    }

    /// A warning; `expected` may be empty.
    pub fn warning(place: Place, what: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, what, expected) }
    }

    /// The error of a key.
    pub fn key(place: Place, error: &KeyError) -> Self {
        Self::error(place, error.to_string(), error.expected())
    }

    /// The error of a value that starts at `place`. Without `verbatim`, the text differs from what
    /// stands there (escapes, folded lines), so columns inside it mean nothing in the file.
    pub fn value(place: &Place, key: &str, error: &ValueError, verbatim: bool) -> Self {
        let place = if verbatim { place.inside(error.column) } else { place.clone() };
        let mut what = format!("{key}: {}", error.what());
        if !verbatim || !matches!(place, Place::File { .. }) {
            what.push_str(&format!(" (column {} of the value)", error.column));
        }
        Self::error(place, what, error.fault.expected())
    }

    /// The same, with what holds meanwhile.
    #[must_use]
    pub fn effect(self, effect: impl Into<String>) -> Self {
        Self { effect: Some(effect.into()), ..self }
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.severity, self.what)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(effect) = &self.effect {
            write!(f, "; {effect}")?;
        }
        Ok(())
    }
}
