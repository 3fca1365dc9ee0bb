//! Which TAP device, in words.

use std::fmt;
use std::str::FromStr;

/// Longest name of a network device: IFNAMSIZ with its zero.
const MAX_NAME: usize = 15;

/// The name of a TAP device, such as one can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapName(pub(super) String);

impl FromStr for TapName {
    type Err = TapNameError;

    fn from_str(text: &str) -> Result<TapName, TapNameError> {
        // What the kernel refuses (dev_valid_name), and %, which it would replace by a number.
        let wrong =
            |c: char| !c.is_ascii() || c.is_ascii_whitespace() || c.is_ascii_control() || "/:%".contains(c);
        if text.is_empty() || text.len() > MAX_NAME || text.contains(wrong) || text == "." || text == ".." {
            return Err(TapNameError(text.to_owned()));
        }
        Ok(TapName(text.to_owned()))
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not a name for a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name for a TAP device: expected 1 to {MAX_NAME} characters, without space, slash, colon and percent"
)]
pub struct TapNameError(String);

/// A TAP device and how it is to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapSpec {
    /// Which.
    pub name: TapName,
    /// Whether checksums and the cutting of long segments are left to the kernel. There is no reason not to, but to see what it saves.
    pub offload: bool,
}

/// Not a TAP device that one can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TapSpecError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] TapNameError),
    /// Something behind the name that means nothing.
    #[error("\"{0}\" behind a TAP device's name means nothing: expected offload=on or offload=off")]
    Option(String),
}

impl FromStr for TapSpec {
    type Err = TapSpecError;

    fn from_str(text: &str) -> Result<TapSpec, TapSpecError> {
        // A comma can be part of a name, too; one with an equals sign behind it is not worth having.
        let (name, offload) = match text.rsplit_once(',') {
            Some((name, "offload=on")) => (name, true),
            Some((name, "offload=off")) => (name, false),
            Some((_, option)) if option.contains('=') => return Err(TapSpecError::Option(option.to_owned())),
            Some(_) | None => (text, true),
        };
        Ok(TapSpec { name: name.parse()?, offload })
    }
}

impl fmt::Display for TapSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.offload { "" } else { ",offload=off" })
    }
}
