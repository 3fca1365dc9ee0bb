//! The dissector on every message there is, sound and broken: real captures have a few of them only.

use std::collections::BTreeSet;

use spice_proto::base::{
    BaseClientMessage, BaseServerMessage, Disconnecting, MigrateFlags, Notify, Severity, Visibility, Wait,
};
use spice_proto::frame::{self, HeaderForm};
use spice_proto::link::{
    CommonCaps, LinkMess, LinkReply, LinkVersion, MECHANISM_TICKET, PUBLIC_KEY_LEN, TICKET_LEN, Welcome,
};
use spice_proto::service_info::{Advert, HostName, Identity, Label, ServiceInfo, ServiceType, Txt};
use spice_proto::tunnel::{
    ClientMessage, GroupId, InfoBody, IpInfo, Layout, NameAnswer, QueryId, ServerMessage, ServiceAdd,
    ServiceId, ServiceKind, SocketId,
};
use spice_tunnel::capture::reassembly::Way;

use super::crafted::{Dice, FULL_HEADER, Piecewise, file, packets};
use super::{items, script, shown, table, tshark};
use crate::captures;

/// Every message of both tables, in both header forms and both layouts.
#[test]
fn every_message_is_known() {
    for (version, caps) in [
        (LinkVersion::V2, vec![CommonCaps::OURS.bits()]),
        (LinkVersion::V2, Vec::new()),
        (LinkVersion::V2010, Vec::new()),
    ] {
        let (layout, form) = match version {
            LinkVersion::V2010 => (Layout::A, HeaderForm::Full),
            LinkVersion::V2 if caps.is_empty() => (Layout::B, HeaderForm::Full),
            LinkVersion::V2 => (Layout::B, HeaderForm::Mini),
        };
        let mut pieces = link_stage(version, &caps);
        for (way, bodies) in [(Way::Back, server_bodies()), (Way::Forth, client_bodies(layout))] {
            for (serial, (kind, body)) in (1..).zip(&bodies) {
                let mut message = Vec::new();
                frame::put_header(form, &mut message, serial, *kind, body.len() as u32);
                message.extend(body);
                pieces.push((way, message));
            }
        }
        let file = file(packets(&pieces, 1400));
        let said = captures::said(file.path());
        assert_eq!(shown(file.path(), &[]), said, "{version:?} {form:?}");
        let of = |from: &str| -> BTreeSet<String> {
            said.iter().filter(|step| step.from == from).map(|step| step.message.clone()).collect()
        };
        for (table_name, from) in [("SERVER_MESSAGES", "server"), ("CLIENT_MESSAGES", "client")] {
            let known: BTreeSet<String> = table(table_name).into_values().collect();
            assert_eq!(known.difference(&of(from)).count(), 0, "{from}: {:?}", known.difference(&of(from)));
        }
        let script = script();
        let faults =
            "spice_tunnel.malformed or spice_tunnel.unknown or spice_tunnel.incomplete or _ws.lua.error";
        let remarks = tshark(&["-X", &script, "-Y", faults, "-V"], file.path());
        assert!(remarks.is_empty(), "{version:?} {form:?}: {remarks}");
    }
}

/// What our parsers refuse, the script calls malformed, and nothing else.
#[test]
fn it_finds_malformed_what_we_refuse() {
    for version in [LinkVersion::V2, LinkVersion::V2010] {
        let layout = if version == LinkVersion::V2010 { Layout::A } else { Layout::B };
        let mut pieces = link_stage(version, &[]);
        let mut expected = Vec::new();
        let mut dice = Dice(11);
        for serial in 0..600 {
            let (way, bodies) = match serial % 2 {
                0 => (Way::Forth, client_bodies(layout)),
                _ => (Way::Back, server_bodies()),
            };
            let (kind, mut body) = bodies[dice.roll(bodies.len())].clone();
            match dice.roll(6) {
                0 => body.truncate(dice.roll(body.len() + 1)),
                1 => body.extend(vec![dice.roll(3) as u8; 1 + dice.roll(9)]),
                2 => {}
                _ => {
                    for _ in 0..=dice.roll(2) {
                        let at = dice.roll(body.len() + 1);
                        if let Some(byte) = body.get_mut(at) {
                            *byte = [0, 1, 2, 3, 0x1d, 0xff][dice.roll(6)];
                        }
                    }
                }
            }
            let refused = match way {
                Way::Forth => {
                    ClientMessage::parse(layout, kind, &body).is_err()
                        || BaseClientMessage::parse(kind, &body).is_err()
                }
                Way::Back => {
                    ServerMessage::parse(kind, &body).is_err()
                        || BaseServerMessage::parse(kind, &body).is_err()
                }
            };
            expected.push((kind, body.len(), refused));
            let mut message = Vec::new();
            frame::put_header(HeaderForm::Full, &mut message, serial, kind, body.len() as u32);
            message.extend(body);
            pieces.push((way, message));
        }
        let malformed = expected.iter().filter(|(.., refused)| *refused).count();
        assert!((150..500).contains(&malformed), "{malformed} are malformed");
        let file = file(packets(&pieces, 1400));
        let script = script();
        let pdml = tshark(&["-X", &script, "-Y", "spice_tunnel.type", "-T", "pdml"], file.path());
        let shown: Vec<(u16, usize, bool)> = items(&pdml)
            .iter()
            .map(|item| {
                let number = |name: &str| item[name].parse().unwrap();
                let (kind, size) = (number("spice_tunnel.type"), usize::from(number("spice_tunnel.size")));
                (kind, size, item.contains_key("spice_tunnel.malformed"))
            })
            .collect();
        for (index, (shown, expected)) in shown.iter().zip(&expected).enumerate() {
            assert_eq!(shown, expected, "{version:?}, message {index}: {:02x?}", pieces[4 + index]);
        }
        assert_eq!(shown.len(), expected.len());
    }
}

