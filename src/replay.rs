//! `spice-tunnel replay`: today's code against yesterday's traffic.
//!
//! | question | module |
//! | --- | --- |
//! | where does each connection of a capture go | `capture` |
//! | what does today's channel make of a captured peer | `channel` |
//! | what of a tunnelled connection is compared | `story` |
//! | do the handshake machines come to the captured result | `link` |
//! | is every message the same once it was parsed and written | `messages` |
//! | what does a running server make of the captured client | `live` |
//! | what does the netstack make of the captured guest | `netstack` |
//! | what was found | `report` |
//!
//! A channel carries bytes and does not know them. So a replay of one capture finds every byte that today's code loses,
//! changes, or ends in another place; that the *captured* bytes were the right ones, only the guest's card (`--nic`) or a
//! running server (`--live`) can tell.

mod capture;
mod channel;
mod link;
pub mod live;
mod messages;
pub mod netstack;
pub mod report;
mod story;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use spice_proto::ticket::Password;
use tokio_util::sync::CancellationToken;
use tunnel_channel::Role;

pub use self::capture::Replay;
use self::report::{Difference, Part, Place, Report, Subject, Verdict};
use crate::capture::dissect;
use crate::capture::file::{FileError, Reader};
use crate::capture::reader::SpiceReader;
use crate::password::{self, PasswordFileError};

/// What `replay` is told.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = AFTER_HELP)]
pub struct ReplayArgs {
    /// The capture: pcap or pcapng, of the Spice side, in clear
    pub file: PathBuf,

    /// Which part of today's code is played against the captured peers
    #[arg(long, value_enum, default_value_t = Which::All, value_name = "ROLE")]
    pub role: Which,

    /// Capture of the guest's network card in the same run: plays the whole netstack against the captured guest
    #[arg(long, value_name = "FILE", required_if_eq("role", "netstack"))]
    pub nic: Option<PathBuf>,

    /// Only connections to this server port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,

    /// Also compare what means nothing to the connections: serials, message boundaries, token batches, pings and acks.
    /// Old peers differ in these; it is for captures of this very version
    #[arg(long)]
    pub strict: bool,

    /// Play the captured client against this running server instead, with a fresh link and ticket, as a companion beside
    /// the viewer. Its guest must do what the captured guest did: open the same connections, send the same bytes
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["role", "nic", "strict"])]
    pub live: Option<String>,

    /// With --live: file whose first line is the password of the Spice session
    #[arg(long, value_name = "FILE", requires = "live")]
    pub password_file: Option<PathBuf>,

    /// With --live: give up when nothing came from the guest for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, requires = "live")]
    pub wait: u64,

    /// Print one JSON object a line: the differences, and last a summary
    #[arg(long)]
    pub json: bool,
}

const AFTER_HELP: &str = "\
What is replayed:
  * every message is parsed and written again, and must be the same;
  * every link stage goes through today's handshake, as server and as client;
  * every tunnel channel: as the server against the captured client, as the client against the captured server;
  * with --nic, the netstack against the captured guest.

What is compared, for each connection of the guest: whether it was opened, accepted or refused; the bytes of both
directions, and behind which byte each ended; how the connection ended; services and their addresses; messages that are
refused; data that was sent without credit.

With --live, today's client channel does on each connection that the live guest opens what the captured client did on
its next connection to the same service, as fast as the guest lets it; --wait ends it. Compared are the services' addresses, the
guest's bytes, and the ends of connections. A connection that the guest never opens cannot be compared.

Exit code: 0 equal; 1 something is different, or cannot be compared (a hole, damage, nothing to replay); 2 wrong usage.

Examples:
  spice-tunnel replay captures/tunnel-v1-pair.pcap --nic captures/tunnel-v1-pair.guest.pcap
  spice-tunnel replay yesterday.pcapng --live vm.example:5900 --password-file ticket";

/// Which part of today's code is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// The server channel, against the captured client
    Server,
    /// The client channel, against the captured server
    Client,
    /// The netstack, against the captured guest; needs --nic
    Netstack,
    /// All that the captures allow
    All,
}

/// What every part of a replay goes by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Only connections of this server port; `None`: all.
    pub port: Option<u16>,
    /// Also what does not mean anything to the ends: serials, message boundaries, token batches.
    pub strict: bool,
    /// Time of the capture's first packet since the Unix epoch, once known: findings give times since then.
    pub start: Option<Duration>,
    /// For tests of the replay itself.
    pub handicap: Option<Handicap>,
}

/// A behaviour of today's code that is switched off, to see that the replay notices. Not to be had on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handicap {
    /// The window is of this size, where it is ours to choose.
    Window(u32),
    /// Nothing is ever reported as delivered, so that no credit is returned.
    NeverDeliver,
    /// The first byte of every message is another one.
    CorruptByte,
    /// The own direction is never ended.
    ForgetFin,
}

