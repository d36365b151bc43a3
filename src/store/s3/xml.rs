//! XML as stores send it: listings and errors, element by element. Pure.
//!
//! There are no entities but XML's own five and numbers, and no document type that could make some.

use std::fmt;

use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesStart, Event};

use crate::store::StoreError;

/// Documents of S3 are four deep.
const DEEPEST: usize = 16;
const SHOWN_BYTES: usize = 200;

pub(super) struct Document<'a> {
    reader: Reader<&'a [u8]>,
    depth: usize,
    /// The text of the element read last.
    text: Vec<u8>,
}

impl<'a> Document<'a> {
    pub(super) fn new(xml: &'a [u8]) -> Self {
        let mut reader = Reader::from_reader(xml);
        // `<a/>` is `<a></a>`.
        reader.config_mut().expand_empty_elements = true;
        // An ampersand by itself spoils only the text that it stands in.
        reader.config_mut().allow_dangling_amp = true;
        Self { reader, depth: 0, text: Vec::new() }
    }

    /// Enters the next child of the element it is in; leaves that when there is none.
    pub(super) fn child(&mut self) -> Result<Option<BytesStart<'a>>, StoreError> {
        loop {
            match self.event()? {
                Event::Start(start) => return Ok(Some(start)),
                Event::End(_) | Event::Eof => return Ok(None),
                _ => {}
            }
        }
    }

    /// The text of the element it is in, which it leaves. None if that is no text: not UTF-8, with
    /// characters that XML cannot carry as they are, with an unknown entity or an element in it.
    pub(super) fn text(&mut self) -> Result<Option<&str>, StoreError> {
        self.text.clear();
        let mut is_text = true;
        loop {
            match self.event()? {
                Event::Text(text) => {
                    is_text &= !text.iter().any(|&byte| is_no_text(byte));
                    self.text.extend_from_slice(&text);
                }
                Event::CData(text) => self.text.extend_from_slice(&text),
                Event::GeneralRef(name) => {
                    let mut utf8 = [0; 4];
                    let text = match name.resolve_char_ref() {
                        Ok(Some(character)) => Some(&*character.encode_utf8(&mut utf8)),
                        Ok(None) => std::str::from_utf8(&name).ok().and_then(resolve_xml_entity),
                        Err(_) => None,
                    };
                    is_text &= text.is_some();
                    self.text.extend_from_slice(text.unwrap_or_default().as_bytes());
                }
                Event::Start(_) => {
                    is_text = false;
                    self.skip()?;
                }
                Event::End(_) => break,
                _ => {}
            }
        }
        Ok(std::str::from_utf8(&self.text).ok().filter(|_| is_text))
    }

    /// Leaves the element it is in, with all that is in it.
    pub(super) fn skip(&mut self) -> Result<(), StoreError> {
        let outside = self.depth - 1;
        while self.depth > outside {
            self.event()?;
        }
        Ok(())
    }

    fn event(&mut self) -> Result<Event<'a>, StoreError> {
        let event = self.reader.read_event().map_err(|error| not_xml(&error))?;
        match &event {
            Event::Start(_) if self.depth == DEEPEST => return Err(not_xml(&"it is too deep")),
            Event::Start(_) => self.depth += 1,
            // The reader has matched it with its start.
            Event::End(_) => self.depth -= 1,
            Event::DocType(_) => return Err(not_xml(&"it has a document type")),
            Event::Eof if self.depth > 0 => return Err(not_xml(&"it is cut off")),
            Event::Text(text) if self.depth == 0 && !text.trim_ascii().is_empty() => {
                return Err(not_xml(&"there is text around it"));
            }
            _ => {}
        }
        Ok(event)
    }
}

/// Code and message of an error document; none when it is not one, or is not whole.
pub(super) fn error(xml: &[u8]) -> Option<(String, String)> {
    let mut document = Document::new(xml);
    let read = (|| {
        let mut found = (String::new(), String::new());
        document.child()?;
        while let Some(element) = document.child()? {
            match element.local_name().as_ref() {
                b"Code" => document.text()?.unwrap_or_default().clone_into(&mut found.0),
                b"Message" => document.text()?.unwrap_or_default().clone_into(&mut found.1),
                _ => document.skip()?,
            }
        }
        Ok::<_, StoreError>(found)
    })();
    read.ok()
}

/// A control character, or an ampersand that begins no entity. A line's end is read as another one.
fn is_no_text(byte: u8) -> bool {
    byte == b'&' || byte == 0x7f || (byte < b' ' && !matches!(byte, b'\t' | b'\n'))
}

pub(super) fn not_xml(why: &dyn fmt::Display) -> StoreError {
    wrong(&format!("a listing page that is no XML: {why}"))
}

/// At most [`SHOWN_BYTES`] of the store's text are shown.
pub(super) fn wrong(what: &str) -> StoreError {
    let end = what.floor_char_boundary(SHOWN_BYTES);
    let more = if end < what.len() { "…" } else { "" };
    StoreError::nonsense(format!("{}{more}", &what[..end]))
}
