//! What the reader of `weir top` is looking at: the last screen, what is selected, and what keys
//! do to it. Pure: keys and snapshots come in, nothing goes out.

use std::ops::ControlFlow;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::screen::{LimitRow, Screen, Snapshot, Sort, WorkloadRow};

/// The state of the display.
#[derive(Debug)]
pub(super) struct View {
    pub(super) screen: Screen,
    newest: Snapshot,
    pub(super) sort: Sort,
    /// By name: it stays selected when the order changes.
    selected: Option<String>,
    /// Show only the limits and refusals of the selected workload.
    pub(super) details: bool,
    pub(super) frozen: bool,
    pub(super) help: bool,
    pub(super) lost: Option<Lost>,
}

/// An agent that does not answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lost {
    pub(super) why: String,
    /// Since when, seconds since 1970.
    pub(super) since: f64,
}

impl View {
    pub(super) fn new(first: Snapshot, time: f64) -> Self {
        Self {
            screen: Screen::of(None, &first, time),
            newest: first,
            sort: Sort::default(),
            selected: None,
            details: false,
            frozen: false,
            help: false,
            lost: None,
        }
    }

    /// Takes in what the agent answered, or why it did not.
    pub(super) fn update(&mut self, answer: Result<Snapshot, String>, time: f64) {
        match answer {
            Ok(snapshot) => {
                let before = self.lost.take().is_none().then_some(&self.newest);
                if !self.frozen {
                    self.screen = Screen::of(before, &snapshot, time);
                }
                self.newest = snapshot;
            }
            Err(why) => {
                let since = self.lost.take().map_or(time, |lost| lost.since);
                self.lost = Some(Lost { why, since });
            }
        }
    }

