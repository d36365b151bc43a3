//! Checkpoints of models, and small shared libraries: files that programs map, and read whole in
//! the order of their layers or relocations.
//!
//! A file is one if its name and its first bytes say so. Nothing else of it is believed, but for
//! where the tensors of `safetensors` lie: what is fetched because of it lies inside the object, or
//! is an object of the same directory that is listed there under the next number.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;

/// As many first bytes tell.
const HEAD_BYTES: usize = 24;

/// `safetensors` refuses longer headers.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// In a longer one, tensors are not looked for: the shards of large models have 50 to 100 KB.
/// Parsing takes 5 ms for each MB, once.
const MOST_PARSED_BYTES: u64 = 512 << 10;

/// Shorter tensors are fetched with those that lie behind them: requests have their price too.
const LEAST_STRETCH_BYTES: u64 = 1 << 20;

/// More tensors, or more values, than any model has.
const MOST_ITEMS: u64 = 1 << 24;

/// A round trip is worth as many bytes. Of larger libraries, those for graphics cards, a program
/// reads a small part.
const LARGEST_LIBRARY_BYTES: u64 = 32 << 20;

/// What an object is.
pub(super) enum Content {
    Other,
    /// A file that is read whole.
    Whole,
    /// A file that is read whole, if more than one of its tensors is.
    Tensors(Tensors),
}

impl Content {
    /// Of an object of `size` bytes that programs began to read in so many places. `beginning`
    /// gives so many of its first bytes, at most `longest`, if they are here. `None` as long as it
    /// cannot be told.
    pub(super) fn of(
        key: &str,
        size: u64,
        places: u64,
        longest: u64,
        beginning: impl Fn(usize) -> Option<Vec<u8>>,
    ) -> Option<Self> {
        let Some(kind) = Kind::of_name(key) else { return Some(Self::Other) };
        let is_whole = places >= kind.places();
        if !is_whole && kind != Kind::Safetensors {
            return None;
        }
        let head = beginning(HEAD_BYTES)?;
        if !kind.begins_so(&head, size) {
            return Some(Self::Other);
        }
        let length = Tensors::header_bytes(&head).filter(|&length| length as u64 <= longest);
        if let Some(length) = length.filter(|_| kind == Kind::Safetensors) {
            let tensors = Tensors::of_header(&beginning(length)?, size);
            return Some(tensors.map_or(Self::Other, Self::Tensors));
        }
        is_whole.then_some(Self::Whole)
    }
}

/// The object may begin with a header that tells where its tensors lie.
pub(super) fn has_header(key: &str) -> bool {
    Kind::of_name(key) == Some(Kind::Safetensors)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Safetensors,
    Gguf,
    /// Of `torch.save`: a zip archive.
    Torch,
    /// A shared library, which a program's start maps and reads all over.
    Library,
}

impl Kind {
    fn of_name(key: &str) -> Option<Self> {
        let (_, extension) = key.rsplit_once('.')?;
        // `libz.so.1.2.13`
        let name = &key[key.rfind('/').unwrap_or_default()..];
        if extension == "so" || name.contains(".so.") {
            return Some(Self::Library);
        }
        match extension {
            "safetensors" => Some(Self::Safetensors),
            "gguf" => Some(Self::Gguf),
            "bin" | "pt" | "pth" | "ckpt" => Some(Self::Torch),
            _ => None,
        }
    }

    /// Who reads on in so many places, the file's beginning aside, will read all of it, if nothing
    /// tells where its tensors lie: one tensor that two threads read is two of them. A library is
    /// read at its end first, where the dynamic linker finds what it has to relocate.
    fn places(self) -> u64 {
        match self {
            Self::Safetensors | Self::Gguf | Self::Torch => 3,
            Self::Library => 1,
        }
    }

