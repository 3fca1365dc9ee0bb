//! Messages of the tunnel channel (wire reference 6.1 to 6.4).
//!
//! The server, beside the guest, opens sockets; the client dials. Both name a socket by the number the server chose.
//! The numbers of the messages differ by direction.
//!
//! | question | module |
//! | --- | --- |
//! | what does the server say | `server` |
//! | what does the client say | `client` |
//! | how does it announce a service | `service` |
//! | how does it answer a question for a name | `answer` |

use std::net::Ipv4Addr;

use nom::Parser;
use nom::multi::length_data;
use nom::number::complete::{le_u8, le_u16, le_u32};

use crate::error::Problem;
use crate::parse::{Fault, Parsed, U8, U16, U32, put_u16};
use crate::service_info::{HostName, InfoError, InfoProblem, MAX_HOST, MAX_INFO};

pub use answer::NameAnswer;
pub use client::ClientMessage;
pub use server::ServerMessage;
pub use service::{InfoBody, ServiceAdd, ServiceKind};

mod answer;
mod client;
mod server;
mod service;

/// Which of the two consistent layouts of history the peer speaks (wire reference 6.1). They differ in one field only,
/// the type in SERVICE_ADD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Until June 2010, with its own link version: the type is 4 bytes.
    A,
    /// As `spice.proto` has it, and as everything since means it: the type is 2 bytes.
    B,
}

/// Number of a socket, chosen by the server, less than INIT's `max_sockets`. `connection_id` in `spice.proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u16);

/// Number of a service, chosen by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// Number of a group of services, chosen by the client. Services of one group share a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// Number of a question for a name, chosen by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u32);

/// `TunnelIpInfo` of `spice.proto`. Type numbers other than these two are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpInfo {
    /// Type 0: no address.
    Invalid,
    /// Type 1, and the address in network order.
    V4(Ipv4Addr),
}

/// Longest name and longest description of a service that is taken in or sent, bytes without the NUL. Our limit; the wire
/// has none.
pub const MAX_TEXT: usize = 1024;

/// Longest body that a client's message other than SOCKET_DATA can have.
pub const MAX_CLIENT_CONTROL: u32 = 4 + 8192;

/// Longest body that a server's message other than SOCKET_DATA can have.
pub const MAX_SERVER_CONTROL: u32 = 4 + 1 + 253;

// SERVICE_INFO and NAME_QUERY at their longest.
const _: () = assert!(MAX_CLIENT_CONTROL as usize == U32 + MAX_INFO);
const _: () = assert!(MAX_SERVER_CONTROL as usize == U32 + U8 + MAX_HOST);

/// How many questions for names may be unanswered at a time.
pub const MAX_QUERIES: usize = 64;

/// How many domains there may be at a time.
pub const MAX_DOMAINS: usize = 32;

impl IpInfo {
    fn len(self) -> usize {
        match self {
            IpInfo::Invalid => U16,
            IpInfo::V4(_) => U16 + U32,
        }
    }

    fn write(self, out: &mut Vec<u8>) {
        match self {
            IpInfo::Invalid => put_u16(out, IP_INVALID),
            IpInfo::V4(address) => {
                put_u16(out, IP_V4);
                out.extend_from_slice(&address.octets());
            }
        }
    }
}

impl SocketId {
    fn write(self, out: &mut Vec<u8>) {
        put_u16(out, self.0);
    }
}

impl Layout {
    fn kind_len(self) -> usize {
        match self {
            Layout::A => U32,
            Layout::B => U16,
        }
    }
}

fn ip_info(input: &[u8]) -> Parsed<'_, IpInfo> {
    let (input, kind) = le_u16(input)?;
    match kind {
        IP_INVALID => Ok((input, IpInfo::Invalid)),
        IP_V4 => nom::number::complete::be_u32.map(|bits| IpInfo::V4(Ipv4Addr::from_bits(bits))).parse(input),
        other => Err(Fault::value("address type", other, "0 (invalid) or 1 (IPv4)")),
    }
}

fn socket_id(input: &[u8]) -> Parsed<'_, SocketId> {
    le_u16.map(SocketId).parse(input)
}

fn service_id(input: &[u8]) -> Parsed<'_, ServiceId> {
    le_u32.map(ServiceId).parse(input)
}

fn query_id(input: &[u8]) -> Parsed<'_, QueryId> {
    le_u32.map(QueryId).parse(input)
}

/// A [`HostName`] behind its length.
fn host_name(input: &[u8]) -> Parsed<'_, &str> {
    let (input, bytes) = length_data(le_u8).parse(input)?;
    let what = "the host name";
    let name = std::str::from_utf8(bytes)
        .map_err(|_| fault(InfoError { what, problem: InfoProblem::NotText }))
        .and_then(|name| HostName::new(name).map(|_| name).map_err(fault))?;
    Ok((input, name))
}

/// A [`HostName`] as a question has it.
fn lower_case(input: &[u8]) -> Parsed<'_, &str> {
    let (input, name) = host_name(input)?;
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let problem = InfoProblem::Form("host.domain in lower case");
        return Err(fault(InfoError { what: "the host name", problem }));
    }
    Ok((input, name))
}

/// A [`HostName`] that [may be a domain](HostName::check_domain).
fn domain(input: &[u8]) -> Parsed<'_, &str> {
    let (rest, name) = host_name(input)?;
    HostName::new(name).and_then(|name| name.check_domain()).map_err(fault)?;
    Ok((rest, name))
}

fn fault<'a>(error: InfoError) -> nom::Err<Fault<'a>> {
    Fault::fatal(Problem::Info(error))
}

fn name_len(name: &str) -> usize {
    U8 + name.len().min(MAX_HOST)
}

/// Appends a name behind its length. Longer than [`MAX_HOST`], which no [`HostName`] is, it is cut.
fn put_name(out: &mut Vec<u8>, name: &str) {
    let bytes = name.as_bytes().get(..MAX_HOST).unwrap_or(name.as_bytes());
    out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(bytes);
}

const IP_INVALID: u16 = 0;
const IP_V4: u16 = 1;

#[cfg(test)]
mod tests;
