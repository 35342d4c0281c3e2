# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 21: a file on a loop device is refused, since swap on it hangs. And what a mirror costs: pages of 4 KiB a second
# at depth 1, with and without one.
start_server
modprobe loop
losetup /dev/loop0 /dev/ubdb || fail losetup
vramblk-swap up --mirror /dev/loop0 2>/run/err && fail 'a loop device was accepted'
grep -q '/dev/loop0 cannot be the mirror: .* hang' /run/err || fail 'the refusal does not give its reason'
losetup -d /dev/loop0
pass 'refused: a loop device'

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
left_as_found
stop_server
