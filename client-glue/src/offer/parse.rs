//! Offers as a user writes them: a share, and how it is advertised.

use std::str::FromStr;

use spice_proto::service_info::{Advert, HostName, InfoError, Label, ServiceInfo, ServiceType, Txt};
use url::Url;

use super::Offer;
use crate::share::{Host, Share, ShareError};

/// IPP's port, of both kinds (RFC 8010, RFC 7472).
const IPP: u16 = 631;

impl FromStr for Offer {
    type Err = ShareError;

    /// Parses what [`Share`] parses, and two forms that the guest is told more of:
    ///
    /// * `ipp://HOST/ipp/print?name=NAME`, or `ipps:`, with `:PORT` where it is not 631: a printer. The guest finds it as one that
    ///   advertises itself. `txt=KEY=VALUE` adds to what is told of it.
    /// * `tcp://HOST:PORT?name=NAME&type=_http._tcp`: advertised as that type, by the share's name, with `txt=KEY=VALUE` and
    ///   `subtype=_NAME` as often as wanted. Several types are several adverts; entries count for the type before them.
    fn from_str(given: &str) -> Result<Offer, ShareError> {
        let wrong =
            |problem: &str| ShareError::Syntax { given: given.to_owned(), problem: problem.to_owned() };
        let url = Url::parse(given).map_err(|error| wrong(&error.to_string()))?;
        let mut wanted = Wanted::default();
        let share_url = match url.scheme() {
            scheme @ ("ipp" | "ipps") => {
                let path = url.path().trim_start_matches('/');
                let rp = if path.is_empty() { "ipp/print" } else { path };
                wanted.begin(if scheme == "ipp" { "_ipp._tcp" } else { "_ipps._tcp" })?;
                for (key, value) in [("txtvers", "1"), ("qtotal", "1"), ("rp", rp)] {
                    wanted.txt(key, Some(value))?;
                }
                wanted.subtype("_print")?;
                let host = url.host_str().filter(|host| !host.is_empty());
                let host = host.ok_or_else(|| wrong("the host is missing"))?;
                if url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
                    return Err(wrong(
                        "nothing but ?name=, &description= and &txt= belongs beside host, port and path",
                    ));
                }
                let port = url.port().unwrap_or(IPP);
                format!("tcp://{host}:{port}")
            }
            // What is wrong with it otherwise is found below.
            _ => {
                let mut bare = url.clone();
                bare.set_query(None);
                bare.to_string()
            }
        };
        let mut share_url = Url::parse(&share_url).map_err(|error| wrong(&error.to_string()))?;
        let mut of_share = Vec::new();
        for (key, value) in url.query_pairs() {
            match &*key {
                "type" => wanted.begin(&value)?,
                "subtype" => wanted.subtype(&value)?,
                "txt" => match value.split_once('=') {
                    Some((key, value)) => wanted.txt(key, Some(value))?,
                    None => wanted.txt(&value, None)?,
                },
                _ => of_share.push((key, value)),
            }
        }
        if !of_share.is_empty() {
            share_url.query_pairs_mut().extend_pairs(of_share);
        }
        let share: Share = share_url.as_str().parse()?;
        let info = wanted.info(&share)?;
        Ok(Offer { info, ..Offer::from(share) })
    }
}

/// The adverts that were asked for.
#[derive(Default)]
struct Wanted {
    types: Vec<(ServiceType, Vec<Label>, Txt)>,
}

impl Wanted {
    fn begin(&mut self, kind: &str) -> Result<(), ShareError> {
        self.types.push((ServiceType::new(kind).map_err(advert)?, Vec::new(), Txt::default()));
        Ok(())
    }

    fn last(&mut self) -> Result<&mut (ServiceType, Vec<Label>, Txt), ShareError> {
        let problem = "txt= and subtype= belong behind a type=".to_owned();
        self.types.last_mut().ok_or(ShareError::Advert { problem })
    }

    fn subtype(&mut self, name: &str) -> Result<(), ShareError> {
        let subtype = Label::new(name).map_err(advert)?;
        self.last()?.1.push(subtype);
        Ok(())
    }

