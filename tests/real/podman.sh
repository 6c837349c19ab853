#!/usr/bin/env bash
# Debian's podman with network_backend="cni" and cni-all as its only plugins: a container is created, runs, reaches its
# gateway, serves mapped ports, is stopped and removed, and nothing of it is left. podman uses libcni: what it keeps in the result cache is
# read, checked and removed by `cni-all`, and what `cni-all` keeps there by podman. `docker-run` is tried with podman, too.
#
#   tests/real/podman.sh EXECUTABLE
#
# Everything happens in mount, pid and network namespaces of its own, with private directories.
# CNI_ALL_STRICT=1: not being able to run is a failure.
set -uo pipefail

skip() {
  echo "SKIP podman: $1"
  if [ "${CNI_ALL_STRICT:-}" = 1 ]; then
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
  fi
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
}

if [ "${CNI_ALL_PODMAN_INSIDE:-}" != 1 ]; then
  exe=$(realpath -e "${1:?usage: tests/real/podman.sh EXECUTABLE}") || exit 1
  [ "$(id -u)" = 0 ] || skip "needs root"
  for tool in podman conmon runc busybox ip nft nsenter unshare; do
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
  export CNI_ALL_PODMAN_INSIDE=1
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

for dir in /run /var/lib/cni /etc/cni/net.d /opt/cni/bin; do
  mount -t tmpfs cni-all-test "$dir" || skip "cannot mount on $dir"
done
"$exe" install /opt/cni/bin >/dev/null || { echo "cni-all install fails"; exit 1; }
ip link set lo up

mkdir -p "$work/rootfs/bin" "$work/rootfs/etc" "$work/rootfs/tmp" "$work/rootfs/proc" "$work/rootfs/sys" "$work/rootfs/dev"
cp "$(command -v busybox)" "$work/rootfs/bin/busybox"
for tool in sh true ip ping sleep httpd; do ln -s busybox "$work/rootfs/bin/$tool"; done
tar -C "$work/rootfs" --owner 0 --group 0 -cf "$work/image.tar" .

cat >"$work/containers.conf" <<TOML
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "mynet"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
TOML
cat >"$work/storage.conf" <<TOML
[storage]
driver = "vfs"
graphroot = "$work/storage"
runroot = "/run/containers/storage"
TOML
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
cat >/etc/cni/net.d/10-mynet.conflist <<'JSON'
{"cniVersion": "0.4.0", "name": "mynet", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.22.0.0/16"}]]}},
  {"type": "spy"}
]}
JSON
# Writes down what it is asked, and hands on what came before it (libcni sorts keys, cni-all leaves the type in front).
cat >/opt/cni/bin/spy <<'SH'
#!/bin/sh
asked=$(cat)
if [ "$CNI_COMMAND" = VERSION ]; then
  echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'
  exit
fi
echo "$CNI_COMMAND $asked" >>/run/spy
[ "$CNI_COMMAND" = ADD ] && echo "$asked" | sed -E 's/.*"prevResult"://; ta; :a; s/,"type":"spy"\}$//; t; s/\}$//'
exit 0
SH
chmod 755 /opt/cni/bin/spy

podman() { timeout 120 podman --log-level error "$@"; }
limits=(--ulimit nofile=1024:1024 --ulimit nproc=1024:1024)
podman import "$work/image.tar" localhost/busybox:test >"$work/log" 2>&1 || { cat "$work/log"; skip "podman cannot import an image here"; }
podman run --rm --net=none "${limits[@]}" localhost/busybox:test true >"$work/log" 2>&1 || {
  tail -n 5 "$work/log"
  skip "podman cannot run a container here, even without network"
}

