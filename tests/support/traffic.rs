//! Traffic between namespaces: ping, and TCP and UDP sockets of this process made inside a namespace.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::{Netns, patience};

impl Netns {
    /// Whether an address answers one echo request within a second.
    pub fn pings(&self, address: &str) -> bool {
        self.pings_within(address, "1")
    }

    /// Whether an address answers one echo request within a time in seconds (`0.1`).
    pub fn pings_within(&self, address: &str, seconds: &str) -> bool {
        let limit = Duration::from_secs_f64(seconds.parse().unwrap());
        let seconds = patience(limit).as_secs_f64();
        self.try_run(&format!("ping -n -q -c 1 -W {seconds} {address}")).status.success()
    }

    /// A TCP socket listening inside the namespace.
    #[track_caller]
    pub fn listen(&self, address: impl Into<IpAddr>, port: u16) -> TcpListener {
        self.bind(SocketAddr::new(address.into(), port), TcpListener::bind)
    }

    /// A socket inside the namespace.
    ///
    /// The one before it on the same port may live on for a moment in a process that a parallel test is about to start:
    /// so this waits until the port is free.
    #[track_caller]
    fn bind<T: Send>(&self, address: SocketAddr, bind: fn(SocketAddr) -> io::Result<T>) -> T {
        let deadline = Instant::now() + patience(Duration::from_secs(1));
        loop {
            match self.enter(|| bind(address)) {
                Ok(socket) => return socket,
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(e) => panic!("bind {address}: {e}"),
            }
        }
    }

    /// A TCP connection made from inside the namespace.
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        self.enter(|| TcpStream::connect_timeout(&to, patience(limit)))
    }

    /// A UDP socket inside the namespace; receiving gives up after one second.
    #[track_caller]
    pub fn udp(&self, address: impl Into<IpAddr>, port: u16) -> UdpSocket {
        let socket = self.bind(SocketAddr::new(address.into(), port), UdpSocket::bind);
        socket.set_read_timeout(Some(patience(Duration::from_secs(1)))).unwrap();
        socket
    }

    /// Connects from here to an address of `server` and returns the source address that the server sees.
    pub fn seen_by(&self, server: &Netns, address: &str) -> io::Result<IpAddr> {
        let listener = server.listen(address.parse::<IpAddr>().unwrap(), 0);
        let _open = self.connect(listener.local_addr()?, Duration::from_secs(2))?;
        Ok(listener.accept()?.1.ip())
    }

    /// Sends a UDP datagram from here to an address of `server` and returns the source address that arrives. Unlike TCP
    /// this needs no way back.
    pub fn datagram_seen_by(&self, server: &Netns, address: &str) -> io::Result<IpAddr> {
        let address: IpAddr = address.parse().unwrap();
        let receiver = server.udp(address, 0);
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        self.udp(any, 0).send_to(b"hello", receiver.local_addr()?)?;
        Ok(receiver.recv_from(&mut [0; 16])?.1.ip())
    }

    /// How long it takes from here until a connection to an address of `server` stands.
    pub fn time_to_connect(&self, server: &Netns, address: &str) -> io::Result<Duration> {
        let listener = server.listen(address.parse::<IpAddr>().unwrap(), 0);
        let to = listener.local_addr()?;
        self.enter(|| {
            let started = Instant::now();
            TcpStream::connect_timeout(&to, patience(Duration::from_secs(2)))?;
            Ok(started.elapsed())
        })
    }
}
