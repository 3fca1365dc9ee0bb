//! What a channel tells its owner, and what can go wrong.

use std::net::IpAddr;
use std::time::Duration;

use spice_proto::error::ParseError;
use spice_proto::service_info::{InfoError, ServiceInfo};
use spice_proto::tunnel::{
    GroupId, InfoBody, NameAnswer, QueryId, ServiceAdd, ServiceId, ServiceKind, SocketId,
};

use crate::service::ServiceFault;

/// What a message of the peer means for the owner. Payloads are borrowed from the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Client: INIT came. Services may be announced now.
    Ready {
        /// How many sockets the server may open at a time.
        max_sockets: u16,
        /// Longest payload of a DATA message in bytes, either way.
        max_data: u32,
    },
    /// Server: what a service says of itself. Of one that was announced, it replaces what was said before. Of any other it
    /// is to be kept for the next [`Event::ServiceAdded`] or [`Event::ServiceRejected`], and counts if that bears the same id;
    /// if not, the service is one that was rejected before, which the client cannot know. So one is enough to keep.
    ServiceDescribed {
        /// The service.
        service: ServiceId,
        /// What it says.
        info: InfoBody<'a>,
    },
    /// Server: the client announced a service; answer with [`Channel::map_service`](crate::Channel::map_service).
    ServiceAdded(ServiceAdd<'a>),
    /// Server: the client announced a service that was not taken in. Nothing is to be done; it is worth a line in a log.
    ServiceRejected {
        /// The service.
        service: ServiceId,
        /// Why.
        fault: ServiceFault,
    },
    /// Server: the client withdrew a service. Its open sockets live on; the address is free when they are gone.
    ServiceRemoved {
        /// The service.
        service: ServiceId,
    },
    /// Client: where the guest finds a service.
    ServiceMapped {
        /// The service, one that this side announced and has not removed.
        service: ServiceId,
        /// Its address in the guest's network.
        address: IpAddr,
    },
    /// Client: the guest connects to a service; answer with [`Channel::accept`](crate::Channel::accept) or
    /// [`Channel::refuse`](crate::Channel::refuse).
    Open {
        /// The socket.
        socket: SocketId,
        /// The service, one that this side announced and has not removed.
        service: ServiceId,
    },
    /// Server: the service accepted. Both directions are open.
    Accepted {
        /// The socket.
        socket: SocketId,
    },
    /// Server: the service did not accept. The id is out of the owner's hands.
    Refused {
        /// The socket.
        socket: SocketId,
    },
    /// Bytes for the local sink; never empty. Once they are written, report one message by
    /// [`Channel::delivered`](crate::Channel::delivered).
    Data {
        /// The socket.
        socket: SocketId,
        /// The bytes.
        payload: &'a [u8],
    },
    /// The peer sends no more on this socket: end the local sink behind what was received.
    Finished {
        /// The socket.
        socket: SocketId,
    },
    /// Credit came when there was none.
    Writable {
        /// The socket.
        socket: SocketId,
    },
    /// Client: the guest's connection is gone, after the guest had sent all it wanted to. Deliver what was received, then
    /// [`Channel::close`](crate::Channel::close); reading from the service is of no use any more, and nothing can be sent.
    PeerClosed {
        /// The socket.
        socket: SocketId,
    },
    /// The socket was aborted: drop what was received and abort the local connection. The id is out of the owner's hands.
    Reset {
        /// The socket.
        socket: SocketId,
        /// Whose fault it is.
        cause: ResetCause,
    },
    /// Client: the guest asks for a name of one of the domains; answer with
    /// [`Channel::answer_name`](crate::Channel::answer_name), once. At most
    /// [`MAX_QUERIES`](spice_proto::tunnel::MAX_QUERIES) are unanswered.
    NameAsked {
        /// The question.
        query: QueryId,
        /// A host name in lower case, in a domain that this side added and has not removed.
        name: &'a str,
    },
    /// Server: where the name is that was asked for by [`Channel::ask_name`](crate::Channel::ask_name).
    NameAnswered {
        /// The question.
        query: QueryId,
        /// A group has at least one service that was added and not removed; its time is within bounds.
        answer: NameAnswer,
    },
    /// Server: names of this domain may be asked for.
    DomainAdded {
        /// Its name, in the client's case.
        name: &'a str,
    },
    /// Server: names of this domain may not be asked for any more. Questions on their way are still answered.
    DomainRemoved {
        /// Its name, perhaps in another case than before.
        name: &'a str,
    },
    /// Client: the VM moves to another host. Every socket was closed, without a word to the server as its connections
    /// are gone with it; the owner aborts the local ones. The channel ends.
    Migrate,
    /// The peer says that it is leaving. The link's end follows; until then everything works on.
    Disconnecting {
        /// A link error code (wire-reference 1.7), 0 for none.
        reason: u32,
    },
}

