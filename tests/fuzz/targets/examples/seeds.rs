//! Writes the seeds: inputs that are right, so that fuzzing starts behind the first checks. Run after a change of a
//! target's leading bytes: `cargo run -p fuzz-targets --example seeds` in tests/fuzz.

use std::time::Instant;
use std::{fs, io, path::Path};

use spice_proto::base::{
    BaseClientMessage, BaseServerMessage, Disconnecting, MigrateFlags, Notify, Severity, Visibility, Wait,
};
use spice_proto::frame::{HeaderForm, put_header};
use spice_proto::handshake::{ClientHandshake, ClientLink, Deadlines};
use spice_proto::link::{CommonCaps, LinkError, LinkReply, LinkVersion, PUBLIC_KEY_LEN, TICKET_LEN, Welcome};
use spice_proto::main_channel::{
    ChannelEntry, Init, MainClientMessage, MainServerMessage, MigrateTarget, MouseModes,
};
use spice_proto::ticket::TicketKey;
use spice_proto::tunnel::{
    ClientMessage, GroupId, IpInfo, Layout, ServerMessage, ServiceAdd, ServiceId, ServiceKind, SocketId,
};

#[path = "seeds/lan.rs"]
mod lan;

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let save = |target: &str, name: &str, bytes: &[u8]| {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(name), bytes)
    };

    let bodies = bodies();
    for (family, kind, name, body) in &bodies {
        let mut input = vec![*family, u8::try_from(*kind).expect("small numbers only")];
        input.extend_from_slice(body);
        save("messages", &format!("{family}-{name}"), &input)?;
    }
    for (form, choice) in [(HeaderForm::Full, 0), (HeaderForm::Mini, 1)] {
        for family in 0..7 {
            let mut input = vec![choice, 0xff, 0x0f, 6];
            for (of, kind, _, body) in &bodies {
                if *of == family {
                    put_header(form, &mut input, 1, *kind, u32::try_from(body.len()).expect("short"));
                    input.extend_from_slice(body);
                }
            }
            save("frames", &format!("{form:?}-{family}").to_lowercase(), &input)?;
        }
    }
    // A message whose list stands behind its own two bytes.
    let mut input = vec![0, 0xff, 0x0f, 6];
    put_header(HeaderForm::Full, &mut input, 1, 304, 26);
    let at = input.len() - 4;
    input[at] = 2;
    input.extend_from_slice(b"ab\x02\0\x0c\0\0\0\x13\0\0\0\x05\0\x01\0\0\0\0\x69\0\0\0\0\0\0");
    save("frames", "full-sub-list", &input)?;

    // A printer that is seen by two sources, is imitated, and goes.
    let mut input = Vec::new();
    let texts = b"\x0aACME 2000x\x06Office\x06Cellar";
    for (source, id, has, marks) in [(0, 1, 0x49, &[1, 2][..]), (2, 2, 0x46, &[1, 1]), (0, 3, 0x49, &[1, 3])]
    {
        input.extend_from_slice(&[0, source, id, has]);
        input.extend_from_slice(marks);
        input.push(if id == 3 { 0x65 } else { 0x64 });
        input.extend_from_slice(texts);
        input.extend_from_slice(b"\x01\x00\x04note\x09ipp/print\x05");
    }
    input.extend_from_slice(&[7, 0xff, 0x7f, 5, 0, 6, 0, 4, 0, 1, 7, 0xff, 0xff]);
    save("discover", "imitated", &input)?;

    let key = TicketKey::generate().expect("openssl makes keys");
    for (name, version) in [("v2", LinkVersion::V2), ("v2010", LinkVersion::V2010)] {
        for (kind, caps) in [("selection", CommonCaps::OURS), ("plain", CommonCaps::MINI_HEADER)] {
            let link = ClientLink {
                version,
                channel_type: 7,
                channel_id: 0,
                session_id: 0x1234,
                common_caps: caps,
                channel_caps: vec![7],
            };
            let client = ClientHandshake::new(Instant::now(), Deadlines::default(), link);
            for (answer, choices) in [("permit", 0), ("deny", 0x40), ("refuse", 0x08), ("drop", 0x0c)] {
                let mut input = vec![choices, 10, 0];
                input.extend_from_slice(client.poll_transmit());
                if kind == "selection" && version == LinkVersion::V2 {
                    input.extend_from_slice(&1_u32.to_le_bytes());
                }
                input.extend_from_slice(&[7; TICKET_LEN]);
                input.extend_from_slice(b"data");
                save("link", &format!("server-{name}-{kind}-{answer}"), &input)?;
            }
            let welcome = Welcome {
                public_key: Box::new(*key.public_der()),
                common_caps: vec![caps.bits()],
                channel_caps: vec![7],
            };
            let mut input = vec![if version == LinkVersion::V2 { 9 } else { 11 }, 10, 0];
            LinkReply::Welcome(welcome).write(version, &mut input);
            input.extend_from_slice(&0_u32.to_le_bytes());
            input.extend_from_slice(b"data");
            save("link", &format!("client-{name}-{kind}"), &input)?;
        }
        let mut input = vec![1, 10, 0];
        LinkReply::Refused(LinkError::NeedSecured).write(version, &mut input);
        save("link", &format!("client-{name}-refused"), &input)?;
    }
    sasl(&save)?;
    netstack(&save)?;
    channels(&save)?;
    lan::seeds(&save)?;
    save("link", "server-websocket", b"\0\x0a\0GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    Ok(())
}

