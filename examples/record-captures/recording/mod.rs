//! The stories of our own captures, and how they are told. `captures/README.md` describes what they show.
//!
//! Each is told by the real thing: `serve` with its recorder in front of a guest's card, a user with a tunnel to it, and services on
//! this machine. What happens is the same every time; times, ports and what the stacks choose are not.

mod machine;
mod relay;
mod services;
mod stage;
mod stories;
pub(crate) mod wire;

use std::path::Path;

/// What a story can fail with.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The stories, by the names of their files.
pub(crate) const NAMES: [&str; 9] = [
    "demo",
    "vm",
    "refused-ticket",
    "refused-port",
    "half-close",
    "resets",
    "credit",
    "many-sockets",
    "client-lost",
];

/// Tells a story, and records it into a directory.
pub(crate) async fn tell(name: &str, directory: &Path) -> Result<(), Error> {
    match name {
        "demo" => Box::pin(stories::demo(directory, name)).await,
        "vm" => Box::pin(machine::vm(directory, name)).await,
        "refused-ticket" => Box::pin(relay::refused_ticket(directory, name)).await,
        "refused-port" => Box::pin(stories::refused_port(directory, name)).await,
        "half-close" => Box::pin(stories::half_close(directory, name)).await,
        "resets" => Box::pin(stories::resets(directory, name)).await,
        "credit" => Box::pin(stories::credit(directory, name)).await,
        "many-sockets" => Box::pin(stories::many_sockets(directory, name)).await,
        "client-lost" => Box::pin(stories::client_lost(directory, name)).await,
        _ => Err(format!("no such capture; there are {}", NAMES.join(", ")).into()),
    }
}
