# shellcheck shell=sh disable=SC2034,SC2154
# A mirror on disk: swap on the kernel's RAID1 of the NBD device (the VRAM half) and DEVICE (the disk half).
#
# The array has no metadata, so nothing assembles it by itself. A half that comes back is added as a new one, and the
# kernel copies all of it before it reads from it. It does not for `mdadm --re-add`: without metadata and bitmap that
# takes the half as it is, seen with Linux 6.1 and mdadm 4.2. So the array is frozen whenever nothing is rebuilt: then
# the kernel makes no member of what anybody adds. That also keeps the distributions' monthly checks away.

array_md() { echo "$sys/block/${array#/dev/}/md"; }

# By its number, since a name below /dev/mapper may be a link or not. Nothing if it is no block device.
kernel_name() { # path of a block device: its name in /sys/class/block
    [ ! -c "$root$1" ] || return 1
    # shellcheck disable=SC2046  # numbers
    set -- $(stat -L -c '0x%t 0x%T' "$root$1" 2>/dev/null)
    kernel_path=$(readlink "$sys/dev/block/$((${1:--1})):$((${2:--1}))") && echo "${kernel_path##*/}"
}

# Nothing if the device is no member.
member_state() { cat "$(array_md)/dev-$1/state" 2>/dev/null; } # name

is_state() { # words, separated by commas, word
    case ",$1," in *",$2,"*) ;; *) return 1 ;; esac
}

is_mirrored() { [ -n "$(was_attached mirror)" ]; }

# What is lost is nowhere.
has_pages() { # device
    if ! is_mirrored; then
        is_connected "$1"
        return
    fi
    read_mirror
    [ "$mirror_verdict" != lost ]
}

# mirror_verdict: whole, rebuilding, degraded (the VRAM half is missing), released (on purpose), disk_failed, or lost (no
# half is left).
read_mirror() {
    array=$(ours) disk=$(was_attached mirror) vram_half=$(was_attached vram_half)
    disk_state=$(member_state "$(was_attached mirror_name)") vram_state=$(member_state "${vram_half#/dev/}")
    is_connected "$vram_half" || vram_state=disconnected
    rebuilt_percent=''
    if ! is_state "$disk_state" in_sync; then
        if is_state "$vram_state" in_sync; then mirror_verdict=disk_failed; else mirror_verdict=lost; fi
    elif is_state "$vram_state" in_sync; then
        mirror_verdict=whole
    elif is_state "$vram_state" spare && [ "$(cat "$(array_md)/sync_action" 2>/dev/null)" = recover ]; then
        mirror_verdict=rebuilding
        rebuilt_percent=$(awk '$2 == "/" && $3 > 0 { print int($1 * 100 / $3) }' "$(array_md)/sync_completed" 2>/dev/null)
    elif [ -n "$(was_attached released)" ]; then
        mirror_verdict=released
    else
        mirror_verdict=degraded
    fi
}

# ---------------------------------------------------------------- DEVICE

refuse_mirror() { fail 1 "$mirror cannot be the mirror: $*"; }

refuse_kind() { # kernel's name of DEVICE, or of a device that it lies on
    case $1 in
    # The file system below it can need memory to write. Seen to hang: ext4, Linux 6.1, file from fallocate, 3 of 3.
    loop*) refuse_mirror "a loop device can hang while memory is short ($1); name a partition or a logical volume" ;;
    zram* | ram[0-9]*) refuse_mirror "its pages are in RAM ($1)" ;;
    nbd*) refuse_mirror "an NBD device is served by a program, which can wait for memory that only this swap can give ($1)" ;;
    esac
}

# Of a partition its disk has the slaves.
refuse_what_is_below() { # kernel's name; with set +f
    for each in "$sys/class/block/$1"/slaves/* "$sys/class/block/$1"/../slaves/*; do
        [ -e "$each" ] || continue
        refuse_kind "${each##*/}"
        refuse_what_is_below "${each##*/}"
    done
}

