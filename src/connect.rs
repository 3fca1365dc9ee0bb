//! `spice-tunnel connect`: the client's side, next to any viewer.
//!
//! It links the tunnel channel by itself, as a *companion*: with session id 0 and the ticket. The server joins it to the
//! one live session; where none lives, the tunnel stands alone until a session begins, and is ended then. So a
//! tunnel that ended is linked again, with the ticket, for as long as the program runs.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use client_glue::{ConnectionId, End, Event, Events, Handle, Share, ShareError, ShareId, TunnelConfig};
use serde::Serialize;
use spice_proto::{
    handshake::{ClientLink, Deadlines, HandshakeError, Linked, Step},
    io::IoError,
    link::{ChannelType, CommonCaps, LinkError, LinkFault, LinkVersion},
    ticket::{Password, PasswordError},
};
use thiserror::Error as ThisError;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    open_files,
    password::{self, PasswordFileError},
    spice_uri::{Server, Transport},
};

/// How long the server's host may take to answer a connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Waits between attempts to link again: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is printed must be taken within this time after a shutdown.
const LAST_PRINT: Duration = Duration::from_secs(1);

/// The same refusal is logged again after this long only: a guest may try for ever.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// A tunnel that lived for so long was a good one: the next attempt waits shortly again.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// What `connect` is told.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The Spice server: spice://HOST:PORT, where `spice-tunnel serve` listens
    #[arg(value_name = "spice://HOST:PORT")]
    pub server: Server,

    /// What the VM may reach: tcp://HOST:PORT, with ?name=NAME behind it to give it a lasting name, from which its
    /// virtual address is derived. Can be given many times
    #[arg(long = "share", value_name = "tcp://HOST:PORT?name=NAME", required = true)]
    pub shares: Vec<Share>,

    /// File whose first line is the password of the Spice session
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// The password itself, best given by the environment; --password-file goes before it
    #[arg(long, value_name = "PASSWORD", env = "SPICE_TUNNEL_PASSWORD", hide_env_values = true, hide = true)]
    pub password: Option<String>,

    /// Print one JSON object a line instead of text
    #[arg(long)]
    pub json: bool,
}

/// Why `connect` failed.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The shares cannot be offered.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The password file is of no use.
    #[error(transparent)]
    PasswordFile(#[from] PasswordFileError),
    /// The password cannot be one.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// Nobody there.
    #[error("cannot connect to {server}")]
    Connect {
        /// The server.
        server: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something else than a Spice server.
    #[error("{server} is not a Spice server")]
    NotSpice {
        /// The server.
        server: String,
        /// What is wrong with its answer.
        source: LinkFault,
    },
    /// A Spice server without a tunnel closes without a word.
    #[error("{server} offers no tunnel channel; is `spice-tunnel serve` in front of it?")]
    NoTunnel {
        /// The server.
        server: String,
    },
    /// Wrong or expired ticket.
    #[error("{server} does not accept the password: {}", if *given { "it is wrong, or has expired" } else { "none was given; use --password-file" })]
    WrongPassword {
        /// The server.
        server: String,
        /// A password was given.
        given: bool,
    },
    /// The server knows no session that we could join.
    #[error(
        "{server} takes no tunnel beside a viewer: companions are turned off there, or there are several sessions"
    )]
    NoCompanion {
        /// The server.
        server: String,
    },
    /// Not now.
    #[error("{server} cannot take a tunnel now; is the Spice server behind it running?")]
    NotNow {
        /// The server.
        server: String,
    },
    /// The link was fine and then closed.
    #[error("{server} closed the tunnel at once: there is another one already, it seems")]
    Occupied {
        /// The server.
        server: String,
    },
    /// TLS only.
    #[error("{server} wants TLS for the tunnel, which cannot be used yet")]
    NeedsTls {
        /// The server.
        server: String,
    },
    /// Anything else in the link stage.
    #[error("cannot link the tunnel channel of {server}")]
    Link {
        /// The server.
        server: String,
        /// What happened.
        source: IoError,
    },
    /// The tunnel itself failed.
    #[error("the tunnel to {server} failed")]
    Tunnel {
        /// The server.
        server: String,
        /// What happened.
        source: client_glue::Error,
    },
    /// Nobody reads what is printed.
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// Shares `args.shares` with the VM behind `args.server`, and prints what the guest reaches where, until `shutdown`.
///
/// Cancel safe in that a dropped run leaves nothing behind: services see a reset, the link is closed.
///
/// # Errors
///
/// [`Error`], when what was asked for makes no sense, or when the first attempt to link fails. Once there was a
/// tunnel, it is linked again for ever.
pub async fn run(args: ConnectArgs, shutdown: CancellationToken) -> Result<(), Error> {
    debug!(limit = ?open_files::raise_limit(), "open files");
    run_to(args, shutdown, tokio::io::stdout()).await
}

