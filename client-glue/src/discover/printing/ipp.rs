//! Get-Printer-Attributes of IPP (RFC 8010, RFC 8011, section 4.2.5): the question, and what is wanted of the answer.
//!
//! Crate `ipp` is not used for the answer, because it builds collections as deep as the printer nests them, and clones each
//! on its way up: 256 KiB of nothing but beginnings take its stack. Here they are skipped.

use std::collections::BTreeMap;

/// Longest answer, bytes.
pub(super) const MAX_ANSWER: usize = 256 * 1024;
/// Most values of one attribute.
const MAX_VALUES: usize = 64;
/// Longest value, bytes (RFC 8011, section 5.1: `text`).
const MAX_VALUE: usize = 1023;

/// Names of attributes that are asked for.
const WANTED: [&str; 13] = [
    "color-supported",
    "document-format-supported",
    "printer-device-id",
    "printer-dns-sd-name",
    "printer-info",
    "printer-kind",
    "printer-location",
    "printer-make-and-model",
    "printer-more-info",
    "printer-uri-supported",
    "printer-uuid",
    "sides-supported",
    "urf-supported",
];

mod tag {
    pub(super) const OPERATION: u8 = 0x01;
    pub(super) const END: u8 = 0x03;
    pub(super) const PRINTER: u8 = 0x04;
    pub(super) const LAST_DELIMITER: u8 = 0x0f;
    pub(super) const BEGIN_COLLECTION: u8 = 0x34;
    pub(super) const TEXT_WITH_LANGUAGE: u8 = 0x35;
    pub(super) const NAME_WITH_LANGUAGE: u8 = 0x36;
    pub(super) const END_COLLECTION: u8 = 0x37;
    pub(super) const KEYWORD: u8 = 0x44;
    pub(super) const URI: u8 = 0x45;
    pub(super) const CHARSET: u8 = 0x47;
    pub(super) const LANGUAGE: u8 = 0x48;
}

/// Why it is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum IppError {
    /// Cut, or other than IPP.
    #[error("the printer's answer is not IPP")]
    Malformed,
    /// Refused.
    #[error("the printer answered with IPP status {0:#06x}, expected success")]
    Status(u16),
}

/// What a printer says of itself, as it says it: nothing is clean here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes(BTreeMap<&'static str, Vec<Vec<u8>>>);

impl Attributes {
    /// All values of an attribute that was asked for.
    pub(super) fn all(&self, name: &str) -> &[Vec<u8>] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The first of them, if there is anything in it.
    pub(super) fn first(&self, name: &str) -> Option<&[u8]> {
        self.all(name).first().map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// A boolean.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        match self.first(name)? {
            [0] => Some(false),
            [1] => Some(true),
            [..] => None,
        }
    }
}

/// The question to the printer of this URI. `None`: it is too long for one.
pub(super) fn question(uri: &str) -> Option<Vec<u8>> {
    // Version 1.1, Get-Printer-Attributes, number 1.
    let mut out = vec![1, 1, 0, 0x0b, 0, 0, 0, 1, tag::OPERATION];
    put(&mut out, tag::CHARSET, "attributes-charset", "utf-8")?;
    put(&mut out, tag::LANGUAGE, "attributes-natural-language", "en")?;
    put(&mut out, tag::URI, "printer-uri", uri)?;
    let mut name = "requested-attributes";
    for wanted in WANTED {
        put(&mut out, tag::KEYWORD, name, wanted)?;
        // Further values of the same attribute have no name.
        name = "";
    }
    out.push(tag::END);
    Some(out)
}

fn put(out: &mut Vec<u8>, tag: u8, name: &str, value: &str) -> Option<()> {
    out.push(tag);
    for text in [name, value] {
        out.extend(u16::try_from(text.len()).ok().filter(|length| *length < 1024)?.to_be_bytes());
        out.extend(text.as_bytes());
    }
    Some(())
}

/// What is wanted of an answer. Of an attribute that is there twice, the first counts.
pub(super) fn answer(bytes: &[u8]) -> Result<Attributes, IppError> {
    read(bytes).ok_or(IppError::Malformed)?
}

fn read(bytes: &[u8]) -> Option<Result<Attributes, IppError>> {
    let mut rest = Rest(bytes);
    let [major, _minor] = rest.take(2)? else { return None };
    if !matches!(major, 1 | 2) {
        return None;
    }
    let status = rest.short()?;
    // 0x0000 to 0x00ff are kinds of success (RFC 8011, appendix B).
    if status > 0xff {
        return Some(Err(IppError::Status(status)));
    }
    rest.take(4)?;
    let mut found = Attributes::default();
    let mut group = 0;
    let mut depth = 0_usize;
    let mut open: Option<&'static str> = None;
    loop {
        let tag = rest.byte()?;
        if tag <= tag::LAST_DELIMITER {
            if tag == tag::END {
                return Some(Ok(found));
            }
            (group, depth, open) = (tag, 0, None);
            continue;
        }
        let name = rest.counted()?;
        let value = rest.counted()?;
        match tag {
            tag::BEGIN_COLLECTION => {
                depth += 1;
                open = None;
                continue;
            }
            tag::END_COLLECTION => {
                depth = depth.saturating_sub(1);
                continue;
            }
            _ if depth > 0 || group != tag::PRINTER => continue,
            _ => {}
        }
        if !name.is_empty() {
            open = WANTED.into_iter().find(|wanted| wanted.as_bytes() == name);
            open = open.filter(|wanted| !found.0.contains_key(wanted));
        }
        let Some(open) = open else { continue };
        let value = match tag {
            tag::TEXT_WITH_LANGUAGE | tag::NAME_WITH_LANGUAGE => {
                let mut inner = Rest(value);
                inner.counted()?;
                inner.counted()?
            }
            _ => value,
        };
        let values = found.0.entry(open).or_default();
        if values.len() < MAX_VALUES && value.len() <= MAX_VALUE {
            values.push(value.to_vec());
        }
    }
}

/// What has not been read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn counted(&mut self) -> Option<&'a [u8]> {
        let length = self.short()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests;
