//! The link stage.

use std::time::{Duration, Instant};

use spice_proto::handshake::{
    ClientHandshake, ClientLink, ClientNeeds, Deadlines, HandshakeError, Linked, OnSasl, ServerHandshake,
    ServerNeeds,
};
use spice_proto::link::{
    CommonCaps, LinkError, LinkMess, LinkReply, LinkVersion, MAX_SIZE, PUBLIC_KEY_LEN, TICKET_LEN, Welcome,
};
use spice_proto::sasl::{Exchange, MAX_DATA, SaslFault, Turn};
use spice_proto::ticket::{Password, seal};

use crate::input::Input;

/// Byte 0: which machine and how it answers; 1: how the stream is chopped; 2: seconds between the pieces; then what the
/// peer sends.
///
/// However it is chopped, the outcome is the same, unless deadlines pass. Nothing is read past the end of the link stage.
pub fn link(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choices = input.byte();
    let piece = usize::from(input.byte()) + 1;
    let pause = Duration::from_secs(u64::from(input.byte()));
    let stream = input.rest();
    let drive = if choices & 1 == 0 { serve } else { connect };

    let whole = drive(choices, stream, stream.len().max(1), Duration::ZERO);
    let chopped = drive(choices, stream, piece, Duration::ZERO);
    assert_eq!(whole, chopped);
    if !pause.is_zero() {
        let slow = drive(choices, stream, piece, pause);
        assert!(slow.said.len() <= whole.said.len());
    }

    assert_eq!(follow(stream, stream.len().max(1)), follow(stream, piece));

    if let Ok(mess) = LinkMess::parse(stream) {
        let mut out = Vec::new();
        mess.write(LinkVersion::V2, &mut out);
        assert_eq!(LinkMess::parse(&out[16..]), Ok(mess));
    }
    if let Ok(LinkReply::Welcome(welcome)) = LinkReply::parse(stream) {
        // Words are left out where all of them would make a reply that is too long.
        let words = welcome.common_caps.len() + welcome.channel_caps.len();
        let reply = LinkReply::Welcome(welcome);
        let mut out = Vec::new();
        reply.write(LinkVersion::V2, &mut out);
        if words < 900 {
            assert_eq!(LinkReply::parse(&out[16..]), Ok(reply));
        }
    }
}

/// A SASL exchange in which whoever's turn it is says what comes next.
fn follow(stream: &[u8], piece: usize) -> (Result<(), SaslFault>, Turn, String) {
    let mut exchange = Exchange::new();
    let mut rest = stream;
    let mut outcome = Ok(());
    while let (Turn::Of(side, lacking), false, Ok(())) = (exchange.turn(), rest.is_empty(), outcome) {
        assert!((1..=MAX_DATA as usize).contains(&lacking));
        let (now, later) = rest.split_at(lacking.min(piece).min(rest.len()));
        outcome = exchange.handle(side, now);
        rest = later;
    }
    (outcome, exchange.turn(), exchange.text().to_owned())
}

/// What a link stage came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    result: Result<Linked, HandshakeError>,
    /// All that the machine sent.
    said: Vec<u8>,
    /// How much of the stream was the link stage; not said of one that failed.
    read: Option<usize>,
}

