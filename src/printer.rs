//! A small printer, and a real one: it speaks IPP over HTTP well enough for `ipptool` and for CUPS without a driver,
//! stores each job in a file and tells its SHA-256. It is what the demo prints on, and a service to point tests at.
//!
//! `GET /` shows the jobs, `GET /jobs/1` gives the first one back. Jobs go to the disk as they come, whatever their
//! size; heads of requests are bounded.

mod client;
mod operation;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipp::model::StatusCode as IppStatus;
use openssl::sha::Sha256;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use client::{Printed, SubmitError, submit};
use operation::{Description, Task, Ticket, head_len};

/// Bytes of HTTP headers, and of an IPP request before its document.
const HEAD_LIMIT: usize = 16 << 10;
const HEADERS_LIMIT: usize = 64;
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// A document that does not go on for so long is given up.
const STALLED: Duration = Duration::from_secs(120);
/// Finished jobs the printer remembers.
const REMEMBERED: usize = 1000;
/// Bytes read from a stored job at a time.
const PIECE: usize = 64 << 10;

/// What kind of printer.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name, for people.
    pub name: String,
    /// Where jobs are stored. Must exist.
    pub directory: PathBuf,
    /// The most bytes a job may have.
    pub largest_job: u64,
}

impl Config {
    /// A printer that takes jobs up to 4 GiB.
    pub fn new(name: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), directory: directory.into(), largest_job: 4 << 30 }
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// Its document comes, or is still to come.
    Receiving,
    /// It is in its file, whole.
    Stored,
    /// Its sender withdrew it before that.
    Canceled,
    /// It broke off, was too large, or the disk did not take it.
    Failed,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number, from 1.
    pub id: u32,
    /// What its sender calls it. Not ours: not to be used in a path.
    pub name: String,
    /// Who its sender says it is.
    pub user: String,
    /// The document's MIME type, one of those the printer takes.
    pub format: String,
    /// How far it is.
    pub state: JobState,
    /// Bytes of the document that came.
    pub bytes: u64,
    /// Of a stored job: the SHA-256 of its document, in lower-case hexadecimal.
    pub sha256: Option<String>,
    /// Of a stored job: its file.
    pub file: Option<PathBuf>,
    /// Its document has begun to come.
    begun: bool,
    /// Seconds after the printer was switched on.
    created: i32,
    ended: Option<i32>,
}

/// A printer. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Printer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    since: Instant,
    uuid: String,
    queue: Mutex<Queue>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Queue {
    last: u32,
    jobs: VecDeque<Job>,
}

type Answer = Response<BoxBody<Bytes, io::Error>>;

impl Printer {
    /// Switches a printer on. It prints nothing until it serves.
    pub fn new(config: Config) -> Self {
        let uuid = uuid(&config.name);
        let (changed, _) = watch::channel(());
        let queue = Mutex::default();
        Self { shared: Arc::new(Shared { config, since: Instant::now(), uuid, queue, changed }) }
    }

