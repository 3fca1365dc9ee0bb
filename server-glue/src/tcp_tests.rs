//! Scripts for TCP, segment by segment, and for what a hostile guest tries with it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::flow::RIDE;
use crate::netstack::{NetEvent, ResetCause};
use crate::script::{ACK, FIN, GATEWAY, HOST, PORT, PSH, RST, SYN, Script, URG, fix_tcp_checksum, ipv4, tcp};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn what_is_not_published_is_refused_as_rfc_9293_says() {
    let mut script = Script::new();
    let closed = |segment: crate::script::Tcp| segment.to(HOST, 9);
    script.send_tcp(closed(tcp(SYN, 1000, 0)));
    script.expect_numbers(RST | ACK, 0, 1001);
    script.send_tcp(closed(tcp(SYN, u32::MAX, 0).data(b"early")));
    script.expect_numbers(RST | ACK, 0, 5);
    script.send_tcp(closed(tcp(ACK, 1000, 77)));
    script.expect_numbers(RST, 77, 0);
    script.send_tcp(closed(tcp(FIN | ACK, 1000, 77).data(b"x")));
    script.expect_numbers(RST, 77, 0);
    script.send_tcp(closed(tcp(FIN, 1000, 77).data(b"x")));
    script.expect_numbers(RST | ACK, 0, 1002);
    script.send_tcp(closed(tcp(RST, 1000, 0)));
    script.send_tcp(closed(tcp(RST | ACK, 1000, 5)));
    // The gateway is a host without services.
    script.expect_nothing();
    script.send_tcp(tcp(SYN, 1, 0).to(GATEWAY, 22));
    script.expect_numbers(RST | ACK, 0, 2);
    assert_eq!(script.event(), None);
    assert_eq!((script.net.counters().refused, script.net.counters().stray), (3, 5));
}

#[test]
fn strays_at_a_published_port_are_reset() {
    let mut script = Script::new();
    for flags in [ACK, PSH | ACK, FIN | ACK, SYN | ACK, FIN | PSH | URG | ACK] {
        script.send_tcp(tcp(flags, 5, 99));
        script.expect_numbers(RST, 99, 0);
    }
    for flags in [0, FIN, PSH, SYN | FIN, FIN | PSH | URG] {
        script.send_tcp(tcp(flags, 5, 0));
        assert_eq!(script.expect_tcp().flags, RST | ACK);
    }
    script.send_tcp(tcp(SYN | RST, 5, 0));
    script.expect_nothing();
    assert_eq!(script.event(), None);
}

#[test]
fn malformed_segments_are_dropped() {
    let mut script = Script::new();
    let good = tcp(SYN, 1, 0).frame();
    for len in 0..20 {
        script.send(&ipv4(crate::script::GUEST, HOST, 6, &good[34..34 + len]));
    }
    let lie = |script: &mut Script, change: &dyn Fn(&mut [u8])| {
        let mut segment = good[34..].to_vec();
        change(&mut segment);
        fix_tcp_checksum(crate::script::GUEST, HOST, &mut segment);
        script.send(&ipv4(crate::script::GUEST, HOST, 6, &segment));
    };
    lie(&mut script, &|segment| segment[12] = 0x40);
    lie(&mut script, &|segment| segment[12] = 0);
    lie(&mut script, &|segment| segment[12] = 0xf0);
    lie(&mut script, &|segment| segment[0..2].fill(0));
    lie(&mut script, &|segment| segment[2..4].fill(0));
    assert_eq!(script.net.counters().malformed, 25);
    let mut damaged = good.clone();
    damaged[40] ^= 4;
    script.send(&damaged);
    assert_eq!(script.net.counters().bad_checksum, 1);
    for options in
        [[2, 0, 0, 0], [2, 9, 0, 0], [2, 2, 0, 0], [3, 4, 9, 9], [8, 10, 0, 0], [5, 3, 0, 0], [77, 0, 1, 1]]
    {
        script.send_tcp(tcp(SYN, 1, 0).options(&options));
    }
    assert_eq!(script.net.counters().malformed, 32);
    script.expect_nothing();
    assert_eq!(script.event(), None);
}

