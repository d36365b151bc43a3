use std::sync::Arc;

use ::http::header::HeaderMap;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::{HttpRequest, HttpResponse};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{EncodingType, Object, ObjectStorageClass};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_types::body::SdkBody;
use parking_lot::Mutex;
use proptest::prelude::*;

use std::time::{Duration, UNIX_EPOCH};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::super::response::{About, Refusal};
use super::*;
use crate::store::Nonsense;

/// The page of a whole bucket.
fn read(xml: &[u8]) -> Result<ListPage, StoreError> {
    super::read(xml, "")
}

const END: &str = "<IsTruncated>false</IsTruncated>";

fn whole(inner: &str) -> String {
    format!("<ListBucketResult>{inner}</ListBucketResult>")
}

/// `<Contents>` with what is given, and what else there must be.
fn contents(given: &str) -> String {
    let mut all = given.to_owned();
    for (name, value) in [
        ("Key", "k"),
        ("Size", "1"),
        ("ETag", "\"e\""),
        ("LastModified", "2024-01-01T00:00:00.000Z"),
    ] {
        if !given.contains(&format!("<{name}")) {
            all.extend(["<", name, ">", value, "</", name, ">"]);
        }
    }
    format!("<Contents>{all}</Contents>")
}

/// The only object of a page with this in its `<Contents>`.
fn one(given: &str) -> Result<ObjectMeta, StoreError> {
    let mut page = read(whole(&(contents(given) + END)).as_bytes())?;
    assert_eq!(page.entries.len(), 1, "{given}");
    match page.entries.remove(0) {
        ListEntry::Object(meta) => Ok(meta),
        other => panic!("{other:?}"),
    }
}

fn keys(xml: &str) -> Vec<String> {
    let page = read(xml.as_bytes()).unwrap_or_else(|error| panic!("{xml}: {error}"));
    page.entries.iter().map(|entry| entry.key().to_owned()).collect()
}

#[test]
fn what_is_no_page_is_a_contradiction_and_never_an_empty_page() {
    let deep = format!("{}{}{}", "<a>".repeat(100), "</a>".repeat(100), END);
    let long = format!("<IsTruncated>{}</IsTruncated>", "k".repeat(100_000));
    for wrong in [
        "",
        " \n",
        "It works!",
        "{\"IsTruncated\": false}",
        "\0\0\0\0",
        "<html><body>It works!</body></html>",
        "<!DOCTYPE html><html></html>",
        "<ListBucketResult>",
        "<ListBucketResult/>",
        "<ListBucketResult><IsTruncated>false</IsTruncated>",
        "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResults>",
        "<ListBucketResult><IsTruncated>false</ListBucketResult></IsTruncated>",
        "<ListAllMyBucketsResult><IsTruncated>false</IsTruncated></ListAllMyBucketsResult>",
        "<Error><Code>SlowDown</Code><Message>Later.</Message></Error>",
        "<Error><Code>",
        &format!("text{}", whole(END)),
        &format!("{}text", whole(END)),
        &format!("{}{}", whole(END), whole(END)),
        &format!("<a>{}</a>", whole(END)),
        &format!("<!DOCTYPE a [<!ENTITY b \"c\">]>{}", whole(END)),
        &format!("<!DOCTYPE ListBucketResult SYSTEM \"http://h/a.dtd\">{}", whole(END)),
        &whole(&format!("<!DOCTYPE a>{END}")),
        &whole(&deep),
        &whole(&long),
        // What is told of the page.
        &whole(""),
        &whole("<IsTruncated/>"),
        &whole("<IsTruncated>maybe</IsTruncated>"),
        &whole("<IsTruncated>true</IsTruncated>"),
        &whole("<IsTruncated>true</IsTruncated><NextContinuationToken/>"),
        &whole(&format!("<KeyCount>1</KeyCount>{END}")),
    ] {
        match read(wrong.as_bytes()) {
            Err(StoreError::Nonsense(Nonsense::Protocol(why))) => {
                assert!(why.len() < 300, "{} bytes", why.len());
            }
            other => panic!("{wrong}: {other:?}"),
        }
    }
    for bytes in [&b"\xff\xfe<\0L\0"[..], b"<ListBucketResult>\xff", b"<\xff/>"] {
        assert!(
            matches!(read(bytes), Err(StoreError::Nonsense(Nonsense::Protocol(_)))),
            "{bytes:?}"
        );
    }
}

