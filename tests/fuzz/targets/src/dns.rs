//! A guest against the virtual network's DNS server, by datagram and by connection, with the tunnel's client played by the input as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use server_glue::netstack::{NameFound, NetConfig, Netstack};
use spice_proto::service_info::{Advert, HostName, Label, ServiceInfo, ServiceType, Txt};

use crate::input::Input;
use crate::packet::{ACK, FIN, GUEST_IP, GUEST_MAC, RST, SYN, Seen, Tcp, check, mend};

/// Byte 0: the MTU and the seed; then operations, each a byte that chooses and the bytes it needs.
///
/// The guest asks whatever it likes, well and badly, while services and domains come and go and the client answers, late, wrongly or
/// never. Every answer must be one that hickory reads, to a question that was asked and not answered yet, over the way it came; an
/// address in it is the gateway's or one that has a name now; nothing is known of names that nobody shared; the client is asked only for names
/// of domains that it allowed, and not too many at once; and in the end all is quiet, and who asks is answered.
pub fn dns(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(input.byte());
    while !input.is_empty() {
        world.operate(&mut input);
        world.drain();
    }
    world.wind_down();
}

const GATEWAY: [u8; 4] = [198, 18, 0, 1];
const PORT: u16 = 53;
const SERVICES: [([u8; 4], u16); 3] =
    [([198, 18, 1, 1], 631), ([198, 18, 1, 1], 80), ([198, 18, 7, 200], 9100)];
/// Where answers of a client could lead that is no friend.
const ELSEWHERE: [[u8; 4]; 4] = [[127, 0, 0, 1], [10, 0, 0, 1], [198, 18, 0, 1], [198, 18, 9, 9]];
const DOMAINS: [&str; 4] = ["home.arpa", "lab.home.arpa", "example.org", "local"];
/// What the guest asks for.
const NAMES: [&str; 20] = [
    "gateway.tunnel.internal.",
    "printer.tunnel.internal.",
    "printer.local.",
    "nas.lan.",
    "tunnel.internal.",
    "_ipp._tcp.tunnel.internal.",
    "_universal._sub._ipp._tcp.tunnel.internal.",
    "_services._dns-sd._udp.tunnel.internal.",
    "b._dns-sd._udp.tunnel.internal.",
    "b._dns-sd._udp.0.0.18.198.in-addr.arpa.",
    "Office._ipp._tcp.tunnel.internal.",
    "1.1.18.198.in-addr.arpa.",
    "200.7.18.198.in-addr.arpa.",
    "a.home.arpa.",
    "B.Home.arpa.",
    "x.lab.home.arpa.",
    "www.example.org.",
    // Nobody's, ever.
    "www.bank.example.",
    "wpad.local.",
    ".",
];
const NOBODYS: [&str; 3] = ["www.bank.example.", "wpad.local.", "."];
/// Packets that one operation may lead to.
const MOST: usize = 4000;

struct World {
    net: Netstack,
    gateway: [u8; 6],
    mtu: usize,
    now: Instant,
    /// Questions by port and id: how many were asked and not answered. TCP's have the ports of connections.
    open: BTreeMap<(u16, u16), usize>,
    published: BTreeSet<SocketAddr>,
    /// What the client was asked for and has not answered.
    asked: Vec<HostName>,
    tunnel: bool,
    streams: BTreeMap<u16, Stream>,
}

/// The guest's end of a connection.
#[derive(Default)]
struct Stream {
    next: u32,
    expected: u32,
    received: Vec<u8>,
    /// What was sent is no row of whole messages any more.
    wild: bool,
}

