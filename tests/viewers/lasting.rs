//! One session with everything, for minutes: TLS, all channels, a companion, and a guest that prints.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use spice_tunnel::printer::{Config, JobState, Printer};
use spice_tunnel::vm::Vm;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Guest, Kind, Ports, Stage, TICKET};
use crate::vm::rig::{Program, SOON, Viewer, connection_file, until};

const MINUTES: Duration = Duration::from_secs(120);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_secs(12);
/// A key that has not arrived by then is typed again.
const AGAIN: Duration = Duration::from_secs(6);
const BOOT: Duration = Duration::from_secs(90);
/// The console's colours by number, as its palette has them.
const COLOURS: [(u8, [u8; 3]); 3] = [(1, [0xa8, 0, 0]), (2, [0, 0xa8, 0]), (4, [0, 0, 0xa8])];
/// The speaker by its ports (see [`super::painter`]). Debian's small kernel has no driver for it, nor for the sound card.
const BEEP: [&str; 4] = ["o/b 0x43 0xb6", "o/b 0x42 0xa9", "o/b 0x42 0x04", "o/b 0x61 0x03"];

async fn run(vm: &Vm, command: &str) -> String {
    let answer = vm.run(command, SOON).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(answer.status, 0, "{command}: {}", answer.output);
    answer.output
}

/// From now on what is typed at the guest's console is kept. Keys that nobody waits for would be thrown away by Linux.
async fn listen(vm: &Vm) {
    let command = "(stty -icanon -echo; exec cat >/tmp/typed) </dev/tty1 &
         until [ -e /tmp/typed ]; do usleep 50000; done";
    run(vm, command).await;
}

/// A key typed into the viewer's window is what a program on the guest's console reads.
async fn types(stage: &Stage, kind: Kind, key: char) {
    let name = key.to_string();
    let typing = async {
        loop {
            // A viewer that has just got its window, or a window that has just got the focus, may miss one.
            if let Some(window) = stage.window(kind).await {
                stage.screen.xdotool(&["windowfocus", &window.id, "key", "--window", "0", &name]).await;
            }
            sleep(AGAIN).await;
        }
    };
    let read = format!("until grep -q {key} /tmp/typed; do usleep 100000; done");
    tokio::select! {
        _ = run(&stage.vm, &read) => {}
        () = typing => {}
    }
}

/// The guest's screen changes in the viewer's window.
async fn shows(stage: &Stage, kind: Kind, (number, colour): (u8, [u8; 3])) {
    run(&stage.vm, &format!("printf '\\033[4{number}m\\033[2J\\033[H' >/dev/tty0")).await;
    until("the guest's colour in the middle of the window", || async {
        let window = stage.window(kind).await?;
        (window.middle(&stage.screen.look()) == Some(colour)).then_some(())
    })
    .await;
}

/// More is heard than there was.
async fn sounds(viewer: &Viewer) {
    let before = viewer.heard().len();
    until("more sound", || async { (viewer.heard().len() > before).then_some(()) }).await;
    let heard = viewer.heard();
    assert!(heard[heard.len() / 2..].iter().any(|sample| *sample != 0), "there is nothing but silence");
}

/// Where the guest finds the printer.
async fn mapped(companion: &mut Program) -> (String, String) {
    let event = companion.event("mapped").await;
    (event["virtual_ip"].as_str().unwrap().to_owned(), event["port"].to_string())
}

