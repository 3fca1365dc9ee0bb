//! A root file system for the kernel to start from: a cpio archive in the "newc" format (cpio(5); the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`), written by hand because it is that small.

/// An archive that grows entry by entry.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const SYMBOLIC_LINK: u32 = 0o120_000;

impl Initramfs {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; its parents must have been added before.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file that may be executed.
    ///
    /// # Panics
    /// With 4 GiB or more: the format has no room for the size.
    pub fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.file_with_mode(path, 0o755, content)
    }

    /// Adds a file with these permissions.
    ///
    /// # Panics
    /// With 4 GiB or more: the format has no room for the size.
    pub fn file_with_mode(&mut self, path: &str, permissions: u32, content: &[u8]) -> &mut Self {
        self.entry(path, FILE | (permissions & 0o7777), (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, SYMBOLIC_LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device of the given major and minor number.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> &mut Self {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> &mut Self {
        let path = path.trim_start_matches('/');
        let size = u32::try_from(content.len()).expect("no file of this archive has 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("no path has 4 GiB");
        self.entries += 1;
        let (inode, owner, links, time, check) = (self.entries, 0, 1, 0, 0);
        let fields =
            [inode, mode, owner, owner, links, time, size, 0, 0, device.0, device.1, name_size, check];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        self
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_newc() {
        let mut archive = Initramfs::new();
        archive
            .directory("dev")
            .device("dev/console", 5, 1)
            .file("/init", b"hello")
            .symlink("lib", "usr/lib");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 5);
        assert!(starts.iter().all(|at| at % 4 == 0));
        let field = |entry: usize, number: usize| {
            let at = starts[entry] + 6 + number * 8;
            u32::from_str_radix(&text[at..at + 8], 16).unwrap()
        };
        assert_eq!(field(0, 1), 0o040_755);
        assert_eq!((field(1, 1), field(1, 9), field(1, 10)), (0o020_600, 5, 1));
        assert_eq!((field(2, 1), field(2, 6), field(2, 11)), (0o100_755, 5, 5));
        assert!(text[starts[2] + 110..].starts_with("init\0"));
        assert_eq!(&text[starts[2] + 110 + 6..][..5], "hello");
        assert_eq!((field(3, 1), field(3, 6)), (0o120_777, 7));
        assert!(text[starts[3] + 110..].starts_with("lib\0"));
        assert!(text[starts[4] + 110..].starts_with("TRAILER!!!\0"));
    }
}
