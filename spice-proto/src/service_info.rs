//! What a service says of itself beyond its port: who its device is, what the device is called, and how the service is
//! advertised by DNS-SD. The body of SERVICE_INFO, an extension (see PROTOCOL.md).
//!
//! All of it comes from a network that may be hostile and goes to a guest that believes it. So every text is a type of its
//! own that holds nothing but what that kind of text may be, whoever makes it: a client that cleans what it found, or
//! the parser of what a peer sent. Nothing is cut or mended here; what does not fit is refused, and says why.

use nom::Parser;
use nom::bytes::complete::take;
use nom::multi::{length_count, length_data};
use nom::number::complete::{le_u16, u8};

use crate::error::Problem;
use crate::parse::{Fault, Parsed, U8, U16, put_u16};

/// Longest encoded [`ServiceInfo`], bytes.
pub const MAX_INFO: usize = 8192;
/// Most adverts of one service.
pub const MAX_ADVERTS: usize = 8;
/// Most subtypes of one advert.
pub const MAX_SUBTYPES: usize = 8;
/// Longest TXT data of one advert, bytes (RFC 6763, section 6.2: what fits one Ethernet packet).
pub const MAX_TXT: usize = 1300;
/// Longest DNS label, bytes (RFC 1035, section 2.3.4).
pub const MAX_LABEL: usize = 63;
/// Longest identity, bytes.
pub const MAX_IDENTITY: usize = 255;
/// Longest host name, bytes of its dotted form.
pub const MAX_HOST: usize = 253;

/// Why a text or list cannot be part of a [`ServiceInfo`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {problem}")]
pub struct InfoError {
    /// Which text or list.
    pub what: &'static str,
    /// What is wrong with it.
    pub problem: InfoProblem,
}

/// What is wrong with a text or list of a [`ServiceInfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InfoProblem {
    /// There is nothing in it.
    #[error("is empty")]
    Empty,
    /// It has more bytes, or entries, than it may.
    #[error("has length {got}, at most {limit} is accepted")]
    TooLong {
        /// Its length.
        got: usize,
        /// Most that is accepted.
        limit: usize,
    },
    /// Not UTF-8, or a character that controls instead of being read: C0, C1, bidirectional overrides and the like.
    #[error("is not clean UTF-8 text")]
    NotText,
    /// Not of the form that this kind of text has.
    #[error("is not of the form {0}")]
    Form(&'static str),
    /// A TXT key that is there already.
    #[error("has a key twice")]
    Twice,
}

/// By what a device is known for ever, as `uuid:…` or `serial:…`: its virtual address is a hash of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(String);

/// A DNS label for people, such as a DNS-SD instance ("Office printer, 2nd floor") or a subtype (`_universal`): 1 to 63 bytes of clean
/// UTF-8. Dots and spaces are ordinary characters of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

/// A host's name in dotted form, without the last dot, as its owner writes it: `printer.local`, `nas.lan`. Labels are letters, digits,
/// hyphens, underscores and what is not ASCII.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

/// A DNS-SD service type over TCP: `_ipp._tcp` (RFC 6763, section 7; RFC 6335, section 5.1), in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceType(String);

/// What a DNS-SD TXT record says (RFC 6763, section 6): keys with or without values, no key twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txt {
    entries: Vec<(String, Option<String>)>,
    /// INVARIANT: the encoded length of `entries`, at most [`MAX_TXT`].
    encoded: usize,
}

/// One way in which a service is advertised. A printer's port 631 is an `_ipp._tcp` and an `_ipps._tcp` as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// The type.
    pub kind: ServiceType,
    /// The service's name among those of its type.
    pub instance: Label,
    /// Subtypes, such as `_universal`; at most [`MAX_SUBTYPES`].
    pub subtypes: Vec<Label>,
    /// More about it.
    pub txt: Txt,
}

/// What a service says of itself. See the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceInfo {
    identity: Option<Identity>,
    host: Option<HostName>,
    adverts: Vec<Advert>,
}

