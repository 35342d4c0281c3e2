# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# What the cases share, on top of what they have in common with the guests of tests/vm. One boot runs them one after
# another, so each begins with `begin`, which brings the machine to a known state.
# Everything here runs in guest.service, whose memory is never swapped; victims get a group of their own.

project=/project
server_log=/run/guest.log
# shellcheck source=tests/vm/guest/lib.sh
. "$project/tests/vm/guest/lib.sh"
PATH=$project/build:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root LC_ALL=C
export PATH HOME LC_ALL
cd "$project" || exit 1

fail() {
    echo "@@ FAIL $*"
    cat /proc/swaps
    docker ps -a
    tail -n 30 "$server_log"
    journalctl --no-pager -n 40 -o short-monotonic
    exit 1
}

container() { docker ps -q --no-trunc --filter label=com.docker.compose.service=vramblk; }

server_pids() { cat /sys/fs/cgroup/system.slice/docker-*.scope/cgroup.procs; }

supervisor() { pid_of vramblk-supervi; }

is_off() { ! swapon_seen; }

unit_is() { [ "$(systemctl show -P ActiveState "$1")" = "$2" ]; }

# ---------------------------------------------------------------- a known state

# dockerd with live-restore on or off. A container that runs is left alone: a start takes a minute here.
begin() { # live-restore: true or false
    is_off || fail 'swap of the case before cannot be taken off'
    systemctl reset-failed
    if ! live_restore_is "$1"; then
        sed -i "s/\"live-restore\": [a-z]*/\"live-restore\": $1/" /etc/docker/daemon.json
        systemctl reload docker
        until_true 60 live_restore_is "$1" || fail "dockerd does not take live-restore $1"
    fi
}

# The end of each case, also of one that failed half-way: what held memory is gone, swap is off, and what waited for
# that has ended.
settle() {
    swapoff_works
    [ ! -e /sys/fs/cgroup/pressure.slice ] || echo 1 >/sys/fs/cgroup/pressure.slice/cgroup.kill
    systemctl stop vramblk-swap.service
    vramblk-swap down
    wait
}

live_restore_is() { [ "$(docker info -f '{{.LiveRestoreEnabled}}')" = "$1" ]; }

start_container() {
    is_ready || docker compose up -d --no-build >>"$server_log" 2>&1 || fail 'the container does not start'
    until_true 240 is_ready || fail 'the server does not become ready'
    [ -n "$(supervisor)" ] || fail 'there is no supervisor'
}

# The container and swap on it, the way of an operator without the unit.
start_swap() {
    start_container
    vramblk-swap up || fail "vramblk-swap up: exit status $?"
    swapon_seen || fail 'vramblk-swap up says that swap is on, the kernel does not'
}

# The same by the unit.
start_unit() {
    start_container
    systemctl start vramblk-swap.service || fail 'vramblk-swap.service does not start'
    swapon_seen || fail 'vramblk-swap.service is started, but there is no swap'
}

# ---------------------------------------------------------------- pressure

victim_mib=16
hog_mib=24

# Processes that hold more memory than there is: `victim`, which is in swap, and `hogs`. They write their pages and
# then stand still, since in this slow machine a process that goes on would leave no time for anything else. Many hogs,
# since one would thrash when it verifies: each that has verified and ended makes room for the next. The last comes first,
# since the first ones are in swap, and to read them takes room.
# Enough is what `down` calls so: it finds no room for what is in swap. One hog more, since what other processes hold
# changes meanwhile.
press() {
    hogs=''
    hold_in_swap
    until is_short; do hold_another; done
    hold_another
    is_short || fail 'less memory is held than before'
    note "$(vramblk-swap down --dry-run 2>&1 | grep 'there is room'), $(swap_of "$victim") KiB of them the victim's," \
        "$(meminfo SwapCached) KiB in memory too; hogs:$hogs"
}

# The victim, by itself: the kernel need not choose it although it stands still.
hold_in_swap() {
    hold victim "$victim_mib"
    echo "${victim_mib}M" >"/sys/fs/cgroup$(sed 's/^0:://' "/proc/$victim/cgroup")/memory.reclaim"
    [ "$(swap_of "$victim")" -gt "$((victim_mib * 1024 / 2))" ] || fail 'the victim is not in swap'
}

hold_another() {
    set -- $hogs
    [ "$#" -lt 15 ] || fail "$# hogs are not enough: $(vramblk-swap down --dry-run 2>&1)"
    hold "hog$#" "$hog_mib"
    hogs="hog$# $hogs"
}

is_short() { vramblk-swap down --dry-run 2>&1 | grep -q 'end something large first'; }

meminfo() { awk -v name="$1:" '$1 == name { print $2 }' /proc/meminfo; }

# In one group, so that `settle` finds them.
hold() { # name MiB
    rm -f "/run/$1.enough"
    : >"/run/$1.log"
    systemd-run --quiet --scope --slice=pressure --unit="$1-$(date +%s)" choom -n 500 -- filler "$2" 1 "/run/$1.enough" >"/run/$1.log" 2>&1 &
    eval "$1=\$!"
    until_true 300 is_written "$1" || fail "the $1 does not get its memory"
    eval "kill -STOP \$$1"
}

is_written() { grep -q 'verified 0 of' "/run/$1.log"; }

# They go on, verify every page and end.
verify() { # text name...
    what=$1
    shift
    for each; do
        touch "/run/$each.enough"
        eval "kill -CONT \$$each; wait \$$each"
        ended=$?
        tail -n 1 "/run/$each.log"
        [ "$ended" = 0 ] || fail "$what: $each ended with status $ended"
    done
    pass "$what: every page of $* as written"
}

# Makes swapoff fail with ENOMEM, as the kernel does where memory is promised strictly. Not while dockerd or containerd has
# anything to do: without memory they fail to deliver SIGTERM to a container, and then dockerd kills it.
swapoff_fails() {
    sysctl -q "vm.overcommit_kbytes=$(($(meminfo Committed_AS) - $(meminfo SwapTotal) / 3))"
    sysctl -q vm.overcommit_memory=2
}

swapoff_works() { sysctl -q vm.overcommit_memory=0; }

# ---------------------------------------------------------------- logs

since_now() { cursor=$(journalctl -n 0 --show-cursor | sed -n 's/^-- cursor: //p'); }

# What the host script has said in the journal since `since_now`.
said() { journalctl --after-cursor="$cursor" -o cat --no-pager | grep -q "$1"; }

# ---------------------------------------------------------------- what ends a container

drains() { ask /status.json | grep -q '"state": *"draining"'; }

# docker compose restart or down under live swap: the server drains, nothing is lost, Compose waits.
compose_waits() { # restart or down
    begin true
    start_swap
    server=$(supervisor)
    press
    docker compose "$1" >/run/compose.log 2>&1 &
    compose=$!
    until_true 120 drains || fail "docker compose $1 does not reach the server"
    sleep 15
    kill -0 "$server" || fail "docker compose $1 ended the server under live swap"
    kill -0 "$compose" || fail "docker compose $1 does not wait"
    verify "docker compose $1 under live swap" $hogs
    kill -0 "$server" || fail 'the server left although swap is on'
    expect 0 "vramblk-swap down while docker compose $1 waits" vramblk-swap down
    verify "docker compose $1 under live swap" victim
    wait "$compose"
    expect 0 "docker compose $1 succeeds once swap is off" test $? = 0
    cat /run/compose.log
    kill -0 "$server" 2>/dev/null && fail 'the server is still there'
    return 0
}
