//! Virtual addresses: names hashed into the subnet, and remembered (design.md, decision 8).
//!
//! A resource's address is a function of two names: the network that it stands in and its own identity there. So it is
//! the same after every restart, on every host, whatever its DHCP server gave it today. Two names that hash to one
//! address are told apart by probing: attempt 0, 1, 2, … each hashes anew, and the first free address wins. Who came
//! first then matters, hence the memory: what was ever given is kept, and a saved book gives the same addresses again.
//!
//! The book is sans-IO but for [`write_atomically`]; the shell reads and writes the file.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

use openssl::sha::Sha256;
use serde::{Deserialize, Serialize};

/// Longest identity and longest network id, in octets.
pub const MAX_NAME: usize = 512;
/// Largest saved book that [`AddressBook::load`] looks at, in octets.
pub const MAX_TEXT: usize = 64 * 1024 * 1024;

/// Hashed attempts before the subnet is searched one address after the other.
const ATTEMPTS: u32 = 256;

/// A range of addresses that share a prefix, v4 or v6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// INVARIANT: no bit beyond the prefix is set.
    network: IpAddr,
    /// INVARIANT: 1..=30 for v4, 1..=126 for v6.
    prefix: u8,
}

impl Subnet {
    /// The subnet that `address` is in. `prefix` is 1 to 30 for v4, 1 to 126 for v6: at least two hosts.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Subnet, SubnetError> {
        let longest = bits(address) - 2;
        if prefix == 0 || prefix > longest {
            return Err(SubnetError::Prefix { prefix, longest });
        }
        let mut subnet = Subnet { network: address, prefix };
        subnet.network = from_number(address, to_number(address) & !subnet.host_mask());
        Ok(subnet)
    }

    /// The first address; for v4 no host has it.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// Number of leading bits that all its addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The mask of the prefix, for v4.
    pub fn mask(&self) -> Option<Ipv4Addr> {
        match self.network {
            IpAddr::V4(_) => Some(Ipv4Addr::from(u32::MAX << (32 - u32::from(self.prefix)))),
            IpAddr::V6(_) => None,
        }
    }

    /// The last address, where it means all hosts (v4 only).
    pub fn broadcast(&self) -> Option<IpAddr> {
        match self.network {
            IpAddr::V4(_) => Some(from_number(self.network, to_number(self.network) | self.host_mask())),
            IpAddr::V6(_) => None,
        }
    }

    /// Whether `address` has this prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.network.is_ipv4()
            && to_number(address) & !self.host_mask() == to_number(self.network)
    }

    /// Whether one host can have `address`: inside, and neither the network's own nor the broadcast address.
    pub fn is_host(&self, address: IpAddr) -> bool {
        self.contains(address) && address != self.network && Some(address) != self.broadcast()
    }

    /// The `index`th address of the subnet, counted from the network's own. `None`: there are not so many.
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        (index <= self.host_mask()).then(|| from_number(self.network, to_number(self.network) | index))
    }

    fn host_mask(&self) -> u128 {
        (1 << (bits(self.network) - self.prefix)) - 1
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    /// `ADDRESS/PREFIX`, as [`Display`](std::fmt::Display) writes it.
    fn from_str(text: &str) -> Result<Subnet, SubnetError> {
        let (address, prefix) = text.split_once('/').ok_or_else(|| SubnetError::Text(text.to_owned()))?;
        match (address.parse(), prefix.parse()) {
            (Ok(address), Ok(prefix)) => Subnet::new(address, prefix),
            _ => Err(SubnetError::Text(text.to_owned())),
        }
    }
}

/// What is wrong with a configured subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// The prefix leaves no room for hosts, or is none.
    #[error("prefix length {prefix}: expected 1 to {longest}, so that at least two hosts fit")]
    Prefix {
        /// What was given.
        prefix: u8,
        /// What would still do for this kind of address.
        longest: u8,
    },
    /// Not of the form `ADDRESS/PREFIX`.
    #[error("\"{0}\" is no subnet: expected ADDRESS/PREFIX, as in 198.18.0.0/16")]
    Text(String),
}

/// Who has which virtual address, now and ever.
#[derive(Debug)]
pub struct AddressBook {
    network_id: String,
    subnet: Subnet,
    /// Addresses that are never given: the gateway's and the guests'.
    reserved: Vec<(IpAddr, IpAddr)>,
    by_identity: HashMap<String, IpAddr>,
    /// INVARIANT: the mirror image of `by_identity`.
    by_address: BTreeMap<IpAddr, String>,
    unsaved: bool,
}

