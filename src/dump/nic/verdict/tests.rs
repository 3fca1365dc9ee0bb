use std::time::Duration;

use spice_proto::tunnel::{
    ClientMessage, GroupId, ServerMessage, ServiceAdd, ServiceId, ServiceKind, SocketId,
};

use super::*;
use crate::capture::ledger::Ledger;
use crate::capture::reassembly::StreamId;
use crate::dump::nic::lane::Room;

const AT: Duration = Duration::from_secs(1);
const SOCKET: SocketId = SocketId(0);

/// What the ledger says of a connection on which these were said behind SOCKET_OPEN.
fn tunnelled(said: &[Result<ServerMessage<'_>, ClientMessage<'_>>]) -> Connection {
    let mut ledger = Ledger::default();
    let add = ServiceAdd {
        kind: ServiceKind::Generic,
        service: ServiceId(0),
        group: GroupId(0),
        port: 9,
        name: b"",
        description: b"",
    };
    let open = ServerMessage::SocketOpen { socket: SOCKET, service: ServiceId(0), tokens: 9 };
    let begin = [
        Ok(ServerMessage::Init { max_sockets: 9, max_data: 9 }),
        Err(ClientMessage::ServiceAdd(add)),
        Ok(open),
    ];
    for message in begin.iter().chain(said) {
        let noted = match message {
            Ok(server) => ledger.server(AT, server),
            Err(client) => ledger.client(AT, client),
        };
        assert_eq!(noted.remark, None);
    }
    ledger.take_over().remove(0)
}

fn clean() -> Connection {
    tunnelled(&[
        Err(ClientMessage::SocketOpenAck { socket: SOCKET, tokens: 9 }),
        Ok(ServerMessage::SocketFin { socket: SOCKET }),
        Err(ClientMessage::SocketClosed { socket: SOCKET }),
        Ok(ServerMessage::SocketClosedAck { socket: SOCKET }),
    ])
}

fn service_aborted() -> Connection {
    tunnelled(&[
        Err(ClientMessage::SocketOpenAck { socket: SOCKET, tokens: 9 }),
        Err(ClientMessage::SocketClosed { socket: SOCKET }),
        Ok(ServerMessage::SocketClosedAck { socket: SOCKET }),
    ])
}

fn refused() -> Connection {
    tunnelled(&[Err(ClientMessage::SocketOpenNack { socket: SOCKET })])
}

/// A guest's connection that was accepted and closed.
fn guest() -> GuestConnection {
    let mut guest = GuestConnection::new(
        StreamId(0),
        AT,
        "10.0.0.1:1".parse().unwrap(),
        "10.0.0.2:9".parse().unwrap(),
        true,
    );
    guest.reply = Reply::Accepted { at: AT };
    (guest.up.fin, guest.down.fin) = (Some(AT), Some(AT));
    (guest.ended, guest.end_seen) = (Some(AT), true);
    guest
}

fn reset(way: Way) -> GuestConnection {
    GuestConnection { reset: Some((way, AT)), ..guest() }
}

fn lane(tunnel: &[u8], guest: &[u8]) -> Lane {
    let (mut lane, mut room) = (Lane::new(), Room::default());
    lane.feed(Side::Tunnel, tunnel, &mut room);
    lane.feed(Side::Guest, guest, &mut room);
    lane
}

fn same() -> Lane {
    lane(b"same", b"same")
}

/// The only thing that is found, and in which list.
#[track_caller]
fn assert_found(verdict: &Verdict, list: &[String], part: &str) {
    let all = verdict.differences.len() + verdict.not_compared.len() + verdict.notes.len();
    assert_eq!((all, list.len()), (1, 1), "{verdict:?}");
    assert!(list[0].contains(part), "{verdict:?}");
}

#[test]
fn what_goes_together_is_the_same() {
    let nothing = Verdict::default();
    assert_eq!(of(&clean(), &guest(), &same(), &same()), nothing);
    assert_eq!(of(&service_aborted(), &reset(Way::Back), &same(), &same()), nothing);
    for reply in [Reply::Refused { at: AT }, Reply::Unreachable { at: AT, by: "10.0.0.9".parse().unwrap() }] {
        let told = GuestConnection { reply, ..guest() };
        assert_eq!(of(&refused(), &told, &lane(b"", b""), &lane(b"", b"")), nothing);
    }
}

#[test]
fn less_than_all_is_a_difference_unless_it_was_aborted() {
    // The guest's bytes got lost; the service's did.
    let verdict = of(&clean(), &guest(), &lane(b"ab", b"abc"), &same());
    assert_found(&verdict, &verdict.differences, "up: 2 bytes in the tunnel, 3 at the guest");
    let verdict = of(&clean(), &guest(), &same(), &lane(b"abc", b"ab"));
    assert_found(&verdict, &verdict.differences, "down: 3 bytes in the tunnel, 2 at the guest");
    // An abort may leave some of them on their way, but makes none.
    let verdict = of(&service_aborted(), &reset(Way::Back), &lane(b"ab", b"abc"), &same());
    assert_found(&verdict, &verdict.notes, "as it was aborted");
    let verdict = of(&service_aborted(), &reset(Way::Back), &lane(b"abc", b"ab"), &same());
    assert_found(&verdict, &verdict.differences, "up");
    // A capture that ends in the middle says nothing.
    let cut = GuestConnection { end_seen: false, ..guest() };
    let verdict = of(&clean(), &cut, &same(), &lane(b"abc", b"ab"));
    assert_found(&verdict, &verdict.not_compared, "does not have all of the connection");
}

#[test]
fn a_wrong_byte_is_a_difference_and_a_hole_is_none() {
    let verdict = of(&clean(), &guest(), &same(), &lane(b"abc", b"abd"));
    assert_found(&verdict, &verdict.differences, "down: byte 2 is 0x63 in the tunnel and 0x64 at the guest");
    let mut holed = same();
    holed.hole(Side::Guest, &mut Room::default());
    let verdict = of(&clean(), &guest(), &holed, &same());
    assert_found(&verdict, &verdict.not_compared, "up: the guest's capture lacks bytes behind byte 4");
}

#[test]
fn the_guest_has_to_be_told_the_truth() {
    let differs = |tunnel: &Connection, guest: &GuestConnection, part: &str| {
        let verdict = of(tunnel, guest, &same(), &same());
        assert_found(&verdict, &verdict.differences, part);
    };
    differs(&refused(), &guest(), "the client refused, the guest was accepted");
    differs(&refused(), &GuestConnection { reply: Reply::None, ..guest() }, "told nothing");
    let refused_guest = GuestConnection { reply: Reply::Refused { at: AT }, ..guest() };
    differs(&clean(), &refused_guest, "the client accepted, the guest was refused");
    differs(&clean(), &reset(Way::Back), "the service ended, the guest was reset");
    differs(&service_aborted(), &guest(), "the service aborted, the guest was told that it ended");
    // Who does not wait is not told.
    let gone = GuestConnection { reply: Reply::None, reset: Some((Way::Forth, AT)), ..guest() };
    let verdict = of(&refused(), &gone, &same(), &same());
    assert_found(&verdict, &verdict.notes, "gave up");
}
