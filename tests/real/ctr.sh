#!/usr/bin/env bash
# Debian's containerd with cni-all as its only plugins: containers are started with `ctr run --cni`, reach their gateway
# and the world outside, and are removed again; then nothing of them is left.
#
#   tests/real/ctr.sh EXECUTABLE
#
# Everything happens in mount, pid and network namespaces of its own, with private /run, /var/lib/cni, /etc/cni/net.d
# and /opt/cni/bin; when this script ends, however it ends, so do containerd and the containers.
# CNI_ALL_STRICT=1: not being able to run is a failure.
set -uo pipefail

skip() {
  echo "SKIP containerd: $1"
  if [ "${CNI_ALL_STRICT:-}" = 1 ]; then
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
  fi
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
}

if [ "${CNI_ALL_CTR_INSIDE:-}" != 1 ]; then
  exe=$(realpath -e "${1:?usage: tests/real/ctr.sh EXECUTABLE}") || exit 1
  [ "$(id -u)" = 0 ] || skip "needs root"
  for tool in containerd ctr runc busybox ip nft nsenter unshare; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
  done
  unshare --mount --net --pid --fork true 2>/dev/null || skip "no namespaces can be made"
  made=()
  for dir in /etc/cni /etc/cni/net.d /opt/cni /opt/cni/bin /var/lib/cni; do
    # A mount needs a directory to cover; those made for that are taken away again.
    [ -d "$dir" ] || { mkdir "$dir" && made=("$dir" "${made[@]}"); }
  done
  work=$(mktemp -d)
  trap 'rmdir "${made[@]}" 2>/dev/null; rm -rf "$work"' EXIT
  export CNI_ALL_CTR_INSIDE=1
  unshare --mount --propagation private --net --pid --fork --kill-child --mount-proc \
    "$BASH" "$0" "$exe" "$work"
  exit
fi

exe=$1 work=$2
passed=0 failed=0
check() { # check WHAT COMMAND…
  local what=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $what"
  fi
}
finish() {
  echo "$passed passed, $failed failed, 0 skipped"
  [ "$failed" = 0 ]
  exit
}

for dir in /run /var/lib/cni /etc/cni/net.d /opt/cni/bin; do
  mount -t tmpfs cni-all-test "$dir" || skip "cannot mount on $dir"
done
"$exe" install /opt/cni/bin >/dev/null || { echo "cni-all install fails"; exit 1; }

# The world outside: a namespace that knows no way to the containers, so that only masqueraded packets are answered.
ip link set lo up
mkdir "$work/www"
echo "a page" >"$work/www/page"
unshare --net sleep infinity &
outside=$!
until [ "$(readlink /proc/$outside/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add uplink type veth peer name out0 netns "$outside"
ip addr add 203.0.113.2/24 dev uplink
ip link set uplink up
ip route add default via 203.0.113.1
nsenter --target "$outside" --net ip addr add 203.0.113.1/24 dev out0
nsenter --target "$outside" --net ip link set out0 up
nsenter --target "$outside" --net busybox httpd -p 80 -h "$work/www"
busybox httpd -p 80 -h "$work/www"

# An image of one layer, which is busybox, as an OCI layout.
image() {
  local oci=$work/oci rootfs=$work/rootfs layer config manifest
  mkdir -p "$oci/blobs/sha256" "$rootfs/bin" "$rootfs/tmp" "$rootfs/proc" "$rootfs/sys" "$rootfs/dev" "$rootfs/etc"
  cp "$(command -v busybox)" "$rootfs/bin/busybox"
  for tool in sh ip ping nc; do ln -s busybox "$rootfs/bin/$tool"; done
  put() { # put FILE: into the layout; its digest
    local digest
    digest=$(sha256sum <"$1" | cut -d ' ' -f 1)
    mv "$1" "$oci/blobs/sha256/$digest"
    echo "$digest"
  }
  part() { # part MEDIA-TYPE DIGEST: a descriptor
    echo "{\"mediaType\":\"application/vnd.oci.image.$1\",\"digest\":\"sha256:$2\",\"size\":$(stat -c %s "$oci/blobs/sha256/$2")}"
  }
  tar -C "$rootfs" --owner 0 --group 0 -cf "$work/blob" .
  layer=$(put "$work/blob")
  local arch
  case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) arch=$(uname -m) ;; esac
  echo "{\"architecture\":\"$arch\",\"os\":\"linux\",\"config\":{\"Env\":[\"PATH=/bin\"],\"Cmd\":[\"sh\"]}," \
    "\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$layer\"]}}" >"$work/blob"
  config=$(put "$work/blob")
  echo "{\"schemaVersion\":2,\"config\":$(part config.v1+json "$config"),\"layers\":[$(part layer.v1.tar "$layer")]}" >"$work/blob"
  manifest=$(put "$work/blob")
  part manifest.v1+json "$manifest" |
    sed 's|}$|,"annotations":{"io.containerd.image.name":"docker.io/cni-all/busybox:test"}}|' >"$work/descriptor"
  echo "{\"schemaVersion\":2,\"manifests\":[$(cat "$work/descriptor")]}" >"$oci/index.json"
  echo '{"imageLayoutVersion":"1.0.0"}' >"$oci/oci-layout"
  tar -C "$oci" -cf "$work/image.tar" .
}
image

