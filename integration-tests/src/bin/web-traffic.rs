//! A bounded HTTP client that behaves like a small crowd: pages, assets, some that are missing, some that fail.
//! Prints one JSON line with what it was answered.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use clap::Parser;

#[derive(Parser)]
struct Args {
    /// Where the server is, e.g. http://127.0.0.1:8080
    url: String,
    /// Requests per second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Where the choice of paths starts; the same seed asks for the same paths.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Paths and their share of a thousand requests.
const PATHS: &[(&str, u64)] = &[
    ("/", 320),
    ("/products.html", 240),
    ("/style.css", 150),
    ("/account.html", 90),
    ("/logo.svg", 80),
    ("/api/prices.json", 60),
    ("/login", 30),
    ("/missing.html", 20),
    ("/broken", 10),
];

fn pick(state: &mut u64) -> &'static str {
    // Xorshift: the paths need to be spread, not to be secret.
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    let mut ticket = *state % PATHS.iter().map(|(_, share)| share).sum::<u64>();
    for (path, share) in PATHS {
        if ticket < *share {
            return path;
        }
        ticket -= share;
    }
    PATHS[0].0
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(10))
        .user_agent("web-traffic")
        .build()?;
    let mut statuses: BTreeMap<u16, u64> = BTreeMap::new();
    let mut state = args.seed.max(1);
    let start = Instant::now();
    let end = Duration::from_secs(args.seconds);
    let step = Duration::from_secs(1) / args.rate.max(1);
    let mut next = Duration::ZERO;
    let mut failed = 0_u64;
    while start.elapsed() < end {
        tokio::time::sleep_until((start + next).into()).await;
        next += step;
        match client.get(format!("{}{}", args.url, pick(&mut state))).send().await {
            Ok(answer) => {
                *statuses.entry(answer.status().as_u16()).or_default() += 1;
                answer.bytes().await?;
            }
            Err(_) => failed += 1,
        }
    }
    let answered = statuses.values().sum::<u64>();
    writeln!(std::io::stdout(), "{}", serde_json::json!({ "answered": answered, "failed": failed, "statuses": statuses }))?;
    Ok(())
}
