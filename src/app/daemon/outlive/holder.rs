//! The holder: a small process that starts the daemon, keeps what the next one needs, and starts
//! that when the daemon has ended and its mount has not. It is this program, executed for
//! `--daemon` and as the first process of a container. It never looks at the mount, which would
//! have it wait for the daemon.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::keeper::{FORGET, HELD, KEEP, READY, is_held};
use super::{Left, free, is_connected};
use crate::app::command_error::CommandError;
use crate::app::config::{Config, Outlive};
use crate::app::daemon::{Ended, background, descriptors, handed_over, logging};

/// After so many deaths within this time the mount is given up: a daemon that dies of a request
/// would die of it again, and its reader wait for ever.
const DEATHS: usize = 5;
const WITHIN: Duration = Duration::from_secs(30);
/// The pause before the third start within that time, and longer by it before each further one.
const PAUSE: Duration = Duration::from_millis(200);
/// The same after the first daemon that did not come to serve, and twice as long after each further
/// one: what it lacks may be there again.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

/// How often it is looked whether the daemon is dying; nobody tells that.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What the holder passes on.
const SIGNALS: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// This process should be a holder.
pub(in crate::app::daemon) fn is_wanted(config: &Config) -> bool {
    let has_manager = std::env::var_os("NOTIFY_SOCKET").is_some();
    let is_useful = config.descriptor.is_none() && !has_manager && !is_held();
    is_useful
        && match config.outlive {
            Outlive::Never => false,
            Outlive::Always => true,
            Outlive::Auto => config.daemon || std::process::id() == 1,
        }
}

/// Returns when the mount has ended. `arguments` are the program's own, its name first.
pub(in crate::app::daemon) fn run(config: &Config, arguments: &[OsString]) -> Result<(), Ended> {
    let _logs = logging::init(&config.log, config.daemon)
        .map_err(|cause| CommandError::failed(format!("logging cannot be started: {cause}")))?;
    let program = std::env::current_exe().map_err(|error| internal("found", &error))?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| internal("held", &error))?;
    let arguments = arguments.get(1..).unwrap_or_default().to_vec();
    let (left, is_ready, has_served, is_ending) = Default::default();
    let holder = Holder { program, arguments, left, is_ready, has_served, is_ending };
    runtime.block_on(holder.hold())
}

fn internal(what: &str, error: &std::io::Error) -> CommandError {
    CommandError::failed(format!("the daemon cannot be {what}: {error}"))
}

struct Holder {
    /// Where it was when the holder was started: by now it may be a newer one.
    program: PathBuf,
    arguments: Vec<OsString>,
    left: Option<Left>,
    /// The mount was usable once.
    is_ready: bool,
    /// The daemon that was started last has served it.
    has_served: bool,
    /// It was told to end.
    is_ending: bool,
}

/// When daemons have died lately.
#[derive(Default)]
struct Deaths(VecDeque<Instant>);

impl Deaths {
    /// Counts one: the pause before the next start, or nothing if there were too many.
    fn pause(&mut self, has_served: bool) -> Option<Duration> {
        self.0.push_back(Instant::now());
        self.0.retain(|death| death.elapsed() < WITHIN);
        let number = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let pause = if has_served {
            PAUSE * number.saturating_sub(2)
        } else {
            FAILED_PAUSE * 2_u32.saturating_pow(number - 1)
        };
        (self.0.len() < DEATHS).then_some(pause)
    }
}

enum Event {
    Said(Vec<u8>, Vec<OwnedFd>),
    Signal(Signal),
    Ended(WaitStatus),
}

