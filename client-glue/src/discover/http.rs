//! One request of HTTP/1.1, to an address that was chosen before, and an answer of bounded size within bounded time.
//!
//! Devices are asked for descriptions by it: UPnP's, WS-Discovery's, IPP's. What they answer is theirs: nothing is followed
//! (no redirect, no other host), nothing is unpacked, no connection is kept. [`Reader`] is the part without a socket.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Most bytes of an answer's head, interim answers (1xx) included.
const LONGEST_HEAD: usize = 16 * 1024;
/// Most header lines.
const MOST_HEADERS: usize = 64;
/// Most bytes before a chunk's data: its size and what may follow that.
const LONGEST_CHUNK_LINE: usize = 256;
/// Read at once.
const PIECE: usize = 8 * 1024;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// What stands in `Host`, `printer.local:631` or an address.
    pub(crate) host: &'a str,
    /// With its query: `/ipp/print`.
    pub(crate) path: &'a str,
    /// What is posted, and its media type; `None` gets.
    pub(crate) post: Option<(&'a str, &'a [u8])>,
}

/// How much is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most bytes of the answer's body.
    pub(crate) body: usize,
    /// For all of it, from connecting to the body's end.
    pub(crate) time: Duration,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    /// HTTP's number.
    pub(crate) status: u16,
    /// At most as long as the bounds say.
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The body of an answer that is one, 200 to 299.
    pub(crate) fn success(self) -> Result<Vec<u8>, HttpError> {
        if (200..=299).contains(&self.status) {
            return Ok(self.body);
        }
        Err(HttpError::Status(self.status))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The caller gave a host or path that cannot be one.
    #[error("the {0} to ask for has characters that none has")]
    Request(&'static str),
    /// Connecting, reading or writing failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Not within the time given.
    #[error("there was no whole answer within {0:?}")]
    Late(Duration),
    /// What came is not HTTP.
    #[error("the device's answer is not HTTP: {0}")]
    Malformed(&'static str),
    /// More than anybody would say.
    #[error("the {what} of the device's answer is longer than {limit} bytes")]
    TooLong {
        /// The head or the body.
        what: &'static str,
        /// Most bytes accepted.
        limit: usize,
    },
    /// Closed before the answer's end.
    #[error("the device closed the connection before its answer was whole")]
    Closed,
    /// It answered with something else than success.
    #[error("the device answered with status {0}, expected success")]
    Status(u16),
}

/// Asks whoever listens at `address`.
///
/// Cancel safe: dropping it closes the connection.
pub(crate) async fn fetch(
    address: SocketAddr,
    request: Request<'_>,
    bounds: Bounds,
) -> Result<Response, HttpError> {
    let all = async {
        let head = request.head()?;
        let stream = TcpStream::connect(address).await?;
        converse(stream, &head, request, bounds).await
    };
    tokio::time::timeout(bounds.time, all).await.map_err(|_| HttpError::Late(bounds.time))?
}

/// Asks over a stream that is there, such as CUPS's local socket. The time counts from here.
///
/// Cancel safe: dropping it closes the stream.
pub(crate) async fn exchange<S>(
    stream: S,
    request: Request<'_>,
    bounds: Bounds,
) -> Result<Response, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let all = async { converse(stream, &request.head()?, request, bounds).await };
    tokio::time::timeout(bounds.time, all).await.map_err(|_| HttpError::Late(bounds.time))?
}

async fn converse<S>(
    mut stream: S,
    head: &str,
    request: Request<'_>,
    bounds: Bounds,
) -> Result<Response, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ask = async {
        stream.write_all(head.as_bytes()).await?;
        if let Some((_, body)) = request.post {
            stream.write_all(body).await?;
        }
        stream.flush().await
    };
    // A device that refuses may answer and close without having read all. What it said counts more than that.
    let asked = ask.await;
    let mut reader = Reader::new(bounds.body);
    let mut piece = vec![0; PIECE];
    loop {
        let came = match stream.read(&mut piece).await {
            Ok(came) => came,
            Err(error) => return Err(asked.err().unwrap_or(error).into()),
        };
        if came == 0 {
            asked?;
            return reader.end();
        }
        if let Some(response) = reader.feed(piece.get(..came).unwrap_or_default())? {
            return Ok(response);
        }
    }
}

