//! The proxy between a scripted client and a scripted server. Before a real QEMU it is tried in the root's `tests/proxy.rs`.

use spice_proto::frame::HeaderForm;
use spice_proto::handshake::{ClientLink, Step};
use spice_proto::io::connect;
use spice_proto::link::{HEADER_LEN, LinkHeader, LinkVersion, MECHANISM_SASL, MECHANISM_TICKET};
use spice_proto::ticket::seal;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::stream::Target;

const PATIENCE: Duration = Duration::from_secs(10);
const SESSION: u32 = 0x0bad_cafe;

/// A proxy, what it hands over, and the server behind it.
struct Bench {
    proxy: Proxy,
    tunnels: (mpsc::Sender<TunnelLink>, mpsc::Receiver<TunnelLink>),
    shutdown: CancellationToken,
    server: UnixListener,
    _dir: tempfile::TempDir,
}

fn bench(limits: Limits) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spice");
    let server = UnixListener::bind(&path).unwrap();
    let backend = Backend::Upstream(Target::Unix(path).into());
    let tunnel = TunnelPolicy::Enabled { companion: true, in_clear: true };
    let proxy = Proxy::new(ProxyConfig { backend, tunnel, limits });
    Bench { proxy, tunnels: mpsc::channel(1), shutdown: CancellationToken::new(), server, _dir: dir }
}

fn stranger(address: &str) -> Peer {
    Peer { address: Some(address.parse().unwrap()), ..Peer::named(address) }
}

impl Bench {
    /// A new connection to the proxy.
    fn client(&self) -> DuplexStream {
        self.client_from("10.0.0.1")
    }

    fn client_from(&self, address: &str) -> DuplexStream {
        let (client, near) = duplex(1 << 16);
        let handling = self.proxy.clone().handle(
            Box::new(near),
            stranger(address),
            self.tunnels.0.clone(),
            self.shutdown.clone(),
        );
        tokio::spawn(handling);
        client
    }

    /// The proxy's next connection to the server.
    async fn server(&self) -> UnixStream {
        timeout(PATIENCE, self.server.accept()).await.expect("nobody came upstream").unwrap().0
    }

    /// Takes the next connection to the server for a question about a ticket, and answers it by this code.
    async fn answer(&self, code: u32) -> Password {
        let mut server = self.server().await;
        let mess = mess_of(&mut server).await;
        assert_eq!((mess.channel_type, mess.channel_id), (ChannelType::INPUTS.0, 0));
        assert!(mess.session_id != 0 && mess.session_id != SESSION);
        let key = TicketKey::generate().unwrap();
        server.write_all(&reply(&key)).await.unwrap();
        let (mechanism, ticket) = auth_of(&mut server).await;
        assert_eq!(mechanism, MECHANISM_TICKET);
        server.write_all(&code.to_le_bytes()).await.unwrap();
        key.open(&ticket).unwrap()
    }

    /// A main link in its data stage: the client's end, the server's end.
    async fn main(&self) -> (DuplexStream, UnixStream) {
        let mut client = self.client();
        client.write_all(&mess(ChannelType::MAIN, 0)).await.unwrap();
        let mut server = self.server().await;
        mess_of(&mut server).await;
        let key = TicketKey::generate().unwrap();
        server.write_all(&reply(&key)).await.unwrap();
        link_on(&mut client).await;
        auth_of(&mut server).await;
        server.write_all(&[0; 4]).await.unwrap();
        assert_eq!(exactly::<4>(&mut client).await, [0; 4]);
        let mut init = vec![103, 0, 32, 0, 0, 0];
        init.extend(SESSION.to_le_bytes());
        init.extend([0; 28]);
        server.write_all(&init).await.unwrap();
        assert_eq!(exactly::<38>(&mut client).await.as_slice(), init);
        (client, server)
    }

