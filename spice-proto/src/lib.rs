//! The Spice wire without I/O: the link stage, message headers, and the messages of the base protocol and of the main and
//! tunnel channels.
//!
//! Bytes in, values out, and back. Whatever a peer sends either parses into a value that is valid or gives an error that says
//! what was expected and what came; nothing panics, and no length is believed before it was compared with a limit.
//!
//! | question | module |
//! | --- | --- |
//! | where does a message start and end | [`frame`] |
//! | what do messages 1 to 8 of every channel say | [`base`] |
//! | what does the main channel say | [`main_channel`] |
//! | what does the tunnel channel say | [`tunnel`] |
//! | what does a service say of itself | [`service_info`] |
//! | what do the link stage's bytes say | [`link`] |
//! | how does a link come about | [`handshake`] |
//! | how does a password travel | [`ticket`] |
//! | how does SASL authenticate instead | [`sasl`] |
//! | what can be wrong with a message | [`error`] |
//! | what is a channel or message called | [`names`] |
//! | how is a linked stream read as frames (feature `io`) | `frame_stream` |
//! | how does TLS protect a link (feature `tls`) | `tls` |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod base;
pub mod error;
pub mod frame;
#[cfg(feature = "io")]
pub mod frame_stream;
pub mod handshake;
#[cfg(feature = "io")]
pub mod io;
pub mod link;
pub mod main_channel;
pub mod names;
mod parse;
pub mod sasl;
pub mod service_info;
#[cfg(test)]
mod testing;
pub mod ticket;
#[cfg(feature = "tls")]
pub mod tls;
pub mod tunnel;
