//! Whole domains of the user's side.

use super::*;
use crate::names::dns::domains::{MAX_ASKED, MAX_DOMAINS, MAX_KEPT, MAX_WAITING, PATIENCE};

/// A tunnel is there whose client allows `home.arpa`.
fn allowed() -> World {
    let mut world = World::usual();
    world.dns.tunnel_came(world.now, GRACE);
    world.dns.add_domain("home.arpa").unwrap();
    world
}

const GRACE: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

impl World {
    fn asked(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.dns.poll_question()).map(|name| name.as_str().to_owned()).collect()
    }

    fn client_says(&mut self, name: &str, outcome: Outcome) {
        self.dns.answer(self.now, &self.zone, name, outcome, &mut self.counters);
    }

    /// Asks for a name that has to be asked of the client.
    fn waits(&mut self, name: &str, kind: RecordType) {
        assert_eq!(self.ask(name, kind), None, "{name}");
    }

    fn told(&mut self) -> Message {
        self.answer().expect("an answer").1
    }

    fn tunnel_goes(&mut self) {
        self.dns.tunnel_gone(self.now, HOUR, true, &self.zone, &mut self.counters);
    }
}

const FOUND: Outcome = Outcome::Address { address: IpAddr::V4(NAS), ttl: 300 };
const NONE: Outcome = Outcome::NoSuchName { ttl: 0 };

#[test]
fn a_name_is_asked_once_and_kept() {
    let mut world = allowed();
    world.waits("Nas.Home.ARPA.", RecordType::A);
    assert_eq!(world.asked(), ["nas.home.arpa"]);
    world.waits("nas.home.arpa.", RecordType::AAAA);
    assert_eq!(world.asked(), [""; 0], "it is asked already");
    world.client_says("nas.home.arpa", FOUND);
    let first = world.told();
    assert_eq!(first.queries[0].name().to_ascii(), "Nas.Home.ARPA.", "as it was asked");
    assert_eq!((texts(&first.answers), first.answers[0].ttl), (vec!["198.18.40.2".to_owned()], 300));
    assert_eq!(first.answers[0].name.to_ascii(), "Nas.Home.ARPA.");
    assert!(first.authoritative && first.recursion_available);
    let second = world.told();
    assert_eq!((second.response_code, second.answers.len()), (ResponseCode::NoError, 0), "no IPv6 yet");
    assert_eq!((&second.authorities[0].name, second.authorities[0].ttl), (&n("home.arpa."), 10));
    // Now it is known, for as long as the client said.
    world.advance(Duration::from_secs(100));
    let again = world.ask("nas.home.arpa.", RecordType::A).unwrap();
    assert_eq!(again.answers[0].ttl, 200);
    world.no_data("nas.home.arpa.", RecordType::MX);
    world.advance(Duration::from_secs(200));
    world.waits("nas.home.arpa.", RecordType::A);
    assert_eq!(world.asked(), ["nas.home.arpa"]);
}

#[test]
fn an_address_leads_back_to_the_name() {
    let mut world = allowed();
    world.waits("files.home.arpa.", RecordType::A);
    world.asked();
    world.client_says("files.home.arpa", FOUND);
    world.told();
    assert_eq!(
        world.get("2.40.18.198.in-addr.arpa.", RecordType::PTR),
        ["files.home.arpa.", "nas.lan.", "nas-lan.tunnel.internal."]
    );
}

#[test]
fn what_there_is_not_is_kept_for_ten_seconds_and_a_failure_not_at_all() {
    let mut world = allowed();
    world.waits("x.home.arpa.", RecordType::A);
    world.asked();
    world.client_says("x.home.arpa", NONE);
    let none = world.told();
    assert_eq!((none.response_code, none.authorities[0].ttl), (ResponseCode::NXDomain, 10));
    world.advance(Duration::from_secs(4));
    let none = world.ask("x.home.arpa.", RecordType::A).unwrap();
    assert_eq!((none.response_code, none.authorities[0].ttl), (ResponseCode::NXDomain, 6));
    world.advance(Duration::from_secs(6));
    for (outcome, code) in
        [(Outcome::Failed, ResponseCode::ServFail), (Outcome::Refused, ResponseCode::Refused)]
    {
        world.waits("x.home.arpa.", RecordType::A);
        assert_eq!(world.asked(), ["x.home.arpa"]);
        world.client_says("x.home.arpa", outcome);
        assert_eq!(world.told().response_code, code);
    }
}