/// What a server with SASL says in a login of two steps, to a client that takes it; and both sides of one in a single step.
fn sasl(save: &impl Fn(&str, &str, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let exchange = b"\x07\0\0\0,A,B-1,\x03\0\0\0ab\0\0\x03\0\0\0cd\0\x01\0\0\0\0";
    for (end, result) in [("linked", &b"\0\0\0\0data"[..]), ("refused", b"\x08\0\0\0")] {
        let mut input = vec![0x81, 3, 0];
        let welcome = Welcome {
            public_key: Box::new([0; PUBLIC_KEY_LEN]),
            common_caps: vec![0x0d],
            channel_caps: Vec::new(),
        };
        LinkReply::Welcome(welcome).write(LinkVersion::V2, &mut input);
        input.extend_from_slice(exchange);
        input.extend_from_slice(result);
        save("link", &format!("client-sasl-{end}"), &input)?;
    }
    let both = b"\x01\x04\0\x07\0\0\0,A,B-1,\x03\0\0\0B-1\x03\0\0\0cd\0\0\0\0\0\x01\x01\0\0\0\x03\0\0\0no\0";
    save("link", "sasl-rejected", both)
}

/// Conversations of a guest, in the operations of the target `netstack`.
fn netstack(save: &impl Fn(&str, &str, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let syn: &[u8] = &[0, 0x00, 2];
    let accept: &[u8] = &[8, 3, 0];
    let ack: &[u8] = &[2, 0x00, 0, 0, 0, 0x40];
    let data: &[u8] = &[2, 0x00, 0x08, 0, 100, 0x40];
    let fin: &[u8] = &[2, 0x00, 0x01, 0, 0, 0x40];
    let rst: &[u8] = &[2, 0x00, 0x50, 0, 0, 0x40];
    let send: &[u8] = &[9, 100, 0];
    let read: &[u8] = &[11, 255, 0];
    let finish: &[u8] = &[13, 1, 0];
    let reset: &[u8] = &[13, 0, 0];
    let second: &[u8] = &[7, 10];
    let minute: &[u8] = &[7, 16];
    let hour: &[u8] = &[7, 21];
    let open = [syn, accept, ack].concat();
    let talks: [(&str, Vec<&[u8]>); 9] = [
        ("guest-closes", vec![&open, data, read, send, ack, fin, read, finish, ack, ack, minute]),
        ("service-closes", vec![&open, send, finish, ack, data, read, fin, ack, ack, second, minute]),
        ("refused", vec![syn, &[8, 0, 0], syn, &[8, 1, 0], syn, &[8, 2, 0]]),
        ("guest-resets", vec![&open, data, rst, read]),
        ("service-resets", vec![&open, data, reset, ack]),
        ("undecided", vec![syn, second, syn, minute, minute]),
        ("dead-guest", vec![&open, send, second, second, minute, hour, hour]),
        ("out-of-order", vec![&open, &[2, 0, 8, 100, 100, 0x40], &[2, 0, 8, 0x9c, 100, 0x40], read, read]),
        ("window", vec![&open, &[2, 0, 0, 0, 0, 0xf0], &[9, 255, 0], second, second, ack, ack, ack]),
    ];
    for (name, operations) in talks {
        for mtu in [1, 3] {
            save("netstack", &format!("{name}-{mtu}"), &[&[mtu][..], &operations.concat()].concat())?;
        }
    }
    let guest = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let gateway = [2, 0x53, 0x50, 0x54, 0, 1];
    let frame = |to: &[u8], kind: u16, rest: &[u8]| [to, &guest, &kind.to_be_bytes(), rest].concat();
    let ipv4 = |protocol: u8, from: [u8; 4], to: [u8; 4], body: &[u8]| {
        let length = u16::try_from(20 + body.len()).expect("short");
        [&[0x45, 0][..], &length.to_be_bytes(), &[0, 0, 0, 0, 64, protocol, 0, 0], &from, &to, body].concat()
    };
    let (me, service) = ([198, 18, 0, 2], [198, 18, 1, 1]);
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &guest, &me, &[0; 6], &service].concat();
    let mut dhcp = vec![0; 240];
    dhcp[..4].copy_from_slice(&[1, 1, 6, 0]);
    dhcp[28..34].copy_from_slice(&guest);
    dhcp[236..].copy_from_slice(&[99, 130, 83, 99]);
    let dhcp = |options: &[u8]| {
        let message = [&dhcp[..], options, &[255]].concat();
        let length = u16::try_from(8 + message.len()).expect("short");
        let udp = [&[0, 68, 0, 67][..], &length.to_be_bytes(), &[0, 0], &message].concat();
        frame(&[255; 6], 0x0800, &ipv4(17, [0; 4], [255; 4], &udp))
    };
    let frames = [
        ("arp", frame(&[255; 6], 0x0806, &arp)),
        ("ping", frame(&gateway, 0x0800, &ipv4(1, me, service, b"\x08\0\0\0\0\x01\0\x01abcdefgh"))),
        ("closed-udp", frame(&gateway, 0x0800, &ipv4(17, me, service, b"\x30\x39\0\x35\0\x0c\0\0abcd"))),
        ("unmapped", frame(&gateway, 0x0800, &ipv4(1, me, [198, 18, 9, 9], b"\x08\0\0\0\0\x01\0\x01"))),
        ("ipv6", frame(&[0x33, 0x33, 0, 0, 0, 2], 0x86dd, &[0x60; 48])),
        ("discover", dhcp(&[53, 1, 1, 55, 4, 1, 3, 26, 51])),
        ("request", dhcp(&[53, 1, 3, 50, 4, 198, 18, 0, 2, 54, 4, 198, 18, 0, 1])),
        ("inform", dhcp(&[53, 1, 8])),
        ("release", dhcp(&[53, 1, 7, 54, 4, 198, 18, 0, 1])),
    ];
    for (name, frame) in frames {
        let length = u16::try_from(frame.len()).expect("short").to_le_bytes();
        save("netstack", name, &[&[1, 15, 1][..], &length, &frame].concat())?;
    }
    Ok(())
}

/// Conversations on channels, in the operations of the targets `channel` and `pair`.
fn channels(save: &impl Fn(&str, &str, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let add: &[u8] = &[0, 0, 0];
    let ack: &[u8] = &[0, 3, 0x60];
    let flush: &[u8] = &[15, 255, 0];
    let from_client: [(&str, Vec<&[u8]>); 4] = [
        (
            "guest-closes",
            vec![
                add,
                &[9, 0],
                ack,
                &[11, 0, 20],
                &[14, 0, 0],
                &[0, 60, 0],
                &[13, 0, 1],
                &[0, 6, 0],
                &[14, 0, 3],
                &[0, 7, 0],
                flush,
            ],
        ),
        ("client-aborts", vec![add, &[9, 0], ack, &[0, 60, 0], &[0, 7, 0], flush]),
        ("server-aborts", vec![add, &[9, 0], ack, &[14, 0, 7], &[0, 60, 0], &[0, 8, 0], flush]),
        ("refused", vec![add, &[9, 0], &[0, 5, 0], &[9, 0], flush]),
    ];
    let open: &[u8] = &[0, 2, 0x60, 10, 0, 1];
    let init: &[u8] = &[0, 0, 0, 9, 0, 0, 80, 1];
    let from_server: [(&str, Vec<&[u8]>); 4] = [
        (
            "guest-closes",
            vec![
                init,
                open,
                &[0, 60, 0],
                &[0, 5, 0],
                &[13, 0, 1],
                &[11, 0, 20],
                &[14, 0, 0],
                &[14, 0, 3],
                &[0, 8, 0],
                flush,
            ],
        ),
        ("server-aborts", vec![init, open, &[0, 60, 0], &[0, 7, 0], flush]),
        ("service-aborts", vec![init, open, &[14, 0, 7], &[0, 60, 0], &[0, 8, 0], flush]),
        ("tokens", vec![init, open, &[11, 0, 20], &[0, 9, 0x20], flush]),
    ];
    for (role, talks) in [(0, from_client), (1, from_server)] {
        for (name, operations) in talks {
            // All capabilities, mini headers; then none, full headers.
            for (variant, choice) in [("new", 0x38), ("old", 2)] {
                let input = [&[choice | role, 255, 20, 255][..], &operations.concat()].concat();
                save("channel", &format!("{name}-{variant}-{role}"), &input)?;
            }
        }
    }
    let talk = [
        [0, 0, 0, 0],
        [15, 255, 0, 0],
        [2, 0, 1, 0],
        [15, 255, 0, 0],
        [3, 0, 40, 0],
        [3, 0, 40, 1],
        [15, 7, 0, 0],
        [6, 0, 9, 0],
        [6, 0, 9, 1],
        [8, 0, 0, 0],
        [15, 255, 0, 0],
        [8, 0, 0, 1],
        [15, 255, 0, 0],
        [9, 0, 0, 0],
        [9, 0, 0, 1],
    ];
    for (name, setup) in [("new", [0xf7, 100, 20, 0]), ("old", [0x08, 0, 0, 0]), ("tight", [0x13, 3, 2, 5])] {
        save("pair", name, &[&setup[..], &talk.concat()].concat())?;
    }
    Ok(())
}

/// Each message once: the family by which the target `messages` knows it, its number, its name, its body.
fn bodies() -> Vec<(u8, u16, &'static str, Vec<u8>)> {
    let mut all = Vec::new();
    let bye = Disconnecting { time_stamp: 1, reason: 7 };
    let notify = Notify {
        time_stamp: 1,
        severity: Severity::Warn,
        visibility: Visibility::High,
        what: 0,
        message: b"insecure",
    };
    for message in [
        BaseServerMessage::Migrate { flags: MigrateFlags::all() },
        BaseServerMessage::MigrateData { data: b"data" },
        BaseServerMessage::SetAck { generation: 1, window: 20 },
        BaseServerMessage::Ping { id: 1, timestamp: 2, padding: b"\0\0" },
        BaseServerMessage::WaitForChannels {
            waits: vec![Wait { channel_type: 2, channel_id: 0, serial: 3 }; 2],
        },
        BaseServerMessage::Disconnecting(bye),
        BaseServerMessage::Notify(notify),
        BaseServerMessage::List { body: b"\x01\0\x06\0\0\0\x05\0\x01\0\0\0\0" },
    ] {
        let mut body = Vec::new();
        message.write_body(&mut body);
        all.push((0, message.kind(), message.name(), body));
    }
    for message in [
        BaseClientMessage::AckSync { generation: 1 },
        BaseClientMessage::Ack,
        BaseClientMessage::Pong { id: 1, timestamp: 2 },
        BaseClientMessage::MigrateFlushMark,
        BaseClientMessage::MigrateData { data: b"data" },
        BaseClientMessage::Disconnecting(bye),
    ] {
        let mut body = Vec::new();
        message.write_body(&mut body);
        all.push((1, message.kind(), message.name(), body));
    }
    let target = MigrateTarget { port: 5900, secure_port: 5901, host: b"host", cert_subject: b"CN=host" };
    let init = Init {
        session_id: 1,
        display_channels_hint: 1,
        supported_mouse_modes: MouseModes::all(),
        current_mouse_mode: MouseModes::SERVER,
        agent_connected: false,
        agent_tokens: 10,
        multi_media_time: 5,
        ram_hint: 6,
    };
    let channels = [2, 4, 3].map(|channel_type| ChannelEntry { channel_type, channel_id: 0 }).to_vec();
    for message in [
        MainServerMessage::MigrateBegin(target),
        MainServerMessage::Init(init),
        MainServerMessage::ChannelsList { channels },
        MainServerMessage::MouseMode { supported: MouseModes::all(), current: MouseModes::CLIENT },
        MainServerMessage::AgentDisconnected { error: 1 },
        MainServerMessage::AgentData { data: b"data" },
        MainServerMessage::MigrateSwitchHost(MigrateTarget { cert_subject: b"", ..target }),
        MainServerMessage::Name { name: b"vm" },
        MainServerMessage::Uuid { uuid: [7; 16] },
        MainServerMessage::MigrateBeginSeamless { target, source_version: 1 },
        MainServerMessage::MigrateDstSeamlessNack,
    ] {
        let mut body = Vec::new();
        message.write_body(&mut body);
        all.push((2, message.kind(), message.name(), body));
    }
    for message in [
        MainClientMessage::ClientInfo { cache_size: 1 },
        MainClientMessage::AttachChannels,
        MainClientMessage::MouseModeRequest { mode: MouseModes::CLIENT },
        MainClientMessage::AgentStart { tokens: 10 },
        MainClientMessage::AgentData { data: b"data" },
        MainClientMessage::QualityIndicator { data: b"data" },
    ] {
        let mut body = Vec::new();
        message.write_body(&mut body);
        all.push((3, message.kind(), message.name(), body));
    }
    let (socket, service) = (SocketId(3), ServiceId(1));
    for message in [
        ServerMessage::Init { max_sockets: 20, max_data: 2048 },
        ServerMessage::ServiceIpMap { service, address: IpInfo::V4([10, 0, 2, 5].into()) },
        ServerMessage::SocketOpen { socket, service, tokens: 80 },
        ServerMessage::SocketFin { socket },
        ServerMessage::SocketClose { socket },
        ServerMessage::SocketData { socket, payload: b"data" },
        ServerMessage::SocketClosedAck { socket },
        ServerMessage::SocketToken { socket, tokens: 20 },
        ServerMessage::ProbeAck { id: 5 },
    ] {
        let mut body = Vec::new();
        message.write_body(&mut body);
        all.push((4, message.kind(), message.name(), body));
    }
    let printer = ServiceAdd {
        kind: ServiceKind::Ipp(IpInfo::V4([192, 168, 7, 9].into())),
        service,
        group: GroupId(1),
        port: 631,
        name: b"lp-01",
        description: b"office printer",
    };
    for (family, layout) in [(5, Layout::A), (6, Layout::B)] {
        for message in [
            ClientMessage::ServiceAdd(printer),
            ClientMessage::ServiceRemove { service },
            ClientMessage::SocketOpenAck { socket, tokens: 60 },
            ClientMessage::SocketOpenNack { socket },
            ClientMessage::SocketFin { socket },
            ClientMessage::SocketClosed { socket },
            ClientMessage::SocketClosedAck { socket },
            ClientMessage::SocketData { socket, payload: b"data" },
            ClientMessage::SocketToken { socket, tokens: 20 },
            ClientMessage::SocketReset { socket },
            ClientMessage::Probe { id: 5 },
        ] {
            let mut body = Vec::new();
            message.write_body(layout, &mut body);
            all.push((family, message.kind(), message.name(), body));
        }
    }
    all
}
