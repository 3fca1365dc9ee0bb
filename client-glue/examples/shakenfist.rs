//! A Spice client made with `shakenfist-spice-protocol` (the library of the ryll client), with a tunnel in its session.
//!
//! ```sh
//! SPICE_PASSWORD=secret cargo run -p client-glue --example shakenfist -- \
//!     vmhost 5900 'tcp://192.168.1.40:631?name=office-printer'
//! SPICE_PASSWORD=secret cargo run -p client-glue --example shakenfist -- \
//!     --tls ca.pem vmhost 5901 'tcp://192.168.1.40:631?name=office-printer'
//! ```
//!
//! What a client of yours needs of it is [`Tunnel`]: linking by the library's own means, and handing the stream over. All
//! the rest is as small a client as can be, which opens a session, attaches to its channels and draws nothing.
//!
//! It ends with Ctrl-C, or with the session.

#![expect(clippy::wildcard_enum_match_arm, reason = "a client takes what it knows, of libraries that grow")]

use std::time::Duration;

use anyhow::{Context, Result, bail};
use client_glue::{Event, Events, Handle, Linked, Share, TunnelConfig};
use shakenfist_spice_protocol::link::SpiceStream;
use shakenfist_spice_protocol::messages::{
    AckSync, ChannelsList, DisplayInit, MainInit, Ping, ReceiveBuffer, ReceivedMessage, SetAck, WireType,
    make_message,
};
use shakenfist_spice_protocol::{
    ChannelType, ConnectionConfig, SpiceClient, display_client, main_client, main_server,
};
use tokio::io::AsyncReadExt;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// A stock server measures the network with a ping of 256,000 bytes, and draws in larger messages.
const MAX_BODY: usize = 64 << 20;
/// How long the tunnel may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> Result<()> {
    let (config, shares) = arguments()?;
    let client = SpiceClient::new(config)?;
    let (main, session_id, channels) = open_session(&client).await?;
    println!("session {session_id:08x} with {} channels", channels.channels.len());

    // The session lives as long as its main channel.
    let mut session = tokio::spawn(attend(ChannelType::Main, main));
    let mut others = JoinSet::new();
    let mut tunnel = None;
    for entry in &channels.channels {
        match ChannelType::from_u8(entry.channel_type) {
            Some(kind @ (ChannelType::Display | ChannelType::Inputs)) => {
                let stream = client.connect_channel(session_id, kind, entry.channel_id).await?;
                others.spawn(attend(kind, Channel::new(stream)));
            }
            // A server without a tunnel does not list it.
            Some(ChannelType::Tunnel) => tunnel = Some(Tunnel::link(&client, session_id).await?),
            _ => {}
        }
    }
    let Some(mut tunnel) = tunnel else { bail!("this server offers no tunnel") };
    for share in shares {
        tunnel.handle.add_share(share)?;
    }

    loop {
        tokio::select! {
            // A session goes on without its tunnel, so that this branch is over then, not the loop.
            Some(event) = tunnel.events.recv() => match event {
                Event::Mapped { name, target, virtual_ip, port, .. } => {
                    println!("{name}  {target}  ->  {virtual_ip}:{port}");
                }
                Event::Refused { reason, .. } => println!("the guest was refused: {reason}"),
                Event::Disconnected { reason } => println!("the tunnel has ended: {reason}"),
                // Opened, closed, connected: for those who want to show them.
                _ => {}
            },
            ended = &mut session => {
                println!("the session has ended: {:#}", ended?);
                break;
            }
            Some(ended) = others.join_next() => println!("a channel has ended: {:#}", ended?),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                break;
            }
        }
    }
    tunnel.end().await
}

/// The tunnel of a session. This is the part to copy.
struct Tunnel {
    handle: Handle,
    events: Events,
    running: JoinHandle<Result<(), client_glue::Error>>,
}

impl Tunnel {
    async fn link(client: &SpiceClient, session_id: u32) -> Result<Self> {
        let (common, channel) = (client_glue::common_caps(), client_glue::channel_caps());
        let (stream, reply) = client
            .connect_channel_with_caps(session_id, ChannelType::Tunnel, 0, &common, &channel)
            .await
            .context("linking the tunnel")?;
        let linked = Linked::tunnel(&common, &reply.common_caps, &reply.channel_caps);
        let (handle, events, run) = client_glue::tunnel(stream, linked, TunnelConfig::default());
        Ok(Self { handle, events, running: tokio::spawn(run) })
    }