cat >"$work/config.toml" <<TOML
version = 2
root = "$work/root"
state = "/run/containerd-test"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "/run/containerd-test.sock"
TOML
containerd --config "$work/config.toml" >"$work/containerd.log" 2>&1 &
ctr() { timeout 60 ctr --address /run/containerd-test.sock "$@"; }
for _ in $(seq 100); do
  ctr version >/dev/null 2>&1 && break
  sleep 0.1
done
ctr version >/dev/null 2>&1 || { tail -n 20 "$work/containerd.log"; skip "containerd does not start"; }
ctr image import --snapshotter native "$work/image.tar" >/dev/null || { echo "the image cannot be imported"; exit 1; }

# What a container does: each line is looked for in its output. (Debian's static wget crashes under containerd, nc does not.)
# shellcheck disable=SC2016
inside='
fetch() { printf "GET /page HTTP/1.0\r\n\r\n" | nc -w 5 "$1" 80 | tail -n 1; }
gateway=$(ip route | sed -n "s/^default via \([^ ]*\) .*/\1/p")
ip -4 addr show eth0 | grep -q "inet 10.22." && echo "has an address"
ping -c 1 -W 2 "$gateway" >/dev/null && echo "pings its gateway"
fetch "$gateway" | sed "s/^/gateway: /"
ping -c 1 -W 2 203.0.113.1 >/dev/null && echo "pings the outside"
fetch 203.0.113.1 | sed "s/^/outside: /"
'

leftovers() { # what is on the node and names a container or is a link of one
  ip -o link show | awk -F ': ' '{ sub(/@.*/, "", $2); print $2 }' | grep -vxE 'lo|uplink|cni0' | sed 's/^/link /'
  nft list ruleset 2>/dev/null | grep -F -e "$1" -e 10.22.0.
  ls /var/lib/cni/networks/mynet | grep -vE '^(lock|last_reserved_ip\.[0-9]+)$' | sed 's/^/lease /'
  find /var/lib/cni/results -type f 2>/dev/null | sed 's/^/cached /'
}

# run ID: a container with the configuration that is in place.
run() {
  local id=$1 line before=$failed
  ctr run --rm --cni --snapshotter native docker.io/cni-all/busybox:test "$id" \
    sh -c "$inside" >"$work/output" 2>&1 || { echo "ctr run:"; cat "$work/output"; }
  for line in "has an address" "pings its gateway" "gateway: a page" "pings the outside" "outside: a page"; do
    check "$id: $line" grep -qxF "$line" "$work/output"
  done
  [ "$failed" = "$before" ] || sed "s/^/  $id says: /" "$work/output"
  leftovers "$id" >"$work/left"
  check "$id: nothing is left: $(tr '\n' ';' <"$work/left")" [ ! -s "$work/left" ]
}

