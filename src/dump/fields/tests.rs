use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};
use spice_proto::base::{MigrateFlags, Notify, Severity, Visibility};
use spice_proto::link::Welcome;
use spice_proto::main_channel::Init;
use spice_proto::service_info::{ServiceInfo, ServiceType};
use spice_proto::tunnel::{GroupId, InfoBody, QueryId, ServiceId, SocketId};

use super::*;
use crate::capture::dissect::Channel;
use crate::capture::reassembly::StreamId;
use crate::dump::books::Books;
use crate::dump::json::Json;

fn line(channel_type: u8, from: Sender, what: What<'_>, hex: bool) -> Value {
    let channel = Some(Channel { channel_type, id: Some(0) });
    let item = Item { time: Duration::ZERO, stream: StreamId(0), channel, from: Some(from), what };
    let mut out = Vec::new();
    Books::default().note(&item, |seen| Json::new(hex).item(seen, &mut out)).unwrap();
    assert_eq!(out.pop(), Some(b'\n'));
    serde_json::from_slice(&out).unwrap()
}

fn message<'a>(kind: u16, sub_list: u32, body: Body<'a>, bytes: &'a [u8]) -> What<'a> {
    let head = Head { serial: None, kind, size: bytes.len().try_into().unwrap(), sub_list };
    What::Message(Message { head, name: Some("name"), body, bytes })
}

/// The fields of a message, without and with its bytes; the latter only where they differ.
fn fields(body: Body<'_>) -> (Value, Value) {
    let from = match body {
        Body::BaseClient(_) | Body::MainClient(_) | Body::TunnelClient(_) => Sender::Client,
        Body::BaseServer(_)
        | Body::MainServer(_)
        | Body::TunnelServer(_)
        | Body::Opaque
        | Body::Incomplete => Sender::Server,
    };
    let one = |hex| line(1, from, message(101, 0, body.clone(), b"\xab"), hex)["fields"].take();
    (one(false), one(true))
}

fn check<'a>(table: impl IntoIterator<Item = (Body<'a>, Value)>) {
    for (body, expected) in table {
        let shown = format!("{body:?}");
        let (without, with) = fields(body);
        assert_eq!(without, expected, "{shown}");
        let mut bare = with;
        bare.as_object_mut().unwrap().remove("data");
        assert_eq!(bare, expected, "{shown} with bytes");
    }
}

