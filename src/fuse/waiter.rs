//! The thread that waits for a reply, and whether a signal would end its wait if the kernel let it.
//!
//! A thread that waits for a daemon sleeps until the reply comes, even when it is killed. The
//! kernel tells the daemon (`FUSE_INTERRUPT`), but fuser 0.18 answers that itself, with ENOSYS. So
//! a request that takes long looks at its thread in `/proc`: if it sleeps uninterruptibly with a
//! signal pending that would wake it anywhere else, the reply is EINTR.
//!
//! A thread that cannot be seen (in another PID namespace, hidden, or gone) is left to wait:
//! another thread may need the reply (asynchronous I/O).

use std::fs;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use libc::{
    SIGABRT, SIGBUS, SIGFPE, SIGHUP, SIGILL, SIGINT, SIGKILL, SIGQUIT, SIGSEGV, SIGSYS, SIGTERM,
    SIGTRAP, SIGXCPU, SIGXFSZ,
};
use tokio::time::sleep;

use crate::base::proc;
use crate::fs::FsError;

/// Most requests end before the first look: a round trip to a store takes 20 to 200 ms.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// Between two looks. One takes 15 µs, so 10,000 waiting threads cost a sixth of a core.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bits of the masks in `/proc/TID/status`.
const fn bits(signals: &[i32]) -> u64 {
    let (mut mask, mut next) = (0, 0);
    while next < signals.len() {
        mask |= 1 << (signals[next] - 1);
        next += 1;
    }
    mask
}

/// The kernel turns every fatal signal, except [`DUMPING`], into this one for each thread of the
/// process.
const KILL: u64 = bits(&[SIGKILL]);
/// Requests to end, also for a program that catches them. Few programs expect EINTR for the other
/// signals that they catch (timers, children, windows).
const ENDING: u64 = bits(&[SIGINT, SIGTERM, SIGQUIT, SIGHUP]);
/// Signals that dump core if they are not caught: the kernel waits for the thread to take them.
const DUMPING: u64 =
    bits(&[SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS, SIGXCPU, SIGXFSZ]);

/// A thread's number in the PID namespace of the mount, or 0 if it has none there.
#[derive(Clone, Copy)]
pub(super) struct Waiter(pub(super) u32);

impl Waiter {
    /// Runs the work, unless the thread should end before: then the work is dropped half way.
    pub(super) async fn waits_for<T>(
        self,
        work: impl Future<Output = Result<T, FsError>>,
    ) -> Result<T, FsError> {
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => done,
            () = self.ends() => Err(FsError::Interrupted),
        }
    }

    async fn ends(self) {
        sleep(FIRST_LOOK).await;
        while let Some(should_end) = self.look() {
            if should_end {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
        std::future::pending::<()>().await;
    }

    /// `None` if it cannot be seen.
    fn look(self) -> Option<bool> {
        if self.0 == 0 {
            return None;
        }
        // It works for every thread, although the folder lists processes only.
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        is_to_end(&status)
    }
}

/// The thread sleeps where signals do not wake it, and a pending one would end it or its program.
/// `None` if this is not a thread's status.
fn is_to_end(status: &str) -> Option<bool> {
    let mask = |name| u64::from_str_radix(proc::field(status, name)?, 16).ok();
    let sleeps = proc::field(status, "State")?.starts_with('D');
    let own = mask("SigPnd")?;
    let pending = (own | mask("ShdPnd")?) & !mask("SigBlk")? & !mask("SigIgn")?;
    let caught = mask("SigCgt")?;
    let ends = own & KILL | pending & (ENDING | DUMPING & !caught);
    Some(sleeps && ends != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 shows it, shortened: state, and the five masks.
    fn status(state: &str, masks: [u64; 5]) -> String {
        let [own, shared, blocked, ignored, caught] = masks.map(|mask| format!("{mask:016x}"));
        format!(
            "Name:\tSigPnd: 1\nUmask:\t0022\nState:\t{state}\nTgid:\t7\nPid:\t8\nSigQ:\t1/63452\n\
             SigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\n\
             SigCgt:\t{caught}\nCapInh:\t0000000000000000\n"
        )
    }

    #[test]
    fn what_is_to_end_is_told_from_what_has_a_signal_pending() {
        let all = u64::MAX;
        let bit = |signal| bits(&[signal]);
        let (kill, int, alarm) = (bit(libc::SIGKILL), bit(libc::SIGINT), bit(libc::SIGALRM));
        let (abort, quit) = (bit(libc::SIGABRT), bit(libc::SIGQUIT));
        for (masks, ends) in [
            ([0, 0, 0, 0, 0], false),
            // Killed, by whatever signal; nothing keeps that off.
            ([kill, int, 0, 0, 0], true),
            ([kill, 0, all, all, all], true),
            // A signal of the process, or of the thread, that a handler awaits.
            ([0, int, 0, 0, int], true),
            ([int, 0, 0, 0, int], true),
            ([0, int, int, 0, int], false),
            ([0, int, 0, int, 0], false),
            // Those of timers, children and the like are no reason.
            ([0, alarm, 0, 0, alarm], false),
            ([0, bit(libc::SIGCHLD) | bit(libc::SIGWINCH) | bit(libc::SIGPROF), 0, 0, all], false),
            ([0, bit(libc::SIGUSR1), 0, 0, all], false),
            // With a core dump, unless caught; of an end, caught or not.
            ([0, abort, 0, 0, 0], true),
            ([0, abort, 0, 0, abort], false),
            ([0, quit, 0, 0, 0], true),
            ([0, quit, 0, 0, quit], true),
        ] {
            assert_eq!(is_to_end(&status("D (disk sleep)", masks)), Some(ends), "{masks:x?}");
            // It will hear of it by itself.
            for state in ["R (running)", "S (sleeping)", "t (tracing stop)", "Z (zombie)"] {
                assert_eq!(is_to_end(&status(state, masks)), Some(false), "{state}");
            }
        }
    }

    #[test]
    fn what_is_no_status_says_nothing() {
        let whole = status("D (disk sleep)", [u64::MAX; 5]);
        for line in ["State", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"] {
            let cut = whole.replace(&format!("\n{line}:"), "\nOther:");
            assert_eq!(is_to_end(&cut), None, "{line}");
        }
        assert_eq!(is_to_end(&whole.replace("ffff", "wxyz")), None);
        assert_eq!(is_to_end(""), None);
    }

    #[test]
    fn this_very_thread_is_seen_and_is_not_to_end() {
        let thread = nix::unistd::gettid().as_raw();
        assert_eq!(Waiter(u32::try_from(thread).unwrap()).look(), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_seen_is_left_to_wait() {
        // Of another namespace, and of no thread at all: beyond the largest number there is.
        for thread in [0, u32::MAX] {
            let work = async {
                sleep(Duration::from_hours(1)).await;
                Ok(7)
            };
            assert_eq!(Waiter(thread).waits_for(work).await, Ok(7));
        }
    }
}
