//! Programs that run in a namespace and die with the process that started them.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, killpg},
    },
    unistd::{Pid, getpid, getppid},
};

use super::error::{Doing, LabError};

/// How often an ending process is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A running program, killed with its process group on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, to take its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its exit status, when it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, LabError> {
        self.child.try_wait().doing(|| format!("ask after {}", self.name))
    }

    /// Sends a signal to it and to what it started.
    pub fn signal(&mut self, signal: Signal) -> Result<(), LabError> {
        killpg(self.group(), signal).doing(|| format!("send {signal} to {}", self.name))
    }

    /// Waits for its end, at most for `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>, LabError> {
        let start = Instant::now();
        loop {
            let ended = self.ended()?;
            if ended.is_some() || start.elapsed() >= patience {
                return Ok(ended);
            }
            thread::sleep(LOOK);
        }
    }

    /// Asks it to end, waits for `grace`, then kills it. `None`: it had to be killed.
    pub fn end(mut self, grace: Duration) -> Result<Option<ExitStatus>, LabError> {
        if let Some(status) = self.ended()? {
            return Ok(Some(status));
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(grace)
    }

    fn group(&self) -> Pid {
        // It leads its own group, so that Ctrl-C reaches it only through this process.
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group can outlive its leader; a group that is gone needs no signal.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Starts `command` in the namespace.
pub(super) fn spawn(mut command: Command, namespace: &File) -> Result<Process, LabError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let step = || format!("start {name}");
    let parent = getpid();
    let handle = namespace.try_clone().doing(step)?;
    let enter = move || enter(handle.as_fd(), parent);
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are made: setns, prctl and
    // getppid. `enter` allocates nothing; its errors are bare numbers.
    unsafe { command.pre_exec(enter) };
    let (answer, child) = mpsc::channel();
    let request = Request { command, answer };
    let sent = starter().doing(step)?.send(request);
    let child = sent.ok().and_then(|()| child.recv().ok());
    let gone = || Err(io::Error::other("the thread that starts processes has ended"));
    let child = child.unwrap_or_else(gone).doing(step)?;
    Ok(Process { child, name })
}

fn enter(namespace: BorrowedFd<'_>, parent: Pid) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the kernel was told what to do then.
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
}

struct Request {
    command: Command,
    answer: mpsc::Sender<io::Result<Child>>,
}

/// The thread that starts all processes.
///
/// The kernel's "parent" of PR_SET_PDEATHSIG is the thread that forked, not the process: a child
/// started by a test's or a worker's thread would be killed when that thread ends. This one lives
/// as long as the process.
fn starter() -> io::Result<&'static mpsc::Sender<Request>> {
    static STARTER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    if let Some(starter) = STARTER.get() {
        return Ok(starter);
    }
    let (requests, inbox) = mpsc::channel::<Request>();
    thread::Builder::new().name("starter".to_owned()).spawn(move || {
        for mut request in inbox {
            // Nobody waits for the answer any more: the child goes with its handle's owner.
            if let Err(mpsc::SendError(Ok(mut child))) =
                request.answer.send(request.command.spawn())
            {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    })?;
    // Two threads may race here; the loser's thread ends with its channel.
    Ok(STARTER.get_or_init(|| requests))
}
