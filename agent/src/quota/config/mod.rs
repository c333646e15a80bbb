//! Quota files: envoyproxy/ratelimit's, word for word, and Weir's own keys beside them.
//!
//! Everything here is text in, model or problems out. All files are read together; any problem
//! refuses all of them, as the original does, so that the rules that hold stay whole.

mod descriptor;
mod scalar;

use crate::{
    config::{
        fields::Notes,
        yaml::{self, Broken},
    },
    policy::Problem,
};

use super::model::{Access, Configuration, Domain};

/// A file's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, for problems.
    pub file: String,
    /// What stands in it.
    pub text: String,
}

/// Reads files, in the order given: it decides nothing but the order of problems and domains.
pub fn read(sources: &[Source]) -> Result<Configuration, Vec<Problem>> {
    let mut configuration = Configuration::default();
    let mut problems = Vec::new();
    for source in sources {
        let mut notes = Notes::new(&source.file);
        if let Some(domain) = read_file(&mut notes, &source.text) {
            configuration.domains.push(domain);
        }
        problems.append(&mut notes.problems);
    }
    if problems.iter().any(Problem::is_error) {
        problems.sort();
        return Err(problems);
    }
    Ok(configuration)
}

const KEYS: &[&str] = &["domain", "descriptors"];

fn read_file(notes: &mut Notes<'_>, text: &str) -> Option<Domain> {
    let tree = match yaml::read(text) {
        Ok(tree) => tree,
        Err(Broken { at, what, expected }) => {
            notes.error(at, what, expected);
            return None;
        }
    };
    for twice in &tree.duplicates {
        let first = notes.place(twice.first);
        let what = format!("the key `{}` is written twice", twice.key);
        notes.error(twice.at, what, format!("it once: it stands at {first} already"));
    }
    let root = &tree.root;
    let fields = notes.fields("quota file", root, KEYS, &[])?;
    let name = match fields.get("domain") {
        Some(node) => scalar::text(notes, "domain", node)?,
        None => String::new(),
    };
    if name.is_empty() {
        let at = fields.get("domain").map_or(root.at, |node| node.at);
        notes.error(at, "the file has no domain", "`domain: NAME`");
        return None;
    }
    let descriptors = match fields.get("descriptors") {
        Some(node) => descriptor::list(notes, node),
        None => Vec::new(),
    };
    let place = notes.place(root.at);
    Some(Domain { name, place, descriptors, access: Access::default() })
}

#[cfg(test)]
mod tests;
