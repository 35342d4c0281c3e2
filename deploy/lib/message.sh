# shellcheck shell=sh
# Messages.

say() { printf '%s\n' "$@"; }

# fail STATUS WORD...: writes a message to standard error and ends the script.
fail() {
    status=$1
    shift
    printf 'vramblk: %s\n' "$*" >&2
    exit "$status"
}

# size BYTES: prints it with a unit.
size() {
    awk -v size="$1" 'BEGIN {
        split("B KiB MiB GiB TiB", units)
        for (n = 1; size >= 1000 && n < 5; n++) size /= 1024
        printf(size == int(size) || size >= 100 ? "%.0f %s\n" : "%.1f %s\n", size, units[n])
    }'
}
