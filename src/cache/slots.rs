//! Pure accounting of the arena's address space, which is plentiful, and of its memory.
//!
//! A *slot* is address space for one chunk, of a power-of-two size class; slots of a class are
//! recycled last in, first out, so that the next chunk finds memory that is already faulted in.
//! Memory is counted in granules (pages): *used* while a block holds or awaits bytes in it, *idle*
//! when it is resident but holds nothing. Used and idle together never exceed the budget: idle
//! memory elsewhere is returned to the system before new memory is touched.

use std::collections::BTreeMap;
use std::ops::Range;

/// Address space of a class, in budgets: a mount with 8 GiB holds 4,096 chunks of 128 MiB with one
/// block each.
pub(super) const SPREAD: u64 = 64;

/// Least address space of a class, as a part of the budget: files of one size then fill no more of
/// it, and all classes together take two or three budgets.
pub(super) const LEAST_SPREAD: u64 = 8;

/// The budget, or a class of slots, has no room at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// In bytes from the arena's beginning.
    pub(super) offset: u64,
    class: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Charged {
    /// Some of it was not idle, so it may have no memory yet.
    pub(super) fresh: bool,
    /// Idle ranges that must be returned to the system before this memory is touched.
    pub(super) release: Vec<Range<u64>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) budget: u64,
    /// Charged: blocks hold or await them.
    pub(super) used: u64,
    /// Resident, but holds nothing.
    #[cfg(test)]
    pub(super) idle: u64,
}

impl Usage {
    pub(super) fn available(&self) -> u64 {
        self.budget - self.used
    }
}

#[derive(Debug)]
pub(super) struct Slots {
    granule: u64,
    /// Memory is returned in multiples of this, if that much is idle.
    release_bytes: u64,
    budget: u64,
    /// By size: class `n` holds slots of `granule << n` bytes.
    classes: Vec<SizeClass>,
    used: u64,
    idle: AddressSet,
    /// The least number of idle bytes since surplus ones were taken.
    least_idle: u64,
}

#[derive(Debug)]
struct SizeClass {
    offset: u64,
    slots: u64,
    /// Slots from here on were never taken.
    fresh: u64,
    /// Slots given back, the most recent last.
    free: Vec<u64>,
}

impl Slots {
    /// Plans an arena for chunks of up to `chunk` bytes in blocks of `block` bytes, with `budget`
    /// bytes of memory, counted in granules of `granule` bytes, a power of two, and `class_bytes`
    /// of address space for each class. Slots that can hold a huge page, of `huge` bytes, begin at
    /// a multiple of it.
    pub(super) fn new(
        chunk: u64,
        block: u64,
        granule: u64,
        huge: u64,
        budget: u64,
        class_bytes: u64,
    ) -> Self {
        let mut classes = Vec::new();
        let mut offset: u64 = 0;
        let mut size = granule;
        loop {
            // A chunk may fill little more than half of its slot.
            let enough = budget.div_ceil((size / 2).max(granule).min(block));
            let slots = enough.min(class_bytes.div_ceil(size)).max(4);
            if size >= huge {
                offset = offset.next_multiple_of(huge);
            }
            classes.push(SizeClass { offset, slots, fresh: 0, free: Vec::new() });
            offset += size * slots;
            if size >= chunk {
                let idle = AddressSet::default();
                let release_bytes = huge;
                let (used, least_idle) = (0, 0);
                return Self { granule, release_bytes, budget, classes, used, idle, least_idle };
            }
            size *= 2;
        }
    }

    /// Address space that all slots need.
    pub(super) fn address_bytes(&self) -> u64 {
        let classes = self.classes.iter().enumerate().next_back();
        classes.map_or(0, |(class, last)| last.offset + last.slots * (self.granule << class))
    }

    pub(super) fn take(&mut self, len: u64) -> Result<Slot, Full> {
        let class = len.div_ceil(self.granule).next_power_of_two().ilog2() as usize;
        let size = self.granule << class;
        let SizeClass { offset, slots, fresh, free } = &mut self.classes[class];
        let index = match free.pop() {
            Some(index) => index,
            None if *fresh < *slots => {
                *fresh += 1;
                *fresh - 1
            }
            None => return Err(Full),
        };
        Ok(Slot { offset: *offset + index * size, class })
    }

