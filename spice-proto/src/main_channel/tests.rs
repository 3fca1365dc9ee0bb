use proptest::prelude::*;

use super::*;
use crate::testing::{hex, some_bytes, text};

fn server(kind: u16, body: &[u8]) -> Result<Option<MainServerMessage<'_>>, Problem> {
    MainServerMessage::parse(kind, body).map_err(|error| error.problem)
}

const TUNNEL: ChannelEntry = ChannelEntry { channel_type: 7, channel_id: 0 };

fn target() -> MigrateTarget<'static> {
    MigrateTarget { port: 5900, secure_port: 5901, host: b"b.example", cert_subject: b"CN=b" }
}

/// Wire reference 3, each message once.
#[test]
fn messages_are_laid_out_as_the_reference_says() {
    use MainServerMessage as S;
    let init = Init {
        session_id: 0x0403_0201,
        display_channels_hint: 1,
        supported_mouse_modes: MouseModes::all(),
        current_mouse_mode: MouseModes::SERVER,
        agent_connected: false,
        agent_tokens: 10,
        multi_media_time: 5,
        ram_hint: 6,
    };
    let entry = |channel_type, channel_id| ChannelEntry { channel_type, channel_id };
    let bare = MigrateTarget { secure_port: 0, cert_subject: b"", ..target() };
    let uuid = *b"0123456789abcdef";
    let from_server = [
        (
            101,
            "0c17 0d17 0a000000 14000000 05000000 1e000000 622e6578616d706c6500 434e3d6200",
            S::MigrateBegin(target()),
        ),
        (101, "0c17 0000 0a000000 14000000 00000000 00000000 622e6578616d706c6500", S::MigrateBegin(bare)),
        (102, "", S::MigrateCancel),
        (103, "01020304 01000000 03000000 01000000 00000000 0a000000 05000000 06000000", S::Init(init)),
        (
            104,
            "03000000 0200 0400 0300",
            S::ChannelsList { channels: vec![entry(2, 0), entry(4, 0), entry(3, 0)] },
        ),
        (105, "0300 0200", S::MouseMode { supported: MouseModes::all(), current: MouseModes::CLIENT }),
        (106, "01000000", S::MultiMediaTime { time: 1 }),
        (107, "", S::AgentConnected),
        (108, "01000000", S::AgentDisconnected { error: 1 }),
        (109, "616263", S::AgentData { data: b"abc" }),
        (110, "01000000", S::AgentToken { tokens: 1 }),
        (
            111,
            "0c17 0000 0a000000 14000000 00000000 00000000 622e6578616d706c6500",
            S::MigrateSwitchHost(bare),
        ),
        (112, "", S::MigrateEnd),
        (113, "03000000 766d00", S::Name { name: b"vm" }),
        (114, "30313233343536373839616263646566", S::Uuid { uuid }),
        (115, "0a000000", S::AgentConnectedTokens { tokens: 10 }),
        (
            116,
            "0c17 0d17 0a000000 18000000 05000000 22000000 01000000 622e6578616d706c6500 434e3d6200",
            S::MigrateBeginSeamless { target: target(), source_version: 1 },
        ),
        (117, "", S::MigrateDstSeamlessAck),
        (118, "", S::MigrateDstSeamlessNack),
    ];
    for (kind, bytes, message) in from_server {
        let bytes = hex(bytes);
        assert_eq!(server(kind, &bytes), Ok(Some(message.clone())));
        assert_eq!((message.kind(), message.body_len()), (kind, bytes.len()));
        let mut out = Vec::new();
        message.write_body(&mut out);
        assert_eq!(out, bytes, "{}", message.name());
    }
    use MainClientMessage as C;
    let from_client = [
        (101, "0100000000000000", C::ClientInfo { cache_size: 1 }),
        (102, "", C::MigrateConnected),
        (103, "", C::MigrateConnectError),
        (104, "", C::AttachChannels),
        (105, "0200", C::MouseModeRequest { mode: MouseModes::CLIENT }),
        (106, "0a000000", C::AgentStart { tokens: 10 }),
        (107, "616263", C::AgentData { data: b"abc" }),
        (108, "01000000", C::AgentToken { tokens: 1 }),
        (109, "", C::MigrateEnd),
        (110, "01000000", C::MigrateDstDoSeamless { source_version: 1 }),
        (111, "", C::MigrateConnectedSeamless),
        (112, "616263", C::QualityIndicator { data: b"abc" }),
    ];
    for (kind, bytes, message) in from_client {
        let bytes = hex(bytes);
        assert_eq!(MainClientMessage::parse(kind, &bytes), Ok(Some(message)));
        assert_eq!((message.kind(), message.body_len()), (kind, bytes.len()));
        let mut out = Vec::new();
        message.write_body(&mut out);
        assert_eq!(out, bytes, "{}", message.name());
    }
}

