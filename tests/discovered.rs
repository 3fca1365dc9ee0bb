//! A guest that finds printers by itself: the user's side looks, and what it finds is announced in the guest as if it stood
//! there. Everything is real: avahi and ippeveprinter in the user's network, avahi and CUPS in the guest, and nobody
//! configures anything.

mod chosen;
mod circle;
mod collisions;
mod comings;
mod found;
mod hostile;
mod named;
mod watch;
mod without;

use std::path::PathBuf;

use tokio::time::Instant;

use crate::lan::{Guest, Lan, Machine, signal};
use crate::vm::rig::{Program, soon, until};

use self::watch::{Seen, Watch, seen};

/// A user's network, the user's machine in it, and a guest elsewhere, with avahi and CUPS.
struct Home {
    lan: Lan,
    desk: Machine,
    guest: Guest,
    connect: Option<Program>,
}

impl Home {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With these options of `serve`.
    async fn with(serve: &[&str]) -> Self {
        let lan = Lan::new().await;
        let (desk, mut guest) = tokio::join!(Machine::boot("desk", ""), Guest::boot(serve));
        lan.plug(&desk, lan.number()).await;
        guest.avahi().await;
        Self { lan, desk, guest, connect: None }
    }

    /// Joins the session and shares what is found.
    async fn discover(&mut self, more: &[&str]) {
        let words = [&["connect", &self.guest.server, "--json"], more].concat();
        let mut connect = self.desk.tunnel(&words);
        connect.event("connected").await;
        self.connect = Some(connect);
    }

    /// `serve` ends and starts anew, and the guest's card with it.
    async fn restart_serve(&mut self, options: &[&str]) {
        let listen = self.guest.server.replace("spice+unix://", "unix:");
        let always = ["serve", "--standalone", "--nic", "tap:tap0", "--listen", &listen];
        signal(&self.guest.serve, "-TERM").await;
        soon("the end of serve", self.guest.serve.ended()).await;
        let mut serve = self.guest.machine.tunnel(&[&always[..], options].concat());
        serve.line("that it is up", |line| line.contains("the virtual network is up").then_some(())).await;
        self.guest.serve = serve;
        self.guest.lease().await;
    }

    /// Ends `connect`, and waits until it has.
    async fn leave(&mut self, by: &str) {
        let mut connect = self.connect.take().unwrap();
        signal(&connect, by).await;
        soon("the end of connect", connect.ended()).await;
    }

    /// A configuration for the user's side.
    fn config(&self, text: &str) -> String {
        let path = self.desk.path("spice-tunnel.toml");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// A document that the guest can read.
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.guest.machine.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// What the guest's avahi knows of a service; waits for it.
    async fn finds(&self, kind: &str, name: &str) -> Seen {
        until(name, || async {
            seen(&self.guest.machine, kind).await.into_iter().find(|seen| seen.name == name)
        })
        .await
    }

    /// What `spice-tunnel discover` prints on the user's machine.
    async fn desk_discover(&self, more: &[&str]) -> String {
        let mut command = self.desk.command(env!("CARGO_BIN_EXE_spice-tunnel"));
        let output = soon("what discover finds", command.arg("discover").args(more).output()).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Follows what the guest's avahi learns of such services.
    async fn watch(&self, kind: &str) -> Watch {
        Watch::start(&self.guest.machine, kind)
    }

    /// A queue that nobody made, which CUPS of the guest offers.
    async fn offered(&self, queue: &str) {
        until(queue, || async {
            let said = self.guest.ask(&["lpstat", "-e"]).await?;
            said.lines().any(|line| line.trim() == queue).then_some(())
        })
        .await;
    }
}

/// Says how long something took; whether it was fast enough is for people to judge.
fn took(what: &str, since: Instant) {
    println!("{what}: {:.1} s", since.elapsed().as_secs_f64());
}

/// The user's side is well, and the guest's.
fn assert_well(home: &mut Home) {
    let connect = home.connect.as_mut().unwrap();
    assert!(connect.is_running() && !connect.told("disconnected"), "the tunnel broke:\n{}", connect.said());
    assert!(home.guest.serve.is_running());
}
