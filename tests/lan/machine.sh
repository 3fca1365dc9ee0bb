# The first process of a test machine, in namespaces of its own: $1 is its name, $2 a directory that becomes parts of its
# file system. It lives until its standard input closes, and with it all that was started in here.
set -e
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir /run/dbus /run/avahi-daemon /run/cups /run/lock
for file in hosts resolv.conf nsswitch.conf; do
	# What is a link to somewhere in /run, as resolv.conf often is, is hidden as well.
	target=$(readlink -m "/etc/$file")
	test -e "$target" || { mkdir -p "${target%/*}" && : >"$target"; }
	mount --bind "$2/etc/$file" "$target"
done
if test -d "$2/cups"; then
	mount --bind "$2/cups/etc" /etc/cups
	mount --bind "$2/cups/spool" /var/spool/cups
	mount --bind "$2/cups/cache" /var/cache/cups
	mount --bind "$2/cups/log" /var/log/cups
fi
hostname "$1"
# An address that is sure to be one's own needs no second of waiting.
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
echo ready
exec cat >/dev/null
