use std::net::SocketAddr;
use std::time::Duration;

use super::*;

const CLIENT: &str = "10.0.0.1:40000";
const SERVER: &str = "10.0.0.2:5930";

/// A reassembler, and what came out of it as lines of text.
struct Script {
    reassembler: Reassembler,
    time: Duration,
    seen: Vec<String>,
}

impl Script {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self { reassembler: Reassembler::new(limits), time: Duration::from_secs(1), seen: Vec::new() }
    }

    /// After a handshake: the client's bytes begin at 1001, the server's at 5001.
    fn connected() -> Self {
        let mut script = Self::new();
        script.connect();
        script.expect(&["0 opened 10.0.0.1:40000 10.0.0.2:5930 from its start", "0 answered"]);
        script
    }

    fn connect(&mut self) {
        self.client(1000, 0, "SYN", b"");
        self.server(5000, 1001, "SYN ACK", b"");
        self.client(1001, 5001, "ACK", b"");
    }

    fn client(&mut self, seq: u32, ack: u32, flags: &str, payload: &[u8]) {
        self.send(CLIENT, SERVER, seq, ack, flags, payload, 0);
    }

    fn server(&mut self, seq: u32, ack: u32, flags: &str, payload: &[u8]) {
        self.send(SERVER, CLIENT, seq, ack, flags, payload, 0);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
    fn send(&mut self, from: &str, to: &str, seq: u32, ack: u32, flags: &str, payload: &[u8], cut: usize) {
        self.time += Duration::from_millis(1);
        let flags = flags
            .split_whitespace()
            .map(|name| Flags::from_name(name).expect("a flag"))
            .fold(Flags::empty(), |all, flag| all | flag);
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let segment = Segment { from, to, seq, ack, flags, payload, cut };
        let (time, seen) = (self.time, &mut self.seen);
        self.reassembler.handle(time, &segment, &mut |event| {
            assert_eq!(event.time, time);
            seen.push(line(&event));
        });
    }

    fn finish(&mut self) {
        let seen = &mut self.seen;
        self.reassembler.finish(&mut |event| seen.push(line(&event)));
    }

    #[track_caller]
    fn expect(&mut self, lines: &[&str]) {
        assert_eq!(std::mem::take(&mut self.seen), lines);
    }
}

fn line(event: &StreamEvent<'_>) -> String {
    let id = event.stream.0;
    let way = |way| if way == Way::Forth { ">" } else { "<" };
    match event.piece {
        Piece::Opened { from, to, from_start } => {
            format!("{id} opened {from} {to}{}", if from_start { " from its start" } else { "" })
        }
        Piece::Answered => format!("{id} answered"),
        Piece::Bytes { way: w, bytes } => format!("{id} {} {}", way(w), bytes.escape_ascii()),
        Piece::Hole { way: w, missing, cause } => format!("{id} {} {missing} missing: {cause:?}", way(w)),
        Piece::Finished { way: w } => format!("{id} {} finished", way(w)),
        Piece::Reset { way: w } => format!("{id} {} reset", way(w)),
        Piece::Ended { seen } => format!("{id} ended{}", if seen { "" } else { ", not seen how" }),
    }
}

#[test]
fn a_connection_from_start_to_end() {
    let mut script = Script::connected();
    script.client(1001, 5001, "PSH ACK", b"hello");
    script.expect(&["0 > hello"]);
    script.server(5001, 1006, "PSH ACK", b"welcome");
    script.expect(&["0 < welcome"]);
    script.client(1006, 5008, "FIN ACK", b"bye");
    script.expect(&["0 > bye", "0 > finished"]);
    script.server(5008, 1010, "ACK", b"one more");
    script.expect(&["0 < one more"]);
    script.server(5016, 1010, "FIN ACK", b"");
    script.expect(&["0 < finished", "0 ended"]);
    script.client(1010, 5017, "ACK", b"");
    script.finish();
    script.expect(&[]);
}

#[test]
fn bytes_that_come_too_early_wait() {
    let mut script = Script::connected();
    script.client(1006, 5001, "ACK", b"world");
    script.expect(&[]);
    script.client(1001, 5001, "ACK", b"hello");
    script.expect(&["0 > hello", "0 > world"]);
}

