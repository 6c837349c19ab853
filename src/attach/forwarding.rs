//! The host passes packets on between its interfaces: what a gateway does.

use ipnet::IpNet;

use crate::cni::Result;
use crate::kernel::rtnl::Handle;
use crate::kernel::sysctl;

/// Makes the host, whose namespace is the calling thread's, forward the families of these addresses.
///
/// # Errors
/// A family does not exist, or its setting cannot be written.
pub fn ensure(host: &mut Handle, addresses: &[IpNet]) -> Result<()> {
    for (v4, path) in [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")] {
        let is_used = addresses.iter().any(|net| net.addr().is_ipv4() == v4);
        if is_used && !host.is_forwarding(v4).unwrap_or(false) {
            sysctl::ensure(path, "1")?;
        }
    }
    Ok(())
}
