//! A guest against the names of the virtual network: multicast DNS.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, PTR, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use server_glue::netstack::{NetConfig, Netstack};
use spice_proto::service_info::{Advert, HostName, Label, ServiceInfo, ServiceType, Txt};

use crate::input::Input;
use crate::packet::{GUEST_IP, GUEST_MAC, check, mend};

/// Byte 0: the MTU and the seed; then operations, each a byte that chooses and the bytes it needs.
///
/// The guest says whatever it likes, in messages that are made well and in ones that are not, while services come, change and go. Every
/// message that it gets must be one that hickory reads and that fits the link; none but an answer to itself may hold a word of the
/// guest's; what is sent is bounded; and in the end all is quiet, each host has a name, and the name is answered for.
pub fn names(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(input.byte());
    while !input.is_empty() {
        world.operate(&mut input);
        world.drain();
    }
    world.wind_down();
}

const GROUP: [u8; 4] = [224, 0, 0, 251];
const GATEWAY: [u8; 4] = [198, 18, 0, 1];
const PORT: u16 = 5353;
const SERVICES: [([u8; 4], u16); 4] =
    [([198, 18, 1, 1], 631), ([198, 18, 1, 1], 80), ([198, 18, 7, 200], 9100), ([198, 18, 7, 201], 631)];
/// What the guest may talk about. Only it has names with [`MARK`] in them.
const NAMES: [&str; 10] = [
    "printer.local.",
    "printer-2.local.",
    "_ipp._tcp.local.",
    "_universal._sub._ipp._tcp.local.",
    "_services._dns-sd._udp.local.",
    "Office._ipp._tcp.local.",
    "1.1.18.198.in-addr.arpa.",
    "guestling.local.",
    "guestling._ipp._tcp.local.",
    ".",
];
const MARK: &[u8] = b"guestling";
/// Packets that one operation may lead to.
const MOST: usize = 2000;

struct World {
    net: Netstack,
    gateway: [u8; 6],
    mtu: usize,
    now: Instant,
}