#[test]
fn other_numbers_are_no_messages_of_main() {
    for kind in (0..=100).chain([119, u16::MAX]) {
        assert_eq!(server(kind, b""), Ok(None));
        assert_eq!(MainClientMessage::parse(kind, b""), Ok(None));
    }
    assert_eq!(MainClientMessage::parse(113, b""), Ok(None));
}

#[test]
fn bodies_of_another_length_are_refused() {
    let zeros = [0; 60];
    let empty = [102, 107, 112, 117, 118].map(|kind| (kind, 0));
    let four = [104, 106, 108, 110, 113, 115].map(|kind| (kind, 4));
    let others = [(103, 32), (105, 4), (114, 16)];
    for length in 0..zeros.len() {
        let body = &zeros[..length];
        for (kind, right) in empty.into_iter().chain(four).chain(others) {
            assert_eq!(server(kind, body).is_ok(), length == right, "{kind} with {length} bytes");
        }
        let of_client = [
            (101, 8),
            (102, 0),
            (103, 0),
            (104, 0),
            (105, 2),
            (106, 4),
            (108, 4),
            (109, 0),
            (110, 4),
            (111, 0),
        ];
        for (kind, right) in of_client {
            let found = MainClientMessage::parse(kind, body);
            assert_eq!(found.is_ok(), length == right, "{kind} with {length} bytes");
        }
    }
}

#[test]
fn a_list_of_channels_is_as_long_as_it_says() {
    let list = |count: u32, entries: usize| {
        let mut body = count.to_le_bytes().to_vec();
        body.resize(4 + 2 * entries, 1);
        body
    };
    for count in [0, 1, 255, 65536] {
        let entries = usize::try_from(count).unwrap();
        assert!(server(104, &list(count, entries)).is_ok(), "{count}");
        assert!(server(104, &list(count, entries + 1)).is_err(), "{count}, one more");
        if let Some(fewer) = entries.checked_sub(1) {
            assert!(server(104, &list(count, fewer)).is_err(), "{count}, one less");
        }
    }
    assert_eq!(u32::try_from(list(65536, MAX_CHANNELS).len()), Ok(MAX_CHANNELS_LIST));
    for count in [65537, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let problem = Problem::TooLong { field: "list", got: usize::try_from(count).unwrap(), limit: 65536 };
        assert_eq!(server(104, &list(count, 3)), Err(problem.clone()));
        assert_eq!(add_channel(&list(count, 3), TUNNEL).unwrap_err().problem, problem);
    }
}

#[test]
fn the_tunnel_is_added_behind_what_the_server_lists() {
    let added = |body: &str| add_channel(&hex(body), TUNNEL).map(Cow::into_owned);
    assert_eq!(added("00000000"), Ok(hex("01000000 0700")));
    assert_eq!(added("03000000 0200 0400 0300"), Ok(hex("04000000 0200 0400 0300 0700")));
    // Another tunnel is not ours.
    assert_eq!(added("01000000 0701"), Ok(hex("02000000 0701 0700")));
    let there = hex("02000000 0700 0300");
    assert!(matches!(add_channel(&there, TUNNEL), Ok(Cow::Borrowed(body)) if body == there));
    assert!(added("01000000").is_err());
    assert!(added("01000000 0200 04").is_err());
    assert!(added("").is_err());
}

