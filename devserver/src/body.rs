//! The body of a GET.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::content;
use crate::counts::Counters;
use crate::objects::{self, Content, Object};

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
            Content::Stored(pieces) => objects::slice(pieces, self.left.clone()),
            Content::Synthetic { seed, head, .. } => {
                let Range { start, end } = self.left;
                let head_left = usize::try_from(start).ok().and_then(|at| head.get(at..));
                match head_left.filter(|left| !left.is_empty()) {
                    Some(left) => {
                        let most = usize::try_from(end - start).unwrap_or(usize::MAX);
                        head.slice_ref(&left[..left.len().min(most)])
                    }
                    None => content::piece(*seed, start, end - start),
                }
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
