//! Seeds of the target `lan`: what devices say.

use std::io;

pub(super) fn seeds(save: &impl Fn(&str, &str, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let soap = |body: &str| {
        format!(
            "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"><s:Header><a:RelatesTo>urn:uuid:1\
             </a:RelatesTo></s:Header><s:Body>{body}</s:Body></s:Envelope>"
        )
    };
    let target = "<a:EndpointReference><a:Address>urn:uuid:01234567-89ab-cdef-0123-456789abcdef</a:Address></a:EndpointReference>\
                  <d:Types>x:PrintDeviceType y:ScanDeviceType</d:Types><d:XAddrs>http://10.0.0.5:80/wsd</d:XAddrs>";
    let matches = soap(&format!("<d:ProbeMatches><d:ProbeMatch>{target}</d:ProbeMatch></d:ProbeMatches>"));
    let hello = soap(&format!("<d:Hello>{target}</d:Hello>"));
    let bye = soap(&format!("<d:Bye>{target}</d:Bye>"));
    let metadata = soap(
        "<m:Metadata><m:MetadataSection><d:ThisModel><d:Manufacturer>A</d:Manufacturer><d:ModelName>B</d:ModelName></d:ThisModel>\
         </m:MetadataSection><m:MetadataSection><d:ThisDevice><d:FriendlyName>C &amp; &#x44;</d:FriendlyName></d:ThisDevice>\
         </m:MetadataSection></m:Metadata>",
    );
    let description = "<root><device><deviceType>urn:schemas-upnp-org:device:Printer:1</deviceType><friendlyName><![CDATA[A]]>\
        </friendlyName><manufacturer>B</manufacturer><modelName>B C</modelName><serialNumber>1234</serialNumber>\
        <presentationURL>/ui</presentationURL></device></root>";
    let notify = "NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\nNT: upnp:rootdevice\r\nUSN: uuid:1::upnp:rootdevice\r\n\
                  LOCATION: http://10.0.0.5:80/d.xml\r\nCACHE-CONTROL: max-age=100\r\n\r\n";
    let found = "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nUSN: uuid:1\r\nLOCATION: http://10.0.0.5/\r\n\r\n";
    let gone = "NOTIFY * HTTP/1.1\r\nNTS: ssdp:byebye\r\nUSN: uuid:1\r\n\r\n";
    let chunked = "\x07HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let sized = "\x03HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    for (choice, name, text) in [
        (0, "http-chunked", chunked),
        (0, "http-sized", sized),
        (1, "xml", "<?xml version=\"1.0\"?><a b='c'><!-- d --><e:f>g&lt;&#65;<![CDATA[h]]></e:f><i/></a>"),
        (1, "xml-entity", "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>"),
        (2, "device-id", "MFG:HP;MDL:LaserJet 4;CMD:PJL,PCL,POSTSCRIPT,URF;CLS:PRINTER;SN:1234;"),
        (2, "device-id-long", "MANUFACTURER:Zebra ;COMMAND SET:ZPL;MODEL:ZTC ZD420;"),
        (5, "ssdp-alive", notify),
        (5, "ssdp-found", found),
        (5, "ssdp-bye", gone),
        (6, "upnp", description),
        (7, "wsd-matches", &matches),
        (7, "wsd-hello", &hello),
        (7, "wsd-bye", &bye),
        (8, "wsd-metadata", &metadata),
        (9, "location", "http://10.0.0.5:8080/a?b=c"),
        (9, "location-elsewhere", "http://0x7f.1/"),
    ] {
        save("lan", name, &[&[choice], text.as_bytes()].concat())?;
    }
    let wrap = |tag: u8, inside: &[u8]| [&[tag, u8::try_from(inside.len()).expect("short")], inside].concat();
    let name = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x02, 0x01, 0x01, 0x05, 0x00];
    for (label, version, value) in [
        ("v1", 0, &[0x04, 2, b'l', b'p'][..]),
        ("v2c", 1, &[0x06, 2, 0x2b, 0x06]),
        ("v2c-none", 1, &[0x80, 0]),
    ] {
        let bindings = wrap(0x30, &wrap(0x30, &[&name, value].concat()));
        let head = [0x02, 0x04, 0x12, 0x34, 0x56, 0x78, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00];
        let pdu = wrap(0xa2, &[&head[..], &bindings].concat());
        let message = wrap(0x30, &[&[0x02, 0x01, version][..], &wrap(0x04, b"public"), &pdu].concat());
        save("lan", &format!("snmp-{label}"), &[&[3][..], &message].concat())?;
        let short = u8::try_from(message.len()).expect("short");
        save(
            "lan",
            &format!("hunt-{label}"),
            &[&[10, 0, 5, short, 5][..], &message, &[0, 5, 200, 6, 200, 7]].concat(),
        )?;
    }
    let mut printer = vec![4, 1, 1, 0, 0, 0, 0, 0, 1, 1, 4];
    for (tag, name, value) in [
        (0x45, "printer-uuid", &b"urn:uuid:01234567-89ab-cdef-0123-456789abcdef"[..]),
        (0x34, "media", b""),
        (0x4a, "", b"x"),
        (0x37, "", b""),
        (0x36, "printer-dns-sd-name", b"\0\x02en\0\x01A"),
        (0x49, "document-format-supported", b"image/urf"),
        (0x44, "urf-supported", b"W8"),
        (0x22, "color-supported", b"\x01"),
        (0x45, "printer-uri-supported", b"ipp://a.local/ipp/print"),
    ] {
        printer.push(tag);
        for text in [name.as_bytes(), value] {
            printer.extend(u16::try_from(text.len()).expect("short").to_be_bytes());
            printer.extend(text);
        }
    }
    printer.push(3);
    save("lan", "ipp", &printer)
}
