//! What is noted, read back with the capture pipeline: without threads, without files.

use std::collections::BTreeMap;
use std::io::Cursor;

use spice_proto::frame::{HeaderForm, put_header};
use spice_proto::link::{ChannelType, CommonCaps, LinkMess, LinkReply, TunnelCaps};
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage, SocketId};

use super::queue::Taken;
use super::tap::Notes;
use super::tcp::{Both, other};
use super::*;
use crate::capture::dissect::{self, Body, End, Hole, Terms, What};
use crate::capture::reader::SpiceReader;
use crate::capture::reassembly::{self, Piece};
use crate::capture::{file, packet};

const BOTH: [Sender; 2] = [Sender::Client, Sender::Server];

/// A recorder without thread and disk.
struct Rig {
    queue: Arc<Queue<links::Entry>>,
    core: LinksCore,
    files: BTreeMap<u64, Vec<u8>>,
}

impl Rig {
    fn new(limit: Option<u64>, capacity: usize) -> Self {
        let core = LinksCore::new(limit, clock::now()).unwrap();
        Self { queue: Arc::new(Queue::new(capacity)), core, files: BTreeMap::new() }
    }

    fn link(&self, number: u64, linked: &Linked, ours: Sender) -> Notes {
        Notes::new(&self.queue, LinkId(number), linked, ours, Ends::example(number)).unwrap()
    }

    /// The writer catches up.
    fn write(&mut self) {
        while let Taken::Entries(entries) = self.queue.take(Some(std::time::Instant::now())) {
            for queued in entries {
                self.core.handle(queued.entry, queued.dropped).unwrap();
                self.collect();
                self.queue.release(queued.cost);
            }
        }
    }

    fn collect(&mut self) {
        for part in self.core.parts() {
            self.files.entry(part.number).or_default().extend_from_slice(part.pending());
            part.wrote();
            assert_eq!(part.len(), self.files[&part.number].len() as u64);
        }
        self.core.parts().retain(|part| !part.over);
    }

    fn end(mut self) -> Vec<Vec<u8>> {
        self.write();
        self.core.end(clock::now(), self.queue.dropped()).unwrap();
        self.collect();
        assert!(self.core.parts().is_empty(), "a file that is never closed");
        self.files.into_values().collect()
    }
}

/// What a file says about one link.
#[derive(Debug, Default, PartialEq)]
struct Story {
    terms: Option<Terms>,
    stage: Vec<&'static str>,
    said: Both<Vec<Vec<u8>>>,
    holes: Vec<(Sender, Hole)>,
    end: Option<End>,
}

/// Reads a file back. Fails on anything that is malformed.
fn read(file: &[u8]) -> Vec<Story> {
    let reader = file::Reader::new(Cursor::new(file.to_vec())).unwrap();
    let mut reader = SpiceReader::new(reader, dissect::Options::default());
    let mut stories: Vec<Story> = Vec::new();
    let mut note = |item: dissect::Item<'_>| {
        let number = usize::try_from(item.stream.0).unwrap();
        let from = item.from;
        if let What::Began { from_start, .. } = item.what {
            assert!(from_start);
            assert_eq!(stories.len(), number);
            stories.push(Story::default());
            return;
        }
        let story = &mut stories[number];
        match item.what {
            What::Began { .. } => {}
            What::LinkMess { mess, .. } => {
                assert_eq!((mess.channel_type, mess.session_id), (ChannelType::TUNNEL.0, 7));
                story.stage.push("mess");
            }
            What::LinkReply { reply, .. } => match reply {
                LinkReply::Welcome(welcome) => {
                    assert!(welcome.has_no_key());
                    story.stage.push("reply");
                }
                LinkReply::Refused(error) => panic!("{error}"),
            },
            What::AuthMechanism(mechanism) => {
                assert_eq!(mechanism, 1);
                story.stage.push("mechanism");
            }
            What::Ticket => story.stage.push("ticket"),
            What::LinkResult(result) => {
                assert_eq!(result, None);
                story.stage.push("result");
            }
            What::Linked(terms) => story.terms = Some(terms),
            What::Message(message) => {
                if matches!(message.body, Body::Incomplete) {
                    return;
                }
                assert_eq!(message.bytes.len(), message.head.size as usize);
                story.said.of_mut(from.unwrap()).push(message.bytes.to_vec());
            }
            What::Hole(hole) => story.holes.push((from.unwrap(), hole)),
            What::Ended { how } => story.end = Some(how),
            other @ (What::Malformed { .. } | What::Sasl { .. }) => panic!("{other:?}"),
        }
    };
    while reader.step(&mut note).unwrap() {}
    assert_eq!(reader.counts().faults, BTreeMap::new());
    stories
}

