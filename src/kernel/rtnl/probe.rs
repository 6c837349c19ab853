//! Whether the kernel can make a kind of link: it is asked to, in a namespace made for that.

use neli::consts::nl::NlmF;
use neli::consts::rtnl::{Ifla, IflaInfo, Rtm};
use neli::consts::socket::Msg;
use nix::errno::Errno;

use super::wire::{Batch, Messages, ifinfomsg};
use super::{Socket, link::check_name};
use crate::cni::{Error, Result};

/// Asks the calling thread's namespace for `ip link add try-KIND type KIND`. A kernel without the kind answers EOPNOTSUPP;
/// any other answer (that a parent is missing, say) comes from the kind itself. As with any ADD, the kernel loads the
/// kind's module if there is one.
///
/// # Errors
/// The socket failed, or the permission is missing.
pub fn has_kind(kind: &str) -> Result<bool> {
    // A name for each kind: a link of that name would be the answer to the next question.
    let name = format!("try-{kind}");
    let what = format!("ip link add {name} type {kind}");
    check_name(&name, &what)?;
    let failed = |errno| Error::system(&what, errno);
    let socket = Socket::open()?;
    let mut batch = Batch::default();
    batch.message(Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, &ifinfomsg(0, 0, 0, 0), |a| {
        a.text(Ifla::Ifname, &name);
        a.nest(Ifla::Linkinfo, |a| a.bytes(IflaInfo::Kind, kind.as_bytes()));
    });
    batch.acknowledge_last();
    socket.send(batch.bytes()).map_err(failed)?;
    let mut buffer = vec![0; 8192];
    loop {
        let length = socket.receive(&mut buffer, Msg::empty()).map_err(failed)?;
        for message in Messages(&buffer[..length]) {
            match message.outcome().map(|(errno, _)| errno) {
                None => {}
                Some(errno) if errno == Errno::EPERM as i32 => return Err(failed(Errno::EPERM)),
                Some(errno) => return Ok(errno != Errno::EOPNOTSUPP as i32),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::private_netns::private_netns;

    #[test]
    fn kinds_that_there_are_and_others_are_told_apart() {
        private_netns("kinds_that_there_are", || {
            assert_eq!(has_kind("veth"), Ok(true));
            assert_eq!(has_kind("nonsense"), Ok(false));
        });
    }
}
