# shellcheck shell=sh disable=SC2034,SC2154
# release and take: some of the devices off and on again.

need_amount() {
    case $amount in
    all) return 0 ;;
    '') fail 2 "$command needs a size such as 4G, or all" ;;
    esac
    amount=$(kib_of "$amount")
    [ -n "$amount" ] || fail 2 "$command: allowed is a size such as 512M, 4G or 1.5GiB, or all"
}

# Take devices off until so much of the exports is no swap: its VRAM is free then.
release() {
    need_root release
    need_tools nbd-client swapoff flock
    need_amount
    lock
    trap 'exit 130' INT HUP TERM
    if [ ! -s "$records" ]; then
        note 'no swap of vramblk is on'
        return 0
    fi
    if is_mirrored; then
        each=$(ours)
        ! is_chosen "$each" || release_mirror
        return
    fi
    [ -n "$dry_run" ] || {
        swap_before=$(ours_by_use)
        finish_interrupted
    }
    all_kib=0 on_kib=0 released='' refused='' candidates=$(ours_by_use)
    while IFS=$tab read -r kib gpu _; do
        ! is_count "$kib" || ! is_of_gpu "$gpu" || all_kib=$((all_kib + kib))
    done <<END
$(was_attached export)
END
    while read -r used each; do
        [ -z "$each" ] || ! is_chosen "$each" || on_kib=$((on_kib + $(sectors "$each") / 2))
    done <<END
$candidates
END
    [ "$all_kib" -ge "$on_kib" ] || all_kib=$on_kib # of an earlier version, or a server that was not asked
    while read -r used each <&8; do
        if [ -z "$each" ] || ! is_chosen "$each"; then continue; fi
        [ "$amount" = all ] || [ $((all_kib - on_kib)) -lt "$amount" ] || break
        each_kib=$(($(sectors "$each") / 2))
        if release_one "$each"; then
            on_kib=$((on_kib - each_kib)) released="$released $each"
        else
            refused="$refused $each"
        fi
    done 8<<END
$candidates
END
    [ -z "$refused" ] || fail 1 "still swap:$refused; released:${released:- nothing}"
    [ -n "$dry_run" ] || note "released:${released:- nothing more}; no swap is in $(((all_kib - on_kib) / 1024)) MiB of VRAM"
}

is_of_gpu() { # GPU
    [ -z "$only_gpu" ] || [ "$1" = "$only_gpu" ]
}

is_chosen() { # device
    device_facts "$1"
    is_of_gpu "$gpu"
}

release_one() { # device
    if ! is_connected "$1"; then
        note "the server of $1 is gone: the pages in it are lost; type: sudo vramblk-swap down"
        return 1
    fi
    used_kib=$(swap_line "$1" | awk '{ print $4 }') devices=" $1"
    measure_room "$1"
    if [ "${used_kib:-0}" -gt "$room" ]; then
        no_room
        return 1
    fi
    note "moving $((used_kib / 1024)) MiB back from $1"
    undo "$1" || note "$1 could not be taken off, or not everything could be undone"
    [ -n "$dry_run" ] || is_no_swap "$1"
}

take() {
    need_root take
    need_tools nbd-client modprobe mkswap swapon swapoff flock
    need_amount
    lock
    [ -s "$records" ] || fail 1 'swap of vramblk is not on, so there is nothing to take back; type: sudo vramblk-swap up'
    put_on "$amount"
}
