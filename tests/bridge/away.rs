//! While no tunnel is there: what the guest sees, and for how long.

use super::*;

/// Short enough for a guest whose own patience is 30 s.
const WAIT: Duration = Duration::from_secs(5);

impl World {
    fn patient() -> Self {
        Self::with(Config::default(), TunnelCaps::OURS, AwayConfig::default())
    }

    fn leave(&mut self) {
        self.bridge.detach(self.now);
        // Somebody who hears nothing and waits for nothing.
        self.client = channel(Role::Client, Config::default(), TunnelCaps::empty(), self.now);
        self.to_server.clear();
        self.to_client.clear();
        self.services.clear();
        self.addresses.clear();
        self.settle();
    }

    fn join(&mut self) {
        self.bridge.attach(self.now, channel(Role::Server, Config::default(), TunnelCaps::OURS, self.now));
        self.client = channel(Role::Client, Config::default(), TunnelCaps::OURS, self.now);
        self.run_until("INIT", |world| world.client.is_ready());
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let timers = [
                self.guest.poll_timeout(),
                self.bridge.poll_timeout(),
                self.client.poll_timeout().map(|(at, _)| at),
            ];
            let next = timers.into_iter().flatten().min().filter(|at| *at <= end);
            self.now = self.now.max(next.unwrap_or(end));
            self.guest.handle_timeout(self.now);
            self.bridge.handle_timeout(self.now).unwrap();
            self.client.handle_timeout(self.now).unwrap();
            if next.is_none() {
                return self.settle();
            }
        }
    }

    fn is_pinged(&mut self, address: IpAddr) -> bool {
        let before = self.pongs;
        self.guest.ping(self.now, address).unwrap();
        self.settle();
        self.pongs > before
    }

    fn held(&mut self, to: SocketAddr) -> ConnectionId {
        let id = self.start_connect(to);
        self.settle();
        assert_eq!(self.guest.is_open(id), None, "the SYN was answered");
        id
    }

    fn outcome(&mut self, id: ConnectionId) -> Result<(), ConnectionError> {
        self.run_until("an answer to the guest's SYN", |world| world.guest.is_open(id).is_some());
        self.guest.is_open(id).unwrap()
    }
}

#[test]
fn a_new_connection_waits_for_the_tunnel_and_goes_through_once() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    let open = world.connect(printer).unwrap();
    world.leave();
    assert_eq!(world.guest_reads(open), Err(ConnectionError::Reset), "what was under way ends at once");
    assert!(world.is_pinged(printer.ip()));

    let id = world.held(printer);
    // The guest sends its SYN again meanwhile.
    world.wait(Duration::from_secs(4));
    assert_eq!(world.bridge.waiting(), 1);
    assert!(world.is_pinged(printer.ip()));
    world.join();
    assert_eq!(world.guest.is_open(id), None, "nobody has the service yet");
    world.far.clear();
    assert_eq!(world.share("printer", 0, 631, Service::Sink).1, printer);
    assert_eq!(world.outcome(id), Ok(()));
    assert_eq!((world.far.len(), world.bridge.waiting()), (1, 0));
    world.guest_sends(id, b"here it is");
    world.run_until("what the guest sent", |world| world.far[0].received == b"here it is");
    assert_eq!(world.bridge.channel().unwrap().sockets(), 1, "one SYN, one socket");
}

#[test]
fn connect_before_accept_holds_for_what_waited() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    world.leave();
    let id = world.held(printer);
    world.join();
    world.share("printer", 0, 631, Service::Refuse);
    assert_eq!(world.outcome(id), Err(ConnectionError::Refused));
}

#[test]
fn the_wait_has_an_end() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    world.leave();
    let start = world.now;
    let id = world.held(printer);
    assert_eq!(world.outcome(id), Err(ConnectionError::Refused));
    assert_eq!(world.now - start, WAIT);
    assert_eq!((world.bridge.waiting(), world.bridge.netstack().flows()), (0, 0));
}

#[test]
fn refused_at_once_where_that_is_wanted() {
    let away = AwayConfig { wait: None, ..AwayConfig::default() };
    let mut world = World::with(Config::default(), TunnelCaps::OURS, away);
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    world.leave();
    let start = world.now;
    assert_eq!(world.connect(printer), Err(ConnectionError::Refused));
    assert_eq!(world.now, start);
    assert!(world.is_pinged(printer.ip()));
}

#[test]
fn what_was_never_there_does_not_appear() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    world.leave();
    let start = world.now;
    assert_eq!(world.connect(SocketAddr::new(printer.ip(), 80)), Err(ConnectionError::Refused));
    assert_eq!(world.now, start);
    assert!(!world.is_pinged("198.18.200.200".parse().unwrap()));
}

