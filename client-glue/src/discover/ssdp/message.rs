//! SSDP's messages (UPnP Device Architecture 2.0, section 1): HTTP's heads in UDP packets.

use std::time::Duration;

/// Longest packet that is read, bytes.
pub(super) const MAX_MESSAGE: usize = 4096;
/// What is asked for and listened to. Everything answers to the second once, while `ssdp:all` would have each device answer a dozen
/// times.
pub(super) const TARGETS: [&str; 2] = ["urn:schemas-upnp-org:device:Printer:1", "upnp:rootdevice"];
/// Most header lines.
const MOST_HEADERS: usize = 32;
/// How long a device is there that does not say for how long.
const USUAL_LIFE: Duration = Duration::from_secs(1800);
/// Longest UUID that is taken, bytes; devices make up their own forms.
const MAX_ID: usize = 64;

/// What one hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// A device is there.
    Alive {
        /// As it writes it, without `uuid:`.
        id: String,
        /// URL of its description.
        location: String,
        life: Duration,
    },
    /// A device goes.
    Bye { id: String },
}

/// Why it is nothing to listen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SsdpError {
    /// Cut, or not SSDP.
    #[error("the packet is not one of SSDP")]
    Malformed,
    /// Another's question, an update, or something that has no description.
    #[error("the packet announces no device")]
    Other,
}

/// The question for all devices of a kind, to be answered within two seconds.
pub(super) fn search(target: &str) -> Vec<u8> {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {target}\r\n\r\n"
    )
    .into_bytes()
}

/// Reads a packet.
pub(super) fn message(bytes: &[u8]) -> Result<Message, SsdpError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(SsdpError::Malformed);
    }
    // Some leave out the empty line.
    let bytes = [bytes, b"\r\n\r\n"].concat();
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    if bytes.starts_with(b"HTTP/") {
        let mut response = httparse::Response::new(&mut headers);
        whole(response.parse(&bytes))?;
        return if response.code == Some(200) {
            alive(response.headers, "st")
        } else {
            Err(SsdpError::Other)
        };
    }
    let mut request = httparse::Request::new(&mut headers);
    whole(request.parse(&bytes))?;
    if request.method != Some("NOTIFY") {
        return Err(SsdpError::Other);
    }
    match header(request.headers, "nts") {
        Some("ssdp:alive") => alive(request.headers, "nt"),
        Some("ssdp:byebye") => Ok(Message::Bye { id: id(request.headers)? }),
        Some(_) | None => Err(SsdpError::Other),
    }
}

fn whole(parsed: httparse::Result<usize>) -> Result<(), SsdpError> {
    match parsed {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        Ok(httparse::Status::Partial) | Err(_) => Err(SsdpError::Malformed),
    }
}

