//! Where the application is, if it is given by name: asked anew for each connection, since it may move. And which of its
//! addresses answers.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Whoever asks within this time of another shares its answer. The system's resolver takes a thread for each question, and
/// 5 s to ask again if an answer is lost: so there are few threads, and few wait for that.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// An address that has not answered after this is not waited for alone (RFC 8305 §5).
const AHEAD_FOR: Duration = Duration::from_millis(250);

/// Connects to the first of these addresses that takes the connection. The next one is tried when the one before refuses,
/// or says nothing for some time.
///
/// # Errors
///
/// None takes it: what the last one has said.
async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    if let [address] = addresses {
        return TcpStream::connect(address).await;
    }
    let mut left = addresses.iter().copied();
    let mut attempts = JoinSet::new();
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let ended = match left.next() {
            Some(address) => {
                attempts.spawn(TcpStream::connect(address));
                let Ok(ended) = timeout(AHEAD_FOR, attempts.join_next()).await else { continue };
                ended
            }
            None => attempts.join_next().await,
        };
        match ended {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(refused))) => error = refused,
            Some(Err(failed)) => error = failed.into(),
            None => return Err(error),
        }
    }
}

/// Looks up one name.
#[derive(Debug)]
pub struct Resolver {
    host: String,
    port: u16,
    /// The last question, and when it was asked; `None` when it has been answered.
    asked: Arc<Mutex<Option<(Instant, Receiver)>>>,
}

type Answer = Result<Arc<[SocketAddr]>, Arc<io::Error>>;
type Receiver = watch::Receiver<Option<Answer>>;

impl Resolver {
    /// `host` may be an address, too.
    pub fn new(host: String, port: u16) -> Self {
        Self { host, port, asked: Arc::default() }
    }

    /// Connects to the first address that accepts it.
    ///
    /// # Errors
    ///
    /// None does, or there is none.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let stream = connect(&self.addresses().await?).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// The addresses, in the order in which they are to be tried.
    ///
    /// # Errors
    ///
    /// The name has none, nobody knows, or the system gives no thread to ask with.
    async fn addresses(&self) -> io::Result<Arc<[SocketAddr]>> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok([SocketAddr::new(address, self.port)].into());
        }
        let mut answer = self.ask(Instant::now())?;
        let answer = answer.wait_for(Option::is_some).await.map_err(io::Error::other)?;
        match answer.as_ref() {
            Some(Ok(addresses)) => Ok(addresses.clone()),
            Some(Err(error)) => Err(io::Error::new(error.kind(), error.clone())),
            None => Err(io::ErrorKind::Other.into()),
        }
    }

    fn ask(&self, now: Instant) -> io::Result<Receiver> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, answer)) = &*asked
            && now.duration_since(*at) < SHARED_FOR
        {
            return Ok(answer.clone());
        }
        let (sender, receiver) = watch::channel(None);
        let (host, port, answered) = (self.host.clone(), self.port, self.asked.clone());
        // Not tokio's: it would panic if the system gave no thread. And not a part of a request: it goes on for the others
        // if this one's time is over.
        thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            let answer = (host.as_str(), port).to_socket_addrs().map(Iterator::collect).map_err(Arc::new);
            answered.lock().unwrap_or_else(PoisonError::into_inner).take_if(|(last, _)| *last == now);
            sender.send_replace(Some(answer));
        })?;
        *asked = Some((now, receiver.clone()));
        Ok(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes no more connections, and does not say so.
    fn hole() -> (socket2::Socket, Vec<socket2::Socket>, SocketAddr) {
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        loop {
            filling.push(socket());
            if filling[filling.len() - 1].connect_timeout(&address, Duration::from_millis(200)).is_err() {
                return (listener, filling, address.as_socket().unwrap());
            }
        }
    }

    #[tokio::test]
    async fn the_first_address_that_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (_listener, _filling, silent) = hole();
        for addresses in [
            &[good][..],
            &[good, refusing],
            &[refusing, good],
            &[silent, good],
            &[silent, silent, good],
            &[silent, refusing, good],
            &[refusing, silent, good],
            &[silent, good, refusing],
        ] {
            let stream = connect(addresses).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), good, "{addresses:?}");
        }
        for addresses in [&[refusing][..], &[refusing, refusing]] {
            assert_eq!(connect(addresses).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
        assert_eq!(connect(&[]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(timeout(AHEAD_FOR * 3, connect(&[refusing, silent])).await.is_err(), "it may still answer");
    }

    fn resolver(host: &str) -> Resolver {
        Resolver::new(host.to_owned(), 80)
    }

    #[tokio::test]
    async fn an_address_is_its_own() {
        for (host, address) in [("192.0.2.1", "192.0.2.1:80"), ("2001:db8::1", "[2001:db8::1]:80")] {
            assert_eq!(resolver(host).addresses().await.unwrap()[..], [address.parse().unwrap()]);
        }
    }

    #[tokio::test]
    async fn an_answer_is_shared_by_who_waits_for_it() {
        let (resolver, now) = (resolver("localhost"), Instant::now());
        let one = resolver.ask(now).unwrap();
        assert!(resolver.ask(now + SHARED_FOR - Duration::from_millis(1)).unwrap().same_channel(&one));
        // Not for ever.
        let other = resolver.ask(now + SHARED_FOR).unwrap();
        assert!(!other.same_channel(&one));
        for mut answer in [one, other] {
            answer.wait_for(Option::is_some).await.unwrap();
        }
        let addresses = resolver.addresses().await.unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
        // It is not kept.
        assert!(resolver.asked.lock().unwrap().is_none());
    }

    #[tokio::test]
    async fn a_name_without_an_address() {
        // None that a name server would be asked for.
        let error = resolver(&"a".repeat(64)).addresses().await.unwrap_err();
        assert!(error.to_string().contains("failed to lookup address information"), "{error}");
    }
}
