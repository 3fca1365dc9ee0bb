//! A client made with spice-gtk (through `spice-client-glib`), and the tunnel beside it.
//!
//! ```sh
//! SPICE_PASSWORD=secret cargo run -- spice://vmhost:5900 'tcp://192.168.1.40:631?name=office-printer'
//! SPICE_PASSWORD=secret cargo run -- --ca ca.pem 'spice://vmhost?tls-port=5901' 'tcp://nas.lan:445'
//! ```
//!
//! spice-gtk knows the tunnel's channel type by name and does nothing with it, nor does it give the stream of a channel
//! away. So the tunnel is linked as a *companion*: with a connection of its own, to where the `SpiceSession` is connected
//! and with what it knows, joining the session that lives there. [`server`] and [`credentials`] read them from the
//! session; [`Tunnel`] follows its life. These are the parts to copy.
//!
//! GLib's loop keeps the main thread, tokio has one of its own. Between them go a [`Handle`], whose commands do not wait,
//! and [`Events`](client_glue::Events), which can be awaited in GLib's loop: they need no runtime.
//!
//! It ends with Ctrl-C, or with the session.

use std::cell::RefCell;
use std::error::Error;
use std::process::ExitCode;
use std::rc::Rc;

use client_glue::{
    CompanionConfig, CompanionError, Credentials, Event, Handle, HttpProxy, Password, Place, Roots, Share,
    SpiceServer, Trust, companion,
};
use spice_client_glib::glib::{MainContext, MainLoop};
use spice_client_glib::prelude::*;
use spice_client_glib::{Channel, ChannelEvent, DisplayChannel, InputsChannel, MainChannel, Session};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (session, shares) = arguments()?;
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let end = MainLoop::new(None, false);
    let client = Rc::new(Client {
        session,
        shares,
        runtime,
        end: end.clone(),
        tunnel: RefCell::default(),
        failed: RefCell::default(),
    });

    let weak = Rc::downgrade(&client);
    client.session.connect_channel_new(move |_, channel| {
        if let Some(client) = weak.upgrade() {
            client.channel_new(channel);
        }
    });
    let weak = Rc::downgrade(&client);
    client.session.connect_disconnected(move |_| {
        if let Some(client) = weak.upgrade() {
            client.session_is_over();
        }
    });
    let (tell, interrupted) = oneshot::channel();
    client.runtime.spawn(async move {
        let _ = tell.send(tokio::signal::ctrl_c().await);
    });
    let session = client.session.clone();
    MainContext::default().spawn_local(async move {
        if interrupted.await.is_ok() {
            session.disconnect();
        }
    });

    if !client.session.connect() {
        return Err("the session cannot be opened".into());
    }
    end.run();
    Ok(if client.failed.take() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A Spice client as small as can be: it has the channels that a viewer has, and shows nothing.
struct Client {
    session: Session,
    shares: Vec<Share>,
    runtime: Runtime,
    end: MainLoop,
    tunnel: RefCell<Option<Tunnel>>,
    failed: RefCell<bool>,
}

impl Client {
    fn channel_new(self: &Rc<Self>, channel: &Channel) {
        if channel.is::<MainChannel>() {
            let weak = Rc::downgrade(self);
            channel.connect_channel_event(move |_, event| {
                if let Some(client) = weak.upgrade() {
                    client.main_event(event);
                }
            });
        }
        // A viewer draws the display and sends keys; spice-gtk opens main by itself.
        if channel.is::<DisplayChannel>() || channel.is::<InputsChannel>() {
            ChannelExt::connect(channel);
        }
    }

    fn main_event(self: &Rc<Self>, event: ChannelEvent) {
        match event {
            ChannelEvent::Opened => {
                println!("the session is open");
                match Tunnel::start(self) {
                    Ok(tunnel) => *self.tunnel.borrow_mut() = Some(tunnel),
                    Err(error) => {
                        println!("no tunnel: {error}");
                        self.fail();
                    }
                }
            }
            ChannelEvent::Closed => println!("the session was closed"),
            ChannelEvent::None | ChannelEvent::Switching => return,
            failure => {
                println!("the session failed: {failure:?}");
                self.failed.replace(true);
            }
        }
        if event != ChannelEvent::Opened {
            self.session.disconnect();
        }
    }

    /// The tunnel ends with its session, and then we do.
    fn session_is_over(self: &Rc<Self>) {
        let tunnel = self.tunnel.take();
        let client = Rc::clone(self);
        MainContext::default().spawn_local(async move {
            if let Some(tunnel) = tunnel {
                tunnel.handle.shutdown();
                match tunnel.ended.await {
                    Ok(Ok(())) => println!("the tunnel has ended"),
                    Ok(Err(error)) => client.report(&error),
                    Err(_) => client.fail(),
                }
            }
            client.end.quit();
        });
    }

    fn report(&self, error: &dyn Error) {
        println!("no tunnel: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            println!("  because: {error}");
            cause = error.source();
        }
        self.fail();
    }

    fn fail(&self) {
        self.failed.replace(true);
        self.session.disconnect();
    }
}

/// The tunnel beside a session.
struct Tunnel {
    handle: Handle,
    ended: oneshot::Receiver<Result<(), CompanionError>>,
}

impl Tunnel {
    fn start(client: &Rc<Client>) -> Result<Self, Box<dyn Error>> {
        let (server, credentials) = (server(&client.session)?, credentials(&client.session)?);
        let (handle, mut events, run) = companion(server, credentials, CompanionConfig::default());
        for share in &client.shares {
            handle.add_share(share.clone())?;
        }
        let (tell, ended) = oneshot::channel();
        client.runtime.spawn(async move {
            // Nobody listens any more once the client is gone.
            let _ = tell.send(run.await);
        });
        let weak = Rc::downgrade(client);
        MainContext::default().spawn_local(async move {
            while let Some(event) = events.recv().await {
                match event {
                    Event::Mapped { name, target, virtual_ip, port, .. } => {
                        println!("{name}  {target}  ->  {virtual_ip}:{port}");
                    }
                    Event::Refused { reason, .. } => println!("the guest was refused: {reason}"),
                    Event::Disconnected { reason } => println!("disconnected: {reason}"),
                    // The rest is for those who want to show it.
                    _ => {}
                }
            }
            // A companion that gives up while the session lives: a viewer would show it, and go on.
            if let Some(client) = weak.upgrade() {
                client.session.disconnect();
            }
        });
        Ok(Self { handle, ended })
    }
}

/// Where a session is connected, and what makes its server the right one.
fn server(session: &Session) -> Result<SpiceServer, Box<dyn Error>> {
    let place = match (session.unix_path(), session.host()) {
        (Some(path), _) => Place::Unix(path.as_str().into()),
        (None, Some(host)) => Place::Tcp {
            host: host.into(),
            port: session.port().map(|port| port.parse()).transpose()?,
            tls_port: session.tls_port().map(|port| port.parse()).transpose()?,
        },
        (None, None) => return Err("the session has no server".into()),
    };
    // spice-gtk believes the authorities of both, and the system's if there are none.
    let mut pem = session.ca().map(|ca| ca.to_vec()).unwrap_or_default();
    if let Some(file) = session.ca_file() {
        pem.extend(std::fs::read(file).unwrap_or_default());
    }
    let roots = if pem.is_empty() { Roots::System } else { Roots::Pem(pem) };
    let subject = session.cert_subject().map(|subject| subject.parse()).transpose()?;
    let ciphers = session.ciphers().map(Into::into);
    let proxy = session.proxy_uri().and_then(|proxy| {
        Some(HttpProxy {
            host: proxy.hostname()?.into(),
            port: proxy.port().try_into().ok()?,
            user: proxy.user().map(|user| (user.into(), proxy.password().unwrap_or_default().into())),
        })
    });
    Ok(SpiceServer { place, trust: Trust { roots, subject, ciphers }, proxy })
}

fn credentials(session: &Session) -> Result<Credentials, Box<dyn Error>> {
    let password = Password::new(session.password().unwrap_or_default().as_str())?;
    Ok(Credentials { username: session.username().map(Into::into), password })
}

/// `[--ca FILE] URI SHARE…`, and the ticket from the environment, where other users do not see it.
fn arguments() -> Result<(Session, Vec<Share>), Box<dyn Error>> {
    let session = Session::new();
    session.set_enable_audio(false);
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if(|word| word == "--ca").is_some() {
        session.set_ca_file(words.next().as_deref());
    }
    let uri = words.next().ok_or("usage: beside-spice-gtk [--ca FILE] URI SHARE...")?;
    session.set_uri(Some(&uri));
    if let Ok(password) = std::env::var("SPICE_PASSWORD") {
        session.set_password(Some(&password));
    }
    let shares = words.map(|word| word.parse()).collect::<Result<_, _>>()?;
    Ok((session, shares))
}