impl ServiceInfo {
    /// Puts the parts together.
    ///
    /// # Errors
    /// Too many of something, or more than [`MAX_INFO`] bytes in all.
    pub fn new(
        identity: Option<Identity>,
        host: Option<HostName>,
        adverts: Vec<Advert>,
    ) -> Result<Self, InfoError> {
        within("the list of adverts", adverts.len(), MAX_ADVERTS)?;
        for advert in &adverts {
            within("the list of subtypes", advert.subtypes.len(), MAX_SUBTYPES)?;
        }
        let info = ServiceInfo { identity, host, adverts };
        within("the service info", info.encoded_len(), MAX_INFO)?;
        Ok(info)
    }

    /// The device's identity. Services of one group are one device: the first one's counts.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The name that the device has on the user's side.
    pub fn host(&self) -> Option<&HostName> {
        self.host.as_ref()
    }

    /// How the service is advertised; empty for one that is not.
    pub fn adverts(&self) -> &[Advert] {
        &self.adverts
    }

    /// How many bytes [`write`](Self::write) appends.
    pub fn encoded_len(&self) -> usize {
        let text = |text: Option<&str>| U8 + text.map_or(0, str::len);
        let adverts = self.adverts.iter().map(|advert| {
            let subtypes: usize = advert.subtypes.iter().map(|subtype| U8 + subtype.0.len()).sum();
            U8 + advert.kind.0.len()
                + U8
                + advert.instance.0.len()
                + U8
                + subtypes
                + U16
                + advert.txt.encoded_len()
        });
        text(self.identity.as_ref().map(Identity::as_str))
            + text(self.host.as_ref().map(HostName::as_str))
            + U8
            + adverts.sum::<usize>()
    }

    /// Appends it as the wire has it.
    pub fn write(&self, out: &mut Vec<u8>) {
        put_text(out, self.identity.as_ref().map_or("", Identity::as_str));
        put_text(out, self.host.as_ref().map_or("", HostName::as_str));
        put_count(out, self.adverts.len());
        for advert in &self.adverts {
            put_text(out, advert.kind.as_str());
            put_text(out, advert.instance.as_str());
            put_count(out, advert.subtypes.len());
            for subtype in &advert.subtypes {
                put_text(out, subtype.as_str());
            }
            // At most MAX_TXT.
            put_u16(out, u16::try_from(advert.txt.encoded_len()).unwrap_or(u16::MAX));
            advert.txt.write(out);
        }
    }

    /// What [`write`](Self::write) wrote, and what follows it.
    pub(crate) fn parse(input: &[u8]) -> Parsed<'_, ServiceInfo> {
        if input.len() > MAX_INFO {
            return Err(Fault::fatal(Problem::TooLong { field: "info", got: input.len(), limit: MAX_INFO }));
        }
        let (input, identity) = optional(input, Identity::new)?;
        let (input, host) = optional(input, HostName::new)?;
        let (input, adverts) = length_count(u8, advert).parse(input)?;
        let info = ServiceInfo::new(identity, host, adverts).map_err(fault)?;
        Ok((input, info))
    }
}

