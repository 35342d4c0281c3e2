# shellcheck shell=sh disable=SC2034,SC2154
# What the server answers on its status socket.

# Sets answer, NAME=value lines (docs/reference/status.md). The sender may be hostile: at most 256 KiB within ten seconds,
# all of them or nothing, and from the socket itself: a link could lead to any other. Without the caller's .curlrc and
# Python packages, because sudo may pass HOME on.
ask_server() {
    answer=''
    if [ "$status_socket" = off ] || [ -L "$root$status_socket" ]; then return 1; fi
    if command -v curl >/dev/null 2>&1; then
        set -- curl --disable --silent --fail --max-time 10 --unix-socket "$root$status_socket" http://localhost/status.env
    elif command -v vramblk >/dev/null 2>&1; then
        set -- env PYTHONNOUSERSITE=1 vramblk status --env --status-socket "$root$status_socket"
    else
        fail 78 'asking the server needs curl or vramblk; type: sudo apt-get install curl'
    fi
    answer=$("$@" 2>/dev/null 9>&- | head -c 262144 | printable | cut -c -400)
    case $answer in
    "format=1
"*"
end=yes") return 0 ;;
    esac
    answer=''
    return 1
}

answered() { printf '%s\n' "$answer" | awk -v key="$1=" 'index($0, key) == 1 { print substr($0, length(key) + 1); exit }'; }

server_problem() { # one line that says why the server cannot be used now; nothing if it can
    if [ "$status_socket" = off ]; then
        echo 'VRAMBLK_STATUS_SOCKET=off, so the server cannot be asked for its state and mode'
    elif [ -L "$root$status_socket" ]; then
        echo "$status_socket is a symbolic link, which is not followed; name the socket itself (VRAMBLK_STATUS_SOCKET)"
    elif [ -z "$answer" ]; then
        echo "the server does not answer on $status_socket; start it (make up SWAP=1), or see its log (make logs)"
    elif [ "$(answered state)" != ready ]; then
        echo "the server's state is $(answered state), not ready; type: vramblk status"
    elif [ "$(answered mode)" != swap ]; then
        echo "the server's mode is $(answered mode), not swap: it can be swapped out itself and freezes the machine;" \
            'start it with VRAMBLK_MODE=swap'
    fi
}

check_server() {
    [ -z "$start" ] || ask_server || start_container
    deadline=$(($(date +%s) + timeout_s))
    waiting=''
    until
        ask_server || answer=''
        problem=$(server_problem)
        [ -z "$problem" ] || [ -z "$patient" ] || [ -n "$dry_run" ] || [ "$(date +%s)" -ge "$deadline" ]
    do
        [ "$problem" = "$waiting" ] || note "$problem; waiting up to $timeout_s s"
        waiting=$problem
        sleep 1
    done
    if [ -n "$problem" ]; then
        [ -n "$force" ] || [ -n "$dry_run" ] || fail 1 "$problem"
        note "warning: $problem"
    fi
    warn_preconditions
    locked_bytes=$(answered locked_bytes)
    is_count "$locked_bytes" || locked_bytes=0
    [ ! -L "$root$socket" ] ||
        fail 1 "$socket is a symbolic link, which is not followed; name the socket itself (VRAMBLK_NBD_SOCKET)"
    [ -S "$root$socket" ] || [ -n "$dry_run" ] || fail 1 "there is no Unix socket $socket; is the server running?"
    warn_group
}

warn_group() {
    case $(stat -c '%A %g' "$root$socket" 2>/dev/null) in
    ?????w??-*' 0') ;;
    ?????w* | ????????w*) note "warning: $socket has $(stat -c 'mode %a and group %G' "$root$socket"): whoever else may" \
        'open it can read what is swapped out; start the server without VRAMBLK_SOCKET_GID' ;;
    esac
}

# What the server finds missing by itself; what this script is about to set is none of it.
warn_preconditions() {
    printf '%s\n' "$answer" | awk '
        /^precondition_[0-9][0-9]?_[a-z]+=/ {
            at = index($0, "="); split(substr($0, 1, at - 1), key, "_"); n = key[2] + 0
            found[n, key[3]] = substr($0, at + 1)
            if (n > last) last = n
        }
        END { for (n = 0; n <= last; n++)
            if (found[n, "name"] !~ /^(min_free|swap_max|)$/ && found[n, "ok"] != "yes")
                print found[n, "name"] ": " found[n, "detail"] "; " found[n, "remedy"] }' |
        while read -r line; do note "warning: $line"; done
}

# A line for each swap export that the server offers, at most 64: KiB, its GPU or -, its name.
offered() {
    printf '%s\n' "$answer" | awk '
        /^export_[0-9][0-9]?_(name|mode|size_bytes|gpu)=/ {
            at = index($0, "="); key = substr($0, 8, at - 8); n = key + 0; sub(/^[0-9]+_/, "", key)
            if (n < 64) found[n, key] = substr($0, at + 1)
        }
        END { for (n = 0; n < 64; n++)
            if (found[n, "mode"] == "swap" && found[n, "name"] != "") {
                if (found[n, "size_bytes"] !~ /^[0-9]+$/ || length(found[n, "size_bytes"]) > 15) found[n, "size_bytes"] = 0
                if (found[n, "gpu"] !~ /^[0-9a-f]+:[0-9a-f.:]+$/) found[n, "gpu"] = "-"
                printf "%.0f\t%s\t%s\n", found[n, "size_bytes"] / 1024, found[n, "gpu"], found[n, "name"]
            } }'
}

# Those of them that are to be swap: all, or what VRAMBLK_EXPORT_NAME names. A name that the server does not offer stands
# for its slices and devices (NAME-0, NAME-gpu1); if there are none, it is asked for as it is.
wanted_exports() {
    offered | NAMES=$export_names awk -F '\t' '
        BEGIN { count = split(ENVIRON["NAMES"], names, ",") }
        { line[NR] = $0; name[NR] = substr($0, length($1 $2) + 3) }
        function show(i) { if (!shown[i]++) print line[i] }
        END {
            if (!count && NR) for (i = 1; i <= NR; i++) show(i)
            if (!count && !NR) names[count = 1] = "vram"
            for (n = 1; n <= count; n++) {
                found = 0
                for (i = 1; i <= NR; i++) if (name[i] == names[n]) { show(i); found = 1 }
                if (!found) for (i = 1; i <= NR; i++) if (index(name[i], names[n] "-") == 1) { show(i); found = 1 }
                if (!found) print "0\t-\t" names[n]
            }
        }'
}
