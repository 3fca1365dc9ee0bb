//! The table of connections: who has which place, is found by which addresses, has its turn, and is due when.
//!
//! It keeps its parts in step with each other and knows nothing of TCP. A place is free, holds a SYN, or has a connection; its
//! generation tells those apart that had it one after the other.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::flow::{Flow, Rest};
use crate::packet::{MacAddress, Segment};

/// One guest connection. Never given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    slot: u32,
    generation: u32,
}

impl FlowId {
    pub(crate) fn slot(self) -> u32 {
        self.slot
    }
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) guest: SocketAddr,
    pub(crate) local: SocketAddr,
}

impl Pair {
    pub(crate) fn of(segment: &Segment<'_>) -> Pair {
        Pair { guest: segment.source, local: segment.destination }
    }
}

/// Whose time comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Slot(u32),
    Rest(Pair),
    /// To look whether it is idle.
    Tidy(FlowId),
}

/// What a place has.
pub(crate) enum Content {
    Free,
    Held(Held),
    Connection(Box<Connection>),
}

/// A SYN whose owner has not decided yet.
pub(crate) struct Held {
    pub(crate) pair: Pair,
    pub(crate) guest: MacAddress,
    pub(crate) sequence: u32,
    /// The SYN without its data, as an IPv4 packet.
    pub(crate) syn: Box<[u8]>,
    /// When it is given up. Does not change.
    pub(crate) deadline: Instant,
}

pub(crate) struct Connection {
    pair: Pair,
    pub(crate) guest: MacAddress,
    pub(crate) flow: Flow,
    /// Segments find it. Not any more once both ends closed and only reading is left.
    linked: bool,
    /// Its owner still knows it. Not any more while its RST waits to be sent.
    pub(crate) owned: bool,
    half_open: bool,
    /// No later than it is due.
    timer: Option<Instant>,
    tidying: Tidying,
    /// What its rings held when it stirred last.
    held: usize,
    pub(crate) readable_queued: bool,
    pub(crate) writable_queued: bool,
}

/// How far a connection is from giving its memory back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tidying {
    /// There is nothing to give, or something stands in the way; the next octet asks again.
    No,
    /// The timer at this time runs, and data moved since it was set.
    Stirred(Instant),
    /// The timer at this time runs, and nothing moved since.
    Quiet(Instant),
}

impl Connection {
    pub(crate) fn pair(&self) -> Pair {
        self.pair
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.linked
    }
}

struct Slot {
    /// How often the place was used.
    generation: u32,
    /// It is in `ready`, where it may outlive the connection that put it there.
    ready: bool,
    content: Content,
}

/// TIME-WAIT: the address pair of a connection that we closed first.
struct Resting {
    rest: Rest,
    until: Instant,
}

