use hickory_resolver::{Hosts, TokioResolver, config::ResolverConfig, net::runtime::TokioRuntimeProvider};
use spice_proto::tunnel::{NameAnswer, QueryId};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::handle::Command;

fn name(text: &str) -> HostName {
    HostName::new(text).unwrap()
}

fn domain(text: &str, ports: &[u16]) -> Domain {
    Domain { name: name(text), ports: ports.to_vec() }
}

struct Rig {
    desk: Desk,
    commands: UnboundedReceiver<Command>,
    now: Instant,
    asked: u32,
}

fn rig(domains: Vec<Domain>) -> Rig {
    let (handle, commands) = Handle::new(1000);
    let mut rig = Rig {
        desk: Desk::new(handle, domains, Some("home".into())).unwrap(),
        commands,
        now: Instant::now(),
        asked: 0,
    };
    rig.told();
    rig
}

impl Rig {
    fn ask(&mut self, text: &str) -> Option<HostName> {
        self.asked += 1;
        let query = NameQuery { tunnel: 0, query: QueryId(self.asked) };
        self.desk.handle_question(self.now, Question { query, name: name(text) })
    }

    /// Asks and has it looked up.
    fn find(&mut self, text: &str, addresses: &[&str], ttl: u64) -> Vec<String> {
        if let Some(name) = self.ask(text) {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let found = Found { addresses, ttl: Duration::from_secs(ttl) };
            self.desk.handle_found(self.now, &name, Ok(found));
        }
        self.told()
    }

    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(command) = self.commands.try_recv() {
            told.push(match command {
                Command::Add(entry) => {
                    let identity = entry.told.as_ref().and_then(ServiceInfo::identity).unwrap();
                    format!("add {} {} {}", entry.group.0, identity.as_str(), entry.offer.share.target())
                }
                Command::Withdraw(share) => format!("withdraw {}", share.0),
                Command::Answer(query, reply) => match reply {
                    NameAnswer::Found { group, ttl } => {
                        format!("{}: group {} for {ttl} s", query.query.0, group.0)
                    }
                    NameAnswer::NoSuchName | NameAnswer::Failed | NameAnswer::Refused => {
                        format!("{}: {reply:?}", query.query.0)
                    }
                },
                Command::AddDomain(domain) => format!("domain {}", domain.as_str()),
                Command::Update(_)
                | Command::Remove(_)
                | Command::RemoveDomain(_)
                | Command::Probe
                | Command::Shutdown => panic!("not expected"),
            });
        }
        told
    }
}

#[test]
fn a_name_is_offered_when_it_is_asked_for() {
    let mut rig = rig(vec![domain("home.arpa", &[445, 631])]);
    assert_eq!(
        rig.find("nas.home.arpa", &["192.168.1.9"], 60),
        [
            "add 0 dns:home/nas.home.arpa tcp://nas.home.arpa:445",
            "add 0 dns:home/nas.home.arpa tcp://nas.home.arpa:631",
            "1: group 0 for 60 s",
        ]
    );
    // Good for a while, without another lookup.
    rig.now += Duration::from_secs(20);
    assert_eq!(rig.ask("nas.home.arpa"), None);
    assert_eq!(rig.told(), ["2: group 0 for 40 s"]);
    // Then it is looked up again, and is the same device; the guest is told 5 s at least.
    rig.now += Duration::from_secs(50);
    assert_eq!(rig.find("nas.home.arpa", &["192.168.1.77"], 1), ["3: group 0 for 5 s"]);
    // It is gone.
    rig.now += Duration::from_secs(10);
    let looked_up = rig.ask("nas.home.arpa").unwrap();
    rig.desk.handle_found(rig.now, &looked_up, Err(NoAddress::NoSuchName));
    assert_eq!(rig.told(), ["withdraw 0", "withdraw 1", "4: NoSuchName"]);
}

#[test]
fn only_names_of_a_domain_and_of_the_nearest() {
    let mut rig = rig(vec![domain("home.arpa", &[80]), domain("lab.home.arpa", &[22])]);
    for other in ["nas.example.org", "evilhome.arpa", "arpa"] {
        assert_eq!(rig.ask(other), None);
    }
    assert_eq!(rig.told(), ["1: Refused", "2: Refused", "3: Refused"]);
    assert!(rig.find("a.lab.home.arpa", &["10.0.0.1"], 60)[0].ends_with("tcp://a.lab.home.arpa:22"));
    assert!(rig.find("home.arpa", &["10.0.0.2"], 60)[0].ends_with("tcp://home.arpa:80"));
}

