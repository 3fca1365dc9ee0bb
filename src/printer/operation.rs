//! IPP, the part that needs no I/O: where a request's head ends, what it asks, and how it is answered (RFC 8010 and
//! RFC 8011; the attributes a driverless client wants are those of PWG 5100.14, IPP Everywhere).

use std::collections::BTreeMap;
use std::io::Cursor;

use hyper::body::Bytes;
use ipp::attribute::{IppAttribute, IppAttributes};
use ipp::model::{DelimiterTag, IppVersion, JobState, Operation, PrinterState, StatusCode};
use ipp::parser::{IppParseError, IppParser};
use ipp::request::IppRequestResponse;
use ipp::value::{IppName, IppValue};

use super::Job;

/// Operations the printer knows, as in `operations-supported`.
const OPERATIONS: [Operation; 8] = [
    Operation::PrintJob,
    Operation::ValidateJob,
    Operation::CreateJob,
    Operation::SendDocument,
    Operation::CancelJob,
    Operation::GetJobAttributes,
    Operation::GetJobs,
    Operation::GetPrinterAttributes,
];
/// What a document may be, and the ending its file gets.
const FORMATS: [(&str, &str); 6] = [
    ("application/octet-stream", "bin"),
    ("application/pdf", "pdf"),
    ("image/pwg-raster", "pwg"),
    ("image/urf", "urf"),
    ("image/jpeg", "jpg"),
    ("text/plain", "txt"),
];
/// Paper: name, width and height in hundredths of a millimetre.
const PAPER: [(&str, i32, i32); 2] =
    [("iso_a4_210x297mm", 21_000, 29_700), ("na_letter_8.5x11in", 21_590, 27_940)];
/// Dots an inch, the only resolution.
const RESOLUTION: IppValue = IppValue::Resolution { cross_feed: 300, feed: 300, units: 3 };

/// A head that is not IPP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHead {
    #[error("an IPP tag from 1 to 0x4a was expected, {0:#04x} came")]
    Tag(u8),
    #[error("a value with a language is shorter than the lengths in it")]
    Language,
}

/// How long a request's head is: header and attributes. `None` while it is not all there.
///
/// Everything the parser of crate `ipp` 8 would stumble over is refused here: it slices by the lengths within values
/// with a language without looking.
pub(super) fn head_len(bytes: &[u8]) -> Result<Option<usize>, BadHead> {
    const HEADER: usize = 8;
    let mut rest = bytes.get(HEADER..).unwrap_or_default();
    while let Some((&tag, behind)) = rest.split_first() {
        rest = behind;
        match tag {
            0x03 => return Ok(Some(bytes.len() - rest.len())),
            0x01..=0x0a => {}
            0x10..=0x4a => {
                let Some((_name, behind)) = sized(rest) else { return Ok(None) };
                let Some((value, behind)) = sized(behind) else { return Ok(None) };
                let with_language = matches!(tag, 0x35 | 0x36);
                if with_language && sized(value).and_then(|(_, text)| sized(text)).is_none() {
                    return Err(BadHead::Language);
                }
                rest = behind;
            }
            _ => return Err(BadHead::Tag(tag)),
        }
    }
    Ok(None)
}

/// Bytes with a 2-byte big-endian length before them, and what follows.
fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}

/// A request's head, taken apart.
#[derive(Debug)]
pub(super) struct Request {
    version: IppVersion,
    id: i32,
    operation: Option<Operation>,
    attributes: IppAttributes,
}

impl Request {
    /// Parses exactly a head, as [`head_len`] measured it.
    pub(super) fn parse(head: Bytes) -> Result<Self, IppParseError> {
        let (header, mut attributes, _) =
            IppParser::new(ipp::reader::IppReader::new(Cursor::new(head))).parse_parts()?;
        // Keeps recursion out of what is dropped and copied later: no client of ours needs collections.
        for group in attributes.groups_mut() {
            group.attributes_mut().retain(|attribute| !matches!(attribute.value(), IppValue::Collection(_)));
        }
        let operation = operation(header.operation_or_status);
        Ok(Self { version: header.version, id: header.request_id, operation, attributes })
    }