#[test]
fn a_syn_is_held_until_its_owner_decides() {
    let mut script = Script::new();
    script.send_tcp(tcp(SYN, 1000, 0).options(&[2, 4, 5, 0xb4, 1, 3, 3, 7]));
    let NetEvent::Connect { flow, destination, source } = script.event().unwrap() else { panic!() };
    assert_eq!((destination, source), ((HOST, PORT).into(), (crate::script::GUEST, 4000).into()));
    for _ in 0..5 {
        script.expect_nothing();
        script.pass(SECOND);
        script.send_tcp(tcp(SYN, 1000, 0).options(&[2, 4, 5, 0xb4, 1, 3, 3, 7]));
    }
    assert_eq!(script.event(), None);
    // Nothing can be done with it yet.
    assert_eq!(script.net.send(script.now, flow, b"early"), 0);
    assert_eq!((script.net.can_recv(flow), script.net.send_capacity(flow)), (0, 0));
    script.net.finish(script.now, flow);
    script.net.accept(script.now, flow);
    let answer = script.expect_tcp();
    assert_eq!((answer.flags, answer.ack, answer.window), (SYN | ACK, 1001, 65_535));
    // MSS: our MTU without headers. Window scale 2: 256 KiB.
    assert_eq!(answer.options[..7], [2, 4, 0xff, 0xc8, 3, 3, 2]);
    script.expect_nothing();
    // It was lost: it comes again.
    script.pass(SECOND);
    let again = script.expect_tcp();
    assert_eq!((again.flags, again.seq, again.ack), (SYN | ACK, answer.seq, 1001));
    script.net.accept(script.now, flow);
    script.expect_nothing();
}

#[test]
fn refusing_is_rst_and_barring_is_icmp() {
    let mut script = Script::new();
    script.send_tcp(tcp(SYN, 1000, 0));
    let flow = script.expect_connect();
    script.net.refuse(script.now, flow);
    script.expect_numbers(RST | ACK, 0, 1001);
    let syn = tcp(SYN, 2000, 0).from(4001);
    script.send_tcp(syn.clone());
    let flow = script.expect_connect();
    script.net.unreachable(script.now, flow);
    let (kind, code, rest) = script.expect_icmp(GATEWAY);
    assert_eq!((kind, code), (3, 1));
    // The quoted packet is found by addresses, ports and sequence number.
    let frame = syn.frame();
    assert_eq!(rest[4 + 12..4 + 28], frame[14 + 12..14 + 28]);
    script.send_tcp(tcp(SYN, 3000, 0).from(4002));
    let flow = script.expect_connect();
    script.net.reset(script.now, flow);
    script.expect_numbers(RST | ACK, 0, 3001);
    script.expect_nothing();
    assert_eq!(script.event(), None);
    assert_eq!(script.net.flows(), 0);
    assert_eq!(script.net.poll_timeout(), None);
}

#[test]
fn a_held_guest_may_give_up_or_start_anew() {
    let mut script = Script::new();
    script.send_tcp(tcp(SYN, 1000, 0));
    let flow = script.expect_connect();
    script.send_tcp(tcp(RST, 5000, 0)); // not about this attempt
    script.send_tcp(tcp(ACK, 1001, 5)); // too early
    script.send_tcp(tcp(ACK, 1001, 5).data(b"too early"));
    assert_eq!(script.event(), None);
    // Another attempt from the same port: the answer belongs to that one.
    script.send_tcp(tcp(SYN, 7000, 0));
    assert_eq!(script.event(), None);
    script.net.accept(script.now, flow);
    assert_eq!(script.expect_tcp().ack, 7001);
    script.send_tcp(tcp(RST | ACK, 7001, 0));
    assert_eq!(script.event(), Some(NetEvent::Reset { flow, cause: ResetCause::Guest }));
    script.send_tcp(tcp(SYN, 8000, 0));
    let flow = script.expect_connect();
    script.send_tcp(tcp(RST | ACK, 8001, 0));
    assert_eq!(script.event(), Some(NetEvent::Reset { flow, cause: ResetCause::Guest }));
    script.net.accept(script.now, flow);
    script.net.refuse(script.now, flow);
    script.expect_nothing();
    assert_eq!(script.net.flows(), 0);
}

