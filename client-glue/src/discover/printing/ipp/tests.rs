use ipp::attribute::IppAttribute;
use ipp::model::{DelimiterTag, IppVersion, StatusCode};
use ipp::parser::IppParser;
use ipp::request::IppRequestResponse;
use ipp::value::{IppTextValue, IppValue};
use proptest::prelude::*;

use super::*;

fn parsed(bytes: &[u8]) -> IppRequestResponse {
    IppParser::new(ipp::reader::IppReader::new(std::io::Cursor::new(bytes.to_vec()))).parse().unwrap()
}

#[test]
fn the_question_is_one() {
    let question = question("ipp://10.0.0.5:631/ipp/print").unwrap();
    let read = parsed(&question);
    assert_eq!((read.header().version, read.header().operation_or_status), (IppVersion::v1_1(), 0x0b));
    let group = read.attributes().first_of(DelimiterTag::OperationAttributes).unwrap();
    let names: Vec<_> =
        group.attributes().iter().map(|attribute| attribute.name().as_str().to_owned()).collect();
    assert_eq!(
        names,
        ["attributes-charset", "attributes-natural-language", "printer-uri", "requested-attributes"]
    );
    assert_eq!(group.get("requested-attributes").unwrap().value().into_iter().count(), WANTED.len());
    assert_eq!(super::question(&"x".repeat(2000)), None);
}

#[test]
fn an_answer_is_read() {
    let mut response =
        IppRequestResponse::new_response(IppVersion::v1_1(), StatusCode::SuccessfulOk, 1).unwrap();
    let text = |text: &str| IppValue::TextWithoutLanguage(IppTextValue::new(text).unwrap());
    let keyword = |text: &str| IppValue::Keyword(text.try_into().unwrap());
    let nested = [("x-dimension".try_into().unwrap(), IppValue::Integer(21000))].into_iter().collect();
    for (name, value) in [
        ("media-size", IppValue::Collection(nested)),
        ("printer-make-and-model", text("Example LaserWriter")),
        ("color-supported", IppValue::Boolean(true)),
        ("media-supported", keyword("iso_a4_210x297mm")),
        ("urf-supported", IppValue::Array(vec![keyword("V1.4"), keyword("CP1"), keyword("W8")])),
    ] {
        let attribute = IppAttribute::with_name(name, value).unwrap();
        response.attributes_mut().add(DelimiterTag::PrinterAttributes, attribute);
    }
    let read = answer(&response.to_bytes()).unwrap();
    assert_eq!(read.first("printer-make-and-model"), Some(&b"Example LaserWriter"[..]));
    assert_eq!(read.flag("color-supported"), Some(true));
    assert_eq!(read.all("urf-supported"), [b"V1.4".to_vec(), b"CP1".to_vec(), b"W8".to_vec()]);
    assert_eq!((read.all("media-supported").len(), read.flag("printer-info")), (0, None));
}

/// The beginning of a good answer, up to its printer attributes.
const HEAD: &[u8] = &[1, 1, 0, 0, 0, 0, 0, 1, tag::OPERATION, tag::PRINTER];

fn value(tag: u8, name: &str, value: &[u8]) -> Vec<u8> {
    let length = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    [&[tag][..], &length(name.len()), name.as_bytes(), &length(value.len()), value].concat()
}

#[test]
fn languages_are_taken_off_and_refusals_said() {
    let name = value(tag::NAME_WITH_LANGUAGE, "printer-info", b"\0\x02de\0\x05B\xc3\xbcro");
    let read = answer(&[HEAD, &name, &[tag::END]].concat()).unwrap();
    assert_eq!(read.first("printer-info"), Some("Büro".as_bytes()));
    let cut = value(tag::NAME_WITH_LANGUAGE, "printer-info", b"\0\x09de");
    assert_eq!(answer(&[HEAD, &cut, &[tag::END]].concat()), Err(IppError::Malformed));
    assert_eq!(answer(&[1, 1, 0x04, 0x06, 0, 0, 0, 1, 3]), Err(IppError::Status(0x0406)));
    assert_eq!(answer(b"<html>"), Err(IppError::Malformed));
}

#[test]
fn bounds_hold() {
    let first = value(0x41, "printer-info", b"first");
    let second = value(0x41, "printer-info", b"second");
    let more = value(0x41, "", b"more").repeat(1000);
    let long = value(0x41, "printer-location", &[b'x'; 2000]);
    let read = answer(&[HEAD, &first, &more, &second, &more, &long, &[tag::END]].concat()).unwrap();
    assert_eq!(read.all("printer-info").len(), MAX_VALUES);
    assert_eq!((read.first("printer-info"), read.first("printer-location")), (Some(&b"first"[..]), None));
    // Of another group.
    let read = answer(&[&HEAD[..9], &first, &[tag::END]].concat()).unwrap();
    assert_eq!(read, Attributes::default());
}

#[test]
fn collections_are_skipped_however_deep() {
    let begin = value(tag::BEGIN_COLLECTION, "printer-info", b"");
    let member = value(0x41, "printer-location", b"within");
    let end = value(tag::END_COLLECTION, "", b"");
    let after = value(0x41, "printer-info", b"without");
    let levels = 10_000;
    let deep = [HEAD, &begin.repeat(levels), &member, &end.repeat(levels), &after, &[tag::END]].concat();
    let read = answer(&deep).unwrap();
    assert_eq!((read.first("printer-info"), read.first("printer-location")), (Some(&b"without"[..]), None));
    assert_eq!(answer(&deep[..HEAD.len() + begin.len() * levels]), Err(IppError::Malformed));
}

proptest! {
    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = answer(&bytes);
        let _ = answer(&[HEAD, &bytes].concat());
    }
}
