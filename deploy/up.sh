#!/bin/sh
# The container's life, behind `make up`, `make down`, `make logs` and `make status`; monitoring beside it.
#
#   deploy/up.sh up|down|logs|status|monitoring|exporter|monitoring-down
#
# With SWAP=1 `up` starts the server in swap mode, then turns swap on and starts vramblk-swap.service, if that is
# enabled; `down` takes swap off first, if it is on.
# `up` chooses the compose files for this host's GPU, keeps the choice in .env, builds, starts, waits until the server
# is healthy and says how to connect. What the user wrote to .env or the environment is never changed: the choice that
# `up` made itself stands below a mark that repeats it, and only while the two are the same may `up` change it.
# What would lose data or cut off clients is refused; FORCE=1 does it all the same, but never to live swap.
# Exit status: 1 the server does not become healthy, a port is taken, or something would be lost; 2 a setting contradicts
# another; 78 something that this host lacks.
set -eu

cd "$(dirname "$0")/.."
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
    case " $asked_for " in *" $1 "*) ;; *) fail 1 "$1 is not in asked_for; a fault of up.sh" ;; esac
    if printenv "$1" >/dev/null; then
        printenv "$1"
    else
        printf '%s\n' "$dotenv" | sed -n "s/^$1=//p"
    fi
}

# What .env means is Compose's to say, since its grammar differs between its versions: comments, `export`, quotes,
# variables in variables. It is asked once, for every name that is looked up here.
asked_for='COMPOSE_FILE COMPOSE_PROJECT_NAME RUSTICL_ENABLE VRAMBLK_BASE VRAMBLK_DEVICE VRAMBLK_EXPORTER_PORT VRAMBLK_EXPORT_NAME
    VRAMBLK_GRAFANA_PORT VRAMBLK_IMAGE VRAMBLK_LISTEN_ADDR VRAMBLK_METRICS_PORT VRAMBLK_METRICS_TOKEN VRAMBLK_METRICS_TOKEN_FILE
    VRAMBLK_MODE VRAMBLK_MONITORING_TOKEN_PATH VRAMBLK_NBD_PORT VRAMBLK_PROMETHEUS_PORT VRAMBLK_RENDER_GID
    VRAMBLK_RUN_DIR VRAMBLK_TLS VRAMBLK_TLS_DIR VRAMBLK_TLS_VERIFY_PEER VRAMBLK_UP_TIMEOUT VRAMBLK_VIDEO_GID'
asked_for=$(printf '%s' "$asked_for" | tr -s '\n ' '  ')
dotenv=''

# Sets `dotenv` to lines NAME=VALUE.
read_dotenv() {
    [ -f .env ] || return 0
    answer=$(ask_compose 2>&1) ||
        fail 2 "Compose cannot read .env: $(printf '%s\n' "$answer" | tail -n 1); correct .env"
    dotenv=$(printf '%s\n' "$answer" | plain_values)
    # Where .env does not name it, Compose v2 puts a name of its own in.
    grep -q '^[^#]*COMPOSE_PROJECT_NAME' .env ||
        dotenv=$(printf '%s\n' "$dotenv" | sed 's/^COMPOSE_PROJECT_NAME=.*/COMPOSE_PROJECT_NAME=/')
    for each in $asked_for; do
        case "
$dotenv" in
            *"
$each="*) ;;
            *) fail 2 "Compose does not say what $each is in .env; write it there as one line of plain text" ;;
        esac
    done
}

# The brackets have Compose quote every value in one way.
ask_compose() {
    {
        printf 'services:\n  ask:\n    image: none\n    environment:\n'
        for each in $asked_for; do
            # shellcheck disable=SC2016  # Compose is to put the value in
            printf '      %s: "[${%s-}]"\n' "$each" "$each"
        done
    } | compose -f - config
}

