//! Messages that no capture shows.

use spice_proto::link::{ChannelType, CommonCaps};

use super::script::{Script, full, mini};
use super::*;

const OURS: CommonCaps = CommonCaps::OURS;
const MAIN: u8 = ChannelType::MAIN.0;
const DISPLAY: u8 = ChannelType::DISPLAY.0;
const TUNNEL: u8 = ChannelType::TUNNEL.0;

/// A tunnel whose server has said INIT.
fn tunnel() -> Script {
    let mut script = Script::new();
    script.linked(TUNNEL, OURS).back(&mini(101, &[20, 0, 0, 8, 0, 0])).lines();
    script
}

#[test]
fn unknown_numbers_are_messages_without_a_name() {
    let mut script = Script::new();
    script.linked(MAIN, OURS).back(&mini(150, b"abc")).back(&mini(107, &[]));
    script.expect(&["server unknown 3 opaque 3", "server agent_connected 0"]);
}

#[test]
fn a_malformed_body_does_not_end_it() {
    let mut script = tunnel();
    script.back(&mini(103, &[0; 9])).back(&mini(104, &[1, 0]));
    script.expect(&[
        "server malformed: peer sent a malformed socket_open: the field at byte 6 runs past the end, the body has only 9 bytes",
        "server socket_fin 2",
    ]);
}

#[test]
fn the_padded_layout_is_recognised_by_its_sizes() {
    for (kind, size) in [(101, 8), (102, 16), (103, 12), (108, 8)] {
        let mut script = tunnel();
        let mut body = vec![0; size];
        body[4] = 1;
        let lines = script.back(&mini(kind, &body)).lines();
        assert!(lines[0].contains("malformed") && lines[0].contains("0.5.2 to 0.12.4"), "{lines:?}");
    }
    for kind in [103, 109] {
        let lines = tunnel().forth(&mini(kind, &[0; 8])).lines();
        assert!(lines[0].contains("malformed") && lines[0].contains("0.5.2 to 0.12.4"), "{lines:?}");
    }
    let lines = tunnel().back(&mini(108, &[0; 7])).lines();
    assert!(lines[0].contains("malformed") && !lines[0].contains("0.12.4"), "{lines:?}");
}

#[test]
fn an_insane_size_is_left_behind() {
    let data = mini(106, &[5; 100]);
    let mut damaged = data.clone();
    damaged[5] = 0x40;
    let token = mini(108, &[1, 0, 20, 0, 0, 0]);
    let mut script = tunnel();
    script.back(&damaged).back(&token).back(&data).expect(&[
        "server malformed: the server announced a message of type 106 with a body of 1073741924 bytes, expected at most 1048578",
        "server hole 0+105",
        "server socket_token 6",
        "server socket_data 100",
    ]);
    let mut script = tunnel();
    script.back(&[&[0xFF, 0xFF, 0, 0, 0, 0], &token[..], &data, &token].concat()).expect(&[
        "server malformed: expected a message header from the server, got one of type 65535, which no channel has",
        "server hole 0+5",
        "server socket_token 6",
        "server socket_data 100",
        "server socket_token 6",
    ]);
}

#[test]
fn a_size_that_is_a_little_wrong_costs_few_messages() {
    let none = CommonCaps::empty();
    let data = |serial| full(serial, 106, &[7; 100]);
    for wrong in [90u8, 99, 101, 118, 200] {
        let mut damaged = data(2);
        damaged[10] = wrong;
        let mut script = Script::new();
        script.linked(TUNNEL, none).back(&full(1, 101, &[20, 0, 0, 8, 0, 0])).back(&damaged);
        (3..20).for_each(|serial| {
            script.back(&data(serial));
        });
        let lines = script.lines();
        assert!(lines.iter().any(|line| line.contains("malformed")), "{wrong}: {lines:?}");
        let whole = lines.iter().filter(|line| *line == "server socket_data 100").count();
        assert!(whole >= 14, "{wrong}: {lines:?}");
    }
    // Serials that stand still are odd, and nothing more.
    let mut script = Script::new();
    script.linked(TUNNEL, none).back(&data(9)).back(&data(0)).back(&data(0));
    script.expect(&["server socket_data 100"; 3]);
}

#[test]
fn long_bodies_are_kept_only_where_they_are_parsed() {
    let mut script = Script::new();
    script.linked(MAIN, OURS).back(&mini(4, &[0; 12])[..6]);
    script.lines();
    script.back(&[0; 12]).expect(&["server ping 12"]);
    let ping = mini(4, &vec![0; 256_012]);
    ping.chunks(1448).for_each(|piece| {
        script.back(piece);
    });
    script.expect(&["server ping 256012"]);
    // The buffer for it was given back.
    assert!(script.held() < 70_000, "{}", script.held());

    let mut script = Script::new();
    let image = mini(304, &vec![1; 3_000_000]);
    script.linked(DISPLAY, OURS);
    for piece in image.chunks(1448) {
        script.back(piece);
        assert!(script.held() < 10_000, "{}", script.held());
    }
    script.back(&mini(102, &[])).expect(&["server draw_copy 3000000 opaque 4096", "server mark 0 opaque 0"]);
    script.back(&mini(304, &[1; 30_000])).expect(&["server draw_copy 30000 opaque 30000"]);
}

#[test]
fn memory_is_bounded_over_all_connections() {
    let mut script = Script::with(Options { port: None, memory: 1_000_000 });
    let ping = mini(4, &vec![0; 300_000]);
    for _ in 0..20 {
        script.linked(MAIN, OURS);
        ping[..250_000].chunks(1448).for_each(|piece| {
            script.back(piece);
        });
        assert!(script.held() <= 1_000_000, "{}", script.held());
    }
    // The last one had no room; its messages are followed all the same.
    script.back(&ping[250_000..]).back(&mini(107, &[]));
    let lines = script.lines();
    assert!(lines[0].starts_with("server ping 300000 opaque"), "{lines:?}");
    assert_eq!(lines[1], "server agent_connected 0");
}

