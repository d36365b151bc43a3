//! Where extents are: one file, a hash table of pages that every process of the user reads and
//! writes without a lock.
//!
//! That is right because each extent proves itself: a torn one has no right checksum, one that was
//! overwritten by another process is only not found, and one whose segment is gone, or holds
//! something else after a crash, does not pass the checksums of its blocks.
//!
//! It begins small and is doubled as it fills: so a page holds many extents, and few pages are to
//! be read. The extents of a page then belong to it or to its twin in the new half, and those that
//! have moved are left in the old one as garbage.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::files;
use super::format::{EXTENT_BYTES, Extent, PAGE, PAGE_BYTES, PASSED_OVER, VersionName, place};

/// The first page: this, and the number of pages that follow.
const MAGIC: &[u8; 24] = b"fasts3-mount disk cache\n";
const PAGES_AT: u64 = MAGIC.len() as u64;
const EXTENTS_PER_PAGE: u64 = PAGE_BYTES / EXTENT_BYTES as u64;
/// At most one extent for each 32 KiB of cache. Small files have one each, of 110 KiB on average in
/// `ImageNet`.
const BYTES_PER_EXTENT: u64 = 32 << 10;
/// Of a new index, at most.
const FIRST_PAGES: u64 = 64;
/// A page with fewer free places makes the index grow: half of all are taken then, as names are
/// scattered by chance.
const FEWEST_FREE: usize = 12;
/// Consecutive units of an object share a page, so that a stream reads one for 8 MiB.
const UNITS_TOGETHER: u32 = 8;

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

#[derive(Debug)]
pub(super) struct Index {
    file: File,
    /// As they were last seen.
    pages: AtomicU64,
    /// Of the largest cache that this process has opened it for.
    most_pages: u64,
    crowded: AtomicBool,
}

impl Index {
    /// Opens the index that is there. One that is not right is an error of the kind `InvalidData`.
    pub(super) fn existing(path: &Path) -> std::io::Result<Self> {
        let file = files::open(&options(), path)?;
        let mut head = [0; 32];
        file.read_exact_at(&mut head, 0).map_err(|_| not_an_index())?;
        let (magic, pages) = head.split_at(24);
        let pages = pages.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if magic != MAGIC || !has_pages(&file, pages) {
            return Err(not_an_index());
        }
        let (most_pages, crowded) = Default::default();
        Ok(Self { file, pages: pages.into(), most_pages, crowded })
    }

    /// The same, or makes one, for a cache of `size_bytes`.
    pub(super) fn open(path: &Path, size_bytes: u64) -> std::io::Result<Self> {
        let most_pages = (size_bytes / BYTES_PER_EXTENT).div_ceil(EXTENTS_PER_PAGE).max(16);
        let opened = match Self::existing(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Self::make(path, most_pages),
            existing => existing,
        };
        Ok(Self { most_pages, ..opened? })
    }

    fn make(path: &Path, most_pages: u64) -> std::io::Result<Self> {
        let file = files::open(options().create_new(true), path)?;
        let mut pages = most_pages;
        while pages > FIRST_PAGES {
            pages /= 2;
        }
        file.set_len((pages + 1) * PAGE_BYTES)?;
        file.write_all_at(MAGIC, 0)?;
        file.write_all_at(&pages.to_le_bytes(), PAGES_AT)?;
        Ok(Self { file, pages: pages.into(), most_pages, crowded: AtomicBool::new(false) })
    }

    /// Another process has doubled it since it was last looked at: what was not found may be there.
    pub(super) fn has_grown(&self) -> bool {
        let mut told = [0; 8];
        let told = self.file.read_exact_at(&mut told, PAGES_AT).map(|()| u64::from_le_bytes(told));
        let is_new = |told: &u64| *told != self.pages.load(Relaxed) && has_pages(&self.file, *told);
        // What somebody has damaged is made anew soon.
        let Some(pages) = told.ok().filter(is_new) else { return false };
        self.pages.store(pages, Relaxed);
        self.crowded.store(false, Relaxed);
        true
    }

    fn pages(&self) -> u64 {
        self.has_grown();
        self.pages.load(Relaxed)
    }

