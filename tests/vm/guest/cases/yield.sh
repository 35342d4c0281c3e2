# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# yield: VRAM for a command, whatever becomes of it; release all where pages have nowhere to go.
swap_options="$swap_options --slices 2"
start_server
attach
slices() { grep -c '^/dev/nbd' /proc/swaps; }
both() { [ "$(slices)" = 2 ]; }
none() { [ "$(slices)" = 0 ]; }
expect 7 'yield has the exit status of a command that fails' vramblk-swap yield -- sh -c 'grep -q nbd /proc/swaps && exit 1; exit 7'
expect 0 'both slices are swap again' both
expect 127 'yield of a command that does not exist' vramblk-swap yield -- /no/such/command
expect 0 'both slices are swap again' both
vramblk-swap yield -- sh -c ': >/run/running; exec sleep 1000' &
yield=$!
until_true 60 test -e /run/running || fail 'yield does not run its command'
none || fail 'yield runs its command before all is released'
kill -TERM "$yield"
wait "$yield"
expect 0 'a signal reaches the command, and yield its end' test "$?" = 143
expect 0 'both slices are swap again' both
rm /run/running
vramblk-swap yield -- sh -c ': >/run/running; exec sleep 20' &
first=$!
until_true 60 test -e /run/running || fail 'yield does not run its command'
expect 0 'a second yield beside the first' vramblk-swap yield -- sleep 1
none || fail 'the second one took back what the first has for its command'
wait "$first"
expect 0 'the last of two takes back' both
# More than memory can take: what has nowhere to go stays, and the command runs all the same.
start_filler "$((VM_MIB * 3 / 2))" 1 /run/enough
pressed "$VM_MIB"
expect 3 'yield under pressure' vramblk-swap yield -- sh -c 'grep -q "^/dev/nbd" /proc/swaps || exit 1; exit 3'
expect 0 'both slices are swap again' both
touch /run/enough
verified 'yield under pressure: every page as written (promise 22)'
expect 0 'down' vramblk-swap down
stop_server