fn linked(header: HeaderForm, layout: Layout, caps: TunnelCaps) -> Linked {
    let common = match (layout, header) {
        (Layout::A, _) => CommonCaps::empty(),
        (Layout::B, HeaderForm::Full) => CommonCaps::AUTH_SELECTION | CommonCaps::AUTH_SPICE,
        (Layout::B, HeaderForm::Mini) => CommonCaps::OURS,
    };
    Linked {
        channel_type: ChannelType::TUNNEL.0,
        channel_id: 0,
        session_id: 7,
        header,
        layout,
        peer_common: common,
        common,
        peer_channel_caps: if caps.is_empty() { Vec::new() } else { vec![caps.bits()] },
        leftover: Vec::new(),
    }
}

fn modern() -> Linked {
    linked(HeaderForm::Mini, Layout::B, TunnelCaps::OURS)
}

/// The same every time, and different everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}

/// A SOCKET_DATA of a direction, and its body.
fn message(header: HeaderForm, from: Sender, serial: u64, payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut whole, mut body) = (Vec::new(), Vec::new());
    let socket = SocketId(0);
    let kind = match from {
        Sender::Client => {
            let message = ClientMessage::SocketData { socket, payload };
            message.write_body(Layout::B, &mut body);
            message.kind()
        }
        Sender::Server => {
            let message = ServerMessage::SocketData { socket, payload };
            message.write_body(&mut body);
            message.kind()
        }
    };
    put_header(header, &mut whole, serial, kind, body.len() as u32);
    whole.extend_from_slice(&body);
    (whole, body)
}

/// Messages both ways in pieces of any size, their bodies noted in `said`. Ends between messages.
fn talk(
    dice: &mut Dice,
    header: HeaderForm,
    rounds: usize,
    mut pass: impl FnMut(Sender, &[u8]),
) -> Both<Vec<Vec<u8>>> {
    let mut said: Both<Vec<Vec<u8>>> = Both::default();
    let mut waiting: Both<Vec<u8>> = Both::default();
    for round in 0..rounds {
        let from = BOTH[dice.below(2)];
        let longest = [1, 20, 3000, 150_000][dice.below(4)];
        let payload: Vec<u8> = (0..dice.below(longest)).map(|_| dice.below(256) as u8).collect();
        let (whole, body) = message(header, from, said.of(from).len() as u64 + 1, &payload);
        said.of_mut(from).push(body);
        waiting.of_mut(from).extend(whole);
        let from = BOTH[dice.below(2)];
        let bytes = waiting.of_mut(from);
        if !bytes.is_empty() {
            let count =
                if round % 3 == 0 { 1 + dice.below(bytes.len().min(9)) } else { 1 + dice.below(bytes.len()) };
            pass(from, &bytes[..count]);
            bytes.drain(..count);
        }
    }
    for from in BOTH {
        pass(from, waiting.of(from));
    }
    said
}

/// Compares messages without printing them.
fn same(got: &[Vec<u8>], said: &[Vec<u8>], what: &str) {
    let other = got.iter().zip(said).position(|(got, said)| got != said);
    let lengths = |bodies: &[Vec<u8>]| -> Vec<usize> { bodies.iter().map(Vec::len).collect() };
    assert!(
        other.is_none() && got.len() == said.len(),
        "{what}: {other:?} differs first\n{:?}\n{:?}",
        lengths(got),
        lengths(said)
    );
}