#[test]
fn an_entry_that_is_not_told_whole_costs_its_neighbours_nothing() {
    let sizes = ["", "-1", "1.5", "0x10", "one", "9223372036854775808", "99999999999999999999"];
    let dates = ["", "yesterday", "2024-02-30T00:00:00Z", "24-01-01", "0"];
    let odd = [("Size", &sizes[..]), ("LastModified", &dates), ("ETag", &["", "\"\"", "&b;"])];
    let odd = odd.iter().flat_map(|(name, values)| {
        values.iter().map(move |value| contents(&format!("<Key>b</Key><{name}>{value}</{name}>")))
    });
    let missing = ["<Contents><Key>b</Key></Contents>".to_owned()];
    for untold in odd.chain(missing) {
        let all = [contents("<Key>a</Key>"), untold, contents("<Key>c</Key>"), END.to_owned()];
        let page = read(whole(&all.concat()).as_bytes()).unwrap();
        assert!(
            matches!(&page.entries[..], [
            ListEntry::Object(_), ListEntry::Untold(key), ListEntry::Object(_)
        ] if key == "b"),
            "{}: {page:?}",
            all[1]
        );
        assert_eq!((page.undecodable, page.foreign), (0, 0));
        assert!(
            facts(whole(&all.concat()).as_bytes(), "b").unwrap().is_some_and(|b| !b.are_whole())
        );
    }
}

#[test]
fn an_entry_whose_key_cannot_be_one_is_counted() {
    for odd in [
        "<Contents/>",
        "<CommonPrefixes/>",
        "<Contents><Size>1</Size></Contents>",
        &contents("<Key>a<b>c</b></Key>"),
        &contents("<Key>&b;</Key>"),
        &contents("<Key>a & b</Key>"),
        &contents("<Key>a\u{1}b</Key>"),
        &contents("<Key>a\rb</Key>"),
        &contents("<Key>&#0;</Key>"),
        &contents("<Key>&#xD800;</Key>"),
        &contents("<Key>&#x110000;</Key>"),
        &contents("<Key>&#99999999999999999999;</Key>"),
    ] {
        let all = [&contents("<Key>a</Key>"), odd, &contents("<Key>c</Key>"), END].concat();
        let page = read(whole(&all).as_bytes()).unwrap();
        let count = (page.entries.len(), page.undecodable, page.foreign);
        assert_eq!(count, (2, 1, 0), "{odd}");
    }
    let latin = b"<ListBucketResult><Contents><Key>\xe4</Key></Contents>";
    let latin = [latin, END.as_bytes(), b"</ListBucketResult>"].concat();
    assert_eq!(read(&latin).unwrap().undecodable, 1);
    // A count that is none counts nothing.
    for count in ["-1", "99999999999999999999", "many"] {
        let page = read(whole(&format!("<KeyCount>{count}</KeyCount>{END}")).as_bytes());
        assert_eq!(page, Ok(ListPage::default()));
    }
}

#[test]
fn an_entry_outside_of_the_prefix_is_counted_unless_the_page_is_another_prefix_s() {
    let other = contents("<Key>c</Key>") + "<CommonPrefixes><Prefix>d</Prefix></CommonPrefixes>";
    let own = contents("<Key>d/a</Key>");
    let page = |xml: &str| super::read(whole(&(xml.to_owned() + END)).as_bytes(), "d/");
    let told = page(&(own + &other)).unwrap();
    assert_eq!((told.entries.len(), told.foreign), (1, 2));
    assert!(page(&other).is_err());
    assert!(page(&format!("<Prefix>e/</Prefix>{other}")).is_err());
    for prefix in ["<Prefix>d/</Prefix>", "<EncodingType>url</EncodingType><Prefix>d%2F</Prefix>"] {
        let told = page(&(prefix.to_owned() + &other)).unwrap();
        assert_eq!((told.entries.len(), told.foreign), (0, 2));
    }
}

#[test]
fn a_restored_object_is_not_archived() {
    let expiry = "<RestoreExpiryDate>2030-01-01T00:00:00.000Z</RestoreExpiryDate>";
    let status = |done: &str| format!("<RestoreStatus>{done}</RestoreStatus>");
    let begun = |is: &str| format!("<IsRestoreInProgress>{is}</IsRestoreInProgress>");
    for (class, restore, archived) in [
        ("GLACIER", String::new(), true),
        ("GLACIER", status(&begun("true")), true),
        ("DEEP_ARCHIVE", status(&(begun("false") + expiry)), false),
        ("GLACIER", status(expiry), false),
        ("DEEP_ARCHIVE", status(&begun("false")), true),
        ("INTELLIGENT_TIERING", status(&begun("true")), true),
        ("INTELLIGENT_TIERING", String::new(), false),
    ] {
        let read = one(&format!("{restore}<StorageClass>{class}</StorageClass>")).unwrap();
        assert_eq!(read.archived, archived, "{class} {restore}");
    }
}

