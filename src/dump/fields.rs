//! What a message says, as the JSON object `fields`: every field under `spice.proto`'s name (the link stage's under that of
//! `spice/protocol.h`), and a few words of ours for what the numbers mean.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use spice_proto::base::{BaseClientMessage, BaseServerMessage, Disconnecting, LIST, Wait};
use spice_proto::frame::{Frame, sub_messages};
use spice_proto::link::{ChannelType, LinkError, LinkMess, LinkReply, MECHANISM_SASL, MECHANISM_TICKET};
use spice_proto::main_channel::{
    ChannelEntry, MainClientMessage, MainServerMessage, MigrateTarget, MouseModes,
};
use spice_proto::names::{self, Sender};
use spice_proto::service_info::{Advert, HostName, Identity, Label, Txt};
use spice_proto::tunnel::{ClientMessage, IpInfo, NameAnswer, ServerMessage, ServiceAdd, ServiceKind};

use crate::capture::dissect::{Body, Head, Hole, Item, Message, What};
use crate::capture::ledger::Noted;
use crate::capture::reassembly::HoleCause;
use crate::describe::caps::{self, Cap};
use crate::describe::{self, ChannelTypeName, Uuid};

use super::books::Seen;
use super::json::{Hex, Shown};

/// The object for an item.
pub(super) struct Fields<'a> {
    item: &'a Item<'a>,
    noted: &'a Noted,
    hex: bool,
}

impl<'a> Fields<'a> {
    /// Those of an item; with the payload's bytes, or only their number.
    pub(super) fn of(seen: &Seen<'a, '_>, hex: bool) -> Self {
        Self { item: seen.item, noted: seen.noted, hex }
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let channel_type = self.item.channel.map(|channel| channel.channel_type);
        Put { map: &mut map, channel_type, hex: self.hex }.item(self.item)?;
        if let Some(number) = self.noted.connection {
            map.serialize_entry("connection", &number.0)?;
        }
        if let Some(remark) = &self.noted.remark {
            map.serialize_entry("remark", &remark.text)?;
        }
        map.end()
    }
}

/// Puts entries into the object.
struct Put<'m, M> {
    map: &'m mut M,
    channel_type: Option<u8>,
    hex: bool,
}