    /// The text of an operation attribute.
    fn text(&self, name: &str) -> Option<String> {
        let group = self.attributes.first_of(DelimiterTag::OperationAttributes)?;
        Some(group.get(name)?.value().to_string())
    }

    fn number(&self, name: &str) -> Option<i32> {
        let group = self.attributes.first_of(DelimiterTag::OperationAttributes)?;
        group.get(name)?.value().as_integer().copied()
    }

    /// The job meant: by number, or by the end of its address.
    fn job(&self) -> Option<u32> {
        let by_number = self.number("job-id").and_then(|number| u32::try_from(number).ok());
        by_number.or_else(|| self.text("job-uri")?.rsplit('/').next()?.parse().ok())
    }

    /// What is to be done; what is wrong with the request is an answer already.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list of all operations is not ours")]
    pub(super) fn task(&self) -> Result<Task, StatusCode> {
        if !(1..=2).contains(&(self.version.0 >> 8)) {
            return Err(StatusCode::ServerErrorVersionNotSupported);
        }
        if self.id < 1 {
            return Err(StatusCode::ClientErrorBadRequest);
        }
        let operation = self.operation.filter(|operation| OPERATIONS.contains(operation));
        let operation = operation.ok_or(StatusCode::ServerErrorOperationNotSupported)?;
        // RFC 8011, 4.1.4: these two come first, in every request.
        let first = self.attributes.first_of(DelimiterTag::OperationAttributes);
        let mut names =
            first.map(|group| group.attributes()).unwrap_or_default().iter().map(|a| a.name().as_str());
        if (names.next(), names.next()) != (Some("attributes-charset"), Some("attributes-natural-language")) {
            return Err(StatusCode::ClientErrorBadRequest);
        }
        if self.text("printer-uri").is_none() && self.text("job-uri").is_none() {
            return Err(StatusCode::ClientErrorBadRequest);
        }
        let charset = self.text("attributes-charset").unwrap_or_default().to_ascii_lowercase();
        if charset != "utf-8" && charset != "us-ascii" {
            return Err(StatusCode::ClientErrorCharsetNotSupported);
        }
        if self.text("compression").is_some_and(|compression| compression != "none") {
            return Err(StatusCode::ClientErrorCompressionNotSupported);
        }
        let job = self.job().ok_or(StatusCode::ClientErrorBadRequest);
        match operation {
            Operation::GetPrinterAttributes => Ok(Task::Describe),
            Operation::ValidateJob => self.ticket().map(|_| Task::Validate),
            Operation::PrintJob => self.ticket().map(Task::Print),
            Operation::CreateJob => self.ticket().map(Task::Create),
            Operation::SendDocument if self.text("last-document").is_none() => {
                Err(StatusCode::ClientErrorBadRequest)
            }
            Operation::SendDocument => Ok(Task::Document { job: job?, ticket: self.ticket()? }),
            Operation::GetJobAttributes => Ok(Task::Job(job?)),
            Operation::CancelJob => Ok(Task::Cancel(job?)),
            Operation::GetJobs => Ok(Task::Jobs {
                completed: self.text("which-jobs").is_some_and(|which| which == "completed"),
                limit: self
                    .number("limit")
                    .and_then(|limit| usize::try_from(limit).ok())
                    .unwrap_or(usize::MAX),
            }),
            _ => Err(StatusCode::ServerErrorOperationNotSupported),
        }
    }

    fn ticket(&self) -> Result<Ticket, StatusCode> {
        let format = self.text("document-format").unwrap_or_else(|| "application/octet-stream".to_owned());
        let (_, ending) = FORMATS
            .into_iter()
            .find(|(name, _)| *name == format)
            .ok_or(StatusCode::ClientErrorDocumentFormatNotSupported)?;
        let or = |name: &str, otherwise: &str| self.text(name).unwrap_or_else(|| otherwise.to_owned());
        Ok(Ticket {
            name: or("job-name", "untitled"),
            user: or("requesting-user-name", "anonymous"),
            format,
            ending,
        })
    }