#[test]
fn a_dial_that_the_tunnel_took_with_it_waits_too() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Mute);
    let id = world.held(printer);
    assert_eq!(world.bridge.waiting(), 0, "the client has it");
    world.leave();
    assert_eq!(world.bridge.waiting(), 1);
    world.join();
    world.share("printer", 0, 631, Service::Sink);
    assert_eq!(world.outcome(id), Ok(()));
}

#[test]
fn services_are_forgotten_after_a_while() {
    let away = AwayConfig { remember: Duration::from_secs(60), ..AwayConfig::default() };
    let mut world = World::with(Config::default(), TunnelCaps::OURS, away);
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    world.leave();
    world.wait(Duration::from_secs(59));
    assert!(world.is_pinged(printer.ip()));
    let id = world.held(printer);
    world.wait(Duration::from_secs(2));
    assert_eq!(world.guest.is_open(id), Some(Err(ConnectionError::Refused)), "it waits for nothing any more");
    assert!(!world.is_pinged(printer.ip()));
}

#[test]
fn another_users_tunnel_ends_what_the_first_had() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    let (_, nas) = world.share("nas", 1, 445, Service::Sink);
    world.leave();
    world.wait(Duration::from_secs(600));
    world.join();
    assert_eq!(world.share("printer", 0, 631, Service::Sink).1, printer);
    let start = world.now;
    let id = world.held(nas);
    assert!(world.is_pinged(nas.ip()));
    world.connect(printer).unwrap();
    assert_eq!(world.outcome(id), Err(ConnectionError::Refused));
    assert_eq!(world.now - start, AwayConfig::default().grace);
    assert!(!world.is_pinged(nas.ip()));
    assert!(world.is_pinged(printer.ip()));
    // Nor does it come back with the next absence.
    world.leave();
    assert!(!world.is_pinged(nas.ip()));
}

#[test]
fn a_tunnel_that_never_began_costs_nothing() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    world.leave();
    world.join();
    world.wait(Duration::from_secs(1));
    world.leave();
    world.wait(Duration::from_secs(60));
    assert!(world.is_pinged(printer.ip()), "the grace ran on");
    // One that announced something took over.
    world.join();
    world.share("nas", 0, 445, Service::Sink);
    world.leave();
    world.wait(Duration::from_secs(60));
    assert!(!world.is_pinged(printer.ip()));
}

#[test]
fn a_guest_cannot_fill_the_table() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    world.leave();
    let ids: Vec<_> = (0..1000).map(|_| world.start_connect(printer)).collect();
    world.settle();
    let most = AwayConfig::default().connections;
    assert_eq!(world.bridge.waiting(), most);
    assert_eq!(world.bridge.netstack().flows(), most);
    let waits = |world: &World| ids.iter().filter(|id| world.guest.is_open(**id).is_none()).count();
    assert_eq!(waits(&world), most, "the others were refused at once");
    world.wait(WAIT);
    assert_eq!((waits(&world), world.bridge.waiting(), world.bridge.netstack().flows()), (0, 0, 0));
}

#[test]
fn a_guest_that_gives_up_or_goes_away_waits_no_longer() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    world.leave();
    let id = world.held(printer);
    world.guest.reset(id);
    world.settle();
    // A host that gives up a SYN says nothing; the deadline ends it.
    world.held(printer);
    world.bridge.guest_lost();
    world.bridge.advance(world.now);
    assert_eq!((world.bridge.waiting(), world.bridge.netstack().flows()), (0, 0));
}

#[test]
fn what_waits_is_told_when_all_is_over() {
    let mut world = World::patient();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    world.leave();
    let id = world.held(printer);
    world.bridge.forget(world.now);
    world.settle();
    assert_eq!(world.guest.is_open(id), Some(Err(ConnectionError::Refused)));
    assert!(!world.is_pinged(printer.ip()));
}

#[test]
fn twins_keep_their_addresses_in_whatever_order_they_come_back() {
    let mut world = World::patient();
    let (_, first) = world.share("printer", 0, 631, Service::Sink);
    let (_, second) = world.share("printer", 1, 631, Service::Sink);
    let (_, web) = world.share("printer", 1, 80, Service::Sink);
    assert_eq!(second.ip(), web.ip());
    assert_ne!(first.ip(), second.ip());
    world.leave();
    world.join();
    assert_eq!(world.share("printer", 1, 80, Service::Sink).1, web);
    assert_eq!(world.share("printer", 1, 631, Service::Sink).1, second);
    assert_eq!(world.share("printer", 0, 631, Service::Sink).1, first);
}

#[test]
fn no_more_is_known_than_was_agreed() {
    let away = AwayConfig { services: 2, ..AwayConfig::default() };
    let mut world = World::with(Config::default(), TunnelCaps::OURS, away);
    let addresses: Vec<_> =
        (0..3).map(|n| world.share(&format!("s{n}"), n, 80, Service::Sink).1.ip()).collect();
    world.leave();
    let answers: Vec<_> = addresses.into_iter().map(|address| world.is_pinged(address)).collect();
    assert_eq!(answers, [false, true, true]);
}