#[test]
fn who_does_not_answer_in_time_has_failed_and_may_answer_later() {
    let mut world = allowed();
    world.waits("slow.home.arpa.", RecordType::A);
    world.asked();
    assert_eq!(world.dns.poll_timeout(), Some(world.now + PATIENCE));
    world.advance(PATIENCE - Duration::from_millis(1));
    assert_eq!(world.answer(), None);
    world.advance(Duration::from_millis(1));
    assert_eq!(world.told().response_code, ResponseCode::ServFail);
    assert_eq!(world.dns.poll_timeout(), None);
    // Who asks again waits for the same answer.
    world.waits("slow.home.arpa.", RecordType::A);
    assert_eq!(world.asked(), [""; 0]);
    world.client_says("slow.home.arpa", FOUND);
    assert_eq!(world.told().answers.len(), 1);
    // An answer that nobody waits for is good for the next.
    world.waits("late.home.arpa.", RecordType::A);
    world.asked();
    world.advance(PATIENCE);
    assert_eq!(world.told().response_code, ResponseCode::ServFail);
    world.client_says("late.home.arpa", FOUND);
    assert_eq!(world.answer(), None);
    assert_eq!(world.get("late.home.arpa.", RecordType::A), ["198.18.40.2"]);
}

#[test]
fn nothing_outside_the_domains_goes_to_the_client() {
    let mut world = allowed();
    for name in [
        "www.example.com.",
        "arpa.",
        "xhome.arpa.",
        "home.arpa.example.com.",
        "local.",
        "x.local.",
        "nas.home.",
    ] {
        world.refused(name, RecordType::A);
    }
    // Nor what is in one, but cannot be a host of it.
    for name in [
        "_ldap._tcp.home.arpa.",
        "b._dns-sd._udp.home.arpa.",
        "wpad.home.arpa.",
        "a b.home.arpa.",
        "a\\.b.home.arpa.",
        "*.home.arpa.",
    ] {
        let code = world.ask(name, RecordType::A).unwrap().response_code;
        assert!(matches!(code, ResponseCode::NXDomain | ResponseCode::Refused), "{name}: {code}");
        assert_eq!(world.asked(), [""; 0], "{name}");
    }
    // What is ours is answered by us, in whatever domain it is.
    world.dns.add_domain("tunnel.internal").unwrap();
    world.dns.add_domain("x.lan").unwrap();
    world.no_such_name("x.tunnel.internal.");
    world.zone.publish((PRINTER, 80).into(), "p", Some(&info(Some("web.home.arpa"), &[])));
    assert_eq!(world.get("nas.lan.", RecordType::A), ["198.18.40.2"]);
    assert_eq!(world.asked(), [""; 0]);
    let soa = world.get("home.arpa.", RecordType::SOA);
    assert!(soa[0].starts_with("gateway.tunnel.internal."));
}

/// DNS rebinding: whatever a client answers, and whatever is true of its network, the guest gets an address of the virtual network at which
/// something is published, or none.
#[test]
fn no_answer_leads_anywhere_but_to_what_is_published() {
    let mut world = allowed();
    let elsewhere = [
        "127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "198.18.0.1",
        "198.18.0.2",
        "198.18.77.7",
        "::1",
        "8.8.8.8",
    ];
    for (number, address) in elsewhere.iter().enumerate() {
        let name = format!("evil{number}.home.arpa");
        world.waits(&format!("{name}."), RecordType::A);
        world.asked();
        world.client_says(&name, Outcome::Address { address: address.parse().unwrap(), ttl: 3600 });
        let told = world.told();
        assert_eq!((told.response_code, told.answers.len()), (ResponseCode::ServFail, 0), "{address}");
        world.waits(&format!("{name}."), RecordType::A);
        assert_eq!(world.asked(), [name], "it is not kept either");
    }
}

