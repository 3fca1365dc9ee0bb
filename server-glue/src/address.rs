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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
        IpAddr::from([a, b, c, d])
    }

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    fn book(network: &str) -> AddressBook {
        let reserved = vec![(v4(198, 18, 0, 1), v4(198, 18, 0, 1)), (v4(198, 18, 0, 2), v4(198, 18, 0, 254))];
        AddressBook::new(network, subnet("198.18.0.0/16"), reserved)
    }

    #[test]
    fn subnets() {
        let net = subnet("198.18.77.3/16");
        assert_eq!(
            (net.network(), net.prefix(), net.to_string()),
            (v4(198, 18, 0, 0), 16, "198.18.0.0/16".into())
        );
        assert_eq!(
            (net.mask(), net.broadcast()),
            (Some(Ipv4Addr::new(255, 255, 0, 0)), Some(v4(198, 18, 255, 255)))
        );
        assert!(net.contains(v4(198, 18, 0, 0)) && net.contains(v4(198, 18, 255, 255)));
        assert!(!net.contains(v4(198, 19, 0, 0)) && !net.contains(v4(198, 17, 255, 255)));
        assert!(!net.contains("::c612:1".parse().unwrap()));
        assert!(!net.is_host(v4(198, 18, 0, 0)) && !net.is_host(v4(198, 18, 255, 255)));
        assert!(net.is_host(v4(198, 18, 255, 254)));
        assert_eq!(
            (net.nth(0), net.nth(65_535), net.nth(65_536)),
            (Some(net.network()), net.broadcast(), None)
        );
        let v6 = subnet("fd00::1:2:3/64");
        assert_eq!((v6.to_string(), v6.mask(), v6.broadcast()), ("fd00::/64".into(), None, None));
        assert!(v6.contains("fd00::ffff".parse().unwrap()) && !v6.contains("fd01::".parse().unwrap()));
        for text in ["", "1.2.3.4", "1.2.3.4/", "1.2.3.4/x", "1.2.3/8", "1.2.3.4/-1", "1.2.3.4/300"] {
            assert!(matches!(text.parse::<Subnet>(), Err(SubnetError::Text(_))), "{text}");
        }
        for text in ["1.2.3.4/0", "1.2.3.4/31", "1.2.3.4/32", "1.2.3.4/255", "fd00::/127", "fd00::/0"] {
            assert!(matches!(text.parse::<Subnet>(), Err(SubnetError::Prefix { .. })), "{text}");
        }
    }

    /// If this fails, every address that users have written down has moved.
    #[test]
    fn addresses_are_what_they_always_were() {
        let mut book = book("home");
        let got: Vec<String> =
            ["uuid:1234", "laser", "NAS"].iter().map(|name| book.assign(name).unwrap().to_string()).collect();
        assert_eq!(got, ["198.18.128.221", "198.18.233.235", "198.18.192.62"]);
    }

    #[test]
    fn an_address_is_a_function_of_both_names() {
        let (mut one, mut same, mut other) = (book("home"), book("home"), book("office"));
        let address = one.assign("printer").unwrap();
        assert_eq!(one.assign("printer").unwrap(), address);
        // Whatever came before, unless it collides.
        for number in 0..10 {
            same.assign(&format!("something else {number}")).unwrap();
        }
        assert_eq!(same.assign("printer").unwrap(), address);
        assert_ne!(other.assign("printer").unwrap(), address);
        assert_eq!((one.address_of("printer"), one.identity_of(address)), (Some(address), Some("printer")));
        assert_eq!((one.address_of("x"), one.identity_of(v4(198, 18, 1, 1))), (None, None));
        // The border between the two names counts.
        let mut shifted = AddressBook::new("hom", subnet("198.18.0.0/16"), Vec::new());
        assert_ne!(shifted.assign("eprinter").unwrap(), address);
    }

    #[test]
    fn ten_thousand_names_get_ten_thousand_addresses_all_over_the_subnet() {
        let mut book = book("home");
        let mut quarters = [0; 4];
        for number in 0..10_000 {
            let address = book.assign(&format!("device {number}")).unwrap();
            let IpAddr::V4(v4) = address else { panic!() };
            assert!(v4 > Ipv4Addr::new(198, 18, 0, 254) && v4 < Ipv4Addr::new(198, 18, 255, 255), "{v4}");
            quarters[usize::from(v4.octets()[2] / 64)] += 1;
        }
        assert_eq!(book.len(), 10_000);
        // Each has 2,500 ± 4.6 standard deviations.
        assert!(quarters.iter().all(|count| (2300..2700).contains(count)), "{quarters:?}");
    }

    #[test]
    fn a_full_subnet_is_filled_and_then_an_error() {
        let net = subnet("10.1.2.0/28");
        let mut book = AddressBook::new("n", net, vec![(v4(10, 1, 2, 1), v4(10, 1, 2, 4))]);
        let mut given: Vec<IpAddr> =
            (0..10).map(|number| book.assign(&number.to_string()).unwrap()).collect();
        assert_eq!(book.assign("11th"), Err(AssignError::Full { subnet: net, given: 10 }));
        given.sort_unstable();
        assert_eq!(given, (5..15).map(|host| v4(10, 1, 2, host)).collect::<Vec<_>>());
        // Those who have one keep it.
        assert!(book.assign("3").is_ok());
        assert_eq!(book.len(), 10);
        let all = AddressBook::new("n", net, vec![(v4(0, 0, 0, 0), v4(255, 255, 255, 255))]).assign("a");
        assert!(matches!(all, Err(AssignError::Full { given: 0, .. })));
    }

    #[test]
    fn identities_have_a_size() {
        let mut book = book("home");
        assert_eq!(book.assign(""), Err(AssignError::Identity { len: 0 }));
        assert!(book.assign(&"x".repeat(MAX_NAME)).is_ok());
        assert_eq!(book.assign(&"x".repeat(MAX_NAME + 1)), Err(AssignError::Identity { len: MAX_NAME + 1 }));
    }

    #[test]
    fn a_saved_book_gives_the_same_addresses_again() {
        // Three in a subnet of six hosts: collisions are certain to matter.
        let new = || AddressBook::new("n", subnet("10.0.0.0/29"), vec![(v4(10, 0, 0, 1), v4(10, 0, 0, 1))]);
        let mut book = new();
        assert_eq!(book.unsaved(), None);
        let names = ["a", "b \"quoted\" \u{1}", "Drücker ☃"];
        let given: Vec<IpAddr> = names.iter().map(|name| book.assign(name).unwrap()).collect();
        let text = book.unsaved().unwrap();
        assert_eq!(book.unsaved().as_deref(), Some(text.as_str()), "still not saved");
        book.saved();
        assert_eq!(book.unsaved(), None);
        let mut later = new();
        later.load(&text).unwrap();
        assert_eq!(later.unsaved(), None);
        for (name, address) in names.iter().zip(&given).rev() {
            assert_eq!(later.assign(name).unwrap(), *address);
        }
        assert_eq!(later.save(), text);
    }

    #[test]
    fn loading_checks_everything() {
        let text = |lease: &str| {
            format!(r#"{{"version":1,"network":"home","subnet":"198.18.0.0/16","leases":[{lease}]}}"#)
        };
        let lease =
            |address: &str, identity: &str| format!(r#"{{"address":"{address}","identity":"{identity}"}}"#);
        let wrong_leases = [
            lease("198.18.0.0", "a"),
            lease("198.18.255.255", "a"),
            lease("198.18.0.1", "a"),
            lease("198.18.0.200", "a"),
            lease("10.0.0.1", "a"),
            lease("::1", "a"),
            lease("198.18.5.5", ""),
            lease("198.18.5.5", &"x".repeat(MAX_NAME + 1)),
            [lease("198.18.5.5", "a"), lease("198.18.5.6", "a")].join(","),
            [lease("198.18.5.5", "a"), lease("198.18.5.5", "b")].join(","),
        ];
        for wrong in wrong_leases {
            let mut book = book("home");
            let error = book.load(&text(&wrong)).unwrap_err();
            assert!(matches!(error, LoadError::Lease { .. }), "{wrong}: {error}");
            assert!(book.is_empty(), "nothing of it is taken over");
        }
        let good = text(&lease("198.18.5.5", "a"));
        for wrong in [
            "",
            "{}",
            "[]",
            "null",
            &good[..good.len() - 1],
            &good.replace("home\"", "home\",\"more\":1"),
            &good.replace("198.18.5.5", "198.18.5"),
        ] {
            assert!(matches!(book("home").load(wrong), Err(LoadError::Json(_))), "{wrong}");
        }
        assert!(matches!(book("home").load(&good.replace(":1,", ":2,")), Err(LoadError::Version(2))));
        assert!(matches!(book("office").load(&good), Err(LoadError::Elsewhere { .. })));
        let elsewhere = good.replace("0.0/16", "0.0/17");
        assert!(matches!(book("home").load(&elsewhere), Err(LoadError::Elsewhere { .. })));
        let large = " ".repeat(MAX_TEXT + 1);
        assert!(matches!(book("home").load(&large), Err(LoadError::TooLarge { .. })));
        let mut book = book("home");
        book.load(&good).unwrap();
        assert_eq!(book.assign("a").unwrap(), v4(198, 18, 5, 5));
        // What was given meanwhile must not be contradicted, and is not forgotten.
        assert!(book.load(&text(&lease("198.18.5.5", "b"))).is_err());
        assert!(book.load(&text(&lease("198.18.5.6", "a"))).is_err());
        book.assign("c").unwrap();
        book.saved();
        book.load(&good).unwrap();
        assert!(book.unsaved().unwrap().contains("\"c\""));
    }

    #[test]
    fn files_are_replaced_whole() {
        let directory = std::env::temp_dir().join(format!("address-test-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("leases.json");
        let victim = directory.join("victim");
        fs::write(&victim, "precious").unwrap();
        let _ = fs::remove_file(directory.join("leases.json.new"));
        std::os::unix::fs::symlink(&victim, directory.join("leases.json.new")).unwrap();
        write_atomically(&path, "one").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        write_atomically(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "nothing is written through a link");
        assert!(!directory.join("leases.json.new").exists());
        assert!(write_atomically(&directory.join("missing/leases.json"), "x").is_err());
        assert!(write_atomically(Path::new("/"), "x").is_err());
        fs::remove_dir_all(&directory).unwrap();
    }

    proptest! {
        #[test]
        fn any_names_get_different_addresses_and_survive_saving(
            names in proptest::collection::hash_set(".{1,20}", 1..60),
        ) {
            // 61 free addresses, so that they collide.
            let new = || AddressBook::new("n", subnet("10.0.0.0/26"), vec![(v4(10, 0, 0, 1), v4(10, 0, 0, 1))]);
            let mut book = new();
            let mut given = std::collections::BTreeSet::new();
            for name in &names {
                prop_assert!(given.insert(book.assign(name).unwrap()));
            }
            let mut later = new();
            later.load(&book.save()).unwrap();
            for name in &names {
                prop_assert_eq!(later.address_of(name), book.address_of(name));
            }
        }

        #[test]
        fn any_text_is_survived(text in ".{0,200}") {
            prop_assert!(book("home").load(&text).is_err());
        }
    }
}