# NAME: '[VALUE]' to NAME=VALUE; a long value stands on several lines, and YAML and Compose double quotes and dollars.
plain_values() {
    awk '
        open { sub(/^ +/, ""); value = value " " $0 }
        !open && match($0, /^ *[A-Z_]+: \047\[/) {
            name = substr($0, 1, RLENGTH - 4)
            sub(/^ +/, "", name)
            value = substr($0, RLENGTH + 1)
            open = 1
        }
        open && value ~ /\]\047$/ {
            value = substr(value, 1, length(value) - 2)
            gsub(/\047\047/, "\047", value)
            gsub(/\$\$/, "$", value)
            print name "=" value
            open = 0
        }'
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

# Without TLS a demand for clients' certificates is refused, so what `up` wrote itself goes when TLS is turned off.
tls_mark='# make up wrote the next line, which holds while TLS is on: '

without_kept_for_tls() {
    awk -v mark="$tls_mark" '
        index($0, mark) == 1 { kept = substr($0, length(mark) + 1); next }
        kept == "" || $0 != kept { print }
        { kept = "" }'
}

# Writes to .env what was chosen, and shows it. Only once nothing can be refused any more: a choice that was not
# carried out would otherwise decide about the next `up`.
write_kept() {
    [ -n "$to_keep" ] || return 0
    case $to_keep in COMPOSE_FILE=*) anew=yes ;; *) anew='' ;; esac
    if [ -n "$anew" ] && [ -f .env ] && grep -qF "$mark" .env; then
        others=$(grep -vF "$mark" .env || true)
        [ -z "$chosen_before" ] || others=$(printf '%s\n' "$others" | grep -vxF "COMPOSE_FILE=$chosen_before" || true)
        case $files in *compose.tls.yaml*) ;; *) others=$(printf '%s\n' "$others" | without_kept_for_tls) ;; esac
        printf '%s' "$others" >.env
    fi
    if [ -s .env ] && [ -n "$(tail -c 1 .env)" ]; then echo >>.env; fi
    [ -z "$anew" ] || printf '%s\n' "$mark$files" >>.env
    printf '%s' "$to_keep" >>.env
    printf '%s' "$to_keep" | sed 's/^\(.*\)$/  \1   (written to .env)/'
}

# What limits who is served what: typed once, it holds for the next `up` too, which would otherwise serve more.
protections='VRAMBLK_CONFIG VRAMBLK_LISTEN_ADDR VRAMBLK_METRICS_ADDR VRAMBLK_METRICS_TOKEN_FILE VRAMBLK_READ_ONLY
    VRAMBLK_UNIQUE_NAMES VRAMBLK_VERIFY_READS'
# The same while compose.tls.yaml is chosen, which alone passes them on.
tls_protections='VRAMBLK_TLS_DIR VRAMBLK_TLS_VERIFY_PEER'

keep_protections() {
    case $files in *compose.tls.yaml*) ;; *) tls_protections='' ;; esac
    for each in $protections $tls_protections; do keep "$each"; done
    keep_that_a_token_is_asked_for
}

in_dotenv() { grep -Eq "^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=" .env 2>/dev/null; }

# The line of .env may be an earlier `up`'s own, and serve more than what was typed now.
say_that_it_is_not_kept() {
    stands=$(sed -nE "s/^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=[[:space:]]*//p" .env | tail -n 1)
    case $stands in "$2" | "'$2'" | "\"$2\"") ;; *) say "  $1=$2 holds for this time only; .env says otherwise" ;; esac
}

# Takes NAME of the environment for .env, unless a line for it is there.
keep() {
    value=$(printenv "$1") || return 0
    if in_dotenv "$1"; then
        say_that_it_is_not_kept "$1" "$value"
        return 0
    fi
    # Set to nothing, an address leaves the decision to a YAML file.
    case $1:$value in *_ADDR:*) ;; *: | *:off | *:false | *:no | *:0) return 0 ;; esac
    case $value in
        # Compose 1.29 replaces ${NAME} and halves backslashes between single quotes too.
        *\'* | *\\* | *\$* | *"
"*) say "  $1 is not remembered, as it holds a quote, a backslash, a dollar or a line break; write it to .env" ;;
        *[!A-Za-z0-9/._-]*) to_keep="$to_keep$1='$value'
" ;;
        *)
            [ "$1" != VRAMBLK_TLS_VERIFY_PEER ] || to_keep="$to_keep$tls_mark$1=$value
"
            to_keep="$to_keep$1=$value
"
            ;;
    esac
}

# A secret is not written to a file that nobody asked for. That there was one is, and check_token looks at it.
token_mark='# make up: the metrics ask for a token. Delete this line to have them without one.'

keep_that_a_token_is_asked_for() {
    [ -n "$(printenv VRAMBLK_METRICS_TOKEN)" ] && ! in_dotenv VRAMBLK_METRICS_TOKEN || return 0
    ! grep -qxF "$token_mark" .env 2>/dev/null || return 0
    to_keep="$to_keep$token_mark
"
}

