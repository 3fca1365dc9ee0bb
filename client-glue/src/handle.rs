//! Commands to a running tunnel.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use spice_proto::service_info::{HostName, ServiceInfo};
use spice_proto::tunnel::NameAnswer;
use tokio::sync::mpsc;

use crate::{
    book::{Entry, ShareBook},
    offer::{DeviceKey, Offer},
    question::{self, Answer, Asker, NameQuery, Questions},
    share::{Share, ShareError, ShareId},
};

/// Steers a running tunnel. Clones steer the same one; the tunnel goes on when all of them are dropped.
///
/// No command waits: each takes effect when the tunnel's future runs next. Shares may be added before that.
#[derive(Clone)]
pub struct Handle {
    book: Arc<Mutex<ShareBook>>,
    commands: mpsc::UnboundedSender<Command>,
    asker: Asker,
    /// Until somebody takes them.
    questions: Arc<Mutex<Option<Questions>>>,
    usage: Usage,
}

/// Open connections of each share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    open: Arc<Mutex<BTreeMap<ShareId, usize>>>,
}

impl Usage {
    pub(crate) fn opened(&self, share: ShareId) {
        *self.open().entry(share).or_default() += 1;
    }

    pub(crate) fn closed(&self, share: ShareId) {
        let mut open = self.open();
        if let Some(count) = open.get_mut(&share) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&share);
            }
        }
    }

    pub(crate) fn all_closed(&self) {
        self.open().clear();
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<ShareId, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the session is told. Everything in it is decided already.
pub(crate) enum Command {
    Add(Box<Entry>),
    Update(Box<Entry>),
    /// The guest gets no new connections; open ones stay.
    Withdraw(ShareId),
    /// Open ones neither.
    Remove(ShareId),
    AddDomain(HostName),
    RemoveDomain(HostName),
    Answer(NameQuery, NameAnswer),
    Probe,
    Shutdown,
}

impl Handle {
    pub(crate) fn new(max_shares: usize) -> (Handle, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let book = Arc::new(Mutex::new(ShareBook::new(max_shares)));
        let (asker, questions) = question::questions();
        let questions = Arc::new(Mutex::new(Some(questions)));
        (Handle { book, commands, asker, questions, usage: Usage::default() }, receiver)
    }

    /// Offers `share` to the guest. [`Event::Mapped`](crate::Event::Mapped) says where the guest finds it.
    ///
    /// # Errors
    ///
    /// What [`Share::check`] finds; [`ShareError::Duplicate`], [`ShareError::NameTaken`] and
    /// [`ShareError::TooMany`] in view of the other shares; [`ShareError::Ended`].
    pub fn add_share(&self, share: Share) -> Result<ShareId, ShareError> {
        self.offer(share.into())
    }

    /// Offers what is known better than a share that a user wrote: whose it is, how it is advertised, where it is.
    ///
    /// A device that is known by its identity has the same virtual address whatever it is called. Where its name belongs to another
    /// device already, it gets a mark behind it.
    ///
    /// # Errors
    ///
    /// What [`Offer::check`] finds; else as [`add_share`](Self::add_share).
    pub fn offer(&self, offer: Offer) -> Result<ShareId, ShareError> {
        let mut book = self.book();
        let entry = book.add(offer)?;
        let id = entry.id;
        // Sent under the lock, so that the session hears of shares in the order of their ids.
        self.commands.send(Command::Add(Box::new(entry))).map_err(|_| ShareError::Ended)?;
        Ok(id)
    }

    /// The device has moved, or says another thing of itself. Nothing is announced anew and open connections stay; new ones go to
    /// `addresses`. `false`: there is no such share, or it is so already.
    ///
    /// # Errors
    ///
    /// [`ShareError::Addresses`], [`ShareError::Identity`].
    pub fn update_offer(
        &self,
        share: ShareId,
        info: Option<ServiceInfo>,
        addresses: Vec<IpAddr>,
    ) -> Result<bool, ShareError> {
        let mut book = self.book();
        let Some(entry) = book.update(share, info, addresses)? else { return Ok(false) };
        // A tunnel that has ended dials nothing any more.
        let _ = self.commands.send(Command::Update(Box::new(entry)));
        Ok(true)
    }

    /// Takes a share back: its connections are reset and the guest gets no new ones. `false`: there was no such share.
    pub fn remove_share(&self, share: ShareId) -> bool {
        self.take_back(share, Command::Remove(share))
    }

    /// Takes a share back as it is done with a device that is not seen any more: the guest gets no new connections, those that
    /// are open stay until they end. `false`: there was no such share.
    pub fn withdraw(&self, share: ShareId) -> bool {
        self.take_back(share, Command::Withdraw(share))
    }

    fn take_back(&self, share: ShareId, command: Command) -> bool {
        let mut book = self.book();
        let known = book.remove(share);
        if known {
            // A tunnel that has ended has no connections left to reset.
            let _ = self.commands.send(command);
        }
        known
    }

    /// Lets the guest ask for names under `domain`, where the server can pass the question on: see
    /// [`questions`](Self::questions). `false`: it may already.
    ///
    /// # Errors
    ///
    /// [`ShareError::Domain`], [`ShareError::Ended`].
    pub fn add_domain(&self, domain: &HostName) -> Result<bool, ShareError> {
        let mut book = self.book();
        let new = book.add_domain(domain)?;
        if new {
            self.commands.send(Command::AddDomain(domain.clone())).map_err(|_| ShareError::Ended)?;
        }
        Ok(new)
    }

    /// Takes that back. `false`: there was no such domain.
    pub fn remove_domain(&self, domain: &HostName) -> bool {
        let mut book = self.book();
        let known = book.remove_domain(domain);
        if known {
            // One that has ended asks nothing any more.
            let _ = self.commands.send(Command::RemoveDomain(domain.clone()));
        }
        known
    }

    /// The guest's questions for names, for the first who asks. Nobody takes them: they are answered as failed.
    pub fn questions(&self) -> Option<Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Answers one of [`questions`](Self::questions). A second answer, and one for a tunnel that has ended, has no effect.
    pub fn answer_name(&self, query: NameQuery, answer: Answer) {
        let book = self.book();
        let reply = match answer {
            Answer::Found { device, ttl } => match book.group(&device) {
                Some(group) => {
                    let ttl = u32::try_from(ttl.as_secs()).unwrap_or(NameAnswer::MAX_TTL);
                    NameAnswer::Found { group, ttl }
                }
                None => NameAnswer::Failed,
            },
            Answer::NoSuchName => NameAnswer::NoSuchName,
            Answer::Failed => NameAnswer::Failed,
            Answer::Refused => NameAnswer::Refused,
        };
        let _ = self.commands.send(Command::Answer(query, reply));
    }

    /// Whether anything of `device` is offered.
    pub fn offers_device(&self, device: &DeviceKey) -> bool {
        self.book().group(device).is_some()
    }

    /// How many connections to a share are open.
    pub fn connections(&self, share: ShareId) -> usize {
        self.usage.open().get(&share).copied().unwrap_or_default()
    }

    pub(crate) fn asker(&self) -> Asker {
        self.asker.clone()
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage.clone()
    }

    fn book(&self) -> MutexGuard<'_, ShareBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// All that is shared, for a tunnel that begins now, in the order in which it was added; it must not hear of it by commands, so those
    /// that wait are taken away. `None`: a shutdown was among them.
    pub(crate) fn beginning(&self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Option<Beginning> {
        let book = self.book();
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Add(_)
                | Command::Update(_)
                | Command::Withdraw(_)
                | Command::Remove(_)
                | Command::AddDomain(_)
                | Command::RemoveDomain(_)
                | Command::Answer(..)
                | Command::Probe => {}
                Command::Shutdown => return None,
            }
        }
        Some(Beginning { shares: book.entries(), domains: book.domains() })
    }
}

