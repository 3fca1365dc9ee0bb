//! Scripts for the DNS server as the guest reaches it: datagrams, connections, and what a hostile guest tries with them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use crate::netstack::NetEvent;
use crate::packet::{PROTOCOL_UDP, put_udp};
use crate::script::{ACK, FIN, GATEWAY, GUEST, HOST, PSH, RST, SYN, Script, Tcp, ipv4, read_ipv4, tcp};

pub(crate) fn query(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// The gateway's own name, which needs nothing to be published.
fn gateway(id: u16) -> Vec<u8> {
    query(id, "gateway.tunnel.internal.", RecordType::A)
}

pub(crate) fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    put_udp(&mut packet, SocketAddrV4::new(from.0, from.1), SocketAddrV4::new(to.0, to.1), payload);
    // Its IPv4 header is thrown away.
    ipv4(from.0, to.0, PROTOCOL_UDP, &packet[20..])
}

fn ask(script: &mut Script, payload: &[u8]) {
    script.send(&datagram((GUEST, 4000), (GATEWAY, 53), payload));
}

#[track_caller]
fn expect_answer(script: &mut Script) -> Message {
    let frame = script.expect();
    let ip = read_ipv4(&frame);
    assert_eq!((ip.source, ip.destination, ip.protocol), (GATEWAY, GUEST, PROTOCOL_UDP));
    assert_eq!(ip.payload[..4], [0, 53, 0x0f, 0xa0]);
    Message::from_vec(&ip.payload[8..]).unwrap()
}

#[test]
fn a_datagram_is_answered_to_where_it_came_from() {
    let mut script = Script::new();
    ask(&mut script, &gateway(7));
    let answer = expect_answer(&mut script);
    assert_eq!((answer.id, answer.answers[0].data.to_string()), (7, "198.18.0.1".to_owned()));
    ask(&mut script, &query(8, "example.com.", RecordType::A));
    assert_eq!(expect_answer(&mut script).response_code, ResponseCode::Refused);
    script.expect_nothing();
    assert_eq!(script.event(), None);
    let counters = script.net.counters();
    assert_eq!((counters.dns_answered, counters.dns_refused, counters.dns_dropped), (2, 1, 0));
}

#[test]
fn only_the_gateway_answers_and_only_a_guest() {
    let mut script = Script::new();
    // Another host of the network, by whom nothing is published at that port: port unreachable.
    script.send(&datagram((GUEST, 4000), (HOST, 53), &gateway(1)));
    assert_eq!(script.expect_icmp(HOST).0, 3);
    for (from, to) in [
        // In the gateway's own name, in that of a published host, from nowhere, from outside, from all.
        ((GATEWAY, 4000), (GATEWAY, 53)),
        ((HOST, 4000), (GATEWAY, 53)),
        ((Ipv4Addr::UNSPECIFIED, 4000), (GATEWAY, 53)),
        ((Ipv4Addr::new(8, 8, 8, 8), 53), (GATEWAY, 53)),
        ((Ipv4Addr::BROADCAST, 4000), (GATEWAY, 53)),
        ((Ipv4Addr::new(198, 18, 255, 255), 4000), (GATEWAY, 53)),
        // To all of the network.
        ((GUEST, 4000), (Ipv4Addr::BROADCAST, 53)),
        ((GUEST, 4000), (Ipv4Addr::new(198, 18, 255, 255), 53)),
        ((GUEST, 4000), (Ipv4Addr::new(224, 0, 0, 251), 53)),
    ] {
        script.send(&datagram(from, to, &gateway(2)));
        script.expect_nothing();
    }
    // Who wants no answer gets none.
    script.send(&datagram((GUEST, 0), (GATEWAY, 53), &gateway(3)));
    assert_eq!(script.net.counters().dns_answered, 0);
}

#[test]
fn without_a_domain_there_is_no_server() {
    let mut script = Script::with(|config| config.domain = None);
    ask(&mut script, &gateway(1));
    assert_eq!(script.expect_icmp(GATEWAY).0, 3, "port unreachable");
    script.send_tcp(tcp(SYN, 1, 0).to(GATEWAY, 53));
    script.expect_numbers(RST | ACK, 0, 2);
}

/// A connection to the server: the guest's numbers begin behind 1000.
struct Stream {
    port: u16,
    next: u32,
    theirs: u32,
}

fn to_dns(port: u16, segment: Tcp) -> Tcp {
    segment.to(GATEWAY, 53).from(port)
}

impl Stream {
    #[track_caller]
    fn open(script: &mut Script, port: u16) -> Stream {
        script.send_tcp(to_dns(port, tcp(SYN, 1000, 0)));
        let syn_ack = script.expect_tcp();
        assert_eq!((syn_ack.flags, syn_ack.ack, *syn_ack.host.ip()), (SYN | ACK, 1001, GATEWAY));
        let theirs = syn_ack.seq.wrapping_add(1);
        script.send_tcp(to_dns(port, tcp(ACK, 1001, theirs)));
        script.expect_nothing();
        Stream { port, next: 1001, theirs }
    }

    fn send(&mut self, script: &mut Script, flags: u8, data: &[u8]) {
        script.send_tcp(to_dns(self.port, tcp(flags | ACK, self.next, self.theirs).data(data)));
        self.next = self.next.wrapping_add(data.len() as u32);
    }

    /// Takes all that comes, and acknowledges it. Gives the data, and the flags of all segments.
    fn receive(&mut self, script: &mut Script) -> (Vec<u8>, u8) {
        let (mut data, mut flags) = (Vec::new(), 0);
        while let Some(frame) = script.net.poll_transmit(script.now).map(|frame| frame.to_vec()) {
            let segment = crate::script::read_tcp(&frame);
            flags |= segment.flags;
            if segment.data.is_empty() {
                continue;
            }
            assert_eq!(segment.seq, self.theirs);
            self.theirs = self.theirs.wrapping_add(segment.data.len() as u32);
            data.extend_from_slice(&segment.data);
            self.send(script, 0, &[]);
        }
        (data, flags)
    }

