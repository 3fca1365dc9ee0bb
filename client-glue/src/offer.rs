//! A share with what is known of it beyond a line that a user writes: whose it is, how it is advertised, where it is.

mod parse;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, UdpSocket},
};

use spice_proto::service_info::{HostName, Identity, ServiceInfo};

use crate::{
    resolve::Class,
    share::{Host, Share, ShareError},
};

/// Most addresses of one offer.
pub const MAX_ADDRESSES: usize = 16;

/// By what a device is known, and told from others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKey {
    /// By its host, as a user wrote it. The device's name decides its virtual address.
    Host(Host),
    /// By what makes it the same one wherever it goes. That decides its virtual address, where the server knows of
    /// identities.
    Identity(Identity),
}

/// Whether an offer may lead to the user's own machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It leads where the user wrote that it does: see [`Host`].
    Written,
    /// To other machines only. Neither loopback nor any address of this machine is dialled, however it is called.
    Elsewhere,
    /// To this machine, which the user asked for by name: loopback is allowed.
    ThisMachine,
}

/// What [`Handle::offer`](crate::Handle::offer) takes: a [`Share`], and what is known beyond it.
///
/// ```
/// use std::net::IpAddr;
/// use client_glue::{Offer, Share};
/// use client_glue::service_info::{Advert, HostName, Identity, Label, ServiceInfo, ServiceType, Txt};
///
/// // What discovery knows of a printer, in types that hold nothing but what they may.
/// let identity = Identity::new("uuid:4509a320-00a0-008f-00b6-002507510eca")?;
/// let mut txt = Txt::default();
/// txt.push("rp", Some("ipp/print"))?;
/// let advert = Advert {
///     kind: ServiceType::new("_ipp._tcp")?,
///     instance: Label::new("Office printer")?,
///     subtypes: vec![Label::new("_universal")?],
///     txt,
/// };
/// let info = ServiceInfo::new(Some(identity.clone()), Some(HostName::new("BRW1234.local")?), vec![advert])?;
/// let share: Share = "tcp://BRW1234.local:631?name=Office%20printer".parse()?;
/// let addresses: Vec<IpAddr> = vec!["192.168.1.40".parse()?];
/// let offer = Offer::device(share, identity, Some(info), addresses);
/// offer.check()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its name, host and port. The host is dialled where there are no `addresses`.
    pub share: Share,
    /// Whose it is. Offers of one device get one virtual address and differ by port.
    pub device: DeviceKey,
    /// What the guest is told of it, where the server can.
    pub info: Option<ServiceInfo>,
    /// Dialled as given, in this order, instead of resolving the share's host; at most [`MAX_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
    /// Whether that may be this machine.
    pub reach: Reach,
}

impl From<Share> for Offer {
    /// As a user wrote it. The guest is told the host's name, where it is one.
    fn from(share: Share) -> Offer {
        let device = DeviceKey::Host(share.host.clone());
        Offer { share, device, info: None, addresses: Vec::new(), reach: Reach::Written }
    }
}

impl Offer {
    /// A service of another machine, which is known by `identity`.
    pub fn device(
        share: Share,
        identity: Identity,
        info: Option<ServiceInfo>,
        addresses: Vec<IpAddr>,
    ) -> Offer {
        let device = DeviceKey::Identity(identity);
        Offer { share, device, info, addresses, reach: Reach::Elsewhere }
    }

    /// Checks what the types do not say. [`Handle::offer`](crate::Handle::offer) does so as well.
    ///
    /// # Errors
    /// What [`Share::check`] finds; [`ShareError::Addresses`]; [`ShareError::Identity`].
    pub fn check(&self) -> Result<(), ShareError> {
        self.share.check()?;
        check_addresses(self.reach, &self.addresses)?;
        check_info(&self.device, self.info.as_ref())
    }

    /// What the server is told of it.
    pub(crate) fn told(&self) -> Option<ServiceInfo> {
        match (&self.info, &self.device) {
            (Some(info), DeviceKey::Identity(identity)) if info.identity().is_none() => {
                let (host, adverts) = (info.host().cloned(), info.adverts().to_vec());
                // With the identity it may be too much; then that is what counts.
                let whole = ServiceInfo::new(Some(identity.clone()), host, adverts);
                whole.or_else(|_| ServiceInfo::new(Some(identity.clone()), None, Vec::new())).ok()
            }
            (Some(info), _) => Some(info.clone()),
            (None, DeviceKey::Identity(identity)) => {
                ServiceInfo::new(Some(identity.clone()), None, Vec::new()).ok()
            }
            (None, DeviceKey::Host(Host::Name(name))) if !self.share.host.is_localhost() => {
                ServiceInfo::new(None, HostName::new(name).ok(), Vec::new()).ok()
            }
            (None, DeviceKey::Host(Host::Name(_) | Host::Address(_))) => None,
        }
    }
}

/// What a device is known by for people.
impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceKey::Host(host) => write!(f, "{host}"),
            DeviceKey::Identity(identity) => f.write_str(identity.as_str()),
        }
    }
}

