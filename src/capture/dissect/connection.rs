//! One connection, from its first packet to its end.

use std::net::SocketAddr;

use spice_proto::frame::HeaderForm;
use spice_proto::link::{HEADER_LEN, MAGIC, REPLY_LEN};
use spice_proto::names::Sender;
use spice_proto::tunnel::Layout;

use super::data_stage::{Fed, Framer, Holed, incomplete};
use super::link_stage::{LinkStage, Outcome};
use super::out::Out;
use super::resync::{Found, Search};
use super::{Channel, End, Head, Hole, Terms, What};
use crate::capture::reassembly::{HoleCause, Way};

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Who was seen first, and the other end.
    ends: (SocketAddr, SocketAddr),
    /// Whether the capture holds its beginning.
    from_start: bool,
    /// Whether it is known to be Spice, and was said to be.
    began: bool,
    linked: bool,
    know: Knowledge,
    link: Option<Box<LinkStage>>,
    forth: Half,
    back: Half,
    reset: Option<Way>,
}

/// What is known of a connection's messages.
#[derive(Debug, Default)]
pub(super) struct Knowledge {
    pub(super) channel: Option<Channel>,
    /// Which direction is the client's.
    client: Option<Way>,
    form: Option<HeaderForm>,
    layout: Option<Layout>,
}

/// One direction.
#[derive(Debug)]
enum Half {
    /// Its first bytes, until they tell what it is.
    Start(Vec<u8>),
    /// The link stage has it.
    Link,
    Data(Framer),
    Lost(Box<Lost>),
    /// Nothing in it is of use.
    Over,
}

/// A direction whose next message is being looked for.
#[derive(Debug)]
struct Lost {
    search: Search,
    /// Bytes that are missing; `None` if nobody knows.
    missing: Option<u64>,
    cause: Option<HoleCause>,
    /// The message whose body the hole began in.
    message: Option<Head>,
}

/// What is to become of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    /// It is not Spice.
    Forget,
}

impl Connection {
    pub(super) fn new(from: SocketAddr, to: SocketAddr, from_start: bool) -> Self {
        let know = Knowledge { client: from_start.then_some(Way::Forth), ..Knowledge::default() };
        Self {
            ends: (from, to),
            from_start,
            began: false,
            linked: false,
            know,
            link: None,
            forth: Half::Start(Vec::new()),
            back: Half::Start(Vec::new()),
            reset: None,
        }
    }

    /// The server's port, if the connection is Spice.
    pub(super) fn spice_port(&self) -> Option<u16> {
        self.began.then(|| self.roles().1.port())
    }

    /// Bytes that it holds on to.
    pub(super) fn held(&self) -> usize {
        let half = |half: &Half| match half {
            Half::Start(first) => first.capacity(),
            Half::Data(framer) => framer.held(),
            Half::Lost(lost) => lost.search.held(),
            Half::Link | Half::Over => 0,
        };
        half(&self.forth) + half(&self.back) + self.link.as_ref().map_or(0, |link| link.held())
    }

    pub(super) fn bytes(&mut self, way: Way, bytes: &[u8], out: &mut Out<'_>) -> Fate {
        let from_start = self.from_start;
        match self.half(way) {
            Half::Start(first) => {
                // Until it is known what this is, the first bytes are enough.
                let room = STARTS.saturating_sub(first.len());
                if from_start && room == 0 {
                    return Fate::Keep;
                }
                first.extend_from_slice(bytes);
                self.recognise(way, out)
            }
            Half::Link => {
                let from = self.sender(way);
                let Some(link) = &mut self.link else { return Fate::Keep };
                let outcome = link.feed(from, bytes, &mut self.know, out);
                self.link_outcome(outcome, out);
                Fate::Keep
            }
            Half::Data(_) => {
                self.data(way, bytes, out);
                Fate::Keep
            }
            Half::Lost(lost) => {
                if let Some(found) = lost.search.feed(bytes) {
                    self.found(way, found, out);
                }
                Fate::Keep
            }
            Half::Over => Fate::Keep,
        }
    }

