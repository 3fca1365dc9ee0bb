//! Commands to a running tunnel, and the book that keeps its shares apart.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use spice_proto::tunnel::GroupId;
use tokio::sync::mpsc;

use crate::{
    http_host::HostRewrite,
    share::{Host, Share, ShareError, ShareId},
};

/// Steers a running tunnel. Clones steer the same one; the tunnel goes on when all of them are dropped.
///
/// No command waits: each takes effect when the tunnel's future runs next. Shares may be added before that.
#[derive(Clone)]
pub struct Handle {
    book: Arc<Mutex<ShareBook>>,
    commands: mpsc::UnboundedSender<Command>,
}

/// What the session is told. Everything in it is decided already.
pub(crate) enum Command {
    Add(Entry),
    Remove(ShareId),
    Probe,
    Shutdown,
}

/// A share with its place in the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ShareId,
    pub(crate) share: Share,
    /// The device that the share belongs to.
    pub(crate) group: GroupId,
    /// The device's name: what the server derives the virtual address from.
    pub(crate) device: String,
    /// What the guest's HTTP requests are to call the service.
    pub(crate) host_rewrite: Option<HostRewrite>,
}

impl Handle {
    pub(crate) fn new(max_shares: usize) -> (Handle, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let book = Arc::new(Mutex::new(ShareBook::new(max_shares)));
        (Handle { book, commands }, receiver)
    }

    /// Offers `share` to the guest. [`Event::Mapped`](crate::Event::Mapped) says where the guest finds it.
    ///
    /// # Errors
    ///
    /// What [`Share::check`] finds; [`ShareError::Duplicate`], [`ShareError::NameTaken`] and
    /// [`ShareError::TooMany`] in view of the other shares; [`ShareError::Ended`].
    pub fn add_share(&self, share: Share) -> Result<ShareId, ShareError> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = book.add(share)?;
        let id = entry.id;
        // Sent under the lock, so that the session hears of shares in the order of their ids.
        self.commands.send(Command::Add(entry)).map_err(|_| ShareError::Ended)?;
        Ok(id)
    }

    /// Takes a share back: its connections are reset and the guest gets no new ones. `false`: there was no such share.
    pub fn remove_share(&self, share: ShareId) -> bool {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let known = book.remove(share);
        if known {
            // A tunnel that has ended has no connections left to reset.
            let _ = self.commands.send(Command::Remove(share));
        }
        known
    }

    /// To be called when the server may be out of reach: the network is another one, or the machine woke up. The server
    /// is asked whether it is there, and the tunnel given up if nothing comes from it within 3 s. A
    /// [`companion`](crate::companion()) that waits for its next attempt links at once.
    ///
    /// No effect on a tunnel whose server cannot be asked, which is one without
    /// [`PROBE`](spice_proto::link::TunnelCaps::PROBE).
    pub fn probe_now(&self) {
        // A tunnel that has ended need not be asked.
        let _ = self.commands.send(Command::Probe);
    }

    /// Ends the tunnel: connections are reset, the server is told, and the tunnel's future gives `Ok`.
    pub fn shutdown(&self) {
        // One that has ended needs no more.
        let _ = self.commands.send(Command::Shutdown);
    }

    /// All shares, for a tunnel that begins now, in the order in which they were added; it must not hear of them by commands, so those
    /// that wait are taken away. `None`: a shutdown was among them.
    pub(crate) fn shares(&self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Option<Vec<Entry>> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Add(_) | Command::Remove(_) | Command::Probe => {}
                Command::Shutdown => return None,
            }
        }
        Some(book.entries())
    }
}

/// Whether these shares can be offered together, in this order, by one tunnel that bears as many.
///
/// # Errors
///
/// The first that [`Handle::add_share`] would refuse, and why.
pub fn check_shares(shares: &[Share]) -> Result<(), ShareError> {
    let mut book = ShareBook::new(shares.len());
    shares.iter().try_for_each(|share| book.add(share.clone()).map(|_| ()))
}

/// Which shares there are, and which device each belongs to.
struct ShareBook {
    max_shares: usize,
    next_share: u64,
    shares: BTreeMap<ShareId, Share>,
    /// Kept when a device's last share goes, so that the device is the same when it comes back.
    devices: BTreeMap<Host, Device>,
}

struct Device {
    group: GroupId,
    name: String,
}

impl ShareBook {
    fn new(max_shares: usize) -> ShareBook {
        ShareBook { max_shares, next_share: 0, shares: BTreeMap::new(), devices: BTreeMap::new() }
    }

