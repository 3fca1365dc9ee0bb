//! `spice-tunnel discover`: what could be shared from here, and what of it would be.

pub(crate) mod found;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use client_glue::discover::policy::Policy;
use client_glue::discover::{Change, DiscoverConfig, DnsSdConfig, Notice, Sharer, Status};
use client_glue::service_info::Identity;
use client_glue::{Host, Offer};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use thiserror::Error as ThisError;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{self, Config, ConfigError};
use crate::connect::{Complaints, Feed, changed};
use crate::duration::{self, DurationError};
use crate::session_args::Discovering;

/// What `discover` is told.
#[derive(Debug, Args)]
#[command(after_long_help = config::HELP)]
pub struct DiscoverArgs {
    /// TOML file that says where to look, and what may be shared (see below). Without it: printers and scanners
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// How long to look: 1s to 1h
    #[arg(long = "for", value_name = "TIME", default_value = "5s", value_parser = parse_for)]
    pub time: Duration,

    /// Go on until interrupted, and print what comes, changes and goes
    #[arg(long, conflicts_with = "time")]
    pub watch: bool,

    /// Print one JSON object a line: each device at the end, or with --watch each event
    #[arg(long)]
    pub json: bool,

    /// Validate the configuration, say what it would look for and share, and look for nothing
    #[arg(long)]
    pub check: bool,
}

fn parse_for(text: &str) -> Result<Duration, DurationError> {
    duration::parse_within(text, Duration::from_secs(1), Duration::from_secs(3600))
}

/// Why nothing could be looked for.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Shares that cannot go together.
    #[error(transparent)]
    Share(#[from] client_glue::ShareError),
    /// It says that nothing is to be looked for.
    #[error("{} has no [discover], or says enabled = false in it: there is nothing to look for", file.display())]
    Off {
        /// The file.
        file: PathBuf,
    },
    /// Nobody reads what is printed.
    #[error("cannot print")]
    Print(#[from] io::Error),
    /// What was found cannot be written as JSON.
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
}

/// Looks for as long as `args` say, or until `shutdown`, and prints what there is.
///
/// # Errors
/// [`Error`]. That a source cannot look, for want of permission say, is a warning.
pub async fn run(args: DiscoverArgs, shutdown: CancellationToken) -> Result<(), Error> {
    let plan = Plan::of(&args)?;
    if args.check {
        let mut out = tokio::io::stdout();
        out.write_all(plan.text().as_bytes()).await?;
        return Ok(out.flush().await?);
    }
    let feed = Feed::live(&plan.discovering);
    Box::pin(run_fed(&args, plan, feed, shutdown, tokio::io::stdout())).await
}

/// What is to be done.
struct Plan {
    discovering: Discovering,
    offers: Vec<Offer>,
}

impl Plan {
    fn of(args: &DiscoverArgs) -> Result<Plan, Error> {
        let Some(file) = &args.config else {
            let types = config::common_types();
            let config = DiscoverConfig { dns_sd: Some(DnsSdConfig { types }), ..DiscoverConfig::default() };
            let discovering = Discovering { config, policy: Policy::printers_and_scanners() };
            return Ok(Plan { discovering, offers: Vec::new() });
        };
        let Config { shares, discover, policy, .. } = Config::read(file)?;
        client_glue::check_offers(&shares)?;
        let config = discover.ok_or_else(|| Error::Off { file: file.clone() })?;
        Ok(Plan { discovering: Discovering { config, policy }, offers: shares })
    }

    fn text(&self) -> String {
        let mut text = format!("{:9} {}\n", "discover", crate::check::looking(&self.discovering));
        for offer in &self.offers {
            let line = format!("{:9} {}  {}\n", "share", offer.share.name, offer.share.target());
            text.push_str(&found::escape(line.trim_end()));
            text.push('\n');
        }
        text
    }
}

/// The sources that are on.
pub(crate) fn sources(config: &DiscoverConfig) -> Vec<&'static str> {
    let DiscoverConfig { dns_sd, unicast_dns_sd, snmp, ssdp, ws_discovery, local, .. } = config;
    let all = [
        ("dns-sd", dns_sd.is_some()),
        ("unicast-dns-sd", unicast_dns_sd.is_some()),
        ("snmp", snmp.is_some()),
        ("ssdp", ssdp.is_some()),
        ("ws-discovery", ws_discovery.is_some()),
        ("local", local.is_some()),
    ];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
}

