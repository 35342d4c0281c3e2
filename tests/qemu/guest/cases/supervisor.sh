# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# Promise 9 in a container, whose processes the kernel ends with its first: the supervisor is not that one, and its
# death leaves live swap alone.
begin true
start_swap
press
kill -KILL "$(supervisor)" || fail 'there is no supervisor'
sleep 15
[ -z "$(supervisor)" ] || fail 'the supervisor lives'
[ -n "$(container)" ] || fail 'the container ended with its supervisor'
verify 'the supervisor killed under live swap' $hogs
expect 1 'up refuses the swap whose supervisor is gone' vramblk-swap up
expect 0 'down works without the supervisor' vramblk-swap down
verify 'the supervisor killed under live swap' victim
has_ended() { [ -z "$(container)" ]; }
until_true 60 has_ended || fail 'the container is still there'
pass 'the container ends once swap is off'
