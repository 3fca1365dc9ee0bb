//! What the server says (wire reference 6.2).

use nom::Parser;
use nom::combinator::rest;
use nom::number::complete::{le_u16, le_u32};

use super::{
    IpInfo, QueryId, ServiceId, SocketId, ip_info, lower_case, name_len, put_name, query_id, service_id,
    socket_id,
};
use crate::error::ParseError;
use crate::parse::{U16, U32, put_u16, put_u32, whole};

/// Message from the server (the guest's side).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerMessage<'a> {
    /// 101 INIT, the first message: the size of everything.
    Init {
        /// Socket numbers are less than this.
        max_sockets: u16,
        /// Longest payload of a SOCKET_DATA, bytes.
        max_data: u32,
    },
    /// 102 SERVICE_IP_MAP: where the guest finds a service.
    ServiceIpMap {
        /// The service.
        service: ServiceId,
        /// Its address in the guest's virtual network.
        address: IpInfo,
    },
    /// 103 SOCKET_OPEN: the guest connects to a service.
    SocketOpen {
        /// A number that is free.
        socket: SocketId,
        /// The service.
        service: ServiceId,
        /// How many SOCKET_DATA the client may send.
        tokens: u32,
    },
    /// 104 SOCKET_FIN: the guest sends no more.
    SocketFin {
        /// The socket.
        socket: SocketId,
    },
    /// 105 SOCKET_CLOSE: the guest's connection is gone; to be answered by SOCKET_CLOSED_ACK.
    SocketClose {
        /// The socket.
        socket: SocketId,
    },
    /// 106 SOCKET_DATA.
    SocketData {
        /// The socket.
        socket: SocketId,
        /// What the guest sent. Empty is legal.
        payload: &'a [u8],
    },
    /// 107 SOCKET_CLOSED_ACK: answers SOCKET_CLOSED; the number is free again.
    SocketClosedAck {
        /// The socket.
        socket: SocketId,
    },
    /// 108 SOCKET_TOKEN: more credit for the client.
    SocketToken {
        /// The socket.
        socket: SocketId,
        /// How many SOCKET_DATA more the client may send.
        tokens: u32,
    },
    /// 109 PROBE_ACK, an extension: answers PROBE, and all that came before it.
    ProbeAck {
        /// The probe's.
        id: u32,
    },
    /// 110 NAME_QUERY, an extension: the guest asks where a name of one of the client's domains is; to be answered by one
    /// NAME_ANSWER. Only between peers that both have the tunnel capability for it.
    NameQuery {
        /// A number that is not on its way.
        query: QueryId,
        /// A [`HostName`](crate::service_info::HostName), in lower case.
        name: &'a str,
    },
}

impl<'a> ServerMessage<'a> {
    /// Parses the body of a message from the server. `None`: the tunnel channel has no message of that number.
    ///
    /// # Errors
    ///
    /// A body that is not exactly as 6.2 has it. The numbers in it are not judged; a name is.
    pub fn parse(kind: u16, body: &'a [u8]) -> Result<Option<Self>, ParseError> {
        let Some(name) = Self::name_of(kind) else { return Ok(None) };
        whole(name, body, |input| match kind {
            INIT => (le_u16, le_u32)
                .map(|(max_sockets, max_data)| Self::Init { max_sockets, max_data })
                .parse(input),
            SERVICE_IP_MAP => (service_id, ip_info)
                .map(|(service, address)| Self::ServiceIpMap { service, address })
                .parse(input),
            SOCKET_OPEN => (socket_id, service_id, le_u32)
                .map(|(socket, service, tokens)| Self::SocketOpen { socket, service, tokens })
                .parse(input),
            SERVER_FIN => socket_id.map(|socket| Self::SocketFin { socket }).parse(input),
            SOCKET_CLOSE => socket_id.map(|socket| Self::SocketClose { socket }).parse(input),
            SERVER_DATA => {
                (socket_id, rest).map(|(socket, payload)| Self::SocketData { socket, payload }).parse(input)
            }
            SERVER_CLOSED_ACK => socket_id.map(|socket| Self::SocketClosedAck { socket }).parse(input),
            SERVER_TOKEN => {
                (socket_id, le_u32).map(|(socket, tokens)| Self::SocketToken { socket, tokens }).parse(input)
            }
            PROBE_ACK => le_u32.map(|id| Self::ProbeAck { id }).parse(input),
            // NAME_QUERY, the last number that has a name.
            _ => (query_id, lower_case).map(|(query, name)| Self::NameQuery { query, name }).parse(input),
        })
        .map(Some)
    }

