//! HTTP as bytes on a connection: what was sent is what is seen, nothing is followed or decoded.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::{DEADLINE, Nginx};

/// A request.
#[derive(Clone)]
pub(crate) struct Ask {
    line: String,
    headers: String,
    body: String,
    head: bool,
}

/// The answer to it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Ask {
    pub(crate) fn get(path: &str) -> Self {
        Self::new("GET", path, "1.1")
    }

    /// Method, path and the version of HTTP, such as `1.1`.
    pub(crate) fn new(method: &str, path: &str, version: &str) -> Self {
        Self {
            line: format!("{method} {path} HTTP/{version}\r\n"),
            headers: "Host: localhost\r\nConnection: close\r\n".to_owned(),
            body: String::new(),
            head: method == "HEAD",
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Asks the server of this name.
    pub(crate) fn host(mut self, name: &str) -> Self {
        self.headers = self.headers.replace("Host: localhost", &format!("Host: {name}"));
        self
    }

    pub(crate) fn body(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        let length = body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// What goes over the connection.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        format!("{}{}\r\n{}", self.line, self.headers, self.body).into_bytes()
    }

    /// Sends the request on a connection of its own.
    #[track_caller]
    pub(crate) fn of(&self, nginx: &Nginx<'_>) -> Answer {
        self.try_port(nginx.port()).unwrap_or_else(|err| panic!("{}: {err}", self.line.trim()))
    }

    /// The same, by the port's number; says what went wrong.
    pub(crate) fn try_port(&self, port: u16) -> Result<Answer, String> {
        let io = |err: std::io::Error| err.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(io)?;
        stream.set_read_timeout(Some(DEADLINE)).map_err(io)?;
        stream.write_all(&self.bytes()).map_err(io)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map_err(io)?;
        Answer::parse(&bytes, self.head)
    }
}

impl Answer {
    fn parse(bytes: &[u8], head: bool) -> Result<Self, String> {
        let wrong = |what: &str| format!("{what}: {:?}", String::from_utf8_lossy(bytes));
        let end = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .ok_or_else(|| wrong("no end of the header"))?;
        let header = std::str::from_utf8(&bytes[..end]).map_err(|_| wrong("not text"))?;
        let mut lines = header.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| wrong("no status"))?;
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(": ").ok_or_else(|| wrong("no header line"))?;
                Ok((name.to_owned(), value.to_owned()))
            })
            .collect::<Result<_, String>>()?;
        let mut answer = Self { status, headers, body: bytes[end + 4..].to_vec() };
        if answer.header("Transfer-Encoding") == Some("chunked") {
            answer.body = in_one_piece(&answer.body).ok_or_else(|| wrong("not all chunks"))?;
            return Ok(answer);
        }
        let length = answer.header("Content-Length").map(str::parse::<usize>);
        match length {
            _ if head || status == 304 => {
                if answer.body.is_empty() {
                    Ok(answer)
                } else {
                    Err(wrong("a body"))
                }
            }
            Some(Ok(length)) if length == answer.body.len() => Ok(answer),
            None => Ok(answer),
            Some(_) => Err(wrong("not as long as it says")),
        }
    }

    /// The header line `name`, of which there must not be two.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let first = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "two lines {name}: {self:?}");
        first
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|err| panic!("{err}: {}", self.text()))
    }

    /// What the index in the body lists, each as `product version`, sorted.
    pub(crate) fn versions(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (product, value) in self.json()["products"].as_object().into_iter().flatten() {
            for version in value["versions"].as_object().into_iter().flatten() {
                out.push(format!("{product} {}", version.0));
            }
        }
        out.sort();
        out
    }

    /// The worker that answered, where the configuration says `add_header X-Worker $pid always`.
    #[track_caller]
    pub(crate) fn worker(&self) -> i32 {
        self.header("X-Worker").expect("X-Worker").parse().expect("a process id")
    }
}

/// What chunks make together; none if they do not end where the connection does.
fn in_one_piece(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = chunks.windows(2).position(|window| window == b"\r\n")?;
        let length = std::str::from_utf8(&chunks[..end]).ok()?;
        let length = usize::from_str_radix(length, 16).ok()?;
        out.extend_from_slice(chunks.get(end + 2..end + 2 + length)?);
        let rest = &chunks[end + 2 + length..];
        chunks = rest.strip_prefix(b"\r\n")?;
        if length == 0 {
            return chunks.is_empty().then_some(out);
        }
    }
}