#[test]
fn an_error_in_place_of_a_page_is_told() {
    let error = "<Error><Code>SlowDown</Code><Message>Later &amp; less.</Message></Error>";
    let told = "an error in place of a listing: SlowDown: Later & less.";
    assert_eq!(read(error.as_bytes()), Err(StoreError::nonsense(told.to_owned())));
}

#[test]
fn what_stores_write_differently_means_the_same() {
    let namespace = "http://s3.amazonaws.com/doc/2006-03-01/";
    let plain = contents("<Key>a</Key>");
    for same in [
        whole(&format!("{plain}{END}")),
        whole(&format!("{END}{plain}")),
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n",
            whole(&format!("{plain}{END}"))
        ),
        format!("\u{feff}{}", whole(&format!("{plain}{END}"))),
        whole(&format!("{plain}{END}")).replacen(
            "<ListBucketResult>",
            &format!("<ListBucketResult xmlns='{namespace}'>"),
            1,
        ),
        whole(&format!("{plain}{END}"))
            .replace("</", "</s3:")
            .replace('<', "<s3:")
            .replace("<s3:/s3:", "</s3:"),
        whole(&format!("\n  {}\n {END}<!-- > --><?a b?>", plain.replace("><", ">\n\t<"))),
        whole(&format!("<New><Key>b</Key><a/></New>{}{END}", contents("<Key>a</Key><New/>"))),
        whole(&format!("{}{END}", contents("<Key><![CDATA[a]]></Key>"))),
        whole(&format!("{}{END}", contents("<Key><!-- b -->&#x61;</Key>"))),
        whole(&format!("<KeyCount>1</KeyCount>{plain}{END}")),
        whole(&format!("<KeyCount>0</KeyCount><Owner><ID>a</ID></Owner>{plain}{END}")),
    ] {
        assert_eq!(keys(&same), ["a"], "{same}");
    }
    assert_eq!(read(whole(END).as_bytes()), Ok(ListPage::default()));
    for (written, key) in [
        ("&lt;&amp;&gt;&quot;&apos;", "<&>\"'"),
        ("a&#x1;&#10;&#x1F980;", "a\u{1}\n\u{1f980}"),
        ("a<![CDATA[<b>&amp;]]>c", "a<b>&amp;c"),
        ("a<!-- b -->c", "ac"),
        (" a ", " a "),
        ("", ""),
    ] {
        assert_eq!(one(&format!("<Key>{written}</Key>")).unwrap().version.key, key);
    }
}

#[test]
fn sizes_etags_and_classes_are_as_s3_means_them() {
    for (written, bytes) in [("0", 0), ("9223372036854775807", u64::MAX >> 1)] {
        assert_eq!(one(&format!("<Size>{written}</Size>")).unwrap().version.size_bytes, bytes);
    }
    for etag in ["\"x-1\"", "&quot;x-1&quot;", "x-1", "W/\"x-1\"", "&#34;x-1&#34;"] {
        assert_eq!(one(&format!("<ETag>{etag}</ETag>")).unwrap().version.etag, "\"x-1\"");
    }
    for (class, archived) in
        [("GLACIER", true), ("DEEP_ARCHIVE", true), ("GLACIER_IR", false), ("NEW", false)]
    {
        let read = one(&format!("<StorageClass>{class}</StorageClass>")).unwrap();
        assert_eq!(read.archived, archived, "{class}");
    }
}

#[test]
fn keys_are_decoded_only_when_the_store_says_it_encoded() {
    let page = |keys: &[&str]| -> String {
        keys.iter().map(|key| contents(&format!("<Key>{key}</Key>"))).collect::<String>() + END
    };
    let url = "<EncodingType>url</EncodingType>";
    let written = ["a+b%2Bc%25%01", "%c3%A4%2f", "100%", "%zz%4", "%"];
    let decoded = ["a b+c%\u{1}", "ä/", "100%", "%zz%4", "%"];
    // S3 tells it before them, others behind.
    assert_eq!(keys(&whole(&format!("{url}{}", page(&written)))), decoded);
    assert_eq!(keys(&whole(&format!("{}{url}", page(&written)))), decoded);
    assert_eq!(keys(&whole(&page(&written))), written);
    assert_eq!(keys(&whole(&format!("<EncodingType/>{}", page(&written)))), written);

    let odd = whole(&format!(
        "{url}{}<CommonPrefixes><Prefix>%FE/</Prefix></CommonPrefixes>",
        page(&["%FF", "a", "%C3"])
    ));
    let page = read(odd.as_bytes()).unwrap();
    assert_eq!((page.entries.len(), page.undecodable), (1, 3));
}

