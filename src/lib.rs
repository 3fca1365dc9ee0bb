//! spice-tunnel
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod connect;
pub mod describe;
pub mod guest;
pub mod password;
pub mod printer;
pub mod serve;
pub mod shutdown;
pub mod spice_uri;
pub mod vm;
