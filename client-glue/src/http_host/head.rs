//! The head of a request, byte by byte (RFC 9112, sections 2 to 6).

use super::{HostRewrite, HttpFault, MAX_HELD};

/// The longest method there may be. The longest registered one has 17 letters.
const LONGEST_METHOD: usize = 32;

/// The longest scheme of a target that is looked for; no service knows one as long.
const LONGEST_SCHEME: usize = 16;

/// `HTTP/1.1`
const VERSION_LEN: usize = 8;

/// A place within a head, and what is known of the head there.
#[derive(Default)]
pub(super) struct Head {
    place: Place,
    /// What came last and cannot go on yet, since what follows decides on it. INVARIANT: at most [`MAX_HELD`] bytes.
    held: Vec<u8>,
    /// A CR came, which has to be followed by LF. It is held too.
    returned: bool,
    is_1_0: bool,
    has_host: bool,
    length: Option<u64>,
    is_chunked: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the request. Empty lines may come, as old clients send one behind a body.
    #[default]
    Before,
    /// Held from its first letter.
    Method,
    /// Before the target's first byte.
    Target,
    /// Held from the target's first byte to `://`.
    Scheme,
    /// Left out: the service's own was put in its place.
    Authority,
    /// The target's path, or all of it.
    Path,
    /// Held.
    Version,
    /// Held from the line's first byte to the colon.
    Name,
    /// Behind the beginning of a name that is none of those that matter.
    OtherName,
    /// A value that does not matter.
    Value,
    /// The value of a `Host`: left out.
    Host,
    /// The value of an `Upgrade`: left out, with the whole of its line.
    Upgrade,
    /// The whole line is held.
    Held(Field),
}

/// A line that has to be known whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Length,
    Encoding,
    Connection,
}

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    None,
    Length(u64),
    Chunked,
}

impl Head {
    /// Takes one byte, and puts what is decided on into `out`. `Some`: it was the last of the head.
    pub(super) fn take(
        &mut self,
        byte: u8,
        host: &HostRewrite,
        out: &mut Vec<u8>,
    ) -> Result<Option<Body>, HttpFault> {
        match (std::mem::take(&mut self.returned), byte) {
            (true, b'\n') => self.end_line(b"\r\n", host, out),
            (true, _) => Err(HttpFault::BareReturn),
            (false, b'\n') => self.end_line(b"\n", host, out),
            (false, b'\r') => {
                self.returned = true;
                Ok(None)
            }
            (false, 0) => Err(HttpFault::Null),
            (false, _) => self.take_text(byte, host, out).map(|()| None),
        }
    }

