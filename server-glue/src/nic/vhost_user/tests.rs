//! The card as QEMU sees it: over its socket, with memory that is shared for real.

use std::collections::VecDeque;
use std::fs::File;
use std::num::NonZeroU16;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::driver::{Driver, NEXT, WRITE, peek, poke};
use super::ring::Memory;
use super::*;
use crate::nic::{Nic, NicEvent, NicSpec};
use crate::script::{ACK, tcp};

const MIB: u64 = 1 << 20;
const SIZE: u16 = 64;
const TRANSMIT: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
/// Where the front end claims to have the guest's memory.
const USER: u64 = 0x7000_0000_0000;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it should not take this long")
}

/// The card, its socket, and what it has told that nobody has asked for yet.
struct Bench {
    nic: Nic,
    events: VecDeque<NicEvent>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Bench {
    async fn open() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("card");
        let nic = Nic::open(&NicSpec::VhostUser(path.clone()), 1500).await.unwrap();
        Bench { nic, events: VecDeque::new(), path, _directory: directory }
    }

    /// Runs what waits for the card's answers.
    fn beside<T: Send>(&mut self, script: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let script = scope.spawn(script);
            tokio::task::block_in_place(|| {
                while !script.is_finished() {
                    let turn = tokio::time::timeout(Duration::from_millis(5), self.nic.ready());
                    self.events.extend(tokio::runtime::Handle::current().block_on(turn));
                }
            });
            script.join().unwrap()
        })
    }

    async fn connect(&mut self, file: &File, without: u64) -> Qemu {
        let path = self.path.clone();
        self.beside(|| Qemu::connect(&path, file, without))
    }

    async fn start(&mut self, qemu: &mut Qemu, drivers: [&Driver<'_>; 2], bases: [u16; 2]) {
        self.beside(|| qemu.start(drivers, bases)).unwrap();
    }

    async fn event(&mut self) -> NicEvent {
        match self.events.pop_front() {
            Some(event) => event,
            None => soon(self.nic.ready()).await,
        }
    }

    async fn connected(&mut self) {
        let event = self.event().await;
        assert!(matches!(event, NicEvent::Connected), "{event:?}");
    }

    async fn lost(&mut self) -> String {
        let event = self.event().await;
        let NicEvent::Lost(error) = event else { panic!("{event:?}") };
        error.to_string()
    }

    async fn frames(&mut self) -> Vec<Vec<u8>> {
        let event = self.event().await;
        assert!(matches!(event, NicEvent::Frames), "{event:?}");
        std::iter::from_fn(|| self.nic.next_frame().map(|frame| frame.to_vec())).collect()
    }

    /// What the card does of itself in a moment, in which it is not done.
    async fn nothing(&mut self) {
        assert!(self.events.is_empty(), "{:?}", self.events);
        let ready = tokio::time::timeout(Duration::from_millis(100), self.nic.ready()).await;
        assert!(ready.is_err(), "{ready:?}");
    }
}

/// The guest's memory: two pieces of one file, with a hole between them.
fn shared() -> (Memory, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * MIB).unwrap();
    let piece = |start, offset| {
        (GuestAddress(start), MIB as usize, Some(FileOffset::new(file.try_clone().unwrap(), offset)))
    };
    let memory = Memory::from_ranges_with_files([piece(0, 0), piece(16 * MIB, MIB)]).unwrap();
    (memory, file)
}

fn regions(file: &File) -> [VhostUserMemoryRegionInfo; 2] {
    [(0, 0), (16 * MIB, MIB)].map(|(start, mmap_offset)| VhostUserMemoryRegionInfo {
        guest_phys_addr: start,
        memory_size: MIB,
        userspace_addr: USER + start,
        mmap_offset,
        mmap_handle: file.as_raw_fd(),
    })
}

/// QEMU.
struct Qemu {
    front: Frontend,
    file: File,
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
}