    pub(super) fn hole(&mut self, way: Way, missing: u64, cause: HoleCause, out: &mut Out<'_>) {
        let from = self.sender(way);
        match self.half(way) {
            Half::Data(framer) => match framer.hole(missing) {
                Holed::Survived => {
                    let hole = Hole { missing: Some(missing), skipped: 0, resumed: true, cause: Some(cause) };
                    out.say(&self.know, Some(from), What::Hole(hole));
                    let (half, know) = self.half_and_knowledge(way);
                    if let Half::Data(framer) = half {
                        framer.behind_hole(know, out);
                    }
                }
                Holed::Lost(message) => self.lose(way, Some(missing), Some(cause), message),
            },
            Half::Lost(lost) => {
                lost.missing = lost.missing.map(|before| before.saturating_add(missing));
                lost.cause = lost.cause.or(Some(cause));
                lost.search.hole();
            }
            Half::Start(_) => {
                self.from_start = false;
                self.lose(way, Some(missing), Some(cause), None);
            }
            Half::Link => {
                self.lose(way, Some(missing), Some(cause), None);
                if let Some(link) = &mut self.link {
                    let outcome = link.lose(from, &mut self.know, out);
                    self.link_outcome(outcome, out);
                }
            }
            Half::Over => {}
        }
    }

    pub(super) fn finished(&mut self, way: Way, out: &mut Out<'_>) {
        let from = self.sender(way);
        match self.half(way) {
            Half::Link => {
                if let Some(link) = &mut self.link {
                    let outcome = link.closed(from, &mut self.know, out);
                    self.link_outcome(outcome, out);
                }
            }
            Half::Start(_) | Half::Data(_) | Half::Lost(_) | Half::Over => {}
        }
        let (half, know) = self.half_and_knowledge(way);
        if let Half::Data(framer) = half {
            framer.closed(know, out);
        }
    }

    pub(super) fn reset(&mut self, way: Way) {
        self.reset.get_or_insert(way);
    }

    pub(super) fn ended(&mut self, seen: bool, out: &mut Out<'_>) {
        if !self.began {
            return;
        }
        if let Some(link) = &mut self.link {
            let outcome = link.ended();
            self.link_outcome(outcome, out);
        }
        for way in [Way::Forth, Way::Back] {
            let from = self.sender(way);
            if let Half::Lost(lost) = std::mem::replace(self.half(way), Half::Over) {
                let skipped = lost.search.seen();
                self.say_hole(from, &lost, skipped, false, out);
            }
        }
        let how = match (self.reset, seen) {
            (Some(way), _) => End::Reset(self.sender(way)),
            (None, true) => End::Closed,
            (None, false) => End::CaptureOver,
        };
        out.say(&self.know, None, What::Ended { how });
    }

    /// Looks whether the first bytes of a direction are those of a link stage.
    fn recognise(&mut self, way: Way, out: &mut Out<'_>) -> Fate {
        let (from_start, from) = (self.from_start, self.sender(way));
        let other_way = other(way);
        let Half::Start(first) = self.half(way) else { return Fate::Keep };
        let compared = first.len().min(MAGIC.len());
        let is_link = first.get(..compared) == MAGIC.get(..compared);
        if is_link && compared < MAGIC.len() {
            return Fate::Keep;
        }
        if !is_link {
            if !from_start {
                let first = std::mem::take(first);
                self.lose(way, None, None, None);
                return self.bytes(way, &first, out);
            }
            first.truncate(STARTS);
            let other_is_not = matches!(self.half(other_way), Half::Start(other) if !MAGIC.starts_with(other.get(..MAGIC.len()).unwrap_or(other)));
            return if other_is_not && !self.began { Fate::Forget } else { Fate::Keep };
        }
        let from = if from_start {
            from
        } else {
            let Some([.., s0, s1, s2, s3]) = first.first_chunk::<HEADER_LEN>() else { return Fate::Keep };
            // A client would need 40 words of capabilities to say as much as a server.
            let size = u32::from_le_bytes([*s0, *s1, *s2, *s3]);
            if usize::try_from(size).is_ok_and(|size| size < REPLY_LEN) {
                Sender::Client
            } else {
                Sender::Server
            }
        };
        self.know.client = Some(match from {
            Sender::Client => way,
            Sender::Server => other_way,
        });
        self.begin(from_start || from == Sender::Client, out);
        self.link = Some(Box::default());
        for way in [way, other_way] {
            let from = self.sender(way);
            if let Half::Start(first) = std::mem::replace(self.half(way), Half::Link) {
                self.bytes(way, &first, out);
            } else if let Some(link) = &mut self.link {
                // It was being searched already; it began before the capture.
                let outcome = link.lose(from, &mut self.know, out);
                self.lose(way, None, None, None);
                self.link_outcome(outcome, out);
            }
        }
        Fate::Keep
    }

    fn begin(&mut self, from_start: bool, out: &mut Out<'_>) {
        if !self.began {
            self.began = true;
            let (client, server) = self.roles();
            out.say(&self.know, None, What::Began { client, server, from_start });
        }
    }

