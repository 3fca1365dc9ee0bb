//! Scripts for everything that is answered before TCP: Ethernet, ARP, IPv4, ICMP, UDP.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::packet::{MacAddress, put_udp};
use crate::script::{
    GATEWAY, GUEST, GUEST_MAC, HOST, OUR_MAC, PORT, SYN, Script, fix_ipv4_checksum, icmp, ipv4,
    plain_checksum, read_ipv4, tcp,
};

const NOBODY: Ipv4Addr = Ipv4Addr::new(198, 18, 40, 3);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

fn arp(operation: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &GUEST_MAC.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    frame.extend_from_slice(&GUEST_MAC.0);
    frame.extend_from_slice(&sender.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&target.octets());
    frame.resize(60, 0); // as Ethernet pads it
    frame
}

fn udp(destination: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    put_udp(&mut packet, SocketAddrV4::new(GUEST, 5353), SocketAddrV4::new(destination, port), payload);
    ipv4(GUEST, destination, 17, &packet[20..])
}

fn ping(destination: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    ipv4(GUEST, destination, 1, &icmp(8, 0, &[&[0x12, 0x34, 0, 1], data].concat()))
}

#[test]
fn arp_is_answered_for_what_exists() {
    let mut script = Script::new();
    for target in [GATEWAY, HOST] {
        script.send(&arp(1, GUEST, target));
        let mut expected = [&GUEST_MAC.0[..], &OUR_MAC.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
        expected.extend_from_slice(&OUR_MAC.0);
        expected.extend_from_slice(&target.octets());
        expected.extend_from_slice(&GUEST_MAC.0);
        expected.extend_from_slice(&GUEST.octets());
        assert_eq!(script.expect(), expected);
        // Whoever probes for one of our addresses must learn that it is taken (RFC 5227).
        script.send(&arp(1, Ipv4Addr::UNSPECIFIED, target));
        assert_eq!(script.expect()[28..32], target.octets());
    }
    script.expect_nothing();
}

#[test]
fn arp_is_not_answered_for_anything_else() {
    let mut script = Script::new();
    script.send(&arp(1, GUEST, NOBODY));
    script.send(&arp(1, GUEST, OUTSIDE));
    script.send(&arp(1, Ipv4Addr::UNSPECIFIED, GUEST)); // the guest's own probe
    script.send(&arp(1, GUEST, GUEST)); // and announcement
    script.send(&arp(1, HOST, HOST)); // an announcement of what is ours
    script.send(&arp(1, OUTSIDE, HOST)); // from another network
    script.send(&arp(2, GUEST, HOST)); // an answer
    script.expect_nothing();
    assert_eq!(script.net.counters().arp_unanswered, 6);
    script.net.withdraw(HOST.into(), PORT);
    script.send(&arp(1, GUEST, HOST));
    script.expect_nothing();
}

#[test]
fn malformed_arp_is_counted() {
    let mut script = Script::new();
    let good = arp(1, GUEST, HOST);
    for (at, value) in [(15, 2), (16, 9), (18, 8), (19, 16)] {
        let mut frame = good.clone();
        frame[at] = value;
        script.send(&frame);
    }
    for len in 14..42 {
        script.send(&good[..len]);
    }
    script.expect_nothing();
    assert_eq!(script.net.counters().malformed, 4 + 28);
}

#[test]
fn pings_of_every_size_come_back() {
    let mut script = Script::new();
    for target in [GATEWAY, HOST] {
        for size in [0, 1, 55, 56, 1472, 1473, 9000, 65_492, 65_507] {
            let data: Vec<u8> = (0..size).map(|at| (at * 7) as u8).collect();
            script.send(&ping(target, &data));
            let (kind, code, rest) = script.expect_icmp(target);
            assert_eq!((kind, code), (0, 0));
            assert_eq!(rest, [&[0x12, 0x34, 0, 1], &data[..]].concat());
        }
    }
    script.expect_nothing();
    assert_eq!(script.net.counters().echo_replies, 18);
}

#[test]
fn a_ping_with_ip_options_and_padding_is_a_ping() {
    let mut script = Script::new();
    let mut frame = ping(HOST, b"hello");
    frame.splice(34..34, [1, 1, 1, 0]); // NOP, NOP, NOP, end
    frame[14] = 0x46;
    frame[17] += 4;
    fix_ipv4_checksum(&mut frame);
    frame.resize(80, 0xaa);
    script.send(&frame);
    assert_eq!(script.expect_icmp(HOST).2, b"\x12\x34\0\x01hello");
}

#[test]
fn errors_are_those_of_a_host_and_of_a_router() {
    let mut script = Script::new();
    let cases = [
        (udp(HOST, 161, b"snmp"), HOST, 3),
        (udp(GATEWAY, 123, b"ntp"), GATEWAY, 3),
        (ipv4(GUEST, HOST, 47, b"gre"), HOST, 2),
        (udp(NOBODY, 161, b""), GATEWAY, 1),
        (ping(NOBODY, b""), GATEWAY, 1),
        (tcp(SYN, 1, 0).to(NOBODY, PORT).frame(), GATEWAY, 1),
        (udp(OUTSIDE, 53, b"dns"), GATEWAY, 0),
        (tcp(SYN, 1, 0).to(OUTSIDE, 443).frame(), GATEWAY, 0),
        (tcp(SYN, 1, 0).to(Ipv4Addr::new(169, 254, 169, 254), 80).frame(), GATEWAY, 0),
        (tcp(SYN, 1, 0).to(Ipv4Addr::LOCALHOST, 22).frame(), GATEWAY, 0),
    ];
    for (frame, source, code) in cases {
        script.send(&frame);
        let (kind, got, rest) = script.expect_icmp(source);
        assert_eq!((kind, got), (3, code));
        assert_eq!(rest[..4], [0; 4]);
        assert_eq!(rest[4..], frame[14..], "the packet that it is about");
        script.expect_nothing();
        assert_eq!(script.event(), None);
    }
}

#[test]
fn a_long_packet_is_quoted_in_part() {
    let mut script = Script::new();
    let frame = udp(HOST, 9, &[7; 3000]);
    script.send(&frame);
    let answer = script.expect();
    assert_eq!(read_ipv4(&answer).whole.len(), 576);
    assert_eq!(answer[14 + 28..], frame[14..14 + 548]);
}

#[test]
fn no_error_answers_what_must_not_be_answered() {
    let mut script = Script::new();
    // ICMP that is no request, to whatever.
    for destination in [HOST, NOBODY, OUTSIDE] {
        for kind in [0, 3, 4, 5, 11, 12, 13, 200] {
            script.send(&ipv4(GUEST, destination, 1, &icmp(kind, 1, &[0; 32])));
        }
    }
    script.expect_nothing();
    assert_eq!(script.net.counters().icmp_ignored, 24);
    // All stations, by IP or on the link.
    for destination in [
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(198, 18, 255, 255),
        Ipv4Addr::new(198, 18, 0, 0),
        Ipv4Addr::new(224, 0, 0, 251),
        Ipv4Addr::UNSPECIFIED,
    ] {
        script.send(&udp(destination, 5353, b"mdns"));
        script.send(&ping(destination, b""));
        script.send(&tcp(SYN, 1, 0).to(destination, PORT).frame());
    }
    for (target, frame) in [(HOST, udp(HOST, 9, b"")), (NOBODY, ping(NOBODY, b"")), (HOST, ping(HOST, b""))] {
        let mut frame = frame;
        frame[..6].copy_from_slice(&MacAddress::BROADCAST.0);
        script.send(&frame);
        frame[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 0xfb]);
        script.send(&frame);
        assert_ne!(target, GUEST);
    }
    script.expect_nothing();
    // One of them was to multicast DNS, but is no DNS.
    assert_eq!(script.net.counters().not_for_us, 20);
    assert_eq!(script.net.counters().mdns_malformed, 1);
}