    /// The message's number.
    pub fn kind(&self) -> u16 {
        match self {
            Self::Init { .. } => INIT,
            Self::ServiceIpMap { .. } => SERVICE_IP_MAP,
            Self::SocketOpen { .. } => SOCKET_OPEN,
            Self::SocketFin { .. } => SERVER_FIN,
            Self::SocketClose { .. } => SOCKET_CLOSE,
            Self::SocketData { .. } => SERVER_DATA,
            Self::SocketClosedAck { .. } => SERVER_CLOSED_ACK,
            Self::SocketToken { .. } => SERVER_TOKEN,
            Self::ProbeAck { .. } => PROBE_ACK,
            Self::NameQuery { .. } => NAME_QUERY,
        }
    }

    /// How many bytes [`write_body`](Self::write_body) appends.
    pub fn body_len(&self) -> usize {
        match self {
            Self::Init { .. } => U16 + U32,
            Self::ServiceIpMap { address, .. } => U32 + address.len(),
            Self::SocketOpen { .. } => U16 + U32 + U32,
            Self::SocketData { payload, .. } => U16.saturating_add(payload.len()),
            Self::SocketToken { .. } => U16 + U32,
            Self::ProbeAck { .. } => U32,
            Self::NameQuery { name, .. } => U32 + name_len(name),
            Self::SocketFin { .. } | Self::SocketClose { .. } | Self::SocketClosedAck { .. } => U16,
        }
    }

    /// Appends the body; the header is [`put_header`](crate::frame::put_header)'s.
    pub fn write_body(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Init { max_sockets, max_data } => {
                put_u16(out, max_sockets);
                put_u32(out, max_data);
            }
            Self::ServiceIpMap { service, address } => {
                put_u32(out, service.0);
                address.write(out);
            }
            Self::SocketOpen { socket, service, tokens } => {
                socket.write(out);
                put_u32(out, service.0);
                put_u32(out, tokens);
            }
            Self::SocketFin { socket } | Self::SocketClose { socket } | Self::SocketClosedAck { socket } => {
                socket.write(out);
            }
            Self::SocketData { socket, payload } => {
                socket.write(out);
                out.extend_from_slice(payload);
            }
            Self::SocketToken { socket, tokens } => {
                socket.write(out);
                put_u32(out, tokens);
            }
            Self::ProbeAck { id } => put_u32(out, id),
            Self::NameQuery { query, name } => {
                put_u32(out, query.0);
                put_name(out, name);
            }
        }
    }

    /// `spice.proto`'s name of the message, in lower case; `probe_ack` and `name_query` for ours.
    pub fn name(&self) -> &'static str {
        Self::name_of(self.kind()).unwrap_or_default()
    }

    /// The name of the message with this number.
    pub fn name_of(kind: u16) -> Option<&'static str> {
        Some(match kind {
            INIT => "init",
            SERVICE_IP_MAP => "service_ip_map",
            SOCKET_OPEN => "socket_open",
            SERVER_FIN => "socket_fin",
            SOCKET_CLOSE => "socket_close",
            SERVER_DATA => "socket_data",
            SERVER_CLOSED_ACK => "socket_closed_ack",
            SERVER_TOKEN => "socket_token",
            PROBE_ACK => "probe_ack",
            NAME_QUERY => "name_query",
            _ => return None,
        })
    }
}

/// Numbers of the server's messages.
const INIT: u16 = 101;
const SERVICE_IP_MAP: u16 = 102;
const SOCKET_OPEN: u16 = 103;
const SERVER_FIN: u16 = 104;
const SOCKET_CLOSE: u16 = 105;
const SERVER_DATA: u16 = 106;
const SERVER_CLOSED_ACK: u16 = 107;
const SERVER_TOKEN: u16 = 108;
const PROBE_ACK: u16 = 109;
const NAME_QUERY: u16 = 110;