#[test]
fn hostile_targets_are_refused() {
    let cases = [
        ("no host", "0000 0000 00000000 14000000 00000000 00000000 00"),
        ("a host without NUL", "0000 0000 01000000 14000000 00000000 00000000 61"),
        ("a host that ends early", "0000 0000 03000000 14000000 00000000 00000000 610000"),
        ("a host at 0", "0000 0000 01000000 00000000 00000000 00000000 00"),
        ("a host in the fixed part", "0000 0000 01000000 13000000 00000000 00000000 00"),
        ("a host past the end", "0000 0000 01000000 15000000 00000000 00000000 00"),
        ("a host of 2^32-1 bytes", "0000 0000 ffffffff 14000000 00000000 00000000 00"),
        ("a host at 2^32-1", "0000 0000 01000000 ffffffff 00000000 00000000 00"),
        ("both wrap", "0000 0000 ffffffff ffffffff 00000000 00000000 00"),
        ("a gap", "0000 0000 01000000 15000000 00000000 00000000 ff00"),
        ("a byte behind", "0000 0000 01000000 14000000 00000000 00000000 00ff"),
        ("a subject past the end", "0000 0000 01000000 14000000 01000000 15000000 00"),
        ("a subject that is too long", "0000 0000 01000000 14000000 02000000 15000000 0000"),
        ("a cut fixed part", "0000 0000 01000000 14000000 00000000 000000"),
    ];
    for (what, body) in cases {
        for kind in [101, 111] {
            assert!(server(kind, &hex(body)).is_err(), "{what}");
        }
    }
    // The seamless form has 4 bytes more before its strings.
    assert!(server(116, &hex("0000 0000 01000000 14000000 00000000 00000000 00")).is_err());
    assert!(server(116, &hex("0000 0000 01000000 14000000 00000000 00000000 00000000 00")).is_err());
}

#[test]
fn a_name_stays_in_its_body() {
    assert_eq!(server(113, &hex("00000000")), Ok(Some(MainServerMessage::Name { name: b"" })));
    assert_eq!(server(113, &hex("02000000 766d")), Ok(Some(MainServerMessage::Name { name: b"vm" })));
    for body in ["03000000 766d", "01000000 766d", "ffffffff 766d", "0000"] {
        assert!(server(113, &hex(body)).is_err(), "{body}");
    }
}

fn channels() -> impl Strategy<Value = Vec<ChannelEntry>> {
    let entry = (any::<u8>(), any::<u8>())
        .prop_map(|(channel_type, channel_id)| ChannelEntry { channel_type, channel_id });
    prop::collection::vec(entry, 0..300)
}

