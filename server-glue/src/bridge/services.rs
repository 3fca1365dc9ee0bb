//! What the client announces: each service gets an address, and a name by which the guest finds it.
//!
//! What a service says of itself (SERVICE_INFO) comes just before it is announced, and again when it has changed. It decides on
//! the address, which is the device's and not the share's then, and on all that is said of it by name. A service that says
//! nothing has the address of its name, as ever.

use std::net::SocketAddr;
use std::time::Instant;

use spice_proto::service_info::ServiceInfo;
use spice_proto::tunnel::{InfoBody, ServiceAdd, ServiceId};
use tracing::{debug, info, warn};

use super::{Service, Tunnel};
use crate::address::{AddressBook, AssignError};
use crate::away::{Away, Identity};
use crate::netstack::Netstack;

impl Tunnel {
    /// Gives an announced service its address. There is no way to refuse one on the wire: what cannot be mapped stays
    /// unmapped, and says so in the log.
    pub(super) fn publish(
        &mut self,
        now: Instant,
        netstack: &mut Netstack,
        (book, away): (&mut AddressBook, &mut Away),
        add: &ServiceAdd<'_>,
    ) {
        self.announced = true;
        let described = self.described.take().filter(|(id, _)| *id == add.service).map(|(_, info)| info);
        let identity = Identity::of(add, described.as_ref());
        let name = String::from_utf8_lossy(add.name).into_owned();
        let address = match self.address_for(book, away, &identity, add.port) {
            Ok(address) => address,
            Err(error) => return warn!(service = add.service.0, name = identity.name, %error, "not mapped"),
        };
        if let Err(error) = self.channel.map_service(add.service, address.ip()) {
            return warn!(service = add.service.0, name = identity.name, %error, "not mapped");
        }
        info!(service = add.service.0, name = identity.name, %address, "mapped");
        netstack.publish(address.ip(), address.port());
        netstack.name(now, address, &name, described.as_ref());
        self.by_address.insert(address, add.service);
        self.services.push(Service { id: add.service, address, name, identity });
        for flow in away.settle(address) {
            if let Err(reason) = self.open(flow, address) {
                debug!(%address, reason, "refused what waited");
                netstack.refuse(now, flow);
            }
        }
    }

    /// What a service says of itself: one that is announced next, or one that is there. Such a one keeps its address, whatever it says.
    pub(super) fn describe(
        &mut self,
        now: Instant,
        netstack: &mut Netstack,
        id: ServiceId,
        info: InfoBody<'_>,
    ) {
        let info: ServiceInfo = info.info();
        let Some(service) = self.services.iter().find(|service| service.id == id) else {
            self.described = Some((id, info));
            return;
        };
        debug!(service = id.0, address = %service.address, "says something new of itself");
        netstack.name(now, service.address, &service.name, Some(&info));
    }

    pub(super) fn withdraw(&mut self, now: Instant, netstack: &mut Netstack, id: ServiceId) {
        let Some(index) = self.services.iter().position(|service| service.id == id) else { return };
        let service = self.services.swap_remove(index);
        self.by_address.remove(&service.address);
        netstack.withdraw(service.address.ip(), service.address.port());
        netstack.unname(now, service.address);
        info!(service = id.0, name = service.identity.name, address = %service.address, "withdrawn");
    }

    /// The address it had with the tunnel before, if that is still known. Else that of its group, if the group has one: it is a device.
    /// Else a hash of who the device is, or of the service's name if nobody knows that. Two of one name would get one address, which is right
    /// as long as their ports differ; where they do not, the later one is told apart by a number.
    fn address_for(
        &self,
        book: &mut AddressBook,
        away: &Away,
        identity: &Identity,
        port: u16,
    ) -> Result<SocketAddr, AssignError> {
        if let Some(address) = away.place(identity, port) {
            return Ok(address);
        }
        let is_free = |address| !self.by_address.contains_key(&address) && !away.knows(address);
        if let Some(sibling) = self.services.iter().find(|service| service.identity.group == identity.group)
            && is_free(SocketAddr::new(sibling.address.ip(), port))
        {
            return Ok(SocketAddr::new(sibling.address.ip(), port));
        }
        let base = identity.device.as_deref().unwrap_or(&identity.name);
        let mut numbered = base.to_owned();
        for number in 2.. {
            let address = SocketAddr::new(book.assign(&numbered)?, port);
            if is_free(address) {
                return Ok(address);
            }
            numbered = format!("{base}#{number}");
        }
        unreachable!("services are bounded, so one of the numbers above is free")
    }
}
