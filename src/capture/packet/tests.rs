use super::*;

const PAYLOAD: &[u8] = b"REDQ";

/// A TCP segment with options, 24 + 4 bytes.
fn tcp() -> Vec<u8> {
    let header = [
        0x9C, 0x40, 0x17, 0x2A, 0, 0, 0, 7, 0xFF, 0xFF, 0xFF, 0xF0, 0x60, 0x18, 1, 2, 0, 0, 0, 0, 1, 1, 1, 0,
    ];
    [&header[..], PAYLOAD].concat()
}

fn ipv4(options: &[u8], total: Option<u16>, behind: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let total = total.unwrap_or_else(|| u16::try_from(header + behind.len()).unwrap());
    let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    [&packet, options, behind].concat()
}

fn ipv6(next: u8, len: Option<u16>, behind: &[u8]) -> Vec<u8> {
    let len = len.unwrap_or_else(|| u16::try_from(behind.len()).unwrap());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([next, 64]);
    packet.extend([0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    [&packet, behind].concat()
}

fn ethernet(kind: &[u8], behind: &[u8]) -> Vec<u8> {
    [&[0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2], kind, behind].concat()
}

fn packet(link_type: u32, bytes: &[u8]) -> Packet<'_> {
    Packet { number: 1, time: std::time::Duration::ZERO, link_type, original_len: bytes.len(), bytes }
}

/// What `tcp` and `ipv4` or `ipv6` make.
#[track_caller]
fn is_the_segment(link_type: u32, bytes: &[u8]) {
    let segment = segment(&packet(link_type, bytes)).unwrap().expect("a segment");
    let hosts = if segment.from.is_ipv4() { ["10.0.0.1", "10.0.0.2"] } else { ["fe80::1", "fe80::2"] };
    assert_eq!(segment.from, SocketAddr::new(hosts[0].parse().unwrap(), 40_000));
    assert_eq!(segment.to, SocketAddr::new(hosts[1].parse().unwrap(), 5_930));
    assert_eq!((segment.seq, segment.ack), (7, 0xFFFF_FFF0));
    assert_eq!(segment.flags, Flags::PSH | Flags::ACK);
    assert_eq!((segment.payload, segment.cut), (PAYLOAD, 0));
}

#[track_caller]
fn is_no_segment(link_type: u32, bytes: &[u8]) {
    assert_eq!(segment(&packet(link_type, bytes)), Ok(None));
}

#[track_caller]
fn is_faulty(link_type: u32, bytes: &[u8], message: &str) {
    assert_eq!(segment(&packet(link_type, bytes)).expect_err("a fault").to_string(), message);
}

#[test]
fn every_link_type() {
    let v4 = ipv4(&[], None, &tcp());
    let v6 = ipv6(6, None, &tcp());
    is_the_segment(1, &ethernet(&[0x08, 0], &v4));
    is_the_segment(1, &ethernet(&[0x86, 0xDD], &v6));
    // Loopback, of either byte order.
    is_the_segment(0, &[&[2, 0, 0, 0], &v4[..]].concat());
    is_the_segment(0, &[&[0, 0, 0, 2], &v4[..]].concat());
    is_the_segment(0, &[&[10, 0, 0, 0], &v6[..]].concat());
    is_the_segment(108, &[&[0, 0, 0, 24], &v6[..]].concat());
    // Raw.
    for link_type in [12, 14, 101] {
        is_the_segment(link_type, &v4);
        is_the_segment(link_type, &v6);
    }
    is_the_segment(228, &v4);
    is_the_segment(229, &v6);
    // Linux cooked.
    let cooked = [0, 4, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0];
    is_the_segment(113, &[&cooked[..], &[8, 0], &v4].concat());
    is_the_segment(113, &[&cooked[..], &[0x81, 0, 0, 5, 0x86, 0xDD], &v6].concat());
    let cooked = [0, 0, 0, 0, 0, 1, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0];
    is_the_segment(276, &[&[8, 0], &cooked[..], &v4].concat());
    is_the_segment(276, &[&[0x86, 0xDD], &cooked[..], &v6].concat());
    // PPP, with and without address and control, with its protocol in one byte, and over Ethernet.
    is_the_segment(9, &[&[0xFF, 3, 0, 0x21], &v4[..]].concat());
    is_the_segment(9, &[&[0, 0x57], &v6[..]].concat());
    is_the_segment(50, &[&[0x21], &v4[..]].concat());
    is_the_segment(1, &ethernet(&[0x88, 0x64, 0x11, 0, 0, 1, 0, 50, 0, 0x21], &v4));
}

#[test]
fn nflog_of_either_byte_order() {
    let v4 = ipv4(&[], None, &tcp());
    let len = u16::try_from(v4.len() + 4).unwrap();
    let prefix = b"in\0";
    let little = [&[2, 0, 0, 1][..], &[7, 0, 10, 0], prefix, &[0], &len.to_le_bytes(), &[9, 0], &v4].concat();
    let big = [&[2, 0, 0, 1][..], &[0, 7, 0, 10], prefix, &[0], &len.to_be_bytes(), &[0, 9], &v4].concat();
    is_the_segment(239, &little);
    is_the_segment(239, &big);
    is_no_segment(239, &[2, 0, 0, 1, 7, 0, 10, 0, b'i', b'n', 0, 0]);
    is_faulty(239, &[2, 0, 0, 1, 3, 0, 10, 0], "expected NFLOG attribute length at least 4, got 3");
}

#[test]
fn vlan_tags_are_passed_over() {
    let v4 = ipv4(&[], None, &tcp());
    is_the_segment(1, &ethernet(&[0x81, 0, 0, 5, 8, 0], &v4));
    is_the_segment(1, &ethernet(&[0x88, 0xA8, 0, 5, 0x81, 0, 0, 6, 8, 0], &v4));
    is_the_segment(1, &ethernet(&[0x91, 0, 0, 5, 0x91, 0, 0, 5, 0x81, 0, 0, 6, 8, 0], &v4));
    let endless = [0x81, 0, 0, 5].repeat(1000);
    is_faulty(1, &ethernet(&endless, &[]), "expected 4 bytes of VLAN tag, got 2");
}

#[test]
fn headers_of_ip_are_passed_over() {
    is_the_segment(101, &ipv4(&[1; 40], None, &tcp()));
    let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
    let destination = [&[43, 1][..], &[0; 14]].concat();
    let routing = [51, 0, 0, 0, 0, 0, 0, 0];
    let authentication = [&[44, 4][..], &[0; 22]].concat();
    let whole = [6, 0, 0, 0, 1, 2, 3, 4];
    let all = [&hop_by_hop[..], &destination, &routing, &authentication, &whole, &tcp()].concat();
    is_the_segment(101, &ipv6(0, None, &all));
}

#[test]
fn padding_is_no_payload() {
    let padded = |packet: Vec<u8>| [&packet[..], &[0xEE; 20]].concat();
    is_the_segment(1, &ethernet(&[8, 0], &padded(ipv4(&[], None, &tcp()))));
    is_the_segment(1, &ethernet(&[0x86, 0xDD], &padded(ipv6(6, None, &tcp()))));
}

#[test]
fn a_length_that_is_left_to_the_card_is_all_there_is() {
    is_the_segment(1, &ethernet(&[8, 0], &ipv4(&[], Some(0), &tcp())));
    is_the_segment(1, &ethernet(&[0x86, 0xDD], &ipv6(6, Some(0), &tcp())));
    // More than a header can say, as Linux sends to a card that cuts it up.
    let long = [&tcp()[..], &[7; 200_000]].concat();
    let frame = ethernet(&[8, 0], &ipv4(&[], Some(0), &long));
    assert_eq!(segment(&packet(1, &frame)).unwrap().unwrap().payload.len(), 200_004);
}

#[test]
fn what_the_capture_cut_off_is_counted() {
    let whole = ethernet(&[8, 0], &ipv4(&[], None, &tcp()));
    let cut_to = |len: usize| {
        let bytes = &whole[..len];
        segment(&Packet { original_len: whole.len(), ..packet(1, bytes) })
    };
    let found = cut_to(whole.len() - 3).unwrap().unwrap();
    assert_eq!((found.payload, found.cut), (&b"R"[..], 3));
    // Even the options of TCP.
    let found = cut_to(whole.len() - 6).unwrap().unwrap();
    assert_eq!((found.payload, found.cut), (&b""[..], 4));
    let fault = cut_to(14 + 20 + 12).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "the capture cut off the packet within its TCP header: expected 20 bytes, got 12"
    );
    for len in 0..14 + 20 + 20 {
        assert!(matches!(cut_to(len), Err(PacketFault::CutOff { .. })), "{len}");
    }
    // A length on the wire that says nothing is not needed for it.
    let bytes = &whole[..whole.len() - 3];
    assert_eq!(segment(&packet(1, bytes)).unwrap().unwrap().cut, 3);
}

