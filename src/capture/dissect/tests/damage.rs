//! Captures of which something is missing, or changed.

use super::*;

/// What the two directions of each connection say, by the sender's address: type and size of the messages.
#[derive(Debug, Default, PartialEq)]
struct Said {
    messages: BTreeMap<(SocketAddr, SocketAddr), Vec<(u16, u32)>>,
    malformed: Vec<String>,
    holes: Vec<Hole>,
}

fn said(packets: &[Packet]) -> Said {
    let mut said = Said::default();
    let mut ends = BTreeMap::new();
    dissect(&mut Dissector::new(Options::default()), &events(packets), || usize::MAX, |item| match item.what {
        What::Began { client, server, .. } => {
            ends.insert(item.stream, (client, server));
        }
        What::Message(message) => {
            let (client, server) = ends[&item.stream];
            let way = if item.from == Some(Sender::Client) { (client, server) } else { (server, client) };
            said.messages.entry(way).or_default().push((message.head.kind, message.head.size));
        }
        What::Malformed { error, .. } => said.malformed.push(error),
        What::Hole(hole) => said.holes.push(hole),
        _ => {}
    });
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
            let total: usize = late.messages.values().map(Vec::len).sum();
            println!("{name} late {n}: {total} {:?} {:?}", late.holes, late.malformed);
            for (way, messages) in &late.messages {
                let Some(full) = all.messages.get(way) else { println!("  !!! wrong way {way:?} {messages:?}"); continue };
                if !full.ends_with(messages) { println!("  !!! {way:?} {messages:?} of {full:?}"); }
            }
        }
    }
}

#[test]
fn messages_are_found_behind_a_packet_that_is_missing() {
    for name in STOCK.into_iter().chain(TUNNELS) {
        let packets = packets(name);
        let all = said(&packets);
        let sum: usize = all.messages.values().map(Vec::len).sum();
        for n in (0..packets.len()).step_by(if name.starts_with("tunnel") { 7 } else { 1 }) {
            let mut fewer = packets.clone();
            let gone = fewer.remove(n);
            let less = said(&fewer);
            let total: usize = less.messages.values().map(Vec::len).sum();
            println!("{name} drop {n}: {} of {sum} for {} bytes {:?} {:?}", total, gone.payload.len(), less.holes, less.malformed);
            for (way, messages) in &less.messages {
                let Some(full) = all.messages.get(way) else { println!("  !!! wrong way {way:?} {messages:?}"); continue };
                if !is_within(messages, full) { println!("  !!! {way:?} {messages:?} of {full:?}"); }
            }
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
                            dissector.handle(StreamEvent { time: *time, stream: *stream, piece }, &mut |_| {});
                        }
                    }
                }
                most = most.max(dissector.held);
            }
            assert!(most < 700_000, "{most}");
        }
    }
}
