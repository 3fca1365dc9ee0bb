//! What a device is told apart by and what it says to people, each a type that holds nothing else.
//!
//! All of it comes from a network that may be hostile. The types here refuse what does not fit; [`clean`](super::clean) makes
//! something that fits of what a device sent.

use std::fmt;

use spice_proto::service_info::is_clean;

/// Longest [`Text`], bytes.
pub const MAX_TEXT: usize = 255;
/// Longest [`Serial`], bytes.
pub const MAX_SERIAL: usize = 64;

/// A line for people, such as a model or a location: 1 to [`MAX_TEXT`] bytes of clean UTF-8, no space at its ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(String);

/// A UUID that is somebody's: not all zeros or ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(u128);

/// A network card's own address: not zero, nor a group's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

/// A serial number: 4 to [`MAX_SERIAL`] visible ASCII characters, spaces between them, and not one of those that
/// mean that nobody filled it in (`0000000`, `XXXXXXXX`, `unknown`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(String);

impl Text {
    /// `None`: it is not such a line.
    pub fn new(text: &str) -> Option<Text> {
        let good = (1..=MAX_TEXT).contains(&text.len())
            && text.chars().all(is_clean)
            && text.trim().len() == text.len();
        good.then(|| Text(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Uuid {
    /// Of 32 hexadecimal digits with or without hyphens, perhaps behind `urn:` and `uuid:`, perhaps in braces.
    pub fn parse(text: &str) -> Option<Uuid> {
        let mut rest = text.trim();
        for prefix in ["urn:", "uuid:"] {
            match rest.split_at_checked(prefix.len()) {
                Some((start, end)) if start.eq_ignore_ascii_case(prefix) => rest = end,
                Some(_) | None => {}
            }
        }
        let rest = rest.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(rest);
        if rest.len() > 36 {
            return None;
        }
        let digits: String = rest.chars().filter(|c| *c != '-').collect();
        if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let value = u128::from_str_radix(&digits, 16).ok()?;
        (value != 0 && value != u128::MAX).then_some(Uuid(value))
    }
}

impl fmt::Display for Uuid {
    /// In lower case with hyphens (RFC 9562, section 4).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Uuid(value) = self;
        let field = |from: u32, bits: u32| (value >> from) & ((1 << bits) - 1);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            field(96, 32),
            field(80, 16),
            field(64, 16),
            field(48, 16),
            field(0, 48),
        )
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uuid({self})")
    }
}

impl Mac {
    /// `None`: it is no single card's.
    pub fn new(octets: [u8; 6]) -> Option<Mac> {
        let [first, ..] = octets;
        (first & 1 == 0 && octets != [0; 6]).then_some(Mac(octets))
    }

    /// Of six pairs of hexadecimal digits, colons or hyphens between them.
    pub fn parse(text: &str) -> Option<Mac> {
        let mut octets = [0; 6];
        let mut pairs = text.split([':', '-']);
        for octet in &mut octets {
            let pair = pairs.next().filter(|pair| pair.len() == 2 && !pair.starts_with('+'))?;
            *octet = u8::from_str_radix(pair, 16).ok()?;
        }
        if pairs.next().is_some() { None } else { Mac::new(octets) }
    }

    /// The six bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mac([a, b, c, d, e, g]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

impl Serial {
    /// `None`: it is no serial number.
    pub fn new(text: &str) -> Option<Serial> {
        const NOBODYS: [&str; 8] =
            ["unknown", "none", "n/a", "null", "default", "serial", "not specified", "not available"];
        let text = text.trim();
        let mut significant = text.bytes().filter(u8::is_ascii_alphanumeric);
        let first = significant.next()?;
        let good = (4..=MAX_SERIAL).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
            && significant.any(|byte| !byte.eq_ignore_ascii_case(&first))
            && !NOBODYS.iter().any(|nobodys| text.eq_ignore_ascii_case(nobodys));
        good.then(|| Serial(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
