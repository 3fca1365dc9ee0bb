//! What the tests with real machines are made of: our program as a process, viewers on an invisible screen, and services
//! that the guest is to reach.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use openssl::sha::{Sha256, sha256};
use shakenfist_spice_protocol::link::SpiceStream;
use shakenfist_spice_protocol::{ChannelType, ConnectionConfig, SpiceClient};
use spice_tunnel::vm::Vm;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// For what should take a moment, on a machine that is busy with everything else.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Waits for a future, not longer than [`SOON`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(SOON, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {SOON:?} in vain for {what}"),
    }
}

/// Asks again and again until there is an answer, not longer than [`SOON`].
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    soon(what, asking).await
}

/// A process of ours that is killed when it is not needed any more, with all it says.
pub(crate) struct Program {
    name: &'static str,
    child: Child,
    out: mpsc::UnboundedReceiver<String>,
    said: Arc<Mutex<String>>,
}

impl Program {
    /// The program under test.
    pub(crate) fn tunnel<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"));
        command.args(arguments).env("RUST_LOG", "debug").env("NO_COLOR", "1");
        Self::start("spice-tunnel", command)
    }

    pub(crate) fn start(name: &'static str, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{name} does not start ({error}): tests/install-prerequisites.sh")
            });
        let said = Arc::new(Mutex::new(String::new()));
        let (lines, out) = mpsc::unbounded_channel();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let (both, errors) = (Arc::clone(&said), lines.clone());
        tokio::spawn(async move {
            while let Ok(Some(line)) = stdout.next_line().await {
                writeln!(both.lock().unwrap(), "{line}").unwrap();
                let _ = lines.send(line);
            }
        });
        let both = Arc::clone(&said);
        tokio::spawn(async move {
            while let Ok(Some(line)) = stderr.next_line().await {
                writeln!(both.lock().unwrap(), "{line}").unwrap();
                let _ = errors.send(line);
            }
        });
        Self { name, child, out, said }
    }

    /// The next line, from now on, of which something can be made.
    pub(crate) async fn line<T>(&mut self, what: &str, mut make: impl FnMut(&str) -> Option<T>) -> T {
        let search = async {
            while let Some(line) = self.out.recv().await {
                if let Some(made) = make(&line) {
                    return Some(made);
                }
            }
            None
        };
        match timeout(SOON, search).await {
            Ok(Some(made)) => made,
            Ok(None) => panic!("{} ended before {what}; it said:\n{}", self.name, self.said()),
            Err(_) => {
                panic!("waited {SOON:?} in vain for {} to say {what}; it said:\n{}", self.name, self.said())
            }
        }
    }

    /// How it ended, if it has.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The next JSON object with this `event`.
    pub(crate) async fn event(&mut self, event: &str) -> serde_json::Value {
        self.event_where(event, |_| true).await
    }

    /// The next JSON object with this `event` that is right.
    pub(crate) async fn event_where(
        &mut self,
        event: &str,
        right: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        self.line(event, |line| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            (value["event"] == event && right(&value)).then_some(value)
        })
        .await
    }

    /// Whether there was such an event at any time.
    pub(crate) fn told(&self, event: &str) -> bool {
        self.said.lock().unwrap().lines().any(|line| {
            serde_json::from_str::<serde_json::Value>(line).is_ok_and(|value| value["event"] == event)
        })
    }

    /// The last it said.
    pub(crate) fn said(&self) -> String {
        let said = self.said.lock().unwrap();
        let lines: Vec<_> = said.lines().rev().take(40).collect();
        lines.into_iter().rev().fold(String::new(), |text, line| text + "  " + line + "\n")
    }

    /// All it said.
    pub(crate) fn everything(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// What it warned of.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let said = self.said.lock().unwrap();
        let loud = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        said.lines().filter(loud).map(str::to_owned).collect()
    }

    /// Its number, for signals.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it ended already")
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Asks it to end, as Ctrl-C and service managers do, and waits until it has.
    pub(crate) async fn terminate(self) -> ExitStatus {
        self.end_by("TERM").await
    }

    /// Sends it a signal that it should end by, and waits until it has.
    pub(crate) async fn end_by(mut self, signal: &str) -> ExitStatus {
        let pid = self.child.id().expect("it ended already").to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status().await.unwrap();
        assert!(sent.success());
        match timeout(SOON, self.child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("{} does not end on SIG{signal}; it said:\n{}", self.name, self.said()),
        }
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        self.child.wait().await.unwrap()
    }

    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}", self.name, self.said());
        }
    }
}

