//! More of Debian for the virtual machine than its kernel: the files of this machine's packages, as they were installed,
//! with every library that their programs load.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use spice_tunnel::vm::Initramfs;

/// What no program of them reads.
const USELESS: [&str; 7] = [
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/locale",
    "/usr/share/lintian",
    "/usr/share/cups/doc-root",
    "/usr/share/cups/templates",
    "/etc/init.d",
];
/// Where Debian has merged the root with `/usr`. `bin` is busybox's.
const MERGED: [&str; 3] = ["lib", "lib64", "sbin"];
/// What glibc loads when a thread is to end, without naming it beforehand.
const UNNAMED: &str = "/lib/x86_64-linux-gnu/libgcc_s.so.1";

/// A part of a file system.
#[derive(Default)]
pub(super) struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
}

enum Entry {
    Directory,
    File(u32, Vec<u8>),
    Link(PathBuf),
}

impl Tree {
    /// All that these packages brought, and what their programs need of others.
    pub(super) fn of_packages(packages: &[&str]) -> Self {
        let mut tree = Self::default();
        for name in MERGED {
            tree.entries.insert(Path::new("/").join(name), Entry::Link(Path::new("usr").join(name)));
        }
        let listed = said(Command::new("dpkg").arg("-L").args(packages));
        let mut programs = BTreeSet::from([PathBuf::from(UNNAMED)]);
        for path in listed.lines().map(Path::new).filter(|path| path.is_absolute()) {
            if !USELESS.iter().any(|useless| path.starts_with(useless)) {
                programs.extend(tree.copy(path));
            }
        }
        for library in said(Command::new("ldd").args(&programs)).lines().filter_map(library) {
            tree.copy(library);
        }
        tree
    }

    /// Makes a file of one's own.
    pub(super) fn write(&mut self, path: &str, content: impl AsRef<[u8]>) {
        self.insert(Path::new(path), Entry::File(0o644, content.as_ref().to_vec()));
    }

    /// As an archive.
    pub(super) fn archive(self) -> Vec<u8> {
        let mut archive = Initramfs::new();
        for (path, entry) in self.entries {
            let path = path.to_str().unwrap();
            match entry {
                Entry::Directory => archive.directory(path),
                Entry::File(mode, content) => archive.file_with_mode(path, mode, &content),
                Entry::Link(target) => archive.symlink(path, target.to_str().unwrap()),
            };
        }
        archive.finish()
    }

    /// Copies what is at a path of this machine; gives the path of it if it is a program or a library.
    fn copy(&mut self, path: &Path) -> Option<PathBuf> {
        // What a package brought and somebody removed is not there.
        let about = path.symlink_metadata().ok()?;
        let (parent, name) = (path.parent()?, path.file_name()?);
        // Where it really is: what dpkg has in /lib is in /usr/lib.
        let path = parent.canonicalize().unwrap().join(name);
        if about.is_dir() {
            self.insert(&path, Entry::Directory);
            return None;
        }
        if about.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            let linked = parent.join(&target);
            // Those in the root are of the merge.
            if parent != Path::new("/") {
                self.insert(&path, Entry::Link(target));
            }
            return self.copy(&linked);
        }
        let content = std::fs::read(&path).unwrap();
        let is_program = content.starts_with(b"\x7fELF");
        self.insert(&path, Entry::File(about.permissions().mode(), content));
        is_program.then_some(path)
    }

    /// With all directories above it, which the archive has to have first.
    fn insert(&mut self, path: &Path, entry: Entry) {
        for parent in path.ancestors().skip(1).filter(|parent| parent.file_name().is_some()) {
            self.entries.entry(parent.to_owned()).or_insert(Entry::Directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

/// `name => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
fn library(line: &str) -> Option<&Path> {
    assert!(!line.contains("not found"), "a library is not installed: {line}");
    let path = line.rsplit_once(" (")?.0.rsplit(" => ").next()?.trim();
    path.starts_with('/').then(|| Path::new(path))
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}: tests/install-prerequisites.sh");
    String::from_utf8(output.stdout).unwrap()
}
