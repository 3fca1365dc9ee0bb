//! Link stages that no capture shows.

use spice_proto::link::{ChannelType, CommonCaps};

use super::script::{Script, full, mess, mini, refusal, reply};
use super::*;

const OURS: CommonCaps = CommonCaps::OURS;
const MAIN: u8 = ChannelType::MAIN.0;
const TUNNEL: u8 = ChannelType::TUNNEL.0;

#[test]
fn one_piece_or_a_byte_at_a_time() {
    let forth = [&mess(MAIN, OURS)[..], &1u32.to_le_bytes(), &[7; 128], &mini(104, &[])].concat();
    let back = [&reply(OURS)[..], &0u32.to_le_bytes(), &mini(107, &[])].concat();
    let expected = [
        "began 40000 5900",
        "client link_mess 2.2",
        "server link_reply",
        "client auth_mechanism 1",
        "client ticket",
        "server link_result 0",
        "linked main Mini B",
        "server agent_connected 0",
        "client attach_channels 0",
        "ended Closed",
    ];
    Script::new().open(true).forth(&forth).back(&back).close().expect(&expected);
    // The other direction first, as a capture may have it.
    let mut script = Script::new();
    script.open(true).back(&back).forth(&forth).close();
    let mut lines = script.lines();
    lines.sort_unstable();
    let mut sorted = expected;
    sorted.sort_unstable();
    assert_eq!(lines, sorted);
    let mut script = Script::new();
    script.open(true);
    for byte in &forth {
        script.forth(&[*byte]);
    }
    for byte in &back {
        script.back(&[*byte]);
    }
    let mut lines = script.close().lines();
    lines.sort_unstable();
    assert_eq!(lines, sorted);
}

#[test]
fn the_mechanism_is_there_only_if_both_select() {
    let none = CommonCaps::MINI_HEADER;
    for (client, server, mechanism) in [(OURS, OURS, true), (OURS, none, false), (none, OURS, false)] {
        let mut script = Script::new();
        script.open(true).forth(&mess(MAIN, client)).back(&reply(server)).lines();
        if mechanism {
            script.forth(&1u32.to_le_bytes()).expect(&["client auth_mechanism 1"]);
        }
        script.forth(&[1; 128]).expect(&["client ticket"]);
        script.back(&[0; 4]).expect(&["server link_result 0", "linked main Mini B"]);
    }
}

#[test]
fn a_client_without_capabilities_gets_full_headers() {
    let mut script = Script::new();
    script
        .open(true)
        .forth(&mess(MAIN, CommonCaps::empty()))
        .back(&reply(OURS))
        .forth(&[0; 128])
        .back(&[0; 4]);
    script.lines();
    script.back(&full(1, 107, &[])).expect(&["server agent_connected 0"]);
}

#[test]
fn refusals_end_the_link_stage() {
    let mut script = Script::new();
    script
        .open(true)
        .forth(&mess(MAIN, OURS))
        .forth(&1u32.to_le_bytes())
        .back(&refusal(LinkError::NeedSecured));
    script.close().expect(&[
        "began 40000 5900",
        "client link_mess 2.2",
        "server link_reply 5",
        "client auth_mechanism 1",
        "ended Closed",
    ]);
    for code in 1u32..=10 {
        let mut script = Script::new();
        script
            .open(true)
            .forth(&mess(MAIN, OURS))
            .back(&reply(OURS))
            .forth(&1u32.to_le_bytes())
            .forth(&[3; 128]);
        script.lines();
        script.back(&code.to_le_bytes()).close();
        script.expect(&[&format!("server link_result {code}"), "ended Closed"]);
    }
}

#[test]
fn an_unknown_mechanism_gets_a_second_reply() {
    let mut script = Script::new();
    script.open(true).forth(&mess(MAIN, OURS)).back(&reply(OURS)).lines();
    script.forth(&9u32.to_le_bytes()).back(&refusal(LinkError::InvalidData)).close();
    script.expect(&["client auth_mechanism 9", "server link_reply 3", "ended Closed"]);
}

#[test]
fn a_server_that_closes_without_a_word_is_no_fault() {
    Script::new().open(true).forth(&mess(42, OURS)).close().expect(&[
        "began 40000 5900",
        "client link_mess 2.2",
        "ended Closed",
    ]);
}