impl World {
    fn new(choice: u8) -> Self {
        let mtu = [576, 1500, 9000, 65_520][usize::from(choice & 3)];
        let config = NetConfig { mtu, seed: u64::from(choice), ..NetConfig::default() };
        let gateway = config.mac.0;
        World { net: Netstack::new(config), gateway, mtu: usize::from(mtu), now: Instant::now() }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0 | 1 => {
                let at = service(input.byte());
                let info = info(input);
                self.net.publish(at.ip(), at.port());
                self.net.name(self.now, at, "a device", info.as_ref());
            }
            2 => {
                let at = service(input.byte());
                self.net.withdraw(at.ip(), at.port());
                self.net.unname(self.now, at);
            }
            3 => self.now += Duration::from_millis(u64::from(input.byte()) * 10),
            4 => match input.byte() % 8 {
                0 => self.net.link_lost(),
                1..=4 => self.net.link_came(self.now),
                _ => self.now += Duration::from_secs(40),
            },
            5 => {
                let choice = input.byte();
                let length = usize::from(input.short() % 2048);
                let message = input.bytes(length).to_vec();
                self.send(choice, &message);
            }
            // A message whose header is right, so that the rest is looked at.
            6 => {
                let choice = input.byte();
                let mut message = vec![0, 0, input.byte() & 0x82, 0];
                message.extend((0..4).flat_map(|_| [0, input.byte() % 8]));
                let length = usize::from(input.short() % 512);
                message.extend_from_slice(input.bytes(length));
                self.send(choice, &message);
            }
            _ => {
                let choice = input.byte();
                let message = message(input);
                if let Ok(message) = message.to_vec() {
                    self.send(choice, &message);
                }
            }
        }
    }

    fn send(&mut self, choice: u8, message: &[u8]) {
        let to = match choice & 7 {
            0 => GATEWAY,
            1 => SERVICES[0].0,
            _ => GROUP,
        };
        let from_port = if choice & 0x30 == 0 { 40_000 } else { PORT };
        let mut frame = if to == GROUP { vec![1, 0, 0x5e, 0, 0, 0xfb] } else { self.gateway.to_vec() };
        frame.extend_from_slice(&GUEST_MAC);
        let udp = u16::try_from(8 + message.len()).expect("at most 9000");
        frame.extend_from_slice(&[8, 0, 0x45, 0]);
        frame.extend_from_slice(&(20 + udp).to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0x40, 0, 255, 17, 0, 0]);
        frame.extend_from_slice(&GUEST_IP);
        frame.extend_from_slice(&to);
        frame.extend_from_slice(&from_port.to_be_bytes());
        frame.extend_from_slice(&PORT.to_be_bytes());
        frame.extend_from_slice(&udp.to_be_bytes());
        frame.extend_from_slice(&[0, 0]);
        frame.extend_from_slice(message);
        mend(&mut frame);
        self.net.handle_frame(self.now, &frame);
    }

    /// Takes everything that comes out, and lets timers fire until none is due. Gives the messages.
    fn drain(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut limit = MOST;
        loop {
            while self.net.poll_event().is_some() {}
            let mut idle = true;
            while let Some(frame) = self.net.poll_transmit(self.now) {
                check(&frame, self.mtu);
                messages.extend(read(&frame));
                idle = false;
                limit -= 1;
                assert!(limit > 0, "frames without an end");
            }
            if self.net.poll_timeout().is_some_and(|at| at <= self.now) {
                self.net.handle_timeout(self.now);
                idle = false;
                limit -= 1;
                assert!(limit > 0, "timers that are due without an end");
            }
            if idle {
                return messages;
            }
        }
    }

    fn wind_down(&mut self) {
        let at = service(0);
        self.net.publish(at.ip(), at.port());
        let host = HostName::new("survivor.local").expect("a name");
        let info = ServiceInfo::new(None, Some(host), Vec::new()).expect("short");
        self.net.unname(self.now, service(1));
        self.net.name(self.now, at, "", Some(&info));
        for turn in 0.. {
            assert!(turn < 1000, "timers without an end");
            let Some(due) = self.net.poll_timeout() else { break };
            self.now = self.now.max(due);
            self.drain();
        }
        self.now += Duration::from_secs(10);
        let mut asked = Message::new(0, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii("survivor.local.").expect("a name");
        asked.add_query(Query::query(name, RecordType::A));
        self.send(0x37, &asked.to_vec().expect("short"));
        let answered = self
            .drain()
            .iter()
            .flat_map(|message| &message.answers)
            .any(|answer| answer.data.ip_addr() == Some(at.ip()));
        assert!(answered, "a name that is not answered for");
        self.net.say_goodbye(self.now);
        let goodbyes = self.drain();
        assert!(goodbyes.iter().flat_map(|message| &message.answers).all(|answer| answer.ttl == 0));
        assert!(!goodbyes.is_empty());
    }
}

/// Looks at a message for the guest.
fn read(frame: &[u8]) -> Option<Message> {
    // DHCP and ICMP are for others to look at.
    let packet = frame.get(14..).filter(|packet| packet[9] == 17)?;
    let udp = &packet[20..];
    if u16::from_be_bytes([udp[0], udp[1]]) != PORT {
        return None;
    }
    assert_eq!(packet[8], 255, "it does not come from this link");
    let to_all = packet[16..20] == GROUP;
    assert_eq!(frame[..6] == [1, 0, 0x5e, 0, 0, 0xfb], to_all);
    assert!(to_all || frame[..6] == GUEST_MAC);
    assert!(!to_all || packet[12..16] == GATEWAY);
    let guest_port = u16::from_be_bytes([udp[2], udp[3]]);
    let payload = &udp[8..];
    let message = match Message::from_vec(payload) {
        Ok(message) => message,
        Err(error) => panic!("a message that cannot be read: {error}"),
    };
    if guest_port == PORT {
        assert_eq!(payload[..2], [0, 0]);
        assert!(!payload.windows(MARK.len()).any(|part| part.eq_ignore_ascii_case(MARK)), "reflected");
        let probe = message.metadata.message_type == MessageType::Query;
        assert_eq!(probe, !message.queries.is_empty());
        assert_eq!(probe, message.answers.is_empty());
        for record in message.all_sections() {
            assert!(matches!(record.ttl, 0 | 120 | 4500), "{record}");
            assert_eq!(record.dns_class, DNSClass::IN);
        }
    } else {
        assert!(message.answers.iter().all(|record| record.ttl <= 10 && !record.mdns_cache_flush));
        assert!(!message.queries.is_empty() && !message.answers.is_empty());
    }
    Some(message)
}

