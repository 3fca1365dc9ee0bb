//! A linked channel between a client and the stock server: bytes pass as they came, with five exceptions.
//!
//! * The client's MIGRATE_FLUSH_MARK passes only if the server asked for one on this link by a MIGRATE with NEED_FLUSH, once
//!   for each. An unprompted one aborts QEMU (wire-reference 2.4).
//! * A display's DISPLAY_INIT passes once. A second one aborts QEMU as well (tried with libspice-server 0.15.1).
//! * MIGRATE_DST_DO_SEAMLESS passes only on a main that was linked as a migration's target. On any other it aborts QEMU (tried).
//! * On main, the list that answers ATTACH_CHANNELS gets the tunnel's entry at its end.
//! * On main, the server's INIT is read for the session id.
//!
//! Messages are followed by their headers alone; no body is kept but those of the few messages named here, and these are
//! short. Each direction half-closes by itself.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use spice_proto::base::{BaseServerMessage, FIRST_OF_CHANNEL, MIGRATE, MIGRATE_FLUSH_MARK, MigrateFlags};
use spice_proto::frame::{FrameSkimmer, Header, HeaderForm, Skimmed};
use spice_proto::link::ChannelType;
use spice_proto::main_channel::{
    ATTACH_CHANNELS, CHANNELS_LIST, ChannelEntry, INIT, MainServerMessage, add_channel,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::registry::MainSession;
use crate::stream::{BoxStream, Peer, send_all};

/// Bytes of one read at first. A VM has a dozen links, of which few carry pictures.
const SMALL: usize = 16 * 1024;
/// Bytes of one read where reads fill the buffer.
const LARGE: usize = 256 * 1024;
/// Reads in a row that would have fitted into the small buffer, after which it is the small one again.
const FEW: u32 = 64;

/// So long without a byte, and the large one is given back as well.
const REST: Duration = Duration::from_secs(1);

/// Longest body that is kept to be read whole. A list of this size has 2000 channels.
const MOST_HELD: u32 = 4096;

/// How long one direction may go on once the other has ended. No Spice peer lives on half-closed.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// What the two directions of one link tell each other.
#[derive(Debug, Default)]
struct Between {
    /// A MIGRATE with NEED_FLUSH passed, and its mark has not.
    flush_due: AtomicBool,
    /// ATTACH_CHANNELS that no list has answered yet.
    attaches: AtomicU32,
}

/// The client's MIGRATE_DST_DO_SEAMLESS, on main.
const MIGRATE_DST_DO_SEAMLESS: u16 = 110;

/// DISPLAY_INIT, the message that must be a display channel's first, and its last of this type.
pub(crate) const DISPLAY_INIT: u16 = FIRST_OF_CHANNEL;

/// What a link's channel asks of its relay.
#[derive(Debug)]
pub(crate) enum Watch {
    /// To be read along.
    Main(MainWatch),
    /// Its DISPLAY_INIT has passed, and the server has answered with these first bytes.
    Display(Vec<u8>),
    /// Nothing.
    Other,
}

/// How a main link is read along.
#[derive(Clone, Debug)]
pub(crate) struct MainWatch {
    /// What INIT is told to.
    pub(crate) session: MainSession,
    /// Whether lists get the tunnel's entry.
    pub(crate) announce: bool,
    /// Whether it was linked with a session id, as a migration's target.
    pub(crate) target: bool,
    /// For logs.
    pub(crate) peer: String,
}

/// Runs a link in its data stage until both directions have ended, or one failed.
pub(crate) async fn relay(
    client: BoxStream,
    server: BoxStream,
    header: HeaderForm,
    watch: Watch,
    peer: &Peer,
) -> io::Result<()> {
    let between = Arc::new(Between::default());
    let mut up = ToServer::new(header, Asks::of(&watch), Arc::clone(&between));
    let (main, first) = match watch {
        Watch::Main(main) => (Some(main), Vec::new()),
        Watch::Display(first) => (None, first),
        Watch::Other => (None, Vec::new()),
    };
    let mut down = ToClient::new(header, between, main.clone());
    let (client_reads, client_writes) = tokio::io::split(client);
    let (server_reads, server_writes) = tokio::io::split(server);
    let up = pump(client_reads, server_writes, None, |chunk, out| {
        up.filter(chunk, out, |dropped| {
            tracing::warn!(%peer, "client sent {dropped}, which would have killed QEMU; dropped");
        })
    });
    let server_reads = io::Cursor::new(first).chain(server_reads);
    let apart = peer.secure.then(|| FrameSkimmer::new(header));
    let down = pump(server_reads, client_writes, apart, |chunk, out| down.filter(chunk, out));
    both(up, down, || {
        if let Some(main) = main {
            main.session.end();
            tracing::info!(%peer, "session over");
        }
    })
    .await
}

/// Runs a link that cannot be read along, as with SASL: everything passes.
pub(crate) async fn relay_blindly(client: BoxStream, server: BoxStream) -> io::Result<()> {
    let (client_reads, client_writes) = tokio::io::split(client);
    let (server_reads, server_writes) = tokio::io::split(server);
    let up = pump(client_reads, server_writes, None, |_, _| Passes::AsItIs);
    let down = pump(server_reads, client_writes, None, |_, _| Passes::AsItIs);
    both(up, down, || ()).await
}

/// Both directions, of which the second one to end has [`HALF_CLOSED`].
async fn both(
    up: impl Future<Output = io::Result<()>>,
    down: impl Future<Output = io::Result<()>>,
    at_first_end: impl FnOnce(),
) -> io::Result<()> {
    let mut up = Box::pin(up);
    let mut down = Box::pin(down);
    let rest = tokio::select! {
        ended = &mut up => {
            at_first_end();
            ended?;
            timeout(HALF_CLOSED, &mut down).await
        }
        ended = &mut down => {
            at_first_end();
            ended?;
            timeout(HALF_CLOSED, &mut up).await
        }
    };
    rest.unwrap_or(Ok(()))
}

/// What becomes of a chunk of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passes {
    /// It lies within a body that passes: nothing was copied.
    AsItIs,
    /// What was appended to the other buffer goes in its place.
    Instead,
}

