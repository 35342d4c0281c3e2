#!/bin/sh
# Makes the guest's disk from Debian's packages: trixie with its cloud kernel, systemd and Docker, as an ext4 file
# system without a partition table. Needs root, debootstrap and e2fsprogs; no loop device and no mount.
#
#   tests/qemu/disk.sh DIRECTORY       writes disk.raw, vmlinuz, initrd and versions.txt there
#
# DEBIAN_MIRROR    http://deb.debian.org/debian unless set
set -eu

directory=$1
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
suite=trixie
size=3G
packages='linux-image-cloud-amd64 initramfs-tools zstd systemd systemd-sysv dbus udev kmod procps iptables make curl
nbd-client docker.io docker-cli docker-compose'

mkdir -p "$directory"
root=$(mktemp -d "$directory/root.XXXXXX")
log=$root.log
trap 'rm -rf "$root" "$log"' EXIT
trap 'exit 130' INT TERM HUP

fail() {
    tail -n 15 "$log" >&2
    printf 'disk: %s\n' "$1" >&2
    exit 1
}

# A Debian keyring older than the suite does not know its signing key, and Ubuntu ships Debian's beside its own.
keyring=
for candidate in /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
    [ -r "$candidate" ] && keyring=--keyring=$candidate
done
# shellcheck disable=SC2086  # an empty keyring must vanish
debootstrap --variant=minbase $keyring "$suite" "$root" "$mirror" >"$log" 2>&1 || fail "debootstrap failed; is $mirror reachable?"

# Nothing starts during the installation, nothing is written that no test reads, and the initrd finds the disk and no more.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
cat >"$root/etc/dpkg/dpkg.cfg.d/guest" <<'END'
path-exclude /usr/share/doc/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
force-unsafe-io
END
mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/usr/share/initramfs-tools/modules.d"
echo MODULES=list >"$root/etc/initramfs-tools/conf.d/guest"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$root/usr/share/initramfs-tools/modules.d/guest"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# shellcheck disable=SC2086  # a list of packages
{ chroot "$root" apt-get update -q && DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -qy \
    --no-install-recommends $packages; } >"$log" 2>&1 || fail 'the packages cannot be installed'
# shellcheck disable=SC2016  # for dpkg-query
chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' linux-image-cloud-amd64 systemd docker.io docker-compose \
    containerd runc nbd-client >"$directory/versions.txt"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root/etc/resolv.conf" "$root/usr/sbin/policy-rc.d"

# The container has no network, and setting one up takes long here.
mkdir -p "$root/etc/docker"
echo '{"live-restore": false, "bridge": "none", "iptables": false, "ip6tables": false}' >"$root/etc/docker/daemon.json"
# Ten times slower than a machine: what is only slow must not be taken for a failure.
mkdir -p "$root/etc/systemd/system.conf.d"
printf '[Manager]\nDefaultTimeoutStartSec=15min\nDefaultTimeoutStopSec=15min\nDefaultDeviceTimeoutSec=15min\n' \
    >"$root/etc/systemd/system.conf.d/guest.conf"
echo guest >"$root/etc/hostname"
echo '127.0.0.1 localhost guest' >"$root/etc/hosts"
echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer getty@tty1.service serial-getty@ttyS0.service systemd-networkd.service systemd-timesyncd.service \
    nbd-client.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# The second disk is an archive with the project and the test. What watches the pressure is never swapped, nor killed.
cat >"$root/etc/systemd/system/guest.service" <<'END'
[Unit]
After=multi-user.target docker.service

[Service]
Type=exec
ExecStartPre=/bin/sh -c 'mkdir -p /project && tar -C /project -x -f /dev/vdb'
ExecStart=/project/tests/qemu/guest/main
StandardInput=null
StandardOutput=tty
StandardError=inherit
TTYPath=/dev/ttyS1
OOMScoreAdjust=-1000
MemorySwapMax=0
END
mkdir -p "$root/etc/systemd/system/graphical.target.wants"
ln -s ../guest.service "$root/etc/systemd/system/graphical.target.wants/guest.service"

cp "$root"/boot/vmlinuz-* "$directory/vmlinuz"
cp "$root"/boot/initrd.img-* "$directory/initrd"
rm -rf "${root:?}/boot"
rm -f "$directory/disk.raw"
mke2fs -q -t ext4 -O ^has_journal -d "$root" "$directory/disk.raw" "$size" || fail 'mke2fs failed'
