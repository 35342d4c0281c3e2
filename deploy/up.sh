#!/bin/sh
# The container's life, behind `make up`, `make down`, `make logs` and `make status`.
#
#   deploy/up.sh up|down|logs|status
#
# With SWAP=1 `up` starts the server in swap mode, then turns swap on and starts vramblk-swap.service, if that is
# enabled; `down` takes swap off first, if it is on.
# `up` chooses the compose files for this host's GPU, keeps the choice in .env, builds, starts, waits until the server
# is healthy and says how to connect. What the user wrote to .env or the environment is never changed: the choice that
# `up` made itself stands below a mark that repeats it, and only while the two are the same may `up` change it.
# Exit status: 1 the server does not become healthy, a port is taken, or clients are attached; 2 a setting contradicts
# another; 78 something that this host lacks.
set -eu

cd "$(dirname "$0")/.."
base_image=debian:trixie-slim
swap_unit=vramblk-swap.service
# The files of another root directory are looked at in the tests only.
host=${VRAMBLK_HOST_ROOT:-}

say() { printf '%s\n' "$@"; }

fail() {
    status=$1
    shift
    printf 'vramblk: %s\n' "$*" >&2
    exit "$status"
}

# The value of NAME as Compose will see it: the environment, then .env.
setting() {
    if printenv "$1" >/dev/null; then
        printenv "$1"
    elif [ -f .env ]; then
        sed -n "s/^$1=//p" .env | tail -n 1 | sed "s/^\([\"']\)\(.*\)\1\$/\2/"
    fi
}

# Takes NAME=VALUE for this run and for .env, unless NAME has a value already.
remember() {
    if [ -n "$(setting "$1")" ]; then
        say "  $1=$(setting "$1")   (as set already)"
        return 0
    fi
    export "$1=$2"
    to_keep="$to_keep$1=$2
"
}

mark='# make up chose COMPOSE_FILE and may change it; once edited it is yours: '
to_keep='' chosen_before=''

# Is COMPOSE_FILE, $1, what an earlier `up` chose?
chosen_here() { ! printenv COMPOSE_FILE >/dev/null && grep -qxF "$mark$1" .env; }

# Writes to .env what was chosen, and shows it. Only once nothing can be refused any more: a choice that was not
# carried out would otherwise decide about the next `up`.
keep_choice() {
    [ -n "$to_keep" ] || return 0
    if [ -f .env ] && grep -qF "$mark" .env; then
        others=$(grep -vF "$mark" .env || true)
        [ -z "$chosen_before" ] || others=$(printf '%s\n' "$others" | grep -vxF "COMPOSE_FILE=$chosen_before" || true)
        printf '%s' "$others" >.env
    fi
    if [ -s .env ] && [ -n "$(tail -c 1 .env)" ]; then echo >>.env; fi
    case $to_keep in COMPOSE_FILE=*) printf '%s\n' "$mark$files" >>.env ;; esac
    printf '%s' "$to_keep" >>.env
    printf '%s' "$to_keep" | sed 's/^\(.*\)$/  \1   (written to .env)/'
}

find_docker() {
    command -v docker >/dev/null 2>&1 ||
        fail 78 'docker is not installed; type: sudo apt-get install docker.io docker-compose'
    docker version >/dev/null 2>&1 ||
        fail 78 'the Docker daemon does not answer; type: sudo systemctl start docker (or run this with sudo)'
    if docker compose version >/dev/null 2>&1; then
        compose_command='docker compose'
    elif command -v docker-compose >/dev/null 2>&1; then
        compose_command=docker-compose
    else
        fail 78 'Docker Compose is not installed; type: sudo apt-get install docker-compose'
    fi
}

compose() {
    # shellcheck disable=SC2086  # two words for the plugin
    $compose_command "$@"
}

inspect() { docker inspect --format "$2" "$1" 2>/dev/null || true; }

