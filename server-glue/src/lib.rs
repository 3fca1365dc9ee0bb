#![doc = include_str!("../README.md")]
//!
//! # Where is what
//!
//! | question | look at |
//! | --- | --- |
//! | how do I plug it in | [`network()`], [`Card`], [`Network::join`] |
//! | how is the virtual network laid out | [`NetConfig`] |
//! | which address does a device get | [`address`] |
//! | what does the guest see while no tunnel is there | [`AwayConfig`] |
//! | how are QEMU's cards reached | [`nic`] |
//! | how does a stock Spice server get a tunnel | [`proxy`] |
//! | what can an operator be told | [`status`] |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod address;
mod away;
pub mod bridge;
mod budget;
pub mod card;
pub mod challenge;
mod counters;
mod dhcp;
mod domain;
mod engine;
mod ethernet;
mod flow;
mod names;
mod net_config;
pub mod netstack;
pub mod network;
pub mod nic;
pub mod offload;
mod packet;

mod guard;
pub mod listen;
mod oracle;
mod passage;
pub mod proxy;
mod registry;
mod relay;
mod ring_socket;
mod sasl;
pub mod session;
mod standalone;
pub mod status;
pub mod stream;
mod table;

pub use crate::{
    bridge::AwayConfig,
    card::{Card, CardError, FrameReceiver, FrameSender},
    domain::{Domain, DomainError},
    net_config::NetConfig,
    network::{JoinError, Joined, Network, NetworkConfig, NetworkError, channel_caps, common_caps, network},
    nic::Nic,
};
// What a server needs of the crates below, so that it names but this one.
pub use spice_proto::handshake::Linked;
pub use tunnel_channel::Config as ChannelConfig;

#[cfg(test)]
mod dns_tests;
#[cfg(test)]
mod edge_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod offload_tests;
#[cfg(test)]
mod ring_memory_tests;
#[cfg(test)]
mod script;
#[cfg(test)]
mod tcp_tests;
#[cfg(test)]
mod window_tests;
