//! A connection made by hand: what its ends send, and what is made of it.

use spice_proto::frame::put_header;
use spice_proto::link::{CommonCaps, LinkVersion, PUBLIC_KEY_LEN, Welcome};

use super::*;

pub(super) struct Script {
    dissector: Dissector,
    lines: Vec<String>,
    stream: u64,
    now: u64,
}

impl Script {
    pub(super) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(super) fn with(options: Options) -> Self {
        Self { dissector: Dissector::new(options), lines: Vec::new(), stream: 0, now: 0 }
    }

    /// Begins another connection, from port 40000 to 5900.
    pub(super) fn open(&mut self, from_start: bool) -> &mut Self {
        self.open_ports(40000, 5900, from_start)
    }

    pub(super) fn open_ports(&mut self, from: u16, to: u16, from_start: bool) -> &mut Self {
        self.stream += 1;
        let (from, to) = (SocketAddr::from(([10, 0, 0, 1], from)), SocketAddr::from(([10, 0, 0, 2], to)));
        self.piece(Piece::Opened { from, to, from_start })
    }

    pub(super) fn piece(&mut self, piece: Piece<'_>) -> &mut Self {
        self.now += 1;
        let event = StreamEvent { time: Duration::from_secs(self.now), stream: StreamId(self.stream), piece };
        let lines = &mut self.lines;
        self.dissector.handle(event, &mut |item| lines.push(line(&item)));
        self
    }

    pub(super) fn forth(&mut self, bytes: &[u8]) -> &mut Self {
        self.piece(Piece::Bytes { way: Way::Forth, bytes })
    }

    pub(super) fn back(&mut self, bytes: &[u8]) -> &mut Self {
        self.piece(Piece::Bytes { way: Way::Back, bytes })
    }

    pub(super) fn hole(&mut self, way: Way, missing: u64) -> &mut Self {
        self.piece(Piece::Hole { way, missing, cause: HoleCause::NotCaptured })
    }

    pub(super) fn close(&mut self) -> &mut Self {
        self.piece(Piece::Finished { way: Way::Forth });
        self.piece(Piece::Finished { way: Way::Back });
        self.piece(Piece::Ended { seen: true })
    }

    /// The whole link stage of a channel, both ends with these common capabilities.
    pub(super) fn linked(&mut self, channel_type: u8, common: CommonCaps) -> &mut Self {
        self.open(true).forth(&mess(channel_type, common)).back(&reply(common));
        if common.contains(CommonCaps::AUTH_SELECTION) {
            self.forth(&1u32.to_le_bytes());
        }
        self.forth(&[7; 128]).back(&0u32.to_le_bytes());
        self.lines.clear();
        self
    }

    /// What was given since it was last asked.
    pub(super) fn lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    /// Checks what was given since it was last asked.
    #[track_caller]
    pub(super) fn expect(&mut self, expected: &[&str]) -> &mut Self {
        assert_eq!(self.lines(), expected);
        self
    }

    pub(super) fn held(&self) -> usize {
        self.dissector.held
    }
}

fn line(item: &Item<'_>) -> String {
    let channel = item.channel.and_then(|channel| names::channel(channel.channel_type));
    let from = item.from.map_or("-", Sender::name);
    match &item.what {
        What::Began { client, server, from_start } => {
            format!("began {} {}{}", client.port(), server.port(), if *from_start { "" } else { " late" })
        }
        What::LinkMess { version, .. } => format!("{from} link_mess {}.{}", version.0, version.1),
        What::LinkReply { reply: LinkReply::Welcome(_), .. } => format!("{from} link_reply"),
        What::LinkReply { reply: LinkReply::Refused(error), .. } => {
            format!("{from} link_reply {}", error.code())
        }
        What::AuthMechanism(n) => format!("{from} auth_mechanism {n}"),
        What::Ticket => format!("{from} ticket"),
        What::Sasl { name, size } => format!("{from} {name} {size}"),
        What::LinkResult(error) => format!("{from} link_result {}", error.map_or(0, LinkError::code)),
        What::Linked(terms) => {
            format!("linked {} {:?} {:?}", channel.unwrap_or("?"), terms.header, terms.layout)
        }
        What::Message(message) => {
            let how = match message.body {
                Body::Opaque => format!(" opaque {}", message.bytes.len()),
                Body::Incomplete => " incomplete".to_owned(),
                Body::BaseServer(_)
                | Body::BaseClient(_)
                | Body::MainServer(_)
                | Body::MainClient(_)
                | Body::TunnelServer(_)
                | Body::TunnelClient(_) => String::new(),
            };
            format!("{from} {} {}{how}", message.name.unwrap_or("unknown"), message.head.size)
        }
        What::Malformed { error, .. } => format!("{from} malformed: {error}"),
        What::Hole(hole) => {
            let missing = hole.missing.map_or("?".to_owned(), |n| n.to_string());
            let how = if hole.resumed { "" } else { " for good" };
            format!("{from} hole {missing}+{}{how}", hole.skipped)
        }
        What::Ended { how } => format!("ended {how:?}"),
    }
}

/// A link message.
pub(super) fn mess(channel_type: u8, common: CommonCaps) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mess = LinkMess {
        session_id: 1,
        channel_type,
        channel_id: 0,
        common_caps: vec![common.bits()],
        channel_caps: vec![5],
    };
    mess.write(LinkVersion::V2, &mut bytes);
    bytes
}

/// A link reply that is no refusal.
pub(super) fn reply(common: CommonCaps) -> Vec<u8> {
    let mut bytes = Vec::new();
    let welcome = Welcome {
        public_key: Box::new([9; PUBLIC_KEY_LEN]),
        common_caps: vec![common.bits()],
        channel_caps: vec![3],
    };
    LinkReply::Welcome(welcome).write(LinkVersion::V2, &mut bytes);
    bytes
}

/// A link reply that is one.
pub(super) fn refusal(error: LinkError) -> Vec<u8> {
    let mut bytes = Vec::new();
    LinkReply::Refused(error).write(LinkVersion::V2, &mut bytes);
    bytes
}

/// A message with a mini header.
pub(super) fn mini(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_header(HeaderForm::Mini, &mut bytes, 0, kind, body.len() as u32);
    bytes.extend_from_slice(body);
    bytes
}

/// A message with a full header.
pub(super) fn full(serial: u64, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_header(HeaderForm::Full, &mut bytes, serial, kind, body.len() as u32);
    bytes.extend_from_slice(body);
    bytes
}
