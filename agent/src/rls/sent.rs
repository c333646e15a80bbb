//! Quotas of two sources: what a management server sends, and overlays in files. Each changes by itself.
//!
//! What holds is one of each. When either changes, both newest are tried together first, then the changed
//! one beside what held of the other: a bad overlay does not keep away what the server sends, nor the
//! other way round, and what was refused is tried again as soon as anything changes.

/// One source.
#[derive(Debug)]
pub(super) struct Part<T> {
    /// What was read last that makes sense by itself.
    newest: Option<T>,
    /// What holds.
    held: Option<T>,
    /// Why the newest does not hold, or what of it does nothing.
    problems: Vec<String>,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self { newest: None, held: None, problems: Vec::new() }
    }
}

impl<T: PartialEq> Part<T> {
    /// Whether the newest holds.
    pub(super) fn is_held(&self) -> bool {
        self.newest.is_some() && self.newest == self.held
    }

    /// Why the newest does not hold.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// Both. `R` is what the server sends, `O` what overlays say.
#[derive(Debug)]
pub(super) struct Sent<R, O> {
    pub(super) resources: Part<R>,
    pub(super) overlays: Part<O>,
    /// Why overlays as they are written now make no sense by themselves.
    unreadable: Vec<String>,
    /// How often overlays have changed.
    changes: u64,
}

impl<R, O> Default for Sent<R, O> {
    fn default() -> Self {
        let (resources, overlays) = (Part::default(), Part::default());
        Self { resources, overlays, unreadable: Vec::new(), changes: 0 }
    }
}

/// Makes a combination hold: what of the overlays does nothing, or why it cannot.
type Hold<'a, R, O> = dyn FnMut(&R, &O) -> Result<Vec<String>, Vec<String>> + 'a;

impl<R: Clone + PartialEq, O: Clone + PartialEq> Sent<R, O> {
    /// The server sent something.
    pub(super) fn receive(&mut self, resources: R, hold: &mut Hold<'_, R, O>) {
        self.resources.newest = Some(resources);
        self.settle(hold);
    }

    /// Overlays were read.
    pub(super) fn overlay(&mut self, overlays: O, hold: &mut Hold<'_, R, O>) {
        self.unreadable.clear();
        self.changes += 1;
        self.overlays.newest = Some(overlays);
        self.settle(hold);
    }

    /// What held before this process holds.
    pub(super) fn recall(&mut self, resources: R, overlays: O) {
        self.resources = now(resources);
        self.overlays = now(overlays);
    }

    /// Overlays were read and make no sense: those before them go on.
    pub(super) fn refuse_overlays(&mut self, problems: Vec<String>) {
        self.unreadable = problems;
    }

    /// What is wrong now, in either.
    pub(super) fn problems(&self) -> Vec<String> {
        let parts = [&self.unreadable, &self.overlays.problems, &self.resources.problems];
        let mut problems: Vec<String> = parts.into_iter().flatten().cloned().collect();
        problems.dedup();
        problems
    }

