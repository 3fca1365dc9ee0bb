//! An HTTP proxy as `proxy=` in `.vv` files and `--proxy` name it.

use client_glue::server::HttpProxy;
use thiserror::Error;
use url::Url;

/// Why a proxy cannot be used. What was given is not shown: a password may be in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProxyUriError {
    /// Another kind of proxy.
    #[error("{0} proxies cannot be used; expected an HTTP proxy that takes CONNECT: http://HOST:PORT")]
    Kind(String),
    /// Not an address.
    #[error("expected a proxy as http://[USER:PASSWORD@]HOST:PORT: {0}")]
    Syntax(&'static str),
}

/// spice-gtk's, when the address says none.
const DEFAULT_PORT: u16 = 3128;

/// Reads `http://[USER:PASSWORD@]HOST[:PORT]`; the scheme may be missing, as viewers have it.
///
/// # Errors
/// [`ProxyUriError`]
pub fn parse(given: &str) -> Result<HttpProxy, ProxyUriError> {
    let (scheme, rest) = given.split_once("://").unwrap_or(("http", given));
    match scheme.to_ascii_lowercase().as_str() {
        "http" => {}
        other if other.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '+') => {
            return Err(ProxyUriError::Kind(other.to_owned()));
        }
        _ => return Err(ProxyUriError::Syntax("it does not begin with http://")),
    }
    // With a scheme that has no port of its own, so that 80 is seen where it is written.
    let url = Url::parse(&format!("proxy://{rest}"))
        .map_err(|_| ProxyUriError::Syntax("this is not an address with a host"))?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(ProxyUriError::Syntax("nothing may follow the port"));
    }
    let host =
        url.host_str().filter(|host| !host.is_empty()).ok_or(ProxyUriError::Syntax("the host is missing"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.contains('%') {
        return Err(ProxyUriError::Syntax("the host has characters in it that no host's name has"));
    }
    let port = match url.port() {
        Some(0) => return Err(ProxyUriError::Syntax("port 0 is no port")),
        Some(port) => port,
        None => DEFAULT_PORT,
    };
    let decoded = |text: &str| {
        let bytes = percent(text).ok_or(ProxyUriError::Syntax("a percent sign stands alone"))?;
        let text = String::from_utf8(bytes).map_err(|_| ProxyUriError::Syntax("the user is not UTF-8"))?;
        if text.contains(char::is_control) {
            return Err(ProxyUriError::Syntax("the user or the password has control characters in it"));
        }
        Ok(text)
    };
    let user = match (url.username(), url.password()) {
        ("", None) => None,
        (user, password) => Some((decoded(user)?, decoded(password.unwrap_or_default())?)),
    };
    if user.as_ref().is_some_and(|(name, _)| name.contains(':')) {
        return Err(ProxyUriError::Syntax("a user's name has no colon in it"));
    }
    Ok(HttpProxy { host: host.to_owned(), port, user })
}

fn percent(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_proxies_are_read() {
        for (given, host, port, user) in [
            ("http://proxy.lan:8080", "proxy.lan", 8080, None),
            ("http://proxy.lan:80/", "proxy.lan", 80, None),
            ("proxy.lan:3128", "proxy.lan", 3128, None),
            ("http://proxy.lan", "proxy.lan", 3128, None),
            ("http://[2001:db8::1]:3128", "2001:db8::1", 3128, None),
            ("http://u:p%40ss@proxy.lan:3128", "proxy.lan", 3128, Some(("u", "p@ss"))),
            ("HTTP://u@proxy.lan:3128", "proxy.lan", 3128, Some(("u", ""))),
        ] {
            let proxy = parse(given).unwrap_or_else(|error| panic!("{given}: {error}"));
            let user = user.map(|(user, password)| (user.to_owned(), password.to_owned()));
            assert_eq!((proxy.host.as_str(), proxy.port, proxy.user), (host, port, user), "{given}");
        }
    }

    #[test]
    fn others_are_refused() {
        for (given, expected) in [
            ("https://hunter2@proxy.lan:3128", "https proxies"),
            ("socks5://hunter2@proxy.lan:1080", "socks5 proxies"),
            ("http://", "host"),
            ("http://proxy.lan:99999", "address"),
            ("http://proxy.lan:0", "port 0"),
            ("http://proxy.lan:1/hunter2", "nothing may follow"),
            ("http://hunter2%0a:x@proxy.lan:1", "control"),
            ("http://a%3ab:hunter2@proxy.lan:1", "colon"),
            ("http://a b:1", "address"),
            ("http://a%20b:1", "characters"),
            ("", "host"),
        ] {
            let error = parse(given).expect_err(given).to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{given}: {error}");
        }
    }
}
