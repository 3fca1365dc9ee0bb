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
