//! The signals that the daemon takes.

use tokio::signal::unix::{Signal, SignalKind, signal};

pub(super) enum SignalRequest {
    /// SIGINT of a terminal, or SIGTERM of systemd: the name.
    End(&'static str),
    /// SIGHUP, with which daemons read their sources again.
    DropNames,
    LogMore,
    LogAsConfigured,
}

pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    first: Signal,
    second: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            first: signal(SignalKind::user_defined1())?,
            second: signal(SignalKind::user_defined2())?,
        })
    }

    pub(super) async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.interrupt.recv() => SignalRequest::End("SIGINT"),
            _ = self.terminate.recv() => SignalRequest::End("SIGTERM"),
            _ = self.hangup.recv() => SignalRequest::DropNames,
            _ = self.first.recv() => SignalRequest::LogMore,
            _ = self.second.recv() => SignalRequest::LogAsConfigured,
        }
    }
}
