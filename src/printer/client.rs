//! The other side: sends a document to a printer, as an application does that prints.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Cursor;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Collected, Limited};
use hyper::Request;
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use ipp::attribute::IppAttribute;
use ipp::model::{DelimiterTag, IppVersion, Operation, StatusCode};
use ipp::parser::{IppParseError, IppParser};
use ipp::reader::IppReader;
use ipp::request::IppRequestResponse;
use ipp::value::IppValue;
use tokio::io::{AsyncRead, AsyncWrite};

use super::operation::head_len;

/// Bytes of an answer; ours has a few hundred.
const ANSWER_LIMIT: usize = 64 << 10;

/// What a printer says of a job it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Printed {
    /// The job's number.
    pub job: u32,
    /// `job-state`, RFC 8011 5.3.7: 9 is completed.
    pub state: i32,
}

/// Why a document was not printed.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The connection or HTTP.
    #[error("sending the job: {0}")]
    Http(#[from] hyper::Error),
    /// HTTP says no.
    #[error("the printer answers with HTTP status {0}, 200 was expected")]
    Status(hyper::StatusCode),
    /// The printer says no.
    #[error("the printer refuses the job: {0:?}")]
    Refused(StatusCode),
    /// The printer's answer is not as IPP has it.
    #[error("the printer's answer is broken: {0}")]
    Answer(String),
}

impl From<IppParseError> for SubmitError {
    fn from(error: IppParseError) -> Self {
        SubmitError::Answer(error.to_string())
    }
}

/// Prints a document (IPP Print-Job) over a connection to the printer; `authority` is the host and port the connection
/// goes to. Not cancel safe: a job broken off is lost.
///
/// # Errors
/// The connection breaks, or the printer does not want it.
pub async fn submit<S>(
    stream: S,
    authority: &str,
    name: &str,
    format: &str,
    document: Bytes,
) -> Result<Printed, SubmitError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let uri = format!("ipp://{authority}/ipp/print");
    let uri = uri.parse().map_err(|error| SubmitError::Answer(format!("{uri}: {error}")))?;
    let mut request = IppRequestResponse::new(IppVersion::v2_0(), Operation::PrintJob, Some(uri))?;
    let attributes = [
        ("requesting-user-name", IppValue::new_name_without_language("guest")?),
        ("job-name", IppValue::new_name_without_language(name)?),
        ("document-format", IppValue::new_mime_media_type(format)?),
    ];
    for (name, value) in attributes {
        request
            .attributes_mut()
            .add(DelimiterTag::OperationAttributes, IppAttribute::with_name(name, value)?);
    }
    let head = request.to_bytes();
    let len = head.len() + document.len();
    let body = HeadAndDocument { pieces: VecDeque::from([head, document]) };
    let request = Request::post("/ipp/print")
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/ipp")
        .header(CONTENT_LENGTH, len)
        .body(body)
        .map_err(|error| SubmitError::Answer(error.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let talk = async move {
        let answer = sender.send_request(request).await?;
        if answer.status() != hyper::StatusCode::OK {
            return Err(SubmitError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        body.map(Collected::to_bytes).map_err(|error| SubmitError::Answer(error.to_string()))
    };
    // The connection ends when the sender is dropped; until then it moves the bytes.
    let (answer, connection) = tokio::join!(talk, connection);
    let answer = answer?;
    if let Err(error) = connection {
        tracing::debug!(%error, "the connection to the printer ended badly after the answer");
    }
    match head_len(&answer) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(SubmitError::Answer("it ends within its attributes".to_owned())),
        Err(error) => return Err(SubmitError::Answer(error.to_string())),
    }
    let (header, attributes, _) = IppParser::new(IppReader::new(Cursor::new(answer))).parse_parts()?;
    if !header.status_code().is_success() {
        return Err(SubmitError::Refused(header.status_code()));
    }
    let number = |name: &str| {
        let group = attributes.first_of(DelimiterTag::JobAttributes)?;
        let value = group.get(name)?.value();
        value.as_integer().or_else(|| value.as_enum()).copied()
    };
    let job = number("job-id").and_then(|id| u32::try_from(id).ok());
    let job = job.ok_or_else(|| SubmitError::Answer("there is no job-id in it".to_owned()))?;
    let state =
        number("job-state").ok_or_else(|| SubmitError::Answer("there is no job-state in it".to_owned()))?;
    Ok(Printed { job, state })
}

/// A request's body in two pieces, neither of them copied.
struct HeadAndDocument {
    pieces: VecDeque<Bytes>,
}

impl Body for HeadAndDocument {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().pieces.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}
