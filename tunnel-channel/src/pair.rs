//! Two channels and the link between them, under a manual clock: for tests and fuzzing.
//!
//! [`Pair`] carries bytes, late and in pieces, and logs what passes. [`exercise`] drives one with random
//! operations.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::{Duration, Instant};

use spice_proto::base::{BaseClientMessage, BaseServerMessage};
use spice_proto::frame::{Frame, HeaderForm, Split, split};
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage};

pub use crate::exercise::{exercise, exercise_bytes};
use crate::{Channel, Config, Event, Role, Violation};

/// What a pair is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Capabilities that both have.
    pub caps: TunnelCaps,
    /// Layout of SERVICE_ADD.
    pub layout: Layout,
    /// Form of the headers.
    pub header: HeaderForm,
    /// The server's configuration.
    pub server: Config,
    /// The client's configuration.
    pub client: Config,
    /// How long a byte is on its way, in each direction.
    pub latency: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            caps: TunnelCaps::OURS,
            layout: Layout::B,
            header: HeaderForm::Mini,
            server: Config::default(),
            client: Config::default(),
            latency: Duration::ZERO,
        }
    }
}

impl Setup {
    /// Two ends of the historical protocol, as of 2010 to 2013.
    pub fn historical() -> Self {
        Setup { caps: TunnelCaps::empty(), header: HeaderForm::Full, ..Setup::default() }
    }
}

/// Two channels and the link between them.
#[derive(Debug)]
pub struct Pair {
    /// The time, which passes only when a test says so.
    pub now: Instant,
    /// The guest's side.
    pub server: Channel,
    /// The services' side.
    pub client: Channel,
    /// Every message that was handled, such as `S socket_fin 3`, in the order of handling.
    pub wire: Vec<String>,
    header: HeaderForm,
    layout: Layout,
    latency: Duration,
    to_server: Pipe,
    to_client: Pipe,
}

/// One direction of the link.
#[derive(Debug, Default)]
struct Pipe {
    /// Bytes on their way, and when they arrive.
    flying: VecDeque<(Instant, Vec<u8>)>,
    /// Bytes at the receiver that are not a whole frame yet.
    partial: Vec<u8>,
}

impl Pair {
    /// A pair whose INIT is still on its way.
    pub fn new(setup: &Setup) -> Self {
        let now = Instant::now();
        let Setup { caps, layout, header, .. } = *setup;
        Pair {
            now,
            server: Channel::new(Role::Server, header, layout, caps, setup.server, now),
            client: Channel::new(Role::Client, header, layout, caps, setup.client, now),
            wire: Vec::new(),
            header,
            layout,
            latency: setup.latency,
            to_server: Pipe::default(),
            to_client: Pipe::default(),
        }
    }

    /// The channel of one role.
    pub fn end(&mut self, role: Role) -> &mut Channel {
        match role {
            Role::Server => &mut self.server,
            Role::Client => &mut self.client,
        }
    }

    /// Puts on the link what one end has outgoing, `piece` bytes at a time.
    pub fn load(&mut self, from: Role, piece: usize) {
        let arrives = self.now + self.latency;
        let (channel, pipe) = match from {
            Role::Server => (&mut self.server, &mut self.to_client),
            Role::Client => (&mut self.client, &mut self.to_server),
        };
        while channel.outgoing_len() > 0 {
            let bytes: Vec<u8> = channel.outgoing().iter().copied().take(piece.max(1)).collect();
            channel.sent(bytes.len());
            pipe.flying.push_back((arrives, bytes));
        }
    }