/// Starts `serve` and gives where it listens for viewers.
pub(crate) async fn serve(arguments: &[&str]) -> (Program, SocketAddr) {
    let mut program = Program::tunnel([&["serve"], arguments].concat());
    let address = program
        .line("where it listens for Spice clients", |line| {
            let address = line.split("listening for Spice clients").nth(1)?.split("address=").nth(1)?;
            address.split_whitespace().next()?.parse().ok()
        })
        .await;
    (program, address)
}

/// An X server nobody sees.
pub(crate) struct Screen {
    _xvfb: Program,
    name: String,
    directory: TempDir,
}

impl Screen {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("Xvfb");
        command.args(["-displayfd", "1", "-screen", "0", "1024x768x24", "-nolisten", "tcp", "-fbdir"]);
        command.arg(directory.path());
        let mut xvfb = Program::start("Xvfb", command);
        let number: u32 = xvfb.line("its display's number", |line| line.trim().parse().ok()).await;
        Self { _xvfb: xvfb, name: format!(":{number}"), directory }
    }

    /// What can be seen. The server's memory is a file, in the format of `xwd`.
    pub(crate) fn look(&self) -> Picture {
        let image = std::fs::read(self.directory.path().join("Xvfb_screen0")).unwrap();
        let field = |number: usize| {
            let bytes = image[number * 4..][..4].try_into().unwrap();
            u32::from_be_bytes(bytes) as usize
        };
        let (header, colours, bits) = (field(0), field(19), field(11));
        assert_eq!((field(1), bits), (7, 32), "not the picture that was expected of Xvfb");
        Picture { line: field(12), bytes: image[header + colours * 12..].to_vec() }
    }

    /// Waits until a good part of the screen has this colour.
    pub(crate) async fn shows(&self, what: &str, colour: [u8; 3]) {
        until(what, || async { (self.look().count(colour) > 50_000).then_some(()) }).await;
    }

    /// Runs `xdotool`, and gives what it says; nothing if it fails.
    pub(crate) async fn xdotool(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("xdotool");
        command.args(arguments).env("DISPLAY", &self.name).stdin(Stdio::null());
        let output = command.output().await.expect("xdotool does not start: tests/install-prerequisites.sh");
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }
}

/// What was on a screen at one time.
pub(crate) struct Picture {
    line: usize,
    bytes: Vec<u8>,
}

impl Picture {
    fn count(&self, [red, green, blue]: [u8; 3]) -> usize {
        self.bytes.chunks_exact(4).filter(|pixel| pixel[..3] == [blue, green, red]).count()
    }

    /// Red, green and blue of one pixel.
    pub(crate) fn at(&self, (x, y): (usize, usize)) -> [u8; 3] {
        let pixel = &self.bytes[y * self.line + x * 4..];
        [pixel[2], pixel[1], pixel[0]]
    }
}

/// What a viewer is told of a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target<'a> {
    pub(crate) port: Option<u16>,
    pub(crate) tls_port: Option<u16>,
    /// For SASL.
    pub(crate) username: Option<&'a str>,
    pub(crate) password: Option<&'a str>,
    pub(crate) ca: Option<&'a Path>,
    pub(crate) subject: Option<&'a str>,
}

/// A stock viewer of the user's side.
pub(crate) struct Viewer {
    pub(crate) program: Program,
    home: TempDir,
}

/// Everybody's host in these tests.
const HOST: &str = "127.0.0.1";

impl Viewer {
    pub(crate) fn remote_viewer(screen: &Screen, server: SocketAddr, password: &str) -> Self {
        let target = Target { port: Some(server.port()), password: Some(password), ..Target::default() };
        Self::remote_viewer_by_file(screen, &target)
    }

    pub(crate) fn spicy(screen: &Screen, server: SocketAddr, password: &str) -> Self {
        let target = Target { port: Some(server.port()), password: Some(password), ..Target::default() };
        Self::spicy_at(screen, &target)
    }

    /// With a `.vv` file, as management systems hand them out.
    pub(crate) fn remote_viewer_by_file(screen: &Screen, target: &Target<'_>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("session.vv");
        std::fs::write(&file, connection_file(target)).unwrap();
        let mut command = Command::new("remote-viewer");
        command.arg(file);
        Self::start("remote-viewer", command, screen, home)
    }

    pub(crate) fn remote_viewer_by_uri(screen: &Screen, target: &Target<'_>) -> Self {
        let words = [
            target.port.map(|port| format!("port={port}")),
            target.tls_port.map(|port| format!("tls-port={port}")),
            target.password.map(|password| format!("password={password}")),
        ];
        let words: Vec<_> = words.into_iter().flatten().collect();
        let mut command = Command::new("remote-viewer");
        command.args(certificate_options(target)).arg(format!("spice://{HOST}?{}", words.join("&")));
        Self::start("remote-viewer", command, screen, tempfile::tempdir().unwrap())
    }