# Before anything is changed. The kernel itself has the last word: it adds no device to an array that is in use.
check_mirror() {
    [ "$missing_number" = 1 ] ||
        fail 1 "a mirror is for one export, and there are $missing_number; name one with VRAMBLK_EXPORT_NAME, or start the" \
            'server without --slices'
    disk_name=$(kernel_name "$mirror")
    class=$sys/class/block/$disk_name
    if [ -z "$disk_name" ] || [ ! -e "$class/dev" ]; then
        refuse_mirror 'it is not a block device; name a partition, a logical volume or a whole disk'
    fi
    refuse_kind "$disk_name"
    [ "$(cat "$class/ro" 2>/dev/null)" != 1 ] || refuse_mirror 'it is read-only'
    set +f
    refuse_what_is_below "$disk_name"
    for each in "$class"/*/partition; do
        [ ! -e "$each" ] || refuse_mirror "it has partitions; name one of them, such as $(each=${each%/*}; echo "/dev/${each##*/}")"
    done
    for each in "$class"/holders/*; do
        [ ! -e "$each" ] || refuse_mirror "it is in use by ${each##*/}"
    done
    set -f
    mounted=$(awk -v number="$(cat "$class/dev")" '$3 == number { print $5; exit }' "$proc/self/mountinfo")
    [ -z "$mounted" ] || refuse_mirror "it is mounted on $mounted"
    ! swap_line "/dev/$disk_name" >/dev/null || refuse_mirror 'it is swap already'
    signatures=''
    if [ -n "$dry_run" ] && [ ! -r "$root$mirror" ]; then return 0; fi
    # With --all it opens the device for itself alone.
    wipefs --all --no-act "$mirror" >/dev/null || refuse_mirror 'it cannot be opened for vramblk-swap alone, so it is in use'
    signatures=$(wipefs --parsable --noheadings "$mirror") || refuse_mirror 'its signatures cannot be read'
    foreign=$(printf '%s\n' "$signatures" | awk -F , -v label="$label" '
        NF > 1 && !($NF == "swap" && $3 == label) { found = found (found ? ", " : "") $NF }
        END { print found }')
    [ -z "$foreign" ] || [ -n "$overwrite" ] ||
        refuse_mirror "it holds $foreign; if nothing on it is needed, repeat the command with --overwrite"
}

# ---------------------------------------------------------------- the array

# From device, which is the VRAM half, to device, which is the array.
build_mirror() {
    vram_half=$device disk_name=$(kernel_name "$mirror")
    [ -n "$dry_run" ] || [ "$(disk_sectors)" -ge "$(sectors "$vram_half")" ] ||
        refuse_mirror "it has $(($(disk_sectors) / 2048)) MiB, and the export $(($(sectors "$vram_half") / 2048)) MiB"
    if [ ! -e "$sys/module/raid1" ]; then
        record modprobe raid1
        act modprobe raid1 || fail 78 "the kernel module raid1 cannot be loaded; type: sudo modprobe raid1"
    fi
    number=127
    while [ -e "$sys/block/md$number" ]; do number=$((number - 1)); done
    array=/dev/md$number
    if [ -n "$signatures" ]; then
        act wipefs --all "$mirror" || fail 1 "wipefs failed on $mirror"
        [ -n "$dry_run" ] || [ -z "$(wipefs --parsable --noheadings "$mirror")" ] ||
            refuse_mirror "it still holds something; look, then type: sudo wipefs --all --force $mirror"
    fi
    record mirror "$array" "$mirror" "$uuid"
    # Nothing has to be copied: what was not written to the array is not read from it.
    act mdadm --build "$array" --run --level=1 --raid-devices=2 --assume-clean "$vram_half" --write-mostly "$mirror" ||
        fail 1 "mdadm could not build $array of $vram_half and $mirror"
    [ -n "$dry_run" ] || [ -e "$sys/block/md$number/md" ] || fail 1 "$array is not there after mdadm built it"
    change "/sys/block/md$number/queue/read_ahead_kb" 0 || exit 1
    freeze
    device=$array
}