/// What is shared when a tunnel begins.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    pub(crate) shares: Vec<Entry>,
    pub(crate) domains: Vec<HostName>,
}

/// Whether these can be offered together, in this order, by one tunnel that bears as many.
///
/// # Errors
///
/// The first that [`Handle::offer`] would refuse, and why.
pub fn check_offers(offers: &[Offer]) -> Result<(), ShareError> {
    let mut book = ShareBook::new(offers.len());
    offers.iter().try_for_each(|offer| book.add(offer.clone()).map(|_| ()))
}

/// As [`check_offers`], of plain shares.
///
/// # Errors
///
/// The first that [`Handle::add_share`] would refuse, and why.
pub fn check_shares(shares: &[Share]) -> Result<(), ShareError> {
    let offers: Vec<Offer> = shares.iter().cloned().map(Offer::from).collect();
    check_offers(&offers)
}

#[cfg(test)]
mod tests {
    use spice_proto::tunnel::GroupId;

    use super::*;

    fn share(text: &str) -> Share {
        text.parse().unwrap()
    }

    #[test]
    fn a_tunnel_that_begins_anew_gets_what_is_shared_now_and_nothing_twice() {
        let (handle, mut commands) = Handle::new(10);
        let print = handle.add_share(share("tcp://printer.lan:631?name=Printer")).unwrap();
        handle.add_share(share("tcp://nas:445")).unwrap();
        let web = handle.add_share(share("tcp://printer.lan:80")).unwrap();
        handle.remove_share(print);
        let domain = HostName::new("home.arpa").unwrap();
        handle.add_domain(&domain).unwrap();
        let Beginning { shares, domains } = handle.beginning(&mut commands).unwrap();
        let of = |entry: &Entry| (entry.id, entry.group, entry.device.name.clone());
        let expected = [(ShareId(1), GroupId(1), "nas".to_owned()), (web, GroupId(0), "Printer".to_owned())];
        assert_eq!(shares.iter().map(of).collect::<Vec<_>>(), expected);
        assert_eq!(domains, [domain]);
        assert!(commands.try_recv().is_err());
        handle.probe_now();
        handle.shutdown();
        assert!(handle.beginning(&mut commands).is_none());
    }

    #[test]
    fn an_ended_tunnel_takes_no_share() {
        let (handle, receiver) = Handle::new(10);
        drop(receiver);
        assert_eq!(handle.add_share(share("tcp://a:80")), Err(ShareError::Ended));
        handle.shutdown();
    }
}