    /// Hands over the next piece that has arrived at one end, and every frame that it completes. `false`: there was none.
    pub fn step(
        &mut self,
        to: Role,
        mut hear: impl FnMut(&mut Channel, Event<'_>),
    ) -> Result<bool, Violation> {
        let (now, layout) = (self.now, self.layout);
        let (channel, pipe) = match to {
            Role::Server => (&mut self.server, &mut self.to_server),
            Role::Client => (&mut self.client, &mut self.to_client),
        };
        match pipe.flying.front() {
            Some((arrives, _)) if *arrives <= now => {}
            Some(_) | None => return Ok(false),
        }
        let Some((_, bytes)) = pipe.flying.pop_front() else { return Ok(false) };
        pipe.partial.extend(bytes);
        let mut used = 0;
        loop {
            let rest = pipe.partial.get(used..).unwrap_or_default();
            match split(self.header, channel.max_body(), rest).expect("our own frames are never too long") {
                Split::Incomplete { .. } => break,
                Split::Frame { frame, consumed } => {
                    self.wire.push(describe(to, layout, &frame));
                    if let Some(event) = channel.handle_frame(now, frame)? {
                        hear(channel, event);
                    }
                    used += consumed;
                }
            }
        }
        pipe.partial.drain(..used);
        Ok(true)
    }

    /// Carries everything both ways until both ends are quiet; time moves on as far as the bytes need it.
    ///
    /// # Panics
    ///
    /// When the two never come to rest.
    pub fn settle(
        &mut self,
        piece: usize,
        mut hear: impl FnMut(&mut Channel, Event<'_>),
    ) -> Result<(), Violation> {
        for _ in 0..STEP_LIMIT {
            self.load(Role::Server, piece);
            self.load(Role::Client, piece);
            let moved = self.step(Role::Client, &mut hear)? | self.step(Role::Server, &mut hear)?;
            if !moved && !self.wait_for_bytes() {
                return Ok(());
            }
        }
        panic!("no rest after {STEP_LIMIT} steps: {:?}", self.wire.iter().rev().take(20).collect::<Vec<_>>());
    }

    /// Moves the clock to the next arrival. `false`: nothing is on its way.
    fn wait_for_bytes(&mut self) -> bool {
        let next =
            [&self.to_client, &self.to_server].iter().filter_map(|p| p.flying.front()).map(|f| f.0).min();
        match next {
            Some(at) => {
                self.now = self.now.max(at);
                true
            }
            None => self.server.outgoing_len() + self.client.outgoing_len() > 0,
        }
    }

    /// Lets time pass for both ends.
    pub fn advance(&mut self, by: Duration) -> Result<(), Violation> {
        self.now += by;
        self.server.handle_timeout(self.now)?;
        self.client.handle_timeout(self.now)
    }
}

/// More than any test needs.
const STEP_LIMIT: usize = 2_000_000;

/// A message in one line: who said it, its name, and its numbers.
pub fn describe(to: Role, layout: Layout, frame: &Frame<'_>) -> String {
    let mut line = String::new();
    match to {
        Role::Client => match ServerMessage::parse(frame.kind, frame.body) {
            Ok(Some(message)) => describe_server(&mut line, &message),
            Ok(None) | Err(_) => {
                let name = BaseServerMessage::name_of(frame.kind).unwrap_or("?");
                write!(line, "S {name}").expect("strings take everything");
            }
        },
        Role::Server => match ClientMessage::parse(layout, frame.kind, frame.body) {
            Ok(Some(message)) => describe_client(&mut line, &message),
            Ok(None) | Err(_) => {
                let name = BaseClientMessage::name_of(frame.kind).unwrap_or("?");
                write!(line, "C {name}").expect("strings take everything");
            }
        },
    }
    line
}

fn describe_server(line: &mut String, message: &ServerMessage<'_>) {
    let name = message.name();
    match message {
        ServerMessage::Init { max_sockets, max_data } => write!(line, "S {name} {max_sockets} {max_data}"),
        ServerMessage::ServiceIpMap { service, .. } => write!(line, "S {name} {}", service.0),
        ServerMessage::SocketOpen { socket, service, tokens } => {
            write!(line, "S {name} {} service {} tokens {tokens}", socket.0, service.0)
        }
        ServerMessage::SocketData { socket, payload } => {
            write!(line, "S {name} {} len {}", socket.0, payload.len())
        }
        ServerMessage::SocketToken { socket, tokens } => {
            write!(line, "S {name} {} tokens {tokens}", socket.0)
        }
        ServerMessage::SocketFin { socket }
        | ServerMessage::SocketClose { socket }
        | ServerMessage::SocketClosedAck { socket } => write!(line, "S {name} {}", socket.0),
        ServerMessage::ProbeAck { .. } => write!(line, "S {name}"),
        ServerMessage::NameQuery { query, name: host } => write!(line, "S {name} {} {host}", query.0),
    }
    .expect("strings take everything");
}

fn describe_client(line: &mut String, message: &ClientMessage<'_>) {
    let name = message.name();
    match message {
        ClientMessage::ServiceAdd(add) => write!(line, "C {name} {}", add.service.0),
        ClientMessage::ServiceRemove { service } => write!(line, "C {name} {}", service.0),
        ClientMessage::SocketOpenAck { socket, tokens } | ClientMessage::SocketToken { socket, tokens } => {
            write!(line, "C {name} {} tokens {tokens}", socket.0)
        }
        ClientMessage::SocketData { socket, payload } => {
            write!(line, "C {name} {} len {}", socket.0, payload.len())
        }
        ClientMessage::SocketOpenNack { socket }
        | ClientMessage::SocketFin { socket }
        | ClientMessage::SocketClosed { socket }
        | ClientMessage::SocketClosedAck { socket }
        | ClientMessage::SocketReset { socket } => write!(line, "C {name} {}", socket.0),
        ClientMessage::Probe { .. } => write!(line, "C {name}"),
        ClientMessage::ServiceInfo { service, info } => {
            write!(line, "C {name} {} len {}", service.0, info.as_bytes().len())
        }
        ClientMessage::NameAnswer { query, answer } => {
            write!(line, "C {name} {} status {}", query.0, answer.status())
        }
        ClientMessage::DomainAdd { name: domain } | ClientMessage::DomainRemove { name: domain } => {
            write!(line, "C {name} {domain}")
        }
    }
    .expect("strings take everything");
}
