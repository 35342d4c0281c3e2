# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# auto, driven by a fake source of free memory, under twice the RAM: it gives slices back, keeps what has nowhere to go, and
# takes back. It starts no process while there is nothing to do.
swap_options="$swap_options --slices 2"
gpu=0000:01:00.0
slice_bytes=$((VM_SWAP_MIB << 19))
real_curl=$(command -v curl)
# The device of the guest is no GPU: its address and its free memory come from here.
cat >/run/bin/curl <<END
#!/bin/sh
case \$* in
*/free) while :; do cat /run/free; sleep 2; done ;;
*/status.env) $real_curl "\$@" | sed 's/^\\(export_._gpu=\\).*/\\1$gpu/' ;;
*) exec $real_curl "\$@" ;;
esac
END
chmod +x /run/bin/curl
free() { # slices that are free
    echo "$gpu $(($1 * slice_bytes + (slice_bytes >> 2))) $((3 * slice_bytes))" >/run/free.new
    mv /run/free.new /run/free
}
slices() { [ "$(grep -c '^/dev/nbd' /proc/swaps)" = "$1" ]; }
free 0
start_server
attach
start_filler "$twice_ram" 1 /run/enough
pressed "$VM_MIB"
VRAMBLK_RESERVE=$((slice_bytes >> 13))K VRAMBLK_TEST_PATIENCE=10 vramblk-swap auto 2>/run/auto.log &
auto=$!
sleep 20
slices 2 || fail 'auto releases although the reserve is free'
children() { sed 's/.*) //' "/proc/$auto/stat" | cut -d ' ' -f 9; } # page faults of children that have ended
until_true 30 grep -q watching /run/auto.log || fail 'auto does not start'
before=$(children)
sleep 20
[ "$(children)" = "$before" ] || fail 'auto starts processes while it has nothing to do'
pass 'auto starts no process while it has nothing to do'
echo "$gpu 0 $((3 * slice_bytes))" >/run/free
until_true 120 slices 1 || fail 'auto does not release under pressure'
pass 'auto releases a slice under twice the RAM'
# Nothing is free all the same, and the other slice's pages have nowhere to go.
until_true 120 grep -q 'kept' /run/auto.log || fail 'auto does not say that it keeps a slice'
slices 1 || fail 'auto took off what has nowhere to go'
sleep 30
[ "$(grep -c kept /run/auto.log)" -le 8 ] || fail 'auto says it too often'
pass 'auto keeps what has nowhere to go, and says so'
free 2
until_true 120 slices 2 || fail 'auto does not take back'
pass 'auto takes a slice back once there is room for a while'
touch /run/enough
verified 'auto under twice the RAM: every page as written (promise 22)'
expect 0 'auto lives' kill -0 "$auto"
kill "$auto"
wait "$auto"
expect 0 'auto ends when it is told to' test "$?" = 0
cat /run/auto.log
expect 0 'down' vramblk-swap down
stop_server