for version in none 0.2.0 0.3.1 0.4.0 1.0.0; do
  key="\"cniVersion\":\"$version\","
  [ "$version" = none ] && key=
  echo "{$key\"name\":\"mynet\",\"type\":\"bridge\",\"bridge\":\"cni0\",\"isGateway\":true,\"ipMasq\":true," \
    '"ipam":{"type":"host-local","subnet":"10.22.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}}' \
    >/etc/cni/net.d/10-mynet.conf
  run "version-$version"
done

# A list, of three plugins.
rm /etc/cni/net.d/10-mynet.conf
cat >/etc/cni/net.d/10-mynet.conflist <<'JSON'
{"cniVersion": "1.0.0", "name": "mynet", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "subnet": "10.22.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "loopback"}
]}
JSON
run list

# Everything that is usually chained, while chain FORWARD drops.
nft add table ip filter
nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'
cat >/etc/cni/net.d/10-mynet.conflist <<'JSON'
{"cniVersion": "1.0.0", "name": "mynet", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "subnet": "10.22.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}},
  {"type": "firewall", "ingressPolicy": "same-bridge"},
  {"type": "bandwidth", "ingressRate": 100000000, "ingressBurst": 10000000, "egressRate": 100000000, "egressBurst": 10000000},
  {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
]}
JSON
run chained
nft delete table ip filter

# One that is killed while it runs, after it was seen from the host.
ctr run --rm --cni --snapshotter native docker.io/cni-all/busybox:test killed sh -c "$inside"'
echo ready; exec /bin/busybox sleep 1000' >"$work/output" 2>&1 &
runner=$!
for _ in $(seq 100); do
  grep -qx ready "$work/output" && break
  sleep 0.1
done
address=$(ls /var/lib/cni/networks/mynet | grep '^10\.')
check "killed: the host pings it at $address" ping -c 1 -W 2 "$address" >"$work/ping" 2>&1
leftovers killed >"$work/there"
for kind in 'link veth' 'comment ' 'lease 10.22.' 'cached '; do
  check "killed: while it runs the node has its $kind" grep -qF "$kind" "$work/there"
done
# containerd keeps results with libcni: cni-all reads them.
told() { sed -E "s/.*\"$1\":\"([^\"]*)\".*/\1/" /var/lib/cni/results/mynet-*; }
check "killed: cni-all check with what libcni keeps" "$exe" check mynet "$(told sandbox)" --id "$(told containerId)"
check "killed: cni-all gc leaves it alone" "$exe" gc mynet
# Another configuration while it runs: containerd removes what is there then.
sed -i 's/"type": "bridge",/"type": "bridge", "mtu": 1400,/' /etc/cni/net.d/10-mynet.conflist
"$exe" update mynet "$(told containerId)" -p 8099:99 >"$work/log" 2>&1
check "killed: cni-all update: $(cat "$work/log")" grep -q 'mtu 1400' "$work/log"
check "killed: the new MTU" grep -q 'mtu 1400' <(ip link show type veth)
check "killed: the new port" grep -q '8099' <(nft list ruleset)
check "killed: a second update" grep -q 'nothing to change' <("$exe" update mynet --all)
check "killed: cni-all check of the new configuration" "$exe" check mynet "$(told sandbox)" --id "$(told containerId)"
check "killed: the host still pings it" ping -c 1 -W 2 "$address" >"$work/ping" 2>&1
ctr task kill --signal SIGKILL killed
wait "$runner" # its status is that of the killed container
leftovers killed >"$work/left"
check "killed: nothing is left: $(tr '\n' ';' <"$work/left")" [ ! -s "$work/left" ]
finish
