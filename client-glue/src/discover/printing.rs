//! How a printer is printed to that does not say so by DNS-SD: SNMP, SSDP and WS-Discovery tell of the device only.
//!
//! As CUPS does it: the usual ports are tried. What stands behind IPP's is asked for its attributes, which have the printer's
//! own UUID; without them the port is not offered, because nobody could say what it takes. From all that the advertisements are
//! made that the printer would have sent, had it known DNS-SD.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use spice_proto::service_info::{Advert, HostName, Label, ServiceType};
use tokio::net::TcpStream;
use url::Url;

use super::clean;
use super::device::{Service, ServiceClass, Source};
use super::device_id::DeviceId;
use super::http::{Bounds, HttpError, Request, fetch};
use super::location::Location;
use super::sighting::Sighting;
use super::text::Uuid;

mod ipp;

use self::ipp::Attributes;

/// For one connection to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// For one question by IPP.
const ASK: Bounds = Bounds { body: ipp::MAX_ANSWER, time: Duration::from_secs(4) };
/// Where printers have their IPP: IPP Everywhere's (PWG 5100.14), and older ones.
const PATHS: [&str; 3] = ["/ipp/print", "/ipp", "/"];
/// Longest value of a TXT entry that is put together here, bytes; its key needs some of 255.
const MAX_LIST: usize = 240;

/// How a printer says that it is printed to: the scheme, port and path of a URI whose host is the printer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Printed {
    /// `socket:`, raw data at a port.
    Raw(u16),
    /// `lpd:`, at a queue.
    Lpd {
        /// Its port.
        port: u16,
        /// Its queue, as it wrote it; empty for the only one.
        queue: String,
    },
    /// `ipp:`.
    Ipp {
        /// Its port.
        port: u16,
        /// With the first slash.
        path: String,
    },
}

/// What is known of a printer, as it said it: nothing is clean here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// Its id of IEEE 1284.
    pub(crate) device_id: Option<DeviceId>,
    /// Maker and model.
    pub(crate) make_and_model: Option<Vec<u8>>,
    /// What people call it.
    pub(crate) name: Option<Vec<u8>>,
    /// Where it stands.
    pub(crate) location: Option<Vec<u8>>,
    /// Its serial number.
    pub(crate) serial: Option<Vec<u8>>,
}

/// How it can be printed to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ways {
    raw: Option<u16>,
    /// The port and the queue.
    lpd: Option<(u16, String)>,
    ipp: Option<Ipp>,
}

#[derive(Debug, Clone)]
struct Ipp {
    port: u16,
    /// With the first slash.
    path: String,
    attributes: Attributes,
}

/// Tries the usual ports of `device`, whose own port is of no account; what it `printed` of itself takes the place of raw data and
/// LPD there. Takes a few seconds at most.
///
/// What was found `before` stays, and is not tried again: printers take one connection at a time for raw data, and refuse others
/// while they print.
///
/// Cancel safe: dropping it closes all connections.
pub(crate) async fn ways(device: SocketAddr, printed: Option<&Printed>, before: Ways) -> Ways {
    let (raw, lpd, own) = match printed {
        None => (Some(9100), Some((515, String::new())), None),
        Some(Printed::Raw(port)) => (Some(*port), None, None),
        Some(Printed::Lpd { port, queue }) => (None, Some((*port, queue.clone())), None),
        Some(Printed::Ipp { port, path }) => (Some(9100), None, Some((*port, path.clone()))),
    };
    let raw = async {
        if before.raw.is_some() {
            return before.raw;
        }
        let port = raw?;
        is_open(device, port).await.then_some(port)
    };
    let lpd = async {
        if before.lpd.is_some() {
            return before.lpd;
        }
        let (port, queue) = lpd?;
        is_open(device, port).await.then_some((port, queue))
    };
    let (raw, lpd, ipp) = tokio::join!(raw, lpd, ask(device, own));
    Ways { raw, lpd, ipp: ipp.or(before.ipp) }
}

