//! A certificate's subject as `host-subject` has it, with the meaning that spice-gtk gives it.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use openssl::nid::Nid;
use openssl::x509::{X509Name, X509NameBuilder, X509NameRef};

use super::error::tame;

/// Longer than any subject that a certificate has.
const LONGEST: usize = 4096;

/// A certificate's subject as `host-subject` has it: `C=XX,O=Example,CN=server`.
///
/// A `\` stands before a comma or a `\` that belongs to a name or a value, and before nothing else. Spaces before a name
/// do not count. Names are those OpenSSL knows, short (`CN`), long (`commonName`) or as numbers (`2.5.4.3`). It is
/// the right one for a certificate whose subject has the same entries in the same order and no others, where case and
/// the number of spaces do not count (RFC 5280's comparison of names).
///
/// ```
/// use spice_proto::tls::Subject;
///
/// let subject: Subject = r"O=Example\, Inc.,CN=desktops.example.com".parse()?;
/// assert_eq!(subject.to_string(), r"O=Example\, Inc.,CN=desktops.example.com");
/// # Ok::<(), spice_proto::tls::SubjectError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(Vec<(String, String)>);

/// A text that is no subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a certificate's subject such as C=XX,O=Example,CN=server, got {text:?}: {what}")]
pub struct SubjectError {
    text: String,
    what: String,
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let wrong = |what: String| SubjectError { text: tame(text), what };
        if text.len() > LONGEST {
            return Err(wrong(format!("it is longer than {LONGEST} bytes")));
        }
        let subject = Self(entries(text).map_err(|what| wrong(what.to_owned()))?);
        let mut name = X509NameBuilder::new().map_err(|_| wrong("the TLS library failed".to_owned()))?;
        for (key, value) in &subject.0 {
            // Also when the value is longer, or shorter, than this entry may be.
            let refused = |_| wrong(format!("{} cannot be an entry", tame(&format!("{key}={value}"))));
            name.append_entry_by_text(key, value).map_err(refused)?;
        }
        Ok(subject)
    }
}

fn entries(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let mut entries = Vec::new();
    let mut key = String::new();
    let mut value = None::<String>;
    let mut characters = text.chars();
    loop {
        let (character, escaped) = match characters.next() {
            Some('\\') => match characters.next() {
                Some(character @ ('\\' | ',')) => (Some(character), true),
                Some(_) | None => return Err("a \\ may stand before a comma or a \\ only"),
            },
            Some('\0') => return Err("it has a NUL"),
            character => (character, false),
        };
        match (&mut value, character) {
            (None, Some(' ')) if key.is_empty() => {}
            (None, Some('=')) if !escaped => value = Some(String::new()),
            (None, Some(',')) if !escaped => return Err("an entry has no ="),
            (None, Some(character)) => key.push(character),
            // A comma at the end is forgiven.
            (None, None) if key.is_empty() && !entries.is_empty() => return Ok(entries),
            (None, None) => return Err("an entry has no ="),
            (Some(_), Some(',')) if !escaped => close(&mut entries, &mut key, &mut value)?,
            (Some(value), Some(character)) => value.push(character),
            (Some(_), None) => {
                close(&mut entries, &mut key, &mut value)?;
                return Ok(entries);
            }
        }
    }
}

fn close(
    entries: &mut Vec<(String, String)>,
    key: &mut String,
    value: &mut Option<String>,
) -> Result<(), &'static str> {
    match value.take() {
        Some(value) if !value.is_empty() => {
            entries.push((std::mem::take(key), value));
            Ok(())
        }
        Some(_) | None => Err("an entry has no value"),
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }
}

fn write<'a>(f: &mut impl fmt::Write, entries: impl Iterator<Item = (&'a str, &'a str)>) -> fmt::Result {
    for (number, (key, value)) in entries.enumerate() {
        if number > 0 {
            f.write_char(',')?;
        }
        for (text, end) in [(key, "="), (value, "")] {
            for character in text.chars() {
                if matches!(character, '\\' | ',') {
                    f.write_char('\\')?;
                }
                f.write_char(character)?;
            }
            f.write_str(end)?;
        }
    }
    Ok(())
}

impl Subject {
    /// Whether a certificate's subject is this one.
    pub(super) fn is(&self, got: &X509NameRef) -> bool {
        let same = |expected: X509Name| got.try_cmp(&expected).is_ok_and(Ordering::is_eq);
        got.entries().count() == self.0.len() && self.name().is_some_and(same)
    }

    fn name(&self) -> Option<X509Name> {
        let mut name = X509NameBuilder::new().ok()?;
        for (key, value) in &self.0 {
            name.append_entry_by_text(key, value).ok()?;
        }
        Some(name.build())
    }
}

/// A certificate's name, for reading and for use as `host-subject`.
pub(super) fn text_of(name: &X509NameRef) -> String {
    let entries: Vec<(String, String)> = name
        .entries()
        .map(|entry| {
            let key = match entry.object().nid() {
                Nid::UNDEF => entry.object().to_string(),
                nid => nid.short_name().map_or_else(|_| entry.object().to_string(), str::to_owned),
            };
            let value = entry.data().to_string();
            (key, value.map_or_else(|_| "?".to_owned(), |value| value.to_string()))
        })
        .collect();
    if entries.is_empty() {
        return "nobody".to_owned();
    }
    let mut text = String::new();
    // A String takes everything.
    let _ = write(&mut text, entries.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    tame(&text)
}
