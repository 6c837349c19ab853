//! The only folder that talks to the kernel about networking.

pub mod announce;
pub mod detach;
pub mod netns;
pub mod rtnl;
pub mod sysctl;
