# What starts on a Debian desktop, beside an address for its cards, as far as printers go: its bus, avahi, CUPS.
set -e
hostname guest
ln -s /run /var/run
mkdir -p /run/dbus /run/avahi-daemon /run/cups/certs /var/lib/dbus
chown avahi:avahi /run/avahi-daemon
chown lp:lp /var/spool/cups /var/spool/cups/tmp /var/cache/cups
chmod 1777 /tmp /var/spool/cups/tmp
dbus-daemon --system
avahi-daemon --daemonize
cupsd