# The service's container, also a stopped one: Compose v2 lists those only with -a, together with those of `compose run`.
container() {
    for each in $(compose ps -a -q vramblk 2>/dev/null); do
        if [ "$(inspect "$each" '{{index .Config.Labels "com.docker.compose.oneoff"}}')" != True ]; then
            echo "$each"
            return 0
        fi
    done
}

state_of() { inspect "$1" '{{.State.Status}}'; }

running() { [ -n "$1" ] && [ "$(state_of "$1")" = running ]; }

# The container unless docker says plainly that it is stopped.
live_container() {
    each=$(container)
    case $(state_of "$each") in created | exited | dead) ;; *) echo "$each" ;; esac
}

# --- what this host has ----------------------------------------------------------------------------------------------

drm_vendor() { cat "$host"/sys/class/drm/renderD*/device/vendor 2>/dev/null | grep -qx "$1"; }

group_of() {
    for node in "$@"; do
        if [ -e "$node" ]; then
            stat -c %g "$node"
            return 0
        fi
    done
    echo 0
}

choose_vendor() {
    if [ -e "$host/dev/nvidiactl" ] || { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; then
        vendor=NVIDIA runtimes='nvidia cpu'
        if command -v nvidia-container-runtime-hook >/dev/null 2>&1; then
            vendor_file=compose.nvidia.yaml
        elif docker info --format '{{json .Runtimes}}' | grep -q '"nvidia"'; then
            vendor_file=compose.nvidia-runtime.yaml
        else
            fail 78 'there is an NVIDIA GPU, but Docker cannot pass it on; type: sudo apt-get install' \
                'nvidia-container-toolkit && sudo nvidia-ctk runtime configure && sudo systemctl restart docker'
        fi
    elif [ -e "$host/dev/kfd" ]; then
        vendor=AMD runtimes='amd intel cpu' vendor_file=compose.rocm.yaml
    elif drm_vendor 0x8086; then
        vendor=Intel runtimes='intel cpu' vendor_file=compose.intel.yaml rusticl=iris
    elif drm_vendor 0x1002; then
        vendor='AMD (without /dev/kfd)' runtimes='intel cpu' vendor_file=compose.intel.yaml rusticl=radeonsi
    else
        vendor=none runtimes=cpu vendor_file=
    fi
}

choose_files() {
    asked=VRAMBLK_MODE=swap
    case ${SWAP:-} in
        '' | 0) ;;
        1) asked=SWAP=1 && export VRAMBLK_MODE=swap ;;
        *) fail 2 "SWAP=$SWAP: allowed are 1 and nothing" ;;
    esac
    mode=$(setting VRAMBLK_MODE)
    tls=$(setting VRAMBLK_TLS)
    files=$(setting COMPOSE_FILE)
    if [ -z "$files" ]; then
        choose_vendor
        say "GPU on this host: $vendor"
        files=compose.yaml${vendor_file:+:$vendor_file}
        add_tls_and_swap
        check_choice
        remember COMPOSE_FILE "$files"
        remember VRAMBLK_RUNTIMES "$runtimes"
        case $vendor_file in
            compose.rocm.yaml)
                remember VRAMBLK_RENDER_GID "$(group_of "$host/dev/kfd")"
                remember VRAMBLK_VIDEO_GID "$(group_of "$host"/dev/dri/card*)"
                ;;
            compose.intel.yaml)
                remember VRAMBLK_RENDER_GID "$(group_of "$host"/dev/dri/renderD*)"
                remember RUSTICL_ENABLE "$rusticl"
                ;;
        esac
        return 0
    fi
    if chosen_here "$files"; then
        chosen_before=$files
        add_tls_and_swap
    fi
    if [ -n "$chosen_before" ] && [ "$files" != "$chosen_before" ]; then
        to_keep="COMPOSE_FILE=$files
"
    else
        say "  COMPOSE_FILE=$files   (as set already; take it out of .env to have it chosen anew)"
    fi
    check_choice
    export COMPOSE_FILE="$files"
}

