//! A lab of real machines, as far as network namespaces are ones: the user's network with printers that announce themselves,
//! the user's own machine where `connect` runs, and a guest whose card is the TAP device of `serve`, with avahi and CUPS as a
//! desktop has them.
//!
//! ```text
//!   the user's network, 192.168.7.0/24 and fd07::/64                 the guest, 198.18.0.0/16
//!   printer ──┐
//!   printer ──┼── switch ── user: connect ═══ a Unix socket ═══ serve: tap0 ── CUPS, avahi
//!   …       ──┘
//! ```
//!
//! Each machine has namespaces of networks, mounts, processes and host names of its own, and all of them live as long as
//! their first process does, which reads its standard input from us. So whatever ends a test (its end, a panic, Ctrl-C,
//! `kill -9`), nothing stays: no process, no device, no name. Nothing of this machine's own daemons is used or touched.

mod desk;
mod guest;
mod machine;
mod network;
mod printer;
mod sink;
mod tap;

pub(crate) use desk::Desk;
pub(crate) use guest::Guest;
pub(crate) use machine::{Machine, signal};
pub(crate) use network::{Lan, address};
pub(crate) use printer::{Pace, Printer};
pub(crate) use sink::Sink;
