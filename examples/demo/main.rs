//! fasts3-mount at work: an S3 server on the loopback with a generated data set, a mount of it,
//! and Python reading it through plain `open()`. Every byte is checked, and every figure printed.
//!
//! `cargo run --release --example demo`

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use devserver::Server;
use tokio::signal::unix::{SignalKind, signal};

use data::Data;
use mount::Mount;
use reader::{Measured, Reader, Step};

mod data;
mod mount;
mod reader;

/// A network to S3: time to the first byte, time that a page of a listing takes, and
/// bytes per second and connection.
const FIRST_BYTE: Duration = Duration::from_millis(15);
const LIST_PAGE: Duration = Duration::from_millis(40);
const BANDWIDTH: u64 = 90_000_000;
/// The usual number of workers of a data loader.
const THREADS: usize = 16;

/// Shows fasts3-mount at work, with nothing to prepare.
///
/// Starts an S3 server on this machine with a generated data set, mounts it, has python3 read it
/// through plain open(), checks every byte, and prints how fast it was. Leaves nothing behind. The
/// options of fasts3-mount can be tried by their variables, such as FASTS3_PART_SIZE=16MiB.
#[derive(Debug, Parser)]
#[command(name = "demo", max_term_width = 100)]
#[allow(clippy::doc_markdown)] // backticks would be shown too
struct Args {
    /// Where to mount: an existing directory [default: a temporary one]
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,

    /// Leave it mounted at the end, to look around until Ctrl-C
    #[arg(long)]
    keep: bool,

    /// Of each of the two large files
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    size: u64,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == mount::AS_DAEMON) {
        return mount::daemon(std::env::args_os());
    }
    if arguments.next().is_some_and(|first| first == reader::AS_READER) {
        return reader::main();
    }
    let args = Args::parse();
    let outcome =
        tokio::runtime::Runtime::new().map_err(|error| error.to_string()).and_then(|rt| {
            let outcome = rt.block_on(run(&args));
            // Data that is no longer needed may still be generated.
            rt.shutdown_background();
            outcome
        });
    outcome.unwrap_or_else(|sentence| {
        eprintln!("demo: {sentence}");
        ExitCode::FAILURE
    })
}

/// Everything that must be undone is undone by drops, also when a signal comes.
async fn run(args: &Args) -> Result<ExitCode, String> {
    let mut interrupted = std::pin::pin!(interrupted().map_err(|error| error.to_string())?);
    let mut demo = tokio::select! {
        demo = Demo::start(args) => demo?,
        code = &mut interrupted => return Ok(code),
    };
    tokio::select! {
        measured = demo.measure() => measured?,
        code = &mut interrupted => return Ok(code),
    }
    demo.say_how_to_look_around(args.keep);
    if args.keep {
        tokio::select! {
            () = demo.mount.ended() => println!("Unmounted from outside."),
            _ = interrupted => println!("Unmounting."),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns when the user wants an end, with the exit code that a shell would give that signal.
fn interrupted() -> io::Result<impl Future<Output = ExitCode>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        let number = tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            _ = hangup.recv() => 1,
        };
        ExitCode::from(128 + number)
    })
}

/// The parts, in the order in which they must end.
struct Demo {
    mount: Mount,
    server: Server,
    data: Data,
}

impl Demo {
    async fn start(args: &Args) -> Result<Self, String> {
        let server = Server::builder().start().await;
        let server = server.map_err(|error| format!("no S3 server can be started: {error}"))?;
        let bucket = server.bucket(data::BUCKET);
        let large_bytes = args.size.clamp(1, 1 << 20) << 20;
        let data = tokio::task::spawn_blocking(move || Data::generate(&bucket, large_bytes)).await;
        let data = data.map_err(|error| format!("the data set cannot be generated: {error}"))?;
        let mount = Mount::start(&server, args.mountpoint.as_deref()).await?;
        println!("Mounted s3://{} of {}", data::BUCKET, server.endpoint_url());
        println!("on      {}", mount.path().display());
        Ok(Self { mount, server, data })
    }