#[test]
fn data_flows_both_ways() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    script.send_tcp(tcp(PSH | ACK, 1001, ours).data(b"GET / "));
    script.send_tcp(tcp(PSH | ACK, 1007, ours).data(b"HTTP/1.1"));
    // A burst is told once and acknowledged once.
    assert_eq!(script.event(), Some(NetEvent::Readable { flow }));
    assert_eq!(script.event(), None);
    script.expect_numbers(ACK, ours, 1015);
    script.expect_nothing();
    assert_eq!(script.read(flow), b"GET / HTTP/1.1");
    script.expect_nothing();
    assert_eq!(script.net.send(script.now, flow, b"200 OK"), 6);
    assert_eq!(script.expect_numbers(PSH | ACK, ours, 1015).data, b"200 OK");
    script.expect_nothing();
    script.send_tcp(tcp(ACK, 1015, ours + 6));
    assert_eq!(script.event(), None);
    assert_eq!(script.net.send_capacity(flow), 512 * 1024);
}

#[test]
fn acknowledgements_ride_on_answers() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    script.send_tcp(tcp(PSH | ACK, 1001, ours).data(b"question"));
    assert_eq!(script.read(flow), b"question");
    script.expect_nothing();
    script.pass(RIDE / 2);
    script.expect_nothing();
    script.net.send(script.now, flow, b"answer");
    script.expect_numbers(PSH | ACK, ours, 1009);
    script.pass(RIDE);
    script.expect_nothing();
    // The end of both is one frame as well.
    script.send_tcp(tcp(FIN | ACK, 1009, ours + 6));
    script.expect_nothing();
    script.net.finish(script.now, flow);
    script.expect_numbers(FIN | ACK, ours + 6, 1010);
    script.expect_nothing();
}

#[test]
fn acknowledgements_that_find_no_ride_go_alone() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    script.send_tcp(tcp(PSH | ACK, 1001, ours).data(b"said"));
    script.expect_nothing();
    assert_eq!(script.net.poll_timeout(), Some(script.now + RIDE));
    script.pass(RIDE);
    script.expect_numbers(ACK, ours, 1005);
    script.send_tcp(tcp(FIN | ACK, 1005, ours));
    script.pass_a_ride();
    script.expect_numbers(ACK, ours, 1006);
    assert_eq!(script.read(flow), b"said");
    script.pass(RIDE);
    script.expect_nothing();
}

#[test]
fn acknowledgements_that_a_sender_counts_on_do_not_wait() {
    let mut script = Script::with(|config| config.receive_buffer = 8192);
    let (flow, ours) = script.establish();
    script.send_tcp(tcp(PSH | ACK, 1001, ours).data(b"one"));
    script.expect_nothing();
    script.send_tcp(tcp(PSH | ACK, 1004, ours).data(b"two"));
    script.expect_numbers(ACK, ours, 1007);
    script.send_tcp(tcp(PSH | ACK, 1007, ours).data(&[0; 1460]));
    script.expect_numbers(ACK, ours, 2467);
    // More than a quarter of the window is taken: the guest may soon wait for it.
    script.send_tcp(tcp(PSH | ACK, 2467, ours).data(&[0; 1460]));
    script.expect_numbers(ACK, ours, 3927);
    script.send_tcp(tcp(PSH | ACK, 3927, ours).data(b"three"));
    script.expect_numbers(ACK, ours, 3932);
    script.read(flow);
    script.send_tcp(tcp(PSH | ACK, 3932, ours).data(b"four"));
    script.pass_a_ride();
    script.expect_numbers(ACK, ours, 3936);
}

#[test]
fn a_timer_that_came_too_early_is_set_again() {
    let mut script = Script::with(|config| config.keepalive = 10 * SECOND);
    let (flow, ours) = script.establish();
    let first = script.net.poll_timeout().unwrap();
    script.pass(SECOND);
    script.send_tcp(tcp(PSH | ACK, 1001, ours).data(b"one"));
    script.send_tcp(tcp(PSH | ACK, 1004, ours).data(b"two"));
    script.expect_numbers(ACK, ours, 1007);
    script.expect_nothing();
    assert_eq!(script.read(flow), b"onetwo");
    while let Some(due) = script.net.poll_timeout()
        && due < first + SECOND
    {
        script.now = due;
        script.net.handle_timeout(due);
        script.expect_nothing();
    }
    assert_eq!(script.net.poll_timeout(), Some(first + SECOND));
    script.pass(10 * SECOND);
    // The keep-alive.
    assert_eq!(script.expect_tcp().flags, ACK);
}

