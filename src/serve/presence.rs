//! Staying joined, the server's side: what the guest sees while no tunnel is there, and when a tunnel counts as gone.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use server_glue::bridge::AwayConfig;
use server_glue::netstack::NetConfig;

use crate::duration::{self, DurationError};

const SECOND: Duration = Duration::from_secs(1);
/// A guest gives its SYN up after about two minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// Clients that cannot ask by themselves give up a server that says nothing for 40 s.
const LONGEST_PING_INTERVAL: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);

/// What `serve` is told of it.
#[derive(Clone, Copy, Debug, Args)]
pub struct PresenceArgs {
    /// What becomes of the guest's new connections while no tunnel is there: they wait so long for one to come back
    /// (wait=5s, at most 2m), or are refused at once (refuse). Addresses answer ping in either case
    #[arg(long, value_name = "wait=DURATION|refuse", default_value = "wait=5s")]
    while_away: WhileAway,

    /// How long the addresses of a tunnel that went stay known; 0s forgets them at once
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    remember: Duration,

    /// How often the client is asked whether it is there; 1s to 30s
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = ping_interval)]
    ping_interval: Duration,

    /// How long it may leave that unanswered before its tunnel is ended. One whose place another tunnel wants
    /// has 3 s
    #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = dead_after)]
    dead_after: Duration,
}

/// `wait=DURATION` or `refuse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhileAway {
    Wait(Duration),
    Refuse,
}

impl FromStr for WhileAway {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("wait=") {
            Some(wait) => duration::parse_within(wait, Duration::ZERO, LONGEST_WAIT)
                .map(Self::Wait)
                .map_err(|error| error.to_string()),
            None if text == "refuse" => Ok(Self::Refuse),
            None => Err(format!("expected wait=DURATION, such as wait=5s, or refuse, got {text:?}")),
        }
    }
}

fn ping_interval(text: &str) -> Result<Duration, DurationError> {
    duration::parse_within(text, SECOND, LONGEST_PING_INTERVAL)
}

fn dead_after(text: &str) -> Result<Duration, DurationError> {
    duration::parse_within(text, SECOND, DAY)
}

/// What a [`Server`](super::Server) has to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Presence {
    /// What the guest sees while no tunnel is there.
    pub away: AwayConfig,
    /// How often the client is asked for a sign of life.
    pub ping_interval: Duration,
    /// How long it may leave that unanswered.
    pub dead_after: Duration,
}

impl Default for Presence {
    /// That of the command line.
    fn default() -> Self {
        Self { away: AwayConfig::default(), ping_interval: 10 * SECOND, dead_after: 40 * SECOND }
    }
}

impl From<PresenceArgs> for Presence {
    fn from(args: PresenceArgs) -> Self {
        let wait = match args.while_away {
            WhileAway::Wait(wait) => Some(wait).filter(|wait| !wait.is_zero()),
            WhileAway::Refuse => None,
        };
        let away = AwayConfig { wait, remember: args.remember, ..AwayConfig::default() };
        Self { away, ping_interval: args.ping_interval, dead_after: args.dead_after }
    }
}

impl Presence {
    /// The channel's part.
    pub(super) fn channel(&self, config: tunnel_channel::Config) -> tunnel_channel::Config {
        let (ping_interval, dead_after) = (Some(self.ping_interval), self.dead_after);
        tunnel_channel::Config { ping_interval, dead_after, ..config }
    }

    /// The netstack's part: a connection that has waited for its tunnel may still take as long to be opened as any.
    pub(super) fn net(&self, config: NetConfig) -> NetConfig {
        let connect_deadline = config.connect_deadline.saturating_add(self.away.wait.unwrap_or_default());
        NetConfig { connect_deadline, ..config }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        presence: PresenceArgs,
    }

    fn presence(args: &[&str]) -> Result<Presence, String> {
        let line = Line::try_parse_from(std::iter::once(&"serve").chain(args));
        line.map(|line| line.presence.into()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let told = presence(&[]).unwrap();
        assert_eq!(told.away, AwayConfig::default());
        let config = tunnel_channel::Config::default();
        assert_eq!(told.channel(config), config);
        assert_eq!(Presence::default().channel(config), config);
    }

    #[test]
    fn options_reach_their_part() {
        let args =
            ["--while-away", "wait=1m", "--remember", "2d", "--ping-interval", "2s", "--dead-after", "5s"];
        let told = presence(&args).unwrap();
        assert_eq!((told.away.wait, told.away.remember), (Some(60 * SECOND), 2 * DAY));
        let config = told.channel(tunnel_channel::Config::default());
        assert_eq!((config.ping_interval, config.dead_after), (Some(2 * SECOND), 5 * SECOND));
        assert_eq!(told.net(NetConfig::default()).connect_deadline, 120 * SECOND);
        assert_eq!(presence(&["--while-away", "refuse"]).unwrap().away.wait, None);
        assert_eq!(presence(&["--while-away", "wait=0s"]).unwrap().away.wait, None);
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (option, value) in [
            ("--while-away", "wait"),
            ("--while-away", "wait=5"),
            ("--while-away", "wait=3m"),
            ("--while-away", "drop"),
            ("--ping-interval", "0s"),
            ("--ping-interval", "1m"),
            ("--dead-after", "500ms"),
            ("--remember", "1.5h"),
        ] {
            let error = presence(&[option, value]).unwrap_err();
            assert!(error.contains("expected"), "{option} {value}: {error}");
        }
    }
}
