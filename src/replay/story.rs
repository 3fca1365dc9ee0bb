//! What is compared: what became of a tunnelled connection, told twice.
//!
//! One [`Told`] is taken from the captured messages, the other from what today's channel says and tells its owner. Both
//! name the two ends by who is played: *own* is the end that today's code plays, *peer* the captured end that it hears.
//!
//! Nothing is in a story that means nothing to the two connections behind the channel: no ids, serials, message
//! boundaries, token batches, times.

use std::collections::VecDeque;

use spice_proto::tunnel::{
    ClientMessage, InfoBody, IpInfo, NameAnswer, QueryId, ServerMessage, ServiceAdd, ServiceId, SocketId,
};
use tunnel_channel::Role;

use super::report::Subject;

/// A tunnel message of either end. The two ends say much the same under different numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word<'a> {
    Init { max_sockets: u16, max_data: u32 },
    Map { service: ServiceId, address: IpInfo },
    Add(ServiceAdd<'a>),
    Remove(ServiceId),
    Name(Naming<'a>),
    Socket(SocketId, Said<'a>),
}

/// What is said about names, and what a service says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming<'a> {
    Describe { service: ServiceId, info: InfoBody<'a> },
    Ask { query: QueryId, name: &'a str },
    Answer { query: QueryId, answer: NameAnswer },
    AddDomain(&'a str),
    RemoveDomain(&'a str),
}

/// What is said about a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Open {
        service: ServiceId,
        tokens: u32,
    },
    Accept {
        tokens: u32,
    },
    Refuse,
    Data(&'a [u8]),
    Token(u32),
    Fin,
    /// The server's CLOSE, the client's CLOSED.
    Close,
    Reset,
    ClosedAck,
}

impl<'a> Word<'a> {
    /// What the server says, if it matters to any connection.
    pub(super) fn of_server(message: &ServerMessage<'a>) -> Option<Self> {
        Some(match *message {
            ServerMessage::ProbeAck { .. } => return None,
            ServerMessage::NameQuery { query, name } => Word::Name(Naming::Ask { query, name }),
            ServerMessage::Init { max_sockets, max_data } => Word::Init { max_sockets, max_data },
            ServerMessage::ServiceIpMap { service, address } => Word::Map { service, address },
            ServerMessage::SocketOpen { socket, service, tokens } => {
                Word::Socket(socket, Said::Open { service, tokens })
            }
            ServerMessage::SocketFin { socket } => Word::Socket(socket, Said::Fin),
            ServerMessage::SocketClose { socket } => Word::Socket(socket, Said::Close),
            ServerMessage::SocketData { socket, payload } => Word::Socket(socket, Said::Data(payload)),
            ServerMessage::SocketClosedAck { socket } => Word::Socket(socket, Said::ClosedAck),
            ServerMessage::SocketToken { socket, tokens } => Word::Socket(socket, Said::Token(tokens)),
        })
    }

    /// What the client says, if it matters to any connection.
    pub(super) fn of_client(message: &ClientMessage<'a>) -> Option<Self> {
        Some(match *message {
            ClientMessage::Probe { .. } => return None,
            ClientMessage::ServiceInfo { service, info } => Word::Name(Naming::Describe { service, info }),
            ClientMessage::NameAnswer { query, answer } => Word::Name(Naming::Answer { query, answer }),
            ClientMessage::DomainAdd { name } => Word::Name(Naming::AddDomain(name)),
            ClientMessage::DomainRemove { name } => Word::Name(Naming::RemoveDomain(name)),
            ClientMessage::ServiceAdd(add) => Word::Add(add),
            ClientMessage::ServiceRemove { service } => Word::Remove(service),
            ClientMessage::SocketOpenAck { socket, tokens } => Word::Socket(socket, Said::Accept { tokens }),
            ClientMessage::SocketOpenNack { socket } => Word::Socket(socket, Said::Refuse),
            ClientMessage::SocketFin { socket } => Word::Socket(socket, Said::Fin),
            ClientMessage::SocketClosed { socket } => Word::Socket(socket, Said::Close),
            ClientMessage::SocketClosedAck { socket } => Word::Socket(socket, Said::ClosedAck),
            ClientMessage::SocketData { socket, payload } => Word::Socket(socket, Said::Data(payload)),
            ClientMessage::SocketToken { socket, tokens } => Word::Socket(socket, Said::Token(tokens)),
            ClientMessage::SocketReset { socket } => Word::Socket(socket, Said::Reset),
        })
    }
}

/// What became of a connection, as one of the two tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Told {
    pub(super) answer: Answer,
    /// The direction of the end that is played.
    pub(super) own: Half,
    /// The other.
    pub(super) peer: Half,
    /// The end that is played said FIN while the peer had not ended: only from it the peer knows. Behind the peer's
    /// end, a client's CLOSED says it as well.
    pub(super) own_first: bool,
    /// Whether the end that is played ended the connection, before the peer did.
    pub(super) own_end: Option<Manner>,
    /// Whether the peer did, before the other.
    pub(super) peer_end: Option<Manner>,
    /// Whether the played end acknowledged the peer's end.
    pub(super) acked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Answer {
    #[default]
    None,
    Accepted,
    Refused,
}

impl Answer {
    pub(super) fn words(self) -> &'static str {
        match self {
            Answer::None => "not answered",
            Answer::Accepted => "accepted",
            Answer::Refused => "refused",
        }
    }
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Half {
    pub(super) bytes: u64,
    /// Behind which byte it ended: by FIN, or by the client's CLOSED where that stands for a FIN too.
    pub(super) end: Option<u64>,
}

/// How a connection was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// After all that was to be sent.
    Clean,
    Abort,
}

impl Manner {
    /// What CLOSE and CLOSED mean (wire-reference 6.8 to 6.10): an abort, unless the server's FIN went before. RESET is
    /// one in any case.
    pub(super) fn of(said: &Said<'_>, server_finished: bool) -> Self {
        if server_finished && *said != Said::Reset { Manner::Clean } else { Manner::Abort }
    }
}

/// The bytes of the played end: those that were captured, against those that today's channel sends, as they come. What was
/// captured and not yet sent is held; today's channel holds the rest back for want of credit.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    expected: VecDeque<u8>,
    /// Bytes that came from today's channel.
    offset: u64,
    pub(super) mismatch: Option<Mismatch>,
}

/// The first byte that is not the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mismatch {
    offset: u64,
    captured: Option<u8>,
    today: u8,
}

impl Matcher {
    pub(super) fn expect(&mut self, bytes: &[u8]) {
        self.expected.extend(bytes);
    }

    pub(super) fn got(&mut self, bytes: &[u8]) {
        for &today in bytes {
            let captured = self.expected.pop_front();
            if captured != Some(today) && self.mismatch.is_none() {
                self.mismatch = Some(Mismatch { offset: self.offset, captured, today });
            }
            self.offset += 1;
        }
    }
}

/// Compares the two stories of a connection whose captured life is over, or as far as both went.
pub(super) fn compare(
    role: Role,
    captured: &Told,
    today: &Told,
    mismatch: Option<Mismatch>,
) -> Vec<(Subject, String, String)> {
    let mut found = Vec::new();
    let mut differ = |subject, captured: String, today: String| found.push((subject, captured, today));
    if captured.answer != today.answer {
        differ(Subject::Open, captured.answer.words().to_owned(), today.answer.words().to_owned());
    }
    let (own, peer) = match role {
        Role::Server => ("from the guest", "to the guest"),
        Role::Client => ("to the guest", "from the guest"),
    };
    if let Some(Mismatch { offset, captured, today }) = mismatch {
        let captured = captured.map_or("nothing".to_owned(), |byte| format!("{byte:#04x}"));
        differ(Subject::Bytes, format!("{captured} at offset {offset} {own}"), format!("{today:#04x}"));
    }
    for (name, captured, today) in [(own, captured.own, today.own), (peer, captured.peer, today.peer)] {
        if captured.bytes != today.bytes {
            differ(
                Subject::Bytes,
                format!("{} bytes {name}", captured.bytes),
                format!("{} bytes", today.bytes),
            );
        }
        if captured.end != today.end {
            differ(Subject::HalfClose, format!("{name} {}", end(captured.end)), end(today.end));
        }
    }
    if captured.own_first != today.own_first && captured.own.end == today.own.end {
        let words =
            |first| if first { "before the other direction" } else { "with the end of the other direction" };
        let captured = format!("{own} ended {}", words(captured.own_first));
        differ(Subject::HalfClose, captured, words(today.own_first).to_owned());
    }
    let ends = [
        (own_name(role), captured.own_end, today.own_end),
        (peer_name(role), captured.peer_end, today.peer_end),
    ];
    for (name, captured, today) in ends {
        if captured != today {
            differ(Subject::End, format!("{name} {}", manner(captured)), manner(today).to_owned());
        }
    }
    // Historical servers acknowledge late, some after 14 s: that today's code is ahead means nothing.
    if captured.acked && !today.acked {
        differ(
            Subject::End,
            format!("the {}'s end is acknowledged", peer_name(role)),
            "it is not".to_owned(),
        );
    }
    found
}

/// The end that today's code plays.
pub(super) fn own_name(role: Role) -> &'static str {
    match role {
        Role::Server => "server",
        Role::Client => "client",
    }
}

