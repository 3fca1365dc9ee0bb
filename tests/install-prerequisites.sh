#!/bin/sh
# Installs everything that the test suite needs beside Rust, on Debian 12 and 13 (amd64). Run it as root, or as a
# user who may use sudo. It does nothing, and asks nothing of the network, when all is there.
set -eu

packages="
	qemu-system-x86 linux-image-cloud-amd64 busybox-static
	xvfb virt-viewer spice-client-gtk xdotool gstreamer1.0-plugins-base
	cups cups-client cups-daemon cups-filters cups-ipp-utils poppler-utils
	avahi-daemon avahi-utils libnss-mdns dbus snmpd bind9-dnsutils dnsmasq-base
	tshark procps systemd iproute2
	openssl tinyproxy-bin sasl2-bin libsasl2-modules
	g++ make perl pkg-config libssl-dev libspice-client-glib-2.0-dev
"

fail() {
	echo "install-prerequisites: $*" >&2
	exit 1
}

installed() {
	test "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed
}

# Whether apt knows a version of it that it could install.
known() {
	apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [0-9]'
}

command -v dpkg-query >/dev/null || fail "this is not Debian: install what provides these by hand:" $packages
test "$(dpkg --print-architecture)" = amd64 || fail "the virtual machine of the tests is amd64, this is not"
as_root=
if test "$(id -u)" != 0; then
	as_root="sudo"
fi

missing() {
	wanted=$packages
	# Since Debian 13 QEMU's Spice is a package of its own; before, there is no such package.
	known qemu-system-modules-spice && wanted="$wanted qemu-system-modules-spice"
	for package in $wanted; do
		installed "$package" || echo "$package"
	done
}

list=$(missing)
test -n "$list" || exit 0

if test -n "$as_root" && ! command -v sudo >/dev/null; then
	fail "run it as root, or install sudo; missing are:" $list
fi
for package in $list; do
	if ! known "$package"; then
		$as_root apt-get -qq update || fail "apt-get update failed"
		break
	fi
done
list=$(missing)
install() {
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends --yes $list </dev/null
}
log=$(mktemp)
# The tests start daemons of their own, in namespaces. This machine's stay as they are: none is started that was not there.
policy=/usr/sbin/policy-rc.d
made_policy=
cleanup() {
	rm -f "$log"
	test -z "$made_policy" || $as_root rm -f "$policy"
}
trap cleanup EXIT
if ! test -e "$policy"; then
	made_policy=yes
	printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
	$as_root chmod 755 "$policy"
fi
# Package lists that are too old name versions the server has no more: fresh lists, and once again.
if ! install >"$log" 2>&1; then
	$as_root apt-get -qq update || fail "apt-get update failed"
	if ! install >"$log" 2>&1; then
		cat "$log" >&2
		fail "could not install:" $list
	fi
fi
list=$(missing)
test -z "$list" || fail "apt-get said it went well, but these are still not installed:" $list