#[test]
fn keys_and_prefixes_become_one_ascending_list() {
    let prefixes = |of: &[&str]| -> String {
        let one = |prefix| format!("<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>");
        of.iter().map(one).collect()
    };
    let objects = |of: &[&str]| -> String {
        of.iter().map(|key| contents(&format!("<Key>{key}</Key>"))).collect()
    };
    let (objects_, prefixes_) = (objects(&["a", "b", "d"]), prefixes(&["a/", "c/", "e/"]));
    let want = ["a", "a/", "b", "c/", "d", "e/"];
    assert_eq!(keys(&whole(&format!("{objects_}{prefixes_}{END}"))), want);
    assert_eq!(keys(&whole(&format!("{prefixes_}{END}{objects_}"))), want);
    let request = crate::store::ListRequest {
        prefix: String::new(),
        delimited: true,
        from: crate::store::ListFrom::Start,
        max_keys: 9,
        any_order: false,
    };
    for disordered in [
        format!("{}{}{END}", objects(&["d", "b"]), prefixes(&["c/"])),
        format!("{}{}{END}", objects(&["b", "b"]), prefixes(&["c/"])),
        format!("{}{}{END}", objects(&["b", "d"]), prefixes(&["c/", "a/"])),
    ] {
        let page = read(whole(&disordered).as_bytes()).unwrap();
        assert!(crate::store::check_page(&request, &page).is_err(), "{page:?}");
    }
}

/// How the SDK reads a page, and what was made of it before it was read here.
#[derive(Debug)]
struct Sdk {
    client: Client,
    answer: Arc<Mutex<(u16, Vec<u8>)>>,
    runtime: tokio::runtime::Runtime,
}

#[derive(Clone, Debug)]
struct Canned(Arc<Mutex<(u16, Vec<u8>)>>);

impl HttpConnector for Canned {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let (status, body) = self.0.lock().clone();
        let response = HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body));
        HttpConnectorFuture::ready(Ok(response))
    }
}

impl Sdk {
    fn new() -> Self {
        let answer = Arc::default();
        let canned = SharedHttpConnector::new(Canned(Arc::clone(&answer)));
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("r"))
            .allow_no_auth()
            .retry_config(RetryConfig::disabled())
            .http_client(http_client_fn(move |_, _| canned.clone()))
            .build();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { client: Client::from_conf(config), answer, runtime }
    }

    fn read(&self, xml: &[u8]) -> Result<ListPage, StoreError> {
        *self.answer.lock() = (200, xml.to_vec());
        let sent = self.runtime.block_on(self.client.list_objects_v2().bucket("b").send());
        Self::page(sent.map_err(|error| wrong(&error.to_string()))?)
    }

    /// Code and message of a refusal, as the SDK reads them.
    fn refused(&self, status: u16, xml: &[u8]) -> (String, String) {
        *self.answer.lock() = (status, xml.to_vec());
        let sent = self.runtime.block_on(self.client.list_objects_v2().bucket("b").send());
        let error = sent.expect_err("a refusal");
        let text = |told: Option<&str>| told.unwrap_or_default().to_owned();
        (text(error.code()), text(error.message()))
    }

    fn page(output: ListObjectsV2Output) -> Result<ListPage, StoreError> {
        let encoded = output.encoding_type == Some(EncodingType::Url);
        let mut undecodable = 0;
        let mut objects = Vec::new();
        for object in output.contents.unwrap_or_default() {
            match object.key.clone().and_then(|key| Self::decode(key, encoded)) {
                Some(key) => objects.push(entry(key, Self::facts(&object))),
                None => undecodable += 1,
            }
        }
        let mut prefixes = Vec::new();
        for prefix in output.common_prefixes.unwrap_or_default() {
            match prefix.prefix.and_then(|prefix| Self::decode(prefix, encoded)) {
                Some(prefix) => prefixes.push(ListEntry::Prefix(prefix)),
                None => undecodable += 1,
            }
        }
        let next = match (output.is_truncated, output.next_continuation_token) {
            (Some(true), Some(token)) if !token.is_empty() => Some(token),
            (Some(false), _) => None,
            _ => return Err(wrong("no end and no token")),
        };
        Ok(ListPage { entries: merge(objects, prefixes), next, undecodable, foreign: 0 })
    }

    fn decode(text: String, encoded: bool) -> Option<String> {
        if !encoded {
            return Some(text);
        }
        let spaced = text.replace('+', " ");
        let decoded = percent_encoding::percent_decode(spaced.as_bytes()).decode_utf8();
        decoded.ok().map(std::borrow::Cow::into_owned)
    }

    fn facts(object: &Object) -> Facts {
        let archived = matches!(
            object.storage_class,
            Some(ObjectStorageClass::Glacier | ObjectStorageClass::DeepArchive)
        );
        let seconds = object.last_modified.map(|time| u64::try_from(time.secs()).unwrap_or(0));
        Facts {
            size_bytes: object.size.and_then(|size| u64::try_from(size).ok()),
            etag: object.e_tag().and_then(facts::etag),
            last_modified: seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)),
            archived,
        }
    }
}

