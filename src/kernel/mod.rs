//! The only folder that talks to the kernel about networking.

pub mod conntrack;
pub mod detach;
pub mod dry_run;
pub mod legacy_tables;
pub mod lock;
pub mod namespaces;
pub mod netns;
pub mod nft;
pub mod rtnl;
pub mod sysctl;
pub mod tun;

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::cni::Result;

/// Everything one call needs from the kernel. Each part is opened when it is first used, and kept.
pub struct Kernel {
    wait: bool,
    system_bus: Option<String>,
    host: Option<rtnl::Handle>,
    nft: Option<nft::Socket>,
    /// While this is open, a child keeps the socket before it open; so it is closed after it.
    closing: Option<OwnedFd>,
}

impl Kernel {
    /// Nothing is opened yet. `wait`: DEL returns only when the kernel has freed everything, instead of leaving the
    /// end of it (a grace period of some 16 ms) to a detached child (`CNI_ALL_WAIT=1`).
    pub fn new(wait: bool) -> Kernel {
        Kernel { wait, system_bus: None, host: None, nft: None, closing: None }
    }

    /// The same with the D-Bus addresses of the system bus (`DBUS_SYSTEM_BUS_ADDRESS`), for what changes the kernel through
    /// a service; `None` stands for the usual ones.
    #[must_use]
    pub fn with_system_bus(self, addresses: Option<String>) -> Kernel {
        Kernel { system_bus: addresses, ..self }
    }

    /// The addresses given to [`Kernel::with_system_bus`].
    pub fn system_bus(&self) -> Option<&str> {
        self.system_bus.as_deref()
    }

    /// Whether removals wait until the kernel has freed everything.
    pub fn waits(&self) -> bool {
        self.wait
    }

    /// rtnetlink of the namespace the call was made in: the host's.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn host(&mut self) -> Result<&mut rtnl::Handle> {
        let host = match self.host.take() {
            Some(host) => host,
            None => rtnl::Handle::open()?,
        };
        Ok(self.host.insert(host))
    }

    /// nftables of the namespace the call was made in.
    ///
    /// The socket stays open until the call is over: closing it right after a deletion waits some 13 ms in the kernel.
    ///
    /// # Errors
    /// The kernel has no netfilter netlink, or the socket cannot be opened.
    pub fn nft(&mut self) -> Result<&mut nft::Socket> {
        let nft = match self.nft.take() {
            Some(nft) => nft,
            None => nft::Socket::open()?,
        };
        Ok(self.nft.insert(nft))
    }

    /// Leaves the wait for what nftables removed, at the end of the call, to a child, unless removals wait anyway.
    pub fn close_nft_late(&mut self) {
        if !self.wait && self.nft.is_some() && self.closing.is_none() {
            self.closing = detach::close_late();
        }
    }

    /// As [`Kernel::nft`]; `None` on a kernel without it, where nothing can have been left.
    ///
    /// # Errors
    /// The socket cannot be opened for another reason.
    pub fn nft_if_there(&mut self) -> Result<Option<&mut nft::Socket>> {
        match self.nft() {
            Ok(nft) => Ok(Some(nft)),
            Err(e) if e.errno() == Some(Errno::EPROTONOSUPPORT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}