#[test]
fn the_order_of_segments_does_not_matter() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    let piece = |number: u32| tcp(PSH | ACK, 1001 + number * 2, ours).data(&[b'a', b'0' + number as u8]);
    for number in [3, 1, 4, 2, 2, 3] {
        script.send_tcp(piece(number));
        script.expect_numbers(ACK, ours, 1001); // at once, so that the guest learns of the gap
    }
    assert_eq!(script.event(), None);
    script.send_tcp(piece(0));
    script.expect_numbers(ACK, ours, 1011);
    assert_eq!(script.event(), Some(NetEvent::Readable { flow }));
    assert_eq!(script.read(flow), b"a0a1a2a3a4");
}

#[test]
fn what_overlaps_is_taken_once() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    script.send_tcp(tcp(ACK, 1005, ours).data(b"5678"));
    script.send_tcp(tcp(ACK, 1003, ours).data(b"345"));
    script.send_tcp(tcp(ACK, 990, ours).data(b"...........12"));
    script.send_tcp(tcp(ACK, 1001, ours).data(b"123456"));
    assert_eq!(script.read(flow), b"12345678");
}

#[test]
fn urgent_data_is_data() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    let mut urgent = tcp(PSH | ACK | URG, 1001, ours).data(b"urgent!");
    for pointer in [0, 1, 3, 7, 8, 0xffff] {
        urgent.urgent = pointer;
        script.send_tcp(urgent.clone());
        assert_eq!(script.read(flow), b"urgent!", "pointer {pointer}");
        urgent.seq += 7;
    }
    urgent.data.clear();
    script.send_tcp(urgent);
    assert_eq!(script.read(flow), b"");
}

#[test]
fn both_ways_of_closing() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    // The guest first.
    script.send_tcp(tcp(FIN | ACK, 1001, ours).data(b"bye"));
    assert_eq!(script.event(), Some(NetEvent::Readable { flow }));
    assert_eq!(script.event(), None, "not finished before it was read");
    assert_eq!(script.read(flow), b"bye");
    assert_eq!(script.event(), Some(NetEvent::Finished { flow }));
    assert_eq!(script.net.send(script.now, flow, b"and"), 3);
    script.expect_numbers(PSH | ACK, ours, 1005);
    script.net.finish(script.now, flow);
    // Not before the guest has everything.
    script.expect_nothing();
    assert_eq!(script.net.send(script.now, flow, b"more"), 0);
    assert_eq!(script.net.send_capacity(flow), 0);
    script.send_tcp(tcp(ACK, 1005, ours + 3));
    script.expect_numbers(FIN | ACK, ours + 3, 1005);
    script.expect_nothing();
    script.send_tcp(tcp(ACK, 1005, ours + 4));
    assert_eq!(script.event(), Some(NetEvent::Closed { flow }));
    assert_eq!((script.net.flows(), script.net.poll_timeout()), (0, None));
    // We first, and the guest has more to say.
    let (flow, ours) = script.establish();
    script.net.finish(script.now, flow);
    script.expect_numbers(FIN | ACK, ours, 1001);
    script.send_tcp(tcp(ACK, 1001, ours + 1));
    script.send_tcp(tcp(ACK, 1001, ours + 1).data(b"more"));
    script.expect_numbers(ACK, ours + 1, 1005);
    assert_eq!(script.event(), Some(NetEvent::Readable { flow }));
    assert_eq!(script.read(flow), b"more");
    script.send_tcp(tcp(FIN | ACK, 1005, ours + 1));
    assert_eq!(script.event(), Some(NetEvent::Finished { flow }));
    script.expect_numbers(ACK, ours + 1, 1006);
    script.expect_nothing();
    assert_eq!(script.event(), Some(NetEvent::Closed { flow }));
    assert_eq!(script.net.flows(), 0);
}

