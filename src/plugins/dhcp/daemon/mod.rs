//! `dhcp daemon`: keeps leases alive. One thread waits on everything with epoll; timers are an ordered set.

mod attachment;
mod closer;
pub mod flags;
mod identity;
mod link;
mod listener;
mod server;
mod shown;
mod side4;
mod side6;
mod store;
mod token;

use std::cell::RefCell;
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::path::Path;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::closer::Closer;
use self::flags::Flags;
pub use self::store::Record;
use self::store::Store;
use super::wanted::Key;
use crate::cni::{Error, Result};
use crate::personality::Process;

/// What the parts of the daemon share.
pub struct Tools<'a> {
    epoll: Epoll,
    closer: Closer,
    store: Store,
    flags: Flags,
    /// This host's DUID.
    duid: Vec<u8>,
    log: RefCell<&'a mut dyn Write>,
}

impl<'a> Tools<'a> {
    fn new(flags: Flags, log: &'a mut dyn Write) -> Result<Tools<'a>> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| Error::system("epoll_create1", e))?;
        Ok(Tools {
            epoll,
            closer: Closer::start(),
            store: Store::new(&flags.state),
            duid: identity::duid(&flags.host_prefix),
            flags,
            log: RefCell::new(log),
        })
    }

    /// A line in the log about an attachment.
    fn log(&self, key: &Key, text: &str) {
        self.say(format_args!("{key}: {text}"));
    }

    /// A line in the log.
    fn say(&self, text: impl Display) {
        // A log that cannot be written must not stop renewals.
        let mut log = self.log.borrow_mut();
        let _ = writeln!(log, "dhcp: {text}").and_then(|()| log.flush());
    }
}

/// `dhcp daemon FLAGS`: serves until a signal ends it; the exit status.
pub fn run(words: &[String], process: &mut Process<'_>) -> i32 {
    let flags = match Flags::parse(words) {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            let _ = process.stdout.write_all(flags::HELP.as_bytes());
            return 0;
        }
        Err(e) => {
            let _ = writeln!(process.stderr, "{e}");
            return 2;
        }
    };
    match serve(flags, words, process) {
        Ok(()) => 0,
        Err(e) => {
            let _ = writeln!(process.stderr, "dhcp daemon: {e}");
            1
        }
    }
}

fn serve(flags: Flags, words: &[String], process: &mut Process<'_>) -> Result<()> {
    if flags.ready {
        // Started by a plugin, whose caller may end everything in the plugin's session.
        let _ = nix::unistd::setsid();
    }
    raise_descriptor_limit();
    server::block_signals()?;
    let tools = Tools::new(flags, process.stderr)?;
    let lock = tools.store.lock()?;
    let listener = listener::Listener::open(&tools.flags.socket, process.env)?;
    if let Some(path) = &tools.flags.pidfile {
        let pid = std::process::id().to_string();
        fs::write(path, pid).map_err(|e| Error::io(format_args!("write {}", path.display()), &e))?;
    }
    let mut server = server::Server::new(&tools, &listener)?;
    server.resume();
    if tools.flags.ready {
        let _ = process.stdout.write_all(b"\n").and_then(|()| process.stdout.flush());
    }
    let ended = server.serve();
    if let Some(path) = &tools.flags.pidfile {
        let _ = fs::remove_file(path);
    }
    if ended? == server::End::Reload {
        tools.say("starting anew");
        drop(server);
        drop(lock);
        let args: Vec<String> = std::iter::once("daemon".to_owned()).chain(words.iter().cloned()).collect();
        return Err(listener.exec_anew(&args));
    }
    listener.remove();
    Ok(())
}

/// A lease takes two descriptors, and three more while it is got or renewed: as many as we may have.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Releases, without a daemon, the leases that one has left behind and that are `wanted`: for DEL and GC.
///
/// # Errors
/// A file cannot be removed, or the daemon is just starting.
pub fn release_without(socket: &Path, wanted: &dyn Fn(&Record) -> bool) -> Result<()> {
    let words = ["-socketpath".to_owned(), socket.to_string_lossy().into_owned()];
    let Some(flags) = Flags::parse(&words)? else { return Ok(()) };
    let store = Store::new(&flags.state);
    if !store.exists() {
        return Ok(());
    }
    let _lock = store.lock()?;
    let left: Vec<Record> = store.load().into_iter().filter(|record| wanted(record)).collect();
    if left.is_empty() {
        return Ok(());
    }
    let mut log = std::io::stderr().lock();
    let tools = Tools::new(flags, &mut log)?;
    let mut errors = Vec::new();
    for record in left {
        let key = record.wanted.key.clone();
        match attachment::Attachment::resume(1 << 8, record, &tools) {
            // Nobody is there to say it again.
            Ok(attachment) => {
                let (leaving, released) = attachment.release(&tools);
                leaving.into_iter().for_each(|attachment| attachment.close(&tools));
                errors.extend(released.err());
            }
            // Its namespace or its link is gone: the server finds out when the lease ends.
            Err(_) => errors.extend(store.remove(&key).err()),
        }
    }
    Error::all(errors).map_or(Ok(()), Err)
}
