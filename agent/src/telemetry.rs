//! The agent's own log: to standard error, as text or JSON, its level changeable at run time.
//!
//! It owns what is written and how. It refuses to know who changes the level; that is the admin
//! socket's business.

use std::{fmt, io, io::IsTerminal as _, str::FromStr};

use tracing_subscriber::{
    Registry,
    filter::{LevelFilter, Targets},
    fmt as format,
    layer::SubscriberExt as _,
    reload,
    util::{SubscriberInitExt as _, TryInitError},
};

/// The words for a level, the most quiet one first.
const WORDS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What is logged: a level for everything, and others for single modules.
///
/// Written `debug`, or `info,weir::datapath=debug`. A word that is no level is refused rather
/// than taken for the name of a module: a misspelt `debgu` would silence everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    default: LevelFilter,
    modules: Vec<(String, LevelFilter)>,
}

impl Default for Levels {
    fn default() -> Self {
        Self { default: LevelFilter::INFO, modules: Vec::new() }
    }
}

impl FromStr for Levels {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        let mut levels = Self::default();
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                None => levels.default = level(part)?,
                Some((module, word)) if is_module(module) => {
                    levels.modules.push((module.to_owned(), level(word)?));
                }
                Some((module, _)) => return Err(LevelError::NotAModule(module.to_owned())),
            }
        }
        Ok(levels)
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.default)?;
        self.modules.iter().try_for_each(|(module, level)| write!(f, ",{module}={level}"))
    }
}

fn level(word: &str) -> Result<LevelFilter, LevelError> {
    let known = WORDS.iter().any(|known| known.eq_ignore_ascii_case(word));
    let parsed = if known { word.parse().ok() } else { None };
    parsed.ok_or_else(|| LevelError::NotALevel(word.to_owned()))
}

fn is_module(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
}

impl From<&Levels> for Targets {
    fn from(levels: &Levels) -> Self {
        Self::new().with_default(levels.default).with_targets(levels.modules.iter().cloned())
    }
}

/// Why a level was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// Not one of the levels.
    #[error(
        "`{0}` is not a level; expected one of off, error, warn, info, debug, trace, or a list like info,weir::datapath=debug"
    )]
    NotALevel(
        /// As written.
        String,
    ),
    /// Not a module's name.
    #[error("`{0}` is not the name of a module; expected one like weir::datapath")]
    NotAModule(
        /// As written.
        String,
    ),
    /// Nobody logs any more.
    #[error("the log is closed")]
    Closed,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, the fields at its top.
    Json,
}

/// Changes the level of a log that is being written.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<Targets, Registry>);

impl LevelHandle {
    /// What is logged now.
    pub fn get(&self) -> Result<String, LevelError> {
        self.0.with_current(ToString::to_string).map_err(|_| LevelError::Closed)
    }

    /// From now on this is logged.
    pub fn set(&self, levels: &Levels) -> Result<(), LevelError> {
        self.0.reload(Targets::from(levels)).map_err(|_| LevelError::Closed)
    }
}

/// A filter, and what changes it.
pub(crate) fn filter(levels: &Levels) -> (reload::Layer<Targets, Registry>, LevelHandle) {
    let (filter, handle) = reload::Layer::new(Targets::from(levels));
    (filter, LevelHandle(handle))
}

/// Starts to log. Once in a process: the second time is an error.
pub fn init(levels: &Levels, format: Format) -> Result<LevelHandle, TryInitError> {
    let (filter, handle) = filter(levels);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Text => {
            let colours = io::stderr().is_terminal();
            let lines = format::layer().with_writer(io::stderr).with_ansi(colours);
            registry.with(lines).try_init()?;
        }
        Format::Json => {
            let lines = format::layer().json().flatten_event(true).with_writer(io::stderr);
            registry.with(lines).try_init()?;
        }
    }
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info, subscriber::with_default};

    use super::*;

    #[test]
    fn a_level_is_a_word_and_modules_may_have_their_own() {
        let levels: Levels = "warn,weir::datapath=debug, hyper=OFF".parse().unwrap();
        assert_eq!(levels.to_string(), "warn,weir::datapath=debug,hyper=off");
        assert_eq!("Debug".parse::<Levels>().unwrap().to_string(), "debug");
        // Only modules: everything else stays as it is by default.
        assert_eq!("weir=trace".parse::<Levels>().unwrap().to_string(), "info,weir=trace");
    }

    #[test]
    fn a_misspelt_level_is_refused_and_not_taken_for_a_module() {
        for (text, quoted) in [
            ("debgu", "`debgu`"),
            ("", "``"),
            ("info,,warn", "``"),
            ("3", "`3`"),
            ("weir=loud", "`loud`"),
            ("=info", "``"),
            ("a b=info", "`a b`"),
        ] {
            let error = text.parse::<Levels>().unwrap_err().to_string();
            assert!(error.starts_with(quoted) && error.contains("expected"), "{text}: {error}");
        }
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_level_changes_while_it_is_logged() {
        let (filter, handle) = filter(&Levels::default());
        let written = Written::default();
        let theirs = written.clone();
        let lines = format::layer().json().flatten_event(true).with_writer(move || theirs.clone());
        let log = tracing_subscriber::registry().with(filter).with(lines);
        with_default(log, || {
            debug!("too quiet");
            assert_eq!(handle.get().unwrap(), "info");
            handle.set(&"debug".parse().unwrap()).unwrap();
            assert_eq!(handle.get().unwrap(), "debug");
            debug!(workload = "web", "heard");
            handle.set(&"off".parse().unwrap()).unwrap();
            info!("silence");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert_eq!((&lines[0]["workload"], &lines[0]["message"]), (&"web".into(), &"heard".into()));
        assert_eq!(handle.get(), Err(LevelError::Closed));
    }
}
