//! The only folder that talks to the kernel about networking.

pub mod announce;
pub mod detach;
pub mod netns;
pub mod rtnl;
pub mod sysctl;

use crate::cni::Result;

/// Everything one call needs from the kernel. Each part is opened when it is first used, and kept.
pub struct Kernel {
    wait: bool,
    host: Option<rtnl::Handle>,
}

impl Kernel {
    /// Nothing is opened yet. `wait`: DEL returns only when the kernel has freed everything, instead of leaving the
    /// end of it (a grace period of some 16 ms) to a detached child (`CNI_ALL_WAIT=1`).
    pub fn new(wait: bool) -> Kernel {
        Kernel { wait, host: None }
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
}