#[test]
fn errors_are_rationed() {
    let mut script = Script::new();
    let answered = |script: &mut Script| {
        for _ in 0..10_000 {
            script.send(&udp(HOST, 9, b""));
        }
        std::iter::from_fn(|| script.net.poll_transmit(script.now).map(drop)).count()
    };
    assert_eq!(answered(&mut script), 64);
    script.pass(Duration::from_millis(50));
    assert_eq!(answered(&mut script), 10);
    script.pass(Duration::from_secs(1_000_000));
    assert_eq!(answered(&mut script), 64);
    assert_eq!(script.net.counters().icmp_errors_withheld, 30_000 - 138);
}

#[test]
fn nobody_speaks_in_another_s_name() {
    let mut script = Script::new();
    for source in [
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(198, 18, 0, 0),
        Ipv4Addr::new(198, 18, 255, 255),
        Ipv4Addr::new(224, 0, 0, 1),
        OUTSIDE,
        GATEWAY,
        HOST,
    ] {
        script.send(&ipv4(source, HOST, 1, &icmp(8, 0, &[0; 8])));
        let mut syn = tcp(SYN, 1, 0);
        syn.guest.set_ip(source);
        script.send_tcp(syn);
    }
    for mac in [MacAddress::BROADCAST, MacAddress([1, 0, 0, 0, 0, 1]), MacAddress([0; 6]), OUR_MAC] {
        let mut frame = ping(HOST, b"");
        frame[6..12].copy_from_slice(&mac.0);
        script.send(&frame);
    }
    script.expect_nothing();
    assert_eq!(script.event(), None);
    assert_eq!(script.net.counters().martian, 22);
}