/// Passes on what comes until it ends. `apart`: each message is written by itself.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut apart: Option<FrameSkimmer>,
    mut filter: impl FnMut(&[u8], &mut Vec<u8>) -> Passes,
) -> io::Result<()> {
    let mut buffer = vec![0; SMALL];
    let mut out = Vec::new();
    let mut few = 0;
    loop {
        let n = if buffer.len() > SMALL {
            match timeout(REST, from.read(&mut buffer)).await {
                Ok(read) => read?,
                Err(_) => {
                    (buffer, out) = (vec![0; SMALL], Vec::new());
                    continue;
                }
            }
        } else {
            from.read(&mut buffer).await?
        };
        let chunk = match buffer.get(..n) {
            None | Some([]) => return to.shutdown().await,
            Some(chunk) => chunk,
        };
        out.clear();
        let bytes = match filter(chunk, &mut out) {
            Passes::AsItIs => chunk,
            Passes::Instead => &out,
        };
        match &mut apart {
            Some(skimmer) => send_apart(&mut to, bytes, skimmer).await?,
            None => send_all(&mut to, bytes).await?,
        }
        few = if n <= SMALL { few + 1 } else { 0 };
        if n == buffer.len() && n < LARGE {
            buffer = vec![0; LARGE];
            few = 0;
        } else if few >= FEW && buffer.len() > SMALL {
            buffer = vec![0; SMALL];
            out = Vec::new();
        }
    }
}

/// Writes so that no TLS record holds the end of one message and the next one whole: spice-gtk reads the first, then waits for the
/// socket, and the second stays in its TLS library. So two pings at once got one answer, and the server gave the session up.
async fn send_apart(
    to: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    skimmer: &mut FrameSkimmer,
) -> io::Result<()> {
    let mut rest = bytes;
    let mut message = bytes;
    while let Some(piece) = skimmer.next(&mut rest) {
        let ends = match piece {
            Skimmed::Header { header, .. } => header.size == 0,
            Skimmed::Body { last, .. } => last,
        };
        if ends {
            let (ended, next) = message.split_at(message.len() - rest.len());
            to.write_all(ended).await?;
            message = next;
        }
    }
    send_all(to, message).await
}

/// What kind of channel the client's direction belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Main { target: bool },
    Display,
    Other,
}

impl Asks {
    fn of(watch: &Watch) -> Self {
        match watch {
            Watch::Main(main) => Self::Main { target: main.target },
            Watch::Display(_) => Self::Display,
            Watch::Other => Self::Other,
        }
    }
}

/// A message that the server must not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deadly {
    FlushMark,
    SecondInit,
    DoSeamless,
}

impl std::fmt::Display for Deadly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::FlushMark => "a MIGRATE_FLUSH_MARK that nobody asked for",
            Self::SecondInit => "a second DISPLAY_INIT",
            Self::DoSeamless => "a MIGRATE_DST_DO_SEAMLESS to where nothing migrates",
        })
    }
}

/// The client's direction.
#[derive(Debug)]
struct ToServer {
    skimmer: FrameSkimmer,
    asks: Asks,
    between: Arc<Between>,
    /// Within the body of a message that does not pass.
    dropping: bool,
}

impl ToServer {
    fn new(header: HeaderForm, asks: Asks, between: Arc<Between>) -> Self {
        Self { skimmer: FrameSkimmer::new(header), asks, between, dropping: false }
    }

