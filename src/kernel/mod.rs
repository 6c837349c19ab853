//! The only folder that talks to the kernel about networking.

pub mod netns;
pub mod rtnl;
pub mod sysctl;