#[test]
fn repeated_and_overlapping_segments_give_each_byte_once_and_the_first_copy() {
    let mut script = Script::connected();
    script.client(1001, 5001, "ACK", b"hello");
    script.client(1001, 5001, "ACK", b"HELLO");
    script.client(1003, 5001, "ACK", b"LLO wo");
    script.expect(&["0 > hello", "0 >  wo"]);
    // Ahead: pieces with gaps, then some that overlap them on all sides.
    script.client(1014, 5001, "ACK", b"cd");
    script.client(1018, 5001, "ACK", b"gh");
    script.client(1013, 5001, "ACK", b"BCDEFGHI");
    script.client(1013, 5001, "ACK", b"?????????");
    script.expect(&[]);
    script.client(1009, 5001, "ACK", b"rld!XYZ");
    script.expect(&["0 > rld!", "0 > B", "0 > cdEF", "0 > ghI?"]);
}

#[test]
fn keep_alives_and_probes_are_nothing() {
    let mut script = Script::connected();
    script.client(1001, 5001, "ACK", b"hello");
    script.client(1005, 5001, "ACK", b"");
    script.client(1005, 5001, "ACK", b"x");
    script.server(5000, 1006, "ACK", b"");
    script.client(1006, 5001, "ACK", b"!");
    script.expect(&["0 > hello", "0 > !"]);
}

#[test]
fn a_connection_that_begins_with_a_keep_alive_misses_nothing() {
    let mut script = Script::new();
    script.client(1005, 5001, "ACK", b"");
    script.server(5001, 1006, "ACK", b"");
    script.client(1006, 5001, "ACK", b"on");
    script.server(5001, 1008, "ACK", b"and on");
    script.finish();
    script.expect(&[
        "0 opened 10.0.0.1:40000 10.0.0.2:5930",
        "0 > on",
        "0 < and on",
        "0 ended, not seen how",
    ]);
}

#[test]
fn a_syn_may_carry_bytes() {
    let mut script = Script::new();
    script.client(1000, 0, "SYN", b"early");
    script.server(5000, 1006, "SYN ACK", b"too");
    script.client(1006, 5004, "ACK", b".");
    script.expect(&[
        "0 opened 10.0.0.1:40000 10.0.0.2:5930 from its start",
        "0 > early",
        "0 answered",
        "0 < too",
        "0 > .",
    ]);
}

#[test]
fn both_ends_may_connect_at_once() {
    let mut script = Script::new();
    script.client(1000, 0, "SYN", b"");
    script.server(5000, 0, "SYN", b"");
    script.client(1000, 5001, "SYN ACK", b"");
    script.server(5000, 1001, "SYN ACK", b"");
    script.server(5001, 1001, "ACK", b"x");
    script.expect(&["0 opened 10.0.0.1:40000 10.0.0.2:5930 from its start", "0 answered", "0 < x"]);
}

#[test]
fn sequence_numbers_wrap_around() {
    let mut script = Script::new();
    script.client(u32::MAX - 2, 0, "SYN", b"");
    script.server(u32::MAX, u32::MAX - 1, "SYN ACK", b"");
    script.seen.clear();
    script.client(2, 0, "ACK", b"efg");
    script.client(u32::MAX - 1, 0, "ACK", b"abcd");
    script.server(0, 5, "ACK", b"x");
    script.expect(&["0 > abcd", "0 > efg", "0 < x"]);
}

#[test]
fn a_direction_may_carry_more_than_4_gib() {
    let mut script = Script::connected();
    let megabytes = vec![7; 1 << 20];
    let (mut seq, mut total) = (1001_u32, 0_u64);
    let mut swapped = None;
    for round in 0..5000 {
        // Every 100th segment changes places with the next.
        let mut due = vec![seq];
        if round % 100 == 99 {
            swapped = Some(seq);
            due.clear();
        } else if let Some(earlier) = swapped.take() {
            due.push(earlier);
        }
        for seq in due {
            let segment = Segment {
                from: CLIENT.parse().unwrap(),
                to: SERVER.parse().unwrap(),
                seq,
                ack: 5001,
                flags: Flags::ACK,
                payload: &megabytes,
                cut: 0,
            };
            script.reassembler.handle(script.time, &segment, &mut |event| {
                let Piece::Bytes { bytes, .. } = event.piece else { panic!("{event:?}") };
                total += bytes.len() as u64;
            });
        }
        seq = seq.wrapping_add(1 << 20);
    }
    // The last one was kept back.
    assert_eq!(total, 4999 << 20);
}