/// Messages with sub-messages: a LIST, and any other with the full header's `sub_list`.
#[test]
fn sub_messages_are_shown_within_their_carrier() {
    let token = |socket: u8| [&[108, 0, 6, 0, 0, 0][..], &[socket, 0, 9, 0, 0, 0]].concat();
    let list = |at: u8| {
        let bytes = [&[2, 0][..], &[at + 10, 0, 0, 0], &[at + 22, 0, 0, 0], &token(4), &token(5)].concat();
        assert_eq!(bytes.len(), 34);
        bytes
    };
    let full = |serial: u8, kind: u8, size: u8, sub_list: u8| {
        [&[serial, 0, 0, 0, 0, 0, 0, 0][..], &[kind, 0], &[size, 0, 0, 0], &[sub_list, 0, 0, 0]].concat()
    };
    let mut pieces = link_stage(LinkVersion::V2010, &[]);
    pieces.push((Way::Back, [full(1, 8, 34, 0), list(0)].concat()));
    pieces.push((Way::Back, [full(2, 104, 36, 2), vec![7, 0], list(2)].concat()));
    let sound = file(packets(&pieces, 1400));
    let script = script();
    let arguments = ["-X", &script, "-Y", "spice_tunnel.sub_message", "-T", "fields"];
    let fields =
        ["-e", "spice_tunnel.message", "-e", "spice_tunnel.sub_message", "-e", "spice_tunnel.socket"];
    let lines = tshark(&[&arguments[..], &fields[..]].concat(), sound.path());
    let twice = "socket_token,socket_token";
    assert_eq!(lines, format!("list\t{twice}\t4,5\nsocket_fin\t{twice}\t4,5,7\n"));
    let malformed = ["-X", &script, "-Y", "spice_tunnel.malformed"];
    assert!(tshark(&malformed, sound.path()).is_empty());

    // One that is listed twice takes more room than there is.
    let (_, bytes) = &mut pieces[4];
    bytes[FULL_HEADER + 6] = 10;
    bytes[FULL_HEADER + 12] = 15;
    assert_eq!(tshark(&malformed, file(packets(&pieces, 1400)).path()).lines().count(), 1);
}

fn link_stage(version: LinkVersion, common: &[u32]) -> Piecewise {
    let mess = LinkMess {
        session_id: 0,
        channel_type: 7,
        channel_id: 0,
        common_caps: common.to_vec(),
        channel_caps: Vec::new(),
    };
    let welcome = Welcome {
        public_key: Box::new([0; PUBLIC_KEY_LEN]),
        common_caps: common.to_vec(),
        channel_caps: Vec::new(),
    };
    let (mut asked, mut reply) = (Vec::new(), Vec::new());
    mess.write(version, &mut asked);
    LinkReply::Welcome(welcome).write(version, &mut reply);
    let mut ticket = if common.is_empty() { Vec::new() } else { MECHANISM_TICKET.to_le_bytes().to_vec() };
    ticket.extend([0; TICKET_LEN]);
    vec![(Way::Forth, asked), (Way::Back, reply), (Way::Forth, ticket), (Way::Back, vec![0; 4])]
}

/// What a printer says of itself.
fn described() -> ServiceInfo {
    let mut txt = Txt::default();
    for (key, value) in [("txtvers", Some("1")), ("note", Some("2. Stöck")), ("Duplex", None)] {
        txt.push(key, value).unwrap();
    }
    let kind = ServiceType::new("_ipp._tcp").unwrap();
    let subtypes = vec![Label::new("_print").unwrap(), Label::new("_universal").unwrap()];
    let advert = Advert { kind, instance: Label::new("Büro 2").unwrap(), subtypes, txt };
    let raw = Advert {
        kind: ServiceType::new("_pdl-datastream._tcp").unwrap(),
        instance: Label::new("raw").unwrap(),
        subtypes: Vec::new(),
        txt: Txt::default(),
    };
    let host = HostName::new("lp-01.local").ok();
    ServiceInfo::new(Identity::new("uuid:1").ok(), host, vec![advert, raw]).unwrap()
}