    pub(crate) fn spicy_at(screen: &Screen, target: &Target<'_>) -> Self {
        let mut command = Command::new("spicy");
        command.args(["-h", HOST]);
        let ports = [("-p", target.port), ("-s", target.tls_port)];
        for (option, port) in ports.into_iter().filter_map(|(option, port)| Some((option, port?))) {
            command.args([option, &port.to_string()]);
        }
        if let Some(password) = target.password {
            command.args(["-w", password]);
        }
        command.args(certificate_options(target));
        Self::start("spicy", command, screen, tempfile::tempdir().unwrap())
    }

    /// A program that is, or starts, a viewer.
    pub(crate) fn start(name: &'static str, mut command: Command, screen: &Screen, home: TempDir) -> Self {
        // What is to be heard goes into a file: there are no loudspeakers.
        let sink =
            format!("appsrc name=appsrc ! filesink location={}/sound name=audiosink", home.path().display());
        command
            .env("DISPLAY", &screen.name)
            .env("HOME", home.path())
            .env("XDG_RUNTIME_DIR", home.path())
            .env("SPICE_GST_AUDIOSINK", sink)
            .env("GDK_BACKEND", "x11")
            .env("GSETTINGS_BACKEND", "memory")
            .env("NO_AT_BRIDGE", "1")
            .env("DBUS_SESSION_BUS_ADDRESS", "disabled:")
            .current_dir(home.path());
        Self { program: Program::start(name, command), home }
    }

    /// The program, and its home, which is gone when this is dropped.
    pub(crate) fn apart(self) -> (Program, TempDir) {
        (self.program, self.home)
    }

    /// The samples it has played so far.
    pub(crate) fn heard(&self) -> Vec<u8> {
        std::fs::read(self.home.path().join("sound")).unwrap_or_default()
    }
}

/// What a management system writes into a `.vv` file.
pub(crate) fn connection_file(target: &Target<'_>) -> String {
    let ca = target.ca.map(|path| std::fs::read_to_string(path).unwrap().trim_end().replace('\n', "\\n"));
    let lines = [
        ("port", target.port.map(|port| port.to_string())),
        ("tls-port", target.tls_port.map(|port| port.to_string())),
        ("username", target.username.map(str::to_owned)),
        ("password", target.password.map(str::to_owned)),
        ("ca", ca),
        ("host-subject", target.subject.map(str::to_owned)),
    ];
    let mut text = format!("[virt-viewer]\ntype=spice\nhost={HOST}\n");
    for (key, value) in lines.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        writeln!(text, "{key}={value}").unwrap();
    }
    text
}

/// spice-gtk's options, which all its programs know.
fn certificate_options(target: &Target<'_>) -> Vec<String> {
    let ca = target.ca.map(|path| format!("--spice-ca-file={}", path.display()));
    let subject = target.subject.map(|subject| format!("--spice-host-subject={subject}"));
    ca.into_iter().chain(subject).collect()
}

/// The session QEMU has with a viewer: its id, once it has all the channels a viewer opens.
pub(crate) async fn session(vm: &Vm) -> Option<i64> {
    let state = vm.qmp("query-spice").await.unwrap();
    let channels = state["channels"].as_array()?;
    let has = |kind: i64| channels.iter().any(|channel| channel["channel-type"] == kind);
    let id = channels.first()?["connection-id"].as_i64()?;
    let one = channels.iter().all(|channel| channel["connection-id"] == id);
    // Main, display, inputs, cursor.
    (one && [1, 2, 3, 4].into_iter().all(has)).then_some(id)
}

/// A Spice client that is not ours and has no window: what arrives on its display is counted.
pub(crate) struct RustViewer {
    tasks: JoinSet<()>,
    displayed: watch::Receiver<usize>,
}

impl RustViewer {
    pub(crate) async fn connect(server: SocketAddr, password: &str) -> Self {
        Self::open(ConnectionConfig {
            host: server.ip().to_string(),
            port: server.port(),
            password: Some(password.to_owned()),
            ..ConnectionConfig::default()
        })
        .await
    }

