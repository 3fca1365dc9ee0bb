#!/bin/sh
# What udhcpc calls with what it was given. $resolv is our own variable: the file that names go to.
case $1 in
bound | renew)
	ip address flush dev "$interface" scope global
	ip address add "$ip/$mask" dev "$interface"
	test -z "$mtu" || ip link set "$interface" mtu "$mtu"
	for router in $router; do ip route replace default via "$router" dev "$interface"; done
	{
		for server in $dns; do echo "nameserver $server"; done
		test -z "$domain$search" || echo "search ${search:-$domain}"
	} >"$resolv"
	;;
esac
