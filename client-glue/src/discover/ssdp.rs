//! Devices that announce themselves by SSDP, as those of UPnP do.
//!
//! They are asked for on every network and listened to besides; each has a place where it is described. That is read at the
//! device's own address only. A printer is then looked at more closely, of anything else there are its pages for people, if it has any.

mod description;
mod message;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use self::description::{Description, DescriptionError};
use self::message::Message;
use super::announced::Key;
use super::device::Source;
use super::http::{Bounds, HttpError, Request, fetch};
use super::interfaces::InterfaceFilter;
use super::listen::{self, Described, Heard, Protocol};
use super::location::Location;
use super::outlet::{Outlet, SourceError};
use super::printing::{self, Known, Ways};
use super::sighting::Sighting;
use super::text::Uuid;
use super::xml::MAX_XML;

/// Where devices listen, and announce themselves.
const GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 1900);
/// For a description.
const DESCRIPTION: Bounds = Bounds { body: MAX_XML, time: Duration::from_secs(5) };

/// SSDP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SsdpConfig {}

/// Looks until it is dropped, or cannot go on.
pub(crate) async fn run(SsdpConfig {}: SsdpConfig, filter: &InterfaceFilter, outlet: Outlet) -> SourceError {
    listen::run(Ssdp, describe, filter, outlet).await
}

/// Its messages.
pub(super) struct Ssdp;

impl Protocol for Ssdp {
    type Place = Location;
    // Devices announce themselves; this is for those whose announcements got lost.
    const ROUND: Duration = Duration::from_secs(120);
    const LONGEST: usize = message::MAX_MESSAGE;
    const GROUPS: &'static [SocketAddr] = &[GROUP];

    fn questions(&mut self, _own: IpAddr) -> Vec<(SocketAddr, Vec<u8>)> {
        message::TARGETS.into_iter().map(|target| (GROUP, message::search(target))).collect()
    }

    fn hear(&mut self, _own: IpAddr, from: SocketAddr, bytes: &[u8]) -> Vec<Heard<Location>> {
        let heard = match message::message(bytes) {
            Ok(Message::Alive { id, location, life }) => match Location::parse(&location, from.ip()) {
                Ok(place) => Heard::Alive { key: Key::new(from, &id), place, life },
                Err(error) => {
                    tracing::debug!("UPnP device at {} is not asked: {error}", from.ip());
                    return Vec::new();
                }
            },
            Ok(Message::Bye { id }) => Heard::Bye(Key::new(from, &id)),
            Err(error) => {
                tracing::trace!("from {}: {error}", from.ip());
                return Vec::new();
            }
        };
        vec![heard]
    }
}

#[derive(Debug, thiserror::Error)]
enum DescribeError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Description(#[from] DescriptionError),
}

async fn describe(key: Key, location: Location, before: Ways) -> Option<Described> {
    let description = match read(&key, &location).await {
        Ok(description) => description,
        Err(error) => {
            tracing::debug!("UPnP device at {} has no description: {error}", key.device.ip());
            return None;
        }
    };
    let ways =
        if description.is_printer { printing::ways(key.device, None, before).await } else { Ways::default() };
    let sighting = sighting(&key, &description, &ways);
    Some((ways, sighting))
}

async fn read(key: &Key, location: &Location) -> Result<Description, DescribeError> {
    let (host, path) = (location.host(), location.path());
    let request = Request { host: &host, path: &path, post: None };
    let document = fetch(location.address(key.device), request, DESCRIPTION).await?.success()?;
    Ok(Description::parse(&document, location, key.device.ip())?)
}

fn sighting(key: &Key, description: &Description, ways: &Ways) -> Sighting {
    let mut sighting = Sighting::new(Source::Ssdp, key.sighting_id());
    sighting.addresses.push(key.device.ip());
    // Not the description's: the announcement is what is known of it when it goes.
    sighting.uuid = Uuid::parse(&key.id);
    let bytes = |text: &Option<String>| text.as_ref().map(|text| text.clone().into_bytes());
    let known = Known {
        make_and_model: description.make_and_model().map(String::into_bytes),
        name: bytes(&description.friendly_name),
        serial: bytes(&description.serial),
        ..Known::default()
    };
    printing::describe(&mut sighting, &known, ways);
    if let Some(page) = &description.presentation
        && sighting.services.iter().all(|service| service.port != page.port())
    {
        let pages = printing::pages(page, sighting.name.as_ref());
        sighting.services.push(pages);
    }
    sighting
}

#[cfg(test)]
mod tests;
