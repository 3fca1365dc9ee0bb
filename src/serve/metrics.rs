//! `serve --metrics`: `GET /metrics`, for Prometheus and whatever reads its formats.
//!
//! A question of a scraper becomes one question to the VM's task (see [`server_glue::status`]), at most ten a second however many
//! come. Whoever connects is taken for hostile: heads are small, every connection has a deadline and carries one
//! request, and there are few at once, of which the oldest goes when one more comes.

mod page;
mod process;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use server_glue::proxy::Proxy;
use server_glue::status::Observer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::page::{Format, Page};
use self::process::Process;
use super::entrance::{ListenError, Opened, Place};
use crate::inherited::Inherited;

/// Connections at once, over all places.
const MOST: usize = 16;
/// What a connection may take from its first byte to its last.
const DEADLINE: Duration = Duration::from_secs(10);
/// What a request's head may take to come.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a request's head; hyper allows no less.
const HEAD_LIMIT: usize = 8192;
/// Fields of a request's head.
const FIELDS: usize = 64;
/// How long the VM's task may take to answer. Its turns are milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// An answer is good for so long.
const FRESH: Duration = Duration::from_millis(100);

/// Where metrics are given out.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct MetricsArgs {
    /// Answer GET /metrics here, for Prometheus (OpenMetrics, or its text format). Can be given many times. There is neither
    /// TLS nor a password: an address of this machine, of a network for such things, or a Unix socket
    #[arg(long, value_name = "HOST:PORT|unix:PATH|fd:N|systemd:NAME")]
    pub(super) metrics: Vec<Place>,
}

impl MetricsArgs {
    /// Opens all of them.
    ///
    /// # Errors
    /// One cannot be had.
    pub(super) async fn open(&self, inherited: &mut Inherited) -> Result<Option<Metrics>, ListenError> {
        let mut places = Vec::new();
        for place in &self.metrics {
            let opened = place.open(inherited, false).await?;
            for at in &opened {
                info!(address = %At(at, place), "metrics are given out");
            }
            places.extend(opened);
        }
        Ok((!places.is_empty()).then_some(Metrics { places }))
    }
}

struct At<'a>(&'a Opened, &'a Place);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Opened::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => self.1.fmt(f),
            },
            Opened::Unix(_) => self.1.fmt(f),
        }
    }
}

/// Where metrics are given out: open, and not answered yet.
#[derive(Debug)]
pub struct Metrics {
    places: Vec<Opened>,
}

impl Metrics {
    /// Answers until `shutdown`.
    pub(super) async fn serve(self, observer: Observer, proxy: Proxy, shutdown: CancellationToken) {
        let source = Arc::new(Source::new(observer, proxy));
        let mut connections = Connections::default();
        let places = self.places;
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                Some(_) = connections.tasks.join_next(), if !connections.tasks.is_empty() => continue,
                accepted = accept(&places) => accepted,
            };
            match accepted {
                Ok(stream) => connections.take(serve_one(stream, Arc::clone(&source))),
                Err(error) => {
                    // Out of file descriptors, say. It would come back at once.
                    warn!(%error, "could not accept a connection for metrics");
                    tokio::time::sleep(FRESH).await;
                }
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Whoever comes first at any of the places. Cancel safe.
async fn accept(places: &[Opened]) -> io::Result<Box<dyn Stream>> {
    let mut accepts: Vec<_> = places.iter().map(|place| Box::pin(accept_at(place))).collect();
    std::future::poll_fn(|cx| {
        let mut ready = accepts.iter_mut().map(|accept| accept.as_mut().poll(cx));
        ready.find(std::task::Poll::is_ready).unwrap_or(std::task::Poll::Pending)
    })
    .await
}

async fn accept_at(place: &Opened) -> io::Result<Box<dyn Stream>> {
    Ok(match place {
        Opened::Tcp(listener) => Box::new(listener.accept().await?.0),
        Opened::Unix(listener) => Box::new(listener.accept().await?),
    })
}

/// The connections that live. All end when this is dropped.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first; some may be over.
    order: VecDeque<AbortHandle>,
}

impl Connections {
    fn take(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.order.retain(|task| !task.is_finished());
        if self.order.len() >= MOST
            && let Some(oldest) = self.order.pop_front()
        {
            debug!("too many connections for metrics; the oldest goes");
            oldest.abort();
        }
        self.order.push_back(self.tasks.spawn(connection));
    }
}

async fn serve_one(stream: impl Stream + 'static, source: Arc<Source>) {
    let service = service_fn(|request| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_LIMIT)
        .max_headers(FIELDS)
        .keep_alive(false)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(DEADLINE, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection for metrics ended"),
        Err(_) => debug!("a connection for metrics took too long"),
    }
}

async fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is /metrics and nothing else\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let accepted = request.headers().get(ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let format = Format::wanted(accepted);
    let page = source.page().await.ok_or("the VM's task does not answer\n");
    match page.and_then(|page| page.text(format).map_err(|_| "it cannot be written\n")) {
        Ok(text) => {
            let mut response = Response::new(Full::from(text));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
            response
        }
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Where the numbers come from.
struct Source {
    observer: Observer,
    proxy: Proxy,
    began: SystemTime,
    last: Mutex<Option<(Instant, Arc<Page>)>>,
}

impl Source {
    fn new(observer: Observer, proxy: Proxy) -> Self {
        Self { observer, proxy, began: SystemTime::now(), last: Mutex::new(None) }
    }

    /// How all is, now or a moment ago. `None`: the VM's task does not answer.
    async fn page(&self) -> Option<Arc<Page>> {
        let mut last = self.last.lock().await;
        if let Some((at, page)) = &*last
            && at.elapsed() < FRESH
        {
            return Some(Arc::clone(page));
        }
        let status = timeout(PATIENCE, self.observer.status()).await.ok()??;
        let page = Page { status, proxy: self.proxy.status(), process: Process::now(self.began) };
        let page = Arc::new(page);
        *last = Some((Instant::now(), Arc::clone(&page)));
        Some(page)
    }
}

#[cfg(test)]
mod tests;
