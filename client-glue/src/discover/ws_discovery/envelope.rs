//! Messages of WS-Discovery (April 2005, which Windows and printers speak) and of the Devices Profile's metadata.

use std::fmt::Write;

use crate::discover::xml::{Element, XmlError};

/// Longest packet that is read, bytes. SOAP over UDP may take more than an Ethernet packet.
pub(super) const MAX_MESSAGE: usize = 32 * 1024;
/// Most matches of one answer.
const MOST_MATCHES: usize = 16;
/// Most transport addresses of one match.
const MOST_ADDRESSES: usize = 16;
/// Longest endpoint reference, bytes.
const MAX_ENDPOINT: usize = 128;

/// To whom a Probe goes: nobody in particular.
const TO_ALL: &str = "urn:schemas-xmlsoap-org:ws:2005:04:discovery";
const PROBE: &str = "http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe";
const RESOLVE: &str = "http://schemas.xmlsoap.org/ws/2005/04/discovery/Resolve";
const GET: &str = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get";

/// What one hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// A device has come.
    Hello(Target),
    /// A device goes: its endpoint.
    Bye(String),
    /// An answer to Probe or Resolve.
    Matches {
        /// The question's id.
        relates_to: String,
        targets: Vec<Target>,
    },
}

/// A device, as it is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Its endpoint reference, in practice `urn:uuid:…`.
    pub(super) endpoint: String,
    pub(super) is_printer: bool,
    pub(super) is_scanner: bool,
    /// Where its metadata is. Empty: it has to be resolved.
    pub(super) addresses: Vec<String>,
}

/// What a device says of itself, as it says it: nothing is clean here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) friendly_name: Option<String>,
    pub(super) manufacturer: Option<String>,
    pub(super) model_name: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) presentation: Option<String>,
    /// By the types of what it hosts.
    pub(super) is_printer: bool,
    pub(super) is_scanner: bool,
}

/// Why it is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WsdError {
    /// Not XML, or more than is accepted.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Another message, such as another's question.
    #[error("the message announces no device")]
    Other,
}

/// Probe for printers, or for scanners.
pub(super) fn probe(id: &str, scanners: bool) -> Vec<u8> {
    let types = if scanners { "scn:ScanDeviceType" } else { "wprt:PrintDeviceType" };
    let body = format!("<wsd:Probe><wsd:Types>{types}</wsd:Types></wsd:Probe>");
    envelope(TO_ALL, PROBE, id, "", &body)
}

/// Resolve an endpoint that was announced without an address.
pub(super) fn resolve(id: &str, endpoint: &str) -> Vec<u8> {
    let endpoint = escaped(endpoint);
    let body = format!(
        "<wsd:Resolve><wsa:EndpointReference><wsa:Address>{endpoint}</wsa:Address></wsa:EndpointReference></wsd:Resolve>"
    );
    envelope(TO_ALL, RESOLVE, id, "", &body)
}

/// Get of WS-Transfer: an endpoint's metadata.
pub(super) fn get(id: &str, endpoint: &str) -> Vec<u8> {
    let anonymous = "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous";
    let reply = format!("<wsa:ReplyTo><wsa:Address>{anonymous}</wsa:Address></wsa:ReplyTo>");
    envelope(&escaped(endpoint), GET, id, &reply, "")
}

fn envelope(to: &str, action: &str, id: &str, more: &str, body: &str) -> Vec<u8> {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\
         <soap:Envelope xmlns:soap=\"http://www.w3.org/2003/05/soap-envelope\" \
         xmlns:wsa=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" \
         xmlns:wsd=\"http://schemas.xmlsoap.org/ws/2005/04/discovery\" \
         xmlns:wprt=\"http://schemas.microsoft.com/windows/2006/08/wdp/print\" \
         xmlns:scn=\"http://schemas.microsoft.com/windows/2006/08/wdp/scan\">\
         <soap:Header><wsa:To>{to}</wsa:To><wsa:Action>{action}</wsa:Action><wsa:MessageID>{id}</wsa:MessageID>{more}\
         </soap:Header><soap:Body>{body}</soap:Body></soap:Envelope>"
    )
    .into_bytes()
}