    async fn measure(&self) -> Result<(), String> {
        let reader = Reader::start(self.mount.path()).await;
        let reader = &mut reader.map_err(|error| format!("nothing can read the mount: {error}"))?;
        println!("Read by {}\n", reader.name);
        println!(
            "{:<40}{:>7}{:>9}{:>9}{:>10}{:>8}  S3 requests",
            "", "files", "MB", "seconds", "files/s", "MB/s"
        );
        let (train, test) = (self.data.train.clone(), self.data.test.clone());
        let (near, far) = (vec![self.data.near.clone()], vec![self.data.far.clone()]);
        let read = |files: &Vec<_>, threads| Step::Read { threads, files: files.clone() };

        self.step(reader, "find and stat all images", &self.data.walk()).await?;
        self.step(reader, "read images one after another", &read(&test, 1)).await?;
        self.step(reader, &format!("read images in {THREADS} threads"), &read(&train, THREADS))
            .await?;
        self.step(reader, "  the second epoch", &read(&train, THREADS)).await?;
        self.step(reader, "read a table's footer and two columns", &self.data.wanted_columns())
            .await?;
        self.step(reader, "read a large file in one read()", &read(&near, 1)).await?;
        self.step(reader, "  once more", &read(&near, 1)).await?;

        println!(
            "\nNow the store is as far away as S3: {} ms to the first byte, {} ms a page of a \
             listing,\n{} MB/s a connection.\n",
            FIRST_BYTE.as_millis(),
            LIST_PAGE.as_millis(),
            BANDWIDTH / 1_000_000,
        );
        self.server.set_first_byte_latency(FIRST_BYTE);
        self.server.set_list_latency(LIST_PAGE);
        self.server.set_bandwidth_per_connection(Some(BANDWIDTH));
        self.step(reader, "read another one in one read()", &read(&far, 1)).await?;
        self.step(reader, "  once more", &read(&far, 1)).await?;
        println!("\nEvery byte was right.");
        Ok(())
    }

    async fn step(&self, reader: &mut Reader, what: &str, step: &Step) -> Result<(), String> {
        self.server.reset();
        let done = reader.run(step).await;
        let Measured { seconds, files, bytes } =
            done.map_err(|error| format!("{what}: {error}"))?;
        let counts = self.server.counts();
        let requests = [(counts.list, "LIST"), (counts.head, "HEAD"), (counts.get, "GET")]
            .into_iter()
            .filter(|&(count, _)| count > 0)
            .map(|(count, kind)| format!("{count} {kind}"));
        let requests = requests.collect::<Vec<_>>().join(", ");
        let requests = if requests.is_empty() { "none".to_owned() } else { requests };
        // Figures for people: nothing here comes near what a float cannot hold.
        #[allow(clippy::cast_precision_loss)]
        let (count, megabytes) = (files as f64, bytes as f64 / 1e6);
        let files_per_second =
            if files > 1 { format!("{:.0}", count / seconds) } else { String::new() };
        let megabytes_per_second =
            if bytes > 0 { format!("{:.0}", megabytes / seconds) } else { String::new() };
        let megabytes = if bytes > 0 { format!("{megabytes:.1}") } else { String::new() };
        println!(
            "{what:<40}{files:>7}{megabytes:>9}{seconds:>9.3}{files_per_second:>10}\
             {megabytes_per_second:>8}  {requests}",
        );
        Ok(())
    }

    fn say_how_to_look_around(&self, kept: bool) {
        let path = self.mount.path().display();
        if !kept {
            println!("To look around by hand: cargo run --release --example demo -- --keep");
            return;
        }
        self.server.set_first_byte_latency(Duration::ZERO);
        self.server.set_list_latency(Duration::ZERO);
        self.server.set_bandwidth_per_connection(None);
        println!("\nThe store is near again, and mounted until Ctrl-C. Look around:\n");
        println!("  ls -l \"{path}/images/train/cat\"");
        println!("  du -sh \"{path}/images\"");
        println!("  dd if=\"{path}/{}\" of=/dev/null bs=1M", data::NEAR_KEY);
        println!("  python3 -c 'print(open(\"{path}/{}\", \"rb\").read(4))'\n", data::TABLE_KEY);
    }
}