impl Request<'_> {
    fn head(&self) -> Result<String, HttpError> {
        // Anything else could end the line and begin another one.
        if self.host.is_empty() || !self.host.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HttpError::Request("host"));
        }
        if !self.path.starts_with('/') || !self.path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HttpError::Request("path"));
        }
        let common = format!("HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.host);
        Ok(match self.post {
            None => format!("GET {} {common}\r\n", self.path),
            Some((kind, body)) => {
                if !kind.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
                    return Err(HttpError::Request("media type"));
                }
                let length = body.len();
                format!("POST {} {common}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n", self.path)
            }
        })
    }
}

/// Takes an answer piece by piece.
#[derive(Debug)]
pub(crate) struct Reader {
    limit: usize,
    state: State,
    /// Taken and not used yet. INVARIANT: shorter than [`LONGEST_HEAD`] after [`feed`](Self::feed).
    pending: Vec<u8>,
    /// Bytes of interim answers.
    before: usize,
    status: u16,
    /// INVARIANT: at most `limit`.
    body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Up to the empty line.
    Head,
    /// So many bytes more, then it is over.
    Length(usize),
    /// Until the device closes.
    Close,
    /// Up to the end of a chunk's first line.
    ChunkLine,
    /// So many bytes of a chunk more.
    Chunk(usize),
    /// The line end behind a chunk's data.
    ChunkEnd,
}

