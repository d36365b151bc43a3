//! Where a body ends: by its length, by its chunks, or with the connection. Pure.

use bytes::{Buf as _, Bytes, BytesMut};
use httparse::Status;

use super::head::LONGEST_HEAD;

/// How much of a body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks (RFC 9112, section 7.1).
    Chunked(Chunked),
    /// All until the connection is closed.
    Close,
}

/// What of a chunked body comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunked {
    Size,
    /// So many bytes of a chunk.
    Data(u64),
    /// The line's end behind a chunk.
    LineEnd,
    /// Headers behind the last chunk, which nobody reads.
    Trailer,
    Nothing,
}

/// What was found at the front of the received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// These bytes of the body.
    Data(Bytes),
    /// Not enough to tell.
    TooLittle,
    /// The end of the body.
    End,
}

impl Framing {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunked::Size)
    }

    /// Whether all of the body was taken.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunked::Nothing))
    }

    /// Takes what it can from the front of the received bytes, and nothing from behind the body.
    pub(super) fn take(&mut self, received: &mut BytesMut) -> Result<Found, String> {
        loop {
            if self.is_over() {
                return Ok(Found::End);
            }
            if received.is_empty() {
                return Ok(Found::TooLittle);
            }
            match self {
                Self::Close => return Ok(Found::Data(received.split().freeze())),
                Self::Length(left) => return Ok(Found::Data(split(received, left))),
                Self::Chunked(Chunked::Data(left)) => {
                    let data = split(received, left);
                    if *left == 0 {
                        *self = Self::Chunked(Chunked::LineEnd);
                    }
                    return Ok(Found::Data(data));
                }
                Self::Chunked(next) => match next.step(received)? {
                    Some(then) => *next = then,
                    None if received.len() < LONGEST_HEAD => return Ok(Found::TooLittle),
                    None => return Err("an endless line between chunks".to_owned()),
                },
            }
        }
    }
}

impl Chunked {
    /// Takes what stands between the data; gives what comes next, or nothing when there is not
    /// enough to tell.
    fn step(self, received: &mut BytesMut) -> Result<Option<Self>, String> {
        Ok(match self {
            // httparse takes an empty line for a size of 0, which would end the body.
            Self::Size if !received[0].is_ascii_hexdigit() => {
                return Err("a chunk without a size".to_owned());
            }
            Self::Size => match httparse::parse_chunk_size(received) {
                Ok(Status::Complete((used, size))) => {
                    received.advance(used);
                    Some(if size == 0 { Self::Trailer } else { Self::Data(size) })
                }
                Ok(Status::Partial) => None,
                Err(error) => return Err(error.to_string()),
            },
            Self::LineEnd if received.len() < 2 => None,
            Self::LineEnd if received.starts_with(b"\r\n") => {
                received.advance(2);
                Some(Self::Size)
            }
            Self::LineEnd => return Err("a chunk longer than its size".to_owned()),
            Self::Trailer => received.windows(2).position(|two| two == b"\r\n").map(|line| {
                received.advance(line + 2);
                if line == 0 { Self::Nothing } else { Self::Trailer }
            }),
            Self::Data(_) | Self::Nothing => Some(self),
        })
    }
}

/// As much of what was received as is left of it.
fn split(received: &mut BytesMut, left: &mut u64) -> Bytes {
    let fits = usize::try_from(*left).map_or(received.len(), |left| left.min(received.len()));
    *left -= fits as u64;
    received.split_to(fits).freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body and what is left behind it, when the bytes come in pieces of this size.
    fn taken(mut framing: Framing, wire: &[u8], piece: usize) -> Result<(Vec<u8>, usize), String> {
        let (mut received, mut body) = (BytesMut::new(), Vec::new());
        let mut pieces = wire.chunks(piece);
        loop {
            match framing.take(&mut received)? {
                Found::Data(data) => body.extend_from_slice(&data),
                Found::End => {
                    return Ok((body, received.len() + pieces.map(<[u8]>::len).sum::<usize>()));
                }
                Found::TooLittle => match pieces.next() {
                    Some(piece) => received.extend_from_slice(piece),
                    None => return Err("too short".to_owned()),
                },
            }
        }
    }

    #[test]
    fn a_body_is_the_same_however_it_is_cut() {
        let chunks = b"3\r\nabc\r\n00A;x=y\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\nHTTP/1.1";
        for piece in 1..chunks.len() {
            let body = taken(Framing::chunked(), chunks, piece).unwrap();
            assert_eq!(body, (b"abc0123456789".to_vec(), 8), "{piece}");
            assert_eq!(taken(Framing::Length(4), b"abcdef", piece), Ok((b"abcd".to_vec(), 2)));
        }
        assert_eq!(taken(Framing::Length(0), b"a", 1), Ok((Vec::new(), 1)));
    }

    #[test]
    fn chunks_that_contradict_themselves_are_refused() {
        let endless = [b"1;".as_slice(), &[b'a'; LONGEST_HEAD]].concat();
        for chunks in [
            b"x\r\nabc\r\n0\r\n\r\n".as_slice(),
            b"2\r\nabc\r\n0\r\n\r\n",
            b"FFFFFFFFFFFFFFFFFF\r\na",
            b"\r\n\r\n",
            endless.as_slice(),
        ] {
            for piece in [1, chunks.len()] {
                let refused = taken(Framing::chunked(), chunks, piece);
                assert!(refused.as_ref().is_err_and(|e| e != "too short"), "{refused:?}");
            }
        }
        for cut_off in [b"3\r\nab".as_slice(), b"3\r\nabc", b"3\r\nabc\r\n", b"0\r\n", b"0\r\nA: b"]
        {
            assert_eq!(taken(Framing::chunked(), cut_off, 1), Err("too short".to_owned()));
        }
    }
}