    /// Appends what may pass unless all does, and reports what may not.
    fn filter(&mut self, mut chunk: &[u8], out: &mut Vec<u8>, mut report: impl FnMut(Deadly)) -> Passes {
        if !self.dropping && self.skimmer.pass_body(chunk.len()) {
            return Passes::AsItIs;
        }
        while let Some(piece) = self.skimmer.next(&mut chunk) {
            match piece {
                Skimmed::Header { header, .. } => match self.deadly(&header) {
                    Some(deadly) => {
                        report(deadly);
                        self.dropping = header.size != 0;
                    }
                    None => {
                        if matches!(self.asks, Asks::Main { .. }) && header.kind == ATTACH_CHANNELS {
                            self.between.attaches.fetch_add(1, Ordering::Relaxed);
                        }
                        header.write(out);
                    }
                },
                Skimmed::Body { bytes, last } => {
                    if !self.dropping {
                        out.extend_from_slice(bytes);
                    }
                    self.dropping &= !last;
                }
            }
        }
        Passes::Instead
    }

    fn deadly(&self, header: &Header) -> Option<Deadly> {
        if header.kind == MIGRATE_FLUSH_MARK {
            let asked_for = self.between.flush_due.swap(false, Ordering::Relaxed);
            return (!asked_for).then_some(Deadly::FlushMark);
        }
        match self.asks {
            Asks::Display if header.kind == DISPLAY_INIT => Some(Deadly::SecondInit),
            Asks::Main { target: false } if header.kind == MIGRATE_DST_DO_SEAMLESS => {
                Some(Deadly::DoSeamless)
            }
            Asks::Main { .. } | Asks::Display | Asks::Other => None,
        }
    }
}

/// The server's direction.
#[derive(Debug)]
struct ToClient {
    skimmer: FrameSkimmer,
    between: Arc<Between>,
    main: Option<MainWatch>,
    /// A message that is read whole before it passes.
    held: Option<(Header, Vec<u8>)>,
}

impl ToClient {
    fn new(header: HeaderForm, between: Arc<Between>, main: Option<MainWatch>) -> Self {
        Self { skimmer: FrameSkimmer::new(header), between, main, held: None }
    }

    /// Appends what passes in place of the chunk, unless that does.
    fn filter(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) -> Passes {
        if self.held.is_none() && self.skimmer.pass_body(chunk.len()) {
            return Passes::AsItIs;
        }
        while let Some(piece) = self.skimmer.next(&mut chunk) {
            match piece {
                Skimmed::Header { header, .. } if header.size != 0 && self.interesting(&header) => {
                    self.held = Some((header, Vec::new()));
                }
                Skimmed::Header { header, .. } => header.write(out),
                Skimmed::Body { bytes, last } => match self.held.take() {
                    None => out.extend_from_slice(bytes),
                    Some((header, mut body)) => {
                        body.extend_from_slice(bytes);
                        if last {
                            self.pass(header, &body, out);
                        } else {
                            self.held = Some((header, body));
                        }
                    }
                },
            }
        }
        Passes::Instead
    }

    fn interesting(&self, header: &Header) -> bool {
        header.size <= MOST_HELD
            && (header.kind == MIGRATE
                || self.main.is_some() && (header.kind == INIT || header.kind == CHANNELS_LIST))
    }

    /// Reads a whole message, and appends it, perhaps changed.
    fn pass(&mut self, mut header: Header, body: &[u8], out: &mut Vec<u8>) {
        if header.kind == MIGRATE {
            if let Ok(Some(BaseServerMessage::Migrate { flags })) =
                BaseServerMessage::parse(header.kind, body)
            {
                self.between.flush_due.store(flags.contains(MigrateFlags::NEED_FLUSH), Ordering::Relaxed);
            }
        } else if header.kind == INIT {
            self.begin(body);
        } else if let Some(list) = self.announced(&header, body) {
            // The same message with a larger body: neither serials nor counts change.
            header.size = u32::try_from(list.len()).unwrap_or(header.size);
            header.write(out);
            out.extend_from_slice(&list);
            return;
        }
        header.write(out);
        out.extend_from_slice(body);
    }

    fn begin(&mut self, body: &[u8]) {
        let (Some(main), Ok(Some(MainServerMessage::Init(init)))) =
            (&self.main, MainServerMessage::parse(INIT, body))
        else {
            return;
        };
        if main.session.begin(init.session_id) {
            tracing::info!(peer = main.peer, session = init.session_id, "session begins");
        }
    }

    /// The list with the tunnel in it, if this is the answer to an ATTACH_CHANNELS.
    fn announced(&self, header: &Header, body: &[u8]) -> Option<Vec<u8>> {
        let announce = self.main.as_ref().is_some_and(|main| main.announce);
        // A list with sub-messages behind it has no room at its end.
        if !announce || header.sub_list != 0 {
            return None;
        }
        let attaches = &self.between.attaches;
        attaches.try_update(Ordering::Relaxed, Ordering::Relaxed, |due| due.checked_sub(1)).ok()?;
        let entry = ChannelEntry { channel_type: ChannelType::TUNNEL.0, channel_id: 0 };
        add_channel(body, entry).ok().map(std::borrow::Cow::into_owned)
    }
}