impl<M: SerializeMap> Put<'_, M> {
    fn item(&mut self, item: &Item<'_>) -> Result<(), M::Error> {
        match &item.what {
            What::LinkMess { version, mess, .. } => self.link_mess(*version, mess),
            What::LinkReply { version, reply, .. } => self.link_reply(*version, reply),
            What::AuthMechanism(mechanism) => {
                self.put("auth_mechanism", mechanism)?;
                match *mechanism {
                    MECHANISM_TICKET => self.put("name", "spice"),
                    MECHANISM_SASL => self.put("name", "sasl"),
                    _ => Ok(()),
                }
            }
            What::LinkResult(error) => self.error(*error),
            What::Message(message) => self.message(message, item.from),
            What::Malformed { header, bytes, .. } => {
                let meant = header
                    .zip(self.channel_type)
                    .zip(item.from)
                    .and_then(|((head, channel), from)| names::message(channel, from, head.kind));
                if let Some(name) = meant {
                    self.put("message", name)?;
                }
                self.bytes(bytes)
            }
            What::Hole(hole) => self.hole(hole),
            What::Ticket | What::Sasl { .. } | What::Began { .. } | What::Linked(_) | What::Ended { .. } => {
                Ok(())
            }
        }
    }

    fn link_mess(&mut self, version: (u32, u32), mess: &LinkMess) -> Result<(), M::Error> {
        self.version(version)?;
        self.put("connection_id", &mess.session_id)?;
        self.put("channel_type", &mess.channel_type)?;
        self.put("channel_id", &mess.channel_id)?;
        self.caps(&mess.common_caps, Some(mess.channel_type), &mess.channel_caps)
    }

    fn link_reply(&mut self, version: (u32, u32), reply: &LinkReply) -> Result<(), M::Error> {
        self.version(version)?;
        match reply {
            LinkReply::Refused(error) => self.error(Some(*error)),
            LinkReply::Welcome(welcome) => {
                self.error(None)?;
                self.put("pub_key", &Hex(welcome.public_key.as_slice()))?;
                self.caps(&welcome.common_caps, self.channel_type, &welcome.channel_caps)
            }
        }
    }

    fn version(&mut self, (major, minor): (u32, u32)) -> Result<(), M::Error> {
        self.put("major_version", &major)?;
        self.put("minor_version", &minor)
    }

    fn caps(&mut self, common: &[u32], channel_type: Option<u8>, own: &[u32]) -> Result<(), M::Error> {
        self.put("common_caps", common)?;
        self.put("common_cap_names", &Names(|| caps::common(common)))?;
        self.put("channel_caps", own)?;
        match channel_type {
            Some(channel_type) => self.put("channel_cap_names", &Names(|| caps::channel(channel_type, own))),
            None => Ok(()),
        }
    }

    /// A link code: its number, and what it means.
    fn error(&mut self, error: Option<LinkError>) -> Result<(), M::Error> {
        self.put("error", &error.map_or(0, LinkError::code))?;
        match error {
            Some(error) => self.put("text", &Shown(error)),
            None => Ok(()),
        }
    }

    fn hole(&mut self, hole: &Hole) -> Result<(), M::Error> {
        self.put("missing", &hole.missing)?;
        self.put("skipped", &hole.skipped)?;
        self.put("resumed", &hole.resumed)?;
        self.put("cause", &hole.cause.map(cause))
    }

    fn message(&mut self, message: &Message<'_>, from: Option<Sender>) -> Result<(), M::Error> {
        match &message.body {
            Body::BaseServer(body) => self.base_server(body),
            Body::BaseClient(body) => self.base_client(body),
            Body::MainServer(body) => self.main_server(body),
            Body::MainClient(body) => self.main_client(body),
            Body::TunnelServer(body) => self.tunnel_server(body),
            Body::TunnelClient(body) => self.tunnel_client(body),
            Body::Opaque => self.data(message.bytes),
            Body::Incomplete => self.put("incomplete", &true),
        }?;
        match describe::sub_list(message, from) {
            Some(frame) => {
                self.put("sub_list", &frame.sub_list)?;
                self.put("messages", &self.sub_messages(frame))
            }
            None => Ok(()),
        }
    }

    fn tunnel_server(&mut self, body: &ServerMessage<'_>) -> Result<(), M::Error> {
        match body {
            ServerMessage::Init { max_sockets, max_data } => {
                self.put("max_num_of_sockets", max_sockets)?;
                self.put("max_socket_data_size", max_data)
            }
            ServerMessage::ServiceIpMap { service, address } => {
                self.put("service_id", &service.0)?;
                self.put("virtual_ip", &Address(*address))
            }
            ServerMessage::SocketOpen { socket, service, tokens } => {
                self.put("connection_id", &socket.0)?;
                self.put("service_id", &service.0)?;
                self.put("tokens", tokens)
            }
            ServerMessage::SocketData { socket, payload } => {
                self.put("connection_id", &socket.0)?;
                self.bytes(payload)
            }
            ServerMessage::SocketToken { socket, tokens } => {
                self.put("connection_id", &socket.0)?;
                self.put("num_tokens", tokens)
            }
            ServerMessage::SocketFin { socket }
            | ServerMessage::SocketClose { socket }
            | ServerMessage::SocketClosedAck { socket } => self.put("connection_id", &socket.0),
            ServerMessage::ProbeAck { id } => self.put("id", id),
            ServerMessage::NameQuery { query, name } => {
                self.put("query", &query.0)?;
                self.put("name", name)
            }
        }
    }

    fn tunnel_client(&mut self, body: &ClientMessage<'_>) -> Result<(), M::Error> {
        match body {
            ClientMessage::ServiceAdd(add) => self.service_add(add),
            ClientMessage::ServiceRemove { service } => self.put("id", &service.0),
            ClientMessage::Probe { id } => self.put("id", id),
            ClientMessage::ServiceInfo { service, info } => {
                self.put("service_id", &service.0)?;
                let info = info.info();
                self.put("identity", &info.identity().map(Identity::as_str))?;
                self.put("host", &info.host().map(HostName::as_str))?;
                self.put("adverts", &Adverts(info.adverts()))
            }
            ClientMessage::NameAnswer { query, answer } => {
                self.put("query", &query.0)?;
                self.put("status", &answer.status())?;
                self.put("status_name", describe::name_status(*answer))?;
                match answer {
                    NameAnswer::Found { group, ttl } => {
                        self.put("group", &group.0)?;
                        self.put("ttl", ttl)
                    }
                    NameAnswer::NoSuchName | NameAnswer::Failed | NameAnswer::Refused => Ok(()),
                }
            }
            ClientMessage::DomainAdd { name } | ClientMessage::DomainRemove { name } => {
                self.put("name", name)
            }
            ClientMessage::SocketOpenAck { socket, tokens } => {
                self.put("connection_id", &socket.0)?;
                self.put("tokens", tokens)
            }
            ClientMessage::SocketData { socket, payload } => {
                self.put("connection_id", &socket.0)?;
                self.bytes(payload)
            }
            ClientMessage::SocketToken { socket, tokens } => {
                self.put("connection_id", &socket.0)?;
                self.put("num_tokens", tokens)
            }
            ClientMessage::SocketOpenNack { socket }
            | ClientMessage::SocketFin { socket }
            | ClientMessage::SocketClosed { socket }
            | ClientMessage::SocketClosedAck { socket }
            | ClientMessage::SocketReset { socket } => self.put("connection_id", &socket.0),
        }
    }

    fn service_add(&mut self, add: &ServiceAdd<'_>) -> Result<(), M::Error> {
        let (number, name) = match add.kind {
            ServiceKind::Generic => (1, "generic"),
            ServiceKind::Ipp(_) => (2, "ipp"),
        };
        self.put("type", &number)?;
        self.put("type_name", name)?;
        self.put("id", &add.service.0)?;
        self.put("group", &add.group.0)?;
        self.put("port", &add.port)?;
        self.text("name", "name_hex", add.name)?;
        self.text("description", "description_hex", add.description)?;
        match add.kind {
            ServiceKind::Generic => Ok(()),
            ServiceKind::Ipp(address) => self.put("ip", &Address(address)),
        }
    }

    fn base_server(&mut self, body: &BaseServerMessage<'_>) -> Result<(), M::Error> {
        match body {
            BaseServerMessage::Migrate { flags } => self.put("flags", &flags.bits()),
            BaseServerMessage::MigrateData { data } => self.bytes(data),
            BaseServerMessage::SetAck { generation, window } => {
                self.put("generation", generation)?;
                self.put("window", window)
            }
            BaseServerMessage::Ping { id, timestamp, padding } => {
                self.put("id", id)?;
                self.put("timestamp", timestamp)?;
                self.bytes(padding)
            }
            BaseServerMessage::WaitForChannels { waits } => {
                self.put("wait_count", &waits.len())?;
                self.put("wait_list", &Waits(waits))
            }
            BaseServerMessage::Disconnecting(disconnecting) => self.disconnecting(disconnecting),
            BaseServerMessage::Notify(notify) => {
                self.put("time_stamp", &notify.time_stamp)?;
                self.put("severity", describe::severity(notify.severity))?;
                self.put("visibility", describe::visibility(notify.visibility))?;
                self.put("what", &notify.what)?;
                self.put("message_len", &notify.message.len())?;
                self.text("message", "message_hex", notify.message)
            }
            BaseServerMessage::List { body } => {
                let frame = Frame { serial: None, kind: LIST, sub_list: 0, body };
                self.put("messages", &self.sub_messages(frame))
            }
        }
    }

    fn base_client(&mut self, body: &BaseClientMessage<'_>) -> Result<(), M::Error> {
        match body {
            BaseClientMessage::AckSync { generation } => self.put("generation", generation),
            BaseClientMessage::Ack | BaseClientMessage::MigrateFlushMark => Ok(()),
            BaseClientMessage::Pong { id, timestamp } => {
                self.put("id", id)?;
                self.put("timestamp", timestamp)
            }
            BaseClientMessage::MigrateData { data } => self.bytes(data),
            BaseClientMessage::Disconnecting(disconnecting) => self.disconnecting(disconnecting),
        }
    }

    fn disconnecting(&mut self, disconnecting: &Disconnecting) -> Result<(), M::Error> {
        self.put("time_stamp", &disconnecting.time_stamp)?;
        self.put("reason", &disconnecting.reason)
    }

    fn main_server(&mut self, body: &MainServerMessage<'_>) -> Result<(), M::Error> {
        match body {
            MainServerMessage::MigrateBegin(target) | MainServerMessage::MigrateSwitchHost(target) => {
                self.migrate_target(target)
            }
            MainServerMessage::MigrateBeginSeamless { target, source_version } => {
                self.migrate_target(target)?;
                self.put("src_mig_version", source_version)
            }
            MainServerMessage::Init(init) => {
                self.put("session_id", &init.session_id)?;
                self.put("display_channels_hint", &init.display_channels_hint)?;
                self.modes("supported_mouse_modes", init.supported_mouse_modes)?;
                self.modes("current_mouse_mode", init.current_mouse_mode)?;
                self.put("agent_connected", &init.agent_connected)?;
                self.put("agent_tokens", &init.agent_tokens)?;
                self.put("multi_media_time", &init.multi_media_time)?;
                self.put("ram_hint", &init.ram_hint)
            }
            MainServerMessage::ChannelsList { channels } => {
                self.put("num_of_channels", &channels.len())?;
                self.put("channels", &Channels(channels))
            }
            MainServerMessage::MouseMode { supported, current } => {
                self.modes("supported_modes", *supported)?;
                self.modes("current_mode", *current)
            }
            MainServerMessage::MultiMediaTime { time } => self.put("time", time),
            MainServerMessage::AgentDisconnected { error } => self.put("error_code", error),
            MainServerMessage::AgentData { data } => self.bytes(data),
            MainServerMessage::AgentToken { tokens } | MainServerMessage::AgentConnectedTokens { tokens } => {
                self.put("num_tokens", tokens)
            }
            MainServerMessage::Name { name } => self.text("name", "name_hex", name),
            MainServerMessage::Uuid { uuid } => self.put("uuid", &Shown(Uuid(*uuid))),
            MainServerMessage::MigrateCancel
            | MainServerMessage::AgentConnected
            | MainServerMessage::MigrateEnd
            | MainServerMessage::MigrateDstSeamlessAck
            | MainServerMessage::MigrateDstSeamlessNack => Ok(()),
        }
    }

    fn main_client(&mut self, body: &MainClientMessage<'_>) -> Result<(), M::Error> {
        match body {
            MainClientMessage::ClientInfo { cache_size } => self.put("cache_size", cache_size),
            MainClientMessage::MouseModeRequest { mode } => self.modes("mode", *mode),
            MainClientMessage::AgentStart { tokens } | MainClientMessage::AgentToken { tokens } => {
                self.put("num_tokens", tokens)
            }
            MainClientMessage::AgentData { data } | MainClientMessage::QualityIndicator { data } => {
                self.bytes(data)
            }
            MainClientMessage::MigrateDstDoSeamless { source_version } => {
                self.put("src_version", source_version)
            }
            MainClientMessage::MigrateConnected
            | MainClientMessage::MigrateConnectError
            | MainClientMessage::AttachChannels
            | MainClientMessage::MigrateEnd
            | MainClientMessage::MigrateConnectedSeamless => Ok(()),
        }
    }

    fn migrate_target(&mut self, target: &MigrateTarget<'_>) -> Result<(), M::Error> {
        self.put("port", &target.port)?;
        self.put("sport", &target.secure_port)?;
        self.text("host_data", "host_data_hex", target.host)?;
        self.text("cert_subject_data", "cert_subject_data_hex", target.cert_subject)
    }

    fn modes(&mut self, key: &'static str, modes: MouseModes) -> Result<(), M::Error> {
        self.put(key, &modes.bits())
    }

    /// The messages in a list, as far as the list is sound. What is wrong with it is the dissector's to say.
    fn sub_messages<'a>(&self, frame: Frame<'a>) -> SubMessages<'a> {
        SubMessages { frame, channel_type: self.channel_type, hex: self.hex }
    }

    /// Text of the wire. Where it is not UTF-8, its bytes too.
    fn text(&mut self, key: &'static str, hex_key: &'static str, bytes: &[u8]) -> Result<(), M::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.put(key, text),
            Err(_) => {
                self.put(key, &String::from_utf8_lossy(bytes))?;
                self.put(hex_key, &Hex(bytes))
            }
        }
    }

    /// A payload: how long it is, and what is in it if that is asked for.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), M::Error> {
        self.put("bytes", &bytes.len())?;
        self.data(bytes)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), M::Error> {
        if self.hex { self.put("data", &Hex(bytes)) } else { Ok(()) }
    }

    fn put<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), M::Error> {
        self.map.serialize_entry(key, value)
    }
}