#[test]
fn what_is_no_link_message_is_said() {
    let mut other_version = mess(MAIN, OURS);
    other_version[4] = 3;
    Script::new()
        .open(true)
        .forth(&other_version)
        .back(&refusal(LinkError::VersionMismatch))
        .close()
        .expect(&["began 40000 5900", "client link_mess 3.2", "server link_reply 4", "ended Closed"]);
    let mut too_long = mess(MAIN, OURS);
    too_long[13] = 0xFF;
    Script::new().open(true).forth(&too_long).back(&refusal(LinkError::InvalidData)).close().expect(&[
        "began 40000 5900",
        "client malformed: expected 18..=4096 bytes after the link header, got a size of 65306",
        "server link_reply 3",
        "ended Closed",
    ]);
    let mut many_words = mess(MAIN, OURS);
    many_words[16 + 7] = 0x20;
    let mut script = Script::new();
    let lines = script.open(true).forth(&many_words).back(&refusal(LinkError::InvalidData)).lines();
    assert!(
        lines[1].starts_with("client malformed: the client's link message is malformed: expected"),
        "{lines:?}"
    );
    assert_eq!(lines[2], "server link_reply 3");
    // TLS at the plain port: it is the answer that gives the server away.
    Script::new().open(true).forth(&[0x16, 3, 1, 0, 200, 1]).back(&refusal(LinkError::InvalidMagic)).close().expect(&[
        "began 40000 5900",
        "client malformed: expected a Spice link header starting with \"REDQ\", got bytes [16, 03, 01, 00]",
        "server link_reply 2",
        "ended Closed",
    ]);
}

#[test]
fn a_client_cut_off_in_its_link_message_is_said() {
    Script::new().open(true).forth(&mess(MAIN, OURS)[..20]).close().expect(&[
        "began 40000 5900",
        "client malformed: the client closed within its link message, behind 20 bytes of it",
        "ended Closed",
    ]);
}

#[test]
fn other_protocols_cost_nothing() {
    let mut script = Script::new();
    script.open(true).forth(b"GET / HTTP/1.1\r\n\r\n").back(&[b'x'; 100_000]).expect(&[]);
    assert_eq!(script.held(), 0);
    script.open(true).forth(b"RE").back(b"220 hello").forth(b"ADY").close().expect(&[]);
    assert_eq!(script.held(), 0);
}

#[test]
fn sasl_is_followed_without_its_data() {
    let common = CommonCaps::AUTH_SELECTION | CommonCaps::AUTH_SASL | CommonCaps::MINI_HEADER;
    let counted = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
    let mut script = Script::new();
    script.open(true).forth(&mess(MAIN, common)).back(&reply(common)).lines();
    script.forth(&2u32.to_le_bytes()).back(&counted(b",DIGEST-MD5,"));
    script.forth(&counted(b"DIGEST-MD5")).forth(&counted(b""));
    script.back(&[counted(b"challenge\0"), vec![0]].concat()).forth(&counted(b"response\0"));
    script.expect(&[
        "client auth_mechanism 2",
        "server sasl_mechanisms 16",
        "client sasl_mechanism 14",
        "client sasl_data 4",
        "server sasl_data 15",
        "client sasl_data 13",
    ]);
    // Without a security layer the link result follows in clear.
    script.back(&[counted(b"rspauth\0"), vec![1]].concat()).back(&[0; 8]).forth(&mini(104, &[]));
    script.expect(&[
        "server sasl_data 13",
        "server sasl_result 4",
        "server link_result 0",
        "linked main Mini B",
        "client attach_channels 0",
    ]);
}

#[test]
fn encryption_behind_sasl_is_said_once() {
    let common = CommonCaps::AUTH_SELECTION | CommonCaps::AUTH_SASL | CommonCaps::MINI_HEADER;
    let mut script = Script::new();
    script.open(true).forth(&mess(MAIN, common)).back(&reply(common)).forth(&2u32.to_le_bytes());
    script
        .back(b"\x05\0\0\0PLAIN")
        .forth(b"\x05\0\0\0PLAIN\x02\0\0\0x\0")
        .back(&[0, 0, 0, 0, 1, 0, 0, 0, 0])
        .lines();
    script.back(&[0, 0, 0, 20, 0xAB, 0xCD]).back(&[0x5A; 3000]).forth(&[0x5A; 3000]).close();
    let lines = script.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("SASL's encryption"), "{lines:?}");
}

