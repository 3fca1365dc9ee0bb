//! Captures of which something is missing, or changed.

use super::*;

/// What the two directions of each connection say, by the sender's address: type and size of the messages.
#[derive(Debug, Default, PartialEq)]
struct Said {
    messages: BTreeMap<(SocketAddr, SocketAddr), Vec<(u16, u32)>>,
    /// How many of them are there as a whole.
    whole: BTreeMap<(SocketAddr, SocketAddr), usize>,
    headers: BTreeMap<(SocketAddr, SocketAddr), usize>,
    times: Vec<Duration>,
    malformed: Vec<String>,
    holes: Vec<Hole>,
}

fn said(packets: &[Packet]) -> Said {
    let mut said = Said::default();
    let mut ends = BTreeMap::new();
    dissect(
        &mut Dissector::new(Options::default()),
        &events(packets),
        || usize::MAX,
        |item| match item.what {
            What::Began { client, server, .. } => {
                ends.insert(item.stream, (client, server));
            }
            What::Message(message) => {
                let (client, server) = ends[&item.stream];
                let way = if item.from == Some(Sender::Client) { (client, server) } else { (server, client) };
                said.times.push(item.time);
                *said.whole.entry(way).or_default() += usize::from(message.body != Body::Incomplete);
                said.messages.entry(way).or_default().push((message.head.kind, message.head.size));
            }
            What::Malformed { error, .. } => said.malformed.push(error),
            What::Hole(hole) => said.holes.push(hole),
            What::Linked(terms) => {
                let (client, server) = ends[&item.stream];
                said.headers.insert((client, server), terms.header.len());
                said.headers.insert((server, client), terms.header.len());
            }
            What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_)
            | What::Ended { .. } => {}
        },
    );
    said
}

fn is_within(part: &[(u16, u32)], whole: &[(u16, u32)]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|message| rest.any(|other| other == message))
}

#[test]
fn messages_are_found_in_a_capture_that_begins_late() {
    for name in STOCK.into_iter().chain(TUNNELS) {
        let packets = packets(name);
        let all = said(&packets);
        for n in (0..packets.len()).step_by(if name.starts_with("tunnel") { 23 } else { 1 }) {
            let late = said(&packets[n..]);
            for (way, messages) in &late.messages {
                assert!(all.messages[way].ends_with(messages), "{name} from {n}: {messages:?}");
            }
            assert_eq!(late.malformed, Vec::<String>::new(), "{name} from {n}");
            assert!(
                late.holes.iter().all(|hole| hole.missing.is_none()),
                "{name} from {n}: {:?}",
                late.holes
            );
            // A few messages are not enough to recognise a connection by.
            let expected = all.times.iter().filter(|time| **time > packets[n].time).count();
            assert!(late.times.len() + 8 >= expected, "{name} from {n}: {} of {expected}", late.times.len());
        }
    }
}

#[test]
fn messages_are_found_behind_a_packet_that_is_missing() {
    for name in STOCK.into_iter().chain(TUNNELS) {
        let packets = packets(name);
        let all = said(&packets);
        for n in (0..packets.len()).step_by(if name.starts_with("tunnel") { 7 } else { 1 }) {
            let mut fewer = packets.clone();
            let gone = fewer.remove(n);
            let less = said(&fewer);
            for (way, messages) in &less.messages {
                assert!(is_within(messages, &all.messages[way]), "{name} without {n}: {messages:?}");
            }
            assert_eq!(less.malformed, Vec::<String>::new(), "{name} without {n}");
            // Those that the packet held, the one that it began, and one that was too little to go by.
            let lost = all.times.len() - less.times.len();
            let held = all.times.iter().filter(|time| **time == gone.time).count();
            assert!(lost <= held + 2, "{name} without {n}: {lost} messages of {held} are missing");
            // Behind the last bytes of a direction nothing shows that they are missing.
            let shows = fewer[n..]
                .iter()
                .any(|later| (later.from, later.to) == (gone.from, gone.to) && !later.payload.is_empty());
            if gone.payload.is_empty() || shows {
                assert_eq!(
                    less.holes.is_empty(),
                    gone.payload.is_empty(),
                    "{name} without {n}: {:?}",
                    less.holes
                );
            }
        }
    }
}

