//! The command line.

use clap::{Parser, Subcommand};

use crate::{connect, demo, discover, dump, replay, serve, view};

/// Brings what stands in a Spice user's network (printers, NAS, web interfaces) into reach of the VM.
///
/// Beside the VM runs `spice-tunnel serve`, in front of QEMU's Spice port and behind one extra network card. At the
/// user's desk runs `spice-tunnel connect`, next to any viewer, or `spice-tunnel view`, which starts one. `spice-tunnel demo` shows the whole of it in one
/// process, with nothing installed.
#[derive(Debug, Parser)]
#[command(name = "spice-tunnel", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Results are printed on stdout, logs on stderr. RUST_LOG sets what is logged, e.g. RUST_LOG=debug or
RUST_LOG=server_glue=trace. Exit code: 0 fine, 1 failed or something is wrong with what was looked at,
2 wrong usage.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Beside the VM: put the tunnel channel in front of a Spice server
    Serve(serve::ServeArgs),
    /// At the user's desk: share services with the VM, next to any viewer
    Connect(connect::ConnectArgs),
    /// At the user's desk: start a viewer and share services with the VM, both with one password
    View(view::ViewArgs),
    /// At the user's desk: show what could be shared from here, and what of it would be
    Discover(discover::DiscoverArgs),
    /// Show every Spice message in a capture
    Dump(dump::DumpArgs),
    /// Show all of it in one process: a guest prints on a printer that only its user can reach
    Demo(demo::DemoArgs),
    /// Play yesterday's capture against today's code and report every difference that means something
    Replay(replay::ReplayArgs),
}