# Brings the files for TLS and swap into our own choice, or takes them out. Swap mode is for as long as it is asked for
# or its server lives; TLS stays until VRAMBLK_TLS=off, since nobody expects plaintext from a command without a word.
add_tls_and_swap() {
    had=$files with_tls='' with_swap=''
    files=${files%:compose.swap.yaml}
    case $files in *:compose.tls.yaml) with_tls=yes ;; esac
    case $tls in '') ;; off) with_tls='' ;; *) with_tls=yes ;; esac
    if [ "$mode" = swap ]; then
        with_swap=yes
    elif swap_lives; then
        with_swap=yes
        say '  swap mode stays, as swap is on or its server runs; to leave it: make down, then make up'
    elif [ "$had" != "$files" ]; then
        say '  swap mode ends, as swap is off and its server does not run; to have it: make up SWAP=1'
    fi
    files=${files%:compose.tls.yaml}${with_tls:+:compose.tls.yaml}${with_swap:+:compose.swap.yaml}
}

# The host's records count only where the choice was swap: they may be those of a server outside Docker.
swap_lives() {
    case $had in *compose.swap.yaml) [ ! -s "$host/run/vramblk-swap/records" ] || return 0 ;; esac
    [ -n "$old" ] && is_swap "$old"
}

# Memory of this host is what would be served.
on_cpu() {
    case $files in *nvidia* | *rocm* | *intel*) return 1 ;; esac
    ! setting VRAMBLK_DEVICE | grep -q '^map:'
}

check_choice() {
    check_swap
    check_tls
    check_ports
}

check_swap() {
    lacks_file=''
    case $files in
        *compose.swap.yaml*) ;;
        *)
            [ "$mode" = swap ] || return 0
            lacks_file=yes
            ;;
    esac
    if on_cpu; then
        fail 78 'swap mode needs a GPU, and this host shows none: swapping to CPU memory would only take memory away'
    fi
    [ -z "$lacks_file" ] ||
        fail 2 "$asked, but COMPOSE_FILE=$files lacks compose.swap.yaml; add it there, or delete COMPOSE_FILE to have" \
            'it chosen anew'
}

check_tls() {
    case $files in
        *compose.tls.yaml*) ;;
        *)
            case $tls in '' | off) return 0 ;; esac
            # A file of the user's own may bring keys in its own way.
            printf '%s:\n' "$files" | grep -Eqx '(compose(\.nvidia|\.nvidia-runtime|\.rocm|\.intel|\.swap)?\.yaml:)+' ||
                return 0
            fail 2 "VRAMBLK_TLS=$tls, but COMPOSE_FILE=$files lacks compose.tls.yaml; add it there, or delete" \
                'COMPOSE_FILE to have it chosen anew'
            ;;
    esac
    tls_dir=$(setting VRAMBLK_TLS_DIR)
    tls_dir=${tls_dir:-./tls}
    # Root's own directory: the daemon sees what this user does not.
    if [ -d "$tls_dir" ] && ! [ -x "$tls_dir" ]; then return 0; fi
    for each in ca-cert.pem server-cert.pem server-key.pem; do
        [ -e "$tls_dir/$each" ] ||
            fail 78 "TLS needs $tls_dir/$each, which is not there; VRAMBLK_TLS_DIR names the directory, and" \
                'docs/container.md says what belongs in it'
    done
}

# Does anything listen on port $1 of 127.0.0.1, or of all addresses?
taken() {
    cat "$host/proc/net/tcp" "$host/proc/net/tcp6" 2>/dev/null |
        grep -Eq "^ *[0-9]+: (0{8}|0{32}|(0{16}FFFF0000)?0100007F):$(printf %04X "$1") [^ ]+ 0A "
}

