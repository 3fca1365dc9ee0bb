//! Records the captures of our own program again, as `captures/README.md` describes them:
//!
//! ```sh
//! cargo run --example record-captures -- captures [NAME...]
//! ```

mod recording;

use std::path::PathBuf;

use recording::{Error, NAMES, tell};

const USAGE: &str = "usage: record-captures DIRECTORY [NAME...]";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args_os().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or(USAGE)?);
    let mut names: Vec<String> = arguments.map(|name| name.to_string_lossy().into_owned()).collect();
    if names.is_empty() {
        names = NAMES.map(str::to_owned).to_vec();
    }
    for name in &names {
        tell(name, &directory).await.map_err(|error| format!("{name}: {error}"))?;
        println!("{name}: recorded");
    }
    Ok(())
}
