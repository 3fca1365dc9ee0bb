//! Sockets that this process was born with: passed by number (`fd:N`), or by systemd by name (`sd_listen_fds(3)`).
//!
//! The one module with `unsafe`. A descriptor's number becomes an owner of that descriptor in `adopt`, and nowhere else;
//! the proof is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// The first descriptor that systemd passes. What is below belongs to standard input and output.
const FIRST: RawFd = 3;
/// More than anyone passes.
const MOST: RawFd = 1024;

/// Why a socket that was to be passed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// Standard input and output.
    #[error("fd:{0} is standard input or output: pass the socket as descriptor 3 or above")]
    Standard(RawFd),
    /// No such descriptor.
    #[error("fd:{0} was not passed: whoever starts this program must leave that descriptor open for it")]
    NotOpen(RawFd),
    /// Of our own making.
    #[error("fd:{0} is a descriptor of this program's own, not one that was passed to it")]
    Own(RawFd),
    /// It has an owner already.
    #[error("fd:{0} is given twice")]
    Twice(RawFd),
    /// There is no telling.
    #[error("cannot find out what fd:{number} is")]
    Unknown {
        /// The descriptor.
        number: RawFd,
        /// What the system said.
        source: io::Error,
    },
    /// A file, a terminal, a datagram socket.
    #[error("{name} is no stream socket of TCP or Unix")]
    NotStream {
        /// As it was asked for.
        name: String,
    },
    /// The wrong kind of socket.
    #[error("{name} is {got}, expected {expected}")]
    Kind {
        /// As it was asked for.
        name: String,
        /// What it is.
        got: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// systemd passed no socket of that name.
    #[error("systemd passed no socket with the name {name:?}: {}", Passed(passed))]
    NoName {
        /// The name.
        name: String,
        /// What it did pass.
        passed: Vec<String>,
    },
    /// It has to be said which.
    #[error("systemd: without a name means the only socket that systemd passed: {}", Passed(passed))]
    NotOnly {
        /// What it did pass.
        passed: Vec<String>,
    },
    /// A list of descriptors that makes no sense.
    #[error("LISTEN_FDS is {0:?}: expected a small number")]
    ListenFds(String),
    /// A defect of ours.
    #[error("the sockets of this process were claimed before")]
    Again,
}

struct Passed<'a>(&'a [String]);

impl std::fmt::Display for Passed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [] => f.write_str("there is none"),
            names => write!(f, "there are {}", names.join(", ")),
        }
    }
}

/// A stream socket of some kind, non-blocking.
#[derive(Debug)]
pub enum Socket {
    /// Takes TCP connections.
    TcpListener(TcpListener),
    /// Takes local connections.
    UnixListener(UnixListener),
    /// A TCP connection.
    TcpStream(TcpStream),
    /// A local connection.
    UnixStream(UnixStream),
}

impl Socket {
    /// In words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TcpListener(_) => "a listening TCP socket",
            Self::UnixListener(_) => "a listening Unix socket",
            Self::TcpStream(_) => "a TCP connection",
            Self::UnixStream(_) => "a Unix connection",
        }
    }
}

/// The sockets that the process was born with and that nobody has claimed yet.
#[derive(Debug, Default)]
pub struct Inherited {
    held: BTreeMap<RawFd, Held>,
}

#[derive(Debug)]
struct Held {
    /// systemd's name for it.
    name: Option<String>,
    fd: OwnedFd,
}

