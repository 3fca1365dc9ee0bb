//! Scripts: a line is a message, a second after the one before. `! TEXT` at its end is the remark that is expected
//! there; where none is expected, none may come.

use spice_proto::tunnel::{NameAnswer, QueryId, ServiceKind};

use super::*;

fn play(script: &str) -> Ledger {
    let mut ledger = Ledger::default();
    go_on(&mut ledger, 0, script);
    ledger
}

/// Returns the time behind the last line.
fn go_on(ledger: &mut Ledger, start: u64, script: &str) -> u64 {
    let mut seconds = start;
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (message, expected) = match line.split_once('!') {
            Some((message, expected)) => (message, Some(expected.trim())),
            None => (line, None),
        };
        let words: Vec<&str> = message.split_whitespace().collect();
        let noted = say(ledger, Duration::from_secs(seconds), &words);
        let remark = noted.remark.map(|remark| remark.text);
        match (expected, &remark) {
            (Some(expected), Some(text)) if text.contains(expected) => {}
            (None, None) => {}
            (_, _) => panic!("at second {seconds}, {line:?}: {remark:?}"),
        }
        seconds += 1;
    }
    seconds
}

fn say(ledger: &mut Ledger, time: Duration, words: &[&str]) -> Noted {
    let number = |index: usize| words[index].parse::<u32>().unwrap();
    let socket = || SocketId(words[2].parse().unwrap());
    let zeros = [0; 5000];
    let payload = || &zeros[..number(3) as usize];
    match (words[0], words[1]) {
        ("S", word) => {
            let message = match word {
                "init" => ServerMessage::Init { max_sockets: number(2) as u16, max_data: number(3) },
                "map" => ServerMessage::ServiceIpMap {
                    service: ServiceId(number(2)),
                    address: IpInfo::V4(words[3].parse().unwrap()),
                },
                "open" => ServerMessage::SocketOpen {
                    socket: socket(),
                    service: ServiceId(number(3)),
                    tokens: number(4),
                },
                "fin" => ServerMessage::SocketFin { socket: socket() },
                "close" => ServerMessage::SocketClose { socket: socket() },
                "data" => ServerMessage::SocketData { socket: socket(), payload: payload() },
                "closed_ack" => ServerMessage::SocketClosedAck { socket: socket() },
                "token" => ServerMessage::SocketToken { socket: socket(), tokens: number(3) },
                "ask" => ServerMessage::NameQuery { query: QueryId(number(2)), name: "nas.lan" },
                _ => panic!("{words:?}"),
            };
            ledger.server(time, &message)
        }
        ("C", word) => {
            let message = match word {
                "add" => ClientMessage::ServiceAdd(ServiceAdd {
                    kind: ServiceKind::Generic,
                    service: ServiceId(number(2)),
                    group: GroupId(0),
                    port: number(3) as u16,
                    name: b"printer",
                    description: b"",
                }),
                "remove" => ClientMessage::ServiceRemove { service: ServiceId(number(2)) },
                "ack" => ClientMessage::SocketOpenAck { socket: socket(), tokens: number(3) },
                "nack" => ClientMessage::SocketOpenNack { socket: socket() },
                "fin" => ClientMessage::SocketFin { socket: socket() },
                "closed" => ClientMessage::SocketClosed { socket: socket() },
                "closed_ack" => ClientMessage::SocketClosedAck { socket: socket() },
                "data" => ClientMessage::SocketData { socket: socket(), payload: payload() },
                "token" => ClientMessage::SocketToken { socket: socket(), tokens: number(3) },
                "reset" => ClientMessage::SocketReset { socket: socket() },
                "answer" => {
                    ClientMessage::NameAnswer { query: QueryId(number(2)), answer: NameAnswer::Failed }
                }
                _ => panic!("{words:?}"),
            };
            ledger.client(time, &message)
        }
        ("hole", from) => {
            let from = if from == "S" { Sender::Server } else { Sender::Client };
            ledger.hole(time, from);
            Noted::default()
        }
        ("end", _) => {
            ledger.end(time, End::Closed);
            Noted::default()
        }
        _ => panic!("{words:?}"),
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Service 0 at 10.0.2.31:7001, and connection 0 to it on socket 0, accepted in second 4.
const OPENED: &str = "
    S init 20 2048
    C add 0 7001
    S map 0 10.0.2.31
    S open 0 0 80
    C ack 0 60";

fn opened(rest: &str) -> Ledger {
    let mut ledger = Ledger::default();
    let next = go_on(&mut ledger, 0, OPENED);
    go_on(&mut ledger, next, rest);
    ledger
}

fn only(ledger: &mut Ledger) -> Connection {
    let mut over = ledger.take_over();
    assert_eq!(over.len(), 1, "{over:?}");
    assert_eq!(ledger.open().count(), 0);
    over.remove(0)
}

/// Wire reference 6.10, each line of it: no remark, the id is free in the end, and how it ended.
#[test]
fn every_dance_ends_with_a_free_id() {
    let dances = [
        ("S fin 0\n C data 0 5\n C closed 0\n S closed_ack 0", Ending::Clean),
        ("C fin 0\n S data 0 5\n S fin 0\n C closed 0\n S closed_ack 0", Ending::Clean),
        ("S fin 0\n C fin 0\n C closed 0\n S closed_ack 0", Ending::Clean),
        ("S close 0\n C data 0 3\n C token 0 2\n C fin 0\n C closed_ack 0", Ending::Guest),
        ("C closed 0\n S data 0 3\n S token 0 2\n S fin 0\n S closed_ack 0", Ending::Service),
        ("C reset 0\n S data 0 3\n S closed_ack 0", Ending::Service),
        ("S fin 0\n C reset 0\n S closed_ack 0", Ending::Service),
        ("S close 0\n C closed 0\n C closed_ack 0", Ending::Guest),
        ("C closed 0\n S close 0\n C closed_ack 0", Ending::Service),
        ("C reset 0\n S close 0\n C closed_ack 0", Ending::Service),
        // An eager server acknowledges although its CLOSE crossed; before the client, or behind it.
        ("S close 0\n C closed 0\n S closed_ack 0\n C closed_ack 0", Ending::Guest),
        ("S close 0\n C closed 0\n C closed_ack 0\n S closed_ack 0", Ending::Guest),
    ];
    for (dance, ending) in dances {
        let mut ledger = opened(dance);
        let connection = only(&mut ledger);
        assert_eq!(connection.ending(), ending, "{dance}");
        assert!(connection.freed.is_some() && !connection.incomplete, "{dance}");
        // And it can be used again.
        go_on(&mut ledger, 100, "S open 0 0 80\n C ack 0 60\n S data 0 1");
        assert_eq!(ledger.connection(SocketId(0)).unwrap().number, ConnectionNumber(1));
    }
}

#[test]
fn a_guest_that_gave_up_before_the_answer_is_dismissed_behind_it() {
    let open = "S init 20 2048\n C add 0 7001\n S map 0 10.0.2.31\n S open 0 0 80\n";
    let mut accepted = play(&format!("{open} C ack 0 60\n S close 0\n C closed_ack 0"));
    assert_eq!(only(&mut accepted).ending(), Ending::Guest);
    let mut refused = play(&format!("{open} C nack 0"));
    let refused = only(&mut refused);
    assert_eq!((refused.ending(), refused.freed), (Ending::Refused, Some(secs(4))));
    assert_eq!(refused.time_to_open(), Some(secs(1)));
}

#[test]
fn numbers_and_times_are_booked() {
    let mut ledger = opened("S data 0 10\n C data 0 7\n C data 0 8\n S fin 0\n C closed 0\n S closed_ack 0");
    let connection = only(&mut ledger);
    assert_eq!(connection.number, ConnectionNumber(0));
    assert_eq!(connection.service, Some(ServiceId(0)));
    assert_eq!(connection.destination, Some("10.0.2.31:7001".parse().unwrap()));
    assert_eq!(connection.opened, secs(3));
    assert_eq!(connection.answer, Answer::Accepted { at: secs(4) });
    assert_eq!((connection.up.bytes, connection.up.messages, connection.up.credit), (10, 1, 59));
    assert_eq!((connection.down.bytes, connection.down.messages, connection.down.credit), (15, 2, 78));
    assert_eq!((connection.down.first, connection.down.last), (Some(secs(6)), Some(secs(7))));
    assert_eq!((connection.up.fin, connection.down.fin), (Some(secs(8)), None));
    assert_eq!((connection.closed, connection.freed), (Some(secs(9)), Some(secs(10))));
    assert_eq!(connection.ended(), Some(secs(9)));
}

#[test]
fn the_first_grant_counts_and_tokens_add_to_it() {
    let ledger = play(
        "S init 20 2048
         C add 0 7001
         S open 0 0 3
         C ack 0 2
         C data 0 1
         S token 0 5
         S data 0 1
         C token 0 1",
    );
    let connection = ledger.connection(SocketId(0)).unwrap();
    assert_eq!((connection.down.credit, connection.down.granted), (7, 8));
    assert_eq!((connection.up.credit, connection.up.granted), (2, 3));
    // The address was never told.
    assert_eq!(connection.destination, None);
}

#[test]
fn an_overrun_is_counted_and_remarked_each_time() {
    let ledger = play(
        "S init 20 2048
         C add 0 7001
         S open 0 0 1
         C ack 0 60
         C data 0 1
         C data 0 1   ! without credit, 1 beyond it
         C data 0 1   ! without credit, 2 beyond it
         S token 0 2
         C data 0 1   ! without credit
         S token 0 20
         C data 0 1",
    );
    let down = &ledger.connection(SocketId(0)).unwrap().down;
    assert_eq!((down.overruns, down.messages, down.credit), (3, 5, 18));
}

#[test]
fn a_stall_lasts_from_the_last_token_to_the_next() {
    let mut ledger = play(
        "S init 20 2048
         C add 0 7001
         S open 0 0 2
         C ack 0 0
         C data 0 1
         C data 0 1
         S data 0 1   ! without credit
         C token 0 3
         S token 0 1
         C data 0 1
         C token 0 1
         S token 0 1
         S close 0
         C closed_ack 0",
    );
    let connection = only(&mut ledger);
    // From second 5 to 8 and from 9 to 11.
    let down = &connection.down;
    assert_eq!((down.stalls, down.stalled, down.longest_stall), (2, secs(5), secs(3)));
    // Without a token from the answer on.
    let up = &connection.up;
    assert_eq!((up.stalls, up.stalled), (1, secs(4)));
}

#[test]
fn who_finished_does_not_stall_and_who_is_cut_off_did() {
    let script =
        |last: &str| format!("S init 20 2048\n C add 0 1\n S open 0 0 1\n C ack 0 9\n C data 0 1\n {last}");
    let finished = play(&script("C fin 0\n S token 0 1"));
    assert_eq!(finished.connection(SocketId(0)).unwrap().down.stalls, 0);
    let mut cut = play(&script("S token 0 0\n S close 0\n C closed_ack 0"));
    let down = only(&mut cut).down;
    assert_eq!((down.stalls, down.longest_stall), (1, secs(2)));
    let mut lost = play(&script("end ."));
    let lost = only(&mut lost);
    assert_eq!((lost.down.stalls, lost.lost, lost.ending()), (1, Some(secs(5)), Ending::TunnelEnded));
}

#[test]
fn what_does_not_go_with_what_was_said_is_remarked() {
    opened("S init 20 2048      ! a second init: 20 sockets of 2048 bytes, after 20 of 2048");
    opened("C add 0 7001        ! service 0 is announced again");
    opened("C remove 1          ! service 1 is removed, which was not announced");
    opened("C remove 0\n C remove 0 ! removed a second time");
    opened("S map 1 10.0.2.3    ! an address for service 1, which was not announced");
    opened("S open 20 0 80      ! socket 20 is opened, while init allows ids below 20");
    opened("S open 1 9 80       ! socket 1 is opened to service 9, which was not announced");
    opened("S open 0 0 80       ! socket 0 is opened, which is still in use by connection 0");
    opened("S data 0 2049       ! socket_data on socket 0 has 2049 bytes, while init allows 2048");
    opened("C ack 0 60          ! socket_open_ack on socket 0 comes a second time");
    opened("C nack 0            ! socket_open_nack on socket 0 comes a second time");
    opened("C data 1 5          ! socket_data for socket 1, which is not open");
    opened("C closed 1          ! socket_closed for socket 1, which is not open");
    opened("C closed_ack 0      ! comes without a socket_close to acknowledge");
    opened("S closed_ack 0      ! comes without a socket_closed to acknowledge");
    opened("C fin 0\n C data 0 1 ! comes behind its sender's socket_fin");
    opened("S fin 0\n S fin 0   ! comes a second time");
    opened("S close 0\n S data 0 1 ! comes behind its sender's socket_close");
    opened("S close 0\n S close 0 ! comes a second time");
    opened("C closed 0\n C data 0 1 ! comes behind its sender's socket_closed");
    opened("C reset 0\n C closed 0 ! comes behind its sender's socket_reset");
    opened(
        "C closed 0\n S closed_ack 0\n S closed_ack 0 ! socket_closed_ack for socket 0, which is not open",
    );
    opened("S token 0 4294967295 ! more than 32 bits hold");
    opened("S open 1 0 80\n S data 1 1 ! comes before the answer to socket_open");
    opened("S open 1 0 80\n C data 1 1 ! comes before the answer to socket_open");
    opened("S open 1 0 80\n C token 1 1 ! comes before the answer to socket_open");
}

#[test]
fn a_tunnel_that_does_not_begin_with_init_began_before() {
    for first in ["S open 3 7 80", "S data 4 100", "C data 4 100", "C closed 4", "S map 7 10.0.2.31"] {
        play(&format!(
            "C add 1 7001
             {first}
             C ack 5 60
             S closed_ack 6
             C data 7 100
             S open 8 2 80"
        ));
    }
}

#[test]
fn a_second_use_of_an_open_id_displaces_the_first() {
    let mut ledger = opened("S open 0 0 80 ! still in use\n C ack 0 60\n C data 0 1");
    let over = ledger.take_over();
    assert_eq!(over.len(), 1);
    assert!(over[0].incomplete && over[0].freed.is_none());
    assert_eq!(ledger.connection(SocketId(0)).unwrap().number, ConnectionNumber(1));
}

#[test]
fn a_capture_may_begin_in_the_middle() {
    let mut ledger = Ledger::new(&Budget::default(), false);
    go_on(
        &mut ledger,
        0,
        "C data 4 100
         S data 4 100
         S token 4 5
         C ack 5 60
         C nack 6
         S open 7 3 80
         C ack 7 60
         C data 7 2
         S fin 4
         C closed 4
         S closed_ack 4
         C data 4 1         ! not open
         S map 3 10.0.2.31
         C remove 3",
    );
    let over = ledger.take_over();
    let (refused, closed) = (&over[0], &over[1]);
    assert_eq!((refused.socket, refused.ending()), (SocketId(6), Ending::Refused));
    assert_eq!((closed.socket, closed.ending()), (SocketId(4), Ending::Clean));
    assert!(over.iter().all(|connection| connection.incomplete && connection.service.is_none()));
    assert_eq!((closed.up.bytes, closed.down.bytes, closed.down.overruns), (100, 100, 0));
    let open: Vec<_> = ledger.open().map(|open| (open.socket.0, open.incomplete)).collect();
    assert_eq!(open, [(5, true), (7, false)]);
}

#[test]
fn behind_a_hole_nothing_is_concluded_from_what_is_not_there() {
    let mut ledger = opened(
        "S open 1 0 1
         C ack 1 60
         hole S
         C data 1 1
         C data 1 1
         C closed_ack 0
         S open 1 0 80
         C ack 1 5
         C data 2 7
         C ack 2 9
         hole C
         C ack 2 9
         S open 3 8 80",
    );
    let over = ledger.take_over();
    let over: Vec<_> = over.iter().map(|over| (over.number.0, over.socket.0, over.incomplete)).collect();
    // Socket 0 was acknowledged, 1 opened again, and 2 has an answer twice: there was another OPEN in the hole.
    assert_eq!(over, [(0, 0, true), (1, 1, true), (3, 2, true)]);
    assert_eq!(ledger.connection(SocketId(2)).unwrap().number, ConnectionNumber(4));
}

#[test]
fn a_hole_ends_the_counting_of_credit() {
    let ledger = opened("S open 1 0 1\n C ack 1 9\n C data 1 1\n hole S\n C data 1 1\n S token 1 1");
    let down = &ledger.connection(SocketId(1)).unwrap().down;
    assert!(!down.counted);
    assert_eq!((down.messages, down.overruns, down.stalls), (2, 0, 0));
}

#[test]
fn ledgers_share_their_numbers_and_their_room() {
    let budget = Budget::default();
    let mut one = Ledger::new(&budget, true);
    let mut two = Ledger::new(&budget, true);
    let begin = "S init 65535 2048\n C add 0 1\n S open 0 0 9\n C ack 0 9";
    go_on(&mut one, 0, begin);
    go_on(&mut two, 0, begin);
    assert_eq!(one.connection(SocketId(0)).unwrap().number, ConnectionNumber(0));
    assert_eq!(two.connection(SocketId(0)).unwrap().number, ConnectionNumber(1));

    let open =
        |socket| ServerMessage::SocketOpen { socket: SocketId(socket), service: ServiceId(0), tokens: 1 };
    for socket in 1..u16::MAX {
        assert_eq!(one.server(secs(9), &open(socket)).remark, None);
    }
    assert_eq!(one.open().count() + two.open().count(), MAX_CONNECTIONS);
    let noted = two.server(secs(9), &open(1));
    assert_eq!(noted.connection, None);
    assert!(noted.remark.unwrap().text.contains("is not booked"));
    // Nothing is remarked about what is not followed.
    go_on(&mut two, 10, "C ack 1 5\n C data 1 100");
    assert_eq!(two.open().count(), 1);
    drop(one);
    assert_eq!(two.server(secs(9), &open(2)).connection, Some(ConnectionNumber(65_536)));
}

#[test]
fn questions_are_answered_once() {
    let remark = |words: &str| {
        let mut ledger = Ledger::default();
        let (before, last) = words.rsplit_once(';').unwrap();
        let next = go_on(&mut ledger, 0, &format!("S init 20 2048\n{}", before.replace(';', "\n")));
        say(&mut ledger, secs(next), &last.split_whitespace().collect::<Vec<_>>())
            .remark
            .map(|remark| remark.text)
    };
    assert_eq!(remark("S ask 1;C answer 1"), None);
    assert_eq!(remark("S ask 1;C answer 1;S ask 1"), None);
    assert!(remark("S ask 1;S ask 1").unwrap().contains("is asked again"));
    assert!(remark("S ask 1;C answer 1;C answer 1").unwrap().contains("was not asked"));
    assert!(remark("S ask 1;C answer 2").unwrap().contains("was not asked"));
    // It may have been asked, or answered, in the hole.
    assert_eq!(remark("hole S;C answer 2"), None);
    assert_eq!(remark("S ask 1;hole C;S ask 1"), None);
    let many: String = (0..64).map(|query| format!("S ask {query};")).collect();
    assert_eq!(remark(&format!("{many}C answer 5")), None);
    assert!(remark(&format!("{many}S ask 64")).unwrap().contains("one more than the 64"));
}

#[test]
fn removed_services_make_room_for_others() {
    let mut ledger = Ledger::default();
    let add = |id: u32| {
        ClientMessage::ServiceAdd(ServiceAdd {
            kind: ServiceKind::Generic,
            service: ServiceId(id),
            group: GroupId(0),
            port: 1,
            name: b"a",
            description: b"b",
        })
    };
    go_on(&mut ledger, 0, "S init 20 2048");
    let most = MAX_SERVICES as u32;
    for id in 0..most {
        assert_eq!(ledger.client(secs(1), &add(id)), Noted::default());
    }
    go_on(&mut ledger, 2, "C remove 7");
    assert_eq!(ledger.client(secs(3), &add(most)), Noted::default());
    assert!(ledger.service(ServiceId(7)).is_none() && ledger.service(ServiceId(most)).is_some());
    let noted = ledger.client(secs(3), &add(most + 1));
    assert!(noted.remark.unwrap().text.contains("is not booked"));
    // What is not known cannot be wrong any more.
    go_on(&mut ledger, 4, "S open 0 99999 80\n C ack 0 60");
}

/// What genuine peers said: the ledgers of a capture's tunnels, and every remark.
fn genuine(name: &str) -> (Vec<Connection>, Vec<String>) {
    use crate::capture::dissect::Options;
    use crate::capture::file::Reader;
    use crate::capture::reader::SpiceReader;

    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("captures").join(name);
    let mut reader = SpiceReader::new(Reader::open(&path).unwrap(), Options::default());
    let (mut over, mut remarks) = (Vec::new(), Vec::new());
    let mut ledgers = BTreeMap::new();
    let mut more = true;
    while more {
        more = reader
            .step(&mut |item| {
                if item.channel.is_some_and(|channel| channel.channel_type == 7) {
                    let ledger: &mut Ledger = ledgers.entry(item.stream).or_default();
                    remarks.extend(ledger.item(&item).remark.map(|remark| remark.text));
                    over.extend(ledger.take_over());
                }
            })
            .unwrap();
    }
    (over, remarks)
}

/// Ours of today, recorded.
#[test]
fn our_own_peers_leave_nothing_to_remark() {
    for name in
        ["client-lost", "credit", "demo", "half-close", "many-sockets", "refused-port", "resets", "vm"]
    {
        let (over, remarks) = genuine(&format!("{name}.pcapng"));
        assert_eq!(remarks, [""; 0], "{name}");
        assert!(!over.is_empty(), "{name}");
    }
}

#[test]
fn genuine_peers_leave_nothing_to_remark() {
    for name in ["tunnel-v1-pair.pcap", "tunnel-v2-pair.pcap"] {
        let (mut over, remarks) = genuine(name);
        assert_eq!(remarks, [""; 0], "{name}");
        over.sort_by_key(|connection| connection.number);
        let table: Vec<_> = over
            .iter()
            .map(|over| (over.destination.unwrap().port(), over.up.bytes, over.down.bytes, over.ending()))
            .collect();
        // The scenarios of the captures' description; `unknown` does not reach the tunnel, `two` makes two connections.
        let expected = [
            (7001, 12, 12, Ending::Clean),
            (7002, 0, 4, Ending::Clean),
            (7006, 8, 8, Ending::Clean),
            (7009, 0, 0, Ending::Refused),
            (7007, 2, 0, Ending::Service),
            (7001, 3, 3, Ending::Guest),
            (7001, 1, 1, Ending::Clean),
            (7001, 1, 1, Ending::Clean),
            (7004, 200_000, 7, Ending::Clean),
            (7003, 6, 300_000, Ending::Clean),
            (7001, 150_000, 150_000, Ending::Clean),
            (7005, 400_000, 7, Ending::Clean),
        ];
        assert_eq!(table, expected, "{name}");
        assert!(over.iter().all(|over| !over.incomplete && over.freed.is_some()), "{name}");
        assert!(over.iter().all(|over| over.up.overruns + over.down.overruns == 0), "{name}");
        // The source sends faster than the guest reads. What the slow sink does not read fits into the client's kernel.
        let stalls: Vec<_> =
            over.iter().filter(|over| over.down.stalls > 0).map(|over| over.number.0).collect();
        assert_eq!(stalls, [9], "{name}");
        assert!(over.iter().all(|over| over.up.stalls == 0), "{name}");
    }
}