impl Qemu {
    /// Connects, and agrees on everything that is offered but `without`.
    fn connect(path: &Path, file: &File, without: u64) -> Qemu {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let mut front = Frontend::connect(path, 2).unwrap();
        front.set_owner().unwrap();
        let features = front.get_features().unwrap();
        assert_ne!(features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), 0);
        let protocol = front.get_protocol_features().unwrap();
        assert_eq!(protocol, VhostUserProtocolFeatures::REPLY_ACK);
        front.set_protocol_features(protocol).unwrap();
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front.set_features(features & !without).unwrap();
        let file = file.try_clone().unwrap();
        Qemu { front, file, kicks: [event(), event()], calls: [event(), event()] }
    }

    /// What it does when the guest's driver is ready.
    fn start(&mut self, drivers: [&Driver<'_>; 2], bases: [u16; 2]) -> vhost::Result<()> {
        self.front.set_mem_table(&regions(&self.file))?;
        for (index, driver) in drivers.iter().enumerate() {
            self.front.set_vring_num(index, driver.layout().size as u16)?;
            self.front.set_vring_base(index, bases[index])?;
            self.front.set_vring_addr(index, &config(driver))?;
            self.front.set_vring_kick(index, &self.kicks[index])?;
            self.front.set_vring_call(index, &self.calls[index])?;
        }
        self.front.set_vring_enable(0, true)?;
        self.front.set_vring_enable(1, true)
    }

    fn stop(&mut self) -> [u32; 2] {
        [0, 1].map(|index| self.front.get_vring_base(index).unwrap())
    }

    fn kick(&self, index: usize) {
        self.kicks[index].write(1).unwrap();
    }

    /// Whether the guest was told.
    fn called(&self, index: usize) -> bool {
        self.calls[index].read().is_ok()
    }
}

fn config(driver: &Driver<'_>) -> VringConfigData {
    let layout = driver.layout();
    VringConfigData {
        queue_max_size: 1024,
        queue_size: layout.size as u16,
        desc_table_addr: USER + layout.descriptors,
        used_ring_addr: USER + layout.used,
        avail_ring_addr: USER + layout.available,
        ..VringConfigData::default()
    }
}

