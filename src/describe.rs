//! A line a person can read for everything that a Spice connection says: the dump prints them, and the demo.
//!
//! Texts of the wire are shown with what a terminal would obey escaped, so that nobody's printer name moves the cursor.

use std::fmt::{self, Display, Formatter};

use spice_proto::base::{BaseClientMessage, BaseServerMessage, Disconnecting, Notify, Severity, Visibility};
use spice_proto::frame::{Frame, sub_messages};
use spice_proto::link::{LinkError, LinkMess, LinkReply, MECHANISM_SASL, MECHANISM_TICKET};
use spice_proto::main_channel::{MainClientMessage, MainServerMessage, MigrateTarget, MouseModes};
use spice_proto::names::{self, Sender};
use spice_proto::service_info::{Advert, ServiceInfo};
use spice_proto::tunnel::{ClientMessage, IpInfo, NameAnswer, ServerMessage, ServiceKind};

use crate::capture::dissect::{Body, Channel, End, Head, Hole, Item, Message, What};
use crate::capture::reassembly::HoleCause;

pub mod caps;

/// What a message of the tunnel server's end says, e.g. `socket_open       socket 0  service 0  64 tokens`.
pub fn server_message(message: &ServerMessage<'_>) -> String {
    format!("{:<17} {}", message.name(), TunnelServer(message))
}

/// What a message of the tunnel client's end says, e.g. `service_add       service 0  group 0  port 631  generic  "printer"`.
pub fn client_message(message: &ClientMessage<'_>) -> String {
    format!("{:<17} {}", message.name(), TunnelClient(message))
}

/// The name of what an item is: a message's as `spice.proto` has it, in lower case, otherwise our own.
pub fn name(what: &What<'_>) -> &'static str {
    match what {
        What::Began { .. } => "began",
        What::LinkMess { .. } => "link_mess",
        What::LinkReply { .. } => "link_reply",
        What::AuthMechanism(_) => "auth_mechanism",
        What::Ticket => "ticket",
        What::Sasl { name, .. } => name,
        What::LinkResult(_) => "link_result",
        What::Linked(_) => "linked",
        What::Message(message) => message.name.unwrap_or("unknown"),
        What::Malformed { .. } => "malformed",
        What::Hole(_) => "hole",
        What::Ended { .. } => "ended",
    }
}

/// The type of a channel by its name, or as `type-42` if it has none.
#[derive(Debug, Clone, Copy)]
pub struct ChannelTypeName(pub u8);

impl Display for ChannelTypeName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match names::channel(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "type-{}", self.0),
        }
    }
}

/// A channel: `main`, `display:1`; the number only where it says something.
#[derive(Debug, Clone, Copy)]
pub struct ChannelName(pub Option<Channel>);

impl Display for ChannelName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("-"),
            Some(Channel { channel_type, id: None | Some(0) }) => ChannelTypeName(channel_type).fmt(f),
            Some(Channel { channel_type, id: Some(id) }) => {
                write!(f, "{}:{id}", ChannelTypeName(channel_type))
            }
        }
    }
}

/// Text of the wire: what is not UTF-8, control characters and what else would steer a terminal are escaped, quotes too. Behind
/// [`LONGEST_TEXT`] characters it is cut, and says so.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

/// Most characters of a text of the wire that are shown.
pub const LONGEST_TEXT: usize = 300;

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut left = LONGEST_TEXT;
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if left == 0 {
                    return write!(f, "… ({} bytes)", self.0.len());
                }
                left -= 1;
                write!(f, "{}", character.escape_debug())?;
            }
            for byte in chunk.invalid() {
                if left == 0 {
                    return write!(f, "… ({} bytes)", self.0.len());
                }
                left -= 1;
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// A text of our own that may quote the wire: control characters and what else would steer a terminal are escaped.
#[derive(Debug, Clone, Copy)]
pub struct Tame<'a>(pub &'a str);