fn service(choice: u8) -> SocketAddr {
    SERVICES[usize::from(choice) % SERVICES.len()].into()
}

fn name(choice: u8) -> Name {
    Name::from_ascii(NAMES[usize::from(choice) % NAMES.len()]).expect("a name")
}

fn info(input: &mut Input<'_>) -> Option<ServiceInfo> {
    let choice = input.byte();
    if choice & 0x80 != 0 {
        return None;
    }
    let hosts = ["printer.local", "PRINTER.local", "wpad.local", "printer.lan"];
    let host = HostName::new(hosts[usize::from(choice & 3)]).expect("a name");
    let mut adverts = Vec::new();
    for _ in 0..choice >> 2 & 3 {
        let kinds = ["_ipp._tcp", "_printer._tcp", "_http._tcp", "_ipps._tcp"];
        let which = input.byte();
        let mut txt = Txt::default();
        for number in 0..which >> 4 {
            let value = "x".repeat(usize::from(input.byte() & 0x7f));
            // Too long in all, some time.
            let _ = txt.push(&number.to_string(), Some(&value));
        }
        let subtypes = if which & 8 == 0 { vec!["_universal"] } else { Vec::new() };
        adverts.push(Advert {
            kind: ServiceType::new(kinds[usize::from(which & 3)]).expect("a type"),
            instance: Label::new(if which & 4 == 0 { "Office" } else { "office" }).expect("a label"),
            subtypes: subtypes.into_iter().map(|subtype| Label::new(subtype).expect("a label")).collect(),
            txt,
        });
    }
    ServiceInfo::new(None, Some(host), adverts).ok()
}

/// A message that is one, of questions and records that may mean something.
fn message(input: &mut Input<'_>) -> Message {
    let kinds =
        [RecordType::A, RecordType::PTR, RecordType::SRV, RecordType::TXT, RecordType::ANY, RecordType::AAAA];
    let choice = input.byte();
    let mut message = Message::new(u16::from(choice), MessageType::Query, OpCode::Query);
    if choice & 1 != 0 {
        message.metadata.message_type = MessageType::Response;
    }
    message.metadata.truncation = choice & 2 != 0;
    for _ in 0..choice >> 2 & 3 {
        let which = input.byte();
        let mut query = Query::query(name(which), kinds[usize::from(which >> 4) % kinds.len()]);
        query.set_mdns_unicast_response(input.byte() & 1 != 0);
        message.add_query(query);
    }
    for _ in 0..choice >> 4 & 3 {
        let (which, what) = (input.byte(), input.byte());
        let data = match which >> 4 & 3 {
            0 => RData::A(A([198, 18, 1, what].into())),
            1 => RData::PTR(PTR(name(what))),
            2 => RData::SRV(SRV::new(0, 0, u16::from(what), name(what))),
            _ => RData::TXT(TXT::new(vec!["x".repeat(usize::from(what & 3))])),
        };
        let ttl = [0, 120, 4500, u32::MAX][usize::from(which >> 6)];
        let mut record = Record::from_rdata(name(which), ttl, data);
        record.mdns_cache_flush = what & 0x40 != 0;
        if choice & 0x80 == 0 {
            message.add_answer(record);
        } else {
            message.add_authority(record);
        }
    }
    message
}