freeze() { write_value "/sys/block/${array#/dev/}/md/sync_action" frozen || fail 1 "$array cannot be frozen"; }

disk_sectors() { cat "$sys/class/block/$disk_name/size" 2>/dev/null || echo 0; }

# Of a record, so the array may not be there, or may be somebody else's that was faster.
stop_mirror() { # array, DEVICE, UUID of its swap signature
    array=$1
    # Not at once: udev looks at a device that is no longer swap.
    ! is_array_of "$2" || wait_until 5 act mdadm --stop "$1" || return 1
    [ -n "$dry_run" ] || wipefs --parsable "$2" 2>/dev/null | grep -q ",$3,.*,swap\$" || return 0
    act wipefs --all --types swap "$2"
}

is_array_of() { # DEVICE: array exists, and has no other members than it and NBD devices
    [ -e "$(array_md)" ] || return 1
    # Its own path is gone if the disk was pulled.
    named=$(kernel_name "$1") recorded=$(was_attached mirror_name)
    set +f
    set -- "$(array_md)"/dev-*
    set -f
    for each; do
        case ${each##*/dev-} in "$named" | "$recorded" | nbd* | '*') ;; *) return 1 ;; esac
    done
}

# Starts no process to fail the half: that must work while memory is short. True if the array is without it.
drop_vram_half() {
    set +f
    set -- "$(array_md)"/dev-*
    set -f
    for each; do
        name=${each##*/dev-}
        case $name in nbd*) ;; *) continue ;; esac
        member=${each#"$root"}
        write_value "$member/state" faulty
        # The kernel does not fail the last half that works: its connection must stay.
        [ -n "$dry_run" ] || is_failed "$each" || return 1
        # A server that stands still holds requests, which end with its connection.
        [ -n "$dry_run" ] || wait_until 1 remove_member "$member" || {
            act nbd-client -d "/dev/$name"
            wait_until 30 remove_member "$member"
        } || return 1
        disconnect "/dev/$name" || return 1
    done
    # Also what a rebuild attached that was killed. Then the devices are free for everybody, so no record stays.
    # shellcheck disable=SC2013  # a list of devices
    for name in $(sed -n "s/^connect$tab//p" "$records"); do
        [ -z "$(nbd_pid "$name")" ] || disconnect "$name" || return 1
        [ -n "$dry_run" ] || sed -i "\\#^connect$tab$name\$#d" "$records"
    done
}

is_failed() { # a member's directory
    member_now=''
    { read -r member_now <"$1/state"; } 2>/dev/null
    is_state "$member_now" faulty || [ ! -e "$1" ]
}

# Refused while a request on it is not finished.
remove_member() { # its directory below /sys
    [ ! -e "$root$1" ] || write_value "$1/state" remove 2>/dev/null
    [ ! -e "$root$1" ]
}

# ---------------------------------------------------------------- up, where a mirrored array is swap already

up_mirrored() {
    need_tools mdadm wipefs
    read_mirror
    [ -z "$mirror" ] || [ "$(kernel_name "$mirror")" = "$(was_attached mirror_name)" ] ||
        fail 1 "$array is swap with $disk as its mirror; to take $mirror, type: sudo vramblk-swap down, then up"
    case $mirror_verdict in
    whole)
        note "$array is swap already, and $disk mirrors it"
        [ "$(cat "$(array_md)/sync_action")" = frozen ] || freeze
        ;;
    rebuilding)
        note "$array is swap already, and its VRAM half is being rebuilt: ${rebuilt_percent:-0} %"
        guard_rebuild
        finish_rebuild
        undo_on_exit=''
        ;;
    disk_failed) fail 1 "$array is swap and works, but its mirror $disk has failed, so the pages are in VRAM alone; type:" \
        'sudo vramblk-swap down, then up with another device' ;;
    lost) fail 1 "$array is still in /proc/swaps but neither half works: the pages in it are lost. Type: sudo vramblk-swap" \
        'down (ends the processes that need those pages), or reboot' ;;
    degraded | released) rebuild_mirror ;;
    esac
}

