//! Passwords of Spice sessions, from files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use spice_proto::ticket::{Password, PasswordError};

/// A password file is read no further: a mistaken path must not be read whole.
const MAX_FILE: u64 = 4096;

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordFileError {
    /// The file cannot be read.
    #[error("cannot read the password file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What it holds cannot be a password.
    #[error("the password file {} is unusable", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: PasswordError,
    },
}

/// The first line of a file. A line's end belongs to the file, not to the password.
///
/// # Errors
/// The file cannot be read, or its first line is longer than a Spice password can be.
pub fn read_file(path: &Path) -> Result<Password, PasswordFileError> {
    let failed = |source| PasswordFileError::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Password::new(line).map_err(|source| PasswordFileError::Password { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, password) in
            [("pw", "pw"), ("pw\n", "pw"), ("pw\r\nmore\n", "pw"), ("", ""), (" p w \n", " p w ")]
        {
            std::fs::write(file.path(), text).unwrap();
            assert!(read_file(file.path()).unwrap().matches(&Password::new(password).unwrap()), "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_file() {
        let missing = read_file(Path::new("/nonexistent/ticket")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/ticket"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "x".repeat(60)).unwrap();
        assert!(matches!(read_file(file.path()), Err(PasswordFileError::Password { .. })));
    }
}
