//! `view` and `connect` with what users are handed: `.vv` files and addresses, one-time tickets, prompts, real viewers.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::json;
use spice_tunnel::vm::{Builder, NicRole, SpiceAddress, Vm};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::pki::{Authority, Leaf};
use crate::vm::rig::{Program, Screen, Viewer, serve, session, soon, until};

const TICKET: &str = "open, sesame";
const SUBJECT: &str = "O=Example,CN=not the host";
const SHARE: &str = "tcp://127.0.0.1:9?name=nothing";

/// A machine with nothing to boot from, and `serve` in front of it.
struct Stage {
    vm: Vm,
    _serve: Program,
    server: SocketAddr,
    directory: TempDir,
}

impl Stage {
    /// In clear, with a ticket.
    async fn set() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::start(Vm::builder().ticket(TICKET), directory, &["--listen", "127.0.0.1:0"]).await
    }

    /// Over TLS, without a ticket, and the `.vv` file for it. The certificate is not for the host.
    async fn secure() -> (Self, String) {
        let directory = tempfile::tempdir().unwrap();
        let leaf = Leaf { subject: &[("O", "Example"), ("CN", "not the host")], ..Leaf::default() };
        let files = Authority::new("somebody").issue(&leaf, directory.path());
        let (certificate, key) = (text(&files.certificate), text(&files.key));
        let listen = ["--tls-listen", "127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key];
        let stage = Self::start(Vm::builder(), directory, &listen).await;
        let ca = std::fs::read_to_string(&files.ca).unwrap().replace('\n', "\\n");
        let (host, port) = (stage.server.ip(), stage.server.port());
        let file = format!(
            "[virt-viewer]\ntype=spice\nhost={host}\ntls-port={port}\nca={ca}\nhost-subject={SUBJECT}\n"
        );
        (stage, file)
    }

    async fn start(builder: Builder, directory: TempDir, listen: &[&str]) -> Self {
        let (spice, nic) = (directory.path().join("spice"), directory.path().join("nic"));
        let builder = builder.spice(SpiceAddress::Unix(spice)).memory(64).floppy(Vec::new());
        let vm = builder.nic(&nic, NicRole::Listens).start().await.unwrap_or_else(|error| panic!("{error}"));
        let (upstream, nic) = (vm.spice().to_string(), format!("connect:{}", nic.display()));
        let (serve, server) = serve(&[&["--upstream", &upstream, "--nic", &nic], listen].concat()).await;
        Self { vm, _serve: serve, server, directory }
    }

    /// A `.vv` file for the session, with more lines.
    fn file(&self, name: &str, more: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        let (host, port) = (self.server.ip(), self.server.port());
        std::fs::write(&path, format!("[virt-viewer]\ntype=spice\nhost={host}\nport={port}\n{more}"))
            .unwrap();
        path
    }

    /// A program that takes a `.vv` file and runs `script` instead of a viewer.
    fn viewer(&self, script: &str) -> PathBuf {
        let path = self.directory.path().join("viewer");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        path
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"));
    command.args(words).env("NO_COLOR", "1").env_remove("RUST_LOG").stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output(words: &[&str]) -> Output {
    soon(words[0], command(words).output()).await.unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

async fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([name, pid]).status().await.unwrap().success());
}

async fn viewer_pid(view: &mut Program) -> String {
    let find = |line: &str| {
        let after = line.split("started the viewer").nth(1)?.split("pid=").nth(1)?;
        Some(after.trim().to_owned())
    };
    view.line("which viewer it started", find).await
}

fn private_directories(home: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("spice-tunnel-")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_viewer_and_the_tunnel_live_and_end_together() {
    let (stage, screen) = (Stage::set().await, Screen::start().await);
    for by_viewer in [true, false] {
        let more = format!(
            "password={TICKET}\ndelete-this-file=1\ntitle=A title of its own\nnovel-key=1\n[novel group]\nx=1\n\
             [spice-tunnel]\nshare={SHARE}\n"
        );
        let file = stage.file("session.vv", &more);
        let home = tempfile::tempdir().unwrap();
        let place = home.path().to_owned();
        let view = command(&["view", text(&file), "--shares-from-file", "--json"]);
        let (mut view, _home) = Viewer::start("spice-tunnel view", view, &screen, home).apart();
        let pid = viewer_pid(&mut view).await;
        view.event("mapped").await;
        assert!(!file.exists(), "the file said that it was to be removed");
        until("the viewer's channels", || session(&stage.vm)).await;
        until("the file's own title", || screen.xdotool(&["search", "--name", "A title of its own"])).await;
        let private = private_directories(&place);
        assert_eq!(private.len(), 1);
        assert_eq!(std::fs::metadata(&private[0]).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(&private[0]).unwrap().count(), 0, "the viewer has removed it");
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&line).contains(TICKET));
        let status = if by_viewer {
            signal("-TERM", &pid).await;
            soon("view to end with the viewer", view.ended()).await
        } else {
            view.terminate().await
        };
        assert_eq!(status.code(), Some(if by_viewer { 143 } else { 0 }));
        until("the session's end", || async { session(&stage.vm).await.is_none().then_some(()) }).await;
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the viewer is left");
        assert!(private_directories(&place).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_viewer_gets_a_file_of_its_own_and_its_exit_code_is_ours() {
    let stage = Stage::set().await;
    let seen = stage.directory.path().join("seen");
    let viewer = stage.viewer(&format!("stat -c %a \"$2\" >{0}.mode; cp \"$2\" {0}; exit 7", seen.display()));
    let file = stage.file("session.vv", "password=stale\ntitle=Kept\n");
    let words = ["view", text(&file), "--share", SHARE, "--password", TICKET, "--viewer", text(&viewer)];
    let output = output(&[&words[..], &["--", "--full-screen"]].concat()).await;
    assert_eq!(output.status.code(), Some(7), "{}", complaint(&output));
    assert_eq!(std::fs::read_to_string(seen.with_extension("mode")).unwrap(), "600\n");
    let given = std::fs::read_to_string(&seen).unwrap();
    assert!(given.starts_with(&std::fs::read_to_string(&file).unwrap()), "{given}");
    assert!(given.ends_with(&format!("password={TICKET}\ndelete-this-file=1\n")), "{given}");
    assert!(file.exists(), "it did not ask for its removal");

    let missing = ["view", text(&file), "--share", SHARE, "--viewer", "nobodys-viewer"];
    let output = self::output(&missing).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("there is no nobodys-viewer"), "{}", complaint(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_tunnel_still_gives_the_desktop() {
    let stage = Stage::set().await;
    let SpiceAddress::Unix(socket) = stage.vm.spice() else { panic!("it listens on TCP") };
    let viewer = stage.viewer("sleep 2");
    let uri = format!("spice+unix://{}", socket.display());
    let words = ["view", &uri, "--share", SHARE, "--password", TICKET, "--viewer", text(&viewer)];
    let output = output(&words).await;
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
    let said = complaint(&output);
    assert!(said.contains("offers no tunnel channel") && said.contains("the viewer goes on"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_expired_is_called_so() {
    let stage = Stage::set().await;
    let file = stage.file("session.vv", &format!("password={TICKET}\ndelete-this-file=1\n"));
    let viewer = stage.viewer("echo the viewer was started");
    let view = ["view", text(&file), "--share", SHARE, "--viewer", text(&viewer)];
    let connect = ["connect", text(&file), "--share", SHARE];

    let mut joined = Program::tunnel([&connect[..], &["--json"]].concat());
    joined.event("mapped").await;
    assert!(file.exists(), "the file is left to the viewer as long as we run");
    assert_eq!(joined.terminate().await.code(), Some(0));
    assert!(!file.exists(), "the file outlived its use");

    let file = stage.file("session.vv", &format!("password={TICKET}\ndelete-this-file=1\n"));
    let now = json!({ "protocol": "spice", "time": "now" });
    stage.vm.qmp_with("expire_password", now).await.unwrap();
    for words in [&view[..], &connect] {
        let output = output(words).await;
        assert_eq!(output.status.code(), Some(1));
        let said = complaint(&output);
        let expected = format!("does not accept the password in {}: it has expired", file.display());
        assert!(said.contains(&expected) && said.contains("fetch a new file"), "{said}");
        assert!(!said.contains("the viewer was started"), "{said}");
        stage.file("session.vv", &format!("password={TICKET}\n"));
    }
}

/// A shell's command on a terminal of its own.
struct Pty {
    _script: Child,
    keyboard: ChildStdin,
    screen: ChildStdout,
    shown: String,
}

impl Pty {
    fn run(line: &str) -> Self {
        let mut command = Command::new("script");
        command.args(["-qefc", line, "/dev/null"]).env("NO_COLOR", "1").kill_on_drop(true);
        let mut script = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keyboard, screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
        Self { _script: script, keyboard, screen, shown: String::new() }
    }

    async fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).await.unwrap();
        self.keyboard.flush().await.unwrap();
    }

    /// Waits until `count` times `text` was shown.
    async fn shows(&mut self, text: &str, count: usize) {
        let reading = async {
            while self.shown.matches(text).count() < count {
                let mut chunk = [0; 4096];
                let read = self.screen.read(&mut chunk).await.unwrap();
                assert!(read > 0, "{text} is not in {}", self.shown);
                self.shown.push_str(&String::from_utf8_lossy(&chunk[..read]));
            }
        };
        soon(text, reading).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sits_at_a_terminal_is_asked_for_the_password() {
    let stage = Stage::set().await;
    let viewer = stage.viewer("grep '^password=' \"$1\" | tail -n 1 | sed 's/open, //'; sleep 1");
    let program = env!("CARGO_BIN_EXE_spice-tunnel");
    let uri = format!("spice://{}", stage.server);
    let view = format!("{program} view {uri} --share '{SHARE}' --viewer {}", viewer.display());
    let mut terminal = Pty::run(&format!("{view}; echo code $?; stty -a"));
    terminal.shows("Password for spice://127.0.0.1:", 1).await;
    terminal.types("wrong one\n").await;
    terminal.shows("Password for", 2).await;
    terminal.types(&format!("{TICKET}\n")).await;
    terminal.shows("->  198.18.", 1).await;
    terminal.shows("password=sesame", 1).await;
    terminal.shows("code 0", 1).await;
    terminal.shows(" echo ", 1).await;
    assert!(!terminal.shown.contains(TICKET) && !terminal.shown.contains("wrong one"), "{}", terminal.shown);

    let connect = format!("{program} connect {uri} --share '{SHARE}'");
    let mut terminal = Pty::run(&format!("{connect}; echo code $?"));
    for attempt in 1..=3 {
        terminal.shows("Password for", attempt).await;
        terminal.types("guess\n").await;
    }
    terminal.shows("does not accept the password", 1).await;
    terminal.shows("code 1", 1).await;

    // Ctrl-C leaves the terminal as it was.
    let mut terminal = Pty::run(&format!("trap : INT; {connect}; echo code $?; stty -a"));
    terminal.shows("Password for", 1).await;
    terminal.types("half\x03").await;
    terminal.shows("code 0", 1).await;
    terminal.shows(" echo ", 1).await;

    // Nobody is there to be asked.
    let output = output(&["connect", &uri, "--share", SHARE]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = complaint(&output);
    assert!(said.contains("none was given; use --password-file"), "{said}");
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_gets_what_tls_needs_and_goes_nowhere_in_clear() {
    let (directory, screen) = (tempfile::tempdir().unwrap(), Screen::start().await);
    let leaf = Leaf { subject: &[("O", "Example"), ("CN", "not the host")], ..Leaf::default() };
    let files = Authority::new("somebody").issue(&leaf, directory.path());
    let (port, tls_port) = (free_port(), free_port());
    let options = format!("tls-port={tls_port},x509-dir={}", directory.path().display());
    let builder = Vm::builder().ticket(TICKET).spice(SpiceAddress::Tcp((Ipv4Addr::LOCALHOST, port).into()));
    let vm =
        builder.memory(64).floppy(Vec::new()).argument("-spice").argument(options).start().await.unwrap();

    let ca = std::fs::read_to_string(&files.ca).unwrap();
    let text = |subject: &str| {
        let ca = ca.replace('\n', "\\n");
        format!(
            "[virt-viewer]\ntype=spice\nhost=127.0.0.1\nport={port}\ntls-port={tls_port}\npassword={TICKET}\n\
             ca={ca}\nhost-subject={subject}\n"
        )
    };
    let file = directory.path().join("session.vv");
    let uri = format!("spice://127.0.0.1?port={port};tls-port={tls_port}");
    let by_uri = ["--ca-file", self::text(&files.ca), "--host-subject", SUBJECT, "--password", TICKET];
    for address in [&[self::text(&file)][..], &[&[uri.as_str()], &by_uri[..]].concat()] {
        std::fs::write(&file, text(SUBJECT)).unwrap();
        let view = command(&[&["view", "--share", SHARE], address].concat());
        let mut view =
            Viewer::start("spice-tunnel view", view, &screen, tempfile::tempdir().unwrap()).program;
        until("the viewer's channels", || session(&vm)).await;
        let state = vm.qmp("query-spice").await.unwrap();
        for channel in state["channels"].as_array().unwrap() {
            assert_eq!(channel["tls"], true, "{channel}");
        }
        let warned = |line: &str| line.contains("offers no tunnel channel").then_some(());
        view.line("that there is no tunnel", warned).await;
        assert!(view.is_running());
        assert_eq!(view.terminate().await.code(), Some(0));
        until("the session's end", || async { session(&vm).await.is_none().then_some(()) }).await;
    }

    std::fs::write(&file, text("O=Example,CN=somebody else")).unwrap();
    let output = output(&["view", self::text(&file), "--share", SHARE, "--viewer", "true"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("cannot be trusted"), "{}", complaint(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_viewer_and_tunnel_believe_the_same_certificate() {
    let ((stage, content), screen) = (Stage::secure().await, Screen::start().await);
    let file = stage.directory.path().join("session.vv");
    std::fs::write(&file, content).unwrap();
    let session = || session(&stage.vm);
    for viewer in ["remote-viewer", "spicy"] {
        let view = command(&["view", text(&file), "--viewer", viewer, "--share", SHARE, "--json"]);
        let home = tempfile::tempdir().unwrap();
        let (mut view, _home) = Viewer::start("spice-tunnel view", view, &screen, home).apart();
        view.event("mapped").await;
        until("the viewer's channels", session).await;
        assert_eq!(view.terminate().await.code(), Some(0));
        until("the session's end", || async { session().await.is_none().then_some(()) }).await;
    }

    // Beside a viewer that somebody else started with the same file.
    let mut viewer = Command::new("remote-viewer");
    viewer.arg(&file);
    let home = tempfile::tempdir().unwrap();
    let (mut viewer, _home) = Viewer::start("remote-viewer", viewer, &screen, home).apart();
    let before = until("the viewer's channels", session).await;
    let mut connect = Program::tunnel(["connect", text(&file), "--share", SHARE, "--json"]);
    connect.event("mapped").await;
    assert_eq!(connect.terminate().await.code(), Some(0));
    assert!(viewer.is_running());
    assert_eq!(session().await, Some(before), "the viewer's session was disturbed");

    let words = ["connect", text(&file), "--share", SHARE, "--host-subject", "CN=another"];
    let output = output(&words).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("cannot be trusted"), "{}", complaint(&output));
}

#[tokio::test]
async fn files_are_checked_without_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("session.vv");
    let begin = "[virt-viewer]\ntype=spice\nhost=vm.example\ndelete-this-file=1\n";
    for (more, code, expected) in [
        ("tls-port=5901\nport=5900\npassword=x\n", 0, "port 5900, which is in clear, is not used"),
        ("tls-port=5901\nproxy=http://u:hunter2@p:3128\n", 0, "http://p:3128, as u"),
        ("port=5900\n", 0, "in clear"),
        ("", 1, "session.vv: port: it is missing"),
        ("port=5900\nsecure-channels=all\n", 1, "session.vv: secure-channels: it wants TLS"),
        ("tls-port=5901\ntls-ciphers=NONSENSE\n", 1, "session.vv"),
        ("port=5900\nhost=a\0b\n", 1, "line 6: expected text, found a NUL"),
        ("tls-port=5901\nca=garbage\n", 1, "session.vv: ca: expected certificates in PEM form"),
        ("port=5900\nproxy=https://p:1\n", 1, "session.vv: proxy: https proxies cannot be used"),
    ] {
        std::fs::write(&file, format!("{begin}{more}")).unwrap();
        for verb in [&["connect"][..], &["view", "--viewer", "true"]] {
            let output = output(&[verb, &[text(&file), "--share", SHARE, "--check"]].concat()).await;
            let said = complaint(&output) + &String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(code), "{more}: {said}");
            assert!(said.contains(expected) && !said.contains("hunter2"), "{more}: {said}");
            assert!(file.exists(), "a check removes nothing");
        }
    }
    std::fs::write(&file, format!("{begin}port=5900\ndisable-channels=record;tunnel\n")).unwrap();
    let output = output(&["connect", text(&file), "--share", SHARE]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("among its disable-channels"), "{}", complaint(&output));
    let nothing = self::output(&["view", text(&file)]).await;
    assert_eq!(nothing.status.code(), Some(2));
    assert!(complaint(&nothing).contains("--share"), "{}", complaint(&nothing));
}
