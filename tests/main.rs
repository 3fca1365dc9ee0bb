//! Integration tests, one binary.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod bridge;
mod captures;
mod discovered;
mod dns;
mod dump;
mod dump_memory;
mod dump_views;
mod embed;
mod fuzz_regressions;
mod host_rewrite;
mod lan;
mod metrics;
mod netstack;
mod peers;
mod pki;
mod presence;
mod printer;
mod printing;
mod probes;
mod proxy;
mod readme;
mod record;
mod replay;
mod replay_netstack;
mod sasl;
mod scale_model;
mod serve_start;
mod serve_tls;
mod session;
mod soak;
mod stay;
mod tls;
mod traffic;
mod view;
mod viewers;
mod vm;
mod wireshark;