leftovers() { # what is on the node and belongs to a container
  ip -o link show | awk -F ': ' '{ sub(/@.*/, "", $2); print $2 }' | grep -vxE 'lo|cni0|web0|uplink|dummy0' | sed 's/^/link /'
  nft list ruleset 2>/dev/null | grep -F -e 'comment "net ' -e 10.22.0. -e 10.33.0. | sed 's/^ */rule /'
  ls /var/lib/cni/networks/{mynet,web} 2>/dev/null | grep -E '^[0-9a-f.:]+$' | sed 's/^/lease /'
  find /var/lib/cni/results -type f 2>/dev/null | sed 's/^/cached /'
}
clean() { # clean WHAT
  leftovers >"$work/left"
  check "$1: nothing is left: $(tr '\n' ';' <"$work/left")" [ ! -s "$work/left" ]
}

check "podman knows the network" grep -qw mynet <(podman network ls)
podman create --name one --network mynet "${limits[@]}" localhost/busybox:test sleep 1000 >"$work/log" 2>&1
check "create: $(tail -n 1 "$work/log")" grep -qE '^[0-9a-f]{64}$' "$work/log"
id=$(tail -n 1 "$work/log")
clean "created, not started"
check "start" podman start one >"$work/log" 2>&1
[ -s "$work/log" ] && grep -v '^one$' "$work/log"
address=$(podman inspect --format '{{.NetworkSettings.Networks.mynet.IPAddress}}' one)
check "podman tells the address: $address" grep -q '^10\.22\.' <<<"$address"
check "the host pings it" ping -c 1 -W 2 "$address" >/dev/null
check "it pings its gateway" podman exec one ping -c 1 -W 2 10.22.0.1 >/dev/null
cached=/var/lib/cni/results/mynet-$id-eth0
check "libcni keeps the result" [ -f "$cached" ]
netns=$(podman inspect --format '{{.NetworkSettings.SandboxKey}}' one)
export CNI_PATH=/opt/cni/bin
check "cni-all check with what libcni keeps" "$exe" check mynet "$netns" --id "$id"
check "cni-all gc leaves it alone" "$exe" gc mynet
check "it still answers" ping -c 1 -W 2 "$address" >/dev/null
check "cni-all show names it" grep -q "$id" <("$exe" show --json)
# Another configuration while it runs: libcni detaches with that, and with the result that we kept.
sed -i 's/"type": "bridge",/"type": "bridge", "mtu": 1400,/; s/{"type": "spy"}/{"type": "spy"},\n  {"type": "portmap", "capabilities": {"portMappings": true}}/' \
  /etc/cni/net.d/10-mynet.conflist
"$exe" update mynet "$netns" -p 8099:99 >"$work/log" 2>&1
check "cni-all update of what libcni attached: $(cat "$work/log")" grep -q 'mtu 1400' "$work/log"
check "the new MTU" grep -q 'mtu 1400' <(ip link show type veth)
check "a second update" grep -q 'nothing to change' <("$exe" update mynet "$id")
check "cni-all check after the update" "$exe" check mynet "$netns" --id "$id"
check "it answers after the update" ping -c 1 -W 2 "$address" >/dev/null
check "stop" podman stop -t 0 one >/dev/null
check "rm" podman rm -f one >/dev/null
clean "removed"
sed -i '/portmap/d; s/{"type": "spy"},/{"type": "spy"}/' /etc/cni/net.d/10-mynet.conflist

# Detached and attached again by cni-all under podman's eyes: libcni must read what we keep.
podman run -d --name two --network mynet "${limits[@]}" localhost/busybox:test sleep 1000 >"$work/log" 2>&1
id=$(tail -n 1 "$work/log")
netns=$(podman inspect --format '{{.NetworkSettings.SandboxKey}}' two)
check "cni-all del of what libcni attached" "$exe" del mynet "$netns" --id "$id"
clean "detached by cni-all"
"$exe" add mynet "$netns" --id "$id" >"$work/log" 2>&1
check "cni-all add in its place: $(cat "$work/log")" grep -q '^eth0: 10.22.' "$work/log"
: >/run/spy
check "podman removes what cni-all attached" podman rm -f -t 0 two >/dev/null
check "libcni reads what cni-all keeps: $(cat /run/spy)" grep -q '^DEL .*"prevResult":.*10\.22\.' /run/spy
clean "removed by podman"

