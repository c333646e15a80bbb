//! What client and server say to each other on a connection, from both sides.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long the server bears with a client that says nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request that the server reads.
const LONGEST_REQUEST: usize = 4096;
const BYTE: &[u8] = b"!";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\
    Connection: close\r\n\r\nhello\n";

/// What is said once connected. The server closes first; the client then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// Nothing: a connection counts as soon as the handshake is done.
    Nothing,
    /// One byte from the server, at once: proof that it accepted.
    Byte,
    /// A small HTTP request and its answer, so that `curl` works too.
    Http,
}

impl Talk {
    /// The server's part.
    pub(super) async fn answer(self, stream: &mut TcpStream) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Byte => stream.write_all(BYTE).await,
            Self::Http => {
                timeout(PATIENCE, read_request(stream)).await??;
                stream.write_all(RESPONSE).await
            }
        }
    }

    /// The client's part: the bytes received, or why they were not those expected.
    pub(super) async fn ask(self, stream: &mut TcpStream) -> io::Result<u64> {
        let expected = match self {
            Self::Nothing => return Ok(0),
            Self::Byte => BYTE.len(),
            Self::Http => {
                stream.write_all(REQUEST).await?;
                RESPONSE.len()
            }
        };
        let mut answer = Vec::new();
        // One more than expected, to reach the end of the stream.
        stream.take(expected as u64 + 1).read_to_end(&mut answer).await?;
        if answer.len() == expected {
            Ok(expected as u64)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// Reads to the blank line that ends a request's head. A body is not expected.
async fn read_request(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < LONGEST_REQUEST {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(())
}