/// Scripts rely on these names: they may grow, but not change.
#[test]
fn tunnel_messages() {
    let (socket, service) = (SocketId(7), ServiceId(u32::MAX));
    let address = IpInfo::V4(Ipv4Addr::new(10, 0, 2, 31));
    check(
        [
            (
                ServerMessage::Init { max_sockets: 20, max_data: 2048 },
                json!({"max_num_of_sockets": 20, "max_socket_data_size": 2048}),
            ),
            (
                ServerMessage::ServiceIpMap { service, address },
                json!({"service_id": u32::MAX, "virtual_ip": "10.0.2.31"}),
            ),
            (
                ServerMessage::ServiceIpMap { service, address: IpInfo::Invalid },
                json!({"service_id": u32::MAX, "virtual_ip": null}),
            ),
            (
                ServerMessage::SocketOpen { socket, service, tokens: 3 },
                json!({"connection_id": 7, "service_id": u32::MAX, "tokens": 3}),
            ),
            (ServerMessage::SocketFin { socket }, json!({"connection_id": 7})),
            (ServerMessage::SocketClose { socket }, json!({"connection_id": 7})),
            (ServerMessage::SocketData { socket, payload: b"abc" }, json!({"connection_id": 7, "bytes": 3})),
            (ServerMessage::SocketClosedAck { socket }, json!({"connection_id": 7})),
            (ServerMessage::SocketToken { socket, tokens: 4 }, json!({"connection_id": 7, "num_tokens": 4})),
            (ServerMessage::ProbeAck { id: 9 }, json!({"id": 9})),
            (
                ServerMessage::NameQuery { query: QueryId(5), name: "nas.lan" },
                json!({"query": 5, "name": "nas.lan"}),
            ),
        ]
        .map(|(message, fields)| (Body::TunnelServer(message), fields)),
    );
    let add = |kind| {
        ClientMessage::ServiceAdd(ServiceAdd {
            kind,
            service: ServiceId(1),
            group: GroupId(2),
            port: 631,
            name: b"lp",
            description: b"\xff",
        })
    };
    let mut txt = Txt::default();
    for (key, value) in [("rp", Some("ipp/print")), ("Duplex", None), ("note", Some(""))] {
        txt.push(key, value).unwrap();
    }
    let advert = Advert {
        kind: ServiceType::new("_ipp._tcp").unwrap(),
        instance: Label::new("Büro \"2\"").unwrap(),
        subtypes: vec![Label::new("_print").unwrap()],
        txt,
    };
    let info =
        ServiceInfo::new(Identity::new("uuid:1").ok(), HostName::new("lp.local").ok(), vec![advert]).unwrap();
    let (mut buffer, mut nothing) = (Vec::new(), Vec::new());
    let info = InfoBody::write(&info, &mut buffer);
    let bare = InfoBody::write(&ServiceInfo::default(), &mut nothing);
    let generic = json!({
        "type": 1, "type_name": "generic", "id": 1, "group": 2, "port": 631, "name": "lp",
        "description": "\u{fffd}", "description_hex": "ff",
    });
    let mut ipp = generic.clone();
    ipp["type"] = 2.into();
    ipp["type_name"] = "ipp".into();
    ipp["ip"] = "10.0.2.31".into();
    check(
        [
            (add(ServiceKind::Generic), generic),
            (add(ServiceKind::Ipp(address)), ipp),
            (ClientMessage::ServiceRemove { service: ServiceId(1) }, json!({"id": 1})),
            (ClientMessage::SocketOpenAck { socket, tokens: 3 }, json!({"connection_id": 7, "tokens": 3})),
            (ClientMessage::SocketOpenNack { socket }, json!({"connection_id": 7})),
            (ClientMessage::SocketFin { socket }, json!({"connection_id": 7})),
            (ClientMessage::SocketClosed { socket }, json!({"connection_id": 7})),
            (ClientMessage::SocketClosedAck { socket }, json!({"connection_id": 7})),
            (ClientMessage::SocketData { socket, payload: b"" }, json!({"connection_id": 7, "bytes": 0})),
            (ClientMessage::SocketToken { socket, tokens: 4 }, json!({"connection_id": 7, "num_tokens": 4})),
            (ClientMessage::SocketReset { socket }, json!({"connection_id": 7})),
            (ClientMessage::Probe { id: 9 }, json!({"id": 9})),
            (
                ClientMessage::ServiceInfo { service: ServiceId(1), info },
                json!({
                    "service_id": 1, "identity": "uuid:1", "host": "lp.local",
                    "adverts": [{
                        "type": "_ipp._tcp", "instance": "Büro \"2\"", "subtypes": ["_print"],
                        "txt": ["rp=ipp/print", "Duplex", "note="],
                    }],
                }),
            ),
            (
                ClientMessage::ServiceInfo { service: ServiceId(1), info: bare },
                json!({"service_id": 1, "identity": null, "host": null, "adverts": []}),
            ),
            (
                ClientMessage::NameAnswer {
                    query: QueryId(5),
                    answer: NameAnswer::Found { group: GroupId(2), ttl: 60 },
                },
                json!({"query": 5, "status": 0, "status_name": "found", "group": 2, "ttl": 60}),
            ),
            (
                ClientMessage::NameAnswer { query: QueryId(5), answer: NameAnswer::NoSuchName },
                json!({"query": 5, "status": 1, "status_name": "no_such_name"}),
            ),
            (
                ClientMessage::NameAnswer { query: QueryId(5), answer: NameAnswer::Failed },
                json!({"query": 5, "status": 2, "status_name": "failed"}),
            ),
            (
                ClientMessage::NameAnswer { query: QueryId(5), answer: NameAnswer::Refused },
                json!({"query": 5, "status": 3, "status_name": "refused"}),
            ),
            (ClientMessage::DomainAdd { name: "home.arpa" }, json!({"name": "home.arpa"})),
            (ClientMessage::DomainRemove { name: "home.arpa" }, json!({"name": "home.arpa"})),
        ]
        .map(|(message, fields)| (Body::TunnelClient(message), fields)),
    );
}

