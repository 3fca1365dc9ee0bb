//! Printers and scanners that announce themselves by WS-Discovery, as Windows finds them.
//!
//! They are asked for on every network, with IPv4 and IPv6, and listened to besides; each has metadata, read by SOAP over HTTP at
//! its own address only. How it is printed to is not said there in a way that anything but Windows understands: so its ports are tried, and
//! a scanner is asked whether it knows eSCL.

mod envelope;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use spice_proto::service_info::{Advert, Label, ServiceType};

use self::envelope::{Message, Metadata, Target, WsdError};
use super::announced::Key;
use super::clean;
use super::device::{Service, ServiceClass, Source};
use super::http::{Bounds, HttpError, Request, fetch};
use super::interfaces::InterfaceFilter;
use super::listen::{self, Described, Heard, Protocol};
use super::location::Location;
use super::outlet::{Outlet, SourceError};
use super::printing::{self, Known, Ways};
use super::sighting::Sighting;
use super::text::Uuid;
use super::xml::{Element, MAX_XML};

const PORT: u16 = 3702;
/// Where devices listen, and announce themselves.
const GROUPS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), PORT),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc)), PORT),
];
/// A device says no time: it is gone when it did not answer for so long, which is more than three rounds.
const LIFE: Duration = Duration::from_secs(200);
/// Questions whose answers count: those of a few rounds, on many interfaces.
const MOST_QUESTIONS: usize = 512;
/// For metadata, and for a scanner's capabilities.
const ASK: Bounds = Bounds { body: MAX_XML, time: Duration::from_secs(5) };
/// Where scanners have eSCL besides the port of their metadata.
const SCANNER_PORTS: [u16; 2] = [80, 8080];
const CAPABILITIES: &str = "/eSCL/ScannerCapabilities";

/// WS-Discovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WsDiscoveryConfig {}

/// Looks until it is dropped, or cannot go on.
pub(crate) async fn run(
    WsDiscoveryConfig {}: WsDiscoveryConfig,
    filter: &InterfaceFilter,
    outlet: Outlet,
) -> SourceError {
    listen::run(WsDiscovery::new(random()), describe, filter, outlet).await
}

/// Its messages.
pub(super) struct WsDiscovery {
    /// Random: ids are this and a number.
    seed: u64,
    asked: u64,
    /// Ids of questions whose answers count. INVARIANT: at most [`MOST_QUESTIONS`].
    questions: VecDeque<String>,
}

/// Where a device's metadata is, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    location: Location,
    is_printer: bool,
    is_scanner: bool,
}

impl WsDiscovery {
    /// `seed`: something random, so that answers to others' questions do not pass for ours.
    fn new(seed: u64) -> Self {
        WsDiscovery { seed, asked: 0, questions: VecDeque::new() }
    }

    fn next_id(&mut self) -> String {
        self.asked = self.asked.wrapping_add(1);
        let id = message_id(self.seed, self.asked);
        if self.questions.len() >= MOST_QUESTIONS {
            self.questions.pop_front();
        }
        self.questions.push_back(id.clone());
        id
    }

    fn heard(&mut self, from: SocketAddr, target: Target) -> Option<Heard<Place>> {
        if !target.is_printer && !target.is_scanner {
            return None;
        }
        let locations = target.addresses.iter().map(|address| Location::parse(address, from.ip()));
        match locations.clone().find_map(Result::ok) {
            Some(location) => {
                let place = Place { location, is_printer: target.is_printer, is_scanner: target.is_scanner };
                Some(Heard::Alive { key: Key::new(from, &target.endpoint), place, life: LIFE })
            }
            // It keeps its addresses to itself until it is asked.
            None if target.addresses.is_empty() => {
                let id = self.next_id();
                let to = SocketAddr::new(group(from.ip()), PORT);
                Some(Heard::Ask { to, bytes: envelope::resolve(&id, &target.endpoint) })
            }
            None => {
                tracing::debug!("WS-Discovery device at {} has no metadata at its own address", from.ip());
                None
            }
        }
    }
}

impl Protocol for WsDiscovery {
    type Place = Place;
    const ROUND: Duration = Duration::from_secs(60);
    const LONGEST: usize = envelope::MAX_MESSAGE;
    const GROUPS: &'static [SocketAddr] = &GROUPS;

    fn questions(&mut self, own: IpAddr) -> Vec<(SocketAddr, Vec<u8>)> {
        let to = SocketAddr::new(group(own), PORT);
        // Types in one question must all be had at once.
        [false, true].map(|scanners| (to, envelope::probe(&self.next_id(), scanners))).into()
    }

    fn hear(&mut self, _own: IpAddr, from: SocketAddr, bytes: &[u8]) -> Vec<Heard<Place>> {
        match envelope::message(bytes) {
            Ok(Message::Hello(target)) => self.heard(from, target).into_iter().collect(),
            Ok(Message::Bye(endpoint)) => vec![Heard::Bye(Key::new(from, &endpoint))],
            Ok(Message::Matches { relates_to, targets }) => {
                if !self.questions.contains(&relates_to) {
                    return Vec::new();
                }
                targets.into_iter().filter_map(|target| self.heard(from, target)).collect()
            }
            Err(error) => {
                tracing::trace!("from {}: {error}", from.ip());
                Vec::new()
            }
        }
    }
}

