//! The two directions without streams, then with.

use std::pin::Pin;
use std::task::{Context, Poll};

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
        let passes = self.up.filter(bytes, &mut out, |_| ());
        passed(passes, bytes, out)
    }

    fn down(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let passes = self.down.filter(bytes, &mut out);
        passed(passes, bytes, out)
    }
}

/// What goes on in place of `bytes`.
fn passed(passes: Passes, bytes: &[u8], instead: Vec<u8>) -> Vec<u8> {
    match passes {
        Passes::AsItIs => {
            assert!(instead.is_empty());
            bytes.to_vec()
        }
        Passes::Instead => instead,
    }
}

/// A body is not copied, unless it is read along or dropped.
#[test]
fn what_lies_within_a_body_passes_as_it_is() {
    for form in FORMS {
        let picture = message(form, 1, 304, &[7; 1000]);
        let (head, body) = picture.split_at(picture.len() - 600);
        let mut link = Pair::other(form);
        let mut out = Vec::new();
        assert_eq!(link.down.filter(head, &mut out), Passes::Instead);
        assert_eq!(out, head);
        out.clear();
        assert_eq!(link.down.filter(&body[..599], &mut out), Passes::AsItIs);
        // The last octet and the next message in one.
        let rest = [&body[599..], &picture].concat();
        assert_eq!(link.down.filter(&rest, &mut out), Passes::Instead);
        assert_eq!(out, rest);
        out.clear();
        let deadly = message(form, 1, MIGRATE_FLUSH_MARK, &[7; 100]);
        assert_eq!(link.up.filter(&deadly[..50], &mut out, |_| ()), Passes::Instead);
        assert_eq!(link.up.filter(&deadly[50..60], &mut out, |_| ()), Passes::Instead);
        assert!(out.is_empty(), "{out:?}");
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
            assert_eq!(link.up(&message(form, 9, MIGRATE_FLUSH_MARK, &[1, 2, 3])), NOTHING, "with its body");
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
        let bytes =
            [message(form, 1, DISPLAY_INIT, &[9; 14]), message(form, 2, DISPLAY_INIT, &[]), after.clone()];
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

/// Keeps each write apart.
#[derive(Default)]
struct Writes(Vec<Vec<u8>>);

impl AsyncWrite for Writes {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.push(bytes.to_vec());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn over_tls_each_message_is_written_by_itself() {
    let form = HeaderForm::Mini;
    let messages: Vec<Vec<u8>> =
        [12, 12, 0, 300, 0, 5].into_iter().map(|len| message(form, 0, 4, &vec![7; len])).collect();
    let stream = messages.concat();
    for first in 0..=stream.len() {
        let mut writes = Writes::default();
        let mut skimmer = FrameSkimmer::new(form);
        for chunk in [&stream[..first], &stream[first..]] {
            send_apart(&mut writes, chunk, &mut skimmer).await.unwrap();
        }
        assert_eq!(writes.0.concat(), stream, "cut at {first}");
        let mut at = 0;
        let ends: Vec<usize> = messages
            .iter()
            .map(|message| {
                at += message.len();
                at
            })
            .collect();
        let mut at = 0;
        for write in writes.0 {
            let inside = ends.iter().filter(|end| at < **end && **end < at + write.len()).count();
            assert_eq!(inside, 0, "a write goes on behind the end of a message, cut at {first}");
            at += write.len();
        }
    }
}

/// A running relay: the client's end, the server's end.
fn running(watch: Watch) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
    let (client, near) = duplex(64);
    let (server, far) = duplex(64);
    let task = tokio::spawn(async move {
        relay(Box::new(near), Box::new(far), HeaderForm::Mini, watch, &Peer::named("test")).await
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

/// A peer that fills whatever is read into for a few reads, then falls silent, and ends when it is read with less room.
/// Notes how much room it was read with.
struct Burst {
    rooms: Vec<usize>,
    fills: usize,
    silent_at: Option<usize>,
}

impl tokio::io::AsyncRead for &mut Burst {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buf.remaining();
        self.rooms.push(room);
        if self.fills > 0 {
            self.fills -= 1;
            buf.put_slice(&vec![7; room]);
        } else if *self.silent_at.get_or_insert(room) == room {
            // Nothing wakes this: only the timeout polls again.
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_falls_silent_after_pictures_is_small_again() {
    let mut burst = Burst { rooms: Vec::new(), fills: 3, silent_at: None };
    let started = tokio::time::Instant::now();
    let pumping = pump(&mut burst, tokio::io::sink(), None, |_, _| Passes::AsItIs);
    timeout(REST * 10, pumping).await.expect("the large buffer was kept").unwrap();
    assert_eq!(started.elapsed(), REST);
    assert_eq!(burst.rooms.first(), Some(&SMALL));
    assert!(burst.rooms.contains(&LARGE), "it grew: {:?}", burst.rooms);
    assert_eq!(burst.rooms.last(), Some(&SMALL));
}