impl Holder {
    async fn hold(mut self) -> Result<(), Ended> {
        let (sender, mut events) = unbounded_channel();
        for which in SIGNALS {
            let mut caught = signal(SignalKind::from_raw(which as i32))
                .map_err(|error| internal("signalled", &error))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while caught.recv().await.is_some() && sender.send(Event::Signal(which)).is_ok() {}
            });
        }
        let mut deaths = Deaths::default();
        loop {
            self.has_served = false;
            let (socket, pid) = match self.start() {
                Ok(started) => started,
                // The program may be away while a new one is installed.
                Err(error) if self.left.is_some() => match deaths.pause(false) {
                    Some(pause) => {
                        tracing::warn!("the program is away, trying again: {}", error.sentence);
                        sleep(pause).await;
                        continue;
                    }
                    None => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            };
            let (listening, waiting) = (sender.clone(), sender.clone());
            std::thread::spawn(move || {
                let status = listen(&socket, pid, |word, with| {
                    let _ = listening.send(Event::Said(word, with));
                });
                let _ = waiting.send(Event::Ended(status));
            });
            let status = self.until_its_end(pid, &mut events).await?;
            let Some(left) = &self.left else { return ended(status, self.is_ready) };
            if self.is_ending || !is_connected(&left.device) {
                self.give_up();
                return ended(status, self.is_ready);
            }
            // Not after it has left the mount to the next one.
            if status != WaitStatus::Exited(pid, 0) {
                let Some(pause) = deaths.pause(self.has_served) else {
                    tracing::error!(
                        "the daemon has died {DEATHS} times within {} s: the mount is given up",
                        WITHIN.as_secs()
                    );
                    // Programs get errors from a dead mount. The directory below would be taken for
                    // the data, and nothing would be found in it.
                    self.left = None;
                    return ended(status, false);
                };
                tracing::warn!("the daemon has died ({}): starting it again", shown(status));
                sleep(pause).await;
            }
        }
    }

    async fn until_its_end(
        &mut self,
        pid: Pid,
        events: &mut UnboundedReceiver<Event>,
    ) -> Result<WaitStatus, Ended> {
        loop {
            match events.recv().await {
                Some(Event::Signal(which)) => {
                    self.is_ending |= matches!(which, Signal::SIGINT | Signal::SIGTERM);
                    // It may have ended in this moment.
                    let _ = kill(pid, which);
                }
                Some(Event::Said(word, with)) => self.heard(&word, with)?,
                Some(Event::Ended(status)) => return Ok(status),
                None => unreachable!("the holder has a sender itself"),
            }
        }
    }

    fn heard(&mut self, word: &[u8], with: Vec<OwnedFd>) -> Result<(), Ended> {
        match word {
            KEEP => {
                let mut with = with.into_iter();
                let both = with.next().zip(with.next());
                self.left = both.map(|(device, table)| Left { device, table });
            }
            FORGET => self.left = None,
            READY => {
                self.has_served = true;
                let is_first = !std::mem::replace(&mut self.is_ready, true);
                if is_first && background::is_child() {
                    background::leave()?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Starts the daemon.
    fn start(&self) -> Result<(OwnedFd, Pid), CommandError> {
        let failed = |error: std::io::Error| internal("started", &error);
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .map_err(|errno| failed(errno.into()))?;
        // Copies that the daemon inherits by their numbers; dropped here when it was started.
        let left = self.left.iter().flat_map(|left| [&left.device, &left.table]);
        let mut inherited = vec![theirs];
        for descriptor in left {
            inherited.push(descriptor.try_clone().map_err(failed)?);
        }
        let mut told = std::process::id().to_string();
        for descriptor in &inherited {
            let flags = FcntlArg::F_SETFD(FdFlag::empty());
            fcntl(descriptor, flags).map_err(|errno| failed(errno.into()))?;
            let _ = write!(told, ":{}", descriptor.as_raw_fd());
        }
        let mut command = Command::new(&self.program);
        command.arg0("fasts3-mount").args(&self.arguments).env(HELD, told);
        command.stdin(Stdio::null());
        if background::is_child() {
            // That of this process is the pipe to the first one.
            command.stdout(Stdio::null());
        }
        background::forget(&mut command);
        let daemon = command.spawn().map_err(failed)?;
        let pid =
            i32::try_from(daemon.id()).map_err(|error| failed(std::io::Error::other(error)))?;
        Ok((ours, Pid::from_raw(pid)))
    }

    /// Unmounts, and ends the connection: whoever waits for the daemon gets an error.
    fn give_up(&mut self) {
        let Some(left) = self.left.take() else { return };
        let description = super::Description::read(&left.table);
        let number = handed_over::device_number(&left.device)
            .or_else(|| description.ok().map(|one| one.device_number));
        if let Some(number) = number {
            free(&number);
        }
    }
}

/// Returns when the daemon has ended. Messages come first: nothing that was said is missed.
///
/// One that was killed while a thread waits for the kernel, and the kernel for an answer to a
/// program's request, does not end before the next daemon gives that answer.
fn listen(socket: &OwnedFd, pid: Pid, said: impl Fn(Vec<u8>, Vec<OwnedFd>)) -> WaitStatus {
    let mut is_dying = false;
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&LOOK)) {
            Err(_interrupted) => {}
            Ok(0) if is_dying => return WaitStatus::Signaled(pid, Signal::SIGKILL, false),
            Ok(0) => is_dying = has_no_first_thread(pid),
            Ok(_) => match descriptors::receive(socket.as_fd()) {
                Ok(Some((word, with))) => said(word, with),
                _ => return wait_for(pid),
            },
        }
    }
}

/// What a process is while only others of its threads are left.
fn has_no_first_thread(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.starts_with(" Z"))
}

/// Reaps every child: the first process of a container has those of others.
fn wait_for(pid: Pid) -> WaitStatus {
    loop {
        match waitpid(None, None) {
            Ok(status @ (WaitStatus::Exited(which, _) | WaitStatus::Signaled(which, ..)))
                if which == pid =>
            {
                return status;
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            // There is none: somebody else has reaped it.
            Err(_) => return WaitStatus::StillAlive,
        }
    }
}

/// As the daemon has ended, this process ends.
fn ended(status: WaitStatus, was_ready: bool) -> Result<(), Ended> {
    match status {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, code) => Err(Ended::Reported(u8::try_from(code).unwrap_or(1))),
        status if was_ready => {
            Err(CommandError::failed(format!("the daemon has died ({})", shown(status))).into())
        }
        status => {
            let how = shown(status);
            let cause = format!("the daemon ended before the mount was usable: {how}");
            Err(CommandError::failed(cause).into())
        }
    }
}

fn shown(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => signal.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}