impl Display for Tame<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '"' | '\'' | '\\' => write!(f, "{character}"),
            other => write!(f, "{}", other.escape_debug()),
        })
    }
}

/// What an item says, without its name; empty where the name says all.
#[derive(Debug, Clone, Copy)]
pub struct Details<'a>(pub &'a Item<'a>);

impl Display for Details<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let channel_type = self.0.channel.map(|channel| channel.channel_type);
        match &self.0.what {
            What::Began { client, server, from_start } => {
                write!(f, "{client} -> {server}")?;
                if *from_start { Ok(()) } else { f.write_str("  (began before the capture)") }
            }
            What::LinkMess { version, mess, .. } => link_mess(f, *version, mess),
            What::LinkReply { version, reply, .. } => link_reply(f, *version, channel_type, reply),
            What::AuthMechanism(MECHANISM_TICKET) => f.write_str("1 ticket"),
            What::AuthMechanism(MECHANISM_SASL) => f.write_str("2 SASL"),
            What::AuthMechanism(other) => write!(f, "{other}, which nobody knows"),
            What::Ticket | What::Sasl { .. } => f.write_str("not shown"),
            What::LinkResult(None) => f.write_str("ok"),
            What::LinkResult(Some(error)) => error.fmt(f),
            What::Linked(terms) => write!(f, "{:?} header, layout {:?}", terms.header, terms.layout),
            What::Message(message) => message_details(f, message, self.0.from),
            What::Malformed { error, header, .. } => {
                Tame(error).fmt(f)?;
                let Some(head) = header else { return Ok(()) };
                let name = channel_type
                    .zip(self.0.from)
                    .and_then(|(channel, from)| names::message(channel, from, head.kind));
                match name {
                    Some(name) => write!(f, "  ({name})"),
                    None => write!(f, "  (type {})", head.kind),
                }
            }
            What::Hole(hole) => hole_details(f, hole),
            What::Ended { how } => f.write_str(match how {
                End::Closed => "closed by both ends",
                End::Reset(Sender::Client) => "reset by the client",
                End::Reset(Sender::Server) => "reset by the server",
                End::CaptureOver => "the capture shows no end",
            }),
        }
    }
}

fn message_details(f: &mut Formatter<'_>, message: &Message<'_>, from: Option<Sender>) -> fmt::Result {
    if message.name.is_none() {
        write!(f, "type {}", message.head.kind)?;
    }
    match &message.body {
        Body::BaseServer(body) => base_server(f, body),
        Body::BaseClient(body) => base_client(f, body),
        Body::MainServer(body) => main_server(f, body),
        Body::MainClient(body) => main_client(f, body),
        Body::TunnelServer(body) => TunnelServer(body).fmt(f),
        Body::TunnelClient(body) => TunnelClient(body).fmt(f),
        Body::Opaque => Ok(()),
        Body::Incomplete => f.write_str("not wholly captured"),
    }?;
    match sub_list(message, from) {
        Some(frame) => SubMessages(&frame).fmt(f),
        None => Ok(()),
    }
}

/// A message that says where in it a list of sub-messages is, as a frame to open it with. What clients say there means
/// nothing: those of 2010 sent what the memory held.
pub fn sub_list<'a>(message: &Message<'a>, from: Option<Sender>) -> Option<Frame<'a>> {
    let Head { serial, kind, sub_list, .. } = message.head;
    (sub_list != 0 && from == Some(Sender::Server)).then_some(Frame {
        serial,
        kind,
        sub_list,
        body: message.bytes,
    })
}

struct TunnelServer<'a>(&'a ServerMessage<'a>);

