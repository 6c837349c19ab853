//! Which interface a device has, as sysfs tells it (Documentation/ABI/testing/sysfs-bus-pci, sysfs-class-net).
//!
//! /sys shows the interfaces of the namespace it was mounted in: the host's.

use std::fs;
use std::path::{Path, PathBuf};

use super::conf::Selector;
use crate::cni::{Error, Result};

/// Drivers that hand a device to user space, where it has no interface.
const USERSPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// What a device is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// It has an interface of this name.
    Link(String),
    /// It has a user-space driver.
    Userspace,
}

/// The tree.
pub struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// The machine's.
    pub fn new() -> Sysfs {
        Sysfs { root: "/sys".into() }
    }

    /// The device that a selector names, and its PCI address when that is what names it; `None` for selectors that need
    /// no sysfs.
    ///
    /// # Errors
    /// There is no such device, or it has no interface on this host.
    pub fn find(&self, selector: &Selector) -> Result<Option<(Device, String)>> {
        match selector {
            Selector::Name(_) | Selector::Hwaddr(_) => Ok(None),
            Selector::KernelPath(path) => self.link_in("kernelpath", path).map(|d| Some((d, String::new()))),
            Selector::Pci(id) => self.pci("pciBusID", id).map(Some),
            Selector::DeviceId(id) => {
                if self.exists(&pci_dir(id)) {
                    return self.pci("runtimeConfig.deviceID", id).map(Some);
                }
                let auxiliary = format!("bus/auxiliary/devices/{id}");
                if !self.exists(&auxiliary) {
                    let msg =
                        format!("runtimeConfig.deviceID: {id:?} is neither a PCI nor an auxiliary device");
                    return Err(Error::config(msg));
                }
                self.link_in("runtimeConfig.deviceID", &auxiliary).map(|d| Some((d, String::new())))
            }
        }
    }

    /// The PCI address of the device behind an interface of this host, also when virtio is between the two; empty when
    /// there is none.
    pub fn pci_of(&self, link: &str) -> String {
        let device = self.root.join("class/net").join(link).join("device");
        let Ok(path) = device.canonicalize() else { return String::new() };
        let is_on = |path: &Path, bus: &str| name_of_target(&path.join("subsystem")).as_deref() == Some(bus);
        let name =
            |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        match path.parent() {
            _ if is_on(&path, "pci") => name(&path),
            Some(parent) if is_on(&path, "virtio") && is_on(parent, "pci") => name(parent),
            _ => String::new(),
        }
    }

    fn pci(&self, key: &str, id: &str) -> Result<(Device, String)> {
        let dir = pci_dir(id);
        if !self.exists(&dir) {
            return Err(Error::config(format!("{key}: there is no PCI device {id:?}")));
        }
        let driver = name_of_target(&self.root.join(&dir).join("driver"));
        if driver.is_some_and(|driver| USERSPACE_DRIVERS.contains(&driver.as_str())) {
            return Ok((Device::Userspace, id.to_owned()));
        }
        let direct = self.names(&format!("{dir}/net")).into_iter().next();
        let by_virtio = || {
            let virtio = self.names(&dir).into_iter().filter(|name| name.starts_with("virtio"));
            virtio.flat_map(|name| self.names(&format!("{dir}/{name}/net"))).next()
        };
        match direct.or_else(by_virtio) {
            Some(link) => Ok((Device::Link(link), id.to_owned())),
            None => Err(without_link(key, &dir)),
        }
    }

    fn link_in(&self, key: &str, dir: &str) -> Result<Device> {
        match self.names(&format!("{dir}/net")).into_iter().next() {
            Some(link) => Ok(Device::Link(link)),
            None => Err(without_link(key, dir)),
        }
    }

    fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// The names in a directory, sorted; none when it cannot be read.
    fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }
}

fn pci_dir(id: &str) -> String {
    format!("bus/pci/devices/{id}")
}