#[test]
fn what_is_not_tcp_is_nothing() {
    let mut udp = ipv4(&[], None, &tcp());
    udp[9] = 17;
    is_no_segment(101, &udp);
    // Not even fragments of it are.
    udp[6] = 0x20;
    is_no_segment(101, &udp);
    is_no_segment(101, &ipv6(17, None, &tcp()));
    is_no_segment(101, &ipv6(59, None, &[]));
    is_no_segment(101, &ipv6(44, None, &[&[17, 0, 0, 1, 1, 2, 3, 4], &tcp()[..]].concat()));
    is_no_segment(1, &ethernet(&[8, 6], &[0; 28]));
    is_no_segment(1, &ethernet(&[0, 38], &[0x42; 38]));
    is_no_segment(9, &[&[0xFF, 3, 0xC0, 0x21], &[0; 10][..]].concat());
    is_no_segment(0, &[30, 0, 0, 1]);
    is_no_segment(101, &[]);
}

#[test]
fn faults_are_said() {
    is_faulty(
        147,
        &[0; 60],
        "expected Ethernet, Linux cooked, loopback, PPP, NFLOG or raw IP, got link type 147",
    );
    is_faulty(1, &[0; 13], "expected 14 bytes of Ethernet header, got 13");
    is_faulty(228, &ipv6(6, None, &tcp()), "expected IP version 4, got 6");
    is_faulty(229, &ipv4(&[], None, &tcp()), "expected IP version 6, got 4");
    let mut short = ipv4(&[], None, &tcp());
    short[0] = 0x44;
    is_faulty(101, &short, "expected IPv4 header length at least 20, got 16");
    is_faulty(101, &ipv4(&[], Some(30), &tcp()), "expected 20 bytes of TCP header, got 10");
    is_faulty(101, &ipv4(&[], Some(43), &tcp()), "expected 24 bytes of TCP header, got 23");
    let mut short = tcp();
    short[12] = 0x40;
    is_faulty(101, &ipv4(&[], None, &short), "expected TCP header length at least 20, got 16");

    let fragment = "part of a TCP segment: IP fragments are not put together";
    let mut first = ipv4(&[], None, &tcp());
    first[6] = 0x20;
    is_faulty(101, &first, fragment);
    let mut later = ipv4(&[], None, &tcp());
    later[7] = 0x10;
    is_faulty(101, &later, fragment);
    is_faulty(101, &ipv6(44, None, &[&[6, 0, 0, 1, 1, 2, 3, 4], &tcp()[..]].concat()), fragment);
}
