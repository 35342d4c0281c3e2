#!/bin/sh
# The container's life, behind `make up`, `make down`, `make logs` and `make status`.
#
#   deploy/up.sh up|down|logs|status
#
# With SWAP=1 `up` starts the server in swap mode and then turns swap on; `down` takes swap off first, if it is on.
# `up` chooses the compose files for this host's GPU, keeps the choice in .env, builds, starts, waits until the server
# is healthy and says how to connect. What .env or the environment already says is never changed.
# Exit status: 1 the server does not become healthy, or clients are attached; 2 a setting contradicts another;
# 78 something that this host lacks.
set -eu

cd "$(dirname "$0")/.."
base_image=debian:trixie-slim
healthy_within_s=120
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

# Writes NAME=VALUE to .env and shows it, unless NAME has a value already.
remember() {
    if [ -n "$(setting "$1")" ]; then
        say "  $1=$(setting "$1")   (as set already)"
        return 0
    fi
    if [ -s .env ] && [ -n "$(tail -c 1 .env)" ]; then echo >>.env; fi
    printf '%s=%s\n' "$1" "$2" >>.env
    say "  $1=$2   (written to .env)"
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

container() { compose ps -q vramblk 2>/dev/null | head -n 1; }

inspect() { docker inspect --format "$2" "$1" 2>/dev/null || true; }

running() { [ -n "$1" ] && [ "$(inspect "$1" '{{.State.Status}}')" = running ]; }

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
    case ${SWAP:-} in
        '' | 0) ;;
        1) export VRAMBLK_MODE=swap ;;
        *) fail 2 "SWAP=$SWAP: allowed are 1 and nothing" ;;
    esac
    mode=$(setting VRAMBLK_MODE)
    files=$(setting COMPOSE_FILE)
    if [ -z "$files" ]; then
        choose_vendor
        say "GPU on this host: $vendor"
        files=compose.yaml${vendor_file:+:$vendor_file}
        case $(setting VRAMBLK_TLS) in '' | off) ;; *) files=$files:compose.tls.yaml ;; esac
        [ "$mode" != swap ] || files=$files:compose.swap.yaml
        check_swap
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
    else
        say "  COMPOSE_FILE=$files   (as set already; take it out of .env to have it chosen anew)"
        check_swap
    fi
    export COMPOSE_FILE="$files"
}

# Memory of this host is what would be served.
on_cpu() {
    case $files in *nvidia* | *rocm* | *intel*) return 1 ;; esac
    ! setting VRAMBLK_DEVICE | grep -q '^map:'
}

check_swap() {
    case $files in
        *compose.swap.yaml*) ;;
        *)
            [ "$mode" != swap ] ||
                fail 2 "VRAMBLK_MODE=swap, but COMPOSE_FILE=$files lacks compose.swap.yaml; add it there"
            return 0
            ;;
    esac
    if on_cpu; then
        fail 78 'swap mode needs a GPU, and this host shows none: swapping to CPU memory would only take memory away'
    fi
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
    log=$(mktemp)
    if ! compose build >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        fail 1 'the image cannot be built'
    fi
    rm -f "$log"
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
    [ "$(id -u)" = 0 ] || set -- sudo "$@"
    say "+ $*"
    "$@"
}

# --- the four commands -----------------------------------------------------------------------------------------------

wait_until_healthy() {
    waited_s=0
    while [ "$waited_s" -lt "$healthy_within_s" ]; do
        state=$(inspect "$1" '{{.State.Status}} {{.RestartCount}}')
        if [ "$state" != 'running 0' ]; then break; fi
        # The container's own check may be minutes apart in swap mode: ask directly.
        if docker exec "$1" vramblk status --health >/dev/null 2>&1; then return 0; fi
        sleep 1
        waited_s=$((waited_s + 1))
    done
    line=$(docker logs --tail 1 "$1" 2>&1)
    printf '%s\n' "$line" >&2
    stop_what_was_started "$1" 'the server does not become healthy'
    fail 1 'the server does not become healthy; the container is stopped; more: make logs'
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
            '**  WARNING: no GPU is used. The export lies in this host'\''s main memory.      **' \
            '**  Good for a first try; it gains nothing over tmpfs.                       **' \
            '*******************************************************************************'
    fi
}

up() {
    choose_files
    build
    old=$(container)
    if running "$old" && outdated "$old"; then refuse_with_clients "$old" 'replacing the container'; fi
    say "+ $compose_command up -d"
    log=$(mktemp)
    if ! compose up -d --no-build >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        stop_what_was_started "$(container)" 'the container cannot be started anew'
        fail 1 'the container cannot be started'
    fi
    rm -f "$log"
    wait_until_healthy "$(container)"
    if [ "${SWAP:-}" = 1 ]; then
        host_script up || fail 1 'the server is healthy, but swap is not on; see above, then: sudo host/vramblk-swap up'
    fi
    say_how_to_connect
}

take_swap_off() {
    host_script down || fail 1 'swap cannot be taken off, so the container is not stopped; see: sudo host/vramblk-swap status'
}

down() {
    # The host's own records come first: docker was seen to give no answer where memory is short, and that must not be
    # taken for a server without swap.
    if [ -s "$host/run/vramblk-swap/records" ]; then take_swap_off; fi
    old=$(container)
    if [ -n "$old" ] && [ -z "$(inspect "$old" '{{.State.Status}}')" ]; then
        fail 1 "docker does not tell the state of the container, so it is not stopped; type: docker inspect $old"
    fi
    if running "$old" && is_swap "$old"; then
        if [ "$(clients "$old")" != 0 ]; then take_swap_off; fi
        refuse_with_clients "$old" 'stopping'
    fi
    compose down --remove-orphans
    run_dir=$(setting VRAMBLK_RUN_DIR)
    rmdir "${run_dir:-/run/vramblk}" 2>/dev/null || true
}

status() {
    compose ps
    current=$(container)
    running "$current" || fail 1 'the server is not running; type: make up'
    docker exec "$current" vramblk status
}

find_docker
case ${1:-} in
    up) up ;;
    down) down ;;
    logs) compose logs --tail=200 --follow ;;
    status) status ;;
    *) fail 2 'usage: deploy/up.sh up|down|logs|status' ;;
esac
