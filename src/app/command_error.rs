//! Why a subcommand failed.

/// One sentence, and the exit code of the process, one of `sysexits(3)`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub(crate) struct CommandError {
    pub(crate) sentence: String,
    pub(crate) code: u8,
}

impl CommandError {
    /// 64, `EX_USAGE`: the command line is wrong.
    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), code: 64 }
    }

    /// 66, `EX_NOINPUT`: no mount of this program is there.
    pub(crate) fn no_mount(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), code: 66 }
    }

    /// 69, `EX_UNAVAILABLE`: the daemon does not answer.
    pub(crate) fn no_daemon(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), code: 69 }
    }

    /// 70, `EX_SOFTWARE`: the answer makes no sense, or the request failed.
    pub(crate) fn failed(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), code: 70 }
    }

    /// 77, `EX_NOPERM`: the mount is another user's.
    pub(crate) fn not_allowed(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), code: 77 }
    }
}
