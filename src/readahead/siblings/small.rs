//! Small directories, whose files are fetched together.
//!
//! A program that starts reads many of them: a Python package is a directory of sources, and one of
//! bytecode in it, and asks for one file after the other. A few dozen GETs at once take hardly
//! longer than one. So all small files of the directory are fetched when its second file is read;
//! and as soon as a name is looked up in it, once files of other directories were used.
//!
//! It is a bet on the program, not on the directory: one credit for all of them pays for each file,
//! and gets back [`GAIN`] times its price when the file is used. Where less than one in [`GAIN`] is
//! used, the credit ends, and is given back slowly, by what is read anyway. A credit of their own
//! have directories that were fetched before anything was read there.

use super::pattern::Pattern;
use super::{Account, Listed};
use crate::base::credit::Credit;

/// The most that a small directory holds. Behind 15 ms, 128 files on 48 connections take three
/// round trips, those that are read first the first; and 4 MiB take 5 ms of 1 GB/s.
const MOST_ENTRIES: usize = 1024;
const MOST_FILES: usize = 128;
const MOST_BYTES: u64 = 4 << 20;

/// Larger files do not count, and are not fetched: their bytes take longer than a round trip.
const MOST_FILE_BYTES: u64 = 1 << 20;

/// A file costs one, and one more for each of these.
const BYTES_PER_UNIT: u64 = 128 << 10;

/// The use of a file pays for two that are not used: next to each Python source that is read stands
/// a stub or a test that is not.
pub(super) const GAIN: usize = 3;

/// What is lost on a program that reads two files of each directory: a second of `cp`. With
/// packages in packages, twice that is ahead before it is used.
const START: usize = 128;
const MOST: usize = 256;

/// A directory that is fetched when it is entered costs one, and pays back half more when a file in
/// it is read. Of bytecode that needs no source every second directory is read: too few.
const ENTERED_COST: usize = 2;
const ENTERED_GAIN: usize = 3;
const ENTERED: usize = 8 * ENTERED_COST;

/// First reads of small files after which the credit has recovered by one: one file in 64.
const READS_PER_UNIT: usize = 64;

/// What files of small directories may cost, and directories that are entered.
pub(super) fn credits() -> (Credit, Credit) {
    (Credit::new(START, MOST), Credit::new(ENTERED, ENTERED))
}

pub(super) fn cost(bytes: u64) -> usize {
    1 + usize::try_from(bytes / BYTES_PER_UNIT).unwrap_or(MOST)
}

/// All files of a directory that may be small at all are few, and have few bytes.
pub(super) fn is_small(directory: &dyn Listed) -> bool {
    if directory.entries() > MOST_ENTRIES {
        return false;
    }
    let files = (0..directory.entries()).filter_map(|index| file_bytes(directory, index));
    let (files, bytes) = files.fold((0, 0), |(files, sum), bytes| (files + 1, sum + bytes));
    files <= MOST_FILES && bytes <= MOST_BYTES
}

fn file_bytes(directory: &dyn Listed, index: usize) -> Option<u64> {
    directory.file_bytes(index).filter(|&bytes| bytes > 0 && bytes <= MOST_FILE_BYTES)
}

impl Account {
    pub(super) fn count_read(&mut self) {
        self.reads += 1;
        if self.reads.is_multiple_of(READS_PER_UNIT) {
            self.credit.recover();
            self.entered.recover();
        }
    }
}

impl Pattern {
    /// A name is looked up in the directory: its files, if such bets have been won.
    pub(super) fn choose_entered(
        &mut self,
        directory: &dyn Listed,
        account: &mut Account,
    ) -> Vec<usize> {
        let is_new = self.is_small && self.read.count() + self.ahead.count() == 0;
        if !is_new || !account.credit.is_trusted() || !account.entered.pay(ENTERED_COST) {
            return Vec::new();
        }
        self.was_entered = true;
        self.choose_small(directory, account)
    }

    /// A file of it is read for the first time.
    pub(super) fn read_small(&mut self, account: &mut Account) {
        if std::mem::take(&mut self.was_entered) {
            account.entered.win(ENTERED_GAIN);
        }
    }

    /// All files of a small directory, if two were read or such bets have been won; and marks them
    /// as ahead.
    pub(super) fn choose_small(
        &mut self,
        directory: &dyn Listed,
        account: &mut Account,
    ) -> Vec<usize> {
        let is_worth_it = self.read.count() >= 2 || account.credit.is_trusted();
        if !self.is_small || !is_worth_it {
            return Vec::new();
        }
        let (mut chosen, mut at) = (Vec::new(), 0);
        loop {
            at = self.read.first_without(&self.ahead, at, directory.entries());
            if at >= directory.entries() {
                return chosen;
            }
            if let Some(bytes) = file_bytes(directory, at) {
                let has_room = account.ahead_bytes + bytes <= account.limits.ahead_bytes;
                if !has_room || !account.credit.pay(cost(bytes)) {
                    return chosen;
                }
                self.mark_ahead(at, bytes, account);
                chosen.push(at);
            }
            at += 1;
        }
    }
}