    /// An answer with nothing but a status.
    pub(super) fn refuse(&self, status: StatusCode) -> Bytes {
        self.answer(status, DelimiterTag::UnsupportedAttributes, Vec::new())
    }

    /// The answer to [`Task::Describe`].
    pub(super) fn describe(&self, printer: &Description<'_>) -> Bytes {
        let all = printer.attributes();
        let wanted = self.wanted(&["printer-description", "job-template"]);
        let group = all.into_iter().filter(|(name, _)| wanted(name)).collect();
        self.answer(StatusCode::SuccessfulOk, DelimiterTag::PrinterAttributes, vec![group])
    }

    /// An answer that shows jobs, each with all it has or what was asked for.
    pub(super) fn show(&self, printer: &Description<'_>, jobs: &[Job]) -> Bytes {
        let listing = self.operation == Some(Operation::GetJobs);
        let wanted = self.wanted(&["job-description", "job-template"]);
        // RFC 8011, 4.2.6.1: a list shows only these two unless more is asked for.
        let brief = listing && self.text("requested-attributes").is_none();
        let keep = |name: &str| if brief { name == "job-id" || name == "job-uri" } else { wanted(name) };
        let groups = jobs
            .iter()
            .map(|job| printer.job_attributes(job).into_iter().filter(|(name, _)| keep(name)).collect())
            .collect();
        self.answer(StatusCode::SuccessfulOk, DelimiterTag::JobAttributes, groups)
    }

    /// Which attributes the client asked for; all if it named none, `all`, or a group of them.
    fn wanted(&self, groups: &[&str]) -> impl Fn(&str) -> bool + use<> {
        let group = self.attributes.first_of(DelimiterTag::OperationAttributes);
        let asked: Option<Vec<String>> = group
            .and_then(|group| group.get("requested-attributes"))
            .map(|attribute| attribute.value().into_iter().map(ToString::to_string).collect());
        let asked = asked.filter(|asked| {
            !asked.iter().any(|name| name == "all" || groups.iter().any(|group| group == name))
        });
        move |name| asked.as_ref().is_none_or(|asked| asked.iter().any(|wanted| wanted == name))
    }

    fn answer(
        &self,
        status: StatusCode,
        tag: DelimiterTag,
        groups: Vec<Vec<(&'static str, IppValue)>>,
    ) -> Bytes {
        // A client of a version we do not know is answered in ours.
        let known = (1..=2).contains(&(self.version.0 >> 8));
        let version = if known { self.version } else { IppVersion::v2_0() };
        let Ok(mut answer) = IppRequestResponse::new_response(version, status, self.id) else {
            return Bytes::new();
        };
        for group in groups {
            let mut made = ipp::attribute::IppAttributeGroup::new(tag);
            made.attributes_mut().extend(
                group.into_iter().filter_map(|(name, value)| IppAttribute::with_name(name, value).ok()),
            );
            answer.attributes_mut().groups_mut().push(made);
        }
        answer.to_bytes()
    }
}

fn operation(number: i16) -> Option<Operation> {
    // The prelude's trait has no name there: only all of it together can be imported.
    use ipp::prelude::*;
    Operation::from_i16(number)
}

/// What a request wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    Describe,
    Validate,
    Print(Ticket),
    Create(Ticket),
    Document { job: u32, ticket: Ticket },
    Job(u32),
    Cancel(u32),
    Jobs { completed: bool, limit: usize },
}

/// What a client says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) name: String,
    pub(super) user: String,
    pub(super) format: String,
    /// The ending its file gets.
    pub(super) ending: &'static str,
}

/// The printer as it shows itself to one client.
#[derive(Debug)]
pub(super) struct Description<'a> {
    pub(super) name: &'a str,
    /// Host and port as the client calls us, so that the addresses we give work where it is.
    pub(super) authority: &'a str,
    pub(super) uuid: &'a str,
    /// Seconds since it was switched on, from 1.
    pub(super) up_time: i32,
    pub(super) busy: bool,
    pub(super) queued: i32,
}

