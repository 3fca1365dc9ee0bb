//! The queues of this machine's CUPS, by CUPS-Get-Printers.
//!
//! All of them, whether CUPS shares them in the network or not: who prints to a queue through the tunnel is its user, who named it. Their
//! texts are cleaned like those of the network, from which many a queue has them.

use std::{collections::BTreeMap, io::Cursor, net::SocketAddr, time::Duration};

use ipp::{
    attribute::{IppAttribute, IppAttributeGroup, IppAttributeName, IppAttributes},
    model::{DelimiterTag, IppVersion, Operation},
    parser::IppParser,
    reader::IppReader,
    request::IppRequestResponse,
    value::{IppKeyword, IppValue},
};
use spice_proto::service_info::{Advert, Label, ServiceType};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{
    super::{
        Service, ServiceClass, Sighting, Source, SourceError, Uuid, clean,
        http::{self, Bounds, HttpError, Request},
        outlet::{Ask, Outlet},
    },
    localhost,
};

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// What is taken of an answer, which has some kilobytes a queue.
const BOUNDS: Bounds = Bounds { body: 2 * 1024 * 1024, time: Duration::from_secs(5) };
/// Most queues that are looked at.
const MAX_QUEUES: usize = 256;
/// What is asked of each queue.
const ATTRIBUTES: [&str; 8] = [
    "printer-name",
    "printer-uuid",
    "printer-location",
    "printer-make-and-model",
    "color-supported",
    "sides-supported",
    "document-format-supported",
    "urf-supported",
];
/// Formats worth telling, in this order for as long as they fit one TXT entry: what guests print in, then what drivers make.
const FORMATS: [&str; 9] = [
    "application/pdf",
    "image/urf",
    "image/pwg-raster",
    "image/jpeg",
    "application/postscript",
    "application/octet-stream",
    "application/vnd.cups-raw",
    "text/plain",
    "image/png",
];

/// Asks from time to time. CUPS may be missing, start and stop.
pub(super) async fn run(address: SocketAddr, mut outlet: Outlet) -> SourceError {
    let mut known: BTreeMap<String, Sighting> = BTreeMap::new();
    outlet.looking().await;
    loop {
        match queues(address).await {
            Ok(queues) => {
                for id in known.keys().filter(|id| !queues.contains_key(*id)) {
                    outlet.gone(id).await;
                }
                for (_, queue) in queues.iter().filter(|(id, queue)| known.get(*id) != Some(queue)) {
                    outlet.seen(queue.clone()).await;
                }
                known = queues;
            }
            Err(error) => {
                debug!(%address, %error, "CUPS did not tell its queues");
                for id in std::mem::take(&mut known).into_keys() {
                    outlet.gone(&id).await;
                }
            }
        }
        outlet.looked_round().await;
        let next = Instant::now() + ASK_EVERY;
        tokio::select! {
            () = sleep_until(next) => {}
            () = asked(&mut outlet) => {}
        }
    }
}

async fn asked(outlet: &mut Outlet) {
    loop {
        match outlet.asked().await {
            Ask::LookAgain => return,
            Ask::Verify { keys, .. } if keys.iter().any(|key| key.source == Source::Local) => return,
            Ask::Verify { .. } => {}
        }
    }
}

async fn queues(address: SocketAddr) -> Result<BTreeMap<String, Sighting>, HttpError> {
    let question = question();
    let host = localhost(address.port());
    let request = Request { host: &host, path: "/", post: Some(("application/ipp", &question)) };
    let answer = http::fetch(address, request, BOUNDS).await?.success()?;
    let reader = IppReader::new(Cursor::new(answer));
    let parts = IppParser::new(reader).parse_parts();
    let (_, attributes, _) = parts.map_err(|_| HttpError::Malformed("what it holds is not IPP"))?;
    Ok(sightings(&attributes, address))
}

fn question() -> Vec<u8> {
    let wanted =
        ATTRIBUTES.iter().filter_map(|name| IppKeyword::new(*name).ok()).map(IppValue::Keyword).collect();
    let wanted = IppAttribute::new(IppAttributeName::REQUESTED_ATTRIBUTES, IppValue::Array(wanted));
    // Refused are only addresses of printers that are too long, and there is none.
    let Ok(mut question) = IppRequestResponse::new(IppVersion::v1_1(), Operation::CupsGetPrinters, None)
    else {
        return Vec::new();
    };
    question.attributes_mut().add(DelimiterTag::OperationAttributes, wanted);
    question.to_bytes().to_vec()
}

