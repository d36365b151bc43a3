//! What is believed of names: pure; time comes in as an argument, and nothing here waits.

pub(super) use self::directories::Directories;
pub(super) use self::directory::{Directory, NameAnswer};
pub(super) use self::expiry::Expiry;
pub(super) use self::inodes::Inodes;
pub use self::kept::{DESCRIPTION_BYTES, Damage, FORMAT, KeptNames, KeptOpen};
pub(super) use self::numbers::{Known, PointAnswer};
pub use self::pages::OldPages;
pub(super) use self::progress::{ListingWriter, Progress, Shown};
pub(super) use self::resume::{Resume, ScanFrom};
pub(super) use self::walk::Ahead;

mod budget;
mod directories;
mod directory;
mod expiry;
mod inodes;
mod kept;
mod mtime;
mod numbers;
mod pages;
mod partial;
mod progress;
mod resume;
mod walk;