fn group(address: IpAddr) -> IpAddr {
    let [four, six] = GROUPS;
    if address.is_ipv4() { four.ip() } else { six.ip() }
}

/// A UUID of version 8 (RFC 9562, section 5.8), which is of our own making.
fn message_id(seed: u64, number: u64) -> String {
    let low = number & 0xffff_ffff_ffff;
    let field = |shift: u32, mask: u64| (seed >> shift) & mask;
    format!(
        "urn:uuid:{:08x}-{:04x}-8{:03x}-8{:03x}-{low:012x}",
        field(32, 0xffff_ffff),
        field(16, 0xffff),
        field(4, 0xfff),
        field(0, 0xf),
    )
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // A hasher's random keys are randomness enough to tell answers apart.
    RandomState::new().hash_one(())
}

#[derive(Debug, thiserror::Error)]
enum DescribeError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Metadata(#[from] WsdError),
}

async fn describe(key: Key, place: Place, before: Ways) -> Option<Described> {
    let metadata = match read(&key, &place.location).await {
        Ok(metadata) => metadata,
        Err(error) => {
            tracing::debug!("WS-Discovery device at {} has no metadata: {error}", key.device.ip());
            return None;
        }
    };
    let ways = if place.is_printer || metadata.is_printer {
        printing::ways(key.device, None, before).await
    } else {
        Ways::default()
    };
    let scanner =
        if place.is_scanner || metadata.is_scanner { scanner(&key, &place.location).await } else { None };
    let sighting = sighting(&key, &place, &metadata, &ways, scanner);
    Some((ways, sighting))
}

async fn read(key: &Key, location: &Location) -> Result<Metadata, DescribeError> {
    let question = envelope::get(&message_id(random(), 1), &key.id);
    let (host, path) = (location.host(), location.path());
    let request = Request { host: &host, path: &path, post: Some(("application/soap+xml", &question)) };
    let document = fetch(location.address(key.device), request, ASK).await?.success()?;
    Ok(envelope::metadata(&document)?)
}

/// The port at which a scanner answers eSCL, if it does.
async fn scanner(key: &Key, location: &Location) -> Option<u16> {
    let mut ports = vec![location.port()];
    ports.extend(SCANNER_PORTS.into_iter().filter(|port| *port != location.port()));
    for port in ports {
        let mut address = key.device;
        address.set_port(port);
        let host = match key.device.ip() {
            IpAddr::V4(four) => format!("{four}:{port}"),
            IpAddr::V6(six) => format!("[{six}]:{port}"),
        };
        let request = Request { host: &host, path: CAPABILITIES, post: None };
        let answer = fetch(address, request, ASK).await.and_then(super::http::Response::success);
        if let Ok(document) = answer
            && Element::parse(&document).is_ok_and(|root| root.name() == "ScannerCapabilities")
        {
            return Some(port);
        }
    }
    None
}

fn sighting(key: &Key, place: &Place, metadata: &Metadata, ways: &Ways, scanner: Option<u16>) -> Sighting {
    let mut sighting = Sighting::new(Source::WsDiscovery, key.sighting_id());
    sighting.addresses.push(key.device.ip());
    sighting.uuid = Uuid::parse(&key.id);
    let bytes = |text: &Option<String>| text.as_ref().map(|text| text.clone().into_bytes());
    let model = printing::make_and_model(metadata.manufacturer.as_deref(), metadata.model_name.as_deref());
    let known = Known {
        make_and_model: model.map(String::into_bytes),
        name: bytes(&metadata.friendly_name),
        serial: bytes(&metadata.serial),
        ..Known::default()
    };
    printing::describe(&mut sighting, &known, ways);
    let name = sighting.name.clone();
    let is_new = |sighting: &Sighting, port: u16| sighting.services.iter().all(|known| known.port != port);
    if let Some(port) = scanner
        && is_new(&sighting, port)
    {
        sighting.services.push(escl(port, name.as_ref(), &sighting));
    }
    let page = metadata.presentation.as_deref();
    if let Some(page) = page.and_then(|page| place.location.join(page, key.device.ip()).ok())
        && is_new(&sighting, page.port())
    {
        sighting.services.push(printing::pages(&page, name.as_ref()));
    }
    sighting
}

/// As DNS-SD would advertise it (Mopria's eSCL, section 4).
fn escl(port: u16, name: Option<&Label>, sighting: &Sighting) -> Service {
    let mut service = Service::bare(port, ServiceClass::Scanner);
    if let (Some(name), Ok(kind)) = (name, ServiceType::new("_uscan._tcp")) {
        let uuid = sighting.uuid.map(|uuid| uuid.to_string());
        let model = sighting.make_and_model.as_ref().map(|model| model.as_str());
        let entries = [
            ("txtvers", Some("1")),
            ("vers", Some("2.0")),
            ("rs", Some("eSCL")),
            ("ty", model),
            ("UUID", uuid.as_deref()),
        ];
        let entries = entries.iter().filter_map(|(key, value)| Some((*key, Some((*value)?.as_bytes()))));
        let txt = clean::txt(entries, None, &[]);
        service.adverts.push(Advert { kind, instance: name.clone(), subtypes: Vec::new(), txt });
    }
    service
}

#[cfg(test)]
mod tests;