    /// A file of `size` bytes that begins with `head` is of this kind.
    fn begins_so(self, head: &[u8], size: u64) -> bool {
        match self {
            // The length of the header, and its JSON.
            Self::Safetensors => number(head, 0).is_some_and(|length| {
                (2..=MOST_HEADER_BYTES).contains(&length)
                    && length <= size.saturating_sub(8)
                    && head.get(8) == Some(&b'{')
            }),
            // A version, and the numbers of tensors and of values.
            Self::Gguf => {
                head.starts_with(b"GGUF")
                    && matches!(head.get(4..8), Some([1..=3, 0, 0, 0]))
                    && [8, 16]
                        .into_iter()
                        .all(|at| number(head, at).is_some_and(|n| n < MOST_ITEMS))
            }
            Self::Torch => head.starts_with(b"PK\x03\x04"),
            Self::Library => head.starts_with(b"\x7fELF") && size <= LARGEST_LIBRARY_BYTES,
        }
    }
}

/// Where the tensors of a `safetensors` file lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensors {
    /// The end of the header.
    pub(super) begin: u64,
    /// In the order of the file.
    ends: Box<[u64]>,
    /// The header and the tensors, in the order in which programs read them.
    stretches: Box<[Stretch]>,
}

/// Bytes of a file that are read one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    start: u64,
    /// The bytes of this stretch and of those before it in the order.
    until: u64,
}

#[derive(Deserialize)]
struct HeaderEntry {
    /// What says how the tensors were made has none.
    data_offsets: Option<(u64, u64)>,
}

impl Tensors {
    /// The length of a header that is worth parsing, with the number before it.
    fn header_bytes(head: &[u8]) -> Option<usize> {
        let length = number(head, 0).filter(|&length| length <= MOST_PARSED_BYTES)?;
        usize::try_from(length + 8).ok()
    }

    /// Those of a file of `size` bytes; `None` if its header is wrong.
    pub(super) fn of_header(header: &[u8], size: u64) -> Option<Self> {
        let begin = header.len() as u64;
        let entries: BTreeMap<String, HeaderEntry> =
            serde_json::from_slice(header.get(8..)?).ok()?;
        let mut tensors: Vec<_> = entries
            .iter()
            .filter_map(|(name, entry)| Some((entry.data_offsets?, name.as_str())))
            .collect();
        tensors.sort_unstable();
        let mut last = 0;
        for &((start, end), _) in &tensors {
            if start < last || end < start {
                return None;
            }
            last = end;
        }
        (last <= size.checked_sub(begin)?).then(|| {
            let ends = tensors.iter().map(|&((_, end), name)| (begin + end, name));
            let stretches = in_order_of_names(begin, ends.clone());
            Self { begin, ends: ends.map(|(end, _)| end).collect(), stretches }
        })
    }

    /// Programs read them as they lie in the file. False if that was known.
    pub(super) fn order_by_place(&mut self) -> bool {
        let is_news = self.stretches.len() > 1;
        if let Some(&Stretch { until, .. }) = self.stretches.last() {
            self.stretches = [Stretch { start: 0, until }].into();
        }
        is_news
    }

    /// What programs read next of a file of `size` bytes, when they have read so many in order.
    pub(super) fn next(&self, read: u64, size: u64) -> Range<u64> {
        let index = self.stretches.partition_point(|stretch| stretch.until <= read);
        match self.stretches.get(index) {
            Some(&Stretch { start, until }) => {
                let before = self.before(index);
                start + read - before..start + until - before
            }
            None => read..size,
        }
    }

    /// The bytes that programs read in order before they come to an offset.
    pub(super) fn come(&self, at: u64) -> u64 {
        let stretches = self.stretches.iter().enumerate();
        let mut places = stretches.map(|(index, &Stretch { start, until })| {
            let before = self.before(index);
            (start..start + until - before).contains(&at).then(|| before + at - start)
        });
        places.find_map(|place| place).unwrap_or(at)
    }

    /// They begin to read elsewhere when they have read so many.
    pub(super) fn begins(&self, read: u64) -> bool {
        self.stretches.binary_search_by_key(&read, |stretch| stretch.until).is_ok()
    }

