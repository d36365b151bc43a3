//! The signals that the daemon takes.

use tokio::signal::unix::{Signal, SignalKind, signal};

pub(super) enum SignalRequest {
    /// SIGINT of a terminal, or SIGTERM of systemd: the name.
    End(&'static str),
    /// SIGQUIT: end, and leave the mount to the next daemon.
    Leave,
    /// SIGHUP, with which daemons read their sources again.
    DropNames,
    LogMore,
    LogAsConfigured,
}

pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    first: Signal,
    second: Signal,
}

impl SignalRequest {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::End(name) => name,
            Self::Leave => "SIGQUIT",
            Self::DropNames => "SIGHUP",
            Self::LogMore => "SIGUSR1",
            Self::LogAsConfigured => "SIGUSR2",
        }
    }
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            first: signal(SignalKind::user_defined1())?,
            second: signal(SignalKind::user_defined2())?,
        })
    }

    pub(super) async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.interrupt.recv() => SignalRequest::End("SIGINT"),
            _ = self.terminate.recv() => SignalRequest::End("SIGTERM"),
            _ = self.hangup.recv() => SignalRequest::DropNames,
            _ = self.quit.recv() => SignalRequest::Leave,
            _ = self.first.recv() => SignalRequest::LogMore,
            _ = self.second.recv() => SignalRequest::LogAsConfigured,
        }
    }
}