#[test]
fn base_messages() {
    let disconnecting = Disconnecting { time_stamp: u64::MAX, reason: 7 };
    let said = json!({"time_stamp": u64::MAX, "reason": 7});
    let notify = Notify {
        time_stamp: 1,
        severity: Severity::Warn,
        visibility: Visibility::High,
        what: 0,
        message: b"keyboard",
    };
    let wait = Wait { channel_type: 2, channel_id: 1, serial: 9 };
    check([
        (BaseServerMessage::Migrate { flags: MigrateFlags::all() }, json!({"flags": 3})),
        (BaseServerMessage::MigrateData { data: b"ab" }, json!({"bytes": 2})),
        (BaseServerMessage::SetAck { generation: 1, window: 20 }, json!({"generation": 1, "window": 20})),
        (BaseServerMessage::Ping { id: 1, timestamp: 2, padding: b"abc" }, json!({"id": 1, "timestamp": 2, "bytes": 3})),
        (
            BaseServerMessage::WaitForChannels { waits: vec![wait] },
            json!({"wait_count": 1, "wait_list": [{"channel_type": 2, "channel_id": 1, "message_serial": 9}]}),
        ),
        (BaseServerMessage::Disconnecting(disconnecting), said.clone()),
        (
            BaseServerMessage::Notify(notify),
            json!({"time_stamp": 1, "severity": "warn", "visibility": "high", "what": 0, "message_len": 8, "message": "keyboard"}),
        ),
    ].map(|(message, fields)| (Body::BaseServer(message), fields)));
    check(
        [
            (BaseClientMessage::AckSync { generation: 1 }, json!({"generation": 1})),
            (BaseClientMessage::Ack, json!({})),
            (BaseClientMessage::Pong { id: 1, timestamp: 2 }, json!({"id": 1, "timestamp": 2})),
            (BaseClientMessage::MigrateFlushMark, json!({})),
            (BaseClientMessage::MigrateData { data: b"ab" }, json!({"bytes": 2})),
            (BaseClientMessage::Disconnecting(disconnecting), said),
        ]
        .map(|(message, fields)| (Body::BaseClient(message), fields)),
    );
}