/// Whose doing a reset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResetCause {
    /// The peer's end of the socket was aborted.
    #[error("aborted by the peer")]
    Peer,
    /// The peer broke the rules on this socket. The other sockets are not affected.
    #[error("peer broke the protocol: {0}")]
    Violation(#[from] SocketViolation),
    /// More waits for delivery than twice [`Config::memory_budget`](crate::Config::memory_budget), and this socket's
    /// message was the one too many.
    #[error("too much waits for delivery: {waiting} bytes on all sockets")]
    Memory {
        /// Bytes waiting, before this message.
        waiting: usize,
    },
}

/// A fault of the peer that concerns one socket and ends just that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketViolation {
    /// A message that the socket's state does not allow.
    #[error("{message} came while the socket was {state}")]
    Unexpected {
        /// `spice.proto`'s name of the message.
        message: &'static str,
        /// The state.
        state: &'static str,
    },
    /// DATA without a token for it.
    #[error("data came without credit")]
    NoCredit,
    /// DATA longer than agreed.
    #[error("data of {length} bytes came, at most {limit} were agreed")]
    TooLong {
        /// Bytes of payload.
        length: usize,
        /// INIT's limit.
        limit: usize,
    },
    /// TOKEN that lifts the credit above what can be counted.
    #[error("{granted} tokens came on top of {had}, more than 32 bits hold")]
    CreditOverflow {
        /// Credit before.
        had: u32,
        /// What came.
        granted: u32,
    },
}

/// A fault of the peer that ends the channel: nothing that it says can be relied on any more, or there is no message by
/// which just a part of it could be refused. Close the link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A body that does not parse.
    #[error(transparent)]
    Malformed(#[from] ParseError),
    /// A message number that means nothing in this direction.
    #[error("peer sent a message of type {kind}, which the tunnel channel does not have")]
    UnknownMessage {
        /// The number.
        kind: u16,
    },
    /// A list of sub-messages, which the tunnel channel never uses.
    #[error("peer sent sub-messages in a message of type {kind}, the tunnel channel has none")]
    SubMessages {
        /// The carrier's number.
        kind: u16,
    },
    /// A tunnel message before INIT.
    #[error("server sent {message} before init")]
    BeforeInit {
        /// `spice.proto`'s name of the message.
        message: &'static str,
    },
    /// INIT came again.
    #[error("server sent init twice")]
    InitTwice,
    /// INIT with a message size that nobody can use or that we do not bear.
    #[error("server announced data messages of up to {got} bytes, expected 1..={limit}")]
    InitData {
        /// What was announced.
        got: u32,
        /// Most that we bear.
        limit: u32,
    },
    /// A message that needs a capability, from a peer that has not negotiated it.
    #[error("peer sent {message}, for which no capability was negotiated")]
    NotNegotiated {
        /// `spice.proto`'s name of the message.
        message: &'static str,
    },
    /// An id that INIT does not allow.
    #[error("peer sent {message} for socket {socket}, ids end before {limit}", socket = socket.0)]
    SocketOutOfRange {
        /// `spice.proto`'s name of the message.
        message: &'static str,
        /// The id.
        socket: SocketId,
        /// INIT's number.
        limit: u16,
    },
    /// A message for an id that is not in use. No crossing of messages leads to this, so the two ends disagree about
    /// which sockets there are.
    #[error("peer sent {message} for socket {socket}, which does not exist", socket = socket.0)]
    NoSuchSocket {
        /// `spice.proto`'s name of the message.
        message: &'static str,
        /// The id.
        socket: SocketId,
    },
    /// OPEN for an id that is in use. A refusal would bear the same id and be taken for the other socket's.
    #[error("server opened socket {socket}, which is in use", socket = socket.0)]
    SocketInUse {
        /// The id.
        socket: SocketId,
    },
    /// An address for a service that was never announced.
    #[error("server mapped service {service}, which was never announced", service = service.0)]
    NeverAnnounced {
        /// The id.
        service: ServiceId,
    },
    /// A question under the number of one that is not answered.
    #[error("server asked for a name as query {query}, which is not answered yet", query = query.0)]
    QueryInUse {
        /// The number.
        query: QueryId,
    },
    /// More questions than there may be.
    #[error("server asked for a name while {limit} queries were unanswered, which is the most there may be")]
    TooManyQueries {
        /// The limit.
        limit: usize,
    },
    /// An answer to what was not asked, or was answered before.
    #[error("client answered query {query}, which was not asked or is answered", query = query.0)]
    NeverAsked {
        /// The number.
        query: QueryId,
    },
    /// More domains than there may be.
    #[error("client added a domain while there were {limit}, which is the most there may be")]
    TooManyDomains {
        /// The limit.
        limit: usize,
    },
    /// The peer goes on sending what must be answered and does not read the answers.
    #[error("peer does not read: {queued} bytes wait for it, at most {limit} are held")]
    NotReading {
        /// Bytes waiting.
        queued: usize,
        /// Most that we hold.
        limit: usize,
    },
    /// The peer is dead or the link broken.
    #[error("nothing came from the peer for {after:?}")]
    Silent {
        /// For how long.
        after: Duration,
    },
}

