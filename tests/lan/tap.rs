//! Cards that are TAP devices, with this kernel as the guest, or a virtual machine that has a TAP device too.

use std::fs::Permissions;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use openssl::sha::Sha256;
use spice_tunnel::vm::Vm;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Desk, Guest, Lan, Machine};
use crate::vm::rig::{soon, until};

const MTU: &[&str] = &["--mtu", "9000"];

/// Gives everybody who connects so many bytes, and then takes as many.
async fn fountain(machine: &Machine, at: SocketAddr, bytes: usize) -> [u8; 32] {
    let listener = machine.listen(at);
    let block: Vec<u8> = (0..1_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut hash = Sha256::new();
    (0..bytes / block.len()).for_each(|_| hash.update(&block));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let block = block.clone();
            tokio::spawn(async move {
                for _ in 0..bytes / block.len() {
                    if stream.write_all(&block).await.is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown().await;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            });
        }
    });
    hash.finish()
}

async fn mtu(machine: &Machine) -> String {
    let said = machine.sh("ip -o link show tap0").await;
    said.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_gets_an_address_and_a_hundred_megabytes() {
    const BYTES: usize = 100_000_300;

    let lan = Lan::new().await;
    let mut desk = Desk::new(&lan).await;
    let guest = Guest::boot(MTU).await;
    assert_eq!(mtu(&guest.machine).await, "9000");
    let service = SocketAddr::new(super::network::addresses(10)[0], 7000);
    let expected = fountain(&desk.machine, service, BYTES).await;
    let at = desk.share(&guest, &[service], &[]).await[0];
    let mut stream = soon("a connection", guest.machine.connect(at)).await.unwrap();
    let (mut hash, mut got, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = soon("bytes", stream.read(&mut buffer)).await.unwrap();
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        got += read;
    }
    assert_eq!((got, hash.finish()), (BYTES, expected));
    // What is not shared does not exist, and what nobody shares at an address that does is refused.
    let refused = guest.machine.connect(SocketAddr::new(at.ip(), 7001)).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Octets and packets that the guest has got from its card and given to it.
async fn traffic(machine: &Machine) -> [u64; 4] {
    let said = machine.sh("ip -s -j link show tap0").await;
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let count = |way: &str, what: &str| said[0]["stats64"][way][what].as_u64().unwrap();
    [count("rx", "bytes"), count("rx", "packets"), count("tx", "bytes"), count("tx", "packets")]
}

/// With offloads the guest's kernel and we pass each other segments that no wire would take; without, packets of the MTU. Either way
/// every octet arrives, in both directions at once.
#[tokio::test(flavor = "multi_thread")]
async fn long_segments_pass_whole_unless_they_may_not() {
    const BYTES: usize = 30_000_090;

    for (nic, whole) in [("tap:tap0", true), ("tap:tap0,offload=off", false)] {
        let lan = Lan::new().await;
        let mut desk = Desk::new(&lan).await;
        let guest = Guest::boot_on(nic, &["--mtu", "1500"]).await;
        let at = SocketAddr::new(super::network::addresses(10)[0], 7000);
        let listener = desk.machine.listen(at);
        // What comes goes back, hashed on its way by nobody but the guest.
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let at = desk.share(&guest, &[at], &[]).await[0];
        let before = traffic(&guest.machine).await;
        let (mut read, mut write) =
            soon("a connection", guest.machine.connect(at)).await.unwrap().into_split();
        let sent = tokio::spawn(async move {
            let block: Vec<u8> =
                (0..1_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let mut hash = Sha256::new();
            for _ in 0..BYTES / block.len() {
                write.write_all(&block).await.unwrap();
                hash.update(&block);
            }
            write.shutdown().await.unwrap();
            hash.finish()
        });
        let (mut hash, mut got, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            let read = soon("bytes", read.read(&mut buffer)).await.unwrap();
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            got += read;
        }
        assert_eq!((got, hash.finish()), (BYTES, sent.await.unwrap()), "{nic}");
        let after = traffic(&guest.machine).await;
        let [rx, rx_packets, tx, tx_packets] = std::array::from_fn(|n| after[n] - before[n]);
        // Acknowledgements are among the packets, so that even long segments have a modest average.
        let long = |bytes: u64, packets: u64| bytes > 1514 * packets;
        assert_eq!(
            (long(rx, rx_packets), long(tx, tx_packets)),
            (whole, whole),
            "{nic}: {before:?} {after:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_device_is_made_again_if_it_was_ours_and_waited_for_if_it_was_not() {
    let mut ours = Guest::boot(MTU).await;
    ours.machine.sh("ip link delete tap0").await;
    let gone = |line: &str| line.contains("the TAP device was deleted").then_some(());
    let back = |line: &str| line.contains("the guest's card is there").then_some(());
    ours.serve.line("that the card is gone", gone).await;
    ours.serve.line("that the card is back", back).await;
    ours.lease().await;

    let machine = Machine::boot("guest", "").await;
    machine.sh("ip tuntap add vm1 mode tap").await;
    machine.sh("ip link set vm1 mtu 1400").await;
    let listen = format!("unix:{}", machine.path("spice.sock").display());
    let mut serve =
        machine.tunnel(&["serve", "--standalone", "--nic", "tap:vm1", "--listen", &listen, "--mtu", "2000"]);
    serve.line("that it is up", |line| line.contains("the virtual network is up").then_some(())).await;
    assert!(machine.sh("ip link show vm1").await.contains("mtu 2000"), "root may change it");
    machine.sh("ip link delete vm1").await;
    serve.line("that the card is gone", gone).await;
    serve.line("that it waits", |line| line.contains("there is no TAP device vm1").then_some(())).await;
    machine.sh("ip tuntap add vm1 mode tap").await;
    serve.line("that the card is back", back).await;
    until("the device to be up", || async {
        machine.sh("ip link show vm1").await.contains(",UP").then_some(())
    })
    .await;
    // A second one of us cannot have it.
    let second = ["serve", "--standalone", "--nic", "tap:vm1", "--listen", "127.0.0.1:0"];
    let mut second = machine.tunnel(&second);
    second.line("why not", |line| line.contains("vm1 is in use by another program").then_some(())).await;
    assert_eq!(second.ended().await.code(), Some(1));
}

/// Whoever may not configure devices uses one that was made for them, as it is.
#[tokio::test(flavor = "multi_thread")]
async fn without_privilege_a_device_is_used_as_it_is_and_every_obstacle_is_named() {
    let machine = Machine::boot("guest", "").await;
    for (name, mode) in [
        ("good", "tap user nobody"),
        ("theirs", "tap user daemon"),
        ("three", "tun user nobody"),
        ("many", "tap multi_queue user nobody"),
        ("small", "tap user nobody"),
    ] {
        machine.sh(&format!("ip tuntap add {name} mode {mode}")).await;
    }
    machine.sh("ip link set small mtu 500").await;
    machine.sh("ip link set good up mtu 1400").await;
    let program = machine.path("spice-tunnel");
    std::fs::copy(env!("CARGO_BIN_EXE_spice-tunnel"), &program).unwrap();
    std::fs::set_permissions(machine.dir(), Permissions::from_mode(0o755)).unwrap();
    let program = program.display().to_string();
    let serve = |nic: &str, more: &[&str]| {
        let mut command = machine.command("setpriv");
        command.args(["--reuid", "nobody", "--clear-groups", "--", &program, "serve", "--standalone"]);
        command.args(["--listen", "127.0.0.1:0", "--nic", nic]).args(more).env("RUST_LOG", "info");
        command
    };
    for (nic, problem) in [
        (
            "tap:theirs",
            "the TAP device theirs is not this user's: let root make it again with `ip tuntap add theirs mode tap user USER`",
        ),
        ("tap:three", "three is a TUN device, which carries no Ethernet"),
        ("tap:many", "many is a TAP device with many queues"),
        ("tap:lo", "lo is another kind of device"),
        ("tap:none", "there is no TAP device none, and making it takes CAP_NET_ADMIN"),
        ("tap:small", "the TAP device small takes packets of 500 bytes, expected at least 576"),
        ("tap:far-too-long-a-name", "expected 1 to 15 characters"),
    ] {
        for check in [&["--check"][..], &[]] {
            let output = soon("its end", serve(nic, check).output()).await.unwrap();
            let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success() && said.contains(problem), "{nic} {check:?}: {said}");
        }
    }
    let output = soon("its end", serve("tap:good", &["--check"]).output()).await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("packets of at most 1400 bytes") && said.contains("This would work"), "{said}");
    let mut running = crate::vm::rig::Program::start("spice-tunnel", serve("tap:good", &[]));
    running.line("that it is up", |line| line.contains("the virtual network is up").then_some(())).await;
    let script = machine.path("say");
    std::fs::write(&script, "#!/bin/sh\nenv\n").unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let mut client = machine.command("busybox");
    client.args(["udhcpc", "-f", "-q", "-n", "-i", "good", "-s"]).arg(&script);
    let offered = soon("a lease", client.output()).await.unwrap();
    let said = String::from_utf8_lossy(&offered.stdout);
    assert!(said.contains("mtu=1400"), "the network is as small as the device: {said}");
    // The device outlives us, and nothing of it was changed.
    drop(running);
    assert!(machine.sh("ip link show good").await.contains("mtu 1400"));
    let _: IpAddr = said.lines().find_map(|line| line.strip_prefix("ip=")).unwrap().parse().unwrap();
}

/// As the README has it: QEMU's device and ours in a bridge, made by root for programs that are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_machine_with_a_tap_card_beside_ours_in_a_bridge() {
    const BYTES: usize = 20_000_060;
    const BOOT: Duration = Duration::from_secs(120);

    let lan = Lan::new().await;
    let mut desk = Desk::new(&lan).await;
    let host = Machine::boot("host", "").await;
    host.sh("ip link add vm1-br type bridge").await;
    host.sh("ip link set vm1-br up").await;
    for tap in ["vm1-tun", "vm1-nic"] {
        host.sh(&format!("ip tuntap add {tap} mode tap user nobody")).await;
        host.sh(&format!("ip link set {tap} master vm1-br up mtu 9000")).await;
    }
    let socket = host.path("spice.sock").display().to_string();
    let listen = format!("unix:{socket}");
    let arguments = ["serve", "--standalone", "--nic", "tap:vm1-tun", "--mtu", "9000", "--listen", &listen];
    let mut serve = host.tunnel(&arguments);
    serve.line("that it is up", |line| line.contains("the virtual network is up").then_some(())).await;
    let service = SocketAddr::new(super::network::addresses(10)[0], 7000);
    let expected = fountain(&desk.machine, service, BYTES).await;
    let at = desk.share_with(&format!("spice+unix://{socket}"), &[service], &[]).await[0];

    let guest = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let vm = Vm::builder()
                .argument("-netdev")
                .argument("tap,id=tun0,ifname=vm1-nic,script=no,downscript=no")
                .argument("-device")
                .argument("virtio-net-pci,netdev=tun0,romfile=");
            let vm = vm.start().await.unwrap();
            vm.booted(BOOT).await.unwrap();
            let lease = vm.lease(BOOT).await.unwrap();
            assert!(lease.contains("mtu=9000"), "{lease}");
            let fetch = format!("nc {} {} </dev/null | sha256sum", at.ip(), at.port());
            vm.run(&fetch, BOOT).await.unwrap().output
        })
    };
    let hash = tokio::task::block_in_place(|| host.within(guest));
    let expected: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(hash.starts_with(&expected), "{hash}, expected {expected}");
}

