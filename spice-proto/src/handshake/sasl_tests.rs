//! The client's machine with SASL, against bytes as QEMU sends them and as nobody should.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::link::{LinkReply, MECHANISM_SASL, PUBLIC_KEY_LEN, Welcome, put_u32};
use crate::sasl::{MAX_DATA, Part, put_data};

const DEADLINES: Deadlines = Deadlines { step: Duration::from_secs(10), total: Duration::from_secs(30) };

const LIST: &[u8] = b",SCRAM-SHA-256,PLAIN,";

fn client(now: Instant) -> ClientHandshake {
    let link = ClientLink {
        version: LinkVersion::V2,
        channel_type: 7,
        channel_id: 0,
        session_id: 0,
        common_caps: CommonCaps::OURS | CommonCaps::AUTH_SASL,
        channel_caps: vec![7],
    };
    ClientHandshake::new(now, DEADLINES, link)
}

/// What libspice-server says up to its list.
fn offer() -> Vec<u8> {
    let welcome =
        Welcome { public_key: Box::new([0; PUBLIC_KEY_LEN]), common_caps: vec![0x0d], channel_caps: vec![7] };
    let mut bytes = Vec::new();
    LinkReply::Welcome(welcome).write(LinkVersion::V2, &mut bytes);
    put_u32(&mut bytes, u32::try_from(LIST.len()).unwrap());
    bytes.extend_from_slice(LIST);
    bytes
}

fn step(data: Option<&[u8]>, complete: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_data(&mut bytes, data);
    bytes.push(complete);
    bytes
}

fn login() -> Vec<u8> {
    [offer(), step(Some(b"challenge"), 0), step(Some(b""), 0), step(Some(b"proof"), 1), vec![0; 8]].concat()
}

/// Feeds a client that answers what it hears by `heard:` and the same; returns its outcome, what it said of SASL, and how
/// much it did not consume.
fn run(input: &[u8], piece: usize) -> (Result<Linked, HandshakeError>, Vec<u8>, usize) {
    let now = Instant::now();
    let mut machine = client(now);
    let link_message = machine.poll_transmit().len();
    let mut rest = input;
    let said = |machine: &ClientHandshake| machine.poll_transmit()[link_message..].to_vec();
    loop {
        match machine.needs() {
            ClientNeeds::Bytes(wanted) => {
                assert!(wanted > 0);
                if rest.is_empty() {
                    return (Err(machine.handle_eof()), said(&machine), 0);
                }
                match machine.handle_bytes(now, &rest[..piece.min(rest.len())]) {
                    Ok(used) => rest = &rest[used..],
                    Err(error) => return (Err(error), said(&machine), rest.len()),
                }
            }
            ClientNeeds::Ticket(_) => panic!("a ticket"),
            ClientNeeds::SaslStart(mechanisms) => {
                assert_eq!(mechanisms.to_string(), "SCRAM-SHA-256, PLAIN");
                machine.sasl_start(now, "PLAIN", None).unwrap();
            }
            ClientNeeds::SaslStep { complete: true, .. } => machine.sasl_agree(now).unwrap(),
            ClientNeeds::SaslStep { data, complete: false } => {
                let answer = data.map(|data| [b"heard:", data].concat());
                if let Err(error) = machine.sasl_step(now, answer.as_deref()) {
                    return (Err(error), said(&machine), rest.len());
                }
            }
            ClientNeeds::Done => {
                let said = said(&machine);
                return (machine.finish(), said, rest.len());
            }
        }
    }
}

#[test]
fn a_whole_link_in_any_pieces() {
    let input = [login(), b"data".to_vec()].concat();
    for piece in [1, 2, 5, 17, usize::MAX] {
        let (linked, said, left) = run(&input, piece);
        let linked = linked.unwrap();
        assert_eq!(left, 4, "the channel's bytes are left");
        assert_eq!((linked.header, linked.peer_channel_caps), (HeaderForm::Mini, vec![7]));
        let mut expected = MECHANISM_SASL.to_le_bytes().to_vec();
        expected.extend_from_slice(b"\x05\0\0\0PLAIN\0\0\0\0");
        put_data(&mut expected, Some(b"heard:challenge"));
        put_data(&mut expected, Some(b"heard:"));
        assert_eq!(said, expected);
    }
}

