use super::super::{
    Standing,
    policy::{
        Pattern, Rename, RenameOf, Rule,
        tests::{device, service},
    },
};
use super::*;

struct Rig {
    sharer: Sharer,
    commands: UnboundedReceiver<Command>,
}

fn rig(policy: Policy) -> Rig {
    let (handle, commands) = Handle::new(1000);
    Rig { sharer: Sharer::new(handle, policy, vec![]), commands }
}

impl Rig {
    /// What is worth telling, and what the tunnel is told.
    fn update(&mut self, update: Update) -> (Vec<String>, Vec<String>) {
        let notices = self.sharer.handle_update(update);
        let notices = notices.iter().map(|notice| format!("{:?} {}", notice.change, notice.name)).collect();
        (notices, self.told())
    }

    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(command) = self.commands.try_recv() {
            told.push(match command {
                Command::Add(entry) => {
                    format!("add {} {} {}", entry.id.0, entry.device.name, entry.offer.share.target())
                }
                Command::Update(entry) => format!("update {} {:?}", entry.id.0, entry.offer.addresses),
                Command::Withdraw(share) => format!("withdraw {}", share.0),
                Command::Remove(_)
                | Command::AddDomain(_)
                | Command::RemoveDomain(_)
                | Command::Answer(..)
                | Command::Probe
                | Command::Shutdown => panic!("not expected"),
            });
        }
        told
    }

    fn why(&self, identity: &str, port: u16) -> String {
        let known = &self.sharer.devices[&Identity::new(identity).unwrap()];
        match &known.verdicts[&port] {
            Ok(ground) => ground.to_string(),
            Err(objection) => objection.to_string(),
        }
    }
}

fn printer(identity: &str, name: &str, host: &str, address: &str) -> Device {
    let ipp = service(631, &[("_ipp._tcp", name)]);
    Device { services: vec![ipp], ..device(identity, name, host, address) }
}