impl Display for TunnelServer<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            ServerMessage::Init { max_sockets, max_data } => {
                write!(f, "{max_sockets} sockets, messages up to {max_data} bytes")
            }
            ServerMessage::ServiceIpMap { service, address } => {
                write!(f, "service {}  {}", service.0, Address(*address))
            }
            ServerMessage::SocketOpen { socket, service, tokens } => {
                write!(f, "socket {}  service {}  {tokens} tokens", socket.0, service.0)
            }
            ServerMessage::SocketData { socket, payload } => {
                write!(f, "socket {}  {} bytes", socket.0, payload.len())
            }
            ServerMessage::SocketToken { socket, tokens } => {
                write!(f, "socket {}  {tokens} tokens", socket.0)
            }
            ServerMessage::SocketFin { socket }
            | ServerMessage::SocketClose { socket }
            | ServerMessage::SocketClosedAck { socket } => write!(f, "socket {}", socket.0),
            ServerMessage::ProbeAck { id } => write!(f, "id {id}"),
            ServerMessage::NameQuery { query, name } => write!(f, "query {}  {name}", query.0),
        }
    }
}

struct TunnelClient<'a>(&'a ClientMessage<'a>);

impl Display for TunnelClient<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            ClientMessage::ServiceAdd(add) => {
                write!(f, "service {}  group {}  port {}  ", add.service.0, add.group.0, add.port)?;
                match add.kind {
                    ServiceKind::Generic => f.write_str("generic")?,
                    ServiceKind::Ipp(address) => write!(f, "ipp {}", Address(address))?,
                }
                write!(f, "  \"{}\"", Escaped(add.name))?;
                if add.description.is_empty() {
                    return Ok(());
                }
                write!(f, "  \"{}\"", Escaped(add.description))
            }
            ClientMessage::ServiceRemove { service } => write!(f, "service {}", service.0),
            ClientMessage::Probe { id } => write!(f, "id {id}"),
            ClientMessage::ServiceInfo { service, info } => {
                write!(f, "service {}", service.0)?;
                Info(&info.info()).fmt(f)
            }
            ClientMessage::NameAnswer { query, answer } => {
                write!(f, "query {}  {}", query.0, name_status(*answer).replace('_', " "))?;
                match answer {
                    NameAnswer::Found { group, ttl } => write!(f, "  group {}  for {ttl} s", group.0),
                    NameAnswer::NoSuchName | NameAnswer::Failed | NameAnswer::Refused => Ok(()),
                }
            }
            ClientMessage::DomainAdd { name } | ClientMessage::DomainRemove { name } => f.write_str(name),
            ClientMessage::SocketData { socket, payload } => {
                write!(f, "socket {}  {} bytes", socket.0, payload.len())
            }
            ClientMessage::SocketOpenAck { socket, tokens }
            | ClientMessage::SocketToken { socket, tokens } => {
                write!(f, "socket {}  {tokens} tokens", socket.0)
            }
            ClientMessage::SocketOpenNack { socket }
            | ClientMessage::SocketFin { socket }
            | ClientMessage::SocketClosed { socket }
            | ClientMessage::SocketClosedAck { socket }
            | ClientMessage::SocketReset { socket } => write!(f, "socket {}", socket.0),
        }
    }
}

/// A word for what an answer to a question for a name is.
pub fn name_status(answer: NameAnswer) -> &'static str {
    match answer {
        NameAnswer::Found { .. } => "found",
        NameAnswer::NoSuchName => "no_such_name",
        NameAnswer::Failed => "failed",
        NameAnswer::Refused => "refused",
    }
}

/// What a service says of itself; of its TXT records only how long they are.
struct Info<'a>(&'a ServiceInfo);

impl Display for Info<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(identity) = self.0.identity() {
            write!(f, "  {}", Escaped(identity.as_str().as_bytes()))?;
        }
        if let Some(host) = self.0.host() {
            write!(f, "  {}", host.as_str())?;
        }
        for Advert { kind, instance, subtypes, txt } in self.0.adverts() {
            write!(f, "  {} \"{}\"", kind.as_str(), Escaped(instance.as_str().as_bytes()))?;
            for subtype in subtypes {
                write!(f, ",{}", Escaped(subtype.as_str().as_bytes()))?;
            }
            write!(f, " txt {} bytes", txt.encoded_len())?;
        }
        Ok(())
    }
}