pub(crate) struct Table {
    slots: Vec<Slot>,
    /// INVARIANT: the free places in `slots`, and those alone.
    free: Vec<u32>,
    /// INVARIANT: the held SYNs and the linked connections.
    by_pair: HashMap<Pair, u32>,
    /// INVARIANT: how many of `by_pair` have each address on our side; none has zero.
    locals: HashMap<IpAddr, usize>,
    resting: HashMap<Pair, Resting>,
    /// INVARIANT: how many held SYNs and connections with `half_open` there are.
    half_open: usize,
    /// Connections that may have something to send, in turn.
    ready: VecDeque<u32>,
    timers: BTreeSet<(Instant, Timer)>,
    /// INVARIANT: the sum of all connections' `held`.
    held: usize,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table {
            slots: Vec::new(),
            free: Vec::new(),
            by_pair: HashMap::new(),
            locals: HashMap::new(),
            resting: HashMap::new(),
            half_open: 0,
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            held: 0,
        }
    }

    /// Places that are not free.
    pub(crate) fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn half_open(&self) -> usize {
        self.half_open
    }

    /// Octets of memory that the rings of all connections hold, at most.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn find(&self, pair: &Pair) -> Option<u32> {
        self.by_pair.get(pair).copied()
    }

    /// Whether a held SYN or a linked connection has `address` on our side.
    pub(crate) fn uses(&self, address: IpAddr) -> bool {
        self.locals.contains_key(&address)
    }

    pub(crate) fn id(&self, slot: u32) -> FlowId {
        let generation = self.slots.get(slot as usize).map_or(0, |slot| slot.generation);
        FlowId { slot, generation }
    }

    pub(crate) fn content_mut(&mut self, slot: u32) -> Option<&mut Content> {
        self.slots.get_mut(slot as usize).map(|slot| &mut slot.content)
    }

    /// The connection, while its owner knows it.
    pub(crate) fn connection(&self, flow: FlowId) -> Option<&Connection> {
        let slot = self.slots.get(flow.slot as usize)?;
        match &slot.content {
            Content::Connection(connection) if slot.generation == flow.generation && connection.owned => {
                Some(connection)
            }
            Content::Connection(_) | Content::Held(_) | Content::Free => None,
        }
    }

    /// The connection, while its owner knows it.
    pub(crate) fn connection_mut(&mut self, flow: FlowId) -> Option<&mut Connection> {
        match &mut self.slot_mut(flow)?.content {
            Content::Connection(connection) if connection.owned => Some(connection),
            Content::Connection(_) | Content::Held(_) | Content::Free => None,
        }
    }

    /// The connection in a place, whoever knows it.
    pub(crate) fn connection_at(&mut self, slot: u32) -> Option<&mut Connection> {
        match self.content_mut(slot)? {
            Content::Connection(connection) => Some(connection),
            Content::Held(_) | Content::Free => None,
        }
    }

    /// Takes a place for a SYN. `None`: four billion are taken.
    pub(crate) fn hold(&mut self, held: Held) -> Option<FlowId> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot { generation: 0, ready: false, content: Content::Free });
                slot
            }
        };
        self.half_open += 1;
        self.link(held.pair, slot);
        self.timers.insert((held.deadline, Timer::Slot(slot)));
        *self.content_mut(slot)? = Content::Held(held);
        Some(self.id(slot))
    }

    /// A held SYN, taken out of its place, which must be given a connection by [`Table::open`] or released next.
    pub(crate) fn take_held(&mut self, flow: FlowId) -> Option<Held> {
        let slot = self.slot_mut(flow)?;
        match std::mem::replace(&mut slot.content, Content::Free) {
            Content::Held(held) => {
                self.forget_held(flow.slot, &held);
                Some(held)
            }
            other @ (Content::Connection(_) | Content::Free) => {
                slot.content = other;
                None
            }
        }
    }

    /// Puts the connection that a held SYN became in its place. It is half open.
    pub(crate) fn open(&mut self, id: FlowId, held: &Held, flow: Flow) {
        let connection = Connection {
            pair: held.pair,
            guest: held.guest,
            flow,
            linked: true,
            owned: true,
            half_open: true,
            timer: None,
            tidying: Tidying::No,
            held: 0,
            readable_queued: false,
            writable_queued: false,
        };
        if let Some(slot) = self.slot_mut(id) {
            slot.content = Content::Connection(Box::new(connection));
            self.half_open += 1;
            self.link(held.pair, id.slot);
        }
    }

    /// The handshake is over.
    pub(crate) fn opened(&mut self, slot: u32) {
        if let Some(connection) = self.connection_at(slot)
            && std::mem::take(&mut connection.half_open)
        {
            self.half_open -= 1;
        }
    }

    /// Segments do not find the connection any more, and it waits for nothing; its place stays taken.
    pub(crate) fn unlink(&mut self, slot: u32) {
        self.set_timer(slot, None);
        let Some(connection) = self.connection_at(slot) else { return };
        if std::mem::take(&mut connection.linked) {
            let pair = connection.pair;
            self.cut(&pair);
        }
    }

    /// Frees a place, and gives the connection that had it. The id of what was there is dead from here on.
    pub(crate) fn release(&mut self, slot: u32) -> Option<Flow> {
        self.opened(slot);
        self.unlink(slot);
        let id = self.id(slot);
        if let Some(connection) = self.connection_at(slot)
            && let Tidying::Stirred(at) | Tidying::Quiet(at) = connection.tidying
        {
            self.timers.remove(&(at, Timer::Tidy(id)));
        }
        let place = self.slots.get_mut(slot as usize)?;
        place.generation = place.generation.wrapping_add(1);
        let content = std::mem::replace(&mut place.content, Content::Free);
        self.free.push(slot);
        match content {
            Content::Free => None,
            Content::Held(held) => {
                self.forget_held(slot, &held);
                None
            }
            Content::Connection(connection) => {
                self.held -= connection.held;
                Some(connection.flow)
            }
        }
    }

    /// Frees every place, forgets every rest, and tells whose owners knew them.
    pub(crate) fn release_all(&mut self) -> Vec<FlowId> {
        let mut known = Vec::new();
        for slot in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            let id = self.id(slot);
            match self.content_mut(slot) {
                Some(Content::Held(_)) => known.push(id),
                Some(Content::Connection(connection)) => known.extend(connection.owned.then_some(id)),
                Some(Content::Free) | None => continue,
            }
            self.release(slot);
        }
        self.resting.clear();
        self.timers.clear();
        known
    }

    /// The connection may have something to send. Nothing happens if it is unlinked.
    pub(crate) fn make_ready(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize)
            && let Content::Connection(connection) = &place.content
            && connection.linked
            && !std::mem::replace(&mut place.ready, true)
        {
            self.ready.push_back(slot);
        }
    }

    /// Whose turn it is to send.
    pub(crate) fn next_ready(&mut self) -> Option<u32> {
        let slot = self.ready.pop_front()?;
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.ready = false;
        }
        Some(slot)
    }

    /// Says when a connection is due. A time that moves further away, as with every segment, costs nothing: what stands there comes
    /// too early, finds nothing to do, and says when.
    pub(crate) fn set_timer(&mut self, slot: u32, at: Option<Instant>) {
        let Some(connection) = self.connection_at(slot) else { return };
        let before = connection.timer;
        if at.is_some() && before.is_some_and(|before| at >= Some(before)) {
            return;
        }
        connection.timer = at;
        if let Some(before) = before {
            self.timers.remove(&(before, Timer::Slot(slot)));
        }
        if let Some(at) = at {
            self.timers.insert((at, Timer::Slot(slot)));
        }
    }

    /// A connection's data moves. Whether that was the last for a while is seen at `look_at`.
    pub(crate) fn stir(&mut self, flow: FlowId, look_at: Instant) {
        self.weigh(flow);
        let Some(connection) = self.connection_mut(flow) else { return };
        match connection.tidying {
            Tidying::No if connection.held > 0 => {
                connection.tidying = Tidying::Quiet(look_at);
                self.timers.insert((look_at, Timer::Tidy(flow)));
            }
            Tidying::Quiet(at) => connection.tidying = Tidying::Stirred(at),
            Tidying::No | Tidying::Stirred(_) => {}
        }
    }

    /// A look at a connection that stirred. Unless it is idle now, there is another at `again`.
    pub(crate) fn tidy(&mut self, flow: FlowId, again: Instant) {
        let Some(connection) = self.connection_mut(flow) else { return };
        match connection.tidying {
            Tidying::Stirred(_) => {
                connection.tidying = Tidying::Quiet(again);
                self.timers.insert((again, Timer::Tidy(flow)));
            }
            Tidying::Quiet(_) => {
                connection.tidying = Tidying::No;
                connection.flow.give_back();
                self.weigh(flow);
            }
            Tidying::No => {}
        }
    }

    /// Looks at how much memory a connection's rings hold.
    fn weigh(&mut self, flow: FlowId) {
        let Some(connection) = self.connection_mut(flow) else { return };
        let held = connection.flow.held();
        let before = std::mem::replace(&mut connection.held, held);
        self.held = self.held - before + held;
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes out what is due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let &(at, timer) = self.timers.first()?;
        if at > now {
            return None;
        }
        self.timers.pop_first();
        match timer {
            Timer::Slot(slot) => {
                if let Some(connection) = self.connection_at(slot) {
                    connection.timer = None;
                }
            }
            Timer::Rest(pair) => {
                self.resting.remove(&pair);
            }
            Timer::Tidy(_) => {}
        }
        Some(timer)
    }

    /// How many address pairs rest.
    pub(crate) fn resting(&self) -> usize {
        self.resting.len()
    }

    pub(crate) fn rest_of(&self, pair: &Pair) -> Option<Rest> {
        self.resting.get(pair).map(|resting| resting.rest)
    }

    /// Lets an address pair rest, or rest longer.
    pub(crate) fn rest(&mut self, pair: Pair, rest: Rest, until: Instant) {
        self.end_rest(&pair);
        self.resting.insert(pair, Resting { rest, until });
        self.timers.insert((until, Timer::Rest(pair)));
    }

    pub(crate) fn end_rest(&mut self, pair: &Pair) {
        if let Some(resting) = self.resting.remove(pair) {
            self.timers.remove(&(resting.until, Timer::Rest(*pair)));
        }
    }

    fn slot_mut(&mut self, flow: FlowId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(flow.slot as usize)?;
        (slot.generation == flow.generation).then_some(slot)
    }

    fn link(&mut self, pair: Pair, slot: u32) {
        if self.by_pair.insert(pair, slot).is_none() {
            *self.locals.entry(pair.local.ip()).or_default() += 1;
        }
    }

    fn cut(&mut self, pair: &Pair) {
        if self.by_pair.remove(pair).is_some()
            && let Entry::Occupied(mut count) = self.locals.entry(pair.local.ip())
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn forget_held(&mut self, slot: u32, held: &Held) {
        self.cut(&held.pair);
        self.timers.remove(&(held.deadline, Timer::Slot(slot)));
        self.half_open -= 1;
    }
}