    fn link_outcome(&mut self, outcome: Outcome, out: &mut Out<'_>) {
        let client = self.know.client.unwrap_or(Way::Forth);
        match outcome {
            Outcome::Going => {}
            Outcome::Over => {
                self.link = None;
                self.forth = Half::Over;
                self.back = Half::Over;
            }
            Outcome::Linked(terms) => {
                let Some(mut link) = self.link.take() else { return };
                self.know.layout = Some(terms.layout);
                let form = terms.header;
                self.say_linked(terms, out);
                for (way, from) in [(other(client), Sender::Server), (client, Sender::Client)] {
                    if matches!(self.half(way), Half::Link) {
                        *self.half(way) = Half::Data(Framer::new(from, form, None));
                        self.data(way, &link.take(from), out);
                    }
                }
            }
            Outcome::Unclear => {
                let Some(mut link) = self.link.take() else { return };
                self.know.layout = link.layout();
                self.know.form = link.form();
                for (way, from) in [(other(client), Sender::Server), (client, Sender::Client)] {
                    if matches!(self.half(way), Half::Link) {
                        self.lose(way, Some(0), None, None);
                        self.bytes(way, &link.take(from), out);
                    }
                }
            }
        }
    }

    fn say_linked(&mut self, terms: Terms, out: &mut Out<'_>) {
        if !self.linked {
            self.linked = true;
            self.know.form = Some(terms.header);
            out.say(&self.know, None, What::Linked(terms));
        }
    }

    /// Gives bytes to a direction that is in step.
    fn data(&mut self, way: Way, bytes: &[u8], out: &mut Out<'_>) {
        let (half, know) = self.half_and_knowledge(way);
        let Half::Data(framer) = half else { return };
        if let Fed::Lost { behind, rest } = framer.feed(bytes, know, out) {
            self.lose(way, Some(0), None, None);
            self.bytes(way, &behind, out);
            self.bytes(way, rest, out);
        }
    }

    fn found(&mut self, way: Way, found: Found, out: &mut Out<'_>) {
        let from = self.sender(way);
        let Half::Lost(lost) = std::mem::replace(self.half(way), Half::Over) else { return };
        let terms = Terms { header: found.form, layout: self.know.layout(), channel_caps: Vec::new() };
        self.begin(false, out);
        self.say_linked(terms, out);
        self.say_hole(from, &lost, found.skipped, true, out);
        *self.half(way) = Half::Data(Framer::new(from, found.form, found.serial));
        self.data(way, &found.bytes, out);
    }

    /// Says what is missing, and what it took along.
    fn say_hole(&self, from: Sender, lost: &Lost, skipped: u64, resumed: bool, out: &mut Out<'_>) {
        if lost.missing != Some(0) || skipped > 0 {
            let hole = Hole { missing: lost.missing, skipped, resumed, cause: lost.cause };
            out.say(&self.know, Some(from), What::Hole(hole));
        }
        if let Some(head) = lost.message {
            incomplete(from, head, &self.know, out);
        }
    }

    fn lose(&mut self, way: Way, missing: Option<u64>, cause: Option<HoleCause>, message: Option<Head>) {
        let lost = Lost { search: Search::default(), missing, cause, message };
        *self.half(way) = Half::Lost(Box::new(lost));
    }

    fn half(&mut self, way: Way) -> &mut Half {
        self.half_and_knowledge(way).0
    }

    fn half_and_knowledge(&mut self, way: Way) -> (&mut Half, &mut Knowledge) {
        let half = match way {
            Way::Forth => &mut self.forth,
            Way::Back => &mut self.back,
        };
        (half, &mut self.know)
    }

    /// Who sends in this direction, as far as is known.
    fn sender(&self, way: Way) -> Sender {
        if self.know.client.unwrap_or(Way::Forth) == way { Sender::Client } else { Sender::Server }
    }

    /// Client and server.
    fn roles(&self) -> (SocketAddr, SocketAddr) {
        let (from, to) = self.ends;
        match self.know.client {
            Some(Way::Back) => (to, from),
            Some(Way::Forth) | None => (from, to),
        }
    }
}

impl Knowledge {
    pub(super) fn channel_type(&self) -> Option<u8> {
        self.channel.map(|channel| channel.channel_type)
    }

    pub(super) fn set_channel(&mut self, channel: Channel) {
        self.channel = Some(channel);
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout.unwrap_or(Layout::B)
    }

    /// Narrows down what the channel can be, if that is not known.
    pub(super) fn learn(&mut self, from: Sender, head: &Head, body: Option<&[u8]>) {
        let _ = (from, head, body, self.form);
    }
}

fn other(way: Way) -> Way {
    match way {
        Way::Forth => Way::Back,
        Way::Back => Way::Forth,
    }
}

/// Bytes kept of a direction until it is known what it is.
const STARTS: usize = 64;
