# shellcheck shell=sh
# Builds the image and starts the container. Their output is shown only if they fail; on a terminal, its last line as it
# comes.

# The file with the output, and the process that shows it; empty if there is none.
log='' shower=''

# For a trap.
tidy() {
    stop_showing
    [ -z "$log" ] || rm -f "$log"
}

# A base image from a registry is named by its digest: the build then takes the one that is here, and the image's label
# names it.
choose_base() {
    base_image=$(setting VRAMBLK_BASE)
    docker image inspect "$base_image" >/dev/null 2>&1 || get_base "$base_image"
    # An image that was made here has no digest.
    digest=$(docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$base_image" |
        grep -m 1 '@sha256:') || return 0
    VRAMBLK_BASE=$digest VRAMBLK_BASE_DIGEST=${digest#*@}
    export VRAMBLK_BASE VRAMBLK_BASE_DIGEST
    say "+ the base is $digest"
}

get_base() {
    say "+ docker pull $1"
    docker pull -q "$1" 2>/dev/null && return 0
    case $1 in
        *@*) fail 1 "$1 cannot be pulled, and no other image has its digest; correct VRAMBLK_BASE or leave it out" ;;
    esac
    say "No image registry answers: making $1 from Debian's packages."
    deploy/make-base.sh "$1"
}

build() {
    choose_base
    VRAMBLK_VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' vramblk/__init__.py)
    VRAMBLK_REVISION=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
    export VRAMBLK_VERSION VRAMBLK_REVISION
    say_compose 'build   (minutes the first time, seconds after that)'
    log=$(mktemp "${TMPDIR:-/tmp}/vramblk-build.XXXXXX")
    if [ -t 1 ]; then
        show_last_line "$log" &
        shower=$!
    fi
    if ! compose build >"$log" 2>&1; then
        stop_showing
        tail -n 30 "$log" >&2
        kept=$log log=''
        fail 1 "the image cannot be built; the builder's whole output: $kept"
    fi
    stop_showing
    drop_log
}

# This runs in the background, not the builder: a shell's background commands do not get Ctrl+C.
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

drop_log() {
    rm -f "$log"
    log=''
}

# Starts the container; fails if Compose does, with its output.
start() {
    say_compose up -d
    log=$(mktemp "${TMPDIR:-/tmp}/vramblk-up.XXXXXX")
    if ! compose up -d --no-build >"$log" 2>&1; then
        cat "$log" >&2
        return 1
    fi
    drop_log
}