#[test]
fn what_the_other_end_acknowledged_again_and_again_is_a_hole() {
    let mut script = Script::connected();
    script.client(1001, 5001, "ACK", b"one");
    script.client(1010, 5001, "ACK", b"three");
    script.expect(&["0 > one"]);
    for _ in 1..CONFIRMATIONS {
        script.server(5001, 1015, "ACK", b"");
    }
    script.expect(&[]);
    script.server(5001, 1015, "ACK", b"");
    script.expect(&["0 > 6 missing: NotCaptured", "0 > three"]);
}

#[test]
fn in_a_slow_connection_two_acknowledgements_are_enough() {
    let mut script = Script::connected();
    script.client(1010, 5001, "ACK", b"later");
    script.server(5001, 1015, "ACK", b"");
    script.time += PATIENCE;
    script.client(1015, 5001, "ACK", b".");
    script.expect(&[]);
    script.server(5001, 1016, "ACK", b"");
    script.expect(&["0 > 9 missing: NotCaptured", "0 > later."]);
}

#[test]
fn bytes_may_be_captured_behind_their_acknowledgement() {
    let mut script = Script::connected();
    script.server(5001, 1006, "ACK", b"");
    script.server(5001, 1006, "ACK", b"");
    script.client(1001, 5001, "ACK", b"hello");
    script.time += PATIENCE;
    script.server(5001, 1006, "ACK", b"");
    script.expect(&["0 > hello"]);
}

/// Nothing waits behind it, but the other end has it.
#[test]
fn a_hole_at_the_end_of_what_was_sent_is_one_as_well() {
    let mut script = Script::connected();
    script.client(1001, 5001, "ACK", b"hello");
    script.server(5001, 1016, "ACK", b"what?");
    script.expect(&["0 > hello", "0 < what?"]);
    script.time += PATIENCE;
    script.server(5006, 1016, "ACK", b"I said: what?");
    script.expect(&["0 < I said: what?", "0 > 10 missing: NotCaptured"]);
    script.client(1016, 5019, "ACK", b"oh");
    script.expect(&["0 > oh"]);
}

#[test]
fn a_wrong_acknowledgement_makes_no_hole() {
    let mut script = Script::connected();
    script.server(5001, 1001 + 50_000, "ACK", b"");
    script.time += PATIENCE;
    for at in 0..100 {
        script.client(1001 + at, 5001, "ACK", b"x");
        script.server(5001, 1002 + at, "ACK", b"");
    }
    script.finish();
    let (end, bytes) = script.seen.split_last().unwrap();
    assert_eq!(end, "0 ended, not seen how");
    assert!(bytes.iter().all(|line| line == "0 > x") && bytes.len() == 100, "{bytes:?}");
}

/// The FIN has a number, and the other end acknowledges it like a byte.
#[test]
fn a_fin_that_was_not_captured_is_no_missing_byte() {
    let mut script = Script::connected();
    script.client(1001, 5001, "ACK", b"bye");
    for _ in 0..2 * CONFIRMATIONS {
        script.time += PATIENCE;
        script.server(5001, 1005, "ACK", b"");
    }
    script.finish();
    script.expect(&["0 > bye", "0 ended, not seen how"]);
}

#[test]
fn too_much_behind_a_gap_is_a_hole() {
    let mut script = Script::with(Limits { waiting: 10_000, ..Limits::default() });
    script.connect();
    script.seen.clear();
    let mut seq = 2001;
    while script.seen.is_empty() {
        assert!(script.reassembler.held < 11_000);
        script.client(seq, 5001, "ACK", &[b'x'; 500]);
        seq += 500;
    }
    assert_eq!(script.seen[0], "0 > 1000 missing: TooFarAhead");
    assert_eq!(script.reassembler.held, 0);
    assert!(seq > 8_000, "{seq}");
}

