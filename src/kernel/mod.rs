//! The only folder that talks to the kernel about networking.

pub mod nft;