    fn add(&mut self, share: Share) -> Result<Entry, ShareError> {
        share.check()?;
        if self.shares.len() >= self.max_shares {
            return Err(ShareError::TooMany { limit: self.max_shares });
        }
        for other in self.shares.values() {
            if other.host == share.host && other.port == share.port {
                return Err(ShareError::Duplicate { target: share.target() });
            }
        }
        let known = self.shares.values().map(|other| (&other.host, &other.name));
        let devices = self.devices.iter().map(|(host, device)| (host, &device.name));
        if let Some((owner, name)) =
            known.chain(devices).find(|(host, name)| **name == share.name && **host != share.host)
        {
            return Err(ShareError::NameTaken { name: name.clone(), owner: owner.clone() });
        }
        let next_group = u32::try_from(self.devices.len()).unwrap_or(u32::MAX);
        let device = self
            .devices
            .entry(share.host.clone())
            .or_insert_with(|| Device { group: GroupId(next_group), name: share.name.clone() });
        let id = ShareId(self.next_share);
        self.next_share += 1;
        let entry = entry(id, &share, device);
        self.shares.insert(id, share);
        Ok(entry)
    }

    fn entries(&self) -> Vec<Entry> {
        let of = |(id, share): (&ShareId, &Share)| {
            self.devices.get(&share.host).map(|device| entry(*id, share, device))
        };
        self.shares.iter().filter_map(of).collect()
    }

    fn remove(&mut self, share: ShareId) -> bool {
        self.shares.remove(&share).is_some()
    }
}

fn entry(id: ShareId, share: &Share, device: &Device) -> Entry {
    Entry {
        id,
        share: share.clone(),
        group: device.group,
        device: device.name.clone(),
        // Checked when it was added.
        host_rewrite: share.http_host.as_deref().and_then(|host| HostRewrite::new(host).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> Share {
        text.parse().unwrap()
    }

    #[test]
    fn one_host_is_one_device_named_by_its_first_share() {
        let mut book = ShareBook::new(10);
        let print = book.add(share("tcp://printer.lan:631?name=Printer")).unwrap();
        let web = book.add(share("tcp://PRINTER.lan.:80?name=Web%20page")).unwrap();
        let nas = book.add(share("tcp://192.168.1.9:445?name=NAS")).unwrap();
        assert_eq!((print.group, &*print.device), (GroupId(0), "Printer"));
        assert_eq!((web.group, &*web.device), (GroupId(0), "Printer"));
        assert_eq!((nas.group, &*nas.device), (GroupId(1), "NAS"));
        assert_eq!([print.id, web.id, nas.id], [ShareId(0), ShareId(1), ShareId(2)]);

        // The device survives its shares, and its name with it.
        assert!(book.remove(print.id) && book.remove(web.id) && !book.remove(web.id));
        let again = book.add(share("tcp://printer.lan:80?name=Web%20page")).unwrap();
        assert_eq!((again.group, &*again.device, again.id), (GroupId(0), "Printer", ShareId(3)));
    }

    #[test]
    fn a_tunnel_that_begins_anew_gets_what_is_shared_now_and_nothing_twice() {
        let (handle, mut commands) = Handle::new(10);
        let print = handle.add_share(share("tcp://printer.lan:631?name=Printer")).unwrap();
        handle.add_share(share("tcp://nas:445")).unwrap();
        let web = handle.add_share(share("tcp://printer.lan:80")).unwrap();
        handle.remove_share(print);
        let shares = handle.shares(&mut commands).unwrap();
        let of = |entry: &Entry| (entry.id, entry.group, entry.device.clone());
        let expected = [(ShareId(1), GroupId(1), "nas".to_owned()), (web, GroupId(0), "Printer".to_owned())];
        assert_eq!(shares.iter().map(of).collect::<Vec<_>>(), expected);
        assert!(commands.try_recv().is_err());
        handle.probe_now();
        handle.shutdown();
        assert_eq!(handle.shares(&mut commands), None);
    }

    #[test]
    fn duplicates_and_stolen_names_are_refused() {
        let mut book = ShareBook::new(3);
        book.add(share("tcp://a:80?name=A")).unwrap();
        assert!(matches!(book.add(share("tcp://a:80?name=B")), Err(ShareError::Duplicate { .. })));
        let Err(ShareError::NameTaken { name, owner }) = book.add(share("tcp://b:80?name=A")) else {
            panic!("two devices of one name");
        };
        assert_eq!((&*name, owner.to_string().as_str()), ("A", "a"));
        book.add(share("tcp://b:80")).unwrap();
        book.add(share("tcp://b:81")).unwrap();
        assert_eq!(book.add(share("tcp://c:80")), Err(ShareError::TooMany { limit: 3 }));
    }

    #[test]
    fn an_ended_tunnel_takes_no_share() {
        let (handle, receiver) = Handle::new(10);
        drop(receiver);
        assert_eq!(handle.add_share(share("tcp://a:80")), Err(ShareError::Ended));
        handle.shutdown();
    }
}