    fn answers(&mut self, script: &mut Script) -> Vec<Message> {
        let (data, _) = self.receive(script);
        let mut rest = &data[..];
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let len = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
            messages.push(Message::from_vec(&rest[2..2 + len]).unwrap());
            rest = &rest[2 + len..];
        }
        messages
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

#[test]
fn questions_over_tcp_may_come_in_pieces_and_in_a_row() {
    let mut script = Script::new();
    let mut stream = Stream::open(&mut script, 5000);
    assert_eq!(script.event(), None, "the owner of the network's connections hears nothing of it");
    for byte in framed(&gateway(1)) {
        stream.send(&mut script, PSH, &[byte]);
    }
    assert_eq!(stream.answers(&mut script).iter().map(|answer| answer.id).collect::<Vec<_>>(), [1]);
    let row: Vec<u8> = (2..12).flat_map(|id| framed(&gateway(id))).collect();
    stream.send(&mut script, PSH, &row);
    let ids: Vec<u16> = stream.answers(&mut script).iter().map(|answer| answer.id).collect();
    assert_eq!(ids, (2..12).collect::<Vec<_>>());
    // The guest ends it, with a question in the same segment.
    stream.send(&mut script, FIN | PSH, &framed(&gateway(99)));
    stream.next = stream.next.wrapping_add(1);
    let (data, flags) = stream.receive(&mut script);
    assert!(!data.is_empty());
    let flags = flags | stream.receive(&mut script).1;
    assert!(flags & FIN != 0 && flags & RST == 0, "{flags:x}");
    script.send_tcp(to_dns(5000, tcp(ACK, stream.next, stream.theirs.wrapping_add(1))));
    script.expect_nothing();
    assert_eq!((script.event(), script.net.flows()), (None, 0));
}

#[test]
fn a_silent_connection_is_closed_and_one_that_does_not_close_is_broken() {
    let mut script = Script::new();
    let mut stream = Stream::open(&mut script, 5000);
    stream.send(&mut script, PSH, &framed(&gateway(1))[..10]);
    stream.receive(&mut script);
    let due = script.net.poll_timeout().unwrap();
    assert!(due <= script.now + Duration::from_secs(10));
    script.pass(Duration::from_secs(10));
    let (data, flags) = stream.receive(&mut script);
    assert!(data.is_empty() && flags & FIN != 0);
    script.pass(Duration::from_secs(10));
    let mut reset = false;
    while let Some(frame) = script.net.poll_transmit(script.now).map(|frame| frame.to_vec()) {
        reset |= crate::script::read_tcp(&frame).flags & RST != 0;
    }
    assert!(reset);
    assert_eq!((script.net.flows(), script.event()), (0, None));
}

#[test]
fn a_question_that_is_too_long_breaks_its_connection() {
    let mut script = Script::new();
    let mut stream = Stream::open(&mut script, 5000);
    stream.send(&mut script, PSH, &[0xff, 0xff, 1]);
    let (_, flags) = stream.receive(&mut script);
    assert!(flags & RST != 0);
    assert_eq!(script.net.flows(), 0);
    // One of nothing is no question, and the next is answered.
    let mut stream = Stream::open(&mut script, 5001);
    stream.send(&mut script, PSH, &[&[0, 0], &framed(&gateway(5))[..]].concat());
    assert_eq!(stream.answers(&mut script).len(), 1);
}

#[test]
fn connections_to_it_are_few_and_take_no_events_from_others() {
    let mut script = Script::new();
    let streams: Vec<Stream> = (0..32).map(|number| Stream::open(&mut script, 5000 + number)).collect();
    script.send_tcp(to_dns(6000, tcp(SYN, 1000, 0)));
    script.expect_numbers(RST | ACK, 0, 1001);
    let (_, _) = script.establish();
    // A reset frees a place.
    script.send_tcp(to_dns(streams[3].port, tcp(RST, streams[3].next, 0)));
    script.expect_nothing();
    Stream::open(&mut script, 6001);
    assert_eq!(script.event(), None);
    // The card is gone: whose connection it was hears of it, and only they.
    script.net.link_lost();
    assert!(matches!(script.event(), Some(NetEvent::Reset { .. })));
    assert_eq!((script.event(), script.net.flows()), (None, 0));
    Stream::open(&mut script, 7000);
}

#[test]
fn who_does_not_read_answers_is_asked_to_wait() {
    let mut script = Script::new();
    let stream = Stream::open(&mut script, 5000);
    // Questions without end, never an acknowledgement.
    let question = framed(&gateway(1));
    let mut next = stream.next;
    let mut sent = 0;
    for _ in 0..100_000 {
        script.send_tcp(to_dns(5000, tcp(PSH | ACK, next, stream.theirs).data(&question)));
        let mut acknowledged = false;
        while let Some(frame) = script.net.poll_transmit(script.now).map(|frame| frame.to_vec()) {
            let segment = crate::script::read_tcp(&frame);
            acknowledged |= segment.ack == next.wrapping_add(question.len() as u32);
        }
        script.now += Duration::from_millis(1);
        if acknowledged {
            next = next.wrapping_add(question.len() as u32);
            sent += question.len();
        }
    }
    // The rings, and what is kept of answers; not all.
    assert!(sent < 2 * 1024 * 1024, "{sent}");
    assert!(script.net.counters().dns_answered < 100_000);
}
