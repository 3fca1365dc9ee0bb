//! Messages of the tunnel channel (wire reference 6.1 to 6.4).
//!
//! The server, beside the guest, opens sockets; the client dials. Both name a socket by the number the server chose.
//! The numbers of the messages differ by direction.

use std::net::Ipv4Addr;

use nom::Parser;
use nom::combinator::rest;
use nom::number::complete::{le_u16, le_u32};

use crate::error::ParseError;
use crate::parse::{Fault, NUL, Parsed, U16, U32, all_behind, pointed_text, put_u16, put_u32, whole};

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

/// `TunnelIpInfo` of `spice.proto`. Type numbers other than these two are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpInfo {
    /// Type 0: no address.
    Invalid,
    /// Type 1, and the address in network order.
    V4(Ipv4Addr),
}

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
}

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
}

/// What SERVICE_ADD says about a service. `name` and `description` are opaque bytes, usually UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceAdd<'a> {
    /// What sort of service.
    pub kind: ServiceKind,
    /// The client's number for it.
    pub service: ServiceId,
    /// The device that it belongs to.
    pub group: GroupId,
    /// TCP port, for the guest too; never 0. The wire has 32 bits for it.
    pub port: u16,
    /// Name of the device, the same throughout a group. At most [`MAX_TEXT`] bytes, no NUL in it.
    pub name: &'a [u8],
    /// For people. At most [`MAX_TEXT`] bytes, no NUL in it.
    pub description: &'a [u8],
}

/// The sort of a service. All of them are carried in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceKind {
    /// Type 1.
    Generic,
    /// Type 2, a printer, and its real address, which only informs.
    Ipp(IpInfo),
}

/// Longest name and longest description of a service that is taken in or sent, bytes without the NUL. Our limit; the wire
/// has none.
pub const MAX_TEXT: usize = 1024;

/// Longest body that a client's message other than SOCKET_DATA can have.
pub const MAX_CLIENT_CONTROL: u32 = 30 + 2 * (1024 + 1);

/// Longest body that a server's message other than SOCKET_DATA can have.
pub const MAX_SERVER_CONTROL: u32 = 10;

impl<'a> ServerMessage<'a> {
    /// Parses the body of a message from the server. `None`: the tunnel channel has no message of that number.
    ///
    /// # Errors
    ///
    /// A body that is not exactly as 6.2 has it. The numbers in it are not judged.
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
            // PROBE_ACK, the last number that has a name.
            _ => le_u32.map(|id| Self::ProbeAck { id }).parse(input),
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
        }
    }

    /// `spice.proto`'s name of the message, in lower case; `probe_ack` for ours.
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
            _ => return None,
        })
    }
}

impl<'a> ClientMessage<'a> {
    /// Parses the body of a message from the client. `None`: the tunnel channel has no message of that number.
    ///
    /// # Errors
    ///
    /// A body that is not exactly as 6.3 and 6.4 have it, the type's width being `layout`'s. Of the numbers in it, only
    /// types and the port are judged.
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
            // PROBE, the last number that has a name.
            _ => le_u32.map(|id| Self::Probe { id }).parse(input),
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
        }
    }

    /// How many bytes [`write_body`](Self::write_body) appends.
    pub fn body_len(&self, layout: Layout) -> usize {
        match self {
            Self::ServiceAdd(add) => {
                let name = text(add.name).len() + NUL;
                let description = text(add.description).len() + NUL;
                add.fixed_len(layout) + name + description
            }
            Self::ServiceRemove { .. } | Self::Probe { .. } => U32,
            Self::SocketOpenAck { .. } | Self::SocketToken { .. } => U16 + U32,
            Self::SocketData { payload, .. } => U16.saturating_add(payload.len()),
            Self::SocketOpenNack { .. }
            | Self::SocketFin { .. }
            | Self::SocketClosed { .. }
            | Self::SocketClosedAck { .. }
            | Self::SocketReset { .. } => U16,
        }
    }

    /// Appends the body; the header is [`put_header`](crate::frame::put_header)'s. Name and description of a service
    /// end at their first NUL or after [`MAX_TEXT`] bytes.
    pub fn write_body(&self, layout: Layout, out: &mut Vec<u8>) {
        match *self {
            Self::ServiceAdd(ref add) => add.write(layout, out),
            Self::ServiceRemove { service } => put_u32(out, service.0),
            Self::Probe { id } => put_u32(out, id),
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

    /// `spice.proto`'s name of the message, in lower case; `socket_reset` and `probe` for ours.
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
            _ => return None,
        })
    }
}

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

