//! Passwords and their way over the wire: RSA-1024 with OAEP (wire-reference 1.6).
//!
//! Randomness lives here and nowhere else in this crate, in [`TicketKey::generate`] and [`seal`]; the link machines
//! call neither.

use openssl::hash::{MessageDigest, hash};
use openssl::memcmp;
use openssl::pkey::{Private, Public};
use openssl::rsa::{Padding, Rsa};

use crate::link::{PUBLIC_KEY_LEN, TICKET_LEN};

/// Most plaintext bytes in one ticket: 128, less twice a SHA-1 hash and 2 bytes.
pub const MAX_PLAINTEXT: usize = 86;

/// A Spice password. Not printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

/// Why a password cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// More than [`Password::MAX`] bytes.
    #[error(
        "expected a password of at most 59 bytes, got {0}: Spice servers keep 60 including a closing NUL, cut off the 60th byte and let nobody in with more"
    )]
    TooLong(usize),
    /// A NUL, at which every Spice server ends the password.
    #[error("expected a password without NUL bytes, found one at byte {0}")]
    Nul(usize),
}

impl Password {
    /// Most bytes of a password that works with every server.
    ///
    /// The protocol's constant is 60, but libspice-server stores into 60 bytes *including* the NUL: of a password of 60
    /// it compares 59, and with one of 61 every login fails.
    pub const MAX: usize = 59;

    /// Checks what a user gave: any bytes but NUL, at most 59.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PasswordError> {
        let bytes = bytes.into();
        if bytes.len() > Self::MAX {
            return Err(PasswordError::TooLong(bytes.len()));
        }
        match bytes.iter().position(|byte| *byte == 0) {
            Some(at) => Err(PasswordError::Nul(at)),
            None => Ok(Self(bytes)),
        }
    }

    /// For servers without ticketing: they ask for a ticket all the same.
    pub const fn empty() -> Self {
        Self(Vec::new())
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    pub fn matches(&self, other: &Self) -> bool {
        // Digests have one length, which the comparison needs; the passwords' own lengths differ.
        let digest = |password: &Self| hash(MessageDigest::sha256(), &password.0);
        match (digest(self), digest(other)) {
            (Ok(ours), Ok(theirs)) => memcmp::eq(&ours, &theirs),
            (Err(_), _) | (_, Err(_)) => false,
        }
    }

    /// What a peer's ticket held, up to its first NUL, as servers compare it. May be longer than a user's could be.
    fn from_plaintext(plaintext: &[u8]) -> Self {
        Self(plaintext.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// openssl failed us: no memory, no randomness, or a broken installation. Nobody's bytes are at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cryptography failed: {0}")]
pub struct CryptoError(String);

impl From<openssl::error::ErrorStack> for CryptoError {
    fn from(stack: openssl::error::ErrorStack) -> Self {
        Self(stack.to_string())
    }
}

/// The ticket does not decrypt. To the peer it must look exactly like a wrong password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ticket does not decrypt")]
pub struct Undecryptable;

/// What is wrong with a server's public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not an RSA key in DER.
    #[error("expected the server's public key as RSA in DER, got something else")]
    NotRsa,
    /// A ticket has exactly 128 bytes, so no other key can be meant.
    #[error("expected the server's public key to have 1024 bits, got {0}")]
    Bits(u32),
    /// An exponent of 1 (or an even one) encrypts nothing.
    #[error("expected the server's public key to have an odd exponent of 3 or more")]
    Exponent,
    /// Something other than zeros stands behind the key.
    #[error("expected nothing behind the server's public key, got other bytes")]
    Trailing,
    /// The password cannot be encrypted, although it fits.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// The key of one link. Make a new one for every link, as servers do: what was sealed for it is worth nothing then.
pub struct TicketKey {
    private: Rsa<Private>,
    public_der: [u8; PUBLIC_KEY_LEN],
}

impl TicketKey {
    /// A new key, from openssl's randomness. Takes some milliseconds of computing.
    pub fn generate() -> Result<Self, CryptoError> {
        let private = Rsa::generate(1024)?;
        let der = private.public_key_to_der()?;
        let public_der = der
            .try_into()
            .map_err(|der: Vec<u8>| CryptoError(format!("expected a key of 162 bytes, got {}", der.len())))?;
        Ok(Self { private, public_der })
    }

    /// The public half, as it stands in a link reply.
    pub const fn public_der(&self) -> &[u8; PUBLIC_KEY_LEN] {
        &self.public_der
    }

    /// Opens a ticket that was sealed for this key: bytes up to the first NUL, of which there need be none.
    pub fn open(&self, ticket: &[u8; TICKET_LEN]) -> Result<Password, Undecryptable> {
        let mut plaintext = [0; TICKET_LEN];
        let length = self
            .private
            .private_decrypt(ticket, &mut plaintext, Padding::PKCS1_OAEP)
            .map_err(|_| Undecryptable)?;
        plaintext.get(..length).map(Password::from_plaintext).ok_or(Undecryptable)
    }
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey(..)")
    }
}

/// Encrypts a password and a NUL for a server's key.
///
/// # Errors
/// When the key is not RSA-1024 with a sane exponent, alone in its 162 bytes but for zeros.
pub fn seal(public_der: &[u8; PUBLIC_KEY_LEN], password: &Password) -> Result<[u8; TICKET_LEN], SealError> {
    let key = public_key(public_der)?;
    let mut plaintext = password.0.clone();
    // A stranger's ticket may fill the block; servers take it without the NUL too.
    if plaintext.len() < MAX_PLAINTEXT {
        plaintext.push(0);
    }
    let mut sealed = [0; TICKET_LEN];
    key.public_encrypt(&plaintext, &mut sealed, Padding::PKCS1_OAEP).map_err(CryptoError::from)?;
    Ok(sealed)
}

fn public_key(der: &[u8; PUBLIC_KEY_LEN]) -> Result<Rsa<Public>, SealError> {
    let key = Rsa::public_key_from_der(der).map_err(|_| SealError::NotRsa)?;
    let bits = key.n().num_bits();
    if bits != 1024 {
        return Err(SealError::Bits(bits.unsigned_abs()));
    }
    let exponent = key.e();
    if exponent.num_bits() < 2 || !exponent.is_bit_set(0) || exponent.is_negative() {
        return Err(SealError::Exponent);
    }
    // A key with a shorter exponent leaves bytes over; they must not carry anything.
    let used = key.public_key_to_der().map_err(CryptoError::from)?.len();
    if der.get(used..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0)) {
        return Err(SealError::Trailing);
    }
    Ok(key)
}
