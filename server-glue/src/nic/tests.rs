use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::Instant;

use super::framing::{PREFIX, READ_BUFFER};
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn framed(frames: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        bytes.extend_from_slice(frame);
    }
    bytes
}

/// Feeds `bytes` in pieces of `size` and gives all frames.
fn deframe(bytes: &[u8], size: usize) -> Result<Vec<Vec<u8>>, LinkError> {
    let mut deframer = Deframer::new();
    let mut frames = Vec::new();
    for mut piece in bytes.chunks(size) {
        while !piece.is_empty() {
            let spare = deframer.spare();
            let count = piece.len().min(spare.len());
            assert!(count > 0, "a deframer without a whole frame must have room");
            spare[..count].copy_from_slice(&piece[..count]);
            deframer.filled(count);
            piece = &piece[count..];
            while let Some(frame) = deframer.next()? {
                frames.push(frame.to_vec());
            }
        }
    }
    Ok(frames)
}

async fn scratch() -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("nic-test-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it should not take this long")
}

async fn frames(nic: &mut Nic) -> Vec<Vec<u8>> {
    assert!(matches!(soon(nic.ready()).await, NicEvent::Frames));
    let mut frames = Vec::new();
    while let Some(frame) = nic.next_frame() {
        frames.push(frame.to_vec());
    }
    frames
}

#[test]
fn specs() {
    assert_eq!("listen:/a:b".parse(), Ok(NicSpec::Listen("/a:b".into())));
    assert_eq!("connect:x".parse(), Ok(NicSpec::Connect("x".into())));
    for wrong in ["", "listen", "listen:", "tun:0", "/a"] {
        assert!(wrong.parse::<NicSpec>().unwrap_err().to_string().contains("listen:PATH"), "{wrong}");
    }
    assert_eq!(NicSpec::Listen("/a".into()).to_string(), "listen:/a");
    #[cfg(feature = "vhost-user")]
    {
        assert_eq!("vhost-user:/a".parse(), Ok(NicSpec::VhostUser("/a".into())));
        assert_eq!(NicSpec::VhostUser("/a".into()).to_string(), "vhost-user:/a");
        assert!("vhost-user:".parse::<NicSpec>().is_err());
    }
}

#[test]
fn frames_come_out_as_they_went_in_however_they_are_cut() {
    let large = vec![7; MAX_FRAME];
    let sent: [&[u8]; 5] = [b"a", &large, b"", &large[..60], b"zz"];
    let bytes = framed(&sent).repeat(12);
    let whole = sent.iter().filter(|frame| !frame.is_empty()).map(|frame| frame.to_vec());
    let expected: Vec<Vec<u8>> = whole.cycle().take(4 * 12).collect();
    for size in [1, 2, 3, 5, 1000, 65_536, READ_BUFFER, usize::MAX] {
        assert_eq!(deframe(&bytes, size).unwrap(), expected, "pieces of {size}");
    }
}

#[test]
fn a_length_above_the_limit_is_an_error_and_needs_no_memory() {
    for len in [69_633u32, 0x7fff_ffff, u32::MAX] {
        let error = deframe(&len.to_be_bytes(), 4).unwrap_err();
        assert!(matches!(error, LinkError::FrameLength(got) if got == len));
    }
}

#[test]
fn what_cannot_be_framed_is_not() {
    let mut framer = Framer::default();
    assert!(!framer.put(&[&[]]));
    assert!(!framer.put(&[&[0; MAX_FRAME + 1]]));
    assert!(framer.put(&[&[0; MAX_FRAME]]));
    assert_eq!(framer.pending().len(), PREFIX + MAX_FRAME);
}

#[tokio::test]
async fn a_pair_carries_frames_both_ways_and_says_when_it_is_full() {
    let (one, other) = tokio::io::duplex(HIGH_WATER);
    let (mut here, mut there) = (Nic::attached(one), Nic::attached(other));
    assert!(here.queue(b"one") && here.queue(b"two"));
    let pump = async {
        let _ = here.ready().await;
    };
    tokio::select! {
        () = pump => panic!("nothing came, nothing was full"),
        got = frames(&mut there) => assert_eq!(got, [b"one", b"two"]),
    }
    let mut queued = 0;
    while !here.is_full() {
        assert!(here.queue(&[9; 1500]));
        queued += 1;
    }
    let mut got = 0;
    let mut room = false;
    while got < queued {
        tokio::select! {
            event = here.ready() => room |= matches!(event, NicEvent::Room),
            more = frames(&mut there) => got += more.len(),
        }
    }
    assert!(room && !here.is_full());
    drop(there);
    assert!(matches!(soon(here.ready()).await, NicEvent::Lost(LinkError::Closed | LinkError::Io(_))));
    assert!(!here.queue(b"nobody"));
    assert_eq!(here.dropped(), 1);
}

