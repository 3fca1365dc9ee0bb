//! The domain of the virtual network.

use std::fmt;
use std::str::FromStr;

/// Longest domain, in octets: an instance of a subtype (63 + `._sub`, a type of 22, and their lengths) still fits a DNS name below it.
const MAX_DOMAIN: usize = 128;

/// Names that a unicast DNS server has no business with: RFC 6762, RFC 6761, RFC 7686, and the trees of addresses (RFC 1035, RFC 3596).
const SPECIAL: [&str; 6] = ["local", "localhost", "invalid", "onion", "in-addr.arpa", "ip6.arpa"];

/// The domain in which the virtual network's DNS server answers for what users share: `tunnel.internal`. Lower case, without a final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(String);

impl Domain {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Domain {
    /// `tunnel.internal`: ICANN has set `.internal` aside for private use, so it is nobody's on the internet and never will be.
    fn default() -> Domain {
        Domain("tunnel.internal".to_owned())
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Domain, DomainError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.len() > MAX_DOMAIN {
            return Err(DomainError::Long(name.len()));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !name.split('.').all(is_label) || name.parse::<std::net::Ipv4Addr>().is_ok() {
            return Err(DomainError::Form(text.to_owned()));
        }
        if is_special(&name) {
            return Err(DomainError::Special(name));
        }
        Ok(Domain(name))
    }
}

/// Whether `name` is `domain` or below it. Both without final dots, case does not matter.
pub(crate) fn is_under(name: &str, domain: &str) -> bool {
    let Some(start) = name.len().checked_sub(domain.len()) else { return false };
    name.get(start..).is_some_and(|end| end.eq_ignore_ascii_case(domain))
        && (start == 0 || name.as_bytes().get(start - 1) == Some(&b'.'))
}

/// Whether everybody takes `name`, or what it is under, for something else than a name of unicast DNS.
pub(crate) fn is_special(name: &str) -> bool {
    SPECIAL.iter().any(|special| is_under(name, special))
}

/// Whether hosts look for `name` by themselves, to be led by whoever has it: a proxy for all web traffic, a router. A device of the user's
/// side that calls itself so is not found by that name. (Windows' DNS servers have the same list.)
pub(crate) fn is_trap(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or_default();
    ["wpad", "isatap"].iter().any(|trap| first.eq_ignore_ascii_case(trap))
}

/// Why a text is not a domain for the virtual network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Not letters, digits and hyphens between dots.
    #[error("{0:?} is no domain: expected labels of letters, digits and hyphens, such as tunnel.internal")]
    Form(String),
    /// Names in it would not fit.
    #[error("a domain of {0} octets: expected at most {MAX_DOMAIN}")]
    Long(usize),
    /// It means something else to everybody.
    #[error("{0:?} has a meaning of its own: expected a private domain, such as tunnel.internal")]
    Special(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains() {
        for (text, name) in [
            ("tunnel.internal", "tunnel.internal"),
            ("Tunnel.Internal.", "tunnel.internal"),
            ("lan", "lan"),
            ("home.arpa", "home.arpa"),
            ("vm-7.example.org", "vm-7.example.org"),
            ("notlocal", "notlocal"),
        ] {
            assert_eq!(text.parse::<Domain>().map(|domain| domain.to_string()), Ok(name.to_owned()));
        }
        let long = vec!["abcdefghi"; 13].join(".");
        assert_eq!(long.parse::<Domain>(), Err(DomainError::Long(129)));
        for text in
            ["", ".", "a..b", "-a", "a-", "a b", "a_b", "ü.internal", "198.18.0.1", "a.b..", &"x".repeat(64)]
        {
            assert!(matches!(text.parse::<Domain>(), Err(DomainError::Form(_))), "{text}");
        }
        for text in ["local", "x.LOCAL", "localhost", "18.198.in-addr.arpa", "x.ip6.arpa", "onion", "invalid"]
        {
            assert!(matches!(text.parse::<Domain>(), Err(DomainError::Special(_))), "{text}");
        }
        assert_eq!(Domain::default().as_str().parse(), Ok(Domain::default()));
    }

    #[test]
    fn below() {
        assert!(is_under("nas.home.arpa", "home.arpa") && is_under("HOME.arpa", "home.ARPA"));
        assert!(!is_under("nashome.arpa", "home.arpa") && !is_under("arpa", "home.arpa"));
        assert!(!is_under("é.home.arpa", "xhome.arpa"));
    }
}