#[test]
fn sasl_refused() {
    let common = CommonCaps::AUTH_SELECTION | CommonCaps::AUTH_SASL;
    let mut script = Script::new();
    script.open(true).forth(&mess(MAIN, common)).back(&reply(common)).forth(&2u32.to_le_bytes());
    script.back(b"\x05\0\0\0PLAIN").forth(b"\x05\0\0\0PLAIN\x02\0\0\0x\0").lines();
    script.back(b"\x01\0\0\0\x16\0\0\0Authentication failed\0").close();
    script.expect(&["server sasl_result 30", "ended Closed"]);
}

#[test]
fn tunnel_servers_of_2012_speak_full_headers_all_the_same() {
    let init = [20, 0, 0, 8, 0, 0];
    let mut script = Script::new();
    script.linked(TUNNEL, OURS).forth(&full(1, 1, &[0; 4])).expect(&[]);
    script.back(&full(1, 101, &init)[..9]).expect(&[]);
    script.back(&full(1, 101, &init)[9..]);
    script.expect(&["linked tunnel Full B", "client ack_sync 4", "server init 6"]);
    let mut script = Script::new();
    script.linked(TUNNEL, OURS).back(&mini(101, &init)).expect(&["linked tunnel Mini B", "server init 6"]);
    // Nothing ever came: then what was agreed on stands.
    Script::new().linked(TUNNEL, OURS).close().expect(&["linked tunnel Mini B", "ended Closed"]);
}

#[test]
fn a_hole_in_the_link_stage_does_not_hide_the_messages() {
    let init = mini(103, &[0; 32]);
    let mut script = Script::new();
    script
        .open(true)
        .forth(&mess(MAIN, OURS))
        .hole(Way::Back, 202)
        .forth(&1u32.to_le_bytes())
        .forth(&[9; 128]);
    script.back(&[0; 4]).back(&init).close().expect(&[
        "began 40000 5900",
        "client link_mess 2.2",
        "client auth_mechanism 1",
        "client ticket",
        "linked main Mini B",
        "server hole 202+4",
        "server init 32",
        "ended Closed",
    ]);
    let mut script = Script::new();
    script.open(true).forth(&mess(MAIN, OURS)).back(&reply(OURS)).hole(Way::Forth, 132).back(&[0; 4]);
    script.forth(&mini(104, &[])).back(&init).close().expect(&[
        "began 40000 5900",
        "client link_mess 2.2",
        "server link_reply",
        "server link_result 0",
        "linked main Mini B",
        "client hole 132+0",
        "client attach_channels 0",
        "server init 32",
        "ended Closed",
    ]);
}

#[test]
fn one_direction_alone_is_understood() {
    let attach = mini(104, &[]);
    let mut script = Script::new();
    script.open(true).forth(&mess(MAIN, OURS)).forth(&1u32.to_le_bytes()).forth(&[9; 128]).forth(&attach);
    script.forth(&mini(108, &[1, 0, 0, 0])).piece(Piece::Ended { seen: false });
    let expected = [
        "began 40000 5900",
        "client link_mess 2.2",
        "client auth_mechanism 1",
        "client ticket",
        "linked main Mini B",
        "client attach_channels 0",
        "client agent_token 4",
        "ended CaptureOver",
    ];
    script.expect(&expected);
    // Much of it does not wait for the end.
    script.open(true).forth(&mess(MAIN, OURS)).forth(&1u32.to_le_bytes()).forth(&[9; 128]).forth(&attach);
    (0..100).for_each(|_| {
        script.forth(&mini(107, &[1; 2000]));
    });
    let lines = script.lines();
    assert_eq!(lines[..6], expected[..6]);
    assert_eq!(lines[6..], ["client agent_data 2000"; 100]);
    let mut script = Script::new();
    script.open(true).back(&reply(OURS)).back(&[0; 4]).back(&mini(103, &[0; 32])).back(&mini(107, &[]));
    script.piece(Piece::Ended { seen: false }).expect(&[
        "began 40000 5900",
        "server link_reply",
        "server link_result 0",
        "linked main Mini B",
        "server init 32",
        "server agent_connected 0",
        "ended CaptureOver",
    ]);
}