    /// A display link whose client has been told that it is linked.
    async fn display(&self) -> (DuplexStream, UnixStream, TicketKey) {
        let mut client = self.client();
        let asked = mess(ChannelType::DISPLAY, SESSION);
        client.write_all(&asked).await.unwrap();
        let mut server = self.server().await;
        let seen = exactly::<42>(&mut server).await;
        assert_eq!(seen.as_slice(), asked, "the server sees the client's own link message");
        let key = TicketKey::generate().unwrap();
        server.write_all(&reply(&key)).await.unwrap();
        let welcome = link_on(&mut client).await;
        assert_eq!(
            (welcome.common_caps, welcome.channel_caps),
            (vec![0x0b], vec![0x1052]),
            "the server's own"
        );
        assert_ne!(*welcome.public_key, *key.public_der());
        assert!(self.answer(8).await.matches(&password()));
        assert_eq!(exactly::<4>(&mut client).await, [0; 4]);
        (client, server, key)
    }
}

fn password() -> Password {
    Password::new("sesame").unwrap()
}

fn mess(channel: ChannelType, session_id: u32) -> Vec<u8> {
    let mess = LinkMess {
        session_id,
        channel_type: channel.0,
        channel_id: 0,
        common_caps: vec![0x0d],
        channel_caps: vec![0x3bf],
    };
    let mut bytes = Vec::new();
    mess.write(LinkVersion::V2, &mut bytes);
    bytes
}

fn welcome(public_key: [u8; 162], common: u32) -> Vec<u8> {
    let welcome =
        Welcome { public_key: Box::new(public_key), common_caps: vec![common], channel_caps: vec![0x1052] };
    let mut bytes = Vec::new();
    LinkReply::Welcome(welcome).write(LinkVersion::V2, &mut bytes);
    bytes
}

fn reply(key: &TicketKey) -> Vec<u8> {
    welcome(*key.public_der(), 0x0b)
}

async fn exactly<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> [u8; N] {
    let mut bytes = [0; N];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("too little came").unwrap();
    bytes
}

async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it does not end").unwrap();
    bytes
}

async fn silent(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    timeout(Duration::from_millis(100), stream.read_u8()).await.is_err()
}

async fn mess_of(server: &mut UnixStream) -> LinkMess {
    let header = LinkHeader::parse_from_client(&exactly::<HEADER_LEN>(server).await).unwrap();
    let mut body = vec![0; header.size as usize];
    server.read_exact(&mut body).await.unwrap();
    LinkMess::parse(&body).unwrap()
}

async fn auth_of(server: &mut UnixStream) -> (u32, [u8; TICKET_LEN]) {
    (u32::from_le_bytes(exactly(server).await), exactly(server).await)
}

async fn welcome_on(client: &mut DuplexStream) -> Welcome {
    match reply_on(client).await {
        LinkReply::Welcome(welcome) => welcome,
        LinkReply::Refused(error) => panic!("{error}"),
    }
}

async fn reply_on(client: &mut DuplexStream) -> LinkReply {
    let header = LinkHeader::parse_from_server(&exactly::<HEADER_LEN>(client).await).unwrap();
    let mut body = vec![0; header.size as usize];
    client.read_exact(&mut body).await.unwrap();
    LinkReply::parse(&body).unwrap()
}

/// Reads the reply and sends mechanism and ticket.
async fn link_on(client: &mut DuplexStream) -> Welcome {
    let welcome = welcome_on(client).await;
    client.write_all(&MECHANISM_TICKET.to_le_bytes()).await.unwrap();
    client.write_all(&seal(&welcome.public_key, &password()).unwrap()).await.unwrap();
    welcome
}

/// DISPLAY_INIT, with a mini header.
fn display_init() -> Vec<u8> {
    let mut bytes = vec![101, 0, 14, 0, 0, 0];
    bytes.extend([9; 14]);
    bytes
}

