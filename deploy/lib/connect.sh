# shellcheck shell=sh
# What `up` prints when the server is healthy: how to connect, who else can, and where to look.

# say_how_to_connect CONTAINER
say_how_to_connect() {
    say '' 'vramblk is healthy.'
    if chosen swap; then
        say '  swap             sudo host/vramblk-swap up, status, down' \
            "  metrics, status  make exporter, then http://127.0.0.1:$(setting VRAMBLK_EXPORTER_PORT)/"
    else
        export_name=$(export_of "$1")
        say_recipes "${export_name:-$(setting VRAMBLK_EXPORT_NAME)}" "$(setting VRAMBLK_NBD_PORT)"
        say_who_reaches_tcp "$(setting VRAMBLK_NBD_PORT)"
        say "  metrics, status  http://127.0.0.1:$(setting VRAMBLK_METRICS_PORT)/"
    fi
    say '  logs, stop       make logs, make down'
    if on_cpu; then
        say '' '*******************************************************************************' \
            '**  WARNING: no GPU is used. The export lies in this host'\''s main memory.     **' \
            '**  Good for a first try; it gains nothing over tmpfs.                       **' \
            '*******************************************************************************'
    fi
}

# say_recipes EXPORT PORT
say_recipes() {
    if [ -z "$(tls_mode)" ]; then
        say_recipes_for_plaintext "$@" "$(setting VRAMBLK_RUN_DIR)/nbd.sock"
    elif chosen compose.tls.yaml; then
        tls_dir=$(setting VRAMBLK_TLS_DIR)
        say_recipes_for_tls "$@" "$(cd "$tls_dir" 2>/dev/null && pwd || echo "$tls_dir")"
    else
        # Keys of the user's own file are not known here.
        say "  look at it       nbdinfo nbds://localhost:$2/$1   (with your keys: man nbd_set_uri)"
    fi
}

# say_recipes_for_plaintext EXPORT PORT SOCKET
say_recipes_for_plaintext() {
    if serves_tcp; then
        say "  look at it       nbdinfo nbd://127.0.0.1:$2/$1"
    else
        say "  look at it       sudo nbdinfo 'nbd+unix:///$1?socket=$3'"
    fi
    say "  a block device   sudo nbd-client -unix $3 -N $1 -b 4096 /dev/nbd0"
}

# say_recipes_for_tls EXPORT PORT DIRECTORY: clients compare the certificate with the name that they connect to.
say_recipes_for_tls() {
    own=''
    [ ! -e "$3/client-cert.pem" ] || own=" -certfile $3/client-cert.pem -keyfile $3/client-key.pem"
    say "  look at it       nbdinfo 'nbds://localhost:$2/$1?tls-certificates=$3'" \
        "  a block device   sudo nbd-client localhost $2 /dev/nbd0 -N $1 -b 4096" \
        "                     -cacertfile $3/ca-cert.pem$own -tlshostname localhost"
    ! verifies_peers || say '                   (clients need client-cert.pem and client-key.pem beside ca-cert.pem)'
}

# on or require, as compose.tls.yaml or a file of the user will set it; empty without TLS.
tls_mode() {
    wanted=$(given VRAMBLK_TLS)
    ! chosen compose.tls.yaml || wanted=${wanted:-require}
    [ "$wanted" = off ] || echo "$wanted"
}

# Is an address that the container listens on TCP? Unset, one is; set to nothing, a YAML file decides.
serves_tcp() {
    addresses=$(given VRAMBLK_LISTEN_ADDR)
    [ -z "$addresses" ] || printf '%s\n' "$addresses" | tr ',' '\n' | grep -Eqv '^[[:space:]]*unix:'
}

# say_who_reaches_tcp PORT: nothing if clients prove who they are, by a certificate or by keys of the user's own file.
say_who_reaches_tcp() {
    serves_tcp || return 0
    if [ "$(tls_mode)" = require ] && { ! chosen compose.tls.yaml || verifies_peers; }; then return 0; fi
    say "  TCP              every account of this machine can read and write the export on port $1;" \
        '                   to turn TCP off: VRAMBLK_LISTEN_ADDR=unix:/run/vramblk/nbd.sock make up'
}
