# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# After the reboot: what the journal says about the shutdown, then the boot.
journalctl -b -1 -o cat --no-pager >/run/shutdown.log
line_of() { grep -n "$1" /run/shutdown.log | tail -n 1 | cut -d : -f 1; }

off=$(line_of 'vramblk-swap: /dev/nbd0 is no longer swap')
[ -n "$off" ] || fail 'swap was not taken off before the reboot'
docker=$(line_of 'Stopping docker.service')
verified=$(line_of "filler: all $((victim_mib * 256)) pages as written")
[ "$off" -lt "${docker:-0}" ] || fail 'dockerd was stopped before swap was off'
[ "$off" -lt "${verified:-0}" ] || fail 'the process that ends after swap was not verified'
pass 'reboot: swap comes off before dockerd stops, every page as written'
until_true 600 swapon_seen || fail 'there is no swap after the boot'
until_true 60 unit_is vramblk-swap.service active || fail 'there is swap, but not by the unit'
pass 'boot: vramblk-swap.service starts the stopped container and turns swap on'
