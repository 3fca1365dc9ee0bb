use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Element, XmlError> {
    Element::parse(text.as_bytes())
}

#[test]
fn a_document_becomes_a_tree() {
    let root = parse(
        "\u{feff}<?xml version=\"1.0\"?><!-- hello --><r:root xmlns:r='urn:x'> <r:name>A &amp; B &#x41;&#66;\
         <![CDATA[ <C> ]]></r:name><empty/><list><i>1</i><i>2</i></list></r:root>trailing",
    )
    .unwrap();
    assert_eq!(root.name(), "root");
    assert_eq!(root.text_of("name"), Some("A & B AB <C>"));
    assert_eq!(root.text_of("empty"), None);
    assert_eq!(root.text(), None);
    let names: Vec<_> = root.all().map(Element::name).collect();
    assert_eq!(names, ["root", "name", "empty", "list", "i", "i"]);
    assert_eq!(root.child("list").unwrap().children()[1].text(), Some("2"));
}

#[test]
fn entities_are_refused() {
    let bomb = "<!DOCTYPE lolz [<!ENTITY lol \"lol\"><!ENTITY lol2 \"&lol;&lol;&lol;\">]><lolz>&lol2;</lolz>";
    let file = "<!DOCTYPE a [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><a>&x;</a>";
    for text in [bomb, file, "<a>&x;</a>", "<a>&nbsp;</a>"] {
        assert_eq!(parse(text), Err(XmlError::Entity), "{text}");
    }
}

#[test]
fn bounds_hold() {
    assert_eq!(parse(&"<a>".repeat(33)), Err(XmlError::TooMuch("depth")));
    let deep = format!("{}{}", "<a>".repeat(32), "</a>".repeat(32));
    assert_eq!(parse(&deep).unwrap().all().count(), 32);
    let wide = format!("<a>{}</a>", "<b/>".repeat(8192));
    assert_eq!(parse(&wide), Err(XmlError::TooMuch("elements")));
    assert_eq!(parse(&" ".repeat(MAX_XML + 1)), Err(XmlError::TooLong { got: MAX_XML + 1 }));
    let long = format!("<a>{}</a>", "é".repeat(50_000));
    assert_eq!(parse(&long).unwrap().text().unwrap().len(), MAX_CONTENT);
}

#[test]
fn what_is_not_xml_is_refused() {
    for text in ["", "hello", "<a>", "<a></b>", "</a>", "<a", "<a>&#0;</a>", "<a>&#xd800;</a>", "<a>& b</a>"]
    {
        assert!(parse(text).is_err(), "{text}");
    }
    // What another encoding makes of a name is damage, not a refusal.
    let latin = Element::parse(b"<a><b>B\xfcro</b></a>").unwrap();
    assert_eq!(latin.text_of("b"), Some("B\u{fffd}ro"));
}

proptest! {
    #[test]
    fn any_text_is_taken(text in "[<>/a-c&;#x0-9! \\[\\]-]{0,200}") {
        let _ = parse(&text);
    }
}
