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

    /// As it is, for those who must send it as it is: SASL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
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

#[cfg(test)]
mod tests {
    use openssl::bn::BigNum;

    use super::*;

    /// A ticket for `key` with any plaintext, as a stranger could send.
    fn raw_ticket(key: &TicketKey, plaintext: &[u8]) -> [u8; TICKET_LEN] {
        let public = Rsa::public_key_from_der(key.public_der()).unwrap();
        let mut sealed = [0; TICKET_LEN];
        public.public_encrypt(plaintext, &mut sealed, Padding::PKCS1_OAEP).unwrap();
        sealed
    }

    fn password(bytes: &[u8]) -> Password {
        Password(bytes.to_vec())
    }

    #[test]
    fn keys_are_new_and_have_the_one_encoding() {
        let (one, other) = (TicketKey::generate().unwrap(), TicketKey::generate().unwrap());
        assert_ne!(one.public_der(), other.public_der());
        for key in [&one, &other] {
            let der = key.public_der();
            let head = "30819f300d06092a864886f70d010101050003818d0030818902818100";
            let hex: String = der[..29].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, head);
            assert_eq!(der[157..], [2, 3, 1, 0, 1]);
        }
        let sealed = seal(one.public_der(), &password(b"pw")).unwrap();
        assert_eq!(other.open(&sealed), Err(Undecryptable));
        assert!(one.open(&sealed).unwrap().matches(&password(b"pw")));
    }

    #[test]
    fn plaintexts_are_read_as_servers_read_them() {
        let key = TicketKey::generate().unwrap();
        let open = |plaintext: &[u8]| key.open(&raw_ticket(&key, plaintext)).unwrap().0;
        for length in [0, 1, 59, 60, 61, 85, 86] {
            let mut plaintext = vec![b'x'; length];
            assert_eq!(open(&plaintext), plaintext, "{length} without a NUL");
            plaintext.push(0);
            if length < MAX_PLAINTEXT {
                assert_eq!(open(&plaintext), plaintext[..length], "{length} with a NUL");
            }
        }
        assert_eq!(open(b"before\0after\0"), b"before");
        assert_eq!(open(b"\0"), b"");
        assert_eq!(open(&[0xff, 0xfe, 0x80]), [0xff, 0xfe, 0x80]);
    }

    #[test]
    fn what_does_not_decrypt_is_one_error() {
        let key = TicketKey::generate().unwrap();
        let mut spoilt = seal(key.public_der(), &password(b"pw")).unwrap();
        spoilt[77] ^= 1;
        for ticket in [[0; TICKET_LEN], [0xff; TICKET_LEN], [0x5a; TICKET_LEN], spoilt] {
            assert_eq!(key.open(&ticket), Err(Undecryptable));
        }
    }

    #[test]
    fn whatever_was_opened_can_be_sealed_again() {
        let key = TicketKey::generate().unwrap();
        for length in [0, 1, 59, 85, 86] {
            let opened = key.open(&raw_ticket(&key, &vec![b'x'; length])).unwrap();
            let again = seal(key.public_der(), &opened).unwrap();
            assert_eq!(key.open(&again).unwrap(), opened, "{length}");
        }
    }

    #[test]
    fn passwords() {
        assert_eq!(Password::new([b'x'; 59]).unwrap().0.len(), 59);
        assert_eq!(Password::new([b'x'; 60]), Err(PasswordError::TooLong(60)));
        assert_eq!(Password::new("a\0b"), Err(PasswordError::Nul(1)));
        assert!(Password::new("").unwrap().matches(&Password::empty()));
        assert!(!password(b"pw").matches(&password(b"pW")));
        assert!(!password(b"pw").matches(&password(b"pw ")));
        assert!(!password(b"pw").matches(&Password::empty()));
        assert_eq!(format!("{:?}", password(b"pw")), "Password(..)");
    }

    /// A public key of any shape, put into the 162 bytes of a link reply.
    fn shaped(bits: u32, exponent: u32) -> Option<[u8; PUBLIC_KEY_LEN]> {
        let mut modulus = BigNum::new().unwrap();
        modulus.rand(i32::try_from(bits).unwrap(), openssl::bn::MsbOption::ONE, true).unwrap();
        let exponent = BigNum::from_u32(exponent).unwrap();
        let der = Rsa::from_public_components(modulus, exponent).unwrap().public_key_to_der().unwrap();
        let mut field = [0; PUBLIC_KEY_LEN];
        field.get_mut(..der.len())?.copy_from_slice(&der);
        Some(field)
    }

    #[test]
    fn keys_that_are_none() {
        let refusal = |der: &[u8; PUBLIC_KEY_LEN]| seal(der, &Password::empty()).unwrap_err();
        assert_eq!(refusal(&[0; PUBLIC_KEY_LEN]), SealError::NotRsa);
        assert_eq!(refusal(&[0xff; PUBLIC_KEY_LEN]), SealError::NotRsa);
        assert_eq!(refusal(&shaped(1024, 1).unwrap()), SealError::Exponent);
        assert_eq!(refusal(&shaped(1024, 4).unwrap()), SealError::Exponent);
        assert!(seal(&shaped(1024, 3).unwrap(), &Password::empty()).is_ok());
        assert_eq!(refusal(&shaped(1016, 65537).unwrap()), SealError::Bits(1016));
        assert_eq!(refusal(&shaped(512, 65537).unwrap()), SealError::Bits(512));
        assert!(shaped(2048, 65537).is_none(), "does not even fit");
        let mut trailing = shaped(1024, 3).unwrap();
        trailing[161] = 1;
        assert_eq!(refusal(&trailing), SealError::Trailing);
        let curve = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).unwrap();
        let curve = openssl::pkey::PKey::from_ec_key(openssl::ec::EcKey::generate(&curve).unwrap()).unwrap();
        let mut field = [0; PUBLIC_KEY_LEN];
        let der = curve.public_key_to_der().unwrap();
        field[..der.len()].copy_from_slice(&der);
        assert_eq!(refusal(&field), SealError::NotRsa);
    }
}
