//! Profiles: lists of names and bytes as text, for the file of `record` and for the control socket.
//!
//! The first line of a file names the format. Each other line is `names PATH`, `bytes START END
//! PATH` or `whole PATH`; paths are below the mount, control characters and `%` in them are
//! percent-encoded. A path that could lead out of the mount is no path.

use std::fmt::{Display, Formatter, Result as Written};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::fs::prefetch::Touch;
pub(crate) use crate::names::rules::is_path;

/// The first line. Another format has another number.
pub(crate) const HEADER: &str = "fasts3-mount profile 1";

/// A path has at most 1,024 bytes, each of which may take three.
pub(crate) const LONGEST_LINE: usize = 4096;

const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// A touch as a line.
pub(crate) struct TouchLine<'a>(pub(crate) &'a Touch);

impl Display for TouchLine<'_> {
    fn fmt(&self, to: &mut Formatter<'_>) -> Written {
        let escaped = |path| utf8_percent_encode(path, ESCAPED);
        match self.0 {
            Touch::Names(path) => write!(to, "names {}", escaped(path)),
            Touch::Bytes(path, range) => {
                write!(to, "bytes {} {} {}", range.start, range.end, escaped(path))
            }
            Touch::Whole(path) => write!(to, "whole {}", escaped(path)),
        }
    }
}

/// The touch of a line, or what is wrong with it.
pub(crate) fn parse(line: &str) -> Result<Touch, &'static str> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "names" => Ok(Touch::Names(path(rest)?)),
        "whole" => Ok(Touch::Whole(path(rest)?)),
        "bytes" => {
            let mut fields = rest.splitn(3, ' ');
            let mut number = || fields.next().and_then(|field| field.parse::<u64>().ok());
            match (number(), number()) {
                (Some(start), Some(end)) if start < end => match fields.next() {
                    Some("") | None => Err("it names no file"),
                    Some(text) => Ok(Touch::Bytes(path(text)?, start..end)),
                },
                _ => Err("it has no range of bytes"),
            }
        }
        _ => Err("it begins with none of `names`, `bytes` and `whole`"),
    }
}

fn path(text: &str) -> Result<String, &'static str> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "its path is not UTF-8")?;
    if !is_path(&decoded) {
        return Err("its path is not one below a mount");
    }
    Ok(decoded.into_owned())
}

/// A profile of these touches.
pub(crate) fn write(touches: &[Touch]) -> String {
    let lines = touches.iter().map(|touch| format!("{}\n", TouchLine(touch)));
    format!("{HEADER}\n{}", lines.collect::<String>())
}

/// The touches of a profile, or a sentence.
pub(crate) fn read(text: &[u8]) -> Result<Vec<Touch>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err(format!("its first line is not `{HEADER}`"));
    }
    let touch = |(at, line)| parse(line).map_err(|why| format!("line {}: {why}", at + 2));
    lines.enumerate().map(touch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_comes_back_as_it_was_written() {
        let touches = [
            Touch::Names(String::new()),
            Touch::Names("a b/ü%41".to_owned()),
            Touch::Bytes("line\nbreak".to_owned(), 4096..8192),
            Touch::Whole("a/b".to_owned()),
        ];
        let text = write(&touches);
        assert_eq!(
            text,
            "fasts3-mount profile 1\nnames \nnames a b/ü%2541\nbytes 4096 8192 line%0Abreak\n\
             whole a/b\n"
                .replace("ü", "%C3%BC")
        );
        assert_eq!(read(text.as_bytes()).unwrap(), touches);
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        let refused = |lines: &str| read(format!("{HEADER}\n{lines}").as_bytes()).unwrap_err();
        assert!(read(b"").unwrap_err().contains("first line"));
        assert!(read(b"fasts3-mount profile 2\n").unwrap_err().contains("first line"));
        assert!(read(b"\xff").unwrap_err().contains("UTF-8"));
        assert!(refused("names a\nread b\n").starts_with("line 3: "));
        for lines in [
            "whole ../a",
            "whole a/../../b",
            "whole /etc/passwd",
            "whole a//b",
            "whole a/",
            "bytes 0 1 ",
            "names .",
            "whole a%00b",
            "bytes 1 1 a",
            "bytes 2 1 a",
            "bytes 1 a",
            "bytes -1 3 a",
            "bytes 1 99999999999999999999 a",
            "whole %FF",
            "",
        ] {
            assert!(refused(&format!("{lines}\n")).starts_with("line 2: "), "{lines:?}");
        }
        let long = format!("whole {}", "x".repeat(2000));
        assert!(refused(&long).contains("path"));
    }

    mod fuzz {
        use proptest::prelude::*;

        use super::*;
        use crate::testing::fuzz;

        /// Any line is refused, or a touch below the mount that is written as a line again.
        #[test]
        fn any_line_is_a_touch_or_refused() {
            let lines = "((names|bytes|whole|) ?([0-9]{0,21} ){0,2}(\\PC|/|\\.\\.|%[0-9A-F]{2}){0,9})|\\PC*";
            fuzz::each(fuzz::text(lines), |line| {
                if let Ok(touch) = parse(&line) {
                    let again = TouchLine(&touch).to_string();
                    prop_assert!(!again.contains('\n') && again.len() <= LONGEST_LINE);
                    prop_assert_eq!(parse(&again), Ok(touch.clone()));
                    let (Touch::Names(path) | Touch::Whole(path) | Touch::Bytes(path, _)) = touch;
                    prop_assert!(path.split('/').all(|part| part != ".."), "{}", path);
                }
                Ok(())
            });
        }
    }
}
