//! The program `spice-tunnel` as a library, so that its tests and benchmarks drive the same code.
//!
//! One file per command ([`serve`], [`connect`], [`discover`], [`dump`](mod@dump), [`replay`], [`demo`]), and beside them what they share. The [`guest`] is a network
//! card's other end without a VM, the [`vm`] one with.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod capture;
pub mod causes;
mod check;
pub mod cli;
pub mod config;
pub mod connect;
pub mod demo;
pub mod describe;
pub mod discover;
pub mod dump;
pub mod duration;
pub mod guest;
pub mod inherited;
pub mod key_file;
pub mod open_files;
pub mod password;
pub mod printer;
pub mod prompt;
pub mod proxy_uri;
pub mod record;
pub mod replay;
pub mod serve;
pub mod session_args;
pub mod shutdown;
pub mod spice_uri;
pub mod view;
pub mod viewer_file;
pub mod vm;