# Compose's own line about a taken port is missing or buried, and comes after minutes of building.
check_ports() {
    case $files in *compose.swap.yaml*) return 0 ;; esac
    [ -z "$old" ] || return 0
    found='' instead=''
    for each in VRAMBLK_NBD_PORT:10809 VRAMBLK_METRICS_PORT:10810; do
        port=$(setting "${each%:*}")
        port=${port:-${each#*:}}
        # Not one number (Compose takes ranges too): Compose's to judge.
        case $port in *[!0-9]* | 0*) continue ;; esac
        if taken "$port"; then
            found="${found:+$found, }port $port is taken"
            instead="$instead${each%:*}=$((port + 10)) "
        fi
    done
    [ -z "$found" ] ||
        fail 1 "$found; sudo ss -ltnp shows by whom, often it is make run; end it, or type: ${instead}make up"
}

# --- build -----------------------------------------------------------------------------------------------------------

make_base() {
    docker image inspect "$base_image" >/dev/null 2>&1 && return 0
    say "+ docker pull $base_image"
    docker pull -q "$base_image" 2>/dev/null && return 0
    say "No image registry answers: making $base_image from Debian's packages."
    deploy/make-base.sh "$base_image"
}

build() {
    make_base
    VRAMBLK_VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' vramblk/__init__.py)
    VRAMBLK_REVISION=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
    export VRAMBLK_VERSION VRAMBLK_REVISION
    say "+ $compose_command build   (minutes the first time, seconds after that)"
    log=$(mktemp "${TMPDIR:-/tmp}/vramblk-build.XXXXXX")
    if [ -t 1 ]; then
        show_last_line "$log" &
        shower=$!
    fi
    if ! compose build >"$log" 2>&1; then
        stop_showing
        tail -n 30 "$log" >&2
        kept=$log
        log=''
        fail 1 "the image cannot be built; all that the builder said: $kept"
    fi
    stop_showing
    rm -f "$log"
    log=''
}

# This one is in the background, not the builder: a shell's background commands do not get Ctrl+C.
show_last_line() {
    while sleep 1; do
        printf '\r\033[K  %s' "$(tail -n 5 "$1" | LC_ALL=C tr -dc '[:print:]\n' | grep . | tail -n 1 | cut -c 1-76)"
    done
}

stop_showing() {
    [ -n "$shower" ] || return 0
    kill "$shower" 2>/dev/null || true
    wait "$shower" 2>/dev/null || true
    shower=''
    printf '\r\033[K'
}

log='' shower=''
tidy() {
    stop_showing
    [ -z "$log" ] || rm -f "$log"
}

# --- clients ---------------------------------------------------------------------------------------------------------

# How many clients the server in container $1 serves; empty if it does not answer.
clients() {
    docker exec "$1" vramblk status --json 2>/dev/null |
        docker exec -i "$1" python -c 'import json, sys; print(len(json.load(sys.stdin)["connections"]))' 2>/dev/null || true
}

is_swap() { inspect "$1" '{{range .Config.Env}}{{println .}}{{end}}' | grep -qx 'VRAMBLK_MODE=swap'; }

# Ends here if container $1 has clients that $2 would cut off.
refuse_with_clients() {
    attached=$(clients "$1")
    if [ -z "$attached" ] && is_swap "$1"; then
        fail 1 "the swap server does not say whether clients are attached; $2 refused; type: vramblk-swap status"
    elif [ "${attached:-0}" != 0 ] && is_swap "$1"; then
        fail 1 "clients are attached ($attached) and swap may be live; $2 refused; type first: sudo vramblk-swap down"
    elif [ "${attached:-0}" != 0 ]; then
        fail 1 "clients are attached ($attached); $2 refused; detach them (nbd-client -d), or type: make down"
    fi
}

# No answer must not be taken for a server without swap.
require_state() {
    if [ -n "$1" ] && [ -z "$(state_of "$1")" ]; then
        fail 1 "docker does not tell the state of the container, so it is left alone; type: docker inspect $1"
    fi
}

