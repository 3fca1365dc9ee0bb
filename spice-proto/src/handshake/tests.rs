//! Both machines, against bytes from the wire reference, from captures, and from hostile peers.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::link::{
    LinkHeader, LinkMess, LinkReply, MAGIC, MAX_CAP_WORDS, MAX_SIZE, TICKET_LEN, TunnelCaps, VERSION, Welcome,
};

const DEADLINES: Deadlines = Deadlines { step: Duration::from_secs(10), total: Duration::from_secs(30) };
const KEY: [u8; 162] = [0x30; 162];
const TICKET: [u8; TICKET_LEN] = [0x5a; TICKET_LEN];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn header(magic: &[u8], major: u32, minor: u32, size: u32) -> Vec<u8> {
    [magic, &major.to_le_bytes(), &minor.to_le_bytes(), &size.to_le_bytes()].concat()
}

/// A link message with a header of its own, every field free.
fn mess(size: u32, common: u32, channel: u32, offset: u32, words: &[u32]) -> Vec<u8> {
    let mut bytes = header(&MAGIC, 2, 2, size);
    bytes.extend(0u32.to_le_bytes());
    bytes.extend([7, 0]);
    [common, channel, offset].iter().chain(words).for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes.resize(bytes.len().max(16 + size.min(5000) as usize), 0);
    bytes
}

/// A plain link message: these common words, one channel word.
fn plain(common: &[u32]) -> Vec<u8> {
    let mess = LinkMess {
        session_id: 0x1234_5678,
        channel_type: 7,
        channel_id: 0,
        common_caps: common.to_vec(),
        channel_caps: vec![7],
    };
    let mut bytes = Vec::new();
    mess.write(LinkVersion::V2, &mut bytes);
    bytes
}

fn welcome() -> Welcome {
    Welcome {
        public_key: Box::new(KEY),
        common_caps: vec![CommonCaps::OURS.bits()],
        channel_caps: vec![TunnelCaps::OURS.bits()],
    }
}

fn server(now: Instant) -> ServerHandshake {
    ServerHandshake::new(now, DEADLINES, OnSasl::Refuse)
}

/// Feeds a server that says yes to everything; returns its outcome, what it said, and what it did not consume.
fn serve(input: &[u8], piece: usize) -> (Result<Linked, HandshakeError>, Vec<u8>, usize) {
    let now = Instant::now();
    let mut machine = server(now);
    let mut rest = input;
    loop {
        match machine.needs() {
            ServerNeeds::Bytes(wanted) => {
                assert!(wanted > 0);
                if rest.is_empty() {
                    let error = machine.handle_eof();
                    return (Err(error), machine.poll_transmit().to_vec(), 0);
                }
                let (now_fed, _) = rest.split_at(piece.min(rest.len()));
                match machine.handle_bytes(now, now_fed) {
                    Ok(used) => rest = &rest[used..],
                    Err(error) => return (Err(error), machine.poll_transmit().to_vec(), rest.len()),
                }
            }
            ServerNeeds::Decision(_) => machine.welcome(now, welcome()).unwrap(),
            ServerNeeds::Verdict(_) => machine.permit().unwrap(),
            ServerNeeds::Sasl => panic!("not asked for"),
            ServerNeeds::Done => {
                let said = machine.poll_transmit().to_vec();
                return (machine.finish(), said, rest.len());
            }
        }
    }
}

/// The code in an error reply, which must be 194 bytes with nothing but the code in it.
fn code(reply: &[u8]) -> u32 {
    assert_eq!(reply.len(), 194);
    assert_eq!(&reply[..16], header(&MAGIC, reply_major(reply), 2, 178), "its header");
    assert!(reply[20..].iter().all(|byte| *byte == 0), "caps_offset too");
    u32::from_le_bytes(*reply[16..].first_chunk().unwrap())
}

fn reply_major(reply: &[u8]) -> u32 {
    u32::from_le_bytes(*reply[4..].first_chunk().unwrap())
}

fn refused_with(input: &[u8]) -> u32 {
    let (outcome, said, _) = serve(input, usize::MAX);
    assert!(outcome.is_err(), "{outcome:?}");
    code(&said)
}

mod as_server {
    use super::*;