    /// Tells the server, which tells the guest; services see their connections reset.
    async fn end(self) -> Result<()> {
        self.handle.shutdown();
        let ended = timeout(GOODBYE, self.running).await.context("the tunnel did not end in time")?;
        ended?.context("the tunnel failed")
    }
}

/// Links main, and asks for the list of channels.
async fn open_session(client: &SpiceClient) -> Result<(Channel, u32, ChannelsList)> {
    let mut main = Channel::new(client.connect_channel(0, ChannelType::Main, 0).await?);
    let mut session_id = None;
    loop {
        let message = main.next().await?;
        match (message.header.message_type, session_id) {
            (main_server::INIT, None) => {
                session_id = Some(MainInit::decode(message.payload())?.session_id);
                main.send(main_client::ATTACH_CHANNELS, &[]).await?;
            }
            (main_server::CHANNELS_LIST, Some(id)) => {
                return Ok((main, id, ChannelsList::decode(message.payload())?));
            }
            _ => {}
        }
    }
}

/// Keeps a channel going. A real client draws and types here.
async fn attend(kind: ChannelType, mut channel: Channel) -> anyhow::Error {
    if kind == ChannelType::Display {
        let init = DisplayInit { cache_id: 1, cache_size: 0, glz_dict_id: 1, glz_dict_window: 0 };
        let mut body = Vec::new();
        init.write(&mut body);
        if let Err(error) = channel.send(display_client::INIT, &body).await {
            return error.context(kind.name());
        }
    }
    loop {
        if let Err(error) = channel.next().await {
            return error.context(kind.name());
        }
    }
}

/// A linked channel: messages in and out, and what every channel owes its server.
struct Channel {
    stream: SpiceStream,
    buffer: ReceiveBuffer,
    /// How many messages an ACK is for, and how many are still to come before the next.
    acks: Option<(u32, u32)>,
}

impl Channel {
    fn new(stream: SpiceStream) -> Self {
        Self { stream, buffer: ReceiveBuffer::new(), acks: None }
    }

    async fn send(&mut self, kind: u16, body: &[u8]) -> Result<()> {
        self.stream.write_all(&make_message(kind, body)).await?;
        self.stream.flush().await
    }

    /// The next message, when all that it calls for was answered.
    async fn next(&mut self) -> Result<ReceivedMessage> {
        loop {
            if let Some(message) = self.buffer.take_message(MAX_BODY)? {
                self.answer(&message).await?;
                return Ok(message);
            }
            let mut piece = Vec::with_capacity(16 << 10);
            if self.stream.read_buf(&mut piece).await? == 0 {
                bail!("the server closed the channel");
            }
            self.buffer.extend_from_slice(&piece);
        }
    }

    async fn answer(&mut self, message: &ReceivedMessage) -> Result<()> {
        let mut body = Vec::new();
        if let Some((window, left)) = &mut self.acks {
            *left = left.saturating_sub(1);
            if *left == 0 {
                *left = *window;
                self.send(main_client::ACK, &[]).await?;
            }
        }
        match message.header.message_type {
            main_server::PING => {
                Ping::decode(message.payload())?.pong().write(&mut body);
                self.send(main_client::PONG, &body).await
            }
            main_server::SET_ACK => {
                let SetAck { generation, window } = SetAck::decode(message.payload())?;
                self.acks = (window > 0).then_some((window, window));
                AckSync { generation }.write(&mut body);
                self.send(main_client::ACK_SYNC, &body).await
            }
            _ => Ok(()),
        }
    }
}

/// `[--tls CA.pem] HOST PORT SHARE…`, and the ticket from the environment, where other users do not see it.
fn arguments() -> Result<(ConnectionConfig, Vec<Share>)> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let mut config =
        ConnectionConfig { password: std::env::var("SPICE_PASSWORD").ok(), ..ConnectionConfig::default() };
    let secure = words.first().is_some_and(|word| word == "--tls");
    if secure && words.len() > 1 {
        let ca = words.remove(1);
        config.ca_cert = Some(std::fs::read_to_string(&ca).with_context(|| ca.clone())?);
        words.remove(0);
        // The library wants its process to choose.
        let _ = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    let [host, port, shares @ ..] = words.as_slice() else {
        bail!("usage: shakenfist [--tls CA.pem] HOST PORT SHARE...");
    };
    config.host.clone_from(host);
    config.port = port.parse().context("the port")?;
    config.tls_port = secure.then_some(config.port);
    let shares = shares.iter().map(|share| share.parse().context(share.clone())).collect::<Result<_>>()?;
    Ok((config, shares))
}
