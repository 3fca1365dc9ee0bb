//! What is printed.

use std::fmt::Write as _;

use openssl::sha::{Sha256, sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// A PDF whose pages say which they are.
pub(crate) fn pdf(pages: usize, title: &str) -> Vec<u8> {
    let mut text = "%PDF-1.4\n".to_owned();
    let mut offsets = Vec::new();
    let mut object = |text: &mut String, body: &str| {
        offsets.push(text.len());
        write!(text, "{} 0 obj\n{body}\nendobj\n", offsets.len()).unwrap();
    };
    let kids: String = (0..pages).map(|page| format!("{} 0 R ", 4 + 2 * page)).collect();
    object(&mut text, "<< /Type /Catalog /Pages 2 0 R >>");
    object(&mut text, &format!("<< /Type /Pages /Kids [ {kids}] /Count {pages} >>"));
    object(&mut text, "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>");
    for page in 0..pages {
        let content = format!("BT /F1 24 Tf 72 720 Td ({title}, page {} of {pages}) Tj ET", page + 1);
        let resources = "/Resources << /Font << /F1 3 0 R >> >> /MediaBox [ 0 0 595 842 ]";
        object(
            &mut text,
            &format!("<< /Type /Page /Parent 2 0 R {resources} /Contents {} 0 R >>", 5 + 2 * page),
        );
        object(&mut text, &format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()));
    }
    let xref = text.len();
    let count = offsets.len() + 1;
    write!(text, "xref\n0 {count}\n0000000000 65535 f \n").unwrap();
    for offset in &offsets {
        writeln!(text, "{offset:010} 00000 n ").unwrap();
    }
    write!(text, "trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n{xref}\n%%EOF\n").unwrap();
    text.into_bytes()
}

/// A label as label printers take them.
pub(super) fn zpl(number: usize) -> Vec<u8> {
    format!("^XA\n^FO50,50^ADN,36,20^FDLabel {number}^FS\n^FO50,120^BCN,100,Y,N,N^FD{number:012}^FS\n^XZ\n")
        .into_bytes()
}

/// Bytes without any order, the same for the same seed; but for the first few, since ippeveprinter wants to see a type that it knows.
pub(super) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = sha256(&seed.to_be_bytes());
    let mut bytes = b"%PDF-1.4\n".to_vec();
    bytes.reserve(length + state.len());
    while bytes.len() < length {
        state = sha256(&state);
        bytes.extend_from_slice(&state);
    }
    bytes.truncate(length);
    bytes
}

/// Writes so many megabytes, of which no two are the same, and gives their hash.
pub(super) async fn pour(mut into: impl AsyncWrite + Unpin, megabytes: u32) -> [u8; 32] {
    let (mut block, mut hash) = (noise(1_000_000, 500), Sha256::new());
    for number in 0..megabytes {
        block[100..104].copy_from_slice(&number.to_be_bytes());
        hash.update(&block);
        into.write_all(&block).await.unwrap();
    }
    into.shutdown().await.unwrap();
    hash.finish()
}
