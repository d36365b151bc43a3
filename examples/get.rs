//! The cost of GETs for the client: CPU seconds a GB and microseconds a request, through `S3Store`.
//!
//! The server is another process, so that its CPU is not counted:
//!
//! ```text
//! cargo run --release -p devserver -- --object big=1GiB &
//! cargo run --release --example get -- http://127.0.0.1:9000 big 8MiB 8 4GiB
//! ```
//!
//! With `--tls ca.pem` the server speaks TLS, and the endpoint is `https://127.0.0.1:9000`.
//!
//! The arguments: endpoint, key, bytes of a GET, GETs at once, bytes in all. Keys come from the
//! environment; a certificate is not checked.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytesize::ByteSize;
use fasts3_mount::store::ObjectStore as _;
use fasts3_mount::store::s3::{S3Store, StoreConfig};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// Read before the clock starts, for connections, page tables, key derivation.
const WARM_UP_GETS: u64 = 16;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, key, part, at_once, total] = args.as_slice() else {
        return Err("usage: get ENDPOINT KEY BYTES_OF_A_GET GETS_AT_ONCE BYTES_IN_ALL".into());
    };
    let bytes = |text: &String| text.parse::<ByteSize>().map(|size| size.as_u64());
    let (part, total, at_once) = (bytes(part)?, bytes(total)?, at_once.parse::<usize>()?);
    let config = StoreConfig {
        endpoint_url: Some(endpoint.clone()),
        region: Some("us-east-1".to_owned()),
        no_verify_tls: true,
        ..StoreConfig::default()
    };
    let store = S3Store::connect("data", &config).await?;
    let version = store.head(key).await?.meta.version;
    let run = Arc::new((store, version, part, AtomicU64::new(0)));

    let mut buffers = vec![vec![0; usize::try_from(part)?]; at_once];
    buffers = gets(&run, buffers, WARM_UP_GETS.max(at_once as u64)).await?;
    let (start, before) = (Instant::now(), cpu()?);
    let count = total / part;
    gets(&run, buffers, count).await?;
    let (took, used) = (start.elapsed().as_secs_f64(), cpu()? - before);

    #[allow(clippy::cast_precision_loss)] // for people
    let (count, total) = (count as f64, (count * part) as f64 / 1e9);
    println!(
        "{:.3} CPU s/GB, {:.1} CPU us/GET, {:.2} GB/s, {:.0} GETs/s",
        used / total,
        used / count * 1e6,
        total / took,
        count / took
    );
    Ok(())
}

type Run = (S3Store, fasts3_mount::store::ObjectVersion, u64, AtomicU64);

/// Sends GETs, those of each buffer in sequence, and returns the buffers.
async fn gets(
    run: &Arc<Run>,
    buffers: Vec<Vec<u8>>,
    count: u64,
) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    run.3.store(0, Ordering::Relaxed);
    let mut tasks = tokio::task::JoinSet::new();
    for mut buffer in buffers {
        let run = Arc::clone(run);
        tasks.spawn(async move {
            let (store, version, part, next) = &*run;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(buffer);
                }
                let start = number * part % (version.size_bytes / part * part);
                let range = start..start + part;
                buffer.clear();
                store.get_range(version, range, &mut buffer).await?;
            }
        });
    }
    let done: Result<Vec<_>, fasts3_mount::store::StoreError> =
        tasks.join_all().await.into_iter().collect();
    Ok(done?)
}

/// User and system time of this process, in seconds.
fn cpu() -> Result<f64, Box<dyn Error>> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    #[allow(clippy::cast_precision_loss)] // microseconds of some minutes
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
