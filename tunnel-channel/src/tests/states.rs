//! Every state of a socket times everything that can happen to it, for both roles.
//!
//! The tables follow wire-reference 6.8 and 6.9, except that
//!
//! * what dropped the whole channel there ends the one socket, where there is one, and only an id without a socket (or OPEN
//!   for an id that has one) ends the channel;
//! * DATA before OPEN_ACK is a fault here, since no guest is connected yet that could take it; the original queued it;
//! * an aborted socket is acknowledged at once, not when the guest's own connection has gone, which is the owner's matter;
//! * CLOSED_ACK for a free id, and what crosses CLOSE, are dropped, as 6.10 and 6.11 advise.

use std::time::Instant;

use spice_proto::frame::{Frame, HeaderForm};
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{
    ClientMessage, GroupId, Layout, ServerMessage, ServiceAdd, ServiceId, ServiceKind, SocketId,
};

use super::{new_service, said};
use crate::{Channel, Config, Event, ResetCause, Role, Violation};

const ID: SocketId = SocketId(0);

fn hear_client<'a>(
    channel: &mut Channel,
    message: ClientMessage<'_>,
    body: &'a mut Vec<u8>,
) -> Result<Option<Event<'a>>, Violation> {
    message.write_body(Layout::B, body);
    channel.handle_frame(Instant::now(), Frame { serial: None, kind: message.kind(), sub_list: 0, body })
}

fn hear_server<'a>(
    channel: &mut Channel,
    message: ServerMessage<'_>,
    body: &'a mut Vec<u8>,
) -> Result<Option<Event<'a>>, Violation> {
    message.write_body(body);
    channel.handle_frame(Instant::now(), Frame { serial: None, kind: message.kind(), sub_list: 0, body })
}