# Would `compose up` replace container $1?
outdated() {
    image=$(compose config | sed -n 's/^    image: //p' | head -n 1)
    [ "$(inspect "$1" '{{.Image}}')" = "$(docker image inspect --format '{{.Id}}' "$image")" ] || return 0
    hash=$(compose config --hash vramblk 2>/dev/null | awk '{ print $2 }')
    [ "$(inspect "$1" '{{index .Config.Labels "com.docker.compose.config-hash"}}')" != "$hash" ]
}

# The host's side of swap, which needs root; what this server has elsewhere or otherwise than usual is told.
host_script() {
    run_dir=$(setting VRAMBLK_RUN_DIR)
    export_name=$(setting VRAMBLK_EXPORT_NAME)
    set -- host/vramblk-swap "$1"
    [ -z "$export_name" ] || set -- "VRAMBLK_EXPORT_NAME=$export_name" "$@"
    [ -z "$run_dir" ] ||
        set -- "VRAMBLK_NBD_SOCKET=$run_dir/nbd.sock" "VRAMBLK_STATUS_SOCKET=$run_dir/status.sock" "$@"
    case $1 in VRAMBLK_*) set -- env "$@" ;; esac
    as_root "$@"
}

as_root() {
    [ "$(id -u)" = 0 ] || set -- sudo "$@"
    say "+ $*"
    "$@"
}

# --- the four commands -----------------------------------------------------------------------------------------------

wait_until_healthy() {
    began=$(date +%s)
    while :; do
        state=$(inspect "$1" '{{.State.Status}} {{.RestartCount}}')
        # The container's own check may be minutes apart in swap mode: ask directly.
        case $state in
            'running '*) if docker exec "$1" vramblk status --health >/dev/null 2>&1; then return 0; fi ;;
        esac
        # Without an answer of docker nothing is known, least of all a reason to stop the server.
        case $state in '' | 'running 0') ;; *) break ;; esac
        [ $(($(date +%s) - began)) -lt "$patience_s" ] || say_still_starting "$1"
        sleep 1
    done
    line=$(docker logs --tail 1 "$1" 2>&1 || true)
    printf '%s\n' "${line:-the server has written nothing; its container: $state}" >&2
    stop_what_was_started "$1" 'the server does not become healthy'
    fail 1 'the server does not become healthy; the container is stopped; more: make logs'
}

# It may only be slow, and whoever waits for it is not helped by its end.
say_still_starting() {
    docker exec "$1" vramblk status --health 2>&1 | tail -n 1 >&2 || true
    fail 1 "the server is still starting after $patience_s s and is left running; see make logs; to wait longer:" \
        "VRAMBLK_UP_TIMEOUT=$((patience_s * 5 + 60)) make up${SWAP:+ SWAP=$SWAP}"
}

# Container $1 has been there before: a swap server whose swap may be live, which nothing here may stop.
stop_what_was_started() {
    if [ -n "$1" ] && [ "$1" = "$old" ] && is_swap "$1"; then
        fail 1 "$2; it was running before and swap may be live, so it is left alone; see: sudo host/vramblk-swap status"
    fi
    compose stop >/dev/null 2>&1 || true
}

say_how_to_connect() {
    export_name=$(setting VRAMBLK_EXPORT_NAME)
    export_name=${export_name:-vram}
    socket=$(setting VRAMBLK_RUN_DIR)
    socket=${socket:-/run/vramblk}/nbd.sock
    nbd_port=$(setting VRAMBLK_NBD_PORT)
    metrics_port=$(setting VRAMBLK_METRICS_PORT)
    say '' 'vramblk is healthy.'
    case $files in
        *swap*)
            say '  swap             sudo host/vramblk-swap up, status, down'
            ;;
        *)
            say "  look at it       nbdinfo nbd://127.0.0.1:${nbd_port:-10809}/$export_name"
            say "  a block device   sudo nbd-client -unix $socket -N $export_name -b 4096 /dev/nbd0"
            say "  metrics, status  http://127.0.0.1:${metrics_port:-10810}/"
            ;;
    esac
    say "  logs, stop       make logs, make down"
    if on_cpu; then
        say '' '*******************************************************************************' \
            '**  WARNING: no GPU is used. The export lies in this host'\''s main memory.     **' \
            '**  Good for a first try; it gains nothing over tmpfs.                       **' \
            '*******************************************************************************'
    fi
}