#[test]
fn time_wait_acknowledges_late_fins_and_lets_new_connections_in() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    script.net.finish(script.now, flow);
    script.expect_numbers(FIN | ACK, ours, 1001);
    script.send_tcp(tcp(FIN | ACK, 1001, ours + 1));
    script.expect_numbers(ACK, ours + 1, 1002);
    script.expect_nothing();
    script.send_tcp(tcp(FIN | ACK, 1001, ours + 1));
    script.expect_numbers(ACK, ours + 1, 1002);
    script.send_tcp(tcp(SYN, 900, 0)); // an old one
    script.expect_numbers(ACK, ours + 1, 1002);
    script.send_tcp(tcp(ACK, 1002, ours + 1));
    script.send_tcp(tcp(RST, 1002, 0));
    script.expect_nothing();
    while script.event().is_some() {}
    script.send_tcp(tcp(SYN, 90_000, 0));
    let flow = script.expect_connect();
    script.net.refuse(script.now, flow);
    script.expect_numbers(RST | ACK, 0, 90_001);
    assert_eq!(script.net.poll_timeout(), None, "the old one does not rest any more");
    // And when it is over, it is over.
    let (flow, ours) = script.establish();
    script.net.finish(script.now, flow);
    script.expect_tcp();
    script.send_tcp(tcp(FIN | ACK, 1001, ours + 1));
    script.expect_tcp();
    script.expect_nothing();
    let rest = script.net.poll_timeout().unwrap() - script.now;
    script.pass(rest);
    script.send_tcp(tcp(FIN | ACK, 1001, ours + 1));
    script.expect_numbers(RST, ours + 1, 0);
}

#[test]
fn a_fin_whose_data_does_not_fit_the_window_loses_nothing() {
    let mut script = Script::with(|config| config.receive_buffer = 4096);
    let (flow, ours) = script.establish();
    script.send_tcp(tcp(ACK, 1001, ours).data(&[1; 4000]));
    let window = script.expect_numbers(ACK, ours, 5001).window;
    assert_eq!(window, 96);
    // 100 octets and FIN, where 96 fit.
    script.send_tcp(tcp(FIN | PSH | ACK, 5001, ours).data(&[2; 100]));
    assert_eq!(script.expect_tcp().ack, 5097);
    assert_eq!(script.read(flow).len(), 4096);
    while let Some(event) = script.event() {
        assert_eq!(event, NetEvent::Readable { flow });
    }
    script.pass(SECOND);
    while script.net.poll_transmit(script.now).is_some() {}
    script.send_tcp(tcp(FIN | PSH | ACK, 5097, ours).data(&[2; 4]));
    assert_eq!(script.read(flow), [2; 4]);
    script.pass_a_ride();
    script.expect_numbers(ACK, ours, 5102);
    assert_eq!(script.event(), Some(NetEvent::Readable { flow }));
    assert_eq!(script.event(), Some(NetEvent::Finished { flow }));
}

#[test]
fn a_reset_must_be_in_the_window() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    for seq in [1000, 0, 1001 + 262_140, 0x8000_0000] {
        script.send_tcp(tcp(RST, seq, 0));
        script.send_tcp(tcp(RST | ACK, seq, ours));
    }
    assert_eq!(script.event(), None);
    script.send_tcp(tcp(RST | ACK, 1001, ours));
    assert_eq!(script.event(), Some(NetEvent::Reset { flow, cause: ResetCause::Guest }));
    script.expect_nothing();
    assert_eq!((script.net.flows(), script.net.poll_timeout()), (0, None));
}

#[test]
fn a_guest_that_was_rebooted_finds_its_old_connection_gone() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    script.send_tcp(tcp(SYN, 500_000, 0));
    // No ACK in it, so it is ignored or challenged, never taken (RFC 5961).
    while let Some(frame) = script.net.poll_transmit(script.now).map(|frame| frame.to_vec()) {
        assert_eq!(crate::script::read_tcp(&frame).flags, ACK);
    }
    assert_eq!(script.event(), None);
    script.send_tcp(tcp(RST, 1001, 0));
    assert_eq!(script.event(), Some(NetEvent::Reset { flow, cause: ResetCause::Guest }));
    assert_eq!(ours, ours);
}

