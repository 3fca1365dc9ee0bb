//! QEMU's control socket: one JSON object a line (QEMU, `docs/interop/qmp-spec.rst`).

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Error, failed};

#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Qmp {
    pub(super) async fn new(socket: UnixStream) -> Result<Self, Error> {
        let (reader, writer) = socket.into_split();
        let mut qmp = Self { reader: BufReader::new(reader), writer };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Not cancel safe: the answer to a command given up would be taken for that of the next.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.writer.write_all(line.as_bytes()).await.map_err(failed("qemu's control socket"))?;
        loop {
            let mut line = String::new();
            let len = self.reader.read_line(&mut line).await.map_err(failed("qemu's control socket"))?;
            let refused = |reason: String| Error::Refused { command: command.to_owned(), reason };
            if len == 0 {
                return Err(refused("it closed its control socket".to_owned()));
            }
            let value: Value = serde_json::from_str(&line).map_err(|error| refused(error.to_string()))?;
            // The greeting and events come in between.
            if let Some(result) = value.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = value.get("error") {
                return Err(refused(error.to_string()));
            }
        }
    }
}