#[test]
fn frames_for_others_are_none_of_ours() {
    let mut script = Script::new();
    let mut frame = ping(HOST, b"");
    frame[..6].copy_from_slice(&[0x52, 0x54, 0, 9, 9, 9]);
    script.send(&frame);
    script.expect_nothing();
    assert_eq!(script.net.counters().not_for_us, 1);
    // What we do not speak.
    for kind in [[0x81, 0x00], [0x00, 0x2a], [0x88, 0xcc]] {
        let mut frame = ping(HOST, b"");
        frame[12..14].copy_from_slice(&kind);
        script.send(&frame);
    }
    let mut frame = ping(HOST, b"");
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    script.send(&frame);
    script.expect_nothing();
    assert_eq!((script.net.counters().unknown_protocol, script.net.counters().ipv6), (3, 1));
}

#[test]
fn damaged_and_lying_packets_are_dropped() {
    let mut script = Script::new();
    let good = ping(HOST, b"hello");
    // Every single flipped bit of the IP packet: damaged, or malformed, never answered.
    for at in 14..good.len() {
        for bit in 0..8 {
            let mut frame = good.clone();
            frame[at] ^= 1 << bit;
            script.send(&frame);
        }
    }
    script.expect_nothing();
    // Lies with a right checksum.
    let lie = |script: &mut Script, change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        fix_ipv4_checksum(&mut frame);
        let before = script.net.counters().malformed;
        script.send(&frame);
        assert_eq!(script.net.counters().malformed, before + 1, "{frame:02x?}");
    };
    lie(&mut script, &|frame| frame[14] = 0x65); // version 6
    lie(&mut script, &|frame| frame[14] = 0x40); // no header
    lie(&mut script, &|frame| frame[14] = 0x44); // header of 16
    lie(&mut script, &|frame| frame[16..18].fill(0)); // total length 0
    lie(&mut script, &|frame| frame[17] = 19); // shorter than the header
    lie(&mut script, &|frame| frame[17] += 1); // longer than the frame
    lie(&mut script, &|frame| frame[16] = 0xff);
    // Cut anywhere.
    for len in 0..good.len() {
        script.send(&good[..len]);
    }
    script.send(&[]);
    script.expect_nothing();
    assert_eq!(script.event(), None);
}

#[test]
fn fragments_are_dropped() {
    let mut script = Script::new();
    for (hi, lo) in [(0x20, 0), (0x00, 1), (0x20, 1), (0x1f, 0xff), (0x3f, 0xff), (0x60, 0)] {
        for mut frame in [ping(HOST, &[1; 64]), tcp(SYN, 1, 0).frame(), udp(NOBODY, 1, &[2; 64])] {
            (frame[20], frame[21]) = (hi, lo);
            fix_ipv4_checksum(&mut frame);
            script.send(&frame);
        }
    }
    script.expect_nothing();
    assert_eq!(script.event(), None);
    assert_eq!(script.net.counters().fragments, 18);
}

#[test]
fn malformed_udp_and_icmp_are_dropped() {
    let mut script = Script::new();
    let header = |len: u16, checksum: u16| {
        [&[0x10, 0, 0x10, 0][..], &len.to_be_bytes(), &checksum.to_be_bytes(), b"data"].concat()
    };
    for payload in [header(7, 0), header(0, 0), header(13, 0), header(0xffff, 0), vec![1; 7], vec![]] {
        script.send(&ipv4(GUEST, HOST, 17, &payload));
    }
    assert_eq!(script.net.counters().malformed, 6);
    script.send(&ipv4(GUEST, HOST, 17, &header(12, 0x1234)));
    assert_eq!(script.net.counters().bad_checksum, 1);
    for message in [vec![], vec![8], vec![8, 0, 0xff], icmp(8, 0, &[0; 3])] {
        script.send(&ipv4(GUEST, HOST, 1, &message));
    }
    assert_eq!(script.net.counters().malformed, 10);
    script.expect_nothing();
    // Without a checksum it counts.
    script.send(&ipv4(GUEST, HOST, 17, &header(12, 0)));
    assert_eq!(script.expect_icmp(HOST).1, 3);
}

#[test]
fn a_guest_that_does_not_take_its_answers_costs_no_more_memory() {
    let mut script = Script::new();
    for _ in 0..10_000 {
        script.send(&ping(HOST, &[0; 1400]));
    }
    let waiting: usize =
        std::iter::from_fn(|| script.net.poll_transmit(script.now).map(|frame| frame.len())).sum();
    assert!(waiting < 512 * 1024 + 1500, "{waiting} octets");
    assert!(script.net.counters().outbox_full > 9000);
}

#[test]
fn the_fast_checksum_agrees_with_the_plain_one() {
    let mut script = Script::new();
    for size in 0..300 {
        let data: Vec<u8> = (0..size).map(|at| (at * 31 + size) as u8 | 0x80).collect();
        script.send(&ping(HOST, &data));
        let frame = script.expect();
        assert_eq!(plain_checksum(&[&frame[34..]]), 0, "size {size}");
    }
    for data in [vec![0xff; 65_000], vec![0; 1000]] {
        script.send(&ping(HOST, &data));
        assert_eq!(plain_checksum(&[&script.expect()[34..]]), 0);
    }
}