impl Identity {
    /// # Errors
    /// Empty, longer than [`MAX_IDENTITY`], or not clean text.
    pub fn new(text: &str) -> Result<Self, InfoError> {
        clean("the identity", text, MAX_IDENTITY).map(Identity)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Label {
    /// # Errors
    /// Empty, longer than [`MAX_LABEL`], or not clean text.
    pub fn new(text: &str) -> Result<Self, InfoError> {
        clean("the label", text, MAX_LABEL).map(Label)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl HostName {
    /// # Errors
    /// Empty, longer than [`MAX_HOST`], or not a host name.
    pub fn new(text: &str) -> Result<Self, InfoError> {
        const WHAT: &str = "the host name";
        let host = clean(WHAT, text, MAX_HOST)?;
        let good = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_' || !c.is_ascii())
        };
        if !host.split('.').all(good) {
            let problem = InfoProblem::Form("host.domain: letters, digits, hyphens");
            return Err(InfoError { what: WHAT, problem });
        }
        Ok(HostName(host))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name's labels, the host's own first.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether it belongs to multicast DNS (RFC 6762, section 3).
    pub fn is_local(&self) -> bool {
        let mut labels = self.0.rsplit('.');
        labels.next().is_some_and(|last| last.eq_ignore_ascii_case("local")) && labels.next().is_some()
    }

    /// Whether it may be a domain whose names somebody on another network may ask for: at least two labels, none of the
    /// domains that mean another thing on every host or are no names at all (RFC 6761 and its registry), and no address.
    ///
    /// # Errors
    /// It may not.
    pub fn check_domain(&self) -> Result<(), InfoError> {
        let wrong = |form| Err(InfoError { what: "the domain", problem: InfoProblem::Form(form) });
        let Some((_, last)) = self.0.rsplit_once('.') else {
            return wrong("domain.top, at least two labels");
        };
        if last.bytes().all(|byte| byte.is_ascii_digit()) {
            return wrong("domain.top, a name and no address");
        }
        if SPECIAL.iter().any(|special| within_domain(&self.0, special)) {
            return wrong("domain.top, none that every host has for itself");
        }
        Ok(())
    }

    /// Whether it is `domain` or a name under it. Case does not matter.
    pub fn is_within(&self, domain: &HostName) -> bool {
        within_domain(&self.0, &domain.0)
    }
}

impl ServiceType {
    /// # Errors
    /// Not of the form `_name._tcp`.
    pub fn new(text: &str) -> Result<Self, InfoError> {
        const WHAT: &str = "the service type";
        let form = || InfoError { what: WHAT, problem: InfoProblem::Form("_name._tcp") };
        let text = clean(WHAT, text, MAX_LABEL)?.to_ascii_lowercase();
        let name = text.strip_prefix('_').and_then(|rest| rest.strip_suffix("._tcp")).ok_or_else(form)?;
        let good = (1..=15).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if good { Ok(ServiceType(text)) } else { Err(form()) }
    }

    /// As text: `_ipp._tcp`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first of its two labels: `_ipp`.
    pub fn label(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }
}

impl Txt {
    /// Adds `key`, or `key=value`, behind those that are there.
    ///
    /// # Errors
    /// A key that is no key (RFC 6763, section 6.4) or is there already, a value that is not clean text, or more than fits.
    pub fn push(&mut self, key: &str, value: Option<&str>) -> Result<(), InfoError> {
        const WHAT: &str = "the TXT entry";
        let wrong = |problem| InfoError { what: WHAT, problem };
        if key.is_empty() || !key.bytes().all(|byte| matches!(byte, 0x20..=0x7e) && byte != b'=') {
            return Err(wrong(InfoProblem::Form("key=value")));
        }
        if self.get(key).is_some() {
            return Err(wrong(InfoProblem::Twice));
        }
        if let Some(value) = value
            && !value.chars().all(is_clean)
        {
            return Err(wrong(InfoProblem::NotText));
        }
        let length = key.len() + value.map_or(0, |value| 1 + value.len());
        within(WHAT, length, 255)?;
        within("the TXT data", self.encoded + U8 + length, MAX_TXT)?;
        self.encoded += U8 + length;
        self.entries.push((key.to_owned(), value.map(str::to_owned)));
        Ok(())
    }

    /// `None`: there is no such key. `Some(None)`: it has no value. Case of keys does not matter.
    pub fn get(&self, key: &str) -> Option<Option<&str>> {
        self.entries
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.as_deref())
    }

    /// In their order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value.as_deref()))
    }

    /// Whether it says nothing. As a DNS record it is one empty string then (RFC 6763, section 6.1).
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many bytes [`write`](Self::write) appends.
    pub fn encoded_len(&self) -> usize {
        self.encoded
    }

    /// Appends the strings of the TXT record, each behind its length; nothing if it is empty.
    pub fn write(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.entries {
            let length = key.len() + value.as_ref().map_or(0, |value| 1 + value.len());
            put_count(out, length);
            out.extend_from_slice(key.as_bytes());
            if let Some(value) = value {
                out.push(b'=');
                out.extend_from_slice(value.as_bytes());
            }
        }
    }

    fn parse(mut data: &[u8]) -> Result<Txt, InfoError> {
        const WHAT: &str = "the TXT entry";
        let mut txt = Txt::default();
        while let Some((&length, rest)) = data.split_first() {
            let (entry, rest) = rest.split_at_checked(usize::from(length)).ok_or(InfoError {
                what: WHAT,
                problem: InfoProblem::Form("key=value, behind its length"),
            })?;
            let entry = std::str::from_utf8(entry)
                .map_err(|_| InfoError { what: WHAT, problem: InfoProblem::NotText })?;
            match entry.split_once('=') {
                Some((key, value)) => txt.push(key, Some(value))?,
                None => txt.push(entry, None)?,
            }
            data = rest;
        }
        Ok(txt)
    }
}

/// Whether a character may stand in a text that people are shown: it is no control character, and it does not change how
/// its neighbours are read (Unicode's bidirectional controls, zero-width ones, line and paragraph ends, noncharacters).
pub fn is_clean(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..='\u{e0fff}')
}

/// Domains that have no server, or one on each host. `home.arpa` and `internal` are what private networks are called.
const SPECIAL: [&str; 9] = [
    "local",
    "localhost",
    "invalid",
    "onion",
    "alt",
    "in-addr.arpa",
    "ip6.arpa",
    "ipv4only.arpa",
    "resolver.arpa",
];

fn within_domain(name: &str, domain: &str) -> bool {
    let before = name.len().checked_sub(domain.len());
    before.and_then(|at| name.as_bytes().split_at_checked(at)).is_some_and(|(before, tail)| {
        tail.eq_ignore_ascii_case(domain.as_bytes()) && (before.is_empty() || before.ends_with(b"."))
    })
}

fn clean(what: &'static str, text: &str, limit: usize) -> Result<String, InfoError> {
    if text.is_empty() {
        return Err(InfoError { what, problem: InfoProblem::Empty });
    }
    within(what, text.len(), limit)?;
    if !text.chars().all(is_clean) {
        return Err(InfoError { what, problem: InfoProblem::NotText });
    }
    Ok(text.to_owned())
}

fn within(what: &'static str, got: usize, limit: usize) -> Result<(), InfoError> {
    if got > limit {
        return Err(InfoError { what, problem: InfoProblem::TooLong { got, limit } });
    }
    Ok(())
}

/// Lengths and counts are bounded where their texts and lists are made.
fn put_count(out: &mut Vec<u8>, count: usize) {
    out.push(u8::try_from(count).unwrap_or(u8::MAX));
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn advert(input: &[u8]) -> Parsed<'_, Advert> {
    let (input, kind) = text(input, ServiceType::new)?;
    let (input, instance) = text(input, Label::new)?;
    let (input, subtypes) = length_count(u8, |input| text(input, Label::new)).parse(input)?;
    let (input, length) = le_u16(input)?;
    let (input, data) = take(length)(input)?;
    let txt = Txt::parse(data).map_err(fault)?;
    Ok((input, Advert { kind, instance, subtypes, txt }))
}

fn text<T>(input: &[u8], make: impl Fn(&str) -> Result<T, InfoError>) -> Parsed<'_, T> {
    let (input, bytes) = length_data(u8).parse(input)?;
    let value = std::str::from_utf8(bytes)
        .map_err(|_| InfoError { what: "a text", problem: InfoProblem::NotText })
        .and_then(make)
        .map_err(fault)?;
    Ok((input, value))
}

fn optional<T>(input: &[u8], make: impl Fn(&str) -> Result<T, InfoError>) -> Parsed<'_, Option<T>> {
    match input.split_first() {
        Some((0, rest)) => Ok((rest, None)),
        _ => text(input, make).map(|(rest, value)| (rest, Some(value))),
    }
}

fn fault<'a>(error: InfoError) -> nom::Err<Fault<'a>> {
    Fault::fatal(Problem::Info(error))
}

#[cfg(test)]
mod tests;
