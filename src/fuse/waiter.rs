//! Who waits for an answer, and whether a signal would end that wait if the kernel let it.
//!
//! A thread that waits for a reply to a request in the hands of a daemon sits there until the reply
//! comes, even when it is killed. The kernel tells the daemon (`FUSE_INTERRUPT`), but fuser 0.18
//! answers that itself, with ENOSYS. So what waits for long looks at the thread: one that is to end
//! sleeps with a signal pending that would wake it anywhere else, and `/proc` shows that. The reply
//! is EINTR then.
//!
//! Whatever cannot be seen, be the thread in another PID namespace, hidden or gone, is left to wait:
//! what a thread has asked for may be waited for by another (asynchronous I/O).

use std::fs;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;

use crate::base::proc;
use crate::fs::FsError;

/// Who waits no longer than this is not looked at, which is nearly everybody: a round trip to a store
/// takes 20 to 200 ms.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// From then on. A look takes 15 µs, so ten thousand who wait take a sixth of a core.
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

/// Every fatal signal is made into this one for each thread of the process, but for [`DUMPING`].
const KILL: u64 = bits(&[libc::SIGKILL]);
/// Asks a program to end: whoever catches it wants to hear of it at once. Others that are caught
/// (timers, children, windows) say nothing about the wait, and few programs expect EINTR for them.
const ENDING: u64 = bits(&[libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP]);
/// Dumps core, if it is not caught. The kernel waits for the thread to take it itself.
const DUMPING: u64 = bits(&[
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGXCPU,
    libc::SIGXFSZ,
]);

/// The thread that waits for the answer to a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    thread: u32,
}

impl Waiter {
    /// By its number in the namespace of the mount; 0 if it has none there.
    pub(super) fn new(thread: u32) -> Self {
        Self { thread }
    }

    /// Has the work done for it: unless it is to end before. Then the work is dropped half way.
    pub(super) async fn waits_for<T>(
        self,
        work: impl Future<Output = Result<T, FsError>>,
    ) -> Result<T, FsError> {
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => done,
            () = self.is_to_end() => Err(FsError::Interrupted),
        }
    }

    async fn is_to_end(self) {
        sleep(FIRST_LOOK).await;
        while let Some(is_to_end) = self.look() {
            if is_to_end {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
        std::future::pending::<()>().await;
    }

    /// `None` if it is not to be seen.
    fn look(self) -> Option<bool> {
        if self.thread == 0 {
            return None;
        }
        // Of threads too, which the folder does not list.
        let status = fs::read_to_string(format!("/proc/{}/status", self.thread)).ok()?;
        is_to_end(&status)
    }
}

/// Whether a thread sleeps where signals do not wake it, and one is pending that would end it or its
/// program; `None` if this is not a thread's status.
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
        assert_eq!(Waiter::new(u32::try_from(thread).unwrap()).look(), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_seen_is_left_to_wait() {
        // Of another namespace, and of no thread at all: beyond the largest number there is.
        for thread in [0, u32::MAX] {
            let work = async {
                sleep(Duration::from_hours(1)).await;
                Ok(7)
            };
            assert_eq!(Waiter::new(thread).waits_for(work).await, Ok(7));
        }
    }
}
