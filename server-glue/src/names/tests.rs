//! Names as the guest's card sees them: frames in, frames out.

use std::time::Duration;

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use spice_proto::frame::{self, Split};
use spice_proto::handshake::Linked;
use spice_proto::link::TunnelCaps;
use spice_proto::service_info::HostName;
use spice_proto::tunnel::{GroupId, ServiceKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel_channel::{Channel, NewService, Role};

use super::wire::Outgoing;
use super::wire::tests::text;
use super::*;
use crate::card::Card;
use crate::network::{NetworkConfig, channel_caps, common_caps, network};
use crate::packet::{Frame, Ipv4, PROTOCOL_UDP, Payload, Udp, put_udp};
use crate::script::{GATEWAY, GUEST, GUEST_MAC, HOST, OUR_MAC, PORT, Script, ipv4, plain_checksum};

/// A frame of multicast DNS for the guest.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    to: MacAddress,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    lines: Vec<String>,
}

fn heard(frame: &[u8]) -> Heard {
    let parsed = Frame::parse(frame).unwrap();
    assert_eq!(parsed.source, OUR_MAC);
    let Payload::Ipv4(packet) = parsed.payload else { panic!("not IPv4: {frame:02x?}") };
    let ip = Ipv4::parse(packet).unwrap();
    assert_eq!((ip.protocol, packet[8]), (PROTOCOL_UDP, 255), "UDP, of this link");
    let length = u16::try_from(ip.payload.len()).unwrap().to_be_bytes();
    let pseudo = [&ip.source.octets()[..], &ip.destination.octets(), &[0, PROTOCOL_UDP], &length].concat();
    assert_eq!(plain_checksum(&[&pseudo, ip.payload]), 0, "UDP checksum");
    let udp = Udp::parse(&ip).unwrap();
    Heard {
        to: parsed.destination,
        source: SocketAddrV4::new(ip.source, udp.source_port),
        destination: SocketAddrV4::new(ip.destination, udp.destination_port),
        lines: text(udp.payload),
    }
}

impl Script {
    fn hear(&mut self) -> Vec<Heard> {
        let mut all = Vec::new();
        while let Some(frame) = self.net.poll_transmit(self.now) {
            all.push(heard(&frame));
        }
        all
    }

    /// Lets time go by.
    fn listen(&mut self, time: Duration) -> Vec<Heard> {
        let end = self.now + time;
        let mut all = self.hear();
        while let Some(at) = self.net.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.net.handle_timeout(self.now);
            all.extend(self.hear());
        }
        self.now = end;
        all
    }

    /// The service that a script has is called `printer.local`.
    fn name(&mut self) {
        let host = HostName::new("printer.local").unwrap();
        let info = ServiceInfo::new(None, Some(host), Vec::new()).unwrap();
        self.net.name(self.now, (HOST, PORT).into(), "printer", Some(&info));
    }

    fn ask(&mut self, from: u16, to: Ipv4Addr, port: u16, kind: RecordType) {
        let name = Name::from_ascii("printer.local.").unwrap();
        let questions = [Query::query(name, kind)];
        let message = Outgoing { questions: &questions, ..Outgoing::default() }.write(1472, 1472).unwrap();
        let mut packet = Vec::new();
        put_udp(&mut packet, SocketAddrV4::new(GUEST, from), SocketAddrV4::new(to, port), &message.bytes);
        let mut frame = ipv4(GUEST, to, PROTOCOL_UDP, &packet[20..]);
        if to.is_multicast() {
            frame[..6].copy_from_slice(&mdns::GROUP_MAC.0);
        }
        self.send(&frame);
    }
}

const ANSWER: &str = "=! 120 printer.local. A 198.18.40.2";

#[test]
fn the_guest_hears_what_is_there_from_the_gateway() {
    let mut script = Script::new();
    script.name();
    let all = script.listen(Duration::from_secs(5));
    assert_eq!(all.len(), 5);
    for heard in &all {
        assert_eq!(heard.to, MacAddress([1, 0, 0x5e, 0, 0, 0xfb]));
        assert_eq!(heard.source, SocketAddrV4::new(GATEWAY, 5353));
        assert_eq!(heard.destination, SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353));
    }
    assert!(all[4].lines.contains(&ANSWER.to_owned()));
    assert_eq!(script.net.counters().mdns_out, 5);
    assert_eq!(script.net.poll_timeout(), None);
}

