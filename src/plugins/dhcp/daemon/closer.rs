//! Closes packet sockets aside: each close waits for a grace period of the kernel (`packet_release`), some 20 ms in which
//! nobody else would be served.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};

/// A thread that does nothing but close descriptors.
pub struct Closer(Option<Sender<OwnedFd>>);

impl Closer {
    /// Starts the thread; without one, closing waits.
    pub fn start() -> Closer {
        let (sender, receiver) = channel::<OwnedFd>();
        let thread = std::thread::Builder::new().name("closer".to_owned()).stack_size(64 * 1024);
        let started = thread.spawn(move || receiver.into_iter().for_each(drop));
        Closer(started.is_ok().then_some(sender))
    }

    /// Closes a descriptor soon.
    pub fn close(&self, fd: OwnedFd) {
        if let Some(sender) = &self.0 {
            // A thread that has ended gives the descriptor back, and it is closed here.
            let _ = sender.send(fd);
        }
    }
}