/// [`run`], printing to `out`. Whoever reads that slowly does not slow the tunnel.
///
/// # Errors
///
/// As [`run`].
pub async fn run_to(
    args: ConnectArgs,
    shutdown: CancellationToken,
    out: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    client_glue::check_shares(&args.shares)?;
    let password = chosen_password(&args)?;
    let mut printer = Printer::new(out, args.json);
    let mut backoff = Backoff::default();
    let mut was_connected = false;
    loop {
        let started = Instant::now();
        let link = tokio::select! {
            link = Box::pin(link(&args.server, &password)) => link,
            () = shutdown.cancelled() => return Ok(()),
        };
        let outcome = match link {
            // It hears of the shutdown itself, and says goodbye.
            Ok((stream, linked)) => {
                let run = tunnel(&args, stream, linked, &shutdown, &mut printer, &mut was_connected);
                Box::pin(run).await
            }
            Err(error) => Err(error),
        };
        if shutdown.is_cancelled() {
            return Ok(());
        }
        match outcome {
            Err(error @ Error::Print(_)) => return Err(error),
            Err(error) if !was_connected => return Err(error),
            Err(error) => warn!(error = in_full(&error), "no tunnel at the moment"),
            Ok(()) => info!("the server ended the tunnel; linking again"),
        }
        if started.elapsed() >= GOOD_LIFE {
            backoff = Backoff::default();
        }
        let wait = backoff.next();
        debug!(?wait, "waiting before the next attempt");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Connects and links.
async fn link(server: &Server, password: &Password) -> Result<(TcpStream, Linked), Error> {
    let Transport::Plain(port) = server.transport;
    let connect = TcpStream::connect((server.host.as_str(), port));
    let mut stream = match tokio::time::timeout(CONNECT_DEADLINE, connect).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => return Err(Error::Connect { server: server.to_string(), source }),
        Err(_) => {
            let source = io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s");
            return Err(Error::Connect { server: server.to_string(), source });
        }
    };
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "the link's socket could not be set to send at once");
    }
    let asked = ClientLink {
        version: LinkVersion::V2,
        channel_type: ChannelType::TUNNEL.0,
        channel_id: 0,
        session_id: 0,
        common_caps: CommonCaps::OURS,
        channel_caps: client_glue::channel_caps(),
    };
    match spice_proto::io::connect(&mut stream, asked, password, Deadlines::default()).await {
        Ok(linked) => Ok((stream, linked)),
        Err(error) => Err(explain(server.to_string(), *password != Password::empty(), error)),
    }
}

/// What a failed link stage means to a user.
fn explain(server: String, given: bool, error: IoError) -> Error {
    match error {
        IoError::Handshake(HandshakeError::Closed(Step::ReplyHeader)) => Error::NoTunnel { server },
        // A close with something of ours still unread shows as a reset.
        IoError::Io(source) if source.kind() == io::ErrorKind::ConnectionReset => Error::NoTunnel { server },
        IoError::Handshake(HandshakeError::Refused(LinkError::PermissionDenied)) => {
            Error::WrongPassword { server, given }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::BadConnectionId)) => {
            Error::NoCompanion { server }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::ChannelNotAvailable)) => {
            Error::NotNow { server }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::NeedSecured)) => Error::NeedsTls { server },
        IoError::Handshake(HandshakeError::BadServer(source)) => Error::NotSpice { server, source },
        source @ (IoError::Handshake(_) | IoError::Io(_) | IoError::Seal(_)) => {
            Error::Link { server, source }
        }
    }
}

