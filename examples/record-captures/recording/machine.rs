//! The story that a real virtual machine tells: QEMU, Debian's kernel, busybox.

use std::path::Path;
use std::time::Duration;

use client_glue::TunnelConfig;
use openssl::sha::sha256;
use server_glue::nic::{Nic, NicSpec};
use server_glue::proxy::Backend;
use server_glue::stream::Target;
use spice_tunnel::vm::{NicRole, SpiceAddress, Vm};

use super::Error;
use super::services::{self, Service, pattern};
use super::stage::{PASSWORD, Stage, User, check};

/// How long the VM may take to boot: emulated, on a busy machine.
const BOOT: Duration = Duration::from_secs(180);
/// How long one command in it may take.
const COMMAND: Duration = Duration::from_secs(120);
/// Bytes that are fetched.
const LENGTH: usize = 30_000;

/// Linux talks to an echo, fetches something, sends something, and is refused.
pub(crate) async fn vm(directory: &Path, name: &str) -> Result<(), Error> {
    let sockets = tempfile::tempdir()?;
    let (card, spice) = (sockets.path().join("nic.sock"), sockets.path().join("spice.sock"));
    let vm = Vm::builder()
        .ticket(PASSWORD)
        .spice(SpiceAddress::Unix(spice.clone()))
        .nic(&card, NicRole::Listens)
        .start()
        .await?;
    let nic = Nic::open(&NicSpec::Connect(card), 1500).await?;
    let backend = Backend::Upstream(Target::Unix(spice).into());
    // Small packets, as on most networks; the default is 65,520.
    let stage = Stage::new(directory, name, nic, backend, |parts| parts.net.mtu = 1500).await?;
    vm.booted(BOOT).await?;
    let mut user = User::join(stage.spice, TunnelConfig::default()).await?;
    vm.lease(BOOT).await?;

    let shout = user.share("shout", Service::Shout.start().await?).await?;
    let source = user.share("source", Service::Source(LENGTH).start().await?).await?;
    let count = user.share("count", Service::Count.start().await?).await?;
    let nobody = user.share("nobody", services::nobody().await?).await?;
    let nc = |to: std::net::SocketAddr| format!("nc {} {}", to.ip(), to.port());

    let heard = command(&vm, &format!("echo 'from a real VM' | {}", nc(shout))).await?;
    check(heard.trim() == "FROM A REAL VM", &format!("the answer is in capitals: {heard}"))?;
    let heard = command(&vm, &format!("{} </dev/null | sha256sum", nc(source))).await?;
    let expected: String = sha256(&pattern(LENGTH)).iter().map(|byte| format!("{byte:02x}")).collect();
    check(heard.starts_with(&expected), &format!("what is fetched is what was sent: {heard}"))?;
    let heard = command(&vm, &format!("head -c {LENGTH} /dev/urandom | {}", nc(count))).await?;
    check(heard.trim() == LENGTH.to_string(), &format!("all bytes came: {heard}"))?;
    let answer = vm.run(&format!("{} </dev/null", nc(nobody)), COMMAND).await?;
    check(answer.status != 0 && answer.output.contains("refused"), &format!("refused: {}", answer.output))?;
    user.leave().await?;
    stage.end().await?;
    vm.kill().await?;
    Ok(())
}

async fn command(vm: &Vm, command: &str) -> Result<String, Error> {
    let answer = vm.run(command, COMMAND).await?;
    if answer.status != 0 {
        return Err(format!("{command:?} ended with {}: {}", answer.status, answer.output.trim()).into());
    }
    Ok(answer.output)
}
