//! Exchanges as real peers have them, in any pieces, and as no peer should.

use proptest::prelude::*;

use super::*;
use crate::testing::{chop, hex, text};

/// What each side says, in turn.
type Script = Vec<(Side, Vec<u8>)>;

/// The bytes of a login to QEMU 7.2 with libspice-server 0.15.1 over TLS.
fn scram() -> Script {
    let mut choice = Vec::new();
    put_name(&mut choice, "SCRAM-SHA-256");
    put_data(&mut choice, Some(b"n,,n=user@spice,r=fyko+d2lbbFgONRv9qkxdawL"));
    let mut proof = Vec::new();
    put_data(
        &mut proof,
        Some(b"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="),
    );
    vec![
        (Side::Server, list(",SCRAM-SHA-256,SCRAM-SHA-1,DIGEST-MD5,PLAIN,")),
        (Side::Client, choice),
        (
            Side::Server,
            step(Some(b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096"), 0),
        ),
        (Side::Client, proof),
        (Side::Server, step(Some(b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ="), 1)),
        (Side::Server, vec![0; 4]),
        (Side::Server, vec![0; 4]),
    ]
}

fn list(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn step(data: Option<&[u8]>, complete: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_data(&mut bytes, data);
    bytes.push(complete);
    bytes
}

fn word(n: u32) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

/// Runs a script through an exchange, each speech cut as `cuts` says and then as the turns ask.
fn run(script: &Script, cuts: &[usize]) -> Result<Exchange, SaslFault> {
    let mut exchange = Exchange::new();
    for (side, speech) in script {
        for mut piece in chop(speech, cuts) {
            while !piece.is_empty() {
                let Turn::Of(turn, lacking) = exchange.turn() else { panic!("{piece:?} is left") };
                assert_eq!(turn, *side, "at {}", exchange.part());
                assert_ne!(lacking, 0);
                let (now, later) = piece.split_at(lacking.min(piece.len()));
                exchange.handle(*side, now)?;
                piece = later;
            }
        }
    }
    Ok(exchange)
}

fn fault(script: &Script) -> SaslFault {
    run(script, &[usize::MAX]).unwrap_err()
}

/// The first speeches of a login, then this one.
fn then(kept: usize, side: Side, bytes: Vec<u8>) -> Script {
    let mut script = scram();
    script.truncate(kept);
    script.push((side, bytes));
    script
}

#[test]
fn a_login_is_followed_to_its_end() {
    let exchange = run(&scram(), &[usize::MAX]).unwrap();
    assert_eq!(exchange.turn(), Turn::Over(Outcome::Linked));
    assert_eq!(exchange.chosen(), "SCRAM-SHA-256");
    assert_eq!(exchange.mechanisms().to_string(), "SCRAM-SHA-256, SCRAM-SHA-1, DIGEST-MD5, PLAIN");
}

#[test]
fn a_login_in_one_step_without_data_from_the_server() {
    // As recorded: PLAIN's answer has length 0, not 1.
    let login = hex("05000000 504c41494e 13000000 00 7573657240737069636500 736563726574 00");
    let script = vec![
        (Side::Server, list(",PLAIN,")),
        (Side::Client, login),
        (Side::Server, hex("00000000 01 00000000 08000000")),
    ];
    let exchange = run(&script, &[1]).unwrap();
    assert_eq!(exchange.turn(), Turn::Over(Outcome::Refused(LinkError::BadConnectionId)));
}

#[test]
fn none_and_empty_differ() {
    let wire = |data| {
        let mut out = Vec::new();
        put_data(&mut out, data);
        out
    };
    assert_eq!(wire(None), hex("00000000"));
    assert_eq!(wire(Some(b"")), hex("01000000 00"));
    assert_eq!(wire(Some(b"ab")), hex("03000000 616200"));
    assert_eq!((data(b""), data(b"\0"), data(b"ab\0")), (None, Some(&b""[..]), Some(&b"ab"[..])));
}

#[test]
fn lists_have_commas_at_their_ends_or_not() {
    for wire in [",A,B-2,", "A,B-2", "A B-2", ",,A,,B-2\0"] {
        let mechanisms = Mechanisms::parse(wire.as_bytes());
        assert_eq!(mechanisms.names().collect::<Vec<_>>(), ["A", "B-2"], "{wire}");
        assert!(mechanisms.offers(b"A") && !mechanisms.offers(b"B") && !mechanisms.offers(b""));
    }
    assert_eq!(Mechanisms::parse(b",plain,\xff\xfe,\x1b[2J,").names().count(), 0);
}

#[test]
fn a_rejection_in_words() {
    let mut words = word(1);
    words.extend(list("Authentication\x1b failed\0"));
    let mut script = scram();
    script.truncate(5);
    script.push((Side::Server, words));
    let exchange = run(&script, &[3]).unwrap();
    assert_eq!(exchange.turn(), Turn::Over(Outcome::Rejected));
    assert_eq!(exchange.text(), "Authentication failed");

    script.pop();
    script.push((Side::Server, [word(1), word(0)].concat()));
    assert_eq!(run(&script, &[3]).unwrap().turn(), Turn::Over(Outcome::Rejected));
}

#[test]
fn the_servers_silence_means_no_only_where_it_judges() {
    let judged = |kept: usize| {
        let mut script = scram();
        script.truncate(kept);
        let exchange = run(&script, &[usize::MAX]).unwrap();
        (exchange.ends_in_rejection(), exchange.is_with_server())
    };
    assert_eq!(judged(0), (false, false), "no mechanisms");
    assert_eq!(judged(1), (false, false), "the client's turn");
    assert_eq!(judged(2), (true, true), "wrong name, or PLAIN's password");
    assert_eq!(judged(3), (false, false), "the client's turn");
    assert_eq!(judged(4), (true, true), "wrong proof");
    assert_eq!(judged(5), (true, true));
    assert_eq!(judged(6), (false, true), "accepted");
    assert_eq!(judged(7), (false, true), "linked");
}

#[test]
fn lengths_beyond_their_limits() {
    let long = |part, limit, got| SaslFault::TooLong { part, limit, got };
    for got in [MAX_LIST + 1, u32::MAX] {
        assert_eq!(fault(&then(0, Side::Server, word(got))), long(Part::List, MAX_LIST, got));
    }
    for got in [MAX_NAME + 1, 1 << 31, u32::MAX] {
        assert_eq!(fault(&then(1, Side::Client, word(got))), long(Part::Name, MAX_NAME, got));
    }
    let mut choice = Vec::new();
    put_name(&mut choice, "PLAIN");
    for got in [MAX_DATA + 1, 1 << 20, u32::MAX] {
        let script = then(1, Side::Client, [choice.clone(), word(got)].concat());
        assert_eq!(fault(&script), long(Part::ClientData, MAX_DATA, got));
        assert_eq!(fault(&then(2, Side::Server, word(got))), long(Part::ServerData, MAX_DATA, got));
        let script = then(5, Side::Server, [word(1), word(got)].concat());
        assert_eq!(fault(&script), long(Part::Text, MAX_TEXT, got));
    }
    // The longest ones pass.
    assert!(
        run(&then(2, Side::Server, [word(MAX_DATA), vec![7; MAX_DATA as usize]].concat()), &[4096]).is_ok()
    );
}

#[test]
fn choices_that_are_none() {
    assert_eq!(fault(&then(1, Side::Client, word(0))), SaslFault::NoName);
    for name in ["EXTERNAL", "PLAI", "PLAIN,SCRAM-SHA-1", ",", "plain", "PLAIN\0"] {
        let mut choice = Vec::new();
        put_name(&mut choice, name);
        assert_eq!(fault(&then(1, Side::Client, choice)), SaslFault::NotOffered, "{name:?}");
    }
}

#[test]
fn an_exchange_without_end() {
    let mut script = scram();
    script.truncate(2);
    for _ in 1..MAX_STEPS {
        script.push((Side::Server, step(None, 0)));
        script.push((Side::Client, word(0)));
    }
    run(&script, &[usize::MAX]).unwrap();
    script.push((Side::Server, step(None, 0)));
    script.push((Side::Client, word(0)));
    assert_eq!(fault(&script), SaslFault::TooManySteps);
    assert_eq!(fault(&script).side(), Side::Client);
}

#[test]
fn speaking_out_of_turn() {
    let mut exchange = Exchange::new();
    let error = exchange.handle(Side::Client, &[0]).unwrap_err();
    assert_eq!((error, error.side()), (SaslFault::OutOfTurn { expected: Part::ListLength }, Side::Client));
    let error = exchange.handle(Side::Server, &[0; 5]).unwrap_err();
    assert_eq!(error, SaslFault::OutOfTurn { expected: Part::ListLength });
    let mut exchange = run(&scram(), &[usize::MAX]).unwrap();
    assert!(exchange.handle(Side::Server, &[0]).is_err(), "the channel's bytes are not its business");
}

#[test]
fn a_second_link_reply_is_no_verdict() {
    assert_eq!(fault(&then(5, Side::Server, b"REDQ".to_vec())), SaslFault::SecondReply);
    assert_eq!(fault(&then(6, Side::Server, b"REDQ".to_vec())), SaslFault::SecondReply);
}

proptest! {
    #[test]
    fn any_cut_of_an_exchange_is_the_same_exchange(
        cuts in prop::collection::vec(1_usize..40, 1..20),
        steps in prop::collection::vec((prop::option::of(text(60)), prop::option::of(text(60))), 1..MAX_STEPS as usize),
        result in 0_u32..12,
    ) {
        let mut script = vec![(Side::Server, list("A,B"))];
        let last = steps.len() - 1;
        for (n, (client, server)) in steps.into_iter().enumerate() {
            let mut said = Vec::new();
            if n == 0 {
                put_name(&mut said, "B");
            }
            put_data(&mut said, client.as_deref());
            script.push((Side::Client, said));
            script.push((Side::Server, step(server.as_deref(), u8::from(n == last))));
        }
        script.push((Side::Server, [word(0), word(result)].concat()));
        let whole = run(&script, &[usize::MAX]).unwrap();
        let cut = run(&script, &cuts).unwrap();
        prop_assert_eq!(whole.turn(), cut.turn());
        prop_assert_eq!(whole.turn(), Turn::Over(LinkError::from_code(result).map_or(Outcome::Linked, Outcome::Refused)));
    }

    #[test]
    fn nothing_panics_and_little_is_kept(bytes in prop::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..2000)) {
        let mut exchange = Exchange::new();
        let mut rest = &bytes[..];
        while let Turn::Of(side, lacking) = exchange.turn() {
            prop_assert!(lacking > 0);
            if rest.is_empty() { break }
            let (now, later) = rest.split_at(lacking.min(rest.len()));
            rest = later;
            if exchange.handle(side, now).is_err() { break }
            prop_assert!(exchange.kept.len() <= MAX_TEXT as usize);
        }
    }
}
