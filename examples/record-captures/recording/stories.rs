//! The stories that a guest of our own tells.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use client_glue::TunnelConfig;
use spice_tunnel::guest::stream::Error as GuestError;
use spice_tunnel::guest::{Config, ConnectionError, Guest, GuestStream};
use spice_tunnel::printer::{self, JobState, Printer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::Error;
use super::services::{self, Service, pattern};
use super::stage::{Stage, User, check, connect, within};

/// Bytes that are printed.
const DOCUMENT: usize = 50_000;
/// Connections that are open at the same time.
const MANY: usize = 60;
/// Bytes for a reader that is slow.
const LONG: usize = 80_000;

/// As `spice-tunnel demo`, with a small document: the guest prints.
pub(crate) async fn demo(directory: &Path, name: &str) -> Result<(), Error> {
    let jobs = tempfile::tempdir()?;
    let printer = Printer::new(printer::Config::new("demo-printer", jobs.path()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = printer.clone();
    tokio::spawn(async move { serving.serve(listener).await });

    let (stage, guest) = Stage::with_guest(directory, name, Config::default(), |_| {}).await?;
    let mut user = User::join(stage.spice, TunnelConfig::default()).await?;
    let at = user.share("demo-printer", address).await?;
    let stream = connect(&guest, at).await?;
    let document = pattern(DOCUMENT).into();
    let authority = at.to_string();
    let submitted = printer::submit(stream, &authority, "demo", "application/octet-stream", document);
    let printed = within("the printer", submitted).await??;
    let job = within("the job", printer.ended(printed.job)).await?;
    check(job.state == JobState::Stored && job.bytes == DOCUMENT as u64, "the document was printed")?;
    user.leave().await?;
    stage.end().await
}

/// A service that nobody runs, a port that nobody shared, an address that nobody has.
pub(crate) async fn refused_port(directory: &Path, name: &str) -> Result<(), Error> {
    let (stage, guest) = Stage::with_guest(directory, name, Config::default(), |_| {}).await?;
    let mut user = User::join(stage.spice, TunnelConfig::default()).await?;
    let echo = user.share("device", Service::Echo.start().await?).await?;
    let nobody = user.share("device", services::nobody().await?).await?;
    refused(&guest, nobody, ConnectionError::Refused).await?;
    let not_shared = SocketAddr::new(echo.ip(), echo.port() ^ 1);
    refused(&guest, not_shared, ConnectionError::Refused).await?;
    let not_there = SocketAddr::new("198.18.200.200".parse()?, 631);
    refused(&guest, not_there, ConnectionError::Unreachable).await?;
    // The tunnel is none the worse for it.
    talk(&mut connect(&guest, echo).await?, b"still there?").await?;
    user.leave().await?;
    stage.end().await
}

async fn refused(guest: &Guest, to: SocketAddr, expected: ConnectionError) -> Result<(), Error> {
    match within("an answer", guest.connect(to.ip(), to.port())).await? {
        Err(GuestError::Connection(error)) if error == expected => Ok(()),
        other => Err(format!("{to}: expected {expected}, got {other:?}").into()),
    }
}

/// Each side ends its direction first, and hears the rest of what the other says.
pub(crate) async fn half_close(directory: &Path, name: &str) -> Result<(), Error> {
    let (stage, guest) = Stage::with_guest(directory, name, Config::default(), |_| {}).await?;
    let mut user = User::join(stage.spice, TunnelConfig::default()).await?;
    let shout = user.share("shout", Service::Shout.start().await?).await?;
    let goodbye = user.share("goodbye", Service::Goodbye.start().await?).await?;

    let mut stream = connect(&guest, shout).await?;
    stream.write_all(b"shout me").await?;
    stream.shutdown().await?;
    let mut heard = Vec::new();
    within("the answer", stream.read_to_end(&mut heard)).await??;
    check(heard == b"SHOUT ME", "the service answers behind the guest's end")?;

    let mut stream = connect(&guest, goodbye).await?;
    let mut heard = Vec::new();
    within("the service's end", stream.read_to_end(&mut heard)).await??;
    check(heard == b"BYE\n", "the service ends first")?;
    stream.write_all(b"and you").await?;
    stream.shutdown().await?;
    drop(stream);
    user.leave().await?;
    stage.end().await
}

/// Each side resets; the service also behind the guest's end, where without SOCKET_RESET it would look like a clean end.
pub(crate) async fn resets(directory: &Path, name: &str) -> Result<(), Error> {
    let (stage, guest) = Stage::with_guest(directory, name, Config::default(), |_| {}).await?;
    let mut user = User::join(stage.spice, TunnelConfig::default()).await?;
    let echo = user.share("echo", Service::Echo.start().await?).await?;
    let reset = user.share("reset", Service::Reset.start().await?).await?;
    let reset_last = user.share("reset-last", Service::ResetLast.start().await?).await?;

    let mut stream = connect(&guest, echo).await?;
    talk(&mut stream, b"half a j").await?;
    stream.reset();
    drop(stream);

    let mut stream = connect(&guest, reset).await?;
    stream.write_all(b"x").await?;
    broken(&mut stream).await?;

    let mut stream = connect(&guest, reset_last).await?;
    stream.write_all(b"all of it").await?;
    stream.shutdown().await?;
    broken(&mut stream).await?;
    user.leave().await?;
    stage.end().await
}

async fn broken(stream: &mut GuestStream) -> Result<(), Error> {
    let read = within("the reset", stream.read_u8()).await?;
    check(read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "the guest sees a reset")
}

/// A guest that reads late and slowly: the service's credit is used up, again and again.
pub(crate) async fn credit(directory: &Path, name: &str) -> Result<(), Error> {
    // Small buffers everywhere, so that little data fills them.
    let slow = Config { receive_buffer: 4096, ..Config::default() };
    let small = |parts: &mut spice_tunnel::serve::Parts| parts.net.send_buffer = 4096;
    let (stage, guest) = Stage::with_guest(directory, name, slow, small).await?;
    let mut config = TunnelConfig::default();
    config.channel.max_data = 512;
    let mut user = User::join(stage.spice, config).await?;
    let source = user.share("source", Service::Source(LONG).start().await?).await?;

    let mut stream = connect(&guest, source).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut heard: Vec<u8> = Vec::new();
    loop {
        let mut piece = vec![0; 2000];
        let count = within("more", stream.read(&mut piece)).await??;
        if count == 0 {
            break;
        }
        heard.extend(piece.get(..count).unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    check(heard == pattern(LONG), "the guest reads what the service sent")?;
    drop(stream);
    user.leave().await?;
    stage.end().await
}

/// Many connections that live at the same time.
pub(crate) async fn many_sockets(directory: &Path, name: &str) -> Result<(), Error> {
    let (stage, guest) = Stage::with_guest(directory, name, Config::default(), |_| {}).await?;
    let mut user = User::join(stage.spice, TunnelConfig::default()).await?;
    let echo = user.share("echo", Service::Echo.start().await?).await?;
    let shout = user.share("shout", Service::Shout.start().await?).await?;
    let mut streams = Vec::new();
    for number in 0..MANY {
        streams.push(connect(&guest, if number % 2 == 0 { echo } else { shout }).await?);
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("connection {number}").as_bytes()).await?;
    }
    // In another order than they were opened in.
    while let Some(mut stream) = (!streams.is_empty()).then(|| streams.swap_remove(streams.len() / 2)) {
        stream.shutdown().await?;
        let mut heard = String::new();
        within("the answer", stream.read_to_string(&mut heard)).await??;
        check(heard.to_lowercase().starts_with("connection "), "every connection has its answer")?;
    }
    user.leave().await?;
    stage.end().await
}

/// The user is gone in the middle of connections. The guest sees resets; who comes next finds the same address.
pub(crate) async fn client_lost(directory: &Path, name: &str) -> Result<(), Error> {
    let (stage, guest) = Stage::with_guest(directory, name, Config::default(), |_| {}).await?;
    let service = Service::Echo.start().await?;
    let mut user = User::join(stage.spice, TunnelConfig::default()).await?;
    let first = user.share("echo", service).await?;
    let mut idle = connect(&guest, first).await?;
    talk(&mut idle, b"are you there?").await?;
    let mut busy = connect(&guest, first).await?;
    busy.write_all(&pattern(20_000)).await?;
    let mut some = vec![0; 5_000];
    within("some of the echo", busy.read_exact(&mut some)).await??;
    user.vanish().await;
    broken(&mut idle).await?;
    let mut rest = Vec::new();
    check(within("the reset", busy.read_to_end(&mut rest)).await?.is_err(), "the guest sees a reset")?;

    let mut user = User::join(stage.spice, TunnelConfig::default()).await?;
    let second = user.share("echo", service).await?;
    check(first == second, "the address is the same as before")?;
    talk(&mut connect(&guest, second).await?, b"and now?").await?;
    user.leave().await?;
    stage.end().await
}

/// A question that comes back.
async fn talk(stream: &mut GuestStream, question: &[u8]) -> Result<(), Error> {
    stream.write_all(question).await?;
    let mut answer = vec![0; question.len()];
    within("the echo", stream.read_exact(&mut answer)).await??;
    check(answer == question, "the echo is what was said")
}