/// Runs one tunnel to its end.
async fn tunnel(
    args: &ConnectArgs,
    stream: TcpStream,
    linked: Linked,
    shutdown: &CancellationToken,
    printer: &mut Printer<impl AsyncWrite + Unpin>,
    was_connected: &mut bool,
) -> Result<(), Error> {
    let (handle, mut events, run) = client_glue::tunnel(stream, linked, TunnelConfig::default());
    printer.names.clear();
    for share in &args.shares {
        let id = handle.add_share(share.clone())?;
        printer.names.insert(id, (share.name.clone(), share.target()));
    }
    let listen = listen(&handle, &mut events, shutdown, printer, was_connected, &args.server);
    // A task of its own, which ends with this call: printing must not hold it up.
    let mut running = JoinSet::new();
    running.spawn(run);
    let heard = listen.await;
    let ended = match running.join_next().await {
        Some(Ok(ended)) => ended,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime itself is going down.
        Some(Err(_)) | None => Ok(()),
    };
    heard.map_err(Error::Print)?;
    let server = args.server.to_string();
    ended.map_err(|source| match source {
        client_glue::Error::NeverBegan => Error::Occupied { server },
        source @ (client_glue::Error::NotATunnel { .. }
        | client_glue::Error::Violation(_)
        | client_glue::Error::Frame(_)
        | client_glue::Error::Truncated { .. }
        | client_glue::Error::Link(_)) => Error::Tunnel { server, source },
    })
}

/// Prints the events of one tunnel to the last. Ends the tunnel on `shutdown`, and when nothing can be printed.
async fn listen(
    handle: &Handle,
    events: &mut Events,
    shutdown: &CancellationToken,
    printer: &mut Printer<impl AsyncWrite + Unpin>,
    was_connected: &mut bool,
    server: &Server,
) -> io::Result<()> {
    let mut outcome = Ok(());
    let mut told = false;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = shutdown.cancelled(), if !told => {
                told = true;
                handle.shutdown();
                continue;
            }
        };
        let Some(event) = event else { return outcome };
        if let Event::Connected { .. } = &event {
            *was_connected = true;
        }
        if outcome.is_ok() {
            let last_call = async {
                shutdown.cancelled().await;
                tokio::time::sleep(LAST_PRINT).await;
            };
            outcome = tokio::select! {
                printed = printer.print(&event, server) => printed,
                () = last_call => Err(io::ErrorKind::TimedOut.into()),
            };
            if outcome.is_err() {
                handle.shutdown();
            }
        }
    }
}

fn chosen_password(args: &ConnectArgs) -> Result<Password, Error> {
    if args.server.password.is_some() {
        warn!("a password in the address is seen by whoever lists processes: better use --password-file");
    }
    if let Some(path) = &args.password_file {
        return Ok(password::read_file(path)?);
    }
    match (&args.password, &args.server.password) {
        (Some(text), _) => Ok(Password::new(text.as_bytes())?),
        (None, Some(password)) => Ok(password.clone()),
        (None, None) => Ok(Password::empty()),
    }
}

/// Waits that grow, each up to a half longer or shorter than planned, so that many clients do not come at once.
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: FIRST_WAIT }
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let planned = self.next;
        self.next = planned.saturating_mul(2).min(LONGEST_WAIT);
        // A hasher's random keys are randomness enough for this.
        let random = u32::try_from(RandomState::new().hash_one(()) % 1000).unwrap_or_default();
        planned / 2 + planned * random / 1000
    }
}

/// Puts events on paper.
struct Printer<W> {
    out: W,
    json: bool,
    /// Names and targets of the tunnel's shares.
    names: HashMap<ShareId, (String, String)>,
    /// Lines printed as text, by target: a tunnel that comes back the same is not worth a second one.
    printed: BTreeMap<String, String>,
    /// The last refusal logged of each share, and when.
    complaints: HashMap<ShareId, (String, Instant)>,
}

/// A line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Connected {
        server: String,
        max_sockets: u16,
        max_data: u32,
    },
    Mapped {
        name: &'a str,
        target: &'a str,
        virtual_ip: IpAddr,
        port: u16,
    },
    Opened {
        name: &'a str,
        target: &'a str,
        connection: u64,
        address: SocketAddr,
    },
    Closed {
        name: &'a str,
        target: &'a str,
        connection: u64,
        bytes_up: u64,
        bytes_down: u64,
        end: &'static str,
    },
    Refused {
        name: &'a str,
        target: &'a str,
        reason: String,
    },
    Missed {
        events: u64,
    },
    Disconnected {
        reason: &'a str,
    },
}

