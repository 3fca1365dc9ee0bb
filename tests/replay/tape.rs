//! A tunnel connection taken out of a capture, or made up, that can be changed message by message and written as a capture
//! again: what the tests of `replay` break.

use std::path::Path;
use std::time::Duration;

use spice_proto::frame::{Header, HeaderForm};
use spice_proto::link::{LinkError, LinkMess, LinkReply, LinkVersion, PUBLIC_KEY_LEN, TICKET_LEN, Welcome};
use spice_proto::names::Sender;
use spice_proto::service_info::{Advert, HostName, Identity, Label, ServiceInfo, ServiceType, Txt};
use spice_proto::tunnel::{
    ClientMessage, GroupId, InfoBody, IpInfo, Layout, NameAnswer, QueryId, ServerMessage, ServiceAdd,
    ServiceId, ServiceKind, SocketId,
};
use spice_tunnel::capture::dissect::{self, Item, What};
use spice_tunnel::capture::file::Reader;
use spice_tunnel::capture::reader::SpiceReader;

/// A tunnel connection.
#[derive(Debug, Clone)]
pub(crate) struct Tape {
    link: Option<(LinkVersion, LinkMess, LinkReply)>,
    pub(crate) mechanism: Option<u32>,
    result: Option<LinkError>,
    header: HeaderForm,
    layout: Layout,
    pub(crate) said: Vec<Said>,
    late: bool,
}

/// A message.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    time: Duration,
    pub(crate) from: Sender,
    serial: u64,
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
    layout: Layout,
    lost: bool,
}

impl Said {
    pub(crate) fn server(&self) -> Option<ServerMessage<'_>> {
        (self.from == Sender::Server).then(|| ServerMessage::parse(self.kind, &self.body).unwrap()).flatten()
    }

    pub(crate) fn client(&self) -> Option<ClientMessage<'_>> {
        (self.from == Sender::Client)
            .then(|| ClientMessage::parse(self.layout, self.kind, &self.body).unwrap())
            .flatten()
    }

    /// Of a message about a socket.
    pub(crate) fn socket(&self) -> Option<SocketId> {
        self.body.first_chunk().map(|id| SocketId(u16::from_le_bytes(*id)))
    }
}

