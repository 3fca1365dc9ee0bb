#!/bin/busybox sh
# The guest's first and only program. It brings the network card up, asks for an address, and then obeys the
# second serial port: a line "ID COMMAND-IN-BASE64" is run in a shell, and answered by a line
# "ID STATUS OUTPUT-IN-BASE64". Commands run beside each other; their answers do not mix.
/bin/busybox mkdir -p /proc /sys /dev /tmp /etc
/bin/busybox --install -s /bin
export PATH=/bin:/usr/sbin:/usr/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
while read -r module; do insmod "/modules/$module"; done </modules/order
ip link set lo up
ip link set eth0 up
udhcpc -i eth0 -s /etc/lease -O mtu -t 1000 -T 1 -A 1 -f -S >/tmp/udhcpc.log 2>&1 &

answer() { # ID COMMAND
	echo "$2" | base64 -d >"/tmp/$1.command"
	sh "/tmp/$1.command" >"/tmp/$1.output" 2>&1 </dev/null
	status=$?
	until mkdir /tmp/answering 2>/dev/null; do usleep 10000; done
	echo "$1 $status $(base64 <"/tmp/$1.output" | tr -d '\n')" >&3
	rm -f "/tmp/$1.command" "/tmp/$1.output"
	rmdir /tmp/answering
}

echo "0 0 " >&3
# A child that ends in the middle of `read` makes busybox lose what it had read of the line. So the reader's children
# are waited for before it reads on, and theirs are left to the first process.
(while read -r id command <&3; do (answer "$id" "$command" &); done) &
while :; do wait; done