impl Description<'_> {
    fn printer_uri(&self) -> String {
        format!("ipp://{}/ipp/print", self.authority)
    }

    fn attributes(&self) -> Vec<(&'static str, IppValue)> {
        let formats = FORMATS.map(|(name, _)| mime(name)).to_vec();
        let operations = OPERATIONS.map(|operation| IppValue::Enum(operation as i32)).to_vec();
        let papers = PAPER.map(|(name, _, _)| keyword(name)).to_vec();
        let sizes = PAPER.map(|(_, width, height)| size(width, height)).to_vec();
        let media = PAPER.map(|(name, width, height)| medium(name, width, height)).to_vec();
        let (paper, width, height) = PAPER[0];
        let state = if self.busy { PrinterState::Processing } else { PrinterState::Idle };
        let web = format!("http://{}/", self.authority);
        vec![
            ("charset-configured", charset("utf-8")),
            ("charset-supported", charset("utf-8")),
            ("color-supported", IppValue::Boolean(true)),
            ("compression-supported", keyword("none")),
            ("copies-default", IppValue::Integer(1)),
            ("copies-supported", IppValue::RangeOfInteger { min: 1, max: 1 }),
            ("document-format-default", mime(FORMATS[0].0)),
            ("document-format-supported", IppValue::Array(formats)),
            ("finishings-default", IppValue::Enum(3)),
            ("finishings-supported", IppValue::Enum(3)),
            ("generated-natural-language-supported", language("en")),
            ("ipp-features-supported", keyword("none")),
            ("ipp-versions-supported", keywords(&["1.0", "1.1", "2.0"])),
            ("job-creation-attributes-supported", keywords(&["job-name", "copies", "media", "sides"])),
            ("media-bottom-margin-supported", IppValue::Integer(0)),
            ("media-col-default", medium(paper, width, height)),
            ("media-col-database", IppValue::Array(media)),
            ("media-col-supported", keywords(&["media-size", "media-size-name"])),
            ("media-default", keyword(paper)),
            ("media-left-margin-supported", IppValue::Integer(0)),
            ("media-ready", keyword(paper)),
            ("media-right-margin-supported", IppValue::Integer(0)),
            ("media-size-supported", IppValue::Array(sizes)),
            ("media-supported", IppValue::Array(papers)),
            ("media-top-margin-supported", IppValue::Integer(0)),
            ("multiple-document-jobs-supported", IppValue::Boolean(false)),
            ("natural-language-configured", language("en")),
            ("operations-supported", IppValue::Array(operations)),
            ("orientation-requested-default", IppValue::Enum(3)),
            ("orientation-requested-supported", IppValue::Enum(3)),
            ("output-bin-default", keyword("face-down")),
            ("output-bin-supported", keyword("face-down")),
            ("pages-per-minute", IppValue::Integer(60)),
            ("pages-per-minute-color", IppValue::Integer(60)),
            ("pdl-override-supported", keyword("not-attempted")),
            ("print-color-mode-default", keyword("color")),
            ("print-color-mode-supported", keywords(&["auto", "color", "monochrome"])),
            ("print-quality-default", IppValue::Enum(4)),
            ("print-quality-supported", IppValue::Enum(4)),
            ("printer-info", text(self.name)),
            ("printer-is-accepting-jobs", IppValue::Boolean(true)),
            ("printer-location", text("")),
            ("printer-make-and-model", text("spice-tunnel printer")),
            ("printer-more-info", uri(&web)),
            ("printer-name", name(self.name)),
            ("printer-resolution-default", RESOLUTION),
            ("printer-resolution-supported", RESOLUTION),
            ("printer-state", IppValue::Enum(state as i32)),
            ("printer-state-reasons", keyword("none")),
            ("printer-up-time", IppValue::Integer(self.up_time)),
            ("printer-uri-supported", uri(&self.printer_uri())),
            ("printer-uuid", uri(&format!("urn:uuid:{}", self.uuid))),
            ("pwg-raster-document-resolution-supported", RESOLUTION),
            ("pwg-raster-document-sheet-back", keyword("normal")),
            ("pwg-raster-document-type-supported", keywords(&["sgray_8", "srgb_8"])),
            ("queued-job-count", IppValue::Integer(self.queued)),
            ("sides-default", keyword("one-sided")),
            ("sides-supported", keyword("one-sided")),
            ("urf-supported", keywords(&["CP1", "IS1", "MT1", "RS300", "SRGB24", "V1.4", "W8"])),
            ("uri-authentication-supported", keyword("requesting-user-name")),
            ("uri-security-supported", keyword("none")),
        ]
    }

    fn job_attributes(&self, job: &Job) -> Vec<(&'static str, IppValue)> {
        let number = i32::try_from(job.id).unwrap_or(i32::MAX);
        let kilobytes = i32::try_from(job.bytes.div_ceil(1024)).unwrap_or(i32::MAX);
        let (state, reason) = match job.state {
            super::JobState::Receiving => (JobState::Processing, "job-incoming"),
            super::JobState::Stored => (JobState::Completed, "job-completed-successfully"),
            super::JobState::Canceled => (JobState::Canceled, "job-canceled-by-user"),
            super::JobState::Failed => (JobState::Aborted, "aborted-by-system"),
        };
        let ended = job.ended.map_or(IppValue::NoValue, IppValue::Integer);
        vec![
            ("job-id", IppValue::Integer(number)),
            ("job-uri", uri(&format!("{}/{number}", self.printer_uri()))),
            ("job-state", IppValue::Enum(state as i32)),
            ("job-state-reasons", keyword(reason)),
            ("job-printer-uri", uri(&self.printer_uri())),
            ("job-name", name(&job.name)),
            ("job-originating-user-name", name(&job.user)),
            ("job-k-octets", IppValue::Integer(kilobytes)),
            ("job-impressions-completed", IppValue::Integer(0)),
            ("job-printer-up-time", IppValue::Integer(self.up_time)),
            ("document-format", mime(&job.format)),
            ("time-at-creation", IppValue::Integer(job.created)),
            ("time-at-processing", IppValue::Integer(job.created)),
            ("time-at-completed", ended),
            ("attributes-charset", charset("utf-8")),
            ("attributes-natural-language", language("en")),
        ]
    }
}