/// The word for why bytes are missing; null where it is that they were before the capture.
fn cause(cause: HoleCause) -> &'static str {
    match cause {
        HoleCause::NotCaptured => "not_captured",
        HoleCause::CutOff => "cut_off",
        HoleCause::TooFarAhead => "too_far_ahead",
        HoleCause::End => "end",
    }
}

/// Names of capabilities, in an array.
struct Names<F>(F);

impl<F: Fn() -> I, I: Iterator<Item = Cap>> Serialize for Names<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)().map(Shown))
    }
}

/// An address, or null.
struct Address(IpInfo);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            IpInfo::Invalid => serializer.serialize_none(),
            IpInfo::V4(ip) => serializer.collect_str(&ip),
        }
    }
}

/// How a service is advertised.
struct Adverts<'a>(&'a [Advert]);

impl Serialize for Adverts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            instance: &'a str,
            subtypes: Vec<&'a str>,
            txt: Strings<'a>,
        }
        serializer.collect_seq(self.0.iter().map(|advert| Entry {
            kind: advert.kind.as_str(),
            instance: advert.instance.as_str(),
            subtypes: advert.subtypes.iter().map(Label::as_str).collect(),
            txt: Strings(&advert.txt),
        }))
    }
}

/// The strings of a TXT record.
struct Strings<'a>(&'a Txt);

