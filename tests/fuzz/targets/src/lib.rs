//! What is fuzzed. Every target is a function of bytes that panics when something is wrong, so that the fuzzers and the
//! ordinary tests, which replay what fuzzing found, run the same code.
//!
//! The first bytes of an input choose how the rest is used; see each target. An input that is too short reads as zeros.

mod capture;
mod channel;
mod discover;
mod dns;
mod frames;
mod input;
mod link;
mod messages;
mod names;
mod netstack;
mod packet;

pub use capture::capture;
pub use channel::channel;
/// What devices on the user's network say, to those who look for them.
pub use client_glue::discover::fuzz::exercise_bytes as lan;
/// What a guest says to a service of another name.
pub use client_glue::exercise_http_host as http_host;
pub use discover::discover;
pub use dns::dns;
pub use frames::frames;
pub use link::link;
pub use messages::messages;
pub use names::names;
pub use netstack::netstack;
/// Two channels, both honest, under any sequence of operations of their owners, of the link and of time.
pub use tunnel_channel::pair::exercise_bytes as pair;

/// A target: any bytes, and a panic for a bug.
pub type Target = fn(&[u8]);

/// All targets by name, which is also the name of their directories in `corpus` and `crashes`.
pub const TARGETS: &[(&str, Target)] = &[
    ("capture", capture),
    ("channel", channel),
    ("dns", dns),
    ("discover", discover),
    ("frames", frames),
    ("http_host", http_host),
    ("lan", lan),
    ("link", link),
    ("messages", messages),
    ("names", names),
    ("netstack", netstack),
    ("pair", pair),
];