    /// It should be doubled.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded.load(Relaxed)
    }

    /// Doubles it, if it is crowded. No other process may do so meanwhile; what one inserts may be
    /// lost.
    pub(super) fn grow(&self) -> std::io::Result<()> {
        let pages = self.pages();
        if !self.crowded.swap(false, Relaxed) {
            return Ok(());
        }
        // Of a process that was killed here, something may be left.
        self.file.set_len((pages + 1) * PAGE_BYTES)?;
        self.file.set_len((2 * pages + 1) * PAGE_BYTES)?;
        let mut number = 0;
        while let Some(next) = self.next_written(number, pages)? {
            let mut twin = self.read(next)?;
            for slot in twin.chunks_exact_mut(EXTENT_BYTES) {
                let moves = |extent: Extent| place_of(&extent.name, extent.unit) % (2 * pages);
                if Extent::decode(slot).map(moves) != Some(next + pages) {
                    slot.fill(0);
                }
            }
            self.file.write_all_at(&twin, offset(next + pages, 0))?;
            number = next + 1;
        }
        self.file.write_all_at(&(2 * pages).to_le_bytes(), PAGES_AT)
    }

    /// False after somebody has removed the file, or has put another one there.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        files::is_at(&self.file, path)
    }

    /// False after somebody has cut the file.
    pub(super) fn is_whole(&self) -> bool {
        has_pages(&self.file, self.pages())
    }

    /// All extents of these units of a version, by the number of pages that was last seen, so that
    /// what is there costs one read: whoever misses some asks [`Self::has_grown`], and looks again.
    pub(super) fn find(
        &self,
        version: &VersionName,
        units: Range<u32>,
    ) -> std::io::Result<Vec<Extent>> {
        let mut found = Vec::new();
        let (mut unit, pages) = (units.start, self.pages.load(Relaxed));
        while unit < units.end {
            let together = unit / UNITS_TOGETHER;
            let page = self.read(place_of(&version.name, unit) % pages)?;
            let is_ours = |extent: &Extent| {
                units.contains(&extent.unit) && extent.unit / UNITS_TOGETHER == together
            };
            found.extend(named(&page, &version.name).filter(is_ours));
            unit = (together + 1).saturating_mul(UNITS_TOGETHER);
        }
        Ok(found)
    }

    /// The number at which some of these bytes were last stored or passed over.
    pub(super) fn last_number(&self, of: &Extent) -> std::io::Result<Option<u64>> {
        let (page, range) = (self.read(self.page_of(of))?, of.object_range());
        let overlaps = |extent: &Extent| {
            let other = extent.object_range();
            other.start < range.end && range.start < other.end
        };
        let same = named(&page, &of.name).filter(overlaps);
        Ok(same.map(|extent| extent.segment & !PASSED_OVER).max())
    }

    /// Writes an extent, joined with those that lie beside it: over one that holds nothing more,
    /// over a free place, over one whose segment is gone, or over the oldest.
    pub(super) fn insert(
        &self,
        extent: &Extent,
        is_live: impl Fn(u64) -> bool,
    ) -> std::io::Result<()> {
        let pages = self.pages();
        let page_of = |extent: &Extent| place_of(&extent.name, extent.unit) % pages;
        let number = page_of(extent);
        let page = self.read(number)?;
        let slots = page.chunks_exact(EXTENT_BYTES).map(Extent::decode);
        let slots: Vec<_> =
            slots.map(|slot| slot.filter(|extent| page_of(extent) == number)).collect();
        let is_free =
            |slot: &&Option<Extent>| slot.as_ref().is_none_or(|extent| !is_live(extent.segment));
        if 2 * pages <= self.most_pages && slots.iter().filter(is_free).count() < FEWEST_FREE {
            self.crowded.store(true, Relaxed);
        }
        // Without this the blocks of consecutive units, read one by one, would be more than a page
        // has places for.
        let (mut whole, mut parts) = (*extent, Vec::new());
        while let Some((at, joined)) = slots.iter().enumerate().find_map(|(at, old)| {
            let joined = whole.joined(old.as_ref().filter(|_| !parts.contains(&at))?)?;
            Some((at, joined))
        }) {
            whole = joined;
            parts.push(at);
        }
        let range = whole.object_range();
        // Of free places any one: another process that writes to this page now takes another. Of
        // those that are gone too, so that some are remembered however many there are.
        let start = u64::from(whole.name[15]) + u64::from(whole.unit);
        let any = |at: usize| (at as u64 + start) % EXTENTS_PER_PAGE;
        let value = |(at, slot): &(usize, &Option<Extent>)| match slot {
            None => (1, any(*at)),
            Some(old)
                if old.name == whole.name
                    && range.start <= old.object_range().start
                    && old.object_range().end <= range.end =>
            {
                (0, 0)
            }
            Some(old) if !is_live(old.segment) => (2, any(*at)),
            Some(old) => (3, old.segment),
        };
        let least = slots.iter().enumerate().min_by_key(value).map_or(0, |(at, _)| at);
        self.file.write_all_at(&whole.encode(), offset(number, least))?;
        for part in parts.into_iter().filter(|&part| part != least) {
            self.file.write_all_at(&[0; EXTENT_BYTES], offset(number, part))?;
        }
        Ok(())
    }

    /// Forgets an extent, if it is still there.
    pub(super) fn remove(&self, extent: &Extent) -> std::io::Result<()> {
        let number = self.page_of(extent);
        let page = self.read(number)?;
        for (at, _) in extents(&page).filter(|(_, found)| found == extent) {
            self.file.write_all_at(&[0; EXTENT_BYTES], offset(number, at))?;
        }
        Ok(())
    }

    /// Calls `see` for every extent of the index, and forgets those of which it returns false.
    pub(super) fn each(
        &self,
        mut see: impl FnMut(&Extent) -> std::io::Result<bool>,
    ) -> std::io::Result<()> {
        let (mut number, pages) = (0, self.pages());
        while let Some(next) = self.next_written(number, pages)? {
            for (at, extent) in extents(&self.read(next)?) {
                let is_garbage = place_of(&extent.name, extent.unit) % pages != next;
                if !is_garbage && !see(&extent)? {
                    self.file.write_all_at(&[0; EXTENT_BYTES], offset(next, at))?;
                }
            }
            number = next + 1;
        }
        Ok(())
    }

    /// The first page from `number` on, of so many, that is no hole of the file.
    fn next_written(&self, number: u64, pages: u64) -> std::io::Result<Option<u64>> {
        use nix::unistd::{Whence, lseek};
        if number >= pages {
            return Ok(None);
        }
        let from = i64::try_from((number + 1) * PAGE_BYTES).unwrap_or(i64::MAX);
        match lseek(&self.file, from, Whence::SeekData) {
            Ok(at) => {
                let page = u64::try_from(at).unwrap_or_default() / PAGE_BYTES;
                Ok(page.checked_sub(1).filter(|&page| page < pages))
            }
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn page_of(&self, extent: &Extent) -> u64 {
        place_of(&extent.name, extent.unit) % self.pages()
    }

    fn read(&self, number: u64) -> std::io::Result<[u8; PAGE]> {
        let mut page = [0; PAGE];
        match self.file.read_exact_at(&mut page, offset(number, 0)) {
            // Somebody has cut it: it is made anew soon.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok([0; PAGE]),
            read => read.map(|()| page),
        }
    }
}

/// The rest of this, divided by the number of pages, is the page.
fn place_of(name: &[u8; 16], unit: u32) -> u64 {
    // The golden ratio scatters consecutive numbers.
    let group = u64::from(unit / UNITS_TOGETHER).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    place(name).wrapping_add(group)
}

/// The file is that long; longer after a process was killed that doubled it.
fn has_pages(file: &File, pages: u64) -> bool {
    let least = pages.checked_add(1).and_then(|pages| pages.checked_mul(PAGE_BYTES));
    let length = file.metadata().map(|metadata| metadata.len());
    pages > 0 && least.zip(length.ok()).is_some_and(|(least, length)| length >= least)
}

fn not_an_index() -> Error {
    Error::new(ErrorKind::InvalidData, "not an index of this version")
}

fn offset(page: u64, extent: usize) -> u64 {
    (page + 1) * PAGE_BYTES + (extent * EXTENT_BYTES) as u64
}

/// The extents of one version, which are found without the checksums of the others.
fn named(page: &[u8], name: &[u8; 16]) -> impl Iterator<Item = Extent> {
    page.chunks_exact(EXTENT_BYTES).filter(|slot| slot.starts_with(name)).filter_map(Extent::decode)
}

fn extents(page: &[u8]) -> impl Iterator<Item = (usize, Extent)> {
    let slots = page.chunks_exact(EXTENT_BYTES).enumerate();
    slots.filter_map(|(at, slot)| Some((at, Extent::decode(slot)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::format::tests::extent;
    use crate::testing::calls;

    fn version(name: u8) -> VersionName {
        VersionName { name: [name; 16], size_bytes: 1 << 30 }
    }

    fn of(name: u8, extent: Extent) -> Extent {
        Extent { name: [name; 16], ..extent }
    }

    #[test]
    fn what_was_inserted_is_found_by_every_process_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let index = Index::open(&path, 64 << 20).unwrap();
        let other = Index::open(&path, 1 << 40).unwrap();
        assert_eq!(index.pages(), other.pages(), "as large as it was made");
        let kept = [of(1, extent(7, 0, 8)), of(1, extent(8, 0, 4)), of(1, extent(8, 6, 2))];
        for extent in &kept {
            index.insert(extent, |_| true).unwrap();
        }
        index.insert(&of(2, extent(8, 0, 1)), |_| true).unwrap();
        assert_eq!(other.find(&version(1), 0..7).unwrap(), []);
        assert_eq!(other.find(&version(1), 7..9).unwrap(), kept);
        let larger = of(1, extent(8, 0, 8));
        other.insert(&larger, |_| true).unwrap();
        assert!(index.find(&version(1), 8..9).unwrap().contains(&larger));
        assert_eq!(index.find(&version(1), 8..9).unwrap().len(), 2, "one of the smaller is gone");
        index.remove(&larger).unwrap();
        assert!(!other.find(&version(1), 8..9).unwrap().contains(&larger));
        let mut all = 0;
        let count = |_: &Extent| {
            all += 1;
            Ok(true)
        };
        index.each(count).unwrap();
        assert_eq!(all, 3);
    }

    /// Of two that see the same free places and write at the same time, one would be lost.
    #[test]
    fn two_processes_that_write_to_one_page_take_different_places_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut places: Vec<_> = (0..20)
            .map(|unit| {
                let index = Index::open(&folder.path().join(unit.to_string()), 64 << 20).unwrap();
                let extent = of(1, extent(unit, 0, 8));
                index.insert(&extent, |_| true).unwrap();
                let page = index.read(index.page_of(&extent)).unwrap();
                extents(&page).map(|(at, _)| at).collect::<Vec<_>>()
            })
            .collect();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), 20, "{places:?}");
    }

    /// Each small file of an epoch is looked for.
    #[test]
    fn what_is_there_is_found_by_one_read() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index"), 64 << 20).unwrap();
        index.insert(&of(1, extent(0, 0, 8)), |_| true).unwrap();
        let Some(before) = calls("syscr") else { return };
        for _ in 0..100 {
            assert_eq!(index.find(&version(1), 0..1).unwrap().len(), 1);
        }
        // The few that count are among them.
        let made = calls("syscr").unwrap() - before;
        assert!((100..150).contains(&made), "{made}");
    }

    #[test]
    fn a_full_page_forgets_what_is_gone_first_and_then_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index"), 1).unwrap();
        for segment in 0..EXTENTS_PER_PAGE + 10 {
            // All in one page.
            let mut extent = Extent { segment, ..of(0, extent(0, 0, 8)) };
            extent.name[8] = u8::try_from(segment).unwrap();
            index.insert(&extent, |segment| segment != 20).unwrap();
        }
        let mut left = Vec::new();
        let see = |extent: &Extent| {
            left.push(extent.segment);
            Ok(true)
        };
        index.each(see).unwrap();
        left.sort_unstable();
        let want = (0..EXTENTS_PER_PAGE + 10).filter(|&segment| segment > 8 && segment != 20);
        assert_eq!(left, want.collect::<Vec<_>>());
    }

    /// In whatever order the blocks of a unit are written, they are one extent in the end.
    #[test]
    fn what_lies_side_by_side_is_joined_in_every_order() {
        fn each_order(left: &mut Vec<u8>, order: &mut Vec<u8>, see: &mut impl FnMut(&[u8])) {
            if left.is_empty() {
                return see(order);
            }
            for at in 0..left.len() {
                let block = left.remove(at);
                order.push(block);
                each_order(left, order, see);
                order.pop();
                left.insert(at, block);
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index"), 1).unwrap();
        let piece = |block: u8, blocks: u32| {
            let mut extent = extent(0, block, blocks);
            // The last block of the object is not a whole one.
            extent.length -= if u32::from(block) + blocks == 6 { 77 } else { 0 };
            extent.page = u32::from(block) * 32;
            extent.sums = std::array::from_fn(|at| u32::from(block) + u32::try_from(at).unwrap());
            extent
        };
        let mut orders = 0;
        each_order(&mut (0..6).collect(), &mut Vec::new(), &mut |order| {
            for &block in order {
                index.insert(&piece(block, 1), |_| true).unwrap();
            }
            let found = index.find(&version(7), 0..1).unwrap();
            assert_eq!(found.len(), 1, "{order:?}");
            let whole = Extent { sums: found[0].sums, ..piece(0, 6) };
            assert_eq!((found[0], &found[0].sums[..6]), (whole, &piece(0, 6).sums[..6]));
            index.remove(&found[0]).unwrap();
            orders += 1;
        });
        assert_eq!(orders, 720);
        // Neither elsewhere in the segment, nor in another one, nor with a gap.
        index.insert(&piece(0, 2), |_| true).unwrap();
        for other in
            [Extent { page: 65, ..piece(2, 1) }, Extent { segment: 8, ..piece(2, 1) }, piece(3, 1)]
        {
            index.insert(&other, |_| true).unwrap();
            assert!(index.find(&version(7), 0..1).unwrap().contains(&piece(0, 2)), "{other:?}");
            index.remove(&other).unwrap();
        }
    }

    #[test]
    fn an_index_that_fills_is_doubled_and_holds_all_for_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let [index, other] = [(); 2].map(|()| Index::open(&path, 256 << 20).unwrap());
        assert!(index.pages() <= FIRST_PAGES && index.most_pages > 2 * FIRST_PAGES);
        let numbered = |number: u64| {
            let mut extent = extent(0, 0, 8);
            extent.name[..8].copy_from_slice(&(number.wrapping_mul(0x9e37_79b9)).to_le_bytes());
            extent
        };
        for number in 0..2_000 {
            index.insert(&numbered(number), |_| true).unwrap();
            if index.is_crowded() {
                // One was killed before it came to the end.
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&[7; PAGE], offset(2 * index.pages(), 0)).unwrap();
                index.grow().unwrap();
            }
        }
        let found = |number| {
            let name = VersionName { name: numbered(number).name, size_bytes: 1 << 30 };
            other.find(&name, 0..1).unwrap()
        };
        assert!((0..2_000).any(|number| found(number).is_empty()), "where they were before");
        assert!(other.has_grown() && !other.has_grown());
        let pages = other.pages();
        assert!(pages >= 80, "{pages} of {}", index.most_pages);
        for number in 0..2_000 {
            assert_eq!(found(number), [numbered(number)]);
        }
        let mut all = 0;
        let count = |_: &Extent| {
            all += 1;
            Ok(true)
        };
        other.each(count).unwrap();
        assert_eq!(all, 2_000, "none is counted twice");
        // No larger than the cache may need.
        for number in 2_000..6_000 {
            index.insert(&numbered(number), |_| true).unwrap();
            index.grow().unwrap();
        }
        assert_eq!((index.pages(), index.most_pages), (160, 161));
        assert!(Index::open(&path, 256 << 20).unwrap().is_whole());
    }

    #[test]
    fn a_file_of_another_kind_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        drop(Index::open(&path, 64 << 20).unwrap());
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let kind = || Index::open(&path, 1).map(drop).map_err(|error| error.kind());
        assert_eq!(kind(), Ok(()));
        file.set_len(5000).unwrap();
        assert_eq!(kind(), Err(ErrorKind::InvalidData), "truncated");
        std::fs::write(&path, "something else").unwrap();
        assert_eq!(kind(), Err(ErrorKind::InvalidData));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(folder.path().join("other"), &path).unwrap();
        assert!(kind().is_err(), "a symbolic link is not followed");
    }
}