    /// What the user says goes before what is there.
    fn txt(&mut self, key: &str, value: Option<&str>) -> Result<(), ShareError> {
        let txt = &mut self.last()?.2;
        let mut others = Txt::default();
        for (known, value) in txt.entries().filter(|(known, _)| !known.eq_ignore_ascii_case(key)) {
            others.push(known, value).map_err(advert)?;
        }
        others.push(key, value).map_err(advert)?;
        *txt = others;
        Ok(())
    }

    fn info(self, share: &Share) -> Result<Option<ServiceInfo>, ShareError> {
        if self.types.is_empty() {
            return Ok(None);
        }
        let instance = Label::new(&share.name).map_err(advert)?;
        let host = match &share.host {
            Host::Name(name) if !share.host.is_localhost() => HostName::new(name).ok(),
            Host::Name(_) | Host::Address(_) => None,
        };
        let adverts = self.types.into_iter().map(|(kind, subtypes, txt)| Advert {
            kind,
            instance: instance.clone(),
            subtypes,
            txt,
        });
        ServiceInfo::new(None, host, adverts.collect()).map(Some).map_err(advert)
    }
}

fn advert(error: InfoError) -> ShareError {
    ShareError::Advert { problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Offer, String> {
        text.parse().map_err(|error: ShareError| error.to_string())
    }

    fn adverts(text: &str) -> Vec<String> {
        let offer = parse(text).unwrap();
        let adverts = offer.info.iter().flat_map(|info| info.adverts().to_vec());
        let shown = adverts.map(|advert| {
            let entry = |(key, value): (&str, Option<&str>)| match value {
                Some(value) => format!("{key}={value}"),
                None => key.to_owned(),
            };
            let txt: Vec<String> = advert.txt.entries().map(entry).collect();
            let subtypes: Vec<&str> = advert.subtypes.iter().map(Label::as_str).collect();
            let (kind, instance) = (advert.kind.as_str(), advert.instance.as_str());
            format!("{instance} {kind} [{}] {}", subtypes.join(" "), txt.join(" "))
        });
        shown.collect()
    }

    #[test]
    fn a_plain_share_is_one() {
        let offer = parse("tcp://nas.lan:445?name=NAS&description=films").unwrap();
        assert_eq!(
            offer,
            Offer::from("tcp://nas.lan:445?name=NAS&description=films".parse::<Share>().unwrap())
        );
    }

    #[test]
    fn a_printer_is_advertised() {
        let offer = parse("ipp://printer.lan/ipp/print?name=Office%20laser").unwrap();
        assert_eq!(offer.share.target(), "tcp://printer.lan:631");
        assert_eq!(offer.told().unwrap().host().unwrap().as_str(), "printer.lan");
        assert_eq!(
            adverts("ipp://printer.lan/ipp/print?name=Office%20laser&txt=Color=T&txt=rp=other"),
            ["Office laser _ipp._tcp [_print] txtvers=1 qtotal=1 Color=T rp=other"]
        );
        assert_eq!(
            adverts("ipps://192.168.1.40:8631"),
            ["192.168.1.40 _ipps._tcp [_print] txtvers=1 qtotal=1 rp=ipp/print"]
        );
    }

    #[test]
    fn any_type_can_be_said() {
        assert_eq!(
            adverts(
                "tcp://h:80?type=_http._tcp&txt=path=/x&name=Page&type=_ipp._tcp&subtype=_universal&txt=air"
            ),
            ["Page _http._tcp [] path=/x", "Page _ipp._tcp [_universal] air"]
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = format!("tcp://h:1?type=_http._tcp&name={}", "n".repeat(64));
        for (text, expected) in [
            ("tcp://h:1?txt=a=b", "behind a type="),
            ("tcp://h:1?type=http", "not of the form _name._tcp"),
            ("tcp://h:1?type=_x._udp", "not of the form _name._tcp"),
            ("tcp://h:1?type=_x._tcp&txt==b", "not of the form key=value"),
            (long.as_str(), "has length 64"),
            ("ipp:///ipp/print", "missing"),
            ("ipp://u@h/ipp/print", "nothing but"),
            ("ipp://h/ipp/print?nmae=x", "unknown key `nmae`"),
            ("lpd://h/queue", "only tcp"),
            ("h", "not tcp://"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