    #[test]
    fn a_whole_link_in_any_pieces() {
        let input = [plain(&[0x0b]), 1u32.to_le_bytes().to_vec(), TICKET.to_vec(), b"data".to_vec()].concat();
        for piece in [1, 2, 3, 7, 16, 17, 34, usize::MAX] {
            let (linked, said, left) = serve(&input, piece);
            let linked = linked.unwrap();
            assert_eq!(left, 4, "what follows the link stage is not ours");
            assert_eq!((linked.channel_type, linked.channel_id, linked.session_id), (7, 0, 0x1234_5678));
            assert_eq!((linked.header, linked.layout), (HeaderForm::Mini, Layout::B));
            assert_eq!((linked.common, linked.peer_channel_caps), (CommonCaps::OURS, vec![7]));
            let mut expected = Vec::new();
            LinkReply::Welcome(welcome()).write(LinkVersion::V2, &mut expected);
            assert_eq!(expected.len(), 16 + 186);
            expected.extend([0; 4]);
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn a_client_that_does_not_choose_sends_the_ticket_at_once() {
        for (caps, form) in [(vec![0x8], HeaderForm::Mini), (vec![], HeaderForm::Full)] {
            let input = [plain(&caps), TICKET.to_vec()].concat();
            let linked = serve(&input, 5).0.unwrap();
            assert_eq!(linked.header, form);
            assert_eq!(linked.common, CommonCaps::from_words(&caps));
        }
    }

    #[test]
    fn spice_gtk_does_not_say_that_it_has_tickets() {
        let input = [plain(&[0x0d, 0xffff_ffff]), 1u32.to_le_bytes().to_vec(), TICKET.to_vec()].concat();
        let linked = serve(&input, usize::MAX).0.unwrap();
        assert_eq!(linked.peer_common.bits(), 0x0d);
        assert_eq!(linked.common, CommonCaps::AUTH_SELECTION | CommonCaps::MINI_HEADER);
    }

    #[test]
    fn magics() {
        for magic in [b"GET ", b"REDq", b"QDER", b"\x16\x03\x01\x02", b"\0\0\0\0"] {
            assert_eq!(refused_with(&header(magic, 2, 2, 18)), 2, "{magic:?}");
        }
        let (outcome, said, _) = serve(&header(b"GET ", 2, 2, 18)[..15], usize::MAX);
        assert_eq!(
            (outcome.unwrap_err(), said),
            (HandshakeError::Closed(Step::LinkHeader), vec![]),
            "not judged early"
        );
    }

    #[test]
    fn majors_and_minors() {
        for major in [1, 3, 0xffff_ffff, 0xffff_fffd] {
            assert_eq!(refused_with(&header(&MAGIC, major, 2, 18)), 4, "{major}");
        }
        assert_eq!(refused_with(&header(&MAGIC, 0xffff_fffe, 2, 18)), 4, "only minor 3 of 2010 is known");
        let (outcome, said, _) = serve(&header(&MAGIC, 0, 2, 18), usize::MAX);
        assert!(matches!(outcome, Err(HandshakeError::BadClient(_))));
        assert!(said.is_empty(), "closed without a reply");
        for minor in [0u32, 1, 3, 0xffff_ffff] {
            let mut input = [plain(&[0x0b]), 1u32.to_le_bytes().to_vec(), TICKET.to_vec()].concat();
            input[8..12].copy_from_slice(&minor.to_le_bytes());
            assert!(serve(&input, usize::MAX).0.is_ok(), "{minor}");
        }
    }

    #[test]
    fn sizes() {
        for size in [0, 17, MAX_SIZE + 1, 0xffff_ffff] {
            assert_eq!(refused_with(&header(&MAGIC, 2, 2, size)), 3, "{size}");
        }
        for size in [18, MAX_SIZE] {
            let input = [mess(size, 0, 0, 0, &[]), TICKET.to_vec()].concat();
            assert!(serve(&input, usize::MAX).0.is_ok(), "{size}");
        }
    }

    #[test]
    fn capability_counts() {
        for (common, channel) in [
            (MAX_CAP_WORDS + 1, 0),
            (0, MAX_CAP_WORDS + 1),
            (0x4000_0000, 0),
            (0xffff_ffff, 1),
            (0xffff_ffff, 0xffff_ffff),
        ] {
            assert_eq!(refused_with(&mess(MAX_SIZE, common, channel, 18, &[])), 3, "{common} {channel}");
        }
        // Words of 1019 fill the largest message; 1020 are allowed by number, but do not fit.
        let fits = [mess(MAX_SIZE, 1000, 19, 18, &[]), TICKET.to_vec()].concat();
        let linked = serve(&fits, usize::MAX).0.unwrap();
        assert_eq!(linked.peer_channel_caps.len(), 19);
        assert_eq!(refused_with(&mess(MAX_SIZE, 1000, 20, 18, &[])), 3);
        assert_eq!(refused_with(&mess(MAX_SIZE, MAX_CAP_WORDS, 0, 18, &[])), 3);
    }

    #[test]
    fn capability_offsets() {
        for offset in [0, 17, 23, 26, 0xffff_ffff, 0x8000_0000] {
            assert_eq!(refused_with(&mess(26, 1, 0, offset, &[8, 8])), 3, "{offset}");
        }
        for offset in [18, 22] {
            let input = [mess(26, 1, 0, offset, &[8, 8]), TICKET.to_vec()].concat();
            assert_eq!(serve(&input, usize::MAX).0.unwrap().header, HeaderForm::Mini, "{offset}");
        }
        for offset in [0, 17, 0xffff_ffff] {
            let input = [mess(18, 0, 0, offset, &[]), TICKET.to_vec()].concat();
            assert!(serve(&input, usize::MAX).0.is_ok(), "of no words it does not matter: {offset}");
        }
    }

    #[test]
    fn mechanisms() {
        for mechanism in [0u32, 2, 3, 0xffff_ffff] {
            let input = [plain(&[0x0f]), mechanism.to_le_bytes().to_vec(), TICKET.to_vec()].concat();
            let (outcome, said, left) = serve(&input, usize::MAX);
            assert_eq!(outcome.unwrap_err(), HandshakeError::Mechanism(mechanism));
            assert_eq!(said.len(), 202 + 194, "a second link reply");
            assert_eq!(code(&said[202..]), 3);
            assert!(left >= TICKET_LEN);
        }
    }

    #[test]
    fn sasl_can_be_asked_about() {
        let now = Instant::now();
        let mut machine = ServerHandshake::new(now, DEADLINES, OnSasl::Ask);
        machine.handle_bytes(now, &plain(&[0x0d])).unwrap();
        machine.welcome(now, welcome()).unwrap();
        machine.handle_bytes(now, &2u32.to_le_bytes()).unwrap();
        assert_eq!(machine.needs(), ServerNeeds::Sasl);
        assert!(machine.raw().ends_with(&2u32.to_le_bytes()), "all that came can be passed on");
        machine.refuse_mechanism().unwrap();
        assert_eq!(code(&machine.poll_transmit()[202..]), 3);
        assert_eq!(machine.finish(), Err(HandshakeError::Mechanism(2)));
    }

    #[test]
    fn sasl_in_other_hands_ends_in_a_link_result() {
        let now = Instant::now();
        let offering = |mechanism: u32| {
            let mut machine = ServerHandshake::new(now, DEADLINES, OnSasl::Ask);
            machine.handle_bytes(now, &plain(&[0x0d])).unwrap();
            machine.welcome(now, Welcome { common_caps: vec![0x0d], ..welcome() }).unwrap();
            let outcome = machine.handle_bytes(now, &mechanism.to_le_bytes());
            (machine, outcome)
        };
        let (mut machine, _) = offering(2);
        machine.permit().unwrap();
        assert_eq!(machine.poll_transmit()[202..], [0; 4]);
        assert_eq!(machine.finish().unwrap().header, HeaderForm::Mini);
        let (mut machine, _) = offering(2);
        machine.refuse(LinkError::BadConnectionId).unwrap();
        assert_eq!(machine.poll_transmit()[202..], [8, 0, 0, 0]);
        // Who offers nothing but SASL takes no ticket.
        let (machine, outcome) = offering(1);
        assert_eq!(outcome, Err(HandshakeError::Mechanism(1)));
        assert_eq!(code(&machine.poll_transmit()[202..]), 3);
    }

    #[test]
    fn the_end_at_every_byte() {
        let input = [plain(&[0x0b]), 1u32.to_le_bytes().to_vec(), TICKET.to_vec()].concat();
        for length in 0..input.len() {
            let (outcome, said, _) = serve(&input[..length], usize::MAX);
            let step = match length {
                0..16 => Step::LinkHeader,
                16..42 => Step::LinkMess,
                42..46 => Step::Mechanism,
                _ => Step::Ticket,
            };
            assert_eq!(outcome.unwrap_err(), HandshakeError::Closed(step), "{length}");
            assert_eq!(said.len(), if length < 42 { 0 } else { 202 }, "nothing is said to one who left");
        }
    }

    #[test]
    fn every_step_has_a_deadline() {
        let start = Instant::now();
        let input = [plain(&[0x0b]), 1u32.to_le_bytes().to_vec(), TICKET.to_vec()].concat();
        for length in [0, 15, 16, 41, 42, 45, 46, 173] {
            let mut machine = server(start);
            let mut at = start;
            for byte in &input[..length] {
                at += Duration::from_millis(10);
                if machine.needs() == ServerNeeds::Bytes(0) {
                    unreachable!();
                }
                machine.handle_bytes(at, &[*byte]).unwrap();
                if let ServerNeeds::Decision(_) = machine.needs() {
                    machine.welcome(at, welcome()).unwrap();
                }
            }
            let (due, step) = machine.poll_timeout().unwrap();
            assert!(due > at && due <= at + DEADLINES.step, "{length}");
            assert_eq!(machine.handle_timeout(due - Duration::from_millis(1)), Ok(()));
            assert_eq!(machine.handle_timeout(due), Err(HandshakeError::Late(step)));
            assert_eq!(machine.needs(), ServerNeeds::Done);
            assert_eq!(machine.poll_timeout(), None);
        }
    }

    #[test]
    fn a_byte_now_and_then_does_not_hold_a_link_for_ever() {
        let start = Instant::now();
        let mut machine = server(start);
        let mut at = start;
        for byte in plain(&[0x0b]) {
            at += Duration::from_secs(1);
            if machine.handle_timeout(at).is_err() {
                assert_eq!(
                    at,
                    start + DEADLINES.step,
                    "a step's time runs from its start, not from its last byte"
                );
                return;
            }
            machine.handle_bytes(at, &[byte]).unwrap();
        }
        panic!("it linked at one byte a second");
    }

    #[test]
    fn our_own_decisions_count_only_against_the_whole() {
        let start = Instant::now();
        let mut machine = server(start);
        machine.handle_bytes(start, &plain(&[])).unwrap();
        assert_eq!(machine.poll_timeout(), Some((start + DEADLINES.total, Step::Decision)));
        let later = start + Duration::from_secs(25);
        machine.welcome(later, welcome()).unwrap();
        assert_eq!(machine.poll_timeout(), Some((start + DEADLINES.total, Step::Ticket)));
        machine.handle_bytes(later, &TICKET).unwrap();
        assert_eq!(machine.poll_timeout(), Some((start + DEADLINES.total, Step::Verdict)));
    }

    #[test]
    fn refusals() {
        let now = Instant::now();
        let mut machine = server(now);
        machine.handle_bytes(now, &plain(&[0x0b])).unwrap();
        machine.refuse(LinkError::NeedSecured).unwrap();
        assert_eq!(code(machine.poll_transmit()), 5);
        assert_eq!(machine.finish(), Err(HandshakeError::Denied(LinkError::NeedSecured)));

        let mut machine = server(now);
        machine.handle_bytes(now, &plain(&[0x0b])).unwrap();
        machine.drop_silently().unwrap();
        assert!(machine.poll_transmit().is_empty());
        assert_eq!(machine.finish(), Err(HandshakeError::Dropped));

        for error in [LinkError::PermissionDenied, LinkError::BadConnectionId] {
            let mut machine = server(now);
            machine.handle_bytes(now, &plain(&[])).unwrap();
            machine.welcome(now, welcome()).unwrap();
            machine.handle_bytes(now, &TICKET).unwrap();
            assert_eq!(machine.needs(), ServerNeeds::Verdict(&TICKET));
            machine.sent(machine.poll_transmit().len());
            machine.refuse(error).unwrap();
            assert_eq!(machine.poll_transmit(), error.code().to_le_bytes());
        }
    }

    #[test]
    fn answers_without_a_question_are_errors() {
        let now = Instant::now();
        assert_eq!(server(now).permit(), Err(HandshakeError::OutOfStep(Step::LinkHeader)));
        assert_eq!(server(now).welcome(now, welcome()), Err(HandshakeError::OutOfStep(Step::LinkHeader)));
        assert_eq!(server(now).refuse(LinkError::Error), Err(HandshakeError::OutOfStep(Step::LinkHeader)));
        assert_eq!(server(now).drop_silently(), Err(HandshakeError::OutOfStep(Step::LinkHeader)));
        assert_eq!(server(now).refuse_mechanism(), Err(HandshakeError::OutOfStep(Step::LinkHeader)));
        assert_eq!(server(now).finish(), Err(HandshakeError::OutOfStep(Step::LinkHeader)));
    }

    /// Bytes of the client of May 2010, from captures/tunnel-v1-pair.pcap.
    #[test]
    fn the_2010_client() {
        let input = [
            hex("52454451 feffffff 03000000 12000000  67458b6b 07 00 00000000 00000000 12000000"),
            TICKET.to_vec(),
            hex("0100"),
        ]
        .concat();
        for piece in [1, usize::MAX] {
            let (linked, said, left) = serve(&input, piece);
            let linked = linked.unwrap();
            assert_eq!(left, 2);
            assert_eq!((linked.channel_type, linked.session_id), (7, 0x6b8b_4567));
            assert_eq!((linked.header, linked.layout), (HeaderForm::Full, Layout::A));
            assert_eq!((linked.common, linked.peer_common), (CommonCaps::empty(), CommonCaps::empty()));
            assert!(linked.peer_channel_caps.is_empty());
            let reply = [
                hex("52454451 feffffff 03000000 b2000000 00000000"),
                KEY.to_vec(),
                hex("00000000 00000000 b2000000 00000000"),
            ];
            assert_eq!(said, reply.concat());
        }
    }
}

mod as_client {
    use super::*;

    fn client(now: Instant) -> ClientHandshake {
        link(now, LinkVersion::V2, CommonCaps::OURS)
    }

    fn link(now: Instant, version: LinkVersion, common_caps: CommonCaps) -> ClientHandshake {
        let link = ClientLink {
            version,
            channel_type: 7,
            channel_id: 0,
            session_id: 0x1234_5678,
            common_caps,
            channel_caps: vec![7],
        };
        ClientHandshake::new(now, DEADLINES, link)
    }

    /// Feeds a client; returns its outcome, what it said, and what it did not consume.
    fn run(
        mut machine: ClientHandshake,
        input: &[u8],
        piece: usize,
    ) -> (Result<Linked, HandshakeError>, Vec<u8>, usize) {
        let now = Instant::now();
        let mut rest = input;
        loop {
            match machine.needs() {
                ClientNeeds::Bytes(wanted) => {
                    assert!(wanted > 0);
                    if rest.is_empty() {
                        return (Err(machine.handle_eof()), machine.poll_transmit().to_vec(), 0);
                    }
                    match machine.handle_bytes(now, &rest[..piece.min(rest.len())]) {
                        Ok(used) => rest = &rest[used..],
                        Err(error) => return (Err(error), machine.poll_transmit().to_vec(), rest.len()),
                    }
                }
                ClientNeeds::Ticket(key) => {
                    assert_eq!(*key, KEY);
                    machine.ticket(now, &TICKET).unwrap();
                }
                sasl @ (ClientNeeds::SaslStart(_) | ClientNeeds::SaslStep { .. }) => panic!("{sasl:?}"),
                ClientNeeds::Done => {
                    let said = machine.poll_transmit().to_vec();
                    return (machine.finish(), said, rest.len());
                }
            }
        }
    }

    fn outcome(input: &[u8]) -> Result<Linked, HandshakeError> {
        let whole = run(client(Instant::now()), input, usize::MAX).0;
        assert_eq!(run(client(Instant::now()), input, 1).0, whole, "in single bytes");
        whole
    }

    /// A link reply with its header, every field free, and a result behind it.
    fn reply(size: u32, error: u32, common: u32, channel: u32, offset: u32, words: &[u32]) -> Vec<u8> {
        let mut bytes = header(&MAGIC, 2, 2, size);
        bytes.extend(error.to_le_bytes());
        bytes.extend(KEY);
        [common, channel, offset].iter().chain(words).for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.resize(16 + size.min(5000) as usize, 0);
        bytes.extend([0; 4]);
        bytes
    }

    fn good(common: u32) -> Vec<u8> {
        reply(186, 0, 1, 1, 178, &[common, 7])
    }

    #[test]
    fn a_whole_link_in_any_pieces() {
        let input = [good(0x0b), b"data".to_vec()].concat();
        for piece in [1, 3, 16, 17, usize::MAX] {
            let (linked, said, left) = run(client(Instant::now()), &input, piece);
            let linked = linked.unwrap();
            assert_eq!(left, 4);
            assert_eq!((linked.header, linked.layout), (HeaderForm::Mini, Layout::B));
            assert_eq!((linked.common, linked.peer_channel_caps), (CommonCaps::OURS, vec![7]));
            let expected = [
                hex(
                    "52454451 02000000 02000000 1a000000  78563412 07 00 01000000 01000000 12000000 0b000000 07000000",
                ),
                hex("01000000"),
                TICKET.to_vec(),
            ];
            assert_eq!(said, expected.concat());
        }
    }

    #[test]
    fn the_mechanism_is_written_only_if_both_have_it() {
        let now = Instant::now();
        let without = CommonCaps::AUTH_SPICE | CommonCaps::MINI_HEADER;
        for (ours, theirs, written) in [
            (CommonCaps::OURS, 0x0b, 4),
            (CommonCaps::OURS, 0x08, 0),
            (CommonCaps::OURS, 0, 0),
            (without, 0x0b, 0),
        ] {
            let (linked, said, _) = run(link(now, LinkVersion::V2, ours), &good(theirs), usize::MAX);
            linked.unwrap();
            assert_eq!(said.len(), 42 + written + TICKET_LEN, "{ours:?} {theirs:#x}");
        }
    }

    #[test]
    fn the_header_is_mini_only_if_both_have_it() {
        assert_eq!(outcome(&good(0x03)).unwrap().header, HeaderForm::Full);
        let now = Instant::now();
        let full = CommonCaps::AUTH_SELECTION | CommonCaps::AUTH_SPICE;
        assert_eq!(run(link(now, LinkVersion::V2, full), &good(0x0b), 9).0.unwrap().header, HeaderForm::Full);
    }

    #[test]
    fn sizes() {
        for size in [0, 177, MAX_SIZE + 1, 0xffff_ffff] {
            let fault = LinkFault::Size { size, least: 178 };
            assert_eq!(
                outcome(&reply(size, 0, 0, 0, 0, &[])),
                Err(HandshakeError::BadServer(fault)),
                "{size}"
            );
        }
        for size in [178, MAX_SIZE] {
            assert!(outcome(&reply(size, 0, 0, 0, 178, &[])).is_ok(), "{size}");
        }
    }

    #[test]
    fn headers() {
        let fault = |fault| Err(HandshakeError::BadServer(fault));
        assert_eq!(outcome(&header(b"HTTP", 2, 2, 178)), fault(LinkFault::Magic(*b"HTTP")));
        for major in [0, 1, 3, 0xffff_ffff] {
            assert_eq!(
                outcome(&header(&MAGIC, major, 2, 178)),
                fault(LinkFault::Version { major, minor: 2 })
            );
        }
        let mut any_minor = good(0x0b);
        any_minor[8] = 77;
        assert!(outcome(&any_minor).is_ok());
    }

    #[test]
    fn errors_in_the_reply() {
        for error in (1..=10).chain([0xffff_ffff]) {
            let refused = HandshakeError::Refused(LinkError::from_code(error).unwrap());
            assert_eq!(outcome(&reply(178, error, 0, 0, 0, &[])), Err(refused), "{error}");
            // As spice-gtk: of a refusal nothing else is looked at.
            assert_eq!(outcome(&reply(178, error, 0xffff_ffff, 1, 0xffff_ffff, &[])), Err(refused));
        }
    }

    #[test]
    fn capability_offsets_and_counts() {
        for (common, channel, offset) in [
            (1, 1, 179),
            (1, 1, 186),
            (1, 0, 0xffff_ffff),
            (0xffff_ffff, 1, 178),
            (0x4000_0000, 0, 178),
            (0xffff_ffff, 0xffff_ffff, 0),
            (3, 0, 178),
        ] {
            let words = u64::from(common) + u64::from(channel);
            let fault = LinkFault::CapOffset { offset, words, size: 186 };
            let input = reply(186, 0, common, channel, offset, &[0x0b, 7]);
            assert_eq!(outcome(&input), Err(HandshakeError::BadServer(fault)));
        }
        // Tolerated as by spice-gtk: words that lie in the fixed part (here the counts, 1 and 1), and an offset of none.
        for offset in [166, 170] {
            assert_eq!(
                outcome(&reply(186, 0, 1, 1, offset, &[0x0b, 7])),
                Err(HandshakeError::NoMechanism(1))
            );
        }
        assert!(outcome(&reply(186, 0, 1, 1, 178, &[0x0b, 7])).is_ok());
        for offset in [0, 0xffff_ffff] {
            assert!(outcome(&reply(178, 0, 0, 0, offset, &[])).is_ok(), "{offset}");
        }
    }

    #[test]
    fn sasl_is_named() {
        assert_eq!(outcome(&good(0x0d)), Err(HandshakeError::SaslRequired));
        assert_eq!(outcome(&good(0x09)), Err(HandshakeError::NoMechanism(0x09)));
        assert!(outcome(&good(0x0f)).is_ok(), "one that offers both gets the ticket");
        let mut keyless = good(0x0b);
        keyless[20..182].fill(0);
        assert_eq!(outcome(&keyless), Err(HandshakeError::NoKey));
        keyless[194] = 0x0d;
        assert_eq!(outcome(&keyless), Err(HandshakeError::SaslRequired), "the better reason of the two");
    }

    #[test]
    fn results() {
        let mut input = good(0x0b);
        let at = input.len() - 4;
        for result in (1..=10).chain([0xffff_ffff]) {
            input[at..].copy_from_slice(&u32::to_le_bytes(result));
            let error = LinkError::from_code(result).unwrap();
            assert_eq!(outcome(&input), Err(HandshakeError::Refused(error)));
        }
        // A second reply, as libspice-server answers to a mechanism that it does not take.
        input.truncate(at);
        LinkReply::Refused(LinkError::InvalidData).write(LinkVersion::V2, &mut input);
        assert_eq!(outcome(&input), Err(HandshakeError::SecondReply));
    }

    #[test]
    fn data_before_the_result_is_taken_for_a_result() {
        let mut input = good(0x0b);
        let at = input.len() - 4;
        input.splice(at..at, hex("6700 20000000"));
        assert_eq!(outcome(&input), Err(HandshakeError::Refused(LinkError::Other(0x0020_0067))));
    }

    #[test]
    fn the_end_at_every_byte() {
        let input = good(0x0b);
        for length in 0..input.len() {
            let step = match length {
                0..16 => Step::ReplyHeader,
                16..202 => Step::LinkReply,
                _ => Step::LinkResult,
            };
            assert_eq!(outcome(&input[..length]), Err(HandshakeError::Closed(step)), "{length}");
        }
    }

    #[test]
    fn every_step_has_a_deadline() {
        let start = Instant::now();
        let input = good(0x0b);
        for length in [0, 15, 16, 201, 202, 205] {
            let mut machine = client(start);
            let at = start + Duration::from_secs(3);
            let mut rest = &input[..length];
            while !rest.is_empty() {
                let used = machine.handle_bytes(at, rest).unwrap();
                rest = &rest[used..];
                if let ClientNeeds::Ticket(_) = machine.needs() {
                    machine.ticket(at, &TICKET).unwrap();
                }
            }
            let (due, step) = machine.poll_timeout().unwrap();
            assert!(due > at && due <= at + DEADLINES.step, "{length}");
            assert_eq!(machine.handle_timeout(due - Duration::from_millis(1)), Ok(()));
            assert_eq!(machine.handle_timeout(due), Err(HandshakeError::Late(step)));
        }
    }

    #[test]
    fn a_ticket_that_nobody_asked_for_is_an_error() {
        let now = Instant::now();
        assert_eq!(client(now).ticket(now, &TICKET), Err(HandshakeError::OutOfStep(Step::ReplyHeader)));
        assert_eq!(client(now).finish(), Err(HandshakeError::OutOfStep(Step::ReplyHeader)));
    }

    #[test]
    fn the_2010_version() {
        let now = Instant::now();
        let reply = [
            hex("52454451 feffffff 03000000 b2000000 00000000"),
            KEY.to_vec(),
            hex("00000000 00000000 b2000000 00000000"),
        ]
        .concat();
        let (linked, said, _) = run(link(now, LinkVersion::V2010, CommonCaps::OURS), &reply, 11);
        let linked = linked.unwrap();
        assert_eq!((linked.header, linked.layout), (HeaderForm::Full, Layout::A));
        assert_eq!(linked.common, CommonCaps::empty());
        let mess = hex("52454451 feffffff 03000000 12000000  78563412 07 00 00000000 00000000 12000000");
        assert_eq!(said, [mess, TICKET.to_vec()].concat(), "neither capabilities nor a mechanism");

        let (expected, got) = (LinkVersion::V2, LinkVersion::V2010);
        assert_eq!(outcome(&reply), Err(HandshakeError::OtherVersion { expected, got }));
        let mut refusal = Vec::new();
        LinkReply::Refused(LinkError::VersionMismatch).write(LinkVersion::V2010, &mut refusal);
        assert_eq!(outcome(&refusal), Err(HandshakeError::Refused(LinkError::VersionMismatch)));
    }
}

/// From captures/wrong-ticket.pcap: another client before a stock server.
#[test]
fn a_captured_link() {
    let mess =
        hex("5245445102000000020000001a00000000000000 01 00 010000000100000012000000 0b000000 0d000000");
    let head = LinkHeader::parse_from_client(mess.first_chunk().unwrap()).unwrap();
    assert_eq!(head, LinkHeader { version: LinkVersion::V2, size: 26 });
    let parsed = LinkMess::parse(&mess[16..]).unwrap();
    assert_eq!(parsed.common(), CommonCaps::OURS);
    assert_eq!(parsed.channel_caps, [0x0d]);
    let mut written = Vec::new();
    parsed.write(LinkVersion::V2, &mut written);
    assert_eq!(written, mess);
}

#[test]
fn versions() {
    assert_eq!(LinkVersion::from_numbers(VERSION.0, VERSION.1), Some(LinkVersion::V2));
    for version in [LinkVersion::V2, LinkVersion::V2010] {
        let (major, minor) = version.numbers();
        assert_eq!(LinkVersion::from_numbers(major, minor), Some(version));
    }
}

fn any_mess() -> impl Strategy<Value = LinkMess> {
    let words = || prop::collection::vec(any::<u32>(), 0..40);
    (any::<u32>(), any::<u8>(), any::<u8>(), words(), words()).prop_map(
        |(session_id, channel_type, channel_id, common_caps, channel_caps)| LinkMess {
            session_id,
            channel_type,
            channel_id,
            common_caps,
            channel_caps,
        },
    )
}

proptest! {
    #[test]
    fn messages_round_trip(mess in any_mess()) {
        let mut bytes = Vec::new();
        mess.write(LinkVersion::V2, &mut bytes);
        let head = LinkHeader::parse_from_client(bytes.first_chunk().unwrap()).unwrap();
        prop_assert_eq!(head.size as usize, bytes.len() - 16);
        prop_assert_eq!(LinkMess::parse(&bytes[16..]).unwrap(), mess);
    }

    #[test]
    fn replies_round_trip(
        common_caps in prop::collection::vec(any::<u32>(), 0..40),
        channel_caps in prop::collection::vec(any::<u32>(), 0..40),
        byte in any::<u8>(),
        code in any::<u32>(),
    ) {
        let welcome = LinkReply::Welcome(Welcome { public_key: Box::new([byte; 162]), common_caps, channel_caps });
        let refused = LinkError::from_code(code).map(LinkReply::Refused);
        for reply in [Some(welcome), refused].into_iter().flatten() {
            let mut bytes = Vec::new();
            reply.write(LinkVersion::V2, &mut bytes);
            let head = LinkHeader::parse_from_server(bytes.first_chunk().unwrap()).unwrap();
            prop_assert_eq!(head.size as usize, bytes.len() - 16);
            prop_assert_eq!(LinkReply::parse(&bytes[16..]).unwrap(), reply);
        }
        prop_assert_eq!(LinkError::from_code(code).map_or(0, LinkError::code), code);
    }

    #[test]
    fn no_bytes_confuse_a_server(mut input in prop::collection::vec(any::<u8>(), 0..400), spice in any::<bool>(), piece in 1usize..50) {
        if spice && input.len() >= 16 {
            let size = u32::try_from(input.len() % 300).unwrap();
            input[..16].copy_from_slice(&header(&MAGIC, 2, 2, size));
        }
        let (outcome, said, left) = serve(&input, piece);
        prop_assert_eq!(serve(&input, usize::MAX).0, outcome);
        prop_assert!(said.len() <= 202 + 194);
        prop_assert!(left <= input.len());
    }

    /// Whatever the two sides have, they agree on what they have, and on where the link stage ends.
    #[test]
    fn the_two_machines_understand_each_other(
        ours in 0u32..16,
        theirs in 0u32..16,
        old in any::<bool>(),
        chop in 1usize..60,
    ) {
        let now = Instant::now();
        let version = if old { LinkVersion::V2010 } else { LinkVersion::V2 };
        let link = ClientLink {
            version,
            channel_type: 7,
            channel_id: 0,
            session_id: 9,
            // Our server speaks no SASL, and a client that offers it takes it.
            common_caps: CommonCaps::from_bits_retain(ours) - CommonCaps::AUTH_SASL,
            channel_caps: vec![1, 2],
        };
        let mut client = ClientHandshake::new(now, DEADLINES, link);
        let mut server = server(now);
        // A server without the choice does not listen for it; ours always has it.
        let words = vec![theirs | CommonCaps::AUTH_SELECTION.bits() | CommonCaps::AUTH_SPICE.bits()];
        for _ in 0..2000 {
            let up = client.poll_transmit()[..chop.min(client.poll_transmit().len())].to_vec();
            let used = server.handle_bytes(now, &up).unwrap();
            client.sent(used);
            let down = server.poll_transmit()[..chop.min(server.poll_transmit().len())].to_vec();
            let used = client.handle_bytes(now, &down).unwrap();
            server.sent(used);
            if let ServerNeeds::Decision(_) = server.needs() {
                let welcome = Welcome { public_key: Box::new(KEY), common_caps: words.clone(), channel_caps: vec![4] };
                server.welcome(now, welcome).unwrap();
            }
            if let ClientNeeds::Ticket(_) = client.needs() {
                client.ticket(now, &TICKET).unwrap();
            }
            if let ServerNeeds::Verdict(ticket) = server.needs() {
                prop_assert_eq!(ticket, &TICKET);
                server.permit().unwrap();
            }
            if client.needs() == ClientNeeds::Done {
                break;
            }
        }
        let (client, server) = (client.finish().unwrap(), server.finish().unwrap());
        prop_assert_eq!(client.header, server.header);
        prop_assert_eq!(client.layout, server.layout);
        prop_assert_eq!(client.common, server.common);
    }
}

/// What a host's own library linked comes out as our own machines would have had it.
#[test]
fn a_tunnel_linked_elsewhere() {
    let linked = Linked::tunnel(&[0x0b], &[0x0b, 7], &[5, 6]);
    assert_eq!((linked.channel_type, linked.header, linked.layout), (7, HeaderForm::Mini, Layout::B));
    assert_eq!(linked.peer_channel_caps, [5, 6]);
    // Short headers need both.
    for (ours, theirs) in [(0x0b, 0x03), (0x03, 0x0b), (0, 0)] {
        assert_eq!(Linked::tunnel(&[ours], &[theirs], &[]).header, HeaderForm::Full);
    }
    assert_eq!(Linked::tunnel(&[], &[], &[]).header, HeaderForm::Full);
}