#[test]
fn too_many_gaps_are_holes() {
    let mut script = Script::with(Limits { pieces: 3, ..Limits::default() });
    script.connect();
    script.seen.clear();
    for seq in [1003, 1005, 1007] {
        script.client(seq, 5001, "ACK", b"x");
    }
    script.expect(&[]);
    script.client(1009, 5001, "ACK", b"x");
    script.expect(&["0 > 2 missing: TooFarAhead", "0 > x"]);
}

#[test]
fn whoever_waits_for_longest_makes_room_for_the_others() {
    let mut script = Script::with(Limits { waiting_total: 2_000, ..Limits::default() });
    let clients = ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"];
    for client in clients {
        script.send(client, SERVER, 0, 0, "SYN", b"", 0);
    }
    script.seen.clear();
    for client in clients {
        script.send(client, SERVER, 101, 0, "ACK", &[b'x'; 700], 0);
        assert!(script.reassembler.held <= 2_000);
    }
    let bytes = format!("0 > {}", "x".repeat(700));
    script.expect(&["0 > 100 missing: TooFarAhead", &bytes]);
    script.send(clients[1], SERVER, 1, 0, "ACK", &[b'y'; 100], 0);
    assert_eq!(script.seen.len(), 2, "the second still waited, and misses nothing");
}

#[test]
fn what_the_capture_cut_off_is_a_hole() {
    let mut script = Script::connected();
    script.send(CLIENT, SERVER, 1001, 5001, "ACK", b"start", 95);
    script.expect(&["0 > start", "0 > 95 missing: CutOff"]);
    script.send(CLIENT, SERVER, 1201, 5001, "ACK", b"third", 95);
    script.send(CLIENT, SERVER, 1101, 5001, "FIN ACK", b"second", 94);
    script.expect(&["0 > second", "0 > 94 missing: CutOff", "0 > third", "0 > 95 missing: CutOff"]);
}

#[test]
fn a_capture_that_lacks_very_much_goes_on_behind_it() {
    let mut script = Script::connected();
    let mut seq = 1001 + 2_000_000_000;
    for _ in 1..RUN {
        script.client(seq, 5001, "ACK", b"xy");
        seq += 2;
    }
    script.expect(&[]);
    script.client(seq, 5001, "ACK", b"xy");
    script.expect(&["0 > 2000000006 missing: NotCaptured", "0 > xy"]);
}

#[test]
fn what_is_too_far_away_is_not_believed() {
    let mut script = Script::connected();
    script.client(1001 + 2_000_000_000, 5001, "ACK", b"false");
    script.client(1001_u32.wrapping_sub(2_000_000_000), 5001, "ACK", b"false");
    script.client(1001, 5001, "ACK", b"true");
    script.finish();
    script.expect(&["0 > true", "0 ended, not seen how"]);
}

#[test]
fn a_capture_that_begins_in_the_middle() {
    let mut script = Script::new();
    script.server(7000, 300, "ACK", b"middle");
    script.client(300, 7006, "ACK", b"of it");
    script.expect(&["0 opened 10.0.0.2:5930 10.0.0.1:40000", "0 > middle", "0 < of it"]);
}

#[test]
fn only_one_direction_was_captured() {
    let mut script = Script::new();
    script.server(5000, 1001, "SYN ACK", b"");
    script.server(5001, 1001, "ACK", b"reply");
    script.server(5006, 1100, "ACK", b"s");
    script.server(5007, 1100, "FIN ACK", b"");
    script.finish();
    script.expect(&[
        "0 opened 10.0.0.1:40000 10.0.0.2:5930 from its start",
        "0 answered",
        "0 < reply",
        "0 < s",
        "0 < finished",
        "0 > 99 missing: End",
        "0 ended, not seen how",
    ]);
}

#[test]
fn a_missing_answer_is_concluded_from_its_acknowledgement() {
    let mut script = Script::new();
    script.client(1000, 0, "SYN", b"");
    script.client(1001, 5001, "ACK", b"hello");
    script.server(5004, 1006, "ACK", b"lo");
    script.finish();
    script.expect(&[
        "0 opened 10.0.0.1:40000 10.0.0.2:5930 from its start",
        "0 > hello",
        "0 < 3 missing: End",
        "0 < lo",
        "0 ended, not seen how",
    ]);
}