check_token() {
    # Without a network nobody can read them.
    case ${files:-} in *compose.swap.yaml*) return 0 ;; esac
    grep -qxF "$token_mark" .env 2>/dev/null || return 0
    [ -z "$(setting VRAMBLK_METRICS_TOKEN)$(setting VRAMBLK_METRICS_TOKEN_FILE)" ] || return 0
    fail 2 'VRAMBLK_METRICS_TOKEN was set once and is not now, so everybody could read the metrics; set it again, best in' \
        '.env; to do without it, delete the line about it from .env'
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
# Ends the script if Compose fails: that must not be taken for "there is none".
container() {
    if ! listed=$(compose ps -a -q vramblk 2>/dev/null); then
        why=$(compose ps -a -q vramblk 2>&1 >/dev/null | tail -n 1) || true
        # An early Compose v2 calls a service without a container so.
        case $why in *'no such service'*) return 0 ;; esac
        fail 1 "Compose does not list the server's container, so nothing is touched: $why"
    fi
    for each in $listed; do
        if [ "$(inspect "$each" '{{index .Config.Labels "com.docker.compose.oneoff"}}')" != True ]; then
            echo "$each"
            return 0
        fi
    done
}

state_of() { inspect "$1" '{{.State.Status}}'; }

# --- what a container answers, which may be hostile -------------------------------------------------------------------

# What it wrote could hold commands for the terminal.
printable() { LC_ALL=C tr -c '\n -~' '?'; }

first_mebibyte() { head -c 1048576 | printable; }

first_line() { head -c 1024 | printable | head -n 1; }

# Runs docker with arguments that have it wait for a container, for at most thirty seconds. Not in the background, where
# Ctrl+C would not reach it: GNU's timeout takes an option for that, others need none.
docker_in_time() {
    foreground=--foreground
    timeout "$foreground" 1 true 2>/dev/null || foreground=''
    timeout ${foreground:+"$foreground"} -k 5 30 docker "$@"
}

# Prints through filter $1 what the rest, a command, writes; has its exit status.
show_through() {
    filter=$1
    shift
    {
        shown=$({ { code=0 && { "$@" 2>&1 3>&- 4>&- || code=$?; } && echo "$code" >&3; } | "$filter" >&4; } 3>&1)
    } 4>&1
    return "$shown"
}

# One line: what Python expression $2 makes of the status document of the server in container $1; empty if it does not
# answer.
ask_server() {
    docker_in_time exec "$1" vramblk status --json 2>/dev/null | head -c 16777216 |
        docker_in_time exec -i "$1" python -c "import json, sys
status = json.load(sys.stdin)
print($2)" 2>/dev/null | first_line
}

running() { [ -n "$1" ] && [ "$(state_of "$1")" = running ]; }

# Has container $1 a process, and so memory? A paused one has, one that waits to be started again has not.
lives() { case $(state_of "$1") in created | exited | dead | restarting) return 1 ;; *) [ -n "$1" ] ;; esac; }

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
        vendor=NVIDIA
        if command -v nvidia-container-runtime-hook >/dev/null 2>&1; then
            vendor_file=compose.nvidia.yaml
        elif docker info --format '{{json .Runtimes}}' | grep -q '"nvidia"'; then
            vendor_file=compose.nvidia-runtime.yaml
        else
            fail 78 'there is an NVIDIA GPU, but Docker cannot pass it on; type: sudo apt-get install' \
                'nvidia-container-toolkit && sudo nvidia-ctk runtime configure && sudo systemctl restart docker'
        fi
    elif [ -e "$host/dev/kfd" ]; then
        vendor=AMD vendor_file=compose.rocm.yaml
    elif drm_vendor 0x8086; then
        vendor=Intel vendor_file=compose.intel.yaml rusticl=iris
    elif drm_vendor 0x1002; then
        vendor='AMD (without /dev/kfd)' vendor_file=compose.intel.yaml rusticl=radeonsi
    else
        vendor=none vendor_file=
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
    check_token
    check_ports
    check_run_dir
}

# Another project's server in the same directory has the sockets, and would answer when this one is asked for its health.
check_run_dir() {
    dir=$(setting VRAMBLK_RUN_DIR)
    dir=${dir:-/run/vramblk}
    for each in $(docker ps -q --no-trunc --filter label=com.docker.compose.service=vramblk 2>/dev/null); do
        [ "$each" != "$old" ] || continue
        source=$(inspect "$each" '{{range .Mounts}}{{if eq .Destination "/run/vramblk"}}{{.Source}}{{end}}{{end}}')
        [ "$source" != "$dir" ] ||
            fail 1 "the server of another project has its sockets in $dir (container $(inspect "$each" '{{.Name}}'));" \
                "end it, or write VRAMBLK_RUN_DIR=$dir-2 to .env"
    done
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

verifies_peers() {
    case $(setting VRAMBLK_TLS_VERIFY_PEER | tr '[:upper:]' '[:lower:]') in '' | off | false | no | 0) return 1 ;; esac
}