impl Serialize for Strings<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.entries().map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.to_owned(),
        }))
    }
}

struct Channels<'a>(&'a [ChannelEntry]);

impl Serialize for Channels<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry {
            #[serde(rename = "type")]
            channel_type: u8,
            id: u8,
            name: Shown<ChannelTypeName>,
        }
        serializer.collect_seq(self.0.iter().map(|entry| Entry {
            channel_type: entry.channel_type,
            id: entry.channel_id,
            name: Shown(ChannelTypeName(entry.channel_type)),
        }))
    }
}

struct Waits<'a>(&'a [Wait]);

impl Serialize for Waits<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry {
            channel_type: u8,
            channel_id: u8,
            message_serial: u64,
        }
        serializer.collect_seq(self.0.iter().map(|wait| Entry {
            channel_type: wait.channel_type,
            channel_id: wait.channel_id,
            message_serial: wait.serial,
        }))
    }
}

/// The sub-messages of a message of the server: `message`, `type`, `size`, `fields` of each.
struct SubMessages<'a> {
    frame: Frame<'a>,
    channel_type: Option<u8>,
    hex: bool,
}

impl Serialize for SubMessages<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let list = sub_messages(&self.frame).into_iter().flatten().flatten();
        serializer.collect_seq(list.map(|frame| SubMessage {
            frame,
            channel_type: self.channel_type,
            hex: self.hex,
        }))
    }
}