/// Number and body of one message of each kind.
fn server_bodies() -> Vec<(u16, Vec<u8>)> {
    let (socket, service, tokens) = (SocketId(3), ServiceId(1), 5);
    let disconnecting = Disconnecting { time_stamp: 9, reason: 0 };
    let notify = Notify {
        time_stamp: 9,
        severity: Severity::Warn,
        visibility: Visibility::High,
        what: 0,
        message: b"take care",
    };
    let base = [
        BaseServerMessage::Migrate { flags: MigrateFlags::NEED_FLUSH },
        BaseServerMessage::MigrateData { data: b"private" },
        BaseServerMessage::SetAck { generation: 1, window: 20 },
        BaseServerMessage::Ping { id: 1, timestamp: 2, padding: b"ballast" },
        BaseServerMessage::WaitForChannels {
            waits: vec![Wait { channel_type: 2, channel_id: 0, serial: 12 }; 2],
        },
        BaseServerMessage::Disconnecting(disconnecting),
        BaseServerMessage::Notify(notify),
        BaseServerMessage::List { body: &[0, 0] },
    ];
    let tunnel = [
        ServerMessage::Init { max_sockets: 20, max_data: 2048 },
        ServerMessage::ServiceIpMap { service, address: IpInfo::Invalid },
        ServerMessage::ServiceIpMap { service, address: IpInfo::V4([198, 18, 1, 1].into()) },
        ServerMessage::SocketOpen { socket, service, tokens },
        ServerMessage::SocketFin { socket },
        ServerMessage::SocketClose { socket },
        ServerMessage::SocketData { socket, payload: b"" },
        ServerMessage::SocketData { socket, payload: b"payload" },
        ServerMessage::SocketClosedAck { socket },
        ServerMessage::SocketToken { socket, tokens },
        ServerMessage::ProbeAck { id: 9 },
        ServerMessage::NameQuery { query: QueryId(4), name: "büro-nas.home.arpa" },
    ];
    let body = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut body = Vec::new();
        write(&mut body);
        body
    };
    let base = base.iter().map(|message| (message.kind(), body(&|out| message.write_body(out))));
    base.chain(tunnel.iter().map(|message| (message.kind(), body(&|out| message.write_body(out))))).collect()
}

fn client_bodies(layout: Layout) -> Vec<(u16, Vec<u8>)> {
    let (socket, service, tokens) = (SocketId(3), ServiceId(1), 5);
    let add = |kind, name: &'static [u8]| {
        let (group, port) = (GroupId(1), 631);
        ClientMessage::ServiceAdd(ServiceAdd { kind, service, group, port, name, description: b"text" })
    };
    let (mut buffer, mut nothing) = (Vec::new(), Vec::new());
    let info = InfoBody::write(&described(), &mut buffer);
    let base = [
        BaseClientMessage::AckSync { generation: 1 },
        BaseClientMessage::Ack,
        BaseClientMessage::Pong { id: 1, timestamp: 2 },
        BaseClientMessage::MigrateFlushMark,
        BaseClientMessage::MigrateData { data: b"private" },
        BaseClientMessage::Disconnecting(Disconnecting { time_stamp: 9, reason: 0 }),
    ];
    let tunnel = [
        add(ServiceKind::Generic, b"name"),
        add(ServiceKind::Generic, b""),
        add(ServiceKind::Ipp(IpInfo::V4([192, 0, 2, 9].into())), b"printer"),
        add(ServiceKind::Ipp(IpInfo::Invalid), b"printer"),
        ClientMessage::ServiceRemove { service },
        ClientMessage::SocketOpenAck { socket, tokens },
        ClientMessage::SocketOpenNack { socket },
        ClientMessage::SocketFin { socket },
        ClientMessage::SocketClosed { socket },
        ClientMessage::SocketClosedAck { socket },
        ClientMessage::SocketData { socket, payload: b"payload" },
        ClientMessage::SocketToken { socket, tokens },
        ClientMessage::SocketReset { socket },
        ClientMessage::Probe { id: 9 },
        ClientMessage::ServiceInfo { service, info },
        ClientMessage::ServiceInfo { service, info: InfoBody::write(&ServiceInfo::default(), &mut nothing) },
        ClientMessage::NameAnswer {
            query: QueryId(4),
            answer: NameAnswer::Found { group: GroupId(1), ttl: 60 },
        },
        ClientMessage::NameAnswer { query: QueryId(5), answer: NameAnswer::NoSuchName },
        ClientMessage::DomainAdd { name: "Home.arpa" },
        ClientMessage::DomainRemove { name: "home.arpa" },
    ];
    let body = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut body = Vec::new();
        write(&mut body);
        body
    };
    let base = base.iter().map(|message| (message.kind(), body(&|out| message.write_body(out))));
    let tunnel = tunnel.iter().map(|message| (message.kind(), body(&|out| message.write_body(layout, out))));
    base.chain(tunnel).collect()
}
