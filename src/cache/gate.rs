//! Who may send a GET: readers before readahead, always, within one number of connections.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Purpose;
use super::pace::{Pace, Timing};

/// Lets GETs through.
#[derive(Debug)]
pub(super) struct Gate {
    inside: Mutex<Inside>,
    /// GETs in flight at once.
    most: usize,
}

#[derive(Debug)]
struct Inside {
    /// GETs in flight, and how many of them are readahead.
    all: usize,
    ahead: usize,
    /// Those who wait, in the order in which they came.
    demand: VecDeque<oneshot::Sender<Pass>>,
    readahead: VecDeque<(u64, oneshot::Sender<Pass>)>,
    pace: Pace,
}

/// The right to have one GET in flight; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    /// `None` once it has been given back by other means.
    gate: Option<Arc<Gate>>,
    purpose: Purpose,
}

impl Gate {
    /// A gate for so many GETs at once. Readahead never takes the last quarter of them, so that a
    /// reader in need mostly finds one.
    pub(super) fn new(most: usize) -> Arc<Self> {
        let inside = Inside {
            all: 0,
            ahead: 0,
            demand: VecDeque::new(),
            readahead: VecDeque::new(),
            pace: Pace::new(Instant::now()),
        };
        Arc::new(Self { inside: Mutex::new(inside), most: most.max(1) })
    }

    /// Waits until a GET of so many bytes may be sent.
    pub(super) async fn enter(self: &Arc<Self>, purpose: Purpose, bytes: u64) -> Pass {
        let granted = {
            let mut inside = self.inside.lock();
            if self.admits(&inside, purpose, bytes) && inside.nobody_is_before(purpose) {
                return self.admit(&mut inside, purpose);
            }
            let (grant, granted) = oneshot::channel();
            match purpose {
                Purpose::Demand => inside.demand.push_back(grant),
                Purpose::Ahead => inside.readahead.push_back((bytes, grant)),
            }
            granted
        };
        granted.await.expect("whoever waits is let in before the gate is gone")
    }

    /// Learns from a GET that has ended well; `received` bytes have come in all.
    pub(super) fn learn(&self, timing: Timing, received: u64) {
        self.inside.lock().pace.add(timing, received, Instant::now());
    }

    /// The size of a readahead GET, in whole blocks from the half of `most` on; and how many bytes of
    /// them the network needs in flight, 0 if unknown.
    pub(super) fn ahead_bytes(&self, most: u64, block: u64) -> (u64, u64) {
        let pace = &self.inside.lock().pace;
        let part = pace.part_bytes(most).next_multiple_of(block);
        let needed = pace.needed(part).min(self.most - self.most / 4);
        (part, part * needed as u64)
    }

    fn most_ahead(&self, inside: &Inside, bytes: u64) -> usize {
        inside.pace.connections(bytes).min(self.most - self.most / 4)
    }

    fn admits(&self, inside: &Inside, purpose: Purpose, bytes: u64) -> bool {
        inside.all < self.most
            && match purpose {
                Purpose::Demand => true,
                Purpose::Ahead => inside.ahead < self.most_ahead(inside, bytes),
            }
    }

    fn admit(self: &Arc<Self>, inside: &mut Inside, purpose: Purpose) -> Pass {
        inside.all += 1;
        inside.ahead += usize::from(purpose == Purpose::Ahead);
        Pass { gate: Some(self.clone()), purpose }
    }

    /// Lets in whoever may now go. Whoever has gone away while waiting is passed over.
    fn let_in(self: &Arc<Self>, inside: &mut Inside) {
        while !inside.demand.is_empty() && self.admits(inside, Purpose::Demand, 0) {
            let pass = self.admit(inside, Purpose::Demand);
            let grant = inside.demand.pop_front().expect("not empty");
            grant.send(pass).unwrap_or_else(|pass| pass.give_back(inside));
        }
        while let Some(&(bytes, _)) = inside.readahead.front()
            && inside.demand.is_empty()
            && self.admits(inside, Purpose::Ahead, bytes)
        {
            let pass = self.admit(inside, Purpose::Ahead);
            let (_, grant) = inside.readahead.pop_front().expect("not empty");
            grant.send(pass).unwrap_or_else(|pass| pass.give_back(inside));
        }
    }
}

impl Inside {
    fn nobody_is_before(&self, purpose: Purpose) -> bool {
        let no_reader = self.demand.is_empty();
        no_reader && (purpose == Purpose::Demand || self.readahead.is_empty())
    }
}

impl Pass {
    fn give_back(mut self, inside: &mut Inside) {
        self.gate = None;
        leave(inside, self.purpose);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            let mut inside = gate.inside.lock();
            leave(&mut inside, self.purpose);
            gate.let_in(&mut inside);
        }
    }
}

fn leave(inside: &mut Inside, purpose: Purpose) {
    inside.all -= 1;
    inside.ahead -= usize::from(purpose == Purpose::Ahead);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;

    const MIB: u64 = 1 << 20;

    async fn is_refused(gate: &Arc<Gate>, purpose: Purpose) -> bool {
        timeout(Duration::from_millis(1), gate.enter(purpose, MIB)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn readahead_leaves_a_quarter_of_the_connections_to_readers() {
        let gate = Gate::new(4);
        let mut ahead = Vec::new();
        for _ in 0..3 {
            ahead.push(gate.enter(Purpose::Ahead, MIB).await);
        }
        assert!(is_refused(&gate, Purpose::Ahead).await);
        let reader = gate.enter(Purpose::Demand, MIB).await;
        assert!(is_refused(&gate, Purpose::Demand).await);
        drop(ahead.pop());
        drop(reader);
        ahead.push(gate.enter(Purpose::Ahead, MIB).await);
        gate.enter(Purpose::Demand, MIB).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_who_comes_last_goes_first() {
        let gate = Gate::new(1);
        let first = gate.enter(Purpose::Demand, MIB).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiting = [Purpose::Ahead, Purpose::Ahead, Purpose::Demand].map(|purpose| {
            let (gate, order) = (gate.clone(), order.clone());
            tokio::spawn(async move {
                let _pass = gate.enter(purpose, MIB).await;
                order.lock().push(purpose);
            })
        });
        yield_now().await;
        drop(first);
        for one in waiting {
            one.await.unwrap();
        }
        assert_eq!(*order.lock(), [Purpose::Demand, Purpose::Ahead, Purpose::Ahead]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_while_waiting_takes_no_place_along() {
        let gate = Gate::new(1);
        for _ in 0..10 {
            let pass = gate.enter(Purpose::Ahead, MIB).await;
            let mut gone = Box::pin(gate.enter(Purpose::Demand, MIB));
            assert!(is_refused(&gate, Purpose::Demand).await);
            assert!(futures_poll(&mut gone).is_none());
            drop(pass);
            // It has been let in, and is dropped without having looked.
            drop(gone);
        }
        let inside = gate.inside.lock();
        assert_eq!((inside.all, inside.ahead), (0, 0));
    }

    fn futures_poll<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