/// The other.
pub(super) fn peer_name(role: Role) -> &'static str {
    match role {
        Role::Server => "client",
        Role::Client => "server",
    }
}

fn end(at: Option<u64>) -> String {
    at.map_or("not ended".to_owned(), |at| format!("ended behind byte {at}"))
}

fn manner(manner: Option<Manner>) -> &'static str {
    match manner {
        None => "did not end it",
        Some(Manner::Clean) => "ended it",
        Some(Manner::Abort) => "aborted it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Told {
        Told {
            answer: Answer::Accepted,
            own: Half { bytes: 10, end: Some(10) },
            peer: Half { bytes: 20, end: Some(20) },
            own_first: true,
            own_end: None,
            peer_end: Some(Manner::Clean),
            acked: true,
        }
    }

    #[test]
    fn each_part_of_a_story_is_compared() {
        assert_eq!(compare(Role::Server, &whole(), &whole(), None), []);
        let changed = [
            (Subject::Open, Told { answer: Answer::Refused, ..whole() }),
            (Subject::Bytes, Told { own: Half { bytes: 9, end: Some(10) }, ..whole() }),
            (Subject::Bytes, Told { peer: Half { bytes: 21, end: Some(20) }, ..whole() }),
            (Subject::HalfClose, Told { own: Half { bytes: 10, end: None }, ..whole() }),
            (Subject::HalfClose, Told { peer: Half { bytes: 20, end: Some(19) }, ..whole() }),
            (Subject::HalfClose, Told { own_first: false, ..whole() }),
            (Subject::End, Told { own_end: Some(Manner::Abort), ..whole() }),
            (Subject::End, Told { peer_end: Some(Manner::Abort), ..whole() }),
            (Subject::End, Told { peer_end: None, ..whole() }),
            (Subject::End, Told { acked: false, ..whole() }),
        ];
        for (subject, today) in changed {
            for role in [Role::Server, Role::Client] {
                let found = compare(role, &whole(), &today, None);
                assert_eq!(found.len(), 1, "{found:?}");
                assert_eq!(found[0].0, subject, "{found:?}");
            }
        }
    }

    #[test]
    fn an_acknowledgement_that_the_capture_does_not_hold_yet_is_no_difference() {
        let captured = Told { acked: false, ..whole() };
        assert_eq!(compare(Role::Server, &captured, &whole(), None), []);
    }

    #[test]
    fn the_first_differing_byte_is_named() {
        let mut matcher = Matcher::default();
        matcher.expect(b"abcd");
        matcher.got(b"ab");
        assert_eq!(matcher.mismatch, None);
        matcher.got(b"xd");
        let found = compare(Role::Server, &whole(), &whole(), matcher.mismatch);
        assert_eq!(found[0].1, "0x63 at offset 2 from the guest");
        let mut surplus = Matcher::default();
        surplus.got(b"z");
        let found = compare(Role::Client, &whole(), &whole(), surplus.mismatch);
        assert_eq!((found[0].1.as_str(), found[0].2.as_str()), ("nothing at offset 0 to the guest", "0x7a"));
    }
}