/// Found by fuzzing: the concluded beginning and the true one are on different sides of the wrap-around.
#[test]
fn a_direction_may_begin_earlier_than_was_concluded_and_wrap_around() {
    let mut script = Script::new();
    script.client(1000, 0, "SYN", b"");
    script.client(1001, 2, "ACK", b"");
    script.server(10, 1001, "ACK", b"later");
    script.server(u32::MAX - 1, 1001, "ACK", b"begins here!");
    script.expect(&["0 opened 10.0.0.1:40000 10.0.0.2:5930 from its start", "0 < begins here!", "0 < later"]);
}

#[test]
fn copies_of_a_syn_change_nothing() {
    let mut script = Script::new();
    script.connect();
    script.connect();
    script.client(1001, 5001, "ACK", b"x");
    script.client(1000, 0, "SYN", b"");
    script.client(1002, 5001, "ACK", b"y");
    script.expect(&["0 opened 10.0.0.1:40000 10.0.0.2:5930 from its start", "0 answered", "0 > x", "0 > y"]);
}

#[test]
fn a_syn_with_another_number_is_another_connection() {
    let mut script = Script::connected();
    script.client(1004, 5001, "ACK", b"lost");
    script.client(900_000, 0, "SYN", b"");
    script.server(7000, 900_001, "SYN ACK", b"");
    script.server(7001, 900_001, "ACK", b"hello");
    script.expect(&[
        "0 > 3 missing: End",
        "0 > lost",
        "0 ended, not seen how",
        "1 opened 10.0.0.1:40000 10.0.0.2:5930 from its start",
        "1 answered",
        "1 < hello",
    ]);
    // So is one whose SYN was not captured, but whose answer was.
    script.server(100, 300, "SYN ACK", b"");
    script.client(300, 101, "ACK", b"again");
    script.expect(&[
        "1 ended, not seen how",
        "2 opened 10.0.0.1:40000 10.0.0.2:5930 from its start",
        "2 answered",
        "2 > again",
    ]);
}

#[test]
fn an_rst_ends_a_connection() {
    let mut script = Script::connected();
    script.client(1003, 5001, "ACK", b"llo");
    script.server(5001, 1001, "RST ACK", b"");
    script.expect(&["0 > 2 missing: End", "0 > llo", "0 < reset", "0 ended"]);
    // What was under way is not a new connection, nor is a second RST.
    script.client(1006, 5001, "ACK", b"late");
    script.server(5001, 0, "RST", b"");
    script.finish();
    script.expect(&[]);
}

#[test]
fn a_refused_connection() {
    let mut script = Script::new();
    script.client(1000, 0, "SYN", b"");
    script.server(0, 1001, "RST ACK", b"");
    script.expect(&["0 opened 10.0.0.1:40000 10.0.0.2:5930 from its start", "0 < reset", "0 ended"]);
}

#[test]
fn an_rst_that_cannot_be_meant_ends_nothing() {
    let mut script = Script::connected();
    script.server(5001 + 3_000_000, 0, "RST", b"");
    script.server(5001_u32.wrapping_sub(3_000_000), 0, "RST", b"");
    script.server(0x8000_0000, 1001, "RST ACK", b"");
    script.server(5001, 1001, "ACK", b"still here");
    script.expect(&["0 < still here"]);

    let mut script = Script::new();
    script.client(1000, 0, "SYN", b"");
    script.server(0, 0x8000_0000, "RST ACK", b"");
    script.server(5000, 1001, "SYN ACK", b"");
    script.expect(&["0 opened 10.0.0.1:40000 10.0.0.2:5930 from its start", "0 answered"]);
}

#[test]
fn both_ends_may_finish_at_once() {
    let mut script = Script::connected();
    script.client(1001, 5001, "FIN ACK", b"");
    script.server(5001, 1001, "FIN ACK", b"");
    script.client(1002, 5002, "ACK", b"");
    script.server(5002, 1002, "ACK", b"");
    script.finish();
    script.expect(&["0 > finished", "0 < finished", "0 ended"]);
}

