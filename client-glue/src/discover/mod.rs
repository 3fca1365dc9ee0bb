//! Finds what could be shared: printers above all, but also scanners, NAS, web interfaces, on the user's network and on the user's own machine.
//!
//! | question | look at |
//! | --- | --- |
//! | what is found | [`Device`], [`Service`], [`Update`] |
//! | what do sources tell | [`Sighting`], [`SightingEvent`] |
//! | how is a source plugged in | `outlet` |
//! | what of it is shared | [`Policy`](policy), [`Sharer`] |
//! | how is text of the network made harmless | [`clean`] |

pub mod clean;
mod config;
mod device;
mod interfaces;
mod network_id;
mod outlet;
pub mod policy;
mod sharer;
mod sighting;
mod text;

pub use self::{
    config::{DiscoverConfig, DnsSdConfig, LocalConfig, UnicastDnsSdConfig},
    device::{Device, MAX_ADDRESSES, MAX_SERVICES, Service, ServiceClass, Source, Standing, Update},
    interfaces::{InterfaceError, InterfaceFilter, Network},
    network_id::{MAX_NETWORK_ID, NetworkId},
    outlet::SourceError,
    policy::Policy,
    sharer::{Change, MAX_DISCOVERED, Notice, Sharer, Verdict},
    sighting::{MAX_KEY, Sighting, SightingEvent, SightingKey},
    text::{MAX_SERIAL, MAX_TEXT, Mac, Serial, Text, Uuid},
};
