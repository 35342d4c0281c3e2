# shellcheck shell=sh
# What another program or project has already, found before minutes of building: ports, and the directory of the sockets.

# check_conflicts OLD: OLD is the server's live container, empty if there is none.
check_conflicts() {
    # In swap mode there is no network.
    chosen compose.swap.yaml || check_ports "$1"
    check_run_dir "$1" "$(setting VRAMBLK_RUN_DIR)"
}

# Compose's own line about a taken port is missing or buried.
check_ports() {
    own=''
    if [ -n "$1" ]; then
        own=$(published "$1")
        # It may be in the host's network, or docker does not answer.
        [ -n "$own" ] || return 0
    fi
    found='' instead=''
    check_port VRAMBLK_NBD_PORT "$(setting VRAMBLK_NBD_PORT)"
    check_port VRAMBLK_METRICS_PORT "$(setting VRAMBLK_METRICS_PORT)"
    [ -z "$found" ] ||
        fail 1 "$found; sudo ss -ltnp shows by whom, often it is make run; end it, or type: ${instead}make up"
}

# check_port NAME PORT: adds a taken port to `found`, and to `instead` what to type.
check_port() {
    # Anything but one number, such as a range, is Compose's to judge.
    case $2 in *[!0-9]* | 0*) return 0 ;; esac
    if printf '%s\n' "$own" | grep -q " $2\$" || ! taken "$2"; then return 0; fi
    found="${found:+$found, }port $2 is taken"
    instead="$instead$1=$(($2 + 10)) "
}

# Does anything listen on port $1 of 127.0.0.1, or of all addresses?
taken() {
    cat "${VRAMBLK_HOST_ROOT-}/proc/net/tcp" "${VRAMBLK_HOST_ROOT-}/proc/net/tcp6" 2>/dev/null |
        grep -Eq "^ *[0-9]+: (0{8}|0{32}|(0{16}FFFF0000)?0100007F):$(printf %04X "$1") [^ ]+ 0A "
}

# check_run_dir OLD DIRECTORY: another project's server in the same directory would answer when this one is asked for its
# health.
check_run_dir() {
    for each in $(docker ps -q --no-trunc --filter label=com.docker.compose.service=vramblk 2>/dev/null); do
        [ "$each" != "$1" ] || continue
        source=$(inspect "$each" '{{range .Mounts}}{{if eq .Destination "/run/vramblk"}}{{.Source}}{{end}}{{end}}')
        [ "$source" != "$2" ] ||
            fail 1 "the server of another project has its sockets in $2 (container $(inspect "$each" '{{.Name}}'));" \
                "end it, or write VRAMBLK_RUN_DIR=$2-2 to .env"
    done
}
