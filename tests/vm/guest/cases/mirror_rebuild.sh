# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 21: the server killed process by process, the half failed twice and brought back in every wrong way, the rebuild
# under load, and at last the disk's failure. The disk is a dm device, so that it can be made to fail.
size=$(cat /sys/block/ubda/size)
modprobe dm-mod
dmsetup create disk --table "0 $size linear /dev/ubda 0" || fail dmsetup
dmsetup mknodes
array=/dev/md127

new_server() {
    for each in $(server_pids); do kill -KILL "$each"; done
    until_true 30 no_server || fail 'the server does not die'
    rm -f /run/vramblk/*
    start_server
}
no_server() { [ -z "$(server_pids)" ]; }

rebuild() {
    expect 0 "up rebuilds: $1" vramblk-swap up
    is_whole || fail 'the VRAM half was not rebuilt'
}

start_server
attach VRAMBLK_SWAP_MIRROR=/dev/mapper/disk
mirror_is whole || fail 'the mirror is not whole'
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough 0 4
pressed

kill -KILL "$(pid_of vramblk-supervi)"
sleep 3
mirror_is whole || fail 'the death of the supervisor has cost a half'
pass 'supervisor killed: both halves are there (promise 21)'

new_server
loses_its_half || fail 'the death of the server is not noticed'
pass 'all of the server killed: swap goes on from the disk (promise 21)'

# A new, empty server, and halves brought back by hand in wrong ways. Nothing of them may be read.
never_a_member() { # text
    sleep 3
    is_degraded || fail "$1: it was made a member"
    pass "$1: no member of the array (promise 21)"
}
mdadm "$array" --re-add /dev/nbd0 && fail 'mdadm takes back a failed half'
echo re-add >/sys/block/md127/md/dev-nbd0/state && fail 'the kernel takes back a failed half'
never_a_member 'the failed half taken back'
mdadm "$array" --remove /dev/nbd0
nbd-client -unix /run/vramblk/nbd.sock /dev/nbd1 -name vram -nonetlink -swap -b 4096 >/dev/null || fail nbd-client
sleep 1
mdadm "$array" --re-add /dev/nbd1
never_a_member 'an empty half added as an old one'
expect 1 'up leaves what somebody else has attached, and the export serves one client' vramblk-swap up
mirror_is degraded || fail 'up beside a half that somebody else has attached'
nbd-client -d /dev/nbd1
rebuild 'after somebody else has detached it'
mdadm "$array" --fail /dev/nbd0 || mdadm "$array" --fail /dev/nbd2
mdadm "$array" --remove failed
before=$(swapped_out_mib)
has_written() { [ "$(swapped_out_mib)" -gt "$((before + 32))" ]; }
until_true 120 has_written || fail 'swap does not go on'
mdadm "$array" --re-add /dev/nbd0 || mdadm "$array" --re-add /dev/nbd2
never_a_member 'a stale half, with its server, taken back'
rebuild 'beside a stale half'

# Fails again while it is being filled.
echo 2000 >/sys/block/md127/md/sync_speed_max
expect 0 'sleep drops the half' vramblk-swap sleep
mirror_is released || fail 'sleep has not dropped the half'
vramblk-swap wake &
waking=$!
is_filling() { mirror_is rebuilding; }
until_true 60 is_filling || fail 'wake does not rebuild'
vramblk-swap status
kill -KILL "$(pid_of vramblk-engine)"
wait "$waking"
[ "$?" = 1 ] || fail 'wake does not report that the half has failed again'
mirror_is degraded || fail 'a half that failed while it was being filled is not degraded'
pass 'wake reports that the half has failed while it was being filled'
echo system >/sys/block/md127/md/sync_speed_max
new_server
rebuild 'after it failed while it was being filled'

start=$(date +%s%N)
expect 0 'sleep drops the half' vramblk-swap sleep
note "sleep: $((($(date +%s%N) - start) / 1000000)) ms for $(swap_used_mib) MiB in swap"
expect 0 'wake' vramblk-swap wake
is_whole || fail 'the VRAM half was not rebuilt'

# Now the disk: the VRAM half, filled under load, has every page.
dmsetup suspend --nolockfs --noflush disk
dmsetup load disk --table "0 $size error" || fail dmsetup
dmsetup resume disk
until_true 120 is_degraded
mirror_is disk_failed || fail 'the failure of the disk is not noticed'
expect 1 'up does not take an empty half for the last good one' vramblk-swap up
pass 'the disk fails: swap goes on from VRAM (promise 21)'
sleep 5
touch /run/enough
verified 'every half lost and rebuilt: every page as written (promise 21)'
vramblk-swap status
expect 0 'down' vramblk-swap down
dmsetup remove disk
wipefs --all /dev/ubda >/dev/null # the disk that failed could not be wiped
left_as_found
stop_server