fn alive(headers: &[httparse::Header<'_>], kind: &str) -> Result<Message, SsdpError> {
    // A device announces its services and the devices within it as well, under other ids but with the same description.
    let kind = header(headers, kind).unwrap_or_default();
    if !TARGETS.iter().any(|target| target.eq_ignore_ascii_case(kind)) {
        return Err(SsdpError::Other);
    }
    let location = header(headers, "location").filter(|location| !location.is_empty());
    let location = location.ok_or(SsdpError::Other)?.to_owned();
    let life = header(headers, "cache-control").and_then(max_age).unwrap_or(USUAL_LIFE);
    Ok(Message::Alive { id: id(headers)?, location, life })
}

/// `uuid:ID::urn:…`, `uuid:ID::upnp:rootdevice` or `uuid:ID`: all of one device.
fn id(headers: &[httparse::Header<'_>]) -> Result<String, SsdpError> {
    let name = header(headers, "usn").ok_or(SsdpError::Other)?;
    let (scheme, rest) = name.split_at_checked(5).ok_or(SsdpError::Other)?;
    let id = rest.split("::").next().unwrap_or_default();
    let good = (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    (good && scheme.eq_ignore_ascii_case("uuid:")).then(|| id.to_ascii_lowercase()).ok_or(SsdpError::Other)
}

fn header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(found.value).ok().map(str::trim)
}

/// `no-cache="Ext", max-age = 1800`.
fn max_age(control: &str) -> Option<Duration> {
    control.split(',').find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("max-age") {
            return None;
        }
        let value = value.trim().trim_matches('"');
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        // A number too great for the type is a long time.
        digits.then(|| Duration::from_secs(value.parse().unwrap_or(u32::MAX.into())))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alive(id: &str, location: &str, seconds: u64) -> Result<Message, SsdpError> {
        let life = Duration::from_secs(seconds);
        Ok(Message::Alive { id: id.into(), location: location.into(), life })
    }

    #[test]
    fn what_devices_send_is_read() {
        let notify = "NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nCACHE-CONTROL: max-age=120\r\n\
                      LOCATION: http://10.0.0.5:49152/desc.xml\r\nNT: upnp:rootdevice\r\nNTS: ssdp:alive\r\n\
                      SERVER: Linux/3.4 UPnP/1.0 x/1\r\nUSN: uuid:Abc-1::upnp:rootdevice\r\n\r\n";
        assert_eq!(message(notify.as_bytes()), alive("abc-1", "http://10.0.0.5:49152/desc.xml", 120));
        let answer = "HTTP/1.1 200 OK\nCache-Control: no-cache=\"Ext\", Max-Age = \"99\"\nST: upnp:rootdevice\nUsn: UUID:1\nEXT:\n\
                      Location:http://10.0.0.5/";
        assert_eq!(message(answer.as_bytes()), alive("1", "http://10.0.0.5/", 99));
        let bye = "NOTIFY * HTTP/1.1\r\nNTS: ssdp:byebye\r\nUSN: uuid:Abc-1\r\nNT: uuid:Abc-1\r\n\r\n";
        assert_eq!(message(bye.as_bytes()), Ok(Message::Bye { id: "abc-1".into() }));
        for (age, seconds) in
            [("max-age=0", 0), ("max-age=99999999999999999999", u32::MAX.into()), ("max-age=-1", 1800)]
        {
            let text = answer.replace("no-cache=\"Ext\", Max-Age = \"99\"", age);
            assert_eq!(message(text.as_bytes()), alive("1", "http://10.0.0.5/", seconds), "{age}");
        }
    }

    #[test]
    fn what_announces_nothing_is_passed_over() {
        let other = [
            String::from_utf8(search("upnp:rootdevice")).unwrap(),
            "HTTP/1.1 404 Not Found\r\nUSN: uuid:1\r\nLOCATION: http://10.0.0.5/\r\n\r\n".into(),
            "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nUSN: uuid:1\r\n\r\n".into(),
            "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: http://10.0.0.5/\r\n\r\n".into(),
            "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nUSN: uuid:\r\nLOCATION: http://10.0.0.5/\r\n\r\n"
                .into(),
            "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nUSN: é:uuid\r\nLOCATION: http://10.0.0.5/\r\n\r\n"
                .into(),
            "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nUSN: uuid:a b\r\nLOCATION: http://10.0.0.5/\r\n\r\n"
                .into(),
            format!(
                "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nUSN: uuid:{}\r\nLOCATION: http://10.0.0.5/\r\n\r\n",
                "x".repeat(65)
            ),
            "NOTIFY * HTTP/1.1\r\nNTS: ssdp:update\r\nUSN: uuid:1\r\nLOCATION: http://10.0.0.5/\r\n\r\n"
                .into(),
            "HTTP/1.1 200 OK\r\nST: urn:x:service:y:1\r\nUSN: uuid:1\r\nLOCATION: http://10.0.0.5/\r\n\r\n"
                .into(),
            "NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\nUSN: uuid:1\r\nLOCATION: http://10.0.0.5/\r\n\r\n"
                .into(),
        ];
        for text in other {
            assert_eq!(message(text.as_bytes()), Err(SsdpError::Other), "{text}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(100));
        for bytes in [&b""[..], b"\0\0\0\0", b"NOTIFY", many.as_bytes(), &[b'a'; 5000]] {
            assert_eq!(message(bytes), Err(SsdpError::Malformed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = message(&bytes);
            let _ = message(&[b"NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\nNT: upnp:rootdevice\r\nUSN: uuid:", &bytes[..]].concat());
        }
    }
}