impl Tape {
    /// The tunnel connection of a capture.
    pub(crate) fn read(path: &Path) -> Tape {
        let mut reader = SpiceReader::new(Reader::open(path).unwrap(), dissect::Options::default());
        let mut tape = Tape::empty(HeaderForm::Full, Layout::B);
        let mut link = (None, None);
        let mut take = |item: Item<'_>| {
            if item.channel.is_none_or(|channel| channel.channel_type != 7) {
                return;
            }
            match item.what {
                What::LinkMess { version, mess, .. } => {
                    link.0 = Some((LinkVersion::from_numbers(version.0, version.1).unwrap(), mess));
                }
                What::LinkReply { reply, .. } => link.1 = Some(reply),
                What::AuthMechanism(mechanism) => tape.mechanism = Some(mechanism),
                What::LinkResult(result) => tape.result = result,
                What::Linked(terms) => (tape.header, tape.layout) = (terms.header, terms.layout),
                What::Message(message) => tape.said.push(Said {
                    time: item.time,
                    from: item.from.unwrap(),
                    serial: message.head.serial.unwrap_or_default(),
                    kind: message.head.kind,
                    body: message.bytes.to_vec(),
                    layout: tape.layout,
                    lost: false,
                }),
                What::Began { .. } | What::Ticket | What::Ended { .. } => {}
                What::Sasl { .. } | What::Malformed { .. } | What::Hole(_) => panic!("{item:?}"),
            }
        };
        while reader.step(&mut take).unwrap() {}
        let (version, mess) = link.0.unwrap();
        tape.link = Some((version, mess, link.1.unwrap()));
        tape
    }

    /// A connection on which nothing is said.
    pub(crate) fn silent() -> Tape {
        Tape::empty(HeaderForm::Full, Layout::B)
    }

    fn empty(header: HeaderForm, layout: Layout) -> Tape {
        Tape { link: None, mechanism: None, result: None, header, layout, said: Vec::new(), late: false }
    }

    /// A session of two ends with all of today's capabilities, in which everything happens once.
    pub(crate) fn modern() -> Tape {
        let mut tape = Tape::linked(true);
        tape.open(0, 0, 64, 64);
        tape.s(ServerMessage::SocketData { socket: SocketId(0), payload: b"hello" });
        // The other end answers and ends while this is open.
        tape.open(1, 0, 64, 64);
        tape.c(ClientMessage::SocketFin { socket: SocketId(1) });
        tape.s(ServerMessage::SocketData { socket: SocketId(1), payload: b"thanks" });
        tape.end(1);
        tape.s(ServerMessage::SocketFin { socket: SocketId(0) });
        tape.c(ClientMessage::SocketData { socket: SocketId(0), payload: b"world" });
        tape.c(ClientMessage::SocketClosed { socket: SocketId(0) });
        tape.s(ServerMessage::SocketClosedAck { socket: SocketId(0) });
        // The service says something else of itself.
        tape.describes(0, &ServiceInfo::default());
        tape.names();
        // Refused; reset from either end.
        tape.s(ServerMessage::SocketOpen { socket: SocketId(0), service: ServiceId(0), tokens: 64 });
        tape.c(ClientMessage::SocketOpenNack { socket: SocketId(0) });
        tape.open(0, 0, 64, 64);
        tape.s(ServerMessage::SocketClose { socket: SocketId(0) });
        tape.c(ClientMessage::SocketClosedAck { socket: SocketId(0) });
        tape.open(0, 0, 64, 64);
        tape.c(ClientMessage::SocketReset { socket: SocketId(0) });
        tape.s(ServerMessage::SocketClosedAck { socket: SocketId(0) });
        // Credit goes round.
        tape.open(0, 0, 64, 64);
        for n in 1..=80 {
            tape.c(ClientMessage::SocketData { socket: SocketId(0), payload: &[n; 100] });
            tape.s(ServerMessage::SocketData { socket: SocketId(0), payload: &[n; 50] });
            if n % 16 == 0 {
                tape.s(ServerMessage::SocketToken { socket: SocketId(0), tokens: 16 });
                tape.c(ClientMessage::SocketToken { socket: SocketId(0), tokens: 16 });
            }
        }
        tape.end(0);
        tape.c(ClientMessage::ServiceRemove { service: ServiceId(0) });
        tape
    }

    /// Three connections of a guest that speaks first and ends first: answered, refused, answered.
    pub(crate) fn greetings() -> Tape {
        let mut tape = Tape::linked(true);
        for (up, down) in [(&b"hello"[..], Some(&b"world"[..])), (b"", None), (b"again", Some(b"!"))] {
            let socket = SocketId(0);
            let Some(payload) = down else {
                tape.s(ServerMessage::SocketOpen { socket, service: ServiceId(0), tokens: 64 });
                tape.c(ClientMessage::SocketOpenNack { socket });
                continue;
            };
            tape.open(0, 0, 64, 64);
            tape.s(ServerMessage::SocketData { socket, payload: up });
            tape.s(ServerMessage::SocketFin { socket });
            tape.c(ClientMessage::SocketData { socket, payload });
            tape.c(ClientMessage::SocketClosed { socket });
            tape.s(ServerMessage::SocketClosedAck { socket });
        }
        tape
    }

    /// A client that sends so many messages under a first grant of `window`, and never gets a token more.
    pub(crate) fn flood(extended: bool, window: u32, messages: u32) -> Tape {
        let mut tape = Tape::linked(extended);
        tape.open(0, 0, window, 60);
        for _ in 0..messages {
            tape.c(ClientMessage::SocketData { socket: SocketId(0), payload: b"x" });
        }
        tape.end(0);
        tape
    }

    /// A link, INIT and a service.
    fn linked(extended: bool) -> Tape {
        let header = if extended { HeaderForm::Mini } else { HeaderForm::Full };
        let mut tape = Tape::empty(header, Layout::B);
        let (common_caps, channel_caps) = if extended { (vec![0x0b], vec![0x3f]) } else { (vec![], vec![]) };
        let mess = LinkMess {
            session_id: 1,
            channel_type: 7,
            channel_id: 0,
            common_caps: common_caps.clone(),
            channel_caps: channel_caps.clone(),
        };
        let public_key = Box::new([7; PUBLIC_KEY_LEN]);
        let reply = LinkReply::Welcome(Welcome { public_key, common_caps, channel_caps });
        tape.link = Some((LinkVersion::V2, mess, reply));
        tape.mechanism = extended.then_some(1);
        let (max_sockets, max_data) = if extended { (16_384, 32_768) } else { (20, 2048) };
        tape.s(ServerMessage::Init { max_sockets, max_data });
        if extended {
            tape.describes(0, &described());
        }
        tape.c(ClientMessage::ServiceAdd(ServiceAdd {
            kind: ServiceKind::Generic,
            service: ServiceId(0),
            group: GroupId(0),
            port: 80,
            name: b"box",
            description: b"web",
        }));
        let address = IpInfo::V4([10, 0, 2, 31].into());
        tape.s(ServerMessage::ServiceIpMap { service: ServiceId(0), address });
        tape
    }

    fn describes(&mut self, service: u32, info: &ServiceInfo) {
        let mut buffer = Vec::new();
        let info = InfoBody::write(info, &mut buffer);
        self.c(ClientMessage::ServiceInfo { service: ServiceId(service), info });
    }

    /// A domain, and names that are asked for in it.
    fn names(&mut self) {
        let found = NameAnswer::Found { group: GroupId(0), ttl: 60 };
        let ask = |query, name| ServerMessage::NameQuery { query: QueryId(query), name };
        let answer = |query, answer| ClientMessage::NameAnswer { query: QueryId(query), answer };
        self.c(ClientMessage::DomainAdd { name: "home.arpa" });
        self.s(ask(0, "nas.home.arpa"));
        self.s(ask(1, "nobody.home.arpa"));
        self.c(answer(1, NameAnswer::NoSuchName));
        self.c(answer(0, found));
        self.s(ask(2, "home.arpa"));
        self.c(answer(2, NameAnswer::Failed));
        self.s(ask(3, "nas.home.arpa"));
        self.c(ClientMessage::DomainRemove { name: "home.arpa" });
        self.c(answer(3, NameAnswer::Refused));
    }

    fn open(&mut self, socket: u16, service: u32, up: u32, down: u32) {
        let socket = SocketId(socket);
        self.s(ServerMessage::SocketOpen { socket, service: ServiceId(service), tokens: up });
        self.c(ClientMessage::SocketOpenAck { socket, tokens: down });
    }

    fn end(&mut self, socket: u16) {
        let socket = SocketId(socket);
        self.s(ServerMessage::SocketFin { socket });
        self.c(ClientMessage::SocketClosed { socket });
        self.s(ServerMessage::SocketClosedAck { socket });
    }

    fn s(&mut self, message: ServerMessage<'_>) {
        let mut body = Vec::new();
        message.write_body(&mut body);
        self.push(Sender::Server, message.kind(), body);
    }

    fn c(&mut self, message: ClientMessage<'_>) {
        let mut body = Vec::new();
        message.write_body(self.layout, &mut body);
        self.push(Sender::Client, message.kind(), body);
    }

    fn push(&mut self, from: Sender, kind: u16, body: Vec<u8>) {
        let number = u32::try_from(self.said.len()).unwrap();
        let serial = 1 + self.said.iter().filter(|said| said.from == from).count();
        self.said.push(Said {
            time: Duration::from_secs(1) + Duration::from_millis(1) * number,
            from,
            serial: u64::try_from(serial).unwrap(),
            kind,
            body,
            layout: self.layout,
            lost: false,
        });
    }

    // ---- changes ----

    /// The first message that is so.
    pub(crate) fn position(&self, is_so: impl Fn(&Said) -> bool) -> usize {
        self.said.iter().position(is_so).unwrap()
    }

    /// Puts another message of the client in the place of one.
    pub(crate) fn say(&mut self, at: usize, message: &ClientMessage<'_>) {
        let said = &mut self.said[at];
        (said.from, said.kind) = (Sender::Client, message.kind());
        said.body.clear();
        message.write_body(self.layout, &mut said.body);
    }

    /// Puts another message of the server in the place of one.
    pub(crate) fn say_server(&mut self, at: usize, message: &ServerMessage<'_>) {
        let said = &mut self.said[at];
        (said.from, said.kind) = (Sender::Server, message.kind());
        said.body.clear();
        message.write_body(&mut said.body);
    }

    /// Both ends have other capabilities of the channel.
    pub(crate) fn negotiate(&mut self, channel_caps: u32) {
        let (_, mess, reply) = self.link.as_mut().unwrap();
        mess.channel_caps = vec![channel_caps];
        match reply {
            LinkReply::Welcome(welcome) => welcome.channel_caps = vec![channel_caps],
            LinkReply::Refused(_) => panic!("{reply:?}"),
        }
    }

    /// The capture misses the packet of a message.
    pub(crate) fn lose(&mut self, at: usize) {
        self.said[at].lost = true;
    }

    /// The capture begins behind the link stage.
    pub(crate) fn begin_late(&mut self) {
        self.late = true;
    }

    // ---- as a capture ----

    /// A pcap file of raw IP packets: a message a segment, each acknowledged by the next one of the other end.
    pub(crate) fn pcap(&self) -> Vec<u8> {
        let mut file = Vec::new();
        // Magic for microseconds, version 2.4, longest packet, LINKTYPE_RAW.
        for (width, value) in [(4, 0xa1b2_c3d4), (2, 2), (2, 4), (4, 0), (4, 0), (4, 1 << 18), (4, 101u32)] {
            file.extend(&value.to_le_bytes()[..width]);
        }
        let mut wire = Wire { file, next: [100, 200] };
        let start = self.said.first().map_or(Duration::from_secs(1), |said| said.time);
        if !self.late {
            wire.segment(start, Sender::Client, SYN, &[], false);
            wire.segment(start, Sender::Server, SYN | ACK, &[], false);
        }
        let mut stage = |from, bytes: &[u8]| {
            wire.segment(start, from, ACK, bytes, self.late);
        };
        if let Some((version, mess, reply)) = &self.link {
            let (mut asked, mut answered) = (Vec::new(), Vec::new());
            mess.write(*version, &mut asked);
            if mess.common_caps.is_empty() && mess.channel_caps.is_empty() {
                assert_eq!(asked.len(), 16 + 18);
            }
            reply.write(*version, &mut answered);
            stage(Sender::Client, &asked);
            stage(Sender::Server, &answered);
            if let Some(mechanism) = self.mechanism {
                stage(Sender::Client, &mechanism.to_le_bytes());
            }
            stage(Sender::Client, &[0; TICKET_LEN]);
            stage(Sender::Server, &self.result.map_or(0, |error| error.code()).to_le_bytes());
        }
        let mut last = start;
        for said in &self.said {
            last = last.max(said.time);
            let mut bytes = Vec::new();
            let size = u32::try_from(said.body.len()).unwrap();
            let serial = (self.header == HeaderForm::Full).then_some(said.serial);
            Header { serial, kind: said.kind, size, sub_list: 0 }.write(&mut bytes);
            bytes.extend(&said.body);
            wire.segment(said.time, said.from, ACK, &bytes, said.lost);
        }
        wire.segment(last, Sender::Client, FIN | ACK, &[], false);
        wire.segment(last, Sender::Server, FIN | ACK, &[], false);
        wire.segment(last, Sender::Client, ACK, &[], false);
        wire.file
    }
}

