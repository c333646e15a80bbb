//! An error with its causes, in one line, for logs and for people.

use std::error::Error;

/// An error with its causes, each said once: some errors say what their cause says.
pub fn with_causes(error: &(dyn Error + '_)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let said = source.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn causes_are_told_once() {
        let error = anyhow!("the disk is full").context("cannot write x").context("cannot save");
        assert_eq!(with_causes(error.as_ref()), "cannot save: cannot write x: the disk is full");
        let error = anyhow!("gone").context("the other is gone");
        assert_eq!(with_causes(error.as_ref()), "the other is gone");
    }
}
