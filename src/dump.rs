//! `spice-tunnel dump`: every Spice message in a capture, for people or for scripts.
//!
//! ```text
//!  input ── SpiceReader ── Item ──► books ── Seen ──► summary (all of them)
//!                                                └──► filter ──► text or json ──► output
//!                                                └──► stats, follow, nic ───────►
//! ```
//!
//! Nothing here grows with the capture but a few counters: lines leave as they are made, ledgers forget what is over.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use spice_proto::names::Sender;
use spice_proto::tunnel::{ServiceId, SocketId};
use tokio_util::sync::CancellationToken;

use crate::capture::dissect::Options;
use crate::capture::file::Reader;
use crate::capture::ledger::ConnectionNumber;
use crate::capture::reader::{Counts, SpiceReader};
use crate::capture::reassembly::StreamId;
use crate::describe::Tame;

use books::{Books, Seen};
use filter::{ChannelFilter, Filter, MessageName, TimeRange};
use follow::Follow;
use input::Input;
use json::Json;
use nic::Nic;
use output::Output;
use stats::Stats;
use summary::Summary;
use text::Text;

pub mod books;
mod fields;
pub mod filter;
pub mod follow;
mod input;
mod json;
pub mod nic;
mod output;
pub mod stats;
mod summary;
pub mod text;
mod units;

/// What `dump` is told.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub struct DumpArgs {
    /// The capture, pcap or pcapng; - for standard input, of which each message is printed as it comes
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Print one JSON object a line instead of text; the summary goes to stderr
    #[arg(long)]
    pub json: bool,

    /// Print the bytes of each message too
    #[arg(long)]
    pub hex: bool,

    /// Only connections to or from this TCP port. Without it, Spice is found on any port by its first bytes
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,

    /// Only this connection, by its number in the output
    #[arg(long, value_name = "N", help_heading = FILTERS)]
    pub stream: Option<u64>,

    /// Only this channel: a type, or one of several, as in display:1. Can be given many times
    #[arg(long = "channel", value_name = "NAME", help_heading = FILTERS)]
    pub channels: Vec<ChannelFilter>,

    /// Only messages of this name, as in spice.proto, in lower case; also link_mess, malformed, hole and so on. Can be given
    /// many times
    #[arg(long = "message", value_name = "NAME", help_heading = FILTERS)]
    pub messages: Vec<MessageName>,

    /// Only what this end said
    #[arg(long, value_name = "END", help_heading = FILTERS)]
    pub from: Option<From>,

    /// Only messages about this socket of a tunnel
    #[arg(long, value_name = "N", help_heading = FILTERS)]
    pub socket: Option<u16>,

    /// Only messages about this service of a tunnel and about the connections to it
    #[arg(long, value_name = "N", help_heading = FILTERS)]
    pub service: Option<u32>,

    /// Only what was captured within this time, in seconds since the first packet: 2..3.5, 2.. or ..3.5
    #[arg(long, value_name = "A..B", help_heading = FILTERS, allow_hyphen_values = true)]
    pub time: Option<TimeRange>,

    /// Instead of messages: what became of each service and each connection of the guest, with throughput and credit
    #[arg(long, help_heading = VIEWS, conflicts_with_all = ["follow", "nic", "hex"])]
    pub stats: bool,

    /// Instead of messages: the bytes of one connection of the guest, by its number behind the # in the output
    #[arg(long, value_name = "N", help_heading = VIEWS, conflicts_with_all = ["nic", "hex", "json"])]
    pub follow: Option<u64>,

    /// With --follow: how the bytes are shown
    #[arg(long, value_name = "FORMAT", help_heading = VIEWS, requires = "follow", default_value = "text")]
    pub format: Format,

    /// With --follow: write the bytes into PREFIX.guest (what the guest sent) and PREFIX.service (what it got)
    #[arg(long, value_name = "PREFIX", help_heading = VIEWS, requires = "follow")]
    pub raw: Option<PathBuf>,

    /// Instead of messages: pair each connection in this capture of the guest's card with its socket in the tunnel, and
    /// compare the bytes
    #[arg(long, value_name = "FILE", help_heading = VIEWS, conflicts_with = "hex")]
    pub nic: Option<PathBuf>,
}

const FILTERS: &str = "Filters (of lines; the summary counts everything)";
const VIEWS: &str = "Other views";

const AFTER_HELP: &str = "\
Examples:
  spice-tunnel dump session.pcap                       every message of every Spice connection
  tcpdump -i lo -U -w - port 5900 | spice-tunnel dump -   the same, live
  spice-tunnel dump session.pcap --channel tunnel --socket 0
  spice-tunnel dump session.pcap --message socket_open --message socket_open_nack
  spice-tunnel dump session.pcap --time 2..3.5 --from client --hex
  spice-tunnel dump session.pcap --json | jq -r 'select(.message == \"notify\") | .fields.message'
  spice-tunnel dump session.pcap --stats               per service and per connection
  spice-tunnel dump session.pcap --follow 3 --raw job  bytes of connection #3 into job.guest, job.service
  spice-tunnel dump session.pcap --nic guest.pcap      is what the guest sent what the service got?

