//! A directory's entries: plain data that never locks and never waits.

pub use self::assembly::HiddenKeys;
pub(super) use self::assembly::{Assembly, Rest};
pub(super) use self::listing::Listing;
pub use self::node::{FOREVER, Ino, Inode, Node, ROOT};
pub(super) use self::run::EntryRun;

mod assembly;
mod listing;
mod node;
mod run;