#[test]
fn main_messages() {
    let target = MigrateTarget { port: 1, secure_port: 2, host: b"there", cert_subject: b"" };
    let to = json!({"port": 1, "sport": 2, "host_data": "there", "cert_subject_data": ""});
    let mut seamless = to.clone();
    seamless["src_mig_version"] = 3.into();
    let init = Init {
        session_id: 1,
        display_channels_hint: 2,
        supported_mouse_modes: MouseModes::all(),
        current_mouse_mode: MouseModes::SERVER,
        agent_connected: true,
        agent_tokens: 10,
        multi_media_time: 4,
        ram_hint: 5,
    };
    let channels = vec![
        ChannelEntry { channel_type: 7, channel_id: 0 },
        ChannelEntry { channel_type: 99, channel_id: 1 },
    ];
    check([
        (MainServerMessage::MigrateBegin(target), to.clone()),
        (MainServerMessage::MigrateCancel, json!({})),
        (
            MainServerMessage::Init(init),
            json!({
                "session_id": 1, "display_channels_hint": 2, "supported_mouse_modes": 3, "current_mouse_mode": 1,
                "agent_connected": true, "agent_tokens": 10, "multi_media_time": 4, "ram_hint": 5,
            }),
        ),
        (
            MainServerMessage::ChannelsList { channels },
            json!({"num_of_channels": 2, "channels": [{"type": 7, "id": 0, "name": "tunnel"}, {"type": 99, "id": 1, "name": "type-99"}]}),
        ),
        (MainServerMessage::MouseMode { supported: MouseModes::all(), current: MouseModes::CLIENT }, json!({"supported_modes": 3, "current_mode": 2})),
        (MainServerMessage::MultiMediaTime { time: 5 }, json!({"time": 5})),
        (MainServerMessage::AgentConnected, json!({})),
        (MainServerMessage::AgentDisconnected { error: 1 }, json!({"error_code": 1})),
        (MainServerMessage::AgentData { data: b"a" }, json!({"bytes": 1})),
        (MainServerMessage::AgentToken { tokens: 1 }, json!({"num_tokens": 1})),
        (MainServerMessage::MigrateSwitchHost(target), to),
        (MainServerMessage::MigrateEnd, json!({})),
        (MainServerMessage::Name { name: b"vm\"\n" }, json!({"name": "vm\"\n"})),
        (MainServerMessage::Uuid { uuid: [0xab; 16] }, json!({"uuid": "abababab-abab-abab-abab-abababababab"})),
        (MainServerMessage::AgentConnectedTokens { tokens: 1 }, json!({"num_tokens": 1})),
        (MainServerMessage::MigrateBeginSeamless { target, source_version: 3 }, seamless),
        (MainServerMessage::MigrateDstSeamlessAck, json!({})),
        (MainServerMessage::MigrateDstSeamlessNack, json!({})),
    ].map(|(message, fields)| (Body::MainServer(message), fields)));
    check(
        [
            (MainClientMessage::ClientInfo { cache_size: u64::MAX }, json!({"cache_size": u64::MAX})),
            (MainClientMessage::MigrateConnected, json!({})),
            (MainClientMessage::MigrateConnectError, json!({})),
            (MainClientMessage::AttachChannels, json!({})),
            (MainClientMessage::MouseModeRequest { mode: MouseModes::CLIENT }, json!({"mode": 2})),
            (MainClientMessage::AgentStart { tokens: 1 }, json!({"num_tokens": 1})),
            (MainClientMessage::AgentData { data: b"a" }, json!({"bytes": 1})),
            (MainClientMessage::AgentToken { tokens: 1 }, json!({"num_tokens": 1})),
            (MainClientMessage::MigrateEnd, json!({})),
            (MainClientMessage::MigrateDstDoSeamless { source_version: 1 }, json!({"src_version": 1})),
            (MainClientMessage::MigrateConnectedSeamless, json!({})),
            (MainClientMessage::QualityIndicator { data: b"a" }, json!({"bytes": 1})),
        ]
        .map(|(message, fields)| (Body::MainClient(message), fields)),
    );
}

#[test]
fn the_link_stage() {
    let mess = LinkMess {
        session_id: 1,
        channel_type: 7,
        channel_id: 0,
        common_caps: vec![0b1011],
        channel_caps: vec![0b1001],
    };
    let what = What::LinkMess { size: 26, version: (2, 2), mess };
    let object = line(7, Sender::Client, what, false);
    assert_eq!((&object["size"], &object["message"]), (&json!(26), &json!("link_mess")));
    assert_eq!(
        object["fields"],
        json!({
            "major_version": 2, "minor_version": 2, "connection_id": 1, "channel_type": 7, "channel_id": 0,
            "common_caps": [11], "common_cap_names": ["auth_selection", "auth_spice", "mini_header"],
            "channel_caps": [9], "channel_cap_names": ["extended", "probe"],
        })
    );
    let welcome = Welcome { public_key: Box::new([0x30; 162]), common_caps: vec![], channel_caps: vec![1] };
    let what = What::LinkReply { size: 182, version: (2, 2), reply: LinkReply::Welcome(welcome) };
    let object = line(3, Sender::Server, what, false);
    assert_eq!(object["fields"]["pub_key"], "30".repeat(162));
    assert_eq!(object["fields"]["channel_cap_names"], json!(["key_scancode"]));
    assert_eq!(object["fields"]["error"], 0);
    let refused = LinkReply::Refused(LinkError::NeedSecured);
    let object =
        line(3, Sender::Server, What::LinkReply { size: 178, version: (2, 2), reply: refused }, false);
    assert_eq!(object["fields"]["error"], 5);
    for (what, size, fields) in [
        (What::AuthMechanism(1), 4, json!({"auth_mechanism": 1, "name": "spice"})),
        (What::AuthMechanism(9), 4, json!({"auth_mechanism": 9})),
        (What::Ticket, 128, json!({})),
        (What::Sasl { name: "sasl_data", size: 33 }, 33, json!({})),
        (What::LinkResult(None), 4, json!({"error": 0})),
    ] {
        let object = line(1, Sender::Client, what, true);
        assert_eq!((&object["size"], &object["fields"]), (&json!(size), &fields));
        assert_eq!((&object["type"], &object["serial"]), (&Value::Null, &Value::Null));
    }
}