fn laser() -> Device {
    printer("uuid:1", "Laser", "laser.local", "192.168.1.40")
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_printer_comes_moves_and_goes() {
    let mut rig = rig(Policy::printers_and_scanners());
    let (notices, told) = rig.update(Update::Found(laser()));
    assert_eq!(notices, ["Found Laser"]);
    assert_eq!(told, ["add 0 Laser tcp://laser.local:631"]);
    // The same again is nothing.
    assert_eq!(rig.update(Update::Changed(laser())), (vec![], vec![]));

    let moved = printer("uuid:1", "Laser", "laser.local", "192.168.1.77");
    let (notices, told) = rig.update(Update::Changed(moved.clone()));
    assert_eq!((notices, told), (strings(&["Changed Laser"]), strings(&["update 0 [192.168.1.77]"])));

    // A second port comes, the first goes.
    let raw = service(9100, &[("_pdl-datastream._tcp", "Laser")]);
    let other = Device { services: vec![raw], ..moved };
    let (_, told) = rig.update(Update::Changed(other));
    assert_eq!(told, ["add 1 Laser tcp://laser.local:9100", "withdraw 0"]);

    let (notices, told) = rig.update(Update::Lost(laser().identity));
    assert_eq!((notices, told), (strings(&["Lost Laser"]), strings(&["withdraw 1"])));
    assert_eq!(rig.update(Update::Lost(laser().identity)), (vec![], vec![]));
    assert!(rig.sharer.of_share.is_empty());
}

#[test]
fn what_is_told_of_it_is_what_may_be() {
    let mut rig = rig(Policy {
        renames: vec![Rename {
            of: RenameOf::Name("laser".into()),
            to: spice_proto::service_info::Label::new("By the window").unwrap(),
        }],
        ..Policy::printers_and_scanners()
    });
    let mut info = |device: Device| {
        rig.sharer.handle_update(Update::Found(device));
        match rig.commands.try_recv() {
            Ok(Command::Add(entry)) => entry.told.unwrap(),
            _ => panic!("not offered"),
        }
    };
    let told = info(laser());
    assert_eq!(told.identity().unwrap().as_str(), "uuid:1");
    assert_eq!(told.host().unwrap().as_str(), "laser.local");
    assert_eq!(told.adverts()[0].instance.as_str(), "By the window");
    // A name of the internet is not for a device to give away, nor one by which machines look for their proxy.
    for (n, host) in ["www.bank.example", "wpad.local"].into_iter().enumerate() {
        let told = info(printer(&format!("uuid:evil{n}"), "X", host, &format!("192.168.1.{}", 60 + n)));
        assert_eq!(told.host(), None, "{host}");
    }
}

#[test]
fn too_much_said_is_cut_by_the_advert() {
    let mut rig = rig(Policy::printers_and_scanners());
    let mut device = laser();
    let mut loud = policy_advert();
    for n in 0..5 {
        loud.txt.push(&format!("k{n}"), Some(&"x".repeat(250))).unwrap();
    }
    device.services[0].adverts = (0..8)
        .map(|n| {
            let mut advert = loud.clone();
            advert.instance = spice_proto::service_info::Label::new(&format!("Laser {n}")).unwrap();
            advert
        })
        .collect();
    rig.sharer.handle_update(Update::Found(device));
    let Ok(Command::Add(entry)) = rig.commands.try_recv() else { panic!("not offered") };
    let told = entry.told.unwrap();
    assert!((1..8).contains(&told.adverts().len()));
    assert_eq!(told.adverts()[0].instance.as_str(), "Laser 0");
}

fn policy_advert() -> Advert {
    super::super::policy::tests::advert("_ipp._tcp", "Laser")
}

#[test]
fn a_host_name_belongs_to_whom_it_was_first_seen_with() {
    let mut rig = rig(Policy::printers_and_scanners());
    rig.update(Update::Found(laser()));
    // From elsewhere: held back, and the first one stays.
    let thief = printer("uuid:2", "Thief", "LASER.local", "192.168.1.66");
    let (notices, told) = rig.update(Update::Found(thief.clone()));
    assert_eq!((notices, told), (strings(&["Found Thief"]), vec![]));
    assert_eq!(rig.why("uuid:2", 631), "it says that it is LASER.local, which is where Laser is");
    // One that was shared and takes it later is withdrawn.
    let honest = printer("uuid:3", "Third", "third.local", "192.168.1.67");
    rig.update(Update::Found(honest));
    let turned = printer("uuid:3", "Third", "laser.local", "192.168.1.67");
    let (_, told) = rig.update(Update::Changed(turned));
    assert_eq!(told, ["withdraw 1"]);
    // A print server's second queue is at the same address.
    let queue = printer("uuid:4", "Queue", "laser.local", "192.168.1.40");
    assert_eq!(rig.update(Update::Found(queue)).1, ["add 2 Queue tcp://laser.local:631"]);
    // The first one gets another lease, and stays who it is.
    let moved = printer("uuid:1", "Laser", "laser.local", "192.168.1.41");
    assert_eq!(rig.update(Update::Changed(moved)).1[0], "update 0 [192.168.1.41]");
    // When both have gone, the next in line has it.
    rig.update(Update::Lost(Identity::new("uuid:4").unwrap()));
    let (notices, told) = rig.update(Update::Lost(laser().identity));
    assert_eq!(notices, ["Lost Laser", "Changed Thief", "Changed Third"]);
    assert_eq!(told, ["withdraw 0", "add 3 Thief tcp://laser.local:631"]);
}

#[test]
fn devices_that_swap_their_leases_are_followed() {
    let mut rig = rig(Policy::printers_and_scanners());
    let other = |address| printer("uuid:2", "Other", "other.local", address);
    rig.update(Update::Found(laser()));
    rig.update(Update::Found(other("192.168.1.41")));
    let swapped = printer("uuid:1", "Laser", "laser.local", "192.168.1.41");
    assert_eq!(rig.update(Update::Changed(swapped)).1, ["update 0 [192.168.1.41]"]);
    assert_eq!(rig.update(Update::Changed(other("192.168.1.40"))).1, ["update 1 [192.168.1.40]"]);
}

#[test]
fn a_name_that_was_allowed_is_not_inherited() {
    let allow = Rule { name: Pattern::new("NAS"), ..Rule::default() };
    let mut rig = rig(Policy { allow: vec![allow], ..Policy::default() });
    let nas = |identity: &str, address: &str| {
        let smb = service(445, &[("_smb._tcp", "NAS")]);
        Device { services: vec![smb], ..device(identity, "NAS", "nas.local", address) }
    };
    rig.update(Update::Found(nas("uuid:1", "192.168.1.9")));
    assert_eq!(rig.why("uuid:1", 445), "allowed by name, by [[allow]] 1");
    rig.update(Update::Lost(Identity::new("uuid:1").unwrap()));
    // Somebody else comes under the name.
    let (_, told) = rig.update(Update::Found(nas("uuid:2", "192.168.1.66")));
    assert_eq!(told, [] as [&str; 0]);
    assert_eq!(rig.why("uuid:2", 445), "another device had this name when it was allowed: uuid:1");
    // And the right one is back.
    rig.update(Update::Lost(Identity::new("uuid:2").unwrap()));
    assert_eq!(rig.update(Update::Found(nas("uuid:1", "192.168.1.10"))).1.len(), 1);
}

#[test]
fn impostors_and_the_moved_are_held_back_when_they_become_so() {
    let mut rig = rig(Policy::printers_and_scanners());
    rig.update(Update::Found(laser()));
    let (_, told) = rig.update(Update::Changed(Device { standing: Standing::Moved, ..laser() }));
    assert_eq!(told, ["withdraw 0"]);
    assert!(rig.why("uuid:1", 631).starts_with("it was at other addresses"));
}

#[test]
fn what_is_shared_by_hand_is_not_shared_twice() {
    let mut rig = rig(Policy::printers_and_scanners());
    rig.sharer.by_hand = vec![("LASER.local".parse().unwrap(), 631), ("192.168.1.41".parse().unwrap(), 631)];
    assert_eq!(rig.update(Update::Found(laser())).1, [] as [&str; 0]);
    assert_eq!(rig.why("uuid:1", 631), "shared by hand already");
    let other = printer("uuid:2", "Other", "other.local", "192.168.1.41");
    assert_eq!(rig.update(Update::Found(other)).1, [] as [&str; 0]);
}

#[test]
fn a_flood_is_bounded_and_room_is_used_when_it_comes() {
    let mut rig = rig(Policy::printers_and_scanners());
    let nth = |n: usize| {
        let address = format!("10.0.{}.{}", n / 200, 1 + n % 200);
        printer(&format!("uuid:{n}"), &format!("P{n}"), &format!("p{n}.local"), &address)
    };
    for n in 0..MAX_DEVICES + 100 {
        rig.update(Update::Found(nth(n)));
    }
    assert_eq!(rig.sharer.of_share.len(), MAX_DISCOVERED);
    assert_eq!(rig.sharer.devices.len(), MAX_DEVICES);
    assert_eq!(rig.why(&format!("uuid:{MAX_DISCOVERED}"), 631), "384 services are shared already");
    let (notices, told) = rig.update(Update::Lost(nth(0).identity));
    assert_eq!((notices.len(), told.len()), (2, 2), "{notices:?} {told:?}");
    assert!(told[0].starts_with("withdraw") && told[1].starts_with("add"));
}

#[test]
fn an_outlook_offers_nothing_and_says_the_same() {
    let mut outlook = Sharer::outlook(Policy::printers_and_scanners(), vec![]);
    let notices = outlook.handle_update(Update::Found(laser()));
    assert!(notices[0].verdicts[&631].is_ok());
}