#[test]
fn all_of_it_is_read_back_from_every_kind_of_link() {
    let kinds = [
        modern(),
        linked(HeaderForm::Full, Layout::B, TunnelCaps::empty()),
        linked(HeaderForm::Full, Layout::A, TunnelCaps::empty()),
    ];
    for (seed, kind) in kinds.iter().enumerate() {
        for ours in BOTH {
            let mut rig = Rig::new(None, 64 << 20);
            let mut notes = rig.link(0, kind, ours);
            let mut dice = Dice(seed as u64);
            let said = talk(&mut dice, kind.header, 200, |from, bytes| notes.passed(from, bytes));
            drop(notes);
            let files = rig.end();
            assert_eq!(files.len(), 1);
            let mut stories = read(&files[0]);
            assert_eq!(stories.len(), 1);
            let story = stories.remove(0);
            for from in BOTH {
                same(story.said.of(from), said.of(from), &format!("{from:?}"));
            }
            assert_eq!(story.holes, []);
            assert_eq!(story.end, Some(End::Closed));
            let terms = story.terms.unwrap();
            assert_eq!((terms.header, terms.layout), (kind.header, kind.layout));
            assert_eq!(terms.channel_caps, kind.peer_channel_caps);
            let stage: &[&str] = match kind.layout {
                Layout::A => &["mess", "reply", "ticket", "result"],
                Layout::B => &["mess", "reply", "mechanism", "ticket", "result"],
            };
            assert_eq!(story.stage, stage);
            // The recorder's side does not matter to what is in it.
            rig = Rig::new(None, 64 << 20);
            drop(rig.link(0, kind, other(ours)));
            assert_eq!(read(&rig.end()[0])[0].terms, Some(terms));
        }
    }
}

#[test]
fn the_link_message_has_the_ends_true_capabilities() {
    for ours in BOTH {
        let link = Linked { peer_common: CommonCaps::from_bits_retain(0x8d), ..modern() };
        let stage = link_stage::synthesise(&link, ours);
        let (_, asked) = &stage[0];
        let mess = LinkMess::parse(&asked[16..]).unwrap();
        let expected = match ours {
            Sender::Client => CommonCaps::OURS.bits(),
            Sender::Server => 0x8d,
        };
        assert_eq!(mess.common_caps, [expected]);
    }
}

#[test]
fn what_was_read_with_the_link_stage_is_there_once() {
    let (whole, body) = message(HeaderForm::Mini, Sender::Server, 1, b"early");
    let rig = Rig::new(None, 1 << 20);
    let link = Linked { leftover: whole[..9].to_vec(), ..modern() };
    let mut notes = rig.link(0, &link, Sender::Client);
    notes.passed(Sender::Server, &whole[9..]);
    drop(notes);
    assert_eq!(read(&rig.end()[0])[0].said.server, [body]);
}

#[test]
fn links_after_each_other_and_beside_each_other_are_told_apart() {
    let mut rig = Rig::new(None, 1 << 20);
    let mut bodies = Vec::new();
    let mut open = Vec::new();
    for number in 0..6 {
        let mut notes = rig.link(number, &modern(), Sender::Server);
        let (whole, body) = message(HeaderForm::Mini, Sender::Client, 1, number.to_string().as_bytes());
        notes.passed(Sender::Client, &whole);
        bodies.push(body);
        if number % 2 == 0 {
            open.push(notes);
        }
        rig.write();
    }
    drop(open);
    let stories = read(&rig.end()[0]);
    let said: Vec<Vec<u8>> = stories.iter().flat_map(|story| story.said.client.clone()).collect();
    assert_eq!(said, bodies);
    assert!(stories.iter().all(|story| story.end == Some(End::Closed)));
}

