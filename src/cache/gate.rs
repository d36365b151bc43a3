//! The order in which GETs are sent, within one number of connections: readers before readahead.
//!
//! A GET that takes longer than `OVERDUE` (2 s) gives up its place; at most as many GETs may be
//! outside of the count as inside. While half of the places are taken, an object that has such a
//! GET gets no new ones. So an object that the store does not deliver delays only its own readers.
//!
//! This admits a GET with all its attempts, by purpose and object, which the layers below do not
//! know. Each attempt competes with LISTs and HEADs in `store/retry/admission.rs`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::pace::{LEAST_CONNECTIONS, NetworkPace, Pace, Timing};
use super::{ObjectId, Purpose};

pub(super) struct Gate {
    inside: Mutex<Inside>,
    /// GETs in flight at once.
    most: usize,
}

struct Inside {
    /// GETs in flight, and how many of them are readahead.
    all: usize,
    ahead: usize,
    /// Those that wait, in the order of their arrival.
    demand: VecDeque<(ObjectId, oneshot::Sender<Pass>)>,
    readahead: VecDeque<(u64, ObjectId, oneshot::Sender<Pass>)>,
    /// GETs that have stepped aside, all of them and by object.
    aside: usize,
    overdue: HashMap<ObjectId, usize>,
    pace: Pace,
}

/// The right to have one GET in flight; ends when it is dropped.
pub(super) struct Pass {
    /// `None` after `give_back`.
    gate: Option<Arc<Gate>>,
    purpose: Purpose,
    object: ObjectId,
    aside: bool,
}

impl Gate {
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

    /// Takes a place in the queue now, and waits for its turn when it is awaited.
    pub(super) fn enter(
        self: &Arc<Self>,
        purpose: Purpose,
        bytes: u64,
        object: ObjectId,
    ) -> impl Future<Output = Pass> + Send + use<> {
        let mut inside = self.inside.lock();
        let admitted = match purpose {
            Purpose::Demand => self.admits_demand(&inside, object),
            Purpose::Ahead => {
                self.admits_ahead(&inside, bytes, object) && inside.readahead.is_empty()
            }
        };
        let (grant, granted) = oneshot::channel();
        if admitted && self.first_demand(&inside).is_none() {
            let pass = self.admit(&mut inside, purpose, object);
            let sent = grant.send(pass);
            debug_assert!(sent.is_ok(), "its receiver is here");
        } else {
            match purpose {
                Purpose::Demand => inside.demand.push_back((object, grant)),
                Purpose::Ahead => inside.readahead.push_back((bytes, object, grant)),
            }
        }
        async { granted.await.expect("the gate lets in all that wait before it is dropped") }
    }

    /// `received`: bytes of all GETs so far.
    pub(super) fn learn(&self, timing: Timing, received: u64) {
        self.inside.lock().pace.add(timing, received, Instant::now());
    }

    pub(super) fn network_pace(&self, part_bytes: u64) -> NetworkPace {
        let needed = self.inside.lock().pace.needed(part_bytes);
        let needed = needed.max(LEAST_CONNECTIONS).min(self.most_ahead());
        NetworkPace { part_bytes, in_flight_bytes: part_bytes * needed as u64 }
    }

    /// Readahead never takes the last quarter of the places: a reader mostly finds one free.
    fn most_ahead(&self) -> usize {
        self.most - self.most / 4
    }

    /// There is a place for the object: not if it has overdue GETs and places are short.
    fn admits_demand(&self, inside: &Inside, object: ObjectId) -> bool {
        let short = inside.all >= self.most.div_ceil(2);
        inside.all < self.most && !(short && inside.overdue.contains_key(&object))
    }

    fn admits_ahead(&self, inside: &Inside, bytes: u64, object: ObjectId) -> bool {
        let most = inside.pace.connections(bytes).min(self.most_ahead());
        self.admits_demand(inside, object) && inside.ahead < most
    }

    /// Index of the waiting reader that is admitted next, if one can be.
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

    /// Admits all that can be admitted now. Those that were cancelled while waiting are skipped.
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
    /// Gives up the place but keeps the right, if there is room outside of the count.
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
mod tests;
