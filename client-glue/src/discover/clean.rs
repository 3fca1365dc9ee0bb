//! Makes typed text of what a device on the user's network said, or nothing where that cannot be.
//!
//! Text for people is mended: what controls instead of being read is taken out, damage is marked, length is cut. Text for machines
//! is taken as it is or not at all, because half of a path is another path. What is said about addresses holds true for the device
//! itself only: a link to another host is dropped, and a link to one of the device's addresses, of which the guest knows none,
//! gets the device's name.

use std::net::IpAddr;

use spice_proto::service_info::{HostName, Label, MAX_LABEL, Txt, is_clean};
use url::Url;

use super::text::{MAX_TEXT, Serial, Text};

/// TXT keys whose values are read by people (Bonjour Printing Specification 1.2.1, section 9.2; Mopria's eSCL).
const FOR_PEOPLE: [&str; 8] = ["ty", "note", "product", "usb_mfg", "usb_mdl", "mfg", "mdl", "n"];

/// TXT keys whose values are links, to be opened by people or programs.
const LINKS: [&str; 4] = ["adminurl", "representation", "printer-icons", "more-info"];

/// TXT keys whose values are paths on the device.
const PATHS: [&str; 4] = ["rp", "rs", "path", "rfo"];

/// Schemes of links that may stay.
const SCHEMES: [&str; 4] = ["http", "https", "ipp", "ipps"];

/// What damage to UTF-8 becomes.
const DAMAGED: char = '?';

/// A line for people.
pub fn text(given: &[u8]) -> Option<Text> {
    Text::new(&line(given, MAX_TEXT))
}

/// A name for people, of at most 63 bytes.
pub fn label(given: &[u8]) -> Option<Label> {
    Label::new(&line(given, MAX_LABEL)).ok()
}

/// A serial number.
pub fn serial(given: &[u8]) -> Option<Serial> {
    std::str::from_utf8(given).ok().and_then(Serial::new)
}

/// A host's name: one that is no address and not this machine's own. A final dot is taken off.
pub fn host(given: &str) -> Option<HostName> {
    let given = given.strip_suffix('.').unwrap_or(given);
    let host = HostName::new(given).ok()?;
    let last = host.labels().last()?;
    // `10.0.0.1` consists of labels too, and `0x7f.1` is an address to some (WHATWG URL, section 3.5).
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"));
    (!number && !last.eq_ignore_ascii_case("localhost")).then_some(host)
}

/// A host's name of multicast DNS: below `.local`.
pub fn local_host(given: &str) -> Option<HostName> {
    host(given).filter(HostName::is_local)
}

/// What a TXT record says of a device that has this name and these addresses. Of two values for a key the first counts, and what does not
/// fit any more is left out.
pub fn txt<'a>(
    entries: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    device: Option<&HostName>,
    addresses: &[IpAddr],
) -> Txt {
    let mut txt = Txt::default();
    for (key, value) in entries {
        let cleaned = match value {
            None => None,
            Some(value) => match self::value(key, value, device, addresses) {
                Some(cleaned) => Some(cleaned),
                None => continue,
            },
        };
        // Not a key, there already, or too much.
        let _ = txt.push(key, cleaned.as_deref());
    }
    txt
}

/// A link to the device, by its name; `None` for any other.
pub fn link(given: &str, device: Option<&HostName>, addresses: &[IpAddr]) -> Option<String> {
    let mut url = Url::parse(given).ok()?;
    if !SCHEMES.contains(&url.scheme()) || !url.username().is_empty() || url.password().is_some() {
        return None;
    }
    let device = device?;
    // Schemes that the URL standard does not know keep their host as it was written.
    let named = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let same_name = |name: &str| {
        let name = name.strip_suffix('.').unwrap_or(name);
        name.eq_ignore_ascii_case(device.as_str())
            || device.labels().next().is_some_and(|first| name.eq_ignore_ascii_case(first))
    };
    let its_address = || named.parse().is_ok_and(|address: IpAddr| addresses.contains(&address));
    if !same_name(&named) && !its_address() {
        return None;
    }
    url.set_host(Some(device.as_str())).ok()?;
    Some(url.into())
}

fn value(key: &str, given: &[u8], device: Option<&HostName>, addresses: &[IpAddr]) -> Option<String> {
    let is = |keys: &[&str]| keys.iter().any(|known| key.eq_ignore_ascii_case(known));
    if is(&FOR_PEOPLE) {
        return Some(line(given, 255_usize.saturating_sub(key.len() + 1)));
    }
    let given = std::str::from_utf8(given).ok().filter(|given| given.chars().all(is_clean))?;
    if given.is_empty() {
        return Some(String::new());
    }
    if is(&LINKS) || given.contains("://") {
        return link(given, device, addresses);
    }
    if is(&PATHS) {
        return is_path(given).then(|| given.to_owned());
    }
    if key.eq_ignore_ascii_case("uuid") {
        return super::text::Uuid::parse(given).map(|uuid| uuid.to_string());
    }
    Some(given.to_owned())
}

/// A path as of RFC 3986, section 3.3, that does not climb, and says nothing of a host.
fn is_path(given: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
    let climbs = |segment: &str| {
        let dots = segment.to_ascii_lowercase().replace("%2e", ".");
        dots == "." || dots == ".."
    };
    given.bytes().all(plain) && !given.starts_with("//") && !given.split('/').any(climbs)
}

/// One line of at most `limit` bytes: what is white or controls between words becomes one space, invisible characters vanish.
fn line(given: &[u8], limit: usize) -> String {
    let mut out = String::with_capacity(given.len().min(limit));
    let mut gap = false;
    let mut add = |c: char| {
        if c.is_whitespace() || c.is_control() {
            gap = true;
            return true;
        }
        if !is_clean(c) {
            return true;
        }
        let space = usize::from(gap && !out.is_empty());
        if out.len() + space + c.len_utf8() > limit {
            return false;
        }
        if space == 1 {
            out.push(' ');
        }
        gap = false;
        out.push(c);
        true
    };
    for chunk in given.utf8_chunks() {
        let damage = (!chunk.invalid().is_empty()).then_some(DAMAGED);
        if !chunk.valid().chars().chain(damage).all(&mut add) {
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests;
