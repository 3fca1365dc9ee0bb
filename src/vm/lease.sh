#!/bin/busybox sh
# What udhcpc calls when it got or lost an address.
case "$1" in
bound | renew)
	ip address flush dev "$interface"
	ip link set "$interface" mtu "${mtu:-1500}"
	ip address add "$ip/$mask" dev "$interface"
	for gateway in $router; do ip route add default via "$gateway"; done
	echo "address=$ip/$mask mtu=$mtu router=$router dns=$dns lease=$lease server=$serverid" >/tmp/lease.new
	mv /tmp/lease.new /tmp/lease
	;;
deconfig)
	ip address flush dev "$interface"
	rm -f /tmp/lease
	;;
esac