check_tls() {
    case $files in
        *compose.tls.yaml*) ;;
        *)
            [ "$tls" != off ] || return 0
            # A file of the user's own may bring keys in its own way.
            printf '%s:\n' "$files" | grep -Eqx '(compose(\.nvidia|\.nvidia-runtime|\.rocm|\.intel|\.swap)?\.yaml:)+' ||
                return 0
            if [ -z "$tls" ]; then
                verifies_peers || return 0
                fail 2 'VRAMBLK_TLS_VERIFY_PEER is set, but TLS is off, so that it would be ignored; set VRAMBLK_TLS=require' \
                    'too, or delete it (also from .env)'
            fi
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
                'docs/guides/containers.md says what belongs in it'
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
    own=''
    if [ -n "$old" ]; then
        own=$(published "$old")
        # It may be in the host's network, or docker does not answer.
        [ -n "$own" ] || return 0
    fi
    found='' instead=''
    for each in VRAMBLK_NBD_PORT:10809 VRAMBLK_METRICS_PORT:10810; do
        port=$(setting "${each%:*}")
        port=${port:-${each#*:}}
        # Not one number (Compose takes ranges too): Compose's to judge.
        case $port in *[!0-9]* | 0*) continue ;; esac
        if printf '%s\n' "$own" | grep -q " $port\$"; then continue; fi
        if taken "$port"; then
            found="${found:+$found, }port $port is taken"
            instead="$instead${each%:*}=$((port + 10)) "
        fi
    done
    [ -z "$found" ] ||
        fail 1 "$found; sudo ss -ltnp shows by whom, often it is make run; end it, or type: ${instead}make up"
}

# --- build -----------------------------------------------------------------------------------------------------------

# What the build starts from. An image of a registry is named by its digest: the build then takes the one that is here,
# and the image's label names it.
make_base() {
    base_image=$(setting VRAMBLK_BASE)
    base_image=${base_image:-debian:trixie-slim}
    docker image inspect "$base_image" >/dev/null 2>&1 || get_base
    digest=$(docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$base_image" | grep -m 1 '@sha256:') ||
        return 0 # made here
    VRAMBLK_BASE=$digest VRAMBLK_BASE_DIGEST=${digest#*@}
    export VRAMBLK_BASE VRAMBLK_BASE_DIGEST
    say "+ the base is $digest"
}

get_base() {
    say "+ docker pull $base_image"
    docker pull -q "$base_image" 2>/dev/null && return 0
    case $base_image in
    *@*) fail 1 "$base_image cannot be pulled, and no other image has its digest; correct VRAMBLK_BASE or leave it out" ;;
    esac
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

# What the server in container $1 would lose, two numbers: its clients, and the bytes that its exports hold; empty if
# it does not answer.
holds() {
    ask_server "$1" 'len(status["connections"]), sum(export["written_bytes"] for export in status.get("exports", []))' |
        grep -Ex '[0-9]{1,9} [0-9]{1,20}' || true
}

# The name of the first export of container $1, as its server reports it: a suffix or a YAML file may decide about it.
# Users copy it to a root shell: empty if it is not plain.
export_of() { ask_server "$1" 'status["exports"][0]["name"]' | grep -Ex '[A-Za-z0-9_][A-Za-z0-9._-]*' || true; }

environment_of() { inspect "$1" '{{range .Config.Env}}{{println .}}{{end}}'; }

# Ends the script if docker does not answer, which must not be taken for "no swap": every container has an environment.
is_swap() {
    variables=$(environment_of "$1")
    [ -n "$variables" ] || fail 1 "docker does not tell the mode of the container, so it is left alone; type: docker inspect $1"
    printf '%s\n' "$variables" | grep -qx 'VRAMBLK_MODE=swap' && return 0
    # A YAML file may decide about the mode.
    printf '%s\n' "$variables" | grep -q '^VRAMBLK_CONFIG=.' && [ "$(mode_of "$1")" = swap ]
}

# As the server in container $1 reports it; empty if it does not answer.
mode_of() { ask_server "$1" 'status.get("mode", "")'; }

forced() {
    case ${FORCE:-} in
        '' | 0) return 1 ;;
        1) return 0 ;;
        *) fail 2 "FORCE=$FORCE: allowed are 1 and nothing" ;;
    esac
}