#[test]
fn our_reset_is_seen_and_nothing_follows_it() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    script.send_tcp(tcp(ACK, 1001, ours).data(b"unread"));
    script.net.send(script.now, flow, b"unsent");
    script.net.reset(script.now, flow);
    assert_eq!((script.net.can_recv(flow), script.net.send(script.now, flow, b"x")), (0, 0));
    let rst = script.expect_tcp();
    assert_eq!((rst.flags & RST, rst.seq), (RST, ours));
    script.expect_nothing();
    assert_eq!(script.net.flows(), 0);
    while let Some(event) = script.event() {
        assert_eq!(event, NetEvent::Readable { flow });
    }
    // The place is used again, but not under the old name.
    script.send_tcp(tcp(SYN, 9000, 0));
    let other = script.expect_connect();
    assert_ne!(flow, other);
    script.net.reset(script.now, flow);
    script.net.accept(script.now, flow);
    script.expect_nothing();
    assert_eq!(script.net.flows(), 1);
}

#[test]
fn a_zero_window_is_probed_and_opened() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    let mut shut = tcp(ACK, 1001, ours);
    shut.window = 0;
    script.send_tcp(shut.clone());
    assert_eq!(script.net.send(script.now, flow, b"hello"), 5);
    let probe = script.expect_tcp();
    assert!(probe.data.len() <= 1);
    script.expect_nothing();
    for _ in 0..5 {
        script.pass(Duration::from_secs(100));
        let mut probes = 0;
        while let Some(frame) = script.net.poll_transmit(script.now).map(|frame| frame.to_vec()) {
            assert!(crate::script::read_tcp(&frame).data.len() <= 1);
            probes += 1;
        }
        assert!(probes <= 2, "{probes} probes at once");
        script.send_tcp(shut.clone());
    }
    script.send_tcp(tcp(ACK, 1001, ours));
    let mut got = Vec::new();
    while got.len() < 5 {
        got.extend(script.expect_tcp().data);
    }
    assert_eq!(got, b"hello");
}

#[test]
fn more_than_the_window_right_behind_the_handshake_is_cut_at_the_ring() {
    for (ring, holds) in [(256 * 1024, 262_140), (65_536, 65_535), (1 << 20, 1_048_560), (5000, 5000)] {
        let mut script = Script::with(|config| config.receive_buffer = ring);
        let (flow, ours) = script.establish();
        // smoltcp takes the window of its SYN-ACK, which is not scaled, for a scaled one.
        for number in 0..1000u32 {
            script.send_tcp(tcp(ACK, 1001 + number * 1200, ours).data(&[number as u8; 1200]));
        }
        assert_eq!(script.net.can_recv(flow), holds);
        let got = script.read(flow);
        assert!(got.iter().enumerate().all(|(at, octet)| *octet == (at / 1200) as u8));
    }
}

#[test]
fn odd_segment_sizes_and_scales_do_not_stall() {
    for options in [[2, 4, 0, 0], [2, 4, 0, 1], [1, 3, 3, 14], [1, 3, 3, 200], [1, 1, 1, 1]] {
        let mut script = Script::new();
        script.send_tcp(tcp(SYN, 1000, 0).options(&options));
        let flow = script.expect_connect();
        script.net.accept(script.now, flow);
        let ours = script.expect_tcp().seq + 1;
        script.send_tcp(tcp(ACK, 1001, ours));
        assert_eq!(script.net.send(script.now, flow, &[5; 1000]), 1000);
        let mut got = 0;
        for _ in 0..100 {
            if got == 1000 {
                break;
            }
            let segment = script.expect_tcp();
            got += segment.data.len();
            script.send_tcp(tcp(ACK, 1001, segment.seq + segment.data.len() as u32));
        }
        assert_eq!(got, 1000, "options {options:?}");
    }
}

