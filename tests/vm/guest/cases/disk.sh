# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# The commands of docs/guides/disk-at-boot.md ("By hand") as they are printed: a file system on an export of a scratch server.
guide=$VM_ROOT/docs/guides/disk-at-boot.md
commands() { # attach|remove: lines of the first and the second block
    awk -v wanted="$1" '
        /^## / { here = $0 == "## By hand" }
        here && /^To remove it/ { remove = 1 }
        here && /^    / { if ((wanted == "remove") == (remove + 0)) { sub(/^    (sudo )?/, ""); print } }' "$guide"
}
run_commands() { # attach|remove
    commands "$1" >/run/commands
    [ -s /run/commands ] || fail "no commands to $1 in $guide"
    while read -r line; do
        echo "+ $line"
        sh -c "$line" </dev/null || fail "$line"
        # mkfs needs the size, which comes later than nbd-client returns: the unit of the guide waits for it too.
        case $line in nbd-client\ -unix*) until_true 10 grep -qv '^0$' /sys/block/nbd0/size || fail 'no size' ;; esac
    done </run/commands
}

mount -t tmpfs tmpfs /mnt
start_program "$VM_ROOT/.venv/bin/vramblk" --device map:/dev/mmapper --size 64M --listen-addr unix:/run/vramblk/nbd.sock
run_commands attach
grep -q '^/dev/nbd0 /mnt/vram ext4' /proc/mounts || fail 'nothing is mounted on /mnt/vram'
pass 'the commands of the guide mount a disk'
head -c 8388608 /dev/urandom >/run/bytes && cp /run/bytes /mnt/vram/ && sync && echo 3 >/proc/sys/vm/drop_caches
cmp /run/bytes /mnt/vram/bytes || fail 'other bytes than were written'
pass 'a file on it holds what was written'
run_commands remove
grep -q /mnt/vram /proc/mounts && fail 'it is still mounted'
pass 'the commands of the guide remove it'