# Ends here if $2 of container $1 cuts off clients, whom FORCE=1 gives up, or endangers live swap, which nothing may.
# $held is what the container holds, $3 the command that $2 belongs to.
refuse_with_clients() {
    attached=${held% *}
    if [ -z "$held" ] && is_swap "$1"; then
        fail 1 "the swap server does not say whether clients are attached; $2 refused; type: vramblk-swap status"
    elif [ "${attached:-0}" != 0 ] && is_swap "$1"; then
        fail 1 "clients are attached ($attached) and swap may be live; $2 refused; type first: sudo vramblk-swap down"
    elif [ "${attached:-0}" != 0 ] && ! forced; then
        fail 1 "clients are attached ($attached); $2 refused; detach them (nbd-client -d); to cut them off:" \
            "make $3 FORCE=1"
    fi
}

# Ends here if replacing container $1 loses anything. $changes says what is different.
refuse_to_lose() {
    held=$(holds "$1")
    refuse_with_clients "$1" "replacing the container ($changes)" up
    forced && return 0
    [ -n "$held" ] ||
        fail 1 "the running server does not answer, so it may hold data; replacing it ($changes) refused; to lose what" \
            'it holds: make up FORCE=1'
    written=${held#* }
    [ "$written" = 0 ] ||
        fail 1 "the running server holds $(size "$written") of data, which its replacement loses ($changes); to keep it," \
            'undo the change; to lose it: make up FORCE=1'
}

# Ends here if stopping a scratch server loses anything; $held is what it holds.
refuse_to_stop() {
    forced && return 0
    [ -n "$held" ] ||
        fail 1 'the running server does not answer, so it may hold data; stopping refused; see make logs; to lose what it' \
            'holds: make down FORCE=1'
    written=${held#* }
    [ "$written" = 0 ] ||
        fail 1 "the running server holds $(size "$written") of data, which ends with it; stopping refused; copy it first" \
            '(nbdcopy); to lose it: make down FORCE=1'
}

# Sets `held` to what container $1 holds. A server that was just started may answer a little later, or end.
ask_what_it_holds() {
    for each in 1 2 3; do
        held=$(holds "$1")
        if [ -n "$held" ] || ! lives "$1"; then return 0; fi
        sleep 1
    done
}

# $1 bytes for people.
size() {
    awk -v size="$1" 'BEGIN {
        split("B KiB MiB GiB TiB", units)
        for (n = 1; size >= 1000 && n < 5; n++) size /= 1024
        printf(size == int(size) || size >= 100 ? "%.0f %s\n" : "%.1f %s\n", size, units[n])
    }'
}

# How the container that `compose up` would make differs from container $1, on one line.
changes_to() {
    {
        environment_of "$1" | sed 's/^/old /'
        compose config | sed 's/^/new /'
    } | awk '
        function shown(value) { return value == "" ? "unset" : value }
        /^old VRAMBLK_/ { name = substr($0, 5); sub(/=.*/, "", name); old[name] = substr($0, length(name) + 6) }
        /^new   [^ ]/ { service = $2 }
        /^new     [^ ]/ { block = $2 }
        /^new       VRAMBLK_/ && service == "vramblk:" && block == "environment:" {
            name = $2; sub(/:$/, "", name)
            value = $0; sub(/^[^:]*: */, "", value); sub(/^null$/, "", value)
            if (value ~ /^".*"$/ || value ~ /^\047.*\047$/) value = substr(value, 2, length(value) - 2)
            new[name] = value; if (!(name in old)) old[name] = ""
        }
        END {
            for (name in old) if (old[name] != new[name])
                print name (name ~ /TOKEN/ ? "" : ": " shown(old[name]) " becomes " shown(new[name]))
        }' | sort
    change_of_port "$1" VRAMBLK_NBD_PORT 10809
    change_of_port "$1" VRAMBLK_METRICS_PORT 10810
    [ "$(inspect "$1" '{{.Image}}')" = "$(new_image)" ] || echo 'another image'
}

# The ports of the host that container $1 has, on lines CONTAINER-PORT HOST-PORT.
published() {
    # shellcheck disable=SC2016  # a template of docker's
    inspect "$1" '{{range $port, $bound := .NetworkSettings.Ports}}{{range $bound}}{{$port}} {{.HostPort}}{{println}}{{end}}{{end}}'
}

# Where container $1 has port $3 on another port of the host than $2 asks for.
change_of_port() {
    was=$(published "$1" | sed -n "s|^$3/tcp ||p" | head -n 1)
    will=$(setting "$2")
    case $was:${will:=$3} in "$will:$will" | :* | *-*) ;; *) echo "$2: $was becomes $will" ;; esac
}

# No answer must not be taken for a server without swap.
require_state() {
    if [ -n "$1" ] && [ -z "$(state_of "$1")" ]; then
        fail 1 "docker does not tell the state of the container, so it is left alone; type: docker inspect $1"
    fi
}

