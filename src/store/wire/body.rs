//! The body of a response, which owns its connection until its end.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut, Bytes};
use tokio::time::timeout;

use super::connection::Connection;
use super::framing::{Framing, Taken};
use super::pool::{Origin, Pool};
use crate::store::{StoreError, flow};

/// After this time without a byte a body has stalled: a live connection has retransmitted several
/// times, and to go on from the byte reached on a new one costs one request.
pub(super) const SILENCE: Duration = Duration::from_secs(2);
/// The same until the first byte, and for bodies of unknown length: a store may send a head before
/// it has the body. It grows as the patience for a head does.
pub(super) const FIRST_SILENCE: Duration = Duration::from_secs(4);
/// The smallest batch, unless less is left: readers are served in blocks of 128 KiB.
const SMALLEST_BATCH: u64 = 128 << 10;
/// Batches grow with the bytes received, up to this (measured, docs/decisions.md).
const LARGEST_BATCH: u64 = 512 << 10;
/// After this time a batch is taken as it is. A connection of S3, at 90 MB/s, fills 512 KiB in 6
/// ms.
const PATIENCE: Duration = Duration::from_millis(20);
/// Read at once where the caller does not know how long the body will be: listings, errors.
const FRAME_BYTES: usize = 64 * 1024;

/// A body. Dropped before its end, it closes the connection.
pub(in crate::store) struct Body {
    framing: Framing,
    /// Until the end of the body.
    connection: Option<Connection>,
    /// Takes the connection back at the end of the body; None when it is to be closed.
    home: Option<(Arc<Pool>, Arc<Origin>)>,
}

impl Body {
    pub(super) fn new(
        connection: Connection,
        framing: Framing,
        home: Option<(Arc<Pool>, Arc<Origin>)>,
    ) -> Self {
        let mut body = Self { framing, connection: Some(connection), home };
        body.end_if_over();
        body
    }

