use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::discover::device::Source;

fn sighting() -> Sighting {
    let mut sighting = Sighting::new(Source::Snmp, "10.0.0.5");
    sighting.addresses.push([10, 0, 0, 5].into());
    sighting
}

fn known() -> Known {
    let id = b"MFG:HP;MDL:LaserJet 4;CMD:PJL,PCL,POSTSCRIPT;SN:ABC123;CLS:PRINTER;";
    Known {
        device_id: DeviceId::parse(id),
        name: Some(b"Front desk".to_vec()),
        location: Some(b"Ground\x1b[31m floor".to_vec()),
        ..Known::default()
    }
}

/// An answer to Get-Printer-Attributes.
fn answer(attributes: &[(u8, &str, &[&[u8]])]) -> Vec<u8> {
    let mut out = vec![1, 1, 0, 0, 0, 0, 0, 1, 1, 4];
    for (tag, name, values) in attributes {
        let mut name = *name;
        for value in *values {
            out.push(*tag);
            for text in [name.as_bytes(), value] {
                out.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
                out.extend(text);
            }
            name = "";
        }
    }
    out.push(3);
    out
}

fn everywhere() -> Vec<u8> {
    answer(&[
        (0x45, "printer-uuid", &[b"urn:uuid:01234567-89AB-cdef-0123-456789abcdef"]),
        (0x41, "printer-make-and-model", &[b"Example Every 1"]),
        (0x42, "printer-dns-sd-name", &[b"Every \xe2\x80\xae1"]),
        (0x49, "document-format-supported", &[b"application/pdf", b"image/urf"]),
        (0x44, "urf-supported", &[b"V1.4", b"W8"]),
        (0x22, "color-supported", &[&[1]]),
        (0x44, "sides-supported", &[b"one-sided"]),
        (0x45, "printer-uri-supported", &[b"ipps://10.0.0.5/ipp/print", b"ipp://every1.local:631/ipp/print"]),
        (0x45, "printer-more-info", &[b"http://10.0.0.5/"]),
    ])
}

fn txt(service: &Service) -> Vec<String> {
    let entries = service.adverts[0].txt.entries();
    entries.map(|(key, value)| format!("{key}={}", value.unwrap_or_default())).collect()
}

#[test]
fn an_old_printer_gets_the_adverts_that_it_never_sent() {
    let mut sighting = sighting();
    let ways = Ways { raw: Some(9100), lpd: Some((515, "raw".into())), ipp: None };
    describe(&mut sighting, &known(), &ways);
    assert_eq!(sighting.make_and_model.as_ref().unwrap().as_str(), "HP LaserJet 4");
    assert_eq!(sighting.serial.as_ref().unwrap().as_str(), "ABC123");
    assert_eq!(sighting.name.as_ref().unwrap().as_str(), "Front desk");
    assert_eq!((sighting.uuid, &sighting.host), (None, &None));
    let [raw, lpd] = &sighting.services[..] else { panic!("{:?}", sighting.services) };
    assert_eq!((raw.port, raw.adverts[0].kind.as_str()), (9100, "_pdl-datastream._tcp"));
    assert_eq!((lpd.port, lpd.adverts[0].kind.as_str()), (515, "_printer._tcp"));
    let common = [
        "txtvers=1",
        "qtotal=1",
        "ty=HP LaserJet 4",
        "note=Ground [31m floor",
        "product=(LaserJet 4)",
        "usb_MDL=LaserJet 4",
        "usb_MFG=HP",
        "pdl=application/vnd.hp-PCL,application/postscript",
    ];
    assert_eq!(txt(raw), common);
    assert_eq!(txt(lpd), [&common[..], &["rp=raw"]].concat());
}