    /// Gives address space back; nothing in it may be charged.
    pub(super) fn give(&mut self, slot: &Slot) {
        let class = &mut self.classes[slot.class];
        class.free.push((slot.offset - class.offset) / (self.granule << slot.class));
    }

    /// Charges memory at these addresses, none of which may be charged yet; all or none.
    pub(super) fn charge(&mut self, ranges: &[Range<u64>]) -> Result<Charged, Full> {
        let ranges: Vec<_> = ranges.iter().map(|bytes| self.granules(bytes)).collect();
        let wanted: u64 = ranges.iter().map(|bytes| bytes.end - bytes.start).sum();
        if self.used + wanted > self.budget {
            return Err(Full);
        }
        self.used += wanted;
        let idle = self.idle.bytes;
        for bytes in &ranges {
            self.idle.remove(bytes);
        }
        let fresh = idle - self.idle.bytes < wanted;
        let over = (self.used + self.idle.bytes).saturating_sub(self.budget);
        // A huge page that is returned in part keeps the memory of the rest.
        let whole = if over == 0 { 0 } else { over.next_multiple_of(self.release_bytes) };
        let release = self.idle.pop(whole.min(self.idle.bytes));
        self.least_idle = self.least_idle.min(self.idle.bytes);
        Ok(Charged { fresh, release })
    }

    /// Takes as many idle bytes as were idle ever since the last call.
    pub(super) fn take_surplus(&mut self) -> Vec<Range<u64>> {
        let taken = self.idle.pop(self.least_idle);
        self.least_idle = self.idle.bytes;
        taken
    }

    /// Ends the charge of these addresses. Their memory stays, idle.
    pub(super) fn discharge(&mut self, bytes: &Range<u64>) {
        let bytes = self.granules(bytes);
        self.used -= bytes.end - bytes.start;
        self.idle.insert(bytes);
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            budget: self.budget,
            used: self.used,
            #[cfg(test)]
            idle: self.idle.bytes,
        }
    }

    /// Blocks begin at multiples of the granule; the last of a chunk ends anywhere.
    fn granules(&self, bytes: &Range<u64>) -> Range<u64> {
        debug_assert_eq!(bytes.start % self.granule, 0);
        bytes.start..bytes.end.next_multiple_of(self.granule)
    }
}

/// A set of addresses as disjoint runs that do not touch: start to end.
#[derive(Debug, Default)]
struct AddressSet {
    runs: BTreeMap<u64, u64>,
    bytes: u64,
}

impl AddressSet {
    fn insert(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        self.bytes += run.end - run.start;
        let Range { mut start, mut end } = run;
        if let Some((&before, &before_end)) = self.runs.range(..start).next_back() {
            debug_assert!(before_end <= start);
            if before_end == start {
                self.runs.remove(&before);
                start = before;
            }
        }
        if let Some(after_end) = self.runs.remove(&end) {
            end = after_end;
        }
        self.runs.insert(start, end);
    }

    fn remove(&mut self, run: &Range<u64>) {
        // The only run that may begin before ours.
        let first = self.runs.range(..run.start).next_back().map(|(&start, _)| start);
        let inside = self.runs.range(run.clone()).map(|(&start, _)| start);
        for start in first.into_iter().chain(inside).collect::<Vec<_>>() {
            let end = self.runs[&start];
            if end <= run.start {
                continue;
            }
            self.runs.remove(&start);
            self.bytes -= end - start;
            for rest in [start..run.start.min(end), run.end.max(start)..end] {
                if rest.start < rest.end {
                    self.bytes += rest.end - rest.start;
                    self.runs.insert(rest.start, rest.end);
                }
            }
        }
    }

    /// Removes `bytes` from the end: the largest classes, whose runs are the longest.
    fn pop(&mut self, mut bytes: u64) -> Vec<Range<u64>> {
        let mut popped = Vec::new();
        while bytes > 0 {
            let (start, end) = self.runs.pop_last().expect("no more is removed than is idle");
            let from = start.max(end.saturating_sub(bytes));
            if start < from {
                self.runs.insert(start, from);
            }
            self.bytes -= end - from;
            bytes -= end - from;
            popped.push(from..end);
        }
        popped
    }
}

#[cfg(test)]
mod tests;