    pub(in crate::store) fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked(_) | Framing::Close => None,
        }
    }

    /// Receives the body straight into the target, which has room for it. Of a body that does not
    /// tell its length, the last byte is given when its end has come where it should.
    pub(in crate::store) async fn receive(
        mut self,
        length: u64,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError> {
        debug_assert!(into.remaining_mut() as u64 >= length, "room for the body");
        match self.length() {
            None => self.receive_to_the_end(length, into).await,
            Some(told) if told == length => self.take(length, SMALLEST_BATCH, into).await,
            Some(told) => Err(StoreError::nonsense(format!("{told} bytes instead of {length}"))),
        }
    }

    async fn receive_to_the_end(
        mut self,
        length: u64,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError> {
        let (mut left, mut last) = (length, None);
        while let Some(mut data) = self.next().await? {
            left = left.checked_sub(data.len() as u64).ok_or_else(|| {
                StoreError::nonsense(format!("a body that goes on after {length} bytes"))
            })?;
            if left == 0 && !data.is_empty() {
                last = Some(data.split_off(data.len() - 1));
            }
            into.put_slice(&data);
        }
        let cause = || format!("a body ended {left} bytes before its end");
        match last {
            Some(last) => into.put_slice(&last),
            None if self.framing == Framing::Close => return Err(StoreError::Unavailable(cause())),
            None => return Err(StoreError::nonsense(cause())),
        }
        Ok(())
    }

    /// Receives the next bytes of a body that tells its length, and has as many. It wakes for no
    /// fewer than `batch` of them.
    pub(in crate::store) async fn take(
        &mut self,
        length: u64,
        batch: u64,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError> {
        let Framing::Length(all) = self.framing else {
            return Err(StoreError::nonsense("a body without a length"));
        };
        let too_short = || StoreError::nonsense(format!("{all} bytes instead of {length}"));
        let behind = all.checked_sub(length).ok_or_else(too_short)?;
        let mut left = length;
        if let Some(connection) = &mut self.connection {
            // Bytes that came with the head.
            let early = &mut connection.buffer;
            let fits = usize::try_from(left).map_or(early.len(), |left| left.min(early.len()));
            into.put_slice(&early[..fits]);
            early.advance(fits);
            if fits > 0 {
                flow::begins();
            }
            left -= fits as u64;
            while left > 0 {
                let batch = (length - left).max(batch).min(LARGEST_BATCH);
                let silence = if left == length { first_silence() } else { SILENCE };
                let received = batch_of(connection, batch, left, silence, &mut *into).await?;
                if received == 0 {
                    let cause = format!("a body ended {left} bytes before its end");
                    return Err(StoreError::Unavailable(cause));
                }
                flow::begins();
                left -= received as u64;
            }
        }
        self.framing = Framing::Length(behind);
        self.end_if_over();
        Ok(())
    }

    /// All of a body of up to `at_most` bytes.
    pub(in crate::store) async fn whole(mut self, at_most: u64) -> Result<Vec<u8>, StoreError> {
        let too_long = || StoreError::nonsense(format!("a body of more than {at_most} bytes"));
        let mut whole = Vec::new();
        if let Some(length) = self.length() {
            if length > at_most {
                return Err(too_long());
            }
            whole.reserve_exact(usize::try_from(length).map_err(|_| too_long())?);
            self.receive(length, &mut whole).await?;
            return Ok(whole);
        }
        while let Some(data) = self.next().await? {
            if (whole.len() + data.len()) as u64 > at_most {
                return Err(too_long());
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole)
    }

    /// The next bytes of a body of unknown length; None behind its end.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            let Some(connection) = &mut self.connection else { return Ok(None) };
            let taken = self.framing.take(&mut connection.buffer);
            match taken.map_err(|cause| StoreError::nonsense(format!("a body: {cause}")))? {
                Taken::Data(data) => {
                    flow::begins();
                    self.end_if_over();
                    return Ok(Some(data));
                }
                Taken::End => {
                    self.end_if_over();
                    return Ok(None);
                }
                Taken::TooLittle => {
                    let silence = first_silence();
                    let filled = timeout(silence, connection.fill(FRAME_BYTES)).await;
                    let filled = filled.map_err(|_elapsed| silent(silence))?;
                    let filled = filled.map_err(|error| match error.kind() {
                        ErrorKind::InvalidData => StoreError::nonsense(format!("a body: {error}")),
                        ErrorKind::TimedOut => silent(silence),
                        _ => broke(&error),
                    });
                    match filled? {
                        0 if self.framing == Framing::Close => return Ok(None),
                        0 => return Err(broke(&ErrorKind::UnexpectedEof.into())),
                        _ => {}
                    }
                }
            }
        }
    }

    fn end_if_over(&mut self) {
        if self.framing.is_over()
            && let (Some(connection), Some((pool, origin))) =
                (self.connection.take(), self.home.take())
        {
            pool.give(origin, connection);
        }
    }
}

/// Receives once: a batch, or the bytes that there are after [`PATIENCE`].
async fn batch_of(
    connection: &mut Connection,
    batch: u64,
    left: u64,
    silence: Duration,
    into: &mut (dyn BufMut + Send),
) -> Result<usize, StoreError> {
    let at_most = usize::try_from(left).unwrap_or(usize::MAX);
    connection.batch(batch, left);
    let received = match timeout(PATIENCE, connection.receive(&mut *into, at_most)).await {
        Ok(received) => received,
        Err(_elapsed) => {
            connection.batch(1, left);
            let receive = connection.receive(into, at_most);
            let limit = silence.saturating_sub(PATIENCE);
            timeout(limit, receive).await.map_err(|_elapsed| silent(silence))?
        }
    };
    received.map_err(|error| {
        StoreError::Unavailable(format!("a body broke {left} bytes before its end: {error}"))
    })
}

fn first_silence() -> Duration {
    FIRST_SILENCE.max(flow::patience() * 2 / 5)
}

fn broke(error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("a body broke: {error}"))
}

fn silent(silence: Duration) -> StoreError {
    StoreError::TimedOut(format!("no byte of a body for {} s", silence.as_secs()))
}