struct Address(IpInfo);

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpInfo::Invalid => f.write_str("no address"),
            IpInfo::V4(ip) => ip.fmt(f),
        }
    }
}

/// Sub-messages by name and size. What is wrong with the list, the dissector has said already.
struct SubMessages<'a>(&'a Frame<'a>);

impl Display for SubMessages<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Ok(list) = sub_messages(self.0) else { return Ok(()) };
        for message in list.flatten().take(MOST_LISTED) {
            match BaseServerMessage::name_of(message.kind) {
                Some(name) => write!(f, "  +{name}")?,
                None => write!(f, "  +type {}", message.kind)?,
            }
            write!(f, " {} bytes", message.body.len())?;
        }
        Ok(())
    }
}

/// Most entries of a list that are shown.
const MOST_LISTED: usize = 40;

fn link_mess(f: &mut Formatter<'_>, version: (u32, u32), mess: &LinkMess) -> fmt::Result {
    Version(version).fmt(f)?;
    match mess.session_id {
        0 => f.write_str("new session")?,
        id => write!(f, "session {id:#010x}")?,
    }
    write!(f, "  {}:{}", ChannelTypeName(mess.channel_type), mess.channel_id)?;
    caps_of(f, Some(mess.channel_type), &mess.common_caps, &mess.channel_caps)
}

fn link_reply(
    f: &mut Formatter<'_>,
    version: (u32, u32),
    channel_type: Option<u8>,
    reply: &LinkReply,
) -> fmt::Result {
    Version(version).fmt(f)?;
    match reply {
        LinkReply::Refused(error) => write!(f, "refused: {error}"),
        LinkReply::Welcome(welcome) => {
            f.write_str(if welcome.has_no_key() { "ok, no key" } else { "ok" })?;
            caps_of(f, channel_type, &welcome.common_caps, &welcome.channel_caps)
        }
    }
}

/// The link version, where it is not the one that everybody speaks.
struct Version((u32, u32));

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            spice_proto::link::VERSION => Ok(()),
            spice_proto::link::VERSION_2010 => f.write_str("version of 2010  "),
            (major, minor) => write!(f, "version {major}.{minor}  "),
        }
    }
}

/// The common capabilities by name. Those of the channel too, if its type is known.
fn caps_of(f: &mut Formatter<'_>, channel: Option<u8>, common: &[u32], own: &[u32]) -> fmt::Result {
    f.write_str("  common")?;
    list(f, caps::common(common))?;
    f.write_str("  channel")?;
    match channel {
        Some(channel_type) => list(f, caps::channel(channel_type, own)),
        None if own.iter().all(|word| *word == 0) => f.write_str(" none"),
        None => own.iter().try_for_each(|word| write!(f, " {word:#x}")),
    }
}

fn list(f: &mut Formatter<'_>, names: impl Iterator<Item = caps::Cap>) -> fmt::Result {
    let mut separator = ' ';
    for name in names.take(MOST_LISTED) {
        write!(f, "{separator}{name}")?;
        separator = ',';
    }
    if separator == ' ' { f.write_str(" none") } else { Ok(()) }
}

