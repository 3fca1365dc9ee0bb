//! A device of UPnP: announces itself, answers searches, and has a description.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;

use crate::page::{Pages, escaped, serve};
use crate::{Device, Odd, Result, common_socket, own_socket, ready, told_to_end};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
const PORT: u16 = 1900;

#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) device: Device,
    /// Its type.
    #[arg(long, default_value = "urn:schemas-upnp-org:device:Printer:1")]
    kind: String,
    /// Where its description is.
    #[arg(long, default_value_t = 49152)]
    http_port: u16,
    /// Its pages for people.
    #[arg(long)]
    presentation: Option<String>,
    /// For how long it says that it is there, in seconds.
    #[arg(long, default_value_t = 1800)]
    life: u32,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let device = &arguments.device;
    serve(device, arguments.http_port, pages(&arguments)).await?;
    // Answers come from a port of its own, as those of most devices do.
    let own = own_socket(device.address, 0)?;
    let common = common_socket(GROUP, PORT, device.address)?;
    let all = SocketAddr::from((GROUP, PORT));
    for (target, name) in names(&arguments) {
        own.send_to(notify(&arguments, &target, &name, "ssdp:alive").as_bytes(), all).await?;
    }
    ready();
    let mut buffer = vec![0; 4096];
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
        if !request.starts_with("M-SEARCH ") {
            continue;
        }
        let wanted = request.lines().find_map(|line| line.strip_prefix("ST: ")).unwrap_or_default().trim();
        for (target, name) in names(&arguments) {
            if wanted == target || wanted == "ssdp:all" {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age={}\r\nEXT:\r\nLOCATION: {}\r\n\
                     SERVER: examples UPnP/1.0 lan-agents/1\r\nST: {target}\r\nUSN: {name}\r\n\r\n",
                    arguments.life,
                    location(&arguments)
                );
                // The asker may be gone.
                let _ = own.send_to(answer.as_bytes(), from).await;
            }
        }
    }
    for (target, name) in names(&arguments) {
        own.send_to(notify(&arguments, &target, &name, "ssdp:byebye").as_bytes(), all).await?;
    }
    Ok(())
}

/// What it is announced as: a root device, itself, and its type.
fn names(arguments: &Arguments) -> [(String, String); 3] {
    let id = format!("uuid:{}", arguments.device.uuid);
    ["upnp:rootdevice", &*id, &*arguments.kind].map(|target| {
        let name = if target == id { id.clone() } else { format!("{id}::{target}") };
        (target.to_owned(), name)
    })
}

fn location(arguments: &Arguments) -> String {
    let device = &arguments.device;
    if device.is(Odd::Elsewhere) {
        return "http://127.0.0.1:631/printers/".to_owned();
    }
    format!("http://{}:{}/description.xml", device.address, arguments.http_port)
}

fn notify(arguments: &Arguments, target: &str, name: &str, what: &str) -> String {
    format!(
        "NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nCACHE-CONTROL: max-age={}\r\nLOCATION: {}\r\nNT: {target}\r\n\
         NTS: {what}\r\nSERVER: examples UPnP/1.0 lan-agents/1\r\nUSN: {name}\r\n\r\n",
        arguments.life,
        location(arguments)
    )
}

fn pages(arguments: &Arguments) -> Pages {
    let device = &arguments.device;
    let text = |text: &str| escaped(&device.text(text));
    let presentation = arguments
        .presentation
        .as_deref()
        .map(|url| format!("<presentationURL>{}</presentationURL>", escaped(url)));
    let document = format!(
        "<?xml version=\"1.0\"?>\n<root xmlns=\"urn:schemas-upnp-org:device-1-0\"><specVersion><major>1</major><minor>0</minor>\
         </specVersion><device><deviceType>{}</deviceType><friendlyName>{}</friendlyName><manufacturer>{}</manufacturer>\
         <modelName>{}</modelName><serialNumber>{}</serialNumber><UDN>uuid:{}</UDN>{}</device></root>\n",
        arguments.kind,
        text(&device.name),
        text(&device.maker),
        text(&device.model),
        text(&device.serial),
        device.uuid,
        presentation.unwrap_or_default()
    );
    let ui = format!("<title>{}</title>\n", text(&device.name));
    [("/description.xml", ("text/xml", document)), ("", ("text/html", ui))].into()
}
