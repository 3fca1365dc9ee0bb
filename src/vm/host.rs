//! What of the host a virtual machine is made of: QEMU, a kernel with its modules, busybox. All of it comes from
//! Debian packages; what is missing is named by package.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules the virtual network card needs, in the order they are loaded.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// The parts, all found.
#[derive(Debug, Clone)]
pub struct Host {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// A Linux kernel.
    pub kernel: PathBuf,
    /// The modules of this kernel in the order to load them; those that are built in are not listed.
    pub modules: Vec<PathBuf>,
    /// A statically linked busybox.
    pub busybox: PathBuf,
}

/// Something that must be installed first.
#[derive(Debug, thiserror::Error)]
#[error(
    "a virtual machine needs what is not installed here: {}\ninstall it with: apt-get install {}",
    what.join(", "),
    packages.join(" ")
)]
pub struct Missing {
    /// What was looked for in vain, in words.
    pub what: Vec<String>,
    /// The Debian packages it is in.
    pub packages: Vec<&'static str>,
}

impl Host {
    /// Looks for everything.
    ///
    /// # Errors
    /// Names all that is missing at once.
    pub fn find() -> Result<Self, Missing> {
        Self::find_below(Path::new("/"), &std::env::var_os("PATH").unwrap_or_default())
    }

    fn find_below(root: &Path, search: &std::ffi::OsStr) -> Result<Self, Missing> {
        let mut missing = Missing { what: Vec::new(), packages: Vec::new() };
        let qemu = program("qemu-system-x86_64", root, search).or_else(|| {
            missing.what.push("qemu-system-x86_64 (in no directory of PATH)".to_owned());
            missing.packages.push("qemu-system-x86");
            None
        });
        let busybox = ["bin/busybox", "usr/bin/busybox"]
            .map(|place| root.join(place))
            .into_iter()
            .find(|path| is_static(path))
            .or_else(|| {
                missing.what.push("a statically linked /bin/busybox".to_owned());
                missing.packages.push("busybox-static");
                None
            });
        let kernel = kernels(root).into_iter().find_map(|(kernel, version)| {
            let modules = modules(root, &version)?;
            std::fs::File::open(&kernel).is_ok().then_some((kernel, modules))
        });
        if kernel.is_none() {
            missing.what.push("a readable /boot/vmlinuz-* with virtio modules in /lib/modules".to_owned());
            missing.packages.push("linux-image-cloud-amd64");
        }
        match (qemu, busybox, kernel) {
            (Some(qemu), Some(busybox), Some((kernel, modules))) => {
                Ok(Self { qemu, kernel, modules, busybox })
            }
            _ => Err(missing),
        }
    }

    /// QEMU's major and minor version.
    ///
    /// # Errors
    /// It does not run, or does not say.
    pub fn qemu_version(&self) -> io::Result<(u32, u32)> {
        let output = Command::new(&self.qemu).arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse_version(&text).ok_or_else(|| io::Error::other(format!("not a version of qemu: {text:?}")))
    }

    /// The content of a module, unpacked.
    ///
    /// # Errors
    /// The file cannot be read, or the program that unpacks it fails.
    pub fn read_module(&self, module: &Path) -> io::Result<Vec<u8>> {
        let mut unpack = match module.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => {
                let mut command = Command::new(&self.busybox);
                command.arg("xzcat");
                command
            }
            Some("gz") => {
                let mut command = Command::new(&self.busybox);
                command.arg("zcat");
                command
            }
            Some("zst") => {
                let mut command = Command::new("zstd");
                command.arg("-dcq");
                command
            }
            _ => return std::fs::read(module),
        };
        let output = unpack.arg(module).output().map_err(|error| {
            let program = unpack.get_program().display();
            io::Error::new(error.kind(), format!("{program} (to unpack {}): {error}", module.display()))
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("unpacking {}: {said}", module.display())));
        }
        Ok(output.stdout)
    }
}

/// The first two numbers behind the word "version".
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The name a module is loaded by: its file's, without what tells the packing.
pub(super) fn module_name(path: &Path) -> &str {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.split('.').next().unwrap_or_default()
}

fn program(name: &str, root: &Path, search: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(search)
        .map(|directory| root.join(directory.strip_prefix("/").unwrap_or(&directory)).join(name))
        .find(|path| path.is_file())
}

