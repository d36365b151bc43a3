//! The end of a body: by its length, by its chunks, or with the connection. Pure.

use bytes::{Buf as _, Bytes, BytesMut};
use httparse::Status;

/// Of a line between chunks.
const LONGEST_LINE: usize = 16 * 1024;

/// The part of a body that is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    /// Chunks (RFC 9112, section 7.1).
    Chunked(Chunked),
    /// All until the connection is closed.
    Close,
}

/// The next element of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunked {
    Size,
    Data(u64),
    LineEnd,
    /// Headers behind the last chunk, which are ignored.
    Trailer,
    Nothing,
}

pub(super) enum Taken {
    Data(Bytes),
    TooLittle,
    End,
}

impl Framing {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunked::Size)
    }

    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunked::Nothing))
    }

    /// Takes bytes of the body from the front of the received ones, and no byte behind the body.
    pub(super) fn take(&mut self, received: &mut BytesMut) -> Result<Taken, String> {
        loop {
            if self.is_over() {
                return Ok(Taken::End);
            }
            if received.is_empty() {
                return Ok(Taken::TooLittle);
            }
            match self {
                Self::Close => return Ok(Taken::Data(received.split().freeze())),
                Self::Length(left) => return Ok(Taken::Data(split(received, left))),
                Self::Chunked(Chunked::Data(left)) => {
                    let data = split(received, left);
                    if *left == 0 {
                        *self = Self::Chunked(Chunked::LineEnd);
                    }
                    return Ok(Taken::Data(data));
                }
                Self::Chunked(next) => match next.step(received)? {
                    Some(then) => *next = then,
                    None if received.len() < LONGEST_LINE => return Ok(Taken::TooLittle),
                    None => return Err("an endless line between chunks".to_owned()),
                },
            }
        }
    }
}

impl Chunked {
    /// Takes the bytes between the data; returns the next element, or None when more bytes are
    /// needed.
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

/// Takes up to `left` received bytes, and counts them off.
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
                Taken::Data(data) => body.extend_from_slice(&data),
                Taken::End => {
                    return Ok((body, received.len() + pieces.map(<[u8]>::len).sum::<usize>()));
                }
                Taken::TooLittle => match pieces.next() {
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
        let endless = [b"1;".as_slice(), &[b'a'; LONGEST_LINE]].concat();
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

    mod fuzz {
        use proptest::prelude::*;

        use super::*;
        use crate::testing::fuzz;

        fn framings() -> impl Strategy<Value = Framing> {
            prop_oneof![(0..40_u64).prop_map(Framing::Length), Just(Framing::chunked())]
        }

        /// Whatever comes, it is the same body or the same refusal however it is cut, and no more
        /// of it than came.
        #[test]
        fn any_bytes_are_the_same_body_however_they_come() {
            let line = fuzz::text(
                "[0-9a-fA-F]{1,2}\r\n|[a-z]{0,20}\r\n|0\r\n\r\n|1\r\nx\r\n|f{15,17}\r\n|\
                 ;[ -~]{0,5}|\r|\n",
            );
            let lines = prop::collection::vec(line, 0..8).prop_map(|all| all.concat().into_bytes());
            let wire = prop_oneof![prop::collection::vec(any::<u8>(), 0..60), lines];
            fuzz::each((framings(), wire, 1_usize..9), |(framing, wire, piece)| {
                let whole = taken(framing, &wire, wire.len().max(1));
                let cut = taken(framing, &wire, piece);
                prop_assert_eq!(whole.is_ok(), cut.is_ok(), "{:?}, {:?}", whole, cut);
                if let Ok((body, left)) = &whole {
                    prop_assert!(body.len() + left <= wire.len());
                    prop_assert_eq!(whole, cut);
                }
                Ok(())
            });
        }

        /// A body that was cut into chunks comes out whole, and nothing of what follows it.
        #[test]
        fn any_body_in_chunks_comes_out_as_it_went_in() {
            let chunk = (
                prop::collection::vec(any::<u8>(), 1..20),
                fuzz::text("(;[a-z]{1,3}(=[a-z]{1,3})?)?"),
                any::<bool>(),
            );
            let trailers = fuzz::text("([A-Z]: [a-z]{0,3}\r\n){0,2}");
            fuzz::each(
                (prop::collection::vec(chunk, 0..6), trailers, 1_usize..40),
                |(chunks, trailers, piece)| {
                    let (mut wire, mut body) = (Vec::new(), Vec::new());
                    for (data, extension, upper) in chunks {
                        let size = if upper {
                            format!("{:X}", data.len())
                        } else {
                            format!("00{:x}", data.len())
                        };
                        wire.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
                        wire.extend_from_slice(&data);
                        wire.extend_from_slice(b"\r\n");
                        body.extend(data);
                    }
                    wire.extend_from_slice(format!("0\r\n{trailers}\r\nHTTP/1.1").as_bytes());
                    prop_assert_eq!(taken(Framing::chunked(), &wire, piece), Ok((body.clone(), 8)));
                    prop_assert!(
                        taken(Framing::chunked(), &wire[..wire.len() - 9], piece).is_err()
                    );
                    Ok(())
                },
            );
        }
    }
}