fn serve(choices: u8, stream: &[u8], piece: usize, pause: Duration) -> Outcome {
    let mut now = Instant::now();
    let on_sasl = if choices & 2 == 0 { OnSasl::Refuse } else { OnSasl::Ask };
    let mut machine = ServerHandshake::new(now, Deadlines::default(), on_sasl);
    let mut said = Vec::new();
    let mut read = 0;
    'pieces: for arrived in stream.chunks(piece) {
        now += pause;
        if machine.handle_timeout(now).is_err() {
            break;
        }
        let mut rest = arrived;
        loop {
            let outcome = machine.handle_bytes(now, rest);
            said.extend_from_slice(machine.poll_transmit());
            machine.sent(machine.poll_transmit().len());
            let Ok(n) = outcome else { break 'pieces };
            read += n;
            rest = &rest[n..];
            assert_eq!(machine.raw(), &stream[..read]);
            let answer = match machine.needs() {
                ServerNeeds::Bytes(n) => {
                    assert!((1..=MAX_SIZE as usize).contains(&n));
                    assert!(rest.is_empty(), "bytes are wanted but not taken");
                    break;
                }
                ServerNeeds::Decision(_) => match choices >> 2 & 3 {
                    0 | 1 => machine.welcome(
                        now,
                        Welcome {
                            public_key: Box::new([7; PUBLIC_KEY_LEN]),
                            common_caps: vec![CommonCaps::OURS.bits()],
                            channel_caps: vec![1; usize::from(choices >> 4 & 3)],
                        },
                    ),
                    2 => machine.refuse(LinkError::NeedSecured),
                    _ => machine.drop_silently(),
                },
                ServerNeeds::Sasl => machine.refuse_mechanism(),
                ServerNeeds::Verdict(_) if choices & 0x40 == 0 => machine.permit(),
                ServerNeeds::Verdict(_) => machine.refuse(LinkError::PermissionDenied),
                ServerNeeds::Done => break 'pieces,
            };
            assert_eq!(answer, Ok(()), "the answer that was asked for");
        }
    }
    said.extend_from_slice(machine.poll_transmit());
    if machine.needs() != ServerNeeds::Done {
        machine.handle_eof();
    }
    assert!(said.len() < 1024);
    let result = machine.finish();
    Outcome { read: result.is_ok().then_some(read), result, said }
}

fn connect(choices: u8, stream: &[u8], piece: usize, pause: Duration) -> Outcome {
    let mut now = Instant::now();
    let link = ClientLink {
        version: if choices & 2 == 0 { LinkVersion::V2 } else { LinkVersion::V2010 },
        channel_type: 7,
        channel_id: 0,
        session_id: u32::from(choices >> 4),
        common_caps: match choices & 0x84 {
            0 => CommonCaps::OURS,
            0x80 => CommonCaps::OURS | CommonCaps::AUTH_SASL,
            _ => CommonCaps::empty(),
        },
        channel_caps: vec![3],
    };
    let mut machine = ClientHandshake::new(now, Deadlines::default(), link);
    let mut said = Vec::new();
    let mut read = 0;
    'pieces: for arrived in stream.chunks(piece) {
        now += pause;
        if machine.handle_timeout(now).is_err() {
            break;
        }
        let mut rest = arrived;
        loop {
            let outcome = machine.handle_bytes(now, rest);
            said.extend_from_slice(machine.poll_transmit());
            machine.sent(machine.poll_transmit().len());
            let Ok(n) = outcome else { break 'pieces };
            read += n;
            rest = &rest[n..];
            match machine.needs() {
                ClientNeeds::Bytes(n) => {
                    assert!((1..=MAX_DATA as usize).contains(&n));
                    assert!(rest.is_empty(), "bytes are wanted but not taken");
                    break;
                }
                ClientNeeds::Ticket(key) => {
                    if choices & 8 != 0 {
                        // Whatever the key is, it is a refusal or a ticket.
                        let password = Password::new(b"secret").expect("a short password");
                        let _ = seal(key, &password);
                    }
                    assert_eq!(machine.ticket(now, &[7; TICKET_LEN]), Ok(()));
                }
                ClientNeeds::SaslStart(offered) => {
                    let Some(name) = offered.names().next().map(str::to_owned) else { break 'pieces };
                    assert_eq!(machine.sasl_start(now, &name, None), Ok(()));
                }
                ClientNeeds::SaslStep { complete: true, .. } => assert_eq!(machine.sasl_agree(now), Ok(())),
                ClientNeeds::SaslStep { data, complete: false } => {
                    let answer = data.map(|data| data.get(..8).unwrap_or(data).to_vec());
                    if machine.sasl_step(now, answer.as_deref()).is_err() {
                        break 'pieces;
                    }
                }
                ClientNeeds::Done => break 'pieces,
            }
        }
    }
    said.extend_from_slice(machine.poll_transmit());
    if machine.needs() != ClientNeeds::Done {
        machine.handle_eof();
    }
    assert!(said.len() < 1024);
    let result = machine.finish();
    Outcome { read: result.is_ok().then_some(read), result, said }
}
