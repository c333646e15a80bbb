//! Quota files: envoyproxy/ratelimit's, word for word, and Weir's own keys beside them.
//!
//! Everything here is text in, model or problems out. All files are read together; any problem
//! refuses all of them, as the original does, so that the rules that hold stay whole.

mod descriptor;
mod overlay;
mod own;
mod scalar;

use crate::{
    config::{
        fields::Notes,
        yaml::{self, Broken, Node, Value},
    },
    policy::{Problem, Severity},
};

use self::overlay::Overlay;
use super::{
    model::{Access, Configuration, Domain},
    rules::compile,
    settings::Settings,
};

/// A file's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, for problems.
    pub file: String,
    /// What stands in it.
    pub text: String,
}

/// Reads files. Their order decides the order of problems and of domains, and nothing else.
///
/// A file says by `format:` what it is: nothing for the original's format, `weir` for the same with
/// Weir's own keys in it, `weir-overlay` for these keys alone.
pub fn read(sources: &[Source]) -> Result<Configuration, Vec<Problem>> {
    let (domains, overlays) = files(sources)?;
    let mut configuration = Configuration { domains };
    // A quota file is as much one's own word as its overlay: what names nothing there is wrong.
    let mut problems = overlay::lay(&mut configuration, &overlays, "quota file");
    problems.sort();
    if problems.is_empty() { Ok(configuration) } else { Err(problems) }
}

/// Overlays for domains that a management server describes.
#[derive(Clone, Debug, Default)]
pub struct Overlays(Vec<Overlay>);

impl Overlays {
    /// Reads files, each of which must be an overlay.
    pub fn read(sources: &[Source]) -> Result<Self, Vec<Problem>> {
        let (domains, overlays) = files(sources)?;
        let not_an_overlay = |domain: Domain| {
            let what = format!("the domain `{}` is not the server's", domain.name);
            let expected = "overlays alone (`format: weir-overlay`) beside `xds`";
            Problem::error(domain.place, what, expected)
        };
        let problems: Vec<_> = domains.into_iter().map(not_an_overlay).collect();
        if problems.is_empty() { Ok(Self(overlays)) } else { Err(problems) }
    }

    /// Adds them to what a server sent. Parts that name nothing there do nothing, and are told as
    /// warnings: what a server sends comes and goes.
    pub fn lay(&self, configuration: &mut Configuration) -> Vec<Problem> {
        let idle = overlay::lay(configuration, &self.0, "resource");
        let warning = |problem| Problem { severity: Severity::Warning, ..problem };
        idle.into_iter().map(warning).collect()
    }
}

/// Domains and overlays. No domain has two overlays.
fn files(sources: &[Source]) -> Result<(Vec<Domain>, Vec<Overlay>), Vec<Problem>> {
    let (mut domains, mut overlays, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for source in sources {
        let mut notes = Notes::new(&source.file);
        match read_file(&mut notes, &source.text) {
            Some(File::Quotas(domain)) => domains.push(domain),
            Some(File::Overlay(overlay)) => overlays.push(overlay),
            None => {}
        }
        problems.append(&mut notes.problems);
    }
    problems.extend(overlay::written_twice(&overlays));
    problems.sort();
    if problems.is_empty() { Ok((domains, overlays)) } else { Err(problems) }
}

/// What is wrong with files that belong together, before an agent reads them.
pub fn check(sources: &[Source], settings: Settings) -> Vec<Problem> {
    let compiled = read(sources).and_then(|configuration| compile(&configuration, settings, None));
    compiled.err().unwrap_or_default()
}

enum File {
    Quotas(Domain),
    Overlay(Overlay),
}

/// What a file says that it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    /// The original's.
    Original,
    /// With Weir's own keys.
    Weir,
    /// Weir's own keys alone.
    Overlay,
}

fn read_file(notes: &mut Notes<'_>, text: &str) -> Option<File> {
    let tree = match yaml::read_with_aliases(text) {
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
    let format = format(notes, root)?;
    let known = match format {
        Format::Original => &["domain", "descriptors"][..],
        Format::Weir | Format::Overlay => overlay::KEYS,
    };
    let fields = notes.fields("quota file", root, known, &[])?;
    let name = match fields.get("domain") {
        Some(node) => scalar::text(notes, "domain", node)?,
        None => String::new(),
    };
    if name.is_empty() {
        let at = fields.get("domain").map_or(root.at, |node| node.at);
        notes.error(at, "the file has no domain", "`domain: NAME`");
        return None;
    }
    if format == Format::Overlay {
        return Some(File::Overlay(overlay::read(notes, root, &fields, name)));
    }
    let with_own = format == Format::Weir;
    let descriptors = match fields.get("descriptors") {
        Some(node) => descriptor::list(notes, node, with_own),
        None => Vec::new(),
    };
    let access = if with_own { own::at_domain(notes, &fields) } else { Access::default() };
    let place = notes.place(root.at);
    Some(File::Quotas(Domain { name, place, descriptors, access }))
}

fn format(notes: &mut Notes<'_>, root: &Node) -> Option<Format> {
    let Value::Mapping(pairs) = &root.value else { return Some(Format::Original) };
    let Some((_, node)) = pairs.iter().find(|(key, _)| key.text == "format") else {
        return Some(Format::Original);
    };
    match &node.value {
        Value::Scalar(scalar) if scalar.text == "weir" => Some(Format::Weir),
        Value::Scalar(scalar) if scalar.text == "weir-overlay" => Some(Format::Overlay),
        _ => {
            let expected = "`weir` or `weir-overlay`, or no `format` for envoyproxy/ratelimit's";
            notes.error(node.at, "this `format` is unknown", expected);
            None
        }
    }
}

/// Whether a text is a quota file, and not a node file: by the keys that only one of them has.
pub fn is_quota_file(text: &str) -> bool {
    let Ok(tree) = yaml::read_with_aliases(text) else {
        // It is told that it is no YAML either way.
        return text.lines().any(|line| line.starts_with("domain:"));
    };
    let Value::Mapping(pairs) = &tree.root.value else { return false };
    let keys = ["domain", "descriptors", "format"];
    pairs.iter().any(|(key, _)| keys.contains(&key.text.as_str()))
}

#[cfg(test)]
mod tests;
