//! Through an HTTP proxy, by CONNECT (RFC 9110, section 9.3.6).

use data_encoding::BASE64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::failure::ProxyFailure;
use super::{HttpProxy, authority};

/// As long as all that comes before the server's own bytes may be.
const LONGEST_HEAD: usize = 8 * 1024;

/// How every answer of HTTP begins.
const HTTP: &[u8] = b"HTTP/1.";

/// As much of a proxy's words as anybody would read.
const LONGEST_QUOTE: usize = 120;

/// Asks for a connection to `host`. Leaves what is the server's in the stream.
///
/// Has no deadline; not cancel safe: drop the stream.
pub(super) async fn connect(
    mut stream: TcpStream,
    proxy: &HttpProxy,
    host: &str,
    port: u16,
) -> Result<TcpStream, ProxyFailure> {
    stream.write_all(request(proxy, host, port)?.as_bytes()).await?;
    let mut head = Head::default();
    let mut buffer = [0; 1024];
    loop {
        // Only looked at, since what follows the head belongs to whoever gets the stream.
        let waiting = stream.peek(&mut buffer).await?;
        let progress = head.feed(buffer.get(..waiting).unwrap_or_default());
        let used = match &progress {
            Progress::More => waiting,
            Progress::Done { used, .. } => *used,
            Progress::Failed(_) => 0,
        };
        if let Some(used) = buffer.get_mut(..used) {
            stream.read_exact(used).await?;
        }
        match progress {
            Progress::Failed(failure) => return Err(failure),
            Progress::More if waiting == 0 => return Err(ProxyFailure::Closed),
            Progress::More => {}
            Progress::Done { status: 200..=299, .. } => return Ok(stream),
            // 407 by the book; tinyproxy says 401.
            Progress::Done { status: 401 | 407, .. } => {
                return Err(ProxyFailure::Authentication { given: proxy.user.is_some() });
            }
            Progress::Done { status, reason, .. } => return Err(ProxyFailure::Refused { status, reason }),
        }
    }
}

fn request(proxy: &HttpProxy, host: &str, port: u16) -> Result<String, ProxyFailure> {
    // Anything else could end the line and begin another one.
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_host) {
        return Err(ProxyFailure::Host(quote(host.as_bytes())));
    }
    let mut target = String::new();
    // A String takes everything.
    let _ = authority(&mut target, host, port);
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some((user, password)) = &proxy.user {
        let control = |text: &str| text.chars().any(char::is_control);
        if user.contains(':') || control(user) || control(password) {
            return Err(ProxyFailure::User);
        }
        let token = BASE64.encode(format!("{user}:{password}").as_bytes());
        request.push_str(&format!("Proxy-Authorization: Basic {token}\r\n"));
    }
    request.push_str("\r\n");
    Ok(request)
}

/// What comes before the server's own bytes, taken in piece by piece.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// The answer in hand. INVARIANT: with `before`, at most [`LONGEST_HEAD`].
    bytes: Vec<u8>,
    /// Of interim answers (1xx), which were skipped.
    before: usize,
}

/// How far a [`Head`] is.
#[derive(Debug)]
pub(super) enum Progress {
    /// All was taken, and more is needed.
    More,
    /// The head is whole.
    Done {
        /// HTTP's number.
        status: u16,
        /// Its words, fit to be shown.
        reason: String,
        /// So many of the bytes given belong to it.
        used: usize,
    },
    /// It is none.
    Failed(ProxyFailure),
}

impl Head {
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Progress {
        for (index, &byte) in bytes.iter().enumerate() {
            if self.before + self.bytes.len() >= LONGEST_HEAD {
                return Progress::Failed(ProxyFailure::TooLong { limit: LONGEST_HEAD });
            }
            self.bytes.push(byte);
            let begun = self.bytes.len().min(HTTP.len());
            if self.bytes.get(..begun) != HTTP.get(..begun) {
                let rest = bytes.get(index + 1..).unwrap_or_default();
                self.bytes.extend_from_slice(rest.get(..rest.len().min(LONGEST_QUOTE)).unwrap_or_default());
                return Progress::Failed(ProxyFailure::NotHttp { got: quote(&self.bytes) });
            }
            // Lines may end without a CR, as all who read HTTP allow.
            if !(self.bytes.ends_with(b"\n\r\n") || self.bytes.ends_with(b"\n\n")) {
                continue;
            }
            match status(&self.bytes) {
                None => return Progress::Failed(ProxyFailure::NotHttp { got: quote(&self.bytes) }),
                Some((100..=199, _)) => {
                    self.before += self.bytes.len();
                    self.bytes.clear();
                }
                Some((status, reason)) => return Progress::Done { status, reason, used: index + 1 },
            }
        }
        Progress::More
    }
}

/// The number and the words of `HTTP/1.1 200 OK`.
fn status(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let rest = line.strip_suffix(b"\r").unwrap_or(line).strip_prefix(HTTP)?;
    let (minor, rest) = rest.split_first()?;
    let rest = rest.strip_prefix(b" ")?;
    let (digits, rest) = rest.split_at_checked(3)?;
    let words = match rest {
        [] => rest,
        [b' ', words @ ..] => words,
        [..] => return None,
    };
    if !minor.is_ascii_digit() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let status: u16 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (100..=599).contains(&status).then(|| (status, quote(words)))
}

/// A peer's words, short and harmless.
fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().next().unwrap_or_default();
    let tame = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    line.chars().take(LONGEST_QUOTE).map(tame).collect()
}

#[cfg(test)]
mod tests;
