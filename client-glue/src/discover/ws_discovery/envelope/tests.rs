use proptest::prelude::*;

use super::*;

/// As a printer of 2015 answers.
fn matches(relates_to: &str, addresses: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><SOAP-ENV:Envelope xmlns:SOAP-ENV=\"http://www.w3.org/2003/05/soap-envelope\" \
         xmlns:wsa=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" xmlns:d=\"http://schemas.xmlsoap.org/ws/2005/04/discovery\">\
         <SOAP-ENV:Header><wsa:MessageID>urn:uuid:9</wsa:MessageID><wsa:RelatesTo>{relates_to}</wsa:RelatesTo>\
         <wsa:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/ProbeMatches</wsa:Action></SOAP-ENV:Header><SOAP-ENV:Body>\
         <d:ProbeMatches><d:ProbeMatch><wsa:EndpointReference><wsa:Address>urn:uuid:ABC</wsa:Address></wsa:EndpointReference>\
         <d:Types>wsdp:Device wprt:PrintDeviceType scn:ScanDeviceType</d:Types><d:XAddrs>{addresses}</d:XAddrs>\
         <d:MetadataVersion>1</d:MetadataVersion></d:ProbeMatch></d:ProbeMatches></SOAP-ENV:Body></SOAP-ENV:Envelope>"
    )
}

fn target(addresses: &[&str]) -> Target {
    let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
    Target { endpoint: "urn:uuid:abc".into(), is_printer: true, is_scanner: true, addresses }
}

#[test]
fn announcements_are_read() {
    let read =
        message(matches("urn:uuid:1", "http://10.0.0.5:80/wsd http://[fe80::1]/wsd").as_bytes()).unwrap();
    let targets = vec![target(&["http://10.0.0.5:80/wsd", "http://[fe80::1]/wsd"])];
    assert_eq!(read, Message::Matches { relates_to: "urn:uuid:1".into(), targets });
    let hello = matches("", "").replace("ProbeMatches>", "X>").replace("ProbeMatch>", "Hello>");
    let hello = hello.replace("<d:X>", "").replace("</d:X>", "");
    assert_eq!(message(hello.as_bytes()), Ok(Message::Hello(target(&[]))));
    let bye = hello.replace("d:Hello>", "d:Bye>");
    assert_eq!(message(bye.as_bytes()), Ok(Message::Bye("urn:uuid:abc".into())));
    // Many, of whom the first count.
    let one = &matches("", "")[matches("", "").find("<d:ProbeMatch>").unwrap()..];
    let one = &one[..one.find("</d:ProbeMatches>").unwrap()];
    let many = matches("", "").replace(one, &one.repeat(100));
    let Ok(Message::Matches { targets, .. }) = message(many.as_bytes()) else { panic!("not read") };
    assert_eq!(targets.len(), MOST_MATCHES);
}

#[test]
fn our_questions_are_questions_and_keep_what_they_are_given() {
    for question in
        [probe("urn:uuid:1", false), probe("urn:uuid:1", true), resolve("urn:uuid:1", "urn:uuid:2")]
    {
        assert_eq!(message(&question), Err(WsdError::Other));
    }
    let odd = "</wsa:Address>&<x a='\"'>";
    let question = Element::parse(&resolve("urn:uuid:1", odd)).unwrap();
    let address = question.all().filter(|element| element.name() == "Address").last().unwrap();
    assert_eq!(address.text(), Some(odd));
    let question = Element::parse(&get("urn:uuid:1", odd)).unwrap();
    assert_eq!(question.child("Header").unwrap().text_of("To"), Some(odd));
    let question = Element::parse(&probe("urn:uuid:1", false)).unwrap();
    assert_eq!(question.all().find_map(|element| element.text_of("Types")), Some("wprt:PrintDeviceType"));
}

#[test]
fn metadata_is_read() {
    let document = "<s:Envelope xmlns:s='x'><s:Header/><s:Body><m:Metadata><m:MetadataSection><d:ThisModel>\
        <d:Manufacturer>Example</d:Manufacturer><d:ModelName>Wonder 5</d:ModelName><d:PresentationUrl>http://10.0.0.5/\
        </d:PresentationUrl></d:ThisModel></m:MetadataSection><m:MetadataSection><d:ThisDevice><d:FriendlyName>Example Wonder\
        </d:FriendlyName><d:SerialNumber>SN99</d:SerialNumber></d:ThisDevice></m:MetadataSection><m:MetadataSection>\
        <d:Relationship><d:Host><d:Types>wsdp:Device</d:Types></d:Host><d:Hosted><d:Types>wprt:PrinterServiceType</d:Types>\
        </d:Hosted></d:Relationship></m:MetadataSection></m:Metadata></s:Body></s:Envelope>";
    let read = metadata(document.as_bytes()).unwrap();
    assert_eq!(
        read,
        Metadata {
            friendly_name: Some("Example Wonder".into()),
            manufacturer: Some("Example".into()),
            model_name: Some("Wonder 5".into()),
            serial: Some("SN99".into()),
            presentation: Some("http://10.0.0.5/".into()),
            is_printer: true,
            is_scanner: false,
        }
    );
    for none in ["<html/>", "<Envelope/>", "<Envelope><Body/></Envelope>"] {
        assert_eq!(metadata(none.as_bytes()), Err(WsdError::Other), "{none}");
    }
}

#[test]
fn hostile_messages_are_refused() {
    let bomb = format!("<!DOCTYPE x [<!ENTITY a \"b\">]>{}", matches("&a;", ""));
    assert_eq!(message(bomb.as_bytes()), Err(WsdError::Xml(XmlError::Entity)));
    for endpoint in ["", "a b", &"x".repeat(129), "é"] {
        let text = matches("", "").replace("urn:uuid:ABC", endpoint);
        let read = message(text.as_bytes()).unwrap();
        assert_eq!(read, Message::Matches { relates_to: String::new(), targets: Vec::new() }, "{endpoint}");
    }
    for text in ["", "<Envelope>", "<Envelope/>", "<Envelope><Body/></Envelope>", "<Body><Hello/></Body>"] {
        assert!(message(text.as_bytes()).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn damaged_messages_are_taken(at in 0usize..900, with in any::<u8>(), cut in 0usize..1200) {
        let mut bytes = matches("urn:uuid:1", "http://10.0.0.5/").into_bytes();
        let length = bytes.len();
        bytes[at % length] = with;
        bytes.truncate(cut);
        let _ = message(&bytes);
        let _ = metadata(&bytes);
    }
}
