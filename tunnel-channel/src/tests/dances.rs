//! The close dances of wire-reference 6.10 and every crossing of them, with all that passes on the wire. Each script runs
//! with several link speeds and sizes of pieces, and with both headers; what passes must not depend on it.

use std::time::Duration;

use spice_proto::frame::HeaderForm;
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{ServiceId, SocketId};

use super::new_service;
use crate::pair::{Pair, Setup};
use crate::{Channel, Event, ResetCause, Role};

const ID: SocketId = SocketId(0);

/// A pair, what its owners heard, and how the link cuts its bytes.
struct Script {
    pair: Pair,
    heard: Vec<String>,
    piece: usize,
    said: usize,
}

impl Script {
    fn settle(&mut self) {
        let heard = &mut self.heard;
        self.pair.settle(self.piece, |channel, event| heard.push(told(channel, event))).unwrap();
    }

    /// Settles, then compares everything that passed and that was heard since the last call.
    fn expect(&mut self, wire: &[&str], heard: &[&str]) {
        self.settle();
        let by = |side: &str, lines: Vec<&str>| -> Vec<String> {
            lines.into_iter().filter(|line| line.starts_with(side)).map(str::to_owned).collect()
        };
        let passed: Vec<&str> = self.pair.wire[self.said..].iter().map(String::as_str).collect();
        // The order within a direction is what counts; between them it hangs on the link.
        for side in ["S", "C"] {
            assert_eq!(by(side, passed.clone()), by(side, wire.to_vec()), "{passed:?}");
        }
        self.said = self.pair.wire.len();
        let mut actual = std::mem::take(&mut self.heard);
        actual.sort();
        let mut expected = heard.to_vec();
        expected.sort_unstable();
        assert_eq!(actual, expected);
    }

    /// Nothing is left, and the id is at once good for another connection.
    fn expect_free(mut self) {
        assert_eq!((self.pair.server.sockets(), self.pair.client.sockets()), (0, 0));
        assert_eq!((self.pair.server.waiting(), self.pair.client.waiting()), (0, 0));
        self.open();
        self.pair.client.accept(ID);
        self.expect(&["C socket_open_ack 0 tokens 64"], &["server accepted"]);
    }

    fn open(&mut self) {
        assert_eq!(self.pair.server.open(ServiceId(0)), Ok(ID));
        self.expect(&["S socket_open 0 service 0 tokens 64"], &["client open"]);
    }

    fn send(&mut self, role: Role, text: &str) {
        let sent = self.pair.end(role).send(ID, |room| {
            room[..text.len()].copy_from_slice(text.as_bytes());
            text.len()
        });
        assert_eq!(sent, text.len());
    }

    fn server(&mut self) -> &mut Channel {
        &mut self.pair.server
    }

    fn client(&mut self) -> &mut Channel {
        &mut self.pair.client
    }
}

fn told(channel: &Channel, event: Event<'_>) -> String {
    let who = match channel.role() {
        Role::Server => "server",
        Role::Client => "client",
    };
    let what = match event {
        Event::Open { socket: ID, .. } => "open".to_owned(),
        Event::Accepted { socket: ID } => "accepted".to_owned(),
        Event::Refused { socket: ID } => "refused".to_owned(),
        Event::Data { socket: ID, payload } => format!("data {}", String::from_utf8_lossy(payload)),
        Event::Finished { socket: ID } => "finished".to_owned(),
        Event::PeerClosed { socket: ID } => "peer closed".to_owned(),
        Event::Reset { socket: ID, cause: ResetCause::Peer } => "reset".to_owned(),
        other => format!("{other:?}"),
    };
    format!("{who} {what}")
}

/// Runs a script on many kinds of link. With `open`, it starts on a socket that both have accepted.
fn dance(caps: TunnelCaps, open: bool, script: impl Fn(Script)) {
    for header in [HeaderForm::Mini, HeaderForm::Full] {
        for (latency, piece) in [(0, 1), (0, 4096), (20, 3), (20, 4096)] {
            let setup = Setup { caps, header, latency: Duration::from_millis(latency), ..Setup::default() };
            let mut new = Script { pair: Pair::new(&setup), heard: Vec::new(), piece, said: 0 };
            new.settle();
            new.pair.client.add_service(new_service(0, b"printer")).unwrap();
            new.settle();
            new.said = new.pair.wire.len();
            new.heard.clear();
            if open {
                new.open();
                new.client().accept(ID);
                new.expect(&["C socket_open_ack 0 tokens 64"], &["server accepted"]);
            }
            script(new);
        }
    }
}

