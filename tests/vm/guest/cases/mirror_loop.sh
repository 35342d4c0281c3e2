# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 21 with a mirror on a preallocated file, over a loop device on ext4; and what a mirror costs: pages of 4 KiB a
# second at depth 1, without one, on a disk, and on that file.
start_server
mkfs.ext4 -q -m 0 /dev/ubdb
mount /dev/ubdb /mnt
truncate -s 480M /mnt/mirror
modprobe loop
losetup --direct-io=on /dev/loop0 /mnt/mirror || fail losetup
vramblk-swap up --mirror /dev/loop0 2>/run/err && fail 'a file with holes was accepted'
grep -q '/mnt/mirror has holes; type: fallocate --length 503316480 /mnt/mirror' /run/err || fail 'holes are not named'
pass 'refused: a file with holes'
fallocate --length 503316480 /mnt/mirror || fail fallocate

pages=4000
rate() { # text dd's words
    text=$1
    shift
    start=$(date +%s%N)
    dd bs=4096 count="$pages" status=none "$@" || fail "dd $*"
    note "$text: $((pages * 1000000000 / ($(date +%s%N) - start))) pages a second"
}
rates() { # text device; it holds the swap signature, which is not touched
    rate "$1, write" if=/dev/zero of="$2" seek=16 oflag=direct
    rate "$1, read" if="$2" of=/dev/null skip=16 iflag=direct
}

attach
swapoff /dev/nbd0
rates 'no mirror' /dev/nbd0
expect 0 'down' vramblk-swap down
attach_mirrored
swapoff /dev/md127
rates 'mirror on a disk' /dev/md127
expect 0 'down' vramblk-swap down
attach VRAMBLK_SWAP_MIRROR=/dev/loop0
swapoff /dev/md127
rates 'mirror on a file' /dev/md127
expect 0 'down' vramblk-swap down

attach VRAMBLK_SWAP_MIRROR=/dev/loop0
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough 0 4
pressed
kill -KILL "$(pid_of vramblk-engine)"
loses_its_half || fail 'the death of the engine is not noticed'
touch /run/enough
verified 'engine killed, the mirror is a file: every page as written (promise 21)'
expect 0 'down' vramblk-swap down
losetup -d /dev/loop0
umount /mnt
left_as_found
