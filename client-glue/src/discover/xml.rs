//! XML from devices, read into a small tree.
//!
//! Nothing of XML's power is wanted here and all of it is dangerous: a document type is refused, and with it every entity that
//! is not one of the five of XML itself. Depth, elements and size are bounded. Prefixes are dropped: what is looked for is told apart by
//! its local names, and a device that has them wrong lies about itself alone.

use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

/// Longest document, bytes.
pub(crate) const MAX_XML: usize = 256 * 1024;
/// Deepest element.
const MAX_DEPTH: usize = 32;
/// Most elements.
const MAX_ELEMENTS: usize = 8192;
/// Most text kept of one element, bytes. The rest of it is dropped.
const MAX_CONTENT: usize = 4096;

/// Why it is no document to work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum XmlError {
    /// Longer than [`MAX_XML`].
    #[error("the device's XML has {got} bytes, at most {MAX_XML} are accepted")]
    TooLong {
        /// Its length.
        got: usize,
    },
    /// Too deep, or too many elements.
    #[error("the device's XML has more {0} than a description needs")]
    TooMuch(&'static str),
    /// A document type, or a reference to an entity that would need one.
    #[error("the device's XML has a document type or an entity, and none is accepted")]
    Entity,
    /// Not XML.
    #[error("the device's XML is not well-formed")]
    Malformed,
}

/// An element with what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Element {
    /// Without its prefix.
    name: String,
    /// Its own text, without that of its children.
    text: String,
    children: Vec<Element>,
}

impl Element {
    /// The root of a document.
    pub(crate) fn parse(document: &[u8]) -> Result<Element, XmlError> {
        if document.len() > MAX_XML {
            return Err(XmlError::TooLong { got: document.len() });
        }
        // Old devices send Latin-1: names are then damaged, the rest is not.
        let document = String::from_utf8_lossy(document);
        let mut reader = Reader::from_str(document.trim_start_matches('\u{feff}'));
        let mut tree = Tree::default();
        loop {
            let done = match reader.read_event().map_err(|_| XmlError::Malformed)? {
                Event::Start(start) => tree.open(&start).map(|()| None)?,
                Event::Empty(start) => {
                    tree.open(&start)?;
                    tree.close()
                }
                Event::End(_) => tree.close(),
                Event::Text(text) => tree.text(&text.xml10_content()),
                Event::CData(text) => tree.text(&text.xml10_content()),
                Event::GeneralRef(reference) => {
                    let of_number = reference.resolve_char_ref().map_err(|_| XmlError::Malformed)?;
                    match of_number {
                        Some(c) => tree.text(c.encode_utf8(&mut [0; 4])),
                        None => tree.text(resolve_xml_entity(&reference).ok_or(XmlError::Entity)?),
                    }
                }
                Event::DocType(_) => return Err(XmlError::Entity),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => None,
                Event::Eof => return Err(XmlError::Malformed),
            };
            if let Some(root) = done {
                return Ok(root);
            }
        }
    }

    /// Without its prefix.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its own text, without space at the ends; `None` if there is nothing.
    pub(crate) fn text(&self) -> Option<&str> {
        Some(self.text.trim()).filter(|text| !text.is_empty())
    }

    /// Its own children.
    pub(crate) fn children(&self) -> &[Element] {
        &self.children
    }

    /// The first of its own children that has this name.
    pub(crate) fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Takes that child out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Element> {
        let at = self.children.iter().position(|child| child.name == name)?;
        Some(self.children.swap_remove(at))
    }

    /// The text of that child.
    pub(crate) fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name)?.text()
    }

    /// Itself and everything below, in the document's order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Element> {
        let mut left = vec![self];
        std::iter::from_fn(move || {
            let next = left.pop()?;
            left.extend(next.children.iter().rev());
            Some(next)
        })
    }
}

/// What is open, outermost first.
#[derive(Default)]
struct Tree {
    open: Vec<Element>,
    elements: usize,
}

impl Tree {
    fn open(&mut self, start: &BytesStart<'_>) -> Result<(), XmlError> {
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            return Err(XmlError::TooMuch("elements"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(XmlError::TooMuch("depth"));
        }
        let name = start.local_name().into_inner().to_owned();
        self.open.push(Element { name, ..Element::default() });
        Ok(())
    }

    /// `Some`: that was the root.
    fn close(&mut self) -> Option<Element> {
        let closed = self.open.pop()?;
        match self.open.last_mut() {
            Some(parent) => {
                parent.children.push(closed);
                None
            }
            None => Some(closed),
        }
    }

    fn text(&mut self, text: &str) -> Option<Element> {
        let inner = self.open.last_mut()?;
        for c in text.chars() {
            if inner.text.len() + c.len_utf8() > MAX_CONTENT {
                break;
            }
            inner.text.push(c);
        }
        None
    }
}

#[cfg(test)]
mod tests;
