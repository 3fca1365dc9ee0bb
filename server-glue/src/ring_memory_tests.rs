//! All connections together hold a bounded amount of memory, and go on when it is short.

use std::time::Duration;

use crate::netstack::NetEvent;
use crate::script::{ACK, Script, read_tcp, tcp};

const SEGMENT: usize = 1460;
/// What one connection may hold when memory is short.
const SHORT: usize = 32 * 1024;

/// Where 100,000 octets in rings are much.
fn script() -> Script {
    let Script { now, net } = Script::new();
    Script { now, net: net.with_ring_memory(100_000) }
}

/// Takes everything that is sent now.
fn drain(script: &mut Script) {
    while script.net.poll_transmit(script.now).is_some() {}
}

#[test]
fn a_guest_that_does_not_read_leaves_little_for_others_until_it_does() {
    let mut script = script();
    let (hoarder, hoarded) = script.establish_from(4000);
    let (modest, ours) = script.establish_from(4001);
    let much = vec![1; 600_000];
    let all = script.net.send(script.now, hoarder, &much);
    assert_eq!(all, 512 * 1024);
    assert_eq!(script.net.send_capacity(modest), SHORT);
    let mut acknowledged = ours;
    for _ in 0..3 {
        assert_eq!(script.net.send(script.now, modest, &much), SHORT);
        assert_eq!(script.net.send(script.now, modest, &much), 0);
        drain(&mut script);
        acknowledged = acknowledged.wrapping_add(SHORT as u32);
        script.send_tcp(tcp(ACK, 1001, acknowledged).from(4001));
        assert_eq!(script.event(), Some(NetEvent::Writable { flow: modest }));
    }
    // The other reads at last, and its memory goes back once it has been quiet.
    script.send_tcp(tcp(ACK, 1001, hoarded.wrapping_add(all as u32)).from(4000));
    assert_eq!(script.event(), Some(NetEvent::Writable { flow: hoarder }));
    for _ in 0..3 {
        script.pass(Duration::from_secs(1));
    }
    assert_eq!(script.net.send(script.now, modest, &much), 512 * 1024);
}

#[test]
fn what_a_guest_sends_beyond_is_dropped_and_taken_when_it_comes_again() {
    let mut script = script();
    let (_, hoarded) = script.establish_from(4000);
    let sent: Vec<u8> = (0..80 * SEGMENT as u32).map(|octet| (octet >> 8) as u8 ^ octet as u8).collect();
    // Gives how far the last acknowledgement goes.
    let send = |script: &mut Script, port: u16, ours: u32, segments: std::ops::Range<usize>| {
        for index in segments {
            let data = &sent[index * SEGMENT..][..SEGMENT];
            script.send_tcp(tcp(ACK, 1001 + (index * SEGMENT) as u32, ours).from(port).data(data));
        }
        let mut last = 0;
        while let Some(frame) = script.net.poll_transmit(script.now) {
            last = read_tcp(frame.bytes).ack;
        }
        (last as usize - 1001) / SEGMENT
    };
    let enough = 100_000usize.div_ceil(SEGMENT);
    assert_eq!(send(&mut script, 4000, hoarded, 0..80), enough);
    assert_eq!(script.net.counters().rings_full, 80 - enough as u64);
    assert!(matches!(script.event(), Some(NetEvent::Readable { .. })));

    let (modest, ours) = script.establish_from(4001);
    let taken = SHORT.div_ceil(SEGMENT);
    assert_eq!(send(&mut script, 4001, ours, 0..40), taken);
    let mut got = script.read(modest);
    assert_eq!(send(&mut script, 4001, ours, taken..40), 40);
    got.extend(script.read(modest));
    assert_eq!(got, sent[..40 * SEGMENT]);
}