    /// Serves whoever connects, for ever. Dropping the future ends all of its connections.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            let printer = self.clone();
            connections.spawn(async move { printer.serve_connection(stream).await });
            while connections.try_join_next().is_some() {}
        }
    }

    /// Serves one connection until it ends.
    pub async fn serve_connection<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| self.handle(request));
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .max_buf_size(HEAD_LIMIT)
            .max_headers(HEADERS_LIMIT)
            // A client may finish sending and still wait for its answer.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a connection of the printer ended");
        }
    }

    /// The jobs it remembers, oldest first.
    pub fn jobs(&self) -> Vec<Job> {
        self.queue().jobs.iter().cloned().collect()
    }

    /// Waits until a job has ended, well or badly. Cancel safe.
    pub async fn ended(&self, id: u32) -> Job {
        let mut changed = self.shared.changed.subscribe();
        loop {
            let job = self.queue().jobs.iter().find(|job| job.id == id).cloned();
            if let Some(job) = job.filter(|job| job.state != JobState::Receiving) {
                return job;
            }
            if changed.changed().await.is_err() {
                // The sender lives as long as we do.
                std::future::pending::<()>().await;
            }
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since it was switched on, from 1, as IPP counts.
    fn up_time(&self) -> i32 {
        i32::try_from(self.shared.since.elapsed().as_secs()).unwrap_or(i32::MAX - 1) + 1
    }

    async fn handle(&self, request: Request<Incoming>) -> Result<Answer, io::Error> {
        let path = request.uri().path().to_owned();
        let is_ipp = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/ipp");
        if request.method() == Method::POST {
            return if is_ipp {
                self.handle_ipp(request).await
            } else {
                Ok(plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "POST takes application/ipp only\n"))
            };
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD and POST\n"));
        }
        if path == "/" {
            return Ok(answer(StatusCode::OK, "text/html; charset=utf-8", self.page()));
        }
        let job = path.strip_prefix("/jobs/").and_then(|number| number.parse().ok());
        let job = job.and_then(|id: u32| self.queue().jobs.iter().find(|job| job.id == id).cloned());
        match job.and_then(|job| Some((job.file?, job.format))) {
            Some((file, format)) => stored(&file, &format).await,
            None => Ok(plain(StatusCode::NOT_FOUND, "there is no such page and no such stored job\n")),
        }
    }

    async fn handle_ipp(&self, request: Request<Incoming>) -> Result<Answer, io::Error> {
        let authority = request
            .headers()
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .and_then(|host| host.parse::<hyper::http::uri::Authority>().ok())
            .map_or_else(|| "localhost".to_owned(), |authority| authority.to_string());
        let mut document = Document { body: request.into_body(), ahead: Bytes::new() };
        let head = match document.head().await {
            Ok(head) => head,
            Err(error) => return Ok(plain(StatusCode::BAD_REQUEST, &format!("{error}\n"))),
        };
        let request = match operation::Request::parse(head) {
            Ok(request) => request,
            Err(error) => return Ok(plain(StatusCode::BAD_REQUEST, &format!("not IPP: {error}\n"))),
        };
        let task = match request.task() {
            Ok(task) => task,
            Err(status) => return Ok(ipp_answer(request.refuse(status))),
        };
        let result = self.perform(task, document).await;
        let queued = self.queue().jobs.iter().filter(|job| job.state == JobState::Receiving).count();
        let description = Description {
            name: &self.shared.config.name,
            authority: &authority,
            uuid: &self.shared.uuid,
            up_time: self.up_time(),
            busy: queued > 0,
            queued: i32::try_from(queued).unwrap_or(i32::MAX),
        };
        Ok(ipp_answer(match result {
            Ok(Done::Nothing) => request.refuse(IppStatus::SuccessfulOk),
            Ok(Done::Describe) => request.describe(&description),
            Ok(Done::Jobs(jobs)) => request.show(&description, &jobs),
            Err(status) => request.refuse(status),
        }))
    }

    async fn perform(&self, task: Task, document: Document) -> Result<Done, IppStatus> {
        match task {
            Task::Describe => Ok(Done::Describe),
            Task::Validate => Ok(Done::Nothing),
            Task::Print(ticket) => {
                let id = self.create(&ticket).id;
                self.receive(id, &ticket, document).await.map(|job| Done::Jobs(vec![job]))
            }
            Task::Create(ticket) => Ok(Done::Jobs(vec![self.create(&ticket)])),
            Task::Document { job, ticket } => {
                self.find(job)?;
                self.receive(job, &ticket, document).await.map(|job| Done::Jobs(vec![job]))
            }
            Task::Job(id) => self.find(id).map(|job| Done::Jobs(vec![job])),
            Task::Cancel(id) => {
                if self.find(id)?.state != JobState::Receiving {
                    return Err(IppStatus::ClientErrorNotPossible);
                }
                self.end(id, JobState::Canceled, |_| {});
                Ok(Done::Nothing)
            }
            Task::Jobs { completed, limit } => {
                let jobs =
                    self.jobs().into_iter().filter(|job| (job.state != JobState::Receiving) == completed);
                Ok(Done::Jobs(jobs.take(limit).collect()))
            }
        }
    }

    fn find(&self, id: u32) -> Result<Job, IppStatus> {
        self.queue().jobs.iter().find(|job| job.id == id).cloned().ok_or(IppStatus::ClientErrorNotFound)
    }

    fn create(&self, ticket: &Ticket) -> Job {
        let created = self.up_time();
        let mut queue = self.queue();
        queue.last += 1;
        let job = Job {
            id: queue.last,
            name: ticket.name.clone(),
            user: ticket.user.clone(),
            format: ticket.format.clone(),
            state: JobState::Receiving,
            bytes: 0,
            sha256: None,
            file: None,
            begun: false,
            created,
            ended: None,
        };
        queue.jobs.push_back(job.clone());
        if queue.jobs.len() > REMEMBERED {
            queue.jobs.pop_front();
        }
        job
    }

    /// Ends a job that has not ended; tells the waiting.
    fn end(&self, id: u32, state: JobState, with: impl FnOnce(&mut Job)) {
        let now = self.up_time();
        if let Some(job) = self.queue().jobs.iter_mut().find(|job| job.id == id)
            && job.state == JobState::Receiving
        {
            job.state = state;
            job.ended = Some(now);
            with(job);
        }
        self.shared.changed.send_replace(());
    }

    /// Stores a job's document.
    async fn receive(&self, id: u32, ticket: &Ticket, document: Document) -> Result<Job, IppStatus> {
        match self.queue().jobs.iter_mut().find(|job| job.id == id) {
            Some(job) if job.state == JobState::Receiving && !job.begun => job.begun = true,
            Some(_) => return Err(IppStatus::ClientErrorNotPossible),
            None => return Err(IppStatus::ClientErrorNotFound),
        }
        let path = self.shared.config.directory.join(format!("job-{id}.{}", ticket.ending));
        // Given up in the middle, by the connection or by whoever serves: the job has failed.
        let failed = EndOnDrop { printer: self, id };
        match self.store(id, &path, document).await {
            Ok((bytes, sha256)) => {
                self.end(id, JobState::Stored, |job| {
                    job.bytes = bytes;
                    job.sha256 = Some(sha256);
                    job.file = Some(path.clone());
                    job.format.clone_from(&ticket.format);
                });
                let job = self.find(id)?;
                if job.state == JobState::Canceled {
                    let _ = tokio::fs::remove_file(&path).await;
                    return Err(IppStatus::ServerErrorJobCanceled);
                }
                Ok(job)
            }
            Err(error) => {
                drop(failed);
                let _ = tokio::fs::remove_file(&path).await;
                tracing::warn!(job = id, %error, "the printer could not store a job");
                let kind = error.kind();
                Err(if kind == io::ErrorKind::FileTooLarge {
                    IppStatus::ClientErrorRequestEntityTooLong
                } else if kind == io::ErrorKind::TimedOut {
                    IppStatus::ClientErrorTimeout
                } else {
                    IppStatus::ServerErrorInternalError
                })
            }
        }
    }

    async fn store(&self, id: u32, path: &Path, mut document: Document) -> io::Result<(u64, String)> {
        let mut file = File::create(path).await?;
        let mut hash = Sha256::new();
        let mut bytes = 0;
        while let Some(piece) = document.next().await? {
            bytes += piece.len() as u64;
            if bytes > self.shared.config.largest_job {
                let problem =
                    format!("more than the {} bytes a job may have", self.shared.config.largest_job);
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
            }
            hash.update(&piece);
            file.write_all(&piece).await?;
            if let Some(job) = self.queue().jobs.iter_mut().find(|job| job.id == id) {
                job.bytes = bytes;
            }
        }
        file.flush().await?;
        Ok((bytes, hex(&hash.finish())))
    }

    fn page(&self) -> String {
        let mut rows = String::new();
        for job in self.queue().jobs.iter() {
            let state = match job.state {
                JobState::Receiving => "coming",
                JobState::Stored => "stored",
                JobState::Canceled => "withdrawn",
                JobState::Failed => "failed",
            };
            let (id, bytes, hash) = (job.id, job.bytes, job.sha256.as_deref().unwrap_or(""));
            let (name, user) = (escape(&job.name), escape(&job.user));
            rows.push_str(&format!(
                "<tr><td><a href=\"/jobs/{id}\">{id}</a><td>{name}<td>{user}<td>{state}<td>{bytes}<td><code>{hash}</code>\n"
            ));
        }
        let name = escape(&self.shared.config.name);
        format!(
            "<!DOCTYPE html>\n<title>{name}</title>\n<h1>{name}</h1>\n<p>Ready. It prints to files.\n\
             <table>\n<tr><th>Job<th>Name<th>User<th>State<th>Bytes<th>SHA-256\n{rows}</table>\n"
        )
    }
}

