# shellcheck shell=sh disable=SC2034,SC2154
# The server's process and its cgroup.

started() { # pid: when it started, in clock ticks since boot; with the pid it names one process for ever
    sed 's/.*) //' "$proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

# The supervisor as this machine sees it. Any user can name a process so, and in namespaces of his own be any pid. Hence
# all its uids must be those of the socket's owner, and it must hold a listening socket of that name. The pid in the
# answer may be a container's, hence the last field of NSpid; the socket seen through its root tells two containers apart.
find_server() {
    server_pid=''
    socket_file=$(stat -L -c %d:%i "$root$socket" 2>/dev/null) || return 0
    set +f
    for each in "$proc"/[0-9]*; do
        read -r name 2>/dev/null <"$each/comm" || continue
        case $name in vramblk-supervi*) ;; *) continue ;; esac
        is_supervisor "$each" || continue
        for path in "$socket" "/run/vramblk/${socket##*/}"; do
            if [ "$(stat -L -c %d:%i "$each/root$path" 2>/dev/null)" = "$socket_file" ]; then
                server_pid=${each##*/}
                break 2
            fi
        done
    done
    set -f
}

is_supervisor() { # its directory in /proc
    owned_by "$(stat -L -c %u "$root$socket")" "$1" || return 1
    awk -v pid="$(answered pid)" '$1 == "NSpid:" { exit pid != "" && $NF != pid }' "$1/status" || return 1
    { ls -l "$1/fd" && cat "$1/net/unix"; } 2>/dev/null | awk -v name="/${socket##*/}" '
        NF > 1 && $(NF - 1) == "->" { held[$NF] = 1 }
        $4 == "00010000" && substr($0, length($0) - length(name) + 1) == name && held["socket:[" $7 "]"] { found = 1 }
        END { exit !found }'
}

find_cgroup() { # of server_pid
    server_cgroup='' server_container=''
    [ -n "$server_pid" ] || return 0
    server_cgroup=$(sed -n 's/^0:://p' "$proc/$server_pid/cgroup")
    case $server_cgroup/ in
    *[!A-Za-z0-9_.:@%+=,/\\-]* | */../*)
        fail 1 "the name of the server's cgroup is not plain: $(printf %s "$server_cgroup" | printable); allowed: letters, digits" \
            'and _.:@%+=,-; start the server in another unit, slice or container' ;;
    esac
    server_container=$(sed -n 's/.*docker[-/]\([0-9a-f]\{64\}\).*/\1/p' "$proc/$server_pid/cgroup" | head -n 1)
}

# Why vramblk-swap.service would not take swap off before dockerd stops, and what to type; nothing if it would. Its
