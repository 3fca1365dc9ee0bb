//! The demo with a real virtual machine: stock QEMU, Debian's kernel, busybox.

use std::time::{Duration, Instant};

use server_glue::nic::{Nic, NicSpec};
use server_glue::proxy::Backend;
use server_glue::stream::Target;

use super::user::User;
use super::{Error, Room, fact, headline, megabytes_per_second, random_ticket, serve};
use crate::serve::Recorders;
use crate::vm::{NicRole, SpiceAddress, Vm};

/// How long the VM may take to boot: under emulation on a busy machine it is not 4 s.
const BOOT: Duration = Duration::from_secs(90);
/// How long one command in the VM may take.
const COMMAND: Duration = Duration::from_secs(120);

pub(super) async fn run(megabytes: u32, recorders: &mut Recorders) -> Result<(), Error> {
    headline("A virtual machine prints on a printer that only its user can reach");
    let room = Room::furnish().await?;
    let (secret, ticket) = random_ticket()?;
    let directory = tempfile::tempdir().map_err(Error::io("making a directory for sockets"))?;
    let (card, spice) = (directory.path().join("nic.sock"), directory.path().join("spice.sock"));

    let vm = Vm::builder()
        .ticket(secret)
        .spice(SpiceAddress::Unix(spice.clone()))
        .nic(&card, NicRole::Listens)
        .start()
        .await?;
    fact("VM", format_args!("QEMU with -spice and -netdev stream, its ticket is set"));
    let nic =
        Nic::open(&NicSpec::Connect(card), 65_520).await.map_err(Error::part("reaching the VM's card"))?;
    let (spice, server) = serve(nic, Backend::Upstream(Target::Unix(spice).into()), recorders).await?;
    fact("server", format_args!("on {spice}, in front of QEMU"));
    vm.booted(BOOT).await?;
    let user = User::join(spice, &ticket, &room).await?;
    let lease = vm.lease(BOOT).await?;
    fact("guest", format_args!("DHCP gave it {lease}"));

    headline("It prints");
    let printer = user.printer;
    // An IPP Print-Job request, then the document.
    let head: String =
        print_job_head(&printer.to_string()).iter().map(|byte| format!("\\{byte:03o}")).collect();
    let prepare = format!(
        "printf '{head}' >/tmp/job && dd if=/dev/urandom of=/tmp/document bs=1000000 count={megabytes} 2>/dev/null && \
         cat /tmp/document >>/tmp/job && sha256sum /tmp/document"
    );
    let prepared = command(&vm, &prepare).await?;
    let sha256 = prepared.split_whitespace().next().unwrap_or_default().to_owned();
    // busybox's wget posts no bytes behind a NUL.
    let print = format!(
        "{{ printf 'POST /ipp/print HTTP/1.1\\r\\nHost: {printer}\\r\\nContent-Type: application/ipp\\r\\n'; \
         printf \"Content-Length: $(stat -c %s /tmp/job)\\r\\nConnection: close\\r\\n\\r\\n\"; cat /tmp/job; }} | \
         nc {} {} >/tmp/answer && grep -q '^HTTP/1.1 200' /tmp/answer",
        printer.ip(),
        printer.port()
    );
    let start = Instant::now();
    command(&vm, &print).await?;
    let (took, bytes) = (start.elapsed(), u64::from(megabytes) * 1_000_000);
    room.inspect(1, bytes, &sha256).await?;
    fact(
        "speed",
        format_args!("{} in {} ms, the VM is emulated", megabytes_per_second(bytes, took), took.as_millis()),
    );

    headline("How the tunnel opened");
    for line in user.opening() {
        println!("{line}");
    }
    drop(user);
    server.stop().await;
    headline("All of it was right.");
    Ok(())
}

async fn command(vm: &Vm, command: &str) -> Result<String, Error> {
    let answer = vm.run(command, COMMAND).await?;
    if answer.status != 0 {
        return Err(Error::Wrong {
            what: "a command's exit status in the VM",
            expected: "0".to_owned(),
            got: format!("{} from {command:?}: {}", answer.status, answer.output.trim()),
        });
    }
    Ok(answer.output)
}

/// The start of an IPP Print-Job request (RFC 8011).
fn print_job_head(authority: &str) -> Vec<u8> {
    let mut head = vec![2, 0, 0, 2, 0, 0, 0, 1, 1];
    let mut attribute = |tag: u8, name: &str, value: &str| {
        head.push(tag);
        for text in [name, value] {
            // They are all short.
            head.extend(u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
            head.extend(text.bytes());
        }
    };
    attribute(0x47, "attributes-charset", "utf-8");
    attribute(0x48, "attributes-natural-language", "en");
    attribute(0x45, "printer-uri", &format!("ipp://{authority}/ipp/print"));
    attribute(0x49, "document-format", "application/octet-stream");
    head.push(3);
    head
}
