//! The server as a program, for demos and benchmarks.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use devserver::proxy::FaultProxy;
use devserver::{Counts, Family, Pattern, Server};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

/// An S3 server on this machine that holds what its flags say and forgets it when it ends.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// The bucket
    #[arg(long, value_name = "NAME", default_value = "data")]
    bucket: String,
    /// An object with computed bytes, such as models/7b.safetensors=13GiB; may be repeated
    #[arg(long, value_name = "KEY=SIZE", value_parser = object)]
    object: Vec<(String, u64)>,
    /// The first bytes of the object with computed bytes of this key, such as the header of a
    /// file format; may be repeated
    #[arg(long, value_name = "KEY=FILE", value_parser = head)]
    head: Vec<(String, PathBuf)>,
    /// Objects named PREFIX, a number from 0 to COUNT - 1 with leading zeros, SUFFIX; may be
    /// repeated
    #[arg(long, value_name = "PREFIX:COUNT:SIZE[:SUFFIX]", value_parser = family)]
    family: Vec<Family>,
    /// Objects with a key for each combination of columns, such as wide/{100}/{1000}.jpg=110KB:
    /// {N} counts with leading zeros, {hex:N} are scattered digests, {plain:N} numbers without
    /// leading zeros, {word:N} words; may be repeated
    #[arg(long, value_name = "PATTERN=SIZE", value_parser = pattern)]
    pattern: Vec<Pattern>,
    /// Latency and bandwidth of a network, which the flags below override
    #[arg(long, value_enum)]
    network: Option<Network>,
    /// Time to the first byte of a GET or HEAD, such as 15ms
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    first_byte_latency: Option<Duration>,
    /// Time that a page of a listing takes
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    list_latency: Option<Duration>,
    /// Bytes per second that a connection sends, such as 90MB
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    bandwidth_per_connection: Option<u64>,
    /// Requests per second beyond which the answer is 503
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate_limit: Option<u32>,
    /// The region that requests must be signed for; any, unless given
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Allow reads without a signature
    #[arg(long)]
    public: bool,
    /// Puts a proxy in front of it, which breaks answers as lines on standard input say: `add get
    /// a/* reset@100000 times=2`, `hits 0`, `clear`, `cut`; each is answered with a line
    #[arg(long, conflicts_with = "tls")]
    faults: bool,
    /// Speaks TLS, with a certificate that is made now and written to this file
    #[arg(long, value_name = "FILE")]
    tls: Option<PathBuf>,
    /// Writes a line for each answer to this file, with times since 1970: when the request came,
    /// when the first and the last bytes were written, and how many
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Network {
    /// 15 ms to the first byte, 40 ms a page of a listing, 90 MB/s a connection
    S3,
    /// 1 ms to the first byte, 3 ms a page of a listing, 1 GB/s a connection
    Flash,
    /// 5 ms to the first byte, 10 ms a page of a listing, 300 MB/s a connection
    Near,
    /// 50 ms to the first byte, 80 ms a page of a listing, 45 MB/s a connection
    Far,
}