impl ServiceAdd<'_> {
    /// Length of what comes before the strings.
    fn fixed_len(&self, layout: Layout) -> usize {
        let ip = match self.kind {
            ServiceKind::Generic => 0,
            ServiceKind::Ipp(ip) => ip.len(),
        };
        let (kind, service, group, port, name, description) = (layout.kind_len(), U32, U32, U32, U32, U32);
        kind + service + group + port + name + description + ip
    }

    fn write(&self, layout: Layout, out: &mut Vec<u8>) {
        let kind = match self.kind {
            ServiceKind::Generic => GENERIC,
            ServiceKind::Ipp(_) => IPP,
        };
        match layout {
            Layout::A => put_u32(out, u32::from(kind)),
            Layout::B => put_u16(out, kind),
        }
        put_u32(out, self.service.0);
        put_u32(out, self.group.0);
        put_u32(out, u32::from(self.port));
        let (name, description) = (text(self.name), text(self.description));
        let name_at = self.fixed_len(layout);
        let description_at = name_at + name.len() + NUL;
        for at in [name_at, description_at] {
            // Both are below MAX_CLIENT_CONTROL.
            put_u32(out, u32::try_from(at).unwrap_or(u32::MAX));
        }
        if let ServiceKind::Ipp(ip) = self.kind {
            ip.write(out);
        }
        for text in [name, description] {
            out.extend_from_slice(text);
            out.push(0);
        }
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

/// SERVICE_ADD. The strings may come in either order, but they are all that follows the fixed part.
fn service_add(layout: Layout, body: &[u8]) -> Parsed<'_, ServiceAdd<'_>> {
    let (input, kind) = match layout {
        Layout::A => le_u32(body)?,
        Layout::B => le_u16.map(u32::from).parse(body)?,
    };
    let (input, (service, group, port, name_at, description_at)) =
        (service_id, le_u32.map(GroupId), le_u32, le_u32, le_u32).parse(input)?;
    let (texts, kind) = match kind {
        kind if kind == u32::from(GENERIC) => (input, ServiceKind::Generic),
        kind if kind == u32::from(IPP) => ip_info.map(ServiceKind::Ipp).parse(input)?,
        other => return Err(Fault::value("type", other, "1 (generic) or 2 (IPP)")),
    };
    let port = match u16::try_from(port) {
        Ok(port) if port != 0 => port,
        _ => return Err(Fault::value("port", port, "1 to 65535")),
    };
    let fixed = body.len().saturating_sub(texts.len());
    let (name, name_place) = pointed_text("name", body, fixed, name_at, MAX_TEXT)?;
    let (description, description_place) =
        pointed_text("description", body, fixed, description_at, MAX_TEXT)?;
    let unread = all_behind(body, fixed, [name_place, description_place])?;
    Ok((unread, ServiceAdd { kind, service, group, port, name, description }))
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

/// What of a text can go on the wire.
fn text(bytes: &[u8]) -> &[u8] {
    let capped = bytes.get(..MAX_TEXT).unwrap_or(bytes);
    capped.split(|&byte| byte == 0).next().unwrap_or_default()
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

const GENERIC: u16 = 1;
const IPP: u16 = 2;
const IP_INVALID: u16 = 0;
const IP_V4: u16 = 1;

#[cfg(test)]
mod tests;