const OURS: TunnelCaps = TunnelCaps::OURS;
const NO_RESET: TunnelCaps = TunnelCaps::EXTENDED;

#[test]
fn guest_fin_first() {
    dance(OURS, true, |mut script| {
        script.send(Role::Server, "job");
        script.server().finish(ID);
        script.expect(&["S socket_data 0 len 3", "S socket_fin 0"], &["client data job", "client finished"]);
        script.send(Role::Client, "done");
        script.client().delivered(ID, 1);
        script.client().finish(ID);
        script.client().close(ID);
        // No FIN of the client: CLOSED says it.
        script.expect(
            &["C socket_data 0 len 4", "C socket_closed 0"],
            &["server data done", "server finished"],
        );
        script.server().delivered(ID, 1);
        script.expect(&[], &[]);
        script.server().close(ID);
        script.expect(&["S socket_closed_ack 0"], &[]);
        script.expect_free();
    });
}

#[test]
fn guest_fin_first_and_the_service_ends_before_it_has_read_all() {
    dance(OURS, true, |mut script| {
        script.send(Role::Server, "job");
        script.server().finish(ID);
        script.expect(&["S socket_data 0 len 3", "S socket_fin 0"], &["client data job", "client finished"]);
        script.client().finish(ID);
        script.expect(&["C socket_fin 0"], &["server finished"]);
        script.server().close(ID);
        script.expect(&[], &[]);
        script.client().delivered(ID, 1);
        script.client().close(ID);
        script.expect(&["C socket_closed 0", "S socket_closed_ack 0"], &[]);
        script.expect_free();
    });
}

#[test]
fn service_eof_first() {
    dance(OURS, true, |mut script| {
        script.send(Role::Client, "page");
        script.client().finish(ID);
        script.expect(&["C socket_data 0 len 4", "C socket_fin 0"], &["server data page", "server finished"]);
        script.send(Role::Server, "thanks");
        script.server().delivered(ID, 1);
        script.server().finish(ID);
        script.server().close(ID);
        script
            .expect(&["S socket_data 0 len 6", "S socket_fin 0"], &["client data thanks", "client finished"]);
        script.client().delivered(ID, 1);
        script.client().close(ID);
        script.expect(&["C socket_closed 0", "S socket_closed_ack 0"], &[]);
        script.expect_free();
    });
}

#[test]
fn fins_cross() {
    dance(OURS, true, |mut script| {
        script.client().finish(ID);
        script.server().finish(ID);
        script.expect(&["C socket_fin 0", "S socket_fin 0"], &["server finished", "client finished"]);
        script.server().close(ID);
        script.client().close(ID);
        script.expect(&["C socket_closed 0", "S socket_closed_ack 0"], &[]);
        script.expect_free();
    });
}

#[test]
fn guest_resets() {
    dance(OURS, true, |mut script| {
        script.send(Role::Server, "job");
        script.server().reset(ID);
        script.expect(
            &["S socket_data 0 len 3", "S socket_close 0", "C socket_closed_ack 0"],
            &["client data job", "client reset"],
        );
        script.expect_free();
    });
}

#[test]
fn service_resets() {
    dance(OURS, true, |mut script| {
        script.send(Role::Client, "page");
        script.client().reset(ID);
        script.expect(
            &["C socket_data 0 len 4", "C socket_reset 0", "S socket_closed_ack 0"],
            &["server data page", "server reset"],
        );
        script.expect_free();
    });
    dance(NO_RESET, true, |mut script| {
        script.client().reset(ID);
        script.expect(&["C socket_closed 0", "S socket_closed_ack 0"], &["server reset"]);
        script.expect_free();
    });
}

