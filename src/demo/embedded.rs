//! The demo with a guest of our own: nothing installed, no root.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use server_glue::nic::Nic;
use server_glue::proxy::Backend;
use tokio::net::UnixStream;

use super::user::User;
use super::{
    Error, Room, fact, headline, megabytes_per_second, microseconds, random_ticket, serve, sha256,
    within_step,
};
use crate::guest::{Config, ConnectionError, Guest};
use crate::printer;
use crate::serve::Recorders;

/// Requests whose answers are timed.
const ROUND_TRIPS: usize = 200;

pub(super) async fn run(megabytes: u32, recorders: &mut Recorders) -> Result<(), Error> {
    headline("A guest prints on a printer that only its user can reach");
    let room = Room::furnish().await?;

    let (card, cable) = UnixStream::pair().map_err(Error::io("making the guest's network card"))?;
    let (_, ticket) = random_ticket()?;
    let backend = Backend::Standalone { password: Some(ticket.clone()) };
    let (spice, server) = serve(Nic::attached(card), backend, recorders).await?;
    fact("server", format_args!("Spice with a ticket on {spice}, behind it the guest's extra card"));

    let user = User::join(spice, &ticket, &room).await?;

    let guest = Guest::start(cable, Config::default());
    let lease = within_step("the guest's address", guest.lease()).await??;
    let mtu = lease.mtu.map_or_else(|| "none".to_owned(), |mtu| mtu.to_string());
    let route =
        lease.router.map_or("no default route".to_owned(), |router| format!("default route {router}"));
    fact("guest", format_args!("{}/{} by DHCP, MTU {mtu}, {route}", lease.address, lease.prefix_len));
    if lease.router.is_some() {
        return Err(Error::Wrong {
            what: "the guest's default route",
            expected: "none".to_owned(),
            got: route,
        });
    }

    headline("It prints");
    let document = document(megabytes)?;
    let sent_sha256 = sha256(&document);
    let bytes = u64::from(megabytes) * 1_000_000;
    let stream =
        within_step("the connection to the printer", guest.connect(user.printer.ip(), user.printer.port()))
            .await??;
    let start = Instant::now();
    let printed =
        printer::submit(stream, &user.printer.to_string(), "demo", "application/octet-stream", document)
            .await
            .map_err(Error::part("printing"))?;
    let took = start.elapsed();
    room.inspect(printed.job, bytes, &sent_sha256).await?;
    fact("speed", format_args!("{} in {} ms", megabytes_per_second(bytes, took), took.as_millis()));
    let (median, worst) = round_trips(&guest, &user).await?;
    fact(
        "round trip",
        format_args!(
            "{} median, {} at the 99th percentile of {ROUND_TRIPS}",
            microseconds(median),
            microseconds(worst)
        ),
    );

    headline("Nothing else is there");
    // The printer's neighbour port: on the same address, but nobody shared it.
    let closed = user.printer.port() ^ 1;
    match within_step("a refusal", guest.connect(user.printer.ip(), closed)).await? {
        Err(crate::guest::stream::Error::Connection(ConnectionError::Refused)) => {
            fact("port not shared", format_args!("{}:{closed} is refused", user.printer.ip()));
        }
        other => {
            let got = other.map_or_else(|error| error.to_string(), |_| "a connection".to_owned());
            return Err(Error::Wrong {
                what: "a port that nobody shared",
                expected: "refused".to_owned(),
                got,
            });
        }
    }

    headline("How the tunnel opened");
    for line in user.opening() {
        println!("{line}");
    }
    server.stop().await;
    headline("All of it was right.");
    Ok(())
}

/// Something that does not compress, like a rendered page.
fn document(megabytes: u32) -> Result<Bytes, Error> {
    let mut document = vec![0; megabytes as usize * 1_000_000];
    openssl::rand::rand_bytes(&mut document).map_err(Error::part("making a document"))?;
    Ok(document.into())
}

/// Small requests on one connection, one after the other: the median time, and the 99th percentile.
async fn round_trips(guest: &Guest, user: &User) -> Result<(Duration, Duration), Error> {
    let stream =
        within_step("a connection to the printer", guest.connect(user.printer.ip(), user.printer.port()))
            .await??;
    let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Error::part("asking the printer"))?;
    tokio::spawn(connection);
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let request = Request::head("/")
            .header(HOST, user.printer.to_string())
            .body(Empty::<Bytes>::new())
            .map_err(Error::part("asking the printer"))?;
        requests.ready().await.map_err(Error::part("asking the printer"))?;
        let start = Instant::now();
        let answer = requests.send_request(request).await.map_err(Error::part("asking the printer"))?;
        answer.into_body().collect().await.map_err(Error::part("asking the printer"))?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    Ok((at(ROUND_TRIPS / 2), at(ROUND_TRIPS * 99 / 100)))
}
