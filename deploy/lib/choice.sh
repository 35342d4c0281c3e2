# shellcheck shell=sh
# Which compose files are used. The user's COMPOSE_FILE stays as it is; our own choice follows the GPU, TLS and swap mode.

# The chosen files, with colons between them; set by choose_files.
files=''

# Does the name of a chosen file contain $1?
chosen() { case $files in *"$1"*) ;; *) return 1 ;; esac; }

# choose_files OLD: sets and exports COMPOSE_FILE. OLD is the server's live container, empty if there is none. Ends the
# script if the choice contradicts other settings.
choose_files() {
    asked=VRAMBLK_MODE=swap
    case ${SWAP:-} in
        '' | 0) ;;
        1) asked=SWAP=1 && export VRAMBLK_MODE=swap ;;
        *) fail 2 "SWAP=$SWAP; allowed: 1, 0 or nothing" ;;
    esac
    files=$(given COMPOSE_FILE)
    if [ -z "$files" ]; then
        choose_anew "$1"
    elif chosen_here "$files"; then
        before=$files
        add_tls_and_swap "$1"
        if [ "$files" = "$before" ]; then say_set_already; else add_line "COMPOSE_FILE=$files"; fi
    else
        say_set_already
    fi
    check_swap "$asked"
    check_tls
    # In swap mode there is no network, so nobody can read the metrics.
    chosen compose.swap.yaml || check_token
    export COMPOSE_FILE="$files"
}

say_set_already() { say "  COMPOSE_FILE=$files   (as set already; take it out of .env to have it chosen anew)"; }

choose_anew() {
    gpu=$(find_gpu) || exit
    vendor=${gpu#* }
    vendor_file=${gpu%% *}
    say "GPU on this host: $vendor"
    files=compose.yaml
    [ "$vendor_file" = - ] || files=$files:$vendor_file
    add_tls_and_swap "$1"
    add_line "COMPOSE_FILE=$files"
    remember_device "$vendor_file" "$vendor"
}

# Adds the files for TLS and swap to our own choice, or takes them out. Swap mode lasts as long as it is asked for or its
# server lives. TLS lasts until VRAMBLK_TLS=off, because nobody expects plaintext from a command that does not mention it.
add_tls_and_swap() {
    with_tls='' with_swap=''
    base=${files%:compose.swap.yaml}
    case $base in *:compose.tls.yaml) with_tls=yes ;; esac
    case $(given VRAMBLK_TLS) in '') ;; off) with_tls='' ;; *) with_tls=yes ;; esac
    if [ "$(given VRAMBLK_MODE)" = swap ]; then
        with_swap=yes
    elif swap_lives "$1"; then
        with_swap=yes
        say '  swap mode stays, because swap is on or its server runs; to leave it: make down, then make up'
    elif [ "$files" != "$base" ]; then
        say '  swap mode ends, because swap is off and its server does not run; to have it: make up SWAP=1'
    fi
    files=${base%:compose.tls.yaml}${with_tls:+:compose.tls.yaml}${with_swap:+:compose.swap.yaml}
}

# The host's records count only if the choice was swap: they may belong to a server outside Docker.
swap_lives() {
    if chosen compose.swap.yaml && swap_is_recorded; then return 0; fi
    [ -n "$1" ] && is_swap "$1"
}

# Would memory of this host be served?
on_cpu() {
    case $files in *nvidia* | *rocm* | *intel*) return 1 ;; esac
    ! given VRAMBLK_DEVICE | grep -q '^map:'
}

# check_swap ASKED: ASKED is the setting that asks for swap mode, as the user typed it.
check_swap() {
    if ! chosen compose.swap.yaml && [ "$(given VRAMBLK_MODE)" != swap ]; then return 0; fi
    if on_cpu; then
        fail 78 'swap mode needs a GPU, and this host shows none: swapping to CPU memory would only take memory away'
    fi
    chosen compose.swap.yaml ||
        fail 2 "$1, but COMPOSE_FILE=$files lacks compose.swap.yaml; add it there, or delete COMPOSE_FILE to have" \
            'it chosen anew'
}

# Must clients prove who they are by a certificate?
verifies_peers() {
    case $(given VRAMBLK_TLS_VERIFY_PEER | tr '[:upper:]' '[:lower:]') in '' | off | false | no | 0) return 1 ;; esac
}

check_tls() {
    if chosen compose.tls.yaml; then
        check_certificates "$(setting VRAMBLK_TLS_DIR)"
    else
        check_without_tls "$(given VRAMBLK_TLS)"
    fi
}

check_without_tls() {
    [ "$1" != off ] || return 0
    # A file of the user may bring keys in its own way.
    printf '%s:\n' "$files" | grep -Eqx '(compose(\.nvidia|\.nvidia-runtime|\.rocm|\.intel|\.swap)?\.yaml:)+' || return 0
    if [ -n "$1" ]; then
        fail 2 "VRAMBLK_TLS=$1, but COMPOSE_FILE=$files lacks compose.tls.yaml; add it there, or delete" \
            'COMPOSE_FILE to have it chosen anew'
    elif verifies_peers; then
        fail 2 'VRAMBLK_TLS_VERIFY_PEER is set, but TLS is off, so that it would be ignored; set VRAMBLK_TLS=require' \
            'too, or delete it (also from .env)'
    fi
}

# check_certificates DIRECTORY
check_certificates() {
    # Root's own directory: the daemon can read what this user cannot.
    if [ -d "$1" ] && ! [ -x "$1" ]; then return 0; fi
    for each in ca-cert.pem server-cert.pem server-key.pem; do
        [ -e "$1/$each" ] ||
            fail 78 "TLS requires $1/$each, which does not exist; VRAMBLK_TLS_DIR names the directory, and" \
                'docs/guides/containers.md lists its files'
    done
}
