//! The program. Results go to stdout, logs to stderr; exit code 0 is fine, 1 a failure, 2 wrong usage.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use spice_tunnel::cli::{Cli, Command};
use spice_tunnel::{connect, demo, discover, dump, replay, serve, shutdown, view};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    // Before anything opens a descriptor.
    if let Command::Serve(args) = &mut cli.command
        && let Err(error) = args.take_inherited()
    {
        return failed(&error);
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| EnvFilter::new(default_filter(&cli.command))),
        )
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        )
        .init();
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let result: Result<ExitCode, Box<dyn std::error::Error>> = runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        match cli.command {
            Command::Serve(args) => serve::run(args, shutdown).await?,
            Command::Connect(args) => connect::run(args, shutdown).await?,
            Command::Discover(args) => discover::run(args, shutdown).await?,
            Command::View(args) => return Ok(view::run(args, shutdown).await?),
            Command::Dump(args) => {
                return Ok(tokio::task::spawn_blocking(move || dump::run(&args, shutdown)).await??);
            }
            Command::Demo(args) => demo::run(args, shutdown).await?,
            Command::Replay(args) => return Ok(replay::run(args, shutdown).await?),
        }
        Ok(ExitCode::SUCCESS)
    });
    // A name lookup that hangs in the system's resolver must not hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => failed(error.as_ref()),
    }
}

/// The two ends of a tunnel are one task each that moves all bytes. On one thread it is woken by what it waits for; with several, threads wake each
/// other instead, which a new connection feels most. A host with many VMs has a `serve` for each, and cores for all.
fn runtime(command: &Command) -> std::io::Result<Runtime> {
    let mut builder = match command {
        Command::Serve(_) | Command::Connect(_) | Command::View(_) => Builder::new_current_thread(),
        Command::Discover(_) | Command::Dump(_) | Command::Demo(_) | Command::Replay(_) => {
            Builder::new_multi_thread()
        }
    };
    builder.enable_all().build()
}

/// Some commands print their own story; the others log what an administrator wants to see.
fn default_filter(command: &Command) -> &'static str {
    match command {
        Command::Serve(_) | Command::Connect(_) | Command::View(_) => "info",
        Command::Discover(_) | Command::Dump(_) | Command::Demo(_) | Command::Replay(_) => "warn",
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
