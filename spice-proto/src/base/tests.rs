use proptest::prelude::*;

use super::*;
use crate::error::Problem;
use crate::testing::{hex, some_bytes};

fn server(kind: u16, body: &[u8]) -> Result<Option<BaseServerMessage<'_>>, Problem> {
    BaseServerMessage::parse(kind, body).map_err(|error| error.problem)
}

fn client(kind: u16, body: &[u8]) -> Result<Option<BaseClientMessage<'_>>, Problem> {
    BaseClientMessage::parse(kind, body).map_err(|error| error.problem)
}

/// Wire reference 2.4, each message once.
#[test]
fn messages_are_laid_out_as_the_reference_says() {
    use BaseServerMessage as S;
    let bye = Disconnecting { time_stamp: 0x0102_0304_0506_0708, reason: 7 };
    let notify = Notify {
        time_stamp: 1,
        severity: Severity::Warn,
        visibility: Visibility::High,
        what: 0,
        message: b"keyboard channel is insecure",
    };
    let wait = Wait { channel_type: 2, channel_id: 1, serial: 0x1122 };
    let from_server = [
        (1, "03000000", S::Migrate { flags: MigrateFlags::all() }),
        (2, "646174", S::MigrateData { data: b"dat" }),
        (3, "01000000 14000000", S::SetAck { generation: 1, window: 20 }),
        (4, "03000000 0807060504030201", S::Ping { id: 3, timestamp: 0x0102_0304_0506_0708, padding: b"" }),
        (
            4,
            "03000000 0807060504030201 0000",
            S::Ping { id: 3, timestamp: 0x0102_0304_0506_0708, padding: b"\0\0" },
        ),
        (5, "01 02 01 2211000000000000", S::WaitForChannels { waits: vec![wait] }),
        (5, "00", S::WaitForChannels { waits: vec![] }),
        (6, "0807060504030201 07000000", S::Disconnecting(bye)),
        // Seen live: 53 bytes for 28 of text.
        (
            7,
            "0100000000000000 01000000 02000000 00000000 1c000000
             6b6579626f617264206368616e6e656c20697320696e736563757265 00",
            S::Notify(notify),
        ),
        (8, "0100 06000000 0500 01000000 00", S::List { body: b"\x01\0\x06\0\0\0\x05\0\x01\0\0\0\0" }),
    ];
    for (kind, bytes, message) in from_server {
        let bytes = hex(bytes);
        assert_eq!(server(kind, &bytes), Ok(Some(message.clone())));
        assert_eq!((message.kind(), message.body_len()), (kind, bytes.len()));
        let mut out = Vec::new();
        message.write_body(&mut out);
        assert_eq!(out, bytes, "{}", message.name());
    }
    use BaseClientMessage as C;
    let from_client = [
        (1, "01000000", C::AckSync { generation: 1 }),
        (2, "", C::Ack),
        (3, "03000000 0807060504030201", C::Pong { id: 3, timestamp: 0x0102_0304_0506_0708 }),
        (4, "", C::MigrateFlushMark),
        (5, "646174", C::MigrateData { data: b"dat" }),
        (6, "0807060504030201 07000000", C::Disconnecting(bye)),
    ];
    for (kind, bytes, message) in from_client {
        let bytes = hex(bytes);
        assert_eq!(client(kind, &bytes), Ok(Some(message)));
        assert_eq!((message.kind(), message.body_len()), (kind, bytes.len()));
        let mut out = Vec::new();
        message.write_body(&mut out);
        assert_eq!(out, bytes, "{}", message.name());
    }
}

#[test]
fn other_numbers_are_no_base_messages() {
    for kind in [0].into_iter().chain(9..=101).chain([u16::MAX]) {
        assert_eq!(server(kind, b""), Ok(None));
    }
    for kind in [0].into_iter().chain(7..=101).chain([u16::MAX]) {
        assert_eq!(client(kind, b""), Ok(None));
    }
}

#[test]
fn bodies_of_another_length_are_refused() {
    let zeros = [0; 30];
    for length in 0..zeros.len() {
        let body = &zeros[..length];
        for (kind, right) in [(1, 4), (3, 8), (6, 12)] {
            assert_eq!(server(kind, body).is_ok(), length == right, "{kind} with {length} bytes");
        }
        assert_eq!(server(4, body).is_ok(), length >= 12, "ping with {length} bytes");
        for (kind, right) in [(1, 4), (2, 0), (3, 12), (4, 0), (6, 12)] {
            assert_eq!(client(kind, body).is_ok(), length == right, "{kind} with {length} bytes");
        }
    }
}

#[test]
fn the_whole_range_of_a_window_parses() {
    for window in [0, 1, u32::MAX] {
        let body = [0_u32.to_le_bytes(), window.to_le_bytes()].concat();
        assert_eq!(server(3, &body), Ok(Some(BaseServerMessage::SetAck { generation: 0, window })));
    }
}