impl Network {
    /// Time to the first byte, time of a listing's page, bytes per second and connection.
    fn settings(self) -> (Duration, Duration, u64) {
        let ms = Duration::from_millis;
        match self {
            Self::S3 => (ms(15), ms(40), 90_000_000),
            Self::Flash => (ms(1), ms(3), 1_000_000_000),
            Self::Near => (ms(5), ms(10), 300_000_000),
            Self::Far => (ms(50), ms(80), 45_000_000),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("devserver: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> io::Result<()> {
    let mut builder = Server::builder().listen(args.listen);
    if let Some(network) = args.network {
        let (first_byte, list, bandwidth) = network.settings();
        builder = builder
            .first_byte_latency(first_byte)
            .list_latency(list)
            .bandwidth_per_connection(Some(bandwidth));
    }
    if let Some(latency) = args.first_byte_latency {
        builder = builder.first_byte_latency(latency);
    }
    if let Some(latency) = args.list_latency {
        builder = builder.list_latency(latency);
    }
    if args.bandwidth_per_connection.is_some() {
        builder = builder.bandwidth_per_connection(args.bandwidth_per_connection);
    }
    if let Some(region) = &args.region {
        builder = builder.region(region);
    }
    builder = builder.rate_limit(args.rate_limit).tls(args.tls.is_some()).log(args.log);
    let started = builder.start().await;
    let explain = |error| io::Error::other(format!("cannot listen on {}: {error}", args.listen));
    let server = started.map_err(explain)?;
    if let Some((path, certificate)) = args.tls.as_deref().zip(server.certificate()) {
        std::fs::write(path, certificate)
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    }

    let bucket = server.bucket(&args.bucket);
    bucket.set_public(args.public);
    for (key, size) in &args.object {
        bucket.put_synthetic(key, *size);
    }
    for (key, path) in &args.head {
        let wrong = |what: String| io::Error::other(format!("--head {key}: {what}"));
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let object = bucket.info(key).ok_or_else(|| wrong("there is no such --object".into()))?;
        if bytes.len() as u64 > object.size {
            return Err(wrong("it is longer than the object".into()));
        }
        bucket.put_headed(key, object.size, bytes);
    }
    for family in args.family {
        bucket.put_family(family);
    }
    for pattern in args.pattern {
        bucket.put_family(pattern);
    }

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut count = signal(SignalKind::user_defined1())?;
    let keys = server.credentials();
    let proxy = if args.faults { Some(FaultProxy::start(server.address()).await?) } else { None };
    let endpoint = proxy.as_ref().map_or_else(|| server.endpoint_url(), FaultProxy::endpoint_url);
    println!("# bucket {} at {endpoint}", args.bucket);
    println!("export AWS_ENDPOINT_URL={endpoint}");
    println!("export AWS_ACCESS_KEY_ID={}", keys.access_key);
    println!("export AWS_SECRET_ACCESS_KEY={}", keys.secret_key);
    if let Some(path) = &args.tls {
        println!("export AWS_CA_BUNDLE={}", path.display());
    }
    println!("export AWS_REGION={}", args.region.as_deref().unwrap_or(devserver::ENDPOINT_REGION));
    let mut lines = lines(proxy.is_some());
    loop {
        tokio::select! {
            Some((line, proxy)) = async { Some((lines.recv().await?, proxy.as_ref()?)) } => {
                match proxy.tell(&line) {
                    Ok(answer) => println!("ok {answer}"),
                    Err(error) => println!("error {error}"),
                }
            }
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = count.recv() => println!("{}", json(server.counts())),
        }
    }
}

/// The lines of standard input, if there is a proxy to receive them.
fn lines(heard: bool) -> Receiver<String> {
    let (said, lines) = channel(1);
    if heard {
        std::thread::spawn(move || {
            for line in io::stdin().lines().map_while(Result::ok) {
                if said.blocking_send(line).is_err() {
                    return;
                }
            }
        });
    }
    lines
}

fn json(counts: Counts) -> String {
    let Counts { list, head, get, other, body_bytes, connections } = counts;
    format!(
        r#"{{"list":{list},"head":{head},"get":{get},"other":{other},"body_bytes":{body_bytes},"connections":{connections}}}"#
    )
}

fn size(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.0).map_err(|error| format!("{text:?}: {error}"))
}

fn bandwidth(text: &str) -> Result<u64, String> {
    match size(text.strip_suffix("/s").unwrap_or(text))? {
        0 => Err("must be more than nothing".into()),
        bandwidth => Ok(bandwidth),
    }
}

fn object(text: &str) -> Result<(String, u64), String> {
    // A key may hold the sign, a size may not.
    let (key, bytes) = text.rsplit_once('=').ok_or("must have the form KEY=SIZE")?;
    Ok((checked(key)?.into(), size(bytes)?))
}

fn head(text: &str) -> Result<(String, PathBuf), String> {
    let (key, path) = text.rsplit_once('=').ok_or("must have the form KEY=FILE")?;
    Ok((checked(key)?.into(), path.into()))
}

fn family(text: &str) -> Result<Family, String> {
    let mut fields = text.splitn(4, ':');
    let mut field = || fields.next().ok_or("must have the form PREFIX:COUNT:SIZE[:SUFFIX]");
    let (prefix, count, bytes) = (field()?.to_owned(), field()?, field()?);
    let suffix = field().unwrap_or_default().to_owned();
    let count = count.parse().map_err(|error| format!("the count {count:?}: {error}"))?;
    let family = Family { prefix, count, size: size(bytes)?, suffix };
    checked(&family.key(count.saturating_sub(1)))?;
    Ok(family)
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let (keys, bytes) = text.rsplit_once('=').ok_or("must have the form PATTERN=SIZE")?;
    let pattern = Pattern::parse(keys, size(bytes)?)?;
    checked(&pattern.key(0))?;
    Ok(pattern)
}

fn checked(key: &str) -> Result<&str, String> {
    match key.len() {
        1..=1024 => Ok(key),
        length => Err(format!("a key has 1 to 1024 bytes, this one {length}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_objects_and_families() {
        assert_eq!(object("a=b=1GiB"), Ok(("a=b".into(), 1 << 30)));
        let suffix = ".jpg".to_owned();
        let expected = Family { prefix: "t/".into(), count: 10, size: 110_000, suffix };
        assert_eq!(family("t/:10:110KB:.jpg"), Ok(expected));
        assert_eq!(family("t/:10:1").map(|family| family.key(3)), Ok("t/3".into()));
        assert_eq!(bandwidth("90MB/s"), Ok(90_000_000));
        for wrong in ["", "a", "a:1", "a:x:1", "a:1:x"] {
            assert!(family(wrong).is_err(), "{wrong}");
        }
        assert_eq!(pattern("a={3}=1KB").map(|pattern| pattern.key(2)), Ok("a=2".into()));
        assert!(pattern("a/{3}").is_err());
        assert!(object("=1").is_err());
        assert!(object("a=1XB").is_err());
    }
}