impl AddressBook {
    /// An empty book. `network_id` tells two user networks apart (at most [`MAX_NAME`] octets are used); `reserved` are ranges, both ends included, that
    /// are never given.
    pub fn new(network_id: &str, subnet: Subnet, reserved: Vec<(IpAddr, IpAddr)>) -> AddressBook {
        AddressBook {
            network_id: network_id.to_owned(),
            subnet,
            reserved,
            by_identity: HashMap::new(),
            by_address: BTreeMap::new(),
            unsaved: false,
        }
    }

    /// The address of `identity`: the one it always had, or a new one, given for ever.
    ///
    /// # Errors
    /// No address is left, or the identity is empty or longer than [`MAX_NAME`].
    pub fn assign(&mut self, identity: &str) -> Result<IpAddr, AssignError> {
        if let Some(&address) = self.by_identity.get(identity) {
            return Ok(address);
        }
        if identity.is_empty() || identity.len() > MAX_NAME {
            return Err(AssignError::Identity { len: identity.len() });
        }
        let address = (0..ATTEMPTS)
            .map(|attempt| self.hash(identity, attempt))
            .find_map(|index| self.free_at(index))
            .or_else(|| self.search(identity))
            .ok_or(AssignError::Full { subnet: self.subnet, given: self.by_identity.len() })?;
        self.insert(identity.to_owned(), address);
        self.unsaved = true;
        Ok(address)
    }

    /// The address that `identity` was given, if any.
    pub fn address_of(&self, identity: &str) -> Option<IpAddr> {
        self.by_identity.get(identity).copied()
    }

    /// Who was given `address`.
    pub fn identity_of(&self, address: IpAddr) -> Option<&str> {
        self.by_address.get(&address).map(String::as_str)
    }

    /// How many addresses were ever given.
    pub fn len(&self) -> usize {
        self.by_identity.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.by_identity.is_empty()
    }

    /// The whole book as text (JSON), if it holds something that was not saved yet. The caller must write it before it lets
    /// anybody use the new address, or a crash may give it to another.
    pub fn unsaved(&self) -> Option<String> {
        self.unsaved.then(|| self.save())
    }

    /// To be called when what [`AddressBook::unsaved`] gave is on the disk.
    pub fn saved(&mut self) {
        self.unsaved = false;
    }

    /// The whole book as text (JSON), in order of address.
    pub fn save(&self) -> String {
        let text = BookText {
            version: 1,
            network: self.network_id.clone(),
            subnet: self.subnet.to_string(),
            leases: self
                .by_address
                .iter()
                .map(|(address, identity)| LeaseText { address: *address, identity: identity.clone() })
                .collect(),
        };
        // Strings and addresses always have a JSON form.
        let mut json = serde_json::to_string_pretty(&text).unwrap_or_default();
        json.push('\n');
        json
    }

    /// Takes over the leases of a saved book. Nothing is taken over if anything in it is wrong.
    ///
    /// # Errors
    /// The text is too large, is no saved book, or belongs to another network or subnet (there its addresses mean something
    /// else); or a lease in it cannot be: outside the subnet, reserved, given twice.
    pub fn load(&mut self, text: &str) -> Result<(), LoadError> {
        if text.len() > MAX_TEXT {
            return Err(LoadError::TooLarge { len: text.len() });
        }
        let book: BookText = serde_json::from_str(text)?;
        if book.version != 1 {
            return Err(LoadError::Version(book.version));
        }
        if book.network != self.network_id || book.subnet.parse() != Ok(self.subnet) {
            return Err(LoadError::Elsewhere {
                network: book.network,
                subnet: book.subnet,
                expected_network: self.network_id.clone(),
                expected_subnet: self.subnet,
            });
        }
        let mut loaded = AddressBook::new(&self.network_id, self.subnet, self.reserved.clone());
        for LeaseText { address, identity } in book.leases {
            let problem = if identity.is_empty() || identity.len() > MAX_NAME {
                Some("its identity is empty or too long")
            } else if !self.subnet.is_host(address) {
                Some("the address is none of the subnet's hosts")
            } else if self.is_reserved(address) {
                Some("the address belongs to the gateway or to guests")
            } else if loaded.by_identity.contains_key(&identity) {
                Some("the identity has another address already")
            } else if loaded.by_address.contains_key(&address) {
                Some("the address belongs to another identity already")
            } else if self.by_address.get(&address).is_some_and(|known| *known != identity)
                || self.by_identity.get(&identity).is_some_and(|known| *known != address)
            {
                Some("it contradicts what was given since the start")
            } else {
                None
            };
            if let Some(problem) = problem {
                return Err(LoadError::Lease { address, identity, problem });
            }
            loaded.insert(identity, address);
        }
        self.unsaved |= self.by_identity.len() > loaded.by_identity.len();
        for (address, identity) in loaded.by_address {
            self.insert(identity, address);
        }
        Ok(())
    }