impl Reach {
    /// What keeps an address from being dialled for an offer of this reach.
    pub(crate) fn objection(self, address: IpAddr) -> Option<Class> {
        match (self, Class::of(address)) {
            (Reach::Elsewhere | Reach::ThisMachine | Reach::Written, Class::Unicast)
            | (Reach::ThisMachine, Class::Loopback) => None,
            (_, class) => Some(class),
        }
    }
}

pub(crate) fn check_addresses(reach: Reach, addresses: &[IpAddr]) -> Result<(), ShareError> {
    if addresses.len() > MAX_ADDRESSES {
        let problem = format!("there are {} of them, at most {MAX_ADDRESSES} are accepted", addresses.len());
        return Err(ShareError::Addresses { problem });
    }
    let distinct: BTreeSet<&IpAddr> = addresses.iter().collect();
    if distinct.len() != addresses.len() {
        return Err(ShareError::Addresses { problem: "one of them is there twice".to_owned() });
    }
    for address in addresses {
        if let Some(class) = reach.objection(*address) {
            let problem = format!("{address} is {class}, no other device's");
            return Err(ShareError::Addresses { problem });
        }
    }
    Ok(())
}

pub(crate) fn check_info(device: &DeviceKey, info: Option<&ServiceInfo>) -> Result<(), ShareError> {
    let Some(named) = info.and_then(ServiceInfo::identity) else { return Ok(()) };
    match device {
        DeviceKey::Identity(identity) if identity == named => Ok(()),
        DeviceKey::Identity(_) | DeviceKey::Host(_) => {
            Err(ShareError::Identity { device: device.clone(), named: named.as_str().to_owned() })
        }
    }
}

/// Whether this machine has `address`, on whatever interface: it can be bound to, then.
pub(crate) fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use spice_proto::service_info::{Advert, Label, ServiceType, Txt};

    use super::*;

    fn share(text: &str) -> Share {
        text.parse().unwrap()
    }

    fn identity(text: &str) -> Identity {
        Identity::new(text).unwrap()
    }

    #[test]
    fn a_plain_share_tells_its_host_s_name() {
        let host = |text: &str| {
            Offer::from(share(text)).told().and_then(|info| info.host().map(|host| host.as_str().to_owned()))
        };
        assert_eq!(host("tcp://nas.lan:445").as_deref(), Some("nas.lan"));
        assert_eq!(host("tcp://192.168.1.9:445"), None);
        assert_eq!(host("tcp://localhost:631"), None);
    }

    #[test]
    fn an_identity_is_told_whatever_else_is() {
        let known = identity("uuid:1");
        let bare = Offer::device(share("tcp://a.local:631"), known.clone(), None, vec![]);
        assert_eq!(bare.told().unwrap().identity(), Some(&known));

        let advert = Advert {
            kind: ServiceType::new("_ipp._tcp").unwrap(),
            instance: Label::new("A").unwrap(),
            subtypes: vec![],
            txt: Txt::default(),
        };
        let info = ServiceInfo::new(None, Some(HostName::new("a.local").unwrap()), vec![advert]).unwrap();
        let told = Offer { info: Some(info), ..bare }.told().unwrap();
        assert_eq!((told.identity(), told.adverts().len()), (Some(&known), 1));
        assert_eq!(told.host().unwrap().as_str(), "a.local");
    }

    #[test]
    fn what_an_offer_must_not_be_says_why() {
        let offer = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            Offer::device(share("tcp://a.local:631"), identity("uuid:1"), None, addresses)
        };
        for (addresses, expected) in [
            (&["192.168.1.1", "127.0.0.1"][..], "127.0.0.1 is a loopback address"),
            (&["fe80::1"], "fe80::1 is a link-local address"),
            (&["224.0.0.251"], "a multicast address"),
            (&["::ffff:127.0.0.1"], "in disguise"),
            (&["10.0.0.1", "10.0.0.1"], "twice"),
        ] {
            let error = offer(addresses).check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let here = Offer { reach: Reach::ThisMachine, ..offer(&["127.0.0.1", "::1"]) };
        here.check().unwrap();
        let many: Vec<String> = (0..17).map(|n| format!("10.0.0.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(offer(&many).check().unwrap_err().to_string().contains("at most 16"));

        let other = ServiceInfo::new(Some(identity("uuid:2")), None, vec![]).unwrap();
        let error = Offer { info: Some(other.clone()), ..offer(&[]) }.check().unwrap_err().to_string();
        assert_eq!(error, "what is said of a service of uuid:1 is said of uuid:2");
        let plain = Offer { info: Some(other), ..Offer::from(share("tcp://a:1")) };
        assert!(plain.check().is_err(), "a share that is known by its host has no identity");
    }

    #[test]
    fn own_addresses_are_known() {
        assert!(is_own([127, 0, 0, 1].into()));
        assert!(!is_own([192, 0, 2, 1].into()));
    }
}
