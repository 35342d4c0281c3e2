# shellcheck shell=sh disable=SC2034,SC2154
# What must hold before anything is changed: root, tools, and that no other vramblk-swap runs.

need_root() {
    [ "$(id -u)" = 0 ] || [ -n "$dry_run" ] || fail 78 "this needs root; type: sudo vramblk-swap $1"
}

need_tools() {
    for tool; do
        command -v "$tool" >/dev/null 2>&1 && continue
        case $tool in
        nbd-client) package=nbd-client ;;
        modprobe) package=kmod ;;
        mdadm) package=mdadm ;;
        *) package=util-linux ;;
        esac
        fail 78 "$tool is missing; type: sudo apt-get install $package"
    done
}

refuse_foreign() { # path
    # shellcheck disable=SC3067  # every sh has -O
    if [ -L "$1" ] || { [ -e "$1" ] && [ ! -O "$1" ]; }; then
        fail 1 "$1 is a symbolic link or belongs to another user; look at it, then remove it"
    fi
}

# Only root enters the inner one: whoever can open a file can hold its lock for ever.
make_directories() {
    refuse_foreign "$state_dir"
    mkdir -p "$private" || fail 1 "cannot make $private"
    case $(stat -c %A "$state_dir") in
    ?????w* | ????????w*) fail 1 "others may write to $state_dir, so its records may be theirs; look at them, then" \
        "type: sudo chmod 755 $state_dir" ;;
    esac
    refuse_foreign "$private"
    chmod 700 "$private" || fail 1 "cannot set the mode of $private"
}

lock() {
    [ -z "$dry_run" ] || return 0
    make_directories
    refuse_foreign "$lock"
    [ "$(stat -c %a "$lock" 2>/dev/null)" = 600 ] || rm -f "$lock" # somebody may hold it
    (umask 077 && touch "$lock") || fail 1 "cannot open $lock"
    rm -f "$state_dir/lock" # of earlier versions, which anybody could hold
    exec 9>>"$lock"
    waits=0 waited_for=''
    until flock -w 10 9; do
        waits=$((waits + 1)) holder=$(cat "$lock")
        [ -n "$patient" ] || [ "$waits" -lt 60 ] ||
            fail 1 "another vramblk-swap has been running for ten minutes (${holder:-unknown})"
        [ "$holder" = "$waited_for" ] || note "waiting for another vramblk-swap (${holder:-unknown})"
        waited_for=$holder
    done
    printf 'pid %s: vramblk-swap %s\n' "$$" "$arguments" >"$lock"
    # Where /run outlives a boot, what is recorded there does not: the kernel's settings are new.
    boot=$(cat "$proc/sys/kernel/random/boot_id" 2>/dev/null)
    if [ -e "$state_dir/boot" ] && [ "$(cat "$state_dir/boot")" != "$boot" ]; then
        rm -f "$records" "$attached" "$asleep"
    fi
    printf '%s\n' "$boot" >"$state_dir/boot"
}