# Of the service: files of the user's own may bring others.
new_image() {
    docker image inspect --format '{{.Id}}' "$(compose config | awk '
        /^[^ ]/ { top = $1 }
        /^  [^ ]/ { service = $1 }
        top == "services:" && service == "vramblk:" && /^    image: / { gsub(/["\047]/, "", $2); print $2 }')"
}

# Would `compose up` replace container $1?
outdated() {
    [ "$(inspect "$1" '{{.Image}}')" = "$(new_image)" ] || return 0
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
            'running '*) if docker_in_time exec "$1" vramblk status --health >/dev/null 2>&1; then return 0; fi ;;
        esac
        # Without an answer of docker nothing is known, least of all a reason to stop the server.
        case $state in '' | 'running 0') ;; *) break ;; esac
        [ $(($(date +%s) - began)) -lt "$patience_s" ] || say_still_starting "$1"
        sleep 1
    done
    line=$(docker_in_time logs --tail 1 "$1" 2>&1 | first_line)
    printf '%s\n' "${line:-the server has written nothing; its container: $state}" >&2
    stop_what_was_started "$1" 'the server does not become healthy'
    fail 1 'the server does not become healthy; the container is stopped; more: make logs'
}

# It may only be slow, and whoever waits for it is not helped by its end.
say_still_starting() {
    docker_in_time exec "$1" vramblk status --health 2>&1 | first_mebibyte | tail -n 1 | first_line >&2
    fail 1 "the server is still starting after $patience_s s and is left running; see make logs; to wait longer:" \
        "VRAMBLK_UP_TIMEOUT=$((patience_s * 5 + 60)) make up${SWAP:+ SWAP=$SWAP}"
}

# If container $1 has been there before, it is left alone: a swap server's swap may be live, and any other may hold data,
# whether it answers or not.
stop_what_was_started() {
    if [ -n "$1" ] && [ "$1" = "$old" ] && is_swap "$1"; then
        fail 1 "$2; it was running before and swap may be live, so it is left alone; see: sudo host/vramblk-swap status"
    fi
    if [ -n "$1" ] && [ "$1" = "$old" ] && lives "$1"; then
        fail 1 "$2; it was running before and may hold data, so it is left alone; see make logs; to stop it: make down"
    fi
    compose stop >/dev/null 2>&1 || true
}

# on or require, as compose.tls.yaml or a file of the user's own will set it; empty without TLS.
tls_mode() {
    wanted=$(setting VRAMBLK_TLS)
    case $files in *compose.tls.yaml*) wanted=${wanted:-require} ;; esac
    [ "$wanted" = off ] || echo "$wanted"
}

# Clients compare the certificate with the name that they connect to. Keys of the user's own file are not known here.
say_how_to_connect_with_tls() {
    case $files in *compose.tls.yaml*) ;; *)
        say "  look at it       nbdinfo nbds://localhost:${nbd_port:-10809}/$export_name   (with your keys: man nbd_set_uri)"
        return 0
        ;;
    esac
    tls_dir=$(setting VRAMBLK_TLS_DIR)
    tls_dir=${tls_dir:-./tls}
    tls_dir=$(cd "$tls_dir" 2>/dev/null && pwd || echo "$tls_dir")
    own=
    if [ -e "$tls_dir/client-cert.pem" ]; then
        own=" -certfile $tls_dir/client-cert.pem -keyfile $tls_dir/client-key.pem"
    fi
    say "  look at it       nbdinfo 'nbds://localhost:${nbd_port:-10809}/$export_name?tls-certificates=$tls_dir'"
    say "  a block device   sudo nbd-client localhost ${nbd_port:-10809} /dev/nbd0 -N $export_name -b 4096" \
        "                     -cacertfile $tls_dir/ca-cert.pem$own -tlshostname localhost"
    ! verifies_peers || say '                   (clients need client-cert.pem and client-key.pem beside ca-cert.pem)'
}

# Whether an address that the container listens on is TCP. Unset, one is; set to nothing, a YAML file decides.
serves_tcp() {
    addresses=$(setting VRAMBLK_LISTEN_ADDR)
    [ -z "$addresses" ] || printf '%s\n' "$addresses" | tr ',' '\n' | grep -Eqv '^[[:space:]]*unix:'
}