fn record(frame: &[u8]) -> Vec<u8> {
    [&[0; 12], frame].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn frames_go_both_ways_and_the_guest_may_start_again() {
    let mut bench = Bench::open().await;
    let (memory, file) = shared();
    let (mut receive, mut transmit) = (Driver::new(&memory, 0, SIZE), Driver::new(&memory, TRANSMIT, SIZE));
    let mut qemu = bench.connect(&file, 0).await;
    assert!(!bench.nic.is_connected());
    bench.nothing().await;
    bench.start(&mut qemu, [&receive, &transmit], [0, 0]).await;
    bench.connected().await;
    assert_eq!(bench.nic.offloads(), Offloads::ALL);
    assert!(qemu.called(0) && qemu.called(1), "whoever listens now is told to look");
    bench.nothing().await;

    // From the guest.
    let frame = tcp(ACK, 1, 2).data(&[9; 3000]).frame();
    let mut bytes = record(&frame);
    bytes[..10].copy_from_slice(&[1, 1, 0, 0, 180, 5, 34, 0, 16, 0]);
    poke(&memory, DATA, &bytes[..100]);
    poke(&memory, 16 * MIB, &bytes[100..]);
    let head = transmit.chain(&[(DATA, 100), (16 * MIB, bytes.len() as u32 - 100)], 0);
    qemu.kick(1);
    assert!(matches!(bench.event().await, NicEvent::Frames));
    let came = bench.nic.next_frame().unwrap();
    assert_eq!((came.bytes, came.vouched, came.segment), (&frame[..], true, NonZeroU16::new(1460)));
    assert!(bench.nic.next_frame().is_none());
    assert_eq!(transmit.used(), [(head.into(), 0)]);
    assert!(qemu.called(1));
    // One that was there before anybody waited, and more than a batch.
    for _ in 0..SIZE {
        transmit.chain(&[(DATA, 100)], 0);
    }
    qemu.kick(1);
    assert_eq!(bench.frames().await.len(), usize::from(SIZE));
    bench.nothing().await;

    // To the guest, which has no buffers yet.
    let vouched = CardFrame { bytes: &frame, vouched: true, segment: NonZeroU16::new(1460) };
    assert!(bench.nic.queue(vouched));
    assert!(!bench.nic.is_flushed());
    bench.nothing().await;
    receive.chain(&[(DATA, 2000)], WRITE);
    qemu.kick(0);
    bench.nothing().await;
    assert_eq!(receive.used(), []);
    receive.chain(&[(DATA + 2000, 2000)], WRITE);
    qemu.kick(0);
    bench.nothing().await;
    assert!(bench.nic.is_flushed());
    let rest = frame.len() as u32 + 12 - 2000;
    assert_eq!(receive.used(), [(0, 2000), (1, rest)]);
    assert!(qemu.called(0));
    let mut expected = record(&frame);
    expected[..12].copy_from_slice(&[1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 2, 0]);
    assert_eq!(peek(&memory, DATA, frame.len() + 12), expected);
    // And which has.
    receive.chain(&[(DATA, 2000)], WRITE);
    assert!(bench.nic.queue(b"a frame"));
    assert_eq!(receive.used(), [(2, 19)]);
    assert!(!bench.nic.is_flushed(), "nobody has told the guest");
    bench.nothing().await;
    assert!(bench.nic.is_flushed());

    // The driver stops: nothing is touched, and what waited is gone.
    assert!(bench.nic.queue(b"a frame"));
    assert_eq!(bench.beside(|| qemu.stop()), [3, 1 + u32::from(SIZE)]);
    receive.chain(&[(DATA, 2000)], WRITE);
    qemu.kick(0);
    assert_eq!(bench.lost().await, "the guest's driver stopped the card");
    assert!(!bench.nic.queue(b"a frame") && !bench.nic.is_connected());
    bench.nothing().await;
    assert_eq!(receive.used(), []);
    // And starts again, where it was.
    bench.start(&mut qemu, [&receive, &transmit], [3, 1 + SIZE]).await;
    bench.connected().await;
    assert!(bench.nic.queue(b"a frame"));
    assert_eq!(receive.used(), [(3, 19)]);

    // QEMU goes, and another comes, whose guest knows less.
    drop(qemu);
    assert_eq!(bench.lost().await, "QEMU closed the vhost-user connection");
    let (receive, transmit) = (Driver::from(&memory, 0, SIZE, 0), Driver::from(&memory, TRANSMIT, SIZE, 0));
    let without = Features::OFFERED.0 & !(1 << 32);
    let mut qemu = bench.connect(&file, without).await;
    bench.start(&mut qemu, [&receive, &transmit], [0, 0]).await;
    bench.connected().await;
    assert_eq!(bench.nic.offloads(), Offloads::NONE);
    assert!(!bench.nic.queue(vouched), "it could not take that");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_broken_ring_is_left_alone_until_the_guest_starts_anew() {
    let mut bench = Bench::open().await;
    let (memory, file) = shared();
    let (mut receive, mut transmit) = (Driver::new(&memory, 0, SIZE), Driver::new(&memory, TRANSMIT, SIZE));
    let mut qemu = bench.connect(&file, 0).await;
    bench.start(&mut qemu, [&receive, &transmit], [0, 0]).await;
    bench.connected().await;

    transmit.descriptor(5, DATA, 100, NEXT, 5);
    transmit.offer(5);
    qemu.kick(1);
    let error = bench.lost().await;
    assert!(
        error.starts_with("the guest's network driver broke the transmit ring: a descriptor chain"),
        "{error}"
    );
    qemu.kick(1);
    bench.nothing().await;
    assert!(!bench.nic.is_connected());

    bench.beside(|| qemu.stop());
    (receive, transmit) = (Driver::from(&memory, 0, SIZE, 0), Driver::from(&memory, TRANSMIT, SIZE, 0));
    bench.start(&mut qemu, [&receive, &transmit], [0, 0]).await;
    bench.connected().await;
    receive.chain(&[(8 * MIB, 2000)], WRITE);
    assert!(!bench.nic.queue(b"a frame"), "into the hole");
    let error = bench.lost().await;
    assert!(error.contains("broke the receive ring: a descriptor names memory at 0x800000"), "{error}");

    // One that begins so is not even begun with.
    bench.beside(|| qemu.stop());
    transmit.set_available_index(0);
    let odd = Driver::from(&memory, 0, 48, 0);
    bench.start(&mut qemu, [&odd, &transmit], [0, 0]).await;
    bench.nothing().await;
    bench.beside(|| qemu.stop());
    bench.start(&mut qemu, [&receive, &transmit], [0, 0]).await;
    bench.connected().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn memory_may_change_while_the_rings_are_in_use() {
    let mut bench = Bench::open().await;
    let (memory, file) = shared();
    let (mut receive, transmit) = (Driver::new(&memory, 0, SIZE), Driver::new(&memory, TRANSMIT, SIZE));
    let mut qemu = bench.connect(&file, 0).await;
    bench.start(&mut qemu, [&receive, &transmit], [0, 0]).await;
    bench.connected().await;
    for n in 0..3 {
        receive.chain(&[(16 * MIB, 2000)], WRITE);
        assert!(bench.nic.queue(b"a frame"));
        assert_eq!(receive.used(), [(n, 19)]);
        // All of it anew.
        bench.beside(|| qemu.front.set_mem_table(&regions(&file))).unwrap();
        bench.nothing().await;
    }
    // Without the second piece, in which a buffer is.
    receive.chain(&[(16 * MIB, 2000)], WRITE);
    bench.beside(|| qemu.front.set_mem_table(&regions(&file)[..1])).unwrap();
    assert!(!bench.nic.queue(b"a frame"));
    assert!(bench.lost().await.contains("names memory at 0x1000000"));
    bench.beside(|| qemu.stop());
    let (receive, transmit) = (Driver::from(&memory, 0, SIZE, 0), Driver::from(&memory, TRANSMIT, SIZE, 0));
    bench.start(&mut qemu, [&receive, &transmit], [0, 0]).await;
    bench.connected().await;
    // Without the first, in which the rings are.
    bench.beside(|| qemu.front.set_mem_table(&regions(&file)[1..])).unwrap();
    assert_eq!(bench.lost().await, "QEMU has the receive ring outside of the memory that it shares");
    bench.nothing().await;
}

/// Each ends the connection, is named, and is no obstacle to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_that_cannot_be_followed() {
    type Request = fn(&mut Qemu, &Driver<'_>) -> vhost::Result<()>;
    let cases: [(Request, &str); 6] = [
        (|q, _| q.front.set_vring_num(0, 2048), "a ring has room for 2048 chains, expected at most 1024"),
        (|q, _| q.front.set_vring_num(1, 0).and(q.front.set_vring_num(1, 4096)), "a ring has room for 4096"),
        (|q, _| q.front.set_features(1 << 60), "features 0x1000000000000000, which were not offered"),
        (
            |q, _| {
                let [mut one, _] = regions(&q.file);
                one.mmap_offset = 2 * MIB - 4096;
                q.front.set_mem_table(&[one]).map(drop)
            },
            "the guest's memory cannot be shared: a region of 1048576 octets does not fit into its file of 2097152",
        ),
        (
            |q, _| {
                let [one, mut other] = regions(&q.file);
                other.guest_phys_addr = MIB / 2;
                q.front.set_mem_table(&[one, other]).map(drop)
            },
            "the guest's memory cannot be shared",
        ),
        (
            |q, d| {
                q.front
                    .set_vring_addr(0, &config(d))
                    .and(q.front.set_vring_base(0, 0))
                    .and(q.front.reset_owner())
            },
            "the vhost-user connection",
        ),
    ];
    let mut bench = Bench::open().await;
    let (memory, file) = shared();
    let (receive, transmit) = (Driver::new(&memory, 0, SIZE), Driver::new(&memory, TRANSMIT, SIZE));
    for (number, (request, error)) in cases.into_iter().enumerate() {
        let mut qemu = bench.connect(&file, 0).await;
        bench.start(&mut qemu, [&receive, &transmit], [0, 0]).await;
        bench.connected().await;
        // What the library itself does not send is as good as said.
        let _ = bench.beside(|| request(&mut qemu, &receive));
        if number == 5 {
            drop(qemu);
        }
        let told = bench.lost().await;
        assert!(told.contains(error), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_speaks_nonsense_is_sent_away() {
    use std::io::Write;
    let mut bench = Bench::open().await;
    let mut silent = std::os::unix::net::UnixStream::connect(&bench.path).unwrap();
    bench.nothing().await;
    silent.write_all(&[0xff; 100]).unwrap();
    bench.nothing().await;
    // A header, and never its body. The card ends nonetheless.
    let mut slow = std::os::unix::net::UnixStream::connect(&bench.path).unwrap();
    slow.write_all(&[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1]).unwrap();
    bench.nothing().await;
    let (_, file) = shared();
    drop(slow);
    let _qemu = bench.connect(&file, 0).await;
    let last = std::os::unix::net::UnixStream::connect(&bench.path).unwrap();
    let Bench { nic, path, _directory, .. } = bench;
    drop(nic);
    assert!(!path.exists());
    drop(last);
}
