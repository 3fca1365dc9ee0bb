//! Whole captures of programs that are not ours. The numbers were counted by two other decoders: a few lines that
//! only follow headers, and tshark, where it does not lose step (it does behind the first scan code and behind the tunnel
//! client's first message with a body).

use super::*;

fn counts(name: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    dissect(
        &mut Dissector::new(Options::default()),
        &events(&packets(name)),
        || usize::MAX,
        |item| {
            if let Some(label) = label(&item) {
                *counts.entry(label).or_default() += 1;
            }
        },
    );
    counts
}

/// Compares with lines of a channel, a sender, and names with their numbers.
fn expect(name: &str, expected: &str) {
    let mut all = BTreeMap::new();
    for line in expected.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (who, messages) = line.split_once(':').unwrap();
        for message in messages.split_whitespace() {
            let (name, number) = message.split_once('=').unwrap_or((message, "1"));
            all.insert(format!("{who} {name}"), number.parse().unwrap());
        }
    }
    assert_eq!(counts(name), all, "{name}");
}

#[test]
fn every_message_of_a_stock_viewer_is_seen() {
    expect(
        "spice-gtk-session.pcap",
        "main client: link_mess auth_mechanism ticket attach_channels
         main server: link_reply link_result init name uuid channels_list notify
         display client: link_mess auth_mechanism ticket init ack_sync ack=3
         display server: link_reply link_result set_ack inval_all_palettes surface_create draw_copy=59 monitors_config=2 mark
         inputs client: link_mess auth_mechanism ticket key_modifiers key_scancode=6 mouse_position mouse_release
         inputs server: link_reply link_result init key_modifiers
         cursor client: link_mess auth_mechanism ticket ack_sync
         cursor server: link_reply link_result set_ack init",
    );
    expect(
        "rust-client-session.pcap",
        "main client: link_mess auth_mechanism ticket attach_channels
         main server: link_reply link_result init channels_list notify
         inputs client: link_mess auth_mechanism ticket
         inputs server: link_reply link_result init",
    );
}

#[test]
fn a_refused_ticket_is_followed_to_its_end() {
    expect(
        "wrong-ticket.pcap",
        "main client: link_mess auth_mechanism ticket
         main server: link_reply link_result",
    );
}

#[test]
fn every_message_of_the_historical_tunnels_is_seen() {
    expect(
        "tunnel-v1-pair.pcap",
        "main client: link_mess ticket attach_channels pong=3
         main server: link_reply link_result init ping=3 channels_list notify
         inputs client: link_mess ticket key_modifiers
         inputs server: link_reply link_result init
         tunnel client: link_mess ticket ack_sync ack=25 service_add=8 socket_open_ack=11 socket_open_nack socket_fin=2 socket_closed=10 socket_closed_ack socket_data=230 socket_token=22
         tunnel server: link_reply link_result set_ack init service_ip_map=8 socket_open=12 socket_fin=9 socket_close socket_data=473 socket_closed_ack=10 socket_token=5",
    );
    expect(
        "tunnel-v2-pair.pcap",
        "main client: link_mess ticket attach_channels pong=3
         main server: link_reply link_result init ping=3 channels_list notify
         inputs client: link_mess ticket
         inputs server: link_reply link_result init
         tunnel client: link_mess ticket ack_sync ack=27 service_add=8 socket_open_ack=11 socket_open_nack socket_fin=2 socket_closed=10 socket_closed_ack socket_data=247 socket_token=23
         tunnel server: link_reply link_result set_ack init service_ip_map=8 socket_open=12 socket_fin=9 socket_close socket_data=501 socket_closed_ack=10 socket_token=8",
    );
}

#[test]
fn the_link_version_tells_the_layout() {
    for (name, layout) in TUNNELS.into_iter().zip([Layout::A, Layout::B]) {
        let mut terms = Vec::new();
        let mut added = 0;
        dissect(
            &mut Dissector::new(Options::default()),
            &events(&packets(name)),
            || usize::MAX,
            |item| {
                if let What::Linked(found) = item.what {
                    terms.push((found.header, found.layout));
                } else if let What::Message(message) = item.what
                    && let Body::TunnelClient(ClientMessage::ServiceAdd(add)) = message.body
                {
                    assert!((7001..=7009).contains(&add.port), "{add:?}");
                    added += 1;
                }
            },
        );
        assert_eq!(terms, [(HeaderForm::Full, layout); 3]);
        assert_eq!(added, 8);
    }
}

#[test]
fn the_guests_own_traffic_is_not_spice() {
    for name in ["tunnel-v1-pair.guest.pcap", "tunnel-v2-pair.guest.pcap"] {
        let mut dissector = Dissector::new(Options::default());
        dissect(&mut dissector, &events(&packets(name)), || usize::MAX, |item| panic!("{item:?}"));
    }
}

#[test]
fn pieces_of_any_length_say_the_same() {
    for name in STOCK.into_iter().chain(TUNNELS) {
        let events = events(&packets(name));
        let whole = texts(&events, || usize::MAX);
        let mut random = Random(0x5EED);
        assert!(texts(&events, || 1) == whole, "{name}, byte by byte");
        for most in [3, 40, 5000] {
            assert!(texts(&events, || 1 + random.below(most)) == whole, "{name}, up to {most}");
        }
    }
}

#[test]
fn the_port_limits_what_is_looked_at() {
    let events = events(&packets("rust-client-session.pcap"));
    for (port, connections) in [(None, 2), (Some(6316), 2), (Some(6317), 0), (Some(39922), 0)] {
        let mut began = 0;
        let mut dissector = Dissector::new(Options { port, ..Options::default() });
        dissect(
            &mut dissector,
            &events,
            || usize::MAX,
            |item| {
                began += u32::from(matches!(item.what, What::Began { .. }));
            },
        );
        assert_eq!(began, connections, "{port:?}");
    }
}
