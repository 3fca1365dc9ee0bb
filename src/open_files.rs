//! The limit of open files, which is a limit of connections.

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::debug;

/// Lets this process open as many files as its administrator permits, and gives that number, `None` for no limit.
///
/// Each connection to a service is an open file. Systems start processes with a limit of 1024 for the sake of old
/// programs that cannot bear more, and let them raise it (`getrlimit(2)`: the soft and the hard limit).
pub fn raise_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.maximum;
    }
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(error) => {
            debug!(%error, ?before, "the limit of open files stays as it is");
            before
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_is_permitted() {
        let raised = raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!((limit.current, raised), (limit.maximum, limit.maximum));
    }
}
