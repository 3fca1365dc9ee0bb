//! `spice-tunnel demo`: all of it in one process, for a person to watch.
//!
//! A printer that only the user's side can reach, a guest (a TCP/IP stack of its own, or with `--qemu` a real VM) that
//! prints on it, and between them everything this program is made of. Nothing is mocked but the distance.

mod embedded;
mod qemu;
mod user;

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use openssl::sha::Sha256;
use server_glue::nic::Nic;
use server_glue::proxy::Backend;
use spice_proto::ticket::Password;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::printer::{self, Job, JobState, Printer};
use crate::record::{self, RotationArgs};
use crate::serve::{Parts, Recorders, Server};
use crate::{guest, vm};

/// Nothing in the demo takes this long, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long a step may take that waits for one message.
const STEP: Duration = Duration::from_secs(30);

/// What `demo` is told.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// With a real VM: needs QEMU, a Debian kernel and busybox, and says what to install where they are missing
    #[arg(long)]
    qemu: bool,

    /// Size of the print job
    #[arg(long, value_name = "MEGABYTES", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    megabytes: u32,

    /// Record what passes the tunnel link, in clear, as pcapng
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,

    /// Record the frames of the guest's card, as pcapng
    #[arg(long, value_name = "FILE")]
    capture_nic: Option<PathBuf>,

    #[command(flatten)]
    rotation: RotationArgs,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was ended by the user.
    #[error("interrupted")]
    Interrupted,
    /// Something hangs.
    #[error("waited in vain for {0}")]
    Late(String),
    /// Sockets and files.
    #[error("{what}")]
    Io {
        /// What was to be done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A part of it failed.
    #[error("{what}")]
    Part {
        /// What was to be done.
        what: String,
        /// Why it was not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A recording.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// The VM.
    #[error("the virtual machine")]
    Vm(#[from] vm::Error),
    /// The result is wrong.
    #[error("{what}: expected {expected}, got {got}")]
    Wrong {
        /// What was compared.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    fn part<E: std::error::Error + Send + Sync + 'static>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Part { what, source: Box::new(source) }
    }
}

impl From<guest::stream::Error> for Error {
    fn from(source: guest::stream::Error) -> Self {
        Self::Part { what: "the guest's network".to_owned(), source: Box::new(source) }
    }
}

/// Runs the demo.
///
/// # Errors
/// Anything was not as it must be.
pub async fn run(args: DemoArgs, shutdown: CancellationToken) -> Result<(), Error> {
    let (capture, capture_nic) = (args.capture.as_deref(), args.capture_nic.as_deref());
    let mut recorders = Recorders::start(capture, capture_nic, &args.rotation)?;
    for path in [capture, capture_nic].into_iter().flatten() {
        fact("recording", format_args!("{}, with all that is printed", path.display()));
    }
    let story = async {
        if args.qemu {
            Box::pin(qemu::run(args.megabytes, &mut recorders)).await
        } else {
            Box::pin(embedded::run(args.megabytes, &mut recorders)).await
        }
    };
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Err(Error::Interrupted),
        told = tokio::time::timeout(DEADLINE, story) => {
            told.unwrap_or_else(|_| Err(Error::Late(format!("the demo's end, {} s", DEADLINE.as_secs()))))
        }
    };
    recorders.finish().await;
    outcome
}

fn headline(text: &str) {
    println!("\n{text}\n");
}

fn fact(name: &str, value: impl Display) {
    println!("  {name:<16}{value}");
}

/// `future`'s outcome, unless it takes longer than [`STEP`].
async fn within_step<T>(what: &str, future: impl Future<Output = T>) -> Result<T, Error> {
    tokio::time::timeout(STEP, future).await.map_err(|_| Error::Late(what.to_owned()))
}

/// A ticket that nobody knows before.
fn random_ticket() -> Result<(String, Password), Error> {
    let mut bytes = [0; 8];
    openssl::rand::rand_bytes(&mut bytes).map_err(Error::part("making a ticket"))?;
    let text = format!("{:016x}", u64::from_ne_bytes(bytes));
    let ticket = Password::new(text.as_str()).map_err(Error::part("making a ticket"))?;
    Ok((text, ticket))
}

/// What `spice-tunnel serve` does, on a port of its own.
async fn serve(nic: Nic, backend: Backend, recorders: &mut Recorders) -> Result<(SocketAddr, Server), Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(Error::io("opening the Spice port"))?;
    let address = listener.local_addr().map_err(Error::io("opening the Spice port"))?;
    let mut parts = Parts::new(nic, backend, listener).map_err(Error::part("starting the server"))?;
    parts.capture = recorders.links.take();
    parts.capture_nic = recorders.frames.take();
    Ok((address, Server::start(parts)))
}

/// The printer in the room of the user, and what it stored.
struct Room {
    printer: Printer,
    address: SocketAddr,
    /// Goes with the demo, and the jobs with it.
    _directory: tempfile::TempDir,
}

impl Room {
    const NAME: &str = "demo-printer";

    async fn furnish() -> Result<Self, Error> {
        let directory =
            tempfile::tempdir().map_err(Error::io("making a directory for the printer's jobs"))?;
        let listener =
            TcpListener::bind("127.0.0.1:0").await.map_err(Error::io("opening the printer's port"))?;
        let address = listener.local_addr().map_err(Error::io("opening the printer's port"))?;
        let printer = Printer::new(printer::Config::new(Self::NAME, directory.path()));
        let serving = printer.clone();
        tokio::spawn(async move { serving.serve(listener).await });
        fact("printer", format_args!("{}, IPP on {address}, on the user's side only", Self::NAME));
        Ok(Self { printer, address, _directory: directory })
    }

    /// Compares what was printed with what is in the printer's file.
    async fn inspect(&self, id: u32, sent_bytes: u64, sent_sha256: &str) -> Result<(), Error> {
        let job: Job = within_step("the printer to store the job", self.printer.ended(id)).await?;
        if job.state != JobState::Stored {
            return Err(Error::Wrong {
                what: "the job's state",
                expected: format!("{:?}", JobState::Stored),
                got: format!("{:?}", job.state),
            });
        }
        let file: PathBuf = job.file.unwrap_or_default();
        let stored = tokio::fs::read(&file).await.map_err(Error::io("reading the stored job"))?;
        let stored_sha256 = sha256(&stored);
        fact("sent", format_args!("{sent_bytes} bytes  SHA-256 {sent_sha256}"));
        fact("stored", format_args!("{} bytes  SHA-256 {stored_sha256}", stored.len()));
        if stored_sha256 != sent_sha256 {
            return Err(Error::Wrong {
                what: "SHA-256 of the printed document",
                expected: sent_sha256.to_owned(),
                got: stored_sha256,
            });
        }
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    hasher.finish().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn megabytes_per_second(bytes: u64, time: Duration) -> String {
    // Bytes per microsecond are megabytes per second.
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let tenths = bytes.saturating_mul(10) / micros;
    format!("{}.{} MB/s", tenths / 10, tenths % 10)
}

fn microseconds(time: Duration) -> String {
    format!("{} µs", time.as_micros())
}
