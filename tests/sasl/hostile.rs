//! Clients and servers that break SASL, each against our proxy over TLS. No QEMU here: the other side is played too.

use std::path::Path;
use std::time::Duration;

use server_glue::proxy::Limits;
use server_glue::stream::{SecureTarget, Target};
use spice_proto::handshake::Deadlines;
use spice_proto::link::{
    CommonCaps, HEADER_LEN, LinkHeader, LinkMess, LinkReply, LinkVersion, MECHANISM_SASL, PUBLIC_KEY_LEN,
    Welcome,
};
use spice_proto::sasl::{MAX_DATA, MAX_STEPS, put_data, put_name};
use spice_proto::tls::{Acceptor, TlsStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Front, PASSWORD, PATIENCE, USER, connector, front_with, secure_stream};
use crate::pki::{Authority, Leaf};

const LIST: &str = ",SCRAM-SHA-256,PLAIN,";

/// A proxy before a server that this test plays.
struct Bench {
    front: Front,
    listener: TcpListener,
    acceptor: Acceptor,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start(deadlines: Deadlines) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Authority::new("SASL bench").issue(&Leaf::default(), dir.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::Tcp(listener.local_addr().unwrap().to_string());
        let upstream = SecureTarget { target, host: "127.0.0.1".to_owned(), connector: connector(&files.ca) };
        let limits = Limits { deadlines, ..Limits::default() };
        let front = front_with(dir.path(), upstream.into(), limits).await;
        let acceptor = Acceptor::load(&files.certificate, &files.key).unwrap();
        Self { front, listener, acceptor, _dir: dir }
    }

    /// A client's link and the server's end of it, both behind the client's choice of SASL.
    async fn link(&self, channel: u8) -> (TlsStream<TcpStream>, TlsStream<TcpStream>) {
        let client = async {
            let mut client = secure_stream(self.front.tls.port(), &self.front.ca).await;
            ask(&mut client, channel, 0).await;
            client.write_all(&MECHANISM_SASL.to_le_bytes()).await.unwrap();
            client
        };
        let server = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            let mut server = self.acceptor.accept(stream).await.unwrap();
            let mut head = [0; HEADER_LEN];
            server.read_exact(&mut head).await.unwrap();
            let mut body = vec![0; LinkHeader::parse_from_client(&head).unwrap().size as usize];
            server.read_exact(&mut body).await.unwrap();
            let asked = LinkMess::parse(&body).unwrap();
            // A tunnel link is asked about by inputs of a session that is none.
            let expected = if channel == 7 { 3 } else { channel };
            assert_eq!((asked.channel_type, asked.session_id == 0), (expected, channel != 7));
            let mut reply = Vec::new();
            let welcome = Welcome {
                public_key: Box::new([0; PUBLIC_KEY_LEN]),
                common_caps: vec![0x0d],
                channel_caps: Vec::new(),
            };
            LinkReply::Welcome(welcome).write(LinkVersion::V2, &mut reply);
            server.write_all(&reply).await.unwrap();
            assert_eq!(server.read_u32_le().await.unwrap(), MECHANISM_SASL);
            server
        };
        tokio::join!(client, server)
    }

    /// The same, behind the server's list.
    async fn offered(&self, channel: u8) -> (TlsStream<TcpStream>, TlsStream<TcpStream>) {
        let (mut client, mut server) = self.link(channel).await;
        server.write_all(&list(LIST)).await.unwrap();
        let mut seen = vec![0; list(LIST).len()];
        client.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen, list(LIST), "as it came");
        (client, server)
    }
}

/// Sends a link message and reads the reply.
async fn ask(client: &mut TlsStream<TcpStream>, channel: u8, session_id: u32) {
    let mess = LinkMess {
        session_id,
        channel_type: channel,
        channel_id: 0,
        common_caps: vec![(CommonCaps::OURS | CommonCaps::AUTH_SASL).bits()],
        channel_caps: vec![0],
    };
    let mut bytes = Vec::new();
    mess.write(LinkVersion::V2, &mut bytes);
    client.write_all(&bytes).await.unwrap();
    let mut head = [0; HEADER_LEN];
    client.read_exact(&mut head).await.unwrap();
    let mut body = vec![0; LinkHeader::parse_from_server(&head).unwrap().size as usize];
    client.read_exact(&mut body).await.unwrap();
    let LinkReply::Welcome(welcome) = LinkReply::parse(&body).unwrap() else { panic!("refused") };
    assert!(welcome.common().contains(CommonCaps::AUTH_SASL) && welcome.has_no_key());
}

/// A display link of which the client has sent everything that a server needs for PLAIN, and read nothing behind its list.
pub(super) async fn said_plain(port: u16, ca: &Path, session: u32) -> TlsStream<TcpStream> {
    let mut client = secure_stream(port, ca).await;
    ask(&mut client, 2, session).await;
    client.write_all(&MECHANISM_SASL.to_le_bytes()).await.unwrap();
    let length = client.read_u32_le().await.unwrap();
    client.read_exact(&mut vec![0; length as usize]).await.unwrap();
    client.write_all(&choice(Some(format!("\0{USER}\0{PASSWORD}").as_bytes()))).await.unwrap();
    client
}

