#!/bin/sh
# Installs the Debian packages that are missing, as root. Without root or apt-get it prints what to install.
#
#   deploy/packages.sh PURPOSE PROOF:PACKAGE...
#
# PURPOSE begins each message. PROOF shows that PACKAGE is there: a program, or the absolute path of a file, in which *
# is allowed; alternatives are separated by |.
# All that apt-get will install is printed first, on standard error like everything else. No package is ever removed:
# one that cannot be installed without that is left out, and both are named. apt-get update runs only if apt's lists
# lack a package or name a file that the mirror no longer has.
# Exit status: 0 if every proof is there in the end, otherwise 1.
set -eu

purpose=$1
shift
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

say() { printf '%s: %s\n' "$purpose" "$*" >&2; }

# Lines as a list with commas.
joined() { paste -sd , | sed 's/,/, /g'; }

present() (
    IFS='|'
    for proof in $1; do # a pattern without a match stays as it is, and is no file
        case $proof in
        /*) [ ! -e "$proof" ] || exit 0 ;;
        *) ! command -v "$proof" >/dev/null || exit 0 ;;
        esac
    done
    exit 1
)

# Those of the arguments PROOF:PACKAGE whose proof is not there, one a line.
lacking() {
    for pair in "$@"; do
        present "${pair%%:*}" || printf '%s\n' "$pair"
    done
}

missing=$(lacking "$@")
[ -n "$missing" ] || exit 0
packages=$(printf '%s\n' "$missing" | sed 's/.*://' | sort -u | xargs)

if ! command -v apt-get >/dev/null; then
    say "these Debian packages are missing: $packages. There is no apt-get; install them with this machine's package manager."
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    say "these Debian packages are missing: $packages. Type: sudo apt-get install --no-remove --no-install-recommends $packages"
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

# -y refuses downgrades and changes of held packages. Another apt-get may be at work.
get() { apt-get -y -o DPkg::Lock::Timeout=600 "$@" </dev/null; }
install() { get install --no-remove --no-install-recommends "$@"; }
# What apt-get would do, in $work/plan; false if it refuses.
plan() { install --simulate "$@" >"$work/plan" 2>&1; }
# What apt-get refused to remove, with versions.
# shellcheck disable=SC2016  # for dpkg-query
removals() {
    sed -n '/^The following packages will be REMOVED:/,/^[^ ]/s/^  *//p' "$work/plan" | xargs -r \
        dpkg-query -W -f '${Package} ${Version}\n' | joined
}
# The reasons in apt-get's output, on one line.
errors() { sed -n '/unmet dependencies:$/,/^[^ ]/s/^  *//p; s/^E: //p' "$1" | joined; }


updated=
# Once at most.
update() {
    [ -z "$updated" ] || return 1
    updated=yes
    say 'apt-get update'
    get update >"$work/log" 2>&1 || say "apt-get update failed: $(errors "$work/log")"
}

# Arguments as of `apt-get install`.
print_and_install() {
    plan "$@" || {
        say "apt-get cannot install $*: $(errors "$work/plan")"
        return 0
    }
    all=$(sed -n 's/^Inst \([^ ]*\) \[.*/\1 (upgrade)/p; s/^Inst \([^ ]*\) (.*/\1/p' "$work/plan" | joined)
    [ -n "$all" ] || return 0
    say "apt-get install $*, which installs $all"
    install "$@" >"$work/log" 2>&1 || { update && install "$@" >"$work/log" 2>&1; } ||
        say "apt-get install failed: $(errors "$work/log")"
}

# The package from any other release that apt knows, where the usual one does not go with what is installed: the parts of
# qemu, for example, all have to come from backports if one does. Otherwise it prints the reason.
install_from_a_release() {
    removed=$(removals) reason=$(errors "$work/plan")
    for release in $(apt-cache madison "$1" | awk '{ sub("/.*", "", $6); print $6 }' | sort -u); do
        if plan -t "$release" "$1"; then
            print_and_install -t "$release" "$1"
            return
        fi
    done
    if [ -n "$removed" ]; then
        say "$1 is left out: apt-get would remove $removed. To keep both, add the release that this version comes" \
            "from to apt's sources. To have $1 instead of it, type: apt-get install $1"
    else
        say "$1 is left out: $reason"
    fi
}

# shellcheck disable=SC2086  # $packages is a list
if plan $packages || { [ -z "$(removals)" ] && update && plan $packages; }; then
    print_and_install $packages
else
    for package in $packages; do
        if plan "$package"; then print_and_install "$package"; else install_from_a_release "$package"; fi
    done
fi

missing=$(lacking "$@")
[ -z "$missing" ] || {
    say "still missing: $(printf '%s\n' "$missing" | sed 's/\(.*\):\(.*\)/\1 (package \2)/' | joined)"
    exit 1
}