impl<W: AsyncWrite + Unpin> Printer<W> {
    fn new(out: W, json: bool) -> Printer<W> {
        Printer { out, json, names: HashMap::new(), printed: BTreeMap::new(), complaints: HashMap::new() }
    }

    /// Not cancel safe: a part of a line may be out.
    async fn print(&mut self, event: &Event, server: &Server) -> io::Result<()> {
        let line = if self.json { Some(self.json(event, server)?) } else { self.text(event, server) };
        if let Some(mut line) = line {
            line.push('\n');
            self.out.write_all(line.as_bytes()).await?;
            self.out.flush().await?;
        }
        Ok(())
    }

    fn json(&self, event: &Event, server: &Server) -> serde_json::Result<String> {
        let name = |share: &ShareId| -> (&str, &str) {
            self.names.get(share).map_or(("", ""), |(name, target)| (name, target))
        };
        let line = match event {
            Event::Connected { max_sockets, max_data } => {
                Line::Connected { server: server.to_string(), max_sockets: *max_sockets, max_data: *max_data }
            }
            Event::Mapped { name, target, virtual_ip, port, .. } => {
                Line::Mapped { name, target, virtual_ip: *virtual_ip, port: *port }
            }
            Event::Opened { share, connection: ConnectionId(connection), address } => {
                let (name, target) = name(share);
                Line::Opened { name, target, connection: *connection, address: *address }
            }
            Event::Closed { share, connection: ConnectionId(connection), bytes_up, bytes_down, end } => {
                let (name, target) = name(share);
                let (bytes_up, bytes_down) = (*bytes_up, *bytes_down);
                Line::Closed { name, target, connection: *connection, bytes_up, bytes_down, end: word(*end) }
            }
            Event::Refused { share, reason } => {
                let (name, target) = name(share);
                Line::Refused { name, target, reason: reason.to_string() }
            }
            Event::Missed { events } => Line::Missed { events: *events },
            Event::Disconnected { reason } => Line::Disconnected { reason },
        };
        serde_json::to_string(&line)
    }

    fn text(&mut self, event: &Event, server: &Server) -> Option<String> {
        match event {
            Event::Mapped { name, target, virtual_ip, port, .. } => {
                let line = format!("{name}  {target}  ->  {}", SocketAddr::new(*virtual_ip, *port));
                let known = self.printed.insert(target.clone(), line.clone());
                return (known.as_ref() != Some(&line)).then_some(line);
            }
            Event::Connected { .. } => info!("connected to {server}"),
            Event::Refused { share, reason } => self.complain(*share, reason.to_string()),
            Event::Disconnected { reason } => info!(%reason, "disconnected"),
            Event::Opened { .. } | Event::Closed { .. } | Event::Missed { .. } => debug!(?event, "tunnel"),
        }
        None
    }

    fn complain(&mut self, share: ShareId, reason: String) {
        let name = self.names.get(&share).map_or("", |(name, _)| name);
        match self.complaints.get(&share) {
            Some((known, when)) if *known == reason && when.elapsed() < COMPLAIN_EVERY => {
                debug!(share = name, reason, "a connection of the guest was refused");
            }
            Some(_) | None => {
                warn!(share = name, reason, "a connection of the guest was refused");
                self.complaints.insert(share, (reason, Instant::now()));
            }
        }
    }
}

fn word(end: End) -> &'static str {
    match end {
        End::Clean => "clean",
        End::Service => "service",
        End::Guest => "guest",
        End::Unshared => "unshared",
    }
}