fn base_server(f: &mut Formatter<'_>, body: &BaseServerMessage<'_>) -> fmt::Result {
    match body {
        BaseServerMessage::Migrate { flags } => write!(f, "flags {:#x}", flags.bits()),
        BaseServerMessage::MigrateData { data } => write!(f, "{} bytes", data.len()),
        BaseServerMessage::SetAck { generation, window } => {
            write!(f, "generation {generation}  window {window}")
        }
        BaseServerMessage::Ping { id, padding: [], .. } => write!(f, "id {id}"),
        BaseServerMessage::Ping { id, padding, .. } => {
            write!(f, "id {id}  {} bytes of padding", padding.len())
        }
        BaseServerMessage::WaitForChannels { waits } => {
            f.write_str("until")?;
            waits.iter().take(MOST_LISTED).try_for_each(|wait| {
                write!(
                    f,
                    " {}:{} came to {}",
                    ChannelTypeName(wait.channel_type),
                    wait.channel_id,
                    wait.serial
                )
            })
        }
        BaseServerMessage::Disconnecting(disconnecting) => reason(f, disconnecting),
        BaseServerMessage::Notify(notify) => notify_details(f, notify),
        BaseServerMessage::List { body } => {
            SubMessages(&Frame { serial: None, kind: spice_proto::base::LIST, sub_list: 0, body }).fmt(f)
        }
    }
}

fn base_client(f: &mut Formatter<'_>, body: &BaseClientMessage<'_>) -> fmt::Result {
    match body {
        BaseClientMessage::AckSync { generation } => write!(f, "generation {generation}"),
        BaseClientMessage::Ack | BaseClientMessage::MigrateFlushMark => Ok(()),
        BaseClientMessage::Pong { id, .. } => write!(f, "id {id}"),
        BaseClientMessage::MigrateData { data } => write!(f, "{} bytes", data.len()),
        BaseClientMessage::Disconnecting(disconnecting) => reason(f, disconnecting),
    }
}

fn reason(f: &mut Formatter<'_>, disconnecting: &Disconnecting) -> fmt::Result {
    match LinkError::from_code(disconnecting.reason) {
        None => f.write_str("reason 0"),
        Some(error) => write!(f, "reason {}", error.code()),
    }
}

fn notify_details(f: &mut Formatter<'_>, notify: &Notify<'_>) -> fmt::Result {
    f.write_str(severity(notify.severity))?;
    if notify.what != 0 {
        write!(f, " {}", notify.what)?;
    }
    write!(f, "  visibility {}  \"{}\"", visibility(notify.visibility), Escaped(notify.message))
}

/// NOTIFY's severity in a word.
pub fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warn => "warn",
        Severity::Error => "error",
    }
}

/// NOTIFY's visibility in a word.
pub fn visibility(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Low => "low",
        Visibility::Medium => "medium",
        Visibility::High => "high",
    }
}

fn main_server(f: &mut Formatter<'_>, body: &MainServerMessage<'_>) -> fmt::Result {
    match body {
        MainServerMessage::MigrateBegin(target) | MainServerMessage::MigrateSwitchHost(target) => {
            migrate_target(f, target)
        }
        MainServerMessage::MigrateBeginSeamless { target, source_version } => {
            migrate_target(f, target)?;
            write!(f, "  from version {source_version}")
        }
        MainServerMessage::Init(init) => {
            write!(f, "session {:#010x}  mouse {}", init.session_id, Modes(init.current_mouse_mode))?;
            write!(f, " of {}", Modes(init.supported_mouse_modes))?;
            let agent = if init.agent_connected { "agent connected" } else { "no agent" };
            write!(f, "  {agent}, {} tokens", init.agent_tokens)
        }
        MainServerMessage::ChannelsList { channels } => {
            write!(f, "{}:", channels.len())?;
            channels.iter().take(MOST_LISTED).try_for_each(|entry| {
                write!(f, " {}:{}", ChannelTypeName(entry.channel_type), entry.channel_id)
            })?;
            if channels.len() > MOST_LISTED { f.write_str(" …") } else { Ok(()) }
        }
        MainServerMessage::MouseMode { supported, current } => {
            write!(f, "{} of {}", Modes(*current), Modes(*supported))
        }
        MainServerMessage::MultiMediaTime { time } => write!(f, "{time} ms"),
        MainServerMessage::AgentDisconnected { error } => write!(f, "error {error}"),
        MainServerMessage::AgentData { data } => write!(f, "{} bytes", data.len()),
        MainServerMessage::AgentToken { tokens } | MainServerMessage::AgentConnectedTokens { tokens } => {
            write!(f, "{tokens} tokens")
        }
        MainServerMessage::Name { name } => write!(f, "\"{}\"", Escaped(name)),
        MainServerMessage::Uuid { uuid } => Uuid(*uuid).fmt(f),
        MainServerMessage::MigrateCancel
        | MainServerMessage::AgentConnected
        | MainServerMessage::MigrateEnd
        | MainServerMessage::MigrateDstSeamlessAck
        | MainServerMessage::MigrateDstSeamlessNack => Ok(()),
    }
}