#[test]
fn a_name_ends_with_what_it_leads_to() {
    let mut world = allowed();
    world.waits("nas.home.arpa.", RecordType::A);
    world.asked();
    world.client_says("nas.home.arpa", FOUND);
    world.told();
    world.zone.withdraw((NAS, 445).into());
    world.waits("nas.home.arpa.", RecordType::A);
    assert_eq!(world.asked(), ["nas.home.arpa"]);
}

#[test]
fn a_domain_takes_its_names_with_it() {
    let mut world = allowed();
    world.dns.add_domain("sub.home.arpa").unwrap();
    for name in ["kept.home.arpa", "a.sub.home.arpa"] {
        world.waits(&format!("{name}."), RecordType::A);
        world.client_says(name, FOUND);
        world.told();
    }
    world.waits("out.home.arpa.", RecordType::A);
    assert_eq!(world.asked().len(), 1);
    world.waits("queued.home.arpa.", RecordType::A);
    world.dns.remove_domain("HOME.arpa", &world.zone, &mut world.counters);
    assert_eq!(
        (world.told().response_code, world.told().response_code),
        (ResponseCode::Refused, ResponseCode::Refused)
    );
    world.refused("kept.home.arpa.", RecordType::A);
    assert_eq!(world.get("a.sub.home.arpa.", RecordType::A), ["198.18.40.2"]);
    // The answer that is still to come is known as one, and of no use.
    world.client_says("out.home.arpa", FOUND);
    assert_eq!(world.answer(), None);
    world.refused("out.home.arpa.", RecordType::A);
    world.dns.add_domain("home.arpa").unwrap();
    world.waits("out.home.arpa.", RecordType::A);
    assert_eq!(world.asked(), ["out.home.arpa"]);
}

#[test]
fn while_the_tunnel_is_away_what_was_true_stays_true() {
    let mut world = allowed();
    world.waits("nas.home.arpa.", RecordType::A);
    world.asked();
    world.client_says("nas.home.arpa", Outcome::Address { address: NAS.into(), ttl: 10 });
    world.told();
    world.waits("asked.home.arpa.", RecordType::A);
    world.asked();
    world.tunnel_goes();
    assert_eq!(world.told().response_code, ResponseCode::ServFail);
    // Long after its time, but each time for a short while.
    world.advance(Duration::from_secs(600));
    let stale = world.ask("nas.home.arpa.", RecordType::A).unwrap();
    assert_eq!((texts(&stale.answers), stale.answers[0].ttl), (vec!["198.18.40.2".to_owned()], 5));
    // Nobody can be asked, but it would be allowed.
    assert_eq!(world.dig("new.home.arpa.", RecordType::A).0, ResponseCode::ServFail);
    assert_eq!(world.asked(), [""; 0]);
    // It comes back, and is asked again.
    world.dns.tunnel_came(world.now, GRACE);
    world.waits("nas.home.arpa.", RecordType::A);
    world.dns.add_domain("home.arpa").unwrap();
    world.advance(HOUR);
    assert_eq!(world.asked().len(), 1);
    world.client_says("nas.home.arpa", FOUND);
    // What it does not allow again is over after the grace.
    world.tunnel_goes();
    world.dns.tunnel_came(world.now, GRACE);
    assert_eq!(world.dns.poll_timeout(), Some(world.now + GRACE));
    world.advance(GRACE);
    while world.answer().is_some() {}
    world.refused("nas.home.arpa.", RecordType::A);
}

