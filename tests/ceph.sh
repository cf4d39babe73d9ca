#!/bin/bash
# A Ceph in memory with its S3 gateway on loopback, to run the S3 tests against by hand (Debian: apt-get install radosgw
# ceph-mon ceph-osd ceph-mgr). Ready after about 12 seconds; what it stores is gone when it is stopped.
#
#   tests/ceph.sh /tmp/ceph 7480                     # or with TLS: tests/ceph.sh /tmp/ceph 7480 key-and-certificate.pem
#   DEEPLAB_TEST_S3=http://127.0.0.1:7480 .venv/bin/python -m pytest tests/pipelines/{storage,archive,train} tests/system/test_{s3,secrets}.py
#   kill $(cat /tmp/ceph/run/*.pid)
set -eu
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
PORT=$2 TLS=${3:+$(realpath "$3")}
mkdir "$1"  # a folder of its own, which must not be there yet
cd "$1"
mkdir mon mgr osd rgw run
CLUSTER=$(uuidgen) OSD=$(uuidgen) MONITOR="[v2:127.0.0.1:$((PORT + 1)),v1:127.0.0.1:$((PORT + 2))]"
export CEPH_CONF=$PWD/ceph.conf

cat > ceph.conf <<CONF
[global]
fsid = $CLUSTER
mon_initial_members = a
mon_host = $MONITOR
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = $PWD/\$name.keyring
log_file = $PWD/\$name.log
admin_socket = $PWD/run/\$name.asok
pid_file = $PWD/run/\$name.pid
osd_objectstore = memstore
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
[mon.a]
mon_data = $PWD/mon
[mgr.a]
mgr_data = $PWD/mgr
mgr_initial_modules =
[osd.0]
osd_data = $PWD/osd
[client.rgw.a]
rgw_data = $PWD/rgw
rgw_frontends = beast ${TLS:+ssl_}endpoint=127.0.0.1:$PORT ${TLS:+ssl_certificate=$TLS}
CONF

# With authentication off (auth none) the gateway does not start, so each daemon has its key.
ceph-authtool -C mon.a.keyring --gen-key -n mon. --cap mon 'allow *'
ceph-authtool -C client.admin.keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
ceph-authtool mon.a.keyring --import-keyring client.admin.keyring
monmaptool --create --fsid "$CLUSTER" --addv a "$MONITOR" monmap
ceph-mon --mkfs -i a --monmap monmap --keyring mon.a.keyring
ceph-mon -i a
ceph auth get-or-create mgr.a mon 'allow profile mgr' osd 'allow *' -o mgr.a.keyring
ceph-mgr -i a
ceph osd new "$OSD"
ceph auth get-or-create osd.0 mon 'allow profile osd' mgr 'allow profile osd' osd 'allow *' -o osd.0.keyring
ceph-osd -i 0 --mkfs --osd-uuid "$OSD"
ceph-osd -i 0
ceph auth get-or-create client.rgw.a mon 'allow rwx' osd 'allow rwx' mgr 'allow rw' -o client.rgw.a.keyring
radosgw -n client.rgw.a
# The user of tests/s3_server.py.
radosgw-admin user create --uid=tests --display-name=tests --access-key=test-key --secret-key=test-secret-never-to-be-printed
until curl --silent --insecure --output /dev/null "http${TLS:+s}://127.0.0.1:$PORT"; do sleep 0.2; done
