#!/usr/bin/env bash
# A container of Debian's containerd (`ctr run --cni`) with cni-all as its only plugins: it starts, reaches its gateway
# and the outside world, and is removed without a trace. Everything runs in private mount and network namespaces.
#
#     tests/real/ctr.sh [EXECUTABLE]      default: target/release/cni-all
set -uo pipefail
executable=$(readlink -f "${1:-target/release/cni-all}")
passed=0 failed=0 skipped=0
finish() { echo "$passed passed, $failed failed, $skipped skipped"; [ "$failed" -eq 0 ]; exit; }
skip() {
  echo "SKIP containerd: $1"
  if [ "${CNI_ALL_STRICT:-}" = 1 ]; then failed=1; else skipped=1; fi
  finish
}
if [ "${2:-}" != inside ]; then
  [ "$(id -u)" -eq 0 ] || skip "needs root"
  for tool in containerd ctr runc busybox ip nft unshare; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
  done
  exec unshare --mount --net "$0" "$executable" inside
fi

claim() { # claim TEXT COMMAND…
  local text=$1 output
  shift
  if output=$("$@" 2>&1); then
    passed=$((passed + 1)) && echo "ok $text"
  else
    failed=$((failed + 1)) && echo "FAIL $text: $output"
  fi
}

work=$(mktemp -d)
trap 'kill "${daemon:-}" "${outside:-}" 2>/dev/null; wait 2>/dev/null; umount "$work/state" 2>/dev/null; rm -rf "$work"' EXIT
mount --make-rprivate /
mkdir -p "$work"/{bin,net.d,root,state,lib,image} /opt/cni/bin /etc/cni/net.d /var/lib/cni
"$executable" install "$work/bin" >/dev/null || skip "cni-all install failed"
mount --bind "$work/bin" /opt/cni/bin
mount --bind "$work/net.d" /etc/cni/net.d
mount --bind "$work/lib" /var/lib/cni
mount -t tmpfs none /run/netns 2>/dev/null || { mkdir -p /run/netns && mount -t tmpfs none /run/netns; }
cat >"$work/net.d/10-mynet.conflist" <<'JSON'
{"cniVersion":"1.0.0","name":"mynet","plugins":[
  {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,
   "ipam":{"type":"host-local","subnet":"10.22.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}}]}
JSON

# The world outside: a namespace that answers "hello" on port 80 and sees who asks.
ip link set lo up
ip netns add outside
ip link add uplink type veth peer name out0 netns outside
ip addr add 203.0.113.2/24 dev uplink && ip link set uplink up
ip -n outside addr add 203.0.113.1/24 dev out0 && ip -n outside link set out0 up
mkdir "$work/www" && echo hello >"$work/www/index.html"
ip netns exec outside busybox httpd -f -p 203.0.113.1:80 -h "$work/www" &
outside=$!
busybox httpd -p 80 -h "$work/www" || true # the host itself, for the gateway's address

# An image of one layer: busybox, written as `docker save` writes it.
layer="$work/image/layer" && mkdir -p "$layer/bin" "$layer/etc"
cp "$(command -v busybox)" "$layer/bin/busybox"
for applet in sh sleep nc ip grep printf; do ln -s busybox "$layer/bin/$applet"; done
tar -C "$layer" -cf "$work/image/layer.tar" .
digest=$(sha256sum "$work/image/layer.tar" | cut -d' ' -f1)
printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$digest" >"$work/image/config.json"
echo '[{"Config":"config.json","RepoTags":["localhost/busybox:test"],"Layers":["layer.tar"]}]' >"$work/image/manifest.json"
tar -C "$work/image" -cf "$work/image.tar" manifest.json config.json layer.tar

cat >"$work/config.toml" <<TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/containerd.sock"
TOML
containerd --config "$work/config.toml" --log-level warn >"$work/containerd.log" 2>&1 &
daemon=$!
ctr() { command ctr --address "$work/containerd.sock" "$@"; }
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
ctr version >/dev/null 2>&1 || skip "containerd does not start: $(tail -n 2 "$work/containerd.log")"
ctr images import --snapshotter native "$work/image.tar" >/dev/null 2>"$work/import.log" ||
  skip "the image cannot be imported: $(tail -n 1 "$work/import.log")"

run() { ctr run --rm --cni --snapshotter native localhost/busybox:test "$@"; }
nothing_left() {
  local links leases rules
  links=$(ip -o link | grep -c veth)
  leases=$(find /var/lib/cni/networks -type f -name '10.*' | wc -l)
  rules=$(nft list ruleset | grep -c 'elements')
  [ "$links $leases $rules" = "0 0 0" ] || { ip -o link; find /var/lib/cni; nft list ruleset; return 1; }
}
# The container's process starts before ctr attaches it to the network.
wait_up='i=0; until ip -4 addr show eth0 2>/dev/null | grep -q 10.22; do i=$((i+1)); [ $i -gt 100 ] && exit 9; sleep 0.05; done;'
started=$(run first /bin/sh -c "$wait_up ip -4 addr show eth0; for to in 10.22.0.1 203.0.113.1; do printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 \$to 80; done" 2>&1)
claim "a container has an address of the network" [ "${started#*inet 10.22.}" != "$started" ]
reached_both() { [ "$(grep -c '^hello' <<<"$started")" -eq 2 ] || { echo "$started"; return 1; }; }
claim "it reaches its gateway and, masqueraded, the world outside" reached_both
claim "nothing is left of it: no link, lease or rule" nothing_left

ctr run -d --cni --snapshotter native localhost/busybox:test second /bin/sh -c 'sleep 60' >"$work/second.log" 2>&1
claim "a second one runs in the background" ctr task ls
claim "its link is on the bridge" sh -c "ip -o link show master cni0 | grep -q veth"
ctr task kill -s SIGKILL second >/dev/null 2>&1
sleep 0.5
ctr task rm second >/dev/null 2>&1
ctr container rm second >/dev/null 2>&1
# `ctr run -d --cni` leaves detaching to whoever removes the container: that is done by hand, as its users do.
CNI_COMMAND=DEL CNI_CONTAINERID=$(find /var/lib/cni/networks/mynet -name '10.*' -exec sh -c 'head -n1 "$1" | tr -d "\r\n"' _ {} \;) \
  CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/bridge \
  <<<'{"cniVersion":"1.0.0","name":"mynet","type":"bridge","ipMasq":true,"ipam":{"type":"host-local","subnet":"10.22.0.0/16"}}'
claim "DEL by hand, without its namespace, leaves nothing" nothing_left
finish
