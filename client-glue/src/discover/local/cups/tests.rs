use ipp::{
    model::StatusCode,
    value::{IppMimeMediaType, IppName, IppString, IppTextValue},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::discover::{
    SightingEvent,
    outlet::{SourceEvent, test_outlet},
};

fn attribute(name: &str, value: IppValue) -> IppAttribute {
    IppAttribute::with_name(name, value).unwrap()
}

/// What CUPS answers if it has these queues.
fn answer(queues: &[&str]) -> Vec<u8> {
    let mut answer =
        IppRequestResponse::new_response(IppVersion::v1_1(), StatusCode::SuccessfulOk, 1).unwrap();
    for queue in queues {
        let mut group = IppAttributeGroup::new(DelimiterTag::PrinterAttributes);
        let name = IppValue::NameWithoutLanguage(IppName::new(*queue).unwrap());
        let uuid = IppString::new("urn:uuid:4509a320-00a0-008f-00b6-002507510eca").unwrap();
        let model = IppTextValue::new("HP\tLaserJet").unwrap();
        let format = |name: &str| IppValue::MimeMediaType(IppMimeMediaType::new(name).unwrap());
        let keyword = |name: &str| IppValue::Keyword(IppKeyword::new(name).unwrap());
        let formats = vec![format("text/html"), format("image/urf"), format("application/pdf")];
        group.attributes_mut().extend([
            attribute("printer-name", name),
            attribute("printer-uuid", IppValue::Uri(uuid)),
            attribute("printer-make-and-model", IppValue::TextWithoutLanguage(model)),
            attribute("color-supported", IppValue::Boolean(true)),
            attribute("document-format-supported", IppValue::Array(formats)),
            attribute(
                "sides-supported",
                IppValue::Array(vec![keyword("one-sided"), keyword("two-sided-long-edge")]),
            ),
            attribute("urf-supported", IppValue::Array(vec![keyword("CP1"), keyword("RS600")])),
        ]);
        answer.attributes_mut().groups_mut().push(group);
    }
    answer.to_bytes().to_vec()
}

#[test]
fn a_queue_is_told_as_a_printer() {
    let reader = IppReader::new(Cursor::new(answer(&["Büro"])));
    let (_, attributes, _) = IppParser::new(reader).parse_parts().unwrap();
    let queues = sightings(&attributes, "127.0.0.1:631".parse().unwrap());
    let seen = &queues["cups/Büro"];
    assert!(seen.this_machine && seen.uuid.is_some());
    assert_eq!(seen.make_and_model.as_ref().unwrap().as_str(), "HP LaserJet");
    let [service] = seen.services.as_slice() else { panic!() };
    assert_eq!(service.host_rewrite.as_deref(), Some("localhost:631"));
    let [advert] = service.adverts.as_slice() else { panic!() };
    let said = |key: &str| advert.txt.get(key).flatten();
    assert_eq!(said("rp"), Some("printers/B%C3%BCro"));
    assert_eq!(said("pdl"), Some("application/pdf,image/urf"));
    assert_eq!(said("URF"), Some("CP1,RS600"));
    assert_eq!((said("Color"), said("Duplex")), (Some("T"), Some("T")));
    assert_eq!(advert.subtypes.len(), 2);
}

#[test]
fn formats_fit_one_entry() {
    let all: Vec<String> = FORMATS.iter().map(|format| (*format).to_owned()).collect();
    assert!("pdl=".len() + pdl(&all).len() <= 255);
    assert_eq!(pdl(&["text/html".to_owned()]), "");
}

#[test]
fn the_question_is_one() {
    let reader = IppReader::new(Cursor::new(question()));
    let (header, attributes, _) = IppParser::new(reader).parse_parts().unwrap();
    assert_eq!(header.operation_or_status, Operation::CupsGetPrinters as i16);
    let wanted = attributes.first_of(DelimiterTag::OperationAttributes).unwrap();
    assert!(wanted.get("requested-attributes").is_some());
}

#[tokio::test]
async fn queues_come_and_go() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (outlet, mut told, asking) = test_outlet(Source::Local);
    let running = tokio::spawn(run(address, outlet));
    let serve = async |body: Vec<u8>, status: &str| {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await.unwrap();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
    };
    let mut round = async || {
        let mut ids = Vec::new();
        loop {
            match told.recv().await.unwrap() {
                SourceEvent::Sighting(SightingEvent::Seen(seen)) => ids.push(format!("+{}", seen.key.id)),
                SourceEvent::Sighting(SightingEvent::Gone(key)) => ids.push(format!("-{}", key.id)),
                SourceEvent::LookedRound { .. } => return ids,
                SourceEvent::Looking { .. } => {}
                SourceEvent::Started { .. } | SourceEvent::Failed { .. } => panic!(),
            }
        }
    };
    serve(answer(&["a", "b"]), "200 OK").await;
    assert_eq!(round().await, ["+cups/a", "+cups/b"]);
    asking.send(Ask::LookAgain).unwrap();
    serve(answer(&["b", "c"]), "200 OK").await;
    assert_eq!(round().await, ["-cups/a", "+cups/c"]);
    asking.send(Ask::LookAgain).unwrap();
    serve(Vec::new(), "503 Service Unavailable").await;
    assert_eq!(round().await, ["-cups/b", "-cups/c"]);
    asking.send(Ask::LookAgain).unwrap();
    serve(b"\x01\x01\x00\x00".to_vec(), "200 OK").await;
    assert_eq!(round().await, [] as [&str; 0]);
    running.abort();
}