#[test]
fn a_tunnel_that_does_not_come_back_is_forgotten_with_its_domains() {
    let mut world = allowed();
    world.tunnel_goes();
    assert_eq!(world.dns.poll_timeout(), Some(world.now + HOUR));
    world.advance(HOUR - Duration::from_secs(1));
    // One that leaves without a word was none.
    world.dns.tunnel_came(world.now, GRACE);
    world.dns.tunnel_gone(world.now, HOUR, false, &world.zone, &mut world.counters);
    assert_eq!(world.dns.poll_timeout(), Some(world.now + Duration::from_secs(1)));
    world.advance(Duration::from_secs(1));
    world.refused("nas.home.arpa.", RecordType::A);
    // Or at once, if it should.
    let mut world = allowed();
    world.tunnel_goes();
    world.dns.forget();
    world.refused("nas.home.arpa.", RecordType::A);
    let mut world = allowed();
    world.dns.tunnel_gone(world.now, Duration::ZERO, true, &world.zone, &mut world.counters);
    world.refused("nas.home.arpa.", RecordType::A);
}

#[test]
fn domains_have_to_be_the_user_s_and_are_few() {
    let mut world = World::usual();
    world.dns.tunnel_came(world.now, GRACE);
    for special in ["local", "printers.local", "com", "x.localhost", "18.198.in-addr.arpa", "a.onion"] {
        assert_eq!(world.dns.add_domain(special), Err(DomainFault::Special), "{special}");
    }
    for number in 0..MAX_DOMAINS {
        world.dns.add_domain(&format!("d{number}.example")).unwrap();
    }
    assert_eq!(world.dns.add_domain("one.more.example"), Err(DomainFault::Many));
    world.dns.add_domain("D0.example").unwrap();
    // Those of a tunnel that is gone make room.
    world.tunnel_goes();
    world.dns.tunnel_came(world.now, GRACE);
    world.dns.add_domain("one.more.example").unwrap();
    world.refused("x.d0.example.", RecordType::A);
}

#[test]
fn a_flood_of_names_is_bounded_everywhere() {
    let mut world = allowed();
    let mut failed = 0;
    for number in 0..200 {
        failed += usize::from(world.ask(&format!("n{number}.home.arpa."), RecordType::A).is_some());
    }
    assert_eq!((world.asked().len(), failed), (MAX_ASKED, 200 - MAX_ASKED));
    // Many who ask for one name; and one who asks the same many times.
    let dropped = world.counters.dns_dropped;
    for _ in 0..2 * MAX_WAITING {
        world.waits("n0.home.arpa.", RecordType::A);
    }
    assert_eq!(world.counters.dns_dropped - dropped, MAX_WAITING as u64 + 1);
    let same = world.query("n1.home.arpa.", RecordType::A).to_vec().unwrap();
    for _ in 0..10 {
        assert!(world.send(GUEST, &same).is_none());
    }
    world.client_says("n1.home.arpa", NONE);
    assert_eq!(std::iter::from_fn(|| world.answer()).count(), 2);
    // As fast as the client may answer, there is a limit to what it is asked in a second, and to what is kept.
    let mut asked = 0;
    for number in 0..5000 {
        world.advance(Duration::from_millis(1));
        while world.answer().is_some() {}
        world.ask(&format!("m{number}.home.arpa."), RecordType::A);
        for name in world.asked() {
            asked += 1;
            world.client_says(&name, FOUND);
        }
        while world.answer().is_some() {}
    }
    assert!(asked <= 200 + 5000 / 20, "{asked}");
    for number in 0..3 * MAX_KEPT {
        world.advance(Duration::from_millis(20));
        while world.answer().is_some() {}
        world.ask(&format!("k{number}.home.arpa."), RecordType::A);
        for name in world.asked() {
            world.client_says(&name, FOUND);
        }
        while world.answer().is_some() {}
    }
    assert!(world.dns.domains.kept() <= MAX_KEPT);
    assert!(world.get("2.40.18.198.in-addr.arpa.", RecordType::PTR).len() <= MAX_ALIASES + 2);
}
