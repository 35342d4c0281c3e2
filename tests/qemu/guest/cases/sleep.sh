# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# Promise 20: a suspend takes swap off first, and fails if that fails. The sleep itself is replaced by a look at what is
# swap at that moment; the order and the failure are systemd's own.
begin true
mkdir -p /run/systemd/system/systemd-suspend.service.d
printf '[Service]\nExecStart=\nExecStart=/bin/cp /proc/swaps /run/slept\n' >/run/systemd/system/systemd-suspend.service.d/guest.conf
systemctl daemon-reload
start_swap
hold_in_swap

slept() { [ -e /run/slept ]; }

since_now
swapoff_fails
systemctl start suspend.target
got=$?
swapoff_works
[ "$got" != 0 ] || fail 'the sleep did not fail'
slept && fail 'the machine slept although swap could not be taken off'
said 'swapoff failed: Cannot allocate memory' || fail 'it was not swapoff that failed'
swapon_seen || fail 'swap is off'
pass 'a sleep fails if swap cannot be taken off, and swap stays (promise 20)'

systemctl reset-failed
expect 0 'a sleep succeeds once swap can be taken off' systemctl start suspend.target
until_true 60 slept || fail 'the machine does not sleep'
grep nbd /run/slept && fail 'swap was on while the machine slept'
pass 'swap is off before the machine sleeps (promise 20)'
until_true 120 swapon_seen || fail 'swap is not back on after waking'
pass 'swap is on again after waking'
verify 'after a sleep' victim
