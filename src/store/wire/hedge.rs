//! Decides when a request without a response is sent a second time. No I/O, no clock, one lock.
//!
//! One response in thousands comes seconds late, or never: a packet is lost, a front end dies. A
//! second request on another connection is mostly answered at once. The time to wait is learnt from
//! the responses so far.
//!
//! A store that is slow as a whole must not get twice as many requests. So the share of second
//! requests is bounded; one that is answered no sooner than the first counts as three; and while
//! nothing is answered at all, there is one at a time, which finds out.

use std::time::Duration;

use parking_lot::Mutex;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    List,
    Head,
    Get,
    /// With a body, and never sent a second time because it is slow.
    Put,
}

/// The shortest wait: a retransmission takes 0.2 s, and a store's slow moment as long.
const LEAST: Duration = Duration::from_millis(500);
/// The wait until enough responses are known.
const FIRST: Duration = Duration::from_secs(2);
/// Responses remembered: enough for a 99th percentile, and few enough to follow the network.
const RECENT: usize = 256;
/// The percentile is not computed from fewer responses.
const ENOUGH: usize = 64;
/// The percentile is computed anew after this number of responses.
const EVERY: usize = 32;
/// Hedge tokens earned per request. Keeps hedges below 5 % of all requests.
const SHARE: f64 = 0.04;
/// The most tokens: second requests that may be sent at once after a quiet time.
const BURST: f64 = 8.0;
/// What a second request costs beside its token when it was sent in vain.
const IN_VAIN: f64 = 2.0;

pub(super) struct Hedger(Mutex<Learnt>);

struct Learnt {
    /// By [`Kind`].
    answers: [Answers; 4],
    tokens: f64,
    /// Second requests that wait for an answer.
    under_way: usize,
}

/// A request that was sent: what was answered until then.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    kind: Kind,
    answered: usize,
}

/// A second request, in vain unless it is told to be answered first.
pub(super) struct Second<'a> {
    hedger: &'a Hedger,
    in_vain: bool,
}

#[derive(Default)]
struct Answers {
    /// The last [`RECENT`], in no order.
    took: Vec<Duration>,
    count: usize,
    patience: Option<Duration>,
}

impl Default for Hedger {
    fn default() -> Self {
        Self(Mutex::new(Learnt { answers: Default::default(), tokens: BURST, under_way: 0 }))
    }
}

impl Hedger {
    /// A request is sent; the time to wait for its first byte before a second one.
    pub(super) fn sends(&self, kind: Kind) -> (Sent, Duration) {
        let mut state = self.0.lock();
        state.tokens = (state.tokens + SHARE).min(BURST);
        let answers = &state.answers[kind as usize];
        (Sent { kind, answered: answers.count }, answers.patience.unwrap_or(FIRST))
    }

    pub(super) fn answered(&self, kind: Kind, took: Duration) {
        self.0.lock().answers[kind as usize].add(took);
    }

    /// Takes a token, if there is one, for a second request.
    pub(super) fn second(&self, sent: Sent) -> Option<Second<'_>> {
        let mut state = self.0.lock();
        let others_are_answered = state.answers[sent.kind as usize].count > sent.answered;
        if state.tokens < 1.0 || (state.under_way > 0 && !others_are_answered) {
            return None;
        }
        state.tokens -= 1.0;
        state.under_way += 1;
        Some(Second { hedger: self, in_vain: true })
    }
}

impl Second<'_> {
    /// Its answer is the one that counts.
    pub(super) fn came_first(mut self) {
        self.in_vain = false;
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        let mut state = self.hedger.0.lock();
        state.under_way -= 1;
        if self.in_vain {
            state.tokens -= IN_VAIN;
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
        let patience = |kind| hedging.sends(kind).1;
        assert_eq!(patience(Kind::Get), FIRST);
        for _ in 0..ENOUGH {
            hedging.answered(Kind::Get, ms(15));
        }
        assert_eq!((patience(Kind::Get), patience(Kind::List)), (LEAST, FIRST));
        // One in fifty takes 3 s: waiting for those is what this store is like.
        for answer in 0..RECENT as u64 {
            hedging.answered(Kind::Get, if answer % 50 == 0 { ms(3000) } else { ms(700) });
        }
        assert_eq!(patience(Kind::Get), ms(3000));
        // One in two hundred: those are asked for twice.
        for answer in 0..RECENT as u64 {
            hedging.answered(Kind::Get, if answer % 200 == 0 { ms(3000) } else { ms(700) });
        }
        assert_eq!(patience(Kind::Get), ms(700));
    }

    #[test]
    fn of_a_hundred_requests_fewer_than_five_are_sent_twice() {
        let hedging = Hedger::default();
        let mut twice = 0;
        for _ in 0..10_000 {
            let (sent, _) = hedging.sends(Kind::Get);
            if let Some(second) = hedging.second(sent) {
                second.came_first();
                twice += 1;
            }
        }
        assert!((390..450).contains(&twice), "{twice}");
    }

    /// One after the other, and all at once.
    #[test]
    fn of_a_store_that_is_slow_as_a_whole_few_are_sent_twice() {
        let hedging = Hedger::default();
        let twice = (0..100).filter(|_| {
            let (sent, _) = hedging.sends(Kind::Get);
            let second = hedging.second(sent).is_some();
            hedging.answered(Kind::Get, ms(12_000));
            second
        });
        assert!((1..=4).contains(&twice.count()));

        let hedging = Hedger::default();
        let sent: Vec<_> = (0..64).map(|_| hedging.sends(Kind::Get).0).collect();
        let second: Vec<_> = sent.iter().filter_map(|sent| hedging.second(*sent)).collect();
        assert_eq!(second.len(), 1);
        // Where others are answered, those that are not have met with a fault of their own.
        hedging.answered(Kind::Get, ms(15));
        let more: Vec<_> = sent.iter().filter_map(|sent| hedging.second(*sent)).collect();
        assert!(more.len() >= 7, "{}", more.len());
    }
}