#[test]
fn closing_within_a_message_is_a_fault_and_the_end_of_the_capture_is_not() {
    let data = mini(106, &[5; 100]);
    tunnel()
        .back(&data[..50])
        .close()
        .expect(&["server malformed: the server closed within a message, 44 of 100 bytes", "ended Closed"]);
    tunnel().back(&data[..5]).close().expect(&[
        "server malformed: the server closed within a message header, 5 of 6 bytes",
        "ended Closed",
    ]);
    tunnel().back(&data[..50]).piece(Piece::Ended { seen: false }).expect(&["ended CaptureOver"]);
    tunnel()
        .back(&data[..50])
        .piece(Piece::Reset { way: Way::Back })
        .piece(Piece::Ended { seen: true })
        .expect(&["ended Reset(Server)"]);
}

#[test]
fn a_hole_within_a_body_costs_that_message() {
    let data = mini(106, &[5; 100]);
    let mut script = tunnel();
    script.back(&data[..20]).hole(Way::Back, 60).back(&data[80..]).back(&data);
    script.expect(&["server hole 60+0", "server socket_data 100 incomplete", "server socket_data 100"]);
    // Right up to the end of it.
    script.back(&data[..20]).hole(Way::Back, 86).back(&data);
    script.expect(&["server hole 86+0", "server socket_data 100 incomplete", "server socket_data 100"]);
}

#[test]
fn a_hole_over_several_messages_ends_at_the_next_one() {
    let data = mini(106, &[5; 100]);
    let mut script = tunnel();
    script.back(&data[..20]).hole(Way::Back, 106).back(&data[20..]).expect(&[]);
    script.back(&mini(104, &[1, 0]));
    script.expect(&["server hole 106+86", "server socket_data 100 incomplete", "server socket_fin 2"]);
    // Nothing more of it comes.
    script.hole(Way::Back, 10).hole(Way::Back, 7).back(&[9; 30]).close();
    script.expect(&["server hole 17+30 for good", "ended Closed"]);
}

#[test]
fn an_image_behind_a_hole_is_passed_over_in_little_memory() {
    let mut script = Script::new();
    let mut random = Random(77);
    let mut rest: Vec<u8> = (0..1_000_000).map(|_| random.below(256) as u8).collect();
    rest.extend(mini(102, &[]));
    rest.extend(mini(304, &[3; 200_000]));
    rest.extend(mini(317, &[1, 0, 1, 0]));
    rest.extend(mini(315, &[0; 4]));
    script.linked(DISPLAY, OURS).back(&mini(102, &[])).hole(Way::Back, 1 << 20).lines();
    for piece in rest.chunks(1448) {
        script.back(piece);
        assert!(script.held() < 300_000, "{}", script.held());
    }
    let lines = script.lines();
    // The messages between had gone when there was enough to go by.
    let skipped = 1_000_000 + 6 + 200_006;
    assert_eq!(
        lines,
        [
            format!("server hole 1048576+{skipped}"),
            "server monitors_config 4 opaque 4".to_owned(),
            "server surface_destroy 4 opaque 4".to_owned(),
        ]
    );
}

#[test]
fn late_connections_are_understood_on_strange_ports_if_there_is_enough() {
    let mut script = Script::new();
    let data = |n: u8| mini(106, &[n; 100]);
    script.open_ports(5900, 41000, false);
    script.back(&mini(103, &[1, 0, 60, 0, 0, 0])).expect(&[]);
    script.forth(&data(1)[30..]).forth(&data(2)).forth(&data(3)).forth(&data(4)).expect(&[]);
    script.forth(&mini(108, &[1, 0, 20, 0, 0, 0])).forth(&mini(104, &[1, 0]));
    let lines = script.lines();
    assert_eq!(lines[0], "began 41000 5900 late");
    assert_eq!(lines[1], "linked tunnel Mini B");
    assert_eq!(lines[2], "server hole ?+76");
    assert_eq!(
        lines[3..],
        [
            "server socket_data 100",
            "server socket_data 100",
            "server socket_data 100",
            "server socket_token 6",
            "server socket_fin 2",
        ]
    );
    script.back(&mini(105, &[1, 0])).close();
    script.expect(&["client hole ?+0", "client socket_open_ack 6", "client socket_fin 2", "ended Closed"]);
}

#[test]
fn late_connections_are_understood_at_once_where_spice_is_expected() {
    let mut script = Script::with(Options { port: Some(5900), ..Options::default() });
    script.open_ports(5900, 41000, false).forth(&full(77, 104, &[1, 0, 0, 0, 7, 0])).expect(&[
        "began 41000 5900 late",
        "linked main Full B",
        "server hole ?+0",
        "server channels_list 6",
    ]);
    // What stays unread is said.
    script.open_ports(41001, 5900, false).back(&[0xEE; 5000]).close().expect(&[
        "began 41001 5900 late",
        "server hole ?+5000 for good",
        "ended Closed",
    ]);
}

#[test]
fn strangers_are_given_up_soon() {
    let mut script = Script::new();
    let mut random = Random(5);
    script.open_ports(41000, 443, false);
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..1448).map(|_| random.below(256) as u8).collect();
        script.forth(&bytes).back(&bytes);
    }
    script.expect(&[]);
    assert_eq!(script.held(), 0);
}
