//! Where a device says that its description is. It may say so of itself only: a device that could name any host and have us
//! ask it would reach, through us, what is none of its business.

use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

/// Longest URL that is read, bytes.
const MAX_URL: usize = 1024;

/// Something at the device itself, over plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    url: Url,
    port: u16,
}

/// Why it is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LocationError {
    /// Too long, or no URL.
    #[error("the device's location is no URL")]
    Malformed,
    /// Not `http`, or with a user.
    #[error("the device's location is not of plain HTTP")]
    Scheme,
    /// Another host than the one that said it, or a name.
    #[error("the device's location is at another address than the device")]
    Elsewhere,
}

impl Location {
    /// What `device` said.
    pub(crate) fn parse(text: &str, device: IpAddr) -> Result<Location, LocationError> {
        if text.len() > MAX_URL {
            return Err(LocationError::Malformed);
        }
        Self::of(Url::parse(text).map_err(|_| LocationError::Malformed)?, device)
    }

    /// What the description there calls another place, perhaps without saying the host.
    pub(crate) fn join(&self, text: &str, device: IpAddr) -> Result<Location, LocationError> {
        if text.len() > MAX_URL {
            return Err(LocationError::Malformed);
        }
        Self::of(self.url.join(text).map_err(|_| LocationError::Malformed)?, device)
    }

    fn of(url: Url, device: IpAddr) -> Result<Location, LocationError> {
        if url.scheme() != "http" || !url.username().is_empty() || url.password().is_some() {
            return Err(LocationError::Scheme);
        }
        let its_own = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address) == device,
            Some(Host::Ipv6(address)) => IpAddr::V6(address) == device,
            Some(Host::Domain(_)) | None => false,
        };
        let port = url.port_or_known_default().filter(|port| *port != 0);
        match port {
            Some(port) if its_own => Ok(Location { url, port }),
            Some(_) | None => Err(LocationError::Elsewhere),
        }
    }

    /// Whom to connect to. `device` brings its IPv6 zone with it.
    pub(crate) fn address(&self, device: SocketAddr) -> SocketAddr {
        let mut address = device;
        address.set_port(self.port);
        address
    }

    /// The port there.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What stands in `Host`.
    pub(crate) fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        if self.port == 80 { host.to_owned() } else { format!("{host}:{}", self.port) }
    }

    /// What is asked for there, with its query.
    pub(crate) fn path(&self) -> String {
        match self.url.query() {
            Some(query) => format!("{}?{query}", self.url.path()),
            None => self.url.path().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_device_itself_is_asked() {
        let device: IpAddr = [192, 168, 1, 7].into();
        let good = Location::parse("http://192.168.1.7:5000/desc.xml?x=1#y", device).unwrap();
        assert_eq!(good.address(([192, 168, 1, 7], 1900).into()), ([192, 168, 1, 7], 5000).into());
        assert_eq!((good.host().as_str(), good.path().as_str()), ("192.168.1.7:5000", "/desc.xml?x=1"));
        assert_eq!(Location::parse("HTTP://192.168.1.7", device).unwrap().host(), "192.168.1.7");
        // The standard's other ways to write the same address.
        assert!(Location::parse("http://0xc0a80107/", device).is_ok());
        for text in [
            "http://192.168.1.8/",
            "http://127.0.0.1/",
            "http://localhost/",
            "http://2130706433/",
            "http://[::1]/",
            "http://[::ffff:192.168.1.7]/",
            "http://192.168.1.7.evil.example/",
            "http://192.168.1.7:0/",
        ] {
            assert_eq!(Location::parse(text, device), Err(LocationError::Elsewhere), "{text}");
        }
        for text in
            ["https://192.168.1.7/", "file:///etc/passwd", "gopher://192.168.1.7/", "http://u:p@192.168.1.7/"]
        {
            assert_eq!(Location::parse(text, device), Err(LocationError::Scheme), "{text}");
        }
        for text in ["", "/desc.xml", "http://", "192.168.1.7:80", "http://192.168.1.7:99999/"] {
            assert!(Location::parse(text, device).is_err(), "{text}");
        }
        let long = format!("http://192.168.1.7/{}", "x".repeat(MAX_URL));
        assert_eq!(Location::parse(&long, device), Err(LocationError::Malformed));
    }

    #[test]
    fn zones_stay_with_the_device() {
        let address = "fe80::1".parse().unwrap();
        let location = Location::parse("http://[fe80::1]:80/x", address).unwrap();
        let from: SocketAddr = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 3702, 0, 7).into();
        let to = location.address(from);
        assert_eq!((to.port(), matches!(to, SocketAddr::V6(to) if to.scope_id() == 7)), (80, true));
        assert_eq!(location.host(), "[fe80::1]");
    }

    #[test]
    fn relative_places_are_the_devices_and_lines_cannot_be_slipped_in() {
        let device: IpAddr = [192, 168, 1, 7].into();
        let base = Location::parse("http://192.168.1.7:5000/a/desc.xml", device).unwrap();
        assert_eq!(base.join("/", device).unwrap().path(), "/");
        assert_eq!(base.join("ui", device).unwrap().path(), "/a/ui");
        assert_eq!(base.join("http://192.168.1.7/x", device).unwrap().port(), 80);
        assert!(base.join("//evil.example/", device).is_err());
        let odd = base.join("/a b\r\nX: y\u{7f}é", device).unwrap().path();
        assert!(odd.bytes().all(|byte| byte.is_ascii_graphic()), "{odd}");
    }
}
