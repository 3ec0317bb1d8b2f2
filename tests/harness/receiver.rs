//! A receiver of webhooks: keeps what it gets, and answers what the test says. It checks signatures on its own, as Standard
//! Webhooks describes it.

use std::collections::{HashMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

/// What is answered where the test says nothing else.
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Answers until dropped.
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    script: Mutex<Script>,
    stop: AtomicBool,
}

#[derive(Default)]
struct Script {
    next: VecDeque<Reply>,
    then: Option<Reply>,
}

/// How a request is answered.
#[derive(Clone)]
pub(crate) enum Reply {
    /// With these bytes.
    Bytes(String),
    /// With this status by all who ask a first time for an event; then with OK.
    FirstTime(&'static str),
    /// Not at all, for as long as the client waits.
    Nothing,
    /// With this head, and then bytes without end.
    Endless(&'static str),
    /// With OK, after a while.
    Late(Duration),
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Reply {
    /// A status, which headers may follow, and a body.
    pub(crate) fn status(head: &str, body: &str) -> Self {
        let length = body.len();
        Self::Bytes(format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"))
    }
}

impl Received {
    /// The `CloudEvent`.
    pub(crate) fn event(&self) -> Value {
        serde_json::from_str(&self.body).expect("a body is JSON")
    }

    /// Whether one of its signatures is of this secret.
    pub(crate) fn is_signed_with(&self, secret: &str) -> bool {
        let key = STANDARD
            .decode(secret.strip_prefix("whsec_").expect("a secret says so"))
            .expect("base64");
        let signed =
            format!("{}.{}.{}", self.headers["webhook-id"], self.headers["webhook-timestamp"], self.body);
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("any length will do");
        mac.update(signed.as_bytes());
        let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        self.headers["webhook-signature"]
            .split(' ')
            .any(|signature| signature == expected)
    }
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let answering = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if answering.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), answering) = (stream, Arc::clone(&answering)) else { continue };
                std::thread::spawn(move || {
                    // A client that hangs up midway is no failure.
                    let _ = answering.answer(stream);
                });
            }
        });
        Self { address, shared }
    }

    /// Where events are posted to.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/events", self.address)
    }

    /// Answers so from now on.
    pub(crate) fn reply(&self, reply: Reply) {
        *self.shared.script.lock().expect("nobody panics here") =
            Script { next: VecDeque::new(), then: Some(reply) };
    }

    /// Answers the next request so, after those that were said before.
    pub(crate) fn reply_once(&self, reply: Reply) {
        self.shared.script.lock().expect("nobody panics here").next.push_back(reply);
    }

    /// All that came, in the order in which it came.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("nobody panics here").clone()
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let received = read(&mut stream)?;
        let id = received.headers.get("webhook-id").cloned();
        let reply = {
            let mut script = self.script.lock().expect("nobody panics here");
            script.next.pop_front().or_else(|| script.then.clone())
        };
        let times = {
            let mut all = self.received.lock().expect("nobody panics here");
            all.push(received);
            all.iter().filter(|one| one.headers.get("webhook-id") == id.as_ref()).count()
        };
        match reply {
            Some(Reply::Bytes(bytes)) => stream.write_all(bytes.as_bytes()),
            Some(Reply::FirstTime(status)) if times == 1 => {
                stream.write_all(OK.replace("200 OK", status).as_bytes())
            }
            None | Some(Reply::FirstTime(_)) => stream.write_all(OK.as_bytes()),
            // Until the client closes.
            Some(Reply::Nothing) => stream.read(&mut [0]).map(drop),
            Some(Reply::Late(pause)) => {
                std::thread::sleep(pause);
                stream.write_all(OK.as_bytes())
            }
            Some(Reply::Endless(head)) => {
                write!(stream, "HTTP/1.1 {head}\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n")?;
                loop {
                    stream.write_all(&[b'x'; 8192])?;
                }
            }
        }
    }
}

fn read(stream: &mut TcpStream) -> std::io::Result<Received> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let headers: HashMap<_, _> = lines
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Received { path, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the thread.
        drop(TcpStream::connect(self.address));
    }
}
