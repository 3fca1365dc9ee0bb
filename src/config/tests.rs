use client_glue::discover::policy::{Ground, Objection};

use super::*;

/// The whole of the documentation's example.
fn example() -> String {
    let start = HELP.find("  network").unwrap();
    let end = HELP.find("To find is not to share").unwrap();
    HELP[start..end].to_owned()
}

fn parse(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|Wrong { at, problem }| panic!("{at}: {problem}"))
}

fn error(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let error = Config::read(file.path()).expect_err(text).to_string();
    error.replace(&file.path().display().to_string(), "FILE")
}

#[test]
fn the_example_of_the_help_means_what_it_says() {
    let config = parse(&example());
    assert_eq!(config.network.unwrap().as_str(), "home");
    assert_eq!(config.shares[0].share.target(), "tcp://nas.lan:445");
    assert_eq!(config.shares[0].share.name, "NAS");
    let discover = config.discover.unwrap();
    assert_eq!(discover.interfaces.only, ["eth0"]);
    assert_eq!(discover.network.unwrap().as_str(), "home");
    assert!(discover.snmp.is_some() && discover.ssdp.is_some() && discover.ws_discovery.is_some());
    assert_eq!(discover.unicast_dns_sd.unwrap().domains[0].as_str(), "example.org");
    // What is allowed is looked for.
    assert!(discover.dns_sd.unwrap().types.iter().any(|kind| kind.as_str() == "_smb._tcp"));
    let Policy { classes, allow, deny, renames, domains } = config.policy;
    assert_eq!(classes, [ServiceClass::Printer].into());
    assert_eq!((allow.len(), deny.len(), renames.len()), (1, 1, 1));
    assert_eq!(allow[0].ports, [445..=445, 8000..=8100]);
    assert_eq!(domains[0].as_str(), "example.org");
    assert_eq!(config.domains[0].ports, [80, 443, 445, 631, 9100]);
}

#[test]
fn nothing_is_on_that_is_not_said() {
    let config = parse("");
    assert_eq!(config, Config::default());
    assert_eq!(parse("[discover]\nenabled = false\nshare-classes = ['printer']\n").discover, None);
    let config = parse("[discover]\n");
    assert_eq!(config.discover, Some(DiscoverConfig::default()));
    assert!(config.policy.classes.is_empty());
    let off = parse(
        "[discover]\ndns-sd = false\nsnmp = false\nssdp = false\nws-discovery = false\nlocal = false\n",
    );
    assert_eq!(crate::discover::sources(&off.discover.unwrap()), [] as [&str; 0]);
    let more = "[discover]\ndns-sd = { types = ['_http._tcp'] }\nsnmp = { communities = ['a', 'b'] }\n\
                local = { cups = '127.0.0.1:8631' }\nunicast-dns-sd = { search-domains = true }\n";
    let more = parse(more).discover.unwrap();
    assert_eq!(more.dns_sd.unwrap().types.len(), 1);
    assert_eq!(more.snmp.unwrap().communities, ["a", "b"]);
    assert_eq!(more.local.unwrap(), LocalConfig { cups: Some(([127, 0, 0, 1], 8631).into()), usb: true });
    assert!(more.unicast_dns_sd.unwrap().search_domains);
}

#[test]
fn a_share_is_as_on_the_command_line() {
    let config =
        parse("[[share]]\ntarget = 'ipp://printer.lan/ipp/print'\nname = 'Büro & Co'\ndescription = 'x'\n");
    let offer = &config.shares[0];
    assert_eq!((&*offer.share.name, &*offer.share.description), ("Büro & Co", "x"));
    assert_eq!(offer.info.as_ref().unwrap().adverts()[0].instance.as_str(), "Büro & Co");
}

