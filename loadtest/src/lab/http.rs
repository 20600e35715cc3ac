//! Questions to the servers that we started: a connection for each, closed by the answer. Bounded in time and size.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// No answer of theirs is larger.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Status and body of `GET path`.
///
/// # Errors
/// Nobody answers there, not in time, or with too much.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let late = || Error::new(ErrorKind::TimedOut, format!("{address} has not answered after {PATIENCE:?}"));
    timeout(PATIENCE, ask(address, path)).await.unwrap_or_else(|_| Err(late()))
}

async fn ask(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut answer).await?;
    if answer.len() as u64 > ANSWER_BYTES_MAX {
        return Err(Error::other(format!("{address} answers with more than 4 MiB")));
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_has_a_limit() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            for length in [3, usize::try_from(ANSWER_BYTES_MAX).unwrap()] {
                let (mut stream, _) = listener.accept().await.unwrap();
                // Unread, it would end the connection the hard way.
                assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
                let answer = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(length));
                // A client that has had enough hangs up.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        };
        let ask = async {
            assert_eq!(get(address, "/").await.unwrap(), (200, "xxx".to_owned()));
            assert!(get(address, "/").await.unwrap_err().to_string().contains("4 MiB"));
        };
        tokio::join!(serve, ask);
    }
}