#[test]
fn a_ping_may_carry_much() {
    let body = vec![0; 12 + (16 << 20)];
    let Ok(Some(BaseServerMessage::Ping { padding, .. })) = server(4, &body) else { panic!() };
    assert_eq!(padding.len(), 16 << 20);
}

#[test]
fn hostile_messages_are_refused() {
    let notify = |severity: u32, visibility: u32, length: u32, text: &str| {
        let mut body = vec![0; 8];
        for number in [severity, visibility, 0, length] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(text.as_bytes());
        body
    };
    assert!(server(7, &notify(2, 2, 4, "text")).is_ok());
    assert!(server(7, &notify(2, 2, 4, "text\0")).is_ok());
    assert!(server(7, &notify(0, 0, 0, "")).is_ok());
    let wait = |count: u8, entries: usize| {
        let mut body = vec![count];
        body.resize(1 + 10 * entries, 0);
        body
    };
    assert!(server(5, &wait(255, 255)).is_ok());
    let cases = [
        ("flags 4", 1, vec![4, 0, 0, 0]),
        ("all flags", 1, vec![255; 4]),
        ("no count of waits", 5, vec![]),
        ("255 waits with none", 5, wait(255, 0)),
        ("255 waits with 254", 5, wait(255, 254)),
        ("a wait cut short", 5, wait(2, 2)[..20].to_vec()),
        ("a wait too many", 5, wait(1, 2)),
        ("severity 3", 7, notify(3, 0, 4, "text")),
        ("visibility 3", 7, notify(0, 3, 4, "text")),
        ("a text past the end", 7, notify(0, 0, 5, "text")),
        ("a text of 2^32-1 bytes", 7, notify(0, 0, u32::MAX, "text")),
        ("a text too short", 7, notify(0, 0, 3, "text")),
        ("two NULs", 7, notify(0, 0, 4, "text\0\0")),
        ("a list past the end", 8, vec![255, 255]),
        ("a listed message past the end", 8, hex("0100 06000000 0500 ff000000")),
    ];
    for (what, kind, body) in cases {
        assert!(server(kind, &body).is_err(), "{what}");
    }
}

fn waits() -> impl Strategy<Value = Vec<Wait>> {
    let wait = (any::<u8>(), any::<u8>(), any::<u64>()).prop_map(|(channel_type, channel_id, serial)| Wait {
        channel_type,
        channel_id,
        serial,
    });
    prop::collection::vec(wait, 0..=255)
}

proptest! {
    #[test]
    fn every_message_survives_the_wire(
        number in any::<u32>(),
        window in any::<u32>(),
        time_stamp in any::<u64>(),
        data in prop::collection::vec(any::<u8>(), 0..300),
        flags in 0_u32..4,
        waits in waits(),
        severity in prop::sample::select(vec![Severity::Info, Severity::Warn, Severity::Error]),
        visibility in prop::sample::select(vec![Visibility::Low, Visibility::Medium, Visibility::High]),
    ) {
        let data = &data[..];
        let bye = Disconnecting { time_stamp, reason: number };
        let from_server = [
            BaseServerMessage::Migrate { flags: MigrateFlags::from_bits_retain(flags) },
            BaseServerMessage::MigrateData { data },
            BaseServerMessage::SetAck { generation: number, window },
            BaseServerMessage::Ping { id: number, timestamp: time_stamp, padding: data },
            BaseServerMessage::WaitForChannels { waits },
            BaseServerMessage::Disconnecting(bye),
            BaseServerMessage::Notify(Notify { time_stamp, severity, visibility, what: number, message: data }),
        ];
        for message in from_server {
            let mut out = b"before".to_vec();
            message.write_body(&mut out);
            prop_assert_eq!(out.len(), 6 + message.body_len());
            prop_assert_eq!(BaseServerMessage::parse(message.kind(), &out[6..]), Ok(Some(message)));
        }
        let from_client = [
            BaseClientMessage::AckSync { generation: number },
            BaseClientMessage::Ack,
            BaseClientMessage::Pong { id: number, timestamp: time_stamp },
            BaseClientMessage::MigrateFlushMark,
            BaseClientMessage::MigrateData { data },
            BaseClientMessage::Disconnecting(bye),
        ];
        for message in from_client {
            let mut out = b"before".to_vec();
            message.write_body(&mut out);
            prop_assert_eq!(out.len(), 6 + message.body_len());
            prop_assert_eq!(BaseClientMessage::parse(message.kind(), &out[6..]), Ok(Some(message)));
        }
    }

    #[test]
    fn any_bytes_parse_or_are_refused(kind in 0_u16..12, body in some_bytes()) {
        if let Ok(Some(message)) = BaseServerMessage::parse(kind, &body) {
            let mut out = Vec::new();
            message.write_body(&mut out);
            prop_assert!(out == body || kind == NOTIFY);
            prop_assert_eq!(BaseServerMessage::parse(kind, &out), Ok(Some(message.clone())));
        }
        if let Ok(Some(message)) = BaseClientMessage::parse(kind, &body) {
            let mut out = Vec::new();
            message.write_body(&mut out);
            prop_assert_eq!(out, &body[..]);
        }
    }
}