/// Why a replay could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read, or that is no capture.
    #[error("cannot replay {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: FileError,
    },
    /// There is no live server to play against.
    #[error(transparent)]
    Live(#[from] live::LiveError),
    /// The password file is of no use.
    #[error(transparent)]
    PasswordFile(#[from] PasswordFileError),
    /// Nobody reads what is printed.
    #[error("cannot print")]
    Print(#[source] io::Error),
    /// The work broke off.
    #[error("the replay broke off")]
    Broken(#[source] tokio::task::JoinError),
}

/// Replays what `args` say and prints the report. The exit code is 0 for equal, 1 otherwise, 2 for what makes no sense.
///
/// # Errors
///
/// [`Error`], when there is nothing to replay from, or nobody to tell.
pub async fn run(args: ReplayArgs, shutdown: CancellationToken) -> Result<ExitCode, Error> {
    if args.nic.is_some() && matches!(args.role, Which::Server | Which::Client) {
        eprintln!("spice-tunnel: --nic is for the netstack: give --role netstack or --role all with it");
        return Ok(ExitCode::from(2));
    }
    let json = args.json;
    let work = async {
        let live = args.live.clone();
        let work = tokio::task::spawn_blocking(move || match args.live {
            Some(_) => script(&args).map(Work::Live),
            None => replay(&args, None).map(Work::Done),
        });
        match (work.await.map_err(Error::Broken)??, live) {
            (Work::Done(report), _) => Ok(report),
            (Work::Live((script, password, patience)), server) => {
                let server = server.unwrap_or_default();
                Ok(live::run(&server, &password, script, patience).await?)
            }
        }
    };
    let report: Result<Report, Error> = tokio::select! {
        report = work => report,
        // Half a comparison says nothing. The work ends with the process.
        () = shutdown.cancelled() => return Ok(ExitCode::FAILURE),
    };
    let report = report?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let printed = if json { report.write_json(&mut out) } else { report.write_text(&mut out) };
    printed.and_then(|()| out.flush()).map_err(Error::Print)?;
    Ok(match report.verdict() {
        Verdict::Equal => ExitCode::SUCCESS,
        Verdict::Different | Verdict::NotComparable => ExitCode::FAILURE,
    })
}

/// Replays what `args` say, with one of today's behaviours switched off if a test wants that.
///
/// # Errors
///
/// A file cannot be opened, or is no capture.
pub fn replay(args: &ReplayArgs, handicap: Option<Handicap>) -> Result<Report, Error> {
    let options = Options { port: args.port, strict: args.strict, start: None, handicap };
    let mut report = match args.role {
        Which::Server => replay_file(&args.file, &[Role::Server], options)?,
        Which::Client => replay_file(&args.file, &[Role::Client], options)?,
        Which::All => replay_file(&args.file, &[Role::Server, Role::Client], options)?,
        Which::Netstack => Report::default(),
    };
    if let Some(nic) = &args.nic {
        netstack::replay(&args.file, nic, &options, &mut report)?;
    }
    Ok(report)
}

/// What the blocking part of the work came to.
enum Work {
    Done(Report),
    Live((live::Script, Password, Duration)),
}

/// What a live replay plays.
fn script(args: &ReplayArgs) -> Result<(live::Script, Password, Duration), Error> {
    let password = match &args.password_file {
        Some(path) => password::read_file(path)?,
        None => Password::empty(),
    };
    let failed = |source| Error::File { path: args.file.clone(), source };
    let file = Reader::open(&args.file).map_err(failed)?;
    let reading = dissect::Options { port: args.port, ..dissect::Options::default() };
    let mut reader = SpiceReader::new(file, reading);
    let mut script = live::Script::default();
    while reader.step(&mut |item| script.item(&item)).map_err(failed)? {}
    Ok((script, password, Duration::from_secs(args.wait)))
}

/// Replays messages, link stages, and tunnel channels in these roles.
fn replay_file(path: &Path, roles: &[Role], options: Options) -> Result<Report, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let file = Reader::open(path).map_err(failed)?;
    let progress = progress(path);
    let report = replay_capture(file, roles, options, |position| progress.set_position(position));
    progress.finish_and_clear();
    Ok(report)
}

/// Replays a capture from wherever it is read.
pub fn replay_capture(
    file: Reader,
    roles: &[Role],
    options: Options,
    mut progress: impl FnMut(u64),
) -> Report {
    let reading = dissect::Options { port: options.port, ..dissect::Options::default() };
    let mut reader = SpiceReader::new(file, reading);
    let mut replay = Replay::new(options, roles);
    let damage = loop {
        match reader.step(&mut |item| replay.item(&item)) {
            Ok(true) => {
                if reader.counts().packets.is_multiple_of(PROGRESS_EVERY) {
                    progress(reader.position());
                }
            }
            Ok(false) => break None,
            Err(error) => break Some(error),
        }
    };
    let mut report = replay.finish();
    let counts = reader.counts();
    for (reason, packets) in &counts.faults {
        let why = format!("{packets} packets cannot be read: {reason}");
        report.add(Difference::not_comparable(Part::Messages, Subject::Capture, Place::default(), why));
    }
    if let Some(error) = damage {
        let mut why = error.to_string();
        if let Some(cause) = std::error::Error::source(&error) {
            why = format!("{why}: {cause}");
        }
        report.add(Difference::not_comparable(Part::Messages, Subject::Capture, Place::default(), why));
    }
    report
}

/// Packets between two steps of the progress bar.
const PROGRESS_EVERY: u64 = 4096;

/// On a terminal, how far the file is read; nothing elsewhere.
fn progress(path: &Path) -> ProgressBar {
    let length = std::fs::metadata(path).map(|about| about.len()).ok();
    match length {
        Some(length) if std::io::stderr().is_terminal() => {
            let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(length).with_style(style)
        }
        Some(_) | None => ProgressBar::hidden(),
    }
}
