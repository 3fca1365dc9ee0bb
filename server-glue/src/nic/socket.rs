//! Unix sockets that we listen at, and the files they are.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixSocket, UnixStream};

use super::NicError;

/// Connections that may wait at a socket to be accepted.
const BACKLOG: u32 = 1024;

/// Listens at a path, with these permissions or those that the process gives to all it makes.
pub(crate) async fn listen(path: &Path, mode: Option<u32>) -> Result<(UnixListener, SocketFile), NicError> {
    let failed = |error| NicError::Listen { path: path.to_owned(), error };
    let listener = match bind(path, mode) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let kind = std::fs::symlink_metadata(path).map_err(failed)?.file_type();
            if !kind.is_socket() {
                return Err(NicError::NotSocket(path.to_owned()));
            }
            match UnixStream::connect(path).await {
                // Nobody has it open: its process died without removing it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(_) | Err(_) => return Err(NicError::InUse(path.to_owned())),
            }
            std::fs::remove_file(path).map_err(failed)?;
            bind(path, mode).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let file = SocketFile::of(path).map_err(failed)?;
    Ok((listener, file))
}

/// Nobody can connect before the permissions are set.
fn bind(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    if let Some(mode) = mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    socket.listen(BACKLOG)
}

/// A socket file that is ours: removed at the end, unless it is another's by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode: the file itself, whatever its name.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