#[test]
fn how_it_ends_is_told_apart() {
    let accepted = |result: u32| {
        let mut input = login();
        let at = input.len() - 4;
        input[at..].copy_from_slice(&result.to_le_bytes());
        run(&input, 3).0
    };
    assert!(accepted(0).is_ok());
    assert_eq!(accepted(8), Err(HandshakeError::Refused(LinkError::BadConnectionId)));
    let mut rejected = login();
    rejected.truncate(rejected.len() - 8);
    // As libspice-server 0.15.1 does, and as it could.
    assert_eq!(run(&rejected, 3).0, Err(HandshakeError::SaslRejected));
    rejected.extend_from_slice(b"\x01\0\0\0\x05\0\0\0sad!\0");
    assert_eq!(run(&rejected, 3).0, Err(HandshakeError::SaslRejected));
}

#[test]
fn the_end_at_every_byte() {
    let input = login();
    let reply = offer().len() - 4 - LIST.len();
    for length in reply..input.len() {
        let expected = match length {
            n if n < offer().len() => HandshakeError::Closed(Step::Sasl),
            n if n < input.len() - 4 => HandshakeError::SaslRejected,
            _ => HandshakeError::Closed(Step::Sasl),
        };
        assert_eq!(run(&input[..length], 7).0, Err(expected), "{length}");
    }
}

#[test]
fn lengths_without_bytes() {
    let reply = offer().len() - 4 - LIST.len();
    let mut long_list = offer();
    long_list.truncate(reply);
    put_u32(&mut long_list, 301);
    let mut long_data = offer();
    put_u32(&mut long_data, MAX_DATA + 1);
    for (input, part) in [(long_list, Part::List), (long_data, Part::ServerData)] {
        match run(&input, 11).0 {
            Err(HandshakeError::BadSasl(SaslFault::TooLong { part: found, .. })) => assert_eq!(found, part),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_server_that_never_ends() {
    let mut input = offer();
    for _ in 0..100 {
        input.extend(step(None, 0));
    }
    assert_eq!(run(&input, 64).0, Err(HandshakeError::BadSasl(SaslFault::TooManySteps)));
}

#[test]
fn a_ticket_is_taken_where_there_is_no_sasl() {
    let now = Instant::now();
    let mut machine = client(now);
    let welcome = Welcome {
        public_key: Box::new([5; PUBLIC_KEY_LEN]),
        common_caps: vec![0x0b],
        channel_caps: Vec::new(),
    };
    let mut bytes = Vec::new();
    LinkReply::Welcome(welcome).write(LinkVersion::V2, &mut bytes);
    machine.handle_bytes(now, &bytes).unwrap();
    assert!(matches!(machine.needs(), ClientNeeds::Ticket(_)));
    assert!(machine.sasl_start(now, "PLAIN", None).is_err(), "not asked for");
}

#[test]
fn answers_to_other_questions_are_refused() {
    let now = Instant::now();
    let offered = || {
        let mut machine = client(now);
        machine.handle_bytes(now, &offer()).unwrap();
        machine
    };
    let out_of_step = Err(HandshakeError::OutOfStep(Step::SaslAnswer));
    assert_eq!(offered().sasl_step(now, None), out_of_step);
    assert_eq!(offered().sasl_agree(now), out_of_step);
    assert_eq!(
        offered().sasl_start(now, "EXTERNAL", None),
        Err(HandshakeError::BadSasl(SaslFault::NotOffered))
    );
    let mut machine = offered();
    machine.sasl_start(now, "PLAIN", Some(b"")).unwrap();
    assert_eq!(machine.sasl_start(now, "PLAIN", None), Err(HandshakeError::OutOfStep(Step::Sasl)));
}

#[test]
fn every_step_has_a_deadline() {
    let start = Instant::now();
    let mut machine = client(start);
    let at = start + Duration::from_secs(3);
    let bytes = offer();
    machine.handle_bytes(at, &bytes[..bytes.len() - 1]).unwrap();
    // The list's length came at `at`.
    assert_eq!(machine.poll_timeout(), Some((at + DEADLINES.step, Step::Sasl)));
    machine.handle_bytes(at, &bytes[bytes.len() - 1..]).unwrap();
    assert_eq!(machine.poll_timeout(), Some((start + DEADLINES.total, Step::SaslAnswer)));
    machine.sasl_start(at, "PLAIN", None).unwrap();
    let due = at + DEADLINES.step;
    assert_eq!(machine.handle_timeout(due), Err(HandshakeError::Late(Step::Sasl)));
}

proptest! {
    #[test]
    fn no_server_makes_it_panic(
        tail in prop::collection::vec(prop_oneof![3 => Just(0), 1 => Just(1), 1 => any::<u8>()], 0..600),
        piece in 1_usize..40,
    ) {
        let _ = run(&[offer(), tail].concat(), piece);
    }
}