impl Reader {
    /// `limit`: most bytes of the body.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: State::Head, pending: Vec::new(), before: 0, status: 0, body: Vec::new() }
    }

    /// `Some`: the answer is whole, and whatever follows is not of it.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Option<Response>, HttpError> {
        let seen = self.pending.len();
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        // Of the head, what was looked at before is not looked at again but for a line end that was cut.
        let mut fresh = seen.saturating_sub(3);
        loop {
            match self.state {
                State::Head => {
                    let Some(end) = end_of_head(rest, fresh) else {
                        if self.before + rest.len() >= LONGEST_HEAD {
                            return Err(HttpError::TooLong { what: "head", limit: LONGEST_HEAD });
                        }
                        break;
                    };
                    if self.before + end > LONGEST_HEAD {
                        return Err(HttpError::TooLong { what: "head", limit: LONGEST_HEAD });
                    }
                    let (head, more) = rest.split_at(end.min(rest.len()));
                    self.head(head)?;
                    (rest, fresh) = (more, 0);
                }
                State::Length(0) => return Ok(Some(self.whole())),
                State::Length(left) => {
                    let more = self.take(&mut rest, left)?;
                    self.state = State::Length(more);
                    if more > 0 {
                        break;
                    }
                }
                State::Close => {
                    self.take(&mut rest, usize::MAX)?;
                    break;
                }
                State::ChunkLine => {
                    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                        if rest.len() >= LONGEST_CHUNK_LINE {
                            return Err(HttpError::Malformed("a chunk's line is too long"));
                        }
                        break;
                    };
                    let (line, more) = rest.split_at(end);
                    rest = more.get(1..).unwrap_or_default();
                    match chunk_size(line)? {
                        // Trailers say nothing that is wanted, and the connection is not used again.
                        0 => return Ok(Some(self.whole())),
                        size => self.state = State::Chunk(size),
                    }
                }
                State::Chunk(left) => {
                    let more = self.take(&mut rest, left)?;
                    if more > 0 {
                        self.state = State::Chunk(more);
                        break;
                    }
                    self.state = State::ChunkEnd;
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', more @ ..] | [b'\n', more @ ..] => {
                        rest = more;
                        self.state = State::ChunkLine;
                    }
                    [] | [b'\r'] => break,
                    [..] => return Err(HttpError::Malformed("a chunk is longer than it said")),
                },
            }
        }
        self.pending = rest.to_vec();
        Ok(None)
    }

    /// The device has closed.
    pub(crate) fn end(mut self) -> Result<Response, HttpError> {
        match self.state {
            State::Close | State::Length(0) => Ok(self.whole()),
            State::Head | State::Length(_) | State::ChunkLine | State::Chunk(_) | State::ChunkEnd => {
                Err(HttpError::Closed)
            }
        }
    }

    fn whole(&mut self) -> Response {
        Response { status: self.status, body: std::mem::take(&mut self.body) }
    }

    /// Moves up to `most` bytes to the body; says how many of them have not come.
    fn take(&mut self, rest: &mut &[u8], most: usize) -> Result<usize, HttpError> {
        let (data, more) = rest.split_at(most.min(rest.len()));
        if data.len() > self.limit.saturating_sub(self.body.len()) {
            return Err(HttpError::TooLong { what: "body", limit: self.limit });
        }
        self.body.extend_from_slice(data);
        *rest = more;
        Ok(most - data.len())
    }

    fn head(&mut self, head: &[u8]) -> Result<(), HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let complete = parsed.parse(head).map_err(|error| HttpError::Malformed(fault(error)))?;
        let status = match (complete, parsed.code) {
            (httparse::Status::Complete(_), Some(status)) => status,
            _ => return Err(HttpError::Malformed("its head ends too early")),
        };
        self.status = status;
        self.state = match status {
            100..=199 => {
                self.before += head.len();
                State::Head
            }
            204 | 304 => State::Length(0),
            _ => self.framing(parsed.headers)?,
        };
        Ok(())
    }

    /// RFC 9112, section 6.3, for a client.
    fn framing(&self, headers: &[httparse::Header<'_>]) -> Result<State, HttpError> {
        let named = |name: &'static str| {
            headers
                .iter()
                .filter(move |header| header.name.eq_ignore_ascii_case(name))
                .map(|header| header.value.trim_ascii())
        };
        let mut codings = named("transfer-encoding");
        if let Some(coding) = codings.next() {
            if codings.next().is_some() || !coding.eq_ignore_ascii_case(b"chunked") {
                return Err(HttpError::Malformed("its transfer coding is not chunked"));
            }
            return Ok(State::ChunkLine);
        }
        let mut lengths = named("content-length");
        let Some(length) = lengths.next() else { return Ok(State::Close) };
        if lengths.any(|other| other != length) {
            return Err(HttpError::Malformed("it has two lengths"));
        }
        let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(length).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        match length {
            // Of a number too great for the type as well.
            None if digits => Err(HttpError::TooLong { what: "body", limit: self.limit }),
            None => Err(HttpError::Malformed("its length is no number")),
            Some(length) if length > self.limit => {
                Err(HttpError::TooLong { what: "body", limit: self.limit })
            }
            Some(length) => Ok(State::Length(length)),
        }
    }
}

/// Behind the first empty line, of which the end is at or behind `from`. Lines may end without a CR.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let mut begin = from;
    loop {
        let at = begin + bytes.get(begin..)?.iter().position(|byte| *byte == b'\n')?;
        let behind = bytes.get(at + 1..).unwrap_or_default();
        match behind {
            [b'\n', ..] => return Some(at + 2),
            [b'\r', b'\n', ..] => return Some(at + 3),
            [..] => begin = at + 1,
        }
    }
}

/// Hexadecimal, before any extension.
fn chunk_size(line: &[u8]) -> Result<usize, HttpError> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let wrong = HttpError::Malformed("a chunk's size is no number");
    // from_str_radix would take a sign.
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(wrong);
    }
    std::str::from_utf8(digits).ok().and_then(|text| usize::from_str_radix(text, 16).ok()).ok_or(wrong)
}

fn fault(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a header's name is none",
        httparse::Error::HeaderValue => "a header's value is none",
        httparse::Error::NewLine => "a line ends wrongly",
        httparse::Error::Status => "its status is none",
        httparse::Error::Token => "a token is none",
        httparse::Error::TooManyHeaders => "it has too many headers",
        httparse::Error::Version => "its version is not 1.0 or 1.1",
    }
}

#[cfg(test)]
mod tests;