#[test]
fn what_is_missing_or_wrong() {
    let hole = Hole { missing: Some(u64::MAX), skipped: 2, resumed: false, cause: Some(HoleCause::CutOff) };
    let object = line(7, Sender::Client, What::Hole(hole), false);
    assert_eq!(object["message"], "hole");
    assert_eq!(
        object["fields"],
        json!({"missing": u64::MAX, "skipped": 2, "resumed": false, "cause": "cut_off"})
    );
    let hole = Hole { missing: None, skipped: 0, resumed: true, cause: None };
    let object = line(7, Sender::Client, What::Hole(hole), false);
    assert_eq!(object["fields"], json!({"missing": null, "skipped": 0, "resumed": true, "cause": null}));
    let header = Some(Head { serial: Some(5), kind: 108, size: 1, sub_list: 0 });
    let what = What::Malformed { error: "expected \"2\" bytes".into(), header, bytes: &[0xab] };
    let object = line(7, Sender::Client, what, true);
    assert_eq!(object["fields"], json!({"message": "socket_data", "bytes": 1, "data": "ab"}));
    assert_eq!(
        (&object["error"], &object["type"], &object["serial"]),
        (&json!("expected \"2\" bytes"), &json!(108), &json!(5))
    );
    let object = line(2, Sender::Server, message(999, 0, Body::Opaque, b"\x01\x02"), true);
    assert_eq!(object["fields"], json!({"data": "0102"}));
    let object = line(7, Sender::Server, message(106, 0, Body::Incomplete, b""), true);
    assert_eq!(object["fields"], json!({"incomplete": true}));
}

#[test]
fn sub_messages_are_inside_of_their_carrier() {
    // A list of two: SET_ACK and one that is no base message. It begins behind four bytes of something else.
    let mut list = vec![2, 0];
    let first = 4 + 2 + 8_u32;
    list.extend(first.to_le_bytes());
    list.extend((first + 6 + 8).to_le_bytes());
    list.extend([3, 0, 8, 0, 0, 0, 1, 0, 0, 0, 20, 0, 0, 0]);
    list.extend([105, 0, 1, 0, 0, 0, 0xcd]);
    let body = [&[9; 4][..], &list].concat();
    let messages = json!([
        {"message": "set_ack", "type": 3, "size": 8, "fields": {"generation": 1, "window": 20}},
        {"message": "inval_list", "type": 105, "size": 1, "fields": {}},
    ]);
    let object = line(2, Sender::Server, message(102, 4, Body::Opaque, &body), false);
    assert_eq!(object["fields"], json!({"sub_list": 4, "messages": messages}));
    // What a client says there is what its memory held.
    let object = line(2, Sender::Client, message(102, 4, Body::Opaque, &body), false);
    assert_eq!(object["fields"], json!({}));
    // A list in a message of its own, whose offsets count from its start.
    let mut list = vec![1, 0];
    list.extend(6_u32.to_le_bytes());
    list.extend([4, 0, 13, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0xef]);
    let what = message(8, 0, Body::BaseServer(BaseServerMessage::List { body: &list }), &list);
    let object = line(2, Sender::Server, what, true);
    let ping = json!({"id": 1, "timestamp": 2, "bytes": 1, "data": "ef"});
    assert_eq!(
        object["fields"],
        json!({"messages": [{"message": "ping", "type": 4, "size": 13, "fields": ping}]})
    );
    // One that leads nowhere.
    let object = line(2, Sender::Server, message(102, 400, Body::Opaque, &body), false);
    assert_eq!(object["fields"], json!({"sub_list": 400, "messages": []}));
}
