//! One connection through the proxy: request, answer, fault, and again.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, DATE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::{Answer, Framing, Reader, RequestHead, ResponseHead, invalid};
use super::{Fault, Rewrite, Rules};
use crate::service::{
    BACKWARDS, FAULT_HEADER, IGNORE_ENCODING_TYPE, IGNORE_IF_MATCH, IGNORE_RANGE,
    IGNORE_START_AFTER, REPEAT_TOKEN,
};

const GARBAGE: &[u8] = b"this is <not XML";
const HTML: &[u8] = b"<!DOCTYPE html><html><body><h1>Please sign in</h1></body></html>";
/// A reset throws away what the client's side has not yet received, so it waits a little.
const BEFORE_RESET: Duration = Duration::from_millis(10);

/// Returns when either side is gone or a fault ended the connection.
pub(super) async fn relay(client: TcpStream, target: SocketAddr, rules: &Rules) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    let (mut client, mut server) = (Reader::new(client), Reader::new(server));
    while let Some(mut head) = client.head().await? {
        let request = RequestHead::parse(&head)?;
        let fault = rules.fault_for(&request);
        let Framing::Length(length) = Framing::of(&request.headers)? else {
            return tunnel(client, server, &head).await;
        };
        match &fault {
            Some(Fault::Hangup) => return Ok(()),
            Some(Fault::Status { status, code }) => {
                skip(&mut client, length).await?;
                let with_body = request.method != http::Method::HEAD;
                client.stream.write_all(&refusal(*status, code, "", with_body)).await?;
                continue;
            }
            Some(Fault::RetryAfter(seconds)) => {
                skip(&mut client, length).await?;
                let with_body = request.method != http::Method::HEAD;
                let after = format!("Retry-After: {seconds}\r\n");
                client.stream.write_all(&refusal(503, "SlowDown", &after, with_body)).await?;
                continue;
            }
            Some(Fault::IgnoreRange) => ask_for(&mut head, IGNORE_RANGE),
            Some(Fault::IgnoreIfMatch) => ask_for(&mut head, IGNORE_IF_MATCH),
            Some(Fault::IgnoreStartAfter) => ask_for(&mut head, IGNORE_START_AFTER),
            Some(Fault::IgnoreEncodingType) => ask_for(&mut head, IGNORE_ENCODING_TYPE),
            Some(Fault::RepeatToken) => ask_for(&mut head, REPEAT_TOKEN),
            Some(Fault::BackwardsPage) => ask_for(&mut head, BACKWARDS),
            _ => {}
        }
        server.stream.write_all(&head).await?;
        client.copy(&mut server.stream, length).await?;

        let head = loop {
            let head = server.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let parsed = ResponseHead::parse(&head)?;
            if parsed.status >= 200 {
                break parsed;
            }
            client.stream.write_all(&head).await?; // 100 Continue
        };
        let length = match Framing::of(&head.headers)? {
            _ if request.method == http::Method::HEAD || matches!(head.status, 204 | 304) => 0,
            Framing::Length(length) => length,
            Framing::Chunked => return Err(invalid("chunked answers are not understood")),
        };
        if !answer(&mut client, &mut server, head, length, fault, &request).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// Forwards the answer, with its fault. True if the connection can be used further.
async fn answer(
    client: &mut Reader,
    server: &mut Reader,
    mut head: ResponseHead,
    length: u64,
    fault: Option<Fault>,
    request: &RequestHead,
) -> io::Result<bool> {
    if let Some(Fault::Rewrite(Rewrite(rewrite))) = &fault {
        let mut body = Vec::new();
        while (body.len() as u64) < length {
            body.extend(server.some(length - body.len() as u64).await?);
        }
        let ResponseHead { status, headers } = head;
        let bytes = rewrite(request, Answer { status, headers, body });
        client.stream.write_all(&bytes).await?;
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        return Ok(!head.contains("connection: close"));
    }
    match &fault {
        Some(Fault::Delay(delay)) => tokio::time::sleep(*delay).await,
        Some(Fault::Date(value)) => head.set(DATE, value)?,
        Some(Fault::ContentRange(value)) => head.set(CONTENT_RANGE, value)?,
        Some(Fault::ContentLength(value) | Fault::BodyLength(value)) => {
            head.set(CONTENT_LENGTH, &value.to_string())?;
        }
        Some(fault @ (Fault::Garbage | Fault::Html)) => {
            head.status = 200;
            let text = if *fault == Fault::Html { HTML } else { GARBAGE };
            head.set(CONTENT_LENGTH, &text.len().to_string())?;
        }
        _ => {}
    }
    let to = &mut client.stream;
    to.write_all(&head.to_bytes()).await?;
    match fault {
        Some(Fault::Reset { after }) => {
            server.copy(to, after.min(length)).await?;
            tokio::time::sleep(BEFORE_RESET).await;
            to.set_zero_linger()?;
            return Ok(false);
        }
        Some(Fault::Truncate { after }) => {
            server.copy(to, after.min(length)).await?;
            to.shutdown().await?;
            return Ok(false);
        }
        Some(Fault::Stall { after, pause }) => {
            let after = after.min(length);
            server.copy(to, after).await?;
            let pause = pause.unwrap_or(Duration::MAX);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Nothing is sent by a client that waits, so this is its hanging up.
                _ = to.read_u8() => return Ok(false),
            }
            server.copy(to, length - after).await?;
        }
        Some(Fault::ContentLength(_)) => {
            // Later bytes on the connection would be taken for a part of this answer.
            server.copy(to, length).await?;
            to.shutdown().await?;
            return Ok(false);
        }
        Some(Fault::BodyLength(wanted)) => {
            server.copy(to, wanted.min(length)).await?;
            skip(server, length.saturating_sub(wanted)).await?;
            let zeros = usize::try_from(wanted.saturating_sub(length)).map_err(invalid)?;
            to.write_all(&vec![0; zeros]).await?;
        }
        Some(Fault::Corrupt { at }) if at < length => {
            server.copy(to, at).await?;
            let byte = server.some(1).await?;
            to.write_all(&[!byte[0]]).await?;
            server.copy(to, length - at - 1).await?;
        }
        Some(fault @ (Fault::Garbage | Fault::Html)) => {
            skip(server, length).await?;
            to.write_all(if fault == Fault::Html { HTML } else { GARBAGE }).await?;
        }
        _ => server.copy(to, length).await?,
    }
    let closes = head.headers.get(CONNECTION).is_some_and(|value| value == "close");
    Ok(!closes)
}

/// Reads and discards `length` bytes of body.
async fn skip(from: &mut Reader, length: u64) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        left -= from.some(left).await?.len() as u64;
    }
    Ok(())
}

/// Puts the header before the empty line.
fn ask_for(head: &mut Vec<u8>, fault: &str) {
    head.truncate(head.len() - 2);
    head.extend_from_slice(format!("{FAULT_HEADER}: {fault}\r\n\r\n").as_bytes());
}

fn refusal(status: u16, code: &str, header: &str, with_body: bool) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>A fault of the test</Message></Error>"
    );
    let body = if with_body { body } else { String::new() };
    format!(
        "HTTP/1.1 {status} \r\n{header}Content-Type: application/xml\r\nContent-Length: {}\r\n\r\n\
         {body}",
        body.len()
    )
    .into_bytes()
}

/// Lets a request whose end cannot be told, and all after it, pass as they are.
async fn tunnel(mut client: Reader, mut server: Reader, head: &[u8]) -> io::Result<()> {
    server.stream.write_all(head).await?;
    server.stream.write_all(&client.take_buffer()).await?;
    tokio::io::copy_bidirectional(&mut client.stream, &mut server.stream).await?;
    Ok(())
}
