//! The program. Results go to stdout, logs to stderr; exit code 0 is fine, 1 a failure, 2 wrong usage.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use spice_tunnel::{connect, demo, serve, shutdown};
use tracing_subscriber::EnvFilter;

/// Brings what stands in a Spice user's network (printers, NAS, web interfaces) into reach of the VM.
///
/// Beside the VM runs `spice-tunnel serve`, in front of QEMU's Spice port and behind one extra network card. At the
/// user's desk runs `spice-tunnel connect`, next to any viewer. `spice-tunnel demo` shows the whole of it in one
/// process, with nothing installed.
#[derive(Parser)]
#[command(name = "spice-tunnel", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Results are printed on stdout, logs on stderr. RUST_LOG sets what is logged, e.g. RUST_LOG=debug or
RUST_LOG=server_glue=trace. Exit code: 0 fine, 1 failed, 2 wrong usage.";

#[derive(Subcommand)]
enum Command {
    /// Beside the VM: put the tunnel channel in front of a Spice server
    Serve(serve::ServeArgs),
    /// At the user's desk: share services with the VM, next to any viewer
    Connect(connect::ConnectArgs),
    /// Show all of it in one process: a guest prints on a printer that only its user can reach
    Demo(demo::DemoArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| EnvFilter::new(default_filter(&cli.command))),
        )
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let result: Result<(), Box<dyn std::error::Error>> = runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        match cli.command {
            Command::Serve(args) => serve::run(args, shutdown).await?,
            Command::Connect(args) => connect::run(args, shutdown).await?,
            Command::Demo(args) => demo::run(args, shutdown).await?,
        }
        Ok(())
    });
    // A name lookup that hangs in the system's resolver must not hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
    }
}

/// The demo prints its own story; the other commands log what an administrator wants to see.
fn default_filter(command: &Command) -> &'static str {
    match command {
        Command::Serve(_) | Command::Connect(_) => "info",
        Command::Demo(_) => "warn",
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprint!("spice-tunnel: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprint!(": {cause}");
        source = cause.source();
    }
    eprintln!();
    ExitCode::FAILURE
}