    /// Over TLS, to who shows a certificate for `localhost` that this authority has signed.
    pub(crate) async fn connect_tls(server: SocketAddr, password: &str, authority: &[u8]) -> Self {
        // Only the first time does anything.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self::open(ConnectionConfig {
            host: "localhost".to_owned(),
            tls_port: Some(server.port()),
            password: Some(password.to_owned()),
            ca_cert: Some(String::from_utf8(authority.to_vec()).unwrap()),
            ..ConnectionConfig::default()
        })
        .await
    }

    async fn open(config: ConnectionConfig) -> Self {
        let client = SpiceClient::new(config).unwrap();
        let link = |session, kind| client.connect_channel(session, kind, 0);
        let mut main = soon("the main link", link(0, ChannelType::Main)).await.unwrap();
        let init = read_until(&mut main, 103).await;
        let session = u32::from_le_bytes(init[..4].try_into().unwrap());
        send(&mut main, 104, &[]).await;
        let list = read_until(&mut main, 104).await;
        assert!(
            list[4..].chunks_exact(2).any(|entry| entry == [7, 0]),
            "the tunnel is not in the list {list:?}"
        );
        let mut display = soon("the display link", link(session, ChannelType::Display)).await.unwrap();
        let inputs = soon("the inputs link", link(session, ChannelType::Inputs)).await.unwrap();
        let cursor = soon("the cursor link", link(session, ChannelType::Cursor)).await.unwrap();
        let mut init = vec![1];
        init.extend((64i64 << 20).to_le_bytes());
        init.push(1);
        init.extend((16u32 << 20).to_le_bytes());
        send(&mut display, 101, &init).await;
        let (count, displayed) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(attend(main, None));
        tasks.spawn(attend(inputs, None));
        tasks.spawn(attend(cursor, None));
        tasks.spawn(attend(display, Some(count)));
        Self { tasks, displayed }
    }

    /// Messages that came on the display so far.
    pub(crate) fn displayed(&self) -> usize {
        *self.displayed.borrow()
    }

    /// Waits for more than so many messages on the display.
    pub(crate) async fn displays_more_than(&mut self, count: usize) {
        let more = self.displayed.wait_for(|displayed| *displayed > count);
        soon("more on the display", more).await.expect("the display channel ended");
    }

    /// Whether every channel is open.
    pub(crate) fn is_whole(&mut self) -> bool {
        self.tasks.try_join_next().is_none()
    }
}

async fn send(stream: &mut SpiceStream, kind: u16, body: &[u8]) {
    let mut message = kind.to_le_bytes().to_vec();
    message.extend((body.len() as u32).to_le_bytes());
    message.extend(body);
    // A session that ends shows when it is read.
    let _ = stream.write_all(&message).await;
}

async fn read(stream: &mut SpiceStream) -> Option<(u16, Vec<u8>)> {
    let mut header = [0; 6];
    stream.read_exact(&mut header).await.ok()?;
    let len = u32::from_le_bytes(header[2..].try_into().unwrap()) as usize;
    assert!(len < 64 << 20, "a message of {len} bytes");
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.ok()?;
    Some((u16::from_le_bytes([header[0], header[1]]), body))
}

async fn read_until(stream: &mut SpiceStream, wanted: u16) -> Vec<u8> {
    let reading = async {
        loop {
            let (kind, body) = read(stream).await.expect("the channel ended");
            if kind == wanted {
                return body;
            }
        }
    };
    soon("a message of the main channel", reading).await
}

/// Does what every client must: answers pings and acknowledges. Ends with the channel.
async fn attend(mut stream: SpiceStream, count: Option<watch::Sender<usize>>) {
    let (mut window, mut left) = (0u32, 0u32);
    while let Some((kind, body)) = read(&mut stream).await {
        if let Some(count) = &count {
            count.send_modify(|count| *count += 1);
        }
        if left > 0 {
            left -= 1;
            if left == 0 {
                left = window;
                send(&mut stream, 2, &[]).await;
            }
        }
        match kind {
            3 => {
                window = u32::from_le_bytes(body[4..8].try_into().unwrap());
                left = window;
                send(&mut stream, 1, &body[..4]).await;
            }
            4 => send(&mut stream, 3, &body[..12]).await,
            _ => {}
        }
    }
}

/// Services of the user's network: a web server, and two that speak plain TCP.
pub(crate) struct Services {
    pub(crate) web: SocketAddr,
    pub(crate) half: SocketAddr,
    pub(crate) hold: SocketAddr,
    pub(crate) abort: SocketAddr,
    pub(crate) endless: SocketAddr,
    /// A port where nobody listens.
    pub(crate) closed: SocketAddr,
    pub(crate) blob: Blob,
    /// What was posted: its length and SHA-256.
    pub(crate) posted: mpsc::UnboundedReceiver<(usize, String)>,
    /// How writing at `endless` ended.
    pub(crate) broken: mpsc::UnboundedReceiver<ErrorKind>,
    _tasks: JoinSet<()>,
}

