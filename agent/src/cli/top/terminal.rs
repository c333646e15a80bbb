//! The terminal: the only part of `weir top` that owns one. It comes back as it was, whatever ends
//! the command: a key, a signal, an error or a panic.

use std::{
    io,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use ratatui::crossterm::event::{self, Event};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use super::{
    super::{client::Agent, error::CliError, look::Look, time},
    draw, look,
    screen::Snapshot,
    view::View,
};
use crate::causes::with_causes;

/// How long the reader may wait for what an agent answered. Keys are not waited for.
const GLANCE: Duration = Duration::from_millis(100);
/// While the agent is gone, its age is redrawn at least so often, in glances.
const REDRAW: u32 = 10;

/// What may happen besides keys.
enum Message {
    /// The agent was asked.
    Answer(Result<Box<Snapshot>, String>),
    /// The process is to end.
    End,
}

/// Gives the terminal back.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        // A terminal that is gone cannot be restored, and nobody sees it.
        let _ = ratatui::try_restore();
    }
}

/// Shows it until the reader has seen enough.
pub(super) fn run(agent: &Agent, interval: Duration, first: Snapshot) -> Result<(), CliError> {
    let (sender, messages) = mpsc::channel();
    listen_for_signals(sender.clone())?;
    ask(agent.clone(), interval, sender)?;
    let restore = Restore;
    // This also makes a panic give the terminal back before it is told.
    let mut terminal = ratatui::try_init()?;
    let mut view = View::new(first, time::now());
    loop {
        terminal.draw(|frame| draw::draw(frame, &view, &Look::of_stdout()))?;
        if wait(&mut view, &messages)? {
            break;
        }
    }
    drop(restore);
    Ok(())
}

/// Waits until something has changed; whether it is the end.
fn wait(view: &mut View, messages: &Receiver<Message>) -> io::Result<bool> {
    for _ in 0..REDRAW {
        if event::poll(GLANCE)? {
            return Ok(match event::read()? {
                Event::Key(key) => view.key(key).is_break(),
                _ => false,
            });
        }
        let mut changed = false;
        for message in messages.try_iter() {
            match message {
                Message::Answer(answer) => view.update(answer.map(|answer| *answer), time::now()),
                Message::End => return Ok(true),
            }
            changed = true;
        }
        if changed {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Asks in a thread of its own: an agent that is slow must not make the keys slow. It ends when
/// nobody wants to know any more, with the process at the latest.
fn ask(agent: Agent, interval: Duration, sender: Sender<Message>) -> io::Result<()> {
    let work = move || {
        loop {
            thread::sleep(interval);
            let answer =
                look(&agent).map(Box::new).map_err(|error| with_causes(&CliError::from(error)));
            if sender.send(Message::Answer(answer)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("ask".to_owned()).spawn(work).map(drop)
}

/// Signals that would end the process end the command instead. (Ctrl-C is a key by now, but the
/// signal may be sent all the same.)
fn listen_for_signals(sender: Sender<Message>) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let [mut interrupt, mut terminate, mut hangup] = {
        let _inside = runtime.enter();
        [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]
    };
    let work = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        // Nobody listens: it has ended already.
        let _ = sender.send(Message::End);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(work).map(drop)
}