impl Inherited {
    /// Takes over what systemd passed, and these descriptors besides. To be called once, at the very start of the process:
    /// before it has opened anything itself.
    ///
    /// # Errors
    /// One of them was not passed.
    pub fn take(numbers: impl IntoIterator<Item = RawFd>) -> Result<Self, InheritedError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(InheritedError::Again);
        }
        let names = systemd(|name| std::env::var(name).ok(), std::process::id())?;
        let numbers: BTreeSet<RawFd> = numbers.into_iter().chain(names.keys().copied()).collect();
        let mut held = BTreeMap::new();
        for number in numbers {
            held.insert(number, Held { name: names.get(&number).cloned(), fd: adopt(number)? });
        }
        Ok(Self { held })
    }

    /// The socket of this number. Each can be claimed once.
    ///
    /// # Errors
    /// There is none, or it is no stream socket.
    pub fn claim(&mut self, number: RawFd) -> Result<Socket, InheritedError> {
        let held = self.held.remove(&number).ok_or(InheritedError::Twice(number))?;
        socket(held.fd, &format!("fd:{number}"))
    }

    /// The sockets of this name, of which there may be several (a unit with several `ListenStream=`); without a name, the
    /// only one there is.
    ///
    /// # Errors
    /// There is none, or it is no stream socket.
    pub fn claim_named(&mut self, name: Option<&str>) -> Result<Vec<Socket>, InheritedError> {
        let named = self.held.iter().filter_map(|(number, held)| Some((*number, held.name.as_deref()?)));
        let numbers: Vec<RawFd> = match name {
            Some(wanted) => named.filter(|(_, name)| *name == wanted).map(|(number, _)| number).collect(),
            None => named.map(|(number, _)| number).collect(),
        };
        let passed = || self.held.values().filter_map(|held| held.name.clone()).collect();
        match (name, numbers.as_slice()) {
            (Some(name), []) => Err(InheritedError::NoName { name: name.to_owned(), passed: passed() }),
            (None, [] | [_, _, ..]) => Err(InheritedError::NotOnly { passed: passed() }),
            (Some(_) | None, _) => {
                let name = format!("systemd:{}", name.unwrap_or_default());
                let held = numbers.iter().filter_map(|number| self.held.remove(number));
                held.map(|held| socket(held.fd, &name)).collect()
            }
        }
    }

    /// What was passed and is of no use, for a warning.
    pub fn unclaimed(&self) -> Vec<String> {
        let name = |(number, held): (&RawFd, &Held)| match &held.name {
            Some(name) => format!("systemd:{name}"),
            None => format!("fd:{number}"),
        };
        self.held.iter().map(name).collect()
    }
}

/// systemd's descriptors and their names, if they are for this process. Those of a parent are still in the environment of
/// its children, whom they do not concern.
fn systemd(
    variable: impl Fn(&str) -> Option<String>,
    process: u32,
) -> Result<BTreeMap<RawFd, String>, InheritedError> {
    if variable("LISTEN_PID").and_then(|pid| pid.parse().ok()) != Some(process) {
        return Ok(BTreeMap::new());
    }
    let Some(count) = variable("LISTEN_FDS") else { return Ok(BTreeMap::new()) };
    let Some(number) = count.parse().ok().filter(|number| (0..=MOST).contains(number)) else {
        return Err(InheritedError::ListenFds(count));
    };
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').filter(|name| !name.is_empty()).chain(std::iter::repeat("unknown"));
    Ok((FIRST..FIRST + number).zip(names.map(str::to_owned)).collect())
}

/// Becomes the owner of a descriptor that the process was born with.
fn adopt(number: RawFd) -> Result<OwnedFd, InheritedError> {
    if number < FIRST {
        return Err(InheritedError::Standard(number));
    }
    let unknown = |source| InheritedError::Unknown { number, source };
    let info = match std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")) {
        Ok(info) => info,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(InheritedError::NotOpen(number)),
        Err(error) => return Err(unknown(error)),
    };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    let flags = flags.ok_or_else(|| unknown(io::ErrorKind::InvalidData.into()))?;
    if OFlags::from_bits_retain(flags).contains(OFlags::CLOEXEC) {
        return Err(InheritedError::Own(number));
    }
    // SAFETY: the descriptor is open, and nothing in this process owns it.
    // Open: the system has just described it, and nobody closes it meanwhile who does not own it.
    // Not owned: a descriptor without the flag close-on-exec was there before this program began, since the standard library,
    // tokio and rustix set the flag on all that they open; standard input and output, which they do hand out, were sorted out.
    // A C library that opens files without the flag cannot have opened one yet: this runs once in the life of the process
    // (`take`), and `main` calls it before anything else but the parsing of arguments.
    // Not owned twice: the flag is set below, so that a second call for the same number ends above.
    #[expect(unsafe_code, reason = "there is no other way from a number to the descriptor")]
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|error| unknown(error.into()))?;
    Ok(fd)
}