    /// What is held, as it came.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut held = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.returned) {
            held.push(b'\r');
        }
        held
    }

    #[cfg(any(test, feature = "test-http-host"))]
    pub(super) fn held_len(&self) -> usize {
        self.held.len()
    }

    fn take_text(&mut self, byte: u8, host: &HostRewrite, out: &mut Vec<u8>) -> Result<(), HttpFault> {
        match self.place {
            Place::Before if byte == 0x16 => return Err(HttpFault::Tls),
            Place::Before | Place::Method if is_token(byte) && self.held.len() < LONGEST_METHOD => {
                self.place = Place::Method;
                self.held.push(byte);
            }
            Place::Method if byte == b' ' => {
                if self.held == b"CONNECT" {
                    return Err(HttpFault::Connect);
                }
                self.held.push(byte);
                self.go_on(Place::Target, out);
            }
            Place::Before | Place::Method => return Err(HttpFault::NotHttp),
            Place::Target | Place::Scheme | Place::Authority | Place::Path | Place::Version
                if byte < b' ' || byte == 0x7f =>
            {
                return Err(HttpFault::NotHttp);
            }
            Place::Target if byte == b' ' => return Err(HttpFault::NotHttp),
            Place::Target => {
                self.held.push(byte);
                self.place = Place::Scheme;
                self.settle_scheme(host, out);
            }
            Place::Scheme | Place::Path if byte == b' ' => {
                self.held.push(byte);
                self.go_on(Place::Version, out);
            }
            Place::Scheme => {
                self.held.push(byte);
                self.settle_scheme(host, out);
            }
            Place::Authority => match byte {
                b' ' => self.place = put(byte, Place::Version, out),
                b'/' | b'?' | b'#' => self.place = put(byte, Place::Path, out),
                _ => {}
            },
            Place::Version if self.held.len() >= VERSION_LEN => return Err(HttpFault::NotHttp),
            Place::Version => self.held.push(byte),
            Place::Name if self.held.is_empty() && matches!(byte, b' ' | b'\t') => {
                return Err(HttpFault::Folded);
            }
            Place::Name | Place::OtherName if byte == b':' => self.end_name(host, out)?,
            Place::Name | Place::OtherName if !is_token(byte) => return Err(HttpFault::Field),
            Place::Name => {
                self.held.push(byte);
                if self.held.len() > LONGEST_NAME {
                    self.go_on(Place::OtherName, out);
                }
            }
            Place::OtherName | Place::Path | Place::Value => out.push(byte),
            Place::Host | Place::Upgrade => {}
            Place::Held(_) if self.held.len() >= MAX_HELD => return Err(HttpFault::TooLong),
            Place::Held(_) => self.held.push(byte),
        }
        Ok(())
    }

    /// Lets go of what is held.
    fn go_on(&mut self, place: Place, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.place = place;
    }

    /// Whether what is held of a target is the beginning of one in absolute form.
    fn settle_scheme(&mut self, host: &HostRewrite, out: &mut Vec<u8>) {
        let end = self.held.iter().position(|byte| !is_scheme(*byte)).unwrap_or(self.held.len());
        let (scheme, rest) = self.held.split_at(end);
        let named = scheme.len() <= LONGEST_SCHEME && scheme.first().is_some_and(u8::is_ascii_alphabetic);
        if !named || !b"://".starts_with(rest) {
            self.go_on(Place::Path, out);
        } else if rest == b"://" {
            self.go_on(Place::Authority, out);
            out.extend(host.as_bytes());
        }
    }

    /// The colon behind a name came.
    fn end_name(&mut self, host: &HostRewrite, out: &mut Vec<u8>) -> Result<(), HttpFault> {
        if self.place == Place::Name && self.held.is_empty() {
            return Err(HttpFault::Field);
        }
        // Empty behind the beginning of another name.
        let known = Known::of(&self.held);
        self.held.push(b':');
        match known {
            Some(Known::Host) if self.has_host => return Err(HttpFault::HostTwice),
            Some(Known::Host) => {
                self.has_host = true;
                self.go_on(Place::Host, out);
                out.push(b' ');
                out.extend(host.as_bytes());
            }
            Some(Known::Upgrade) => {
                self.held.clear();
                self.place = Place::Upgrade;
            }
            Some(Known::Held(field)) => self.place = Place::Held(field),
            None => self.go_on(Place::Value, out),
        }
        Ok(())
    }

    fn end_line(
        &mut self,
        end: &[u8],
        host: &HostRewrite,
        out: &mut Vec<u8>,
    ) -> Result<Option<Body>, HttpFault> {
        match self.place {
            Place::Before => out.extend(end),
            Place::Method | Place::Target | Place::Scheme | Place::Authority | Place::Path => {
                return Err(HttpFault::NotHttp);
            }
            Place::Version => {
                let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] = *self.held.as_slice() else {
                    return Err(HttpFault::NotHttp);
                };
                if !minor.is_ascii_digit() {
                    return Err(HttpFault::NotHttp);
                }
                self.is_1_0 = minor == b'0';
                self.go_on(Place::Name, out);
                out.extend(end);
            }
            Place::Name if self.held.is_empty() => {
                let body = self.body()?;
                if self.is_1_0 && !self.has_host {
                    out.extend(b"Host: ");
                    out.extend(host.as_bytes());
                    out.extend(end);
                }
                out.extend(end);
                return Ok(Some(body));
            }
            Place::Name | Place::OtherName => return Err(HttpFault::Field),
            Place::Value | Place::Host => {
                self.place = Place::Name;
                out.extend(end);
            }
            Place::Upgrade => self.place = Place::Name,
            Place::Held(field) => self.end_held(field, end, out)?,
        }
        Ok(None)
    }

    /// A line that was held is whole.
    fn end_held(&mut self, field: Field, end: &[u8], out: &mut Vec<u8>) -> Result<(), HttpFault> {
        let mut parts = self.held.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let value = trim(value);
        match field {
            Field::Length => {
                let length = decimal(value).ok_or(HttpFault::Length)?;
                if self.length.replace(length).is_some() {
                    return Err(HttpFault::LengthTwice);
                }
            }
            Field::Encoding => {
                let is_known = value.eq_ignore_ascii_case(b"chunked") && !self.is_1_0;
                if !is_known || std::mem::replace(&mut self.is_chunked, true) {
                    return Err(HttpFault::Encoding);
                }
            }
            Field::Connection => {
                let tokens: Vec<&[u8]> = value.split(|byte| *byte == b',').map(trim).collect();
                let is_kept = |token: &&[u8]| !token.eq_ignore_ascii_case(b"upgrade");
                let kept: Vec<&[u8]> = tokens.iter().copied().filter(is_kept).collect();
                if kept.len() < tokens.len() {
                    let line =
                        (!kept.is_empty()).then(|| [name, b": ", &kept.join(&b", "[..]), end].concat());
                    out.extend(line.unwrap_or_default());
                    self.held.clear();
                    self.place = Place::Name;
                    return Ok(());
                }
            }
        }
        self.go_on(Place::Name, out);
        out.extend(end);
        Ok(())
    }

    fn body(&self) -> Result<Body, HttpFault> {
        match (self.length, self.is_chunked) {
            (Some(_), true) => Err(HttpFault::LengthAndEncoding),
            (Some(length), false) => Ok(Body::Length(length)),
            (None, true) => Ok(Body::Chunked),
            (None, false) => Ok(Body::None),
        }
    }
}

/// A field that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Host,
    Upgrade,
    Held(Field),
}

const KNOWN: [(&[u8], Known); 5] = [
    (b"host", Known::Host),
    (b"upgrade", Known::Upgrade),
    (b"connection", Known::Held(Field::Connection)),
    (b"content-length", Known::Held(Field::Length)),
    (b"transfer-encoding", Known::Held(Field::Encoding)),
];

/// Of the names in [`KNOWN`].
const LONGEST_NAME: usize = b"transfer-encoding".len();

impl Known {
    fn of(name: &[u8]) -> Option<Known> {
        KNOWN.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, known)| *known)
    }
}

fn put(byte: u8, place: Place, out: &mut Vec<u8>) -> Place {
    out.push(byte);
    place
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_scheme(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)
}

fn trim(value: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    value.get(start..end).unwrap_or_default()
}

/// Digits and nothing else: no sign, which `parse` would take.
fn decimal(value: &[u8]) -> Option<u64> {
    let digits =
        std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}
