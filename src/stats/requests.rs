//! Requests to the store, by kind and outcome.

use tokio::time::Instant;

use super::{Counter, Histogram};

labels! {
    RequestKind {
        Get = "GET",
        Head = "HEAD",
        List = "LIST",
    }
}

labels! {
    /// How a request to the store ended.
    Outcome {
        Ok = "ok",
        NotFound = "not_found",
        /// The object is another version by now.
        Changed = "changed",
        /// Refused, or there are no credentials.
        Denied = "denied",
        Archived = "archived",
        Throttled = "throttled",
        /// The store failed or could not be reached.
        Unavailable = "unavailable",
        TimedOut = "timed_out",
        /// The answer makes no sense.
        Protocol = "protocol",
        /// The bucket is not there, or elsewhere.
        Bucket = "bucket",
        /// Cut off: the deadline passed, or another answer came first.
        Abandoned = "abandoned",
    }
}

#[derive(Debug, Default)]
pub struct Requests {
    took: [[Histogram; Outcome::ALL.len()]; RequestKind::ALL.len()],
    begun: [Counter; RequestKind::ALL.len()],
}

impl Requests {
    /// Notes the begin of a request; dropping the result notes its end.
    pub fn begin(&self, kind: RequestKind) -> RequestInFlight<'_> {
        self.begun[kind as usize].add(1);
        RequestInFlight { requests: self, kind, outcome: Outcome::Abandoned, begun: Instant::now() }
    }

    pub fn took(&self, kind: RequestKind, outcome: Outcome) -> &Histogram {
        &self.took[kind as usize][outcome as usize]
    }

    pub fn in_flight(&self, kind: RequestKind) -> u64 {
        // The ends first: what begins meanwhile must not make it negative.
        let ended = self.took[kind as usize].iter().map(Histogram::count).sum();
        self.begun[kind as usize].get().saturating_sub(ended)
    }
}

/// It ends when this is dropped.
pub struct RequestInFlight<'a> {
    requests: &'a Requests,
    kind: RequestKind,
    outcome: Outcome,
    begun: Instant,
}

impl RequestInFlight<'_> {
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for RequestInFlight<'_> {
    fn drop(&mut self) {
        self.requests.took(self.kind, self.outcome).add(self.begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_request_is_in_flight_until_it_ends_and_abandoned_if_it_does_not() {
        let requests = Requests::default();
        let (one, two) = (requests.begin(RequestKind::Get), requests.begin(RequestKind::Get));
        assert_eq!(requests.in_flight(RequestKind::Get), 2);
        assert_eq!(requests.in_flight(RequestKind::List), 0);
        tokio::time::advance(20 * MS).await;
        one.end(Outcome::Ok);
        drop(two);
        assert_eq!(requests.in_flight(RequestKind::Get), 0);
        for (outcome, count) in [(Outcome::Ok, 1), (Outcome::Abandoned, 1), (Outcome::Denied, 0)] {
            assert_eq!(requests.took(RequestKind::Get, outcome).count(), count, "{outcome:?}");
        }
        let seconds = requests.took(RequestKind::Get, Outcome::Ok).counts().seconds;
        assert!((seconds - 0.02).abs() < 1e-9, "{seconds}");
    }
}