async fn link(
    stream: &mut DuplexStream,
    channel: ChannelType,
    session: u32,
    password: &str,
) -> Result<Linked, LinkError> {
    let link = ClientLink {
        version: LinkVersion::V2,
        channel_type: channel.0,
        channel_id: 0,
        session_id: session,
        common_caps: CommonCaps::OURS,
        channel_caps: Vec::new(),
    };
    let password = Password::new(password).unwrap();
    match connect(stream, link, &password, Deadlines::default()).await {
        Ok(linked) => Ok(linked),
        Err(IoError::Handshake(HandshakeError::Refused(error))) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_byte_of_other_links_passes_as_it_came() {
    let bench = bench(Limits::default());
    let mut client = bench.client();
    // An odd but valid message: unused bytes, and words elsewhere than usual.
    let mut asked = mess(ChannelType::INPUTS, SESSION);
    asked[12] = 40;
    asked[30] = 30;
    asked.splice(34..34, [0xaa; 12]);
    asked.extend([0xbb; 2]);
    for byte in &asked {
        client.write_all(&[*byte]).await.unwrap();
    }
    let mut server = bench.server().await;
    let mut seen = vec![0; asked.len()];
    server.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, asked);
    let mut answer = reply(&TicketKey::generate().unwrap());
    answer.extend([0xcc; 3]);
    answer[12] += 3;
    for byte in &answer {
        server.write_all(&[*byte]).await.unwrap();
    }
    let mut seen = vec![0; answer.len()];
    client.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, answer);
    let auth = [&1u32.to_le_bytes()[..], &[0x77; TICKET_LEN], &[1, 1, 2, 0, 0, 0, 5, 5]].concat();
    client.write_all(&auth).await.unwrap();
    let seen = exactly::<132>(&mut server).await;
    assert_eq!(seen, auth[..132]);
    server.write_all(&[0; 4]).await.unwrap();
    server.write_all(&[103, 0, 1, 0, 0, 0, 7]).await.unwrap();
    assert_eq!(exactly::<11>(&mut client).await, [0, 0, 0, 0, 103, 0, 1, 0, 0, 0, 7]);
    assert_eq!(exactly::<8>(&mut server).await, auth[132..], "what was sent along is not lost");
    drop(client);
    assert!(rest(&mut server).await.is_empty());
}

#[tokio::test]
async fn refusals_of_the_server_pass() {
    let bench = bench(Limits::default());
    for channel in [ChannelType::MAIN, ChannelType::DISPLAY] {
        let mut client = bench.client();
        client.write_all(&mess(channel, 0)).await.unwrap();
        let mut server = bench.server().await;
        mess_of(&mut server).await;
        let mut refusal = Vec::new();
        LinkReply::Refused(LinkError::NeedSecured).write(LinkVersion::V2, &mut refusal);
        server.write_all(&refusal).await.unwrap();
        assert_eq!(rest(&mut client).await, refusal, "{channel:?}");

        let mut client = bench.client();
        client.write_all(&mess(channel, 0)).await.unwrap();
        drop(bench.server().await);
        assert!(rest(&mut client).await.is_empty(), "closed without a word: {channel:?}");
    }
    // A result other than 0, and a second reply in its place.
    for result in [7u32.to_le_bytes().to_vec(), welcome([0; 162], 0)] {
        let mut client = bench.client();
        client.write_all(&mess(ChannelType::INPUTS, 0)).await.unwrap();
        let mut server = bench.server().await;
        mess_of(&mut server).await;
        server.write_all(&reply(&TicketKey::generate().unwrap())).await.unwrap();
        link_on(&mut client).await;
        auth_of(&mut server).await;
        server.write_all(&result).await.unwrap();
        drop(server);
        assert_eq!(rest(&mut client).await, result);
    }
}