/// Whether it is a program that needs no loader: an ELF file without the segment that names one.
fn is_static(path: &Path) -> bool {
    let Ok(bytes) = std::fs::read(path) else { return false };
    const PROGRAM_INTERPRETER: u32 = 3;
    let field = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    let (Some(table), Some(shape)) = (field(32), field(54)) else { return false };
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let table = u64::from_le_bytes(*table);
    let [size_low, size_high, count_low, count_high, ..] = *shape;
    let size = u64::from(u16::from_le_bytes([size_low, size_high]));
    let count = u64::from(u16::from_le_bytes([count_low, count_high]));
    (0..count).all(|number| {
        let at = table.checked_add(number * size).and_then(|at| usize::try_from(at).ok());
        let kind = at.and_then(|at| bytes.get(at..)).and_then(|rest| rest.first_chunk::<4>());
        kind.is_some_and(|kind| u32::from_le_bytes(*kind) != PROGRAM_INTERPRETER)
    })
}

/// Kernels and their versions, the small ones for clouds first, then the newest.
fn kernels(root: &Path) -> Vec<(PathBuf, String)> {
    let Ok(entries) = std::fs::read_dir(root.join("boot")) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
            Some((entry.path(), version))
        })
        .collect();
    found.sort_by_key(|(_, version)| (!version.contains("cloud"), std::cmp::Reverse(numbers(version))));
    found
}

/// The numbers in a version, so that 6.10 is newer than 6.9.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The modules of one kernel; `None` if one is neither there nor built in.
fn modules(root: &Path, version: &str) -> Option<Vec<PathBuf>> {
    let directory = root.join("lib/modules").join(version);
    let built_in = std::fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    let built_in: Vec<_> = built_in.lines().map(|line| module_name(Path::new(line)).to_owned()).collect();
    let files = files(&directory.join("kernel"));
    let mut found = Vec::new();
    for name in MODULES {
        match files.iter().find(|path| module_name(path) == name) {
            Some(path) => found.push(path.clone()),
            None if built_in.iter().any(|module| module == name) => {}
            // Older and newer kernels have the two halves within `virtio_pci`.
            None if name.starts_with("virtio_pci_") => {}
            None => return None,
        }
    }
    Some(found)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                Ok(_) | Err(_) => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, path: &str, content: &[u8]) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// An ELF header with one program header of the given type.
    fn elf(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn versions_are_understood() {
        let debian =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022 …";
        assert_eq!(parse_version(debian), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some((10, 0)));
        assert_eq!(parse_version("qemu: not found"), None);
    }

    #[test]
    fn all_that_is_missing_is_named_at_once() {
        let root = tempfile::tempdir().unwrap();
        let missing = Host::find_below(root.path(), "/usr/bin".as_ref()).unwrap_err();
        let text = missing.to_string();
        let install = "apt-get install qemu-system-x86 busybox-static linux-image-cloud-amd64";
        assert!(text.ends_with(install), "{text}");
    }

    #[test]
    fn the_cloud_kernel_is_preferred_then_the_newest_whose_modules_are_there() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        touch(root, "usr/bin/qemu-system-x86_64", b"");
        touch(root, "bin/busybox", &elf(1));
        for version in ["6.9.0-1-amd64", "6.10.0-1-amd64", "6.1.0-1-cloud-amd64", "6.2.0-1-cloud-amd64"] {
            touch(root, &format!("boot/vmlinuz-{version}"), b"");
        }
        for version in ["6.9.0-1-amd64", "6.10.0-1-amd64", "6.1.0-1-cloud-amd64"] {
            let directory = format!("lib/modules/{version}");
            for name in MODULES.iter().filter(|name| **name != "virtio") {
                touch(root, &format!("{directory}/kernel/drivers/{name}.ko.xz"), b"");
            }
            touch(root, &format!("{directory}/modules.builtin"), b"kernel/drivers/virtio/virtio.ko\n");
        }
        let search = "/usr/bin".as_ref();
        let host = Host::find_below(root, search).unwrap();
        assert_eq!(host.kernel, root.join("boot/vmlinuz-6.1.0-1-cloud-amd64"));
        let names: Vec<_> = host.modules.iter().map(|path| module_name(path)).collect();
        let expected: Vec<_> = MODULES.iter().filter(|name| **name != "virtio").collect();
        assert!(names.iter().eq(expected), "{names:?}");

        std::fs::remove_file(root.join("boot/vmlinuz-6.1.0-1-cloud-amd64")).unwrap();
        let host = Host::find_below(root, search).unwrap();
        assert_eq!(host.kernel, root.join("boot/vmlinuz-6.10.0-1-amd64"));

        touch(root, "bin/busybox", &elf(3));
        let missing = Host::find_below(root, search).unwrap_err();
        assert_eq!(missing.packages, ["busybox-static"]);
    }
}