fn sightings(attributes: &IppAttributes, address: SocketAddr) -> BTreeMap<String, Sighting> {
    let queues = attributes.groups_of(DelimiterTag::PrinterAttributes).take(MAX_QUEUES);
    queues.filter_map(|queue| sighting(queue, address)).map(|seen| (seen.key.id.clone(), seen)).collect()
}

fn sighting(queue: &IppAttributeGroup, address: SocketAddr) -> Option<Sighting> {
    let text = |name: &str| texts(queue, name).into_iter().next();
    let name = text("printer-name")?;
    let instance = clean::label(name.as_bytes())?;
    let mut seen = Sighting::new(Source::Local, format!("cups/{}", instance.as_str()));
    seen.uuid = text("printer-uuid").as_deref().and_then(Uuid::parse);
    seen.make_and_model = text("printer-make-and-model").and_then(|model| clean::text(model.as_bytes()));
    seen.location = text("printer-location").and_then(|place| clean::text(place.as_bytes()));
    seen.name = Some(instance.clone());
    seen.addresses = vec![address.ip()];
    let yes = |yes: bool| if yes { "T" } else { "F" }.to_owned();
    let color =
        matches!(queue.get("color-supported").map(IppAttribute::value), Some(IppValue::Boolean(true)));
    let duplex = texts(queue, "sides-supported").iter().any(|sides| sides.starts_with("two-sided"));
    let urf = texts(queue, "urf-supported");
    let pdl = pdl(&texts(queue, "document-format-supported"));
    let mut subtypes = vec!["_print"];
    if !urf.is_empty() && pdl.contains("image/urf") {
        subtypes.push("_universal");
    }
    let entries = [
        ("txtvers", Some("1".to_owned())),
        ("qtotal", Some("1".to_owned())),
        ("rp", Some(format!("printers/{}", encoded(&name)))),
        ("ty", seen.make_and_model.as_ref().map(ToString::to_string)),
        ("note", seen.location.as_ref().map(ToString::to_string)),
        ("pdl", Some(pdl)),
        ("UUID", seen.uuid.map(|uuid| uuid.to_string())),
        ("Color", Some(yes(color))),
        ("Duplex", Some(yes(duplex))),
        ("URF", (!urf.is_empty()).then(|| urf.join(","))),
    ];
    let said = entries.iter().filter_map(|(key, value)| Some((*key, Some(value.as_deref()?.as_bytes()))));
    let txt = clean::txt(said, None, &[]);
    // Without a path it is no queue that can be printed to.
    txt.get("rp")?;
    let subtypes = subtypes.into_iter().filter_map(|subtype| Label::new(subtype).ok()).collect();
    let kind = ServiceType::new("_ipp._tcp").ok()?;
    seen.services = vec![Service {
        port: address.port(),
        class: ServiceClass::Printer,
        adverts: vec![Advert { kind, instance, subtypes, txt }],
        host_rewrite: Some(localhost(address.port())),
    }];
    Some(seen)
}

fn texts(queue: &IppAttributeGroup, name: &str) -> Vec<String> {
    let text = |value: &IppValue| {
        let text = value
            .as_text_without_language()
            .map(|text| text.to_string())
            .or_else(|| value.as_text_with_language().map(|(_, text)| text.to_string()))
            .or_else(|| value.as_name_without_language().map(|name| name.to_string()))
            .or_else(|| value.as_name_with_language().map(|(_, name)| name.to_string()))
            .or_else(|| value.as_uri().map(|uri| uri.to_string()))
            .or_else(|| value.as_keyword().map(|keyword| keyword.to_string()));
        text.or_else(|| value.as_mime_media_type().map(|format| format.to_string()))
    };
    match queue.get(name).map(IppAttribute::value) {
        Some(IppValue::Array(values)) => values.iter().take(256).filter_map(text).collect(),
        Some(value) => text(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The formats that fit one TXT entry.
fn pdl(supported: &[String]) -> String {
    let mut pdl = String::new();
    for format in FORMATS.iter().filter(|format| supported.iter().any(|known| known == *format)) {
        if "pdl=".len() + pdl.len() + 1 + format.len() <= 255 {
            if !pdl.is_empty() {
                pdl.push(',');
            }
            pdl.push_str(format);
        }
    }
    pdl
}

/// A queue's name in a path (RFC 3986, section 2.1).
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests;
