//! A line a person can read for each tunnel message: the demo prints them, the dump tool will.

use spice_proto::tunnel::{ClientMessage, IpInfo, ServerMessage, ServiceKind};

/// What a message of the server's end says, e.g. `socket_open  socket 0  service 0  64 tokens`.
pub fn server_message(message: &ServerMessage<'_>) -> String {
    let name = message.name();
    match message {
        ServerMessage::Init { max_sockets, max_data } => {
            format!("{name:<17} {max_sockets} sockets, messages up to {max_data} bytes")
        }
        ServerMessage::ServiceIpMap { service, address } => {
            format!("{name:<17} service {}  {}", service.0, ip_info(*address))
        }
        ServerMessage::SocketOpen { socket, service, tokens } => {
            format!("{name:<17} socket {}  service {}  {tokens} tokens", socket.0, service.0)
        }
        ServerMessage::SocketData { socket, payload } => {
            format!("{name:<17} socket {}  {} bytes", socket.0, payload.len())
        }
        ServerMessage::SocketToken { socket, tokens } => {
            format!("{name:<17} socket {}  {tokens} tokens", socket.0)
        }
        ServerMessage::SocketFin { socket }
        | ServerMessage::SocketClose { socket }
        | ServerMessage::SocketClosedAck { socket } => format!("{name:<17} socket {}", socket.0),
    }
}

/// What a message of the client's end says, e.g. `service_add  service 0  group 0  port 631  "office printer"`.
pub fn client_message(message: &ClientMessage<'_>) -> String {
    let name = message.name();
    match message {
        ClientMessage::ServiceAdd(add) => {
            let kind = match add.kind {
                ServiceKind::Generic => "generic".to_owned(),
                ServiceKind::Ipp(address) => format!("ipp {}", ip_info(address)),
            };
            let label = add.name.escape_ascii();
            format!(
                "{name:<17} service {}  group {}  port {}  {kind}  \"{label}\"",
                add.service.0, add.group.0, add.port
            )
        }
        ClientMessage::ServiceRemove { service } => format!("{name:<17} service {}", service.0),
        ClientMessage::SocketData { socket, payload } => {
            format!("{name:<17} socket {}  {} bytes", socket.0, payload.len())
        }
        ClientMessage::SocketOpenAck { socket, tokens } | ClientMessage::SocketToken { socket, tokens } => {
            format!("{name:<17} socket {}  {tokens} tokens", socket.0)
        }
        ClientMessage::SocketOpenNack { socket }
        | ClientMessage::SocketFin { socket }
        | ClientMessage::SocketClosed { socket }
        | ClientMessage::SocketClosedAck { socket }
        | ClientMessage::SocketReset { socket } => format!("{name:<17} socket {}", socket.0),
    }
}

fn ip_info(address: IpInfo) -> String {
    match address {
        IpInfo::Invalid => "no address".to_owned(),
        IpInfo::V4(ip) => ip.to_string(),
    }
}