/// The longest beginning of a text that has at most `max` bytes.
fn cut(value: &str, max: usize) -> &str {
    value.get(..value.floor_char_boundary(max)).unwrap_or_default()
}

fn text(value: &str) -> IppValue {
    IppValue::new_text_without_language(cut(value, 127)).unwrap_or(IppValue::NoValue)
}

fn name(value: &str) -> IppValue {
    IppValue::new_name_without_language(cut(value, 127)).unwrap_or(IppValue::NoValue)
}

fn keyword(value: &str) -> IppValue {
    IppValue::new_keyword(value).unwrap_or(IppValue::NoValue)
}

fn keywords(values: &[&str]) -> IppValue {
    IppValue::Array(values.iter().map(|value| keyword(value)).collect())
}

fn mime(value: &str) -> IppValue {
    IppValue::new_mime_media_type(value).unwrap_or(IppValue::NoValue)
}

fn charset(value: &str) -> IppValue {
    IppValue::new_charset(value).unwrap_or(IppValue::NoValue)
}

fn language(value: &str) -> IppValue {
    IppValue::new_natural_language(value).unwrap_or(IppValue::NoValue)
}

fn uri(value: &str) -> IppValue {
    IppValue::new_uri(value).unwrap_or(IppValue::NoValue)
}

fn collection<const N: usize>(members: [(&str, IppValue); N]) -> IppValue {
    let members = members.into_iter().filter_map(|(name, value)| Some((IppName::new(name).ok()?, value)));
    IppValue::Collection(members.collect::<BTreeMap<_, _>>())
}

fn size(width: i32, height: i32) -> IppValue {
    collection([("x-dimension", IppValue::Integer(width)), ("y-dimension", IppValue::Integer(height))])
}

fn medium(name: &str, width: i32, height: i32) -> IppValue {
    collection([("media-size", size(width, height)), ("media-size-name", keyword(name))])
}
