# shellcheck shell=sh disable=SC2034,SC2154,SC3028,SC3045
# auto: gives VRAM back to whoever needs it, and takes it back when nobody does.
#
# The server sends a line every two seconds with the free memory of each GPU; one curl keeps the connection. So the loop
# waits, reads and reckons without starting a process: one that waits for memory could not release any. Only what has to
# be done starts some. `read` with a limit of time and of length is bash's, as is SECONDS.

auto() {
    [ -z "$dry_run" ] || fail 2 'auto has no --dry-run'
    need_root auto
    if [ -z "${BASH_VERSION-}" ]; then
        command -v bash >/dev/null 2>&1 || fail 78 'auto needs bash; type: sudo apt-get install bash'
        exec bash "$here/vramblk-swap" auto
    fi
    command -v curl >/dev/null 2>&1 || fail 78 'auto needs curl; type: sudo apt-get install curl'
    need_tools nbd-client mkswap swapon swapoff flock
    [ "$status_socket" != off ] || fail 78 'auto needs the status socket: VRAMBLK_STATUS_SOCKET=off'
    [ -n "$reserve" ] || reserve=10%
    case $reserve in *%) least_reserve_kib=1048576 ;; *) reserve_kib=$(kib_of "$reserve") ;; esac
    [ -z "${VRAMBLK_RESERVE-}" ] || least_reserve_kib=0
    # Shorter in the tests only.
    patience_s=${VRAMBLK_TEST_PATIENCE:-60}
    listener='' quiet_until=0 said_at='' enough_since='' heard='' lines=0 lines_since=0
    make_directories
    rm -f "$free_pipe"
    mkfifo -m 600 "$free_pipe" || fail 1 "cannot make $free_pipe"
    # Open for writing too, or it would be at its end when nobody writes.
    exec 7<>"$free_pipe"
    trap 'stop_listening; exit 0' INT HUP TERM
    trap stop_listening EXIT
    note 'watching the free memory of each GPU'
    while :; do
        [ -n "$listener" ] || listen
        line=''
        if read -r -t 10 -n 1000 line <&7; then
            hear
        else
            [ "$heard" = no ] || note "no answer on $status_socket; asking again every 10 s"
            heard=no
            stop_listening
        fi
    done
}

listen() {
    [ ! -L "$root$status_socket" ] || return 0
    curl --disable --silent --fail --no-buffer --unix-socket "$root$status_socket" http://localhost/free >"$free_pipe" 2>/dev/null 7<&- &
    listener=$!
}

stop_listening() {
    [ -z "$listener" ] || kill "$listener" 2>/dev/null
    listener=''
}

# Whoever sends the lines may be hostile: more than a few in ten seconds are not read at once.
hear() {
    if [ $((SECONDS - lines_since)) -ge 10 ]; then lines=0 lines_since=$SECONDS; fi
    lines=$((lines + 1))
    if [ "$lines" -gt 20 ]; then
        note "too many lines on $status_socket"
        stop_listening
        rm -f "$free_pipe"
        mkfifo -m 600 "$free_pipe" || exit 1
        exec 7<>"$free_pipe"
        read -r -t 10 -n 1 line <&7
        lines=0
        return 0
    fi
    [ "$heard" != no ] || note "$status_socket answers again"
    heard=yes
    # What was sent before the last change had taken effect.
    [ "$SECONDS" -ge "$quiet_until" ] || return 0
    # shellcheck disable=SC2086  # words, and set -f is on
    set -- $line
    while [ "$#" -ge 3 ]; do
        case $1 in *[!0-9a-f:.]*) return 0 ;; esac
        is_bytes "$2" && is_bytes "$3" || return 0
        weigh "$1" $(($2 / 1024)) $(($3 / 1024))
        shift 3
    done
}

is_bytes() { # number that a shell can reckon with
    case $1 in '' | 0?* | *[!0-9]* | ????????????????*) return 1 ;; esac
}