/// What came of a task.
enum Done {
    Nothing,
    Describe,
    Jobs(Vec<Job>),
}

struct EndOnDrop<'a> {
    printer: &'a Printer,
    id: u32,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.printer.end(self.id, JobState::Failed, |_| {});
    }
}

/// A request's body: a head, then the document.
struct Document {
    body: Incoming,
    /// What came together with the head.
    ahead: Bytes,
}

impl Document {
    /// Reads until the IPP head is whole. Called once, first.
    async fn head(&mut self) -> io::Result<Bytes> {
        let mut head = Vec::new();
        loop {
            if let Some(len) = head_len(&head).map_err(|error| bad(error.to_string()))? {
                self.ahead = Bytes::from(head.split_off(len));
                return Ok(Bytes::from(head));
            }
            if head.len() > HEAD_LIMIT {
                return Err(bad(format!(
                    "the attributes of an IPP request have more than {HEAD_LIMIT} bytes"
                )));
            }
            let piece = self.piece().await?;
            head.extend_from_slice(
                &piece.ok_or_else(|| bad("the request ends within its IPP attributes".to_owned()))?,
            );
        }
    }

    /// The document's next bytes; `None` at its end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if !self.ahead.is_empty() {
            return Ok(Some(std::mem::take(&mut self.ahead)));
        }
        self.piece().await
    }

    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(STALLED, self.body.frame())
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the document does not go on"))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(io::Error::other(error)),
                // Trailers are no part of it.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    Ok(_) | Err(_) => {}
                },
            }
        }
    }
}