#[test]
fn a_question_to_the_group_is_answered_to_the_group() {
    let mut script = Script::new();
    script.name();
    script.listen(Duration::from_secs(5));
    script.ask(5353, mdns::GROUP, 5353, RecordType::A);
    let all = script.hear();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].to, all[0].source), (mdns::GROUP_MAC, SocketAddrV4::new(GATEWAY, 5353)));
    assert_eq!(all[0].lines[0], ANSWER);
    assert_eq!(script.net.counters().mdns_in, 1);
}

#[test]
fn a_question_to_an_address_is_answered_from_there() {
    let mut script = Script::new();
    script.name();
    script.listen(Duration::from_secs(5));
    for asked in [GATEWAY, HOST] {
        for port in [5353, 40_000] {
            script.ask(port, asked, 5353, RecordType::A);
            let all = script.hear();
            assert_eq!(all.len(), 1);
            assert_eq!((all[0].to, all[0].source), (GUEST_MAC, SocketAddrV4::new(asked, 5353)));
            assert_eq!(all[0].destination, SocketAddrV4::new(GUEST, port));
        }
    }
    // An ordinary resolver that asks the group is answered by the gateway.
    script.ask(40_000, mdns::GROUP, 5353, RecordType::A);
    let all = script.hear();
    assert_eq!((all[0].to, all[0].source), (GUEST_MAC, SocketAddrV4::new(GATEWAY, 5353)));
    assert_eq!(all[0].lines, ["? printer.local. A", "= 10 printer.local. A 198.18.40.2"]);
}

#[test]
fn what_is_sent_elsewhere_is_not_for_the_responder() {
    let mut script = Script::new();
    script.name();
    script.listen(Duration::from_secs(5));
    // Another port, another group, an address where nobody is, and a sender that is nobody.
    script.ask(5353, mdns::GROUP, 5354, RecordType::A);
    script.ask(5353, Ipv4Addr::new(224, 0, 0, 252), 5353, RecordType::A);
    let mut frame = Vec::new();
    put_udp(&mut frame, SocketAddrV4::new(HOST, 5353), SocketAddrV4::new(mdns::GROUP, 5353), &[0; 12]);
    script.send(&ipv4(HOST, mdns::GROUP, PROTOCOL_UDP, &frame[20..]));
    assert!(script.hear().is_empty());
    assert_eq!(script.net.counters().mdns_in, 0);
}

#[test]
fn connections_do_not_wait_for_names_nor_names_for_connections() {
    let mut script = Script::new();
    script.name();
    script.listen(Duration::from_secs(5));
    let (flow, _) = script.establish();
    script.net.unname(script.now, (HOST, PORT).into());
    script.net.send(script.now, flow, b"data");
    script.net.handle_timeout(script.now);
    let mut kinds = Vec::new();
    while let Some(frame) = script.net.poll_transmit(script.now) {
        let Payload::Ipv4(packet) = Frame::parse(frame.bytes).unwrap().payload else { panic!() };
        kinds.push(packet[9]);
    }
    assert_eq!(kinds, [17, 6]);
}

#[test]
fn a_guest_that_has_got_its_address_hears_everything_anew() {
    let mut script = Script::new();
    script.name();
    script.listen(Duration::from_secs(5));
    // A DHCP request for an address as a client without one sends it (RFC 2131, section 4.3.2).
    let mut request = vec![1, 1, 6, 0, 0, 0, 0, 7, 0, 0, 0x80, 0];
    request.extend_from_slice(&[0; 16]);
    request.extend_from_slice(&GUEST_MAC.0);
    request.extend_from_slice(&[0; 10 + 64 + 128]);
    request.extend_from_slice(&[99, 130, 83, 99, 53, 1, 3, 50, 4]);
    request.extend_from_slice(&GUEST.octets());
    request.push(255);
    let mut packet = Vec::new();
    let (from, to) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    put_udp(&mut packet, SocketAddrV4::new(from, 68), SocketAddrV4::new(to, 67), &request);
    let mut frame = ipv4(from, to, PROTOCOL_UDP, &packet[20..]);
    frame[..6].copy_from_slice(&MacAddress::BROADCAST.0);
    script.send(&frame);
    // DHCP's own answer comes first.
    script.expect();
    let all = script.listen(Duration::from_secs(5));
    assert_eq!(all.len(), 2);
    assert!(all[0].lines.contains(&ANSWER.to_owned()));
}

