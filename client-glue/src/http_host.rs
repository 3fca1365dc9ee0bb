//! Requests under another name: for a service that answers only to names of its own.
//!
//! # Theory of operation
//!
//! The guest knows a shared CUPS or ipp-usb of this machine by the name that it was given for it, and says so in every
//! request: `Host: printer.local:631`. Such a service listens on loopback and takes nothing but `localhost` there, lest a
//! web page reach it by a name of its own (DNS rebinding): everything else is answered 400, and 405 when the name stands in
//! the request's target. So what the guest says passes through here, and in the head of each request
//!
//! * `Host` gets the service's own name for a value;
//! * a target in absolute form (`POST http://printer.local:631/ipp/print`) gets it for an authority, since that goes before `Host`;
//! * a request of HTTP/1.0 without `Host`, which is allowed one, gets it added, since such a service refuses the absence too. One of
//!   HTTP/1.1 does not: that is the guest's error, and the service is the one to say so;
//! * `Upgrade`, and `upgrade` in `Connection`, are left out. They concern the next hop alone (RFC 9110, section 7.6.1), and the next
//!   hop is this filter, which cannot change what is under TLS: CUPS would agree to TLS (RFC 2817) and then answer 400 to all that
//!   is said in it. This way it answers in clear, as it may, and a guest that insists on TLS says that there is none. Nor is there
//!   ever a 101 to wait for, behind which the bytes would be no requests any more.
//!
//! Nothing else is touched: no byte of a body, where an IPP request has its `printer-uri` with the guest's name for the host (CUPS takes
//! only the path from it), and no other byte of a head, whether its lines end in CR LF or LF.
//!
//! To find the next head the end of each body must be known, and must be where the service believes it to be. Whatever could be
//! read in two ways is therefore an error, and so is what is no HTTP/1. After an error the connection is over: where the next
//! request would begin is not known, and what was never rewritten would be refused. The service has then got no whole head
//! of it, so it has done nothing. No answer is made up for the guest, because those of requests before may still be
//! on their way and would have to come first.
//!
//! A head is not collected. Of each line only what decides is held, [`MAX_HELD`] bytes at most; the rest goes on at once, and
//! an error ends the head before its last line. So memory is bounded however long a head is, a head may be split
//! over any number of messages without a window's running dry, and a request's length stays the service's to judge.

mod chunked;
#[cfg(any(test, feature = "test-http-host"))]
mod exercise;
mod head;
#[cfg(test)]
mod tests;

use std::{fmt, io, str::FromStr, sync::Arc};

use thiserror::Error;

#[cfg(feature = "test-http-host")]
pub use self::exercise::exercise_bytes;

use self::{
    chunked::Chunked,
    head::{Body, Head},
};
use crate::share::Host;

/// Most bytes of a line that are held back. `Connection` lines and hosts in targets are rarely longer than 40.
pub(crate) const MAX_HELD: usize = 1024;

/// What a service wants to be called: `HOST` or `HOST:PORT`, as it stands in `Host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostRewrite(Arc<str>);

/// What the guest says to one service, with the host rewritten.
///
/// ```text
/// Head ──empty line──► Body of a length ──its last byte──► Head
///                 ├──► Body in chunks ──its trailers────► Head
///                 └──► Head                (no body)
/// ```
pub(crate) struct HttpHost {
    host: HostRewrite,
    at: At,
}

enum At {
    /// In a head, or before one.
    Head(Head),
    /// In a body, with so many bytes to come. INVARIANT: not 0.
    Body(u64),
    Chunked(Chunked),
}

/// Why a guest's request cannot be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum HttpFault {
    #[error("it begins with TLS, in which nothing can be rewritten")]
    Tls,
    #[error("it is no request of HTTP/1: expected METHOD TARGET HTTP/1.x")]
    NotHttp,
    #[error("CONNECT asks for something that is no request any more")]
    Connect,
    #[error("a line of its head is not NAME: VALUE")]
    Field,
    #[error("a line of its head is continued on the next")]
    Folded,
    #[error("a carriage return stands without its line feed")]
    BareReturn,
    #[error("a null byte stands in its head")]
    Null,
    #[error("it has more than one Host")]
    HostTwice,
    #[error("it has more than one Content-Length")]
    LengthTwice,
    #[error("its Content-Length is not a number of bytes")]
    Length,
    #[error("its Transfer-Encoding is not `chunked` alone, once, in HTTP/1.1")]
    Encoding,
    #[error("it has both a Content-Length and a Transfer-Encoding")]
    LengthAndEncoding,
    #[error("a line that has to be understood is longer than {MAX_HELD} bytes")]
    TooLong,
    #[error("its body is not in chunks as it says")]
    Chunk,
}

impl HostRewrite {
    /// `given` without a change, if it is `HOST` or `HOST:PORT`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn new(given: &str) -> Result<HostRewrite, &'static str> {
        // A colon within brackets belongs to an address.
        let (host, port) = match given.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            Some(_) | None => (given, None),
        };
        let is_port = |port: &str| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
        };
        if !port.is_none_or(is_port) {
            return Err("its port is not a number from 1 to 65535");
        }
        match Host::from_str(host) {
            Ok(Host::Address(address)) if address.is_ipv6() && !host.starts_with('[') => {
                Err("an IPv6 address stands in brackets")
            }
            Ok(_) => Ok(HostRewrite(given.into())),
            Err(_) => Err("it is not HOST or HOST:PORT"),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for HostRewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HttpHost {
    pub(crate) fn new(host: HostRewrite) -> HttpHost {
        HttpHost { host, at: At::Head(Head::default()) }
    }

    /// Takes some of `input`, and at least one byte if there is one. Gives how much that was, and what the service is to get
    /// for it: a part of `input` itself, or what was put into `scratch`.
    ///
    /// # Errors
    ///
    /// No more may be passed on.
    pub(crate) fn next<'a>(
        &mut self,
        input: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<(usize, &'a [u8]), HttpFault> {
        match &mut self.at {
            At::Head(head) => {
                scratch.clear();
                let mut taken = 0;
                for byte in input {
                    taken += 1;
                    if let Some(body) = head.take(*byte, &self.host, scratch)? {
                        self.at = At::from(body);
                        break;
                    }
                }
                Ok((taken, scratch))
            }
            At::Body(left) => {
                let there = u64::try_from(input.len()).unwrap_or(u64::MAX).min(*left);
                // Not more than `input.len()`, which is a usize.
                let taken = usize::try_from(there).unwrap_or(input.len());
                *left -= there;
                if *left == 0 {
                    self.at = At::Head(Head::default());
                }
                Ok((taken, input.get(..taken).unwrap_or_default()))
            }
            At::Chunked(chunked) => {
                let (taken, ended) = chunked.take(input)?;
                if ended {
                    self.at = At::Head(Head::default());
                }
                Ok((taken, input.get(..taken).unwrap_or_default()))
            }
        }
    }

    /// The guest has ended in the middle of whatever it is: gives what is held, as it came.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        match &mut self.at {
            At::Head(head) => head.finish(),
            At::Body(_) | At::Chunked(_) => Vec::new(),
        }
    }
}

impl From<Body> for At {
    fn from(body: Body) -> At {
        match body {
            Body::None | Body::Length(0) => At::Head(Head::default()),
            Body::Length(length) => At::Body(length),
            Body::Chunked => At::Chunked(Chunked::default()),
        }
    }
}

impl From<HttpFault> for io::Error {
    fn from(fault: HttpFault) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, fault)
    }
}