/// Why [`Channel::open`](crate::Channel::open) failed. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// All ids are in use.
    #[error("all {limit} sockets are in use")]
    Full {
        /// How many there are.
        limit: u16,
    },
    /// The client did not announce this service, or withdrew it.
    #[error("there is no service {service}", service = service.0)]
    UnknownService {
        /// The service.
        service: ServiceId,
    },
    /// The channel has ended, or this is a client.
    #[error("the channel cannot open sockets")]
    NotReady,
}

/// Why [`Channel::map_service`](crate::Channel::map_service) failed. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The client did not announce this service, or withdrew it.
    #[error("there is no service {service}", service = service.0)]
    UnknownService {
        /// The service.
        service: ServiceId,
    },
    /// The wire has addresses of IPv4 only.
    #[error("the tunnel channel cannot carry the address {address}, only IPv4")]
    AddressFamily {
        /// The address.
        address: IpAddr,
    },
    /// The channel has ended, or this is a client.
    #[error("the channel cannot map services")]
    NotReady,
}

/// Why [`Channel::add_service`](crate::Channel::add_service) failed. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// The server would not take it in.
    #[error(transparent)]
    Service(#[from] ServiceFault),
    /// Name or description cannot be written: they hold a NUL or are too long.
    #[error("{field} has {length} bytes or a NUL in it, at most {limit} without NUL can be sent")]
    Text {
        /// `name` or `description`.
        field: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// No TCP port is 0.
    #[error("a service cannot have port 0")]
    Port,
    /// The server's INIT has not come, the channel has ended, or this is a server.
    #[error("the channel cannot announce services now")]
    NotReady,
}

/// Why [`Channel::ask_name`](crate::Channel::ask_name) failed. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The client allowed no domain that the name is in.
    #[error("the name is in no domain that the client allows")]
    NoDomain,
    /// As many questions as there may be are not answered.
    #[error("{limit} names are being asked for already")]
    Full {
        /// How many there may be.
        limit: usize,
    },
    /// The client does not know about names.
    #[error("asking for names was not negotiated")]
    NotNegotiated,
    /// The channel has ended, or this is a client.
    #[error("the channel cannot ask for names")]
    NotReady,
}

/// Why [`Channel::add_domain`](crate::Channel::add_domain) failed. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// No domain that may be asked for from another network.
    #[error(transparent)]
    Name(#[from] InfoError),
    /// There are as many as there may be.
    #[error("there are {limit} domains already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The server does not know about names.
    #[error("asking for names was not negotiated")]
    NotNegotiated,
    /// The server's INIT has not come, the channel has ended, or this is a server.
    #[error("the channel cannot add domains now")]
    NotReady,
}

/// A service to announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewService<'a> {
    /// What sort of service.
    pub kind: ServiceKind,
    /// The device it belongs to, as the owner numbers them. Services of one group get one virtual address.
    pub group: GroupId,
    /// TCP port under which the guest finds it, not 0.
    pub port: u16,
    /// The device's name, the same for the whole group. UTF-8 is expected, no NUL.
    pub name: &'a [u8],
    /// For people. UTF-8 is expected, no NUL.
    pub description: &'a [u8],
    /// What more there is to say of it. Only a server with [`SERVICE_INFO`](spice_proto::link::TunnelCaps::SERVICE_INFO) is
    /// told.
    pub info: Option<&'a ServiceInfo>,
}