Each JSON object has the keys time (seconds since the first packet), stream, channel, channel_id, from, message,
type, serial, size and fields, and error if the message is \"malformed\". What a hole or a malformed message might
concern is not known, so filters let it pass unless it is certainly something else.

Exit code: 0 all was read and understood, 1 something was damaged, malformed or missing, 2 wrong usage.";

/// An end of a connection, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum From {
    /// The viewer's side.
    Client,
    /// The VM's side.
    Server,
}

/// How `--follow` shows bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As text, with what is not printable escaped
    Text,
    /// As hexadecimal digits
    Hex,
}

impl DumpArgs {
    /// What gets a line.
    fn filter(&self) -> Filter {
        Filter {
            stream: self.stream.map(StreamId),
            channels: self.channels.clone(),
            from: self.from.map(|from| match from {
                From::Client => Sender::Client,
                From::Server => Sender::Server,
            }),
            messages: self.messages.clone(),
            socket: self.socket.map(SocketId),
            service: self.service.map(ServiceId),
            time: self.time,
        }
    }

    /// The connection to follow.
    pub fn followed(&self) -> Option<ConnectionNumber> {
        self.follow.map(ConnectionNumber)
    }
}

/// Runs `dump` to its end, or until `stop` is cancelled. It blocks.
///
/// # Errors
///
/// When the output cannot be written, for another reason than that nobody reads it any more.
pub fn run(args: &DumpArgs, stop: CancellationToken) -> io::Result<ExitCode> {
    let stdout = io::stdout();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = stdout.is_terminal() && !no_color;
    // Not through std's stdout, which looks for the end of each line.
    let output = Output::new(File::from(stdout.as_fd().try_clone_to_owned()?));
    let bar = if stdout.is_terminal() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let good = Dump { args, stop, output: output.clone(), color }.run(bar);
    match output.finish() {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
        Ok(()) => Ok(if good? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}

struct Dump<'a> {
    args: &'a DumpArgs,
    stop: CancellationToken,
    output: Output,
    color: bool,
}

impl Dump<'_> {
    /// Whether all was read and understood.
    fn run(&self, bar: ProgressDrawTarget) -> io::Result<bool> {
        let mut view = View::new(self.args, self.color)?;
        let mut lines = Vec::new();
        let opened = Input::open(&self.args.file, self.stop.clone(), self.output.clone());
        let read = opened.map_err(|error| chain(&error)).and_then(|input| {
            let length = input.len();
            let reader = Reader::new(input).map_err(|error| chain(&error))?;
            Ok((length, reader))
        });
        let (length, reader) = match read {
            Ok(read) => read,
            Err(error) => {
                self.complain(&error);
                view.damage(&Books::default(), &error, &mut lines)?;
                self.output.take(&mut lines);
                return Ok(false);
            }
        };
        let bar = progress(bar, length);
        let mut reader = SpiceReader::new(reader, Options { port: self.args.port, ..Options::default() });
        let mut books = Books::default();
        let mut summary = Summary::default();
        let filter = self.args.filter();
        let mut failed = Ok(());
        let mut steps = 0_u64;
        let damage = loop {
            let step = reader.step(&mut |item| {
                books.note(&item, |seen| {
                    let shown = view.shows(&filter, seen);
                    summary.item(seen, shown);
                    if shown && failed.is_ok() {
                        failed = view.item(seen, &mut lines);
                    }
                });
                // A packet can let many messages out that had to wait for it.
                if lines.len() >= MANY {
                    self.output.take(&mut lines);
                }
            });
            if let Some(start) = reader.start() {
                books.set_start(start);
            }
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(LOOK) {
                bar.set_position(reader.position());
            }
            // What comes live waits in the output, which the input lets out before it waits.
            let enough = length.is_none() || lines.len() >= MANY;
            if enough && !self.output.take(&mut lines) {
                bar.finish_and_clear();
                return Ok(true);
            }
            match step {
                Ok(true) if failed.is_ok() => {}
                Ok(_) => break None,
                // What we cut short ourselves is not damaged.
                Err(_) if self.stop.is_cancelled() => break None,
                Err(error) => break Some(chain(&error)),
            }
        };
        bar.finish_and_clear();
        failed?;
        let broken = broken_packets(reader.counts());
        for error in [&broken, &damage].into_iter().flatten() {
            view.damage(&books, error, &mut lines)?;
        }
        if reader.counts().spice == 0 && damage.is_none() {
            self.guest_connections(&view, length.is_some(), reader.counts().connections, &mut lines);
        }
        let equal = view.finish(&mut lines)?;
        // Errors and the summary on another stream come behind the last line, and not at all if nobody reads the lines.
        if !self.output.take(&mut lines) || !self.output.flush() {
            return Ok(true);
        }
        for error in [&broken, &damage].into_iter().flatten() {
            self.complain(error);
        }
        summary.write(reader.counts(), self.stop.is_cancelled(), damage.is_some(), &mut lines)?;
        if self.args.json || self.args.follow.is_some() {
            let _ = io::stderr().write_all(&lines);
        } else {
            self.output.take(&mut lines);
        }
        Ok(equal && broken.is_none() && damage.is_none() && summary.is_clean())
    }

    /// A capture of TCP without Spice is perhaps what the guest's card saw: shows its connections, for which it is read
    /// once more.
    fn guest_connections(&self, view: &View, again: bool, connections: u64, lines: &mut Vec<u8>) {
        let plain = match view {
            View::Text(_) | View::Json(_) => {
                // Whoever filters messages does not ask for these.
                self.args.filter() == Filter::default()
                    && self.args.port.is_none()
                    && !self.stop.is_cancelled()
            }
            View::Stats(_) | View::Follow(_) | View::Nic(_) => false,
        };
        if connections == 0 || !plain {
            return;
        }
        if !again {
            eprintln!(
                "spice-tunnel: there is TCP and no Spice; if it is what the guest's card saw, dump the file itself to see \
                 the guest's connections"
            );
            return;
        }
        let listed = Reader::open(&self.args.file).and_then(|reader| {
            nic::list(reader, self.args.json, self.color, &mut |out| {
                lines.append(out);
                !self.stop.is_cancelled() && (lines.len() < MANY || self.output.take(lines))
            })
        });
        if let Err(error) = listed {
            self.complain(&chain(&error));
        }
    }

    fn complain(&self, error: &str) {
        eprintln!("spice-tunnel: {}: {}", name(&self.args.file), Tame(error));
    }
}