#[test]
fn ends_are_what_they_were() {
    type Deed = fn(&mut Notes);
    let cases: [(Deed, End); 5] = [
        (|_| {}, End::Closed),
        (|notes| notes.finished(Sender::Client), End::Closed),
        (|notes| notes.finished(Sender::Server), End::Closed),
        (
            |notes| {
                notes.finished(Sender::Server);
                notes.finished(Sender::Client);
                notes.finished(Sender::Client);
            },
            End::Closed,
        ),
        (Notes::broke, End::Reset(Sender::Server)),
    ];
    for (index, (deed, expected)) in cases.into_iter().enumerate() {
        let rig = Rig::new(None, 1 << 20);
        let mut notes = rig.link(0, &modern(), Sender::Client);
        deed(&mut notes);
        drop(notes);
        assert_eq!(read(&rig.end()[0])[0].end, Some(expected), "case {index}");
    }
    // The recording ends before the link.
    let rig = Rig::new(None, 1 << 20);
    let notes = rig.link(0, &modern(), Sender::Client);
    assert_eq!(read(&rig.end()[0])[0].end, Some(End::CaptureOver));
    drop(notes);
}

/// Where one direction of the file's only connection goes on behind its holes, bytes from its beginning.
fn resumptions(file: &[u8], from: Sender) -> Vec<u64> {
    let way = match from {
        Sender::Client => reassembly::Way::Forth,
        Sender::Server => reassembly::Way::Back,
    };
    let (mut at, mut resumptions) = (0, Vec::new());
    let mut note = |event: reassembly::StreamEvent<'_>| match event.piece {
        Piece::Bytes { way: whose, bytes } if whose == way => at += bytes.len() as u64,
        Piece::Hole { way: whose, missing, .. } if whose == way => {
            at += missing;
            resumptions.push(at);
        }
        Piece::Opened { .. }
        | Piece::Answered
        | Piece::Bytes { .. }
        | Piece::Hole { .. }
        | Piece::Finished { .. }
        | Piece::Reset { .. }
        | Piece::Ended { .. } => {}
    };
    let mut reader = file::Reader::new(Cursor::new(file.to_vec())).unwrap();
    let mut reassembler = reassembly::Reassembler::new(reassembly::Limits::default());
    while let Some(packet) = reader.next().unwrap() {
        let segment = packet::segment(&packet).unwrap().unwrap();
        reassembler.handle(packet.time, &segment, &mut note);
    }
    reassembler.finish(&mut note);
    resumptions
}

#[test]
fn what_is_dropped_leaves_a_hole_of_its_size_and_a_message_behind_it() {
    for seed in 0..20 {
        let mut rig = Rig::new(None, 300_000);
        let mut notes = rig.link(0, &modern(), Sender::Server);
        let mut dice = Dice(seed);
        let mut writer = Dice(seed + 1000);
        let said = talk(&mut dice, HeaderForm::Mini, 150, |from, bytes| {
            notes.passed(from, bytes);
            if writer.below(12) == 0 {
                rig.write();
            }
        });
        drop(notes);
        let dropped = rig.queue.dropped();
        assert!(dropped.pieces > 0, "seed {seed}: nothing was dropped");
        let files = rig.end();
        let story = read(&files[0]).remove(0);
        let missing: u64 = story.holes.iter().map(|(_, hole)| hole.missing.unwrap()).sum();
        assert_eq!(missing, dropped.bytes, "seed {seed}");
        let stage = link_stage::lengths(&link_stage::synthesise(&modern(), Sender::Server));
        for from in BOTH {
            let mut begins = vec![u64::from(*stage.of(from))];
            for body in said.of(from) {
                begins.push(begins[begins.len() - 1] + (HeaderForm::Mini.len() + body.len()) as u64);
            }
            for at in resumptions(&files[0], from) {
                assert!(begins.binary_search(&at).is_ok(), "seed {seed}: no message begins at {at}");
            }
        }
        for from in BOTH {
            // What is there is what was said, in its order.
            let mut all = said.of(from).iter();
            for got in story.said.of(from) {
                assert!(all.any(|said| said == got), "seed {seed}: {from:?} never said that, or not then");
            }
        }
        assert_eq!(story.end, Some(End::Closed));
    }
}

