# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# Promise 10 with systemd: the stop of vramblk-swap.service goes on until swap is off, and says what it waits for: first
# for memory, then for a swapoff that fails.
begin true
start_unit
pass 'vramblk-swap.service turns swap on'
client=$(pidof nbd-client)
press

since_now
systemctl stop --no-block vramblk-swap.service
until_true 120 said 'end something large first' || fail 'the stop does not say that memory is short'
swapoff_fails
verify 'while systemctl stop waits' $hogs
until_true 120 said 'swapoff failed: Cannot allocate memory' || fail 'swapoff does not fail'
until_true 60 said 'still swap: /dev/nbd0; trying again in 10 s' || fail 'the stop does not say that it tries again'
unit_is vramblk-swap.service deactivating || fail 'the stop did not wait'
swapon_seen || fail 'swap is off although swapoff failed'
[ "$(pidof nbd-client)" = "$client" ] || fail 'nbd-client did not survive'
pass 'systemctl stop with a swapoff that fails: it waits, says why, nbd-client lives'

swapoff_works
until_true 300 unit_is vramblk-swap.service inactive || fail 'the stop never succeeds'
is_off || fail 'the unit is stopped, but swap is on'
pass 'systemctl stop succeeds once swapoff does'
verify 'after systemctl stop' victim
