#!/bin/sh
# NAME_FILE=/path gives NAME the content of that file; then the server takes this process's place.
set -eu

fail() {
    printf 'vramblk: %s\n' "$1" >&2
    exit 2
}

# awk lists names only: a value of several lines cannot pass for a variable.
names=$(awk 'BEGIN { for (name in ENVIRON) if (name ~ /^VRAMBLK_[A-Z0-9_]+_FILE$/) print name }')
for name in $names; do
    option=${name%_FILE}
    file=$(printenv "$name")
    case $option in
        VRAMBLK_CONFIG | VRAMBLK_STATUS_SOCKET | VRAMBLK_TLS_CERTIFICATES | VRAMBLK_TLS_PSK)
            fail "$name=$file: $option holds a path itself; set $option=$file"
            ;;
    esac
    if [ -n "$(printenv "$option" || true)" ]; then
        fail "$name=$file: $option is set too; keep one of them"
    fi
    if ! [ -f "$file" ] || ! [ -r "$file" ]; then
        fail "$name=$file: not a readable file"
    fi
    value=$(cat "$file")
    export "$option=$value"
    unset "$name"
done

exec vramblk "$@"
