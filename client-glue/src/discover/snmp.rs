//! Printers that answer SNMP: those from before DNS-SD, and those whose owner has switched it off.
//!
//! The hunt (see `hunt`) finds out who is there and what they say of themselves; here are its sockets, one on each interface, and what
//! it cannot ask by SNMP: which ports are open, and IPP.

mod codec;
mod hunt;
mod neighbours;
mod objects;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use self::hunt::{Hunt, HuntEvent};
use self::objects::{Facts, Object};
use super::clean;
use super::device::Source;
use super::interfaces::{Interface, InterfaceFilter, interfaces};
use super::outlet::{Ask, Outlet, SourceError};
use super::printing::{self, Known, Ways};
use super::sighting::Sighting;
use super::sockets::Sockets;
use super::tasks::Tasks;
use super::text::Mac;

/// SNMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnmpConfig {
    /// Communities to ask with, at most 8: further ones are not used. They are sent in clear to everybody on the
    /// network, as SNMP has it in these versions.
    pub communities: Vec<String>,
}

impl Default for SnmpConfig {
    /// `public`.
    fn default() -> SnmpConfig {
        SnmpConfig { communities: vec!["public".to_owned()] }
    }
}

/// Looks until it is dropped, or cannot go on.
pub(crate) async fn run(config: SnmpConfig, filter: &InterfaceFilter, mut outlet: Outlet) -> SourceError {
    match look(&config, filter, &mut outlet).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn look(
    config: &SnmpConfig,
    filter: &InterfaceFilter,
    outlet: &mut Outlet,
) -> Result<std::convert::Infallible, SourceError> {
    let communities: Vec<Vec<u8>> =
        config.communities.iter().map(|community| community.as_bytes().to_vec()).collect();
    let first = places(filter)?;
    let mut sockets = Sockets::open(&first)?;
    // A hasher's random keys are randomness enough to tell answers apart.
    let seed = u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or_default();
    let mut hunt = Hunt::new(&communities, seed, first, Instant::now());
    let mut tasks = Tasks::default();
    let mut known: BTreeMap<IpAddr, (Facts, Ways)> = BTreeMap::new();
    let mut looked_round = false;
    let mut buffer = vec![0; codec::MAX_MESSAGE + 1];
    send(&mut hunt, &sockets).await;
    outlet.looking().await;
    loop {
        // Its own tasks' results may fill the events' channel; the sockets' buffers hold meanwhile what comes.
        while let Some(event) = hunt.poll_event() {
            match event {
                HuntEvent::Printer { address, facts } => {
                    // Another printer at the same address begins anew.
                    let same = known.get(&address).filter(|(before, _)| before.is_same_device(&facts));
                    let before = same.map(|(_, ways)| ways.clone()).unwrap_or_default();
                    tasks.begin(address, printer(address, facts, before));
                }
                HuntEvent::Gone(address) => {
                    tasks.forget(&address);
                    known.remove(&address);
                    outlet.gone(&address.to_string()).await;
                }
                HuntEvent::LookedRound => looked_round = true,
            }
        }
        if looked_round && tasks.is_empty() {
            outlet.looked_round().await;
            looked_round = false;
        }
        send(&mut hunt, &sockets).await;
        let next = hunt.poll_timeout();
        tokio::select! {
            packet = sockets.receive(&mut buffer) => {
                let packet = packet?;
                let bytes = buffer.get(..packet.length).unwrap_or_default();
                hunt.handle_packet(packet.own, packet.from, bytes, Instant::now());
            }
            (address, (facts, ways, sighting)) = tasks.next() => {
                known.insert(address, (facts, ways));
                outlet.seen(sighting).await;
            }
            ask = outlet.asked() => match ask {
                Ask::Verify { addresses, .. } => {
                    for address in addresses {
                        hunt.verify(address, Instant::now());
                    }
                }
                Ask::LookAgain => {
                    let places = places(filter)?;
                    sockets = Sockets::open(&places)?;
                    hunt.look_again(places, Instant::now());
                }
            },
            () = tokio::time::sleep_until(next.into()) => {}
        }
        hunt.handle_timeout(Instant::now());
    }
}

/// Where one can ask: networks of IPv4 with broadcasts.
fn places(filter: &InterfaceFilter) -> Result<Vec<Interface>, SourceError> {
    let mut places = interfaces(filter)?;
    places.retain(|place| place.network.address.is_ipv4() && place.broadcast.is_some());
    if places.is_empty() { Err(SourceError::NoInterface) } else { Ok(places) }
}

async fn send(hunt: &mut Hunt, sockets: &Sockets) {
    while let Some(packet) = hunt.poll_transmit() {
        sockets.send(packet.from, packet.to, &packet.bytes).await;
    }
}

/// All that can be found out about a printer that has told its facts.
async fn printer(address: IpAddr, facts: Facts, before: Ways) -> (Facts, Ways, Sighting) {
    let printed = facts.printed(address);
    let ways = printing::ways(SocketAddr::new(address, 0), printed.as_ref(), before).await;
    let sighting = sighting(address, &facts, &ways, card(address));
    (facts, ways, sighting)
}

/// What the kernel learnt from talking to it, which is harder to make up than what it says.
fn card(address: IpAddr) -> Option<[u8; 6]> {
    // Not on a disk: reading it does not wait.
    let file = std::fs::File::open("/proc/net/arp").ok()?;
    let mut table = String::new();
    file.take(neighbours::MAX_TABLE).read_to_string(&mut table).ok()?;
    neighbours::card(&table, address)
}

fn sighting(address: IpAddr, facts: &Facts, ways: &Ways, card: Option<[u8; 6]>) -> Sighting {
    let mut sighting = Sighting::new(Source::Snmp, address.to_string());
    sighting.addresses.push(address);
    let text =
        |object: Object| facts.get(object).filter(|text| clean::text(text).is_some()).map(<[u8]>::to_vec);
    let model = [Object::DeviceDescription, Object::XeroxProduct, Object::SystemDescription];
    let known = Known {
        device_id: facts.device_id(),
        make_and_model: model.into_iter().find_map(text),
        name: [Object::PrinterName, Object::SystemName].into_iter().find_map(text),
        location: text(Object::Location),
        serial: text(Object::Serial),
    };
    printing::describe(&mut sighting, &known, ways);
    // The last resort: behind a repeater, several printers have one card, as far as one can see.
    if sighting.uuid.is_none() && sighting.serial.is_none() {
        let said = facts.get(Object::Card).and_then(|card| card.try_into().ok());
        sighting.mac = card.or(said).and_then(Mac::new);
    }
    sighting
}

#[cfg(test)]
mod tests;