fn main_client(f: &mut Formatter<'_>, body: &MainClientMessage<'_>) -> fmt::Result {
    match body {
        MainClientMessage::ClientInfo { cache_size } => write!(f, "cache of {cache_size} bytes"),
        MainClientMessage::MouseModeRequest { mode } => Modes(*mode).fmt(f),
        MainClientMessage::AgentStart { tokens } | MainClientMessage::AgentToken { tokens } => {
            write!(f, "{tokens} tokens")
        }
        MainClientMessage::AgentData { data } | MainClientMessage::QualityIndicator { data } => {
            write!(f, "{} bytes", data.len())
        }
        MainClientMessage::MigrateDstDoSeamless { source_version } => {
            write!(f, "from version {source_version}")
        }
        MainClientMessage::MigrateConnected
        | MainClientMessage::MigrateConnectError
        | MainClientMessage::AttachChannels
        | MainClientMessage::MigrateEnd
        | MainClientMessage::MigrateConnectedSeamless => Ok(()),
    }
}

fn migrate_target(f: &mut Formatter<'_>, target: &MigrateTarget<'_>) -> fmt::Result {
    write!(f, "to \"{}\"  port {}  TLS port {}", Escaped(target.host), target.port, target.secure_port)?;
    if target.cert_subject.is_empty() {
        return Ok(());
    }
    write!(f, "  subject \"{}\"", Escaped(target.cert_subject))
}

/// A UUID in its usual form.
#[derive(Debug, Clone, Copy)]
pub struct Uuid(pub [u8; 16]);

impl Display for Uuid {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, byte)| {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")
        })
    }
}

struct Modes(MouseModes);

impl Display for Modes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let mut separator = "";
        for (mode, name) in [(MouseModes::SERVER, "server"), (MouseModes::CLIENT, "client")] {
            if self.0.contains(mode) {
                write!(f, "{separator}{name}")?;
                separator = "+";
            }
        }
        match self.0.difference(MouseModes::all()).bits() {
            0 => Ok(()),
            unknown => write!(f, "{separator}{unknown:#x}"),
        }
    }
}

fn hole_details(f: &mut Formatter<'_>, hole: &Hole) -> fmt::Result {
    match hole.missing {
        // What explains these bytes is missing, from this direction or from the other.
        Some(0) => write!(f, "{} bytes not understood", hole.skipped)?,
        Some(bytes) => write!(f, "{bytes} bytes missing: {}", hole_cause(hole.cause))?,
        None => write!(f, "bytes missing, nobody knows how many: {}", hole_cause(hole.cause))?,
    }
    if hole.missing != Some(0) && hole.skipped > 0 {
        write!(f, "; {} bytes behind it not understood", hole.skipped)?;
    }
    f.write_str(if hole.resumed {
        "; goes on behind it"
    } else {
        "; nothing more of this direction is understood"
    })
}

/// Why bytes are missing, in words.
pub fn hole_cause(cause: Option<HoleCause>) -> &'static str {
    match cause {
        None => "they were before the capture began",
        Some(HoleCause::NotCaptured) => "the capture does not have their packets",
        Some(HoleCause::CutOff) => "the capture has only the beginning of their packet",
        Some(HoleCause::TooFarAhead) => "too much came behind them",
        Some(HoleCause::End) => "it ended before they came",
    }
}
