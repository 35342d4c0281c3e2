# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 21: nothing is written to a device that is in use, too small or not empty. And up and down, twice and half-way.
start_server

refused() { # words device options
    vramblk-swap up --mirror "$2" $3 2>/run/err
    got=$?
    cat /run/err
    if [ "$got" != 1 ] || ! grep -q "$2 cannot be the mirror: .*$1" /run/err; then fail "$2 is not refused with '$1'"; fi
    [ ! -e /run/vramblk-swap/records ] || fail 'records of a refused up are left'
    ! swapon_seen || fail 'a refused up has turned swap on'
    pass "refused: $1"
}

sum() { dd if="$1" bs=1M count=8 status=none | cksum; }

modprobe brd rd_nr=1 rd_size=1024
refused 'not a block device' /dev/null
refused 'in RAM' /dev/ram0
mkfs.ext4 -q /dev/ubda
before=$(sum /dev/ubda)
refused 'holds ext4' /dev/ubda
mount -o ro,noload /dev/ubda /mnt
refused 'is mounted on /mnt' /dev/ubda --overwrite
umount /mnt
dmsetup create held --table '0 8192 linear /dev/ubda 0' || fail dmsetup
refused 'in use by dm-0' /dev/ubda --overwrite
dmsetup remove held
mdadm --build /dev/md9 --run --force --level=1 --raid-devices=1 /dev/ubda || fail mdadm
refused 'in use by md9' /dev/ubda --overwrite
mdadm --stop /dev/md9
[ "$before" = "$(sum /dev/ubda)" ] || fail 'a refusal has written to the device'
mkswap /dev/ubda
refused 'holds swap' /dev/ubda
swapon /dev/ubda
refused 'it is swap already' /dev/ubda --overwrite
swapoff /dev/ubda
dmsetup create small --table '0 8192 linear /dev/ubdb 0' || fail dmsetup
dmsetup mknodes
refused 'it has 4 MiB, and the export 480 MiB' /dev/mapper/small
dmsetup remove small

expect 0 'up with --overwrite' vramblk-swap up --mirror /dev/ubda --overwrite
expect 0 'up twice is one up' vramblk-swap up --mirror /dev/ubda
[ "$(grep -c '^/dev/' /proc/swaps)" = 1 ] || fail 'up twice made two'
vramblk-swap status --json
expect 0 'down' vramblk-swap down
left_as_found
expect 0 'down twice is one down' vramblk-swap down

# Killed where a command has just been given, and where it has been done.
for tool in nbd-client mdadm mkswap swapon; do
    for moment in before after; do
        real=$(PATH=/usr/sbin:/sbin:/usr/bin:/bin command -v "$tool")
        # shellcheck disable=SC2016 # for the script that this writes
        case $moment in
        before) printf '#!/bin/sh\nkill -9 $(cat /run/up.pid)\n' >"/run/bin/$tool" ;;
        after) printf '#!/bin/sh\n%s "$@"\nkill -9 $(cat /run/up.pid)\n' "$real" >"/run/bin/$tool" ;;
        esac
        chmod +x "/run/bin/$tool"
        vramblk-swap up --mirror /dev/ubda &
        echo "$!" >/run/up.pid
        wait "$!"
        [ "$?" = 137 ] || fail "up was not killed $moment $tool"
        rm "/run/bin/$tool"
        vramblk-swap down || fail "down after a kill $moment $tool"
        [ "$(wc -l </proc/swaps)" = 1 ] || fail 'something is still swap'
        left_as_found
    done
done
pass 'down undoes an up that was killed before or after each of its commands'

# What a machine without power leaves behind is our own.
expect 0 'up' vramblk-swap up --mirror /dev/ubda
dd if=/dev/ubda of=/run/header bs=4096 count=1 status=none
expect 0 'down' vramblk-swap down
dd if=/run/header of=/dev/ubda conv=notrunc status=none
expect 0 'up on what a lost machine left' vramblk-swap up --mirror /dev/ubda
expect 0 'down' vramblk-swap down
left_as_found
stop_server