    fn insert(&mut self, identity: String, address: IpAddr) {
        self.by_address.insert(address, identity.clone());
        self.by_identity.insert(identity, address);
    }

    /// Index within the subnet: SHA-256 over both names, each behind its length, and the attempt.
    fn hash(&self, identity: &str, attempt: u32) -> u128 {
        let mut sha = Sha256::new();
        for part in [b"spice-tunnel address".as_slice(), self.network_id.as_bytes(), identity.as_bytes()] {
            sha.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            sha.update(part);
        }
        sha.update(&attempt.to_be_bytes());
        let digest = sha.finish();
        let number = digest.first_chunk::<16>().map_or(0, |chunk| u128::from_be_bytes(*chunk));
        number & self.subnet.host_mask()
    }

    fn free_at(&self, index: u128) -> Option<IpAddr> {
        let address = self.subnet.nth(index)?;
        let free = self.subnet.is_host(address)
            && !self.is_reserved(address)
            && !self.by_address.contains_key(&address);
        free.then_some(address)
    }

    /// The first free address behind the hashed one, all round the subnet.
    fn search(&self, identity: &str) -> Option<IpAddr> {
        let last = self.subnet.host_mask();
        let start = self.hash(identity, 0);
        // A v6 subnet cannot be searched whole, and need not be: hashing finds its free addresses.
        let steps = last.min(1 << 24);
        (0..=steps).map(|step| (start + step) & last).find_map(|index| self.free_at(index))
    }

    fn is_reserved(&self, address: IpAddr) -> bool {
        self.reserved.iter().any(|(first, last)| (first..=last).contains(&&address))
    }
}

/// Why an identity gets no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// All are given. Addresses are kept for ever, so only a larger subnet or a new lease file helps.
    #[error(
        "no virtual address is left in {subnet}: {given} were given, and they are kept for ever; use a larger subnet or a new lease file"
    )]
    Full {
        /// Where there is none left.
        subnet: Subnet,
        /// How many were given.
        given: usize,
    },
    /// Empty, or too long.
    #[error("an identity of {len} octets: expected 1 to {MAX_NAME}")]
    Identity {
        /// Its length.
        len: usize,
    },
}

/// Why a saved book is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// More than [`MAX_TEXT`].
    #[error("a lease file of {len} octets: expected at most {MAX_TEXT}")]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// Not the JSON that [`AddressBook::save`] writes.
    #[error("not a lease file: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by another version of this program.
    #[error("a lease file of version {0}: expected 1")]
    Version(u32),
    /// Its addresses belong to another network.
    #[error(
        "the lease file is for network \"{network}\" in {subnet}: expected \"{expected_network}\" in {expected_subnet}; use another file"
    )]
    Elsewhere {
        /// Network id in the file.
        network: String,
        /// Subnet in the file.
        subnet: String,
        /// Network id configured.
        expected_network: String,
        /// Subnet configured.
        expected_subnet: Subnet,
    },
    /// A lease that cannot be.
    #[error("lease of {address} to \"{identity}\": {problem}")]
    Lease {
        /// Its address.
        address: IpAddr,
        /// Its identity.
        identity: String,
        /// What is wrong.
        problem: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BookText {
    version: u32,
    network: String,
    subnet: String,
    leases: Vec<LeaseText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseText {
    address: IpAddr,
    identity: String,
}

/// Replaces the file at `path` by `text`, so that after a crash at any moment either the old or the new text is there, whole. Blocks.
///
/// # Errors
/// What the file system said; the old file is untouched then.
pub fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temporary_name = name.to_owned();
    temporary_name.push(".new");
    let temporary = directory.join(temporary_name);
    // What a crash left there, or a link that somebody put there, must not be written through.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let replaced = written.and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = replaced {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    fs::File::open(directory)?.sync_all()
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// An address of the same version as `like`.
fn from_number(like: IpAddr, number: u128) -> IpAddr {
    match like {
        // Callers keep within the subnet, so within 32 bits.
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}
