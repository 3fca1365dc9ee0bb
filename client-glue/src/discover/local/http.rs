//! One bounded HTTP request to a server on this machine.

use std::{io, net::SocketAddr, time::Duration};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longest answer that is read, head and body.
const MAX_ANSWER: u64 = 2 * 1024 * 1024;
/// Longest head of an answer.
const MAX_HEAD: usize = 16 * 1024;
/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What came instead of an answer.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// Nobody listens there.
    #[error("nobody listens on {0}")]
    Nobody(SocketAddr),
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("no answer within 5 s")]
    Deadline,
    /// Not HTTP, or not 200, or too long.
    #[error("expected an HTTP answer with status 200, got {0}")]
    Answer(String),
}

/// Posts `body`, and gives the body of the answer.
///
/// Cancel safe: the connection is closed.
pub(super) async fn post(address: SocketAddr, content_type: &str, body: &[u8]) -> Result<Vec<u8>, HttpError> {
    timeout(DEADLINE, exchange(address, content_type, body)).await.unwrap_or(Err(HttpError::Deadline))
}

async fn exchange(address: SocketAddr, content_type: &str, body: &[u8]) -> Result<Vec<u8>, HttpError> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            HttpError::Nobody(address)
        } else {
            error.into()
        }
    })?;
    // Of version 1.0, so that the answer ends where the connection does.
    let head = format!(
        "POST / HTTP/1.0\r\nHost: localhost:{}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        address.port(),
        body.len(),
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<Vec<u8>, HttpError> {
    let wrong = |what: &str| HttpError::Answer(what.to_owned());
    let end = answer
        .windows(4)
        .take(MAX_HEAD)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| wrong("no head"))?;
    let (head, body) = answer.split_at_checked(end + 4).ok_or_else(|| wrong("no head"))?;
    let head = std::str::from_utf8(head).map_err(|_| wrong("a head that is no text"))?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    let mut words = status.split(' ');
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) || words.next() != Some("200") {
        return Err(HttpError::Answer(status.chars().take(80).collect()));
    }
    let field = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    };
    if field("transfer-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(wrong("a transfer encoding in an answer to HTTP/1.0"));
    }
    match field("content-length").map(str::parse::<usize>) {
        Some(Ok(length)) => {
            body.get(..length).map(<[u8]>::to_vec).ok_or_else(|| wrong("less than its length"))
        }
        Some(Err(_)) => Err(wrong("a length that is no number")),
        None => Ok(body.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_or_refused() {
        let body = |answer: &str| parse(answer.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(body("HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody").unwrap(), b"body");
        assert_eq!(body("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nbody").unwrap(), b"bo");
        for (bad, why) in [
            ("", "no head"),
            ("HTTP/1.1 200 OK\r\n", "no head"),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", "403 Forbidden"),
            ("SSH-2.0\r\n\r\n", "SSH-2.0"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbody", "less than"),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nbody", "no number"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "transfer encoding"),
        ] {
            let error = body(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