#[test]
fn the_link_s_end_and_the_network_s_end() {
    let mut script = Script::new();
    script.name();
    script.listen(Duration::from_secs(5));
    script.net.link_lost();
    script.net.link_came(script.now);
    assert_eq!(script.listen(Duration::from_secs(5)).len(), 2);
    script.net.say_goodbye(script.now);
    let all = script.hear();
    assert_eq!(all.len(), 1);
    assert!(all[0].lines.contains(&ANSWER.replace("120", "0")));
    assert!(script.listen(Duration::from_secs(60)).is_empty());
}

/// A client on `stream` that shares one described service, once it can, and then does nothing.
async fn share(stream: tokio::io::DuplexStream, linked: Linked) {
    let (mut read, mut write) = tokio::io::split(stream);
    let header = linked.header;
    let (caps, config) = (TunnelCaps::OURS, tunnel_channel::Config::default());
    let mut channel = Channel::new(Role::Client, header, linked.layout, caps, config, Instant::now());
    let mut bytes = Vec::new();
    let mut shared = false;
    loop {
        while let Split::Frame { frame, consumed } = frame::split(header, channel.max_body(), &bytes).unwrap()
        {
            channel.handle_frame(Instant::now(), frame).unwrap();
            bytes.drain(..consumed);
        }
        if channel.is_ready() && !shared {
            let host = HostName::new("printer.local").unwrap();
            let info = ServiceInfo::new(None, Some(host), Vec::new()).unwrap();
            let (kind, group) = (ServiceKind::Generic, GroupId(1));
            let info = Some(&info);
            let new = NewService { kind, group, port: 631, name: b"printer", description: b"", info };
            channel.add_service(new).unwrap();
            shared = true;
        }
        let outgoing = channel.outgoing().to_vec();
        write.write_all(&outgoing).await.unwrap();
        channel.sent(outgoing.len());
        if read.read_buf(&mut bytes).await.unwrap() == 0 {
            return;
        }
    }
}

#[tokio::test]
async fn a_whole_network_tells_its_guest_what_comes_and_goes() {
    let (mut card, nic) = Card::new(1500);
    let (network, run) = network(nic, NetworkConfig::default()).unwrap();
    let run = tokio::spawn(run);
    let (near, far) = tokio::io::duplex(1 << 16);
    let (common, channel) = (common_caps(), channel_caps());
    let linked = || Linked::tunnel(&common, &common, &channel);
    let client = tokio::spawn(share(far, linked()));
    let _tunnel = network.join(near, linked(), "test").await.unwrap();
    let line = |ttl: u32| format!("=! {ttl} printer.local. A ");
    let soon = Duration::from_secs(60);
    let mut wait = async |line: String| {
        loop {
            let frame = tokio::time::timeout(soon, card.recv()).await.unwrap().unwrap();
            if heard(&frame).lines.iter().any(|heard| heard.starts_with(&line)) {
                return;
            }
        }
    };
    wait(line(120)).await;
    network.shutdown();
    wait(line(0)).await;
    tokio::time::timeout(soon, run).await.unwrap().unwrap();
    tokio::time::timeout(soon, client).await.unwrap().unwrap();
}

#[test]
fn a_small_link_gets_small_messages() {
    let mut script = Script::with(|config| config.mtu = 576);
    for port in 1..60 {
        let host = HostName::new(&format!("printer{port}.local")).unwrap();
        let info = ServiceInfo::new(None, Some(host), Vec::new()).unwrap();
        let address = Ipv4Addr::new(198, 18, 50, port);
        script.net.name(script.now, (address, 631).into(), "printer", Some(&info));
    }
    let end = script.now + Duration::from_secs(5);
    let mut answers = 0;
    while let Some(at) = script.net.poll_timeout().filter(|at| *at <= end) {
        script.now = script.now.max(at);
        script.net.handle_timeout(script.now);
        while let Some(frame) = script.net.poll_transmit(script.now) {
            assert!(frame.len() <= 14 + 576, "{}", frame.len());
            let lines = heard(&frame).lines;
            answers += lines
                .iter()
                .filter(|line| line.starts_with("=! 120 printer") && line.contains(" A "))
                .count();
        }
    }
    assert_eq!(answers, 2 * 59);
}
