//! Who may send a GET: readers before readahead, always, within one number of connections.
//!
//! A GET that is overdue steps aside: it counts no more, up to as many as count at all, and its object
//! gets no further places while more than half of them are taken. So readers of objects that the store
//! does not give wait for each other, and for nobody else.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::pace::{Pace, Timing};
use super::{ObjectId, Purpose};

/// A GET that takes so long steps aside. The largest is done in a fraction of it, or its connection
/// gives less than 8 MB/s, for which a few more in flight do no harm.
pub(super) const OVERDUE: Duration = Duration::from_secs(2);

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
    demand: VecDeque<(ObjectId, oneshot::Sender<Pass>)>,
    readahead: VecDeque<(u64, ObjectId, oneshot::Sender<Pass>)>,
    /// GETs that are overdue and have stepped aside, all of them and by object.
    aside: usize,
    overdue: HashMap<ObjectId, usize>,
    pace: Pace,
}

/// The right to have one GET in flight; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    /// `None` once it has been given back by other means.
    gate: Option<Arc<Gate>>,
    purpose: Purpose,
    object: ObjectId,
    aside: bool,
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
            aside: 0,
            overdue: HashMap::new(),
            pace: Pace::new(Instant::now()),
        };
        Arc::new(Self { inside: Mutex::new(inside), most: most.max(1) })
    }

    /// Waits until a GET of so many bytes of an object may be sent.
    pub(super) async fn enter(
        self: &Arc<Self>,
        purpose: Purpose,
        bytes: u64,
        object: ObjectId,
    ) -> Pass {
        let granted = {
            let mut inside = self.inside.lock();
            let admitted = match purpose {
                Purpose::Demand => self.admits_demand(&inside, object),
                Purpose::Ahead => {
                    self.admits_ahead(&inside, bytes, object) && inside.readahead.is_empty()
                }
            };
            if admitted && self.first_demand(&inside).is_none() {
                return self.admit(&mut inside, purpose, object);
            }
            let (grant, granted) = oneshot::channel();
            match purpose {
                Purpose::Demand => inside.demand.push_back((object, grant)),
                Purpose::Ahead => inside.readahead.push_back((bytes, object, grant)),
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

    /// Whether an object may have a place: not if it keeps those it has, when places are short.
    fn admits_demand(&self, inside: &Inside, object: ObjectId) -> bool {
        let short = inside.all >= self.most.div_ceil(2);
        inside.all < self.most && !(short && inside.overdue.contains_key(&object))
    }

    fn admits_ahead(&self, inside: &Inside, bytes: u64, object: ObjectId) -> bool {
        self.admits_demand(inside, object) && inside.ahead < self.most_ahead(inside, bytes)
    }

    /// Which of the readers who wait goes next, if one may go.
    fn first_demand(&self, inside: &Inside) -> Option<usize> {
        if inside.all >= self.most {
            return None;
        }
        inside.demand.iter().position(|&(object, _)| self.admits_demand(inside, object))
    }

    fn admit(self: &Arc<Self>, inside: &mut Inside, purpose: Purpose, object: ObjectId) -> Pass {
        inside.all += 1;
        inside.ahead += usize::from(purpose == Purpose::Ahead);
        Pass { gate: Some(self.clone()), purpose, object, aside: false }
    }

    /// Lets in whoever may now go. Whoever has gone away while waiting is passed over.
    fn let_in(self: &Arc<Self>, inside: &mut Inside) {
        while let Some(first) = self.first_demand(inside) {
            let (object, grant) = inside.demand.remove(first).expect("it was just found there");
            let pass = self.admit(inside, Purpose::Demand, object);
            grant.send(pass).unwrap_or_else(|pass| pass.give_back(inside));
        }
        while let Some(&(bytes, object, _)) = inside.readahead.front()
            && self.admits_ahead(inside, bytes, object)
        {
            let (.., grant) = inside.readahead.pop_front().expect("not empty");
            let pass = self.admit(inside, Purpose::Ahead, object);
            grant.send(pass).unwrap_or_else(|pass| pass.give_back(inside));
        }
    }
}

impl Pass {
    /// Makes room for others, as far as there is some.
    pub(super) fn step_aside(&mut self) {
        let Some(gate) = &self.gate else { return };
        let mut inside = gate.inside.lock();
        if !self.aside && inside.aside < gate.most {
            self.aside = true;
            inside.all -= 1;
            inside.aside += 1;
            *inside.overdue.entry(self.object).or_default() += 1;
            gate.let_in(&mut inside);
        }
    }

    fn give_back(mut self, inside: &mut Inside) {
        self.gate = None;
        self.leave(inside);
    }

    fn leave(&self, inside: &mut Inside) {
        inside.ahead -= usize::from(self.purpose == Purpose::Ahead);
        if !self.aside {
            inside.all -= 1;
            return;
        }
        inside.aside -= 1;
        if let Some(count) = inside.overdue.get_mut(&self.object) {
            *count -= 1;
            if *count == 0 {
                inside.overdue.remove(&self.object);
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            let mut inside = gate.inside.lock();
            self.leave(&mut inside);
            gate.let_in(&mut inside);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;

    const MIB: u64 = 1 << 20;

    async fn is_refused(gate: &Arc<Gate>, purpose: Purpose) -> bool {
        timeout(Duration::from_millis(1), gate.enter(purpose, MIB, 1)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn readahead_leaves_a_quarter_of_the_connections_to_readers() {
        let gate = Gate::new(4);
        let mut ahead = Vec::new();
        for _ in 0..3 {
            ahead.push(gate.enter(Purpose::Ahead, MIB, 1).await);
        }
        assert!(is_refused(&gate, Purpose::Ahead).await);
        let reader = gate.enter(Purpose::Demand, MIB, 1).await;
        assert!(is_refused(&gate, Purpose::Demand).await);
        drop(ahead.pop());
        drop(reader);
        ahead.push(gate.enter(Purpose::Ahead, MIB, 1).await);
        gate.enter(Purpose::Demand, MIB, 1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_who_comes_last_goes_first() {
        let gate = Gate::new(1);
        let first = gate.enter(Purpose::Demand, MIB, 1).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiting = [Purpose::Ahead, Purpose::Ahead, Purpose::Demand].map(|purpose| {
            let (gate, order) = (gate.clone(), order.clone());
            tokio::spawn(async move {
                let _pass = gate.enter(purpose, MIB, 1).await;
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
            let pass = gate.enter(Purpose::Ahead, MIB, 1).await;
            let mut gone = Box::pin(gate.enter(Purpose::Demand, MIB, 1));
            assert!(is_refused(&gate, Purpose::Demand).await);
            assert!(futures_poll(&mut gone).is_none());
            drop(pass);
            // It has been let in, and is dropped without having looked.
            drop(gone);
        }
        let inside = gate.inside.lock();
        assert_eq!((inside.all, inside.ahead), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_not_given_keeps_nobody_else_from_being_read() {
        let gate = Gate::new(8);
        let mut stalled = Vec::new();
        for _ in 0..8 {
            stalled.push(gate.enter(Purpose::Demand, MIB, 1).await);
        }
        // Two more of the same object, and one of another, wait behind them.
        let mut more = [1, 1].map(|object| Box::pin(gate.enter(Purpose::Demand, MIB, object)));
        assert!(more.iter_mut().all(|one| futures_poll(one).is_none()));
        let mut other = Box::pin(gate.enter(Purpose::Demand, MIB, 2));
        assert!(futures_poll(&mut other).is_none());
        for pass in &mut stalled[..6] {
            pass.step_aside();
        }
        // Two count, and the other; so one more of the object is let in, up to half of the places.
        let mut held = vec![other.await];
        held.extend(more.iter_mut().filter_map(futures_poll));
        assert_eq!(held.len(), 2);
        for _ in 0..4 {
            held.push(gate.enter(Purpose::Demand, MIB, 2).await);
        }
        assert!(is_refused(&gate, Purpose::Demand).await, "the object has its own to wait for");
        drop((stalled, held, more));
        let inside = gate.inside.lock();
        assert_eq!((inside.all, inside.aside, inside.overdue.len()), (0, 0, 0));
    }

    fn futures_poll<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