    /// How often overlays have changed: what was refused before may hold after.
    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    fn settle(&mut self, hold: &mut Hold<'_, R, O>) {
        let (resources, overlays) = (self.resources.newest.clone(), self.overlays.newest.clone());
        let Some(resources) = resources else { return };
        let Some(overlays) = overlays else {
            // They may say who may ask: nothing holds without them.
            self.resources.problems.clone_from(&self.unreadable);
            return;
        };
        let held_resources = self.resources.held.clone().filter(|held| *held != resources);
        let held_overlays = self.overlays.held.clone().filter(|held| *held != overlays);
        let why = match hold(&resources, &overlays) {
            Ok(idle) => {
                self.resources = now(resources);
                self.overlays = Part { problems: idle, ..now(overlays) };
                return;
            }
            Err(why) => why,
        };
        if let Some(held) = held_overlays
            && hold(&resources, &held).is_ok()
        {
            self.resources = now(resources);
            self.overlays = Part { newest: Some(overlays), held: Some(held), problems: why };
        } else if let Some(held) = held_resources
            && let Ok(idle) = hold(&held, &overlays)
        {
            self.resources = Part { newest: Some(resources), held: Some(held), problems: why };
            self.overlays = Part { problems: idle, ..now(overlays) };
        } else {
            self.resources.problems = why;
        }
    }
}

/// What was read last holds.
fn now<T: Clone>(newest: T) -> Part<T> {
    Part { held: Some(newest.clone()), newest: Some(newest), problems: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is a number; a pair holds if neither is odd and the server's is the larger.
    #[derive(Default)]
    struct Site {
        sent: Sent<u32, u32>,
        holds: Option<(u32, u32)>,
    }

    impl Site {
        fn hold(
            holds: &mut Option<(u32, u32)>,
            pair: (u32, u32),
        ) -> Result<Vec<String>, Vec<String>> {
            let (resource, overlay) = pair;
            if resource % 2 == 1 || overlay % 2 == 1 || overlay > resource {
                return Err(vec![format!("{resource} {overlay}")]);
            }
            *holds = Some(pair);
            Ok(Vec::new())
        }

        fn receive(&mut self, resource: u32) -> &mut Self {
            let holds = &mut self.holds;
            self.sent.receive(resource, &mut |r, o| Self::hold(holds, (*r, *o)));
            self
        }

        fn overlay(&mut self, overlay: u32) -> &mut Self {
            let holds = &mut self.holds;
            self.sent.overlay(overlay, &mut |r, o| Self::hold(holds, (*r, *o)));
            self
        }
    }

    #[test]
    fn nothing_holds_before_there_are_overlays() {
        let mut site = Site::default();
        site.sent.refuse_overlays(vec!["no key".to_owned()]);
        site.receive(10);
        assert_eq!((site.holds, site.sent.resources.is_held()), (None, false));
        assert_eq!(site.sent.resources.problems(), ["no key"]);
        site.overlay(2);
        assert_eq!((site.holds, site.sent.resources.is_held()), (Some((10, 2)), true));
        assert_eq!(site.sent.problems(), [""; 0]);
    }

    #[test]
    fn what_is_bad_of_one_does_not_keep_the_other_away() {
        let mut site = Site::default();
        site.overlay(2).receive(10);
        site.overlay(3);
        assert_eq!((site.holds, site.sent.problems().len()), (Some((10, 2)), 1));
        site.receive(12);
        assert_eq!(site.holds, Some((12, 2)));
        assert!(site.sent.resources.is_held() && !site.sent.overlays.is_held());
        // The other way round: what the server sends is refused, and a new overlay holds.
        site.receive(13).overlay(4);
        assert_eq!(site.holds, Some((12, 4)));
        assert!(!site.sent.resources.is_held());
        assert_eq!(site.sent.resources.problems(), ["13 4"]);
    }

    #[test]
    fn what_was_refused_holds_when_the_other_fits_it() {
        let mut site = Site::default();
        site.overlay(2).receive(10).overlay(20);
        assert_eq!((site.holds, site.sent.overlays.is_held()), (Some((10, 2)), false));
        site.receive(30);
        assert_eq!((site.holds, site.sent.overlays.is_held()), (Some((30, 20)), true));
        assert_eq!(site.sent.problems(), [""; 0]);
        site.receive(4);
        assert_eq!((site.holds, site.sent.resources.is_held()), (Some((30, 20)), false));
        site.overlay(4);
        assert_eq!((site.holds, site.sent.resources.is_held()), (Some((4, 4)), true));
    }

    #[test]
    fn overlays_that_cannot_be_read_stay_told_while_the_server_sends() {
        let mut site = Site::default();
        site.overlay(2).receive(10);
        site.sent.refuse_overlays(vec!["no key".to_owned()]);
        site.receive(12);
        assert_eq!((site.holds, site.sent.problems()), (Some((12, 2)), vec!["no key".to_owned()]));
    }
}
