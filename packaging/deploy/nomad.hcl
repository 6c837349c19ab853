# Nomad: part of the client's configuration. Jobs with network { mode = "bridge" } use bridge, host-local, portmap and
# firewall; those with mode = "cni/NAME" the list of that name in cni_config_dir.
client {
  enabled        = true
  cni_path       = "/opt/cni/bin"
  cni_config_dir = "/opt/cni/config"
}