/// As text of an element.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '"' | '\'' => {
                // A String takes everything.
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Reads a packet.
pub(super) fn message(bytes: &[u8]) -> Result<Message, WsdError> {
    let (header, body) = parts(bytes)?;
    let inner = body.children().first().ok_or(WsdError::Other)?;
    match inner.name() {
        "Hello" => Ok(Message::Hello(target(inner).ok_or(WsdError::Other)?)),
        "Bye" => Ok(Message::Bye(endpoint(inner).ok_or(WsdError::Other)?)),
        "ProbeMatches" | "ResolveMatches" => {
            let relates_to = header.text_of("RelatesTo").unwrap_or_default().to_owned();
            let matches = inner.children().iter().filter(|child| child.name().ends_with("Match"));
            let targets = matches.filter_map(target).take(MOST_MATCHES).collect();
            Ok(Message::Matches { relates_to, targets })
        }
        _ => Err(WsdError::Other),
    }
}

/// Reads what was answered to Get.
pub(super) fn metadata(bytes: &[u8]) -> Result<Metadata, WsdError> {
    let (_, body) = parts(bytes)?;
    let sections = body.child("Metadata").ok_or(WsdError::Other)?;
    // ThisDevice and ThisModel, each in a section of its own.
    let text = |within: &str, name: &str| {
        let element = sections.all().find(|element| element.name() == within)?;
        element.text_of(name).map(str::to_owned)
    };
    let hosted = sections.all().filter(|element| matches!(element.name(), "Host" | "Hosted"));
    let kinds: Vec<(bool, bool)> = hosted.map(kinds).collect();
    Ok(Metadata {
        friendly_name: text("ThisDevice", "FriendlyName"),
        serial: text("ThisDevice", "SerialNumber"),
        manufacturer: text("ThisModel", "Manufacturer"),
        model_name: text("ThisModel", "ModelName"),
        presentation: text("ThisModel", "PresentationUrl"),
        is_printer: kinds.iter().any(|(printer, _)| *printer),
        is_scanner: kinds.iter().any(|(_, scanner)| *scanner),
    })
}

/// Header and body of an envelope.
fn parts(bytes: &[u8]) -> Result<(Element, Element), WsdError> {
    let mut envelope = Element::parse(bytes)?;
    if envelope.name() != "Envelope" {
        return Err(WsdError::Other);
    }
    let body = envelope.take("Body").ok_or(WsdError::Other)?;
    Ok((envelope.take("Header").unwrap_or_default(), body))
}

fn target(element: &Element) -> Option<Target> {
    let (is_printer, is_scanner) = kinds(element);
    let addresses = element.text_of("XAddrs").unwrap_or_default().split_ascii_whitespace();
    let addresses = addresses.take(MOST_ADDRESSES).map(str::to_owned).collect();
    Some(Target { endpoint: endpoint(element)?, is_printer, is_scanner, addresses })
}

/// The text of `EndpointReference/Address`.
fn endpoint(element: &Element) -> Option<String> {
    let endpoint = element.child("EndpointReference")?.text_of("Address")?;
    let good = endpoint.len() <= MAX_ENDPOINT && endpoint.bytes().all(|byte| byte.is_ascii_graphic());
    good.then(|| endpoint.to_ascii_lowercase())
}

/// Whether a printer is among the types, and a scanner.
fn kinds(element: &Element) -> (bool, bool) {
    let kinds = element.text_of("Types").unwrap_or_default();
    let local = |kind: &'_ str| kind.rsplit(':').next().unwrap_or_default().to_owned();
    let kinds: Vec<String> = kinds.split_ascii_whitespace().map(local).collect();
    let has = |names: &[&str]| kinds.iter().any(|kind| names.contains(&kind.as_str()));
    (has(&["PrintDeviceType", "PrinterServiceType"]), has(&["ScanDeviceType", "ScannerServiceType"]))
}

#[cfg(test)]
mod tests;