#[tokio::test]
async fn a_display_reaches_the_server_with_its_first_message_only() {
    let bench = bench(Limits::default());
    let _main = bench.main().await;
    let (mut client, mut server, key) = bench.display().await;
    let mut first = display_init();
    for byte in first.drain(..19) {
        client.write_all(&[byte]).await.unwrap();
    }
    assert!(silent(&mut server).await, "not before it is whole");
    client.write_all(&[first[0], 3, 0]).await.unwrap();
    let (mechanism, ticket) = auth_of(&mut server).await;
    assert_eq!(mechanism, MECHANISM_TICKET);
    assert!(key.open(&ticket).unwrap().matches(&password()), "sealed for the server now");
    assert_eq!(
        exactly::<20>(&mut server).await.as_slice(),
        display_init(),
        "there before the server's result"
    );
    server.write_all(&[0; 4]).await.unwrap();
    server.write_all(&[102, 0, 0, 0, 0, 0]).await.unwrap();
    assert_eq!(
        exactly::<6>(&mut client).await,
        [102, 0, 0, 0, 0, 0],
        "the client is not told the result twice"
    );
    client.write_all(&[0, 0, 0, 0]).await.unwrap();
    assert_eq!(exactly::<6>(&mut server).await, [3, 0, 0, 0, 0, 0]);
}

#[tokio::test]
async fn a_display_is_kept_up_until_the_server_has_begun_with_it() {
    let bench = bench(Limits::default());
    let _main = bench.main().await;
    for vanishes in [true, false] {
        let (mut client, mut server, _) = bench.display().await;
        client.write_all(&display_init()).await.unwrap();
        client.write_all(&[250, 0, 0, 0, 0, 0]).await.unwrap();
        auth_of(&mut server).await;
        exactly::<20>(&mut server).await;
        let mut client = Some(client).filter(|_| !vanishes);
        assert!(silent(&mut server).await, "neither the end nor more");
        server.write_all(&[0; 4]).await.unwrap();
        assert!(silent(&mut server).await, "the result is not yet a beginning");
        server.write_all(&[3, 0, 8, 0, 0, 0]).await.unwrap();
        match &mut client {
            Some(client) => {
                assert_eq!(exactly::<6>(client).await, [3, 0, 8, 0, 0, 0]);
                assert_eq!(exactly::<6>(&mut server).await, [250, 0, 0, 0, 0, 0]);
            }
            // What a client wrote before it vanished may or may not still pass.
            None => assert!(rest(&mut server).await.len() <= 6),
        }
    }
}