/// The guest prints so many bytes (IPP's Print-Job, RFC 8011, over HTTP), and all of them are printed.
async fn prints(vm: &Vm, printer: &Printer, (address, port): &(String, String), bytes: u32, job: u32) {
    let mut head = vec![2, 0, 0, 2, 0, 0, 0, 1, 1];
    for (tag, name, value) in [
        (0x47, "attributes-charset", "utf-8"),
        (0x48, "attributes-natural-language", "en"),
        (0x45, "printer-uri", &*format!("ipp://{address}:{port}/ipp/print")),
        (0x49, "document-format", "application/octet-stream"),
    ] {
        head.push(tag);
        for text in [name, value] {
            head.extend((text.len() as u16).to_be_bytes());
            head.extend(text.bytes());
        }
    }
    head.push(3);
    let head: String = head.iter().map(|byte| format!("\\{byte:03o}")).collect();
    let command = format!(
        "dd if=/dev/urandom of=/tmp/document bs={bytes} count=1 2>/dev/null
         {{ printf '{head}'; cat /tmp/document; }} >/tmp/job
         {{ printf 'POST /ipp/print HTTP/1.1\\r\\nHost: {address}:{port}\\r\\nContent-Type: application/ipp\\r\\n'
            printf \"Content-Length: $(stat -c %s /tmp/job)\\r\\nConnection: close\\r\\n\\r\\n\"; cat /tmp/job; }} |
         nc {address} {port} | grep -q '^HTTP/1.1 200' && sha256sum </tmp/document"
    );
    let document = run(vm, &command).await;
    let job = printer.ended(job).await;
    assert_eq!((job.state, job.bytes), (JobState::Stored, bytes.into()));
    assert_eq!(document.split_whitespace().next(), job.sha256.as_deref());
}

async fn printer(directory: &Path, tasks: &mut JoinSet<()>) -> (Printer, u16) {
    let printer = Printer::new(Config::new("Printer", directory));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = printer.clone();
    tasks.spawn(async move { serving.serve(listener).await.unwrap() });
    (printer, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_with_everything_and_a_companion_lasts_for_minutes() {
    let stage = Stage::secure(Guest::Linux, Some(TICKET)).await;
    let vm = &stage.vm;
    let directory = tempfile::tempdir().unwrap();
    let mut tasks = JoinSet::new();
    let (printer, port) = printer(directory.path(), &mut tasks).await;
    vm.booted(BOOT).await.unwrap_or_else(|error| panic!("{error}"));
    vm.lease(SOON).await.unwrap_or_else(|error| panic!("{error}"));
    for line in BEEP {
        let monitor = vm.qmp_with("human-monitor-command", json!({ "command-line": line })).await;
        assert_eq!(monitor.unwrap(), "", "{line}");
    }
    listen(vm).await;
    stage.watch.lap("booted");

    let kind = Kind::RemoteViewerByFile;
    let target = Ports::Tls.of(&stage.through);
    let start = Instant::now();
    let (mut viewer, channels) = stage.view(kind, &target, |channels| channels.len() > 10).await;
    let session = stage.session().await;
    assert!(channels.values().all(|tls| *tls), "not all in TLS: {channels:?}");
    let file = directory.path().join("session.vv");
    std::fs::write(&file, connection_file(&target.lend())).unwrap();
    let share = format!("tcp://127.0.0.1:{port}?name=printer");
    let mut companion =
        Program::tunnel(["connect", &file.display().to_string(), "--json", "--share", &share]);
    companion.event("connected").await;
    let at = mapped(&mut companion).await;
    stage.watch.lap("the viewer and its companion are there");

    let mut typed = String::new();
    let mut job = 1;
    for (colour, key) in COLOURS.into_iter().cycle().zip('a'..='z') {
        shows(&stage, kind, colour).await;
        types(&stage, kind, key).await;
        sounds(&viewer).await;
        prints(vm, &printer, &at, 1000, job).await;
        typed.push(key);
        job += 1;
        assert_eq!(stage.session().await, session, "the session is not the one it was");
        assert!(viewer.program.is_running() && companion.is_running());
        stage.watch.lap(&format!("{colour:?} is shown, {key} is typed, sound goes on, the guest prints"));
        if start.elapsed() > MINUTES {
            break;
        }
        sleep(PAUSE).await;
    }
    // What was typed twice, or held too long on a busy machine, is there twice.
    let mut read: Vec<char> = run(vm, "cat /tmp/typed").await.chars().collect();
    read.dedup();
    assert_eq!(String::from_iter(read), typed);
    assert!(!companion.told("disconnected"), "the tunnel was lost:\n{}", companion.said());
    prints(vm, &printer, &at, 3_000_000, job).await;
    assert_eq!(stage.session().await, session, "the session is not the one it was");
    assert!(viewer.program.is_running() && companion.is_running());
    assert!(stage.serve.complaints().is_empty(), "{:#?}", stage.serve.complaints());
    stage.watch.lap("printed");

    // The tunnel ends with the viewer, and comes back with the next one.
    viewer.program.kill().await;
    companion.event("disconnected").await;
    let (mut viewer, _) = stage.view(Kind::Spicy, &target, |_| true).await;
    companion.event("connected").await;
    assert_eq!(mapped(&mut companion).await, at);
    prints(vm, &printer, &at, 100_000, job + 1).await;
    shows(&stage, Kind::Spicy, COLOURS[0]).await;
    assert!(viewer.program.is_running());
    stage.watch.lap("the next viewer has a tunnel too");
}
