//! Whole tunnels: the client's side against a server's channel over a pipe in memory, with real services on loopback.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]
#![allow(clippy::wildcard_enum_match_arm)]

mod hostile;
mod http_host;
mod offers;
mod peer;
mod soak;
mod streams;
mod tunnels;
