//! When a request that has no answer yet is sent a second time: no I/O, no clock, one lock.
//!
//! One answer in thousands comes seconds late, or never: a packet is lost, a front end dies. A second
//! request on another connection is answered at once in such a case, and whichever answer comes
//! first is taken. So the time to wait is learnt from the answers that came, and what all second
//! requests may cost is bounded: a store that is slow as a whole must not be asked twice as much.

use std::time::Duration;

use parking_lot::Mutex;

/// Requests whose answers take equally long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    /// A page of a listing.
    List,
    /// Metadata of an object.
    Head,
    /// Bytes of an object.
    Get,
}

/// Nobody is asked twice sooner: a retransmission takes 0.2 s, and a store's slow moment as long.
const LEAST: Duration = Duration::from_millis(500);
/// Waited for as long as too little is known.
const FIRST: Duration = Duration::from_secs(2);
/// So many answers tell the 99th percentile well enough, and so few fit a change in the network.
const RECENT: usize = 256;
/// Fewer tell nothing.
const ENOUGH: usize = 64;
/// The percentile is looked up after so many answers.
const EVERY: usize = 32;
/// What a request adds to the means for second ones: less than the 5 % they may be.
const SHARE: f64 = 0.04;
/// Second requests that may be sent at once after a quiet time.
const BURST: f64 = 8.0;

/// What is known of the answers so far.
#[derive(Debug)]
pub(super) struct Hedger(Mutex<State>);

#[derive(Debug)]
struct State {
    lists: Answers,
    heads: Answers,
    gets: Answers,
    /// How many second requests may be sent.
    means: f64,
}

#[derive(Debug, Default)]
struct Answers {
    /// The last ones, in no order.
    took: Vec<Duration>,
    /// How many there have been.
    count: usize,
    patience: Option<Duration>,
}

impl Default for Hedger {
    fn default() -> Self {
        let [lists, heads, gets] = [(); 3].map(|()| Answers::default());
        Self(Mutex::new(State { lists, heads, gets, means: BURST }))
    }
}

impl Hedger {
    /// A request is sent: how long to wait for its first byte alone.
    pub(super) fn patience(&self, kind: Kind) -> Duration {
        let mut state = self.0.lock();
        state.means = (state.means + SHARE).min(BURST);
        state.answers(kind).patience.unwrap_or(FIRST)
    }

    /// The first byte of an answer came.
    pub(super) fn answered(&self, kind: Kind, took: Duration) {
        self.0.lock().answers(kind).add(took);
    }

    /// Whether a second request may be sent; if so, it counts.
    pub(super) fn may(&self) -> bool {
        let mut state = self.0.lock();
        let may = state.means >= 1.0;
        state.means -= f64::from(u8::from(may));
        may
    }
}

impl State {
    fn answers(&mut self, kind: Kind) -> &mut Answers {
        match kind {
            Kind::List => &mut self.lists,
            Kind::Head => &mut self.heads,
            Kind::Get => &mut self.gets,
        }
    }
}

impl Answers {
    fn add(&mut self, took: Duration) {
        if self.took.len() < RECENT {
            self.took.push(took);
        } else {
            self.took[self.count % RECENT] = took;
        }
        self.count += 1;
        if self.took.len() >= ENOUGH && self.count.is_multiple_of(EVERY) {
            let mut sorted = self.took.clone();
            let at = sorted.len() - 1 - sorted.len() / 100;
            let (_, percentile, _) = sorted.select_nth_unstable(at);
            self.patience = Some((*percentile).max(LEAST));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn patience_is_the_99th_percentile_of_its_kind_and_no_less_than_half_a_second() {
        let hedging = Hedger::default();
        assert_eq!(hedging.patience(Kind::Get), FIRST);
        for _ in 0..ENOUGH {
            hedging.answered(Kind::Get, ms(15));
        }
        assert_eq!((hedging.patience(Kind::Get), hedging.patience(Kind::List)), (LEAST, FIRST));
        // One in fifty takes 3 s: waiting for those is what this store is like.
        for answer in 0..RECENT as u64 {
            hedging.answered(Kind::Get, if answer % 50 == 0 { ms(3000) } else { ms(700) });
        }
        assert_eq!(hedging.patience(Kind::Get), ms(3000));
        // One in two hundred: those are asked for twice.
        for answer in 0..RECENT as u64 {
            hedging.answered(Kind::Get, if answer % 200 == 0 { ms(3000) } else { ms(700) });
        }
        assert_eq!(hedging.patience(Kind::Get), ms(700));
    }

    #[test]
    fn of_a_hundred_requests_fewer_than_five_are_sent_twice() {
        let hedging = Hedger::default();
        let mut twice = 0;
        for _ in 0..10_000 {
            hedging.patience(Kind::Get);
            twice += u32::from(hedging.may());
        }
        assert!((390..450).contains(&twice), "{twice}");
    }
}
