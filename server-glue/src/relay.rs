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
use crate::stream::BoxStream;

/// Bytes of one read. The server's side carries pictures.
const FROM_SERVER: usize = 64 * 1024;
/// Bytes of one read from the client.
const FROM_CLIENT: usize = 16 * 1024;

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
    peer: &str,
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
    let up = pump(client_reads, server_writes, FROM_CLIENT, |chunk, out| {
        up.filter(chunk, out, |dropped| {
            tracing::warn!(peer, "client sent {dropped}, which would have killed QEMU; dropped");
        });
    });
    let server_reads = io::Cursor::new(first).chain(server_reads);
    let down = pump(server_reads, client_writes, FROM_SERVER, |chunk, out| down.filter(chunk, out));
    both(up, down, || {
        if let Some(main) = main {
            main.session.end();
            tracing::info!(peer, "session over");
        }
    })
    .await
}

/// Runs a link that cannot be read along, as with SASL: everything passes.
pub(crate) async fn relay_blindly(client: BoxStream, server: BoxStream) -> io::Result<()> {
    let (client_reads, client_writes) = tokio::io::split(client);
    let (server_reads, server_writes) = tokio::io::split(server);
    let up = pump(client_reads, server_writes, FROM_CLIENT, |chunk, out| out.extend_from_slice(chunk));
    let down = pump(server_reads, client_writes, FROM_SERVER, |chunk, out| out.extend_from_slice(chunk));
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

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    size: usize,
    mut filter: impl FnMut(&[u8], &mut Vec<u8>),
) -> io::Result<()> {
    let mut buffer = vec![0; size];
    let mut out = Vec::with_capacity(size);
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        out.clear();
        filter(buffer.get(..n).unwrap_or(&[]), &mut out);
        to.write_all(&out).await?;
        to.flush().await?;
    }
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

    /// Appends what may pass, and reports what may not.
    fn filter(&mut self, mut chunk: &[u8], out: &mut Vec<u8>, mut report: impl FnMut(Deadly)) {
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

    fn filter(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spice_proto::frame::put_header;
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::registry::Registry;

    fn message(form: HeaderForm, serial: u64, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_header(form, &mut bytes, serial, kind, u32::try_from(body.len()).unwrap());
        bytes.extend_from_slice(body);
        bytes
    }

    fn list(entries: &[[u8; 2]]) -> Vec<u8> {
        let mut body = u32::try_from(entries.len()).unwrap().to_le_bytes().to_vec();
        body.extend(entries.concat());
        body
    }

    fn init(session: u32) -> Vec<u8> {
        let mut body = session.to_le_bytes().to_vec();
        body.extend([0; 28]);
        body[8] = 3;
        body[12] = 2;
        body
    }

    /// Both directions of one link, without streams.
    struct Pair {
        up: ToServer,
        down: ToClient,
        registry: Registry,
    }

    impl Pair {
        fn main(form: HeaderForm) -> Self {
            let registry = Registry::default();
            let session = MainSession::new(registry.clone());
            let main = MainWatch { session, announce: true, target: false, peer: "test".to_owned() };
            Self::new(form, Some(main), registry)
        }

        fn other(form: HeaderForm) -> Self {
            Self::new(form, None, Registry::default())
        }

        fn new(form: HeaderForm, main: Option<MainWatch>, registry: Registry) -> Self {
            let between = Arc::new(Between::default());
            let asks = if main.is_some() { Asks::Main { target: false } } else { Asks::Other };
            let up = ToServer::new(form, asks, Arc::clone(&between));
            Self { up, down: ToClient::new(form, between, main), registry }
        }

        fn up(&mut self, bytes: &[u8]) -> Vec<u8> {
            let mut out = Vec::new();
            self.up.filter(bytes, &mut out, |_| ());
            out
        }

        fn down(&mut self, bytes: &[u8]) -> Vec<u8> {
            let mut out = Vec::new();
            self.down.filter(bytes, &mut out);
            out
        }
    }

    const NOTHING: [u8; 0] = [];
    const FORMS: [HeaderForm; 2] = [HeaderForm::Full, HeaderForm::Mini];
    const OTHERS: [[u8; 2]; 3] = [[2, 0], [4, 0], [3, 0]];
    const ALL: [[u8; 2]; 4] = [[2, 0], [4, 0], [3, 0], [7, 0]];

    #[test]
    fn the_list_that_answers_attach_gets_the_tunnel() {
        for form in FORMS {
            let mut link = Pair::main(form);
            let plain = message(form, 4, CHANNELS_LIST, &list(&OTHERS));
            assert_eq!(link.down(&plain), plain, "nobody asked");
            let attach = message(form, 1, ATTACH_CHANNELS, &[]);
            assert_eq!(link.up(&attach), attach);
            // Behind the ping, and byte by byte.
            let ping = message(form, 3, 4, &[0; 256_012]);
            assert_eq!(link.down(&ping), ping);
            let got: Vec<u8> = plain.iter().flat_map(|byte| link.down(&[*byte])).collect();
            assert_eq!(got, message(form, 4, CHANNELS_LIST, &list(&ALL)), "with the serial that it had");
            assert_eq!(link.down(&plain), plain, "an addition that nobody asked for");
        }
    }

    #[test]
    fn lists_that_are_odd_pass() {
        let form = HeaderForm::Full;
        let mut with_sub_list = message(form, 4, CHANNELS_LIST, &list(&OTHERS));
        with_sub_list[14] = 10;
        let mut count = list(&OTHERS);
        count[0] = 4;
        let mut most = list(&OTHERS);
        most[..4].fill(0xff);
        for odd in [
            with_sub_list,
            message(form, 4, CHANNELS_LIST, &list(&ALL)),
            message(form, 4, CHANNELS_LIST, &count),
            message(form, 4, CHANNELS_LIST, &most),
            message(form, 4, CHANNELS_LIST, &[]),
            message(form, 4, CHANNELS_LIST, &[0, 0, 0]),
            message(form, 4, CHANNELS_LIST, &[0; 5000]),
        ] {
            let mut link = Pair::main(form);
            link.up(&message(form, 1, ATTACH_CHANNELS, &[]));
            assert_eq!(link.down(&odd), odd);
        }
        let mut link = Pair::main(form);
        link.up(&message(form, 1, ATTACH_CHANNELS, &[]));
        let got = link.down(&message(form, 4, CHANNELS_LIST, &list(&[])));
        assert_eq!(got, message(form, 4, CHANNELS_LIST, &list(&[[7, 0]])));
    }

    #[test]
    fn a_list_before_init_or_on_another_channel_is_left_alone() {
        let form = HeaderForm::Mini;
        let plain = message(form, 0, CHANNELS_LIST, &list(&OTHERS));
        let mut link = Pair::other(form);
        link.up(&message(form, 0, ATTACH_CHANNELS, &[]));
        assert_eq!(link.down(&plain), plain);
    }

    #[test]
    fn init_begins_the_session_and_the_latest_counts() {
        for form in FORMS {
            let mut link = Pair::main(form);
            for session in [7, 8] {
                let bytes = message(form, 1, INIT, &init(session));
                assert_eq!(link.down(&bytes[..20]), NOTHING);
                assert!(link.registry.find(session).is_none());
                assert_eq!(link.down(&bytes[20..]), bytes);
                assert!(link.registry.find(session).is_some());
            }
            assert!(link.registry.find(7).is_none());
            let short = message(form, 1, INIT, &init(9)[..31]);
            assert_eq!(link.down(&short), short);
            assert!(link.registry.find(9).is_none());
            let other = link.registry.clone();
            drop(link);
            assert!(other.find(8).is_none());
        }
    }

    #[test]
    fn a_flush_mark_passes_once_for_each_request() {
        for form in FORMS {
            for mut link in [Pair::main(form), Pair::other(form)] {
                let mark = message(form, 9, MIGRATE_FLUSH_MARK, &[]);
                let ack = message(form, 10, 2, &[]);
                assert_eq!(link.up(&[mark.clone(), ack.clone()].concat()), ack);
                assert_eq!(
                    link.up(&message(form, 9, MIGRATE_FLUSH_MARK, &[1, 2, 3])),
                    NOTHING,
                    "with its body"
                );
                for flags in [0u32, 2] {
                    link.down(&message(form, 1, MIGRATE, &flags.to_le_bytes()));
                    assert_eq!(link.up(&mark), NOTHING, "{flags}");
                }
                for flags in [1u32, 3] {
                    let migrate = message(form, 1, MIGRATE, &flags.to_le_bytes());
                    assert_eq!(
                        link.down(&migrate[..form.len() + 3]),
                        NOTHING,
                        "read before the client can answer"
                    );
                    assert_eq!(link.down(&migrate[form.len() + 3..]), migrate);
                    assert_eq!(link.up(&mark), mark, "{flags}");
                    assert_eq!(link.up(&mark), NOTHING, "the second one kills as well");
                }
                let malformed = message(form, 1, MIGRATE, &[1, 0, 0]);
                assert_eq!(link.down(&malformed), malformed);
                assert_eq!(link.up(&mark), NOTHING);
            }
        }
    }

    #[test]
    fn a_display_starts_once() {
        for form in FORMS {
            let mut up = ToServer::new(form, Asks::Display, Arc::default());
            let mut out = Vec::new();
            let mut reported = Vec::new();
            let after = message(form, 3, 102, &[1, 2]);
            let bytes = [
                message(form, 1, DISPLAY_INIT, &[9; 14]),
                message(form, 2, DISPLAY_INIT, &[]),
                after.clone(),
            ];
            up.filter(&bytes.concat(), &mut out, |deadly| reported.push(deadly));
            assert_eq!(out, after);
            assert_eq!(reported, [Deadly::SecondInit, Deadly::SecondInit]);
        }
    }

    #[test]
    fn only_a_migrations_target_does_seamless() {
        let bytes = message(HeaderForm::Mini, 0, MIGRATE_DST_DO_SEAMLESS, &[0; 4]);
        for (asks, passes) in [
            (Asks::Main { target: false }, false),
            (Asks::Main { target: true }, true),
            (Asks::Display, true),
            (Asks::Other, true),
        ] {
            let mut up = ToServer::new(HeaderForm::Mini, asks, Arc::default());
            let mut out = Vec::new();
            up.filter(&bytes, &mut out, |deadly| assert_eq!(deadly, Deadly::DoSeamless));
            assert_eq!(!out.is_empty(), passes, "{asks:?}");
        }
    }

    #[tokio::test]
    async fn what_the_server_said_first_comes_first() {
        let (mut client, mut server, _task) =
            running(Watch::Display(message(HeaderForm::Mini, 0, 3, &[1; 8])[..5].to_vec()));
        server.write_all(&message(HeaderForm::Mini, 0, 3, &[1; 8])[5..]).await.unwrap();
        let mut got = [0; 14];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got.as_slice(), message(HeaderForm::Mini, 0, 3, &[1; 8]));
    }

    fn any_message() -> impl Strategy<Value = (u16, Vec<u8>)> {
        let kind = prop_oneof![1u16..10, 100u16..112, any::<u16>()];
        (kind, prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 0..60), Just(vec![0; 5000])])
    }

    proptest! {
        /// Pieces do not matter, and what is not one of the three exceptions passes as it is.
        #[test]
        fn all_else_passes_in_any_pieces(
            messages in prop::collection::vec(any_message(), 0..20),
            full in any::<bool>(),
            main in any::<bool>(),
            chop in 1usize..5000,
        ) {
            let form = if full { HeaderForm::Full } else { HeaderForm::Mini };
            let pair = || if main { Pair::main(form) } else { Pair::other(form) };
            let bytes = |keep: &dyn Fn(u16) -> bool| -> Vec<u8> {
                let kept = messages.iter().filter(|(kind, _)| keep(*kind));
                kept.flat_map(|(kind, body)| message(form, 5, *kind, body)).collect()
            };
            let whole = bytes(&|_| true);
            let mut link = pair();
            let up: Vec<u8> = whole.chunks(chop).flat_map(|piece| link.up(piece)).collect();
            let passes = |kind| kind != MIGRATE_FLUSH_MARK && !(main && kind == MIGRATE_DST_DO_SEAMLESS);
            prop_assert_eq!(up, bytes(&passes));
            let mut link = pair();
            let down: Vec<u8> = whole.chunks(chop).flat_map(|piece| link.down(piece)).collect();
            prop_assert_eq!(down, whole);
        }

        /// Whatever order the client asks in and the server answers in, held bytes stay few.
        #[test]
        fn little_is_held(bytes in prop::collection::vec(any::<u8>(), 0..8_000), chop in 1usize..5000) {
            let mut link = Pair::main(HeaderForm::Mini);
            for piece in bytes.chunks(chop) {
                link.up(piece);
                link.down(piece);
                let held = link.down.held.as_ref().map_or(0, |(_, body)| body.len());
                prop_assert!(held <= MOST_HELD as usize);
            }
        }
    }

    /// A running relay: the client's end, the server's end.
    fn running(watch: Watch) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
        let (client, near) = duplex(64);
        let (server, far) = duplex(64);
        let task = tokio::spawn(async move {
            relay(Box::new(near), Box::new(far), HeaderForm::Mini, watch, "test").await
        });
        (client, server, task)
    }

    #[tokio::test]
    async fn each_direction_closes_by_itself() {
        let (mut client, mut server, task) = running(Watch::Other);
        let data = message(HeaderForm::Mini, 0, 101, b"data");
        client.write_all(&data).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, data);
        // The server still has something to say, more than fits in between.
        let answer = message(HeaderForm::Mini, 0, 102, &[7; 1000]);
        let (wrote, read) = tokio::join!(
            async {
                server.write_all(&answer).await.unwrap();
                server.shutdown().await
            },
            async {
                got.clear();
                client.read_to_end(&mut got).await
            }
        );
        wrote.unwrap();
        assert_eq!((read.unwrap(), &got), (answer.len(), &answer));
        task.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_link_does_not_last() {
        let (client, mut server, task) = running(Watch::Other);
        server.shutdown().await.unwrap();
        let started = tokio::time::Instant::now();
        task.await.unwrap().unwrap();
        assert_eq!(started.elapsed(), HALF_CLOSED);
        drop(client);
    }

    #[tokio::test]
    async fn a_session_ends_with_the_first_direction_that_does() {
        for client_first in [true, false] {
            let registry = Registry::default();
            let session = MainSession::new(registry.clone());
            let main = MainWatch { session, announce: true, target: false, peer: "test".to_owned() };
            let (mut client, mut server, task) = running(Watch::Main(main));
            server.write_all(&message(HeaderForm::Mini, 0, INIT, &init(7))).await.unwrap();
            let mut got = [0; 38];
            client.read_exact(&mut got).await.unwrap();
            let ended = registry.find(7).unwrap();
            if client_first {
                client.shutdown().await.unwrap();
            } else {
                server.shutdown().await.unwrap();
            }
            ended.cancelled().await;
            // A late INIT on a main that is over begins nothing.
            if client_first {
                server.write_all(&message(HeaderForm::Mini, 0, INIT, &init(8))).await.unwrap();
                client.read_exact(&mut got).await.unwrap();
                assert!(registry.find(8).is_none());
            }
            drop((client, server));
            let _ = task.await.unwrap();
        }
    }
}
