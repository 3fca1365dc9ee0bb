//! The user's side of the demo: a Spice client that opens a session with the ticket, brings the tunnel up in it, and
//! notes what is said on the tunnel at first.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use client_glue::{Event, Host, Share, TunnelConfig};
use spice_proto::frame::{self, HeaderForm, Split};
use spice_proto::frame_stream::FrameStream;
use spice_proto::handshake::{ClientLink, Deadlines, Linked};
use spice_proto::link::{ChannelType, CommonCaps, LinkVersion};
use spice_proto::main_channel::MainServerMessage;
use spice_proto::ticket::Password;
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{Error, Room, fact, within_step};
use crate::describe;

/// Bytes noted of each direction: enough for the opening, and no more than that of a print job.
const NOTED: usize = 64 << 10;
/// Lines of the opening that are shown.
const SHOWN: usize = 8;
/// A stock server's longest message at the start of a session is the 256,000-byte ping.
const MAX_MAIN_BODY: u32 = 512 << 10;

/// The user's Spice session with its tunnel, while it lives.
pub(super) struct User {
    /// Its end is the session's.
    _main: FrameStream<TcpStream>,
    /// Where the guest finds the printer.
    pub(super) printer: SocketAddr,
    opening: Arc<Opening>,
    header: HeaderForm,
}

impl User {
    /// Opens a session on `spice`, and shares the room's printer in it.
    pub(super) async fn join(spice: SocketAddr, ticket: &Password, room: &Room) -> Result<Self, Error> {
        let mut main =
            TcpStream::connect(spice).await.map_err(Error::io("connecting to the Spice server"))?;
        let linked = link(&mut main, ChannelType::MAIN, 0, ticket, Vec::new()).await?;
        let mut main = FrameStream::new(main, linked.header, &linked.leftover);
        let session = within_step("the server's INIT", session_id(&mut main)).await??;
        fact("session", format_args!("{session:08x}, opened with its ticket"));

        let mut stream =
            TcpStream::connect(spice).await.map_err(Error::io("connecting to the Spice server"))?;
        stream.set_nodelay(true).map_err(Error::io("connecting to the Spice server"))?;
        let linked =
            link(&mut stream, ChannelType::TUNNEL, session, ticket, client_glue::channel_caps()).await?;
        let (header, opening) = (linked.header, Arc::new(Opening::default()));
        let tapped = Tapped { stream, opening: Arc::clone(&opening) };
        let (handle, mut events, tunnel) = client_glue::tunnel(tapped, linked, TunnelConfig::default());
        tokio::spawn(tunnel);

        let share = Share {
            name: Room::NAME.to_owned(),
            ..Share::new(Host::Address(room.address.ip()), room.address.port())
        };
        handle.add_share(share).map_err(Error::part("sharing the printer"))?;
        let mapped = async {
            while let Some(event) = events.recv().await {
                match event {
                    Event::Mapped { virtual_ip, port, .. } => return Ok((virtual_ip, port)),
                    Event::Disconnected { reason } => return Err(reason),
                    Event::Connected { .. }
                    | Event::Opened { .. }
                    | Event::Closed { .. }
                    | Event::Refused { .. }
                    | Event::Missed { .. } => {}
                    // Of a tunnel that stays joined, which this one does not.
                    Event::Linking { .. } | Event::Waiting { .. } | Event::GaveUp { .. } | _ => {}
                }
            }
            Err("the tunnel is gone".to_owned())
        };
        let (ip, port): (IpAddr, u16) = within_step("the printer's virtual address", mapped)
            .await?
            .map_err(|reason| Error::part("sharing the printer")(io::Error::other(reason)))?;
        // The tunnel goes on by itself; its events and commands are kept alive for it.
        tokio::spawn(async move {
            while events.recv().await.is_some() {}
            drop(handle);
        });
        let printer = SocketAddr::new(ip, port);
        fact("mapped", format_args!("{}  tcp://{}  ->  {printer}", Room::NAME, room.address));
        Ok(Self { _main: main, printer, opening, header })
    }

    /// The tunnel's first messages, a line each.
    pub(super) fn opening(&self) -> Vec<String> {
        self.opening.lines(self.header)
    }
}

async fn link(
    stream: &mut TcpStream,
    channel: ChannelType,
    session_id: u32,
    ticket: &Password,
    channel_caps: Vec<u32>,
) -> Result<Linked, Error> {
    let asked = ClientLink {
        version: LinkVersion::V2,
        channel_type: channel.0,
        channel_id: 0,
        session_id,
        common_caps: CommonCaps::OURS,
        channel_caps,
    };
    spice_proto::io::connect(stream, asked, ticket, Deadlines::default())
        .await
        .map_err(Error::part(format!("linking channel type {}", channel.0)))
}

async fn session_id(main: &mut FrameStream<TcpStream>) -> Result<u32, Error> {
    let broken = || Error::part::<spice_proto::error::ParseError>("reading the main channel");
    loop {
        while let Some((frame, length)) =
            main.frame(MAX_MAIN_BODY).map_err(Error::part("reading the main channel"))?
        {
            if let Some(MainServerMessage::Init(init)) =
                MainServerMessage::parse(frame.kind, frame.body).map_err(broken())?
            {
                return Ok(init.session_id);
            }
            main.consume(length);
        }
        let read = std::future::poll_fn(|cx| main.poll_fill(cx)).await;
        if read.map_err(Error::io("reading the main channel"))? == 0 {
            return Err(Error::io("reading the main channel")(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Client,
    Server,
}

/// The first bytes of both directions, in the order in which the client saw them.
#[derive(Default)]
struct Opening {
    pieces: Mutex<Vec<(From, Vec<u8>)>>,
}

impl Opening {
    fn note(&self, from: From, bytes: &[u8]) {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let noted: usize =
            pieces.iter().filter(|(side, _)| *side == from).map(|(_, bytes)| bytes.len()).sum();
        let room = NOTED.saturating_sub(noted).min(bytes.len());
        if let Some(bytes) = bytes.get(..room)
            && !bytes.is_empty()
        {
            pieces.push((from, bytes.to_vec()));
        }
    }

    fn lines(&self, header: HeaderForm) -> Vec<String> {
        let pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut client, mut server) = (Vec::new(), Vec::new());
        let mut lines = Vec::new();
        for (from, bytes) in pieces.iter() {
            let pending = match from {
                From::Client => &mut client,
                From::Server => &mut server,
            };
            pending.extend_from_slice(bytes);
            let mut done = 0;
            while let Some(rest) = pending.get(done..)
                && let Ok(Split::Frame { frame, consumed }) = frame::split(header, u32::MAX, rest)
            {
                lines.extend(line(*from, frame.kind, frame.body));
                done += consumed;
            }
            pending.drain(..done);
        }
        lines.truncate(SHOWN);
        lines
    }
}

fn line(from: From, kind: u16, body: &[u8]) -> Option<String> {
    let (arrow, text) = match from {
        From::Client => {
            let message = ClientMessage::parse(Layout::B, kind, body).ok()??;
            ("client → server", describe::client_message(&message))
        }
        From::Server => {
            let message = ServerMessage::parse(kind, body).ok()??;
            ("server → client", describe::server_message(&message))
        }
    };
    Some(format!("  {arrow}   {text}"))
}

/// The tunnel's stream, with its opening noted.
struct Tapped {
    stream: TcpStream,
    opening: Arc<Opening>,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.opening.note(From::Server, buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.opening.note(From::Client, buf.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