#[tokio::test]
async fn a_display_that_says_something_else_first_is_kept_away() {
    let bench = bench(Limits::default());
    let _main = bench.main().await;
    for wrong in [
        &[3, 0, 12, 0, 0, 0][..],
        &[102, 0, 0, 0, 0, 0],
        &[101, 0, 0, 0, 0, 0],
        &[101, 0, 13, 0, 0, 0],
        &[101, 0, 15, 0, 0, 0],
        &[101, 0, 255, 255, 255, 255],
        &[4, 0, 0, 0, 0, 0],
        &[],
    ] {
        let (mut client, mut server, _) = bench.display().await;
        client.write_all(wrong).await.unwrap();
        client.write_all(&[0; 13][..wrong.len().min(13)]).await.unwrap();
        if wrong.is_empty() {
            drop(client);
        }
        assert!(rest(&mut server).await.is_empty(), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_silent_display_ends_with_its_session_or_its_server() {
    let bench = bench(Limits::default());
    let (main, _main_server) = bench.main().await;
    let (mut client, server, _) = bench.display().await;
    drop(server);
    assert!(rest(&mut client).await.is_empty());
    let (mut client, mut server, _) = bench.display().await;
    assert!(silent(&mut client).await);
    drop(main);
    assert!(rest(&mut client).await.is_empty());
    assert!(rest(&mut server).await.is_empty());
}

#[tokio::test]
async fn silent_displays_are_bounded() {
    let bench = bench(Limits { silent_displays: 2, ..Limits::default() });
    let _main = bench.main().await;
    let first = bench.display().await;
    let _second = bench.display().await;
    let third = async {
        let mut client = bench.client();
        client.write_all(&mess(ChannelType::DISPLAY, SESSION)).await.unwrap();
        let mut server = bench.server().await;
        mess_of(&mut server).await;
        server.write_all(&reply(&TicketKey::generate().unwrap())).await.unwrap();
        link_on(&mut client).await;
        bench.answer(8).await;
        exactly::<4>(&mut client).await
    };
    assert_eq!(u32::from_le_bytes(third.await), LinkError::ChannelNotAvailable.code());
    drop(first);
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.display().await;
}

#[tokio::test]
async fn a_display_needs_the_right_ticket_and_a_session() {
    let bench = bench(Limits::default());
    let attempt = async |verdict: u32, session: u32| {
        let mut client = bench.client();
        client.write_all(&mess(ChannelType::DISPLAY, session)).await.unwrap();
        let mut server = bench.server().await;
        mess_of(&mut server).await;
        server.write_all(&reply(&TicketKey::generate().unwrap())).await.unwrap();
        link_on(&mut client).await;
        bench.answer(verdict).await;
        let result = u32::from_le_bytes(exactly::<4>(&mut client).await);
        assert!(rest(&mut client).await.is_empty());
        assert!(rest(&mut server).await.is_empty(), "the server does not hear of it");
        result
    };
    assert_eq!(attempt(7, SESSION).await, 7, "the ticket before the session");
    assert_eq!(attempt(8, SESSION).await, 8);
    let _main = bench.main().await;
    assert_eq!(attempt(8, SESSION ^ 1).await, 8);
    assert_eq!(attempt(8, 0).await, 8);
    assert_eq!(
        attempt(3, SESSION).await,
        LinkError::ChannelNotAvailable.code(),
        "an answer that says nothing"
    );
}

#[tokio::test]
async fn sasl_passes_unseen() {
    let bench = bench(Limits::default());
    // The server chose it, by having no key; or the client chose it.
    for (channel, key) in [
        (ChannelType::MAIN, [0; 162]),
        (ChannelType::DISPLAY, [0; 162]),
        (ChannelType::MAIN, *TicketKey::generate().unwrap().public_der()),
        (ChannelType::DISPLAY, *TicketKey::generate().unwrap().public_der()),
    ] {
        let mut client = bench.client();
        client.write_all(&mess(channel, 0)).await.unwrap();
        let mut server = bench.server().await;
        mess_of(&mut server).await;
        server.write_all(&welcome(key, 0x0d)).await.unwrap();
        welcome_on(&mut client).await;
        client.write_all(&MECHANISM_SASL.to_le_bytes()).await.unwrap();
        client.write_all(b"to the server").await.unwrap();
        server.write_all(b",DIGEST-MD5,").await.unwrap();
        assert_eq!(u32::from_le_bytes(exactly::<4>(&mut server).await), MECHANISM_SASL);
        assert_eq!(&exactly::<13>(&mut server).await, b"to the server");
        assert_eq!(&exactly::<12>(&mut client).await, b",DIGEST-MD5,");
        // Neither a session nor a list is seen in it.
        let list = [104, 0, 4, 0, 0, 0, 0, 0, 0, 0];
        client.write_all(&[104, 0, 0, 0, 0, 0]).await.unwrap();
        server.write_all(&list).await.unwrap();
        assert_eq!(exactly::<10>(&mut client).await, list);
        assert!(bench.proxy.inner.registry.find(0).is_none());
    }
}

/// libspice-server 0.15.1 would start SASL, with what its library finds on the machine, and so past the ticket.
#[tokio::test]
async fn what_the_server_did_not_offer_does_not_reach_it() {
    let bench = bench(Limits::default());
    let key = *TicketKey::generate().unwrap().public_der();
    for channel in [ChannelType::MAIN, ChannelType::DISPLAY] {
        for (key, caps, mechanism) in
            [(key, 0x0b, MECHANISM_SASL), (key, 0x0b, 3), ([0; 162], 0x0d, MECHANISM_TICKET)]
        {
            let mut client = bench.client();
            client.write_all(&mess(channel, 0)).await.unwrap();
            let mut server = bench.server().await;
            mess_of(&mut server).await;
            server.write_all(&welcome(key, caps)).await.unwrap();
            welcome_on(&mut client).await;
            client.write_all(&mechanism.to_le_bytes()).await.unwrap();
            assert_eq!(
                reply_on(&mut client).await,
                LinkReply::Refused(LinkError::InvalidData),
                "{channel:?} {mechanism}"
            );
            assert!(rest(&mut client).await.is_empty());
            assert!(rest(&mut server).await.is_empty(), "{channel:?} {mechanism}");
        }
    }
}

#[tokio::test]
async fn a_link_that_cannot_be_read_along_may_last() {
    let deadlines = Deadlines { step: Duration::from_millis(200), total: Duration::from_millis(300) };
    let bench = bench(Limits { deadlines, ..Limits::default() });
    let mut client = bench.client();
    client.write_all(&mess(ChannelType::MAIN, 0)).await.unwrap();
    let mut server = bench.server().await;
    mess_of(&mut server).await;
    server.write_all(&welcome([1; 162], 0x0f)).await.unwrap();
    welcome_on(&mut client).await;
    client.write_all(&MECHANISM_SASL.to_le_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(silent(&mut client).await);
}

#[tokio::test]
async fn a_tunnel_link_answers_sasl_as_a_server_without_it() {
    let bench = bench(Limits::default());
    for mechanism in [MECHANISM_SASL, 0, 77] {
        let mut client = bench.client();
        client.write_all(&mess(ChannelType::TUNNEL, 0)).await.unwrap();
        let mut server = bench.server().await;
        mess_of(&mut server).await;
        server.write_all(&reply(&TicketKey::generate().unwrap())).await.unwrap();
        welcome_on(&mut client).await;
        client.write_all(&mechanism.to_le_bytes()).await.unwrap();
        assert_eq!(reply_on(&mut client).await, LinkReply::Refused(LinkError::InvalidData));
        assert!(rest(&mut client).await.is_empty());
        assert!(rest(&mut server).await.is_empty(), "the question is dropped");
    }
}

#[tokio::test]
async fn a_tunnel_is_refused_where_sasl_encrypts() {
    let bench = bench(Limits::default());
    let mut client = bench.client();
    client.write_all(&mess(ChannelType::TUNNEL, 0)).await.unwrap();
    let mut server = bench.server().await;
    mess_of(&mut server).await;
    server.write_all(&welcome([0; 162], 0x0d)).await.unwrap();
    assert_eq!(reply_on(&mut client).await, LinkReply::Refused(LinkError::ChannelNotAvailable));
    assert!(rest(&mut server).await.is_empty());
}

#[tokio::test]
async fn a_ticket_that_does_not_decrypt_is_a_wrong_one_whatever_the_server_says() {
    let bench = bench(Limits::default());
    let mut client = bench.client();
    client.write_all(&mess(ChannelType::TUNNEL, 0)).await.unwrap();
    let judged = async {
        welcome_on(&mut client).await;
        client.write_all(&[&[1, 0, 0, 0][..], &[0x5a; TICKET_LEN]].concat()).await.unwrap();
    };
    tokio::join!(judged, bench.answer(8));
    assert_eq!(u32::from_le_bytes(exactly::<4>(&mut client).await), LinkError::PermissionDenied.code());
}

#[tokio::test]
async fn a_tunnel_for_which_nobody_is_there() {
    let mut bench = bench(Limits::default());
    let mut client = bench.client();
    let (first, _) = tokio::join!(link(&mut client, ChannelType::TUNNEL, 0, "sesame"), bench.answer(8));
    let first = first.unwrap();
    assert_eq!((first.header, first.peer_channel_caps), (HeaderForm::Mini, vec![TunnelCaps::OURS.bits()]));
    // Never fetched: the queue holds one, which is all there can be.
    let mut client = bench.client();
    let (second, _) = tokio::join!(link(&mut client, ChannelType::TUNNEL, 0, "sesame"), bench.answer(8));
    assert_eq!(second.unwrap_err(), LinkError::ChannelNotAvailable);
    let handed = bench.tunnels.1.recv().await.unwrap();
    bench.shutdown.cancel();
    timeout(PATIENCE, handed.ended.cancelled()).await.expect("a shutdown ends tunnels");
    bench.tunnels.1.close();
    let mut client = bench.client();
    let (third, _) = tokio::join!(link(&mut client, ChannelType::TUNNEL, 0, "sesame"), bench.answer(8));
    assert_eq!(third.unwrap_err(), LinkError::ChannelNotAvailable);
}

#[tokio::test]
async fn a_2010_client_gets_its_tunnel() {
    let mut bench = bench(Limits::default());
    let mut client = bench.client();
    let link = ClientLink {
        version: LinkVersion::V2010,
        channel_type: 7,
        channel_id: 0,
        session_id: 0,
        common_caps: CommonCaps::empty(),
        channel_caps: Vec::new(),
    };
    let password = password();
    let (linked, _) =
        tokio::join!(connect(&mut client, link, &password, Deadlines::default()), bench.answer(8));
    assert_eq!(linked.unwrap().header, HeaderForm::Full);
    let handed = bench.tunnels.1.recv().await.unwrap();
    assert_eq!(handed.linked.layout, spice_proto::tunnel::Layout::A);
    assert!(handed.linked.peer_channel_caps.is_empty());
}

#[tokio::test]
async fn whoever_speaks_no_spice_is_told_so() {
    let bench = bench(Limits::default());
    for hello in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let mut client = bench.client();
        client.write_all(hello).await.unwrap();
        assert_eq!(reply_on(&mut client).await, LinkReply::Refused(LinkError::InvalidMagic));
    }
}

#[tokio::test]
async fn half_open_links_keep_nobody_out_and_do_not_last() {
    let deadlines = Deadlines { step: Duration::from_millis(300), total: Duration::from_secs(2) };
    let bench =
        bench(Limits { deadlines, unauthenticated: 20, unauthenticated_per_source: 15, ..Limits::default() });
    let started = Instant::now();
    let mut held = Vec::new();
    for n in 0..1000u32 {
        let mut client = bench.client_from(if n % 2 == 0 { "10.0.0.1" } else { "10.0.0.2" });
        let _ = client.write_all(b"RE").await;
        held.push(client);
    }
    // While most of them are there, somebody else comes.
    let mut client = bench.client_from("10.0.0.3");
    let (linked, _) = tokio::join!(link(&mut client, ChannelType::TUNNEL, 0, "sesame"), bench.answer(8));
    linked.unwrap();
    for client in &mut held {
        assert!(rest(client).await.is_empty());
    }
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn links_are_bounded() {
    let bench = bench(Limits { links: 2, ..Limits::default() });
    let _main = bench.main().await;
    let _waiting = bench.client();
    tokio::task::yield_now().await;
    assert!(rest(&mut bench.client()).await.is_empty());
}

#[tokio::test]
async fn wrong_tickets_cost_time_but_only_their_own_source() {
    let bench = bench(Limits::default());
    let attempt = async |address: &str, verdict: u32| {
        let started = Instant::now();
        let mut client = bench.client_from(address);
        let (linked, _) =
            tokio::join!(link(&mut client, ChannelType::TUNNEL, 1, "sesame"), bench.answer(verdict));
        assert_eq!(linked.unwrap_err().code(), verdict);
        started.elapsed()
    };
    let mut last = Duration::ZERO;
    for _ in 0..6 {
        last = attempt("10.0.0.1", 7).await;
    }
    assert!(last >= Duration::from_millis(500), "{last:?}");
    assert!(attempt("10.0.0.2", 7).await < Duration::from_millis(400));
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let bench = bench(Limits::default());
    let Bench { proxy, tunnels, shutdown, server, _dir } = bench;
    drop(server);
    let (mut client, near) = duplex(4096);
    tokio::spawn(proxy.handle(Box::new(near), stranger("10.0.0.1"), tunnels.0, shutdown));
    let link = ClientLink {
        version: LinkVersion::V2,
        channel_type: 1,
        channel_id: 0,
        session_id: 0,
        common_caps: CommonCaps::OURS,
        channel_caps: Vec::new(),
    };
    let outcome = connect(&mut client, link, &Password::empty(), Deadlines::default()).await;
    assert!(matches!(outcome, Err(IoError::Handshake(HandshakeError::Closed(Step::ReplyHeader)))));
}