#[test]
fn no_name_leads_to_this_machine_or_back_to_the_guest() {
    let mut rig = rig(vec![domain("home.arpa", &[80])]);
    // 127.0.0.1 never comes this far; it stands here for an address of ours.
    for address in ["127.0.0.1", "198.18.3.4"] {
        let told = rig.find("me.home.arpa", &["192.168.1.9", address], 60);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].ends_with("NoSuchName"));
    }
}

#[test]
fn who_asks_while_it_is_looked_up_is_answered_as_well() {
    let mut rig = rig(vec![domain("home.arpa", &[80])]);
    let looked_up = rig.ask("nas.home.arpa").unwrap();
    assert_eq!(rig.ask("nas.home.arpa"), None);
    let failed = crate::Refusal::Broken { problem: "no route".into() };
    rig.desk.handle_found(rig.now, &looked_up, Err(NoAddress::Failed(failed)));
    assert_eq!(rig.told(), ["1: Failed", "2: Failed"]);
    assert!(rig.desk.pending.is_empty());
}

#[test]
fn idle_names_go_and_used_ones_stay() {
    let mut rig = rig(vec![domain("home.arpa", &[80])]);
    rig.find("a.home.arpa", &["10.0.0.1"], 60);
    rig.find("b.home.arpa", &["10.0.0.2"], 60);
    let share = rig.desk.alive[&name("b.home.arpa")].shares[0];
    rig.desk.handle.usage().opened(share);
    assert_eq!(rig.desk.poll_timeout(), Some(rig.now + IDLE_AFTER));
    rig.now += IDLE_AFTER;
    rig.desk.handle_timeout(rig.now);
    assert_eq!(rig.told(), ["withdraw 0"]);
    rig.desk.handle.usage().closed(share);
    rig.now += IDLE_AFTER;
    rig.desk.handle_timeout(rig.now);
    assert_eq!(rig.told(), ["withdraw 1"]);
    assert_eq!(rig.desk.poll_timeout(), None);
}

#[test]
fn what_a_guest_can_make_us_hold_is_bounded() {
    let ports: Vec<u16> = (1..=4).collect();
    let mut rig = rig(vec![domain("home.arpa", &ports)]);
    let most = MAX_SERVICES / ports.len();
    for n in 0..most {
        rig.find(&format!("h{n}.home.arpa"), &["10.0.0.1"], 60);
        rig.now += Duration::from_secs(1);
    }
    let told = rig.find("more.home.arpa", &["10.0.0.1"], 60);
    assert!(told.len() == 1 && told[0].ends_with("Failed"), "{told:?}");
    // The oldest makes room once it is idle, and only that one.
    rig.now = rig.desk.poll_timeout().unwrap();
    let told = rig.find("more.home.arpa", &["10.0.0.1"], 60);
    assert_eq!(told.iter().filter(|told| told.starts_with("withdraw")).count(), ports.len(), "{told:?}");
    assert!(!rig.desk.alive.contains_key(&name("h0.home.arpa")));
    assert_eq!(rig.desk.services(), MAX_SERVICES);
}

#[tokio::test]
async fn names_are_looked_up_by_dns() {
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(&b"192.168.1.9 nas.home.arpa\n127.0.0.1 me.home.arpa\n"[..]).unwrap();
    let nowhere = ResolverConfig::from_parts(None, vec![], vec![]);
    let builder = TokioResolver::builder_with_config(nowhere, TokioRuntimeProvider::default());
    let mut resolver = builder.build().unwrap();
    resolver.set_hosts(Arc::new(hosts));
    let (handle, mut commands) = Handle::new(10);
    let questions = handle.questions().unwrap();
    let asker = handle.asker();
    let domains = vec![domain("home.arpa", &[445])];
    let resolver = Arc::new(Resolver::fixed(resolver));
    let serving = tokio::spawn(serve_by(resolver, handle, questions, domains, None));
    for (query, text) in [(1, "nas.home.arpa"), (2, "me.home.arpa"), (3, "nobody.home.arpa")] {
        let query = NameQuery { tunnel: 0, query: QueryId(query) };
        assert!(asker.ask(Question { query, name: name(text) }));
    }
    let mut answers = BTreeMap::new();
    while answers.len() < 3 {
        if let Some(Command::Answer(query, reply)) = commands.recv().await {
            answers.insert(query.query.0, reply);
        }
    }
    assert!(matches!(answers[&1], NameAnswer::Found { .. }), "{answers:?}");
    // It leads where no name may lead.
    assert_eq!(answers[&2], NameAnswer::NoSuchName);
    // There is no server to ask.
    assert!(matches!(answers[&3], NameAnswer::Failed | NameAnswer::NoSuchName));
    serving.abort();
}
