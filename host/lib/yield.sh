# shellcheck shell=sh disable=SC2034,SC2154
# yield: VRAM for a command. The command runs as whoever called; only `release all` and `take all` run as root, through a
# line of sudoers or a rule of polkit (docs/swap.md).

yield_to() { # command
    yielded='' told_to_end='' child=''
    # A signal at any time ends what runs, and then the VRAM is taken back. A terminal sends the last two to the command too.
    trap 'told_to_end=143; pass_on TERM' TERM
    trap 'told_to_end=129; pass_on HUP' HUP
    trap 'told_to_end=130' INT
    trap 'told_to_end=131' QUIT
    join_yields
    if [ ! -s "$records" ]; then
        note 'no swap of vramblk is on'
    else
        yielded=yes
        as_root release all || note 'warning: not all VRAM was released (see above); the command runs all the same'
    fi
    if [ -n "$dry_run" ]; then
        printf '+ %s\n' "$*" >&2
        [ -z "$yielded" ] || as_root take all
        return 0
    fi
    if [ -z "$told_to_end" ]; then
        run_and_wait "$@"
    else
        command_status=$told_to_end
    fi
    take_back
    exit "$command_status"
}

# Without the lock of join_yields: nbd-client stays.
as_root() { # command amount
    as_root_holding_it "$@" 6<&-
}

as_root_holding_it() {
    set -- "$here/vramblk-swap" "$@" ${dry_run:+--dry-run}
    if [ "$(id -u)" = 0 ] || [ -n "$dry_run" ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1 && sudo -n -l "$@" >/dev/null 2>&1; then
        sudo -n "$@"
    elif command -v pkexec >/dev/null 2>&1; then
        pkexec "$@"
    else
        note "may not run $* as root; docs/swap.md has a line for sudoers and a rule for polkit"
        return 78
    fi
}

# In the background, so that a signal reaches the command at once. A shell makes those ignore Ctrl+C and gives them no
# standard input; both are put back.
run_and_wait() { # command
    exec 7<&0
    if env --default-signal=INT,QUIT true 2>/dev/null; then set -- env --default-signal=INT,QUIT -- "$@"; fi
    "$@" <&7 7<&- 6<&- &
    child=$!
    exec 7<&-
    # What came before there was a child.
    [ -z "$told_to_end" ] || kill -TERM "$child" 2>/dev/null
    while :; do
        wait "$child"
        command_status=$?
        # A signal to this shell ends its waiting, but not the command.
        [ "$command_status" -gt 128 ] && kill -0 "$child" 2>/dev/null || return 0
    done
}

pass_on() { # signal
    [ -z "$child" ] || kill "-$1" "$child" 2>/dev/null
}

# Of several at a time the last one takes back: each holds a shared lock, and who gets it alone is the last.
join_yields() {
    yields=${XDG_RUNTIME_DIR:-}
    [ "$(id -u)" != 0 ] || yields=$root/run
    if [ -z "$yields" ] || [ -n "$dry_run" ] || ! command -v flock >/dev/null 2>&1; then
        yields=''
        return 0
    fi
    yields=$yields/vramblk-swap.yields
    (umask 077 && : >>"$yields") 2>/dev/null && [ ! -L "$yields" ] && exec 6<"$yields" && flock -s -w 60 6 || yields=''
}

take_back() {
    [ -n "$yielded" ] || return 0
    if [ -n "$yields" ] && ! flock -n -x 6; then
        note 'another yield goes on, which takes the VRAM back when it ends'
        return 0
    fi
    as_root take all || note "the VRAM was not taken back (see above); to try again: sudo vramblk-swap take all"
}
