# shellcheck shell=sh disable=SC2034,SC2154
# Settings, from the environment and /etc/default/vramblk.

# Read as systemd's EnvironmentFile= is, never executed: a file of settings must not be able to run commands as root.
read_defaults() {
    defaults=$root/etc/default/vramblk
    [ -r "$defaults" ] || return 0
    while read -r line || [ -n "$line" ]; do
        line=${line#export }
        while :; do case $line in *[[:space:]]) line=${line%?} ;; *) break ;; esac; done
        case $line in
        VRAMBLK_*=*) ;;
        *) continue ;;
        esac
        name=${line%%=*} value=${line#*=}
        case $name in *[!A-Z0-9_]*) continue ;; esac
        case $value in
        \"*\") value=${value#\"} value=${value%\"} ;;
        \'*\') value=${value#\'} value=${value%\'} ;;
        esac
        eval "[ -n \"\${$name+set}\" ] || { $name=\$value; export $name; }"
    done <"$defaults"
}

warn_unknown_settings() {
    env | sed -n 's/^VRAMBLK_\([A-Za-z0-9_]*\)=.*/\1/p' | sort -u | while read -r name; do
        case " $(echo "$own_names $server_names $other_names" | tr '\n' ' ') " in *" ${name%_FILE} "*) continue ;; esac
        case $name in TEST_* | PORT | PORT_* | SERVICE | SERVICE_*) continue ;; esac
        near=$(nearest_name "$name")
        note "warning: nothing reads VRAMBLK_$name${near:+; the nearest name is VRAMBLK_$near}"
    done
}

# The known name that differs in one place, by at most two letters there.
nearest_name() {
    for known in $own_names $server_names $other_names; do
        longer=$((${#known} - ${#1}))
        [ "${longer#-}" -le 2 ] || continue
        start=$1
        while [ -n "$start" ]; do
            case $known in "${start%??}"*"${1#"$start"}")
                echo "$known"
                return
                ;;
            esac
            start=${start%?}
        done
    done
}

# Nothing if it is no size. Less than 4 EiB, so that a shell can reckon with it.
kib_of() { # size such as 512M, 4G or 1.5GiB
    awk -v size="$1" 'BEGIN {
        if (size !~ /^[0-9]+(\.[0-9]+)?[KMGT](i?B)?$/ || length(size) > 16) exit
        unit = index("KMGT", substr(size, match(size, /[KMGT]/), 1)) - 1
        printf "%.0f\n", size * 1024 ^ unit }'
}

need_number() { # name value lowest highest
    if ! is_number "$2" || [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ]; then
        fail 2 "VRAMBLK_$1=$2: allowed is a whole number from $3 to $4"
    fi
}

read_settings() {
    read_defaults
    warn_unknown_settings
    socket=${VRAMBLK_NBD_SOCKET:-/run/vramblk/nbd.sock}
    socket=${socket#unix:}
    status_socket=${VRAMBLK_STATUS_SOCKET:-/run/vramblk/status.sock}
    status_socket=${status_socket#unix:}
    export_names=${VRAMBLK_EXPORT_NAME:-}
    named_device=${VRAMBLK_NBD_DEVICE:-}
    priority=${VRAMBLK_SWAP_PRIORITY:-200}
    label=${VRAMBLK_SWAP_LABEL:-vramblk}
    timeout_s=${VRAMBLK_SWAP_TIMEOUT:-60}
    timeout_s=${timeout_s%s}
    mirror=${VRAMBLK_SWAP_MIRROR:-}
    mirror_timeout_s=${VRAMBLK_MIRROR_TIMEOUT:-15}
    mirror_timeout_s=${mirror_timeout_s%s}
    min_free_kbytes=${VRAMBLK_MIN_FREE_KBYTES:-}
    reserve=${VRAMBLK_RESERVE:-}
    need_number SWAP_PRIORITY "$priority" 0 32767
    need_number SWAP_TIMEOUT "$timeout_s" 1 86400
    need_number MIRROR_TIMEOUT "$mirror_timeout_s" 2 600
    case $mirror in
    *"$tab"*) fail 2 'VRAMBLK_SWAP_MIRROR: a tab is not allowed' ;;
    '' | /dev/?*) ;;
    *) fail 2 "VRAMBLK_SWAP_MIRROR=$mirror: allowed is a path below /dev" ;;
    esac
    case $min_free_kbytes in '' | keep) ;; *) need_number MIN_FREE_KBYTES "$min_free_kbytes" 1 999999999 ;; esac
    case $socket in /*) ;; *) fail 2 "VRAMBLK_NBD_SOCKET=$socket: allowed is an absolute path" ;; esac
    case $named_device in
    '') ;;
    /dev/nbd*) is_number "${named_device#/dev/nbd}" || fail 2 "VRAMBLK_NBD_DEVICE=$named_device: allowed is /dev/nbdN" ;;
    *) fail 2 "VRAMBLK_NBD_DEVICE=$named_device: allowed is /dev/nbdN" ;;
    esac
    case $reserve in
    '') ;;
    [0-9]% | [1-9][0-9]%) ;;
    *) [ -n "$(kib_of "$reserve")" ] || fail 2 "VRAMBLK_RESERVE=$reserve: allowed is a size such as 2G, or a share such as 10%" ;;
    esac
    [ "${#label}" -le 15 ] || fail 2 "VRAMBLK_SWAP_LABEL=$label: allowed are at most 15 bytes"
}
