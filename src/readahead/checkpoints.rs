//! Checkpoints of models, and small shared libraries: files that programs map, and read whole in
//! the order of their layers or relocations.
//!
//! A file is one if its name and its first bytes say so. Nothing else of it is believed: what is
//! fetched because of it lies inside the object, or is an object of the same directory that is
//! listed there under the next number.

/// As many first bytes tell.
pub(super) const HEAD_BYTES: usize = 24;

/// `safetensors` refuses longer headers.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// More tensors, or more values, than any model has.
const MOST_ITEMS: u64 = 1 << 24;

/// A round trip is worth as many bytes. Of larger libraries, those for graphics cards, a program
/// reads a small part.
const LARGEST_LIBRARY_BYTES: u64 = 32 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Safetensors,
    Gguf,
    /// Of `torch.save`: a zip archive.
    Torch,
    /// A shared library, which a program's start maps and reads all over.
    Library,
}

impl Kind {
    pub(super) fn of_name(key: &str) -> Option<Self> {
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

    /// Who reads on in so many places, the file's beginning aside, will read all of it: one tensor
    /// that two threads read is two of them. A library is read at its end first, where the
    /// dynamic linker finds what it has to relocate.
    pub(super) fn places(self) -> u64 {
        match self {
            Self::Safetensors | Self::Gguf | Self::Torch => 3,
            Self::Library => 1,
        }
    }

    /// A file of `size` bytes that begins with `head` is of this kind.
    pub(super) fn begins_so(self, head: &[u8], size: u64) -> bool {
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