#[test]
fn every_file_can_be_read_by_itself_and_nothing_is_lost_between_them() {
    for seed in 0..12 {
        let mut rig = Rig::new(Some(200_000), 64 << 20);
        let kind =
            if seed % 2 == 0 { modern() } else { linked(HeaderForm::Full, Layout::B, TunnelCaps::empty()) };
        let mut notes = rig.link(0, &kind, Sender::Client);
        let mut dice = Dice(seed);
        let said = talk(&mut dice, kind.header, 400, |from, bytes| {
            notes.passed(from, bytes);
            rig.write();
        });
        drop(notes);
        let files = rig.end();
        assert!(files.len() > 5, "seed {seed}: {} files", files.len());
        let mut got: Both<Vec<Vec<u8>>> = Both::default();
        for (number, file) in files.iter().enumerate() {
            // At most a message of each direction and what came in one piece above the limit.
            assert!(
                file.len() < 200_000 + 4 * 160_000,
                "seed {seed}: file {number} has {} bytes",
                file.len()
            );
            let mut stories = read(file);
            assert_eq!(stories.len(), 1, "seed {seed}: file {number}");
            let story = stories.remove(0);
            assert_eq!(story.holes, [], "seed {seed}: file {number}");
            assert_eq!(story.stage.len(), 5, "seed {seed}: file {number}");
            for from in BOTH {
                got.of_mut(from).extend_from_slice(story.said.of(from));
            }
            let last = number + 1 == files.len();
            assert_eq!(story.end, Some(if last { End::Closed } else { End::CaptureOver }));
        }
        for from in BOTH {
            same(got.of(from), said.of(from), &format!("seed {seed}, {from:?}"));
        }
    }
}

#[test]
fn sequence_numbers_go_on_over_files() {
    let mut rig = Rig::new(Some(100_000), 64 << 20);
    let mut notes = rig.link(0, &modern(), Sender::Client);
    let said = talk(&mut Dice(3), HeaderForm::Mini, 100, |from, bytes| {
        notes.passed(from, bytes);
        rig.write();
    });
    drop(notes);
    let total: usize = said.client.iter().map(|body| body.len() + HeaderForm::Mini.len()).sum();
    let files = rig.end();
    assert!(files.len() > 2);
    for (number, file) in files.iter().enumerate() {
        let remark = b"this connection began in an earlier file";
        assert_eq!(file.windows(remark.len()).any(|window| window == remark), number > 0);
    }
    let mut last = None;
    for file in &files {
        let mut reader = file::Reader::new(Cursor::new(file.clone())).unwrap();
        while let Some(packet) = reader.next().unwrap() {
            let segment = packet::segment(&packet).unwrap().unwrap();
            if segment.from == Ends::example(0).client && segment.flags.contains(packet::Flags::FIN) {
                last = Some(segment.seq);
            }
        }
    }
    assert_eq!(last, Some(10_000 + total as u32));
}

#[test]
fn a_file_waits_for_the_rest_of_a_message_whatever_comes_meanwhile() {
    let mut rig = Rig::new(Some(100_000), 64 << 20);
    let mut notes = rig.link(0, &modern(), Sender::Server);
    let (slow, slow_body) = message(HeaderForm::Mini, Sender::Client, 1, &[1; 50_000]);
    notes.passed(Sender::Client, &slow[..20_000]);
    let (quick, quick_body) = message(HeaderForm::Mini, Sender::Server, 1, &[2; 30_000]);
    for _ in 0..20 {
        notes.passed(Sender::Server, &quick);
        rig.write();
    }
    notes.passed(Sender::Client, &slow[20_000..]);
    notes.passed(Sender::Client, &slow);
    drop(notes);
    let files = rig.end();
    assert!(files.len() > 3);
    let stories: Vec<Story> = files.iter().map(|file| read(file).remove(0)).collect();
    let quick: Vec<&Vec<u8>> = stories.iter().flat_map(|story| &story.said.server).collect();
    assert_eq!(quick, vec![&quick_body; 20]);
    let slow: Vec<&Vec<u8>> = stories.iter().flat_map(|story| &story.said.client).collect();
    assert_eq!(slow, [&slow_body, &slow_body]);
    assert_eq!(stories[0].said.client.len(), 1, "its rest goes to the file that it began in");
    assert_eq!(stories.iter().map(|story| story.holes.len()).sum::<usize>(), 0);
}

