//! One connection, from its first packet to its end.

use std::net::SocketAddr;

use spice_proto::frame::HeaderForm;
use spice_proto::link::{HEADER_LEN, MAGIC, REPLY_LEN};
use spice_proto::names::Sender;

use super::data_stage::{Fed, Framer, Holed, incomplete};
use super::knowledge::Knowledge;
use super::link_stage::{LinkStage, Outcome};
use super::out::Out;
use super::resync::{Clues, Enough, Found, Search};
use super::{End, Head, Hole, Terms, What};
use crate::capture::reassembly::{HoleCause, Way};

/// One connection, from its first packet to its end.
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
    /// Length of the last piece.
    piece: usize,
    /// Pieces of this length or more may have been cut off, so that their ends say nothing.
    cut: usize,
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
    /// Nothing was found in as much as was worth looking at.
    given_up: bool,
    /// Serial of the last message before.
    serial: Option<u64>,
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

/// What came of a search for messages.
enum Looked {
    /// They start with these bytes.
    Found(Vec<u8>),
    NotYet,
    NotSpice,
}

impl Connection {
    pub(super) fn new(from: SocketAddr, to: SocketAddr, from_start: bool) -> Self {
        let know = Knowledge::new(from_start.then_some(Way::Forth));
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
            piece: 0,
            cut: usize::MAX,
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
        self.piece = bytes.len();
        match self.half(way) {
            Half::Start(first) => {
                // Until it is known what this is, the first bytes are enough.
                if from_start && first.len() >= STARTS {
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
            Half::Data(_) | Half::Lost(_) => self.messages(way, bytes, out),
            Half::Over => Fate::Keep,
        }
    }

    /// Gives bytes to a direction of the data stage, which may fall out of step and into step again any number of times.
    fn messages(&mut self, way: Way, bytes: &[u8], out: &mut Out<'_>) -> Fate {
        let mut rest = bytes;
        let cut = self.cut;
        // What has to be read before `rest`.
        let mut carried = Vec::new();
        loop {
            let (half, know) = self.half_and_knowledge(way);
            match half {
                Half::Data(framer) => {
                    let input = std::mem::take(&mut carried);
                    let lost;
                    match framer.feed(&input, know, out) {
                        Fed::Lost { mut behind, rest, unproved } => {
                            behind.extend_from_slice(rest);
                            carried = behind;
                            lost = unproved;
                        }
                        Fed::Ok => match framer.feed(std::mem::take(&mut rest), know, out) {
                            Fed::Lost { behind, rest: behind_it, unproved } => {
                                carried = behind;
                                rest = behind_it;
                                lost = unproved;
                            }
                            Fed::Ok => return Fate::Keep,
                        },
                    }
                    self.lose(way, Some(0), None, None);
                    if let (Some(skipped), Half::Lost(lost)) = (lost, self.half(way)) {
                        lost.search = Search::behind(skipped);
                        // It was of no message either.
                        lost.serial = None;
                    }
                }
                Half::Lost(_) => {
                    if carried.is_empty() {
                        if rest.is_empty() {
                            return Fate::Keep;
                        }
                        // In small portions, because what is behind the messages' start is copied.
                        let (now, later) = rest.split_at_checked(PORTION).unwrap_or((rest, &[]));
                        let starts = rest.len() == bytes.len() && bytes.len() >= HeaderForm::Mini.len();
                        let ends = later.is_empty() && (HeaderForm::Mini.len()..cut).contains(&bytes.len());
                        rest = later;
                        match self.look(way, now, (starts, ends), out) {
                            Looked::Found(found) => carried = found,
                            Looked::NotYet => {}
                            Looked::NotSpice => return Fate::Forget,
                        }
                    } else if let Looked::Found(found) = self.look(
                        way,
                        &std::mem::take(&mut carried),
                        (false, rest.is_empty() && bytes.len() < cut),
                        out,
                    ) {
                        carried = found;
                    }
                }
                Half::Start(_) | Half::Link | Half::Over => return Fate::Keep,
            }
        }
    }

    pub(super) fn hole(&mut self, way: Way, missing: u64, cause: HoleCause, out: &mut Out<'_>) {
        if cause == HoleCause::CutOff {
            self.cut = self.cut.min(self.piece);
        }
        self.search_ends(way, out);
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
                if let Some(before) = lost.missing {
                    lost.missing = Some(before.saturating_add(missing));
                    lost.cause = lost.cause.or(Some(cause));
                }
                lost.search.forget(missing);
            }
            Half::Start(_) | Half::Link => {
                self.from_start &= self.began;
                self.lose(way, Some(missing), Some(cause), None);
                self.leave_link(way, out);
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
            // Where Spice is expected, it is said that there was something that could not be read.
            let unread = |half: &Half| matches!(half, Half::Lost(lost) if lost.search.seen() > 0);
            if self.from_start || !self.is_familiar(out) || !(unread(&self.forth) || unread(&self.back)) {
                return;
            }
            self.begin(false, out);
        }
        if let Some(link) = &mut self.link {
            let outcome = link.ended(&mut self.know, out);
            self.link_outcome(outcome, out);
        }
        for way in [Way::Forth, Way::Back] {
            let from = self.sender(way);
            self.abandon(way, from, out);
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
        let (began, in_link, other_way) = (self.began, self.link.is_some(), other(way));
        let Half::Start(first) = self.half(way) else { return Fate::Keep };
        let compared = first.len().min(MAGIC.len());
        let is_link = first.get(..compared) == MAGIC.get(..compared);
        if is_link && compared < MAGIC.len() {
            return Fate::Keep;
        }
        if in_link && (is_link || from_start) {
            self.join_link(way, out);
            return Fate::Keep;
        }
        if began || !(is_link || from_start) {
            let first = std::mem::take(first);
            self.lose(way, if from_start { Some(0) } else { None }, None, None);
            self.leave_link(way, out);
            return self.bytes(way, &first, out);
        }
        if !is_link {
            first.truncate(STARTS);
            first.shrink_to_fit();
            let is_not = |first: &[u8]| !MAGIC.starts_with(first.get(..MAGIC.len()).unwrap_or(first));
            let strange = matches!(self.half(other_way), Half::Start(other) if is_not(other));
            return if strange { Fate::Forget } else { Fate::Keep };
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
        self.know.set_client(match from {
            Sender::Client => way,
            Sender::Server => other_way,
        });
        self.begin(from_start || from == Sender::Client, out);
        self.link = Some(Box::default());
        match self.half(other_way) {
            Half::Start(first) if !first.is_empty() => {
                // It came first, and is no link message. Otherwise it would have been recognised.
                self.recognise(other_way, out);
            }
            Half::Lost(_) => self.leave_link(other_way, out),
            Half::Start(_) | Half::Link | Half::Data(_) | Half::Over => {}
        }
        self.join_link(way, out);
        Fate::Keep
    }

    /// Gives a direction's first bytes to the link stage.
    fn join_link(&mut self, way: Way, out: &mut Out<'_>) {
        if let Half::Start(first) = std::mem::replace(self.half(way), Half::Link) {
            self.bytes(way, &first, out);
        }
    }

    /// Tells the link stage that it misses what this direction has to say.
    fn leave_link(&mut self, way: Way, out: &mut Out<'_>) {
        let from = self.sender(way);
        if let Some(link) = &mut self.link {
            let outcome = link.lose(from, &mut self.know, out);
            self.link_outcome(outcome, out);
        }
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
                for way in [Way::Forth, Way::Back] {
                    let from = self.sender(way);
                    self.abandon(way, from, out);
                }
            }
            Outcome::Linked(terms) => {
                let Some(mut link) = self.link.take() else { return };
                self.know.layout = Some(terms.layout);
                let form = terms.header;
                self.say_linked(terms, out);
                let mut ways = [(other(client), Sender::Server), (client, Sender::Client)];
                if link.client_first {
                    ways.reverse();
                }
                for (way, from) in ways {
                    if matches!(self.half(way), Half::Link) {
                        *self.half(way) = Half::Data(Framer::new(from, form, None));
                        self.bytes(way, &link.take(from), out);
                    }
                }
            }
            Outcome::Unclear => {
                let Some(mut link) = self.link.take() else { return };
                self.know.layout = link.layout();
                self.know.form = link.form();
                self.know.channel_caps = link.channel_caps();
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

    /// Looks for messages in a direction that is not in step.
    fn look(&mut self, way: Way, bytes: &[u8], (starts, ends): (bool, bool), out: &mut Out<'_>) -> Looked {
        let familiar = self.is_familiar(out);
        let began = self.began;
        let clues = self.clues(way, out);
        let Half::Lost(lost) = self.half(way) else { return Looked::NotYet };
        if lost.given_up {
            lost.search.pass(bytes.len());
            return Looked::NotYet;
        }
        if let Some(mut found) = lost.search.feed(bytes, starts, ends, &clues) {
            let bytes = std::mem::take(&mut found.bytes);
            self.found(way, found, out);
            return Looked::Found(bytes);
        }
        let patience = if familiar { PATIENCE } else { PATIENCE_WITH_STRANGERS };
        if began || lost.search.seen() < patience {
            return Looked::NotYet;
        }
        lost.given_up = true;
        lost.search.forget(0);
        let hopeless = |half: &Half| match half {
            Half::Lost(lost) => lost.given_up,
            Half::Start(first) => first.is_empty(),
            Half::Link | Half::Data(_) | Half::Over => false,
        };
        if hopeless(&self.forth) && hopeless(&self.back) && !familiar {
            Looked::NotSpice
        } else {
            Looked::NotYet
        }
    }

    /// Gives what was found of messages where more bytes are missing than a search knows of.
    fn search_ends(&mut self, way: Way, out: &mut Out<'_>) {
        let clues = self.clues(way, out);
        let Half::Lost(lost) = self.half(way) else { return };
        if lost.given_up {
            return;
        }
        if let Some(mut found) = lost.search.finish(&clues) {
            let bytes = std::mem::take(&mut found.bytes);
            self.found(way, found, out);
            self.messages(way, &bytes, out);
        }
    }

    /// What a search in this direction can go by.
    fn clues(&mut self, way: Way, out: &Out<'_>) -> Clues {
        let familiar = self.is_familiar(out);
        self.guess_roles_by_port(out);
        let enough = match (&self.know.channel, self.know.form) {
            (Some(_), Some(_)) => IN_STEP_BEFORE,
            _ if self.began || familiar => EXPECTED,
            _ => STRANGE,
        };
        let (client, server) = match way {
            Way::Forth => (self.know.if_forth, self.know.if_back),
            Way::Back => (self.know.if_back, self.know.if_forth),
        };
        let (half, know) = self.half_and_knowledge(way);
        let (serial, missing) = match half {
            Half::Lost(lost) => (lost.serial, lost.missing),
            Half::Start(_) | Half::Link | Half::Data(_) | Half::Over => (None, None),
        };
        let window = if out.room > 4 * WINDOW { WINDOW } else { LITTLE };
        Clues { form: know.form, layout: know.layout, client, server, serial, missing, enough, window }
    }

    fn found(&mut self, way: Way, found: Found, out: &mut Out<'_>) {
        let (if_way, if_other) = (found.client, found.server);
        let (if_forth, if_back) = match way {
            Way::Forth => (if_way, if_other),
            Way::Back => (if_other, if_way),
        };
        self.know.if_forth = self.know.if_forth & if_forth;
        self.know.if_back = self.know.if_back & if_back;
        if self.know.client.is_none() {
            let forth = match (self.know.if_forth.is_empty(), self.know.if_back.is_empty()) {
                (false, true) => true,
                (true, false) => false,
                // Clients get their ports from the upper end.
                _ => self.ends.0.port() >= self.ends.1.port(),
            };
            self.know.set_client(if forth { Way::Forth } else { Way::Back });
        }
        self.know.infer_channel();
        let from = self.sender(way);
        let Half::Lost(lost) = std::mem::replace(self.half(way), Half::Over) else { return };
        let channel_caps = self.know.channel_caps.clone();
        let terms = Terms { header: found.form, layout: self.know.layout(), channel_caps };
        self.begin(false, out);
        self.say_linked(terms, out);
        self.say_hole(from, &lost, found.skipped, true, out);
        *self.half(way) = Half::Data(Framer::found(from, found.form, lost.serial));
    }

    /// Whether Spice is expected at one of the ends' ports.
    fn is_familiar(&self, out: &Out<'_>) -> bool {
        out.ports.contains(&self.ends.0.port()) || out.ports.contains(&self.ends.1.port())
    }

    /// The end whose port Spice servers have is the server.
    fn guess_roles_by_port(&mut self, out: &Out<'_>) {
        if self.know.client.is_none() {
            match (out.ports.contains(&self.ends.0.port()), out.ports.contains(&self.ends.1.port())) {
                (false, true) => self.know.set_client(Way::Forth),
                (true, false) => self.know.set_client(Way::Back),
                (true, true) | (false, false) => {}
            }
        }
    }

    /// Gives a direction up.
    fn abandon(&mut self, way: Way, from: Sender, out: &mut Out<'_>) {
        if let Half::Lost(lost) = std::mem::replace(self.half(way), Half::Over) {
            let skipped = lost.search.seen();
            self.say_hole(from, &lost, skipped, false, out);
        }
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
        let serial = match self.half(way) {
            Half::Data(framer) => framer.serial(),
            Half::Lost(lost) => lost.serial,
            Half::Start(_) | Half::Link | Half::Over => None,
        };
        let lost = Lost { search: Search::default(), given_up: false, serial, missing, cause, message };
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

fn other(way: Way) -> Way {
    match way {
        Way::Forth => Way::Back,
        Way::Back => Way::Forth,
    }
}

/// Bytes kept of a direction until it is known what it is.
const STARTS: usize = 64;

/// Bytes that a search is given at a time.
const PORTION: usize = 4096;

/// Bytes that a search keeps of a direction, at least half of it and at most twice as much.
const WINDOW: usize = 64 << 10;

/// And if no memory is left.
const LITTLE: usize = 512;

/// Bytes of a direction that are searched where Spice is expected, until that expectation is given up.
const PATIENCE: u64 = 4 << 20;

/// And where nothing speaks for it.
const PATIENCE_WITH_STRANGERS: u64 = 64 << 10;

/// What has to be found there.
const STRANGE: Enough = Enough { points: 12, messages: 4, kinds: 2, whole_piece: 0 };

/// What has to be found where Spice is expected, but neither its channel nor its headers are known.
const EXPECTED: Enough = Enough { points: 5, messages: 1, kinds: 1, whole_piece: 1 };

/// And where both are.
const IN_STEP_BEFORE: Enough = Enough { points: 5, messages: 1, kinds: 1, whole_piece: 3 };