# Nothing where clients prove who they are, by a certificate or by keys of the user's own file.
say_who_reaches_tcp() {
    serves_tcp || return 0
    if [ "$(tls_mode)" = require ]; then
        case $files in *compose.tls.yaml*) ! verifies_peers || return 0 ;; *) return 0 ;; esac
    fi
    say "  TCP              every account of this machine can read and write the export on port ${nbd_port:-10809};" \
        '                   to turn TCP off: VRAMBLK_LISTEN_ADDR=unix:/run/vramblk/nbd.sock make up'
}

# Of container $1.
say_how_to_connect() {
    socket=$(setting VRAMBLK_RUN_DIR)
    socket=${socket:-/run/vramblk}/nbd.sock
    nbd_port=$(setting VRAMBLK_NBD_PORT)
    metrics_port=$(setting VRAMBLK_METRICS_PORT)
    exporter_port=$(setting VRAMBLK_EXPORTER_PORT)
    say '' 'vramblk is healthy.'
    case $files in
        *swap*)
            say '  swap             sudo host/vramblk-swap up, status, down' \
                "  metrics, status  make exporter, then http://127.0.0.1:${exporter_port:-10811}/"
            ;;
        *)
            export_name=$(export_of "$1")
            export_name=${export_name:-$(setting VRAMBLK_EXPORT_NAME)}
            export_name=${export_name:-vram}
            if [ -n "$(tls_mode)" ]; then
                say_how_to_connect_with_tls
            else
                if serves_tcp; then
                    say "  look at it       nbdinfo nbd://127.0.0.1:${nbd_port:-10809}/$export_name"
                else
                    say "  look at it       sudo nbdinfo 'nbd+unix:///$export_name?socket=$socket'"
                fi
                say "  a block device   sudo nbd-client -unix $socket -N $export_name -b 4096 /dev/nbd0"
            fi
            say_who_reaches_tcp
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
    [ -z "${ARGS:-}" ] ||
        fail 2 "ARGS=$ARGS: make up takes no options of the server; set a variable, here or in .env, such as:" \
            'VRAMBLK_SIZE=1G make up'
    forced || true
    patience_s=$(setting VRAMBLK_UP_TIMEOUT)
    patience_s=${patience_s:-120}
    case $patience_s in *[!0-9]* | 0?*) fail 2 "VRAMBLK_UP_TIMEOUT=$patience_s: allowed is a whole number of seconds" ;; esac
    old=$(live_container)
    require_state "$old"
    choose_files
    build
    old=$(live_container)
    if lives "$old" && outdated "$old"; then
        changes=$(changes_to "$old" | awk '{ line = line (NR > 1 ? ", " : "") $0 } END { print line }')
        changes=${changes:-the compose files have changed}
        refuse_to_lose "$old"
        say "  the container is replaced: $changes"
    fi
    keep_protections
    write_kept
    say "+ $compose_command up -d"
    log=$(mktemp "${TMPDIR:-/tmp}/vramblk-up.XXXXXX")
    if ! compose up -d --no-build >"$log" 2>&1; then
        cat "$log" >&2
        current=$(container)
        stop_what_was_started "$current" 'the container cannot be started anew'
        fail 1 'the container cannot be started'
    fi
    current=$(container)
    wait_until_healthy "$current"
    if [ "${SWAP:-}" = 1 ]; then
        host_script up || fail 1 'the server is healthy, but swap is not on; see above, then: sudo host/vramblk-swap up'
        start_unit
    fi
    say_how_to_connect "$current"
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

# Does this project's server say that it is a scratch server? Then the host's records are of another one.
serves_no_swap() {
    current=$(container 2>/dev/null) && [ -n "$current" ] && (! is_swap "$current") 2>/dev/null &&
        [ "$(mode_of "$current")" = scratch ] || return 1
    say "  swap is on, but this container does not serve it, so it stays on; to take it off: sudo host/vramblk-swap down"
}

down() {
    forced || true
    # The host's own records come first: docker was seen to give no answer where memory is short, and that must not be
    # taken for a server without swap.
    if [ -s "$host/run/vramblk-swap/records" ] && ! serves_no_swap; then take_swap_off; fi
    old=$(container)
    require_state "$old"
    if lives "$old"; then ask_what_it_holds "$old"; fi
    if lives "$old"; then
        if is_swap "$old"; then
            case $held in
                '0 '*) ;;
                *)
                    take_swap_off
                    held=$(holds "$old")
                    ;;
            esac
        fi
        refuse_with_clients "$old" 'stopping' down
        # What lies on a swap device is worth nothing once swap is off.
        is_swap "$old" || refuse_to_stop
    fi
    compose down --remove-orphans
    remove_run_dir
}