/// The last part of what a link points at.
fn name_of_target(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

fn without_link(key: &str, dir: &str) -> Error {
    Error::config(format!("{key}: there is no interface in /sys/{dir}/net"))
        .with_details("the device has no driver, or its interface is in another network namespace")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A tree with these directories and symbolic links (`name -> target`), removed on drop.
    struct Tree(Sysfs);

    impl Tree {
        fn new(test: &str, entries: &[&str]) -> Tree {
            let root = std::env::temp_dir().join(format!("cni-all-sysfs-{test}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            for entry in entries {
                let (path, target) = entry.split_once(" -> ").unwrap_or((entry, ""));
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                if target.is_empty() {
                    fs::create_dir_all(&path).unwrap();
                } else {
                    symlink(target, &path).unwrap();
                }
            }
            Tree(Sysfs { root })
        }

        fn find(&self, selector: Selector) -> Result<(Device, String)> {
            self.0.find(&selector).map(Option::unwrap)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.root);
        }
    }

    fn link(name: &str) -> Device {
        Device::Link(name.into())
    }

    #[test]
    fn a_pci_device_has_its_interface_directly_or_by_virtio() {
        let tree = Tree::new(
            "pci",
            &["bus/pci/devices/0000:00:01.0/net/ens1", "bus/pci/devices/0000:00:02.0/virtio3/net/ens2"],
        );
        assert_eq!(
            tree.find(Selector::Pci("0000:00:01.0".into())).unwrap(),
            (link("ens1"), "0000:00:01.0".into())
        );
        let chosen = tree.find(Selector::DeviceId("0000:00:02.0".into())).unwrap();
        assert_eq!(chosen, (link("ens2"), "0000:00:02.0".into()));
        let err = tree.find(Selector::Pci("0000:00:03.0".into())).unwrap_err();
        assert_eq!(err.msg(), "pciBusID: there is no PCI device \"0000:00:03.0\"");
    }

    #[test]
    fn a_user_space_driver_is_told() {
        let dir = "bus/pci/devices/0000:00:01.0";
        for driver in USERSPACE_DRIVERS {
            let tree = Tree::new("dpdk", &[&format!("{dir}/driver -> ../../../bus/pci/drivers/{driver}")]);
            let found = tree.find(Selector::Pci("0000:00:01.0".into())).unwrap();
            assert_eq!(found, (Device::Userspace, "0000:00:01.0".into()));
        }
        let tree = Tree::new("bound", &[&format!("{dir}/driver -> ../drivers/virtio-pci")]);
        let err = tree.find(Selector::Pci("0000:00:01.0".into())).unwrap_err();
        assert_eq!(err.msg(), "pciBusID: there is no interface in /sys/bus/pci/devices/0000:00:01.0/net");
    }

    #[test]
    fn an_auxiliary_device_is_found_by_its_name() {
        let tree = Tree::new("aux", &["bus/auxiliary/devices/mlx5_core.sf.4/net/enp3s0f0s88"]);
        let found = tree.find(Selector::DeviceId("mlx5_core.sf.4".into())).unwrap();
        assert_eq!(found, (link("enp3s0f0s88"), String::new()));
        let err = tree.find(Selector::DeviceId("mlx5_core.sf.5".into())).unwrap_err();
        assert!(err.msg().contains("mlx5_core.sf.5"), "{err}");
    }

    #[test]
    fn a_kernel_path_names_the_first_interface_in_it() {
        let tree = Tree::new("path", &["devices/virtual/net/eth5", "devices/virtual/net/eth4"]);
        let found = tree.find(Selector::KernelPath("devices/virtual".into())).unwrap();
        assert_eq!(found, (link("eth4"), String::new()));
    }

    #[test]
    fn the_pci_address_of_an_interface_is_found_through_virtio_too() {
        let tree = Tree::new(
            "address",
            &[
                "bus/pci",
                "bus/virtio",
                "devices/pci0000:00/0000:00:01.0/subsystem -> ../../../bus/pci",
                "devices/pci0000:00/0000:00:02.0/subsystem -> ../../../bus/pci",
                "devices/pci0000:00/0000:00:02.0/virtio0/subsystem -> ../../../../bus/virtio",
                "class/net/ens1/device -> ../../../devices/pci0000:00/0000:00:01.0",
                "class/net/ens2/device -> ../../../devices/pci0000:00/0000:00:02.0/virtio0",
                "class/net/veth0",
            ],
        );
        assert_eq!(tree.0.pci_of("ens1"), "0000:00:01.0");
        assert_eq!(tree.0.pci_of("ens2"), "0000:00:02.0");
        assert_eq!((tree.0.pci_of("veth0"), tree.0.pci_of("none")), (String::new(), String::new()));
    }
}