    /// The bytes of the stretches before this one.
    fn before(&self, index: usize) -> u64 {
        index.checked_sub(1).map_or(0, |before| self.stretches[before].until)
    }

    /// The number of the tensor in which an offset lies; before the first one, or behind the last,
    /// of that.
    pub(super) fn index(&self, at: u64) -> usize {
        self.ends.partition_point(|&end| end <= at).min(self.ends.len().saturating_sub(1))
    }

    /// The bytes from one tensor to another, with the header before the first.
    pub(super) fn range(&self, (from, to): (usize, usize)) -> Option<Range<u64>> {
        let start = from.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(start..*self.ends.get(to)?)
    }
}

/// The header, and the tensors by their names: layer 10 comes behind layer 9. Neighbours in both
/// orders are one stretch; so are short ones and what lies behind them, under the longest one's
/// name.
fn in_order_of_names<'a>(begin: u64, ends: impl Iterator<Item = (u64, &'a str)>) -> Box<[Stretch]> {
    let mut named: Vec<(Range<u64>, u64, &str)> = Vec::new();
    let mut start = begin;
    for (end, name) in ends {
        let length = end - start;
        match named.last_mut() {
            Some((stretch, longest, its_name))
                if stretch.end - stretch.start < LEAST_STRETCH_BYTES =>
            {
                stretch.end = end;
                if *longest < length {
                    (*longest, *its_name) = (length, name);
                }
            }
            _ => named.push((start..end, length, name)),
        }
        start = end;
    }
    named.sort_by_cached_key(|(stretch, _, name)| (by_numbers(name), stretch.start));
    let mut stretches = vec![Stretch { start: 0, until: begin }];
    let (mut end, mut until) = (begin, begin);
    for (stretch, ..) in named {
        until += stretch.end - stretch.start;
        match stretches.last_mut() {
            Some(last) if stretch.start == end => last.until = until,
            _ => stretches.push(Stretch { start: stretch.start, until }),
        }
        end = stretch.end;
    }
    stretches.into()
}

/// A name between whose dots numbers count as such.
fn by_numbers(name: &str) -> Vec<(u64, &str)> {
    name.split('.').map(|part| part.parse().map_or((u64::MAX, part), |n| (n, ""))).collect()
}

fn number(head: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*head.get(at..)?.first_chunk()?))
}