#[test]
fn service_resets_after_the_guests_fin() {
    dance(OURS, true, |mut script| {
        script.server().finish(ID);
        script.expect(&["S socket_fin 0"], &["client finished"]);
        script.client().reset(ID);
        script.expect(&["C socket_reset 0", "S socket_closed_ack 0"], &["server reset"]);
        script.expect_free();
    });
    // An old server cannot tell an abort from an end here, and that is why RESET exists.
    dance(NO_RESET, true, |mut script| {
        script.server().finish(ID);
        script.expect(&["S socket_fin 0"], &["client finished"]);
        script.client().reset(ID);
        script.expect(&["C socket_closed 0"], &["server finished"]);
        script.server().close(ID);
        script.expect(&["S socket_closed_ack 0"], &[]);
        script.expect_free();
    });
}

#[test]
fn both_reset_at_once() {
    // CLOSE and CLOSED cross: one CLOSED_ACK, the client's, ends it.
    for (caps, word) in [(OURS, "C socket_reset 0"), (NO_RESET, "C socket_closed 0")] {
        dance(caps, true, |mut script| {
            script.server().reset(ID);
            script.client().reset(ID);
            script.expect(&["S socket_close 0", word, "C socket_closed_ack 0"], &[]);
            script.expect_free();
        });
    }
}

#[test]
fn guest_resets_while_the_client_ends_cleanly() {
    dance(OURS, true, |mut script| {
        script.server().finish(ID);
        script.expect(&["S socket_fin 0"], &["client finished"]);
        script.client().finish(ID);
        script.client().close(ID);
        script.server().reset(ID);
        script.expect(&["S socket_close 0", "C socket_closed 0", "C socket_closed_ack 0"], &[]);
        script.expect_free();
    });
}

#[test]
fn guest_resets_while_the_service_finishes() {
    dance(OURS, true, |mut script| {
        script.send(Role::Client, "page");
        script.client().finish(ID);
        script.server().reset(ID);
        script.expect(
            &["S socket_close 0", "C socket_data 0 len 4", "C socket_fin 0", "C socket_closed_ack 0"],
            &["client reset"],
        );
        script.expect_free();
    });
}

#[test]
fn service_resets_while_the_guest_sends_and_finishes() {
    for (caps, word) in [(OURS, "C socket_reset 0"), (NO_RESET, "C socket_closed 0")] {
        dance(caps, true, |mut script| {
            script.client().reset(ID);
            script.send(Role::Server, "late");
            script.server().finish(ID);
            if caps == NO_RESET {
                // To the server it looks like the end of a service that had read the guest's FIN.
                script.expect(&["S socket_data 0 len 4", "S socket_fin 0", word], &["server finished"]);
                script.server().close(ID);
                script.expect(&["S socket_closed_ack 0"], &[]);
            } else {
                script.expect(
                    &["S socket_data 0 len 4", "S socket_fin 0", word, "S socket_closed_ack 0"],
                    &["server reset"],
                );
            }
            script.expect_free();
        });
    }
}

#[test]
fn guest_is_gone_after_both_fins_and_before_the_client_has_delivered() {
    // What the historical server does as soon as the guest has acknowledged everything.
    dance(OURS, true, |mut script| {
        script.client().finish(ID);
        script.send(Role::Server, "thanks");
        script.server().finish(ID);
        script.expect(
            &["C socket_fin 0", "S socket_data 0 len 6", "S socket_fin 0"],
            &["server finished", "client data thanks", "client finished"],
        );
        script.server().reset(ID);
        script.expect(&["S socket_close 0"], &["client peer closed"]);
        assert_eq!(script.client().waiting(), 6, "the bytes are still to be delivered");
        script.client().delivered(ID, 1);
        script.client().close(ID);
        script.expect(&["C socket_closed_ack 0"], &[]);
        script.expect_free();
    });
}

#[test]
fn guest_is_gone_after_its_fin_while_the_service_still_sends() {
    dance(OURS, true, |mut script| {
        script.server().finish(ID);
        script.expect(&["S socket_fin 0"], &["client finished"]);
        script.server().reset(ID);
        script.send(Role::Client, "late");
        script.expect(&["S socket_close 0", "C socket_data 0 len 4"], &["client peer closed"]);
        assert_eq!(script.client().credit(ID), 0);
        script.client().finish(ID);
        script.client().close(ID);
        script.expect(&["C socket_closed_ack 0"], &[]);
        script.expect_free();
    });
}