async fn run_fed(
    args: &DiscoverArgs,
    plan: Plan,
    mut feed: Feed,
    shutdown: CancellationToken,
    mut out: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let by_hand: Vec<(Host, u16)> =
        plan.offers.iter().map(|offer| (offer.share.host.clone(), offer.share.port)).collect();
    let mut sharer = Sharer::outlook(plan.discovering.policy.clone(), by_hand);
    let progress = if args.watch { ProgressBar::hidden() } else { progress() };
    let mut status = feed.status();
    let mut complaints = Complaints::default();
    let mut devices: BTreeMap<Identity, Notice> = BTreeMap::new();
    let over = Instant::now() + args.time;
    loop {
        tokio::select! {
            update = feed.next() => {
                let Some(update) = update else { break };
                for notice in sharer.handle_update(update) {
                    if args.watch {
                        out.write_all(event(args.json, &notice)?.as_bytes()).await?;
                        out.flush().await?;
                    }
                    match notice.change {
                        Change::Found | Change::Changed => {
                            devices.insert(notice.device.identity.clone(), notice);
                        }
                        Change::Lost => {
                            devices.remove(&notice.device.identity);
                        }
                    }
                }
                progress.set_message(format!("{} found", count(devices.len())));
            }
            Some(now) = changed(&mut status) => {
                progress.suspend(|| complaints.handle(&now));
                progress.set_prefix(looking(&now));
            }
            () = tokio::time::sleep_until(over), if !args.watch => break,
            () = shutdown.cancelled() => break,
        }
    }
    progress.finish_and_clear();
    if args.watch {
        return Ok(());
    }
    let mut found: Vec<&Notice> = devices.values().collect();
    found.sort_by_key(|notice| (notice.name.to_lowercase(), notice.device.identity.clone()));
    let text = if args.json { json(&found)? } else { table(&found, &plan.discovering.config, args.time) };
    out.write_all(text.as_bytes()).await?;
    Ok(out.flush().await?)
}

/// Drawn on a terminal only.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} looking {elapsed} by {prefix}: {msg}");
    let bar = ProgressBar::new_spinner();
    let bar = match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    };
    bar.set_message("nothing found yet");
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn looking(status: &Status) -> String {
    let sources: Vec<&str> = status.sources.keys().map(|source| source.as_str()).collect();
    sources.join(", ")
}

fn count(devices: usize) -> String {
    match devices {
        1 => "1 device".to_owned(),
        many => format!("{many} devices"),
    }
}

#[derive(Serialize)]
struct Event {
    event: &'static str,
    #[serde(flatten)]
    device: found::Line,
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Found => "found",
        Change::Changed => "changed",
        Change::Lost => "lost",
    }
}

fn event(json: bool, notice: &Notice) -> serde_json::Result<String> {
    let word = word(notice.change);
    if json {
        let event = Event { event: word, device: found::Line::new(notice) };
        return Ok(serde_json::to_string(&event)? + "\n");
    }
    let mut text = String::new();
    for row in found::rows(notice) {
        let [name, kind, place, by, identity, shared] = row;
        let about = if name.is_empty() { String::new() } else { format!("{name}  {identity}  by {by}  ") };
        text.push_str(&format!("{word:7}  {about}{kind}  {place}  {shared}\n"));
    }
    Ok(text)
}

fn json(found: &[&Notice]) -> serde_json::Result<String> {
    let mut text = String::new();
    for notice in found {
        text += &serde_json::to_string(&found::Line::new(notice))?;
        text.push('\n');
    }
    if found.is_empty() {
        info!("nothing was found");
    }
    Ok(text)
}

fn table(found: &[&Notice], config: &DiscoverConfig, time: Duration) -> String {
    if found.is_empty() {
        let by = sources(config).join(", ");
        let time = duration::show(time);
        return format!("nothing was found within {time}, by {by}; --for looks longer\n");
    }
    let head = found::COLUMNS.map(str::to_owned);
    let rows: Vec<[String; 6]> =
        std::iter::once(head).chain(found.iter().flat_map(|notice| found::rows(notice))).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
pub(crate) mod tests;
