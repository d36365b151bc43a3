//! The protocol of the cache's blocks, whose readers take no lock, in every order in which threads
//! may run and see each other's writes: the very file that the cache uses, on loom's atomics.

/// In place of the standard library's.
mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU8, Ordering};
}

#[path = "../src/cache/states.rs"]
mod states;

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread;

use states::States;

/// Two blocks of one byte each. loom fails when a thread writes to a byte that another may touch.
struct Chunk {
    states: States,
    bytes: [UnsafeCell<u8>; 2],
    /// Blocks become empty and cease to be so only under this lock.
    slots: Mutex<()>,
}

// SAFETY: the property under test: loom checks that no two threads touch a byte at once.
#[allow(unsafe_code)]
unsafe impl Sync for Chunk {}

impl Chunk {
    fn new() -> Arc<Self> {
        let bytes = [UnsafeCell::new(0), UnsafeCell::new(0)];
        Arc::new(Self { states: States::new(2), bytes, slots: Mutex::new(()) })
    }

    /// Fetches the empty blocks; `breaks_at`: the connection breaks in the middle of this block.
    fn fetch(&self, breaks_at: Option<usize>) {
        let lock = self.slots.lock().unwrap();
        let mine: Vec<usize> = (0..2).filter(|&block| self.states.is_empty(block)).collect();
        for &block in &mine {
            self.states.take(block..block + 1);
        }
        drop(lock);
        let mut blocks = mine.into_iter();
        for block in blocks.by_ref() {
            if breaks_at == Some(block) {
                self.write(block, 0xEE);
                let _lock = self.slots.lock().unwrap();
                self.states.give_back(block..block + 1);
                break;
            }
            self.write(block, 0xEE);
            self.write(block, right(block));
            self.states.publish(block);
        }
        let _lock = self.slots.lock().unwrap();
        blocks.for_each(|block| self.states.give_back(block..block + 1));
    }

    #[allow(unsafe_code)]
    fn write(&self, block: usize, byte: u8) {
        // SAFETY: loom's cell fails when it is not.
        self.bytes[block].with_mut(|at| unsafe { *at = byte });
    }

    /// Reads the blocks if they are ready: they must be right, and stay so.
    fn read(&self, blocks: std::ops::Range<usize>) -> bool {
        if !self.states.are_ready(blocks.clone()) {
            return false;
        }
        for block in blocks.clone() {
            // SAFETY: loom's cell fails when it is not.
            #[allow(unsafe_code)]
            let byte = self.bytes[block].with(|at| unsafe { *at });
            assert_eq!(byte, right(block));
        }
        assert!(self.states.are_ready(blocks.clone()) && !self.states.have_empty(blocks));
        true
    }
}

fn right(block: usize) -> u8 {
    u8::try_from(block).unwrap() + 1
}

#[test]
fn a_reader_without_a_lock_sees_whole_blocks_or_none() {
    loom::model(|| {
        let chunk = Chunk::new();
        assert_eq!(chunk.states.len(), 2);
        let writer = thread::spawn({
            let chunk = chunk.clone();
            move || chunk.fetch(None)
        });
        chunk.read(1..2);
        chunk.read(0..2);
        writer.join().unwrap();
        assert!(chunk.read(0..2));
    });
}

#[test]
fn two_writers_share_no_block_and_what_one_gives_up_the_other_may_fetch() {
    loom::model(|| {
        let chunk = Chunk::new();
        let broken = thread::spawn({
            let chunk = chunk.clone();
            move || chunk.fetch(Some(1))
        });
        let other = thread::spawn({
            let chunk = chunk.clone();
            move || chunk.fetch(None)
        });
        chunk.read(0..2);
        broken.join().unwrap();
        other.join().unwrap();
        // Whatever was given up after the other had looked is fetched by the next one.
        chunk.fetch(None);
        assert!(chunk.read(0..2));
    });
}

/// The test can fail: with a block that is published too early, loom finds the reader that is too.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_block_that_is_published_before_it_is_written_is_found() {
    loom::model(|| {
        let chunk = Chunk::new();
        let writer = thread::spawn({
            let chunk = chunk.clone();
            move || {
                chunk.states.take(0..1);
                chunk.states.publish(0);
                chunk.write(0, right(0));
            }
        });
        if chunk.states.are_ready(0..1) {
            chunk.read(0..1);
        }
        writer.join().unwrap();
    });
}