#[test]
fn a_header_that_never_ends_is_recorded() {
    let rig = Rig::new(None, 1 << 20);
    let mut notes = rig.link(0, &modern(), Sender::Server);
    let (whole, _) = message(HeaderForm::Mini, Sender::Client, 1, b"cut off");
    notes.passed(Sender::Client, &whole[..4]);
    drop(notes);
    let file = rig.end().remove(0);
    let mut bytes = Vec::new();
    let mut reader = file::Reader::new(Cursor::new(file)).unwrap();
    while let Some(packet) = reader.next().unwrap() {
        let segment = packet::segment(&packet).unwrap().unwrap();
        if segment.from == Ends::example(0).client {
            bytes.extend_from_slice(segment.payload);
        }
    }
    assert!(bytes.ends_with(&whole[..4]));
}

#[test]
fn frames_are_told_apart_by_direction_and_files_end_when_they_are_full() {
    let mut core = CardCore::new(Some(70_000), Duration::ZERO).unwrap();
    let mut files: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for number in 0..100_u8 {
        let way = if number % 3 == 0 { Way::FromGuest } else { Way::ToGuest };
        let entry = card::Entry { time: Duration::from_nanos(number.into()), way, frame: vec![number; 1500] };
        core.handle(entry, Dropped { pieces: u64::from(number / 50), bytes: 0 }).unwrap();
        if number == 99 {
            core.end(Duration::from_secs(1), Dropped::default()).unwrap();
        }
        for part in core.parts() {
            files.entry(part.number).or_default().extend_from_slice(part.pending());
            part.wrote();
        }
        core.parts().retain(|part| !part.over);
    }
    assert!(core.parts().is_empty());
    assert_eq!(files.len(), 3);
    let mut next = 0_u8;
    for file in files.values() {
        let mut reader = file::Reader::new(Cursor::new(file.clone())).unwrap();
        while let Some(packet) = reader.next().unwrap() {
            assert_eq!(packet.bytes, [next; 1500]);
            assert_eq!((packet.link_type, packet.time), (1, Duration::from_nanos(next.into())));
            next += 1;
        }
    }
    assert_eq!(next, 100);
    // epb_flags of the first two, and the drop before the 51st.
    let all: Vec<u8> = files.into_values().flatten().collect();
    let count = |option: &[u8]| all.windows(option.len()).filter(|window| *window == option).count();
    assert_eq!(count(&[2, 0, 4, 0, 1, 0, 0, 0]), 34);
    assert_eq!(count(&[2, 0, 4, 0, 2, 0, 0, 0]), 66);
    assert_eq!(count(&[4, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0]), 1);
}

#[test]
fn addresses_are_of_one_family() {
    let ends = |client: &str, server: &str| {
        let ends = Ends { client: client.parse().unwrap(), server: server.parse().unwrap() };
        let ends = ends.canonical();
        (ends.client.to_string(), ends.server.to_string())
    };
    let told = |client: &str, server: &str| (client.to_owned(), server.to_owned());
    assert_eq!(ends("1.2.3.4:5", "6.7.8.9:10"), told("1.2.3.4:5", "6.7.8.9:10"));
    assert_eq!(ends("[::ffff:1.2.3.4]:5", "[::ffff:6.7.8.9]:10"), told("1.2.3.4:5", "6.7.8.9:10"));
    assert_eq!(ends("[fe80::1]:5", "[fe80::2]:10"), told("[fe80::1]:5", "[fe80::2]:10"));
    assert_eq!(ends("1.2.3.4:5", "[fe80::2]:10"), told("[::ffff:1.2.3.4]:5", "[fe80::2]:10"));
}