/// How many messages of each direction a damaged capture holds as a whole.
fn captured(all: &Said, whole: &[Packet], damaged: &[Packet]) -> BTreeMap<(SocketAddr, SocketAddr), usize> {
    let mut counts = BTreeMap::new();
    for (way, messages) in &all.messages {
        let of_way = |packet: &&Packet| (packet.from, packet.to) == *way;
        let first = whole.iter().filter(of_way).find(|packet| packet.flags.contains(Flags::SYN)).unwrap();
        let offset = |packet: &Packet| packet.seq.wrapping_sub(first.seq + 1) as usize;
        let sent = whole.iter().filter(of_way).filter(|packet| !packet.payload.is_empty());
        let length = sent.map(|packet| offset(packet) + packet.payload.len()).max().unwrap();
        let mut there = vec![false; length];
        for packet in damaged.iter().filter(of_way).filter(|packet| !packet.payload.is_empty()) {
            there[offset(packet)..][..packet.payload.len()].fill(true);
        }
        // The link stage goes before them.
        let lengths = messages.iter().map(|(_, size)| all.headers[way] + *size as usize);
        let mut at = length - lengths.clone().sum::<usize>();
        let is_there = |length: usize| {
            at += length;
            there[at - length..at].iter().all(|there| *there)
        };
        counts.insert(*way, lengths.map(is_there).filter(|there| *there).count());
    }
    counts
}

/// Nothing is invented, little is overlooked.
fn check_damaged(what: &str, all: &Said, whole: &[Packet], damaged: &[Packet], share: usize) {
    let less = said(damaged);
    assert_eq!(less.malformed, Vec::<String>::new(), "{what}");
    for (way, messages) in &less.messages {
        assert!(is_within(messages, &all.messages[way]), "{what}, {way:?}: {messages:?}");
    }
    for (way, captured) in captured(all, whole, damaged) {
        let found = less.whole.get(&way).copied().unwrap_or(0);
        assert!(found <= captured, "{what}, {way:?}: {found} of {captured}");
        assert!(found + 3 >= captured * share / 100, "{what}, {way:?}: {found} of {captured}");
    }
}

#[test]
fn captures_with_a_snap_length_show_no_more_than_there_is() {
    for name in STOCK.into_iter().chain(TUNNELS) {
        let packets = packets(name);
        let all = said(&packets);
        for length in [30, 134, 200, 234, 934] {
            let mut cut = packets.clone();
            for packet in &mut cut {
                packet.cut = packet.payload.len().saturating_sub(length);
                packet.payload.truncate(length);
            }
            check_damaged(&format!("{name} cut at {length}"), &all, &packets, &cut, 90);
        }
    }
}

#[test]
fn captures_with_packets_dropped_show_no_more_than_there_is() {
    let mut random = Random(0x10557);
    for name in STOCK.into_iter().chain(TUNNELS) {
        let packets = packets(name);
        let all = said(&packets);
        for run in 0..if name.starts_with("tunnel") { 10 } else { 50 } {
            let mut fewer = packets.clone();
            fewer.retain(|_| random.below(20) != 0);
            check_damaged(&format!("{name}, run {run}"), &all, &packets, &fewer, 90);
        }
    }
}

#[test]
fn changed_bytes_harm_nothing() {
    let mut random = Random(0xBAD5EED);
    for name in STOCK.into_iter().chain(TUNNELS) {
        let packets = packets(name);
        let runs = if name.starts_with("tunnel") { 20 } else { 200 };
        for _ in 0..runs {
            let mut packets = packets.clone();
            for _ in 0..1 + random.below(20) {
                let at = random.below(packets.len());
                let length = packets[at].payload.len();
                if length > 0 {
                    // Headers stand at the beginnings.
                    let reach = if random.below(2) == 0 { 24.min(length) } else { length };
                    packets[at].payload[random.below(reach)] = random.below(256) as u8;
                }
            }
            let events = events(&packets);
            let whole = texts(&events, || usize::MAX);
            assert!(whole.iter().filter(|text| text.contains("Ended")).count() <= 4);
            let mut most = 0;
            let mut dissector = Dissector::new(Options { port: None, memory: 300_000 });
            for event in &events {
                match event {
                    Event::Other(event) => dissector.handle(*event, &mut |_| {}),
                    Event::Bytes(time, stream, way, bytes) => {
                        for bytes in bytes.chunks(700) {
                            let piece = Piece::Bytes { way: *way, bytes };
                            dissector
                                .handle(StreamEvent { time: *time, stream: *stream, piece }, &mut |_| {});
                        }
                    }
                }
                most = most.max(dissector.held);
            }
            assert!(most < 700_000, "{most}");
        }
    }
}