/// What the service of a tape says of itself.
pub(crate) fn described() -> ServiceInfo {
    let mut txt = Txt::default();
    txt.push("rp", Some("ipp/print")).unwrap();
    let kind = ServiceType::new("_http._tcp").unwrap();
    let advert = Advert { kind, instance: Label::new("box").unwrap(), subtypes: Vec::new(), txt };
    ServiceInfo::new(Identity::new("uuid:1").ok(), HostName::new("box.local").ok(), vec![advert]).unwrap()
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A capture file being written.
struct Wire {
    file: Vec<u8>,
    /// Next sequence number of the client and of the server.
    next: [u32; 2],
}

impl Wire {
    fn segment(&mut self, time: Duration, from: Sender, flags: u8, payload: &[u8], lost: bool) {
        let (own, other, ports, hosts) = match from {
            Sender::Client => (0, 1, [40_000u16, 5900], [1u8, 2]),
            Sender::Server => (1, 0, [5900, 40_000], [2, 1]),
        };
        let seq = self.next[own];
        let flagged = u32::from(flags & (SYN | FIN) != 0);
        self.next[own] += u32::try_from(payload.len()).unwrap() + flagged;
        if lost {
            return;
        }
        let total = 40 + payload.len();
        let mut packet = vec![0x45, 0];
        packet.extend(u16::try_from(total).unwrap().to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet.extend([10, 9, 9, hosts[0], 10, 9, 9, hosts[1]]);
        packet.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        packet.extend(seq.to_be_bytes());
        let ack = if flags & ACK != 0 { self.next[other] } else { 0 };
        packet.extend(ack.to_be_bytes());
        packet.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend(payload);
        let length = u32::try_from(packet.len()).unwrap();
        for word in [u32::try_from(time.as_secs()).unwrap(), time.subsec_micros(), length, length] {
            self.file.extend(word.to_le_bytes());
        }
        self.file.extend(packet);
    }
}
