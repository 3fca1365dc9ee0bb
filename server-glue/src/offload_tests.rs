//! What the netstack leaves to a card, and what it believes of one.

use crate::offload::{CardFrame, Offloads};
use crate::packet::ChecksumPlace;
use crate::script::{ACK, PSH, Script, Tcp, read_tcp, tcp};

const MSS: usize = 1460;

fn vouched(bytes: &[u8]) -> CardFrame<'_> {
    CardFrame { vouched: true, ..CardFrame::whole(bytes) }
}

/// A guest on a card that does everything.
fn script() -> Script {
    let mut script = Script::with(|config| config.mtu = 1500);
    script.net.set_offloads(Offloads::ALL);
    script
}

/// A connection, when the checksums of our segments are left to the card. Gives our next number.
fn establish(script: &mut Script) -> (crate::netstack::FlowId, u32) {
    script.send_tcp(tcp(crate::script::SYN, 1000, 0).options(&[2, 4, 0x05, 0xb4, 1, 3, 3, 7]));
    let flow = script.expect_connect();
    script.net.accept(script.now, flow);
    let (syn_ack, frame) = expect(script);
    assert_eq!(frame, (true, None));
    assert_eq!(&syn_ack.options[..4], &[2, 4, 0x05, 0xb4], "our MSS is that of the MTU");
    let next = syn_ack.seq.wrapping_add(1);
    script.send_tcp(tcp(ACK, 1001, next));
    (flow, next)
}

/// The next frame, its checksum finished as a card would, and what was left to the card.
#[track_caller]
fn expect(script: &mut Script) -> (Tcp, (bool, Option<usize>)) {
    let frame = script.net.poll_transmit(script.now).expect("a frame");
    let (mut bytes, left) =
        (frame.bytes.to_vec(), (frame.vouched, frame.segment.map(|octets| usize::from(octets.get()))));
    // What virtio asks for: the sum from the TCP header on, over the pseudo header's that stands in the field, is the checksum.
    let sum = crate::script::plain_checksum(&[&bytes[34..]]);
    bytes[50..52].copy_from_slice(&sum.to_be_bytes());
    (read_tcp(&bytes), left)
}

#[test]
fn long_segments_go_whole_and_are_to_be_cut_to_the_guest_s_size() {
    let mut script = script();
    let (flow, mut next) = establish(&mut script);
    let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(script.net.send(script.now, flow, &data), data.len());
    let (mut got, mut longest) = (Vec::new(), 0);
    let mut acknowledged = 0;
    while got.len() < data.len() {
        let (segment, left) = expect(&mut script);
        assert_eq!(segment.seq, next);
        let expected = (segment.data.len() > MSS).then_some(MSS);
        assert_eq!(left, (true, expected), "{} octets", segment.data.len());
        longest = longest.max(segment.data.len());
        next = next.wrapping_add(segment.data.len() as u32);
        got.extend(segment.data);
        if got.len() > acknowledged + 100_000 || got.len() == data.len() {
            acknowledged = got.len();
            script.send_tcp(Tcp { window: 64_000, ..tcp(ACK, 1001, next) });
        }
    }
    assert!(got == data);
    assert_eq!(longest, 65_535 - 40);
}

#[test]
fn a_vouched_segment_needs_no_checksum_and_another_does() {
    let mut script = script();
    let (flow, next) = establish(&mut script);
    let data: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
    let mut frame = tcp(ACK | PSH, 1001, next).data(&data).frame();
    frame[50..52].fill(0x5a);
    script.send(&frame);
    assert_eq!(script.net.counters().bad_checksum, 1);
    assert_eq!(script.net.can_recv(flow), 0);
    script.net.handle_frame(script.now, vouched(&frame));
    assert!(script.read(flow) == data);
    let (ack, left) = expect(&mut script);
    assert_eq!((ack.ack, left), (1001 + 60_000, (true, None)));
    // The header's checksum is never left out.
    frame[20] ^= 1;
    script.net.handle_frame(script.now, vouched(&frame));
    assert_eq!(script.net.counters().bad_checksum, 2);
}

#[test]
fn what_is_answered_at_once_has_its_checksum() {
    let mut script = script();
    let (_, next) = establish(&mut script);
    // Far beyond the window: smoltcp answers with an acknowledgement there and then.
    script.send_tcp(tcp(ACK, 1001 + (1 << 30), next).data(b"far"));
    let answer = script.expect_tcp();
    assert_eq!((answer.flags, answer.ack), (ACK, 1001));
}

#[test]
fn another_card_ends_what_the_last_one_carried() {
    let mut script = script();
    let (flow, _) = establish(&mut script);
    script.net.set_offloads(Offloads::ALL);
    assert_eq!(script.event(), None, "the same card");
    script.net.set_offloads(Offloads::NONE);
    assert_eq!(
        script.event(),
        Some(crate::netstack::NetEvent::Reset { flow, cause: crate::netstack::ResetCause::LinkLost })
    );
    let (flow, next) = script.establish();
    script.net.send(script.now, flow, &[7; 10_000]);
    // With its checksum, and no longer than the guest takes.
    assert_eq!(script.expect_numbers(ACK, next, 1001).data.len(), MSS);
}

#[test]
fn checksums_are_finished_for_whoever_looks() {
    for length in [0, 1, 2, 1001] {
        let whole = tcp(ACK, 5, 6).data(&vec![0xee; length]).frame();
        let mut left = whole.clone();
        let place = ChecksumPlace::of(&left).unwrap();
        assert_eq!((place.start, place.field, place.headers), (34, 50, 54));
        place.leave(&mut left);
        assert_ne!(left, whole);
        place.complete(&mut left);
        assert_eq!(left, whole);
    }
    assert_eq!(ChecksumPlace::of(&[]), None);
    let whole = tcp(ACK, 5, 6).frame();
    for length in 0..whole.len() {
        assert_eq!(ChecksumPlace::of(&whole[..length]), None, "cut to {length}");
    }
}

#[test]
fn memory_given_back_is_no_data_lost() {
    let mut script = Script::new();
    let (flow, next) = script.establish();
    let data: Vec<u8> = (0..30_000u32).map(|n| (n % 251) as u8).collect();
    let (early, late) = data.split_at(10_000);
    // The later part first: it waits out of order, and stays whatever time passes.
    script.send_tcp(tcp(ACK, 11_001, next).data(late));
    script.pass(10 * IDLE);
    script.pass(10 * IDLE);
    script.send_tcp(tcp(ACK, 1001, next).data(early));
    // In order, but not read: stays as well.
    script.pass(10 * IDLE);
    script.pass(10 * IDLE);
    assert!(script.read(flow) == data);
    // Now nothing is left, and what comes afterwards finds its place.
    while script.net.poll_transmit(script.now).is_some() {}
    script.pass(10 * IDLE);
    script.pass(10 * IDLE);
    for part in data.chunks(1000).enumerate() {
        let seq = 31_001 + 1000 * part.0 as u32;
        script.send_tcp(tcp(ACK, seq, next).data(part.1));
    }
    assert!(script.read(flow) == data);
}

const IDLE: std::time::Duration = std::time::Duration::from_secs(1);
