//! Which Spice sessions live, and which tunnel there is.
//!
//! A session begins with main's INIT (or, for a migration target, with the link of main) and ends with main. A tunnel
//! belongs to a session and ends with it; one that stands alone ends when any session begins, so that nobody's
//! tunnel outlives their right to the VM.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::challenge::{Challenged, Challenger};

/// Shared by all links of one proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the next session or tunnel, so that a late goodbye hits only its own entry.
    next: u64,
    /// By number, since two mains may claim one session id.
    live: BTreeMap<u64, Live>,
    tunnel: Option<Holder>,
}

#[derive(Debug)]
struct Live {
    id: u32,
    ended: CancellationToken,
}

#[derive(Debug)]
struct Holder {
    number: u64,
    alone: bool,
    ended: CancellationToken,
    /// For logs.
    peer: String,
    challenger: Challenger,
}

/// Who has the tunnel's place, while another one wants it.
#[derive(Debug)]
pub(crate) struct Present {
    /// For logs.
    pub(crate) peer: String,
    ended: CancellationToken,
    challenger: Challenger,
}

impl Present {
    /// Finds out whether the tunnel lives. `false`: it is over, and its place is free.
    pub(crate) async fn lives(&self) -> bool {
        tokio::select! {
            lives = self.challenger.ask() => lives,
            () = self.ended.cancelled() => false,
        }
    }
}

/// Why a tunnel gets no place.
#[derive(Debug)]
pub(crate) enum NoSeat {
    /// Another one has it.
    Taken(Present),
    /// It would stand alone, but a session has begun.
    NotAlone,
}

/// Why a tunnel link has no session to belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSession {
    /// No main channel with this id is open.
    #[error("there is no session {0:#010x}")]
    Unknown(u32),
    /// A companion cannot tell which it means.
    #[error("there are {0} sessions, and a companion joins the only one")]
    Several(usize),
    /// Session id 0, and companions are not wanted.
    #[error("the tunnel names no session, and companions are turned off")]
    Companion,
}

/// What a tunnel link belongs to.
#[derive(Clone, Debug)]
pub(crate) enum Home {
    /// A session; the token fires when it ends.
    Session(CancellationToken),
    /// None.
    Alone,
}

impl Registry {
    /// A session has begun. It lasts until the guard is dropped.
    pub(crate) fn begin(&self, id: u32) -> Session {
        let mut state = self.lock();
        let number = state.number();
        let ended = CancellationToken::new();
        state.live.insert(number, Live { id, ended: ended.clone() });
        if let Some(holder) = state.tunnel.as_ref().filter(|holder| holder.alone) {
            holder.ended.cancel();
        }
        Session { registry: self.clone(), number, ended }
    }

    /// Ends all sessions, as a second main does to the first.
    pub(crate) fn end_all(&self) {
        let mut state = self.lock();
        state.live.values().for_each(|live| live.ended.cancel());
        state.live.clear();
    }

    /// The end of the session with this id, if it lives.
    pub(crate) fn find(&self, id: u32) -> Option<CancellationToken> {
        self.lock().live.values().find(|live| live.id == id).map(|live| live.ended.clone())
    }

    /// Sessions that live.
    pub(crate) fn sessions(&self) -> usize {
        self.lock().live.len()
    }

    /// What a tunnel link with this session id belongs to.
    pub(crate) fn home(&self, session_id: u32, companion: bool) -> Result<Home, NoSession> {
        if session_id != 0 {
            return self.find(session_id).map(Home::Session).ok_or(NoSession::Unknown(session_id));
        }
        if !companion {
            return Err(NoSession::Companion);
        }
        let state = self.lock();
        let mut live = state.live.values();
        match (live.next(), live.next()) {
            (None, _) => Ok(Home::Alone),
            (Some(only), None) => Ok(Home::Session(only.ended.clone())),
            (Some(_), Some(_)) => Err(NoSession::Several(state.live.len())),
        }
    }

    /// Takes the one tunnel's place for `peer`, unless it is taken by one whose session still lives.
    pub(crate) fn seat(&self, home: Home, peer: &str) -> Result<Seat, NoSeat> {
        let mut state = self.lock();
        if let Some(holder) = state.tunnel.as_ref().filter(|holder| !holder.ended.is_cancelled()) {
            return Err(NoSeat::Taken(Present {
                peer: holder.peer.clone(),
                ended: holder.ended.clone(),
                challenger: holder.challenger.clone(),
            }));
        }
        // A session may have begun or ended since the caller found its home.
        let (ended, alone) = match home {
            Home::Session(ended) => (ended.child_token(), false),
            Home::Alone if state.live.is_empty() => (CancellationToken::new(), true),
            Home::Alone => return Err(NoSeat::NotAlone),
        };
        let number = state.number();
        let (peer, challenger) = (peer.to_owned(), Challenger::default());
        state.tunnel =
            Some(Holder { number, alone, ended: ended.clone(), peer, challenger: challenger.clone() });
        Ok(Seat { registry: self.clone(), number, ended, challenger })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }
}

/// Holds a session alive.
#[derive(Debug)]
pub(crate) struct Session {
    registry: Registry,
    number: u64,
    ended: CancellationToken,
}

impl Session {
    /// Fires when the session ends, by the guard or by [`Registry::end_all`].
    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.registry.lock().live.remove(&self.number);
        self.ended.cancel();
    }
}

