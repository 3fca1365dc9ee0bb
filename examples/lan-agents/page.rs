//! The little of HTTP that devices have: a document at any path, or something odd.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{Device, Odd, Result};

/// Documents by path; that of `""` is for all others.
pub(crate) type Pages = BTreeMap<&'static str, (&'static str, String)>;

/// Serves them at `port` of the device.
pub(crate) async fn serve(device: &Device, port: u16, pages: Pages) -> Result<()> {
    let listener = TcpListener::bind((device.address, port)).await?;
    let (odd, pages) = (device.odd, Arc::new(pages));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let pages = Arc::clone(&pages);
            // Whoever asked may hang up at any time.
            tokio::spawn(async move {
                let _ = answer(stream, odd, &pages).await;
            });
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, odd: Option<Odd>, pages: &Pages) -> Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > 16 << 10 || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    // The body, if any, is read so that closing does not reset what is answered.
    let head = text.find("\r\n\r\n").unwrap_or_default() + 4;
    let length = text
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut left = length.unwrap_or(0_usize).saturating_sub(request.len().saturating_sub(head)).min(64 << 10);
    let mut rest = vec![0; 4096];
    while left > 0 {
        let got = stream.read(&mut rest).await?;
        if got == 0 {
            break;
        }
        left = left.saturating_sub(got);
    }
    let path = text.split(' ').nth(1).unwrap_or_default();
    let Some((kind, document)) = pages.get(path).or_else(|| pages.get("")) else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await?;
        return Ok(());
    };
    let ok = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")
    };
    match odd {
        Some(Odd::Garbage) => stream.write_all(&[0x80; 4096]).await?,
        Some(Odd::Redirect) => {
            stream
                .write_all(
                    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:631/\r\nContent-Length: 0\r\n\r\n",
                )
                .await?;
        }
        Some(Odd::Bomb) => {
            let bomb =
                format!("<!DOCTYPE x [<!ENTITY a \"{}\">]><x>{}</x>", "a".repeat(1000), "&a;".repeat(10_000));
            stream.write_all(ok(bomb.len()).as_bytes()).await?;
            stream.write_all(bomb.as_bytes()).await?;
        }
        Some(Odd::Endless) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            loop {
                stream.write_all(b"10\r\n<a>aaaaaaaaa</a>\r\n").await?;
            }
        }
        Some(Odd::Slow) => {
            for byte in ok(document.len()).bytes().chain(document.bytes()) {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Some(Odd::Mute) => std::future::pending().await,
        Some(Odd::Texts | Odd::Forger | Odd::Elsewhere) | None => {
            stream.write_all(ok(document.len()).as_bytes()).await?;
            stream.write_all(document.as_bytes()).await?;
        }
    }
    Ok(())
}

/// As text of an element.
pub(crate) fn escaped(text: &str) -> String {
    // Control characters are no part of XML.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