/// Says what is known in a sighting of the printer, which has its addresses already.
pub(crate) fn describe(sighting: &mut Sighting, known: &Known, ways: &Ways) {
    let own = ways.ipp.as_ref().map(|ipp| &ipp.attributes);
    let by_ipp = |name: &str| own.and_then(|own| own.first(name));
    let by_id = known.device_id.as_ref();
    let id_model = by_id.and_then(DeviceId::make_and_model);
    let uuid = by_ipp("printer-uuid").and_then(|uuid| Uuid::parse(std::str::from_utf8(uuid).ok()?));
    // The one that it has in DNS-SD as well.
    sighting.uuid = uuid.or(sighting.uuid);
    sighting.make_and_model = by_ipp("printer-make-and-model")
        .or(id_model.as_deref())
        .or(known.make_and_model.as_deref())
        .and_then(clean::text);
    let serial = by_id.and_then(|id| id.serial.as_deref());
    sighting.serial =
        known.serial.as_deref().and_then(clean::serial).or_else(|| serial.and_then(clean::serial));
    sighting.location = by_ipp("printer-location").or(known.location.as_deref()).and_then(clean::text);
    let model = sighting.make_and_model.as_ref().map(|model| model.as_str().as_bytes());
    sighting.name = [by_ipp("printer-dns-sd-name"), known.name.as_deref(), by_ipp("printer-info"), model]
        .into_iter()
        .flatten()
        .find_map(clean::label);
    let named = own.into_iter().flat_map(|own| own.all("printer-uri-supported"));
    sighting.host = sighting.host.take().or_else(|| named.filter_map(|uri| host_of(uri)).next());
    sighting.services.extend(services(sighting, known, ways));
}

/// Maker and model in one line, the maker once: makers write it before the model too.
pub(crate) fn make_and_model(maker: Option<&str>, model: Option<&str>) -> Option<String> {
    let bytes = |text: Option<&str>| text.map(|text| text.as_bytes().to_vec());
    let id = DeviceId { maker: bytes(maker), model: bytes(model), ..DeviceId::default() };
    id.make_and_model().and_then(|text| String::from_utf8(text).ok())
}

/// Pages for people, as DNS-SD would advertise them.
pub(crate) fn pages(page: &Location, name: Option<&Label>) -> Service {
    let mut service = Service::bare(page.port(), ServiceClass::Web);
    if let (Some(name), Ok(kind)) = (name, ServiceType::new("_http._tcp")) {
        let path = page.path();
        let txt = clean::txt([("path", Some(path.as_bytes()))], None, &[]);
        service.adverts.push(Advert { kind, instance: name.clone(), subtypes: Vec::new(), txt });
    }
    service
}

/// Of a URI, if it is a name of multicast DNS; another's could be anybody's.
fn host_of(uri: &[u8]) -> Option<HostName> {
    let url = Url::parse(std::str::from_utf8(uri).ok()?).ok()?;
    clean::local_host(url.host_str()?)
}

fn services(sighting: &Sighting, known: &Known, ways: &Ways) -> Vec<Service> {
    let mut services = Vec::new();
    let Some(instance) = sighting.name.clone().or_else(|| clean::label(b"Printer")) else { return services };
    if let Some(ipp) = &ways.ipp {
        services.extend(by_ipp(sighting, &instance, known, ipp));
    }
    if let Some(port) = ways.raw {
        services.extend(by_port(sighting, &instance, known, "_pdl-datastream._tcp", port, None));
    }
    if let Some((port, queue)) = &ways.lpd {
        services.extend(by_port(sighting, &instance, known, "_printer._tcp", *port, Some(queue)));
    }
    // A printer may have named a port that is another's.
    let mut ports = BTreeSet::new();
    services.retain(|service| ports.insert(service.port));
    services
}

