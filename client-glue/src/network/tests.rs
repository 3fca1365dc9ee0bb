use std::sync::{Arc, Mutex};

use super::*;

/// What a made-up machine says.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<(Duration, Option<IpAddr>)>>);

impl Machine for Fake {
    fn slept(&self) -> Option<Duration> {
        Some(self.0.lock().unwrap().0)
    }

    fn source(&self, _: SocketAddr) -> Option<IpAddr> {
        self.0.lock().unwrap().1
    }
}

fn fake() -> (Fake, Watcher) {
    let fake = Fake::default();
    fake.0.lock().unwrap().1 = Some([10, 0, 0, 1].into());
    let mut watcher = Watcher::of(Some(Box::new(fake.clone())));
    watcher.linked(Some(([192, 0, 2, 1], 5900).into()));
    (fake, watcher)
}

async fn nothing_in(watcher: &mut Watcher, time: Duration) {
    tokio::time::timeout(time, watcher.changed()).await.expect_err("nothing has changed");
}

#[tokio::test(start_paused = true)]
async fn sleep_is_noticed_within_a_look_and_told_once() {
    let (fake, mut watcher) = fake();
    nothing_in(&mut watcher, Duration::from_secs(3600)).await;
    fake.0.lock().unwrap().0 = Duration::from_secs(1800);
    let began = Instant::now();
    assert_eq!(watcher.changed().await, Change::Woke { after: Duration::from_secs(1800) });
    assert!(began.elapsed() <= EVERY);
    nothing_in(&mut watcher, Duration::from_secs(3600)).await;
    // The clocks differ a little at any time.
    fake.0.lock().unwrap().0 += Duration::from_millis(3);
    nothing_in(&mut watcher, Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn another_address_none_and_one_again_are_changes() {
    let (fake, mut watcher) = fake();
    let addresses: [Option<IpAddr>; 4] =
        [Some([10, 0, 0, 2].into()), None, Some([10, 0, 0, 2].into()), Some([10, 0, 0, 1].into())];
    let mut was = Some([10, 0, 0, 1].into());
    for is in addresses {
        fake.0.lock().unwrap().1 = is;
        assert_eq!(watcher.changed().await, Change::Network { was, is });
        nothing_in(&mut watcher, Duration::from_secs(60)).await;
        was = is;
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_that_is_never_awaited_for_long_comes_all_the_same() {
    let (fake, mut watcher) = fake();
    fake.0.lock().unwrap().1 = None;
    for _ in 0..19 {
        nothing_in(&mut watcher, Duration::from_millis(100)).await;
    }
    let looked = tokio::time::timeout(Duration::from_millis(300), watcher.changed()).await;
    assert!(matches!(looked, Ok(Change::Network { is: None, .. })));
}

#[tokio::test(start_paused = true)]
async fn where_there_is_nothing_to_look_at_nothing_changes() {
    let mut off = Watcher::new(false);
    off.linked(Some(([127, 0, 0, 1], 1).into()));
    nothing_in(&mut off, Duration::from_secs(3600)).await;
    let mut unix = Watcher::new(true);
    unix.linked(None);
    nothing_in(&mut unix, Duration::from_secs(20)).await;
}

#[test]
fn this_machine_knows_its_addresses() {
    assert_eq!(ThisMachine.source(([127, 0, 0, 1], 9).into()), Some([127, 0, 0, 1].into()));
    #[cfg(target_os = "linux")]
    assert!(ThisMachine.slept().is_some());
}
