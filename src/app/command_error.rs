//! Why the program, or one of its subcommands, ends without success.

use crate::app::exit::Exit;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub(crate) struct CommandError {
    pub(crate) exit: Exit,
    /// Names the fault and the remedy.
    pub(crate) sentence: String,
}

impl CommandError {
    pub(crate) fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self { exit, sentence: sentence.into() }
    }

    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self::new(Exit::Usage, sentence)
    }

    /// No mount of this program is there.
    pub(crate) fn no_mount(sentence: impl Into<String>) -> Self {
        Self::new(Exit::NoInput, sentence)
    }

    /// The daemon does not answer.
    pub(crate) fn no_daemon(sentence: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, sentence)
    }

    /// A fault of this program or of the machine; or the daemon refuses.
    pub(crate) fn failed(sentence: impl Into<String>) -> Self {
        Self::new(Exit::Software, sentence)
    }
}