/// TXT entries in the making: keys of the Bonjour Printing Specification 1.2.1 (section 9.2).
type Entries = Vec<(&'static str, Vec<u8>)>;

/// What a printer says whatever it is printed by.
fn entries(sighting: &Sighting, known: &Known, types: &[Vec<u8>]) -> Entries {
    let mut entries: Entries = vec![("txtvers", b"1".to_vec()), ("qtotal", b"1".to_vec())];
    if let Some(model) = &sighting.make_and_model {
        entries.push(("ty", model.as_str().as_bytes().to_vec()));
    }
    if let Some(location) = &sighting.location {
        entries.push(("note", location.as_str().as_bytes().to_vec()));
    }
    let id = known.device_id.as_ref();
    if let Some(model) = id.and_then(|id| id.model.as_deref()) {
        // PostScript's `*Product` has the brackets, and so has this.
        entries.push(("product", [b"(", model, b")"].concat()));
        entries.push(("usb_MDL", model.to_vec()));
    }
    if let Some(maker) = id.and_then(|id| id.maker.as_deref()) {
        entries.push(("usb_MFG", maker.to_vec()));
    }
    if let Some(types) = list(types) {
        entries.push(("pdl", types));
    }
    entries
}

fn by_ipp(sighting: &Sighting, instance: &Label, known: &Known, ipp: &Ipp) -> Option<Service> {
    let own = &ipp.attributes;
    let id = own.first("printer-device-id").and_then(DeviceId::parse);
    let known = Known { device_id: id.or_else(|| known.device_id.clone()), ..Known::default() };
    let formats = own.all("document-format-supported");
    let mut entries = entries(sighting, &known, formats);
    entries.push(("rp", ipp.path.trim_start_matches('/').as_bytes().to_vec()));
    if let Some(uuid) = sighting.uuid {
        entries.push(("UUID", uuid.to_string().into_bytes()));
    }
    let says = |flag: bool| if flag { b"T".to_vec() } else { b"F".to_vec() };
    if let Some(color) = own.flag("color-supported") {
        entries.push(("Color", says(color)));
    }
    let sides = own.all("sides-supported");
    if !sides.is_empty() {
        entries.push(("Duplex", says(sides.iter().any(|sides| sides.starts_with(b"two-sided")))));
    }
    if let Some(page) = own.first("printer-more-info") {
        entries.push(("adminurl", page.to_vec()));
    }
    if let Some(kinds) = list(own.all("printer-kind")) {
        entries.push(("kind", kinds));
    }
    let raster = list(own.all("urf-supported"));
    // AirPrint, and IPP Everywhere's own.
    let mut subtypes: Vec<Label> = clean::label(b"_print").into_iter().collect();
    if let Some(raster) = raster
        && formats.iter().any(|format| format == b"image/urf")
    {
        entries.push(("URF", raster));
        subtypes.extend(clean::label(b"_universal"));
    }
    service(sighting, instance, "_ipp._tcp", ipp.port, subtypes, entries)
}

/// Raw data or LPD, which say nothing of themselves.
fn by_port(
    sighting: &Sighting,
    instance: &Label,
    known: &Known,
    kind: &str,
    port: u16,
    queue: Option<&String>,
) -> Option<Service> {
    let types = known.device_id.as_ref().map(DeviceId::media_types).unwrap_or_default();
    let types: Vec<Vec<u8>> = types.into_iter().map(|kind| kind.as_bytes().to_vec()).collect();
    let mut entries = entries(sighting, known, &types);
    if let Some(queue) = queue.filter(|queue| !queue.is_empty()) {
        entries.push(("rp", queue.as_bytes().to_vec()));
    }
    service(sighting, instance, kind, port, Vec::new(), entries)
}

fn service(
    sighting: &Sighting,
    instance: &Label,
    kind: &str,
    port: u16,
    subtypes: Vec<Label>,
    entries: Entries,
) -> Option<Service> {
    let entries = entries.iter().map(|(key, value)| (*key, Some(value.as_slice())));
    let txt = clean::txt(entries, sighting.host.as_ref(), &sighting.addresses);
    let kind = ServiceType::new(kind).ok()?;
    let advert = Advert { kind, instance: instance.clone(), subtypes, txt };
    let mut service = Service::bare(port, ServiceClass::Printer);
    service.adverts.push(advert);
    Some(service)
}

/// As many as fit, with commas between them; `None` if there is none.
fn list(values: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut list: Vec<u8> = Vec::new();
    for value in values.iter().filter(|value| !value.is_empty() && !value.contains(&b',')) {
        let comma = usize::from(!list.is_empty());
        if list.len() + comma + value.len() > MAX_LIST {
            break;
        }
        if comma > 0 {
            list.push(b',');
        }
        list.extend(value);
    }
    Some(list).filter(|list| !list.is_empty())
}

async fn is_open(device: SocketAddr, port: u16) -> bool {
    matches!(tokio::time::timeout(CONNECT, TcpStream::connect(at(device, port))).await, Ok(Ok(_)))
}

fn at(device: SocketAddr, port: u16) -> SocketAddr {
    let mut address = device;
    address.set_port(port);
    address
}

/// Where IPP answers, and what. `own`: what the printer said of itself, tried first.
async fn ask(device: SocketAddr, own: Option<(u16, String)>) -> Option<Ipp> {
    let usual = PATHS.into_iter().map(|path| (631, path.to_owned()));
    let mut places: Vec<(u16, String)> = own.into_iter().collect();
    places.extend(usual);
    let mut closed = BTreeSet::new();
    for (port, path) in places {
        if closed.contains(&port) {
            continue;
        }
        if !is_open(device, port).await {
            closed.insert(port);
            continue;
        }
        match ask_at(device, port, &path).await {
            Ok(attributes) => return Some(Ipp { port, path, attributes }),
            Err(AskError::Http(HttpError::Late(_) | HttpError::Io(_))) => {
                closed.insert(port);
            }
            Err(error) => tracing::trace!("no IPP printer at {path} of port {port}: {error}"),
        }
    }
    None
}

/// How the printer whose IPP is at this address and path would advertise itself, as `instance`.
///
/// Cancel safe: dropping it closes the connection.
pub(crate) async fn advert_at(printer: SocketAddr, path: &str, instance: &Label) -> Option<Advert> {
    let port = printer.port();
    let attributes = match ask_at(printer, port, path).await {
        Ok(attributes) => attributes,
        Err(error) => {
            tracing::debug!(%error, "a printer that is shared by hand does not say what it is");
            return None;
        }
    };
    let mut sighting = Sighting::new(Source::Local, "by hand");
    let ways = Ways { ipp: Some(Ipp { port, path: path.to_owned(), attributes }), ..Ways::default() };
    describe(&mut sighting, &Known::default(), &ways);
    let advert = sighting.services.into_iter().next()?.adverts.into_iter().next()?;
    Some(Advert { instance: instance.clone(), ..advert })
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Ipp(#[from] ipp::IppError),
    #[error("the printer says neither its model nor what it takes")]
    Nothing,
}

async fn ask_at(device: SocketAddr, port: u16, path: &str) -> Result<Attributes, AskError> {
    // Its zone is known here only, and would be no part of a URI.
    let host = match device.ip() {
        IpAddr::V4(four) => format!("{four}:{port}"),
        IpAddr::V6(six) => format!("[{six}]:{port}"),
    };
    let question = ipp::question(&format!("ipp://{host}{path}")).ok_or(HttpError::Request("path"))?;
    let request = Request { host: &host, path, post: Some(("application/ipp", &question)) };
    let attributes = ipp::answer(&fetch(at(device, port), request, ASK).await?.success()?)?;
    let told = ["printer-make-and-model", "document-format-supported"];
    if told.iter().all(|name| attributes.first(name).is_none()) {
        return Err(AskError::Nothing);
    }
    Ok(attributes)
}

/// For fuzzing: an answer to Get-Printer-Attributes, and what becomes of it.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn exercise_answer(bytes: &[u8]) {
    let Ok(attributes) = ipp::answer(bytes) else { return };
    let mut sighting = Sighting::new(super::device::Source::Snmp, "x");
    let ipp = Ipp { port: 631, path: "/ipp/print".to_owned(), attributes };
    describe(&mut sighting, &Known::default(), &Ways { raw: Some(9100), lpd: None, ipp: Some(ipp) });
    assert!(sighting.services.len() == 2, "one for each port");
}

#[cfg(test)]
mod tests;
