//! The generated data set, and the expected result of reading it.

use devserver::Bucket;

use crate::reader::{Expected, Step};

const CLASSES: [&str; 10] =
    ["airplane", "bird", "boat", "car", "cat", "dog", "frog", "horse", "ship", "truck"];
const TRAIN_PER_CLASS: u64 = 40;
const TEST_PER_CLASS: u64 = 10;
const COLUMNS: [&str; 8] =
    ["time", "user", "session", "event", "url", "referrer", "duration", "label"];
const COLUMN_BYTES: usize = 4 << 20;
/// Computed and checked in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// The bucket's name.
pub(crate) const BUCKET: &str = "demo";
/// Read at the speed of this machine.
pub(crate) const NEAR_KEY: &str = "models/weights.safetensors";
/// Read over the simulated network. In a folder of its own, so that finding it costs requests too.
pub(crate) const FAR_KEY: &str = "checkpoints/step-1000.safetensors";
/// Begins and ends like a Parquet file and has its footer in the same place; the footer is JSON:
/// the offset and size of each column.
pub(crate) const TABLE_KEY: &str = "tables/events.parquet";

/// The content of the bucket. Keys are paths below the mount.
pub(crate) struct Data {
    pub(crate) train: Vec<Expected>,
    pub(crate) test: Vec<Expected>,
    pub(crate) near: Expected,
    pub(crate) far: Expected,
    columns: Vec<Expected>,
}

impl Data {
    /// Fills the bucket, with two large objects of `large_bytes`. Takes a second or two for a GiB
    /// each: their checksums are computed.
    pub(crate) fn generate(bucket: &Bucket, large_bytes: u64) -> Self {
        let images = |set: &str, per_class| {
            let keys = CLASSES.into_iter().flat_map(move |class| {
                (0..per_class).map(move |number| format!("images/{set}/{class}/{number:04}.jpg"))
            });
            // Sizes as photographs have them: 80 to 140 KB, all different.
            let sized = keys.zip(0_u64..).map(|(key, n)| (key, 80_000 + n * 7_919 % 60_000));
            sized.map(|(key, size)| synthetic(bucket, &key, size)).collect()
        };
        let columns = put_table(bucket);
        // A thread for each of the two big ones.
        let (near, far) = std::thread::scope(|scope| {
            let near = scope.spawn(|| synthetic(bucket, NEAR_KEY, large_bytes));
            let far = synthetic(bucket, FAR_KEY, large_bytes);
            (near.join().expect("computing a checksum does not panic"), far)
        });
        Self {
            train: images("train", TRAIN_PER_CLASS),
            test: images("test", TEST_PER_CLASS),
            near,
            far,
            columns,
        }
    }

    pub(crate) fn walk(&self) -> Step {
        let files = [&self.test[..], &self.train[..]].concat();
        Step::Walk { root: "images".to_owned(), files }
    }

    /// The table's footer, and then the columns that a training script would want.
    pub(crate) fn wanted_columns(&self) -> Step {
        let wanted = |column: &&Expected| ["event", "label"].contains(&column.path.as_str());
        let columns = self.columns.iter().filter(wanted).cloned().collect();
        Step::Columns { path: TABLE_KEY.to_owned(), columns }
    }
}

fn synthetic(bucket: &Bucket, key: &str, size: u64) -> Expected {
    bucket.put_synthetic(key, size);
    let crc32 = crc32(bucket, key, size);
    Expected { path: key.to_owned(), size, crc32 }
}

fn crc32(bucket: &Bucket, key: &str, size: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for start in (0..size).step_by(PIECE_BYTES) {
        hasher.update(&bucket.bytes(key, start..size.min(start + PIECE_BYTES as u64)));
    }
    hasher.finalize()
}

fn put_table(bucket: &Bucket) -> Vec<Expected> {
    let mut table = b"PAR1".to_vec();
    let mut footer = serde_json::Map::new();
    let mut columns = Vec::new();
    for name in COLUMNS {
        let mut content = vec![0; COLUMN_BYTES];
        devserver::content::fill(devserver::content::seed(name, 0), 0, &mut content);
        let place = serde_json::json!({ "offset": table.len(), "size": content.len() });
        footer.insert(name.to_owned(), place);
        columns.push(Expected {
            path: name.to_owned(),
            size: content.len() as u64,
            crc32: crc32fast::hash(&content),
        });
        table.extend(content);
    }
    let footer = serde_json::Value::Object(footer).to_string();
    let footer_bytes = u32::try_from(footer.len()).expect("eight columns");
    table.extend(footer.as_bytes());
    table.extend(footer_bytes.to_le_bytes());
    table.extend(b"PAR1");
    bucket.put(TABLE_KEY, table);
    columns
}