/// The name of the file that comes after `…-00001-of-00004.…`.
pub(super) fn next_name(name: &str) -> Option<String> {
    let (before, all) = name.rsplit_once("-of-")?;
    let (stem, number) = before.rsplit_once('-')?;
    let is_number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
    let next =
        Some(number).filter(|number| is_number(number))?.parse::<u32>().ok()?.checked_add(1)?;
    Some(format!("{stem}-{next:0width$}-of-{all}", width = number.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_known_by_its_name_and_its_first_bytes() {
        let safetensors = |length: u64, json: &[u8]| {
            let mut head = length.to_le_bytes().to_vec();
            head.extend_from_slice(json);
            head
        };
        let gguf = |version: u8, tensors: u64, values: u64| {
            let mut head = [b"GGUF".as_slice(), &[version, 0, 0, 0]].concat();
            head.extend_from_slice(&tensors.to_le_bytes());
            head.extend_from_slice(&values.to_le_bytes());
            head
        };
        for (name, head, is_checkpoint) in [
            ("m/a.safetensors", safetensors(500, b"{\"x\":"), true),
            ("m/a.safetensors", safetensors(992, b"{\"x\":"), true),
            ("m/a.safetensors", safetensors(993, b"{\"x\":"), false),
            ("m/a.safetensors", safetensors(u64::MAX, b"{\"x\":"), false),
            ("m/a.safetensors", safetensors(0, b"{\"x\":"), false),
            ("m/a.safetensors", safetensors(500, b"[\"x\":"), false),
            ("m/a.safetensors", safetensors(500, b""), false),
            ("m/a.safetensors", b"PK\x03\x04".to_vec(), false),
            ("m/a.safetensors", Vec::new(), false),
            ("m/a.gguf", gguf(3, 291, 24), true),
            ("m/a.gguf", gguf(4, 291, 24), false),
            ("m/a.gguf", gguf(3, u64::MAX, 24), false),
            ("m/a.gguf", gguf(3, 291, 24)[..20].to_vec(), false),
            ("m/a.pt", b"PK\x03\x04....".to_vec(), true),
            ("m/pytorch_model.bin", b"PK\x03\x04....".to_vec(), true),
            ("m/pytorch_model.bin", b"\x80\x02".to_vec(), false),
            ("p/_core.cpython-311-x86_64-linux-gnu.so", b"\x7fELF\x02".to_vec(), true),
            ("p/libgfortran-0352e75f.so.5.0.0", b"\x7fELF\x02".to_vec(), true),
            ("p/notes.so.txt", b"Notes".to_vec(), false),
        ] {
            let kind = Kind::of_name(name).unwrap();
            assert_eq!(kind.begins_so(&head, 1000), is_checkpoint, "{name} {head:?}");
        }
        let library = Kind::of_name("libtorch_cuda.so").unwrap();
        assert!(library.begins_so(b"\x7fELF", LARGEST_LIBRARY_BYTES));
        assert!(!library.begins_so(b"\x7fELF", LARGEST_LIBRARY_BYTES + 1));
        for name in ["a.safetensors.json", "a.so.d/x", "safetensors", "a.parquet", ""] {
            assert_eq!(Kind::of_name(name), None, "{name}");
        }
    }

    #[test]
    fn tensors_lie_where_a_header_says_unless_that_cannot_be() {
        let tensors = |json: &str, size: u64| {
            let header = [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
            assert_eq!(Tensors::header_bytes(&header), Some(header.len()));
            Tensors::of_header(&header, header.len() as u64 + size)
        };
        let json = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F16","shape":[2],"data_offsets":[10,30]},
            "a":{"dtype":"F16","shape":[5],"data_offsets":[0,10]},
            "none":{"dtype":"F16","shape":[0],"data_offsets":[30,30]}}   "#;
        let found = tensors(json, 30).unwrap();
        let begin = json.len() as u64 + 8;
        assert_eq!(found.begin, begin);
        for (at, index) in [(0, 0), (begin + 9, 0), (begin + 10, 1), (begin + 30, 2), (u64::MAX, 2)]
        {
            assert_eq!(found.index(at), index, "{at}");
        }
        assert_eq!(found.range((0, 0)), Some(0..begin + 10));
        assert_eq!(found.range((1, 2)), Some(begin + 10..begin + 30));
        assert_eq!(tensors("{}", 30).unwrap().range((0, 0)), None);
        for (at, next) in [(0, 0..begin + 30), (begin + 7, begin + 7..begin + 30)] {
            assert_eq!(found.next(at, begin + 31), next);
        }
        assert_eq!(found.next(begin + 30, begin + 31), begin + 30..begin + 31);
        for (wrong, size) in [
            (json, 29),
            (r#"{"a":{"data_offsets":[0,10]},"b":{"data_offsets":[9,20]}}"#, 30),
            (r#"{"a":{"data_offsets":[10,0]}}"#, 30),
            (r#"{"a":{"data_offsets":[0,18446744073709551615]}}"#, 30),
            (r#"{"a":{"data_offsets":[0,18446744073709551616]}}"#, 30),
            (r#"{"a":{"data_offsets":[-1,1]}}"#, 30),
            (r#"{"a":{"data_offsets":[0]}}"#, 30),
            (r#"{"a":{"data_offsets":"all"}}"#, 30),
            (r#"{"a":7}"#, 30),
            (r#"{"a":{"data_offsets":[0,1]}"#, 30),
            ("[]", 30),
            (&"{\"a\":".repeat(10_000), 30),
        ] {
            assert_eq!(tensors(wrong, size), None, "{wrong:.60}");
        }
        let long = (MOST_PARSED_BYTES + 1).to_le_bytes();
        assert_eq!(Tensors::header_bytes(&long), None);
        assert_eq!(Tensors::header_bytes(&u64::MAX.to_le_bytes()), None);
        assert_eq!(Tensors::of_header(&long[..7], 30), None);
    }

    #[test]
    fn programs_read_tensors_in_the_order_of_their_names() {
        const MIB: u64 = 1 << 20;
        let mut at = 0;
        let mut entries: Vec<String> = Vec::new();
        for (name, bytes) in [
            ("h.10.w", MIB),
            // Short ones go with what is behind them.
            ("h.9.norm", 10),
            ("h.2.w", 2 * MIB),
            ("a.bias", 5),
            ("h.1.v", MIB),
            ("h.1.w", MIB),
            ("norm", 7),
        ] {
            entries.push(format!(r#""{name}":{{"data_offsets":[{at},{}]}}"#, at + bytes));
            at += bytes;
        }
        let json = format!("{{{}}}", entries.join(","));
        let header = [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
        let (begin, size) = (header.len() as u64, header.len() as u64 + at + 3);
        let tensors = Tensors::of_header(&header, size).unwrap();
        let (mut read, mut order) = (0, Vec::new());
        while read < size {
            let next = tensors.next(read, size);
            for inside in [next.start, next.end - 1] {
                assert_eq!(tensors.come(inside), read + inside - next.start);
            }
            assert_eq!(tensors.begins(read), read > 0);
            assert!(!tensors.begins(read + 1));
            read += next.end - next.start;
            order.push(next);
        }
        let layer = |start, end| begin + start..begin + end;
        assert_eq!(
            order,
            [
                0..begin,
                layer(3 * MIB + 10, 5 * MIB + 15),
                layer(MIB, 3 * MIB + 10),
                layer(0, MIB),
                layer(5 * MIB + 15, 5 * MIB + 22),
                layer(5 * MIB + 22, 5 * MIB + 25),
            ]
        );
        let mut tensors = tensors;
        assert!(tensors.order_by_place());
        assert_eq!(tensors.next(7, size), 7..size - 3);
        assert!(!tensors.order_by_place());
    }

    #[test]
    fn a_header_is_read_once_and_only_if_it_can_be() {
        let json = format!("{{{}}}", " ".repeat(200_000));
        let header = [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
        let (asked, length) = (std::cell::Cell::new(0), header.len() as u64);
        let content = |places, longest| {
            Content::of("m.safetensors", 1 << 30, places, longest, |bytes| {
                asked.set(asked.get() + bytes);
                Some(header[..bytes].to_vec())
            })
        };
        assert!(matches!(content(0, length), Some(Content::Tensors(_))));
        assert_eq!(asked.replace(0), HEAD_BYTES + header.len());
        assert!(content(2, length - 1).is_none());
        assert!(matches!(content(3, length - 1), Some(Content::Whole)));
        assert_eq!(asked.get(), 2 * HEAD_BYTES);
    }

    #[test]
    fn the_next_one_has_the_next_number() {
        for (name, next) in [
            ("model-00001-of-00004.safetensors", Some("model-00002-of-00004.safetensors")),
            ("model-00009-of-00012.safetensors", Some("model-00010-of-00012.safetensors")),
            ("a-of-b-1-of-2.gguf", Some("a-of-b-2-of-2.gguf")),
            ("m-9-of-10.bin", Some("m-10-of-10.bin")),
            ("m-4294967295-of-2.bin", None),
            ("m-+1-of-2.bin", None),
            ("m--of-2.bin", None),
            ("model.safetensors", None),
            ("-of-", None),
            ("1-of-2", None),
        ] {
            assert_eq!(next_name(name).as_deref(), next, "{name}");
        }
    }
}
