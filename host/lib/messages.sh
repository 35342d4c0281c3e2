# shellcheck shell=sh disable=SC2034,SC2154
# What is printed, and how numbers are recognised.

# What others wrote could hold commands for the terminal.
printable() { tr -c '\n -~' '?'; }

note() { printf 'vramblk-swap: %s\n' "$*" >&2; }

fail() {
    fail_status=$1
    shift
    note "$*"
    exit "$fail_status"
}

is_number() { case $1 in '' | *[!0-9]* | ??????????*) return 1 ;; esac }

is_count() { case $1 in '' | *[!0-9]*) return 1 ;; esac }
