//! What the client says (wire reference 6.3).

use nom::Parser;
use nom::combinator::rest;
use nom::number::complete::le_u32;

use super::answer::{self, NameAnswer};
use super::service::{InfoBody, ServiceAdd, info_body, service_add};
use super::{
    Layout, QueryId, ServiceId, SocketId, domain, name_len, put_name, query_id, service_id, socket_id,
};
use crate::error::ParseError;
use crate::parse::{U16, U32, put_u32, whole};

/// Message from the client (the services' side).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// 101 SERVICE_ADD: announces a service.
    ServiceAdd(ServiceAdd<'a>),
    /// 102 SERVICE_REMOVE: withdraws it. No historical server survives this.
    ServiceRemove {
        /// The service.
        service: ServiceId,
    },
    /// 103 SOCKET_OPEN_ACK: the service accepted.
    SocketOpenAck {
        /// The socket.
        socket: SocketId,
        /// How many SOCKET_DATA the server may send.
        tokens: u32,
    },
    /// 104 SOCKET_OPEN_NACK: the service did not; the number is free again.
    SocketOpenNack {
        /// The socket.
        socket: SocketId,
    },
    /// 105 SOCKET_FIN: the service sends no more.
    SocketFin {
        /// The socket.
        socket: SocketId,
    },
    /// 106 SOCKET_CLOSED: the service's connection is gone; to be answered by SOCKET_CLOSED_ACK.
    SocketClosed {
        /// The socket.
        socket: SocketId,
    },
    /// 107 SOCKET_CLOSED_ACK: answers SOCKET_CLOSE; the number is free again.
    SocketClosedAck {
        /// The socket.
        socket: SocketId,
    },
    /// 108 SOCKET_DATA.
    SocketData {
        /// The socket.
        socket: SocketId,
        /// What the service sent. Empty is legal.
        payload: &'a [u8],
    },
    /// 109 SOCKET_TOKEN: more credit for the server.
    SocketToken {
        /// The socket.
        socket: SocketId,
        /// How many SOCKET_DATA more the server may send.
        tokens: u32,
    },
    /// 110 SOCKET_RESET, an extension: the service aborted, where SOCKET_CLOSED after the guest's FIN would look like a
    /// clean end. Only between peers that both have the tunnel capability for it.
    SocketReset {
        /// The socket.
        socket: SocketId,
    },
    /// 111 PROBE, an extension: is the server there? Only between peers that both have the tunnel capability for it.
    Probe {
        /// A number for the answer.
        id: u32,
    },
    /// 112 SERVICE_INFO, an extension: what a service says of itself. Of one that is not announced yet the SERVICE_ADD comes
    /// next; of one that is, this replaces what was said before. Only between peers that both have the tunnel capability
    /// for it.
    ServiceInfo {
        /// The service.
        service: ServiceId,
        /// What it says.
        info: InfoBody<'a>,
    },
    /// 113 NAME_ANSWER, an extension: answers NAME_QUERY.
    NameAnswer {
        /// The question's.
        query: QueryId,
        /// Where it is.
        answer: NameAnswer,
    },
    /// 114 DOMAIN_ADD, an extension: names of this domain may be asked for. Only between peers that both have the tunnel
    /// capability for it.
    DomainAdd {
        /// A [`HostName`](crate::service_info::HostName) that
        /// [may be a domain](crate::service_info::HostName::check_domain).
        name: &'a str,
    },
    /// 115 DOMAIN_REMOVE, an extension: no longer.
    DomainRemove {
        /// The domain's name.
        name: &'a str,
    },
}

impl<'a> ClientMessage<'a> {
    /// Parses the body of a message from the client. `None`: the tunnel channel has no message of that number.
    ///
    /// # Errors
    ///
    /// A body that is not exactly as 6.3 and 6.4 have it, the type's width being `layout`'s. Of the numbers in it, only
    /// types and the port are judged; of the extensions, every text as well.
    pub fn parse(layout: Layout, kind: u16, body: &'a [u8]) -> Result<Option<Self>, ParseError> {
        let Some(name) = Self::name_of(kind) else { return Ok(None) };
        whole(name, body, |input| match kind {
            SERVICE_ADD => service_add(layout, input).map(|(rest, add)| (rest, Self::ServiceAdd(add))),
            SERVICE_REMOVE => service_id.map(|service| Self::ServiceRemove { service }).parse(input),
            SOCKET_OPEN_ACK => (socket_id, le_u32)
                .map(|(socket, tokens)| Self::SocketOpenAck { socket, tokens })
                .parse(input),
            SOCKET_OPEN_NACK => socket_id.map(|socket| Self::SocketOpenNack { socket }).parse(input),
            CLIENT_FIN => socket_id.map(|socket| Self::SocketFin { socket }).parse(input),
            SOCKET_CLOSED => socket_id.map(|socket| Self::SocketClosed { socket }).parse(input),
            CLIENT_CLOSED_ACK => socket_id.map(|socket| Self::SocketClosedAck { socket }).parse(input),
            CLIENT_DATA => {
                (socket_id, rest).map(|(socket, payload)| Self::SocketData { socket, payload }).parse(input)
            }
            CLIENT_TOKEN => {
                (socket_id, le_u32).map(|(socket, tokens)| Self::SocketToken { socket, tokens }).parse(input)
            }
            SOCKET_RESET => socket_id.map(|socket| Self::SocketReset { socket }).parse(input),
            PROBE => le_u32.map(|id| Self::Probe { id }).parse(input),
            SERVICE_INFO => (service_id, info_body)
                .map(|(service, info)| Self::ServiceInfo { service, info })
                .parse(input),
            NAME_ANSWER => (query_id, answer::answer)
                .map(|(query, answer)| Self::NameAnswer { query, answer })
                .parse(input),
            DOMAIN_ADD => domain.map(|name| Self::DomainAdd { name }).parse(input),
            // DOMAIN_REMOVE, the last number that has a name.
            _ => domain.map(|name| Self::DomainRemove { name }).parse(input),
        })
        .map(Some)
    }

