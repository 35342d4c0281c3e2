# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# `systemctl restart docker` under live swap with live-restore: the server does not notice.
begin true
start_swap
server=$(supervisor)
press
expect 0 'systemctl restart docker with live-restore under live swap' systemctl restart docker
[ "$(supervisor)" = "$server" ] || fail 'the server is another process than before'
swapon_seen || fail 'swap is off'
is_known() { [ -n "$(container)" ]; }
until_true 120 is_known || fail 'dockerd lost the container'
verify 'after a restart of dockerd with live-restore' victim
verify 'after a restart of dockerd with live-restore' $hogs
