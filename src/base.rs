//! What every room may use, and what uses nothing of ours.

pub(crate) mod credit;
pub mod layout;
pub(crate) mod mountinfo;
pub(crate) mod proc;
pub(crate) mod text;