/// The session that a main link may come to hold: none until INIT, none any more once main is over.
#[derive(Clone, Debug)]
pub(crate) struct MainSession {
    registry: Registry,
    state: Arc<Mutex<Term>>,
}

#[derive(Debug)]
enum Term {
    Awaited,
    Live { _session: Session },
    Over,
}

impl MainSession {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, state: Arc::new(Mutex::new(Term::Awaited)) }
    }

    /// Main says that this is its session. False when main is over already.
    pub(crate) fn begin(&self, id: u32) -> bool {
        let mut term = self.term();
        let over = matches!(*term, Term::Over);
        if !over {
            *term = Term::Live { _session: self.registry.begin(id) };
        }
        !over
    }

    /// Main is over.
    pub(crate) fn end(&self) {
        *self.term() = Term::Over;
    }

    fn term(&self) -> MutexGuard<'_, Term> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds the tunnel's place.
#[derive(Debug)]
pub(crate) struct Seat {
    registry: Registry,
    number: u64,
    ended: CancellationToken,
    challenger: Challenger,
}

impl Seat {
    /// Fires when the tunnel has to end.
    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Where those who want the place ask.
    pub(crate) fn challenged(&self) -> Challenged {
        self.challenger.challenged()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        if state.tunnel.as_ref().is_some_and(|holder| holder.number == self.number) {
            state.tunnel = None;
        }
        drop(state);
        self.challenger.gone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_ends_with_its_session() {
        let registry = Registry::default();
        let session = registry.begin(7);
        let seat = registry.seat(registry.home(7, true).unwrap(), "a").unwrap();
        assert!(!seat.ended().is_cancelled());
        drop(session);
        assert!(seat.ended().is_cancelled());
        assert_eq!(registry.home(7, true).unwrap_err(), NoSession::Unknown(7));
    }

    #[test]
    fn one_tunnel_at_a_time_unless_the_first_is_over() {
        let registry = Registry::default();
        let session = registry.begin(7);
        let home = registry.home(7, true).unwrap();
        let first = registry.seat(home.clone(), "a").unwrap();
        assert!(matches!(registry.seat(home, "b"), Err(NoSeat::Taken(Present { peer, .. })) if peer == "a"));
        drop(session);
        // The first was told to end, but still tidies up: its successor does not wait for that.
        let second = registry.seat(registry.home(0, true).unwrap(), "b").unwrap();
        drop(first);
        assert!(
            registry.seat(Home::Alone, "c").is_err(),
            "the first one's goodbye must not free the second one's seat"
        );
        drop(second);
        assert!(registry.seat(Home::Alone, "c").is_ok());
    }

    #[tokio::test]
    async fn whoever_asks_learns_that_the_place_is_free() {
        let registry = Registry::default();
        let present = |registry: &Registry| match registry.seat(Home::Alone, "b") {
            Err(NoSeat::Taken(present)) => present,
            other => panic!("{other:?}"),
        };
        let first = registry.seat(Home::Alone, "a").unwrap();
        let holder = present(&registry);
        let (lives, ()) = tokio::join!(holder.lives(), async { drop(first) });
        assert!(!lives);
        let second = registry.seat(Home::Alone, "b").unwrap();
        // Told to end, it needs no challenge.
        let holder = present(&registry);
        second.ended().cancel();
        assert!(!holder.lives().await);
        assert!(registry.seat(Home::Alone, "c").is_ok());
    }

    #[test]
    fn a_companion_joins_the_only_session() {
        let registry = Registry::default();
        assert!(matches!(registry.home(0, true), Ok(Home::Alone)));
        assert_eq!(registry.home(0, false).unwrap_err(), NoSession::Companion);
        let first = registry.begin(1);
        let Ok(Home::Session(ended)) = registry.home(0, true) else { panic!("not joined") };
        let second = registry.begin(2);
        assert_eq!(registry.home(0, true).unwrap_err(), NoSession::Several(2));
        drop(second);
        assert!(!ended.is_cancelled());
        drop(first);
        assert!(ended.is_cancelled());
    }

    #[test]
    fn a_lone_tunnel_ends_when_a_session_begins() {
        let registry = Registry::default();
        let seat = registry.seat(Home::Alone, "a").unwrap();
        let session = registry.begin(1);
        assert!(seat.ended().is_cancelled());
        assert!(registry.seat(Home::Alone, "c").is_err(), "a session lives now");
        assert!(registry.seat(registry.home(1, true).unwrap(), "b").is_ok());
        drop(session);
    }

    #[test]
    fn a_main_that_is_over_begins_nothing() {
        let registry = Registry::default();
        let main = MainSession::new(registry.clone());
        assert!(main.begin(1));
        assert!(main.begin(2));
        assert!(registry.find(1).is_none() && registry.find(2).is_some());
        main.end();
        assert!(registry.find(2).is_none());
        assert!(!main.begin(3));
        assert!(registry.find(3).is_none());
    }

    #[test]
    fn a_second_main_with_the_same_id_is_another_session() {
        let registry = Registry::default();
        let first = registry.begin(7);
        let second = registry.begin(7);
        drop(first);
        assert!(registry.find(7).is_some());
        registry.end_all();
        assert!(second.ended().is_cancelled());
        assert!(registry.find(7).is_none());
    }
}