/// A page and how a store writes it.
fn written() -> impl Strategy<Value = (ListPage, String)> {
    let key = crate::testing::fuzz::text("[a-z0-9]{1,8}|[ab+% &<>\"'/é一🦀\t\n-]{1,6}");
    let etag = crate::testing::fuzz::text("[0-9a-f]{1,32}");
    let object = (any::<bool>(), key, 0..=u64::MAX >> 1, etag, 0..253_402_300_800_u64);
    let style = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        proptest::option::of(crate::testing::fuzz::text("[a-z0-9+/]{1,9}")),
    );
    (proptest::collection::vec(object, 0..8), style).prop_map(|(listed, style)| {
        let (encoded, is_spaced, is_last, token) = style;
        let escaped = |text: &str| quick_xml::escape::escape(text).into_owned();
        let written = |key: &str| {
            let all = percent_encoding::NON_ALPHANUMERIC;
            let url = percent_encoding::utf8_percent_encode(key, all).to_string();
            escaped(if encoded { &url } else { key })
        };
        let (mut objects, mut prefixes, mut xml) = (Vec::new(), Vec::new(), String::new());
        for (is_prefix, key, size_bytes, etag, seconds) in listed {
            let name = written(&key);
            if is_prefix {
                xml.extend(["<CommonPrefixes><Prefix>", &name, "/</Prefix></CommonPrefixes>"]);
                prefixes.push(ListEntry::Prefix(key + "/"));
                continue;
            }
            let date = DateTime::from_secs(seconds.cast_signed());
            let date = date.fmt(Format::DateTime).unwrap();
            let etag = format!("\"{etag}\"");
            xml += &contents(&format!(
                "<ETag>{}</ETag><Key>{name}</Key><Size>{size_bytes}</Size><Owner><ID>1</ID></Owner>\
                 <LastModified>{date}</LastModified>",
                escaped(&etag)
            ));
            let last_modified = UNIX_EPOCH + Duration::from_secs(seconds);
            let version = ObjectVersion { key, etag, size_bytes };
            objects.push(ListEntry::Object(ObjectMeta { version, last_modified, archived: false }));
        }
        let mut told = format!("<IsTruncated>{}</IsTruncated>", token.is_some());
        if let Some(token) = &token {
            told.extend(["<NextContinuationToken>", token, "</NextContinuationToken>"]);
        }
        if encoded {
            told += "<EncodingType>url</EncodingType>";
        }
        let mut xml = whole(&if is_last { xml + &told } else { told + &xml });
        if is_spaced {
            xml = format!("<?xml version=\"1.0\"?>\n{}\n", xml.replace("><", ">\n<"));
        }
        (ListPage { entries: merge(objects, prefixes), next: token, ..ListPage::default() }, xml)
    })
}

mod fuzz {
    use super::*;
    use crate::testing::fuzz;

    #[test]
    fn a_page_is_read_as_it_was_written() {
        fuzz::each(written(), |(page, xml)| {
            prop_assert_eq!(read(xml.as_bytes()), Ok(page), "{}", xml);
            Ok(())
        });
    }

    #[test]
    fn a_page_is_read_as_the_sdk_reads_it() {
        let sdk = Sdk::new();
        fuzz::each(written(), |(page, xml)| {
            prop_assert_eq!(sdk.read(xml.as_bytes()), Ok(page), "{}", xml);
            Ok(())
        });
    }