#[test]
fn acknowledgements_of_what_was_never_sent_are_harmless() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    for ack in [ours + 1, ours + 100_000, ours.wrapping_sub(1), ours.wrapping_add(0x8000_0000)] {
        script.send_tcp(tcp(ACK, 1001, ack));
        script.send_tcp(tcp(FIN | ACK, 1001, ack));
    }
    while script.net.poll_transmit(script.now).is_some() {}
    // And of a FIN that is not sent yet.
    let (mut script, ours) = {
        let mut script = Script::new();
        let (flow, ours) = script.establish();
        script.net.finish(script.now, flow);
        script.send_tcp(tcp(FIN | ACK, 1001, ours + 1));
        (script, ours)
    };
    while script.net.poll_transmit(script.now).is_some() {}
    script.send_tcp(tcp(ACK, 1002, ours + 1));
    while script.net.poll_transmit(script.now).is_some() {}
    assert!(flow >= flow);
    assert_eq!(script.net.flows(), 0);
}

#[test]
fn writable_comes_after_a_send_that_was_cut_short() {
    let mut script = Script::with(|config| config.send_buffer = 8192);
    script.send_tcp(tcp(SYN, 1000, 0).options(&[2, 4, 5, 0xb4]));
    let flow = script.expect_connect();
    script.net.accept(script.now, flow);
    assert_eq!(script.net.send(script.now, flow, b"before the handshake is over"), 0);
    let ours = script.expect_tcp().seq + 1;
    script.send_tcp(tcp(ACK, 1001, ours));
    assert_eq!(script.event(), Some(NetEvent::Writable { flow }));
    assert_eq!(script.net.send(script.now, flow, &[1; 8192]), 8192);
    for _ in 0..6 {
        script.expect_tcp();
    }
    script.expect_nothing();
    // Room, but nobody asked for it.
    script.send_tcp(tcp(ACK, 1001, ours + 1460));
    assert_eq!(script.event(), None);
    assert_eq!(script.net.send(script.now, flow, &[2; 2000]), 1460);
    script.expect_tcp();
    // Too little of it.
    script.send_tcp(tcp(ACK, 1001, ours + 2920));
    assert_eq!(script.event(), None);
    script.send_tcp(tcp(ACK, 1001, ours + 5840));
    assert_eq!(script.event(), Some(NetEvent::Writable { flow }));
    script.send_tcp(tcp(ACK, 1001, ours + 8192));
    assert_eq!(script.event(), None);
}

#[test]
fn a_syn_flood_is_bounded() {
    let mut script = Script::new();
    let start = Instant::now();
    for number in 0..100_000u32 {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 1, 0).to_bits() + number / 50_000);
        let mut syn = tcp(SYN, number, 0).from(1024 + (number % 50_000) as u16);
        syn.guest.set_ip(address);
        script.send_tcp(syn);
    }
    assert_eq!(script.net.flows(), 1024);
    assert_eq!(script.net.counters().half_open_full, 100_000 - 1024);
    let mut flows = Vec::new();
    while let Some(NetEvent::Connect { flow, .. }) = script.event() {
        flows.push(flow);
    }
    assert_eq!(flows.len(), 1024);
    script.expect_nothing();
    // Accepted, they still count until the handshake is over, and go when the guest never answers.
    for flow in &flows {
        script.net.accept(script.now, *flow);
    }
    script.send_tcp(tcp(SYN, 1, 0));
    assert_eq!(script.event(), None);
    for _ in 0..20 {
        while script.net.poll_transmit(script.now).is_some() {}
        script.pass(2 * SECOND);
    }
    assert_eq!(script.net.flows(), 0, "half a minute is enough for a handshake");
    for flow in flows {
        assert_eq!(script.event(), Some(NetEvent::Reset { flow, cause: ResetCause::Dead }));
    }
    script.send_tcp(tcp(SYN, 1, 0));
    script.expect_connect();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn more_connections_than_allowed_are_refused() {
    let mut script = Script::with(|config| config.max_flows = 3);
    for port in 1..=3 {
        script.send_tcp(tcp(SYN, 1, 0).from(port));
        let flow = script.expect_connect();
        script.net.accept(script.now, flow);
        script.expect_tcp();
    }
    script.send_tcp(tcp(SYN, 1, 0).from(4));
    script.expect_numbers(RST | ACK, 0, 2);
    assert_eq!(script.net.counters().flows_full, 1);
    // One goes, one may come.
    script.send_tcp(tcp(RST | ACK, 2, 0).from(2));
    assert!(matches!(script.event(), Some(NetEvent::Reset { .. })));
    script.send_tcp(tcp(SYN, 1, 0).from(4));
    script.expect_connect();
}

