//! QEMU's `-netdev vhost-user`: the guest's rings, shared with `serve`.

use super::rig::{SOON, Services, Stopwatch, password_file, serve};
use super::{BOOT, MEGABYTES, NicRole, TICKET, connect, exercise, machine, mapped, reaches, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_shares_its_rings_with_us() {
    let watch = Stopwatch::start();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let password = password_file(directory, TICKET);
    let mut services = Services::start(MEGABYTES << 20).await;
    let nic = directory.join("nic");
    let (upstream, card) =
        (format!("unix:{}", directory.join("spice").display()), format!("vhost-user:{}", nic.display()));
    let start = |listen: String| {
        let (upstream, card) = (upstream.clone(), card.clone());
        async move { serve(&["--upstream", &upstream, "--listen", &listen, "--nic", &card]).await }
    };
    let (program, server) = start("127.0.0.1:0".to_owned()).await;
    let machine = machine(directory, NicRole::VhostUser);
    let vm = machine.start().await.unwrap_or_else(|error| panic!("{error}"));
    let mut companion = connect(server, &password, &services);
    let at = mapped(&mut companion).await;
    vm.booted(BOOT).await.unwrap_or_else(|error| panic!("{error}"));
    watch.lap("booted");
    vm.lease(SOON).await.unwrap_or_else(|error| panic!("{error}"));
    // Segments come and go whole, without checksums.
    let features = run(&vm, "cat /sys/class/net/eth0/device/features").await;
    for bit in [0, 1, 7, 11, 15, 29, 32] {
        assert_eq!(features.as_bytes().get(bit), Some(&b'1'), "feature {bit} of {features}");
    }
    exercise(&vm, &mut services, &at, &watch).await;

    // The driver goes and comes again, as in a guest that reboots.
    let again = "killall udhcpc; rm -f /tmp/lease; cd /sys/bus/virtio/drivers/virtio_net; card=$(ls | grep ^virtio) && \
                 echo $card >unbind && echo $card >bind && ip link set eth0 up && \
                 (udhcpc -i eth0 -s /etc/lease -O mtu -t 1000 -T 1 -A 1 -f -S >/tmp/udhcpc.log 2>&1 &)";
    run(&vm, again).await;
    vm.lease(SOON).await.unwrap_or_else(|error| panic!("{error}"));
    reaches(&vm, &at["web"]).await;
    watch.lap("the driver was unloaded and loaded again");

    // QEMU's end and return.
    vm.kill().await.unwrap();
    let vm = machine.start().await.unwrap_or_else(|error| panic!("{error}"));
    vm.booted(BOOT).await.unwrap_or_else(|error| panic!("{error}"));
    vm.lease(SOON).await.unwrap_or_else(|error| panic!("{error}"));
    exercise(&vm, &mut services, &at, &watch).await;
    watch.lap("QEMU was killed and started again");

    // Our own restart: QEMU comes to the new one by itself.
    assert!(program.terminate().await.success(), "serve's exit status");
    assert!(!nic.exists(), "serve left its socket behind");
    let (program, again) = start(server.to_string()).await;
    assert_eq!(again, server);
    companion.event("connected").await;
    assert_eq!(mapped(&mut companion).await, at);
    reaches(&vm, &at["web"]).await;
    watch.lap("serve was restarted");

    assert!(companion.terminate().await.success(), "connect's exit status");
    assert!(program.terminate().await.success(), "serve's exit status");
    vm.quit(SOON).await.unwrap();
    watch.lap("all ended");
}