/// What kind of socket it is.
fn socket(fd: OwnedFd, name: &str) -> Result<Socket, InheritedError> {
    let not_stream = || InheritedError::NotStream { name: name.to_owned() };
    let failed = |error: Errno| {
        tracing::debug!(%error, name, "cannot be asked as a socket");
        not_stream()
    };
    if socket_type(fd.as_fd()).map_err(failed)? != SocketType::STREAM {
        return Err(not_stream());
    }
    let listens = socket_acceptconn(fd.as_fd()).map_err(failed)?;
    let domain = socket_domain(fd.as_fd()).map_err(failed)?;
    rustix::io::ioctl_fionbio(fd.as_fd(), true).map_err(failed)?;
    Ok(match domain {
        AddressFamily::INET | AddressFamily::INET6 if listens => Socket::TcpListener(fd.into()),
        AddressFamily::INET | AddressFamily::INET6 => Socket::TcpStream(fd.into()),
        AddressFamily::UNIX if listens => Socket::UnixListener(fd.into()),
        AddressFamily::UNIX => Socket::UnixStream(fd.into()),
        _ => return Err(not_stream()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(variables: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    fn list(variables: &[(&str, &str)]) -> Result<Vec<(RawFd, String)>, InheritedError> {
        systemd(environment(variables), 77).map(|list| list.into_iter().collect())
    }

    #[test]
    fn systemds_list() {
        assert_eq!(list(&[]).unwrap(), []);
        let named = [("LISTEN_PID", "77"), ("LISTEN_FDS", "3"), ("LISTEN_FDNAMES", "plain:tls")];
        let wanted =
            [(3, "plain"), (4, "tls"), (5, "unknown")].map(|(number, name)| (number, name.to_owned()));
        assert_eq!(list(&named).unwrap(), wanted);
        assert_eq!(list(&[("LISTEN_PID", "78"), ("LISTEN_FDS", "1")]).unwrap(), [], "not for us");
        assert_eq!(list(&[("LISTEN_FDS", "1")]).unwrap(), [], "for nobody");
        for wrong in ["", "-1", "1000000", "x"] {
            assert!(list(&[("LISTEN_PID", "77"), ("LISTEN_FDS", wrong)]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn our_own_descriptors_are_not_given_away() {
        use std::os::fd::AsRawFd;

        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(adopt(file.as_raw_fd()), Err(InheritedError::Own(_))));
        assert!(matches!(adopt(1), Err(InheritedError::Standard(1))));
        assert!(matches!(adopt(999_999), Err(InheritedError::NotOpen(999_999))));
    }

    #[test]
    fn sockets_are_told_by_what_they_are() {
        let kind = |fd: OwnedFd| socket(fd, "it").map(|socket| socket.kind());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        assert_eq!(kind(tcp.try_clone().unwrap().into()).unwrap(), "a listening TCP socket");
        assert_eq!(kind(TcpStream::connect(address).unwrap().into()).unwrap(), "a TCP connection");
        assert_eq!(kind(UnixStream::pair().unwrap().0.into()).unwrap(), "a Unix connection");
        let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert!(matches!(kind(datagram.into()), Err(InheritedError::NotStream { .. })));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(kind(file.into()), Err(InheritedError::NotStream { .. })));
    }

    fn held(sockets: &[(RawFd, Option<&str>)]) -> Inherited {
        let held = sockets.iter().map(|(number, name)| {
            let fd = UnixStream::pair().unwrap().0.into();
            (*number, Held { name: name.map(str::to_owned), fd })
        });
        Inherited { held: held.collect() }
    }

    #[test]
    fn each_socket_is_claimed_once() {
        let mut inherited = held(&[(3, Some("a")), (4, Some("b")), (5, Some("b")), (9, None)]);
        assert_eq!(inherited.claim_named(Some("b")).unwrap().len(), 2);
        assert!(matches!(inherited.claim_named(Some("b")), Err(InheritedError::NoName { .. })));
        assert_eq!(inherited.unclaimed(), ["systemd:a", "fd:9"]);
        assert_eq!(inherited.claim_named(None).unwrap().len(), 1);
        inherited.claim(9).unwrap();
        assert!(matches!(inherited.claim(9), Err(InheritedError::Twice(9))));
        let error = held(&[(3, Some("a")), (4, Some("b"))]).claim_named(None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "systemd: without a name means the only socket that systemd passed: there are a, b"
        );
    }
}