#[test]
fn a_port_scan_finds_what_is_published_and_asks_nobody_else() {
    let mut script = Script::new();
    let mut answers = 0;
    for port in 1..=u16::MAX {
        script.send_tcp(tcp(SYN, 1, 0).to(HOST, port));
        while script.net.poll_transmit(script.now).is_some() {
            answers += 1;
        }
    }
    assert_eq!(answers, 65_534);
    let flow = script.expect_connect();
    assert_eq!(script.event(), None);
    assert_eq!(script.net.flows(), 1);
    // Through every address of the subnet: nothing but rationed errors.
    for host in 0..=u16::MAX {
        let [c, d] = host.to_be_bytes();
        script.send_tcp(tcp(SYN, 1, 0).to(Ipv4Addr::new(198, 18, c, d), PORT));
        while script.net.poll_transmit(script.now).is_some() {}
    }
    assert_eq!(script.event(), None);
    assert_eq!(script.net.counters().connects, 1);
    script.net.refuse(script.now, flow);
}

#[test]
fn connections_and_resets_by_the_hundred_thousand_leave_nothing_behind() {
    let mut script = Script::new();
    for number in 0..100_000u32 {
        let port = 1 + (number % 7) as u16;
        script.send_tcp(tcp(SYN, number, 0).from(port));
        let flow = script.expect_connect();
        if number % 2 == 0 {
            script.net.accept(script.now, flow);
        }
        script.send_tcp(tcp(RST | ACK, number + 1, 0).from(port));
        assert_eq!(script.event(), Some(NetEvent::Reset { flow, cause: ResetCause::Guest }));
    }
    assert_eq!((script.net.flows(), script.net.poll_timeout()), (0, None));
    script.expect_nothing();
}

#[test]
fn events_that_nobody_takes_do_not_grow_without_end() {
    let mut script = Script::with(|config| config.max_flows = 100);
    for number in 0..100_000u32 {
        script.send_tcp(tcp(SYN, number, 0));
        script.send_tcp(tcp(RST, number, 0));
    }
    let count = std::iter::from_fn(|| script.event()).count();
    assert!(count <= 4098, "{count}");
    script.send_tcp(tcp(SYN, 1, 0));
    script.expect_connect();
}

#[test]
fn withdrawing_stops_new_connections_only() {
    let mut script = Script::new();
    script.net.publish(HOST.into(), 80);
    let (flow, ours) = script.establish();
    script.net.withdraw(HOST.into(), PORT);
    script.send_tcp(tcp(SYN, 1, 0).from(4001));
    assert_eq!(script.expect_tcp().flags, RST | ACK);
    script.send_tcp(tcp(ACK, 1001, ours).data(b"still here"));
    assert_eq!(script.read(flow), b"still here");
    script.pass_a_ride();
    script.expect_tcp();
    // Even when nothing at all is published there any more.
    script.net.withdraw(HOST.into(), 80);
    script.send_tcp(tcp(SYN, 1, 0).from(4001));
    assert_eq!(script.expect_tcp().flags, RST | ACK);
    script.send_tcp(tcp(FIN | ACK, 1011, ours).data(b"and here"));
    assert_eq!(script.read(flow), b"and here");
    script.net.finish(script.now, flow);
    script.expect_numbers(FIN | ACK, ours, 1020);
    script.send_tcp(tcp(ACK, 1020, ours + 1));
    assert_eq!(script.net.flows(), 0);
    script.send_tcp(tcp(ACK, 1020, ours + 1));
    assert_eq!(script.expect_icmp(GATEWAY).1, 1);
    // And v6 addresses can be named, though nobody can reach them yet.
    script.net.publish(IpAddr::from([0; 16]), 80);
    script.net.withdraw(IpAddr::from([0; 16]), 80);
    script.net.withdraw(IpAddr::from([0; 16]), 80);
}