#[test]
fn a_domain_has_its_usual_ports_and_is_written_alike() {
    let config = parse("[[domain]]\nname = 'Home.Arpa.'\n");
    assert_eq!(config.domains[0].name.as_str(), "home.arpa");
    assert_eq!(config.domains[0].ports, DEFAULT_PORTS);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (text, expected) in [
        ("network = 'a b'", "FILE:1: \"a b\" is no network's name: expected up to 32 letters"),
        ("\nnetwrk = 'x'", "FILE:2: unknown field `netwrk`, expected one of"),
        ("[discover]\nenabled = 1", "FILE:2: invalid type: integer `1`, expected a boolean"),
        (
            "[discover]\n\ndns-sd = 'yes'",
            "FILE:3: invalid type: string \"yes\", expected true, false or a table",
        ),
        (
            "[discover]\ndns-sd = { types = ['http'] }",
            "FILE:2: the service type is not of the form _name._tcp",
        ),
        ("[discover]\ndns-sd = { typs = [] }", "FILE:2: unknown field `typs`, expected `types`"),
        (
            "[discover]\nshare-classes = ['web']",
            "FILE:2: \"web\" cannot be shared as a class, only printer and scanner can",
        ),
        ("[discover]\nunicast-dns-sd = ['a..b']", "FILE:2: the host name is not of the form"),
        ("[discover]\nunicast-dns-sd = true", "expected a list of domains, or a table"),
        ("[discover]\nsnmp = { communities = [''] }", "is no community of SNMP"),
        ("[discover]\nlocal = { cups = 'localhost' }", "is no address with a port"),
        (
            "[[allow]]\nname = 'x'\n\n[[allow]]\ntype = '_smb._tcp'\n",
            "FILE:4: [[allow]] needs a name or an identity",
        ),
        ("[[allow]]\nname = '*'", "FILE:2: \"*\" names nobody"),
        ("[[allow]]\nname = 'x'\nport = 0", "FILE:3: 0 is no port: ports go from 1 to 65535"),
        ("[[allow]]\nname = 'x'\nport = ['90-80']", "FILE:3: \"90-80\" is no range of ports"),
        (
            "[[allow]]\nname = 'x'\nport = true",
            "FILE:3: invalid type: boolean `true`, expected a port, or \"FROM-TO\"",
        ),
        ("[[deny]]", "FILE:1: [[deny]] without a condition denies everything"),
        ("[[deny]]\naddress = '10.0.0.0/33'", "FILE:2: \"10.0.0.0/33\" is no address or range"),
        (
            "[[deny]]\naddress = 10",
            "FILE:2: expected an address or a range, as in \"192.168.1.0/24\", got 10",
        ),
        ("[[rename]]\nto = 'x'", "FILE:1: [[rename]] needs an identity or a name"),
        ("[[rename]]\nname = 'x'", "FILE:1: missing field `to`"),
        ("[[rename]]\nname = 'x'\nto = ''", "FILE:3: the label is empty"),
        ("[[share]]\nname = 'x'", "FILE:1: missing field `target`"),
        ("[[share]]\nname = 'x'\ntarget = 'nas:445'", "FILE:1: `nas:445?name=x` is not tcp://"),
        ("[[share]]\nname = 'x'\ntarget = 'tcp://a:1?name=y'", "FILE:1: name is given twice"),
        ("[[domain]]\nname = 'com'", "FILE:1: `com` cannot be a domain for the guest"),
        ("[[domain]]\nname = 'printer.local'", "cannot be a domain for the guest"),
        ("[[domain]]\nname = 'a.b'\nports = []", "FILE:1: the domain a.b has no ports"),
        ("[[domain]]\nname = 'a.b'\nports = [70000]", "FILE:3: 70000 is no port"),
        ("[[domain]]\nname = 'a.b'\n[[domain]]\nname = 'A.B'", "FILE:3: the domain a.b is there twice"),
        ("= 1", "FILE:1: "),
    ] {
        let error = error(text);
        assert!(error.contains(expected), "{text}\n  {error}");
        assert!(!error.contains('\n') && !error.ends_with('.'), "{error}");
    }
    let missing = Config::read(Path::new("/nonexistent.toml")).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read /nonexistent.toml");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"\xff").unwrap();
    assert!(Config::read(file.path()).unwrap_err().to_string().contains("not UTF-8"));
}

#[test]
fn rules_decide_as_they_are_written() {
    use client_glue::discover::{Device, Service, Standing};
    use client_glue::service_info::Label;
    let config = parse("[[deny]]\nport = 22\n[[allow]]\nname = 'NAS*'\n");
    let device = Device {
        identity: Identity::new("uuid:1").unwrap(),
        name: Label::new("NAS-1").unwrap(),
        host: None,
        addresses: vec![[192, 168, 1, 9].into()],
        make_and_model: None,
        location: None,
        sources: Default::default(),
        this_machine: false,
        standing: Standing::Plain,
        services: vec![],
    };
    let judge = |port| {
        config.policy.judge(&device, &Service::bare(port, ServiceClass::Files)).map(|(ground, _)| ground)
    };
    assert_eq!(judge(445), Ok(Ground::Name(1)));
    assert_eq!(judge(22), Err(Objection::Denied(1)));
}
