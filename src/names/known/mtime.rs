//! A directory's modification time.
//!
//! Invariant: it never goes back, and it advances before the kernel can see other entries than
//! under the mtime before. At the beginning of a scan the kernel keeps its directory pages if the
//! mtime is the same (`fuse_readdir_cached` in Linux's fs/fuse/readdir.c).

use std::time::{Duration, Instant};

/// Least difference of two mtimes of a directory: what Python's float `st_mtime` can tell apart.
const STEP: Duration = Duration::from_micros(1);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Mtime {
    at: Instant,
    /// It has advanced since the newest listing was believed.
    is_ahead: bool,
}

impl Mtime {
    pub(crate) fn new(at: Instant) -> Self {
        Self { at, is_ahead: false }
    }

    pub(crate) fn at(self) -> Instant {
        self.at
    }

    pub(crate) fn advance(&mut self, now: Instant) {
        self.at = now.max(self.at + STEP);
    }

    /// Advances, and need not again before a listing is believed.
    pub(crate) fn advance_ahead(&mut self, now: Instant) {
        self.advance(now);
        self.is_ahead = true;
    }

    pub(crate) fn advance_once(&mut self, now: Instant) {
        if !self.is_ahead {
            self.advance_ahead(now);
        }
    }

    pub(crate) fn is_ahead(self) -> bool {
        self.is_ahead
    }

    /// The newest listing is believed, and will be read under this mtime.
    pub(crate) fn vouch(&mut self) {
        self.is_ahead = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every sequence of six calls, at times that stand still or pass.
    #[test]
    fn it_never_goes_back_and_moves_once_until_it_is_vouched_for() {
        let start = Instant::now();
        for sequence in 0..4_u32.pow(6) {
            let mut mtime = Mtime::new(start);
            for step in 0..6 {
                let (call, now) = (sequence / 4_u32.pow(step) % 4, start + STEP * (step / 2));
                let before = mtime;
                match call {
                    0 => mtime.advance(now),
                    1 => mtime.advance_ahead(now),
                    2 => mtime.advance_once(now),
                    _ => mtime.vouch(),
                }
                let moves = call < 2 || (call == 2 && !before.is_ahead());
                assert_eq!(mtime.at() > before.at(), moves, "{sequence} {step}");
                assert!(!moves || mtime.at() >= now);
                assert_eq!(mtime.is_ahead(), call != 3 && (before.is_ahead() || call != 0));
            }
        }
    }
}