up() {
    trap tidy EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    patience_s=$(setting VRAMBLK_UP_TIMEOUT)
    patience_s=${patience_s:-120}
    case $patience_s in *[!0-9]* | 0?*) fail 2 "VRAMBLK_UP_TIMEOUT=$patience_s: allowed is a whole number of seconds" ;; esac
    old=$(live_container)
    require_state "$old"
    choose_files
    build
    old=$(live_container)
    if running "$old" && outdated "$old"; then refuse_with_clients "$old" 'replacing the container'; fi
    keep_choice
    say "+ $compose_command up -d"
    log=$(mktemp "${TMPDIR:-/tmp}/vramblk-up.XXXXXX")
    if ! compose up -d --no-build >"$log" 2>&1; then
        cat "$log" >&2
        stop_what_was_started "$(container)" 'the container cannot be started anew'
        fail 1 'the container cannot be started'
    fi
    wait_until_healthy "$(container)"
    if [ "${SWAP:-}" = 1 ]; then
        host_script up || fail 1 'the server is healthy, but swap is not on; see above, then: sudo host/vramblk-swap up'
        start_unit
    fi
    say_how_to_connect
}

# Only while it is active does the unit take swap off before dockerd or the machine stops. It finds swap on and changes
# nothing. It is not what turns swap on here: it does not know .env, and tells the reason of a failure to the journal.
start_unit() {
    systemctl is-enabled --quiet "$swap_unit" 2>/dev/null && ! systemctl is-active --quiet "$swap_unit" || return 0
    as_root systemctl start "$swap_unit" ||
        fail 1 "swap is on, but $swap_unit does not start, which takes it off before Docker stops; see: systemctl status" \
            "$swap_unit"
}

# The unit ends after swap: left active, it would wait for the container at the next restart of dockerd.
take_swap_off() {
    host_script down || fail 1 'swap cannot be taken off, so the container is not stopped; see: sudo host/vramblk-swap status'
    if systemctl is-active --quiet "$swap_unit" 2>/dev/null; then
        as_root systemctl stop "$swap_unit" ||
            fail 1 "swap is off, but $swap_unit does not stop; see: systemctl status $swap_unit"
    fi
}

down() {
    # The host's own records come first: docker was seen to give no answer where memory is short, and that must not be
    # taken for a server without swap.
    if [ -s "$host/run/vramblk-swap/records" ]; then take_swap_off; fi
    old=$(container)
    require_state "$old"
    if running "$old" && is_swap "$old"; then
        if [ "$(clients "$old")" != 0 ]; then take_swap_off; fi
        refuse_with_clients "$old" 'stopping'
    fi
    compose down --remove-orphans
    run_dir=$(setting VRAMBLK_RUN_DIR)
    rmdir "${run_dir:-/run/vramblk}" 2>/dev/null || true
}

status() {
    compose ps -a
    current=$(container)
    [ -n "$current" ] || fail 1 'the server is not running; type: make up'
    running "$current" ||
        fail 1 "the server is not running, its container is $(state_of "$current"); make logs shows why"
    docker exec "$current" vramblk status
}

logs() {
    if [ -z "$(container)" ]; then
        # Says it if it is Compose that fails.
        compose ps -q >/dev/null
        fail 1 'there is no container, so there is no log; type: make up'
    fi
    compose logs --tail=200 --follow
}

find_docker
case ${1:-} in
    up) up ;;
    down) down ;;
    logs) logs ;;
    status) status ;;
    *) fail 2 'usage: deploy/up.sh up|down|logs|status' ;;
esac
