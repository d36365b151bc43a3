//! The body of a GET.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::content;
use crate::counts::Counters;
use crate::objects::{Content, Object};

/// Synthetic bytes are made in pieces of this size: small enough to be still in the core's cache
/// when the kernel copies them into the socket.
const PIECE_BYTES: usize = 128 * 1024;
/// Buffers kept for the next piece, since touching fresh memory costs more than filling old.
const SPARE_PIECES: usize = 64;

static SPARES: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

pub(crate) struct ContentBody {
    object: Arc<Object>,
    left: Range<u64>,
    counters: Arc<Counters>,
}

impl ContentBody {
    /// `range` must be inside the object.
    pub(crate) fn new(object: Arc<Object>, range: Range<u64>, counters: Arc<Counters>) -> Self {
        debug_assert!(range.end <= object.size());
        Self { object, left: range, counters }
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        if self.left.is_empty() {
            return None;
        }
        let piece = match &self.object.content {
            Content::Stored(bytes) => {
                let index = |offset| usize::try_from(offset).expect("it is in memory");
                bytes.slice(index(self.left.start)..index(self.left.end))
            }
            Content::Synthetic { seed, .. } => {
                let left = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX);
                let mut piece = Piece::take(left.min(PIECE_BYTES));
                content::fill(*seed, self.left.start, &mut piece.buffer[..piece.length]);
                Bytes::from_owner(piece)
            }
        };
        self.left.start += piece.len() as u64;
        self.counters.body(piece.len() as u64);
        Some(piece)
    }
}

impl Body for ContentBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next_piece().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.end - self.left.start)
    }
}

/// A buffer that goes back to the spares when the last `Bytes` of it is gone.
struct Piece {
    /// Always `PIECE_BYTES` long.
    buffer: Vec<u8>,
    length: usize,
}

impl Piece {
    fn take(length: usize) -> Self {
        // The one given back last is the one most likely still in the cache.
        let spare = SPARES.lock().expect("no panic while it is held").pop();
        Self { buffer: spare.unwrap_or_else(|| vec![0; PIECE_BYTES]), length }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut spares = SPARES.lock().expect("no panic while it is held");
        if spares.len() < SPARE_PIECES {
            spares.push(std::mem::take(&mut self.buffer));
        }
    }
}