    /// Does what a key says; a break is the end.
    pub(super) fn key(&mut self, key: KeyEvent) -> ControlFlow<()> {
        if key.kind == KeyEventKind::Release {
            return ControlFlow::Continue(());
        }
        let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if with_control && key.code == KeyCode::Char('c') {
            return ControlFlow::Break(());
        }
        if self.help {
            // Any key puts the help away; it does nothing else.
            self.help = false;
            return ControlFlow::Continue(());
        }
        match key.code {
            KeyCode::Char('q') => return ControlFlow::Break(()),
            KeyCode::Char('?') => self.help = true,
            KeyCode::Char('p') => self.frozen = !self.frozen,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Down | KeyCode::Char('j') => self.step(|index| index.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.step(|index| index.saturating_sub(1)),
            KeyCode::Home | KeyCode::Char('g') => self.step(|_| 0),
            KeyCode::End | KeyCode::Char('G') => self.step(|_| usize::MAX),
            KeyCode::Enter => {
                if self.selected_row().is_none() {
                    self.step(|index| index);
                }
                self.details = !self.details && self.selected.is_some();
            }
            KeyCode::Esc if self.details => self.details = false,
            KeyCode::Esc => self.selected = None,
            _ => {}
        }
        ControlFlow::Continue(())
    }

    /// The workloads in the order they stand in.
    pub(super) fn rows(&self) -> Vec<&WorkloadRow> {
        self.screen.sorted(self.sort)
    }

    /// Where the selected workload stands.
    pub(super) fn selected_row(&self) -> Option<usize> {
        let name = self.selected.as_ref()?;
        self.rows().iter().position(|row| row.name == *name)
    }

    /// The one whose details are shown.
    pub(super) fn detailed(&self) -> Option<&str> {
        self.selected.as_deref().filter(|_| self.details)
    }

    /// Whether something of this workload is shown below.
    pub(super) fn shows(&self, workload: &str) -> bool {
        self.detailed().is_none_or(|name| name == workload)
    }

    /// The limits that are shown: the busiest of all, or the selected workload's.
    pub(super) fn limits(&self) -> Vec<&LimitRow> {
        self.screen.limits.iter().filter(|row| self.shows(&row.workload)).collect()
    }

    /// Selects the row that is `to` from the selected one; the first where none is.
    fn step(&mut self, to: impl FnOnce(usize) -> usize) {
        let rows = self.rows();
        let index = match self.selected_row() {
            Some(index) => to(index),
            None if to(0) == usize::MAX => usize::MAX,
            None => 0,
        };
        let row = rows.get(index.min(rows.len().saturating_sub(1)));
        self.selected = row.map(|row| row.name.clone());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::screen::tests::{later, snapshot},
        *,
    };

    pub(in super::super) fn press(view: &mut View, keys: &str) -> ControlFlow<()> {
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                key => KeyCode::Char(key),
            };
            view.key(KeyEvent::new(code, KeyModifiers::NONE))?;
        }
        ControlFlow::Continue(())
    }

    #[test]
    fn the_selected_workload_stays_selected_in_any_order() {
        let mut view = View::new(snapshot(), 0.0);
        assert_eq!(view.selected_row(), None);
        assert!(press(&mut view, "j").is_continue());
        assert_eq!(view.selected_row(), Some(0));
        let _ = press(&mut view, "jjjj");
        assert_eq!((view.selected_row(), view.selected.as_deref()), (Some(2), Some("batch")));
        let _ = press(&mut view, "sss");
        assert_eq!((view.sort, view.selected_row()), (Sort::Name, Some(0)));
        let _ = press(&mut view, "kk");
        assert_eq!(view.selected_row(), Some(0));
        let _ = press(&mut view, "G");
        assert_eq!(view.selected.as_deref(), Some("web"));
    }

    #[test]
    fn details_are_of_the_selected_workload() {
        let mut view = View::new(snapshot(), 0.0);
        let _ = press(&mut view, "\n");
        assert_eq!((view.detailed(), view.limits().len()), (Some("web"), 8));
        let _ = press(&mut view, "j");
        assert_eq!((view.detailed(), view.limits().len()), (Some("mysql"), 0));
        let _ = press(&mut view, "\x1b");
        assert_eq!((view.detailed(), view.limits().len()), (None, 8));
        let _ = press(&mut view, "\x1b\x1b");
        assert_eq!(view.selected_row(), None);
        let mut empty = View::new(Snapshot::default(), 0.0);
        let _ = press(&mut empty, "jG\n");
        assert!(empty.detailed().is_none());
    }

    #[test]
    fn a_frozen_screen_stays_and_time_goes_on_behind_it() {
        let mut view = View::new(snapshot(), 0.0);
        let _ = press(&mut view, "p");
        let frozen = view.screen.clone();
        view.update(Ok(later()), 2.0);
        assert_eq!(view.screen, frozen);
        let _ = press(&mut view, "p");
        let mut latest = later();
        latest.recent.time += 1.0;
        latest.recent.workloads[0].admitted += 5;
        view.update(Ok(latest), 3.0);
        assert_eq!(view.screen.workloads[0].admitted_per_second, 5.0);
    }

    #[test]
    fn an_agent_that_is_lost_comes_back() {
        let mut view = View::new(snapshot(), 0.0);
        view.update(Err("gone".to_owned()), 1.0);
        view.update(Err("nobody listens".to_owned()), 2.0);
        let lost = Lost { why: "nobody listens".to_owned(), since: 1.0 };
        assert_eq!(view.lost, Some(lost));
        assert_eq!(view.screen.workloads.len(), 3, "what was seen stays");
        view.update(Ok(later()), 3.0);
        assert_eq!(view.lost, None);
        let web = &view.screen.workloads[0];
        assert_eq!(web.admitted_per_second, 40.0, "the agent's own last second");
    }

    #[test]
    fn q_and_control_c_end_it_and_any_key_ends_the_help() {
        let mut view = View::new(snapshot(), 0.0);
        assert!(press(&mut view, "?q").is_continue());
        assert!(!view.help);
        assert!(press(&mut view, "q").is_break());
        let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        view.help = true;
        assert!(view.key(control).is_break());
        let release = KeyEvent { kind: KeyEventKind::Release, ..control };
        assert!(view.key(release).is_continue());
    }
}