# The list that podman writes for itself, and `-p`: mapped ports lead in from outside, from the host and from localhost.
unshare --net sleep 1000 &
outside=$!
for _ in $(seq 50); do
  [ "$(readlink /proc/$outside/ns/net)" != "$(readlink /proc/self/ns/net)" ] && break
  sleep 0.1
done
ip link add uplink type veth peer name eth0 netns "$outside"
ip addr add 203.0.113.2/24 dev uplink
ip link set uplink up
nsenter --target "$outside" --net sh -c 'ip link set lo up; ip addr add 203.0.113.1/24 dev eth0; ip link set eth0 up'
cat >/etc/cni/net.d/20-web.conflist <<'JSON'
{"cniVersion": "0.4.0", "name": "web", "plugins": [
  {"type": "bridge", "bridge": "web0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.33.0.0/16"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}},
  {"type": "firewall"},
  {"type": "tuning"}
]}
JSON
podman run -d --name three --network web -p 8080:80 -p 127.0.0.1:8081:80 "${limits[@]}" localhost/busybox:test \
  sh -c 'echo served >/tmp/page; exec httpd -f -p 80 -h /tmp' >"$work/log" 2>&1
check "run -p: $(tail -n 1 "$work/log")" grep -qE '^[0-9a-f]{64}$' "$work/log"
id=$(tail -n 1 "$work/log")
fetch() { # fetch NAMESPACE-OF URL
  for _ in $(seq 20); do
    nsenter --target "$1" --net timeout 5 busybox wget -q -O - "$2" 2>/dev/null && return
    sleep 0.1
  done
}
check "-p: the port leads in from outside" grep -qx served <(fetch "$outside" http://203.0.113.2:8080/page)
check "-p: and from the host" grep -qx served <(fetch $$ http://203.0.113.2:8080/page)
check "-p: and from localhost" grep -qx served <(fetch $$ http://127.0.0.1:8081/page)
check "-p: the container reaches the world" podman exec three ping -c 1 -W 2 203.0.113.1 >/dev/null
check "-p: podman tells the port" grep -q '^80/tcp -> 0.0.0.0:8080' <(podman port three)
check "-p: cni-all show tells it" grep -q 'tcp 0.0.0.0:8080 to 10.33.0.' <("$exe" show "$id")
check "-p: a port that is taken is refused with its owner's name" grep -q "8080.*$id" \
  <("$exe" run --network web -p 8080:81 -- true 2>&1)
check "-p: rm" podman rm -f -t 0 three >/dev/null
clean "-p: removed"
check "-p: the firewall's rules are gone" [ -z "$(nft list ruleset 2>/dev/null | grep -F 10.33.)" ]
kill "$outside"

# docker-run: the container's network by plugins that podman knows nothing of.
rm /etc/cni/net.d/10-mynet.conflist
cat >/etc/cni/net.d/10-mynet.conf <<'JSON'
{"cniVersion": "1.0.0", "name": "mynet", "type": "bridge", "bridge": "cni0", "isGateway": true,
 "ipam": {"type": "host-local", "subnet": "10.22.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}}
JSON
cat >"$work/podman" <<SH
#!/bin/sh
# podman run needs limits that this machine allows.
command=\$1; shift
case \$command in run) set -- --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "\$@";; esac
exec $(type -P podman) --log-level error "\$command" "\$@"
SH
chmod 755 "$work/podman"
CNI_ALL_ENGINE=$work/podman CNI_ALL_IMAGE=localhost/busybox:test timeout 120 \
  "$exe" docker-run --rm localhost/busybox:test sh -c 'ip -4 addr show eth0; ping -c 1 -W 2 10.22.0.1; exit 7' >"$work/log" 2>&1
check "docker-run: the status is the command's" [ $? = 7 ]
check "docker-run: it has an address and pings its gateway: $(tail -n 3 "$work/log")" grep -q ' 0% packet loss' "$work/log"
clean "docker-run"
check "docker-run: no container is left" [ -z "$(podman ps -aq)" ]

echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