/// What is made of the items.
enum View {
    Text(Text),
    Json(Json),
    Stats(Stats),
    Follow(Follow),
    Nic(Nic),
}

impl View {
    fn new(args: &DumpArgs, color: bool) -> io::Result<Self> {
        Ok(if let Some(path) = &args.nic {
            View::Nic(Nic::open(path, args, color)?)
        } else if args.follow.is_some() {
            View::Follow(Follow::new(args, color)?)
        } else if args.stats {
            View::Stats(Stats::new(args, color))
        } else if args.json {
            View::Json(Json::new(args.hex))
        } else {
            View::Text(Text::new(color, args.hex))
        })
    }

    /// Whether it wants this item: lines are filtered, whole pictures see everything.
    fn shows(&self, filter: &Filter, seen: &Seen<'_, '_>) -> bool {
        match self {
            View::Text(_) | View::Json(_) => filter.passes(seen),
            View::Stats(_) | View::Follow(_) | View::Nic(_) => true,
        }
    }

    fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            View::Text(view) => view.item(seen, out),
            View::Json(view) => view.item(seen, out),
            View::Stats(view) => view.item(seen, out),
            View::Follow(view) => view.item(seen, out),
            View::Nic(view) => view.item(seen, out),
        }
    }

    /// The file itself is damaged, and nothing more comes of it.
    fn damage(&mut self, books: &Books, error: &str, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            View::Text(view) => view.damage(books.latest(), error, out),
            View::Json(view) => view.damage(books.latest(), error, out),
            View::Stats(_) | View::Follow(_) | View::Nic(_) => Ok(()),
        }
    }

    /// The capture is over. `false` if it was compared and differs.
    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        match self {
            View::Text(_) | View::Json(_) => Ok(true),
            View::Stats(view) => view.finish(out).map(|()| true),
            View::Follow(view) => view.finish(out),
            View::Nic(view) => view.finish(out),
        }
    }
}

fn progress(target: ProgressDrawTarget, length: Option<u64>) -> ProgressBar {
    let Some(length) = length else { return ProgressBar::hidden() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    match ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn name(file: &Path) -> String {
    if file.as_os_str() == "-" { "standard input".to_owned() } else { file.display().to_string() }
}

/// What is wrong with packets that should have been TCP, or may have been.
fn broken_packets(counts: &Counts) -> Option<String> {
    let (number, fault) = counts.first_fault.as_ref()?;
    let damaged = counts.damaged;
    (damaged > 0).then(|| match damaged {
        1 => {
            format!("the headers of a packet are damaged; the first one skipped is packet {number}: {fault}")
        }
        _ => format!(
            "the headers of {damaged} packets are damaged; the first one skipped is packet {number}: {fault}"
        ),
    })
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// After how many packets the progress bar looks how far it is.
const LOOK: u64 = 256;

/// So many bytes of lines are not collected any longer, even within one packet.
const MANY: usize = 64 << 10;
