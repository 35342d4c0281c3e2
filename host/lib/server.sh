# shellcheck shell=sh disable=SC2034,SC2154
# What the server answers on its status socket.

# The status document on stdin to lines such as ".mode=swap": only what is read here, none longer than 300 bytes.
# Whoever writes the document may be hostile: it fails where it is cut off, is no JSON or is nested deeply.
flatten_json() {
    awk '
        BEGIN { RS = "\001"; bad = 1 }
        { text = $0; size = length(text); at = 1; value("", 0); skip(); bad = at <= size }
        END { exit bad }
        function skip() { while (at <= size && substr(text, at, 1) == " ") at++ }
        function string(    c, out, n) {
            for (at++; (c = substr(text, at, 1)) != "\""; at++) {
                if (c == "") exit 1
                if (c == "\\") { at++; c = substr(text, at, 1); if (c == "u") { at += 4; c = "?" } else if (c == "n") c = " " }
                if (n++ < 300) out = out c
            }
            at++
            return out
        }
        function show(path, found) {
            if (path ~ /^\.(state|mode|pid|locked_bytes|swap_preconditions\[[0-9][0-9]?\]\.(name|ok|detail|remedy))$/)
                print path "=" found
        }
        function value(path, depth,    c, i, from) {
            if (depth > 16) exit 1
            skip(); c = substr(text, at, 1)
            if (c == "\"") { show(path, string()); return }
            if (c == "{" || c == "[") {
                at++; skip()
                if (substr(text, at, 1) == (c == "{" ? "}" : "]")) { at++; return }
                for (i = 0; ; i++) {
                    skip()
                    if (c == "[") value(path "[" i "]", depth + 1)
                    else { from = path "." string(); skip(); if (substr(text, at++, 1) != ":") exit 1; value(from, depth + 1) }
                    skip()
                    from = substr(text, at++, 1)
                    if (from == (c == "{" ? "}" : "]")) return
                    if (from != ",") exit 1
                }
            }
            from = at
            while (at <= size && !index(",]} ", substr(text, at, 1))) at++
            if (at == from) exit 1
            show(path, substr(text, from, at - from < 300 ? at - from : 300))
        }'
}

# 256 KiB within ten seconds, and from the socket itself: a link could lead to any other.
ask_server() {
    answer=''
    if [ "$status_socket" = off ] || [ -L "$root$status_socket" ]; then return 1; fi
    if command -v curl >/dev/null 2>&1; then
        set -- curl --silent --fail --max-time 10 --unix-socket "$root$status_socket" http://localhost/status.json
    elif command -v vramblk >/dev/null 2>&1; then
        set -- vramblk status --json --status-socket "$root$status_socket"
    else
        fail 78 'asking the server needs curl or vramblk; type: sudo apt-get install curl'
    fi
    answer=$("$@" 2>/dev/null 9>&- | head -c 262144 | tr '\n' ' ' | printable | flatten_json) || { answer=''; return 1; }
}

answered() { printf '%s\n' "$answer" | awk -v key="$1=" 'index($0, key) == 1 { print substr($0, length(key) + 1); exit }'; }

server_problem() { # one line that says why the server cannot be used now; nothing if it can
    if [ "$status_socket" = off ]; then
        echo 'VRAMBLK_STATUS_SOCKET=off, so the server cannot be asked for its state and mode'
    elif [ -L "$root$status_socket" ]; then
        echo "$status_socket is a symbolic link, which is not followed; name the socket itself (VRAMBLK_STATUS_SOCKET)"
    elif [ -z "$answer" ]; then
        echo "the server does not answer on $status_socket; start it (make up SWAP=1), or see its log (make logs)"
    elif [ "$(answered "$key_state")" != ready ]; then
        echo "the server's state is $(answered "$key_state"), not ready; type: vramblk status"
    elif [ "$(answered "$key_mode")" != swap ]; then
        echo "the server's mode is $(answered "$key_mode"), not swap: it can be swapped out itself and freezes the machine;" \
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
    locked_bytes=$(answered "$key_locked")
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
    printf '%s\n' "$answer" | awk -F '[][]' '
        $1 == ".swap_preconditions" {
            n = $2 + 0; field = substr($0, length($1 $2) + 4); from = index(field, "=")
            found[n, substr(field, 1, from - 1)] = substr(field, from + 1)
            if (n > last) last = n
        }
        END { for (n = 0; n <= last; n++)
            if (found[n, "name"] !~ /^(min_free|swap_max|)$/ && found[n, "ok"] != "true")
                print found[n, "name"] ": " found[n, "detail"] "; " found[n, "remedy"] }' |
        while read -r line; do note "warning: $line"; done
}
