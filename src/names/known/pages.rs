//! What the kernel may hold of a directory: pages of entries, which it keeps until it is told that
//! they are old.
//!
//! It asks for the directory's attributes before it uses them (`fuse_readdir_cached` in Linux's
//! fs/fuse/readdir.c), and that is when it is told. Its own sign, another mtime, is no use: the
//! mtime does not move when a listing expires.

/// The listing that the entries were read from since the kernel was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ReadFrom {
    #[default]
    Nothing,
    /// The listing of this generation.
    One(u32),
    Several,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KernelPages {
    read_from: ReadFrom,
    /// Counts the reads.
    reads: u64,
}

/// A moment at which the kernel's pages were old: the number of reads until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldPages(u64);

impl KernelPages {
    /// Of entries that nobody here knows.
    pub(super) fn of_another_process() -> Self {
        Self { read_from: ReadFrom::Several, reads: 0 }
    }

    /// Entries of this listing are read. `same` gives one number to listings with equal entries.
    pub(super) fn read(&mut self, generation: u32, same: impl Fn(u32) -> u32) {
        self.reads += 1;
        self.read_from = match self.read_from {
            ReadFrom::Nothing => ReadFrom::One(generation),
            ReadFrom::One(own) if same(own) == same(generation) => ReadFrom::One(generation),
            ReadFrom::One(_) | ReadFrom::Several => ReadFrom::Several,
        };
    }

    /// They may hold other entries than the listings that are `good`.
    pub(super) fn old(&self, good: impl Fn(u32) -> bool) -> Option<OldPages> {
        let is_old = match self.read_from {
            ReadFrom::Nothing => false,
            ReadFrom::One(generation) => !good(generation),
            ReadFrom::Several => true,
        };
        is_old.then_some(OldPages(self.reads))
    }

    /// The kernel has dropped them. What was read meanwhile may be in pages.
    pub(super) fn dropped(&mut self, old: OldPages) {
        self.read_from = match self.read_from {
            _ if self.reads == old.0 => ReadFrom::Nothing,
            ReadFrom::Nothing => ReadFrom::Nothing,
            ReadFrom::One(_) | ReadFrom::Several => ReadFrom::Several,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Generations 1 and 2 are equal, and 3 differs.
    fn same(generation: u32) -> u32 {
        generation.max(2)
    }

    fn is_old(pages: &KernelPages, newest: u32) -> bool {
        pages.old(|generation| same(generation) == same(newest)).is_some()
    }

    #[test]
    fn pages_are_good_while_all_that_was_read_equals_the_newest_listing() {
        let mut pages = KernelPages::default();
        assert!(!is_old(&pages, 3), "nothing was read");
        pages.read(1, same);
        pages.read(2, same);
        assert!(!is_old(&pages, 1) && !is_old(&pages, 2) && is_old(&pages, 3));
        pages.read(3, same);
        assert!(is_old(&pages, 2) && is_old(&pages, 3), "some of each");
    }

    #[test]
    fn what_is_read_while_the_kernel_is_told_is_not_taken_for_dropped() {
        let mut pages = KernelPages::default();
        pages.read(1, same);
        let old = pages.old(|_| false).expect("old");
        pages.dropped(old);
        assert!(!is_old(&pages, 3), "nothing is left");
        pages.read(1, same);
        let old = pages.old(|_| false).expect("old");
        pages.read(1, same);
        pages.dropped(old);
        assert!(is_old(&pages, 1), "it may be the one before the other");
    }
}