#[test]
fn a_printer_with_ipp_speaks_for_itself() {
    let attributes = ipp::answer(&everywhere()).unwrap();
    let mut sighting = sighting();
    let ipp = Ipp { port: 631, path: "/ipp/print".into(), attributes };
    describe(&mut sighting, &known(), &Ways { raw: Some(9100), lpd: None, ipp: Some(ipp) });
    assert_eq!(sighting.uuid.unwrap().to_string(), "01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(sighting.name.as_ref().unwrap().as_str(), "Every 1");
    assert_eq!(sighting.host.as_ref().unwrap().as_str(), "every1.local");
    let [ipp, raw] = &sighting.services[..] else { panic!("{:?}", sighting.services) };
    assert_eq!(raw.port, 9100);
    let advert = &ipp.adverts[0];
    assert_eq!((ipp.port, advert.kind.as_str(), advert.instance.as_str()), (631, "_ipp._tcp", "Every 1"));
    let subtypes: Vec<_> = advert.subtypes.iter().map(Label::as_str).collect();
    assert_eq!(subtypes, ["_print", "_universal"]);
    for (key, value) in [
        ("rp", "ipp/print"),
        ("ty", "Example Every 1"),
        ("pdl", "application/pdf,image/urf"),
        ("URF", "V1.4,W8"),
        ("UUID", "01234567-89ab-cdef-0123-456789abcdef"),
        ("Color", "T"),
        ("Duplex", "F"),
        ("adminurl", "http://every1.local/"),
    ] {
        assert_eq!(advert.txt.get(key), Some(Some(value)), "{key}");
    }
}

#[test]
fn a_printer_cannot_name_others_hosts_nor_overflow() {
    let long: Vec<Vec<u8>> =
        (0..64).map(|number| format!("application/x-{number:0100}").into_bytes()).collect();
    let formats: Vec<&[u8]> = long.iter().map(Vec::as_slice).collect();
    let attributes = answer(&[
        (
            0x45,
            "printer-uri-supported",
            &[b"ipp://bank.example/", b"ipp://127.0.0.1/", b"ipp://localhost/", b"\xff"],
        ),
        (0x49, "document-format-supported", &formats),
        (0x45, "printer-uuid", &[b"urn:uuid:00000000-0000-0000-0000-000000000000"]),
        (0x45, "printer-more-info", &[b"javascript:alert(1)"]),
        (0x41, "printer-info", &[b"\0\n\x7f\xc2\x85"]),
    ]);
    let ipp = Ipp { port: 9100, path: "/../x".into(), attributes: ipp::answer(&attributes).unwrap() };
    let mut sighting = sighting();
    describe(&mut sighting, &Known::default(), &Ways { raw: Some(9100), lpd: None, ipp: Some(ipp) });
    assert_eq!((sighting.uuid, sighting.host.clone(), sighting.name.clone()), (None, None, None));
    // The same port once.
    let [service] = &sighting.services[..] else { panic!("{:?}", sighting.services) };
    let advert = &service.adverts[0];
    assert_eq!(advert.instance.as_str(), "Printer");
    assert_eq!((advert.txt.get("rp"), advert.txt.get("adminurl")), (None, None));
    let pdl = advert.txt.get("pdl").unwrap().unwrap();
    assert!(pdl.len() <= MAX_LIST && pdl.split(',').count() == 2, "{pdl}");
}

/// Answers each question with what `say` makes of its path.
async fn printer(say: impl Fn(&str) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut got = Vec::new();
            // A mere connection ends at once.
            while !got.windows(4).any(|end| end == b"\r\n\r\n")
                && stream.read_buf(&mut got).await.unwrap() > 0
            {}
            let text = String::from_utf8_lossy(&got).into_owned();
            if let Some(path) = text.split(' ').nth(1) {
                stream.write_all(&say(path)).await.unwrap();
            }
        }
    });
    address
}

fn ok(body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

#[tokio::test]
async fn the_ports_are_tried_and_ipp_is_asked() {
    let raw = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let address = printer(|path| match path {
        "/own" => ok(&everywhere()),
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    })
    .await;
    let found =
        ways(address, Some(&Printed::Ipp { port: address.port(), path: "/own".into() }), Ways::default())
            .await;
    let ipp = found.ipp.unwrap();
    assert_eq!((ipp.port, ipp.path.as_str()), (address.port(), "/own"));
    assert_eq!(ipp.attributes.first("printer-make-and-model"), Some(&b"Example Every 1"[..]));
    // It was closed with the listener.
    let found = ways(address, Some(&Printed::Raw(raw.port())), Ways::default()).await;
    assert_eq!(found.raw, None);
    let found =
        ways(address, Some(&Printed::Lpd { port: address.port(), queue: "q".into() }), Ways::default()).await;
    assert_eq!(found.lpd, Some((address.port(), "q".into())));
    assert_eq!(found.raw, None);
    // A printer that is busy refuses.
    let before = Ways { raw: Some(raw.port()), ..found };
    let found = ways(address, Some(&Printed::Raw(raw.port())), before).await;
    assert_eq!((found.raw, found.lpd), (Some(raw.port()), Some((address.port(), "q".into()))));
}

#[tokio::test]
async fn who_answers_nonsense_has_no_ipp() {
    for body in [&b"<html>hello</html>"[..], b"", &[1, 1, 4, 6, 0, 0, 0, 1, 3], &answer(&[]), &[0; 1000]] {
        let body = ok(body);
        let address = printer(move |_| body.clone()).await;
        let found = ask_at(address, address.port(), "/x").await;
        assert!(found.is_err(), "{found:?}");
    }
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n", &[0; 300 * 1024][..]].concat();
    let address = printer(move |_| endless.clone()).await;
    let error = ask_at(address, address.port(), "/x").await.unwrap_err();
    assert!(matches!(error, AskError::Http(HttpError::TooLong { .. } | HttpError::Io(_))), "{error}");
}