#[tokio::test]
async fn listening_serves_one_machine_at_a_time_and_the_next_takes_over() {
    let path = scratch().await.join("nic");
    let mut nic = Nic::open(&NicSpec::Listen(path.clone()), 1500).await.unwrap();
    let mut first = UnixStream::connect(&path).await.unwrap();
    assert!(matches!(soon(nic.ready()).await, NicEvent::Connected));
    let mut second = UnixStream::connect(&path).await.unwrap();
    second.write_all(&framed(&[b"second"])).await.unwrap();
    first.write_all(&framed(&[b"", b"first"])).await.unwrap();
    assert_eq!(frames(&mut nic).await, [b"first"]);
    drop(first);
    assert!(matches!(soon(nic.ready()).await, NicEvent::Lost(_)));
    assert!(matches!(soon(nic.ready()).await, NicEvent::Connected));
    assert_eq!(frames(&mut nic).await, [b"second"]);
    nic.queue(b"hello");
    let mut got = [0; 9];
    tokio::select! {
        _ = nic.ready() => panic!("nothing to tell"),
        read = soon(second.read_exact(&mut got)) => { read.unwrap(); }
    }
    assert_eq!(&got, b"\0\0\0\x05hello");
    drop(nic);
    assert!(!path.exists(), "the socket file is ours, so it goes with us");
}

#[tokio::test]
async fn an_oversized_frame_costs_the_connection_only() {
    let path = scratch().await.join("nic");
    let mut nic = Nic::open(&NicSpec::Listen(path.clone()), 1500).await.unwrap();
    for _ in 0..3 {
        let mut machine = UnixStream::connect(&path).await.unwrap();
        machine.write_all(&69_633u32.to_be_bytes()).await.unwrap();
        assert!(matches!(soon(nic.ready()).await, NicEvent::Connected));
        assert!(matches!(soon(nic.ready()).await, NicEvent::Lost(LinkError::FrameLength(69_633))));
    }
}

#[tokio::test]
async fn a_dead_process_s_socket_is_replaced_and_a_live_one_s_is_not() {
    let path = scratch().await.join("nic");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let nic = Nic::open(&NicSpec::Listen(path.clone()), 1500).await.unwrap();
    let error = Nic::open(&NicSpec::Listen(path.clone()), 1500).await.err().unwrap();
    assert!(matches!(error, NicError::InUse(_)), "{error}");
    // Replaced by somebody else meanwhile: theirs stays.
    std::fs::remove_file(&path).unwrap();
    let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(nic);
    assert!(path.exists());
    let file = path.with_extension("txt");
    std::fs::write(&file, "precious").unwrap();
    let error = Nic::open(&NicSpec::Listen(file.clone()), 1500).await.err().unwrap();
    assert!(matches!(error, NicError::NotSocket(_)), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[tokio::test(start_paused = true)]
async fn connecting_is_tried_for_ever_and_after_every_loss() {
    let path = scratch().await.join("nic");
    let mut nic = Nic::open(&NicSpec::Connect(path.clone()), 1500).await.unwrap();
    // Nobody there for a day; every attempt is cancelled in between, which loses nothing.
    for _ in 0..24 {
        assert!(tokio::time::timeout(Duration::from_secs(3600), nic.ready()).await.is_err());
    }
    for round in 0..3 {
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(nic.ready().await, NicEvent::Connected));
        let (mut machine, _) = listener.accept().await.unwrap();
        machine.write_all(&framed(&[b"hi"])).await.unwrap();
        assert_eq!(frames(&mut nic).await, [b"hi"], "round {round}");
        drop((machine, listener));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(nic.ready().await, NicEvent::Lost(_)));
        assert!(!nic.is_connected());
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_closes_at_once_is_not_hammered() {
    let path = scratch().await.join("nic");
    let listener = UnixListener::bind(&path).unwrap();
    let mut nic = Nic::open(&NicSpec::Connect(path), 1500).await.unwrap();
    let start = Instant::now();
    for _ in 0..10 {
        assert!(matches!(nic.ready().await, NicEvent::Connected));
        drop(listener.accept().await.unwrap());
        assert!(matches!(nic.ready().await, NicEvent::Lost(_)));
    }
    assert!(start.elapsed() > Duration::from_secs(10), "took {:?}", start.elapsed());
}
