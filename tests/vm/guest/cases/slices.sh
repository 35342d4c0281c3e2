# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Two slices under twice the RAM: one is released in the middle of it and taken again, and no page is lost (promises 6, 10
# and 22).
swap_options="$swap_options --slices 2"
start_server
attach
[ "$(grep -c '^/dev/nbd' /proc/swaps)" = 2 ] || fail 'not each slice is swap'
[ "$(awk 'NR > 1 { print $5 }' /proc/swaps | uniq | wc -l)" = 1 ] || fail 'the slices have not one priority'
remember_server
start_filler "$twice_ram" 1 /run/enough
pressed "$VM_MIB"
awk 'NR > 1 && $4 < 1024 { exit 1 }' /proc/swaps || fail 'the kernel does not spread pages over the slices'
pass 'the kernel spreads pages over the slices'
held() { ask /status.env | grep -c '^export_[01]_held=yes'; }
released() { [ "$(grep -c '^/dev/nbd' /proc/swaps)" = "$1" ] && [ "$(held)" = "$1" ]; }
for round in 1 2; do
    used=$(swap_used_mib) since=$(cut -d ' ' -f 1 /proc/uptime)
    expect 0 "release under pressure, round $round" vramblk-swap release "$((VM_SWAP_MIB / 2))M"
    note "released one of two slices in $(awk -v since="$since" '{ print $1 - since }' /proc/uptime) s, $used MiB were in both"
    expect 0 'its memory is free when release returns' released 1
    expect 0 'release twice is one release' vramblk-swap release "$((VM_SWAP_MIB / 2))M"
    sleep 5
    expect 0 "take under pressure, round $round" vramblk-swap take all
    expect 0 'both are swap again' released 2
    pressed "$VM_MIB"
done
touch /run/enough
verified 'slices released and taken under twice the RAM: every page as written (promise 22)'
compare_server
expect 0 'down takes every slice off' vramblk-swap down
[ "$(wc -l </proc/swaps)" = 1 ] || fail 'something is still swap'
stop_server