fn bad(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn plain(status: StatusCode, text: &str) -> Answer {
    answer(status, "text/plain; charset=utf-8", text.to_owned())
}

fn ipp_answer(body: Bytes) -> Answer {
    answer(StatusCode::OK, "application/ipp", body)
}

/// A stored job, piece by piece from its file.
async fn stored(path: &Path, format: &str) -> Result<Answer, io::Error> {
    let file = File::open(path).await?;
    let left = file.metadata().await?.len();
    let mut answer = Response::new(BodyExt::boxed(Pieces { file, left, buffer: vec![0; PIECE] }));
    if let Ok(format) = HeaderValue::from_str(format) {
        answer.headers_mut().insert(CONTENT_TYPE, format);
    }
    Ok(answer)
}

/// A file as the body of an answer.
struct Pieces {
    file: File,
    left: u64,
    buffer: Vec<u8>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Self { file, left, buffer } = self.get_mut();
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(file).poll_read(cx, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(None),
            Poll::Ready(Ok(())) => {
                *left = left.saturating_sub(buffer.filled().len() as u64);
                Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(buffer.filled())))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name-based UUID (version 8, RFC 9562), so that a printer of the same name is the same printer.
fn uuid(name: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(b"spice-tunnel printer ");
    hash.update(name.as_bytes());
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = hash.finish();
    let (g, i) = (g & 0x0f | 0x80, i & 0x3f | 0x80);
    let groups: [&[u8]; 5] = [&[a, b, c, d], &[e, f], &[g, h], &[i, j], &[k, l, m, n, o, p]];
    groups.map(hex).join("-")
}
