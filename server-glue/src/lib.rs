//! Beside the VM: NIC back ends, netstack, virtual addresses, bridge and the Spice session proxy.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod address;
mod away;
pub mod bridge;
pub mod challenge;
mod counters;
mod dhcp;
mod ethernet;
mod flow;
mod net_config;
pub mod netstack;
pub mod nic;
mod packet;

mod guard;
pub mod listen;
mod oracle;
mod passage;
pub mod proxy;
mod registry;
mod relay;
pub mod session;
mod standalone;
pub mod stream;
mod table;

#[cfg(test)]
mod edge_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod script;
#[cfg(test)]
mod tcp_tests;
#[cfg(test)]
mod window_tests;