struct SubMessage<'a> {
    frame: Frame<'a>,
    channel_type: Option<u8>,
    hex: bool,
}

impl SubMessage<'_> {
    /// What is known of the body. One that is not as it should be is shown without fields.
    fn body(&self) -> Body<'_> {
        let Frame { kind, body, .. } = self.frame;
        if let Ok(Some(message)) = BaseServerMessage::parse(kind, body) {
            return Body::BaseServer(message);
        }
        match self.channel_type.map(ChannelType) {
            Some(ChannelType::MAIN) => {
                MainServerMessage::parse(kind, body).ok().flatten().map_or(Body::Opaque, Body::MainServer)
            }
            Some(ChannelType::TUNNEL) => {
                ServerMessage::parse(kind, body).ok().flatten().map_or(Body::Opaque, Body::TunnelServer)
            }
            _ => Body::Opaque,
        }
    }
}

impl Serialize for SubMessage<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Frame { kind, body, .. } = self.frame;
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let name = names::message(self.channel_type.unwrap_or_default(), Sender::Server, kind);
        let head = Head { serial: None, kind, size, sub_list: 0 };
        let message = Message { head, name, body: self.body(), bytes: body };
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("message", name.unwrap_or("unknown"))?;
        map.serialize_entry("type", &kind)?;
        map.serialize_entry("size", &size)?;
        map.serialize_entry(
            "fields",
            &SubFields { message, channel_type: self.channel_type, hex: self.hex },
        )?;
        map.end()
    }
}

struct SubFields<'a> {
    message: Message<'a>,
    channel_type: Option<u8>,
    hex: bool,
}

impl Serialize for SubFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        Put { map: &mut map, channel_type: self.channel_type, hex: self.hex }
            .message(&self.message, Some(Sender::Server))?;
        map.end()
    }
}

#[cfg(test)]
mod tests;