/// One thing that can happen.
#[derive(Clone, Copy)]
enum Happens {
    FromClient(ClientMessage<'static>),
    FromServer(ServerMessage<'static>),
    Command(&'static str),
}
use Happens::{Command, FromClient, FromServer};

fn commands() -> Vec<Happens> {
    ["accept", "refuse", "send", "delivered", "finish", "close", "reset"].map(Command).to_vec()
}

fn from_client() -> Vec<Happens> {
    [
        ClientMessage::SocketOpenAck { socket: ID, tokens: 3 },
        ClientMessage::SocketOpenNack { socket: ID },
        ClientMessage::SocketData { socket: ID, payload: b"abc" },
        ClientMessage::SocketToken { socket: ID, tokens: 7 },
        ClientMessage::SocketFin { socket: ID },
        ClientMessage::SocketClosed { socket: ID },
        ClientMessage::SocketReset { socket: ID },
        ClientMessage::SocketClosedAck { socket: ID },
    ]
    .map(FromClient)
    .to_vec()
}

fn from_server() -> Vec<Happens> {
    [
        ServerMessage::SocketOpen { socket: ID, service: ServiceId(0), tokens: 3 },
        ServerMessage::SocketData { socket: ID, payload: b"abc" },
        ServerMessage::SocketToken { socket: ID, tokens: 7 },
        ServerMessage::SocketFin { socket: ID },
        ServerMessage::SocketClose { socket: ID },
        ServerMessage::SocketClosedAck { socket: ID },
    ]
    .map(FromServer)
    .to_vec()
}

/// Does it, and gives its name and what the owner hears.
fn make_happen(channel: &mut Channel, happens: Happens) -> (&'static str, String) {
    let mut body = Vec::new();
    let (name, heard) = match happens {
        FromClient(message) => (message.name(), hear_client(channel, message, &mut body)),
        FromServer(message) => (message.name(), hear_server(channel, message, &mut body)),
        Command(name) => {
            match name {
                "accept" => channel.accept(ID),
                "refuse" => channel.refuse(ID),
                "send" => {
                    channel.send(ID, |room| {
                        room[..2].copy_from_slice(b"xy");
                        2
                    });
                }
                "delivered" => channel.delivered(ID, 1),
                "finish" => channel.finish(ID),
                "close" => channel.close(ID),
                "reset" => channel.reset(ID),
                other => panic!("{other}"),
            }
            (name, Ok(None))
        }
    };
    let heard = match heard {
        Ok(None) => "-".to_owned(),
        Ok(Some(Event::Reset { socket: ID, cause: ResetCause::Peer })) => "reset".to_owned(),
        Ok(Some(Event::Reset { socket: ID, cause: ResetCause::Violation(_) })) => {
            "reset, violation".to_owned()
        }
        Ok(Some(Event::Open { socket: ID, service: ServiceId(0) })) => "open".to_owned(),
        Ok(Some(Event::Accepted { socket: ID })) => "accepted".to_owned(),
        Ok(Some(Event::Refused { socket: ID })) => "refused".to_owned(),
        Ok(Some(Event::Data { socket: ID, payload: b"abc" })) => "data".to_owned(),
        Ok(Some(Event::Finished { socket: ID })) => "finished".to_owned(),
        Ok(Some(Event::Writable { socket: ID })) => "writable".to_owned(),
        Ok(Some(Event::PeerClosed { socket: ID })) => "peer closed".to_owned(),
        Ok(Some(other)) => panic!("{other:?}"),
        Err(_) => "channel violation".to_owned(),
    };
    (name, heard)
}

fn state_of(channel: &Channel) -> &'static str {
    if channel.has_ended() {
        return "channel ended";
    }
    channel.table.get(ID).map_or("free", |socket| socket.state_name())
}

fn new(role: Role) -> Channel {
    let config = Config { window: 4, ..Config::default() };
    let mut channel =
        Channel::new(role, HeaderForm::Mini, Layout::B, TunnelCaps::OURS, config, Instant::now());
    match role {
        Role::Server => {
            let add = ClientMessage::ServiceAdd(ServiceAdd {
                kind: ServiceKind::Generic,
                service: ServiceId(0),
                group: GroupId(0),
                port: 631,
                name: b"printer",
                description: b"",
            });
            hear_client(&mut channel, add, &mut Vec::new()).unwrap();
        }
        Role::Client => {
            let init = ServerMessage::Init { max_sockets: 20, max_data: 2048 };
            hear_server(&mut channel, init, &mut Vec::new()).unwrap();
            channel.add_service(new_service(0, b"printer")).unwrap();
        }
    }
    said(&mut channel);
    channel
}

/// A server whose socket 0 came to a state by these words.
fn server(path: &[&str]) -> Channel {
    let mut channel = new(Role::Server);
    for word in path {
        match *word {
            "open" => assert_eq!(channel.open(ServiceId(0)), Ok(ID)),
            word => walk(&mut channel, word, &from_client()),
        }
    }
    said(&mut channel);
    channel
}

fn client(path: &[&str]) -> Channel {
    let mut channel = new(Role::Client);
    for word in path {
        walk(&mut channel, word, &from_server());
    }
    said(&mut channel);
    channel
}

fn walk(channel: &mut Channel, word: &str, messages: &[Happens]) {
    let happens = messages.iter().chain(&commands()).copied().find(|happens| match happens {
        FromClient(message) => message.name() == word,
        FromServer(message) => message.name() == word,
        Command(name) => *name == word,
    });
    make_happen(channel, happens.unwrap());
}

/// Compares a table with what happens, line by line: state, event, what is said, what the owner hears, next state. A pair of
/// state and event that has no line must have no effect.
fn compare(
    table: &str,
    paths: &[(&str, &[&str])],
    happenings: &[Happens],
    build: impl Fn(&[&str]) -> Channel,
) {
    let mut actual = Vec::new();
    for (state, path) in paths {
        for happens in happenings {
            let mut channel = build(path);
            assert_eq!(state_of(&channel), *state, "{path:?}");
            let (name, heard) = make_happen(&mut channel, *happens);
            let mut says: Vec<String> =
                said(&mut channel).iter().map(|line| line[2..].replacen(" 0", "", 1)).collect();
            if says.is_empty() {
                says.push("-".to_owned());
            }
            let next = state_of(&channel);
            let next = if next == *state { "=" } else { next };
            let owned = channel.table.get(ID).is_some_and(|socket| socket.is_owned());
            assert!(owned || channel.waiting() == 0, "bytes of a socket that is gone are still counted");
            let line = format!("{state} | {name} | {} | {heard} | {next}", says.join(", "));
            if !line.ends_with("| - | - | =") {
                actual.push(line);
            }
        }
    }
    let expected: Vec<&str> = table.lines().filter(|line| !line.trim().is_empty()).collect();
    let differing: Vec<String> = (0..actual.len().max(expected.len()))
        .filter(|&i| expected.get(i).copied() != actual.get(i).map(String::as_str))
        .map(|i| format!("expected {:?}\n     got {:?}", expected.get(i), actual.get(i)))
        .collect();
    if !differing.is_empty() {
        println!("{}", actual.join("\n"));
    }
    assert!(differing.is_empty(), "{} lines differ:\n{}", differing.len(), differing.join("\n"));
}

#[test]
fn server_table() {
    let paths: [(&str, &[&str]); 10] = [
        ("free", &[]),
        ("opening", &["open"]),
        ("abandoned", &["open", "reset"]),
        ("open", &["open", "socket_open_ack"]),
        ("open, we finished", &["open", "socket_open_ack", "finish"]),
        ("open, the peer finished", &["open", "socket_open_ack", "socket_data", "socket_fin"]),
        ("open, both finished", &["open", "socket_open_ack", "finish", "socket_fin"]),
        ("closed by the peer", &["open", "socket_open_ack", "socket_data", "finish", "socket_closed"]),
        ("released", &["open", "socket_open_ack", "finish", "socket_fin", "close"]),
        ("closing", &["open", "socket_open_ack", "socket_data", "reset"]),
    ];
    compare(SERVER, &paths, &[from_client(), commands()].concat(), server);
}

#[test]
fn client_table() {
    let paths: [(&str, &[&str]); 8] = [
        ("free", &[]),
        ("opening", &["socket_open"]),
        ("open", &["socket_open", "accept"]),
        ("open, we finished", &["socket_open", "accept", "finish"]),
        ("open, the peer finished", &["socket_open", "accept", "socket_fin"]),
        ("open, both finished", &["socket_open", "accept", "finish", "socket_fin"]),
        ("closed by the peer", &["socket_open", "accept", "socket_data", "socket_fin", "socket_close"]),
        ("closing", &["socket_open", "accept", "socket_data", "reset"]),
    ];
    compare(CLIENT, &paths, &[from_server(), commands()].concat(), client);
}

const SERVER: &str = "
free | socket_open_ack | - | channel violation | channel ended
free | socket_open_nack | - | channel violation | channel ended
free | socket_data | - | channel violation | channel ended
free | socket_token | - | channel violation | channel ended
free | socket_fin | - | channel violation | channel ended
free | socket_closed | - | channel violation | channel ended
free | socket_reset | - | channel violation | channel ended
opening | socket_open_ack | - | accepted | open
opening | socket_open_nack | - | refused | free
opening | socket_data | - | reset, violation | abandoned
opening | socket_fin | - | reset, violation | abandoned
opening | socket_closed | socket_closed_ack | reset | free
opening | socket_reset | socket_closed_ack | reset | free
opening | socket_closed_ack | - | reset, violation | abandoned
opening | close | - | - | abandoned
opening | reset | - | - | abandoned
abandoned | socket_open_ack | socket_close | - | closing
abandoned | socket_open_nack | - | - | free
abandoned | socket_closed | socket_closed_ack | - | free
abandoned | socket_reset | socket_closed_ack | - | free
open | socket_open_ack | socket_close | reset, violation | closing
open | socket_open_nack | socket_close | reset, violation | closing
open | socket_data | - | data | =
open | socket_fin | - | finished | open, the peer finished
open | socket_closed | socket_closed_ack | reset | free
open | socket_reset | socket_closed_ack | reset | free
open | socket_closed_ack | socket_close | reset, violation | closing
open | send | socket_data len 2 | - | =
open | finish | socket_fin | - | open, we finished
open | close | socket_close | - | closing
open | reset | socket_close | - | closing
open, we finished | socket_open_ack | socket_close | reset, violation | closing
open, we finished | socket_open_nack | socket_close | reset, violation | closing
open, we finished | socket_data | - | data | =
open, we finished | socket_fin | - | finished | open, both finished
open, we finished | socket_closed | - | finished | closed by the peer
open, we finished | socket_reset | socket_closed_ack | reset | free
open, we finished | socket_closed_ack | socket_close | reset, violation | closing
open, we finished | close | socket_close | - | closing
open, we finished | reset | socket_close | - | closing
open, the peer finished | socket_open_ack | socket_close | reset, violation | closing
open, the peer finished | socket_open_nack | socket_close | reset, violation | closing
open, the peer finished | socket_data | socket_close | reset, violation | closing
open, the peer finished | socket_fin | socket_close | reset, violation | closing
open, the peer finished | socket_closed | socket_closed_ack | reset | free
open, the peer finished | socket_reset | socket_closed_ack | reset | free
open, the peer finished | socket_closed_ack | socket_close | reset, violation | closing
open, the peer finished | send | socket_data len 2 | - | =
open, the peer finished | finish | socket_fin | - | open, both finished
open, the peer finished | close | socket_close | - | closing
open, the peer finished | reset | socket_close | - | closing
open, both finished | socket_open_ack | socket_close | reset, violation | closing
open, both finished | socket_open_nack | socket_close | reset, violation | closing
open, both finished | socket_data | socket_close | reset, violation | closing
open, both finished | socket_fin | socket_close | reset, violation | closing
open, both finished | socket_closed | - | - | closed by the peer
open, both finished | socket_reset | socket_closed_ack | reset | free
open, both finished | socket_closed_ack | socket_close | reset, violation | closing
open, both finished | close | - | - | released
open, both finished | reset | socket_close | - | closing
closed by the peer | socket_open_ack | socket_closed_ack | reset, violation | free
closed by the peer | socket_open_nack | socket_closed_ack | reset, violation | free
closed by the peer | socket_data | socket_closed_ack | reset, violation | free
closed by the peer | socket_closed_ack | socket_closed_ack | reset, violation | free
closed by the peer | close | socket_closed_ack | - | free
closed by the peer | reset | socket_closed_ack | - | free
released | socket_open_ack | socket_close | - | closing
released | socket_open_nack | socket_close | - | closing
released | socket_data | socket_close | - | closing
released | socket_fin | socket_close | - | closing
released | socket_closed | socket_closed_ack | - | free
released | socket_reset | socket_closed_ack | - | free
released | socket_closed_ack | socket_close | - | closing
closing | socket_closed_ack | - | - | free
";

const CLIENT: &str = "
free | socket_open | - | open | opening
free | socket_data | - | channel violation | channel ended
free | socket_token | - | channel violation | channel ended
free | socket_fin | - | channel violation | channel ended
free | socket_close | - | channel violation | channel ended
opening | socket_open | - | channel violation | channel ended
opening | socket_data | socket_open_nack | reset, violation | free
opening | socket_token | socket_open_nack | reset, violation | free
opening | socket_fin | socket_open_nack | reset, violation | free
opening | socket_close | socket_closed_ack | reset | free
opening | socket_closed_ack | socket_open_nack | reset, violation | free
opening | accept | socket_open_ack tokens 4 | - | open
opening | refuse | socket_open_nack | - | free
opening | close | socket_open_nack | - | free
opening | reset | socket_open_nack | - | free
open | socket_open | - | channel violation | channel ended
open | socket_data | - | data | =
open | socket_fin | - | finished | open, the peer finished
open | socket_close | socket_closed_ack | reset | free
open | socket_closed_ack | socket_reset | reset, violation | closing
open | send | socket_data len 2 | - | =
open | finish | socket_fin | - | open, we finished
open | close | socket_reset | - | closing
open | reset | socket_reset | - | closing
open, we finished | socket_open | - | channel violation | channel ended
open, we finished | socket_data | - | data | =
open, we finished | socket_fin | - | finished | open, both finished
open, we finished | socket_close | socket_closed_ack | reset | free
open, we finished | socket_closed_ack | socket_reset | reset, violation | closing
open, we finished | close | socket_reset | - | closing
open, we finished | reset | socket_reset | - | closing
open, the peer finished | socket_open | - | channel violation | channel ended
open, the peer finished | socket_data | socket_reset | reset, violation | closing
open, the peer finished | socket_fin | socket_reset | reset, violation | closing
open, the peer finished | socket_close | - | peer closed | closed by the peer
open, the peer finished | socket_closed_ack | socket_reset | reset, violation | closing
open, the peer finished | send | socket_data len 2 | - | =
open, the peer finished | finish | - | - | open, both finished
open, the peer finished | close | socket_reset | - | closing
open, the peer finished | reset | socket_reset | - | closing
open, both finished | socket_open | - | channel violation | channel ended
open, both finished | socket_data | socket_reset | reset, violation | closing
open, both finished | socket_fin | socket_reset | reset, violation | closing
open, both finished | socket_close | - | peer closed | closed by the peer
open, both finished | socket_closed_ack | socket_reset | reset, violation | closing
open, both finished | close | socket_closed | - | closing
open, both finished | reset | socket_reset | - | closing
closed by the peer | socket_open | - | channel violation | channel ended
closed by the peer | socket_close | socket_closed_ack | reset, violation | free
closed by the peer | socket_closed_ack | socket_closed_ack | reset, violation | free
closed by the peer | close | socket_closed_ack | - | free
closed by the peer | reset | socket_closed_ack | - | free
closing | socket_open | - | channel violation | channel ended
closing | socket_close | socket_closed_ack | - | free
closing | socket_closed_ack | - | - | free
";
