//! A printer or scanner of WS-Discovery: says hello, answers probes, and has metadata.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;

use crate::page::{Pages, escaped, serve};
use crate::{Device, Odd, Result, common_socket, own_socket, ready, told_to_end};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
const PORT: u16 = 3702;

#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) device: Device,
    /// Is a scanner that knows eSCL, not a printer.
    #[arg(long)]
    scanner: bool,
    /// Where its metadata is.
    #[arg(long, default_value_t = 5357)]
    http_port: u16,
    /// Keeps its address to itself until it is asked to resolve.
    #[arg(long)]
    shy: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let device = &arguments.device;
    serve(device, arguments.http_port, pages(&arguments)).await?;
    let own = own_socket(device.address, 0)?;
    let common = common_socket(GROUP, PORT, device.address)?;
    let all = SocketAddr::from((GROUP, PORT));
    let hello = target(&arguments, !arguments.shy);
    own.send_to(envelope("discovery/Hello", "", &format!("<d:Hello>{hello}</d:Hello>")).as_bytes(), all)
        .await?;
    ready();
    let mut buffer = vec![0; 32 << 10];
    let end = told_to_end();
    tokio::pin!(end);
    loop {
        let (length, from) = tokio::select! {
            got = common.recv_from(&mut buffer) => got?,
            ended = &mut end => {
                ended?;
                break;
            }
        };
        let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let id = between(&request, "MessageID>", "<").unwrap_or_default();
        let relates = format!("<a:RelatesTo>{id}</a:RelatesTo>");
        let kind = kind(&arguments);
        let answer = if request.contains(":Probe>") && request.contains(kind) {
            let target = target(&arguments, !arguments.shy);
            let body = format!("<d:ProbeMatches><d:ProbeMatch>{target}</d:ProbeMatch></d:ProbeMatches>");
            envelope("discovery/ProbeMatches", &relates, &body)
        } else if request.contains(":Resolve>") && request.contains(&device.uuid) {
            let target = target(&arguments, true);
            let body =
                format!("<d:ResolveMatches><d:ResolveMatch>{target}</d:ResolveMatch></d:ResolveMatches>");
            envelope("discovery/ResolveMatches", &relates, &body)
        } else {
            continue;
        };
        let answer = match device.odd {
            Some(Odd::Garbage) => "<".repeat(2000),
            Some(Odd::Forger) => answer.replace(id, "urn:uuid:00000000-0000-4000-8000-000000000bad"),
            Some(_) | None => answer,
        };
        // The asker may be gone.
        let _ = own.send_to(answer.as_bytes(), from).await;
    }
    let bye = format!("<d:Bye>{}</d:Bye>", reference(&arguments));
    own.send_to(envelope("discovery/Bye", "", &bye).as_bytes(), all).await?;
    Ok(())
}

fn kind(arguments: &Arguments) -> &'static str {
    if arguments.scanner { "ScanDeviceType" } else { "PrintDeviceType" }
}

fn reference(arguments: &Arguments) -> String {
    let uuid = &arguments.device.uuid;
    format!("<a:EndpointReference><a:Address>urn:uuid:{uuid}</a:Address></a:EndpointReference>")
}

fn target(arguments: &Arguments, address: bool) -> String {
    let device = &arguments.device;
    let host = if device.is(Odd::Elsewhere) { Ipv4Addr::LOCALHOST } else { device.address };
    let address = if address {
        format!("<d:XAddrs>http://{host}:{}/wsd</d:XAddrs>", arguments.http_port)
    } else {
        String::new()
    };
    format!(
        "{}<d:Types>p:Device m:{}</d:Types>{address}<d:MetadataVersion>1</d:MetadataVersion>",
        reference(arguments),
        kind(arguments)
    )
}

fn envelope(action: &str, header: &str, body: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" \
         xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" xmlns:d=\"http://schemas.xmlsoap.org/ws/2005/04/discovery\" \
         xmlns:p=\"http://schemas.xmlsoap.org/ws/2006/02/devprof\" xmlns:m=\"http://schemas.microsoft.com/windows/2006/08/wdp/print\">\
         <s:Header><a:Action>http://schemas.xmlsoap.org/ws/2005/04/{action}</a:Action>\
         <a:MessageID>urn:uuid:5eed0000-0000-4000-8000-0000000000ff</a:MessageID>{header}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
    )
}

fn pages(arguments: &Arguments) -> Pages {
    let device = &arguments.device;
    let text = |text: &str| escaped(&device.text(text));
    let section = |inside: String| format!("<x:MetadataSection>{inside}</x:MetadataSection>");
    let metadata = [
        section(format!(
            "<p:ThisModel><p:Manufacturer>{}</p:Manufacturer><p:ModelName>{}</p:ModelName></p:ThisModel>",
            text(&device.maker),
            text(&device.model)
        )),
        section(format!(
            "<p:ThisDevice><p:FriendlyName>{}</p:FriendlyName><p:SerialNumber>{}</p:SerialNumber></p:ThisDevice>",
            text(&device.name),
            text(&device.serial)
        )),
    ];
    let metadata = format!(
        "<x:Metadata xmlns:x=\"http://schemas.xmlsoap.org/ws/2004/09/mex\">{}</x:Metadata>",
        metadata.concat()
    );
    let answer = ("application/soap+xml", envelope("transfer/GetResponse", "", &metadata));
    let mut pages: Pages = [("/wsd", answer)].into();
    if arguments.scanner {
        let capabilities =
            "<scan:ScannerCapabilities xmlns:scan=\"http://schemas.hp.com/imaging/escl/2011/05/03\"/>";
        pages.insert("/eSCL/ScannerCapabilities", ("text/xml", capabilities.to_owned()));
    }
    pages
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    Some(rest.split_once(end)?.0)
}
