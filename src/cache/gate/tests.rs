//! GETs of readers and of readahead at a gate with few places.

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