/// Bytes that are not to be guessed, and their SHA-256.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) bytes: Bytes,
    pub(crate) sha256: String,
}

/// Requests that wait for each other at `/together`.
pub(crate) const TOGETHER: usize = 50;

impl Services {
    pub(crate) async fn start(blob_len: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut bytes = Vec::with_capacity(blob_len + 8);
        while bytes.len() < blob_len {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend((state ^ (state >> 33)).to_be_bytes());
        }
        bytes.truncate(blob_len);
        let blob = Blob { sha256: hex(&sha256(&bytes)), bytes: bytes.into() };
        let bind = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
        let (web, half, hold) = (bind().await, bind().await, bind().await);
        let (abort, endless) = (bind().await, bind().await);
        let closed = bind().await.local_addr().unwrap();
        let (report, posted) = mpsc::unbounded_channel();
        let (report_broken, broken) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let listeners = [&web, &half, &hold, &abort, &endless];
        let addresses = listeners.map(|listener| listener.local_addr().unwrap());
        tasks.spawn(serve_web(web, blob.clone(), report));
        tasks.spawn(serve_half(half));
        tasks.spawn(serve_hold(hold));
        tasks.spawn(serve_abort(abort));
        tasks.spawn(serve_endless(endless, report_broken));
        let [web, half, hold, abort, endless] = addresses;
        Self { web, half, hold, abort, endless, closed, blob, posted, broken, _tasks: tasks }
    }
}

async fn serve_web(listener: TcpListener, blob: Blob, report: mpsc::UnboundedSender<(usize, String)>) {
    let (waiting, _) = watch::channel(0);
    let waiting = Arc::new(waiting);
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (blob, report, waiting) = (blob.clone(), report.clone(), Arc::clone(&waiting));
        let service = hyper::service::service_fn(move |request| {
            let (blob, report, waiting) = (blob.clone(), report.clone(), Arc::clone(&waiting));
            async move { Ok::<_, Infallible>(answer(request, blob, report, &waiting).await) }
        });
        connections.spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    blob: Blob,
    report: mpsc::UnboundedSender<(usize, String)>,
    waiting: &watch::Sender<usize>,
) -> Response<Full<Bytes>> {
    let body = match request.uri().path() {
        "/hello" => Bytes::from_static(b"hello from the user's network\n"),
        "/blob" => blob.bytes,
        "/together" => {
            // Nobody gets an answer before all are here.
            waiting.send_modify(|count| *count += 1);
            let mut arrivals = waiting.subscribe();
            let _ = arrivals.wait_for(|count| *count >= TOGETHER).await;
            Bytes::from_static(b"together\n")
        }
        "/sink" => {
            let (mut hash, mut len) = (Sha256::new(), 0);
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                let data = frame.into_data().unwrap_or_default();
                len += data.len();
                hash.update(&data);
            }
            let hash = hex(&hash.finish());
            report.send((len, hash.clone())).unwrap();
            Bytes::from(format!("{hash}\n"))
        }
        _ => return Response::builder().status(404).body(Full::default()).unwrap(),
    };
    Response::new(Full::new(body))
}

/// Reads to the end, and only then answers.
async fn serve_half(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut all = Vec::new();
            if stream.read_to_end(&mut all).await.is_ok() {
                let answer = format!("{} bytes to the end\n", all.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
    }
}

/// Begins an answer of HTTP, and then holds the line.
async fn serve_hold(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\nholding\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
    }
}

/// Begins an answer of HTTP, and then resets the connection.
async fn serve_abort(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            // The request must be read: what is unread would make any close a reset.
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n").await;
            sleep(Duration::from_millis(100)).await;
            stream.set_zero_linger().unwrap();
        });
    }
}

/// Writes for ever, and reports what ended that.
async fn serve_endless(listener: TcpListener, report: mpsc::UnboundedSender<ErrorKind>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let report = report.clone();
        tokio::spawn(async move {
            let error = loop {
                if let Err(error) = stream.write_all(&[b'x'; 4096]).await {
                    break error.kind();
                }
            };
            let _ = report.send(error);
        });
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A file with a password, as `--password-file` takes it.
pub(crate) fn password_file(directory: &Path, password: &str) -> PathBuf {
    let path = directory.join("password");
    std::fs::write(&path, format!("{password}\n")).unwrap();
    path
}

/// Prints how long the parts of a test took; seen with `--nocapture`.
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn lap(&self, what: &str) {
        eprintln!("{:6.2} s  {what}", self.0.elapsed().as_secs_f64());
    }
}