# The new half gets everything from the disk half before anything is read from it.
rebuild_mirror() {
    check_server
    find_server
    find_cgroup
    check_docker
    wanted=$(wanted_exports)
    device_facts "$array"
    note "rebuilding the VRAM half of $array from $disk"
    drop_vram_half || fail 1 "the old VRAM half of $array cannot be removed; look at /proc/mdstat"
    guard_rebuild
    mirror=$disk disk_name=$(was_attached mirror_name)
    choose_device || exit 1
    vram_half=$device
    connect "$export" || exit 1
    change "/sys/block/${device#/dev/}/queue/read_ahead_kb" 0 || exit 1
    change "/sys/block/${device#/dev/}/queue/scheduler" none || exit 1
    [ -n "$dry_run" ] || [ "$(sectors "$device")" -ge "$(sectors "$array")" ] ||
        fail 1 "the export is smaller than $array: $(($(sectors "$device") / 2048)) of $(($(sectors "$array") / 2048)) MiB"
    remember_server
    detach_after_array
    keep_server_out_of_swap
    # Never --re-add, see above.
    act mdadm "$array" --add "$vram_half" || fail 1 "mdadm could not add $vram_half to $array"
    write_value "/sys/block/${array#/dev/}/md/sync_action" idle || fail 1 "the kernel does not fill $vram_half"
    finish_rebuild
    undo_on_exit=''
}

guard_rebuild() {
    trap 'exit 130' INT HUP TERM
    trap give_up_rebuild EXIT
    [ -n "$dry_run" ] || undo_on_exit=yes
}

# Not in the background: what anybody adds in the meantime would become a member.
finish_rebuild() {
    [ -z "$dry_run" ] || return 0
    note "waiting until $vram_half is filled from $disk; to watch it, type: vramblk-swap status"
    idle_s=0
    while :; do
        vram_state=$(member_state "${vram_half#/dev/}")
        ! is_state "$vram_state" in_sync || break
        is_state "$vram_state" spare || fail 1 "$vram_half has failed while it was being filled"
        if [ "$(cat "$(array_md)/sync_action")" = recover ]; then idle_s=0; else idle_s=$((idle_s + 1)); fi
        [ "$idle_s" -lt 10 ] || fail 1 "the kernel does not fill $vram_half; see its log"
        sleep 1
    done
    freeze
    note "$vram_half is filled, and $array has both halves again"
}

# Swap stays on: the disk half has every page.
give_up_rebuild() {
    [ -n "$undo_on_exit" ] || return 0
    undo_on_exit=''
    note 'the VRAM half is given up again; swap goes on from the disk'
    write_value "/sys/block/${array#/dev/}/md/sync_action" frozen
    drop_vram_half || note "$vram_half cannot be detached; type: sudo vramblk-swap up"
}

# Records are undone from the last to the first, and swap must be off and the array stopped before the VRAM half goes.
detach_after_array() {
    [ -z "$dry_run" ] || return 0
    awk -F "$tab" -v half="$vram_half" '
        $1 == "connect" { next }
        $1 == "mirror" { print "connect" FS half }
        { print }' "$records" >"$records.new" && mv "$records.new" "$records"
}

# The VRAM half goes, swap stays on. The same for a sleep and for a release of the VRAM.
release_mirror() {
    read_mirror
    is_state "$disk_state" in_sync ||
        fail 1 "the mirror $disk has failed, so the pages are in VRAM alone; type: sudo vramblk-swap down"
    # Before, or whatever looks in the middle would take it for a death.
    [ -n "$dry_run" ] || [ "$mirror_verdict" = degraded ] || sed -i '1i\
released=yes' "$attached"
    if ! drop_vram_half; then
        [ -n "$dry_run" ] || sed -i '/^released=yes$/d' "$attached"
        fail 1 "the VRAM half of $array cannot be removed; look at /proc/mdstat"
    fi
    # It is not where an `up` was killed that filled the half.
    freeze
    [ -n "$dry_run" ] || note "$array is swap from $disk alone, and its VRAM is free; to take it back, type: sudo vramblk-swap up"
}