/// A device that is moved into a container's network makes the container the guest; `serve` stays where it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_may_be_moved_into_another_network() {
    let (host, container) = (Machine::boot("host", "").await, Machine::boot("container", "").await);
    let listen = format!("unix:{}", host.path("spice.sock").display());
    let mut serve = host.tunnel(&["serve", "--standalone", "--nic", "tap:tap0", "--listen", &listen]);
    serve.line("that it is up", |line| line.contains("the virtual network is up").then_some(())).await;
    // By process numbers as they are here, not in there.
    let moving = tokio::process::Command::new("nsenter")
        .args(["--target", &host.pid().to_string(), "--net", "--", "ip", "link", "set", "tap0"])
        .args(["netns", &container.pid().to_string()])
        .status();
    assert!(soon("the device to move", moving).await.unwrap().success());
    let script = container.path("say");
    std::fs::write(&script, "#!/bin/sh\nenv\n").unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    container.sh("ip link set tap0 up").await;
    let mut client = container.command("busybox");
    client.args(["udhcpc", "-f", "-q", "-n", "-i", "tap0", "-s"]).arg(&script);
    let leased = soon("a lease", client.output()).await.unwrap();
    let said = String::from_utf8_lossy(&leased.stdout);
    assert!(said.contains("ip=198.18."), "{said}");
    // The container ends, and its devices with it.
    drop(container);
    serve
        .line("that the card is gone", |line| line.contains("the TAP device was deleted").then_some(()))
        .await;
}