fn list(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn choice(data: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_name(&mut bytes, "PLAIN");
    put_data(&mut bytes, data);
    bytes
}

/// All that still comes, which must end.
async fn rest(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = timeout(PATIENCE, stream.read_to_end(&mut bytes));
    // An end without TLS's goodbye is one too.
    let _ = reading.await.expect("the link lasts");
    bytes
}

/// Every kind of link: main passes as it comes, a display is shielded, a tunnel is judged.
const CHANNELS: [u8; 3] = [1, 2, 7];

#[tokio::test]
async fn clients_that_announce_too_much_do_not_reach_the_server() {
    let bench = Bench::start(Deadlines::default()).await;
    let word = |n: u32| n.to_le_bytes().to_vec();
    let mut name = Vec::new();
    put_name(&mut name, "PLAIN");
    let mut other = Vec::new();
    put_name(&mut other, "EXTERNAL");
    for channel in CHANNELS {
        for (said, passes) in [
            (word(0), 0),
            (word(101), 0),
            (word(u32::MAX), 0),
            // Its length is right.
            (other.clone(), 4),
            ([name.clone(), word(MAX_DATA + 1)].concat(), name.len()),
            ([name.clone(), word(u32::MAX)].concat(), name.len()),
        ] {
            let (mut client, mut server) = bench.offered(channel).await;
            client.write_all(&said).await.unwrap();
            assert!(rest(&mut client).await.is_empty());
            assert_eq!(rest(&mut server).await, said[..passes], "{channel}: {said:?}");
        }
    }
}

#[tokio::test]
async fn servers_that_announce_too_much_do_not_reach_the_client() {
    let bench = Bench::start(Deadlines::default()).await;
    for channel in CHANNELS {
        let (mut client, mut server) = bench.link(channel).await;
        server.write_all(&301_u32.to_le_bytes()).await.unwrap();
        assert!(rest(&mut client).await.is_empty());
        for said in [MAX_DATA + 1, u32::MAX] {
            let (mut client, mut server) = bench.offered(channel).await;
            client.write_all(&choice(None)).await.unwrap();
            let mut seen = vec![0; choice(None).len()];
            server.read_exact(&mut seen).await.unwrap();
            assert_eq!(seen, choice(None), "as it came");
            server.write_all(&said.to_le_bytes()).await.unwrap();
            assert!(rest(&mut client).await.is_empty());
        }
    }
}

#[tokio::test]
async fn an_exchange_without_end_is_ended() {
    let bench = Bench::start(Deadlines::default()).await;
    for channel in CHANNELS {
        let (mut client, mut server) = bench.offered(channel).await;
        let endless = tokio::spawn(async move {
            while server.write_all(&[0; 5]).await.is_ok() && server.read_u32_le().await.is_ok() {}
        });
        client.write_all(&choice(None)).await.unwrap();
        let mut steps = 0;
        while client.read_exact(&mut [0; 5]).await.is_ok() && client.write_all(&[0; 4]).await.is_ok() {
            steps += 1;
        }
        assert!(steps <= MAX_STEPS, "{steps}");
        endless.abort();
    }
}

#[tokio::test]
async fn a_stalled_exchange_is_given_up() {
    let deadlines = Deadlines { step: Duration::from_millis(400), total: Duration::from_millis(1500) };
    let bench = Bench::start(deadlines).await;
    for channel in CHANNELS {
        // The server says no list.
        let (mut client, _server) = bench.link(channel).await;
        assert!(rest(&mut client).await.is_empty(), "{channel}");
        // The client chooses nothing, or half of something.
        let (mut client, mut server) = bench.offered(channel).await;
        client.write_all(&choice(None)[..3]).await.unwrap();
        assert!(rest(&mut client).await.is_empty(), "{channel}");
        rest(&mut server).await;
        // It says a byte now and then.
        let (mut client, mut server) = bench.offered(channel).await;
        let drip = tokio::spawn(async move {
            let mut bytes = Vec::new();
            put_name(&mut bytes, "PLAIN");
            put_data(&mut bytes, Some(&[b'x'; 200]));
            for byte in bytes {
                if client.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let began = std::time::Instant::now();
        rest(&mut server).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{channel}");
        drip.abort();
    }
}

#[tokio::test]
async fn speaking_out_of_turn_ends_a_link() {
    let bench = Bench::start(Deadlines::default()).await;
    for channel in CHANNELS {
        let (mut client, mut server) = bench.offered(channel).await;
        server.write_all(&[0; 4]).await.unwrap();
        assert!(rest(&mut client).await.is_empty(), "{channel}");
    }
}

/// A display's server is not hung up on while it may yet accept, and gets its DISPLAY_INIT even so late.
#[tokio::test]
async fn a_server_that_takes_its_time_over_a_display_is_waited_for() {
    let deadlines = Deadlines { step: Duration::from_millis(300), total: Duration::from_millis(900) };
    let bench = Bench::start(deadlines).await;
    let (mut client, mut server) = bench.offered(2).await;
    client.write_all(&choice(Some(b"\0user\0secret"))).await.unwrap();
    let mut seen = vec![0; choice(Some(b"\0user\0secret")).len()];
    server.read_exact(&mut seen).await.unwrap();
    drop(client);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // No data, done, accepted, linked.
    server.write_all(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
    let mut init = [0; 20];
    timeout(PATIENCE, server.read_exact(&mut init)).await.expect("nobody says DISPLAY_INIT").unwrap();
    assert_eq!(init[..6], [101, 0, 14, 0, 0, 0]);
    let mut more = [0; 1];
    let waits = timeout(Duration::from_millis(500), server.read(&mut more)).await;
    assert!(waits.is_err(), "it is closed before the server has said anything");
    server.write_all(&[3, 0]).await.unwrap();
    assert!(rest(&mut server).await.is_empty());
}