# Not under an exporter: it would go on looking into the directory that is gone.
remove_run_dir() {
    [ -z "$(monitoring_compose ps -q exporter 2>/dev/null)" ] || return 0
    run_dir=$(setting VRAMBLK_RUN_DIR)
    rmdir "${run_dir:-/run/vramblk}" 2>/dev/null || true
}

status() {
    compose ps -a
    current=$(container)
    [ -n "$current" ] || fail 1 'the server is not running; type: make up'
    running "$current" ||
        fail 1 "the server is not running, its container is $(state_of "$current"); make logs shows why"
    show_through first_mebibyte docker_in_time exec "$current" vramblk status
}

logs() {
    current=$(container)
    [ -n "$current" ] || fail 1 'there is no container, so there is no log; type: make up'
    show_through printable compose logs --tail=200 --follow
}

# A project of its own, whatever COMPOSE_FILE and COMPOSE_PROJECT_NAME are: nothing here can touch the server.
monitoring_compose() {
    server=$(setting COMPOSE_PROJECT_NAME)
    token=$(setting VRAMBLK_MONITORING_TOKEN_PATH)
    # shellcheck disable=SC2086  # two words, or none
    compose -p "${server:-vramblk}-monitoring" --project-directory . -f deploy/monitoring/compose.yaml \
        ${token:+-f deploy/monitoring/compose.token.yaml} "$@"
}

# Ends here if monitoring would be open although the server asks for a token, or if Prometheus could not show it.
check_monitoring_token() {
    token=$(setting VRAMBLK_MONITORING_TOKEN_PATH)
    if [ -n "$token" ]; then
        # Root's own directory: the daemon sees what this user does not.
        if [ -d "$(dirname "$token")" ] && ! [ -x "$(dirname "$token")" ]; then return 0; fi
        [ -f "$token" ] ||
            fail 78 "VRAMBLK_MONITORING_TOKEN_PATH=$token is no file; write the token into it, readable for user 65534"
        return 0
    fi
    check_token
    instead="write it to a file that user 65534 can read, and type: VRAMBLK_MONITORING_TOKEN_PATH=FILE make ${1:-monitoring}"
    [ -z "$(setting VRAMBLK_METRICS_TOKEN_FILE)" ] ||
        fail 2 "VRAMBLK_METRICS_TOKEN_FILE is a path in the server's container, and the exporter needs the token too; $instead"
    [ -n "${1:-}" ] || [ -z "$(setting VRAMBLK_METRICS_TOKEN)" ] ||
        fail 2 "VRAMBLK_METRICS_TOKEN is set, and Prometheus takes a token only from a file; $instead"
    # A file of the user's own, or a shell that is gone, may have given the server a token that the exporter does not get.
    current=$(container)
    [ -n "$current" ] && [ -z "$(setting VRAMBLK_METRICS_TOKEN)" ] || return 0
    ! environment_of "$current" | grep -Eq '^VRAMBLK_METRICS_TOKEN(_FILE)?=.' ||
        fail 2 "the server's container asks for a token that neither .env nor the environment holds; $instead"
}

# Starts service $1 of it, or all.
monitoring() {
    image=$(setting VRAMBLK_IMAGE)
    image=${image:-vramblk:latest}
    docker image inspect --format '{{.Id}}' "$image" >/dev/null 2>&1 ||
        fail 1 "there is no image $image, which reads the metrics; type: make up"
    check_monitoring_token "$@"
    keep VRAMBLK_MONITORING_TOKEN_PATH
    keep_that_a_token_is_asked_for
    write_kept
    say "+ $compose_command up -d${1:+ $1}   (of deploy/monitoring/compose.yaml, beside the server)"
    monitoring_compose up -d "$@"
    metrics_port=$(setting VRAMBLK_EXPORTER_PORT)
    say "  metrics, status  http://127.0.0.1:${metrics_port:-10811}/   (in swap mode too)"
    if [ "$#" = 0 ]; then
        prometheus_port=$(setting VRAMBLK_PROMETHEUS_PORT)
        grafana_port=$(setting VRAMBLK_GRAFANA_PORT)
        say "  Prometheus       http://127.0.0.1:${prometheus_port:-9090}/" \
            "  Grafana          http://127.0.0.1:${grafana_port:-3000}/"
    fi
    say '  stop             make monitoring-down'
}

find_docker
read_dotenv
case ${1:-} in
    up) up ;;
    down) down ;;
    logs) logs ;;
    status) status ;;
    monitoring) monitoring ;;
    exporter) monitoring exporter ;;
    monitoring-down) monitoring_compose down && remove_run_dir ;;
    *) fail 2 'usage: deploy/up.sh up|down|logs|status|monitoring|exporter|monitoring-down' ;;
esac
