//! A smoltcp TCP socket in a socket set of its own, whose rings give their memory back. The one module of this crate with `unsafe`.
//!
//! # Theory of operation
//!
//! A ring is as long as the window that it offers, and takes memory only where it was ever written to. Bulk writes all of it; then the
//! connection may be idle for hours, and there may be thousands. smoltcp cannot change a ring once it is made. But while a ring is empty, nobody
//! will read what is in it before writing over it, so that its pages may go back to the system, which gives zeroed ones when they are
//! touched again (`madvise`, `MADV_DONTNEED`). For that the rings of a socket are a mapping of their own, made and unmapped here.
//!
//! # Proof
//!
//! * The rings are `&'static mut` slices of `Pages`, disjoint, and made once. They live in the socket, that in its set, that in
//!   [`RingSocket`], which drops the set before the mapping. INVARIANT: nobody takes the socket out of the set, or the set out of here. Both are
//!   private; the set is lent to smoltcp's interface only, and the socket to `flow`, which calls its methods.
//! * [`RingSocket::give_back`] has `&mut self`, so no slice of a ring is borrowed while the kernel changes the pages. What it changes
//!   are octets that count for nothing: both rings are empty, and the caller knows that nothing stands out of order in the receive ring. Whatever
//!   value they have, each is written before it is read. The pages stay mapped, readable, writable and initialised.
//! * Zeroed pages are valid `u8`s from the start.

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;

/// See the module's text.
pub(crate) struct RingSocket {
    /// INVARIANT: dropped before `pages`, to which its socket's rings point; fields are dropped in the order in which they stand here.
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    pages: pages::Pages,
}

impl RingSocket {
    /// A socket with rings of these many octets.
    pub(crate) fn new(receive: usize, send: usize) -> RingSocket {
        let (pages, receive, send) = pages::Pages::new(receive, send);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(tcp::Socket::new(receive, send));
        RingSocket { sockets, handle, pages }
    }

    pub(crate) fn get(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    pub(crate) fn get_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Takes in one packet.
    pub(crate) fn ingress(&mut self, interface: &mut Interface, now: Instant, device: &mut impl Device) {
        interface.poll_ingress_single(now, device, &mut self.sockets);
    }

    /// Sends what is due.
    pub(crate) fn egress(&mut self, interface: &mut Interface, now: Instant, device: &mut impl Device) {
        interface.poll_egress(now, device, &mut self.sockets);
    }

    /// When it is to be looked at again.
    pub(crate) fn poll_at(&mut self, interface: &mut Interface, now: Instant) -> Option<Instant> {
        interface.poll_at(now, &self.sockets)
    }

    /// Gives the rings' memory back, if both are empty. The caller knows that nothing stands in the receive ring out of order either.
    pub(crate) fn give_back(&mut self) {
        if self.get().recv_queue() == 0 && self.get().send_queue() == 0 {
            self.pages.give_back();
        }
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the memory of smoltcp's rings cannot be given back otherwise; proof above")]
mod pages {
    use std::ffi::c_void;
    use std::ptr::{self, NonNull};

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
    use smoltcp::socket::tcp::SocketBuffer;

    /// Private anonymous memory, as large as both rings.
    pub(super) struct Pages {
        start: NonNull<c_void>,
        len: usize,
    }

    // SAFETY: it is an address range that nobody else owns; no method needs a certain thread.
    unsafe impl Send for Pages {}
    // SAFETY: what changes it takes `&mut self`.
    unsafe impl Sync for Pages {}

    impl Pages {
        /// The rings must be dropped before the pages.
        pub(super) fn new(
            receive: usize,
            send: usize,
        ) -> (Pages, SocketBuffer<'static>, SocketBuffer<'static>) {
            let len = receive.checked_add(send).filter(|len| isize::try_from(*len).is_ok()).unwrap_or(0);
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping that the kernel places disturbs no other.
            let mapped = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) };
            let Some(start) = mapped.ok().and_then(NonNull::new) else {
                // As when a `Vec` gets no memory.
                std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; 4096]>());
            };
            let first = start.cast::<u8>().as_ptr();
            // SAFETY: `receive + send` octets from `first` on are mapped, zeroed, and in nobody else's hands; the two slices do not overlap, and
            // the mapping outlives them, as the caller promises.
            let rings = unsafe {
                [
                    std::slice::from_raw_parts_mut(first, receive),
                    std::slice::from_raw_parts_mut(first.add(receive), send),
                ]
            };
            let [receive, send] = rings.map(SocketBuffer::new);
            (Pages { start, len }, receive, send)
        }

        /// Writes to every page.
        #[cfg(test)]
        pub(super) fn touch(&mut self) {
            for at in (0..self.len).step_by(4096) {
                // SAFETY: within the mapping, and no slice of it is borrowed.
                unsafe { self.start.cast::<u8>().as_ptr().add(at).write(1) };
            }
        }

        pub(super) fn give_back(&mut self) {
            // SAFETY: the whole mapping and nothing else; see the module's proof for what becomes of the contents.
            let done = unsafe { madvise(self.start.as_ptr(), self.len, Advice::LinuxDontNeed) };
            debug_assert!(done.is_ok(), "a whole mapping of ours: {done:?}");
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: what pointed here was dropped before.
            let done = unsafe { munmap(self.start.as_ptr(), self.len) };
            debug_assert!(done.is_ok(), "a whole mapping of ours: {done:?}");
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod pages {
    use smoltcp::socket::tcp::SocketBuffer;

    /// Elsewhere rings are ordinary memory, and keep it.
    pub(super) struct Pages;

    impl Pages {
        pub(super) fn new(
            receive: usize,
            send: usize,
        ) -> (Pages, SocketBuffer<'static>, SocketBuffer<'static>) {
            (Pages, SocketBuffer::new(vec![0; receive]), SocketBuffer::new(vec![0; send]))
        }

        #[expect(clippy::unused_self, reason = "as on Linux")]
        pub(super) fn give_back(&mut self) {}
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Resident pages of this process.
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn an_empty_socket_costs_no_pages_once_they_are_given_back() {
        const RING: usize = 16 << 20;
        let mut socket = RingSocket::new(RING, RING);
        let before = resident();
        // Nothing can be sent yet, so the ring is filled from within: what matters here are its pages.
        socket.pages.touch();
        assert!(resident() >= before + 2 * RING / 4096 - 1024);
        socket.give_back();
        assert!(resident() <= before + 1024, "{} then {}", before, resident());
        assert_eq!((socket.get().recv_capacity(), socket.get().send_capacity()), (RING, RING));
    }

    #[test]
    fn many_come_and_go() {
        let sockets: Vec<RingSocket> = (0..100).map(|_| RingSocket::new(65_535, 4096)).collect();
        drop(sockets);
    }
}
