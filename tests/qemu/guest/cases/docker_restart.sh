# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# `systemctl restart docker` under live swap without live-restore: vramblk-swap.service takes swap off first.
begin false
start_unit
server=$(supervisor)
press
since_now
systemctl restart docker &
restart=$!
until_true 120 said 'still swap: /dev/nbd0; trying again in 10 s' || fail 'the restart does not wait for swap'
[ "$(supervisor)" = "$server" ] || fail 'dockerd ended the server under live swap'
verify 'while systemctl restart docker waits for swap' $hogs
wait "$restart"
expect 0 'systemctl restart docker without live-restore, with the unit' test $? = 0
said 'is no longer swap' || fail 'swap was not taken off'
kill -0 "$server" 2>/dev/null && fail 'the server lived on, so dockerd did not stop it and this proves nothing'
verify 'after systemctl restart docker took swap off' victim
until_true 300 swapon_seen || fail 'the unit does not put swap back on'
pass 'after the restart the unit starts the container and swap is on again'