    /// Other bytes in some places, some missing and some twice, and an end before the end.
    fn damaged(xml: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<u8>> {
        let byte =
            prop_oneof![any::<u8>(), prop::sample::select(b"<>/&;\"!-?[]%+ aKS019".to_vec())];
        let damage = prop::collection::vec((any::<prop::sample::Index>(), 0..4, byte), 0..4);
        let cut = prop::option::of(any::<prop::sample::Index>());
        (xml, damage, cut).prop_map(|(xml, damage, cut)| {
            let mut xml = xml.into_bytes();
            for (at, how, byte) in damage {
                let at = at.index(xml.len());
                match how {
                    0 => xml[at] = byte,
                    1 => xml.insert(at, byte),
                    2 => drop(xml.remove(at)),
                    _ => xml.extend_from_within(at..),
                }
            }
            if let Some(cut) = cut {
                xml.truncate(cut.index(xml.len()));
            }
            xml
        })
    }

    /// Never is there a panic, nor more than came.
    #[test]
    fn a_page_that_was_damaged_is_refused_or_holds_no_more_than_it() {
        fuzz::each(damaged(written().prop_map(|(_, xml)| xml)), |xml| {
            if let Ok(page) = read(&xml) {
                let told: usize = page.entries.iter().map(|entry| entry.key().len()).sum();
                prop_assert!(told <= xml.len() && page.entries.len() <= xml.len() / 20);
            }
            Ok(())
        });
    }

    /// Nor another page than the SDK's.
    #[test]
    fn a_page_that_was_damaged_is_refused_or_read_as_the_sdk_reads_it() {
        let sdk = Sdk::new();
        fuzz::each(damaged(written().prop_map(|(_, xml)| xml)), |xml| {
            // The SDK reads no more of a text than what stands before a comment, and not the rest;
            // and nothing behind a character that XML does not allow between elements.
            let is_allowed = |byte: &u8| !byte.is_ascii_control() || b"\t\n\r".contains(byte);
            let plain = !xml.windows(2).any(|two| two == b"<!") && xml.iter().all(is_allowed);
            let ours = read(&xml).ok().filter(|page| page.undecodable + page.foreign == 0);
            if let (Some(ours), Ok(theirs), true) = (ours, sdk.read(&xml), plain) {
                prop_assert_eq!(ours, theirs, "{}", String::from_utf8_lossy(&xml));
            }
            Ok(())
        });
    }

    fn refusals() -> impl Strategy<Value = String> {
        let code = "NoSuchKey|SlowDown|AccessDenied|InternalError|NoSuchBucket|[A-Za-z]{0,9}";
        (fuzz::text(code), fuzz::text("[ -~]{0,12}"), any::<bool>()).prop_map(
            |(code, message, declared)| {
                let message = quick_xml::escape::escape(message);
                let head =
                    if declared { "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n" } else { "" };
                format!("{head}<Error><Code>{code}</Code><Message>{message}</Message></Error>")
            },
        )
    }

    /// A refusal, and one in place of a page, whatever it looks like: there is a meaning, it is
    /// never an empty directory, and "there is nothing" only with its own status.
    #[test]
    fn a_refusal_that_was_damaged_is_a_refusal() {
        fuzz::each((damaged(refusals()), 300_u16..600), |(xml, status)| {
            prop_assert!(read(&xml).is_err());
            for about in [About::Key, About::Bucket] {
                let meant = Refusal::new(status, &HeaderMap::new(), &xml).meaning(about);
                if meant == StoreError::NotFound {
                    prop_assert!(matches!(status, 404 | 410) && about == About::Key);
                }
            }
            Ok(())
        });
    }

    #[test]
    fn a_refusal_is_read_as_the_sdk_reads_it() {
        let sdk = Sdk::new();
        fuzz::each((refusals(), 300_u16..600), |(xml, status)| {
            let told = sdk.refused(status, xml.as_bytes());
            prop_assert_eq!(crate::store::s3::xml::error(xml.as_bytes()), Some(told), "{}", xml);
            Ok(())
        });
    }
}

#[test]
fn common_prefixes_in_one_element_are_all_read() {
    let prefixes = "<CommonPrefixes><Prefix>a/</Prefix><Prefix>b/</Prefix></CommonPrefixes>";
    let page = read(whole(&format!("{END}{prefixes}")).as_bytes()).unwrap();
    let keys: Vec<&str> = page.entries.iter().map(ListEntry::key).collect();
    assert_eq!(keys, ["a/", "b/"]);
}