#[test]
fn a_fin_waits_for_what_is_before_it() {
    let mut script = Script::connected();
    script.client(1003, 5001, "FIN ACK", b"llo");
    script.client(1006, 5001, "FIN ACK", b"");
    script.expect(&[]);
    script.client(1001, 5001, "ACK", b"he");
    script.expect(&["0 > he", "0 > llo", "0 > finished"]);
    // Whoever finished says nothing more.
    script.client(1006, 5001, "ACK", b"more");
    script.expect(&[]);
}

#[test]
fn a_fin_behind_a_gap_comes_out_at_the_end() {
    let mut script = Script::connected();
    script.server(5001, 1001, "FIN ACK", b"");
    script.client(1011, 5002, "FIN ACK", b"");
    script.expect(&["0 < finished"]);
    script.finish();
    script.expect(&["0 > 10 missing: End", "0 > finished", "0 ended"]);
}

/// Its last packets may come again, and its port may be used again.
#[test]
fn a_connection_that_is_over_is_remembered() {
    let mut script = Script::connected();
    script.client(1001, 5001, "FIN ACK", b"x");
    script.server(5001, 1003, "FIN ACK", b"y");
    script.seen.clear();
    script.client(1001, 5001, "FIN ACK", b"x");
    script.server(5001, 1003, "FIN ACK", b"y");
    script.client(1000, 0, "SYN", b"");
    script.server(5000, 1001, "SYN ACK", b"");
    script.client(1003, 5003, "ACK", b"");
    script.expect(&[]);
    script.client(70_000, 0, "SYN", b"");
    script.expect(&["1 opened 10.0.0.1:40000 10.0.0.2:5930 from its start"]);
    // Without its SYN a new one is known by its numbers.
    script.server(0, 70_001, "RST ACK", b"");
    script.client(3_000_000_000, 77, "ACK", b"new");
    script.expect(&["1 < reset", "1 ended", "2 opened 10.0.0.1:40000 10.0.0.2:5930", "2 > new"]);
}

#[test]
fn the_connection_that_is_idle_for_longest_is_given_up_first() {
    let mut script = Script::with(Limits { connections: 3, ..Limits::default() });
    let send = |script: &mut Script, port: u16, seq, flags, payload: &[u8]| {
        script.send(&format!("10.0.0.1:{port}"), SERVER, seq, 0, flags, payload, 0);
    };
    for port in [1, 2, 3] {
        send(&mut script, port, 0, "SYN", b"");
    }
    send(&mut script, 1, 1, "ACK", b"busy");
    script.seen.clear();
    send(&mut script, 4, 0, "SYN", b"");
    script.expect(&["1 ended, not seen how", "3 opened 10.0.0.1:4 10.0.0.2:5930 from its start"]);
    // One that is over makes room before one that lives does.
    send(&mut script, 3, 1, "RST", b"");
    script.expect(&["2 > reset", "2 ended"]);
    send(&mut script, 5, 0, "SYN", b"");
    script.expect(&["4 opened 10.0.0.1:5 10.0.0.2:5930 from its start"]);
    send(&mut script, 1, 5, "ACK", b"on");
    script.expect(&["0 > on"]);
    script.finish();
    script.expect(&["0 ended, not seen how", "3 ended, not seen how", "4 ended, not seen how"]);
}

/// Neither the connections that are remembered nor the queues that find them grow with the capture.
#[test]
fn many_connections_one_after_the_other_are_forgotten() {
    let mut script = Script::with(Limits { connections: 100, ..Limits::default() });
    for round in 0..20_000_u32 {
        let client = format!("10.0.{}.{}:1000", round / 250, round % 250);
        script.send(&client, SERVER, 0, 0, "SYN", b"", 0);
        script.send(&client, SERVER, 5, 0, "ACK", b"early", 0);
        if round % 2 == 0 {
            script.send(SERVER, &client, 9, 1, "RST ACK", b"", 0);
        }
    }
    let reassembler = &script.reassembler;
    assert!(reassembler.connections.len() <= 100);
    for queue in [reassembler.live.len(), reassembler.over.len(), reassembler.waiting.len()] {
        assert!(queue <= 1100, "{queue}");
    }
    script.finish();
    let count = |what: &str| script.seen.iter().filter(|line| line.contains(what)).count();
    assert_eq!((count("opened"), count(" ended")), (20_000, 20_000));
    assert_eq!(script.reassembler.held, 0);
}