proptest! {
    #[test]
    fn every_message_survives_the_wire(
        numbers in any::<[u32; 8]>(),
        (port, secure_port, modes) in any::<(u16, u16, u16)>(),
        cache_size in any::<u64>(),
        uuid in any::<[u8; 16]>(),
        data in prop::collection::vec(any::<u8>(), 0..300),
        channels in channels(),
        (host, cert_subject, name) in (text(300), text(300), text(300)),
    ) {
        let (data, name) = (&data[..], &name[..]);
        let target = MigrateTarget { port, secure_port, host: &host, cert_subject: &cert_subject };
        let [number, hint, supported, current, agent_tokens, multi_media_time, ram_hint, agent] = numbers;
        let init = Init {
            session_id: number,
            display_channels_hint: hint,
            supported_mouse_modes: MouseModes::from_bits_retain(supported),
            current_mouse_mode: MouseModes::from_bits_retain(current),
            agent_connected: agent % 2 == 0,
            agent_tokens,
            multi_media_time,
            ram_hint,
        };
        let mode = MouseModes::from_bits_retain(u32::from(modes));
        let from_server = [
            MainServerMessage::MigrateBegin(target),
            MainServerMessage::MigrateCancel,
            MainServerMessage::Init(init),
            MainServerMessage::ChannelsList { channels },
            MainServerMessage::MouseMode { supported: MouseModes::all(), current: mode },
            MainServerMessage::MultiMediaTime { time: number },
            MainServerMessage::AgentConnected,
            MainServerMessage::AgentDisconnected { error: number },
            MainServerMessage::AgentData { data },
            MainServerMessage::AgentToken { tokens: number },
            MainServerMessage::MigrateSwitchHost(target),
            MainServerMessage::MigrateEnd,
            MainServerMessage::Name { name },
            MainServerMessage::Uuid { uuid },
            MainServerMessage::AgentConnectedTokens { tokens: number },
            MainServerMessage::MigrateBeginSeamless { target, source_version: number },
            MainServerMessage::MigrateDstSeamlessAck,
            MainServerMessage::MigrateDstSeamlessNack,
        ];
        for message in from_server {
            let mut out = b"before".to_vec();
            message.write_body(&mut out);
            prop_assert_eq!(out.len(), 6 + message.body_len());
            prop_assert_eq!(MainServerMessage::parse(message.kind(), &out[6..]), Ok(Some(message)));
        }
        let from_client = [
            MainClientMessage::ClientInfo { cache_size },
            MainClientMessage::MigrateConnected,
            MainClientMessage::MigrateConnectError,
            MainClientMessage::AttachChannels,
            MainClientMessage::MouseModeRequest { mode },
            MainClientMessage::AgentStart { tokens: number },
            MainClientMessage::AgentData { data },
            MainClientMessage::AgentToken { tokens: number },
            MainClientMessage::MigrateEnd,
            MainClientMessage::MigrateDstDoSeamless { source_version: number },
            MainClientMessage::MigrateConnectedSeamless,
            MainClientMessage::QualityIndicator { data },
        ];
        for message in from_client {
            let mut out = b"before".to_vec();
            message.write_body(&mut out);
            prop_assert_eq!(out.len(), 6 + message.body_len());
            prop_assert_eq!(MainClientMessage::parse(message.kind(), &out[6..]), Ok(Some(message)));
        }
    }

    #[test]
    fn adding_a_channel_keeps_what_was_listed(channels in channels(), new in any::<(u8, u8)>()) {
        let entry = ChannelEntry { channel_type: new.0, channel_id: new.1 };
        let mut body = Vec::new();
        MainServerMessage::ChannelsList { channels: channels.clone() }.write_body(&mut body);
        let added = add_channel(&body, entry).unwrap().into_owned();
        let mut expected = channels;
        if !expected.contains(&entry) {
            expected.push(entry);
        }
        let list = MainServerMessage::ChannelsList { channels: expected };
        prop_assert_eq!(MainServerMessage::parse(CHANNELS_LIST, &added), Ok(Some(list)));
        prop_assert_eq!(&add_channel(&added, entry).unwrap()[..], &added[..]);
    }

    #[test]
    fn any_bytes_parse_or_are_refused(kind in 100_u16..120, body in some_bytes()) {
        if let Ok(Some(message)) = MainServerMessage::parse(kind, &body) {
            let mut out = Vec::new();
            message.write_body(&mut out);
            prop_assert_eq!(MainServerMessage::parse(kind, &out), Ok(Some(message)));
        }
        if let Ok(Some(message)) = MainClientMessage::parse(kind, &body) {
            let mut out = Vec::new();
            message.write_body(&mut out);
            prop_assert_eq!(out, &body[..]);
        }
        let _ = add_channel(&body, TUNNEL);
    }
}
