//! A printer that a user shares by hand is asked what it is, so that it is advertised like one that says so itself.

use std::net::SocketAddr;
use std::time::Duration;

use spice_proto::service_info::{Advert, ServiceInfo, Txt};
use tracing::debug;

use super::printing;
use crate::{Handle, Offer, ShareId, resolve::Resolver};

/// Between two attempts: at first, and at most.
const WAITS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Completes what is told of `offer`, which is shared as `share`, by what the printer says: what it prints, its colours, its UUID.
/// What the user wrote goes before that. Goes on asking until the printer answers; returns at once where there is nothing to ask.
///
/// Cancel safe: dropped, it asks no more.
pub async fn complete(handle: Handle, share: ShareId, offer: Offer) {
    let resolver = Resolver::default();
    let mut wait = WAITS.0;
    while let Some((advert, path)) = printer(&offer) {
        let port = offer.share.port;
        let addresses = resolver.resolve(&offer.share.host, port).await.unwrap_or_default();
        for address in addresses {
            let said = printing::advert_at(SocketAddr::new(address, port), &path, &advert.instance).await;
            if let Some(info) = said.and_then(|said| with(&offer, &said)) {
                if let Err(error) = handle.update_offer(share, Some(info), offer.addresses.clone()) {
                    debug!(%error, "what a printer says of itself is not told");
                }
                return;
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WAITS.1);
    }
}

/// The advert of a printer with IPP in clear, and the path to it.
fn printer(offer: &Offer) -> Option<(&Advert, String)> {
    let adverts = offer.info.as_ref()?.adverts();
    let advert = adverts.iter().find(|advert| advert.kind.as_str() == "_ipp._tcp")?;
    let path = advert.txt.get("rp").flatten()?;
    Some((advert, format!("/{path}")))
}

/// What is told of the offer, with what the printer said added. `None`: it does not fit.
fn with(offer: &Offer, said: &Advert) -> Option<ServiceInfo> {
    let info = offer.info.as_ref()?;
    let mut adverts = info.adverts().to_vec();
    let own = adverts.iter_mut().find(|advert| advert.kind == said.kind)?;
    let mut txt = Txt::default();
    let more = said.txt.entries().filter(|(key, _)| own.txt.get(key).is_none());
    for (key, value) in own.txt.entries().chain(more) {
        // What does not fit any more is left out.
        if txt.push(key, value).is_err() {
            debug!(key, "too much is said of a printer");
        }
    }
    for subtype in &said.subtypes {
        if !own.subtypes.contains(subtype) {
            own.subtypes.push(subtype.clone());
        }
    }
    own.txt = txt;
    ServiceInfo::new(info.identity().cloned(), info.host().cloned(), adverts).ok()
}

#[cfg(test)]
mod tests {
    use spice_proto::service_info::{Label, ServiceType};

    use super::*;

    #[test]
    fn what_the_user_wrote_goes_before_what_the_printer_says() {
        let offer: Offer = "ipp://printer.lan/ipp/print?name=Laser&txt=Color=F".parse().unwrap();
        let (advert, path) = printer(&offer).unwrap();
        assert_eq!((path.as_str(), advert.instance.as_str()), ("/ipp/print", "Laser"));
        let mut txt = Txt::default();
        for (key, value) in [("rp", "other"), ("Color", "T"), ("pdl", "application/pdf"), ("UUID", "1")] {
            txt.push(key, Some(value)).unwrap();
        }
        let said = Advert {
            kind: ServiceType::new("_ipp._tcp").unwrap(),
            instance: Label::new("Laser").unwrap(),
            subtypes: vec![Label::new("_print").unwrap(), Label::new("_universal").unwrap()],
            txt,
        };
        let info = with(&offer, &said).unwrap();
        let advert = &info.adverts()[0];
        let txt: Vec<(&str, Option<&str>)> = advert.txt.entries().collect();
        let expected = [
            ("txtvers", Some("1")),
            ("qtotal", Some("1")),
            ("rp", Some("ipp/print")),
            ("Color", Some("F")),
            ("pdl", Some("application/pdf")),
            ("UUID", Some("1")),
        ];
        assert_eq!(txt, expected);
        assert_eq!(advert.subtypes.len(), 2);
        assert_eq!(info.host().unwrap().as_str(), "printer.lan");
    }

    #[test]
    fn what_is_no_printer_in_clear_is_not_asked() {
        for text in ["tcp://a:631", "ipps://a/ipp/print", "tcp://a:80?type=_http._tcp"] {
            assert!(printer(&text.parse().unwrap()).is_none(), "{text}");
        }
    }
}