/// An error with all its causes.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let colon = if text.is_empty() { "" } else { ": " };
        text = format!("{text}{colon}{error}");
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::{Arc, Mutex},
        task::{Context, Poll},
    };

    use clap::Parser;
    use spice_proto::{
        frame::{self, HeaderForm, Split},
        io::Decision,
        link::{TunnelCaps, Welcome},
        ticket::TicketKey,
        tunnel::Layout,
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    };
    use tunnel_channel::{Channel, Role};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ConnectArgs,
    }

    fn args(words: &[&str]) -> Result<ConnectArgs, clap::Error> {
        Cli::try_parse_from([&["connect"], words].concat()).map(|cli| cli.args)
    }

    /// What was printed, readable while the program runs.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl AsyncWrite for Paper {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Paper {
        /// All lines, once there are `count`.
        async fn lines(&self, count: usize) -> Vec<String> {
            let wait = async {
                loop {
                    let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
                    if text.lines().count() >= count {
                        return text.lines().map(str::to_owned).collect();
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(10), wait).await.expect("not printed")
        }
    }

    async fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("spice://{}", listener.local_addr().unwrap());
        (listener, uri)
    }

    /// Links one client whose ticket must be `secret`.
    async fn linked(listener: &TcpListener) -> Option<TcpStream> {
        let (mut stream, _) = listener.accept().await.unwrap();
        let key = TicketKey::generate().unwrap();
        let welcome = Welcome {
            public_key: Box::new(*key.public_der()),
            common_caps: vec![CommonCaps::OURS.bits()],
            channel_caps: vec![TunnelCaps::OURS.bits()],
        };
        let secret = Password::new("secret").unwrap();
        let outcome = spice_proto::io::accept(
            &mut stream,
            &key,
            Deadlines::default(),
            |mess| {
                assert_eq!((mess.channel_type, mess.channel_id, mess.session_id), (7, 0, 0));
                Decision::Welcome(welcome)
            },
            async |ticket| {
                let right = ticket.is_ok_and(|password| password.matches(&secret));
                if right { Ok(()) } else { Err(LinkError::PermissionDenied) }
            },
        )
        .await;
        outcome.ok().map(|_| stream)
    }

    /// Maps every service to 198.18.0.99 until it has mapped `count`; then closes.
    async fn serve(mut stream: TcpStream, count: usize) {
        let caps = TunnelCaps::OURS;
        let config = tunnel_channel::Config::default();
        let mut channel =
            Channel::new(Role::Server, HeaderForm::Mini, Layout::B, caps, config, Instant::now());
        let (mut input, mut mapped) = (Vec::new(), 0);
        while mapped < count {
            stream.write_all(channel.outgoing()).await.unwrap();
            channel.sent(channel.outgoing_len());
            if stream.read_buf(&mut input).await.unwrap() == 0 {
                return;
            }
            let mut start = 0;
            while let Split::Frame { frame, consumed } =
                frame::split(HeaderForm::Mini, channel.max_body(), &input[start..]).unwrap()
            {
                start += consumed;
                let event = channel.handle_frame(Instant::now(), frame).unwrap();
                if let Some(tunnel_channel::Event::ServiceAdded(add)) = event {
                    channel.map_service(add.service, [198, 18, 0, 99].into()).unwrap();
                    mapped += 1;
                }
            }
            input.drain(..start);
        }
        stream.write_all(channel.outgoing()).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut input).await;
    }

    async fn failure(uri: &str, more: &[&str]) -> Error {
        let words = [&[uri, "--share", "tcp://printer.lan:631"], more].concat();
        let running = run_to(args(&words).unwrap(), CancellationToken::new(), tokio::io::sink());
        timeout(Duration::from_secs(10), running).await.expect("still trying").expect_err("it worked")
    }

    #[tokio::test]
    async fn maps_are_printed_and_tunnels_come_back() {
        let (listener, uri) = listen().await;
        let paper = Paper::default();
        let shutdown = CancellationToken::new();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let file = file.path().to_str().unwrap();
        let args = args(&[
            &uri,
            "--password-file",
            file,
            "--share",
            "tcp://printer.lan:631?name=Office",
            "--share",
            "tcp://printer.lan:80?name=Web",
        ]);
        let running = tokio::spawn(run_to(args.unwrap(), shutdown.clone(), paper.clone()));
        // The second time is the same again, and not printed.
        for _ in 0..2 {
            serve(linked(&listener).await.unwrap(), 2).await;
        }
        let _third = linked(&listener).await.unwrap();
        let lines = paper.lines(2).await;
        let expected = [
            "Office  tcp://printer.lan:631  ->  198.18.0.99:631",
            "Web  tcp://printer.lan:80  ->  198.18.0.99:80",
        ];
        assert_eq!(lines, expected);
        shutdown.cancel();
        timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn json_says_everything() {
        let (listener, uri) = listen().await;
        let paper = Paper::default();
        let shutdown = CancellationToken::new();
        let uri = format!("{uri}?password=secret");
        let args = args(&[&uri, "--share", "tcp://[2001:db8::1]:631?name=Office", "--json"]).unwrap();
        let running = tokio::spawn(run_to(args, shutdown.clone(), paper.clone()));
        serve(linked(&listener).await.unwrap(), 1).await;
        let lines: Vec<serde_json::Value> =
            paper.lines(3).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["event"], "connected");
        let mapped = serde_json::json!({
            "event": "mapped", "name": "Office", "target": "tcp://[2001:db8::1]:631",
            "virtual_ip": "198.18.0.99", "port": 631,
        });
        assert_eq!(lines[1], mapped);
        assert_eq!(lines[2]["event"], "disconnected");
        shutdown.cancel();
        timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_first_failure_ends_it_and_says_why() {
        let (listener, uri) = listen().await;
        let answer = tokio::spawn(async move {
            // Wrong ticket; another tunnel in place; a stock server, which closes after the link message.
            assert!(linked(&listener).await.is_none());
            drop(linked(&listener).await.unwrap());
            for leave_unread in [false, true] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let wanted = if leave_unread { 10 } else { 16 + 18 + 8 };
                stream.read_exact(&mut vec![0; wanted]).await.unwrap();
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            stream
        });
        let error = failure(&uri, &["--password", "guess"]).await;
        assert!(matches!(error, Error::WrongPassword { given: true, .. }), "{error}");
        let error = failure(&uri, &["--password", "secret"]).await;
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
        for _ in 0..2 {
            let error = failure(&uri, &[]).await;
            assert!(matches!(error, Error::NoTunnel { .. }), "{error}");
        }
        let error = failure(&uri, &[]).await;
        assert!(matches!(error, Error::NotSpice { .. }), "{error}");
        drop(answer.await.unwrap());
        let error = failure(&uri, &[]).await;
        assert!(matches!(error, Error::Connect { .. }), "{error}");
    }

    #[tokio::test]
    async fn nobody_needs_to_read_what_is_printed() {
        let (listener, uri) = listen().await;
        let shutdown = CancellationToken::new();
        let words = [&uri, "--password", "secret", "--share", "tcp://printer.lan:631", "--json"];
        let (out, _unread) = tokio::io::duplex(8);
        let running = tokio::spawn(run_to(args(&words).unwrap(), shutdown.clone(), out));
        // The tunnel works, although not even its first line is out.
        let server = tokio::spawn(async move { serve(linked(&listener).await.unwrap(), 1).await });
        timeout(Duration::from_secs(10), server).await.expect("stalled").unwrap();
        shutdown.cancel();
        let outcome = timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
        assert!(matches!(outcome, Ok(()) | Err(Error::Print(_))), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_silent_server_does_not_keep_us_from_leaving() {
        let (_listener, uri) = listen().await;
        let shutdown = CancellationToken::new();
        let args = args(&[&uri, "--share", "tcp://printer.lan:631"]).unwrap();
        let running = tokio::spawn(run_to(args, shutdown.clone(), tokio::io::sink()));
        tokio::time::sleep(Duration::from_millis(50)).await;
        shutdown.cancel();
        timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn shares_that_cannot_go_together_are_found_before_linking() {
        let error = failure("spice://127.0.0.1:1", &["--share", "tcp://printer.lan:631?name=Other"]).await;
        assert!(matches!(error, Error::Share(ShareError::Duplicate { .. })), "{error}");
        let error = failure("spice://127.0.0.1:1", &["--password-file", "/nonexistent"]).await;
        assert!(matches!(error, Error::PasswordFile(_)), "{error}");
    }

    #[test]
    fn wrong_usage_is_explained() {
        for (words, expected) in [
            (&["spice://h:1"][..], "--share"),
            (&["--share", "tcp://a:1"], "spice://HOST:PORT"),
            (&["h:1", "--share", "tcp://a:1"], "does not begin with spice://"),
            (&["spice+tls://h:1", "--share", "tcp://a:1"], "cannot be used yet"),
            (&["spice://h:1", "--share", "a:1"], "only tcp can be shared"),
        ] {
            let error = args(words).expect_err("accepted").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn waits_grow_and_stay_bounded() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..12).map(|_| backoff.next()).collect();
        assert!(waits[0] >= FIRST_WAIT / 2 && waits[0] <= FIRST_WAIT * 3 / 2);
        assert!(waits[11] >= LONGEST_WAIT / 2 && waits[11] <= LONGEST_WAIT * 3 / 2);
    }
}