weigh() { # GPU, KiB free, KiB in all
    case $reserve in *%)
        reserve_kib=$(($3 * ${reserve%\%} / 100))
        [ "$reserve_kib" -ge "$least_reserve_kib" ] || reserve_kib=$least_reserve_kib
        ;;
    esac
    look_at_slices "$1"
    if [ "$2" -lt "$reserve_kib" ]; then
        enough_for "$1" no
        [ -z "$least_device" ] || give $((reserve_kib - $2)) "$1"
    elif [ -n "$next_kib" ] && [ "$2" -ge $((reserve_kib + next_kib)) ]; then
        enough_for "$1" yes
        [ $((SECONDS - enough_at)) -lt "$patience_s" ] || get "$1"
    else
        enough_for "$1" no
    fi
}

# Sets, of a GPU: on_kib and off_kib, what is swap and what is not; least_device, the swap device with the fewest pages,
# and least_used; next_kib, the smallest export that is not swap.
look_at_slices() { # GPU
    on_kib=0 off_kib=0 least_device='' least_used=0 next_kib='' on_names="$tab" mirrored='' off_mirror=''
    [ -s "$records" ] && [ -r "$attached" ] || return 0
    while IFS= read -r fact; do
        case $fact in
        mirror=*) mirrored=yes ;;
        released=yes) off_mirror=yes ;;
        esac
        # Swap on a mirror stays on, from the disk alone.
        [ -z "$off_mirror" ] || continue
        case $fact in device=*"$tab"*"$tab"*"$tab$1$tab"*) ;; *) continue ;; esac
        each=${fact#device=} each=${each%%"$tab"*}
        while read -r path _ size used _; do
            path=${path##*/}
            [ "/dev/${path%%\\040*}" = "$each" ] || continue
            on_kib=$((on_kib + size)) on_names="$on_names${fact##*"$tab"}$tab"
            if [ -z "$least_device" ] || [ "$used" -lt "$least_used" ]; then least_device=$each least_used=$used; fi
        done <"$proc/swaps"
    done <"$attached"
    while IFS= read -r fact; do
        case $fact in export=*"$tab$1$tab"*) ;; *) continue ;; esac
        case $on_names in *"$tab${fact##*"$tab"}$tab"*) continue ;; esac
        kib=${fact#export=} kib=${kib%%"$tab"*}
        is_bytes "$kib" || continue
        off_kib=$((off_kib + kib))
        if [ -z "$next_kib" ] || [ "$kib" -lt "$next_kib" ]; then next_kib=$kib; fi
    done <"$attached"
}

# Sets enough_at: since when a GPU has had the reserve and a slice.
enough_for() { # GPU yes|no
    enough_at=$SECONDS
    case " $enough_since" in
    *" $1="*)
        enough_at=${enough_since#*"$1="} enough_at=${enough_at%% *}
        [ "$2" = yes ] || enough_since="${enough_since%%"$1="*}${enough_since#*"$1=$enough_at "}"
        ;;
    *) [ "$2" = no ] || enough_since="$enough_since$1=$SECONDS " ;;
    esac
}

give() { # KiB GPU
    measure_room "$least_device"
    if [ "$least_used" -gt "$room" ] && [ -z "$mirrored" ]; then
        complain_once_a_minute "$2 needs $(($1 / 1024)) MiB, but $((least_used / 1024)) MiB are in $least_device and there is" \
            "room for $((room / 1024)) MiB: kept"
        return 0
    fi
    note "$2 needs $(($1 / 1024)) MiB: releasing"
    "$here/vramblk-swap" release "$((off_kib + $1))K" "$2" 7<&- && quiet_until=$((SECONDS + 5)) && return 0
    complain_once_a_minute "$2: not everything was released (see above)"
    # To try at once would move the same pages again and again.
    quiet_until=$((SECONDS + patience_s))
}

get() { # GPU
    note "$1 has had room for a minute: taking $((next_kib / 1024)) MiB back"
    "$here/vramblk-swap" take "$((on_kib + next_kib))K" "$1" 7<&- || note "$1: nothing could be taken back"
    enough_for "$1" no
    quiet_until=$((SECONDS + 5))
}

complain_once_a_minute() { # words
    [ -z "$said_at" ] || [ $((SECONDS - said_at)) -ge "$patience_s" ] || return 0
    said_at=$SECONDS
    note "$*"
}
