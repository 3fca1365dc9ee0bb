//! A printer that answers SNMP, to broadcasts as well.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::net::UdpSocket;

use crate::agent::{Agent, Value};
use crate::{Device, Odd, Result, common_socket, own_socket, ready, told_to_end};

const PORT: u16 = 161;

#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) device: Device,
    /// The broadcast address of its network.
    #[arg(long)]
    broadcast: Option<Ipv4Addr>,
    #[arg(long, default_value = "public")]
    community: String,
    /// The version it speaks.
    #[arg(long, value_enum, default_value = "both")]
    version: Version,
    /// What it says of how it is printed to, such as `socket://10.0.0.5:9100`.
    #[arg(long)]
    uri: Option<String>,
    /// The languages it understands, in its IEEE 1284 id.
    #[arg(long, default_value = "PJL,PCL,POSTSCRIPT")]
    commands: String,
    /// Asks the agent there, and passes on what that answers, to broadcasts as well: for snmpd, which cannot answer these.
    #[arg(long)]
    before: Option<SocketAddr>,
    /// What kind of device it is, as an arc of hrDeviceTypes; 5 is a printer.
    #[arg(long, default_value_t = 5)]
    device_type: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Version {
    #[value(name = "1")]
    V1,
    #[value(name = "2c")]
    V2c,
    Both,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let device = &arguments.device;
    let agent = Agent {
        community: arguments.community.clone().into_bytes(),
        v1: arguments.version != Version::V2c,
        v2c: arguments.version != Version::V1,
        objects: objects(&arguments),
    };
    let own = own_socket(device.address, PORT)?;
    let common = arguments.broadcast.map(|to| common_socket(to, PORT, device.address)).transpose()?;
    ready();
    let (mut here, mut everywhere) = (vec![0; 4096], vec![0; 4096]);
    let end = told_to_end();
    tokio::pin!(end);
    loop {
        let broadcast = async {
            match &common {
                Some(common) => common.recv_from(&mut everywhere).await,
                None => std::future::pending().await,
            }
        };
        let (request, from, to_all) = tokio::select! {
            got = own.recv_from(&mut here) => {
                let (length, from) = got?;
                (&here[..length], from, false)
            }
            got = broadcast => {
                let (length, from) = got?;
                (&everywhere[..length], from, true)
            }
            ended = &mut end => return ended,
        };
        let answer = match arguments.before {
            Some(place) => passed_on(place, request).await,
            None => agent.answer(request),
        };
        let Some(mut answer) = answer else { continue };
        match device.odd {
            Some(Odd::Garbage) => answer = vec![0x30; 600],
            Some(Odd::Mute) if !to_all => continue,
            Some(Odd::Forger) => {
                // The number of another's question.
                if let Some(at) = answer.windows(2).position(|bytes| bytes == [0x02, 0x04]) {
                    answer[at + 5] ^= 0x55;
                }
            }
            Some(_) | None => {}
        }
        // The asker may be gone.
        let _ = own.send_to(&answer, from).await;
    }
}

/// What the agent at `place` answers, if it does.
async fn passed_on(place: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.ok()?;
    socket.send_to(request, place).await.ok()?;
    let mut answer = vec![0; 4096];
    let got = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut answer)).await;
    answer.truncate(got.ok()?.ok()?);
    Some(answer)
}

fn objects(arguments: &Arguments) -> BTreeMap<&'static [u32], Value> {
    let device = &arguments.device;
    let kind: Vec<u32> = [&[1, 3, 6, 1, 2, 1, 25, 3, 1][..], &[arguments.device_type]].concat();
    let id = format!(
        "MFG:{};CMD:{};MDL:{};CLS:PRINTER;SN:{};",
        device.maker, arguments.commands, device.model, device.serial
    );
    let text = |text: &str| Value::Text(device.text(text).into_bytes());
    let mut objects: BTreeMap<&'static [u32], Value> = BTreeMap::new();
    // The process's life long, and once.
    objects.insert(&[1, 3, 6, 1, 2, 1, 25, 3, 2, 1, 2, 1], Value::Name(kind.leak()));
    objects
        .insert(&[1, 3, 6, 1, 2, 1, 25, 3, 2, 1, 3, 1], text(&format!("{} {}", device.maker, device.model)));
    objects.insert(&[1, 3, 6, 1, 2, 1, 1, 1, 0], text("An agent of examples"));
    objects.insert(&[1, 3, 6, 1, 2, 1, 1, 5, 0], text(&device.name));
    objects.insert(&[1, 3, 6, 1, 2, 1, 1, 6, 0], text(&device.location));
    objects.insert(&[1, 3, 6, 1, 2, 1, 43, 5, 1, 1, 16, 1], text(&device.name));
    objects.insert(&[1, 3, 6, 1, 2, 1, 43, 5, 1, 1, 17, 1], text(&device.serial));
    objects.insert(&[1, 3, 6, 1, 4, 1, 2699, 1, 2, 1, 2, 1, 1, 3, 1], text(&id));
    if let Some(uri) = &arguments.uri {
        objects.insert(&[1, 3, 6, 1, 4, 1, 2699, 1, 2, 1, 3, 1, 1, 4, 1, 1], text(uri));
    }
    objects
}