    /// The message's number.
    pub fn kind(&self) -> u16 {
        match self {
            Self::ServiceAdd(_) => SERVICE_ADD,
            Self::ServiceRemove { .. } => SERVICE_REMOVE,
            Self::SocketOpenAck { .. } => SOCKET_OPEN_ACK,
            Self::SocketOpenNack { .. } => SOCKET_OPEN_NACK,
            Self::SocketFin { .. } => CLIENT_FIN,
            Self::SocketClosed { .. } => SOCKET_CLOSED,
            Self::SocketClosedAck { .. } => CLIENT_CLOSED_ACK,
            Self::SocketData { .. } => CLIENT_DATA,
            Self::SocketToken { .. } => CLIENT_TOKEN,
            Self::SocketReset { .. } => SOCKET_RESET,
            Self::Probe { .. } => PROBE,
            Self::ServiceInfo { .. } => SERVICE_INFO,
            Self::NameAnswer { .. } => NAME_ANSWER,
            Self::DomainAdd { .. } => DOMAIN_ADD,
            Self::DomainRemove { .. } => DOMAIN_REMOVE,
        }
    }

    /// How many bytes [`write_body`](Self::write_body) appends.
    pub fn body_len(&self, layout: Layout) -> usize {
        match self {
            Self::ServiceAdd(add) => add.len(layout),
            Self::ServiceRemove { .. } | Self::Probe { .. } => U32,
            Self::SocketOpenAck { .. } | Self::SocketToken { .. } => U16 + U32,
            Self::SocketData { payload, .. } => U16.saturating_add(payload.len()),
            Self::ServiceInfo { info, .. } => U32 + info.as_bytes().len(),
            Self::NameAnswer { .. } => U32 + answer::LEN,
            Self::DomainAdd { name } | Self::DomainRemove { name } => name_len(name),
            Self::SocketOpenNack { .. }
            | Self::SocketFin { .. }
            | Self::SocketClosed { .. }
            | Self::SocketClosedAck { .. }
            | Self::SocketReset { .. } => U16,
        }
    }

    /// Appends the body; the header is [`put_header`](crate::frame::put_header)'s. Name and description of a service
    /// end at their first NUL or after [`MAX_TEXT`](super::MAX_TEXT) bytes.
    pub fn write_body(&self, layout: Layout, out: &mut Vec<u8>) {
        match *self {
            Self::ServiceAdd(ref add) => add.write(layout, out),
            Self::ServiceRemove { service } => put_u32(out, service.0),
            Self::Probe { id } => put_u32(out, id),
            Self::ServiceInfo { service, info } => {
                put_u32(out, service.0);
                out.extend_from_slice(info.as_bytes());
            }
            Self::NameAnswer { query, answer } => {
                put_u32(out, query.0);
                answer.write(out);
            }
            Self::DomainAdd { name } | Self::DomainRemove { name } => put_name(out, name),
            Self::SocketOpenAck { socket, tokens } | Self::SocketToken { socket, tokens } => {
                socket.write(out);
                put_u32(out, tokens);
            }
            Self::SocketData { socket, payload } => {
                socket.write(out);
                out.extend_from_slice(payload);
            }
            Self::SocketOpenNack { socket }
            | Self::SocketFin { socket }
            | Self::SocketClosed { socket }
            | Self::SocketClosedAck { socket }
            | Self::SocketReset { socket } => socket.write(out),
        }
    }

    /// `spice.proto`'s name of the message, in lower case; ours have names of the same kind, from
    /// `socket_reset` on.
    pub fn name(&self) -> &'static str {
        Self::name_of(self.kind()).unwrap_or_default()
    }

    /// The name of the message with this number.
    pub fn name_of(kind: u16) -> Option<&'static str> {
        Some(match kind {
            SERVICE_ADD => "service_add",
            SERVICE_REMOVE => "service_remove",
            SOCKET_OPEN_ACK => "socket_open_ack",
            SOCKET_OPEN_NACK => "socket_open_nack",
            CLIENT_FIN => "socket_fin",
            SOCKET_CLOSED => "socket_closed",
            CLIENT_CLOSED_ACK => "socket_closed_ack",
            CLIENT_DATA => "socket_data",
            CLIENT_TOKEN => "socket_token",
            SOCKET_RESET => "socket_reset",
            PROBE => "probe",
            SERVICE_INFO => "service_info",
            NAME_ANSWER => "name_answer",
            DOMAIN_ADD => "domain_add",
            DOMAIN_REMOVE => "domain_remove",
            _ => return None,
        })
    }
}

/// Numbers of the client's messages.
const SERVICE_ADD: u16 = 101;
const SERVICE_REMOVE: u16 = 102;
const SOCKET_OPEN_ACK: u16 = 103;
const SOCKET_OPEN_NACK: u16 = 104;
const CLIENT_FIN: u16 = 105;
const SOCKET_CLOSED: u16 = 106;
const CLIENT_CLOSED_ACK: u16 = 107;
const CLIENT_DATA: u16 = 108;
const CLIENT_TOKEN: u16 = 109;
const SOCKET_RESET: u16 = 110;
const PROBE: u16 = 111;
const SERVICE_INFO: u16 = 112;
const NAME_ANSWER: u16 = 113;
const DOMAIN_ADD: u16 = 114;
const DOMAIN_REMOVE: u16 = 115;
