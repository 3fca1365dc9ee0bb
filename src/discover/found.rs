//! A device that was found, as it is shown: as JSON and as lines of a table.

use client_glue::discover::{Device, Notice, Service, Standing, Verdict};
use client_glue::service_info::{Advert, Label, is_clean};
use serde::Serialize;
use serde_json::{Map, Value};

/// A device, as `--json` has it.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    name: String,
    /// What it calls itself.
    own_name: String,
    identity: String,
    host: Option<String>,
    addresses: Vec<String>,
    make_and_model: Option<String>,
    location: Option<String>,
    found_by: Vec<&'static str>,
    this_machine: bool,
    /// Whether it is who it says it is: `plain`, `moved` or `impostor`.
    standing: &'static str,
    /// Whom an impostor claims to be.
    claims: Option<String>,
    services: Vec<ServiceLine>,
}

#[derive(Debug, Serialize)]
struct ServiceLine {
    port: u16,
    class: &'static str,
    shared: bool,
    why: String,
    adverts: Vec<AdvertLine>,
}

#[derive(Debug, Serialize)]
struct AdvertLine {
    r#type: String,
    instance: String,
    subtypes: Vec<String>,
    /// A key without a value is null.
    txt: Map<String, Value>,
}

impl Line {
    pub(crate) fn new(notice: &Notice) -> Line {
        let Notice { device, name, verdicts, .. } = notice;
        let (standing, claims) = match &device.standing {
            Standing::Plain => ("plain", None),
            Standing::Moved => ("moved", None),
            Standing::Impostor { claims } => ("impostor", Some(claims.as_str().to_owned())),
        };
        let service = |service: &Service| ServiceLine {
            port: service.port,
            class: service.class.as_str(),
            shared: verdicts.get(&service.port).is_some_and(Verdict::is_ok),
            why: why(verdicts.get(&service.port)),
            adverts: service.adverts.iter().map(advert).collect(),
        };
        Line {
            name: name.clone(),
            own_name: device.name.as_str().to_owned(),
            identity: device.identity.as_str().to_owned(),
            host: device.host.as_ref().map(|host| host.as_str().to_owned()),
            addresses: device.addresses.iter().map(ToString::to_string).collect(),
            make_and_model: device.make_and_model.as_ref().map(|text| text.as_str().to_owned()),
            location: device.location.as_ref().map(|text| text.as_str().to_owned()),
            found_by: found_by(device),
            this_machine: device.this_machine,
            standing,
            claims,
            services: device.services.iter().map(service).collect(),
        }
    }
}

fn advert(advert: &Advert) -> AdvertLine {
    let entry = |(key, value): (&str, Option<&str>)| (key.to_owned(), value.map_or(Value::Null, Value::from));
    AdvertLine {
        r#type: advert.kind.as_str().to_owned(),
        instance: advert.instance.as_str().to_owned(),
        subtypes: advert.subtypes.iter().map(Label::as_str).map(str::to_owned).collect(),
        txt: advert.txt.entries().map(entry).collect(),
    }
}

fn found_by(device: &Device) -> Vec<&'static str> {
    device.sources.iter().map(|source| source.as_str()).collect()
}

fn why(verdict: Option<&Verdict>) -> String {
    match verdict {
        Some(Ok(ground)) => ground.to_string(),
        Some(Err(objection)) => objection.to_string(),
        None => String::new(),
    }
}

/// The columns of [`rows`].
pub(super) const COLUMNS: [&str; 6] = ["NAME", "KIND", "WHERE", "FOUND BY", "IDENTITY", "SHARED"];

/// A device as rows of a table, one for each service; what stands in the row above is not said again.
pub(super) fn rows(notice: &Notice) -> Vec<[String; 6]> {
    let Notice { device, name, verdicts, .. } = notice;
    let place = match (&device.host, device.addresses.first()) {
        (Some(host), Some(address)) => format!("{} ({address})", host.as_str()),
        (Some(host), None) => host.as_str().to_owned(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "nowhere".to_owned(),
    };
    let whole = match &device.make_and_model {
        Some(model) if !name.contains(model.as_str()) => format!("{name} [{}]", model.as_str()),
        Some(_) | None => name.clone(),
    };
    let mut rows: Vec<[String; 6]> = Vec::new();
    for service in &device.services {
        let verdict = verdicts.get(&service.port);
        let shared = match verdict {
            Some(Ok(_)) => format!("yes: {}", why(verdict)),
            Some(Err(_)) | None => format!("no: {}", why(verdict)),
        };
        let place = format!("{place} port {}", service.port);
        let (name, by, identity) = if rows.is_empty() {
            (whole.clone(), found_by(device).join(", "), device.identity.as_str().to_owned())
        } else {
            Default::default()
        };
        rows.push([name, service.class.to_string(), place, by, identity, shared]);
    }
    if rows.is_empty() {
        let by = found_by(device).join(", ");
        let identity = device.identity.as_str().to_owned();
        let nothing = "no: it says of no service".to_owned();
        rows.push([whole, String::new(), place, by, identity, nothing]);
    }
    rows.into_iter().map(|row| row.map(|text| escape(&text))).collect()
}

/// For a terminal: whatever is no ordinary character is shown by its number. What comes here is clean already; a terminal does not
/// depend on it.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_clean(c) { out.push(c) } else { out.extend(c.escape_unicode()) }
    }
    out
}