impl World {
    fn new(choice: u8) -> Self {
        let mtu = [576, 1500, 9000, 65_520][usize::from(choice & 3)];
        let config = NetConfig { mtu, seed: u64::from(choice), ..NetConfig::default() };
        let gateway = config.mac.0;
        World {
            net: Netstack::new(config),
            gateway,
            mtu: usize::from(mtu),
            now: Instant::now(),
            open: BTreeMap::new(),
            published: BTreeSet::new(),
            asked: Vec::new(),
            tunnel: false,
            streams: BTreeMap::new(),
        }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0 => {
                let at = service(input.byte());
                let (device, info) = described(input.byte());
                self.net.publish(at.ip(), at.port());
                self.net.name(self.now, at, device, info.as_ref());
                self.published.insert(at);
            }
            1 => {
                let at = service(input.byte());
                self.net.withdraw(at.ip(), at.port());
                self.net.unname(self.now, at);
                self.published.remove(&at);
            }
            2 => self.now += Duration::from_millis(u64::from(input.byte()) * 20),
            3 => self.tunnel_operation(input.byte()),
            4 | 5 => self.answer(input.byte()),
            6 => {
                let length = usize::from(input.short() % 600);
                let message = input.bytes(length).to_vec();
                self.datagram(4000, &message);
            }
            7 => {
                let port = 5000 + u16::from(input.byte() % 3);
                let stream =
                    self.streams.entry(port).or_insert_with(|| Stream { wild: true, ..Stream::default() });
                stream.wild = true;
                let length = usize::from(input.short() % 600);
                let data = input.bytes(length).to_vec();
                self.segment(port, ACK, &data);
            }
            8 => self.connect(5000 + u16::from(input.byte() % 3)),
            9 => {
                let choice = input.byte();
                let flags = [FIN | ACK, RST, ACK, SYN][usize::from(choice >> 4 & 3)];
                self.segment(5000 + u16::from(choice % 3), flags, &[]);
            }
            10 | 11 => {
                let port = 5000 + u16::from(input.byte() % 3);
                let message = question(input);
                if self.streams.contains_key(&port) {
                    self.note(port, &message);
                    let length = u16::try_from(message.len()).expect("short");
                    self.segment(port, ACK, &[&length.to_be_bytes(), &message[..]].concat());
                }
            }
            _ => {
                let port = 4000 + u16::from(input.byte() % 4);
                let message = question(input);
                self.datagram(port, &message);
            }
        }
    }

    fn tunnel_operation(&mut self, choice: u8) {
        let name = DOMAINS[usize::from(choice >> 4 & 3)];
        let wait = Duration::from_secs(u64::from(choice >> 6));
        match choice % 6 {
            0 if !self.tunnel => {
                self.tunnel = true;
                self.net.tunnel_came(self.now, wait);
            }
            1 if self.tunnel => {
                self.tunnel = false;
                self.asked.clear();
                self.net.tunnel_gone(self.now, wait * 10, choice & 8 == 0);
            }
            2 => self.net.disallow_domain(name),
            3 => self.net.forget_tunnels(),
            _ if self.tunnel => {
                let allowed = self.net.allow_domain(name);
                assert_eq!(allowed.is_ok(), name != "local");
            }
            _ => {}
        }
    }

    /// The client answers one of its questions, the first or the last.
    fn answer(&mut self, choice: u8) {
        if self.asked.is_empty() {
            return;
        }
        let index = if choice & 1 == 0 { 0 } else { self.asked.len() - 1 };
        let name = self.asked.swap_remove(index);
        let ttl = u32::from(choice) * 30;
        let which = usize::from(choice >> 4);
        let found = match choice >> 1 & 7 {
            0 => NameFound::NoSuchName,
            1 => NameFound::Failed,
            2 => NameFound::Refused,
            3 => NameFound::At { address: ELSEWHERE[which % 4].into(), ttl },
            _ => NameFound::At { address: service(choice >> 4).ip(), ttl },
        };
        self.net.name_answered(self.now, &name, found);
    }

    /// Remembers a question that may be answered.
    fn note(&mut self, port: u16, message: &[u8]) {
        if message.len() >= 12 && message[2] & 0x80 == 0 {
            *self.open.entry((port, u16::from_be_bytes([message[0], message[1]]))).or_default() += 1;
        }
    }

    fn datagram(&mut self, port: u16, message: &[u8]) {
        self.note(port, message);
        let mut frame = self.gateway.to_vec();
        frame.extend_from_slice(&GUEST_MAC);
        let udp = u16::try_from(8 + message.len()).expect("at most 600");
        frame.extend_from_slice(&[8, 0, 0x45, 0]);
        frame.extend_from_slice(&(20 + udp).to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend_from_slice(&GUEST_IP);
        frame.extend_from_slice(&GATEWAY);
        frame.extend_from_slice(&port.to_be_bytes());
        frame.extend_from_slice(&PORT.to_be_bytes());
        frame.extend_from_slice(&udp.to_be_bytes());
        frame.extend_from_slice(&[0, 0]);
        frame.extend_from_slice(message);
        mend(&mut frame);
        self.net.handle_frame(self.now, &frame);
    }

    fn connect(&mut self, port: u16) {
        let next = self.streams.get(&port).map_or(1000, |stream| stream.next.wrapping_add(100_000));
        self.streams.insert(port, Stream { next, ..Stream::default() });
        self.segment(port, SYN, &[]);
        if let Some(stream) = self.streams.get_mut(&port) {
            stream.next = stream.next.wrapping_add(1);
        }
    }

    fn segment(&mut self, port: u16, flags: u8, payload: &[u8]) {
        let Some(stream) = self.streams.get_mut(&port) else { return };
        let segment = Tcp {
            address: GATEWAY,
            port: PORT,
            guest_port: port,
            sequence: stream.next,
            acknowledged: stream.expected,
            flags,
            window: 65_535,
            options: &[],
            payload,
        };
        stream.next = stream.next.wrapping_add(u32::try_from(payload.len()).expect("short"));
        let frame = segment.frame(self.gateway);
        self.net.handle_frame(self.now, &frame);
    }

    /// Takes everything that comes out, and lets timers fire until none is due.
    fn drain(&mut self) {
        let mut limit = MOST;
        loop {
            assert!(self.net.poll_event().is_none(), "its connections are its own");
            let mut idle = true;
            while let Some(frame) = self.net.poll_transmit(self.now) {
                let frame = frame.to_vec();
                self.look(&frame);
                idle = false;
                limit -= 1;
                assert!(limit > 0, "frames without an end");
            }
            while let Some(name) = self.net.poll_name() {
                assert!(self.tunnel, "nobody is there to be asked");
                let text = name.as_str();
                let allowed = DOMAINS[..3].iter().any(|domain| {
                    text.strip_suffix(domain).is_some_and(|host| host.is_empty() || host.ends_with('.'))
                });
                assert!(allowed, "asked for {text}");
                assert!(!self.asked.contains(&name), "asked twice");
                self.asked.push(name);
                assert!(self.asked.len() <= 64);
                idle = false;
            }
            if self.net.poll_timeout().is_some_and(|at| at <= self.now) {
                self.net.handle_timeout(self.now);
                idle = false;
                limit -= 1;
                assert!(limit > 0, "timers that are due without an end");
            }
            if idle {
                return;
            }
        }
    }

    fn look(&mut self, frame: &[u8]) {
        match check(frame, self.mtu) {
            Seen::Tcp(tcp) => self.look_at_segment(&tcp),
            Seen::Other => {
                let Some(packet) = frame.get(14..).filter(|packet| packet.len() >= 28 && packet[9] == 17)
                else {
                    return;
                };
                let udp = &packet[20..];
                if udp[..2] != PORT.to_be_bytes() {
                    return;
                }
                assert_eq!((&packet[12..16], &packet[16..20]), (&GATEWAY[..], &GUEST_IP[..]));
                assert!(udp.len() <= 8 + 1232, "a datagram of {} bytes", udp.len());
                self.look_at_answer(u16::from_be_bytes([udp[2], udp[3]]), &udp[8..]);
            }
        }
    }

    fn look_at_segment(&mut self, tcp: &Tcp<'_>) {
        let port = tcp.guest_port;
        let Some(stream) = self.streams.get_mut(&port) else { return };
        if tcp.flags & RST != 0 {
            stream.wild = true;
            return;
        }
        if tcp.flags & SYN != 0 {
            stream.expected = tcp.sequence.wrapping_add(1);
            return self.segment(port, ACK, &[]);
        }
        if tcp.payload.is_empty() || stream.wild || tcp.sequence != stream.expected {
            return;
        }
        stream.expected = stream.expected.wrapping_add(u32::try_from(tcp.payload.len()).expect("a segment"));
        stream.received.extend_from_slice(tcp.payload);
        let mut messages = Vec::new();
        while let Some((length, rest)) = stream.received.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some(message) = rest.get(..length) else { break };
            messages.push(message.to_vec());
            stream.received.drain(..2 + length);
        }
        for message in messages {
            self.look_at_answer(port, &message);
        }
        self.segment(port, ACK, &[]);
    }

    fn look_at_answer(&mut self, port: u16, message: &[u8]) {
        let answer = match Message::from_vec(message) {
            Ok(answer) => answer,
            Err(error) => panic!("an answer that cannot be read: {error}"),
        };
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        let open = self.open.get_mut(&(port, answer.metadata.id)).expect("an answer to a question");
        *open = open.checked_sub(1).expect("one answer to one question");
        let ours = |address: IpAddr| {
            address == IpAddr::from(GATEWAY) || self.published.iter().any(|at| at.ip() == address)
        };
        for record in answer.all_sections() {
            if let Some(address) = record.data.ip_addr() {
                assert!(ours(address), "{record}");
            }
            assert!(record.ttl <= 3600, "{record}");
            assert!(!record.mdns_cache_flush);
        }
        let [question] = answer.queries.as_slice() else { return };
        let nobodys = NOBODYS.iter().any(|name| *question.name() == Name::from_ascii(name).expect("a name"));
        if nobodys && answer.metadata.op_code == OpCode::Query {
            assert!(answer.answers.is_empty() && answer.authorities.is_empty());
            assert_ne!(answer.metadata.response_code, ResponseCode::NoError);
            assert!(!answer.metadata.authoritative);
        }
        if let [RData::PTR(_), ..] = answer.answers.iter().map(|record| &record.data).collect::<Vec<_>>()[..]
        {
            assert!(answer.metadata.authoritative);
        }
    }

    fn wind_down(&mut self) {
        for turn in 0.. {
            assert!(turn < 2000, "timers without an end");
            let Some(due) = self.net.poll_timeout() else { break };
            self.now = self.now.max(due);
            self.drain();
        }
        assert_eq!(self.net.flows(), 0, "a connection that is left");
        self.now += Duration::from_secs(10);
        let mut asked = Message::new(77, MessageType::Query, OpCode::Query);
        asked.add_query(Query::query(Name::from_ascii(NAMES[0]).expect("a name"), RecordType::A));
        self.open.clear();
        self.datagram(4444, &asked.to_vec().expect("short"));
        self.drain();
        assert_eq!(self.open.get(&(4444, 77)), Some(&0), "who asks is not answered");
    }
}