#[test]
fn tokens_cross_the_end() {
    dance(OURS, true, |mut script| {
        for _ in 0..16 {
            script.send(Role::Server, "x");
            script.send(Role::Client, "y");
        }
        script.settle();
        script.said = script.pair.wire.len();
        script.heard.clear();
        script.server().delivered(ID, 16);
        script.client().delivered(ID, 16);
        script.server().reset(ID);
        script.client().reset(ID);
        script.expect(
            &[
                "S socket_token 0 tokens 16",
                "S socket_close 0",
                "C socket_token 0 tokens 16",
                "C socket_reset 0",
                "C socket_closed_ack 0",
            ],
            &[],
        );
        script.expect_free();
    });
}

#[test]
fn guest_gives_up_before_the_answer() {
    dance(OURS, false, |mut script| {
        script.open();
        script.server().reset(ID);
        script.expect(&[], &[]);
        script.client().accept(ID);
        script.expect(
            &["C socket_open_ack 0 tokens 64", "S socket_close 0", "C socket_closed_ack 0"],
            &["client reset"],
        );
        script.expect_free();
    });
    dance(OURS, false, |mut script| {
        script.open();
        script.server().reset(ID);
        script.client().refuse(ID);
        script.expect(&["C socket_open_nack 0"], &[]);
        script.expect_free();
    });
    // The service answers, sends and goes before the server's CLOSE is there.
    dance(OURS, false, |mut script| {
        script.open();
        script.server().reset(ID);
        script.client().accept(ID);
        script.send(Role::Client, "hello");
        script.client().finish(ID);
        script.client().reset(ID);
        script.expect(
            &[
                "C socket_open_ack 0 tokens 64",
                "S socket_close 0",
                "C socket_data 0 len 5",
                "C socket_fin 0",
                "C socket_reset 0",
                "C socket_closed_ack 0",
            ],
            &[],
        );
        script.expect_free();
    });
}

#[test]
fn service_refuses() {
    dance(OURS, false, |mut script| {
        script.open();
        script.client().refuse(ID);
        script.expect(&["C socket_open_nack 0"], &["server refused"]);
        script.expect_free();
    });
}

#[test]
fn a_removed_service_refuses_what_is_on_its_way() {
    dance(OURS, false, |mut script| {
        let service = ServiceId(0);
        assert_eq!(script.server().open(service), Ok(ID));
        script.client().remove_service(service);
        script.expect(
            &["S socket_open 0 service 0 tokens 64", "C service_remove 0", "C socket_open_nack 0"],
            &["server ServiceRemoved { service: ServiceId(0) }", "server refused"],
        );
        assert_eq!(script.server().open(service), Err(crate::OpenError::UnknownService { service }));
    });
    // Without the capability nothing is said, and the server goes on asking.
    dance(NO_RESET, false, |mut script| {
        let service = ServiceId(0);
        script.client().remove_service(service);
        script.expect(&[], &[]);
        assert_eq!(script.server().open(service), Ok(ID));
        script.expect(&["S socket_open 0 service 0 tokens 64", "C socket_open_nack 0"], &["server refused"]);
    });
}

#[test]
fn a_socket_outlives_its_service() {
    dance(OURS, true, |mut script| {
        script.client().remove_service(ServiceId(0));
        script.settle();
        script.heard.clear();
        script.said = script.pair.wire.len();
        script.send(Role::Server, "job");
        script.expect(&["S socket_data 0 len 3"], &["client data job"]);
    });
}

#[test]
fn goodbye_ends_the_channel_and_the_peer_hears_why() {
    dance(OURS, true, |mut script| {
        script.server().disconnect(7);
        assert!(script.server().has_ended());
        assert_eq!(script.server().sockets(), 0);
        script.expect(&["S disconnecting"], &["client Disconnecting { reason: 7 }"]);
        script.server().disconnect(7);
        script.server().reset(ID);
        script.client().disconnect(0);
        script.expect(&["C disconnecting"], &[]);
        assert!(script.client().poll_timeout().is_none() && script.server().poll_timeout().is_none());
    });
}
