#!/usr/bin/env bash
# Inside a root with Ceph's packages: a monitor, a manager, a disk in memory, and RGW as the S3 server.
# Writes /ready when S3 answers, and stays.
set -euo pipefail
monitor_v2=$1 monitor_v1=$2 s3=$3 access_key=$4 secret_key=$5
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/ceph /etc/ceph /var/lib/ceph/{mon/ceph-a,osd/ceph-0,mgr/ceph-x,radosgw/ceph-rgw.a}
fsid=$(cat /proc/sys/kernel/random/uuid)
cat >/etc/ceph/ceph.conf <<CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$monitor_v2,v1:127.0.0.1:$monitor_v1]
public addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail warn = 1
mon data avail crit = 1
[osd]
osd objectstore = memstore
memstore device bytes = 4294967296
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$s3
CONF

# Repeats a command until it succeeds, for a minute at most.
until_it_works() {
    for _ in $(seq 60); do
        if timeout 20 "$@"; then return; fi
        sleep 1
    done
    echo "in vain: $*"
    exit 1
}
as_root=(--setuser root --setgroup root)
keys=/etc/ceph/ceph.client.admin.keyring
ceph-authtool -C /mon.keyring --gen-key -n mon. --cap mon 'allow *'
ceph-authtool -C "$keys" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
ceph-authtool /mon.keyring --import-keyring "$keys"
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$monitor_v2,v1:127.0.0.1:$monitor_v1]" /monmap
ceph-mon -i a --mkfs --monmap /monmap --keyring /mon.keyring "${as_root[@]}"
ceph-mon -i a -f "${as_root[@]}" &
until_it_works ceph mon stat

osd=$(cat /proc/sys/kernel/random/uuid) secret=$(ceph-authtool --gen-print-key)
echo "{\"cephx_secret\":\"$secret\"}" | timeout 60 ceph osd new "$osd" -i -
ceph-authtool -C /var/lib/ceph/osd/ceph-0/keyring --name osd.0 --add-key "$secret"
ceph-osd -i 0 --mkfs --osd-uuid "$osd" "${as_root[@]}"
timeout 60 ceph osd crush add osd.0 1.0 root=default host=node
ceph-osd -i 0 -f "${as_root[@]}" &
# Without a manager RGW never listens.
timeout 60 ceph auth get-or-create mgr.x mon 'allow profile mgr' osd 'allow *' >/var/lib/ceph/mgr/ceph-x/keyring
ceph-mgr -i x -f "${as_root[@]}" &
timeout 60 ceph auth get-or-create client.rgw.a mon 'allow rwx' osd 'allow rwx' \
    >/var/lib/ceph/radosgw/ceph-rgw.a/keyring
is_up() { timeout 20 ceph osd stat | grep -q ' 1 up'; }
for _ in $(seq 60); do if is_up; then break; fi; sleep 1; done
radosgw -d -n client.rgw.a "${as_root[@]}" &
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$s3") 2>/dev/null; }
for _ in $(seq 120); do
    if listens; then break; fi
    sleep 1
done
timeout 60 radosgw-admin user create --uid=test --display-name=test --access-key="$access_key" --secret-key="$secret_key"
touch /ready
wait