fn service(choice: u8) -> SocketAddr {
    SERVICES[usize::from(choice) % SERVICES.len()].into()
}

/// What a service's device is called, and what it says of itself.
fn described(choice: u8) -> (&'static str, Option<ServiceInfo>) {
    let device = ["printer", "nas.lan", "wpad", "Büro"][usize::from(choice & 3)];
    if choice & 4 == 0 {
        return (device, None);
    }
    let hosts = ["printer.local", "nas.lan", "wpad.local", "a.home.arpa"];
    let host = HostName::new(hosts[usize::from(choice >> 3 & 3)]).expect("a name");
    let mut adverts = Vec::new();
    for number in 0..choice >> 5 {
        let mut txt = Txt::default();
        let _ = txt.push("note", Some(&"x".repeat(usize::from(number) * 60)));
        adverts.push(Advert {
            kind: ServiceType::new(["_ipp._tcp", "_http._tcp"][usize::from(number & 1)]).expect("a type"),
            instance: Label::new(["Office", "office 2", "Home", "Büro"][usize::from(number >> 1 & 3)])
                .expect("a label"),
            subtypes: vec![Label::new("_universal").expect("a label")],
            txt,
        });
    }
    (device, ServiceInfo::new(None, Some(host), adverts).ok())
}

/// A question that is one, or nearly.
fn question(input: &mut Input<'_>) -> Vec<u8> {
    let kinds = [
        RecordType::A,
        RecordType::PTR,
        RecordType::SRV,
        RecordType::TXT,
        RecordType::ANY,
        RecordType::AAAA,
        RecordType::SOA,
        RecordType::AXFR,
    ];
    let (choice, which) = (input.byte(), input.byte());
    let mut message = Message::new(u16::from(input.byte() & 15), MessageType::Query, OpCode::Query);
    let name = NAMES[usize::from(which) % NAMES.len()];
    let mut name = Name::from_ascii(name).expect("a name");
    if choice & 0x40 != 0 {
        name = name.prepend_label(input.bytes(3)).unwrap_or(name);
    }
    message.add_query(Query::query(name, kinds[usize::from(choice & 7)]));
    if choice & 8 != 0 {
        let mut edns = Edns::new();
        edns.set_max_payload(input.short());
        message.set_edns(edns);
    }
    let mut octets = message.to_vec().expect("short");
    if choice & 0x80 != 0 {
        let at = usize::from(input.byte()) % octets.len();
        octets[at] ^= input.byte();
    }
    octets
}
